//! Tensor maps, by which kernels of sm_90a copy boxes of tensors: what one is to describe, and the driver's encoding of it.
//!
//! Dimensions go from the innermost, whose elements lie together, to the outermost. The rules are those of `cuTensorMapEncodeTiled` and
//! `cuTensorMapEncodeIm2col` in the CUDA driver's manual.

use crate::error::{Error, Result};
use crate::tensor::DType;
use bytemuck::{Pod, Zeroable};

/// A tensor map as the driver encoded it, a field of a kernel's parameters: CUDA's `CUtensorMap`. Its bytes mean something to the
/// device alone. All zero: none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, align(64))]
pub struct TensorMap(pub [u64; 16]);

/// The order of 16-byte chunks in shared memory: within so many bytes a chunk's number is combined by exclusive or with the number of
/// its 128-byte line, so that columns are free of bank conflicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Swizzle {
    None,
    Bytes32,
    Bytes64,
    Bytes128,
}

impl Swizzle {
    /// The most bytes of a row of a box.
    fn span(self) -> Option<u64> {
        match self {
            Self::None => None,
            Self::Bytes32 => Some(32),
            Self::Bytes64 => Some(64),
            Self::Bytes128 => Some(128),
        }
    }
}

/// The elements that a copy takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TensorMapMode {
    /// A box of so many elements in each dimension.
    Tiled(Vec<u32>),
    /// Rows of channels of consecutive pixels, of a tensor of channels, width, height and images, or of one or three spatial dimensions.
    Im2col {
        /// The first base pixel of each spatial dimension, innermost first.
        lower: Vec<i32>,
        /// The last base pixel, counted from the dimension's last pixel.
        upper: Vec<i32>,
        /// Channels of a row.
        channels: u32,
        /// Rows of a copy.
        pixels: u32,
    },
}

/// All that a tensor map is encoded from. What lies outside of the tensor arrives as zeros.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorMapDesc {
    /// The device address of the first element.
    pub address: u64,
    /// The type of the elements.
    pub dtype: DType,
    /// Elements of each dimension.
    pub dims: Vec<u64>,
    /// Bytes from one position of each dimension but the innermost to the next.
    pub strides: Vec<u64>,
    /// Steps in each dimension, 1 for every element.
    pub element_strides: Vec<u32>,
    /// The elements that a copy takes.
    pub mode: TensorMapMode,
    /// Their order in shared memory.
    pub swizzle: Swizzle,
}

impl TensorMapDesc {
    /// The boxes of a tensor of that type at an address: for each dimension its elements, the elements from one position to the next
    /// (of the innermost 1) and the elements of a box.
    pub fn tiled(address: u64, dtype: DType, dims: &[(usize, usize, u32)], swizzle: Swizzle) -> Self {
        let strides = dims.iter().skip(1).map(|(_, stride, _)| (stride * dtype.size()) as u64);
        Self {
            address,
            dtype,
            dims: dims.iter().map(|(count, ..)| *count as u64).collect(),
            strides: strides.collect(),
            element_strides: vec![1; dims.len()],
            mode: TensorMapMode::Tiled(dims.iter().map(|(.., tile)| *tile).collect()),
            swizzle,
        }
    }

    /// Bytes from the first element to the end of the last one.
    pub fn span(&self) -> u64 {
        let last = |count: &u64| count.saturating_sub(1);
        let outer =
            self.dims.iter().skip(1).zip(&self.strides).map(|(count, stride)| last(count).saturating_mul(*stride));
        let inner = self.dims.first().copied().unwrap_or(0).saturating_mul(self.dtype.size() as u64);
        outer.fold(inner, u64::saturating_add)
    }

    /// Checks the rules of the driver, whose answer does not say which one is broken.
    ///
    /// # Errors
    /// [`Error::Graph`] with the value and what is possible.
    pub(crate) fn check(&self) -> Result<()> {
        let rank = self.dims.len();
        let fail = |what: String| Err(Error::Graph(format!("a tensor map {what}")));
        let least = if let TensorMapMode::Im2col { .. } = self.mode { 3 } else { 1 };
        if !(least..=5).contains(&rank) || self.strides.len() + 1 != rank || self.element_strides.len() != rank {
            let (strides, steps) = (self.strides.len(), self.element_strides.len());
            return fail(format!(
                "of {rank} dimensions with {strides} strides and {steps} element strides; {least} to 5, one less and as many are needed"
            ));
        }
        if !self.address.is_multiple_of(16) {
            return fail(format!("at address {:#x}; a multiple of 16 is needed", self.address));
        }
        let outside = |range: std::ops::RangeInclusive<u64>, values: &[u64]| {
            values.iter().enumerate().find(|(_, value)| !range.contains(value)).map(|(i, value)| (i, *value))
        };
        if let Some((i, count)) = outside(1..=1 << 32, &self.dims) {
            return fail(format!("with {count} elements in dimension {i}; 1 to 2^32 are possible"));
        }
        let uneven = self.strides.iter().enumerate().find(|(_, s)| !s.is_multiple_of(16) || **s >= 1 << 40);
        if let Some((i, stride)) = uneven {
            return fail(format!(
                "with a stride of {stride} bytes in dimension {}; multiples of 16 below 2^40 are possible",
                i + 1
            ));
        }
        let steps: Vec<u64> = self.element_strides.iter().map(|step| u64::from(*step)).collect();
        if let Some((i, step)) = outside(1..=8, &steps) {
            return fail(format!("with an element stride of {step} in dimension {i}; 1 to 8 are possible"));
        }
        let inner = self.check_mode(rank)? * self.dtype.size() as u64;
        match self.swizzle.span() {
            _ if !inner.is_multiple_of(16) => {
                fail(format!("with rows of {inner} bytes in its box; multiples of 16 are needed"))
            }
            Some(span) if inner > span => fail(format!(
                "with rows of {inner} bytes in its box; a swizzle of {span} bytes takes no more than these"
            )),
            _ => Ok(()),
        }
    }

    /// The elements of a row of the box, or of a pixel.
    fn check_mode(&self, rank: usize) -> Result<u64> {
        let fail = |what: String| Err(Error::Graph(format!("a tensor map {what}")));
        match &self.mode {
            TensorMapMode::Tiled(tile) => {
                if tile.len() != rank {
                    return fail(format!("of {rank} dimensions with a box of {}", tile.len()));
                }
                match tile.iter().enumerate().find(|(_, count)| !(1..=256).contains(*count)) {
                    Some((i, count)) => {
                        fail(format!("with a box of {count} elements in dimension {i}; 1 to 256 are possible"))
                    }
                    None => Ok(u64::from(tile[0])),
                }
            }
            TensorMapMode::Im2col { lower, upper, channels, pixels } => {
                let spatial = rank - 2;
                if [lower.len(), upper.len()] != [spatial; 2] {
                    return fail(format!(
                        "of {spatial} spatial dimensions with corners of {} and {}",
                        lower.len(),
                        upper.len()
                    ));
                }
                // 16 bits hold the corners of one, two or three dimensions.
                let half = [1 << 15, 1 << 7, 1 << 4][spatial - 1];
                if let Some(corner) = lower.iter().chain(upper).find(|corner| !(-half..half).contains(*corner)) {
                    return fail(format!("with a corner of {corner}; {} to {} are possible", -half, half - 1));
                }
                if !(1..=256).contains(channels) || !(1..=1024).contains(pixels) {
                    return fail(format!(
                        "with {channels} channels of {pixels} pixels; 1 to 256 of 1 to 1024 are possible"
                    ));
                }
                Ok(u64::from(*channels))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 64 columns of 128 rows of a matrix [300, 640].
    fn matrix() -> TensorMapDesc {
        TensorMapDesc::tiled(0x1000, DType::F16, &[(640, 1, 64), (300, 640, 128)], Swizzle::Bytes128)
    }

    fn image() -> TensorMapDesc {
        let dims = [(320, 1, 0), (32, 320, 0), (24, 32 * 320, 0), (2, 24 * 32 * 320, 0)];
        let rows = TensorMapMode::Im2col { lower: vec![-1; 2], upper: vec![-1; 2], channels: 64, pixels: 128 };
        TensorMapDesc { mode: rows, ..TensorMapDesc::tiled(0, DType::BF16, &dims, Swizzle::Bytes128) }
    }

    #[test]
    fn bytes_of_tensors() {
        assert_eq!(matrix().span(), 300 * 640 * 2);
        assert_eq!(TensorMapDesc { strides: vec![2000], ..matrix() }.span(), 299 * 2000 + 1280);
        assert_eq!(image().span(), 2 * 24 * 32 * 320 * 2);
    }

    /// Each broken rule is named with its value.
    #[test]
    fn rules() {
        type Change = fn(&mut TensorMapDesc);
        let tiled: [(Change, &str); 11] = [
            (|map| map.address = 0x1008, "at address 0x1008; a multiple of 16"),
            (|map| map.dims[1] = 0, "with 0 elements in dimension 1"),
            (|map| map.dims[0] = (1 << 32) + 1, "with 4294967297 elements in dimension 0"),
            (|map| map.strides[0] = 1288, "with a stride of 1288 bytes in dimension 1; multiples of 16"),
            (|map| map.strides[0] = 1 << 40, "with a stride of 1099511627776 bytes"),
            (|map| map.element_strides[1] = 9, "with an element stride of 9 in dimension 1"),
            (|map| map.mode = TensorMapMode::Tiled(vec![64, 257]), "with a box of 257 elements in dimension 1"),
            (
                |map| map.mode = TensorMapMode::Tiled(vec![72, 128]),
                "with rows of 144 bytes in its box; a swizzle of 128",
            ),
            (|map| map.mode = TensorMapMode::Tiled(vec![12, 128]), "with rows of 24 bytes in its box; multiples of 16"),
            (|map| map.mode = TensorMapMode::Tiled(vec![64]), "of 2 dimensions with a box of 1"),
            (|map| map.strides.clear(), "of 2 dimensions with 0 strides and 2 element strides"),
        ];
        let gathered: [(Change, &str); 4] = [
            (|map| map.dims.truncate(2), "of 2 dimensions with 3 strides"),
            (|map| set(map, [-129, -1], 64, 128), "with a corner of -129; -128 to 127"),
            (|map| set(map, [-1, 128], 64, 128), "with a corner of 128; -128 to 127"),
            (|map| set(map, [-1, -1], 64, 1025), "with 64 channels of 1025 pixels"),
        ];
        fn set(map: &mut TensorMapDesc, [lower, upper]: [i32; 2], channels: u32, pixels: u32) {
            map.mode = TensorMapMode::Im2col { lower: vec![lower; 2], upper: vec![upper; 2], channels, pixels };
        }
        for (whole, changes) in [(matrix(), &tiled[..]), (image(), &gathered[..])] {
            whole.check().unwrap();
            for (change, expected) in changes {
                let mut map = whole.clone();
                change(&mut map);
                let error = map.check().unwrap_err().to_string();
                assert!(error.starts_with(&format!("graph: a tensor map {expected}")), "{error} is not {expected}");
            }
        }
    }
}
