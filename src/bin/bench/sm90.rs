//! The kernels of sm_90a, modelled from their tiles: a block stays on its multiprocessor and takes tile after tile.

use crate::assumptions::{Assumptions, EXPONENTIAL_CYCLES, FILL};
use crate::gpus::Gpu;
use braid::device::cuda::driver::Launch;
use braid::device::cuda::ops::attention_sm90::AttentionSm90Params;
use braid::device::cuda::ops::convolution_sm90::ConvolutionSm90Params;
use braid::device::cuda::ops::gemm_sm90::GemmSm90Params;
use braid::device::cuda::ops::tile::{Tile, TileDevice};
use braid::device::cuda::ops::tile_sm90;
use bytemuck::{AnyBitPattern, pod_read_unaligned};

/// Rows of queries and of keys of a tile of attention, and values of a head.
const ROWS: usize = 128;
const HEAD: usize = 64;

/// The work of a launch of a kernel of sm_90a.
#[derive(Debug, Clone, Copy)]
pub enum Work {
    /// `[m, n]` sums of `k` in tiles; of a convolution and with GEGLU, as its kernel multiplies them.
    Product {
        /// Rows, columns and the length of the sums.
        size: (usize, usize, usize),
        /// The tile.
        tile: Tile,
    },
    /// Tiles of queries, each over so many keys.
    Attention {
        /// Tiles.
        tiles: usize,
        /// Keys.
        keys: usize,
    },
}

fn read<P: AnyBitPattern>(launch: &Launch) -> Option<P> {
    launch.bytes().get(..size_of::<P>()).map(pod_read_unaligned)
}

/// Whether a launch is a doubling and 3x3 as four 2x2 convolutions.
pub fn phases(launch: &Launch) -> bool {
    launch.kernel.module == "convolution_sm90"
        && read::<ConvolutionSm90Params>(launch).is_some_and(|params| params.phases == 4)
}

impl Work {
    /// The work of a launch; `None` for other kernels.
    pub fn of(launch: &Launch) -> Option<Self> {
        let count = |n: i32| usize::try_from(n).unwrap_or(0);
        let tile = || {
            let (m, n) = launch.kernel.name.rsplit_once('_')?.1.split_once('x')?;
            Some(Tile { m: m.parse().ok()?, n: n.parse().ok()? })
        };
        match launch.kernel.module {
            "gemm_sm90" => {
                let p: GemmSm90Params = read(launch)?;
                let halves = if launch.kernel.name.contains("geglu") { 2 } else { 1 };
                Some(Self::Product { size: (count(p.m), halves * count(p.n), count(p.k)), tile: tile()? })
            }
            "convolution_sm90" => {
                let p: ConvolutionSm90Params = read(launch)?;
                let (tile, taps) = (tile()?, count(p.kernel_y) * count(p.kernel_x));
                // The rows of each phase are whole tiles.
                let m = match count(p.phases) {
                    1 => count(p.pixels),
                    phases => count(p.pixels).next_multiple_of(tile.m) * phases,
                };
                Some(Self::Product { size: (m, count(p.n), taps * count(p.channels)), tile })
            }
            "attention_sm90" => {
                let p: AttentionSm90Params = read(launch)?;
                let tiles = count(p.queries).div_ceil(ROWS) * count(p.heads) * count(p.batch);
                Some(Self::Attention { tiles, keys: count(p.keys) })
            }
            _ => None,
        }
    }

    /// Tiles of the result.
    pub fn tiles(&self) -> usize {
        match *self {
            Self::Product { size: (m, n, _), tile } => m.div_ceil(tile.m) * n.div_ceil(tile.n),
            Self::Attention { tiles, .. } => tiles,
        }
    }

    /// Its seconds, and what bounds them.
    pub fn seconds(&self, gpu: &Gpu, assumed: &Assumptions) -> (f64, &'static str) {
        let device = TileDevice { multiprocessors: gpu.multiprocessors, capability: gpu.capability };
        let (cycles, bound) = match *self {
            Self::Product { size, tile } => (tile_sm90::cycles(size, tile, device), "wgmma"),
            Self::Attention { tiles, keys } => {
                let waves = tiles.div_ceil(gpu.multiprocessors) as f64;
                // Two products, 2,048 multiplications a cycle; and exponentials. How much of these lies under the products no device
                // has shown: none is assumed to.
                let products = (2 * ROWS * ROWS * HEAD) as f64 / 2048.0;
                let exponentials = (ROWS * ROWS / 128) as f64 * EXPONENTIAL_CYCLES;
                (waves * keys.div_ceil(ROWS) as f64 * (products + exponentials) + FILL, "tensor + exp")
            }
        };
        (cycles / assumed.clock, bound)
    }
}
