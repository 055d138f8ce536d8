//! Maps of where each reference acted.

use crate::edge::copy;
use crate::image::braid_image;
use crate::output::braid_output;
use crate::pointers::{borrow, element, give};
use crate::status::braid_status;
use braid::AttributionMap;
use std::ffi::c_char;

/// A map; [`AttributionMap`] itself, so that an output's maps are handles as they lie there.
#[repr(transparent)]
pub struct braid_attribution_map(AttributionMap);

impl braid_attribution_map {
    /// A map as a handle that its owner keeps.
    fn of(map: &AttributionMap) -> *const Self {
        std::ptr::from_ref(map).cast()
    }
}

export! {
    fn braid_output_num_attributions(output: *const braid_output) -> usize {
        Ok(borrow(output, "output")?.0.attributions.len())
    }

    fn braid_output_attribution(output: *const braid_output, index: usize) -> *const braid_attribution_map {
        let maps = &borrow(output, "output")?.0.attributions;
        Ok(braid_attribution_map::of(element((maps, "maps"), (index, "index"))?))
    }

    fn braid_attribution_map_image(map: *const braid_attribution_map) -> usize {
        Ok(borrow(map, "map")?.0.image)
    }

    fn braid_attribution_map_adapter(map: *const braid_attribution_map) -> usize {
        Ok(borrow(map, "map")?.0.adapter)
    }

    fn braid_attribution_map_reference(map: *const braid_attribution_map) -> usize {
        Ok(borrow(map, "map")?.0.reference)
    }

    fn braid_attribution_map_group(map: *const braid_attribution_map, buffer: *mut c_char, size: usize) -> usize {
        copy(&borrow(map, "map")?.0.group, buffer, size)
    }

    fn braid_attribution_map_width(map: *const braid_attribution_map) -> usize {
        Ok(borrow(map, "map")?.0.width)
    }

    fn braid_attribution_map_height(map: *const braid_attribution_map) -> usize {
        Ok(borrow(map, "map")?.0.height)
    }

    fn braid_attribution_map_values(map: *const braid_attribution_map) -> *const f32 {
        Ok(borrow(map, "map")?.0.values.as_ptr())
    }

    fn braid_attribution_map_heat_map(
        map: *const braid_attribution_map,
        width: usize,
        height: usize,
        most: f32,
        image: *mut *mut braid_image,
    ) -> braid_status {
        give(image, "image", || Ok(braid_image(borrow(map, "map")?.0.heat_map(width, height, most)?)))
    }
}
