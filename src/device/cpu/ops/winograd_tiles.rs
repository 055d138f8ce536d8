//! The tiles of Winograd's F(2x2, 3x3) and F(4x4, 3x3) and their transforms: inputs, weights, and sums back to results.

use super::pointwise::nearest;
use crate::device::cpu::microkernel::{MR, NR, TILE};
#[cfg(target_arch = "x86_64")]
use crate::device::cpu::simd::{Isa, isa};
use crate::graph::Conv2dParams;
use std::ops::Range;

/// The size of the tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// F(2x2, 3x3): points 0, 1, -1 and infinity.
    F2,
    /// F(4x4, 3x3): points 0, 1, -1, 2, -2 and infinity.
    F4,
}

/// The products of the largest tile.
const MOST_POINTS: usize = 36;
/// The results of the largest tile.
const MOST_RESULTS: usize = 16;

impl Form {
    /// Results of a tile along a side.
    pub(crate) fn out(self) -> usize {
        match self {
            Self::F2 => 2,
            Self::F4 => 4,
        }
    }

    /// Inputs of a tile along a side.
    fn side(self) -> usize {
        self.out() + 2
    }

    /// Products of a tile.
    pub(crate) fn points(self) -> usize {
        self.side() * self.side()
    }
}

/// The tiles of a convolution. A stripe is the tiles side by side across an image.
pub(crate) struct Tiles {
    form: Form,
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
    pub(crate) fn new(form: Form, conv: Conv2dParams, source: &[usize], result: &[usize]) -> Self {
        let (h, w, out) = (source[1], source[2], form.out());
        let (grid_h, grid_w) = conv.resize.unwrap_or((h, w));
        let (down, across) = (result[1].div_ceil(out), result[2].div_ceil(out));
        let axis = |tiles: usize, grid: usize, source: usize| {
            let at = |i: usize| i.checked_sub(conv.padding[0]).filter(|&i| i < grid);
            (0..tiles * out + 2).map(|i| at(i).map(|i| nearest(i, grid, source) as u32)).collect()
        };
        let (y, x) = (axis(down, grid_h, h), axis(across, grid_w, w));
        Self { form, y, x, source: [h, w], result: [result[1], result[2]], down, across }
    }

    /// The size of each.
    pub(crate) fn form(&self) -> Form {
        self.form
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
        self.form.out() * self.result[1]
    }

    /// The result's rows in some stripes.
    pub(crate) fn rows(&self, stripes: Range<usize>) -> Range<usize> {
        let [h, w] = self.result;
        let at = |stripe: usize| (stripe / self.down * h + stripe % self.down * self.form.out()) * w;
        at(stripes.start)..at(stripes.end)
    }

    /// Transforms inputs: `out[(point * MR + tile) * stride + c]`.
    ///
    /// # Safety
    /// The tiles exist and the source has the channels; `zeros` holds as many.
    pub(crate) unsafe fn inputs(&self, inputs: TileInputs, zeros: *const f32, out: &mut [f32], stride: usize) {
        let TileInputs { first, width, len, tiles } = inputs;
        let (points, side, size) = (self.form.points(), self.form.side(), self.form.out());
        for (t, tile) in tiles.enumerate() {
            let (stripe, tx) = (tile / self.across, tile % self.across);
            let (image, ty) = (stripe / self.down, stripe % self.down);
            let pixel = |r: usize, c: usize| match (self.y[ty * size + r], self.x[tx * size + c]) {
                (Some(y), Some(x)) => {
                    let pixel = (image * self.source[0] + y as usize) * self.source[1] + x as usize;
                    // SAFETY: the tables hold places inside the source.
                    unsafe { first.add(pixel * width) }
                }
                _ => zeros,
            };
            let pixels: [_; MOST_POINTS] =
                std::array::from_fn(|i| if i < points { pixel(i / side, i % side) } else { zeros });
            let (whole, out) = (len / 16 * 16, &mut out[t * stride..]);
            assert!(stride >= len && out.len() >= (points - 1) * MR * stride + len.next_multiple_of(16));
            // SAFETY: the pixels have `len` channels; there is room by the check above.
            unsafe { transform_tile(self.form, &pixels, whole, out.as_mut_ptr(), MR * stride) };
            if whole < len {
                let mut last = [[0.0f32; 16]; MOST_POINTS];
                for (last, pixel) in last.iter_mut().zip(pixels).take(points) {
                    // SAFETY: the rest of the `len` channels.
                    unsafe { last.as_mut_ptr().copy_from_nonoverlapping(pixel.add(whole), len - whole) };
                }
                let pixels = last.each_ref().map(|lanes| lanes.as_ptr());
                // SAFETY: 16 channels of each; there is room for as many.
                unsafe { transform_tile(self.form, &pixels, 16, out[whole..].as_mut_ptr(), MR * stride) };
            }
        }
    }

    /// Brings the sums of up to [`MR`] tiles back to results, whose row `begin` is the first of `acc`: `acc[row * NR + j]`, or adds
    /// to what is there.
    pub(crate) fn results(&self, sums: &[f32], tiles: Range<usize>, begin: usize, acc: &mut [f32], add: bool) {
        let ([h, w], size) = (self.result, self.form.out());
        for (t, tile) in tiles.enumerate() {
            let (stripe, tx) = (tile / self.across, tile % self.across);
            let ty = stripe % self.down;
            let row = self.rows(stripe..stripe).start + tx * size - begin;
            // The tile's part of the image.
            let (high, wide) = (size.min(h - ty * size), size.min(w - tx * size));
            assert!(
                sums.len() >= self.form.points() * TILE && t < MR && (row + (high - 1) * w + wide) * NR <= acc.len()
            );
            let mut dropped = [0.0; NR];
            let (acc, dropped) = (acc.as_mut_ptr(), dropped.as_mut_ptr());
            let places: [_; MOST_RESULTS] = std::array::from_fn(|i| match (i / size < high, i % size < wide) {
                // SAFETY: inside `acc` by the check above.
                (true, true) => unsafe { acc.add((row + i / size * w + i % size) * NR) },
                _ => dropped,
            });
            // SAFETY: as many tiles of sums as points, and room for a row at each place.
            unsafe { restore_tile(self.form, sums[t * NR..].as_ptr(), &places, add) };
        }
    }
}

/// Defines the loops over a tile, a panel or sums, around the transforms along one side that the module has.
macro_rules! loops {
    ($(#[$attribute:meta])?) => {
        /// # Safety
        /// As `transform_tile`.
        $(#[$attribute])?
        pub(crate) unsafe fn tile(pixels: &[*const f32; MOST_POINTS], len: usize, out: *mut f32, stride: usize) {
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
        /// As `restore_tile`.
        $(#[$attribute])?
        pub(crate) unsafe fn restore(sums: *const f32, out: &[*mut f32; MOST_RESULTS], more: bool) {
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
        /// As `transform_weights` has checked.
        $(#[$attribute])?
        pub(crate) unsafe fn weights(panel: *const f32, len: usize, out: *mut f32, stride: usize) {
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
    };
}

/// Defines the transforms of both forms in a module, on `Lanes` of consecutive elements and for the features of `$attribute`: closures
/// have the features of the function around them, so that all of it is inlined.
macro_rules! transforms {
    ($name:ident [$(#[$attribute:meta])?] $($operation:item)*) => {
        mod $name {
            $($operation)*

            pub(super) mod f2 {
                use super::{COUNT, Lanes, add, load, store};
                use crate::device::cpu::microkernel::{NR, TILE};
                use crate::device::cpu::ops::winograd_tiles::{MOST_POINTS, MOST_RESULTS};

                const OUT: usize = 2;
                const IN: usize = OUT + 2;

                /// The inputs' transform along one side.
                $(#[$attribute])?
                #[inline]
                fn forward([d0, d1, d2, d3]: [Lanes; IN]) -> [Lanes; IN] {
                    [add(d0, -1.0, d2), add(d1, 1.0, d2), add(d2, -1.0, d1), add(d1, -1.0, d3)]
                }

                /// The results' transform along one side.
                $(#[$attribute])?
                #[inline]
                fn back([m0, m1, m2, m3]: [Lanes; IN]) -> [Lanes; OUT] {
                    [add(add(m0, 1.0, m1), 1.0, m2), add(add(m1, -1.0, m2), -1.0, m3)]
                }

                /// The weights' transform along one side.
                $(#[$attribute])?
                #[inline]
                fn spread([a, b, c]: [Lanes; 3]) -> [Lanes; IN] {
                    let zero = add(a, -1.0, a);
                    let outer = add(add(zero, 0.5, a), 0.5, c);
                    [a, add(outer, 0.5, b), add(outer, -0.5, b), c]
                }

                loops! { $(#[$attribute])? }
            }

            pub(super) mod f4 {
                use super::{COUNT, Lanes, add, load, store};
                use crate::device::cpu::microkernel::{NR, TILE};
                use crate::device::cpu::ops::winograd_tiles::{MOST_POINTS, MOST_RESULTS};

                const OUT: usize = 4;
                const IN: usize = OUT + 2;

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

                loops! { $(#[$attribute])? }
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

/// Calls a function of the form's module for this processor's instructions.
macro_rules! for_this_processor {
    ($form:expr, $function:ident($($argument:expr),*)) => {{
        #[cfg(target_arch = "x86_64")]
        match (isa(), $form) {
            (Isa::Avx512 | Isa::Avx512Bf16, Form::F2) => return avx512::f2::$function($($argument),*),
            (Isa::Avx512 | Isa::Avx512Bf16, Form::F4) => return avx512::f4::$function($($argument),*),
            (Isa::Avx2, Form::F2) => return avx2::f2::$function($($argument),*),
            (Isa::Avx2, Form::F4) => return avx2::f4::$function($($argument),*),
            (Isa::Portable, _) => {}
        }
        match $form {
            Form::F2 => portable::f2::$function($($argument),*),
            Form::F4 => portable::f4::$function($($argument),*),
        }
    }};
}

/// Transforms one tile of `len` channels, a multiple of 16, whose pixels are the first of `pixels`: `out[point * stride + c]`.
///
/// # Safety
/// The pixels have so many channels, and `out` room.
unsafe fn transform_tile(form: Form, pixels: &[*const f32; MOST_POINTS], len: usize, out: *mut f32, stride: usize) {
    // SAFETY: the caller's promise; `isa` has found the features.
    unsafe { for_this_processor!(form, tile(pixels, len, out, stride)) }
}

/// Stores the results of a tile whose sums are `sums[point * TILE + j]`, each at its place of `out`, or adds them to what is there.
///
/// # Safety
/// `sums` has as many tiles of sums from there as a tile has points, and every place room for [`NR`].
unsafe fn restore_tile(form: Form, sums: *const f32, out: &[*mut f32; MOST_RESULTS], more: bool) {
    // SAFETY: the caller's promise; `isa` has found the features.
    unsafe { for_this_processor!(form, restore(sums, out, more)) }
}

/// Transforms a panel of nine taps by `len` channels by [`NR`]: `out[point * stride + c * NR + j]`.
pub(crate) fn transform_weights(form: Form, panel: &[f32], len: usize, out: &mut [f32], stride: usize) {
    let last = (form.points() - 1) * stride;
    assert!(panel.len() >= 9 * len * NR && stride >= len * NR && out.len() >= last + len * NR);
    // SAFETY: by the check above; `isa` has found the features.
    unsafe { for_this_processor!(form, weights(panel.as_ptr(), len, out.as_mut_ptr(), stride)) }
}
