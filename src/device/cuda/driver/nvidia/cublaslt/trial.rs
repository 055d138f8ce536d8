//! A product's algorithms tried on the device, with scratch operands: that an image's bytes do not depend on the number of
//! images, and the times.

use super::super::context::Context;
use super::super::ffi::status;
use super::autotune::{Algorithm, GemmLibrary};
use super::descriptors::MatmulDescriptors;
use super::handle::CublasLtHandle;
use crate::device::cuda::driver::gemm::Gemm;
use crate::error::Result;
use crate::tensor::DType;
use ::cudarc::cublaslt::sys::cublasLtMatmulAlgo_t;
use ::cudarc::driver::sys::{CUevent, CUevent_flags};
use half::{bf16, f16};

/// Images of a timed run: the two rows of guidance.
pub(crate) const IMAGES: usize = 2;
/// Timed rounds.
const ROUNDS: usize = 3;
/// Runs of a round.
const RUNS: usize = 20;
/// Milliseconds that a round of long runs takes: it has fewer.
const ROUND: f32 = 2.0;
/// Random values, repeated over the operands. A prime, so that columns differ.
const VALUES: usize = 500_009;

/// A product of which algorithms are asked and tried. Its layouts are those of one image, but during a trial.
pub(crate) struct GemmTrial<'a> {
    pub(crate) gpu: &'a Context,
    pub(crate) lt: &'a CublasLtHandle,
    pub(crate) parts: &'a mut MatmulDescriptors,
    pub(crate) gemm: &'a Gemm,
    /// Made at the first trial.
    pub(crate) scratch: Option<TrialBuffers<'a>>,
}

/// Scratch memory and events, freed on drop.
pub(crate) struct TrialBuffers<'a> {
    gpu: &'a Context,
    address: u64,
    places: TrialLayout,
    events: [CUevent; 2],
}

impl<'a> TrialBuffers<'a> {
    fn new(gpu: &'a Context, gemm: &Gemm) -> Result<Self> {
        let places = TrialLayout::of(gemm);
        let address = gpu.allocate(places.bytes)?;
        // Made before the events, so that the memory goes where they fail.
        let mut scratch = Self { gpu, address, places, events: [std::ptr::null_mut(); 2] };
        scratch.fill(gemm.dtype)?;
        for event in &mut scratch.events {
            *event = gpu.create_event(CUevent_flags::CU_EVENT_DEFAULT as u32)?;
        }
        Ok(scratch)
    }

    /// Fills the memory with random values: zeros take less power, and so less time, and have the same sums in every order.
    fn fill(&self, dtype: DType) -> Result<()> {
        let bytes = self.places.bytes;
        let values = random(dtype, VALUES.min(bytes / 2));
        self.gpu.upload(self.address, bytemuck::cast_slice(&values))?;
        let mut filled = values.len() * 2;
        while filled < bytes {
            let next = filled.min(bytes - filled);
            self.gpu.copy(self.address, self.at(filled), next)?;
            filled += next;
        }
        Ok(())
    }

    fn at(&self, place: usize) -> u64 {
        self.address + place as u64
    }

    /// A, B, C, D of an image.
    fn operands(&self, image: usize) -> [u64; 4] {
        let TrialLayout { operands, image: sizes, .. } = &self.places;
        std::array::from_fn(|which| self.at(operands[which] + image * sizes[which]))
    }

    /// Sets the first image's result to NaN.
    fn clear(&self) -> Result<()> {
        self.gpu.memset(self.operands(0)[3], self.places.image[3], 0xff)
    }

    /// The bytes of the first image's result.
    fn result(&self) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.places.image[3]];
        self.gpu.download(self.operands(0)[3], &mut bytes)?;
        Ok(bytes)
    }

    fn record(&self, which: usize) -> Result<()> {
        // SAFETY: event and stream are alive.
        let recorded = unsafe { self.gpu.cuda.cuEventRecord(self.events[which], self.gpu.stream) };
        self.gpu.check("cuEventRecord", recorded)
    }

    /// Milliseconds between the two events, both of which the device has passed.
    fn elapsed(&self) -> Result<f32> {
        let mut time = 0.0;
        let [start, end] = self.events;
        // SAFETY: both events are alive; writes one number.
        let asked = unsafe { self.gpu.cuda.cuEventElapsedTime(&mut time, start, end) };
        self.gpu.check("cuEventElapsedTime", asked)?;
        Ok(time)
    }
}

impl Drop for TrialBuffers<'_> {
    fn drop(&mut self) {
        for event in self.events.into_iter().filter(|event| !event.is_null()) {
            // SAFETY: made in `new`, given back once; the driver's context is current in the thread that made it.
            let _ = unsafe { self.gpu.cuda.cuEventDestroy_v2(event) };
        }
        self.gpu.free(self.address);
    }
}

/// The bits of values from -1 to 1, the same in every process. Two of them are a finite f32.
fn random(dtype: DType, count: usize) -> Vec<u16> {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    };
    let bits =
        |value| if dtype == DType::F16 { f16::from_f32(value).to_bits() } else { bf16::from_f32(value).to_bits() };
    (0..count).map(|_| bits(next())).collect()
}

/// The places of a product's operands in scratch memory: bytes from its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct TrialLayout {
    /// A, B, C, D; the last two are one where nothing is added.
    operands: [usize; 4],
    /// Bytes from image to image of each.
    image: [usize; 4],
    bias: usize,
    bytes: usize,
}

impl TrialLayout {
    /// Those of [`IMAGES`] images, one after the other, each operand aligned as an allocation. Sizes that overflow become ones that
    /// no device has.
    fn of(gemm: &Gemm) -> Self {
        let columns = |columns: usize, rows: usize, transposed| if transposed { rows } else { columns };
        let out = if gemm.out_f32 { 4 } else { 2 };
        let residual = gemm.epilogue.residual();
        let size = |leading: usize, columns: usize, size: usize| leading.saturating_mul(columns).saturating_mul(size);
        let a = size(gemm.a.leading, columns(gemm.k, gemm.m, gemm.transpose_a), 2);
        let b = size(gemm.b.leading, columns(gemm.n, gemm.k, gemm.transpose_b), 2);
        let c = residual.map_or(0, |c| size(c.leading, gemm.n, out));
        let d = size(gemm.d.leading, gemm.n, out);
        let mut bytes = 0usize;
        let mut place = |len: usize| {
            let at = bytes;
            bytes = at.saturating_add(len).checked_next_multiple_of(256).unwrap_or(usize::MAX);
            at
        };
        let [a_at, b_at, c_at, d_at] =
            [a, b.saturating_mul(IMAGES), c.saturating_mul(IMAGES), d.saturating_mul(IMAGES)].map(&mut place);
        let bias = place(size(gemm.m, 1, out));
        let (c, c_at) = if residual.is_some() { (c, c_at) } else { (d, d_at) };
        Self { operands: [a_at, b_at, c_at, d_at], image: [0, b, c, d], bias, bytes }
    }
}

impl GemmTrial<'_> {
    /// Some runs on one image, or on several one by one: the milliseconds in all; `None` where the library does not run it.
    fn run(
        &self,
        scratch: &TrialBuffers<'_>,
        algorithm: &Algorithm,
        (runs, images): (usize, usize),
    ) -> Result<Option<f32>> {
        let add = self.gemm.epilogue.residual().is_some();
        let algorithm = cublasLtMatmulAlgo_t { data: *algorithm };
        scratch.record(0)?;
        let done = (0..runs).flat_map(|_| 0..images).try_for_each(|image| {
            let operands = scratch.operands(image);
            // SAFETY: the descriptors are alive; the scratch memory has places of the layouts' sizes, and is freed after the wait
            // below.
            unsafe { self.lt.multiply(self.parts.both(), &algorithm, operands, add, self.gpu.stream) }
        });
        scratch.record(1)?;
        // A fault of the device shows here.
        self.gpu.wait()?;
        if let Err(code) = done {
            tracing::debug!(what = status(code), "an algorithm of cuBLASLt does not run");
            return Ok(None);
        }
        scratch.elapsed().map(Some)
    }

    /// The times of an algorithm on scratch operands. The layouts are those of several images afterwards.
    fn try_out(&self, scratch: &TrialBuffers<'_>, algorithm: &Algorithm) -> Result<Option<Vec<f32>>> {
        scratch.clear()?;
        if self.run(scratch, algorithm, (1, 1))?.is_none() {
            return Ok(None);
        }
        let alone = scratch.result()?;
        let folded = !self.gemm.transpose_b && self.parts.fold(self.lt, self.gemm, IMAGES, algorithm)?;
        let images = if folded { 1 } else { IMAGES };
        scratch.clear()?;
        if self.run(scratch, algorithm, (1, images))?.is_none() {
            return Ok(None);
        }
        if scratch.result()? != alone {
            tracing::debug!(folded, "an algorithm of cuBLASLt has other bytes for an image among others");
            return Ok(None);
        }
        let Some(once) = self.run(scratch, algorithm, (1, images))? else { return Ok(None) };
        let runs = ((ROUND / once) as usize).clamp(1, RUNS);
        let mut times = Vec::with_capacity(ROUNDS);
        for _ in 0..ROUNDS {
            let Some(time) = self.run(scratch, algorithm, (runs, images))? else { return Ok(None) };
            times.push(time / runs as f32);
        }
        Ok(Some(times))
    }
}

impl GemmLibrary for GemmTrial<'_> {
    fn suggest(&mut self, most: usize) -> Result<Vec<Algorithm>> {
        self.parts.suggest(self.lt, most)
    }

    fn takes(&mut self, algorithm: &Algorithm) -> bool {
        self.parts.takes(self.lt, algorithm)
    }

    /// The runs of a round follow one another on the device: the host, which needs less time for one, is ahead.
    fn time(&mut self, algorithm: &Algorithm) -> Result<Option<Vec<f32>>> {
        if !self.takes(algorithm) {
            return Ok(None);
        }
        let scratch = match self.scratch.take() {
            Some(scratch) => scratch,
            None => TrialBuffers::new(self.gpu, self.gemm)?,
        };
        if self.gemm.epilogue.bias().is_some() {
            self.parts.set_bias(scratch.at(scratch.places.bias))?;
        }
        let times = self.try_out(&scratch, algorithm);
        self.scratch = Some(scratch);
        self.parts.unfold(self.gemm)?;
        times
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cuda::driver::gemm::{GemmEpilogue, MatrixRef};

    #[test]
    fn operand_layout() {
        let matrix = |leading| MatrixRef { data: 1, leading, stride: 0 };
        let mut gemm = Gemm {
            dtype: DType::BF16,
            m: 40,
            n: 7,
            k: 24,
            batch: 4,
            transpose_a: true,
            transpose_b: false,
            a: matrix(32),
            b: matrix(24),
            d: matrix(48),
            out_f32: false,
            epilogue: GemmEpilogue::None,
        };
        // A is [24, 40] with columns of 32: 2560 bytes. B is twice [24, 7]: 672. D is twice [40, 7] with columns of 48: 1344. The
        // bias: 80.
        let operands = [0, 2560, 3328, 3328];
        let plain = TrialLayout { operands, image: [0, 336, 672, 672], bias: 4864, bytes: 5120 };
        assert_eq!(TrialLayout::of(&gemm), plain);
        gemm.epilogue = GemmEpilogue::BiasResidual(1, matrix(40));
        gemm.batch = 1;
        // C is twice [40, 7] with columns of 40: 1120 bytes.
        let operands = [0, 2560, 3328, 4608];
        assert_eq!(
            TrialLayout::of(&gemm),
            TrialLayout { operands, image: [0, 336, 560, 672], bias: 6144, bytes: 6400 }
        );
        gemm.n = usize::MAX / 8;
        assert_eq!(TrialLayout::of(&gemm).bytes, usize::MAX);
    }

    #[test]
    fn random_values() {
        for dtype in [DType::F16, DType::BF16] {
            let values = random(dtype, 10_000);
            let number =
                |bits| if dtype == DType::F16 { f16::from_bits(bits).to_f32() } else { bf16::from_bits(bits).to_f32() };
            let mean = values.iter().map(|bits| number(*bits)).sum::<f32>() / 10_000.0;
            assert!(mean.abs() < 0.02 && values.iter().all(|bits| number(*bits).abs() <= 1.0), "{mean}");
            assert!(
                values
                    .chunks_exact(2)
                    .all(|two| f32::from_bits(u32::from(two[1]) << 16 | u32::from(two[0])).is_finite())
            );
        }
    }
}
