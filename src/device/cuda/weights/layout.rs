//! The layout of weights on the device.
//!
//! A copy names a tensor, its address and its format: OHWI instead of OIHW, rows padded to a pitch, the four phase kernels of
//! a convolution after a doubling, f32 for what normalisations read.

use crate::error::{Error, Result};
use crate::graph::LinearWeights;
use crate::tensor::DType;
use crate::weights::Weight;

/// Bytes to which every tensor of the allocation is aligned.
const ALIGN: usize = 256;
/// Bytes of a row's scale.
const SCALE: usize = size_of::<f32>();

/// The format in which a tensor is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum StorageFormat {
    /// f32, as it is.
    Float,
    /// The storage type, `[n, pitch]` from `[n, inputs, taps]`.
    Matrix { inputs: usize, taps: usize, pitch: usize },
    /// The storage type, `[4, n, 2, 2, inputs]` from `[n, inputs, 3, 3]`.
    Phases { inputs: usize },
    /// e4m3, `[n, taps, inputs]` from `[n, inputs, taps]`, and so many bytes behind its first row the rows' scales.
    E4m3 { inputs: usize, taps: usize, scales: usize },
    /// The same of `[4, n, 2, 2, inputs]` from `[n, inputs, 3, 3]`.
    E4m3Phases { inputs: usize, scales: usize },
}

fn rows(weight: &Weight) -> usize {
    weight.shape().first().copied().unwrap_or(0)
}

/// A tensor with its place and format.
#[derive(Debug)]
pub(crate) struct WeightCopy {
    pub(crate) weight: Weight,
    /// Bytes from the start of an allocation that holds all blocks in order.
    pub(crate) offset: usize,
    pub(crate) format: StorageFormat,
}

/// The weights at one address: a tensor, or several joined.
#[derive(Debug, Clone)]
pub(crate) struct Block {
    pub(crate) offset: usize,
    pub(crate) bytes: usize,
    /// The first of its copies; the next block's comes after its last.
    first: usize,
}

/// The weights that a graph needs: grows as it is lowered.
#[derive(Debug)]
pub(crate) struct WeightLayout {
    dtype: DType,
    stage: usize,
    copies: Vec<WeightCopy>,
    blocks: Vec<Block>,
    /// Bytes of all blocks.
    pub(crate) bytes: usize,
}

impl WeightLayout {
    /// An empty layout for tensors of that type, which go up through staging buffers of at most `stage` bytes.
    pub(crate) fn new(dtype: DType, stage: usize) -> Self {
        Self { dtype, stage, copies: Vec::new(), blocks: Vec::new(), bytes: 0 }
    }

    fn reserve(&mut self, bytes: usize) -> usize {
        let (offset, bytes) = (self.bytes, bytes.next_multiple_of(ALIGN));
        self.blocks.push(Block { offset, bytes, first: self.copies.len() });
        self.bytes += bytes;
        offset
    }

    /// Every block with its copies.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = (&Block, &[WeightCopy])> {
        self.blocks.iter().enumerate().map(|(i, block)| {
            let end = self.blocks.get(i + 1).map_or(self.copies.len(), |next| next.first);
            (block, &self.copies[block.first..end])
        })
    }

    fn push(&mut self, weight: &Weight, offset: usize, format: StorageFormat) {
        self.copies.push(WeightCopy { weight: weight.clone(), offset, format });
    }

    /// Adds a tensor as f32.
    pub(crate) fn floats(&mut self, weight: &Weight) -> usize {
        let offset = self.reserve(weight.len() * 4);
        self.push(weight, offset, StorageFormat::Float);
        offset
    }

    /// Adds that many ones as f32.
    ///
    /// # Errors
    /// None in practice: a tensor of this length can be made.
    pub(crate) fn ones(&mut self, count: usize) -> Result<usize> {
        let weight = Weight::from_f32(&vec![1.0; count], &[count], "ones");
        weight.map(|w| self.floats(&w)).ok_or_else(|| Error::Graph("a tensor of ones".into()))
    }

    /// Adds a vector in the storage type.
    pub(crate) fn vector(&mut self, weight: &Weight) -> usize {
        let offset = self.reserve(weight.len() * self.dtype.size());
        self.push(weight, offset, StorageFormat::Matrix { inputs: 1, taps: 1, pitch: 1 });
        offset
    }

    /// Adds a matrix in the storage type.
    pub(crate) fn matrix(&mut self, weight: &Weight) -> usize {
        let inputs = weight.len() / rows(weight).max(1);
        let offset = self.reserve(weight.len() * self.dtype.size());
        self.push(weight, offset, StorageFormat::Matrix { inputs, taps: 1, pitch: inputs });
        offset
    }

    /// Adds matrices or convolution kernels one below the other: rows of `taps` times `inputs` values, zeros up to the pitch.
    pub(crate) fn joined(&mut self, parts: &[LinearWeights], inputs: usize, taps: usize, pitch: usize) -> usize {
        let offset =
            self.reserve(parts.iter().map(|part| rows(&part.weight)).sum::<usize>() * pitch * self.dtype.size());
        let mut at = offset;
        for part in parts {
            self.push(&part.weight, at, StorageFormat::Matrix { inputs, taps, pitch });
            at += rows(&part.weight) * pitch * self.dtype.size();
        }
        offset
    }

    /// Adds the biases of joined matrices, zeros where a part has none; nothing where none has one.
    pub(crate) fn biases(&mut self, parts: &[LinearWeights]) -> Option<usize> {
        parts.iter().find(|part| part.bias.is_some())?;
        let offset = self.reserve(parts.iter().map(|part| rows(&part.weight)).sum::<usize>() * self.dtype.size());
        let mut at = offset;
        for part in parts {
            if let Some(bias) = &part.bias {
                self.push(bias, at, StorageFormat::Matrix { inputs: 1, taps: 1, pitch: 1 });
            }
            at += rows(&part.weight) * self.dtype.size();
        }
        Some(offset)
    }

    /// Adds the four phase kernels of a 3x3 convolution.
    pub(crate) fn phases(&mut self, weight: &Weight) -> usize {
        let (n, inputs) = (weight.shape()[0], weight.shape()[1]);
        let offset = self.reserve(16 * n * inputs * self.dtype.size());
        self.push(weight, offset, StorageFormat::Phases { inputs });
        offset
    }

    /// Adds matrices or convolution kernels one below the other in e4m3, rows of `taps` times `inputs` values, 16 or a multiple; returns
    /// their place, and the bytes from there to the scales of the rows.
    pub(crate) fn quantized(&mut self, parts: &[LinearWeights], inputs: usize, taps: usize) -> (usize, usize) {
        let columns = taps * inputs;
        let all = parts.iter().map(|part| rows(&part.weight)).sum::<usize>();
        let offset = self.reserve(all * (columns + SCALE));
        let mut row = 0;
        for part in parts {
            let scales = (all - row) * columns + row * SCALE;
            self.push(&part.weight, offset + row * columns, StorageFormat::E4m3 { inputs, taps, scales });
            row += rows(&part.weight);
        }
        (offset, all * columns)
    }

    /// The same of the four phase kernels of a 3x3 convolution.
    pub(crate) fn quantized_phases(&mut self, weight: &Weight) -> (usize, usize) {
        let (n, inputs) = (weight.shape()[0], weight.shape()[1]);
        let scales = 16 * n * inputs;
        let offset = self.reserve(scales + 4 * n * SCALE);
        self.push(weight, offset, StorageFormat::E4m3Phases { inputs, scales });
        (offset, scales)
    }

    /// Bytes on the device beside its staging buffer where so many bytes are staged: those of [`WeightCopy::wide`].
    pub(crate) fn wide(&self, staging: usize) -> usize {
        self.copies.iter().map(|copy| copy.wide(staging)).max().unwrap_or(0)
    }

    /// Bytes of each of the two staging buffers.
    pub(crate) fn staging(&self) -> usize {
        self.staging_of(self.copies.iter())
    }

    /// Bytes of each of the two staging buffers for these of its copies: at most the limit, unless one row of a tensor is longer.
    pub(crate) fn staging_of<'a>(&self, copies: impl Iterator<Item = &'a WeightCopy> + Clone) -> usize {
        let least = copies.clone().map(WeightCopy::least).max().unwrap_or(0);
        let most = copies.map(|copy| copy.weight.len() * copy.size()).max().unwrap_or(0);
        most.min(self.stage).max(least)
    }
}

impl WeightCopy {
    /// Bytes of an element as it is staged.
    pub(crate) fn size(&self) -> usize {
        if self.format == StorageFormat::Float { 4 } else { self.weight.dtype().size() }
    }

    /// Rows of the tensor.
    pub(crate) fn rows(&self) -> usize {
        rows(&self.weight)
    }

    /// Elements of a row.
    pub(crate) fn row(&self) -> usize {
        self.weight.len() / self.rows().max(1)
    }

    /// The most rows that are staged together in so many bytes.
    pub(crate) fn rows_at_once(&self, staging: usize) -> usize {
        match self.format {
            StorageFormat::Phases { .. } | StorageFormat::E4m3Phases { .. } => self.rows(),
            _ => (staging / (self.row() * self.size()).max(1)).max(1),
        }
    }

    /// Bytes of the f32 that so many staged bytes become on their way to e4m3; 0 for what goes no such way.
    pub(crate) fn wide(&self, staging: usize) -> usize {
        let rows = self.rows_at_once(staging).min(self.rows());
        match self.format {
            StorageFormat::E4m3 { inputs, taps, .. } => rows * inputs * taps * size_of::<f32>(),
            StorageFormat::E4m3Phases { inputs, .. } => 16 * rows * inputs * size_of::<f32>(),
            _ => 0,
        }
    }

    /// Bytes that must be staged together.
    fn least(&self) -> usize {
        match self.format {
            StorageFormat::Phases { .. } | StorageFormat::E4m3Phases { .. } => self.weight.len() * self.size(),
            _ => self.row() * self.size(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(rows: usize, columns: usize) -> Weight {
        let values: Vec<f32> = (0..rows * columns).map(|i| i as f32).collect();
        Weight::from_f32(&values, &[rows, columns], "m").unwrap()
    }

    #[test]
    fn tensor_alignment() {
        let mut layout = WeightLayout::new(DType::F16, 32 << 20);
        let part = |rows, bias| LinearWeights { bias, ..matrix(rows, 6).into() };
        let parts = [part(3, None), part(5, Some(matrix(1, 5).reshaped(&[5]).unwrap()))];
        assert_eq!(layout.joined(&parts, 6, 1, 8), 0);
        assert_eq!(layout.copies[1].offset, 3 * 8 * 2);
        // The first part has no bias: its three zeros come before.
        assert_eq!(layout.biases(&parts), Some(256));
        assert_eq!(layout.copies[2].offset, 256 + 3 * 2);
        assert_eq!(layout.biases(&parts[..1]), None);
        assert_eq!(layout.bytes, 512);
        assert_eq!(layout.staging(), 5 * 6 * 4);
    }

    /// The rows of all parts, then their scales, so that a block has one address for either.
    #[test]
    fn quantized_rows() {
        let mut layout = WeightLayout::new(DType::F16, 4 * 32 * 4);
        let parts = [matrix(3, 32).into(), matrix(5, 32).into()];
        assert_eq!(layout.quantized(&parts, 32, 1), (0, 8 * 32));
        assert_eq!((layout.bytes, layout.copies[1].offset), (512, 3 * 32));
        let scales = |copy: &WeightCopy| match copy.format {
            StorageFormat::E4m3 { scales, .. } => copy.offset + scales,
            _ => 0,
        };
        assert_eq!([0, 1].map(|i| scales(&layout.copies[i])), [8 * 32, 8 * 32 + 3 * 4]);
        // Four rows at once, in f32.
        assert_eq!((layout.staging(), layout.wide(layout.staging())), (512, 4 * 32 * 4));
        let kernel = Weight::from_f32(&[0.0; 2 * 16 * 9], &[2, 16, 3, 3], "k").unwrap();
        assert_eq!(layout.quantized_phases(&kernel), (512, 4 * 2 * 4 * 16));
        assert_eq!(layout.wide(layout.staging()), 4 * 2 * 4 * 16 * 4);
    }
}
