//! All steps of a scheduler around a denoiser.

use super::executable::Compiled;
use super::tensors::TensorRef;
use crate::error::{Error, Result};
use crate::graph::{Graph, InputType, NodeId};
use crate::schedulers::StepCoefficients;
use std::ops::Range;

/// The specification that a denoise loop is compiled for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoopSpec {
    /// The most steps.
    pub max_steps: usize,
    /// The inputs that have a value of their own for each step.
    pub varying: Range<usize>,
    /// Whether steps may add fresh noise.
    pub noise: bool,
}

impl LoopSpec {
    /// Checks that a graph is a denoiser: its first input and its only output are of one shape, one row or two.
    ///
    /// # Errors
    /// [`Error::Graph`].
    pub fn check(&self, graph: &Graph) -> Result<()> {
        let bad = |what: &str| Err(Error::Graph(format!("a denoise loop's graph: {what}")));
        let (Some((_, sample)), [(_, output)]) = (graph.inputs.first(), graph.outputs.as_slice()) else {
            return bad("latents and one output are needed");
        };
        let shape = &graph.node(*sample).shape;
        if *shape != graph.node(*output).shape || !matches!(shape.first(), Some(1 | 2)) {
            return bad("the output must be as large as the latents, of one row or two");
        }
        if self.max_steps == 0 || self.max_steps > i32::MAX as usize || self.varying.start == 0 {
            return bad("at least one step is needed, and the latents are not given for each");
        }
        if self.varying.end > graph.inputs.len() {
            return bad("more inputs vary than there are");
        }
        let integer = |(_, id): &(String, NodeId)| graph.element_type(*id) == InputType::I32;
        if integer(&graph.inputs[0])
            || graph.inputs.get(self.varying.clone()).is_some_and(|varying| varying.iter().any(integer))
        {
            return bad("the latents and the inputs that vary must be f32");
        }
        Ok(())
    }
}

/// The inputs that take one image from noise to latents.
pub struct DenoiseInputs<'a> {
    /// The graph's inputs. That of the latents is empty; those that vary hold the values of all steps, one after the other.
    pub inputs: &'a [TensorRef<'a>],
    /// A row for each step.
    pub table: &'a [StepCoefficients],
    /// Guidance scale, where there is a negative row.
    pub guidance_scale: f32,
    /// Guidance rescale, 0 to 1.
    pub guidance_rescale: f32,
    /// The latents to begin with, `[h, w, C]`.
    pub latents: &'a [f32],
    /// Draws a step's fresh noise, as long as the latents: called once, in order, for each step whose [`StepCoefficients::noise`]
    /// is given, also where it weighs nothing.
    pub noise: &'a mut dyn FnMut(usize) -> Vec<f32>,
    /// Whether [`DenoiseOutput::first_output`] is wanted.
    pub capture_first: bool,
}

impl DenoiseInputs<'_> {
    /// Checks all types and lengths against the denoiser's graph.
    ///
    /// # Errors
    /// [`Error::Graph`] where something is missing or has another type or length than was declared.
    pub fn check(&self, graph: &Graph, varying: &Range<usize>) -> Result<()> {
        let bad = |what: String| Err(Error::Graph(format!("denoise loop: {what}")));
        let count = self.table.len();
        if self.inputs.len() != graph.inputs.len() {
            return bad(format!("{} inputs declared, {} bound", graph.inputs.len(), self.inputs.len()));
        }
        for (k, ((name, id), values)) in graph.inputs.iter().zip(self.inputs).enumerate() {
            let len = graph.node(*id).len();
            let want = if k == 0 { 0 } else { len * if varying.contains(&k) { count } else { 1 } };
            let (given, declared) = (values.element_type(), graph.element_type(*id));
            if values.len() != want || given != declared {
                let bound = values.len();
                return bad(format!(
                    "input `{name}` is bound to {bound} values of {given}, {want} of {declared} are needed"
                ));
            }
        }
        let sample = graph.node(graph.inputs[0].1);
        let n = sample.len() / sample.shape[0];
        if self.latents.len() != n {
            return bad(format!("{} latents, {n} are needed", self.latents.len()));
        }
        Ok(())
    }
}

/// The result of a [`DenoiseLoop`].
#[derive(Debug, Clone)]
pub struct DenoiseOutput {
    /// The latents after the last step, `[h, w, C]`.
    pub latents: TensorRef<'static>,
    /// The model's output in the first step, `[B, h, w, C]`, if it was asked for.
    pub first_output: Vec<f32>,
    /// The first step, from 0, whose latents were not finite.
    pub not_finite: Option<usize>,
}

/// Runs all steps of a scheduler around a denoiser: model input, model, guidance, step.
pub trait DenoiseLoop: Compiled {
    /// Whether a request of that kind can run on this loop.
    fn accepts(&self, spec: &LoopSpec) -> bool;

    /// Runs the steps. `reached` is called before each step begins, and after the last ones, with the number of steps done
    /// by then; a device is at most two steps ahead of it. Its error ends the run.
    ///
    /// # Errors
    /// [`Error::Graph`] where something's type or length is not the declared one; what `reached` gives.
    fn denoise(
        &mut self,
        inputs: DenoiseInputs<'_>,
        reached: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<DenoiseOutput>;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Builder;

    #[test]
    fn types_of_inputs() {
        let mut b = Builder::new();
        let sample = b.input("sample", &[1, 2, 2, 4]);
        b.input_i32("tokens", &[1]);
        let y = b.scale_shift(sample, 2.0, 0.0);
        b.output("y", y);
        let graph = b.finish().unwrap();
        let check = |tokens: TensorRef<'_>| {
            let inputs = DenoiseInputs {
                inputs: &[Vec::<f32>::new().into(), tokens],
                table: &[],
                guidance_scale: 1.0,
                guidance_rescale: 0.0,
                latents: &[0.0; 16],
                noise: &mut |_| Vec::new(),
                capture_first: false,
            };
            inputs.check(&graph, &(2..2)).map_err(|e| e.to_string())
        };
        assert_eq!(check(vec![1].into()), Ok(()));
        let text = check(vec![1.0].into()).unwrap_err();
        assert!(text.contains("`tokens` is bound to 1 values of f32, 1 of i32 are needed"), "{text}");
        let text = check(vec![1, 1].into()).unwrap_err();
        assert!(text.contains("`tokens` is bound to 2 values of i32, 1 of i32 are needed"), "{text}");
        let spec = |varying| LoopSpec { max_steps: 1, varying, noise: false };
        assert!(spec(2..2).check(&graph).is_ok());
        assert!(spec(1..2).check(&graph).unwrap_err().to_string().contains("must be f32"));
    }
}
