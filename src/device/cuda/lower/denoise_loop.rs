//! A sampler's loop around a graph: the same launches for every step, which find their step by a counter on the device.

use super::super::params::{AdvanceParams, ModelInputParams, Pointer, StepParams};
use super::super::tiles::blocks;
use super::{Lowering, int, long};
use crate::device::{LoopSteps, StepCoefficients};
use crate::error::{Error, Result};
use crate::graph::Graph;

/// Elements whose moments a block of `guidance_moments` takes.
const CHUNK: usize = 2048;
/// Elements of a block of `model_input` and `step`.
const BLOCK: usize = 1024;

/// Where a sampler's state lies in the work slab and, the latents, in that of the results: bytes from its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LoopState {
    /// The step's number; after it, the first step that was not finite.
    pub counter: usize,
    /// Guidance scale and rescale.
    pub guidance: usize,
    /// Coefficients, a row for each step.
    pub table: usize,
    /// The latents in f32.
    pub latents: usize,
    /// The last step's x0.
    pub history: usize,
    /// Fresh noise, for each step as much as latents; nothing where no step adds any.
    pub noise: usize,
    /// The model's output in the first step.
    pub first: usize,
    /// Moments of guidance's rescale.
    pub moments: usize,
    /// Elements of the latents.
    pub len: usize,
    /// The model's rows: 2 with guidance.
    pub rows: usize,
}

impl LoopState {
    /// Places from `region`, which gives the start of a region of so many bytes; that of the latents is still to be set.
    pub(super) fn new(graph: &Graph, steps: &LoopSteps, region: &mut impl FnMut(usize) -> usize) -> Self {
        let sample = graph.node(graph.inputs[0].1);
        let rows = sample.shape[0];
        let len = sample.len() / rows;
        Self {
            counter: region(8),
            guidance: region(8),
            table: region(steps.max_steps * size_of::<StepCoefficients>()),
            latents: 0,
            history: region(len * 4),
            noise: region(if steps.noise { steps.max_steps * len * 4 } else { 0 }),
            first: region(rows * len * 4),
            moments: region(len.div_ceil(CHUNK) * 16),
            len,
            rows,
        }
    }
}

/// Whether a graph is what a sampler goes around.
pub(super) fn check(graph: &Graph, steps: &LoopSteps) -> Result<()> {
    let bad = |what: &str| Err(Error::Graph(format!("a sampler's graph: {what}")));
    let (Some((_, sample)), [(_, output)]) = (graph.inputs.first(), graph.outputs.as_slice()) else {
        return bad("latents and one output are needed");
    };
    let shape = &graph.node(*sample).shape;
    if *shape != graph.node(*output).shape || !matches!(shape.first(), Some(1 | 2)) {
        return bad("the output must be as large as the latents, of one row or two");
    }
    if steps.max_steps == 0 || steps.max_steps > i32::MAX as usize || steps.varying.start == 0 {
        return bad("at least one step is needed, and the latents are not given for each");
    }
    if steps.varying.end > graph.inputs.len() {
        return bad("more inputs vary than there are");
    }
    Ok(())
}

impl Lowering<'_> {
    /// What is given goes into `once`; a step is the model's input, the graph, guidance and step, and the counter.
    pub(super) fn lower_denoise_loop(&mut self, steps: &LoopSteps) -> Result<()> {
        self.given()?;
        self.once = std::mem::take(&mut self.steps);
        let state = self.regions.state;
        let at = |place: usize| Pointer(self.bases.work + place as u64);
        let latents = Pointer(self.kept(state.latents));
        let (n, most) = (int(state.len), int(steps.max_steps));
        let negative = if state.rows == 2 { long(state.len) } else { 0 };
        let input = ModelInputParams {
            x: latents,
            out: Pointer(self.place(self.graph.inputs[0].1)),
            table: at(state.table),
            step: at(state.counter),
            image_stride: long(state.len),
            negative,
            n,
            steps: most,
        };
        let step = StepParams {
            x: latents,
            output: Pointer(self.kept(self.regions.outputs + self.bindings.outputs[0] * 4)),
            history: at(state.history),
            noise: if steps.noise { at(state.noise) } else { Pointer(0) },
            table: at(state.table),
            guidance: at(state.guidance),
            moments: at(state.moments),
            step: at(state.counter),
            not_finite: at(state.counter + 4),
            image_stride: long(state.len),
            negative,
            n,
            images: 1,
            steps: most,
            noise_slots: most,
        };
        let advance = AdvanceParams { step: at(state.counter), progress: Pointer(0) };
        self.launch("model_input", [blocks(state.len, BLOCK), 1, 1], input)?;
        self.nodes()?;
        if negative != 0 {
            self.launch("guidance_moments", [blocks(state.len, CHUNK), 1, 1], step)?;
        }
        self.launch("step", [blocks(state.len, BLOCK), 1, 1], step)?;
        self.launch("step_advance", [1, 1, 1], advance)
    }
}
