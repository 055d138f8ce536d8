//! Outputs.

use crate::callbacks::STAGES;
use crate::edge::{Failure, Outcome};
use crate::image::braid_image;
use crate::pointers::{borrow, free, store};
use crate::status::braid_status;
use braid::Output;

/// The result of a request.
pub struct braid_output(pub(crate) Output);

fn of_image<T>(values: &[T], index: usize) -> Outcome<&T> {
    let outside = || Failure::argument(format!("index: {index} given; there are {} images", values.len()));
    values.get(index).ok_or_else(outside)
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

    fn braid_output_truncated_tokens(output: *const braid_output) -> usize {
        Ok(borrow(output, "output")?.0.truncated_tokens)
    }

    fn braid_output_free(output: *mut braid_output) {
        free(output);
        Ok(())
    }
}
