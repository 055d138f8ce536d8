//! A device of the interpreter's memory, and how results are judged.

use braid::device::cuda::kernels::{KERNELS, modules};
use braid::device::cuda::params::Pointer;
use braid::tensor::DType;
use braid_ptx::{Counts, Launch, Memory, Module, Schedule};
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};

pub const HALVES: [DType; 2] = [DType::F16, DType::BF16];

/// Values in -1..1 from a small generator.
pub fn values(n: usize, seed: u32) -> Vec<f32> {
    let mut x = seed.wrapping_mul(2_654_435_769) | 1;
    (0..n)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 17;
            x ^= x << 5;
            (x >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

/// What the type makes of the values.
pub fn rounded(dtype: DType, x: &[f32]) -> Vec<f32> {
    x.iter()
        .map(|&v| match dtype {
            DType::F16 => half::f16::from_f32(v).to_f32(),
            DType::BF16 => half::bf16::from_f32(v).to_f32(),
            _ => v,
        })
        .collect()
}

/// The modules' PTX, parsed once; `None` where the build had no NVRTC. `NAME.ptx` in the folder that BRAID_KERNELS_PTX names
/// takes the place of what was built: for mutants.
fn module(name: &str) -> Option<Arc<Module>> {
    static PARSED: OnceLock<Mutex<HashMap<String, Arc<Module>>>> = OnceLock::new();
    let mut parsed = PARSED.get_or_init(Default::default).lock().unwrap();
    if let Some(module) = parsed.get(name) {
        return Some(module.clone());
    }
    let binary = modules().iter().find(|module| module.name == name).unwrap().binary((10, 0))?;
    let other = std::env::var_os("BRAID_KERNELS_PTX").map(|folder| Path::new(&folder).join(format!("{name}.ptx")));
    let text = other.and_then(|file| std::fs::read_to_string(file).ok());
    let text = text.unwrap_or_else(|| String::from_utf8(binary.unpack().unwrap()).unwrap());
    let module = Arc::new(Module::parse(text.trim_end_matches('\0')).unwrap());
    parsed.insert(name.to_owned(), module.clone());
    Some(module)
}

/// Whether there are kernels to test; says so where there are none.
pub fn compiled() -> bool {
    let there = braid::device::cuda::kernels::compiler().is_some();
    if !there {
        println!("skipped: the kernels were built without NVRTC");
    }
    there
}

/// Memory of the interpreter.
pub struct Gpu(Memory);

impl Gpu {
    pub fn new() -> Self {
        Self(Memory::new())
    }

    pub fn bytes(&self, bytes: &[u8]) -> Pointer {
        let at = self.0.alloc(bytes.len().max(1) as u64);
        self.0.write(at, bytes).unwrap();
        Pointer(at)
    }

    /// Room that nothing has written to.
    pub fn room(&self, bytes: usize) -> Pointer {
        Pointer(self.0.alloc(bytes.max(1) as u64))
    }

    /// Room whose bytes from `from` on are filled with one value.
    pub fn filled_from(&self, bytes: usize, from: usize, byte: u8) -> Pointer {
        let at = self.room(bytes);
        self.0.fill(at.0 + from as u64, (bytes - from) as u64, byte).unwrap();
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

    /// The values in that type.
    pub fn upload(&self, dtype: DType, x: &[f32]) -> Pointer {
        match dtype {
            DType::F16 => {
                self.bytes(bytemuck::cast_slice(&x.iter().map(|&v| half::f16::from_f32(v)).collect::<Vec<_>>()))
            }
            DType::BF16 => {
                self.bytes(bytemuck::cast_slice(&x.iter().map(|&v| half::bf16::from_f32(v)).collect::<Vec<_>>()))
            }
            _ => self.f32(x),
        }
    }

    pub fn read(&self, at: Pointer, bytes: usize) -> Vec<u8> {
        let mut out = vec![0; bytes];
        self.0.read(at.0, &mut out).unwrap();
        out
    }

    /// `n` values of that type.
    pub fn download(&self, dtype: DType, at: Pointer, n: usize) -> Vec<f32> {
        let bytes = self.read(at, n * dtype.size());
        let half = |i: usize| u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]);
        match dtype {
            DType::F16 => (0..n).map(|i| half::f16::from_bits(half(i)).to_f32()).collect(),
            DType::BF16 => (0..n).map(|i| half::bf16::from_bits(half(i)).to_f32()).collect(),
            _ => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        }
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
        let kernel = KERNELS.iter().find(|kernel| kernel.name == name).unwrap();
        let module = module(kernel.module).unwrap();
        let mut launch = Launch::new(grid, [kernel.threads, 1, 1], bytemuck::bytes_of(params));
        launch.dynamic_shared = kernel.shared as usize;
        launch.schedule = schedule;
        braid_ptx::run(&module, &kernel.entry(dtype), &self.0, &launch).unwrap_or_else(|fault| panic!("{fault}"))
    }

    /// Runs some blocks of a launch, without race checks.
    pub fn sample<P: bytemuck::Pod>(
        &self,
        name: &str,
        dtype: DType,
        grid: [u32; 3],
        params: &P,
        blocks: &[[u32; 3]],
    ) -> Counts {
        let kernel = KERNELS.iter().find(|kernel| kernel.name == name).unwrap();
        let module = module(kernel.module).unwrap();
        let mut launch = Launch::new(grid, [kernel.threads, 1, 1], bytemuck::bytes_of(params));
        launch.dynamic_shared = kernel.shared as usize;
        launch.blocks = Some(blocks);
        launch.check_races = false;
        braid_ptx::run(&module, &kernel.entry(dtype), &self.0, &launch).unwrap_or_else(|fault| panic!("{fault}"))
    }

    /// Launches a kernel that does not read what it writes, under several schedules.
    pub fn launch<P: bytemuck::Pod>(&self, name: &str, dtype: DType, grid: [u32; 3], params: &P) {
        for schedule in [Schedule::InOrder, Schedule::Greedy, Schedule::Random(7)] {
            self.once(name, dtype, grid, params, schedule);
        }
    }
}

/// The relative L2 error, which must be at most three times that of rounding the exact result to the type once (in the root
/// mean square a quarter of a unit in the last place: 1.4e-4 for f16, 1.1e-3 for bf16).
pub fn close(what: &str, dtype: DType, got: &[f32], want: &[f64]) {
    let bound = match dtype {
        DType::F16 => 6e-4,
        DType::BF16 => 5e-3,
        _ => 2e-6,
    };
    within(what, bound, got, want);
}

pub fn within(what: &str, bound: f64, got: &[f32], want: &[f64]) {
    assert_eq!(got.len(), want.len(), "{what}");
    let norm: f64 = want.iter().map(|w| w * w).sum::<f64>().max(1e-30);
    let squares = |i: usize| (f64::from(got[i]) - want[i]).powi(2);
    let error = ((0..got.len()).map(squares).sum::<f64>() / norm).sqrt();
    let worst = (0..got.len()).max_by(|&a, &b| squares(a).total_cmp(&squares(b))).unwrap_or(0);
    let sample = (got.get(worst), want.get(worst));
    assert!(error < bound, "{what}: relative error {error:e}; the worst is at {worst}: {sample:?}");
}

pub fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|v| f64::from(*v)).collect()
}

/// By its series, which loses its digits far out, where erf is 1 to 1e-9.
pub fn erf(x: f64) -> f64 {
    if x.abs() > 4.3 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..120 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

pub fn gelu(x: f64) -> f64 {
    x * 0.5 * (1.0 + erf(x / 2f64.sqrt()))
}

pub fn swish(x: f64, factor: f64) -> f64 {
    x / (1.0 + (-factor * x).exp())
}
