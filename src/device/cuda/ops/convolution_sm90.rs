//! Convolutions of halves by wgmma and im2col maps, on sm_90a.

use super::epilogue::{EpilogueParams, with_moments};
use super::gemm_sm90::{DEPTH, result_map};
use super::kernel::{KernelFile, Pointer, kernel, param_structs, to_i32};
use super::lowering::Lowering;
use super::tile::Tile;
use super::tile_sm90::{THREADS, grid, shared};
use crate::device::cuda::driver::kernel::{Kernel, Types::Halves};
use crate::device::cuda::driver::tensor_map::{Swizzle, TensorMap, TensorMapDesc, TensorMapMode};
use crate::error::Result;
use crate::tensor::DType;
use std::mem::offset_of;

param_structs! {
    /// Parameters of `convolution_sm90`'s kernels.
    ConvolutionSm90Params: 704 {
        x0: TensorMap = 0,
        x1: TensorMap = 128,
        w: TensorMap = 256,
        out: TensorMap = 384,
        finish: EpilogueParams = 512,
        pixels: i32 = 584,
        n: i32 = 588,
        channels0: i32 = 592,
        channels: i32 = 596,
        height: i32 = 600,
        width: i32 = 604,
        result_height: i32 = 608,
        result_width: i32 = 612,
        kernel: i32 = 616,
        stride: i32 = 620,
        padding: i32 = 624,
        phases: i32 = 628,
        x_scales: Pointer = 632,
        w_scales: Pointer = 640,
        end_padding: [i32; 14] = 648,
    }
}

/// A row of the kernel table.
const fn convolution(name: &'static str, m: u32, n: u32) -> Kernel {
    kernel::<ConvolutionSm90Params>("convolution_sm90", name, Halves, THREADS, shared(m, n))
}

static CONVOLUTION_128X128: Kernel = convolution("convolution_sm90_128x128", 128, 128);
static CONVOLUTION_128X160: Kernel = convolution("convolution_sm90_128x160", 128, 160);
static CONVOLUTION_256X160: Kernel = convolution("convolution_sm90_256x160", 256, 160);
static CONVOLUTION_128X256: Kernel = convolution("convolution_sm90_128x256", 128, 256);

/// The kernel file.
pub(crate) static FILE: KernelFile = KernelFile {
    kernels: &[&CONVOLUTION_128X128, &CONVOLUTION_128X160, &CONVOLUTION_256X160, &CONVOLUTION_128X256],
    structs: STRUCTS,
};

/// A convolution as the kernels take it, over images in one or two sources whose channels follow each other.
#[derive(Debug, Clone, Copy)]
pub struct Convolution {
    /// Addresses of the sources; the second is not read where it has no channels.
    pub x: [u64; 2],
    /// Their channels.
    pub channels: [usize; 2],
    /// The address of W: `[phases n, kernel, kernel, channels]` without gaps.
    pub w: u64,
    /// Images.
    pub images: usize,
    /// Height and width of an image.
    pub image: [usize; 2],
    /// Height and width of the result, before doubling.
    pub result: [usize; 2],
    /// Channels of the result.
    pub n: usize,
    /// Height and width of the kernel.
    pub kernel: usize,
    /// Pixels from one place of the kernel to the next.
    pub stride: usize,
    /// Pixels of zeros above the image and left of it.
    pub padding: usize,
    /// 4 for a doubling by nearest neighbour, then 3x3, as four 2x2 convolutions; else 1.
    pub phases: usize,
    /// The summands beside the sums, and the result; without an activation, and not f32.
    pub finish: EpilogueParams,
}

impl Convolution {
    /// Whether the maps' corners hold the geometry, and a row of a box the channels.
    pub fn fits(&self) -> bool {
        let corners = [0, 1].map(|d| self.last(d)).into_iter().chain([-(self.padding as i64)]);
        let whole = self.channels[0] >= DEPTH as usize && (self.channels[1] == 0 || self.channels[1] >= DEPTH as usize);
        whole
            && self.stride <= 8
            && self.n.is_multiple_of(8)
            && corners.into_iter().all(|corner| (-128..128).contains(&corner))
    }

    /// The last base pixel of a dimension, counted from the image's last one.
    fn last(&self, d: usize) -> i64 {
        let [result, image] = [self.result[d], self.image[d]].map(|size| size as i64);
        (result - 1) * self.stride as i64 + 1 - image - self.padding as i64
    }

    /// The pixels of a source.
    fn source(&self, s: usize, dtype: DType, tile: Tile) -> TensorMapDesc {
        let ([height, width], channels, stride) = (self.image, self.channels[s], self.stride as u32);
        let dims = [
            (channels, 1, 0),
            (width, channels, 0),
            (height, width * channels, 0),
            (self.images, height * width * channels, 0),
        ];
        let first = -(self.padding as i32);
        let mode = TensorMapMode::Im2col {
            lower: vec![first; 2],
            upper: vec![self.last(1) as i32, self.last(0) as i32],
            channels: DEPTH,
            // A block of a cluster copies half of the rows for both.
            pixels: tile.m as u32 / 2,
        };
        let plain = TensorMapDesc::tiled(self.x[s], dtype, &dims, Swizzle::Bytes128);
        TensorMapDesc { mode, element_strides: vec![1, stride, stride, 1], ..plain }
    }

    /// The grid of a kernel of that tile.
    pub fn grid(&self, tile: Tile, multiprocessors: usize) -> [u32; 3] {
        let rows = (self.images * self.result[0] * self.result[1]).div_ceil(tile.m) * self.phases;
        grid([rows, self.n.div_ceil(tile.n)], multiprocessors)
    }

    /// The parameters of a kernel of that tile, and what the maps in them describe.
    pub fn params(&self, dtype: DType, tile: Tile) -> (ConvolutionSm90Params, Vec<(usize, TensorMapDesc)>) {
        let Self { n, kernel, phases, finish, .. } = *self;
        let channels = self.channels[0] + self.channels[1];
        let pixels = self.images * self.result[0] * self.result[1];
        let k = kernel * kernel * channels;
        let w = [(k, 1, DEPTH), (phases * n, k, tile.n as u32)];
        let second = usize::from(self.channels[1] > 0);
        let mut maps = vec![
            (offset_of!(ConvolutionSm90Params, x0), self.source(0, dtype, tile)),
            // Nobody reads a second one that is not there.
            (offset_of!(ConvolutionSm90Params, x1), self.source(second, dtype, tile)),
            (offset_of!(ConvolutionSm90Params, w), TensorMapDesc::tiled(self.w, dtype, &w, Swizzle::Bytes128)),
        ];
        if phases == 1 {
            let out = result_map(&finish, dtype, [pixels, n], 32);
            maps.push((offset_of!(ConvolutionSm90Params, out), out));
        }
        let params = ConvolutionSm90Params {
            finish,
            pixels: to_i32(pixels),
            n: to_i32(n),
            channels0: to_i32(self.channels[0]),
            channels: to_i32(channels),
            height: to_i32(self.image[0]),
            width: to_i32(self.image[1]),
            result_height: to_i32(self.result[0]),
            result_width: to_i32(self.result[1]),
            kernel: to_i32(kernel),
            stride: to_i32(self.stride),
            padding: to_i32(self.padding),
            phases: to_i32(phases),
            ..ConvolutionSm90Params::default()
        };
        (params, maps)
    }
}

/// Launches a convolution that [`Convolution::fits`].
///
/// # Errors
/// [`crate::Error::Graph`] where a map breaks a rule of the driver.
pub(super) fn launch(l: &mut Lowering<'_>, convolution: &Convolution, tile: Tile) -> Result<()> {
    let kernel = match (tile.m, tile.n) {
        (256, _) => &CONVOLUTION_256X160,
        (_, 256) => &CONVOLUTION_128X256,
        (_, 160) => &CONVOLUTION_128X160,
        _ => &CONVOLUTION_128X128,
    };
    let convolution = Convolution { finish: with_moments(l, convolution.finish), ..*convolution };
    let (params, maps) = convolution.params(l.options.dtype, tile);
    l.launch_with_tensor_maps(kernel, convolution.grid(tile, l.options.multiprocessors), params, maps)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A 3x3 convolution of 320 channels, of stride 1.
    fn convolution() -> Convolution {
        Convolution {
            x: [0, 0],
            channels: [320, 0],
            w: 0,
            images: 2,
            image: [128, 96],
            result: [128, 96],
            n: 320,
            kernel: 3,
            stride: 1,
            padding: 1,
            phases: 1,
            finish: EpilogueParams::default(),
        }
    }

    /// Corners of padding 1 with strides 1 and 2, and of the VAE's encoder, whose padding is on the far sides alone.
    #[test]
    fn corners() {
        let whole = convolution();
        let halved = Convolution { result: [64, 48], stride: 2, ..whole };
        let encoder = Convolution { padding: 0, ..halved };
        let phases = Convolution { kernel: 2, phases: 4, ..whole };
        let of = |c: Convolution| {
            assert!(c.fits());
            match c.source(0, DType::F16, Tile { m: 256, n: 160 }).mode {
                TensorMapMode::Im2col { lower, upper, pixels: 128, .. } => [lower, upper].concat(),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!([of(whole), of(phases)], [[-1; 4]; 2]);
        assert_eq!([of(halved), of(encoder)], [[-1, -1, -2, -2], [0, 0, -1, -1]]);
    }

    #[test]
    fn geometries_beyond_the_maps() {
        let whole = convolution();
        for other in [
            Convolution { channels: [32, 0], ..whole },
            Convolution { channels: [320, 32], ..whole },
            Convolution { n: 324, ..whole },
            Convolution { stride: 9, result: [15, 11], ..whole },
            Convolution { padding: 129, ..whole },
            Convolution { image: [300, 96], ..whole },
        ] {
            assert!(!other.fits(), "{other:?}");
        }
    }
}
