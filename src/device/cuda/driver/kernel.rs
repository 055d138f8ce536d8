//! Kernels and their launches.
//!
//! An entry point is called `NAME_f16`, `NAME_bf16` or `NAME_f32` and takes one parameter struct by value.

use super::tensor_map::{TensorMap, TensorMapDesc};
use crate::device::cuda::compile::targets::is_sm_90a_alone;
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

    /// Whether it runs on devices of that compute capability, of those that kernels exist for at all.
    pub fn runs_on(&self, capability: (u32, u32)) -> bool {
        !is_sm_90a_alone(self.module) || capability == (9, 0)
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
            function: Function::default(),
            grid,
            block: self.threads,
            shared: self.shared,
            params: bytemuck::pod_collect_to_vec(&[params]).into_boxed_slice(),
            tensor_maps: Vec::new(),
        })
    }
}

/// A kernel that a driver has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Function {
    /// Its number there.
    pub handle: u64,
    /// Whether its launches may begin before the launch before them has ended: its code waits for that (`griddepcontrol.wait`), and the
    /// driver can begin it so.
    pub early: bool,
}

/// One launch of a kernel.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The kernel.
    pub kernel: &'static Kernel,
    /// The kernel's entry point, e.g. `gemm_64x64_f16`.
    pub entry: String,
    /// The driver's form of it.
    pub function: Function,
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: u32,
    /// Bytes of dynamic shared memory of a block.
    pub shared: u32,
    /// The bytes of the one parameter struct, in words of 8.
    pub params: Box<[u64]>,
    /// The tensor maps that are encoded into the parameters when the launch is prepared, each with its offset there in bytes.
    pub tensor_maps: Vec<(usize, TensorMapDesc)>,
}

impl Launch {
    /// The same launch with tensor maps in its parameters.
    ///
    /// # Errors
    /// [`Error::Graph`] where a map breaks a rule of the driver, or has no place in the parameters.
    pub(crate) fn with_tensor_maps(mut self, maps: Vec<(usize, TensorMapDesc)>) -> Result<Self> {
        for (at, map) in &maps {
            map.check()?;
            if !at.is_multiple_of(align_of::<TensorMap>()) || at + size_of::<TensorMap>() > self.params.len() * 8 {
                return Err(Error::Graph(format!("`{}` has no tensor map {at} bytes into its parameters", self.entry)));
            }
        }
        self.tensor_maps = maps;
        Ok(self)
    }

    /// Writes the tensor maps into the parameters, as `encode` gives them.
    ///
    /// # Errors
    /// Those of `encode`.
    pub(crate) fn encode_tensor_maps(&mut self, encode: impl Fn(&TensorMapDesc) -> Result<TensorMap>) -> Result<()> {
        for (at, map) in &self.tensor_maps {
            let TensorMap(words) = encode(map)?;
            self.params[at / 8..][..words.len()].copy_from_slice(&words);
        }
        Ok(())
    }

    /// The bytes of the parameter struct.
    pub fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.params)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cuda::driver::tensor_map::Swizzle;
    use bytemuck::Zeroable;

    #[derive(Clone, Copy, Pod, Zeroable)]
    #[repr(C)]
    struct Params {
        first: TensorMap,
        second: TensorMap,
        count: [u64; 8],
    }

    static COPY: Kernel = Kernel {
        module: "none",
        name: "copy",
        types: Types::Halves,
        threads: 32,
        shared: 0,
        params: size_of::<Params>(),
    };

    fn launch() -> Launch {
        COPY.launch(DType::F16, [1, 1, 1], Params { count: [7; 8], ..Params::zeroed() }).unwrap()
    }

    fn map(address: u64) -> TensorMapDesc {
        TensorMapDesc::tiled(address, DType::F16, &[(64, 1, 64), (8, 64, 8)], Swizzle::Bytes128)
    }

    #[test]
    fn tensor_maps_in_parameters() {
        let mut launch = launch().with_tensor_maps(vec![(0, map(0x100)), (128, map(0x200))]).unwrap();
        assert_eq!(launch.params[..32], [0; 32], "nothing is encoded yet");
        for shift in [0, 1000] {
            // A launch is encoded anew where addresses move.
            launch.tensor_maps.iter_mut().for_each(|(_, map)| map.address += 16 * shift);
            launch.encode_tensor_maps(|map| Ok(TensorMap([map.address; 16]))).unwrap();
            let [first, second] = [0x100, 0x200].map(|address| address + 16 * shift);
            assert_eq!([launch.params[..16].to_vec(), launch.params[16..32].to_vec()], [[first; 16], [second; 16]]);
        }
        assert_eq!(launch.params[32..], [7; 8]);
        let fails = |_: &TensorMapDesc| Err(Error::Graph("no".into()));
        assert_eq!(launch.encode_tensor_maps(fails).unwrap_err().to_string(), "graph: no");
    }

    #[test]
    fn misplaced_tensor_maps() {
        for at in [32, 256, 320] {
            let error = launch().with_tensor_maps(vec![(at, map(0))]).unwrap_err().to_string();
            assert_eq!(error, format!("graph: `copy_f16` has no tensor map {at} bytes into its parameters"));
        }
        let error = launch().with_tensor_maps(vec![(0, map(8))]).unwrap_err().to_string();
        assert!(error.contains("at address 0x8; a multiple of 16"), "{error}");
    }
}
