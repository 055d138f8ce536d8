//! Outputs.

use crate::callbacks::STAGES;
use crate::edge::{Failure, Outcome, copy};
use crate::image::braid_image;
use crate::pointers::{borrow, element, free, store};
use crate::status::braid_status;
use braid::{Output, PromptChange, ScaleChange};
use std::ffi::c_char;

/// The result of a request; [`Output`] itself, so that a frame's output is a handle as it lies there.
#[repr(transparent)]
pub struct braid_output(pub(crate) Output);

impl braid_output {
    /// An output as a handle that its owner keeps.
    pub(crate) fn of(output: &Output) -> *const Self {
        std::ptr::from_ref(output).cast()
    }
}

fn of_image<T>(values: &[T], index: usize) -> Outcome<&T> {
    element((values, "images"), (index, "index"))
}

fn scale_change(output: &Output, image: usize, index: usize) -> Outcome<&ScaleChange> {
    let changes = element((&output.scale_changes, "images"), (image, "image"))?;
    element((changes, "changes of scales"), (index, "index"))
}

fn prompt_change(output: &Output, image: usize, index: usize) -> Outcome<&PromptChange> {
    let changes = element((&output.prompt_changes, "images"), (image, "image"))?;
    element((changes, "changes of prompts"), (index, "index"))
}

export! {
    fn braid_output_num_images(output: *const braid_output) -> usize {
        Ok(borrow(output, "output")?.0.images.len())
    }

    fn braid_output_image(output: *const braid_output, index: usize) -> *const braid_image {
        Ok(braid_image::of(of_image(&borrow(output, "output")?.0.images, index)?))
    }

    fn braid_output_seed(output: *const braid_output, index: usize, seed: *mut u64) -> braid_status {
        store(seed, *of_image(&borrow(output, "output")?.0.seeds, index)?, "seed")
    }

    fn braid_output_upcast_vae(output: *const braid_output, index: usize, upcast: *mut i32) -> braid_status {
        store(upcast, i32::from(*of_image(&borrow(output, "output")?.0.upcast_vae, index)?), "upcast")
    }

    fn braid_output_seconds(output: *const braid_output, stage: i32, seconds: *mut f64) -> braid_status {
        let output = borrow(output, "output")?;
        let known = usize::try_from(stage).ok().and_then(|at| STAGES.get(at));
        let unknown = || Failure::argument(format!("stage: {stage} given; BRAID_STAGE_TEXT (0) to BRAID_STAGE_DECODE (5) is allowed"));
        let (_, stage) = known.ok_or_else(unknown)?;
        store(seconds, output.0.seconds.get(stage).copied().unwrap_or_default(), "seconds")
    }

    fn braid_output_step_seconds(output: *const braid_output, num_steps: *mut usize) -> *const f64 {
        let seconds = &borrow(output, "output")?.0.step_seconds;
        store(num_steps, seconds.len(), "num_steps")?;
        Ok(seconds.as_ptr())
    }

    fn braid_output_truncated_tokens(output: *const braid_output) -> usize {
        Ok(borrow(output, "output")?.0.truncated_tokens)
    }

    fn braid_output_num_scale_changes(output: *const braid_output, image: usize) -> usize {
        Ok(element((&borrow(output, "output")?.0.scale_changes, "images"), (image, "image"))?.len())
    }

    fn braid_output_scale_change(
        output: *const braid_output,
        image: usize,
        index: usize,
        step: *mut usize,
        adapter: *mut usize,
        scale: *mut f32,
    ) -> braid_status {
        let change = scale_change(&borrow(output, "output")?.0, image, index)?;
        store(step, change.step, "step")?;
        store(adapter, change.adapter, "adapter")?;
        store(scale, change.scales.strength(), "scale")
    }

    fn braid_output_num_prompt_changes(output: *const braid_output, image: usize) -> usize {
        Ok(element((&borrow(output, "output")?.0.prompt_changes, "images"), (image, "image"))?.len())
    }

    fn braid_output_prompt_change(output: *const braid_output, image: usize, index: usize, step: *mut usize) -> braid_status {
        store(step, prompt_change(&borrow(output, "output")?.0, image, index)?.step, "step")
    }

    fn braid_output_prompt_change_prompt(
        output: *const braid_output,
        image: usize,
        index: usize,
        buffer: *mut c_char,
        size: usize,
    ) -> usize {
        copy(&prompt_change(&borrow(output, "output")?.0, image, index)?.prompts.prompt, buffer, size)
    }

    fn braid_output_free(output: *mut braid_output) {
        free(output);
        Ok(())
    }
}
