//! Images.

use crate::edge::{Failure, Outcome};
use crate::pointers::{borrow, free, give, optional_text, slice, text};
use crate::status::{BRAID_OK, braid_status};
use braid::{AlphaMode, Image, PngMetadata};
use std::ffi::c_char;

/// An image; [`Image`] itself, so that an output's images are handles as they lie there.
#[repr(transparent)]
pub struct braid_image(pub(crate) Image);

/// See `BRAID_ALPHA_ON_WHITE` in braid.h.
pub const BRAID_ALPHA_ON_WHITE: i32 = 0;
/// See `BRAID_ALPHA_IGNORE` in braid.h.
pub const BRAID_ALPHA_IGNORE: i32 = 1;

impl braid_image {
    /// An image as a handle that its owner keeps.
    pub(crate) fn of(image: &Image) -> *const Self {
        std::ptr::from_ref(image).cast()
    }
}

fn alpha_mode(alpha: i32) -> Outcome<AlphaMode> {
    match alpha {
        BRAID_ALPHA_ON_WHITE => Ok(AlphaMode::CompositeOnWhite),
        BRAID_ALPHA_IGNORE => Ok(AlphaMode::Ignore),
        _ => Err(Failure::argument(format!(
            "alpha: {alpha} given; BRAID_ALPHA_ON_WHITE ({BRAID_ALPHA_ON_WHITE}) or BRAID_ALPHA_IGNORE ({BRAID_ALPHA_IGNORE}) is allowed"
        ))),
    }
}

export! {
    fn braid_image_new(width: usize, height: usize, rgb: *const u8, rgb_size: usize, image: *mut *mut braid_image) -> braid_status {
        give(image, "image", || {
            let rgb = slice(rgb, rgb_size, "rgb")?;
            Ok(braid_image(Image::new(width, height, rgb.to_vec())?))
        })
    }

    fn braid_image_decode(bytes: *const u8, size: usize, alpha: i32, image: *mut *mut braid_image) -> braid_status {
        give(image, "image", || {
            let bytes = slice(bytes, size, "bytes")?;
            Ok(braid_image(Image::decode(bytes, "bytes", alpha_mode(alpha)?)?))
        })
    }

    fn braid_image_open(path: *const c_char, alpha: i32, image: *mut *mut braid_image) -> braid_status {
        give(image, "image", || Ok(braid_image(Image::open(text(path, "path")?, alpha_mode(alpha)?)?)))
    }

    fn braid_image_width(image: *const braid_image) -> usize {
        Ok(borrow(image, "image")?.0.width())
    }

    fn braid_image_height(image: *const braid_image) -> usize {
        Ok(borrow(image, "image")?.0.height())
    }

    fn braid_image_rgb(image: *const braid_image) -> *const u8 {
        Ok(borrow(image, "image")?.0.rgb().as_ptr())
    }

    fn braid_image_save(image: *const braid_image, path: *const c_char) -> braid_status {
        borrow(image, "image")?.0.save(text(path, "path")?)?;
        Ok(BRAID_OK)
    }

    fn braid_image_save_with_metadata(
        image: *const braid_image,
        path: *const c_char,
        parameters: *const c_char,
        braid: *const c_char,
    ) -> braid_status {
        let owned = |pointer, name| Ok::<_, Failure>(optional_text(pointer, name)?.map(str::to_owned));
        let metadata = PngMetadata { parameters: owned(parameters, "parameters")?, braid: owned(braid, "braid")? };
        borrow(image, "image")?.0.save_with_metadata(text(path, "path")?, &metadata)?;
        Ok(BRAID_OK)
    }

    fn braid_image_free(image: *mut braid_image) {
        free(image);
        Ok(())
    }
}
