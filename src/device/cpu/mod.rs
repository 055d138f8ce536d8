//! The CPU: f32 arithmetic on all cores, the default where there is no GPU and the reference for every other device.

mod executable;
mod microkernel;
mod op;
mod ops;
mod pack;
mod pool;
mod scratch;
mod simd;
#[cfg(test)]
mod tests;

use self::executable::CpuExecutable;
use self::pool::Pool;
use super::{Device, Executable};
use crate::error::Result;
use crate::graph::{Graph, fuse};
use std::sync::Arc;

/// The CPU with a pool of threads of its own.
#[derive(Clone)]
pub struct Cpu {
    pool: Arc<Pool>,
}

impl Cpu {
    /// A device of that many threads; `None` means one for each core.
    pub fn new(threads: Option<usize>) -> Self {
        let cores = || std::thread::available_parallelism().map_or(1, |n| n.get());
        Self { pool: Arc::new(Pool::new(threads.unwrap_or_else(cores))) }
    }

    /// The number of threads.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// The instruction set that is used: `avx512`, `avx2` or `portable`.
    pub fn instructions() -> &'static str {
        match simd::isa() {
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
        Ok(Box::new(CpuExecutable::new(self.pool.clone(), fuse(graph))?))
    }
}
