//! A graph made ready on a CUDA device: its slabs, launches with all their parameters, one captured graph.

use super::driver::{Driver, Function, GemmPlan, GraphHandle, Launch, Staging};
use super::handover::Results;
use super::lower::{Bases, Lowered, Regions, Settings, Step, lower};
use super::report::Report;
use super::store::{Places, Store};
use crate::device::{Left, Painted, Program, Role, Sampler, Values};
use crate::error::{Error, Result};
use crate::graph::{Graph, Plan};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Memory of a device that is given back when this goes.
pub(super) struct Slab {
    pub(super) driver: Arc<dyn Driver>,
    address: u64,
    bytes: usize,
}

impl Slab {
    pub(super) fn new(driver: Arc<dyn Driver>, bytes: usize) -> Result<Self> {
        let address = driver.allocate(bytes)?;
        Ok(Self { driver, address, bytes })
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn address(&self) -> u64 {
        self.address
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        self.driver.free(self.address);
    }
}

/// A step with what the driver prepared for it.
enum Ready {
    Launch(Launch),
    Gemm(GemmPlan),
    Copy(u64, u64, usize),
    Fill(u64, usize, u8),
}

/// What a run replays.
enum Captured {
    /// Nothing has run yet.
    Cold,
    /// Every kernel has run once, so that the libraries have loaded theirs, which a capture would not allow.
    Warm,
    /// The driver does not capture.
    Never,
    Graph(GraphHandle),
}

/// Whose turn it is on the driver's one stream.
pub(super) type Turn = Arc<Mutex<()>>;

/// What programs of one device share.
#[derive(Clone, Default)]
pub(super) struct Shared {
    pub(super) turn: Turn,
    pub(super) weights: Arc<Store>,
}

/// A panic of another program's run leaves nothing behind that a turn protects.
pub(super) fn take(turn: &Turn) -> MutexGuard<'_, ()> {
    turn.lock().unwrap_or_else(PoisonError::into_inner)
}

/// See the module. Dropped in this order: what was captured and prepared, then the slabs.
pub struct CudaProgram {
    pub(super) driver: Arc<dyn Driver>,
    pub(super) turn: Turn,
    pub(super) graph: Graph,
    pub(super) role: Role,
    pub(super) lowered: Lowered,
    report: Report,
    once: Vec<Ready>,
    steps: Vec<Ready>,
    captured: Captured,
    pub(super) staging: Box<dyn Staging>,
    work: Slab,
    pub(super) results: Arc<Results>,
    weights: Places,
}

impl CudaProgram {
    /// Plans a fused graph, stages its weights and prepares every launch, for its part in a request.
    pub(super) fn new(
        driver: Arc<dyn Driver>,
        shared: &Shared,
        graph: Graph,
        settings: &Settings,
        role: Role,
    ) -> Result<Self> {
        let plan = Plan::new(&graph);
        let sizes = lower(&graph, &plan, settings, &role, Bases::default())?;
        let report = Report::new(&sizes);
        let turn = shared.turn.clone();
        let _turn = take(&turn);
        let found = shared.weights.find(settings.dtype, &sizes.jobs);
        demand(driver.as_ref(), &report, found.bytes, found.staging)?;
        let weights = found.complete(&driver)?;
        let work = Slab::new(driver.clone(), sizes.regions.end.max(1))?;
        let slab = Slab::new(driver.clone(), sizes.regions.results.max(1))?;
        let bases = Bases { weights: Some(&weights), results: slab.address(), work: work.address() };
        let lowered = lower(&graph, &plan, settings, &role, bases)?;
        let staging = driver.staging(lowered.bindings.upload().max(lowered.regions.results))?;
        let mut program = Self {
            driver,
            turn: turn.clone(),
            graph,
            role,
            lowered,
            report,
            once: Vec::new(),
            steps: Vec::new(),
            captured: Captured::Cold,
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

    fn ready(&self, steps: Vec<Step>, functions: &mut HashMap<String, Function>) -> Result<Vec<Ready>> {
        let one = |step| {
            Ok(match step {
                Step::Launch(mut launch) => {
                    launch.function = match functions.get(&launch.entry) {
                        Some(function) => *function,
                        None => {
                            let function = self.driver.function(&launch.entry)?;
                            functions.insert(launch.entry.clone(), function);
                            function
                        }
                    };
                    Ready::Launch(launch)
                }
                Step::Gemm(gemm) => Ready::Gemm(self.driver.prepare_gemm(&gemm)?),
                Step::Copy(from, to, bytes) => Ready::Copy(from, to, bytes),
                Step::Fill(to, bytes, value) => Ready::Fill(to, bytes, value),
            })
        };
        steps.into_iter().map(one).collect()
    }

    /// What the graph became.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// An address in the work slab.
    pub(super) fn at(&self, place: usize) -> u64 {
        self.work.address() + place as u64
    }

    /// An address in the slab of the results.
    pub(super) fn kept(&self, place: usize) -> u64 {
        self.results.address() + place as u64
    }

    pub(super) fn regions(&self) -> &Regions {
        &self.lowered.regions
    }

    fn issue(&self, steps: &[Ready]) -> Result<()> {
        for step in steps {
            match step {
                Ready::Launch(launch) => self.driver.launch(launch)?,
                Ready::Gemm(plan) => self.driver.gemm(*plan)?,
                Ready::Copy(from, to, bytes) => self.driver.copy(*from, *to, *bytes)?,
                Ready::Fill(to, bytes, value) => self.driver.fill(*to, *bytes, *value)?,
            }
        }
        Ok(())
    }

    /// Takes inputs to the device.
    pub(super) fn give(&mut self, inputs: &[&[f32]]) -> Result<()> {
        let (up, to) = (self.lowered.bindings.upload(), self.at(self.regions().inputs));
        let staging = self.staging.bytes();
        self.lowered.bindings.write(inputs, &mut staging[..up]);
        self.driver.upload(to, &staging[..up])
    }

    /// Makes a sampler's inputs ready.
    pub(super) fn begin(&self) -> Result<()> {
        self.issue(&self.once)
    }

    /// Runs on what lies in the inputs' region: launch by launch at the first time, captures at the second, replays from then
    /// on. Allocates nothing and does not wait for the device.
    pub(super) fn execute(&mut self) -> Result<()> {
        if let Captured::Cold = self.captured {
            self.issue(&self.steps)?;
            self.captured = Captured::Warm;
            return Ok(());
        }
        self.capture()?;
        match self.captured {
            Captured::Graph(graph) => self.driver.replay(graph),
            _ => self.issue(&self.steps),
        }
    }

    /// Captures what has run once.
    fn capture(&mut self) -> Result<()> {
        if let Captured::Warm = self.captured {
            self.captured = if self.driver.begin_capture()? {
                let issued = self.issue(&self.steps);
                // The capture ends whether or not all went well.
                let graph = self.driver.end_capture();
                match (issued, graph) {
                    (Ok(()), Ok(graph)) => Captured::Graph(graph),
                    (Err(error), Ok(graph)) => {
                        self.driver.release_graph(graph);
                        return Err(error);
                    }
                    (Err(error), Err(_)) | (Ok(()), Err(error)) => return Err(error),
                }
            } else {
                Captured::Never
            };
        }
        Ok(())
    }
}

/// Refuses a program that does not fit before anything is allocated.
fn demand(driver: &dyn Driver, report: &Report, weights: usize, staging: usize) -> Result<()> {
    let need = (report.work() as u64).saturating_add(weights as u64).saturating_add(staging as u64);
    let have = driver.memory()?.free;
    if need <= have {
        return Ok(());
    }
    let hint = format!(
        "weights take {} bytes, tensors {}: ask for a smaller picture, free memory of {}, or use --device cpu",
        weights,
        report.work(),
        driver.facts().name
    );
    Err(Error::Memory { stage: "loading", need, have, hint })
}

impl Program for CudaProgram {
    fn run(&mut self, inputs: &[&[f32]], outputs: &mut [&mut [f32]]) -> Result<()> {
        self.graph.check_bindings(inputs, outputs)?;
        if let Role::Denoise(_) = self.role {
            return Err(Error::Graph("a sampler's program runs all steps, not one".into()));
        }
        let turn = self.turn.clone();
        let _turn = take(&turn);
        self.give(inputs)?;
        self.execute()?;
        let (down, from) = (self.lowered.bindings.download(), self.kept(self.regions().outputs));
        let staging = self.staging.bytes();
        self.driver.download(from, &mut staging[..down])?;
        self.lowered.bindings.read(&staging[..down], outputs);
        Ok(())
    }

    fn bytes(&self) -> usize {
        self.report.work() + self.weights.slabs().map(|(_, bytes)| bytes).sum::<usize>()
    }

    fn shared(&self) -> Vec<(u64, usize)> {
        self.weights.slabs().collect()
    }

    fn graph(&self) -> &Graph {
        &self.graph
    }

    /// One run on ones, which are ids, counts and values all alike, and the capture. The next request overwrites all of it.
    fn warm(&mut self) -> Result<()> {
        let turn = self.turn.clone();
        let _turn = take(&turn);
        if let Captured::Cold = self.captured {
            let ones: Vec<Vec<f32>> =
                self.graph.inputs.iter().map(|(_, id)| vec![1.0; self.graph.node(*id).len()]).collect();
            self.give(&ones.iter().map(Vec::as_slice).collect::<Vec<_>>())?;
            self.begin()?;
            self.execute()?;
        }
        self.capture()?;
        self.driver.synchronise()
    }

    fn sampler(&mut self) -> Option<&mut dyn Sampler> {
        if let Role::Denoise(_) = self.role { Some(self) } else { None }
    }

    fn leave(&mut self, inputs: &[&[f32]]) -> Result<Option<Left>> {
        if self.role == Role::Condition { self.left(inputs).map(Some) } else { Ok(None) }
    }

    fn paint(&mut self, latents: &Values<'_>, keep: bool) -> Result<Option<Painted>> {
        if let Role::Decode { .. } = self.role { self.painted(latents, keep).map(Some) } else { Ok(None) }
    }
}

impl Drop for CudaProgram {
    fn drop(&mut self) {
        if let Captured::Graph(graph) = self.captured {
            self.driver.release_graph(graph);
        }
        for step in self.once.iter().chain(&self.steps) {
            if let Ready::Gemm(plan) = step {
                self.driver.release_gemm(*plan);
            }
        }
    }
}
