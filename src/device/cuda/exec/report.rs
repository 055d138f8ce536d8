//! Launches and bytes of a graph on a device; no device is needed to count them.

use super::lower::{Lowered, lower};
use crate::device::Role;
use crate::device::cuda::driver::command::Command;
use crate::device::cuda::driver::gemm::Gemm;
use crate::device::cuda::driver::kernel::Launch;
use crate::device::cuda::ops::lowering::{BaseAddresses, LoweringOptions};
use crate::error::Result;
use crate::graph::{Graph, MemoryPlan, fuse};
use std::collections::BTreeMap;
use std::fmt;

/// Launches and bytes of a graph.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LoweringReport {
    /// Launches of each kernel in a run.
    pub kernels: BTreeMap<String, usize>,
    /// cuBLASLt's products in a run.
    pub gemms: usize,
    /// Copies within the device in a run.
    pub copies: usize,
    /// Memsets in a run.
    pub memsets: usize,
    /// Bytes of the weights.
    pub weights: usize,
    /// Bytes of inputs and outputs, in f32 and in the storage type, and of pixels.
    pub bindings: usize,
    /// Bytes of the state of a denoise loop's images.
    pub images: usize,
    /// Bytes of intermediates between nodes.
    pub arena: usize,
    /// Bytes of the moments of what group norms read.
    pub moments: usize,
    /// Bytes of intermediates within a node.
    pub scratch: usize,
    /// Bytes that compiling takes for a moment.
    pub staging: usize,
}

impl LoweringReport {
    /// The report of a graph before fusion.
    ///
    /// # Errors
    /// [`crate::Error::Graph`] where no kernel takes a node.
    pub fn of(graph: Graph, settings: &LoweringOptions) -> Result<Self> {
        Self::of_role(graph, settings, &Role::Plain)
    }

    /// The same of a graph with a part in a request: of a denoise loop it is one step.
    ///
    /// # Errors
    /// As [`LoweringReport::of`].
    pub fn of_role(graph: Graph, settings: &LoweringOptions, role: &Role) -> Result<Self> {
        Ok(Self::new(&lowered(graph, settings, role)?))
    }

    /// The launches that compute the nodes of a graph before fusion, in order, without those that take inputs and outputs; and
    /// the library's products among them.
    ///
    /// # Errors
    /// As [`LoweringReport::of`].
    pub fn work_of(graph: Graph, settings: &LoweringOptions) -> Result<(Vec<Launch>, Vec<Gemm>)> {
        let lowered = lowered(graph, settings, &Role::Plain)?;
        let (mut launches, mut products) = (Vec::new(), Vec::new());
        for step in lowered.steps.into_iter().skip(lowered.body.start).take(lowered.body.len()) {
            match step {
                Command::Launch(launch) => launches.push(launch),
                Command::Gemm(gemm) => products.push(gemm),
                Command::Copy(..) | Command::Memset(..) => {}
            }
        }
        Ok((launches, products))
    }

    pub(crate) fn new(lowered: &Lowered) -> Self {
        let mut report = Self::default();
        for step in &lowered.steps {
            match step {
                Command::Launch(launch) => *report.kernels.entry(launch.entry.clone()).or_default() += 1,
                Command::Gemm(_) => report.gemms += 1,
                Command::Copy(..) => report.copies += 1,
                Command::Memset(..) => report.memsets += 1,
            }
        }
        let regions = &lowered.regions;
        report.weights = lowered.weights.bytes;
        let staging = lowered.weights.staging();
        report.staging = staging + lowered.weights.wide(staging);
        report.bindings = regions.arena + regions.results;
        report.images = regions.state.held * regions.state.image.bytes;
        report.arena = regions.moments - regions.arena;
        report.moments = regions.scratch - regions.moments;
        report.scratch = regions.end - regions.scratch;
        report
    }

    /// Kernels launched in a run.
    pub fn launches(&self) -> usize {
        self.kernels.values().sum()
    }

    /// Bytes without the weights.
    pub fn work(&self) -> usize {
        self.bindings + self.images + self.arena + self.moments + self.scratch
    }

    /// All bytes that an executable holds on the device.
    pub fn bytes(&self) -> usize {
        self.weights + self.work()
    }
}

/// A graph before fusion, lowered without a device.
pub(crate) fn lowered(graph: Graph, settings: &LoweringOptions, role: &Role) -> Result<Lowered> {
    let graph = fuse(graph);
    let plan = MemoryPlan::new(&graph);
    lower(&graph, &plan, settings, role, BaseAddresses::default())
}

impl fmt::Display for LoweringReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
        writeln!(
            f,
            "{} launches, {} library products, {} copies; MiB: weights {:.1}, arena {:.1}, moments {:.1}, scratch {:.1}, bindings {:.1}, \
             images {:.1}",
            self.launches(),
            self.gemms,
            self.copies,
            mib(self.weights),
            mib(self.arena),
            mib(self.moments),
            mib(self.scratch),
            mib(self.bindings),
            mib(self.images)
        )?;
        for (kernel, count) in &self.kernels {
            writeln!(f, "{count:>6} {kernel}")?;
        }
        Ok(())
    }
}
