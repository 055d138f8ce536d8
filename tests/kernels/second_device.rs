//! A second device beside the interpreter, which runs every launch too: a GPU, or in tests of this file another interpreter.

use crate::interpreter::wide;
use crate::ptx::PtxDriver;
use braid::device::cuda::driver::Kernel;
use braid::device::cuda::driver::{self, Driver, TensorMapDesc};
use braid::tensor::DType;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The byte that fills the device's memory before anything is written: NaN in every type.
const UNWRITTEN: u8 = 0xff;

struct Block {
    /// On the device.
    at: u64,
    bytes: usize,
    /// The last kernel that was given it, and its type.
    kernel: Option<(&'static str, DType)>,
    /// The addresses in it, as the test knows them.
    table: Vec<u64>,
}

/// Memory of a device. Blocks are known by the addresses that the test has of them.
pub struct SecondDevice {
    driver: Arc<dyn Driver>,
    blocks: RefCell<BTreeMap<u64, Block>>,
}

/// A driver's calls come one at a time, the tests from several threads.
pub fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SecondDevice {
    pub fn of(driver: Arc<dyn Driver>) -> Self {
        Self { driver, blocks: RefCell::default() }
    }

    /// An interpreter for the kernels of sm_90a, too, whose addresses are others.
    pub fn interpreter() -> Self {
        let driver = PtxDriver::new().device((9, 0), 4);
        driver.allocate(12_345).unwrap();
        Self::of(Arc::new(driver))
    }

    /// Room, which the test knows by that address, or by the device's.
    pub fn room(&self, known: Option<u64>, bytes: usize) -> u64 {
        let _turn = turn();
        let at = self.driver.allocate(bytes).unwrap();
        self.driver.memset(at, bytes, UNWRITTEN).unwrap();
        let known = known.unwrap_or(at);
        self.blocks.borrow_mut().insert(known, Block { at, bytes, kernel: None, table: Vec::new() });
        known
    }

    /// The device's address of what lies within a block.
    fn place(&self, known: u64) -> Option<u64> {
        let blocks = self.blocks.borrow();
        let (from, block) = blocks.range(..=known).next_back()?;
        (known - from < block.bytes as u64).then(|| block.at + (known - from))
    }

    pub fn write(&self, known: u64, bytes: &[u8]) {
        let _turn = turn();
        self.driver.upload(self.place(known).unwrap(), bytes).unwrap();
    }

    /// Writes words of which some are addresses.
    pub fn write_table(&self, known: u64, words: &[u64]) {
        let there: Vec<u64> = words.iter().map(|word| self.place(*word).unwrap_or(*word)).collect();
        self.write(known, bytemuck::cast_slice(&there));
        let table = words.iter().filter(|word| self.place(**word).is_some()).copied().collect();
        self.blocks.borrow_mut().get_mut(&known).unwrap().table = table;
    }

    pub fn fill(&self, known: u64, bytes: usize, byte: u8) {
        let _turn = turn();
        self.driver.memset(self.place(known).unwrap(), bytes, byte).unwrap();
    }

    pub fn read(&self, known: u64, bytes: usize) -> Vec<u8> {
        let _turn = turn();
        let mut out = vec![0; bytes];
        self.driver.download(self.place(known).unwrap(), &mut out).unwrap();
        out
    }

    /// The last kernel that was given the memory there.
    pub fn last_kernel(&self, known: u64) -> Option<(&'static str, DType)> {
        self.blocks.borrow().range(..=known).next_back().and_then(|(_, block)| block.kernel)
    }

    /// A word that a kernel is given: the device's address where it is one, and what lies there, where that is a table of addresses.
    fn given(&self, word: u64, kernel: &Kernel, dtype: DType) -> (u64, Vec<u64>) {
        // Addresses are aligned; nothing else that a test passes is as great as one.
        let mut blocks = self.blocks.borrow_mut();
        match blocks.range_mut(..=word).next_back() {
            Some((from, block)) if word - from < block.bytes as u64 => {
                block.kernel = Some((kernel.name, dtype));
                (block.at + (word - from), block.table.clone())
            }
            _ => (word, Vec::new()),
        }
    }

    /// The launch as the driver gets it: the test's addresses in the parameters and in the tensor maps become the device's.
    pub fn launch_of(
        &self,
        kernel: &'static Kernel,
        dtype: DType,
        grid: [u32; 3],
        params: &[u8],
        maps: &[(usize, TensorMapDesc)],
    ) -> driver::Launch {
        assert_eq!(params.len(), kernel.params, "{}", kernel.name);
        let given = |word: u64| self.given(word, kernel, dtype);
        let word = |bytes: &[u8]| {
            let mut word = [0; 8];
            word[..bytes.len()].copy_from_slice(bytes);
            let (word, table) = given(u64::from_le_bytes(word));
            table.into_iter().for_each(|within| drop(given(within)));
            word
        };
        let entry = kernel.entry(dtype);
        let mut words: Vec<u64> = params.chunks(8).map(word).collect();
        for (at, map) in maps {
            let map = TensorMapDesc { address: given(map.address).0, ..map.clone() };
            let encoded = self.driver.encode_tensor_map(&map).unwrap().0;
            words[at / 8..][..encoded.len()].copy_from_slice(&encoded);
        }
        driver::Launch {
            kernel,
            function: self.driver.function(kernel, &entry).unwrap(),
            entry,
            grid,
            block: kernel.threads,
            shared: kernel.shared,
            params: words.into(),
            tensor_maps: Vec::new(),
        }
    }

    pub fn launch(&self, kernel: &'static Kernel, dtype: DType, grid: [u32; 3], params: &[u8]) {
        self.launch_mapped(kernel, dtype, grid, params, &[]);
    }

    /// The same of a kernel with tensor maps, at the test's addresses.
    pub fn launch_mapped(
        &self,
        kernel: &'static Kernel,
        dtype: DType,
        grid: [u32; 3],
        params: &[u8],
        maps: &[(usize, TensorMapDesc)],
    ) {
        let _turn = turn();
        let launch = self.launch_of(kernel, dtype, grid, params, maps);
        self.driver.launch(&launch, false).unwrap();
        // A fault is this kernel's.
        self.driver.synchronize().unwrap_or_else(|e| panic!("{}: {e}", launch.entry));
    }

    pub fn driver(&self) -> &dyn Driver {
        self.driver.as_ref()
    }
}

impl Drop for SecondDevice {
    fn drop(&mut self) {
        let _turn = turn();
        self.blocks.get_mut().values().for_each(|block| self.driver.free(block.at));
    }
}

/// Kernels that move values, or whose arithmetic rounds as IEEE 754 has it, once a value: both devices give the same bits.
const EXACT: [&str; 23] = [
    "add",
    "prepend_class_token",
    "concat",
    "embedding",
    "finite",
    "from_f32",
    "model_input",
    "patches",
    "phases_from_bf16",
    "phases_from_f16",
    "phases_from_f32",
    "rgb8",
    "scale_shift",
    "step_advance",
    "step_inputs",
    "gather",
    "to_f32",
    "transpose",
    "upsample",
    "weights_from_bf16",
    "weights_from_f16",
    "weights_from_f32",
    "", // What no kernel wrote.
];

/// The greatest L2 distance of two devices' results: the one that the tests allow a result beside f64's, for sums of another
/// order and approximate exponentials; of f32 what the tensor cores' own sums make of it.
fn bound(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 8e-4,
        DType::BF16 => 6e-3,
        _ => 2e-5,
    }
}

/// The relative difference in the L2 norm. What is not finite must be the same on both sides.
fn apart(ours: &[f32], theirs: &[f32]) -> f64 {
    let (mut norm, mut squares) = (1e-60, 0.0);
    for (a, b) in ours.iter().zip(theirs) {
        if a.is_finite() && b.is_finite() {
            norm += f64::from(*a).powi(2);
            squares += (f64::from(*a) - f64::from(*b)).powi(2);
        } else if !(a == b || a.is_nan() && b.is_nan()) {
            return f64::INFINITY;
        }
    }
    (squares / norm).sqrt()
}

/// Compares what two devices hold where that kernel was the last to write; of no type: bytes. Prints the worst difference of a
/// kernel whenever it has grown, so that a kernel's last line is its row of the table in tools/gpu-check.sh.
pub fn settled(
    kernel: Option<(&'static str, DType)>,
    dtype: Option<DType>,
    ours: &[u8],
    theirs: &[u8],
) -> Result<(), String> {
    static WORST: Mutex<BTreeMap<String, f64>> = Mutex::new(BTreeMap::new());
    let (name, entry) = kernel.map_or(("", String::new()), |(name, dtype)| (name, format!("{name}_{dtype}")));
    let (difference, bound) = match dtype.filter(|_| !EXACT.contains(&name)) {
        None => (ours.iter().zip(theirs).filter(|(a, b)| a != b).count() as f64, 0.0),
        Some(dtype) => (apart(&wide(ours, dtype), &wide(theirs, dtype)), bound(dtype)),
    };
    let is_good = difference <= bound && ours.len() == theirs.len();
    let mut worst = WORST.lock().unwrap_or_else(PoisonError::into_inner);
    let known = worst.get(&entry).copied();
    if known.is_none_or(|known| difference > known) && !entry.is_empty() {
        worst.insert(entry.clone(), difference);
        let unit = if bound == 0.0 { "bytes differ" } else { "relative difference" };
        println!("compared: {entry}: {difference:.1e} of at most {bound:.0e}, {unit}");
    }
    match is_good {
        true => Ok(()),
        false => Err(format!("{entry}: the devices differ by {difference:.3e}, at most {bound:.0e} is allowed")),
    }
}

mod tests {
    use super::settled;
    use crate::common::*;
    use crate::device::Where;
    use braid::device::cuda::ops::pointwise::UnaryParams;
    use braid::tensor::DType;

    /// Both devices run a launch, at addresses of their own; a difference on either is an error.
    #[test]
    fn planted_difference() {
        if !crate::interpreter::compiled() {
            return;
        }
        for (kernel, tolerated) in [("silu", true), ("scale_shift", false)] {
            let (dtype, count, gpu) = (DType::F16, 300, Gpu::on(Where::Twice));
            let out = gpu.room(count * 2);
            let x = gpu.upload(dtype, &values(count, 1));
            let params = UnaryParams { x, out, count: count as i64, scale: 0.5, shift: 2.0 };
            gpu.launch(kernel, dtype, [1, 1, 1], &params);
            let second = gpu.second().unwrap();
            assert_eq!(second.last_kernel(out.0 + 8), Some((kernel, dtype)));
            let right = gpu.both(out, count * 2, Some(dtype)).unwrap();
            assert_eq!(gpu.both(out, count * 2, None).unwrap(), right);
            // One value is the next one: within the rounding, but not of a kernel that is exact.
            let mut wrong = right.clone();
            wrong[2 * 77] ^= 1;
            second.write(out.0, &wrong);
            let outcome = gpu.both(out, count * 2, Some(dtype));
            assert_eq!(outcome.is_ok(), tolerated, "{outcome:?}");
            assert!(gpu.both(out, count * 2, None).unwrap_err().starts_with(&format!("{kernel}_f16: ")));
            // A value that is wrong, and one that is none.
            for byte in [0x12, 0xff] {
                wrong[2 * 77 + 1] = byte;
                wrong[2 * 77] = byte;
                second.write(out.0, &wrong);
                assert!(gpu.both(out, count * 2, Some(dtype)).is_err(), "{byte}");
            }
        }
    }

    #[test]
    fn bounds_of_a_comparison() {
        let halves = |x: &[f32]| crate::interpreter::narrow(x, DType::F16);
        let kernel = Some(("gemm_64x64", DType::F16));
        let compare = |a: &[f32], b: &[f32]| settled(kernel, Some(DType::F16), &halves(a), &halves(b));
        assert!(compare(&[1.0, 0.5, f32::NAN], &[1.0, 0.5005, f32::NAN]).is_ok());
        assert!(compare(&[1.0, 0.5], &[1.002, 0.5]).is_err());
        assert!(compare(&[1.0, f32::NAN], &[1.0, 0.5]).is_err());
        assert!(compare(&[1.0, f32::INFINITY], &[1.0, f32::NEG_INFINITY]).is_err());
        // Values against nothing at all.
        assert!(compare(&[0.0, 0.0], &[0.0, 0.25]).is_err());
        assert!(settled(Some(("silu", DType::F16)), None, &[1, 2], &[1, 3]).is_err());
    }
}
