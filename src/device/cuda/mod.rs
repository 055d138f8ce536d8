//! NVIDIA GPUs: hand-written kernels, all launches prepared when a graph is compiled, one captured graph for each executable.
//!
//! The layers, each knowing only those below: [`CudaDevice`]; `exec`, its executables; `weights`, uploaded once for all of them;
//! [`ops`], the operations, a file each beside their kernels; [`driver`], the few calls that a device must answer, and
//! `driver::nvidia`, which answers them on a GPU; [`compile`], the kernels' binaries. The tests answer the calls with an interpreter
//! of PTX.

pub mod compile;
pub mod driver;
mod exec;
pub mod ops;
mod weights;

#[cfg(feature = "cuda")]
pub use driver::nvidia::{NvidiaDriver, libraries};
pub use exec::denoise_loop::CudaDenoiseLoop;
pub use exec::executable::CudaExecutable;
pub use exec::report::LoweringReport;
pub use ops::lowering::{ChunkLimits, LoweringOptions};

use self::driver::Driver;
use self::exec::executable::Shared;
use self::exec::report;
use self::exec::resident::{CudaConditioner, CudaImageDecoder};
use self::weights::cache::DistinctBlocks;
use super::{
    DenoiseLoop, Device, DeviceMemory, Executable, ImageDecoder, LoopSpec, MemoryRequirement, PixelRounding, Role,
};
use crate::error::{Error, Field, Message, Result};
use crate::graph::{Graph, fuse};
use crate::tensor::DType;
use std::sync::Arc;

/// Says that there are none to find.
#[cfg(not(feature = "cuda"))]
pub fn libraries() -> String {
    "not sought: this build is without the feature `cuda`".into()
}

/// A GPU, or a driver in its place.
#[derive(Clone)]
pub struct CudaDevice {
    driver: Arc<dyn Driver>,
    options: LoweringOptions,
    vae: DType,
    shared: Shared,
}

/// The latents of four images of 1024x1024 (docs/performance.md).
const BATCH_LATENTS: usize = 4 * 128 * 128;

/// The rows of text, or images, that are worth an encoder's run together (docs/performance.md).
pub const ENCODER_ROWS: usize = 8;

/// The steps that loops reserve memory for come in multiples of this.
const RESERVED_STEPS: usize = 64;

/// Refuses types that no tensors but a decoder's are stored in.
fn storage(dtype: DType) -> Result<()> {
    if dtype == DType::F32 {
        let what = Message::from("f32 is for the VAE alone on CUDA (").setting(Field::VaeDType, "f32");
        let what = what.text("); give f16 or bf16, or use ").setting(Field::Device, "cpu");
        return Err(Error::parameter(Field::DType, what));
    }
    Ok(())
}

impl CudaDevice {
    /// A device over a driver that stores tensors as `dtype`: f16 or bf16; a decoder's as bf16, see [`CudaDevice::with_decoder`].
    ///
    /// # Errors
    /// [`Error::Parameter`] for other types.
    pub fn new(driver: Arc<dyn Driver>, dtype: DType) -> Result<Self> {
        storage(dtype)?;
        let properties = driver.properties();
        let options = LoweringOptions {
            dtype,
            multiprocessors: properties.multiprocessors,
            capability: properties.capability,
            cublaslt: properties.gemm,
            fp8: false,
            limits: ChunkLimits::DEFAULT,
        };
        Ok(Self { driver, options, vae: DType::BF16, shared: Shared::default() })
    }

    /// The GPU of that number; tensors as `dtype`, those of the decoder as `decoder`.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a `dtype` other than f16 and bf16; [`Error::Device`] with what is missing, which without the
    /// feature `cuda` is all of it.
    pub fn open(ordinal: usize, dtype: DType, decoder: DType) -> Result<Self> {
        storage(dtype)?;
        #[cfg(feature = "cuda")]
        return Ok(Self::new(Arc::new(NvidiaDriver::new(ordinal)?), dtype)?.with_decoder(decoder));
        #[cfg(not(feature = "cuda"))]
        let _ = decoder;
        #[cfg(not(feature = "cuda"))]
        Err(Error::Device {
            device: format!("cuda:{ordinal}"),
            what: Message::from("this build has no CUDA: build it with the feature `cuda`, or use ")
                .setting(Field::Device, "cpu"),
        })
    }

    /// The same device with another choice between cuBLASLt's products and our own.
    #[must_use]
    pub fn with_cublaslt(mut self, cublaslt: bool) -> Self {
        self.options.cublaslt = cublaslt && self.driver.properties().gemm;
        self
    }

    /// The same device with products of layers that may be quantized in e4m3: weights with a scale for each output channel, activations
    /// with one for each token or pixel.
    ///
    /// # Errors
    /// [`Error::Parameter`] where its compute capability is not 9.0.
    pub fn with_fp8(mut self) -> Result<Self> {
        let (major, minor) = self.options.capability;
        if (major, minor) != (9, 0) {
            let what = format!(
                "fp8 is for GPUs of compute capability 9.0 (H100, H200), and {} has {major}.{minor}: leave it out, or set ",
                self.driver.properties().name
            );
            let what = Message::from(what).setting(Field::Quantize, "int8").text(" and ").setting(Field::Device, "cpu");
            return Err(Error::parameter(Field::Quantize, what));
        }
        self.options.fp8 = true;
        Ok(self)
    }

    /// The same device with other limits for the pieces in which work is done.
    #[must_use]
    pub fn with_limits(mut self, limits: ChunkLimits) -> Self {
        self.options.limits = limits;
        self
    }

    /// The options for graphs of that role.
    fn options_of(&self, role: &Role) -> LoweringOptions {
        let dtype = if let Role::Encode | Role::Decode(_) = role { self.vae } else { self.options.dtype };
        LoweringOptions { dtype, ..self.options }
    }

    /// The options for graphs but the VAE's.
    pub fn lowering_options(&self) -> &LoweringOptions {
        &self.options
    }

    /// The driver.
    pub fn driver(&self) -> &dyn Driver {
        self.driver.as_ref()
    }

    /// Compiles a graph for its part in a request.
    fn compile_role(&self, graph: Graph, role: &Role) -> Result<CudaExecutable> {
        let options = self.options_of(role);
        CudaExecutable::new(self.driver.clone(), &self.shared, fuse(graph), &options, role)
    }

    /// As [`Device::compile`], with the executable's own type.
    ///
    /// # Errors
    /// [`Error::Memory`] before anything is allocated where the executable does not fit, [`Error::Graph`] where no kernel takes
    /// a node, [`Error::Fault`] of the driver.
    pub fn compile_graph(&self, graph: Graph) -> Result<CudaExecutable> {
        self.compile_role(graph, &Role::Plain)
    }

    /// As [`Device::compile_denoise_loop`], with the loop's own type.
    ///
    /// # Errors
    /// As [`CudaDevice::compile_graph`]; [`Error::Graph`] where the graph is no denoiser.
    pub fn compile_loop(&self, graph: Graph, spec: LoopSpec) -> Result<CudaDenoiseLoop> {
        let executable = self.compile_role(graph, &Role::Denoise(spec.clone()))?;
        CudaDenoiseLoop::new(executable, spec, &self.shared)
    }

    /// The same device with another type for the VAE: bf16 where nothing else is said, as SDXL's overflows f16; f32 where
    /// it is to be exact, which tensor cores have no part in.
    #[must_use]
    pub fn with_decoder(mut self, dtype: DType) -> Self {
        self.vae = dtype;
        self
    }
}

impl std::fmt::Debug for CudaDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CudaDevice({}, {})", self.driver.properties().name, self.options.dtype)
    }
}

impl Device for CudaDevice {
    fn name(&self) -> String {
        "cuda".into()
    }

    fn check(&self) -> Result<()> {
        self.driver.check()
    }

    fn compile(&self, graph: Graph) -> Result<Box<dyn Executable>> {
        Ok(Box::new(self.compile_graph(graph)?))
    }

    fn compile_conditioner(&self, graph: Graph) -> Result<Box<dyn Executable>> {
        Ok(Box::new(CudaConditioner::new(self.compile_role(graph, &Role::Condition)?)))
    }

    fn compile_denoise_loop(&self, graph: Graph, spec: &LoopSpec) -> Result<Box<dyn DenoiseLoop>> {
        Ok(Box::new(self.compile_loop(graph, spec.clone())?))
    }

    fn compile_vae_encoder(&self, graph: Graph) -> Result<Box<dyn Executable>> {
        Ok(Box::new(self.compile_role(graph, &Role::Encode)?))
    }

    fn compile_image_decoder(&self, graph: Graph, rounding: PixelRounding) -> Result<Box<dyn ImageDecoder>> {
        Ok(Box::new(CudaImageDecoder::new(self.compile_role(graph, &Role::Decode(rounding))?)))
    }

    fn upcast_vae(&self) -> Option<Box<dyn Device>> {
        (self.vae != DType::F32).then(|| Box::new(self.clone().with_decoder(DType::F32)) as Box<dyn Device>)
    }

    fn batch_latents(&self) -> usize {
        BATCH_LATENTS
    }

    fn encoder_rows(&self) -> usize {
        ENCODER_ROWS
    }

    fn averages_outputs(&self) -> bool {
        false
    }

    fn reserved_steps(&self, steps: usize) -> usize {
        steps.next_multiple_of(RESERVED_STEPS)
    }

    fn memory(&self) -> Result<DeviceMemory> {
        Ok(DeviceMemory::Dedicated { free: self.driver.memory_info()?.free })
    }

    fn memory_requirement(&self, graphs: Vec<(Graph, Role)>) -> Result<MemoryRequirement> {
        let (mut need, mut weights) = (MemoryRequirement::default(), DistinctBlocks::default());
        for (graph, role) in graphs {
            let options = self.options_of(&role);
            let lowered = report::lowered(graph, &options, &role)?;
            let report = LoweringReport::new(&lowered);
            need.bytes += (report.work() + weights.add(options.dtype, &lowered.weights)) as u64;
            need.staging = need.staging.max(report.staging as u64);
        }
        Ok(need)
    }
}
