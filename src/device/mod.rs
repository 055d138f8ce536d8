//! Devices: what runs a graph.

pub mod cpu;
pub mod cuda;

use crate::error::Result;
use crate::graph::Graph;

/// Something that runs graphs.
pub trait Device: Send + Sync {
    /// The device as a user would name it.
    fn name(&self) -> String;

    /// Prepares a graph: after this a run allocates no memory for tensors.
    ///
    /// # Errors
    /// Where memory is short or an operation is not supported.
    fn load(&self, graph: Graph) -> Result<Box<dyn Program>>;
}

/// A graph made ready on a device.
pub trait Program: Send {
    /// Runs it once. `inputs` and `outputs` follow the order in which the graph declares them.
    ///
    /// # Errors
    /// [`crate::Error::Graph`] where a binding's length is not the declared one.
    fn run(&mut self, inputs: &[&[f32]], outputs: &mut [&mut [f32]]) -> Result<()>;

    /// Bytes that this program holds besides the mapped weights: the arena, biases and scratch.
    fn bytes(&self) -> usize;

    /// The graph as it is run, after fusion.
    fn graph(&self) -> &Graph;
}
