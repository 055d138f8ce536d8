//! Random weights in the published formats: small models for tests from a recipe, and a whole SDXL for measurements.
//!
//! Every value is a pure function of the tensor's seed and the element's index, so that no weights need to be stored.

mod file;
mod memory;
mod recipe;
mod safetensors;
mod sdxl;
mod torch;

pub use memory::in_memory;
pub use recipe::from_recipe;
pub use safetensors::write_safetensors;
pub use sdxl::{Sizes, WriteProgress, adapter_tensors, checkpoint_tensors, sdxl, vision_tensors};
pub use torch::write_torch;

use crate::cancel;
use crate::error::{Error, Result};
use crate::parallel;
use crate::tensor::{DType, elements};
use half::slice::HalfFloatSliceExt;
use std::io::Write;
use std::path::Path;

/// The element type of a synthetic tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// Random values in a floating-point type.
    Float(DType),
    /// 0, 1, 2, ... as 64-bit integers, as the published files hold `position_ids`.
    Positions,
}

impl Stored {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Self::Float(dtype) => dtype.size(),
            Self::Positions => 8,
        }
    }
}

/// One synthetic tensor.
///
/// Element `i` (row-major) of a float tensor is `offset + scale * u`, each operation rounded to f32, with
/// `u = (x >> 8) * 2^-23 - 1` in [-1, 1) and `x` the finished hash of `i * 0x9E3779B9 + seed` modulo 2^32; the result is rounded to
/// the stored type, half to even.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorSpec {
    /// The name under which the file stores it.
    pub name: String,
    /// Sizes of the dimensions.
    pub shape: Vec<usize>,
    /// Its element type.
    pub dtype: Stored,
    /// Half the width of the interval of the values.
    pub scale: f32,
    /// Its middle.
    pub offset: f32,
    /// The hash's seed; [`seed_of`] a name by custom.
    pub seed: u32,
}

impl TensorSpec {
    /// The number of elements, or `None` where it overflows.
    pub fn len(&self) -> Option<usize> {
        elements(&self.shape)
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == Some(0)
    }

    /// The number of bytes, or `None` where it overflows.
    pub fn bytes(&self) -> Option<usize> {
        self.len()?.checked_mul(self.dtype.size())
    }

    /// The value of element `index`, before it is rounded to the stored type.
    pub fn value(&self, index: usize) -> f32 {
        let mut x = (index as u32).wrapping_mul(0x9E37_79B9).wrapping_add(self.seed);
        x ^= x >> 16;
        x = x.wrapping_mul(0x7feb_352d);
        x ^= x >> 15;
        x = x.wrapping_mul(0x846c_a68b);
        x ^= x >> 16;
        let u = (x >> 8) as f32 * (1.0 / 8_388_608.0) - 1.0;
        self.offset + self.scale * u
    }

    /// Fills `out` with the little-endian bytes of the elements from `first` on.
    fn fill(&self, first: usize, out: &mut [u8]) {
        const BLOCK: usize = 1024;
        let mut values = [0f32; BLOCK];
        for (n, out) in out.chunks_mut(BLOCK * self.dtype.size()).enumerate() {
            let (first, count) = (first + n * BLOCK, out.len() / self.dtype.size());
            let Stored::Float(dtype) = self.dtype else {
                for (i, bytes) in out.chunks_exact_mut(8).enumerate() {
                    bytes.copy_from_slice(&((first + i) as u64).to_le_bytes());
                }
                continue;
            };
            let values = &mut values[..count];
            values.iter_mut().enumerate().for_each(|(i, v)| *v = self.value(first + i));
            match dtype {
                DType::F32 => {
                    out.chunks_exact_mut(4).zip(values).for_each(|(b, v)| b.copy_from_slice(&v.to_le_bytes()));
                }
                DType::F16 => {
                    let mut halves = [half::f16::ZERO; BLOCK];
                    halves[..count].convert_from_f32_slice(values);
                    out.chunks_exact_mut(2).zip(halves).for_each(|(b, v)| b.copy_from_slice(&v.to_le_bytes()));
                }
                DType::BF16 => {
                    let mut halves = [half::bf16::ZERO; BLOCK];
                    halves[..count].convert_from_f32_slice(values);
                    out.chunks_exact_mut(2).zip(halves).for_each(|(b, v)| b.copy_from_slice(&v.to_le_bytes()));
                }
            }
        }
    }

    /// Writes all elements to `out`; the blocks of a batch are computed in parallel.
    fn write(&self, out: &mut impl Write, path: &Path, buffer: &mut Vec<u8>) -> Result<()> {
        const BLOCK: usize = 1 << 18;
        const BATCH: usize = 32;
        let (len, size) = (self.checked_len(path)?, self.dtype.size());
        let mut first = 0;
        while first < len {
            cancel::check()?;
            let count = (len - first).min(BLOCK * BATCH);
            buffer.resize(count * size, 0);
            let blocks = buffer.chunks_mut(BLOCK * size).enumerate();
            parallel::for_each(BATCH, blocks, |(i, block)| self.fill(first + i * BLOCK, block));
            out.write_all(buffer).map_err(Error::io("write", path))?;
            first += count;
        }
        Ok(())
    }

    fn checked_len(&self, path: &Path) -> Result<usize> {
        let bytes = self.bytes().filter(|&b| b as u64 <= 1 << 40);
        match (self.len(), bytes) {
            (Some(len), Some(_)) => Ok(len),
            _ => Err(Error::malformed(path, format!("tensor `{}` of shape {:?} is too large", self.name, self.shape))),
        }
    }
}

/// FNV-1a, 32 bits, of the UTF-8 name.
pub fn seed_of(name: &str) -> u32 {
    name.bytes().fold(0x811C_9DC5, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(dtype: DType) -> TensorSpec {
        let seed = seed_of("conv_in.weight");
        TensorSpec {
            name: "conv_in.weight".into(),
            shape: vec![1100],
            dtype: Stored::Float(dtype),
            scale: 0.3,
            offset: 1.0,
            seed,
        }
    }

    /// Literals from `tools/goldens/recipe.py`: `fill([1100], 0.3, 1.0, seed_of("conv_in.weight"))`.
    #[test]
    fn values_of_the_recipe() {
        let s = spec(DType::F32);
        assert_eq!(s.seed, SEED);
        for (i, bits) in VALUES {
            assert_eq!(s.value(i).to_bits(), bits, "{i}");
        }
        let mut bytes = vec![0; 2200];
        spec(DType::F16).fill(0, &mut bytes);
        assert_eq!(crc32fast::hash(&bytes), F16);
        spec(DType::BF16).fill(0, &mut bytes);
        assert_eq!(crc32fast::hash(&bytes), BF16);
        // In two pieces it is the same.
        let mut pieces = vec![0; 2200];
        let (a, b) = pieces.split_at_mut(1026);
        spec(DType::BF16).fill(0, a);
        spec(DType::BF16).fill(513, b);
        assert_eq!(bytes, pieces);
    }

    const SEED: u32 = 0xb1e79747;
    const VALUES: [(usize, u32); 4] = [(0, 0x3f776bab), (1, 0x3f4bf5d6), (513, 0x3f9b7428), (1099, 0x3f599a98)];
    const F16: u32 = 0xba57b206;
    const BF16: u32 = 0x53e1806b;
}
