//! Images that were encoded for an adapter.

use crate::edge::Outcome;
use crate::pointers::{borrow, element, free, give, store, text};
use crate::status::{BRAID_OK, braid_status};
use braid::EncodedImage;
use std::ffi::c_char;

/// Images that were encoded together.
pub struct braid_encoded_images(pub(crate) Vec<EncodedImage>);

impl braid_encoded_images {
    fn at(&self, index: usize) -> Outcome<&EncodedImage> {
        element((&self.0, "images"), (index, "index"))
    }
}

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

    fn braid_encoded_images_embedding(encoded: *const braid_encoded_images, index: usize, num_values: *mut usize) -> *const f32 {
        let values = borrow(encoded, "encoded")?.at(index)?.embedding();
        store(num_values, values.len(), "num_values")?;
        Ok(values.as_ptr())
    }

    fn braid_encoded_images_num_tokens(encoded: *const braid_encoded_images, index: usize) -> usize {
        Ok(borrow(encoded, "encoded")?.at(index)?.num_tokens())
    }

    fn braid_encoded_images_source_size(
        encoded: *const braid_encoded_images,
        index: usize,
        width: *mut usize,
        height: *mut usize,
    ) -> braid_status {
        let size = borrow(encoded, "encoded")?.at(index)?.source_size();
        store(width, size.0, "width")?;
        store(height, size.1, "height")
    }

    fn braid_encoded_images_free(encoded: *mut braid_encoded_images) {
        free(encoded);
        Ok(())
    }
}
