//! Uploads weights from the mapped files to the device.
//!
//! The bytes pass through a staging buffer of the host in the type of the file; the device changes type and layout. So a checkpoint
//! is read once, in order, and never held whole.

use super::layout::{StorageFormat, WeightCopy};
use crate::cancel;
use crate::device::cuda::driver::allocation::DeviceAllocation;
use crate::device::cuda::driver::interface::{Driver, EVENTS, Staging};
use crate::device::cuda::driver::kernel::{Kernel, Launch};
use crate::device::cuda::ops::kernel::{Pointer, Quantized, blocks, to_i32, to_i64};
use crate::device::cuda::ops::layout::{WeightsParams, phases_from, weights_from};
use crate::device::cuda::ops::quantize_sm90::{self, QUANTIZE_ROWS};
use crate::error::Result;
use crate::parallel;
use crate::tensor::DType;
use crate::weights::Weight;
use std::ops::Range;
use std::sync::Arc;

/// Bytes to which memory of the device is aligned.
const ALIGN: usize = 256;
/// Bytes that one thread copies at a time into a staging buffer.
const COPY: usize = 1 << 20;
/// The most threads that copy, enough for the fastest buses.
const MAX_THREADS: usize = 16;

/// Copies tensors to their addresses, where all is zero, through staging buffers of `size` bytes.
///
/// # Errors
/// Those of the driver; [`crate::Error::Cancelled`].
pub(crate) fn upload(driver: &Arc<dyn Driver>, dtype: DType, size: usize, copies: &[(u64, &WeightCopy)]) -> Result<()> {
    // A tensor that is missing has no bytes; only a report is made of such a graph.
    let present: Vec<&(u64, &WeightCopy)> = copies.iter().filter(|(_, copy)| !copy.weight.bytes().is_empty()).collect();
    if size == 0 || present.is_empty() {
        return Ok(());
    }
    let wide = present.iter().map(|(_, copy)| copy.wide(size)).max().unwrap_or(0);
    let room = DeviceAllocation::uninitialized(driver.clone(), size.next_multiple_of(ALIGN) + wide)?;
    let hosts = (0..EVENTS).map(|_| driver.staging(size)).collect::<Result<_>>()?;
    let (driver, device) = (driver.as_ref(), room.address());
    let wide = device + size.next_multiple_of(ALIGN) as u64;
    let mut uploader = Uploader { driver, dtype, size, hosts, device, wide, pieces: 0 };
    let mut run = || {
        for &&(to, copy) in &present {
            cancel::check()?;
            match copy.format {
                StorageFormat::Float => uploader.floats(copy, to)?,
                StorageFormat::Matrix { inputs, taps, pitch } => uploader.matrix(copy, to, inputs, taps, pitch)?,
                StorageFormat::Phases { inputs } => uploader.phases(copy, to, inputs)?,
                StorageFormat::E4m3 { inputs, taps, scales } => uploader.quantized(copy, to, (inputs, taps), scales)?,
                StorageFormat::E4m3Phases { inputs, scales } => uploader.quantized_phases(copy, to, inputs, scales)?,
            }
        }
        Ok(())
    };
    let outcome = run();
    // The staging buffers go, and copies may still read them, whatever has failed.
    driver.synchronize().and(outcome)
}

/// The staging buffers, of `size` bytes each, and the device that they are for.
///
/// A piece is copied from one of the host's buffers while the next is gathered in the other.
struct Uploader<'a> {
    driver: &'a dyn Driver,
    dtype: DType,
    size: usize,
    hosts: Vec<Box<dyn Staging>>,
    device: u64,
    /// Memory of the device for what is quantized, in f32.
    wide: u64,
    /// Pieces so far.
    pieces: usize,
}

impl Uploader<'_> {
    /// Copies a piece that `fill` puts at the start of a staging buffer; it returns the piece's bytes.
    fn send(&mut self, to: u64, fill: impl FnOnce(&mut [u8]) -> usize) -> Result<()> {
        let which = self.pieces % EVENTS;
        if self.pieces >= EVENTS {
            self.driver.synchronize_event(which)?;
        }
        let host = self.hosts[which].bytes();
        let len = fill(host);
        // SAFETY: this buffer is written again once its event is passed, and dropped after `upload` has waited for the device.
        unsafe { self.driver.upload_async(to, &host[..len]) }?;
        self.pieces += 1;
        self.driver.record_event(which)
    }

    /// Uploads a tensor as f32.
    fn floats(&mut self, copy: &WeightCopy, to: u64) -> Result<()> {
        let values = copy.weight.to_f32();
        for (i, part) in bytemuck::cast_slice::<f32, u8>(&values).chunks(self.size).enumerate() {
            self.send(to + (i * self.size) as u64, |host| {
                host[..part.len()].copy_from_slice(part);
                part.len()
            })?;
        }
        Ok(())
    }

    /// Uploads rows of `inputs` times `taps` values, `pitch` elements apart.
    fn matrix(&mut self, copy: &WeightCopy, to: u64, inputs: usize, taps: usize, pitch: usize) -> Result<()> {
        let chunk = copy.rows_at_once(self.size);
        for start in (0..copy.rows()).step_by(chunk) {
            let rows = start..(start + chunk).min(copy.rows());
            let to = to + (start * pitch * self.dtype.size()) as u64;
            let ready = taps == 1 && pitch == inputs && copy.weight.dtype() == self.dtype;
            let place = if ready { to } else { self.device };
            self.send(place, |host| gather(&copy.weight, rows.clone(), host))?;
            if ready {
                continue;
            }
            let params = self.staged(to, rows.len(), (inputs, taps), pitch);
            self.convert(weights_from(copy.weight.dtype()), self.dtype, rows.len() * pitch, params)?;
        }
        Ok(())
    }

    /// The parameters for so many rows in the staging buffer.
    fn staged(&self, to: u64, rows: usize, (inputs, taps): (usize, usize), pitch: usize) -> WeightsParams {
        WeightsParams {
            x: Pointer(self.device),
            out: Pointer(to),
            pitch: to_i64(pitch),
            n: to_i32(rows),
            inputs: to_i32(inputs),
            taps: to_i32(taps),
            reserved: 0,
        }
    }

    /// Uploads rows of `inputs` times `taps` values in e4m3, and their scales so many bytes behind the first one.
    fn quantized(&mut self, copy: &WeightCopy, to: u64, (inputs, taps): (usize, usize), scales: usize) -> Result<()> {
        let (chunk, columns) = (copy.rows_at_once(self.size), inputs * taps);
        for start in (0..copy.rows()).step_by(chunk) {
            let rows = start..(start + chunk).min(copy.rows());
            self.send(self.device, |host| gather(&copy.weight, rows.clone(), host))?;
            let params = self.staged(self.wide, rows.len(), (inputs, taps), columns);
            self.convert(weights_from(copy.weight.dtype()), DType::F32, rows.len() * columns, params)?;
            let scales = to + (scales + start * size_of::<f32>()) as u64;
            self.quantize(Quantized { at: to + (start * columns) as u64, scales }, [rows.len(), columns])?;
        }
        Ok(())
    }

    /// Uploads a convolution's kernel as its four phase kernels in e4m3.
    fn quantized_phases(&mut self, copy: &WeightCopy, to: u64, inputs: usize, scales: usize) -> Result<()> {
        let n = copy.rows();
        self.send(self.device, |host| gather(&copy.weight, 0..n, host))?;
        let params = self.staged(self.wide, n, (inputs, 9), 0);
        self.convert(phases_from(copy.weight.dtype()), DType::F32, 16 * n * inputs, params)?;
        self.quantize(Quantized { at: to, scales: to + scales as u64 }, [4 * n, 4 * inputs])
    }

    /// Uploads a convolution's kernel as its four phase kernels.
    fn phases(&mut self, copy: &WeightCopy, to: u64, inputs: usize) -> Result<()> {
        let n = copy.rows();
        self.send(self.device, |host| gather(&copy.weight, 0..n, host))?;
        let params = self.staged(to, n, (inputs, 9), 0);
        self.convert(phases_from(copy.weight.dtype()), self.dtype, 16 * n * inputs, params)
    }

    /// Lays out what is staged, in that type.
    fn convert(&self, kernel: &'static Kernel, to: DType, elements: usize, params: WeightsParams) -> Result<()> {
        self.launch(kernel.launch(to, [blocks(elements, 256), 1, 1], params)?)
    }

    /// Rounds rows that lie in f32.
    fn quantize(&self, to: Quantized, rows: [usize; 2]) -> Result<()> {
        let (params, grid) = quantize_sm90::params(self.wide, to, rows);
        self.launch(QUANTIZE_ROWS.launch(DType::F32, grid, params)?)
    }

    fn launch(&self, mut launch: Launch) -> Result<()> {
        launch.function = self.driver.function(launch.kernel, &launch.entry)?;
        self.driver.launch(&launch, false)
    }
}

/// Gathers rows of a tensor, row-major without holes, in the type of the file; returns their bytes.
fn gather(weight: &Weight, rows: Range<usize>, host: &mut [u8]) -> usize {
    let (size, bytes) = (weight.dtype().size(), weight.bytes());
    let row = weight.len() / weight.shape()[0].max(1);
    let to = &mut host[..rows.len() * row * size];
    let dense = weight.rows(rows.start, rows.len()).is_some_and(|view| view.is_contiguous());
    let first = rows.start * weight.strides()[0] * size;
    if dense {
        copy(&bytes[first..first + to.len()], to);
        return to.len();
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
    to.len()
}

/// Copies bytes, by several threads: one alone neither reads mapped pages nor memory as fast as a GPU takes them.
fn copy(from: &[u8], to: &mut [u8]) {
    let threads = (from.len() / (2 * COPY)).min(MAX_THREADS);
    parallel::for_each(threads, to.chunks_mut(COPY).zip(from.chunks(COPY)), |(to, from)| to.copy_from_slice(from));
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
    fn rows_of_any_view() {
        let gathered = |weight: &Weight, rows| {
            let mut host = vec![0u8; 64];
            let len = gather(weight, rows, &mut host);
            floats(&host[..len])
        };
        let m = matrix(3, 4);
        assert_eq!(gathered(&m, 1..3), [4., 5., 6., 7., 8., 9., 10., 11.]);
        let t = m.transposed().unwrap();
        assert_eq!(gathered(&t, 1..4), [1., 5., 9., 2., 6., 10., 3., 7., 11.]);
    }

    #[test]
    fn large_copies() {
        for len in [7, COPY, 3 * COPY + 4_093] {
            let from: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
            let mut to = vec![0; len];
            copy(&from, &mut to);
            assert!(to == from, "{len}");
        }
    }
}
