//! The work around a model: its input at each step, guidance and the scheduler's step, pixels, the check for finite values.

use super::bindings::Bindings;
use super::kernel::{KernelFile, Pointer, blocks, kernel, param_structs, to_i32, to_i64};
use super::lowering::Lowering;
use super::memory_layout::{ImageLayout, LoopState, REGION};
use crate::device::cuda::driver::command::Command;
use crate::device::cuda::driver::kernel::{
    Kernel,
    Types::{All, F32, Halves},
};
use crate::device::denoise_loop::LatentSize;
use crate::device::{LoopSpec, PixelRounding, RowAxis};
use crate::error::Result;
use crate::graph::Graph;
use crate::schedulers::{HISTORY, NoiseLevel, PackedStepCoefficients};
use crate::tensor::DType;

param_structs! {
    /// An image's state from step to step.
    ImageState: 96 {
        x: Pointer = 0,
        history: Pointer = 8,
        noise: Pointer = 16,
        table: Pointer = 24,
        guidance: Pointer = 32,
        kept: Pointer = 40,
        kept_levels: Pointer = 48,
        extra: Pointer = 56,
        varying: Pointer = 64,
        step: Pointer = 72,
        first: i32 = 80,
        rows: i32 = 84,
        held: i32 = 88,
        steps: i32 = 92,
    }

    /// An input that varies from step to step.
    VaryingInput: 24 {
        at: i64 = 0,
        start: i32 = 8,
        width: i32 = 12,
        last: i32 = 16,
        reserved: i32 = 20,
    }

    /// Parameters of `model_input`.
    ModelInputParams: 32 {
        images: Pointer = 0,
        out: Pointer = 8,
        n: i32 = 16,
        channels: i32 = 20,
        extra_channels: i32 = 24,
        reserved: i32 = 28,
    }

    /// Parameters of `step_inputs`.
    StepInputsParams: 48 {
        images: Pointer = 0,
        inputs: Pointer = 8,
        floats: Pointer = 16,
        converted: Pointer = 24,
        converted_count: i64 = 32,
        count: i32 = 40,
        rows: i32 = 44,
    }

    /// Parameters of `guidance_moments` and `step`.
    StepParams: 32 {
        images: Pointer = 0,
        output: Pointer = 8,
        moments: Pointer = 16,
        n: i32 = 24,
        reserved: i32 = 28,
    }

    /// Parameters of `step_advance`.
    AdvanceParams: 8 {
        images: Pointer = 0,
    }

    /// Parameters of `rgb8`.
    Rgb8Params: 32 {
        x: Pointer = 0,
        out: Pointer = 8,
        count: i64 = 16,
        truncate: i32 = 24,
        reserved: i32 = 28,
    }

    /// Parameters of `finite`.
    FiniteParams: 32 {
        x: Pointer = 0,
        flag: Pointer = 8,
        count: i64 = 16,
        value: i32 = 24,
        reserved: i32 = 28,
    }
}

static MODEL_INPUT: Kernel = kernel::<ModelInputParams>("step", "model_input", Halves, 256, 0);
static STEP_INPUTS: Kernel = kernel::<StepInputsParams>("step", "step_inputs", Halves, 256, 0);
static GUIDANCE_MOMENTS: Kernel = kernel::<StepParams>("step", "guidance_moments", F32, 256, 0);
static STEP: Kernel = kernel::<StepParams>("step", "step", F32, 256, 0);
static STEP_ADVANCE: Kernel = kernel::<AdvanceParams>("step", "step_advance", F32, 1, 0);
static RGB8: Kernel = kernel::<Rgb8Params>("step", "rgb8", F32, 256, 0);
static FINITE: Kernel = kernel::<FiniteParams>("step", "finite", All, 256, 0);

/// The kernel file.
pub(crate) static FILE: KernelFile = KernelFile {
    kernels: &[&MODEL_INPUT, &STEP_INPUTS, &GUIDANCE_MOMENTS, &STEP, &STEP_ADVANCE, &RGB8, &FINITE],
    structs: STRUCTS,
};

/// The parts of what an inpainting keeps: mask, image latents, noise.
const KEPT_PARTS: usize = 3;
/// Elements whose moments a block of `guidance_moments` takes.
const MOMENTS_BLOCK: usize = 2048;
/// Elements of a block of the other kernels.
const BLOCK: usize = 1024;
/// Each byte of the flag until something is not finite; the flag is 0 then.
const ALL_FINITE: u8 = 0x7f;

/// The most rows of an image.
const IMAGE_ROWS: usize = 2;

/// The widths of a row of the inputs that vary from step to step.
fn varying_widths(graph: &Graph, steps: &LoopSpec) -> impl Iterator<Item = usize> {
    let rows = LatentSize::of(graph).rows;
    steps.varying.clone().map(move |k| graph.node(graph.inputs[k].1).len() / rows)
}

/// Places what a loop needs with `region`, which gives the start of a region of so many bytes.
pub(crate) fn loop_state(graph: &Graph, steps: &LoopSpec, region: &mut impl FnMut(usize) -> usize) -> LoopState {
    let LatentSize { rows, n: len, sample, channels } = LatentSize::of(graph);
    LoopState {
        images: region(rows * size_of::<ImageState>()),
        varying: region(steps.varying.len() * size_of::<VaryingInput>()),
        moments: region(rows * len.div_ceil(MOMENTS_BLOCK) * 16),
        len,
        sample,
        channels,
        rows,
        image: image_layout(graph, steps),
        held: rows.div_ceil(steps.image_rows.clamp(1, IMAGE_ROWS)),
    }
}

/// Lays out the memory of an image.
fn image_layout(graph: &Graph, steps: &LoopSpec) -> ImageLayout {
    let LatentSize { n: len, sample, .. } = LatentSize::of(graph);
    let mut bytes = 0;
    let mut region = |size: usize| {
        let start = bytes;
        bytes += size.next_multiple_of(REGION);
        start
    };
    let layout = ImageLayout {
        counter: region(8),
        guidance: region(8),
        table: region(steps.max_steps * size_of::<PackedStepCoefficients>()),
        kept_levels: region(steps.max_steps * size_of::<NoiseLevel>()),
        extra: region((sample - len) * 4),
        latents: region(len * 4),
        history: region(HISTORY * len * 4),
        noise: steps.noise.then(|| region(steps.max_steps * len * 4)),
        kept: region(KEPT_PARTS * len * 4),
        first: region(IMAGE_ROWS * len * 4),
        varying: region(steps.max_steps * IMAGE_ROWS * varying_widths(graph, steps).sum::<usize>() * 4),
        bytes: 0,
    };
    ImageLayout { bytes, ..layout }
}

/// Describes the inputs that vary from step to step, for `step_inputs`.
pub(crate) fn varying_inputs(graph: &Graph, steps: &LoopSpec, bindings: &Bindings) -> Vec<VaryingInput> {
    let mut start = 0;
    let inputs = steps.varying.clone().zip(varying_widths(graph, steps));
    inputs
        .map(|(k, width)| {
            // An input that nothing reads has no place.
            let at = bindings.inputs[k].float;
            let input = VaryingInput {
                at: to_i64(at.unwrap_or(0)),
                start: to_i32(start),
                width: if at.is_some() { to_i32(width) } else { 0 },
                last: i32::from(steps.row_axis(k) == RowAxis::Last),
                reserved: 0,
            };
            start += width;
            input
        })
        .collect()
}

/// Scales each image's latents to its rows of the model's input.
pub(crate) fn model_input(l: &mut Lowering<'_>) -> Result<()> {
    let state = l.regions.state;
    let [channels, wide] = state.channels;
    let params = ModelInputParams {
        images: Pointer(l.work(state.images)),
        out: Pointer(l.place(l.graph.inputs[0].1)),
        n: to_i32(state.sample),
        channels: to_i32(channels),
        extra_channels: to_i32(wide - channels),
        reserved: 0,
    };
    l.launch(&MODEL_INPUT, [blocks(state.sample, BLOCK), blocks(state.rows, 1), 1], params)
}

/// Puts each row's values of its image's step into the inputs that vary.
pub(crate) fn step_inputs(l: &mut Lowering<'_>, steps: &LoopSpec) -> Result<()> {
    let (state, count) = (l.regions.state, steps.varying.len());
    if count == 0 {
        return Ok(());
    }
    let at = |place: usize| Pointer(l.work(place));
    let params = StepInputsParams {
        images: at(state.images),
        inputs: at(state.varying),
        floats: at(l.regions.inputs),
        converted: at(l.regions.converted),
        converted_count: to_i64(l.bindings.converted),
        count: to_i32(state.rows),
        rows: to_i32(state.rows),
    };
    l.launch(&STEP_INPUTS, [blocks(count, 1), blocks(state.rows, 1), 1], params)
}

/// Guides, takes each image's step, and counts it.
pub(crate) fn scheduler_step(l: &mut Lowering<'_>) -> Result<()> {
    let state = l.regions.state;
    let images = Pointer(l.work(state.images));
    let params = StepParams {
        images,
        output: Pointer(l.kept(l.regions.outputs + l.bindings.outputs[0] * 4)),
        moments: Pointer(l.work(state.moments)),
        n: to_i32(state.len),
        reserved: 0,
    };
    let rows = blocks(state.rows, 1);
    if state.rows >= IMAGE_ROWS {
        l.launch(&GUIDANCE_MOMENTS, [blocks(state.len, MOMENTS_BLOCK), rows, 1], params)?;
    }
    l.launch(&STEP, [blocks(state.len, BLOCK), rows, 1], params)?;
    l.launch(&STEP_ADVANCE, [rows, 1, 1], AdvanceParams { images })
}

/// Notes whether all outputs are finite.
pub(crate) fn check_finite(l: &mut Lowering<'_>) -> Result<()> {
    let [x, flag] = [l.regions.outputs, l.regions.flag].map(|at| l.kept(at));
    // What lies between outputs is zero for ever.
    let count = l.bindings.results;
    l.commands.push(Command::Memset(flag, 4, ALL_FINITE));
    let params = FiniteParams { x: Pointer(x), flag: Pointer(flag), count: to_i64(count), value: 0, reserved: 0 };
    l.commands.push(Command::Launch(FINITE.launch(DType::F32, [blocks(count, BLOCK), 1, 1], params)?));
    Ok(())
}

/// Turns the first output into pixels, rounded down or to the nearest.
pub(crate) fn to_rgb8(l: &mut Lowering<'_>, rounding: PixelRounding) -> Result<()> {
    let Some((_, id)) = l.graph.outputs.first() else { return Ok(()) };
    let count = l.graph.node(*id).len();
    let [x, out] = [l.regions.outputs + l.bindings.outputs[0] * 4, l.regions.pixels].map(|at| l.kept(at));
    let params = Rgb8Params {
        x: Pointer(x),
        out: Pointer(out),
        count: to_i64(count),
        truncate: i32::from(rounding == PixelRounding::Truncate),
        reserved: 0,
    };
    l.launch(&RGB8, [blocks(count, BLOCK), 1, 1], params)
}
