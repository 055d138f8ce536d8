//! A graph compiled for a CUDA device: its allocations, launches with all their parameters, one captured graph.

use super::capture::CapturedCommands;
use super::commands::{Preparation, PreparedCommand, issue, release};
use super::lower::{Lowered, lower};
use super::report::LoweringReport;
use super::results::Results;
use crate::device::cuda::driver::allocation::DeviceAllocation;
use crate::device::cuda::driver::interface::{Driver, Staging};
use crate::device::cuda::driver::stream_lock::{StreamLock, lock_stream};
use crate::device::cuda::ops::lowering::{BaseAddresses, LoweringOptions};
use crate::device::cuda::ops::memory_layout::MemoryLayout;
use crate::device::cuda::weights::addresses::WeightAddresses;
use crate::device::cuda::weights::cache::WeightCache;
use crate::device::{Compiled, Executable, Role, TensorData};
use crate::error::{Error, Field, Message, Result};
use crate::graph::{Graph, InputType, MemoryPlan, NodeId};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Instant;

/// The state that executables of one device share.
#[derive(Clone, Default)]
pub(crate) struct Shared {
    pub(crate) stream_lock: StreamLock,
    pub(crate) weights: Arc<WeightCache>,
    /// The evaluations of all denoise loops, each with an event.
    pub(crate) evaluations: Arc<AtomicUsize>,
}

/// An executable. Dropped in this order: what was captured and prepared, then the allocations.
pub struct CudaExecutable {
    pub(crate) driver: Arc<dyn Driver>,
    pub(crate) stream_lock: StreamLock,
    pub(crate) graph: Graph,
    pub(crate) lowered: Lowered,
    report: LoweringReport,
    /// Run once, ahead of a denoise loop's steps.
    once: Vec<PreparedCommand>,
    /// Run each time.
    commands: CapturedCommands,
    pub(crate) staging: Box<dyn Staging>,
    work: DeviceAllocation,
    pub(crate) results: Arc<Results>,
    weights: WeightAddresses,
}

impl CudaExecutable {
    /// Plans a fused graph, stages its weights and prepares every launch, for its part in a request.
    pub(crate) fn new(
        driver: Arc<dyn Driver>,
        shared: &Shared,
        graph: Graph,
        options: &LoweringOptions,
        role: &Role,
    ) -> Result<Self> {
        let plan = MemoryPlan::new(&graph);
        let planned = lower(&graph, &plan, options, role, BaseAddresses::default())?;
        let report = LoweringReport::new(&planned);
        let _locked = lock_stream(&shared.stream_lock);
        let found = shared.weights.find(options.dtype, &planned.weights);
        require_memory(driver.as_ref(), &report, found.bytes, found.staging + found.wide)?;
        let weights = found.complete(&driver)?;
        let work = DeviceAllocation::uninitialized(driver.clone(), planned.regions.end.max(1))?;
        let results = DeviceAllocation::zeroed(driver.clone(), planned.regions.results.max(1))?;
        let bases = BaseAddresses { weights: Some(&weights), results: results.address(), work: work.address() };
        let lowered = lower(&graph, &plan, options, role, bases)?;
        for (place, bytes) in zeroed(&lowered, options) {
            driver.memset(work.address() + place as u64, bytes, 0)?;
        }
        let staging = driver.staging(lowered.bindings.upload().max(lowered.regions.results))?;
        let mut executable = Self {
            driver: driver.clone(),
            stream_lock: shared.stream_lock.clone(),
            graph,
            lowered,
            report,
            once: Vec::new(),
            commands: CapturedCommands::new(Vec::new()),
            staging,
            work,
            results: Arc::new(Results::new(results, shared.stream_lock.clone())),
            weights,
        };
        // Held by the executable as soon as it is prepared, so that it is released where the rest fails.
        let mut preparation = Preparation::new(driver.as_ref());
        executable.once = preparation.prepare(std::mem::take(&mut executable.lowered.once))?;
        let commands = preparation.prepare(std::mem::take(&mut executable.lowered.steps))?;
        executable.commands = CapturedCommands::new(commands);
        Ok(executable)
    }

    /// The launches and bytes of the graph.
    pub fn report(&self) -> &LoweringReport {
        &self.report
    }

    /// An address in the work allocation.
    pub(crate) fn at(&self, place: usize) -> u64 {
        self.work.address() + place as u64
    }

    /// An address in the allocation of the results.
    pub(crate) fn kept(&self, place: usize) -> u64 {
        self.results.address() + place as u64
    }

    pub(crate) fn regions(&self) -> &MemoryLayout {
        &self.lowered.regions
    }

    /// Uploads the inputs.
    pub(crate) fn upload_inputs(&mut self, inputs: &[TensorData<'_>]) -> Result<()> {
        let (up, to) = (self.lowered.bindings.upload(), self.at(self.regions().inputs));
        let staging = self.staging.bytes();
        self.lowered.bindings.write(inputs, &mut staging[..up]);
        self.driver.upload(to, &staging[..up])
    }

    /// Converts the inputs of a denoise loop, ahead of its steps.
    pub(crate) fn begin(&self) -> Result<()> {
        issue(self.driver.as_ref(), &self.once)
    }

    /// Runs on what lies in the inputs' region: launch by launch the first time, captured the second, as one graph from then
    /// on. Allocates nothing and does not wait for the device.
    pub(crate) fn execute(&mut self) -> Result<()> {
        self.commands.execute(self.driver.as_ref())
    }
}

/// Places in the work allocation, and their bytes, that are read before all of them is written.
///
/// The first two are converted as one, with the gaps between tensors. A denoise loop's warm-up runs without images, which are null.
fn zeroed(lowered: &Lowered, options: &LoweringOptions) -> impl Iterator<Item = (usize, usize)> {
    let (regions, bindings) = (&lowered.regions, &lowered.bindings);
    [
        (regions.inputs, bindings.upload()),
        (regions.returned, bindings.returned * options.dtype.size()),
        (regions.state.images, regions.state.moments - regions.state.images),
    ]
    .into_iter()
    .filter(|(_, bytes)| *bytes > 0)
}

/// Refuses an executable that does not fit before anything is allocated.
fn require_memory(driver: &dyn Driver, report: &LoweringReport, weights: usize, staging: usize) -> Result<()> {
    let need = (report.work() as u64).saturating_add(weights as u64).saturating_add(staging as u64);
    let have = driver.memory_info()?.free;
    if need <= have {
        return Ok(());
    }
    let (work, name) = (report.work(), &driver.properties().name);
    let hint = format!(
        "weights take {weights} bytes, tensors {work}: ask for a smaller image, free memory of {name}, or use "
    );
    let hint = Message::from(hint).setting(Field::Device, "cpu");
    Err(Error::Memory { stage: "loading", need, have, hint })
}

impl CudaExecutable {
    /// Measures the mean seconds of `times` more runs on the last run's inputs, each after `flush` bytes have gone through
    /// the caches.
    ///
    /// All runs are issued in one go, each after a copy that flushes the caches, and the copies' own time is taken off: so the
    /// host's waiting and launching, which a single run's time would hold, are left out, and so are inputs and outputs.
    ///
    /// # Errors
    /// As [`Executable::run`]; [`Error::Memory`] for the bytes of the flush.
    pub fn benchmark(&mut self, flush: usize, times: usize) -> Result<f64> {
        let lock = self.stream_lock.clone();
        let _locked = lock_stream(&lock);
        let scrub = match flush {
            0 => None,
            bytes => Some(DeviceAllocation::zeroed(self.driver.clone(), 2 * bytes)?),
        };
        let body = self.commands.commands().get(self.lowered.body.clone()).unwrap_or_default();
        let taken = |body: &[PreparedCommand]| {
            self.driver.synchronize()?;
            let begin = Instant::now();
            for _ in 0..times {
                if let Some(scrub) = &scrub {
                    self.driver.copy(scrub.address(), scrub.address() + flush as u64, flush)?;
                }
                issue(self.driver.as_ref(), body)?;
            }
            self.driver.synchronize()?;
            Ok(begin.elapsed().as_secs_f64())
        };
        let (all, copies) = (taken(body)?, taken(&[])?);
        Ok((all - copies).max(0.0) / times.max(1) as f64)
    }
}

impl Compiled for CudaExecutable {
    fn bytes(&self) -> usize {
        self.report.work() + self.weights.allocations().map(|(_, bytes)| bytes).sum::<usize>()
    }

    fn shared(&self) -> Vec<(u64, usize)> {
        self.weights.allocations().collect()
    }

    fn graph(&self) -> &Graph {
        &self.graph
    }

    /// One run on ones, which are ids, counts and values all alike, and the capture. The next request overwrites all of it.
    fn warmup(&mut self) -> Result<()> {
        let lock = self.stream_lock.clone();
        let _locked = lock_stream(&lock);
        if self.commands.is_cold() {
            let ones = |(_, id): &(String, NodeId)| match (self.graph.element_type(*id), self.graph.node(*id).len()) {
                (InputType::F32, len) => TensorData::from(vec![1.0; len]),
                (InputType::I32, len) => TensorData::from(vec![1; len]),
            };
            self.upload_inputs(&self.graph.inputs.iter().map(ones).collect::<Vec<_>>())?;
            self.begin()?;
            self.execute()?;
        }
        self.commands.capture(self.driver.as_ref())?;
        self.driver.synchronize()
    }
}

impl Executable for CudaExecutable {
    fn run(&mut self, inputs: &[TensorData<'_>], outputs: &mut [&mut [f32]]) -> Result<()> {
        self.graph.check_bindings(inputs.iter().map(|b| (b.element_type(), b.len())), outputs)?;
        let lock = self.stream_lock.clone();
        let _locked = lock_stream(&lock);
        self.upload_inputs(inputs)?;
        self.execute()?;
        let (down, from) = (self.lowered.bindings.download(), self.kept(self.regions().outputs));
        let staging = self.staging.bytes();
        self.driver.download(from, &mut staging[..down])?;
        self.lowered.bindings.read(&staging[..down], outputs);
        Ok(())
    }
}

impl Drop for CudaExecutable {
    fn drop(&mut self) {
        let driver = self.driver.as_ref();
        self.commands.destroy_graph(driver);
        release(driver, &self.once);
        self.commands.release(driver);
    }
}
