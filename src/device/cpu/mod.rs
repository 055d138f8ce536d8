//! The CPU: f32 arithmetic on all cores, the default where there is no GPU and the reference for every other device. Products take
//! operands of bf16 where that is asked for.

mod buffer;
mod executable;
mod fp_math;
mod int8;
mod int8_panels;
#[cfg(test)]
mod int8_tests;
mod microkernel;
mod op;
mod ops;
mod pack;
#[cfg(target_arch = "x86_64")]
mod pack_avx512;
mod pool;
mod row_parts;
mod scratch;
mod simd;
#[cfg(test)]
mod tests;

pub use self::fp_math::FpMath;
pub use self::simd::Bf16Products;

use self::executable::CpuExecutable;
use self::int8_panels::Int8Weights;
use self::ops::Arithmetic;
use self::pool::Pool;
use self::row_parts::RowParts;
use super::host::{HostDenoiseLoop, HostImageDecoder};
use super::{DenoiseLoop, Device, Executable, ImageDecoder, LoopSpec, PixelRounding, user_cache};
use crate::error::Result;
use crate::graph::{Graph, fuse};
use std::path::PathBuf;
use std::sync::Arc;

/// The CPU with a pool of threads of its own.
#[derive(Clone)]
pub struct Cpu {
    pool: Arc<Pool>,
    fp_math: FpMath,
    vae: FpMath,
    int8: Option<Arc<Int8Weights>>,
}

impl Cpu {
    /// A device of that many threads; `None` means one for each core.
    pub fn new(threads: Option<usize>) -> Self {
        let cores = || std::thread::available_parallelism().map_or(1, |n| n.get());
        let pool = Arc::new(Pool::new(threads.unwrap_or_else(cores)));
        Self { pool, fp_math: FpMath::F32, vae: FpMath::F32, int8: None }
    }

    /// Sets the arithmetic of products, the VAE's included; f32 until then.
    #[must_use]
    pub fn with_fp_math(self, fp_math: FpMath) -> Self {
        Self { fp_math, vae: fp_math, ..self }
    }

    /// Sets that of the VAE alone.
    #[must_use]
    pub fn with_vae_fp_math(self, vae: FpMath) -> Self {
        Self { vae, ..self }
    }

    /// Makes products of int8 in the layers whose weights may be quantized. Quantized weights are kept in files of `folder`, a quarter as
    /// large as in f32, and mapped; without a folder, or where it cannot be written, they are made anew at every run.
    #[must_use]
    pub fn with_int8(self, folder: Option<PathBuf>) -> Self {
        Self { int8: Some(Arc::new(Int8Weights::at(folder))), ..self }
    }

    /// The user's folder for quantized weights: `int8` in `BRAID_CACHE`, else in `braid` in `XDG_CACHE_HOME` or `~/.cache`. None where
    /// `BRAID_CACHE` is empty or nothing names one.
    pub fn int8_folder() -> Option<PathBuf> {
        user_cache::folder().map(|folder| folder.join("int8"))
    }

    /// Whether this processor has an instruction for products of int8; without one they are slower than those of f32.
    pub fn int8_products() -> bool {
        simd::int8_products()
    }

    fn executable(&self, graph: Graph, fp_math: FpMath) -> Result<Box<dyn Executable>> {
        let arithmetic = Arithmetic { operands: fp_math.operands(), int8: self.int8.as_deref() };
        Ok(Box::new(CpuExecutable::new(self.pool.clone(), fuse(graph), arithmetic)?))
    }

    /// The number of threads.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// The rate of this processor's products of bf16.
    pub fn bf16_products() -> Bf16Products {
        simd::bf16_products()
    }

    /// The instruction set that is used: `avx512bf16`, `avx512vnni`, `avx512`, `avx2` or `portable`.
    pub fn instructions() -> &'static str {
        match simd::isa() {
            simd::Isa::Avx512Bf16 => "avx512bf16",
            simd::Isa::Avx512 if simd::int8_products() => "avx512vnni",
            simd::Isa::Avx512 => "avx512",
            simd::Isa::Avx2 => "avx2",
            simd::Isa::Portable => "portable",
        }
    }
}

impl std::fmt::Debug for Cpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Cpu({} threads)", self.threads())
    }
}

impl Device for Cpu {
    fn name(&self) -> String {
        "cpu".into()
    }

    fn compile(&self, graph: Graph) -> Result<Box<dyn Executable>> {
        self.executable(graph, self.fp_math)
    }

    /// One for each thread where there are rows enough and the model is small.
    fn row_parts(&self, graph: &Graph) -> Vec<usize> {
        row_parts::row_parts(graph, self.threads())
    }

    fn compile_denoise_parts(&self, graph: Graph, parts: Vec<Graph>, spec: &LoopSpec) -> Result<Box<dyn DenoiseLoop>> {
        let one = Self { pool: Arc::new(Pool::new(1)), ..self.clone() };
        let parts = parts.into_iter().map(|part| one.compile(part)).collect::<Result<_>>()?;
        let executable = RowParts::new(self.pool.clone(), graph, parts, &spec.row_axes);
        Ok(Box::new(HostDenoiseLoop::new(Box::new(executable), spec)?))
    }

    fn compile_vae_encoder(&self, graph: Graph) -> Result<Box<dyn Executable>> {
        self.executable(graph, self.vae)
    }

    fn compile_image_decoder(&self, graph: Graph, rounding: PixelRounding) -> Result<Box<dyn ImageDecoder>> {
        Ok(Box::new(HostImageDecoder::new(self.executable(graph, self.vae)?, rounding)))
    }

    fn upcast_vae(&self) -> Option<Box<dyn Device>> {
        let upcast = || Box::new(self.clone().with_vae_fp_math(FpMath::F32)) as Box<dyn Device>;
        (self.vae != FpMath::F32).then(upcast)
    }
}
