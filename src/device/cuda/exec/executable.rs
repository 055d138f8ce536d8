//! A graph made ready on a CUDA device: its slabs, launches with all their parameters, one captured graph.

use super::lower::{Lowered, lower};
use super::report::LoweringReport;
use super::results::Results;
use crate::device::cuda::driver::allocation::DeviceAllocation;
use crate::device::cuda::driver::command::Command;
use crate::device::cuda::driver::gemm::GemmPlan;
use crate::device::cuda::driver::interface::{Driver, GraphExec, Staging};
use crate::device::cuda::driver::kernel::{Function, Launch};
use crate::device::cuda::driver::stream_lock::{StreamLock, lock_stream};
use crate::device::cuda::ops::lowering::{BaseAddresses, LoweringOptions};
use crate::device::cuda::ops::memory_layout::MemoryLayout;
use crate::device::cuda::weights::addresses::WeightAddresses;
use crate::device::cuda::weights::cache::WeightCache;
use crate::device::{Compiled, Executable, Role};
use crate::error::{Error, Field, Message, Result};
use crate::graph::{Graph, MemoryPlan};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

/// A step with what the driver prepared for it.
enum PreparedCommand {
    Launch(Launch),
    Gemm(GemmPlan),
    Copy(u64, u64, usize),
    Fill(u64, usize, u8),
}

/// What a run replays.
enum CaptureState {
    /// Nothing has run yet.
    Cold,
    /// Every kernel has run once, so that the libraries have loaded theirs, which a capture would not allow.
    Warm,
    /// The driver does not capture.
    Never,
    Graph(GraphExec),
}

/// What programs of one device share.
#[derive(Clone, Default)]
pub(crate) struct Shared {
    pub(crate) stream_lock: StreamLock,
    pub(crate) weights: Arc<WeightCache>,
}

/// See the module. Dropped in this order: what was captured and prepared, then the slabs.
pub struct CudaExecutable {
    pub(crate) driver: Arc<dyn Driver>,
    pub(crate) turn: StreamLock,
    pub(crate) graph: Graph,
    pub(crate) lowered: Lowered,
    report: LoweringReport,
    once: Vec<PreparedCommand>,
    steps: Vec<PreparedCommand>,
    captured: CaptureState,
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
        settings: &LoweringOptions,
        role: &Role,
    ) -> Result<Self> {
        let plan = MemoryPlan::new(&graph);
        let sizes = lower(&graph, &plan, settings, role, BaseAddresses::default())?;
        let report = LoweringReport::new(&sizes);
        let turn = shared.stream_lock.clone();
        let _turn = lock_stream(&turn);
        let found = shared.weights.find(settings.dtype, &sizes.weights);
        require_memory(driver.as_ref(), &report, found.bytes, found.staging)?;
        let weights = found.complete(&driver)?;
        let work = DeviceAllocation::new(driver.clone(), sizes.regions.end.max(1))?;
        let slab = DeviceAllocation::new(driver.clone(), sizes.regions.results.max(1))?;
        let bases = BaseAddresses { weights: Some(&weights), results: slab.address(), work: work.address() };
        let lowered = lower(&graph, &plan, settings, role, bases)?;
        let staging = driver.staging(lowered.bindings.upload().max(lowered.regions.results))?;
        let mut program = Self {
            driver,
            turn: turn.clone(),
            graph,
            lowered,
            report,
            once: Vec::new(),
            steps: Vec::new(),
            captured: CaptureState::Cold,
            staging,
            work,
            results: Arc::new(Results::new(slab, turn.clone())),
            weights,
        };
        program.prepare()?;
        Ok(program)
    }

    /// Looks up every kernel once and lets the library choose for every product.
    fn prepare(&mut self) -> Result<()> {
        let mut functions: HashMap<String, Function> = HashMap::new();
        let once = std::mem::take(&mut self.lowered.once);
        self.once = self.ready(once, &mut functions)?;
        let steps = std::mem::take(&mut self.lowered.steps);
        self.steps = self.ready(steps, &mut functions)?;
        Ok(())
    }

    fn ready(&self, steps: Vec<Command>, functions: &mut HashMap<String, Function>) -> Result<Vec<PreparedCommand>> {
        let one = |step| {
            Ok(match step {
                Command::Launch(mut launch) => {
                    launch.function = match functions.get(&launch.entry) {
                        Some(function) => *function,
                        None => {
                            let function = self.driver.function(launch.kernel, &launch.entry)?;
                            functions.insert(launch.entry.clone(), function);
                            function
                        }
                    };
                    PreparedCommand::Launch(launch)
                }
                Command::Gemm(gemm) => PreparedCommand::Gemm(self.driver.prepare_gemm(&gemm)?),
                Command::Copy(from, to, bytes) => PreparedCommand::Copy(from, to, bytes),
                Command::Memset(to, bytes, value) => PreparedCommand::Fill(to, bytes, value),
            })
        };
        steps.into_iter().map(one).collect()
    }

    /// What the graph became.
    pub fn report(&self) -> &LoweringReport {
        &self.report
    }

    /// An address in the work slab.
    pub(crate) fn at(&self, place: usize) -> u64 {
        self.work.address() + place as u64
    }

    /// An address in the slab of the results.
    pub(crate) fn kept(&self, place: usize) -> u64 {
        self.results.address() + place as u64
    }

    pub(crate) fn regions(&self) -> &MemoryLayout {
        &self.lowered.regions
    }

    fn issue(&self, steps: &[PreparedCommand]) -> Result<()> {
        for step in steps {
            match step {
                PreparedCommand::Launch(launch) => self.driver.launch(launch)?,
                PreparedCommand::Gemm(plan) => self.driver.gemm(*plan)?,
                PreparedCommand::Copy(from, to, bytes) => self.driver.copy(*from, *to, *bytes)?,
                PreparedCommand::Fill(to, bytes, value) => self.driver.memset(*to, *bytes, *value)?,
            }
        }
        Ok(())
    }

    /// Takes inputs to the device.
    pub(crate) fn upload_inputs(&mut self, inputs: &[&[f32]]) -> Result<()> {
        let (up, to) = (self.lowered.bindings.upload(), self.at(self.regions().inputs));
        let staging = self.staging.bytes();
        self.lowered.bindings.write(inputs, &mut staging[..up]);
        self.driver.upload(to, &staging[..up])
    }

    /// Makes a sampler's inputs ready.
    pub(crate) fn begin(&self) -> Result<()> {
        self.issue(&self.once)
    }

    /// Runs on what lies in the inputs' region: launch by launch at the first time, captures at the second, replays from then
    /// on. Allocates nothing and does not wait for the device.
    pub(crate) fn execute(&mut self) -> Result<()> {
        if let CaptureState::Cold = self.captured {
            self.issue(&self.steps)?;
            self.captured = CaptureState::Warm;
            return Ok(());
        }
        self.capture()?;
        match self.captured {
            CaptureState::Graph(graph) => self.driver.launch_graph(graph),
            _ => self.issue(&self.steps),
        }
    }

    /// Captures what has run once.
    fn capture(&mut self) -> Result<()> {
        if let CaptureState::Warm = self.captured {
            self.captured = if self.driver.begin_capture()? {
                let issued = self.issue(&self.steps);
                // The capture ends whether or not all went well.
                let graph = self.driver.end_capture();
                match (issued, graph) {
                    (Ok(()), Ok(graph)) => CaptureState::Graph(graph),
                    (Err(error), Ok(graph)) => {
                        self.driver.destroy_graph(graph);
                        return Err(error);
                    }
                    (Err(error), Err(_)) | (Ok(()), Err(error)) => return Err(error),
                }
            } else {
                CaptureState::Never
            };
        }
        Ok(())
    }
}

/// Refuses a program that does not fit before anything is allocated.
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
    /// Measures the mean seconds of `times` more runs on what the last run was given, each after `flush` bytes have gone through
    /// the caches.
    ///
    /// All runs are issued in one go, each after a copy that flushes the caches, and the copies' own time is taken off: so the
    /// host's waiting and launching, which a single run's time would hold, are left out, and so are inputs and outputs.
    ///
    /// # Errors
    /// As [`Executable::run`]; [`Error::Memory`] for the bytes of the flush.
    pub fn benchmark(&mut self, flush: usize, times: usize) -> Result<f64> {
        let turn = self.turn.clone();
        let _turn = lock_stream(&turn);
        let scrub = match flush {
            0 => None,
            bytes => Some(DeviceAllocation::new(self.driver.clone(), 2 * bytes)?),
        };
        let body = self.steps.get(self.lowered.body.clone()).unwrap_or_default();
        let taken = |body: &[PreparedCommand]| {
            self.driver.synchronize()?;
            let begin = Instant::now();
            for _ in 0..times {
                if let Some(slab) = &scrub {
                    self.driver.copy(slab.address(), slab.address() + flush as u64, flush)?;
                }
                self.issue(body)?;
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
        let turn = self.turn.clone();
        let _turn = lock_stream(&turn);
        if let CaptureState::Cold = self.captured {
            let ones: Vec<Vec<f32>> =
                self.graph.inputs.iter().map(|(_, id)| vec![1.0; self.graph.node(*id).len()]).collect();
            self.upload_inputs(&ones.iter().map(Vec::as_slice).collect::<Vec<_>>())?;
            self.begin()?;
            self.execute()?;
        }
        self.capture()?;
        self.driver.synchronize()
    }
}

impl Executable for CudaExecutable {
    fn run(&mut self, inputs: &[&[f32]], outputs: &mut [&mut [f32]]) -> Result<()> {
        self.graph.check_bindings(inputs, outputs)?;
        let turn = self.turn.clone();
        let _turn = lock_stream(&turn);
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
        if let CaptureState::Graph(graph) = self.captured {
            self.driver.destroy_graph(graph);
        }
        for step in self.once.iter().chain(&self.steps) {
            if let PreparedCommand::Gemm(plan) = step {
                self.driver.release_gemm(*plan);
            }
        }
    }
}
