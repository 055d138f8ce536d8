//! Philox 4x32-10 as torch's CUDA generator uses it.
//!
//! Every GPU thread owns a stream: the key is the seed, the counter's upper half the thread's index, its lower half the
//! number of blocks of four words that the generator has given out. Numbers are spread over the threads, so *which*
//! numbers a draw gives depends on how many threads the GPU runs at once as soon as the draw has more numbers than
//! that.
//!
//! Source of the cipher: J. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.

use std::f64::consts::TAU;

/// The number of threads that a GPU runs at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PhiloxGrid {
    /// `multiProcessorCount` of the device.
    pub multiprocessors: u32,
    /// `maxThreadsPerMultiProcessor` of the device.
    pub threads_per_multiprocessor: u32,
}

impl PhiloxGrid {
    /// NVIDIA H100 SXM and H200 (132 multiprocessors).
    pub const H100: Self = Self { multiprocessors: 132, threads_per_multiprocessor: 2048 };
    /// NVIDIA A100 (108 multiprocessors).
    pub const A100: Self = Self { multiprocessors: 108, threads_per_multiprocessor: 2048 };
    /// NVIDIA GeForce RTX 4090 (128 multiprocessors).
    pub const RTX_4090: Self = Self { multiprocessors: 128, threads_per_multiprocessor: 1536 };
    /// NVIDIA GeForce RTX 3090 (82 multiprocessors).
    pub const RTX_3090: Self = Self { multiprocessors: 82, threads_per_multiprocessor: 1536 };

    /// Blocks of 256 threads that a draw of `n` numbers is launched with; at least one.
    fn blocks(self, n: u64) -> u64 {
        let resident = u64::from(self.multiprocessors) * u64::from(self.threads_per_multiprocessor / BLOCK as u32);
        n.div_ceil(BLOCK).min(resident).max(1)
    }
}

impl Default for PhiloxGrid {
    /// [`PhiloxGrid::H100`]. Draws of up to 221,184 numbers (one image of up to 1,880 pixels square) are the same on
    /// all the data-centre GPUs named here; of up to 125,952 on the RTX 3090 too.
    fn default() -> Self {
        Self::H100
    }
}

const BLOCK: u64 = 256;

/// The state of torch's CUDA generator.
#[derive(Debug, Clone)]
pub struct Philox {
    seed: u64,
    /// Blocks of four words drawn from each thread's stream; a fourth of torch's `philox_offset`.
    blocks_drawn: u64,
    grid: PhiloxGrid,
}

impl Philox {
    /// Makes the generator that `manual_seed(seed)` gives on a GPU of this size.
    pub fn new(seed: u64, grid: PhiloxGrid) -> Self {
        Self { seed, blocks_drawn: 0, grid }
    }

    /// Draws the next `n` standard normal numbers.
    ///
    /// A GPU takes logarithm, sine and cosine from fast approximations (absolute error up to 2^-21 in the latter two),
    /// this from f64: they agree to a few 1e-6, not to the bit.
    pub fn randn(&mut self, n: usize) -> Vec<f32> {
        let mut out = vec![0.0; n];
        if n == 0 {
            return out;
        }
        let threads = (self.grid.blocks(n as u64) * BLOCK) as usize;
        // Each thread makes four numbers a round; they lie one grid apart.
        for (round, chunk) in out.chunks_mut(threads * 4).enumerate() {
            let counter = self.blocks_drawn + round as u64;
            for thread in 0..threads.min(chunk.len()) {
                let four = normal4(philox4x32_10(words(counter, thread as u64), halves(self.seed)));
                chunk[thread..].iter_mut().step_by(threads).zip(four).for_each(|(to, x)| *to = x);
            }
        }
        self.blocks_drawn += (n as u64).div_ceil(threads as u64 * 4);
        out
    }
}

fn halves(x: u64) -> [u32; 2] {
    [x as u32, (x >> 32) as u32]
}

fn words(low: u64, high: u64) -> [u32; 4] {
    let (low, high) = (halves(low), halves(high));
    [low[0], low[1], high[0], high[1]]
}

/// The cipher: ten rounds over a counter of four words with a key of two.
fn philox4x32_10(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let a = halves(0xd251_1f53 * u64::from(counter[0]));
        let b = halves(0xcd9e_8d57 * u64::from(counter[2]));
        counter = [b[1] ^ counter[1] ^ key[0], b[0], a[1] ^ counter[3] ^ key[1], a[0]];
        key = [key[0].wrapping_add(0x9e37_79b9), key[1].wrapping_add(0xbb67_ae85)];
    }
    counter
}

/// Transforms two pairs of words as Box and Muller in curand's order, the sine first.
fn normal4(w: [u32; 4]) -> [f32; 4] {
    let pair = |x: u32, y: u32| {
        // f64 holds the products exactly, so each line rounds once, like the fused multiply-add of a GPU.
        const INV: f32 = 2.328_306_4e-10; // 2^-32
        const INV_TAU: f32 = (TAU / 4_294_967_296.0) as f32;
        let (x, y) = (f64::from(x as f32), f64::from(y as f32));
        let u = (x * f64::from(INV) + f64::from(INV / 2.0)) as f32;
        let v = (y * f64::from(INV_TAU) + f64::from(INV_TAU / 2.0)) as f32;
        let radius = (-2.0 * (f64::from(u).ln() as f32)).sqrt();
        let (sin, cos) = f64::from(v).sin_cos();
        [radius * sin as f32, radius * cos as f32]
    };
    let ([a, b], [c, d]) = (pair(w[0], w[1]), pair(w[2], w[3]));
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers of the Random123 distribution (kat_vectors, philox4x32 10).
    #[test]
    fn known_answers() {
        assert_eq!(philox4x32_10([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox4x32_10([!0; 4], [!0; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox4x32_10([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn large_draws() {
        let grid = PhiloxGrid { multiprocessors: 1, threads_per_multiprocessor: 512 };
        let n = 512 * 4 + 3;
        let got = Philox::new(9, grid).randn(n);
        let four = |counter, thread| normal4(philox4x32_10(words(counter, thread), [9, 0]));
        assert_eq!(got[0], four(0, 0)[0]);
        assert_eq!(got[511], four(0, 511)[0]);
        assert_eq!(got[512], four(0, 0)[1]);
        assert_eq!(got[512 * 3 + 7], four(0, 7)[3]);
        assert_eq!(got[2048 + 2], four(1, 2)[0]);
    }

    #[test]
    fn stream_offsets() {
        let grid = PhiloxGrid { multiprocessors: 1, threads_per_multiprocessor: 512 };
        let mut philox = Philox::new(9, grid);
        philox.randn(1);
        assert_eq!(philox.blocks_drawn, 1);
        philox.randn(2048);
        assert_eq!(philox.blocks_drawn, 2);
        philox.randn(2049);
        assert_eq!(philox.blocks_drawn, 4);
        // A GPU that is not described is taken to run one block.
        let none = PhiloxGrid { multiprocessors: 0, threads_per_multiprocessor: 0 };
        assert_eq!(Philox::new(9, none).randn(3).len(), 3);
    }
}
