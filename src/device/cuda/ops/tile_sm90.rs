//! Tiles of products and convolutions by wgmma on sm_90a, and which of them take these kernels.
//!
//! Whether a product is made by these kernels depends on one image's rows alone, since neither `mma.sync` nor the library need round as
//! wgmma does; the tile may depend on all rows, as it changes no bit.
//!
//! A block stays on its multiprocessor and takes tile after tile. Two of them are a cluster: their tiles are neighbours in a row, and each
//! copies half of the rows of X for both.

use super::tile::{FILL, Tile, TileDevice, halves_cycles};

/// The tiles.
const TILES: [Tile; 4] =
    [Tile { m: 256, n: 160 }, Tile { m: 128, n: 256 }, Tile { m: 128, n: 160 }, Tile { m: 128, n: 128 }];

/// Those of e4m3.
const TILES_FP8: [Tile; 4] =
    [Tile { m: 256, n: 160 }, Tile { m: 256, n: 128 }, Tile { m: 128, n: 160 }, Tile { m: 128, n: 128 }];

/// Threads of a block: a group that copies and two that multiply.
pub(super) const THREADS: u32 = 384;

/// Blocks of a cluster.
const CLUSTER: usize = 2;

/// The tiles that the library is taken to choose from, and each one's rate beside the first's. Assumed.
pub const LIBRARY_TILES: [(Tile, f64); 3] =
    [(Tile { m: 128, n: 256 }, 1.0), (Tile { m: 128, n: 128 }, 0.9), (Tile { m: 64, n: 128 }, 0.75)];

/// The length of sums that the library's way in and out costs. Assumed.
pub const LIBRARY_K: f64 = 256.0;

/// Cycles of the library's product of 4096x4096x4096 on 132 multiprocessors: 716 TFLOP/s at 1.45 GHz, as `bench roofline` assumes.
const LIBRARY_4096: f64 = 2.0 * (4096 * 4096) as f64 * 4096.0 * 1.45e9 / 716e12;

/// The lead over the library by which a product that no GPU has timed is taken from it.
const LEAD: f64 = 1.1;

/// The values of K that a step takes, of halves, and those of a usual product.
pub(super) const STEP: usize = 64;
const USUAL: usize = 1280;
/// The values of K of e4m3 that a step takes.
pub const STEP_FP8: usize = 128;

/// Cycles of a scheduler behind the loop for each accumulator of a lane, about.
const FINISH: f64 = 10.0;

/// The same for its part of a result's moments: some 110 instructions a box of 16.
const MOMENTS: f64 = 7.0;

/// Bytes of shared memory of a block: boxes of the result, stages of `m` and `n` rows of 128 bytes with two barriers each.
pub(super) const fn shared(m: u32, n: u32) -> u32 {
    let (results, stage) = (16 << 10, (m + n) * 128);
    let stages = (232_448 - results - 256) / stage;
    let stages = if stages < 6 { stages } else { 6 };
    stages * stage + results + 16 * stages
}

/// The grid for so many rows and columns of tiles.
pub fn grid([rows, columns]: [usize; 2], multiprocessors: usize) -> [u32; 3] {
    let clusters = rows.saturating_mul(columns.div_ceil(CLUSTER)).min((multiprocessors / CLUSTER).max(1));
    [(clusters * CLUSTER) as u32, 1, 1]
}

/// Cycles of a step: what tensor cores, shared memory and L2 ask. An m64nNk16, and of e4m3 an m64nNk32, takes N / 2 of the first and reads
/// its factors at 128 bytes a cycle, at which tiles are written, too; N is `columns`.
fn step_cycles(Tile { m, n }: Tile, columns: usize, device: TileDevice) -> f64 {
    let tensor = (m * n / 32) as f64;
    let shared = (m / 16 * (n / columns) * (2048 + 32 * columns) + (m + n) * 128) as f64;
    let copied = ((m / CLUSTER + n) * 128) as f64;
    let (_, l2) = device.rates();
    tensor.max(shared / 128.0).max(copied / l2)
}

/// Waves of an `[m, n]` result whose tiles are made by `together` blocks in a row each.
fn waves((m, n): (usize, usize), tile: Tile, multiprocessors: usize, together: usize) -> usize {
    let all = m.div_ceil(tile.m) * n.div_ceil(tile.n).div_ceil(together);
    all.div_ceil((multiprocessors / together).max(1)).max(1)
}

/// Cycles of an `[m, n]` result of sums of `k`. With 128 rows and up to 160 columns one group of warps multiplies while the other one
/// stores; larger tiles take both.
pub fn cycles((m, n, k): (usize, usize, usize), tile: Tile, device: TileDevice) -> f64 {
    let waves = waves((m, n), tile, device.multiprocessors, CLUSTER) as f64;
    let apart = tile.m == 128 && tile.n <= 160;
    let finish = FINISH * (tile.m * tile.n / 128) as f64;
    let steps = k.div_ceil(STEP) as f64;
    waves * steps * step_cycles(tile, tile.n, device) + if apart { finish } else { waves * finish } + FILL
}

/// The same of e4m3, whose groups work on one tile. What one group adds in f32 lies under what the other multiplies: of 256x160, 320
/// additions of a scheduler's warps under 1,280 cycles of a step. 160 columns of 256 rows leave registers for sums of 80 columns.
pub fn cycles_fp8((m, n, k): (usize, usize, usize), tile: Tile, device: TileDevice) -> f64 {
    let waves = waves((m, n), tile, device.multiprocessors, CLUSTER) as f64;
    let columns = if (tile.m, tile.n) == (256, 160) { 80 } else { tile.n };
    let (steps, finish) = (k.div_ceil(STEP_FP8) as f64, FINISH * (tile.m * tile.n / 128) as f64);
    waves * (steps * step_cycles(tile, columns, device) + finish) + FILL
}

/// Cycles that an `[m, n]` result's moments add, where no other tile is multiplied meanwhile.
pub fn moments_cycles((m, n): (usize, usize), tile: Tile, fp8: bool, device: TileDevice) -> f64 {
    let apart = !fp8 && tile.m == 128 && tile.n <= 160;
    let waves = if apart { 1 } else { waves((m, n), tile, device.multiprocessors, CLUSTER) };
    MOMENTS * (waves * tile.m * tile.n / 128) as f64
}

/// The tile for an `[m, n]` result, `n` being the rows of W: the one that takes the least time.
pub fn choose(m: usize, n: usize, device: TileDevice) -> Tile {
    let time = |tile: &&Tile| cycles((m, n, USUAL), **tile, device);
    TILES.iter().min_by(|a, b| time(a).total_cmp(&time(b))).copied().unwrap_or(TILES[0])
}

/// The same of e4m3, of sums of `k`.
pub fn choose_fp8((m, n, k): (usize, usize, usize), device: TileDevice) -> Tile {
    let time = |tile: &&Tile| cycles_fp8((m, n, k), **tile, device);
    TILES_FP8.iter().min_by(|a, b| time(a).total_cmp(&time(b))).copied().unwrap_or(TILES_FP8[0])
}

/// Whether a product of images of so many rows is made here on such a device rather than by the kernels of every architecture: where two
/// images, guidance's, take less time.
pub fn takes(rows: usize, n: usize, device: TileDevice) -> bool {
    let (m, tile) = (2 * rows, choose(2 * rows, n, device));
    device.capability == (9, 0) && cycles((m, n, USUAL), tile, device) < halves_cycles(m, n, device)
}

/// Multiplications of the fullest multiprocessor in a product of the library's, at the rate of its first tile: whole waves of the tile that
/// takes least.
pub fn library_work((m, n, k): (usize, usize, usize), multiprocessors: usize) -> f64 {
    let work = |(tile, rate): (Tile, f64)| {
        waves((m, n), tile, multiprocessors, 1) as f64 * (tile.m * tile.n) as f64 * (k as f64 + LIBRARY_K) / rate
    };
    LIBRARY_TILES.into_iter().map(work).fold(f64::INFINITY, f64::min)
}

/// Whether it is made here although the library would take it: where that takes clearly longer, sums of `k` counted.
pub fn beats_library(rows: usize, n: usize, k: usize, device: TileDevice) -> bool {
    let (m, tile) = (2 * rows, choose(2 * rows, n, device));
    let work = library_work((m, n, k), device.multiprocessors) / library_work((4096, 4096, 4096), 132);
    cycles((m, n, k), tile, device) * LEAD < work * LIBRARY_4096
}

#[cfg(test)]
mod tests {
    use super::*;

    const H100: TileDevice = TileDevice { multiprocessors: 132, capability: (9, 0) };

    /// At 1024x1024 with guidance 128 tiles of 128x160 take a wave of 132 multiprocessors; so do 128 of 256x160.
    #[test]
    fn full_waves() {
        let counts = |m, n| TILES.map(|tile| waves((m, n), tile, 132, CLUSTER));
        assert_eq!(counts(2048, 1280), [1, 1, 1, 2]);
        assert_eq!(counts(8192, 640), [1, 2, 2, 3]);
        assert_eq!(counts(2048, 10_240), [4, 5, 8, 10]);
        assert_eq!([waves((0, 8), TILES[0], 132, 1), waves((1, 1), TILES[0], 0, 2)], [1, 1]);
    }

    #[test]
    fn tiles_of_sdxl() {
        let name = |m, n| choose(m, n, H100).name();
        assert_eq!(name(2048, 1280), "128x160");
        assert_eq!(name(8192, 640), "256x160");
        assert_eq!(name(32_768, 320), "256x160");
        assert_eq!(name(2048, 3840), "128x160");
        // GEGLU's, both halves.
        assert_eq!([name(2048, 10_240), name(8192, 5120)], ["256x160", "256x160"]);
        // An image of 512x512 without guidance.
        assert_eq!(name(1024, 640), "128x128");
        // A device that says it has no multiprocessors.
        assert_eq!(choose(1 << 20, 1280, TileDevice { multiprocessors: 0, ..H100 }).m, 256);
    }

    #[test]
    fn products_by_wgmma() {
        for (rows, n) in [(1024, 1280), (4096, 640), (1024, 10_240), (4096, 5120), (1024, 640), (16_384, 512)] {
            assert!(takes(rows, n, H100), "{rows} {n}");
            assert!(
                !takes(rows, n, TileDevice { capability: (10, 0), ..H100 })
                    && !takes(rows, n, TileDevice { capability: (8, 0), ..H100 })
            );
        }
        // Few rows: smaller tiles keep more multiprocessors busy.
        for (rows, n) in [(1, 1280), (77, 640)] {
            assert!(!takes(rows, n, H100), "{rows} {n}");
        }
        // The library's waves are full but for 1280 columns of 32x32 pixels and the projections and sums of 640 channels.
        for (rows, n, k) in [(1024, 1280, 1280), (1024, 1280, 5120), (4096, 640, 640), (4096, 640, 2560)] {
            assert!(beats_library(rows, n, k, H100), "{rows} {n} {k}");
        }
        for (rows, n, k) in [(1024, 3840, 1280), (2048, 4096, 4096), (77, 1280, 2048)] {
            assert!(!beats_library(rows, n, k, H100), "{rows} {n} {k}");
        }
    }

    /// Shared memory bounds a step of the largest tile, L2 those of the others. A wave that is not full costs as much as one that is.
    #[test]
    fn cycles_of_waves() {
        assert_eq!(step_cycles(Tile { m: 256, n: 160 }, 160, H100), 1312.0);
        assert_eq!(step_cycles(Tile { m: 128, n: 160 }, 160, H100), (224 * 128) as f64 / 31.3);
        let of = |m, n, k| cycles((m, 160, k), Tile { m: 128, n }, H100).round();
        let (step, finish) = (step_cycles(Tile { m: 128, n: 160 }, 160, H100), 160.0 * FINISH);
        assert_eq!([of(128, 160, 128), of(66 * 128, 160, 65)], [(2.0 * step + finish + FILL).round(); 2]);
        assert_eq!(of(67 * 128, 160, 128), (4.0 * step + finish + FILL).round());
        // Stores that nothing hides.
        let step = step_cycles(Tile { m: 128, n: 256 }, 256, H100);
        assert_eq!(of(67 * 128, 256, 64), (2.0 * (step + 256.0 * FINISH) + FILL).round());
    }

    /// Of e4m3 shared memory bounds both tiles of 256 rows, a step of which is 128 values of K.
    #[test]
    fn tiles_of_fp8() {
        assert_eq!(step_cycles(Tile { m: 256, n: 160 }, 80, H100), 1568.0);
        assert_eq!(step_cycles(Tile { m: 256, n: 128 }, 128, H100), 1152.0);
        let name = |m, n, k| choose_fp8((m, n, k), H100).name();
        assert_eq!([name(2048, 1280, 1280), name(2048, 1280, 5120)], ["128x160"; 2]);
        assert_eq!([name(8192, 640, 5760), name(32_768, 320, 2880)], ["256x160"; 2]);
        assert_eq!([name(2048, 3840, 1280), name(2048, 10_240, 1280), name(8192, 5120, 640)], ["256x128"; 3]);
        let tile = Tile { m: 256, n: 128 };
        // Two waves of 66 pairs of tiles, two steps each.
        assert_eq!(cycles_fp8((256 * 67, 128, 129), tile, H100), 2.0 * (2.0 * 1152.0 + 256.0 * FINISH) + FILL);
    }

    /// Six, five, four and four stages beside the result's boxes, all within the 227 KiB that a block may ask for.
    #[test]
    fn shared_memory() {
        let all = [(128, 128), (128, 160), (256, 160), (128, 256)].map(|(m, n)| shared(m, n));
        assert_eq!(all, [213_088, 200_784, 229_440, 213_056]);
        assert!(all.iter().all(|bytes| *bytes <= 227 << 10));
    }

    /// Whole clusters, of which there are no more than work or multiprocessors for.
    #[test]
    fn grids() {
        let blocks = |rows, columns, multiprocessors| grid([rows, columns], multiprocessors)[0];
        assert_eq!([blocks(1, 1, 132), blocks(3, 4, 132), blocks(3, 5, 132)], [2, 12, 18]);
        assert_eq!([blocks(100, 8, 132), blocks(100, 8, 131), blocks(100, 8, 0)], [132, 130, 2]);
    }
}
