//! The work around a model: its input at each step, guidance and the scheduler's step, pixels, the check for finite values.

use super::kernel::{KernelFile, Pointer, blocks, kernel, param_structs, to_i32, to_i64};
use super::lowering::Lowering;
use super::memory_layout::LoopState;
use crate::device::cuda::driver::command::Command;
use crate::device::cuda::driver::kernel::{
    Kernel,
    Types::{All, F32, Halves},
};
use crate::device::denoise_loop::LatentSize;
use crate::device::{LoopSpec, PixelRounding};
use crate::error::Result;
use crate::graph::Graph;
use crate::schedulers::{HISTORY, NoiseLevel, PackedStepCoefficients};
use crate::tensor::DType;

param_structs! {
    /// Parameters of `model_input`.
    ModelInputParams: 72 {
        x: Pointer = 0,
        out: Pointer = 8,
        table: Pointer = 16,
        step: Pointer = 24,
        image_stride: i64 = 32,
        negative: i64 = 40,
        n: i32 = 48,
        steps: i32 = 52,
        extra: Pointer = 56,
        channels: i32 = 64,
        extra_channels: i32 = 68,
    }

    /// Parameters of `guidance_moments` and `step`.
    StepParams: 120 {
        x: Pointer = 0,
        output: Pointer = 8,
        history: Pointer = 16,
        noise: Pointer = 24,
        table: Pointer = 32,
        guidance: Pointer = 40,
        moments: Pointer = 48,
        step: Pointer = 56,
        not_finite: Pointer = 64,
        image_stride: i64 = 72,
        negative: i64 = 80,
        n: i32 = 88,
        images: i32 = 92,
        steps: i32 = 96,
        noise_slots: i32 = 100,
        kept: Pointer = 104,
        kept_levels: Pointer = 112,
    }

    /// Parameters of `step_advance`.
    AdvanceParams: 16 {
        step: Pointer = 0,
        progress: Pointer = 8,
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
static GUIDANCE_MOMENTS: Kernel = kernel::<StepParams>("step", "guidance_moments", F32, 256, 0);
static STEP: Kernel = kernel::<StepParams>("step", "step", F32, 256, 0);
static STEP_ADVANCE: Kernel = kernel::<AdvanceParams>("step", "step_advance", F32, 1, 0);
static RGB8: Kernel = kernel::<Rgb8Params>("step", "rgb8", F32, 256, 0);
static FINITE: Kernel = kernel::<FiniteParams>("step", "finite", All, 256, 0);

/// The kernel file.
pub(crate) static FILE: KernelFile =
    KernelFile { kernels: &[&MODEL_INPUT, &GUIDANCE_MOMENTS, &STEP, &STEP_ADVANCE, &RGB8, &FINITE], structs: STRUCTS };

/// The parts of what an inpainting keeps: mask, image latents, noise.
const KEPT_PARTS: usize = 3;
/// Elements whose moments a block of `guidance_moments` takes.
const MOMENTS_BLOCK: usize = 2048;
/// Elements of a block of the other kernels.
const BLOCK: usize = 1024;
/// Each byte of the flag until something is not finite; the flag is 0 then.
const ALL_FINITE: u8 = 0x7f;

/// Places a loop's state with `region`, which gives the start of a region of so many bytes; that of the latents is still to be
/// set.
pub(crate) fn loop_state(graph: &Graph, steps: &LoopSpec, region: &mut impl FnMut(usize) -> usize) -> LoopState {
    let LatentSize { rows, n: len, sample, channels } = LatentSize::of(graph);
    LoopState {
        counter: region(8),
        guidance: region(8),
        table: region(steps.max_steps * size_of::<PackedStepCoefficients>()),
        kept_levels: region(steps.max_steps * size_of::<NoiseLevel>()),
        extra: region((sample - len) * 4),
        latents: 0,
        history: region(HISTORY * len * 4),
        noise: region(if steps.noise { steps.max_steps * len * 4 } else { 0 }),
        kept: region(KEPT_PARTS * len * 4),
        first: region(rows * len * 4),
        moments: region(len.div_ceil(MOMENTS_BLOCK) * 16),
        len,
        sample,
        channels,
        rows,
    }
}

/// Elements from the positive row to the negative one, where a row has `len`; 0 where there is none.
fn negative(state: &LoopState, len: usize) -> i64 {
    if state.rows == 2 { to_i64(len) } else { 0 }
}

/// Scales the latents to the model's input of this step.
pub(crate) fn model_input(l: &mut Lowering<'_>, steps: &LoopSpec) -> Result<()> {
    let state = l.regions.state;
    let [channels, wide] = state.channels;
    let at = |place: usize| Pointer(l.work(place));
    let params = ModelInputParams {
        x: Pointer(l.kept(state.latents)),
        out: Pointer(l.place(l.graph.inputs[0].1)),
        table: at(state.table),
        step: at(state.counter),
        image_stride: to_i64(state.sample),
        negative: negative(&state, state.sample),
        n: to_i32(state.sample),
        steps: to_i32(steps.max_steps),
        extra: if wide > channels { at(state.extra) } else { Pointer(0) },
        channels: to_i32(channels),
        extra_channels: to_i32(wide - channels),
    };
    l.launch(&MODEL_INPUT, [blocks(state.sample, BLOCK), 1, 1], params)
}

/// Guides, takes the scheduler's step, and counts it.
pub(crate) fn scheduler_step(l: &mut Lowering<'_>, steps: &LoopSpec) -> Result<()> {
    let state = l.regions.state;
    let at = |place: usize| Pointer(l.work(place));
    let (negative, max_steps) = (negative(&state, state.len), to_i32(steps.max_steps));
    let params = StepParams {
        x: Pointer(l.kept(state.latents)),
        output: Pointer(l.kept(l.regions.outputs + l.bindings.outputs[0] * 4)),
        history: at(state.history),
        noise: if steps.noise { at(state.noise) } else { Pointer(0) },
        table: at(state.table),
        guidance: at(state.guidance),
        moments: at(state.moments),
        step: at(state.counter),
        not_finite: at(state.counter + 4),
        image_stride: to_i64(state.len),
        negative,
        n: to_i32(state.len),
        images: 1,
        steps: max_steps,
        noise_slots: max_steps,
        kept: at(state.kept),
        kept_levels: at(state.kept_levels),
    };
    let advance = AdvanceParams { step: at(state.counter), progress: Pointer(0) };
    if negative != 0 {
        l.launch(&GUIDANCE_MOMENTS, [blocks(state.len, MOMENTS_BLOCK), 1, 1], params)?;
    }
    l.launch(&STEP, [blocks(state.len, BLOCK), 1, 1], params)?;
    l.launch(&STEP_ADVANCE, [1, 1, 1], advance)
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
