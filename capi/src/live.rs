//! Scales and prompts that change while images are drawn.

use crate::edge::Outcome;
use crate::pointers::{borrow, free, optional_text};
use crate::status::{BRAID_OK, braid_status};
use braid::{LivePrompts, LiveScales, PreparedPrompts, Scales};
use std::ffi::c_char;

/// A handle by which scales are set.
pub struct braid_live_scales(pub(crate) LiveScales);
/// A handle by which prompts are exchanged.
pub struct braid_live_prompts(pub(crate) LivePrompts);
/// Prompts and references that are encoded.
pub struct braid_prepared_prompts(pub(crate) PreparedPrompts);

/// The scales that a factor and a text make.
///
/// # Errors
/// [`crate::edge::Failure`].
///
/// # Safety
/// `blocks` is as braid.h asks for.
pub(crate) unsafe fn scales(scale: f32, blocks: *const c_char) -> Outcome<Scales> {
    // SAFETY: as the caller promises.
    let blocks = unsafe { optional_text(blocks, "blocks") }?;
    Ok(Scales::parse(blocks.unwrap_or("full"), scale)?)
}

export! {
    fn braid_live_scales_new() -> *mut braid_live_scales {
        Ok(Box::into_raw(Box::new(braid_live_scales(LiveScales::new()))))
    }

    fn braid_live_scales_set(live: *const braid_live_scales, adapter: usize, scale: f32, blocks: *const c_char) -> braid_status {
        borrow(live, "live")?.0.set(adapter, scales(scale, blocks)?)?;
        Ok(BRAID_OK)
    }

    fn braid_live_scales_free(live: *mut braid_live_scales) {
        free(live);
        Ok(())
    }

    fn braid_live_prompts_new() -> *mut braid_live_prompts {
        Ok(Box::into_raw(Box::new(braid_live_prompts(LivePrompts::new()))))
    }

    fn braid_live_prompts_set(live: *const braid_live_prompts, prompts: *const braid_prepared_prompts) -> braid_status {
        borrow(live, "live")?.0.set(&borrow(prompts, "prompts")?.0);
        Ok(BRAID_OK)
    }

    fn braid_live_prompts_free(live: *mut braid_live_prompts) {
        free(live);
        Ok(())
    }

    fn braid_prepared_prompts_free(prompts: *mut braid_prepared_prompts) {
        free(prompts);
        Ok(())
    }
}
