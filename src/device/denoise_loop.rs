//! All steps of a scheduler around a denoiser.

use super::executable::Compiled;
use super::tensors::TensorRef;
use crate::error::{Error, Result};
use crate::graph::{Graph, InputType, NodeId};
use crate::schedulers::{NoiseLevel, StepCoefficients, classifier_free_guidance};
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
    /// Checks that a graph is a denoiser: its first input, whose first channels are the latents, and its only output, as wide as these,
    /// are of one size, one row or two.
    ///
    /// # Errors
    /// [`Error::Graph`].
    pub fn check(&self, graph: &Graph) -> Result<()> {
        let bad = |what: &str| Err(Error::Graph(format!("a denoise loop's graph: {what}")));
        let (Some((_, sample)), [(_, output)]) = (graph.inputs.first(), graph.outputs.as_slice()) else {
            return bad("latents and one output are needed");
        };
        let (sample, output) = (&graph.node(*sample).shape, &graph.node(*output).shape);
        let (Some((wide, rest)), Some((narrow, same))) = (sample.split_last(), output.split_last()) else {
            return bad("latents and an output of one row or two are needed");
        };
        if rest != same || wide < narrow || !matches!(sample.first(), Some(1 | 2)) {
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

/// The latents that an inpainting keeps: after each step those of an image, with noise of the next step's level, take their place.
/// All are as long as the latents.
#[derive(Debug, Clone, Copy)]
pub struct KeptLatents<'a> {
    /// 1 where the step's result stays, 0 where the image's latents take its place.
    pub mask: &'a [f32],
    /// The image's latents, without noise.
    pub image: &'a [f32],
    /// The same noise for every step.
    pub noise: &'a [f32],
}

impl KeptLatents<'_> {
    /// Puts them into latents of that noise level.
    pub(super) fn put(&self, x: &mut [f32], level: NoiseLevel) {
        for (((x, mask), image), noise) in x.iter_mut().zip(self.mask).zip(self.image).zip(self.noise) {
            *x = (1.0 - mask) * level.add_noise(*image, *noise) + mask * *x;
        }
    }
}

/// The noise level of the latents after row `i`: that of the next row.
pub(super) fn level_after(table: &[StepCoefficients], i: usize) -> NoiseLevel {
    table.get(i + 1).map_or(NoiseLevel::CLEAN, |next| next.level)
}

/// A look at the latents while the steps run.
pub struct LatentPreview<'a> {
    /// It is taken after each so many rows of the table, at least 1.
    pub every: usize,
    /// Takes the number of rows done and the clean latents, `[h, w, C]`, that the last of them predicted. Its error ends the run.
    pub show: &'a mut dyn FnMut(usize, &[f32]) -> Result<()>,
}

impl LatentPreview<'_> {
    /// Whether one is taken after so many rows.
    pub(super) fn is_due(&self, done: usize) -> bool {
        done.is_multiple_of(self.every.max(1))
    }

    /// Shows what row `done - 1` predicted from `x` and the model's guided output.
    pub(super) fn show(&mut self, done: usize, row: &StepCoefficients, x: &[f32], guided: &[f32]) -> Result<()> {
        let clean: Vec<f32> = x.iter().zip(guided).map(|(x, output)| row.x0(*x, *output)).collect();
        (self.show)(done, &clean)
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
    /// The channels that the model's sample has beyond the latents, `[h, w, S - C]`, the same in every step.
    pub extra: &'a [f32],
    /// The latents that are kept, where some are.
    pub kept: Option<KeptLatents<'a>>,
    /// Draws a step's fresh noise, as long as the latents: called once, in order, for each step whose [`StepCoefficients::noise`]
    /// is given, also where it weighs nothing.
    pub noise: &'a mut dyn FnMut(usize) -> Vec<f32>,
    /// Whether [`DenoiseOutput::first_output`] is wanted.
    pub capture_first: bool,
    /// A look at the latents of some steps.
    pub preview: Option<LatentPreview<'a>>,
}

impl DenoiseInputs<'_> {
    /// The model's output guided, as long as the latents: of a positive and a negative row, or of one row as it is. `guided` is scratch
    /// of that length.
    pub(super) fn guide<'s>(&self, output: &'s [f32], guided: &'s mut [f32]) -> Result<&'s [f32]> {
        let (positive, negative) = output.split_at(guided.len());
        if negative.is_empty() {
            return Ok(positive);
        }
        classifier_free_guidance(negative, positive, self.guidance_scale, self.guidance_rescale, guided)?;
        Ok(guided)
    }

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
        let LatentSize { n, sample, .. } = LatentSize::of(graph);
        if self.latents.len() != n {
            return bad(format!("{} latents, {n} are needed", self.latents.len()));
        }
        if self.extra.len() != sample - n {
            return bad(format!("{} values beyond the latents, {} are needed", self.extra.len(), sample - n));
        }
        let kept = self.kept.iter().flat_map(|kept| [kept.mask, kept.image, kept.noise]);
        match kept.map(<[f32]>::len).find(|len| *len != n) {
            Some(len) => bad(format!("{len} kept latents, {n} are needed")),
            None => Ok(()),
        }
    }
}

/// The values of a denoiser's latents.
#[derive(Debug, Clone, Copy)]
pub(super) struct LatentSize {
    /// Rows of the model, 2 with guidance.
    pub(super) rows: usize,
    /// Values of the latents.
    pub(super) n: usize,
    /// Values of a row of the model's sample, the latents among them.
    pub(super) sample: usize,
    /// Channels of the latents and of the sample.
    pub(super) channels: [usize; 2],
}

impl LatentSize {
    /// Reads it off a graph that [`LoopSpec::check`] has accepted.
    pub(super) fn of(graph: &Graph) -> Self {
        let (sample, output) = (graph.node(graph.inputs[0].1), graph.node(graph.outputs[0].1));
        let rows = sample.shape[0];
        Self {
            rows,
            n: output.len() / rows,
            sample: sample.len() / rows,
            channels: [output.channels(), sample.channels()],
        }
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
    use crate::schedulers::SchedulerConfig;

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
                extra: &[],
                kept: None,
                noise: &mut |_| Vec::new(),
                capture_first: false,
                preview: None,
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

    /// The latents of one channel in a sample of two.
    #[test]
    fn lengths_of_latents() {
        let mut b = Builder::new();
        let sample = b.input("sample", &[2, 2, 3, 2]);
        let y = b.geglu(sample);
        b.output("y", y);
        let graph = b.finish().unwrap();
        let zeros = [0.0; 7];
        let check = |latents: usize, extra: usize, kept: Option<[usize; 3]>| {
            let inputs = DenoiseInputs {
                inputs: &[Vec::<f32>::new().into()],
                table: &[],
                guidance_scale: 1.0,
                guidance_rescale: 0.0,
                latents: &zeros[..latents],
                extra: &zeros[..extra],
                kept: kept.map(|[mask, image, noise]| KeptLatents {
                    mask: &zeros[..mask],
                    image: &zeros[..image],
                    noise: &zeros[..noise],
                }),
                noise: &mut |_| Vec::new(),
                preview: None,
                capture_first: false,
            };
            inputs.check(&graph, &(1..1)).map_err(|e| e.to_string()).err().unwrap_or_default()
        };
        assert_eq!(check(6, 6, None), "");
        assert_eq!(check(6, 6, Some([6; 3])), "");
        assert!(check(5, 6, None).contains("5 latents, 6 are needed"));
        assert!(check(6, 0, None).contains("0 values beyond the latents, 6 are needed"));
        for kept in [[7, 6, 6], [6, 7, 6], [6, 6, 7]] {
            assert!(check(6, 6, Some(kept)).contains("7 kept latents, 6 are needed"));
        }
    }

    #[test]
    fn levels_after_rows() {
        let config = SchedulerConfig::sdxl_default();
        let table = config.image_to_image_table(6, 0.5).unwrap().steps;
        let after: Vec<NoiseLevel> = (0..table.len()).map(|i| level_after(&table, i)).collect();
        assert_eq!(after, [table[1].level, table[2].level, NoiseLevel::CLEAN]);
        assert!(after[0] != table[0].level);
    }
}
