//! Tensor maps: the driver's rules, and the interpreter's form of a map, in which a launch finds it again.

use super::driver::functions;
use super::gpu::violation;
use super::settings::driver_version;
use super::status::*;
use braid_ptx::{Im2col, Swizzle, TensorMap};
use std::ffi::{c_int, c_uint};

/// A map's words.
pub type Words = [u64; 16];

/// The arguments of both calls.
struct Tensor {
    kind: c_int,
    address: u64,
    dims: Vec<u64>,
    strides: Vec<u64>,
    steps: Vec<c_uint>,
    /// Interleaving, swizzle, promotion to L2, and what fills the outside.
    codes: [c_int; 4],
}

impl Tensor {
    /// # Safety
    /// The arrays have as many elements as the rank says, of strides one less.
    unsafe fn new(
        (kind, rank, address): (c_int, c_uint, u64),
        dims: *const u64,
        strides: *const u64,
        steps: *const c_uint,
        codes: [c_int; 4],
    ) -> Self {
        let rank = if (1..=5).contains(&rank) { rank as usize } else { 0 };
        // SAFETY: the caller's promise; of a rank that there is not, nothing is read.
        unsafe {
            let dims = std::slice::from_raw_parts(dims, rank).to_vec();
            let strides = std::slice::from_raw_parts(strides, rank.saturating_sub(1)).to_vec();
            let steps = std::slice::from_raw_parts(steps, rank).to_vec();
            Self { kind, address, dims, strides, steps, codes }
        }
    }

    /// Bytes of an element, and whether it is a float.
    fn element(&self) -> Option<(u8, bool)> {
        Some(match self.kind {
            0 => (1, false),
            1 => (2, false),
            2 | 3 => (4, false),
            4 | 5 => (8, false),
            6 | 9 => (2, true),
            7 | 10..=12 => (4, true),
            8 => (8, true),
            _ => return None,
        })
    }

    fn swizzle(&self) -> Option<(Swizzle, u64)> {
        Some(match self.codes[1] {
            0 => (Swizzle::None, u64::MAX),
            1 => (Swizzle::Bytes32, 32),
            2 => (Swizzle::Bytes64, 64),
            3 => (Swizzle::Bytes128, 128),
            _ => return None,
        })
    }

    /// The rule that is broken, where one is; `inner` is the number of elements of a row in shared memory.
    fn broken(&self, inner: u64) -> Option<String> {
        let (Some((bytes, _)), Some((_, span))) = (self.element(), self.swizzle()) else {
            return Some("codes that are none".into());
        };
        let [interleave, _, promotion, fill] = self.codes;
        let row = inner * u64::from(bytes);
        let uneven = |stride: &&u64| !stride.is_multiple_of(16) || **stride >= 1 << 40;
        if self.dims.is_empty() {
            Some("a rank that is none".into())
        } else if interleave != 0 || !(0..=3).contains(&promotion) || !(0..=1).contains(&fill) {
            Some(format!("codes {:?}", self.codes))
        } else if !self.address.is_multiple_of(16) {
            Some(format!("address {:#x}", self.address))
        } else if let Some(count) = self.dims.iter().find(|count| !(1..=1 << 32).contains(*count)) {
            Some(format!("{count} elements in a dimension"))
        } else if let Some(stride) = self.strides.iter().find(uneven) {
            Some(format!("a stride of {stride} bytes"))
        } else if let Some(step) = self.steps.iter().find(|step| !(1..=8).contains(*step)) {
            Some(format!("an element stride of {step}"))
        } else if !row.is_multiple_of(16) || row > span {
            Some(format!("rows of {row} bytes, swizzled over {span}"))
        } else {
            None
        }
    }

    /// Writes a map.
    fn encode(&self, inner: u64, map: TensorMap, to: *mut Words) -> Result<(), c_int> {
        let refuse = |what: String| Err(violation(INVALID_VALUE, &format!("a tensor map with {what}")));
        if !(to as usize).is_multiple_of(64) {
            return refuse(format!("its place at {to:?}"));
        }
        if let Some(what) = self.broken(inner) {
            return refuse(what);
        }
        let (Some((bytes, float)), Some((swizzle, _))) = (self.element(), self.swizzle()) else {
            return Err(INVALID_VALUE);
        };
        let mut map = map.with_elements(bytes, float);
        map.steps = self.steps.iter().map(|step| *step as u8).collect();
        map.swizzle = swizzle;
        map.nan = self.codes[3] == 1;
        let bytes_of_map = map.to_bytes();
        let word = |i: usize| u64::from_le_bytes(std::array::from_fn(|j| bytes_of_map[8 * i + j]));
        let mut words: Words = std::array::from_fn(word);
        let outer = self.dims.iter().skip(1).zip(&self.strides).map(|(count, stride)| (count - 1) * stride);
        // Drivers up to CUDA 13.1 set a bit too many in the maps of tensors below 128 KiB; here it makes the inner dimension longer.
        if driver_version() <= 13_010 && self.dims[0] * u64::from(bytes) + outer.sum::<u64>() < 128 << 10 {
            words[1] |= 1 << 21;
        }
        // SAFETY: the caller gives a place for a map.
        unsafe { *to = words };
        Ok(())
    }
}

functions! {
    cuTensorMapEncodeTiled(map: *mut Words, kind: c_int, rank: c_uint, address: u64, dims: *const u64, strides: *const u64,
                           tile: *const c_uint, steps: *const c_uint, interleave: c_int, swizzle: c_int, promotion: c_int,
                           fill: c_int) {
        let codes = [interleave, swizzle, promotion, fill];
        let tensor = Tensor::new((kind, rank, address), dims, strides, steps, codes);
        let tile = std::slice::from_raw_parts(tile, tensor.dims.len());
        if let Some(count) = tile.iter().find(|count| !(1..=256).contains(*count)) {
            return violation(INVALID_VALUE, &format!("a tensor map with a box of {count} elements in a dimension"));
        }
        let made = TensorMap::tiled(address, &tensor.dims, &tensor.strides, tile);
        tensor.encode(tile.first().map_or(0, |count| u64::from(*count)), made, map).err().unwrap_or(SUCCESS)
    }
    cuTensorMapEncodeIm2col(map: *mut Words, kind: c_int, rank: c_uint, address: u64, dims: *const u64, strides: *const u64,
                            lower: *const c_int, upper: *const c_int, channels: c_uint, pixels: c_uint, steps: *const c_uint,
                            interleave: c_int, swizzle: c_int, promotion: c_int, fill: c_int) {
        let codes = [interleave, swizzle, promotion, fill];
        let tensor = Tensor::new((kind, rank, address), dims, strides, steps, codes);
        if !(3..=5).contains(&rank) || !(1..=256).contains(&channels) || !(1..=1024).contains(&pixels) {
            let what = format!("a tensor map of rank {rank} with {channels} channels of {pixels} pixels");
            return violation(INVALID_VALUE, &what);
        }
        let spatial = rank as usize - 2;
        let [lower, upper] = [lower, upper].map(|corner| std::slice::from_raw_parts(corner, spatial));
        let half = [1 << 15, 1 << 7, 1 << 4][spatial - 1];
        if let Some(corner) = lower.iter().chain(upper).find(|corner| !(-half..half).contains(*corner)) {
            return violation(INVALID_VALUE, &format!("a tensor map with a corner of {corner}"));
        }
        let corners = |from: &[c_int]| std::array::from_fn(|i| from.get(i).map_or(0, |corner| *corner as i16));
        let rows = Im2col {
            lower: corners(lower), upper: corners(upper), channels: channels as u16, pixels: pixels as u16,
        };
        let made = TensorMap::im2col(address, &tensor.dims, &tensor.strides, rows);
        tensor.encode(channels.into(), made, map).err().unwrap_or(SUCCESS)
    }
}
