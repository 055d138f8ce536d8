//! Weights on their way from the mapped files to the device.
//!
//! A job says which tensor goes where and in what form: OHWI instead of OIHW, rows padded to a pitch, the four phase kernels of
//! a convolution after a doubling, f32 for what normalisations read. The bytes pass through a staging buffer of the host in
//! the type of the file; the device changes type and layout. So a checkpoint is read once, in order, and never held whole.

use crate::device::cuda::driver::allocation::DeviceAllocation;
use crate::device::cuda::driver::interface::{Driver, Staging};
use crate::device::cuda::lower::{int, launch, long};
use crate::device::cuda::params::{Pointer, WeightsParams};
use crate::device::cuda::tiles::blocks;
use crate::error::{Error, Result};
use crate::graph::LinearWeights;
use crate::tensor::DType;
use crate::weights::Weight;
use std::ops::Range;
use std::sync::Arc;

/// To which every tensor of the slab is aligned.
const ALIGN: usize = 256;
/// Bytes of the staging buffers, unless one row of a tensor is longer.
const STAGE: usize = 32 << 20;

/// The form in which a tensor is stored.
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

#[derive(Debug)]
pub(crate) struct WeightCopy {
    pub(crate) weight: Weight,
    /// Bytes from the start of a slab that holds all blocks in order.
    pub(crate) offset: usize,
    pub(crate) format: StorageFormat,
}

/// What kernels find at one address: a tensor, or several joined.
#[derive(Debug, Clone)]
pub(crate) struct Block {
    pub(crate) offset: usize,
    pub(crate) bytes: usize,
    /// The first of its jobs; the next block's comes after its last.
    first: usize,
}

/// The weights that a graph needs: grows as it is lowered.
#[derive(Debug)]
pub struct WeightLayout {
    dtype: DType,
    jobs: Vec<WeightCopy>,
    blocks: Vec<Block>,
    /// Bytes of all blocks.
    pub bytes: usize,
}

impl WeightLayout {
    /// Nothing yet, for tensors of that type.
    pub fn new(dtype: DType) -> Self {
        Self { dtype, jobs: Vec::new(), blocks: Vec::new(), bytes: 0 }
    }

    fn reserve(&mut self, bytes: usize) -> usize {
        let (offset, bytes) = (self.bytes, bytes.next_multiple_of(ALIGN));
        self.blocks.push(Block { offset, bytes, first: self.jobs.len() });
        self.bytes += bytes;
        offset
    }

    /// Every block with its jobs.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = (&Block, &[WeightCopy])> {
        self.blocks.iter().enumerate().map(|(i, block)| {
            let end = self.blocks.get(i + 1).map_or(self.jobs.len(), |next| next.first);
            (block, &self.jobs[block.first..end])
        })
    }

    fn push(&mut self, weight: &Weight, offset: usize, form: StorageFormat) {
        self.jobs.push(WeightCopy { weight: weight.clone(), offset, format: form });
    }

    /// A tensor as f32.
    pub fn floats(&mut self, weight: &Weight) -> usize {
        let offset = self.reserve(weight.len() * 4);
        self.push(weight, offset, StorageFormat::Float);
        offset
    }

    /// That many ones as f32.
    ///
    /// # Errors
    /// None in practice: a tensor of this length can be made.
    pub fn ones(&mut self, count: usize) -> Result<usize> {
        let weight = Weight::from_f32(&vec![1.0; count], &[count], "ones");
        weight.map(|w| self.floats(&w)).ok_or_else(|| Error::Graph("a tensor of ones".into()))
    }

    /// A vector in the storage type.
    pub fn vector(&mut self, weight: &Weight) -> usize {
        let offset = self.reserve(weight.len() * self.dtype.size());
        self.push(weight, offset, StorageFormat::Matrix { inputs: 1, taps: 1, pitch: 1 });
        offset
    }

    /// A matrix in the storage type.
    pub fn matrix(&mut self, weight: &Weight) -> usize {
        let inputs = weight.len() / rows(weight).max(1);
        let offset = self.reserve(weight.len() * self.dtype.size());
        self.push(weight, offset, StorageFormat::Matrix { inputs, taps: 1, pitch: inputs });
        offset
    }

    /// Matrices or convolution kernels one below the other: rows of `taps` times `inputs` values, zeros up to the pitch.
    pub fn joined(&mut self, parts: &[LinearWeights], inputs: usize, taps: usize, pitch: usize) -> usize {
        let offset =
            self.reserve(parts.iter().map(|part| rows(&part.weight)).sum::<usize>() * pitch * self.dtype.size());
        let mut at = offset;
        for part in parts {
            self.push(&part.weight, at, StorageFormat::Matrix { inputs, taps, pitch });
            at += rows(&part.weight) * pitch * self.dtype.size();
        }
        offset
    }

    /// The biases of joined matrices, zeros where a part has none; nothing where none has one.
    pub fn biases(&mut self, parts: &[LinearWeights]) -> Option<usize> {
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

    /// The four phase kernels of a 3x3 convolution.
    pub fn phases(&mut self, weight: &Weight) -> usize {
        let (n, inputs) = (weight.shape()[0], weight.shape()[1]);
        let offset = self.reserve(16 * n * inputs * self.dtype.size());
        self.push(weight, offset, StorageFormat::Phases { inputs });
        offset
    }

    /// Bytes of each of the two staging buffers.
    pub fn staging(&self) -> usize {
        staging(self.jobs.iter())
    }
}

/// Bytes of each of the two staging buffers for these.
pub(crate) fn staging<'a>(jobs: impl Iterator<Item = &'a WeightCopy> + Clone) -> usize {
    let least = jobs.clone().map(WeightCopy::least).max().unwrap_or(0);
    let most = jobs.map(|job| job.weight.len() * job.size()).max().unwrap_or(0);
    most.min(STAGE).max(least)
}

impl WeightCopy {
    /// Bytes of an element as it is staged.
    fn size(&self) -> usize {
        if self.format == StorageFormat::Float { 4 } else { self.weight.dtype().size() }
    }

    fn rows(&self) -> usize {
        rows(&self.weight)
    }

    /// Elements of a row.
    fn row(&self) -> usize {
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

/// Copies tensors to their addresses, where all is zero.
///
/// # Errors
/// Those of the driver.
pub(crate) fn upload(driver: &Arc<dyn Driver>, dtype: DType, jobs: &[(u64, &WeightCopy)]) -> Result<()> {
    let size = staging(jobs.iter().map(|(_, job)| *job));
    // A tensor that is missing has no bytes; only a report is made of such a graph.
    let present: Vec<&(u64, &WeightCopy)> = jobs.iter().filter(|(_, job)| !job.weight.bytes().is_empty()).collect();
    if size == 0 || present.is_empty() {
        return Ok(());
    }
    let mut host = driver.staging(size)?;
    let device = DeviceAllocation::new(driver.clone(), size)?;
    for &&(to, job) in &present {
        match job.format {
            StorageFormat::Float => {
                let values = job.weight.to_f32();
                for (i, part) in bytemuck::cast_slice::<f32, u8>(&values).chunks(size).enumerate() {
                    driver.upload(to + (i * size) as u64, part)?;
                }
            }
            StorageFormat::Matrix { inputs, taps, pitch } => {
                let chunk = (size / (job.row() * job.size()).max(1)).max(1);
                for start in (0..job.rows()).step_by(chunk) {
                    let rows = start..(start + chunk).min(job.rows());
                    let to = to + (start * pitch * dtype.size()) as u64;
                    let part = gathered(&job.weight, rows.clone(), host.as_mut());
                    if taps == 1 && pitch == inputs && job.weight.dtype() == dtype {
                        driver.upload(to, part)?;
                        continue;
                    }
                    driver.upload(device.address(), part)?;
                    let params = WeightsParams {
                        x: Pointer(device.address()),
                        out: Pointer(to),
                        pitch: long(pitch),
                        n: int(rows.len()),
                        inputs: int(inputs),
                        taps: int(taps),
                        reserved: 0,
                    };
                    convert(driver, dtype, "weights", job, rows.len() * pitch, params)?;
                }
            }
            StorageFormat::Phases { inputs } => {
                let n = job.rows();
                driver.upload(device.address(), gathered(&job.weight, 0..n, host.as_mut()))?;
                let params = WeightsParams {
                    x: Pointer(device.address()),
                    out: Pointer(to),
                    pitch: 0,
                    n: int(n),
                    inputs: int(inputs),
                    taps: 9,
                    reserved: 0,
                };
                convert(driver, dtype, "phases", job, 16 * n * inputs, params)?;
            }
        }
    }
    // The staging buffers go.
    driver.synchronize()
}

fn convert(
    driver: &Arc<dyn Driver>,
    dtype: DType,
    kernel: &str,
    job: &WeightCopy,
    elements: usize,
    params: WeightsParams,
) -> Result<()> {
    let name = format!("{kernel}_from_{}", job.weight.dtype());
    let mut launch = launch(dtype, &name, [blocks(elements, 256), 1, 1], params)?;
    launch.function = driver.function(launch.kernel, &launch.entry)?;
    driver.launch(&launch)
}

/// Rows of a tensor, row-major without holes, in the type of the file.
fn gathered<'a>(weight: &Weight, rows: Range<usize>, host: &'a mut dyn Staging) -> &'a [u8] {
    let (size, bytes) = (weight.dtype().size(), weight.bytes());
    let row = weight.len() / weight.shape()[0].max(1);
    let to = &mut host.bytes()[..rows.len() * row * size];
    let dense = weight.rows(rows.start, rows.len()).is_some_and(|view| view.is_contiguous());
    let first = rows.start * weight.strides()[0] * size;
    if dense {
        to.copy_from_slice(&bytes[first..first + to.len()]);
        return to;
    }
    let mut index = vec![0usize; weight.shape().len()];
    index[0] = rows.start;
    for place in to.chunks_exact_mut(size) {
        let at = index.iter().zip(weight.strides()).map(|(i, s)| i * s).sum::<usize>() * size;
        place.copy_from_slice(&bytes[at..at + size]);
        for d in (0..index.len()).rev() {
            index[d] += 1;
            if d == 0 || index[d] < weight.shape()[d] {
                break;
            }
            index[d] = 0;
        }
    }
    to
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(rows: usize, columns: usize) -> Weight {
        let values: Vec<f32> = (0..rows * columns).map(|i| i as f32).collect();
        Weight::from_f32(&values, &[rows, columns], "m").unwrap()
    }

    fn floats(bytes: &[u8]) -> Vec<f32> {
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }

    #[test]
    fn gathers_rows_of_any_view() {
        let mut host = vec![0u8; 64];
        let m = matrix(3, 4);
        assert_eq!(floats(gathered(&m, 1..3, &mut host)), [4., 5., 6., 7., 8., 9., 10., 11.]);
        let t = m.transposed().unwrap();
        assert_eq!(floats(gathered(&t, 1..4, &mut host)), [1., 5., 9., 2., 6., 10., 3., 7., 11.]);
    }

    #[test]
    fn a_slab_holds_its_tensors_apart() {
        let mut jobs = WeightLayout::new(DType::F16);
        let part = |rows, bias| LinearWeights { weight: matrix(rows, 6), bias };
        let parts = [part(3, None), part(5, Some(matrix(1, 5).reshaped(&[5]).unwrap()))];
        assert_eq!(jobs.joined(&parts, 6, 1, 8), 0);
        assert_eq!(jobs.jobs[1].offset, 3 * 8 * 2);
        // The first part has no bias: its three zeros come before.
        assert_eq!(jobs.biases(&parts), Some(256));
        assert_eq!(jobs.jobs[2].offset, 256 + 3 * 2);
        assert_eq!(jobs.biases(&parts[..1]), None);
        assert_eq!(jobs.bytes, 512);
        assert_eq!(jobs.staging(), 5 * 6 * 4);
    }
}
