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

/// The format in which a tensor is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum StorageFormat {
    /// f32, as it is.
    Float,
    /// The storage type, `[n, pitch]` from `[n, inputs, taps]`.
    Matrix { inputs: usize, taps: usize, pitch: usize },
    /// The storage type, `[4, n, 2, 2, inputs]` from `[n, inputs, 3, 3]`.
    Phases { inputs: usize },
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

    /// Bytes that must be staged together.
    fn least(&self) -> usize {
        match self.format {
            StorageFormat::Phases { .. } => self.weight.len() * self.size(),
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
}
