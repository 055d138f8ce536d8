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
    /// The largest.
    pub const LARGE: Self = Self { m: 128, n: 128 };
    /// The one in between.
    pub const MEDIUM: Self = Self { m: 128, n: 64 };
    /// The smallest.
    pub const SMALL: Self = Self { m: 64, n: 64 };

    /// The end of the kernel's name, e.g. `128x64`.
    pub fn name(self) -> String {
        format!("{}x{}", self.m, self.n)
    }

    /// Blocks of the result in x (rows) and y (columns).
    pub fn grid(self, m: usize, n: usize) -> [u32; 2] {
        [blocks(m, self.m), blocks(n, self.n)]
    }
}

/// The tiles of `gemm` and `convolution`, and the time of one step of K in a block relative to a 64x64 tile, per block: larger
/// tiles reuse more of what they load.
const TILES: [(Tile, f64); 3] = [(Tile::LARGE, 3.2), (Tile::MEDIUM, 1.75), (Tile::SMALL, 1.0)];

/// Blocks of 128 threads that run on a multiprocessor at once, by shared memory on the smallest device (100 KiB).
const RESIDENT: [usize; 3] = [1, 2, 3];

/// Bytes of shared memory of a product's block: four stages of `m` and `n` rows of 64 bytes.
pub(crate) const fn shared(m: u32, n: u32) -> u32 {
    4 * (m + n) * 64
}

/// The tile for an [m, n] result of halves on a device of that many multiprocessors: the one whose waves of blocks take the least
/// time.
pub fn choose(m: usize, n: usize, multiprocessors: usize) -> Tile {
    fastest(0, m, n, multiprocessors)
}

/// The same for f32, for which there is no 128x128: its accumulators and operands would not fit the registers.
pub fn choose_f32(m: usize, n: usize, multiprocessors: usize) -> Tile {
    fastest(1, m, n, multiprocessors)
}

/// The fastest of the tiles from that one on.
fn fastest(first: usize, m: usize, n: usize, multiprocessors: usize) -> Tile {
    let mut best = (f64::INFINITY, TILES[first].0);
    for ((tile, cost), resident) in TILES.into_iter().zip(RESIDENT).skip(first) {
        let count = m.div_ceil(tile.m).max(1) * n.div_ceil(tile.n).max(1);
        let multiprocessors = multiprocessors.max(1);
        let full = count / (multiprocessors * resident);
        // A last wave that is not full runs faster the fewer blocks share a multiprocessor.
        let rest = (count - full * multiprocessors * resident).div_ceil(multiprocessors);
        let time = cost * (full * resident + rest) as f64;
        if time < best.0 {
            best = (time, tile);
        }
    }
    best.1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_of_sdxl_on_an_h100() {
        let name = |m, n| choose(m, n, 132).name();
        // Plenty of work: the large tile. Little: small ones, so that all multiprocessors have some.
        assert_eq!(name(2 * 4096, 10_240), "128x128");
        assert_eq!(name(1 << 20, 128), "128x128");
        assert_eq!(name(2 * 128 * 128, 320), "128x64");
        assert_eq!(name(2 * 77, 1280), "64x64");
        assert_eq!(name(1, 1), "64x64");
        // The VAE's in f32.
        assert_eq!([choose_f32(1 << 20, 128, 132).name(), choose_f32(64, 64, 132).name()], ["128x64", "64x64"]);
    }

    #[test]
    fn grid_coverage() {
        for (m, n) in [(1, 1), (64, 64), (65, 129), (8192, 10_240), (1000, 3)] {
            let tile = choose(m, n, 108);
            let [x, y] = tile.grid(m, n);
            assert!(x as usize * tile.m >= m && (x as usize - 1) * tile.m < m);
            assert!(y as usize * tile.n >= n && (y as usize - 1) * tile.n < n);
        }
    }
}
