//! Tiles of products and convolutions.
//!
//! A product's result does not depend on its tile: each element is one chain of `mma` in order of K. So the choice cannot make an
//! image depend on what shares its batch.

use super::kernel::blocks;

/// The tile of a product: rows and columns of the result that a block makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tile {
    /// Rows.
    pub m: usize,
    /// Columns of W that a block multiplies; a GEGLU block makes half as many columns of the result.
    pub n: usize,
}

impl Tile {
    /// The largest, of eight warps.
    pub const TALL: Self = Self { m: 256, n: 128 };
    /// The largest of four warps.
    pub const LARGE: Self = Self { m: 128, n: 128 };
    /// The one in between.
    pub const MEDIUM: Self = Self { m: 128, n: 64 };
    /// The smallest.
    pub const SMALL: Self = Self { m: 64, n: 64 };

    /// Threads of a block: four warps, and eight for 256 rows.
    const fn threads(self) -> usize {
        if self.m == 256 { 256 } else { 128 }
    }

    /// The end of the kernel's name, e.g. `128x64`.
    pub fn name(self) -> String {
        format!("{}x{}", self.m, self.n)
    }

    /// Blocks of the result in x (rows) and y (columns).
    pub fn grid(self, m: usize, n: usize) -> [u32; 2] {
        [blocks(m, self.m), blocks(n, self.n)]
    }

    /// Bytes that a block reads from L2 in a step of K, which is 64 bytes of a row.
    fn step_bytes(self) -> usize {
        (self.m + self.n) * 64
    }
}

/// A kernel of `gemm` and `convolution` as the choice sees it.
struct Candidate {
    tile: Tile,
    /// Registers of a thread, at most.
    registers: usize,
    /// Cycles that one warp takes for a step by its own stalls, about.
    stalls: f64,
    /// Relative time of a step in f32.
    f32: f64,
}

/// The largest first. Registers and stalls are those of `tests/kernels/figures.rs`, rounded up and averaged.
const CANDIDATES: [Candidate; 4] = [
    Candidate { tile: Tile::TALL, registers: 224, stalls: 670.0, f32: f64::INFINITY },
    Candidate { tile: Tile::LARGE, registers: 224, stalls: 660.0, f32: f64::INFINITY },
    Candidate { tile: Tile::MEDIUM, registers: 128, stalls: 410.0, f32: 1.75 },
    Candidate { tile: Tile::SMALL, registers: 80, stalls: 250.0, f32: 1.0 },
];

/// Steps of K of a usual product, 1,280 values.
const STEPS: f64 = 40.0;
/// Instructions of a warp behind the loop for each accumulator of a thread, by the interpreter's counts (docs/kernels.md).
pub const EPILOGUE: f64 = 24.0;
/// Cycles in which a wave of blocks fills and drains.
pub const FILL: f64 = 1000.0;

/// The properties of a device on which the choice depends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TileDevice {
    /// Multiprocessors.
    pub multiprocessors: usize,
    /// The compute capability.
    pub capability: (u32, u32),
}

impl TileDevice {
    /// Bytes of shared memory of a multiprocessor ("Technical Specifications per Compute Capability").
    fn shared(self) -> usize {
        match self.capability {
            (8, 0 | 7) => 164 << 10,
            (9..=11, _) => 228 << 10,
            _ => 100 << 10,
        }
    }

    /// Cycles of a scheduler's tensor core for one m16n8k16 with f32 sums, and bytes a cycle that L2 gives each multiprocessor:
    /// the assumptions of `bench roofline`. At 8.6, 8.9 and 12.0 GeForce cards take 32 cycles, the others 16; both lose least by 24.
    pub(super) fn rates(self) -> (f64, f64) {
        match self.capability {
            (8, 0 | 7) => (8.0, 29.5),
            (9..=11, _) => (6.0, 31.3),
            _ => (24.0, 15.5),
        }
    }

    /// Blocks of that tile that share a multiprocessor.
    fn resident(self, candidate: &Candidate) -> usize {
        let by_memory = self.shared() / (4 * candidate.tile.step_bytes() + 1024);
        by_memory.min(65_536 / (candidate.registers * candidate.tile.threads())).max(1)
    }

    /// Cycles in which `resident` blocks on a multiprocessor make their tiles of halves.
    fn halves(self, candidate: &Candidate, resident: usize) -> f64 {
        let Candidate { tile, stalls, .. } = *candidate;
        let (product, l2) = self.rates();
        let (resident, accumulators) = (resident as f64, (tile.m * tile.n / 128) as f64);
        // A scheduler has one warp, or two: m/2 or m/4 by n/2 each, twice 16 of K; it loads both factors by `ldmatrix` and its share
        // of a copy.
        let products = (tile.m * tile.n / 256) as f64;
        let shared = ((tile.m + tile.threads() / 128 * tile.n) / 16 + (tile.m + tile.n) / 32) as f64 * 16.0;
        let together = (products * product).max(shared).max(tile.step_bytes() as f64 / l2);
        STEPS * (resident * together).max(stalls) + resident * EPILOGUE * accumulators + FILL
    }
}

/// Bytes of shared memory of a product's block: four stages of `m` and `n` rows of 64 bytes.
pub(crate) const fn shared(m: u32, n: u32) -> u32 {
    4 * (m + n) * 64
}

/// The tile for an [m, n] result of halves on a device: the one whose waves of blocks take the least time, by what the resident
/// blocks ask of tensor cores, shared memory and L2 together.
pub fn choose(m: usize, n: usize, device: TileDevice) -> Tile {
    fastest((m, n), device, |candidate, resident| device.halves(candidate, resident)).0
}

/// The cycles that such a result takes.
pub(super) fn halves_cycles(m: usize, n: usize, device: TileDevice) -> f64 {
    fastest((m, n), device, |candidate, resident| device.halves(candidate, resident)).1
}

/// The same for f32, for which there is no 128x128: its accumulators and operands would not fit the registers.
pub fn choose_f32(m: usize, n: usize, device: TileDevice) -> Tile {
    fastest((m, n), device, |candidate, resident| candidate.f32 * resident as f64).0
}

/// The tile whose waves take least, and how long that is, where `cycles` tells how long some resident blocks take; the largest of equals.
fn fastest((m, n): (usize, usize), device: TileDevice, cycles: impl Fn(&Candidate, usize) -> f64) -> (Tile, f64) {
    let multiprocessors = device.multiprocessors.max(1);
    let time = |candidate: &Candidate| {
        let resident = device.resident(candidate);
        let count = m.div_ceil(candidate.tile.m).max(1) * n.div_ceil(candidate.tile.n).max(1);
        let full = count / (multiprocessors * resident);
        // A last wave that is not full runs faster the fewer blocks share a multiprocessor.
        let rest = (count - full * multiprocessors * resident).div_ceil(multiprocessors);
        let last = if rest > 0 { cycles(candidate, rest) } else { 0.0 };
        let waves = if full > 0 { full as f64 * cycles(candidate, resident) } else { 0.0 };
        waves + last
    };
    let all = CANDIDATES.iter().map(|candidate| (candidate.tile, time(candidate)));
    all.min_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or((Tile::SMALL, 0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const A100: TileDevice = TileDevice { multiprocessors: 108, capability: (8, 0) };
    const H100: TileDevice = TileDevice { multiprocessors: 132, capability: (9, 0) };
    const RTX_4090: TileDevice = TileDevice { multiprocessors: 128, capability: (8, 9) };

    #[test]
    fn tiles_of_sdxl_on_an_h100() {
        let name = |m, n| choose(m, n, H100).name();
        assert_eq!(name(2 * 4096, 10_240), "256x128");
        assert_eq!(name(1 << 20, 128), "256x128");
        // Its convolutions: 128x128, 64x64 and 32x32 pixels of two images. Smaller tiles would ask more of L2 than it gives.
        for (pixels, channels) in [(128 * 128, 320), (64 * 64, 640), (32 * 32, 1280)] {
            assert_eq!(name(2 * pixels, channels), "256x128");
        }
        // Little work: small ones, so that all multiprocessors have some.
        assert_eq!(name(2 * 77, 1280), "64x64");
        assert_eq!(name(1, 1), "64x64");
        // The VAE's in f32.
        assert_eq!([choose_f32(1 << 20, 128, H100).name(), choose_f32(64, 64, H100).name()], ["128x64", "64x64"]);
    }

    /// Blocks that share a multiprocessor: what the assembler's registers and the shared memory allow (docs/kernels.md).
    #[test]
    fn residency() {
        let resident = |device: TileDevice| [0, 1, 2, 3].map(|i| device.resident(&CANDIDATES[i]));
        assert_eq!([A100, H100, RTX_4090].map(resident), [[1, 2, 3, 4], [1, 2, 4, 6], [1, 1, 2, 3]]);
    }

    #[test]
    fn tiles_on_other_devices() {
        assert_eq!(choose(8192, 10_240, A100), Tile::TALL);
        // 160 blocks of 128x128 would keep some of 128 multiprocessors busy twice.
        assert_eq!(choose(2048, 1280, RTX_4090), Tile::MEDIUM);
        // A device that says it has no multiprocessors.
        assert_eq!(choose(1 << 20, 1280, TileDevice { multiprocessors: 0, ..A100 }), Tile::TALL);
    }

    #[test]
    fn grid_coverage() {
        for (m, n) in [(1, 1), (64, 64), (65, 129), (8192, 10_240), (1000, 3)] {
            let tile = choose(m, n, A100);
            let [x, y] = tile.grid(m, n);
            assert!(x as usize * tile.m >= m && (x as usize - 1) * tile.m < m);
            assert!(y as usize * tile.n >= n && (y as usize - 1) * tile.n < n);
        }
    }
}
