//! The tiles of Winograd's F(4x4, 3x3) and their transforms: inputs, weights, and sums back to results.

use super::pointwise::nearest;
use crate::device::cpu::microkernel::{MR, NR, TILE};
#[cfg(target_arch = "x86_64")]
use crate::device::cpu::simd::{Isa, isa};
use crate::graph::Conv2dParams;
use std::ops::Range;

/// Results of a tile along a side.
pub(crate) const OUT: usize = 4;
/// Inputs of a tile along a side.
const IN: usize = 6;
/// Products of a tile.
pub(crate) const POINTS: usize = IN * IN;
/// The tiles of a convolution. A stripe is the tiles side by side across an image.
pub(crate) struct Tiles {
    /// For each row of the tiles' inputs the row of the source, or none where it lies in the padding; then the same for columns.
    y: Vec<Option<u32>>,
    x: Vec<Option<u32>>,
    /// Height and width of the sources and of the result.
    source: [usize; 2],
    result: [usize; 2],
    /// Stripes of an image, and tiles of a stripe.
    down: usize,
    across: usize,
}

/// Input channels of up to [`MR`] tiles.
pub(crate) struct TileInputs {
    /// The first of them in the first pixel.
    pub(crate) first: *const f32,
    /// Channels of the source, and those that are transformed.
    pub(crate) width: usize,
    pub(crate) len: usize,
    /// The tiles, counted from stripe 0 of the first image.
    pub(crate) tiles: Range<usize>,
}

impl Tiles {
    /// The tiles of a convolution from `source` `[N, H, W, C]` to `result` `[N, H', W', O]`.
    pub(crate) fn new(conv: Conv2dParams, source: &[usize], result: &[usize]) -> Self {
        let (h, w) = (source[1], source[2]);
        let (grid_h, grid_w) = conv.resize.unwrap_or((h, w));
        let (down, across) = (result[1].div_ceil(OUT), result[2].div_ceil(OUT));
        let axis = |tiles: usize, grid: usize, source: usize| {
            let at = |i: usize| i.checked_sub(conv.padding[0]).filter(|&i| i < grid);
            (0..tiles * OUT + 2).map(|i| at(i).map(|i| nearest(i, grid, source) as u32)).collect()
        };
        let (y, x) = (axis(down, grid_h, h), axis(across, grid_w, w));
        Self { y, x, source: [h, w], result: [result[1], result[2]], down, across }
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        (self.y.len() + self.x.len()) * 8
    }

    /// Stripes of that many images.
    pub(crate) fn stripes(&self, images: usize) -> usize {
        images * self.down
    }

    /// Tiles of a stripe.
    pub(crate) fn across(&self) -> usize {
        self.across
    }

    /// Results of a whole stripe.
    pub(crate) fn stripe_rows(&self) -> usize {
        OUT * self.result[1]
    }

    /// The result's rows in some stripes.
    pub(crate) fn rows(&self, stripes: Range<usize>) -> Range<usize> {
        let [h, w] = self.result;
        let at = |stripe: usize| (stripe / self.down * h + stripe % self.down * OUT) * w;
        at(stripes.start)..at(stripes.end)
    }

    /// Transforms inputs: `out[(point * MR + tile) * stride + c]`.
    ///
    /// # Safety
    /// The tiles exist and the source has the channels; `zeros` holds as many.
    pub(crate) unsafe fn inputs(&self, inputs: TileInputs, zeros: *const f32, out: &mut [f32], stride: usize) {
        let TileInputs { first, width, len, tiles } = inputs;
        for (t, tile) in tiles.enumerate() {
            let (stripe, tx) = (tile / self.across, tile % self.across);
            let (image, ty) = (stripe / self.down, stripe % self.down);
            let pixel = |r: usize, c: usize| match (self.y[ty * OUT + r], self.x[tx * OUT + c]) {
                (Some(y), Some(x)) => {
                    let pixel = (image * self.source[0] + y as usize) * self.source[1] + x as usize;
                    // SAFETY: the tables hold places inside the source.
                    unsafe { first.add(pixel * width) }
                }
                _ => zeros,
            };
            let pixels: [*const f32; POINTS] = std::array::from_fn(|i| pixel(i / IN, i % IN));
            let (whole, out) = (len / 16 * 16, &mut out[t * stride..]);
            assert!(stride >= len && out.len() >= (POINTS - 1) * MR * stride + len.next_multiple_of(16));
            // SAFETY: the pixels have `len` channels; there is room by the check above.
            unsafe { transform_tile(&pixels, whole, out.as_mut_ptr(), MR * stride) };
            if whole < len {
                let mut last = [[0.0f32; 16]; POINTS];
                for (last, pixel) in last.iter_mut().zip(pixels) {
                    // SAFETY: the rest of the `len` channels.
                    unsafe { last.as_mut_ptr().copy_from_nonoverlapping(pixel.add(whole), len - whole) };
                }
                let pixels = last.each_ref().map(|lanes| lanes.as_ptr());
                // SAFETY: 16 channels of each; there is room for as many.
                unsafe { transform_tile(&pixels, 16, out[whole..].as_mut_ptr(), MR * stride) };
            }
        }
    }

    /// Brings the sums of up to [`MR`] tiles back to results, whose row `begin` is the first of `acc`: `acc[row * NR + j]`, or adds
    /// to what is there.
    pub(crate) fn results(&self, sums: &[f32], tiles: Range<usize>, begin: usize, acc: &mut [f32], add: bool) {
        let [h, w] = self.result;
        for (t, tile) in tiles.enumerate() {
            let (stripe, tx) = (tile / self.across, tile % self.across);
            let ty = stripe % self.down;
            let row = self.rows(stripe..stripe).start + tx * OUT - begin;
            // The tile's part of the image.
            let (high, wide) = (OUT.min(h - ty * OUT), OUT.min(w - tx * OUT));
            assert!(sums.len() >= POINTS * TILE && t < MR && (row + (high - 1) * w + wide) * NR <= acc.len());
            let mut dropped = [0.0; NR];
            let (acc, dropped) = (acc.as_mut_ptr(), dropped.as_mut_ptr());
            let places: [*mut f32; OUT * OUT] = std::array::from_fn(|i| match (i / OUT < high, i % OUT < wide) {
                // SAFETY: inside `acc` by the check above.
                (true, true) => unsafe { acc.add((row + i / OUT * w + i % OUT) * NR) },
                _ => dropped,
            });
            // SAFETY: 36 tiles of sums, and room for a row at each place.
            unsafe { restore_tile(sums[t * NR..].as_ptr(), &places, add) };
        }
    }
}

/// Defines the transforms in a module, on `Lanes` of consecutive elements and for the features of `$attribute`: closures have the
/// features of the function around them, so that all of it is inlined.
macro_rules! transforms {
    ($name:ident [$(#[$attribute:meta])?] $($operation:item)*) => {
        mod $name {
            use crate::device::cpu::ops::winograd_tiles::{IN, OUT, POINTS};
            use crate::device::cpu::microkernel::{NR, TILE};

            $($operation)*

            /// The inputs' transform along one side.
            $(#[$attribute])?
            #[inline]
            fn forward([d0, d1, d2, d3, d4, d5]: [Lanes; IN]) -> [Lanes; IN] {
                let (even, odd) = (add(d4, -4.0, d2), add(d3, -4.0, d1));
                let (even_2, odd_2) = (add(d4, -1.0, d2), add(d3, -1.0, d1));
                [
                    add(add(d4, -5.0, d2), 4.0, d0),
                    add(even, 1.0, odd),
                    add(even, -1.0, odd),
                    add(even_2, 2.0, odd_2),
                    add(even_2, -2.0, odd_2),
                    add(add(d5, -5.0, d3), 4.0, d1),
                ]
            }

            /// The results' transform along one side.
            $(#[$attribute])?
            #[inline]
            fn back([m0, m1, m2, m3, m4, m5]: [Lanes; IN]) -> [Lanes; OUT] {
                let (even, odd) = (add(m1, 1.0, m2), add(m1, -1.0, m2));
                let (even_2, odd_2) = (add(m3, 1.0, m4), add(m3, -1.0, m4));
                [
                    add(add(m0, 1.0, even), 1.0, even_2),
                    add(odd, 2.0, odd_2),
                    add(even, 4.0, even_2),
                    add(add(odd, 8.0, odd_2), 1.0, m5),
                ]
            }

            /// The weights' transform along one side.
            $(#[$attribute])?
            #[inline]
            fn spread([a, b, c]: [Lanes; 3]) -> [Lanes; IN] {
                let zero = add(a, -1.0, a);
                let outer = add(add(zero, -1.0 / 6.0, a), -1.0 / 6.0, c);
                let outer_2 = add(add(zero, 1.0 / 24.0, a), 1.0 / 6.0, c);
                [
                    add(zero, 0.25, a),
                    add(outer, -1.0 / 6.0, b),
                    add(outer, 1.0 / 6.0, b),
                    add(outer_2, 1.0 / 12.0, b),
                    add(outer_2, -1.0 / 12.0, b),
                    c,
                ]
            }

            /// # Safety
            /// As [`super::transform_tile`].
            $(#[$attribute])?
            pub(super) unsafe fn tile(pixels: &[*const f32; POINTS], len: usize, out: *mut f32, stride: usize) {
                for c in (0..len).step_by(COUNT) {
                    // SAFETY: the caller's promise.
                    unsafe {
                        let rows: [[Lanes; IN]; IN] = std::array::from_fn(|r| {
                            forward(std::array::from_fn(|i| load(pixels[r * IN + i].add(c))))
                        });
                        for x in 0..IN {
                            let column = forward(std::array::from_fn(|r| rows[r][x]));
                            for y in 0..IN {
                                store(out.add((y * IN + x) * stride + c), column[y]);
                            }
                        }
                    }
                }
            }

            /// # Safety
            /// As [`super::restore_tile`].
            $(#[$attribute])?
            pub(super) unsafe fn restore(sums: *const f32, out: &[*mut f32; OUT * OUT], more: bool) {
                for j in (0..NR).step_by(COUNT) {
                    // SAFETY: the caller's promise.
                    unsafe {
                        let rows: [[Lanes; OUT]; IN] = std::array::from_fn(|r| {
                            back(std::array::from_fn(|i| load(sums.add((r * IN + i) * TILE + j))))
                        });
                        for x in 0..OUT {
                            let column = back(std::array::from_fn(|r| rows[r][x]));
                            for y in 0..OUT {
                                let to = out[y * OUT + x].add(j);
                                store(to, if more { add(load(to), 1.0, column[y]) } else { column[y] });
                            }
                        }
                    }
                }
            }

            /// # Safety
            /// As [`super::transform_weights`] has checked.
            $(#[$attribute])?
            pub(super) unsafe fn weights(panel: *const f32, len: usize, out: *mut f32, stride: usize) {
                for at in (0..len * NR).step_by(COUNT) {
                    // SAFETY: the caller's promise.
                    unsafe {
                        let rows: [[Lanes; IN]; 3] = std::array::from_fn(|r| {
                            spread(std::array::from_fn(|i| load(panel.add((r * 3 + i) * len * NR + at))))
                        });
                        for x in 0..IN {
                            let column = spread(std::array::from_fn(|r| rows[r][x]));
                            for y in 0..IN {
                                store(out.add((y * IN + x) * stride + at), column[y]);
                            }
                        }
                    }
                }
            }
        }
    };
}

/// Declares what a module does with arrays, which the compiler turns into registers.
macro_rules! transforms_of_arrays {
    ($name:ident $(, #[$attribute:meta])?) => {
        transforms! { $name [$(#[$attribute])?]
            type Lanes = [f32; 8];
            const COUNT: usize = 8;

            /// `a + k * b`.
            #[inline(always)]
            fn add(a: Lanes, k: f32, b: Lanes) -> Lanes {
                let mut sum = a;
                for i in 0..COUNT {
                    sum[i] += k * b[i];
                }
                sum
            }

            #[inline(always)]
            unsafe fn load(from: *const f32) -> Lanes {
                // SAFETY: the caller's promise.
                unsafe { from.cast::<Lanes>().read_unaligned() }
            }

            #[inline(always)]
            unsafe fn store(to: *mut f32, lanes: Lanes) {
                // SAFETY: the caller's promise.
                unsafe { to.cast::<Lanes>().write_unaligned(lanes) }
            }
        }
    };
}

transforms_of_arrays!(portable);
#[cfg(target_arch = "x86_64")]
transforms_of_arrays!(avx2, #[target_feature(enable = "avx2,fma")]);

#[cfg(target_arch = "x86_64")]
transforms! { avx512 [#[target_feature(enable = "avx512f")]]
    use std::arch::x86_64::*;

    type Lanes = __m512;
    const COUNT: usize = 16;

    /// `a + k * b`.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn add(a: Lanes, k: f32, b: Lanes) -> Lanes {
        _mm512_fmadd_ps(_mm512_set1_ps(k), b, a)
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load(from: *const f32) -> Lanes {
        // SAFETY: the caller's promise.
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn store(to: *mut f32, lanes: Lanes) {
        // SAFETY: the caller's promise.
        unsafe { _mm512_storeu_ps(to, lanes) }
    }
}

/// Calls a function of the module for this processor's instructions.
macro_rules! for_this_processor {
    ($function:ident($($argument:expr),*)) => {{
        #[cfg(target_arch = "x86_64")]
        match isa() {
            Isa::Avx512 | Isa::Avx512Bf16 => return avx512::$function($($argument),*),
            Isa::Avx2 => return avx2::$function($($argument),*),
            Isa::Portable => {}
        }
        portable::$function($($argument),*)
    }};
}

/// Transforms one tile of `len` channels, a multiple of 16, whose pixels are at `pixels`: `out[point * stride + c]`.
///
/// # Safety
/// The pixels have so many channels, and `out` room.
unsafe fn transform_tile(pixels: &[*const f32; POINTS], len: usize, out: *mut f32, stride: usize) {
    // SAFETY: the caller's promise; `isa` has found the features.
    unsafe { for_this_processor!(tile(pixels, len, out, stride)) }
}

/// Stores the sixteen results of a tile whose sums are `sums[point * TILE + j]`, each at its place of `out`, or adds them to what is
/// there.
///
/// # Safety
/// `sums` has 36 tiles of sums from there, and every place room for [`NR`].
unsafe fn restore_tile(sums: *const f32, out: &[*mut f32; OUT * OUT], more: bool) {
    // SAFETY: the caller's promise; `isa` has found the features.
    unsafe { for_this_processor!(restore(sums, out, more)) }
}

/// Transforms a panel of nine taps by `len` channels by [`NR`]: `out[point * stride + c * NR + j]`.
pub(crate) fn transform_weights(panel: &[f32], len: usize, out: &mut [f32], stride: usize) {
    assert!(panel.len() >= 9 * len * NR && stride >= len * NR && out.len() >= (POINTS - 1) * stride + len * NR);
    // SAFETY: by the check above; `isa` has found the features.
    unsafe { for_this_processor!(weights(panel.as_ptr(), len, out.as_mut_ptr(), stride)) }
}
