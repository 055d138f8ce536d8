//! Evaluations of a denoiser for images in flight: each a step of its own scheduler.

use super::executable::Compiled;
use super::tensors::TensorRef;
use crate::error::{Error, Result};
use crate::graph::{Graph, InputType, NodeId};
use crate::schedulers::{NoiseLevel, StepCoefficients, classifier_free_guidance};
use std::any::Any;
use std::ops::Range;
use std::sync::Arc;

/// The dimension of an input in which its rows follow one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RowAxis {
    /// The first: `[B, ..]`. The rows of an image may be shorter than the graph's; the rest is not read.
    #[default]
    First,
    /// The last: `[.., B]`.
    Last,
    /// None: all rows share the values.
    Shared,
}

/// The specification that a denoise loop is compiled for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoopSpec {
    /// The most steps.
    pub max_steps: usize,
    /// The inputs that have a value of their own for each step.
    pub varying: Range<usize>,
    /// Whether steps may add fresh noise.
    pub noise: bool,
    /// The rows of each input; [`RowAxis::First`] beyond the last of them.
    pub row_axes: Vec<RowAxis>,
    /// The fewest rows of an image, at least 1: memory is reserved for as many images as the graph has rows for.
    pub image_rows: usize,
}

impl LoopSpec {
    /// Checks that a graph is a denoiser: its first input, whose first channels are the latents, and its first output, as wide as these,
    /// are of one size and as many rows; further outputs have as many rows, too.
    ///
    /// # Errors
    /// [`Error::Graph`].
    pub fn check(&self, graph: &Graph) -> Result<()> {
        let bad = |what: &str| Err(Error::Graph(format!("a denoise loop's graph: {what}")));
        let (Some((_, sample)), [(_, output), further @ ..]) = (graph.inputs.first(), graph.outputs.as_slice()) else {
            return bad("latents and an output are needed");
        };
        let (sample, output) = (&graph.node(*sample).shape, &graph.node(*output).shape);
        let (Some((wide, rest)), Some((narrow, same))) = (sample.split_last(), output.split_last()) else {
            return bad("latents and an output of as many rows are needed");
        };
        if rest != same || wide < narrow || sample.first().is_none_or(|rows| *rows == 0) {
            return bad("the output must be as large as the latents, of as many rows");
        }
        if further.iter().any(|(_, id)| graph.node(*id).shape.first() != output.first()) {
            return bad("further outputs must be of as many rows as the latents");
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

    /// The rows of input `k`.
    pub fn row_axis(&self, k: usize) -> RowAxis {
        self.row_axes.get(k).copied().unwrap_or_default()
    }

    /// The values of input `k` in one step that an image of so many rows gives; the most, where its rows may be shorter.
    pub(super) fn values(&self, graph: &Graph, k: usize, rows: usize) -> usize {
        let len = graph.node(graph.inputs[k].1).len();
        match self.row_axis(k) {
            RowAxis::Shared => len,
            RowAxis::First | RowAxis::Last => len / LatentSize::of(graph).rows * rows,
        }
    }
}

/// The latents that an inpainting keeps: after each step those of an image, with noise of the next step's level, take their place.
/// All are as long as the latents.
#[derive(Debug, Clone)]
pub struct KeptLatents {
    /// 1 where the step's result stays, 0 where the image's latents take its place.
    pub mask: Vec<f32>,
    /// The image's latents, without noise.
    pub image: Vec<f32>,
    /// The same noise for every step.
    pub noise: Vec<f32>,
}

impl KeptLatents {
    /// Puts them into latents of that noise level.
    pub(super) fn put(&self, x: &mut [f32], level: NoiseLevel) {
        for (((x, mask), image), noise) in x.iter_mut().zip(&self.mask).zip(&self.image).zip(&self.noise) {
            *x = (1.0 - mask) * level.add_noise(*image, *noise) + mask * *x;
        }
    }
}

/// The noise level of the latents after row `i`: that of the next row.
pub(super) fn level_after(table: &[StepCoefficients], i: usize) -> NoiseLevel {
    table.get(i + 1).map_or(NoiseLevel::CLEAN, |next| next.level)
}

/// Draws a step's fresh noise, as long as the latents.
pub type NoiseSource = Box<dyn FnMut(usize) -> Vec<f32> + Send>;

/// The inputs that take one image from noise to latents.
pub struct DenoiseInputs {
    /// The rows of the model that the image takes: a positive one, and with guidance a negative one after it.
    pub rows: usize,
    /// The image's rows of the graph's inputs. That of the latents is empty; those that vary hold the values of all steps, or more, one
    /// after the other. What is exchanged between two evaluations acts from the next one on.
    pub inputs: Vec<Arc<TensorRef<'static>>>,
    /// A row for each step.
    pub table: Arc<[StepCoefficients]>,
    /// Guidance scale, where there is a negative row.
    pub guidance_scale: f32,
    /// Guidance rescale, 0 to 1.
    pub guidance_rescale: f32,
    /// The latents to begin with, `[h, w, C]`.
    pub latents: Vec<f32>,
    /// The channels that the model's sample has beyond the latents, `[h, w, S - C]`, the same in every step.
    pub extra: Vec<f32>,
    /// The latents that are kept, where some are.
    pub kept: Option<KeptLatents>,
    /// Called once, in order, for each step whose [`StepCoefficients::noise`] is given, also where it weighs nothing.
    pub noise: NoiseSource,
    /// Whether [`DenoiseOutput::first_output`] is wanted.
    pub capture_first: bool,
    /// After each so many rows of the table, at least 1, there is a [`ImageInFlight::take_preview`].
    pub preview_every: Option<usize>,
}

impl DenoiseInputs {
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

    /// Whether a preview is taken after so many rows.
    pub(super) fn previews(&self, done: usize) -> bool {
        self.preview_every.is_some_and(|every| done.is_multiple_of(every.max(1)))
    }

    /// Checks all types and lengths against the denoiser's graph.
    ///
    /// # Errors
    /// [`Error::Graph`] where something is missing or has another type or length than was declared.
    pub fn check(&self, graph: &Graph, spec: &LoopSpec) -> Result<()> {
        let bad = |what: String| Err(Error::Graph(format!("denoise loop: {what}")));
        if self.table.is_empty() {
            return bad("0 steps; at least 1 is needed".into());
        }
        if !matches!(self.rows, 1 | 2) {
            return bad(format!("an image of {} rows; 1 or 2 are possible", self.rows));
        }
        self.check_inputs(graph, spec)?;
        let LatentSize { n, sample, .. } = LatentSize::of(graph);
        if self.latents.len() != n {
            return bad(format!("{} latents, {n} are needed", self.latents.len()));
        }
        if self.extra.len() != sample - n {
            return bad(format!("{} values beyond the latents, {} are needed", self.extra.len(), sample - n));
        }
        let kept = self.kept.iter().flat_map(|kept| [&kept.mask, &kept.image, &kept.noise]);
        match kept.map(Vec::len).find(|len| *len != n) {
            Some(len) => bad(format!("{len} kept latents, {n} are needed")),
            None => Ok(()),
        }
    }

    /// Checks the rows of the graph's inputs.
    pub(super) fn check_inputs(&self, graph: &Graph, spec: &LoopSpec) -> Result<()> {
        let bad = |what: String| Err(Error::Graph(format!("denoise loop: {what}")));
        let count = self.table.len();
        if self.inputs.len() != graph.inputs.len() {
            return bad(format!("{} inputs declared, {} bound", graph.inputs.len(), self.inputs.len()));
        }
        for (k, ((name, id), values)) in graph.inputs.iter().zip(&self.inputs).enumerate() {
            let (bound, most) = (values.len(), spec.values(graph, k, self.rows));
            let want = match k {
                0 => 0,
                _ if spec.varying.contains(&k) => most * count,
                _ => most,
            };
            let fits = if k > 0 && spec.varying.contains(&k) {
                bound >= want && bound.is_multiple_of(most.max(1))
            } else if k > 0 && spec.row_axis(k) == RowAxis::First {
                let unit = graph.node(*id).channels() * self.rows;
                bound == want
                    || bound > 0 && bound < want && graph.node(*id).shape.len() > 2 && bound.is_multiple_of(unit)
            } else {
                bound == want
            };
            let (given, declared) = (values.element_type(), graph.element_type(*id));
            if !fits || given != declared {
                return bad(format!(
                    "input `{name}` is bound to {bound} values of {given}, {want} of {declared} are needed"
                ));
            }
        }
        Ok(())
    }
}

/// The values of a denoiser's latents.
#[derive(Debug, Clone, Copy)]
pub(super) struct LatentSize {
    /// Rows of the model.
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

/// An image between its first step and its last. It owns all that its steps read and write, so it may share evaluations with any others
/// of its size, from any step on, and take part in those of several loops of one device.
pub struct ImageInFlight {
    /// Its inputs. Guidance, and inputs of the graph, may be exchanged between two evaluations.
    pub inputs: DenoiseInputs,
    /// Whether its evaluations from the next one on have its negative row, where there is one: yes, at first. Without it the positive
    /// row's output is taken as it is.
    pub guided: bool,
    /// Steps done.
    pub(super) done: usize,
    /// As [`DenoiseOutput::first_output`].
    pub(super) first_output: Vec<f32>,
    /// As [`DenoiseOutput::not_finite`], where that is known already.
    pub(super) not_finite: Option<usize>,
    /// The clean latents that the last step predicted, where a preview was due.
    pub(super) preview: Option<Vec<f32>>,
    /// The state that a device keeps from step to step: none before the first.
    pub(super) state: Option<Box<dyn Any + Send>>,
}

impl ImageInFlight {
    /// An image before its first step.
    pub fn new(inputs: DenoiseInputs) -> Self {
        Self { inputs, guided: true, done: 0, first_output: Vec::new(), not_finite: None, preview: None, state: None }
    }

    /// The rows that it brings to its next evaluation.
    pub fn rows(&self) -> usize {
        if self.guided { self.inputs.rows } else { self.inputs.rows.min(1) }
    }

    /// The evaluations that it took part in; a device may still be at work on the last ones.
    pub fn done(&self) -> usize {
        self.done
    }

    /// Whether it takes part in no more evaluations: all steps are made, or the latents are known not to be finite.
    pub fn is_finished(&self) -> bool {
        self.not_finite.is_some() || self.done >= self.inputs.table.len()
    }

    /// The clean latents, `[h, w, C]`, that the last step predicted, where [`DenoiseInputs::preview_every`] asks for them; once.
    pub fn take_preview(&mut self) -> Option<Vec<f32>> {
        self.preview.take()
    }

    /// Keeps what row `done` predicts from `x` and the model's guided output, where a preview is due after it.
    pub(super) fn keep_preview(&mut self, x: &[f32], guided: &[f32]) {
        if self.inputs.previews(self.done + 1) {
            let row = &self.inputs.table[self.done];
            self.preview = Some(x.iter().zip(guided).map(|(x, output)| row.x0(*x, *output)).collect());
        }
    }
}

/// The result of an image's steps.
#[derive(Debug, Clone)]
pub struct DenoiseOutput {
    /// The latents after the last step, `[h, w, C]`.
    pub latents: TensorRef<'static>,
    /// The model's output in the first step, `[B, h, w, C]`, of the rows that it had there, if it was asked for.
    pub first_output: Vec<f32>,
    /// The first step, from 0, whose latents were not finite.
    pub not_finite: Option<usize>,
    /// For each output of the graph beside the model's the mean over the steps of the image's first row; nothing where the device
    /// averages none ([`super::Device::averages_outputs`]).
    pub means: Vec<Vec<f32>>,
}

/// Runs the steps of images around a denoiser: model input, model, guidance, step.
///
/// The bytes of an image depend on its own inputs alone: not on those that share its evaluations, their order or their number.
pub trait DenoiseLoop: Compiled {
    /// Whether images of that kind can run on this loop.
    fn accepts(&self, spec: &LoopSpec) -> bool;

    /// Makes the next step of each image, in one evaluation of the model; their rows are together as many as the model's. Returns how many
    /// of the evaluations so far, this one among them, the device is still at work on: at most two.
    ///
    /// # Errors
    /// [`Error::Graph`] where something's type or length is not the declared one: the images are as before. [`Error::Fault`] of the device.
    fn evaluate(&mut self, images: &mut [&mut ImageInFlight]) -> Result<usize>;

    /// Waits for the steps of an image whose last one this loop made, and gives what they made.
    ///
    /// # Errors
    /// [`Error::Graph`] for an image without a step; [`Error::Fault`] of the device.
    fn finish(&mut self, image: ImageInFlight) -> Result<DenoiseOutput>;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Builder;
    use crate::schedulers::SchedulerConfig;

    fn inputs(tokens: Option<TensorRef<'static>>, latents: usize, extra: usize) -> DenoiseInputs {
        let inputs = std::iter::once(Vec::<f32>::new().into()).chain(tokens);
        DenoiseInputs {
            rows: 1,
            inputs: inputs.map(Arc::new).collect(),
            table: SchedulerConfig::sdxl_default().table(1).unwrap().steps.into(),
            guidance_scale: 1.0,
            guidance_rescale: 0.0,
            latents: vec![0.0; latents],
            extra: vec![0.0; extra],
            kept: None,
            noise: Box::new(|_| Vec::new()),
            capture_first: false,
            preview_every: None,
        }
    }

    fn spec(varying: Range<usize>) -> LoopSpec {
        LoopSpec { max_steps: 1, varying, noise: false, row_axes: Vec::new(), image_rows: 1 }
    }

    #[test]
    fn types_of_inputs() {
        let mut b = Builder::new();
        let sample = b.input("sample", &[1, 2, 2, 4]);
        b.input_i32("tokens", &[1]);
        let y = b.scale_shift(sample, 2.0, 0.0);
        b.output("y", y);
        let graph = b.finish().unwrap();
        let check = |tokens| inputs(Some(tokens), 16, 0).check(&graph, &spec(2..2)).map_err(|e| e.to_string());
        assert_eq!(check(vec![1].into()), Ok(()));
        let text = check(vec![1.0].into()).unwrap_err();
        assert!(text.contains("`tokens` is bound to 1 values of f32, 1 of i32 are needed"), "{text}");
        let text = check(vec![1, 1].into()).unwrap_err();
        assert!(text.contains("`tokens` is bound to 2 values of i32, 1 of i32 are needed"), "{text}");
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
        let check = |latents: usize, extra: usize, kept: Option<[usize; 3]>| {
            let [mask, image, noise] = kept.unwrap_or_default().map(|len| vec![0.0; len]);
            let kept = kept.map(|_| KeptLatents { mask, image, noise });
            let inputs = DenoiseInputs { kept, ..inputs(None, latents, extra) };
            inputs.check(&graph, &spec(1..1)).map_err(|e| e.to_string()).err().unwrap_or_default()
        };
        assert_eq!(check(6, 6, None), "");
        assert_eq!(check(6, 6, Some([6; 3])), "");
        assert!(check(5, 6, None).contains("5 latents, 6 are needed"));
        assert!(check(6, 0, None).contains("0 values beyond the latents, 6 are needed"));
        for kept in [[7, 6, 6], [6, 7, 6], [6, 6, 7]] {
            assert!(check(6, 6, Some(kept)).contains("7 kept latents, 6 are needed"));
        }
    }

    /// Shorter rows where the graph has room, no part of one, and more steps than the table has.
    #[test]
    fn lengths_of_rows() {
        let mut b = Builder::new();
        let sample = b.input("sample", &[4, 1, 1, 4]);
        b.input("text", &[4, 3, 5]);
        b.input("scales", &[2, 4]);
        let y = b.scale_shift(sample, 2.0, 0.0);
        b.output("y", y);
        let graph = b.finish().unwrap();
        let row_axes = vec![RowAxis::First, RowAxis::First, RowAxis::Last];
        let spec = LoopSpec { row_axes, ..spec(2..3) };
        let check = |rows: usize, text: usize, scales: usize| {
            let mut inputs = DenoiseInputs { rows, ..inputs(Some(vec![0.0; text].into()), 4, 0) };
            inputs.inputs.push(Arc::new(vec![0.0; scales].into()));
            inputs.check(&graph, &spec).is_ok()
        };
        assert!(check(2, 30, 4) && check(1, 15, 2) && check(2, 20, 4) && check(1, 5, 2) && check(2, 30, 12));
        assert!(!check(2, 25, 4) && !check(1, 20, 2) && !check(1, 0, 2) && !check(2, 30, 2) && !check(2, 30, 6));
        assert!(!check(3, 45, 6) && !check(0, 0, 0));
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
