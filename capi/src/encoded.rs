//! Images that were encoded for an adapter.

use crate::pointers::{borrow, free, give, text};
use crate::status::{BRAID_OK, braid_status};
use braid::EncodedImage;
use std::ffi::c_char;

/// Images that were encoded together.
pub struct braid_encoded_images(pub(crate) Vec<EncodedImage>);

export! {
    fn braid_encoded_images_load(path: *const c_char, encoded: *mut *mut braid_encoded_images) -> braid_status {
        give(encoded, "encoded", || Ok(braid_encoded_images(EncodedImage::load(text(path, "path")?)?)))
    }

    fn braid_encoded_images_save(encoded: *const braid_encoded_images, path: *const c_char) -> braid_status {
        EncodedImage::save(&borrow(encoded, "encoded")?.0, text(path, "path")?)?;
        Ok(BRAID_OK)
    }

    fn braid_encoded_images_count(encoded: *const braid_encoded_images) -> usize {
        Ok(borrow(encoded, "encoded")?.0.len())
    }

    fn braid_encoded_images_free(encoded: *mut braid_encoded_images) {
        free(encoded);
        Ok(())
    }
}
