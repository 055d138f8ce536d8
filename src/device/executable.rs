//! Graphs compiled for a device.

use super::tensors::{TensorData, TensorRef};
use crate::error::Result;
use crate::graph::Graph;

/// A graph compiled for a device, whatever runs it.
pub trait Compiled: Send {
    /// The graph as it is run, after fusion.
    fn graph(&self) -> &Graph;

    /// The bytes that it holds besides the mapped weights: arena, biases and scratch, and [`Compiled::shared`].
    fn bytes(&self) -> usize;

    /// The pieces of memory that others may hold with this one, each by a number of its own, and their bytes.
    fn shared(&self) -> Vec<(u64, usize)> {
        Vec::new()
    }

    /// Does ahead of the first run whatever the device does only once.
    ///
    /// # Errors
    /// As the first run.
    fn warmup(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Implements [`Compiled`] by a field that is.
macro_rules! compiled_by {
    ($name:ty, $field:tt) => {
        impl $crate::device::executable::Compiled for $name {
            fn graph(&self) -> &$crate::graph::Graph {
                self.$field.graph()
            }

            fn bytes(&self) -> usize {
                self.$field.bytes()
            }

            fn shared(&self) -> Vec<(u64, usize)> {
                self.$field.shared()
            }

            fn warmup(&mut self) -> $crate::error::Result<()> {
                self.$field.warmup()
            }
        }
    };
}
pub(crate) use compiled_by;

/// Runs a graph.
pub trait Executable: Compiled {
    /// Runs it once on the host's values. `inputs` and `outputs` follow the order in which the graph declares them.
    ///
    /// # Errors
    /// [`crate::Error::Graph`] where a binding's type or length is not the declared one.
    fn run(&mut self, inputs: &[TensorData<'_>], outputs: &mut [&mut [f32]]) -> Result<()>;

    /// Runs it once and leaves its results where the device's other executables read them; by default that is the host's
    /// memory.
    ///
    /// # Errors
    /// As [`Executable::run`].
    fn run_resident(&mut self, inputs: &[TensorData<'_>]) -> Result<ResidentOutputs> {
        let graph = self.graph();
        let mut values: Vec<Vec<f32>> = graph.outputs.iter().map(|(_, id)| vec![0.0; graph.node(*id).len()]).collect();
        self.run(inputs, &mut values.iter_mut().map(Vec::as_mut_slice).collect::<Vec<_>>())?;
        let finite = values.iter().flatten().all(|v| v.is_finite());
        Ok(ResidentOutputs { values: values.into_iter().map(TensorRef::from).collect(), finite })
    }

    /// The last run's [`ResidentOutputs::values`] in memory of their own, so that they outlast the next run, as those in the host's
    /// memory do.
    ///
    /// # Errors
    /// [`crate::Error::Memory`] where memory is short.
    fn persist(&mut self, values: Vec<TensorRef<'static>>) -> Result<Vec<TensorRef<'static>>> {
        Ok(values)
    }
}

/// Results that lie where the next executable reads them.
#[derive(Debug, Clone)]
pub struct ResidentOutputs {
    /// The outputs, in the order in which the graph declares them.
    pub values: Vec<TensorRef<'static>>,
    /// Whether all of them are finite.
    pub finite: bool,
}
