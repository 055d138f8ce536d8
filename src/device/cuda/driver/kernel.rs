//! Kernels and their launches.
//!
//! An entry point is called `NAME_f16`, `NAME_bf16` or `NAME_f32` and takes one parameter struct by value.

use crate::error::{Error, Result};
use crate::tensor::DType;
use bytemuck::Pod;

/// The types for which a kernel exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Types {
    /// f16 and bf16.
    Halves,
    /// f32 alone.
    F32,
    /// All three.
    All,
}

impl Types {
    /// The types one by one.
    pub fn each(self) -> &'static [DType] {
        match self {
            Self::Halves => &[DType::F16, DType::BF16],
            Self::F32 => &[DType::F32],
            Self::All => &[DType::F16, DType::BF16, DType::F32],
        }
    }
}

/// A kernel.
#[derive(Debug, Clone, Copy)]
pub struct Kernel {
    /// The file that holds it.
    pub module: &'static str,
    /// Its name without the type.
    pub name: &'static str,
    /// Its types.
    pub types: Types,
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of dynamic shared memory of a block.
    pub shared: u32,
    /// Bytes of its parameter struct.
    pub params: usize,
}

impl Kernel {
    /// The name of its entry point.
    pub fn entry(&self, dtype: DType) -> String {
        format!("{}_{dtype}", self.name)
    }

    /// A launch of this kernel for tensors of that type.
    ///
    /// # Errors
    /// [`Error::Graph`] where the parameters are not of this kernel, the grid is too large for a device, or there is no kernel for
    /// the type.
    pub(crate) fn launch<P: Pod>(&'static self, dtype: DType, grid: [u32; 3], params: P) -> Result<Launch> {
        let name = self.name;
        if self.params != size_of::<P>() {
            return Err(Error::Graph(format!("no kernel `{name}` takes {} bytes of parameters", size_of::<P>())));
        }
        if grid[0] > i32::MAX as u32 || grid[1] > 65_535 || grid[2] > 65_535 {
            return Err(Error::Graph(format!("a grid of {grid:?} blocks of `{name}` is more than a device takes")));
        }
        let dtype = if self.types == Types::F32 { DType::F32 } else { dtype };
        if !self.types.each().contains(&dtype) {
            let what = format!("there is no `{name}` for {dtype}: a decoder has f32, other executables f16 or bf16");
            return Err(Error::Graph(what));
        }
        Ok(Launch {
            kernel: self,
            entry: self.entry(dtype),
            function: Function(0),
            grid,
            block: self.threads,
            shared: self.shared,
            params: bytemuck::pod_collect_to_vec(&[params]).into_boxed_slice(),
        })
    }
}

/// A kernel that a driver has found: its number there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Function(pub u64);

/// One launch of a kernel.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The kernel.
    pub kernel: &'static Kernel,
    /// The kernel's entry point, e.g. `gemm_64x64_f16`.
    pub entry: String,
    /// The driver's number for it.
    pub function: Function,
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: u32,
    /// Bytes of dynamic shared memory of a block.
    pub shared: u32,
    /// The bytes of the one parameter struct, in words of 8.
    pub params: Box<[u64]>,
}

impl Launch {
    /// The bytes of the parameter struct.
    pub fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.params)
    }
}
