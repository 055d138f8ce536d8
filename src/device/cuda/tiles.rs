//! How work is cut for the kernels: pure functions of shapes.
//!
//! A product's result does not depend on its tile (each element is one chain of `mma` in order of K), and the statistics' slab
//! depends on the image alone, so nothing here can make an image depend on what shares its batch.

/// The tile of a product: rows and columns of the result that a block makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tile {
    /// Rows.
    pub m: usize,
    /// Columns of W that a block multiplies; a GEGLU block makes half as many columns of the result.
    pub n: usize,
}

impl Tile {
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
const TILES: [(Tile, f64); 3] =
    [(Tile { m: 128, n: 128 }, 3.2), (Tile { m: 128, n: 64 }, 1.75), (Tile { m: 64, n: 64 }, 1.0)];

/// Blocks of 128 threads that run on a multiprocessor at once, by shared memory on the smallest device (100 KiB).
const RESIDENT: [usize; 3] = [1, 2, 3];

/// The tile for an [m, n] result on a device of that many multiprocessors: the one whose waves of blocks take the least time.
pub fn product(m: usize, n: usize, multiprocessors: usize) -> Tile {
    fastest(0, m, n, multiprocessors)
}

/// The same of f32, for which there is no 128x128: its accumulators and operands would not fit the registers.
pub fn f32_product(m: usize, n: usize, multiprocessors: usize) -> Tile {
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

/// The tile of `gemm_geglu`, which has no 128x64; `n` is the width of the result.
pub fn geglu(m: usize, n: usize, multiprocessors: usize) -> Tile {
    match product(m, 2 * n, multiprocessors) {
        Tile { m: 128, n: 64 } => TILES[0].0,
        tile => tile,
    }
}

/// The kernel for heads of that width and the queries that a block takes; `None` where no kernel takes it: above 112, or not a
/// multiple of 8.
pub fn attention(dim: usize) -> Option<(&'static str, usize)> {
    match dim {
        _ if dim == 0 || !dim.is_multiple_of(8) => None,
        ..=64 => Some(("attention_64", 128)),
        65..=80 => Some(("attention_80", 128)),
        81..=112 => Some(("attention_112", 64)),
        _ => None,
    }
}

/// As [`attention`] for decoupled attention.
pub fn decoupled(dim: usize) -> Option<(&'static str, usize)> {
    match attention(dim)?.0 {
        "attention_64" => Some(("decoupled_64", 64)),
        "attention_80" => Some(("decoupled_80", 64)),
        _ => Some(("decoupled_112", 64)),
    }
}

/// Pixels of a slab of group normalisation's statistics: about 64 slabs an image, of 32 to 512 pixels.
pub fn group_norm_pixels(pixels: usize) -> usize {
    (pixels / 64).next_power_of_two().clamp(32, 512)
}

/// The factor of attention's exponent: log2(e) / sqrt(dim).
pub fn attention_scale(dim: usize) -> f32 {
    (std::f64::consts::LOG2_E / (dim as f64).sqrt()) as f32
}

/// Blocks of that size which cover `count`.
pub fn blocks(count: usize, size: usize) -> u32 {
    u32::try_from(count.div_ceil(size)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_of_sdxl_on_an_h100() {
        let name = |m, n| product(m, n, 132).name();
        // Plenty of work: the large tile. Little: small ones, so that all multiprocessors have some.
        assert_eq!(name(2 * 4096, 10_240), "128x128");
        assert_eq!(name(1 << 20, 128), "128x128");
        assert_eq!(name(2 * 128 * 128, 320), "128x64");
        assert_eq!(name(2 * 77, 1280), "64x64");
        assert_eq!(name(1, 1), "64x64");
        // The VAE's in f32.
        assert_eq!([f32_product(1 << 20, 128, 132).name(), f32_product(64, 64, 132).name()], ["128x64", "64x64"]);
        assert_eq!(geglu(2 * 1024, 5120, 132).n, 128);
        assert_eq!(geglu(4, 64, 132).n, 64);
    }

    #[test]
    fn grids_cover_the_result() {
        for (m, n) in [(1, 1), (64, 64), (65, 129), (8192, 10_240), (1000, 3)] {
            let tile = product(m, n, 108);
            let [x, y] = tile.grid(m, n);
            assert!(x as usize * tile.m >= m && (x as usize - 1) * tile.m < m);
            assert!(y as usize * tile.n >= n && (y as usize - 1) * tile.n < n);
        }
    }

    #[test]
    fn heads_and_slabs() {
        assert_eq!(attention(64), Some(("attention_64", 128)));
        assert_eq!(attention(8), Some(("attention_64", 128)));
        assert_eq!(attention(80), Some(("attention_80", 128)));
        assert_eq!(attention(104), Some(("attention_112", 64)));
        assert_eq!([attention(0), attention(20), attention(120), attention(512)], [None; 4]);
        assert_eq!(decoupled(64), Some(("decoupled_64", 64)));
        assert_eq!([1, 1024, 4096, 16_384, 1 << 20].map(group_norm_pixels), [32, 32, 64, 256, 512]);
        assert!((attention_scale(64) - 0.180_336_9).abs() < 1e-7);
    }
}
