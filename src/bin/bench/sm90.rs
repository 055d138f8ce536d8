//! The kernels of sm_90a, modelled from their tiles: a block stays on its multiprocessor and takes tile after tile.

use crate::assumptions::{Assumptions, EXPONENTIAL_CYCLES, FILL, HIDDEN, MEMORY};
use crate::gpus::Gpu;
use braid::device::cuda::driver::Launch;
use braid::device::cuda::ops::attention_sm90::AttentionSm90Params;
use braid::device::cuda::ops::convolution_sm90::ConvolutionSm90Params;
use braid::device::cuda::ops::decoupled_sm90::{self, DecoupledSm90Params};
use braid::device::cuda::ops::gemm_sm90::GemmSm90Params;
use braid::device::cuda::ops::quantize_sm90::QuantizeParams;
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
        /// Whether of e4m3.
        fp8: bool,
        /// Whether moments of the result are stored.
        moments: bool,
    },
    /// Rows that are rounded to e4m3.
    Quantization {
        /// Bytes that are read and written.
        bytes: usize,
    },
    /// Tiles of queries, each over so many keys.
    Attention {
        /// Tiles.
        tiles: usize,
        /// Keys.
        keys: usize,
    },
    /// Tiles of queries, each over the branches of its head.
    Decoupled {
        /// Tiles.
        tiles: usize,
        /// The steps of each.
        keys: Keys,
    },
}

/// The keys of a head's branches, as `decoupled_sm90.cu` multiplies them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Keys {
    /// A text's, in 80 columns of scores, and so many columns of one branch beside it.
    OneStep(usize),
    /// Steps of 80 and of 16 keys, one after the other.
    Steps([usize; 2]),
}

impl Keys {
    fn of(branches: &[usize]) -> Self {
        match *branches {
            [65..=80] => return Self::OneStep(0),
            [65..=80, beside @ ..=16] => return Self::OneStep(beside.next_multiple_of(8)),
            _ => {}
        }
        let each = |keys: &usize| {
            let wide = keys / 80 + usize::from(keys % 80 > 64);
            [wide, keys.saturating_sub(80 * wide).div_ceil(16)]
        };
        let sum = |sum: [usize; 2], steps: [usize; 2]| [sum[0] + steps[0], sum[1] + steps[1]];
        Self::Steps(branches.iter().map(each).fold([0; 2], sum))
    }

    /// The cycles of a tile whose neighbours lie over it, and those by which it would take longer alone.
    fn cycles(self) -> [f64; 2] {
        match self {
            Self::OneStep(beside) => {
                // Queries arrive, results are staged and leave, all through shared memory.
                let moved = 3 * ROWS * 2 * HEAD;
                let mut step = Step::of(80 + beside, 80 + beside.next_multiple_of(16), moved);
                // The four lanes of a row divide by the sum of each branch.
                let branches = if beside > 0 { 2 } else { 1 };
                step.exponentials += Step::exponentials(4 * branches);
                // A tile's first scores and last values lie under nothing.
                [step.overlapped(), 0.5 * step.overlapped()]
            }
            // Nothing arranges that one group's exponentials lie under the other's products.
            Self::Steps(steps) => {
                let step = |keys| Step::of(keys, keys, 0).alone();
                [steps[0] as f64 * step(80) + steps[1] as f64 * step(16), 0.0]
            }
        }
    }
}

/// Cycles of a multiprocessor for two groups of 64 queries and a step of keys.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Step {
    products: f64,
    shared: f64,
    exponentials: f64,
}

impl Step {
    /// One of so many columns of scores and rows of values, beside which so many bytes pass through shared memory, at 128 a cycle. The
    /// factors of a product are read from there, but for exponentials.
    fn of(columns: usize, values: usize, moved: usize) -> Self {
        let (groups, depth) = ((ROWS / 64) as f64, (HEAD / 16) as f64);
        let read = (2048 + 32 * columns) as f64 / 128.0;
        let scores = groups * depth * (columns as f64 / 2.0).max(read);
        let weighed = groups * values as f64 / 16.0;
        Self {
            products: scores + weighed * (HEAD / 2) as f64,
            shared: groups * depth * read + weighed * (32 * HEAD) as f64 / 128.0 + moved as f64 / 128.0,
            exponentials: Self::exponentials(columns),
        }
    }

    fn exponentials(columns: usize) -> f64 {
        (ROWS * columns) as f64 / 128.0 * EXPONENTIAL_CYCLES
    }

    /// Its cycles where nothing lies under anything.
    fn alone(&self) -> f64 {
        self.products + self.exponentials
    }

    /// Its cycles where the groups take turns.
    fn overlapped(&self) -> f64 {
        let busy = self.products.max(self.shared);
        busy.max(self.exponentials) + (1.0 - HIDDEN) * busy.min(self.exponentials)
    }
}

/// The parameters of a launch; `None` where it has fewer bytes.
pub fn read<P: AnyBitPattern>(launch: &Launch) -> Option<P> {
    launch.bytes().get(..size_of::<P>()).map(pod_read_unaligned)
}

/// A count of a launch's parameters.
pub fn count(n: i32) -> usize {
    usize::try_from(n).unwrap_or(0)
}

/// Rows and columns of a product's or a convolution's tile, by the kernel's name.
pub fn tile(kernel: &str) -> Option<(usize, usize)> {
    let (m, n) = kernel.rsplit_once('_')?.1.split_once('x')?;
    Some((m.parse().ok()?, n.parse().ok()?))
}

/// Whether a launch is a doubling and 3x3 as four 2x2 convolutions.
pub fn phases(launch: &Launch) -> bool {
    launch.kernel.module.starts_with("convolution_")
        && launch.kernel.module.ends_with("sm90")
        && read::<ConvolutionSm90Params>(launch).is_some_and(|params| params.phases == 4)
}

/// Whether a launch multiplies e4m3.
pub fn multiplies_e4m3(launch: &Launch) -> bool {
    launch.kernel.module.ends_with("fp8_sm90")
}

impl Work {
    /// The work of a launch; `None` for other kernels.
    pub fn of(launch: &Launch) -> Option<Self> {
        let tile = || tile(launch.kernel.name).map(|(m, n)| Tile { m, n });
        let fp8 = multiplies_e4m3(launch);
        // e4m3 is counted in pairs.
        let values = if fp8 { 2 } else { 1 };
        match launch.kernel.module {
            "gemm_sm90" | "gemm_fp8_sm90" => {
                let p: GemmSm90Params = read(launch)?;
                let halves = if launch.kernel.name.contains("geglu") { 2 } else { 1 };
                let size = (count(p.m), halves * count(p.n), values * count(p.k));
                Some(Self::Product { size, tile: tile()?, fp8, moments: p.finish.moments.0 != 0 })
            }
            "quantize_sm90" => {
                let p: QuantizeParams = read(launch)?;
                Some(Self::Quantization { bytes: count(p.rows) * (3 * count(p.columns) + 4) })
            }
            "convolution_sm90" | "convolution_fp8_sm90" => {
                let p: ConvolutionSm90Params = read(launch)?;
                let (tile, taps) = (tile()?, count(p.kernel) * count(p.kernel));
                // The rows of each phase are whole tiles.
                let m = match count(p.phases) {
                    1 => count(p.pixels),
                    phases => count(p.pixels).next_multiple_of(tile.m) * phases,
                };
                // A tap's last step of e4m3 is whole.
                let channels = match fp8 {
                    true => (values * count(p.channels)).next_multiple_of(tile_sm90::STEP_FP8),
                    false => count(p.channels),
                };
                let size = (m, count(p.n), taps * channels);
                Some(Self::Product { size, tile, fp8, moments: p.finish.moments.0 != 0 })
            }
            "attention_sm90" => {
                let p: AttentionSm90Params = read(launch)?;
                let tiles = count(p.queries).div_ceil(ROWS) * count(p.heads) * count(p.batch);
                Some(Self::Attention { tiles, keys: count(p.keys) })
            }
            "decoupled_sm90" => {
                let p: DecoupledSm90Params = read(launch)?;
                let branches = p.of.branch.iter().take(count(p.of.branches)).map(|branch| count(branch.capacity));
                let keys = Keys::of(&branches.collect::<Vec<_>>());
                Some(Self::Decoupled { tiles: decoupled_sm90::tiles(&p.of, count(p.heads)), keys })
            }
            _ => None,
        }
    }

    /// Tiles of the result.
    pub fn tiles(&self) -> usize {
        match *self {
            Self::Product { size: (m, n, _), tile, .. } => m.div_ceil(tile.m) * n.div_ceil(tile.n),
            Self::Quantization { .. } => 0,
            Self::Attention { tiles, .. } | Self::Decoupled { tiles, .. } => tiles,
        }
    }

    /// Its seconds, and what bounds them.
    pub fn seconds(&self, gpu: &Gpu, assumed: &Assumptions) -> (f64, &'static str) {
        let device = TileDevice { multiprocessors: gpu.multiprocessors, capability: gpu.capability };
        let (cycles, bound) = match *self {
            Self::Quantization { bytes } => return (bytes as f64 / (gpu.bandwidth * MEMORY), "memory"),
            Self::Product { size, tile, fp8, moments } => {
                let cycles = if fp8 { tile_sm90::cycles_fp8 } else { tile_sm90::cycles };
                let (m, n, _) = size;
                let more = if moments { tile_sm90::moments_cycles((m, n), tile, fp8, device) } else { 0.0 };
                (cycles(size, tile, device) + more, "wgmma")
            }
            Self::Attention { tiles, keys } => {
                let waves = tiles.div_ceil(gpu.multiprocessors) as f64;
                let step = Step::of(ROWS, ROWS, 2 * ROWS * 2 * HEAD).overlapped();
                // A tile's first scores and last values lie under nothing.
                (waves * (keys.div_ceil(ROWS) as f64 + 0.5) * step + FILL, "tensor + exp")
            }
            Self::Decoupled { tiles, keys } => {
                let waves = tiles.div_ceil(gpu.multiprocessors) as f64;
                let [tile, alone] = keys.cycles();
                (waves * tile + alone + FILL, "tensor + exp")
            }
        };
        (cycles / assumed.clock, bound)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{assumptions, gpus};

    /// FlashAttention-3 at head size 64 on an H100, f16, not causal (its paper, figure 5): 16,384 tokens in all, 32 heads. Its tiles have 192
    /// queries; those of 128 here wait no longer for full waves at these sizes.
    #[test]
    fn flash_attention_3() {
        let (gpu, assumed) =
            (gpus::GPUS.iter().find(|gpu| gpu.name == "h100").unwrap(), assumptions::of("h100").unwrap());
        for (tokens, published) in [(1024, 392e12), (4096, 476e12), (16_384, 497e12)] {
            let work = Work::Attention { tiles: 16_384 / ROWS * 32, keys: tokens };
            let modelled = 4.0 * 16_384.0 * tokens as f64 * 64.0 * 32.0 / work.seconds(gpu, &assumed).0;
            println!("FlashAttention-3: modelled {:.0}, published {:.0} TFLOP/s", modelled / 1e12, published / 1e12);
            assert!((modelled / published - 1.0).abs() <= 0.25, "{tokens}: {modelled:e}, published {published:e}");
        }
    }

    /// Cycles by number of keys, as the kernels cut them.
    #[test]
    fn cycles_of_keys() {
        let cycles = |step: Step| [step.products, step.shared, step.exponentials];
        // K and V arrive while others are read.
        assert_eq!(cycles(Step::of(128, 128, 2 * 128 * 128)), [1024.0, 896.0, 1024.0]);
        // Few keys ask more of shared memory than of tensor cores.
        assert_eq!(cycles(Step::of(16, 16, 0)), [2.0 * (4.0 * 20.0 + 32.0), 2.0 * (4.0 * 20.0 + 16.0), 128.0]);
        assert_eq!([Keys::of(&[77]), Keys::of(&[77, 4])], [Keys::OneStep(0), Keys::OneStep(8)]);
        assert_eq!(Keys::of(&[77, 16]), Keys::OneStep(16));
        assert_eq!(Keys::of(&[77, 4, 4]), Keys::Steps([1, 2]));
        assert_eq!([Keys::of(&[64]), Keys::of(&[154, 4])], [Keys::Steps([0, 4]), Keys::Steps([2, 1])]);
    }

    /// An image prompt of 4 tokens beside the text takes at most a tenth longer than text alone, and one of 16 little more: guided, 10
    /// heads of 4,096 queries and 20 of 1,024.
    #[test]
    fn image_prompts_beside_text() {
        let (gpu, assumed) =
            (gpus::GPUS.iter().find(|gpu| gpu.name == "h200").unwrap(), assumptions::of("h200").unwrap());
        for (queries, heads) in [(4096, 2 * 10), (1024, 2 * 20)] {
            let of = |branches: &[usize]| {
                let work = Work::Decoupled { tiles: queries / ROWS * heads, keys: Keys::of(branches) };
                let tokens = 2 * queries + 2 * branches.iter().sum::<usize>();
                let moving = (tokens * heads * 2 * HEAD) as f64 / (gpu.bandwidth * MEMORY);
                [work.seconds(gpu, &assumed).0, moving]
            };
            let text = of(&[77]);
            for (tokens, most) in [(4, 1.1), (16, 1.15)] {
                let both = of(&[77, tokens]);
                let [computing, moving] = [0, 1].map(|part| both[part] / text[part]);
                println!(
                    "{queries} queries, {tokens} tokens: {:.2} us, of text {:.2}, {computing:.3}; bytes {:.2} us, {moving:.3}",
                    both[0] * 1e6,
                    text[0] * 1e6,
                    both[1] * 1e6
                );
                assert!(computing < most, "{queries} {tokens}: {computing}");
            }
        }
    }
}
