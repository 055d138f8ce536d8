//! A product's algorithms timed on the device, with scratch operands.

use super::super::context::Context;
use super::super::ffi::status;
use super::autotune::{Algorithm, GemmLibrary};
use super::descriptors::MatmulDescriptors;
use super::handle::{CublasLtHandle, WORKSPACE};
use crate::device::cuda::driver::gemm::Gemm;
use crate::error::Result;
use ::cudarc::cublaslt::sys::cublasLtMatmulAlgo_t;
use ::cudarc::driver::sys::{CUevent, CUevent_flags};

/// Runs before the first that counts: kernels are loaded and clocks rise.
const WARM: usize = 2;
/// Runs that count.
const RUNS: usize = 7;

/// A product of which algorithms are asked and tried. Its layouts are those of one image.
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
        for event in &mut scratch.events {
            *event = gpu.create_event(CUevent_flags::CU_EVENT_DEFAULT as u32)?;
        }
        Ok(scratch)
    }

    fn at(&self, place: usize) -> u64 {
        self.address + place as u64
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

/// The places of a product's operands in scratch memory: bytes from its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct TrialLayout {
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    bias: usize,
    bytes: usize,
}

impl TrialLayout {
    /// Those of one image, one after the other, each aligned as an allocation. Sizes that overflow become ones that no device has.
    fn of(gemm: &Gemm) -> Self {
        let columns = |columns: usize, rows: usize, transposed| if transposed { rows } else { columns };
        let out = if gemm.out_f32 { 4 } else { 2 };
        let residual = gemm.epilogue.residual().map_or(0, |c| c.leading);
        let mut bytes = 0usize;
        let mut place = |leading: usize, columns: usize, size: usize| {
            let at = bytes;
            let len = leading.saturating_mul(columns).saturating_mul(size);
            bytes = at.saturating_add(len).checked_next_multiple_of(256).unwrap_or(usize::MAX);
            at
        };
        let a = place(gemm.a.leading, columns(gemm.k, gemm.m, gemm.transpose_a), 2);
        let b = place(gemm.b.leading, columns(gemm.n, gemm.k, gemm.transpose_b), 2);
        let c = place(residual, gemm.n, out);
        let d = place(gemm.d.leading, gemm.n, out);
        let bias = place(gemm.m, 1, out);
        Self { a, b, c: if residual == 0 { d } else { c }, d, bias, bytes }
    }
}

impl GemmLibrary for GemmTrial<'_> {
    fn suggest(&mut self, most: usize) -> Result<Vec<Algorithm>> {
        self.parts.suggest(self.lt, most)
    }

    fn takes(&mut self, algorithm: &Algorithm) -> bool {
        self.parts.takes(self.lt, algorithm)
    }

    /// Before each run the workspace is set to zero: that takes longer than the host needs to enqueue the run, so that its time
    /// is the device's alone, and puts other bytes into the cache, as the other products of a model would.
    fn time(&mut self, algorithm: &Algorithm) -> Result<Option<Vec<f32>>> {
        if !self.takes(algorithm) {
            return Ok(None);
        }
        let scratch = match self.scratch.take() {
            Some(scratch) => scratch,
            None => TrialBuffers::new(self.gpu, self.gemm)?,
        };
        let scratch = self.scratch.insert(scratch);
        let TrialLayout { a, b, c, d, bias, .. } = scratch.places;
        if self.gemm.epilogue.bias().is_some() {
            self.parts.set_bias(scratch.at(bias))?;
        }
        let operands = [a, b, c, d].map(|place| scratch.at(place));
        let add = self.gemm.epilogue.residual().is_some();
        let algorithm = cublasLtMatmulAlgo_t { data: *algorithm };
        let mut times = Vec::with_capacity(RUNS);
        for run in 0..WARM + RUNS {
            self.gpu.memset(self.lt.workspace(), WORKSPACE, 0)?;
            scratch.record(0)?;
            // SAFETY: the descriptors are alive and those of one image; the scratch memory has places of their sizes, and is
            // freed after the wait below.
            let done = unsafe { self.lt.multiply(self.parts.both(), &algorithm, operands, add, self.gpu.stream) };
            scratch.record(1)?;
            // A fault of the device shows here.
            self.gpu.wait()?;
            if let Err(code) = done {
                tracing::debug!(what = status(code), "an algorithm of cuBLASLt does not run");
                return Ok(None);
            }
            if run >= WARM {
                times.push(scratch.elapsed()?);
            }
        }
        Ok(Some(times))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cuda::driver::gemm::{GemmEpilogue, MatrixRef};
    use crate::tensor::DType;

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
        // A is [24, 40] with columns of 32: 2560 bytes. B is [24, 7]: 336. D is [40, 7] with columns of 48: 672. The bias: 80.
        let plain = TrialLayout { a: 0, b: 2560, c: 3072, d: 3072, bias: 3840, bytes: 4096 };
        assert_eq!(TrialLayout::of(&gemm), plain);
        gemm.epilogue = GemmEpilogue::BiasResidual(1, matrix(40));
        gemm.batch = 1;
        // C is [40, 7] with columns of 40: 560 bytes.
        assert_eq!(TrialLayout::of(&gemm), TrialLayout { c: 3072, d: 3840, bias: 4608, bytes: 4864, ..plain });
        gemm.n = usize::MAX / 8;
        assert_eq!(TrialLayout::of(&gemm).bytes, usize::MAX);
    }
}
