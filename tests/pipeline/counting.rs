//! The CPU, with counts of what it runs.

use braid::device::cpu::Cpu;
use braid::device::{Compiled, Device, Executable, TensorData};
use braid::graph::Graph;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

pub type Counts<const N: usize> = Arc<[AtomicUsize; N]>;

/// A count and the number that a run adds to it.
type Weigh = fn(&Graph) -> Option<(usize, usize)>;

/// The CPU; each run of a graph adds to one of the counts, or to none.
pub struct Counting<const N: usize> {
    cpu: Cpu,
    counts: Counts<N>,
    weigh: Weigh,
    encoder_rows: usize,
}

struct Counted<const N: usize> {
    executable: Box<dyn Executable>,
    counts: Counts<N>,
    weight: Option<(usize, usize)>,
}

impl<const N: usize> Counting<N> {
    pub fn new(counts: Counts<N>, weigh: Weigh) -> Self {
        Self { cpu: Cpu::new(Some(1)), counts, weigh, encoder_rows: 1 }
    }

    /// The same with encoders that take so many rows at once.
    pub fn with_encoder_rows(self, encoder_rows: usize) -> Self {
        Self { encoder_rows, ..self }
    }
}

impl<const N: usize> Device for Counting<N> {
    fn name(&self) -> String {
        self.cpu.name()
    }

    fn encoder_rows(&self) -> usize {
        self.encoder_rows
    }

    fn compile(&self, graph: Graph) -> braid::Result<Box<dyn Executable>> {
        let weight = (self.weigh)(&graph);
        Ok(Box::new(Counted { executable: self.cpu.compile(graph)?, counts: self.counts.clone(), weight }))
    }
}

impl<const N: usize> Compiled for Counted<N> {
    fn graph(&self) -> &Graph {
        self.executable.graph()
    }

    fn bytes(&self) -> usize {
        self.executable.bytes()
    }
}

impl<const N: usize> Executable for Counted<N> {
    fn run(&mut self, inputs: &[TensorData<'_>], outputs: &mut [&mut [f32]]) -> braid::Result<()> {
        if let Some((count, weight)) = self.weight {
            self.counts[count].fetch_add(weight, Ordering::SeqCst);
        }
        self.executable.run(inputs, outputs)
    }
}
