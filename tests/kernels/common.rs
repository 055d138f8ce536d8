//! A device of the interpreter's memory, or of a GPU's, or of both, and how results are judged.

pub use super::functions::*;
use crate::device::{Where, chosen, cuda, skip, there};
use crate::interpreter::{self, module};
use crate::ptx::tensor_map;
use crate::second_device::{SecondDevice, settled};
use braid::device::cuda::driver::{Kernel, TensorMapDesc};
use braid::device::cuda::ops::convolution::ConvolutionParams;
use braid::device::cuda::ops::convolution_narrow::NarrowParams;
use braid::device::cuda::ops::epilogue::EpilogueParams;
use braid::device::cuda::ops::gemm::GemmParams;
use braid::device::cuda::ops::kernel::Pointer;
use braid::device::cuda::ops::registry::kernels;
use braid::tensor::DType;
use braid_ptx::{Arithmetic, Counts, GlobalMemory, Launch, Schedule};

pub use crate::interpreter::values;

pub const HALVES: [DType; 2] = [DType::F16, DType::BF16];
/// The types of the kernels that a decoder needs.
pub const ALL: [DType; 3] = [DType::F16, DType::BF16, DType::F32];

/// Whether there is what a test needs: kernels, and the device that BRAID_TEST_DRIVER names.
pub fn compiled() -> bool {
    interpreter::compiled() && there()
}

/// The same for kernels of sm_90a.
pub fn compiled_for_hopper() -> bool {
    compiled()
        && match chosen() {
            Where::Interpreter | Where::Alone | Where::Twice => true,
            Where::Cuda | Where::Both => {
                let (major, minor) = cuda().unwrap().properties().capability;
                (major, minor) == (9, 0) || skip(&format!("kernels of sm_90a, on a GPU of {major}.{minor}"))
            }
        }
}

/// The same of a test that looks at what only the interpreter can count.
pub fn counted() -> bool {
    interpreter::compiled() && (chosen() == Where::Interpreter || skip("what it counts, only the interpreter can"))
}

/// The same of a test of so many GiB, which the interpreter's memory has without taking them.
pub fn fits(gib: u64) -> bool {
    compiled()
        && match chosen() {
            Where::Interpreter => true,
            Where::Alone | Where::Twice => skip("true sizes are for the interpreter and a GPU"),
            Where::Cuda | Where::Both => {
                let free = cuda().unwrap().memory_info().unwrap().free >> 30;
                free > gib || skip(&format!("it takes {gib} GiB of the GPU, {free} are free"))
            }
        }
}

/// The values rounded to the type.
pub fn rounded(dtype: DType, x: &[f32]) -> Vec<f32> {
    interpreter::wide(&interpreter::narrow(x, dtype), dtype)
}

/// Memory of the interpreter, of a device, or of both, where the test knows the interpreter's addresses.
pub struct Gpu {
    memory: Option<GlobalMemory>,
    second: Option<SecondDevice>,
}

impl Gpu {
    pub fn new() -> Self {
        Self::on(chosen())
    }

    pub fn on(which: Where) -> Self {
        let second = match which {
            Where::Interpreter => None,
            Where::Cuda | Where::Both => Some(SecondDevice::of(cuda().unwrap())),
            Where::Alone | Where::Twice => Some(SecondDevice::interpreter()),
        };
        let alone = matches!(which, Where::Cuda | Where::Alone);
        Self { memory: (!alone).then(GlobalMemory::new), second }
    }

    /// The device beside the interpreter, or in its place.
    pub fn second(&self) -> Option<&SecondDevice> {
        self.second.as_ref()
    }

    pub fn bytes(&self, bytes: &[u8]) -> Pointer {
        let at = self.room(bytes.len());
        self.write(at, bytes);
        at
    }

    /// Room that nothing has written to.
    pub fn room(&self, bytes: usize) -> Pointer {
        let bytes = bytes.max(1);
        let known = self.memory.as_ref().map(|memory| memory.alloc(bytes as u64));
        let at = self.second.as_ref().map(|second| second.room(known, bytes));
        Pointer(known.or(at).unwrap())
    }

    /// Room whose bytes from `from` on are filled with one value.
    pub fn filled_from(&self, bytes: usize, from: usize, byte: u8) -> Pointer {
        let at = self.room(bytes);
        if let Some(memory) = &self.memory {
            memory.fill(at.0 + from as u64, (bytes - from) as u64, byte).unwrap();
        }
        if let Some(second) = &self.second {
            second.fill(at.0 + from as u64, bytes - from, byte);
        }
        at
    }

    /// Room filled with one value.
    pub fn filled(&self, bytes: usize, byte: u8) -> Pointer {
        self.filled_from(bytes, 0, byte)
    }

    pub fn f32(&self, x: &[f32]) -> Pointer {
        self.bytes(bytemuck::cast_slice(x))
    }

    pub fn i32(&self, x: &[i32]) -> Pointer {
        self.bytes(bytemuck::cast_slice(x))
    }

    /// Structs with addresses in them.
    pub fn table<P: bytemuck::Pod>(&self, structs: &[P]) -> Pointer {
        let words: &[u64] = bytemuck::cast_slice(structs);
        let at = self.room(words.len() * 8);
        if let Some(memory) = &self.memory {
            memory.write(at.0, bytemuck::cast_slice(words)).unwrap();
        }
        if let Some(second) = &self.second {
            second.write_table(at.0, words);
        }
        at
    }

    /// The values in that type.
    pub fn upload(&self, dtype: DType, x: &[f32]) -> Pointer {
        self.bytes(&interpreter::narrow(x, dtype))
    }

    fn write(&self, at: Pointer, bytes: &[u8]) {
        if let Some(memory) = &self.memory {
            memory.write(at.0, bytes).unwrap();
        }
        if let Some(second) = &self.second {
            second.write(at.0, bytes);
        }
    }

    /// Writes values into memory that is there.
    pub fn put(&self, at: Pointer, dtype: DType, x: &[f32]) {
        self.write(at, &interpreter::narrow(x, dtype));
    }

    /// Bytes, which must be the same on both devices.
    pub fn read(&self, at: Pointer, bytes: usize) -> Vec<u8> {
        self.both(at, bytes, None).unwrap_or_else(|e| panic!("{e}"))
    }

    /// `n` values of that type, which on both devices are alike as the type's rounding has it.
    pub fn download(&self, dtype: DType, at: Pointer, n: usize) -> Vec<f32> {
        let bytes = self.both(at, n * dtype.size(), Some(dtype)).unwrap_or_else(|e| panic!("{e}"));
        interpreter::wide(&bytes, dtype)
    }

    /// The first device's bytes, after checking that the second agrees.
    pub fn both(&self, at: Pointer, bytes: usize, dtype: Option<DType>) -> Result<Vec<u8>, String> {
        let ours = self.memory.as_ref().map(|memory| {
            let mut out = vec![0; bytes];
            memory.read(at.0, &mut out).unwrap();
            out
        });
        let theirs = self.second.as_ref().map(|second| second.read(at.0, bytes));
        if let (Some(ours), Some(theirs), Some(second)) = (&ours, &theirs, &self.second) {
            settled(second.last_kernel(at.0), dtype, ours, theirs)?;
        }
        Ok(ours.or(theirs).unwrap())
    }

    fn run<'a>(
        &self,
        name: &str,
        dtype: DType,
        grid: [u32; 3],
        params: &'a [u8],
        schedules: &[Schedule],
        settle: impl Fn(&mut Launch<'a>),
    ) -> Counts {
        let kernel = kernels().find(|kernel| kernel.name == name).unwrap();
        let mut counts = Counts::default();
        if let Some(memory) = &self.memory {
            counts = Self::interpret(kernel, dtype, grid, params, (memory, schedules), settle);
        }
        if let Some(second) = &self.second {
            second.launch(kernel, dtype, grid, params);
        }
        counts
    }

    fn interpret<'a>(
        kernel: &Kernel,
        dtype: DType,
        grid: [u32; 3],
        params: &'a [u8],
        (memory, schedules): (&GlobalMemory, &[Schedule]),
        settle: impl Fn(&mut Launch<'a>),
    ) -> Counts {
        let (mut counts, entry) = (Counts::default(), kernel.entry(dtype));
        for schedule in schedules {
            let mut launch = Launch::new(grid, [kernel.threads, 1, 1], params);
            launch.dynamic_shared = kernel.shared as usize;
            // Kernels for sm_90 and later wait for the launch before.
            launch.early = kernel.module.ends_with("_sm90");
            launch.schedule = *schedule;
            launch.arithmetic = Arithmetic::from_env();
            settle(&mut launch);
            let run = braid_ptx::run(&module(kernel.module), &entry, memory, &launch);
            counts = run.unwrap_or_else(|fault| panic!("{fault}"));
        }
        counts
    }

    /// Launches once under that schedule.
    pub fn once<P: bytemuck::Pod>(
        &self,
        name: &str,
        dtype: DType,
        grid: [u32; 3],
        params: &P,
        schedule: Schedule,
    ) -> Counts {
        self.run(name, dtype, grid, bytemuck::bytes_of(params), &[schedule], |_| ())
    }

    /// Runs some blocks of a launch, without race checks; on a GPU all.
    pub fn sample<'a, P: bytemuck::Pod>(
        &self,
        name: &str,
        dtype: DType,
        grid: [u32; 3],
        params: &'a P,
        blocks: &'a [[u32; 3]],
    ) -> Counts {
        self.sample_of(name, dtype, grid, bytemuck::bytes_of(params), blocks)
    }

    /// The same with the parameters' bytes.
    pub fn sample_of<'a>(
        &self,
        name: &str,
        dtype: DType,
        grid: [u32; 3],
        params: &'a [u8],
        blocks: &'a [[u32; 3]],
    ) -> Counts {
        self.run(name, dtype, grid, params, &[Schedule::InOrder], |launch| {
            launch.blocks = Some(blocks);
            launch.check_races = false;
        })
    }

    /// Launches a kernel with tensor maps, each with its offset in the parameters, under some schedules.
    pub fn mapped<P: bytemuck::Pod>(
        &self,
        name: &str,
        dtype: DType,
        grid: [u32; 3],
        params: &P,
        maps: &[(usize, TensorMapDesc)],
        schedules: &[Schedule],
    ) {
        let kernel = kernels().find(|kernel| kernel.name == name).unwrap();
        if let Some(memory) = &self.memory {
            let mut bytes = bytemuck::bytes_of(params).to_vec();
            for (at, map) in maps {
                let map = tensor_map(map).to_bytes();
                bytes[*at..][..map.len()].copy_from_slice(&map);
            }
            Self::interpret(kernel, dtype, grid, &bytes, (memory, schedules), |_| ());
        }
        if let Some(second) = &self.second {
            second.launch_mapped(kernel, dtype, grid, bytemuck::bytes_of(params), maps);
        }
    }

    /// Launches a kernel that does not read what it writes, under several schedules.
    pub fn launch<P: bytemuck::Pod>(&self, name: &str, dtype: DType, grid: [u32; 3], params: &P) {
        let schedules = [Schedule::InOrder, Schedule::Greedy, Schedule::Random(7)];
        self.run(name, dtype, grid, bytemuck::bytes_of(params), &schedules, |_| ());
    }
}

/// The relative L2 error, which must be at most three times that of rounding the exact result to the type once (in the root
/// mean square a quarter of a unit in the last place: 1.4e-4 for f16, 1.1e-3 for bf16).
///
/// Each result of 16 bits is besides the exact one rounded to nearest, once, but for what f32 leaves of the largest to either side.
pub fn close(what: &str, dtype: DType, got: &[f32], want: &[f64]) {
    close_beside(what, dtype, got, want, want.iter().fold(0f64, |a, b| a.max(b.abs())));
}

/// The same where the numbers in between were larger than the results: about as large as this.
pub fn close_beside(what: &str, dtype: DType, got: &[f32], want: &[f64], large: f64) {
    let bound = match dtype {
        DType::F16 => 6e-4,
        DType::BF16 => 5e-3,
        _ => 2e-6,
    };
    within(what, bound, got, want);
    rounded_once(what, dtype, got, want, 3e-6 * large);
}

/// Checks that each result in a type of 16 bits is half a unit from the exact one at most, and what f32 leaves.
fn rounded_once(what: &str, dtype: DType, got: &[f32], want: &[f64], sums: f64) {
    let (bits, least) = match dtype {
        DType::F16 => (10, -14),
        DType::BF16 => (7, -126),
        _ => return,
    };
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let unit = 2f64.powi((want.abs().log2().floor() as i32).max(least) - bits);
        let (off, allowed) = ((f64::from(*got) - want).abs(), 0.5 * unit + sums);
        assert!(off <= allowed, "{what}, {i}: {got} for {want} is {:.3} units off", off / unit);
    }
}

/// The relative L2 error.
fn error(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let norm: f64 = want.iter().map(|w| w * w).sum::<f64>().max(1e-30);
    let squares = got.iter().zip(want).map(|(got, want)| (f64::from(*got) - want).powi(2));
    (squares.sum::<f64>() / norm).sqrt()
}

pub fn within(what: &str, bound: f64, got: &[f32], want: &[f64]) {
    let error = error(got, want);
    let distance = |i: usize| (f64::from(got[i]) - want[i]).abs();
    let worst = (0..got.len()).max_by(|&a, &b| distance(a).total_cmp(&distance(b))).unwrap_or(0);
    let sample = (got.get(worst), want.get(worst));
    assert!(error < bound, "{what}: relative error {error:e}; the worst is at {worst}: {sample:?}");
}

/// Checks an f32 result: at most three times the error of the plain f32 computation, which is at least that of rounding once.
pub fn within_f32(what: &str, got: &[f32], want: &[f64], naive: &[f32]) {
    let naive = error(naive, want);
    println!("{what}: {:.1e}, naive {naive:.1e}", error(got, want));
    within(what, 3.0 * naive.max(3e-8), got, want);
}

/// The type that a reference computes in: f64, or f32 for a naive one.
pub trait Real: Copy + Default + From<f32> + std::ops::AddAssign + std::ops::Mul<Output = Self> {}

impl Real for f32 {}
impl Real for f64 {}

pub fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|v| f64::from(*v)).collect()
}

/// `[m, k]` by `[n, k]`, rows without gaps; the addresses are left to the caller.
pub fn product(m: usize, n: usize, k: usize) -> GemmParams {
    GemmParams {
        x0_stride: k as i64,
        w_stride: k as i64,
        finish: EpilogueParams { out_stride: n as i64, ..EpilogueParams::default() },
        m: m as i32,
        n: n as i32,
        k: k as i32,
        k0: k as i32,
        ..GemmParams::default()
    }
}

/// A 3x3 convolution of stride 1 with padding 1 over square images `[images, side, side, c]`, for the kernels of few channels; the
/// addresses are left to the caller.
pub fn narrow(images: usize, side: usize, c: usize, n: usize) -> NarrowParams {
    NarrowParams {
        x: Pointer(0),
        w: Pointer(0),
        bias: Pointer(0),
        out: Pointer(0),
        pixels: (images * side * side) as i32,
        n: n as i32,
        channels: c as i32,
        height: side as i32,
        width: side as i32,
        result_height: side as i32,
        result_width: side as i32,
        kernel_y: 3,
        kernel_x: 3,
        stride: 1,
        padding_y: 1,
        padding_x: 1,
        out_f32: 0,
        reserved: 0,
    }
}

/// A convolution of stride 1 with padding 1 over images `[images, height, width, c]` from one source; the addresses are left
/// to the caller.
pub fn convolution([images, height, width]: [usize; 3], c: usize, n: usize, kernel: i32) -> ConvolutionParams {
    ConvolutionParams {
        finish: EpilogueParams {
            out_stride: n as i64,
            rows_of_image: (height * width) as i32,
            ..EpilogueParams::default()
        },
        pixels: (images * height * width) as i32,
        n: n as i32,
        channels0: c as i32,
        channels: c as i32,
        height: height as i32,
        width: width as i32,
        result_height: height as i32,
        result_width: width as i32,
        kernel_y: kernel,
        kernel_x: kernel,
        stride: 1,
        padding_y: 1,
        padding_x: 1,
        phases: 1,
        ..ConvolutionParams::default()
    }
}
