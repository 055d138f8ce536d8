//! The interpreter's counts at SDXL's sizes, one block each: the memory that a block touches is that of its tile, so a
//! sample of blocks at true size costs little. Printed (`cargo test --test kernels profile -- --nocapture`), and held to what
//! the kernels' heads promise: no bank conflicts in the main loops, whole sectors.

use crate::common::*;
use crate::shapes::*;
use braid::device::cuda::ops::tile::Tile;
use braid::tensor::DType;
use braid_ptx::{Counts, Traffic};

/// A row of the table that `make kernels` prints: sectors of 32 bytes for each request of a warp beside the fewest possible,
/// passes through the banks for each pass without a conflict.
fn show(Shape { kernel, shape, .. }: &Shape, counts: &Counts) {
    static HEAD: std::sync::Once = std::sync::Once::new();
    HEAD.call_once(|| {
        println!(
            "| kernel | shape | warp instructions | mma share | load sectors | store sectors | load ways | store ways |"
        );
        println!("|---|---|--:|--:|--:|--:|--:|--:|");
    });
    let sectors = |t: Traffic| {
        let requests = t.requests.max(1) as f64;
        format!("{:.2} of {:.2}", t.sectors as f64 / requests, t.ideal as f64 / requests)
    };
    println!(
        "| `{kernel}` | {shape} | {} | {:.3} | {} | {} | {:.3} | {:.3} |",
        counts.instructions(),
        counts.mma_share(),
        sectors(counts.loads),
        sectors(counts.stores),
        counts.shared_loads.ways(),
        counts.shared_stores.ways(),
    );
}

/// Stores fill their sectors; loads do, but for biases, which the quarters of a warp load again for each of their rows.
fn whole_sectors(counts: &Counts) {
    assert_eq!(counts.stores.sectors, counts.stores.ideal);
    assert!(counts.loads.sectors * 10 <= counts.loads.ideal * 11, "{:?}", counts.loads);
}

/// A block stores each element of `rows` by `columns` halves once.
fn stored_once(counts: &Counts, rows: usize, columns: usize) {
    assert_eq!(counts.stores.sectors as usize * 32, rows * columns * 2, "{:?}", counts.stores);
}

/// One block of a launch, shown.
fn block(gpu: &Gpu, shape: &Shape, block: [u32; 3]) -> Counts {
    let counts = gpu.sample_of(&shape.kernel, shape.dtype, shape.grid, &shape.params, &[block]);
    show(shape, &counts);
    counts
}

fn last(shape: &Shape) -> [u32; 3] {
    shape.grid.map(|n| n - 1)
}

#[test]
fn self_attention_of_4096_tokens() {
    if !counted() {
        return;
    }
    let gpu = Gpu::new();
    let shape = attention(&gpu, 4096, 640);
    let counts = block(&gpu, &shape, last(&shape));
    whole_sectors(&counts);
    assert_eq!(counts.shared_loads.passes, counts.shared_loads.ideal);
    assert_eq!(counts.shared_stores.passes, counts.shared_stores.ideal);
}

#[test]
fn convolution_of_1920_channels_from_two_sources() {
    if !counted() {
        return;
    }
    let gpu = Gpu::new();
    // Of the weights only the rows of the block.
    let shape = convolved(&gpu, "64x64", 32, [1280, 640], 1280, 1280 - 64);
    main_loop_without_conflicts(&block(&gpu, &shape, last(&shape)), Tile::SMALL);
}

/// The way out of the accumulators has 2-way conflicts; the steps of a long main loop have none.
fn main_loop_without_conflicts(counts: &Counts, tile: Tile) {
    whole_sectors(counts);
    stored_once(counts, tile.m, tile.n);
    assert!(counts.shared_loads.passes * 100 <= counts.shared_loads.ideal * 101, "{:?}", counts.shared_loads);
}

#[test]
fn convolution_by_eight_warps() {
    if !counted() {
        return;
    }
    let gpu = Gpu::new();
    let shape = convolved(&gpu, "256x128", 64, [640, 320], 640, 640 - 128);
    main_loop_without_conflicts(&block(&gpu, &shape, last(&shape)), Tile::TALL);
}

/// The decoder's deepest in f32, by fma.
#[test]
fn convolution_of_the_decoder_in_f32() {
    if !counted() {
        return;
    }
    let gpu = Gpu::new();
    let shape = convolved_as(DType::F32, &gpu, "128x64", 128, [512, 0], 512, 512 - 64);
    let counts = block(&gpu, &shape, last(&shape));
    assert!(counts.loads.sectors * 10 <= counts.loads.ideal * 11, "{:?}", counts.loads);
    // A lane stores its 32 bytes by two stores, which fill a sector together.
    assert_eq!(counts.stores.sectors, 2 * counts.stores.ideal);
    assert!(counts.shared_loads.passes * 100 <= counts.shared_loads.ideal * 101, "{:?}", counts.shared_loads);
}

#[test]
fn product_of_the_feed_forward() {
    if !counted() {
        return;
    }
    for tile in [Tile::TALL, Tile::LARGE] {
        let gpu = Gpu::new();
        let shape = geglu(&gpu, tile, 4096, 2560, 640);
        let counts = block(&gpu, &shape, last(&shape));
        whole_sectors(&counts);
        stored_once(&counts, tile.m, tile.n / 2);
        assert_eq!(counts.shared_loads.passes, counts.shared_loads.ideal);
        assert_eq!(counts.shared_stores.passes, counts.shared_stores.ideal);
    }
}

/// Text and one image branch of 4 tokens at SDXL's two sizes of the image.
#[test]
fn cross_attention_with_an_image_branch() {
    if !counted() {
        return;
    }
    for (tokens, c) in [(4096, 640), (1024, 1280)] {
        let gpu = Gpu::new();
        let shape = decoupled(&gpu, tokens, c);
        let counts = block(&gpu, &shape, last(&shape));
        whole_sectors(&counts);
        assert_eq!(counts.shared_loads.passes, counts.shared_loads.ideal);
        assert_eq!(counts.shared_stores.passes, counts.shared_stores.ideal);
    }
}

#[test]
fn products_of_the_projections() {
    if !counted() {
        return;
    }
    for (tile, m, n, k) in [
        (Tile::TALL, 4096, 640, 640),
        (Tile::LARGE, 4096, 640, 640),
        (Tile::MEDIUM, 4096, 640, 2560),
        (Tile::SMALL, 1024, 1280, 1280),
        (Tile::SMALL, 77, 1280, 2048),
    ] {
        let gpu = Gpu::new();
        let shape = projection(&gpu, tile, m, n, k);
        let counts = block(&gpu, &shape, [0, shape.grid[1] - 1, 0]);
        assert_eq!(counts.stores.sectors, counts.stores.ideal);
        stored_once(&counts, tile.m.min(m), tile.n);
        assert!(counts.loads.sectors * 10 <= counts.loads.ideal * 12, "{:?}", counts.loads);
        assert!(counts.shared_loads.passes * 10 <= counts.shared_loads.ideal * 12, "{:?}", counts.shared_loads);
    }
}

#[test]
fn norms_at_1024() {
    if !counted() {
        return;
    }
    let gpu = Gpu::new();
    let [moments, lines, apply] = group_norm(&gpu, 128, 320);
    block(&gpu, &moments, [0, 0, 0]);
    block(&gpu, &lines, [31, 0, 0]);
    let apply = block(&gpu, &apply, [0, 0, 0]);
    // Its 16 rows of pixels ask for the same lines.
    assert_eq!((apply.loads.sectors, apply.stores.sectors), (apply.loads.ideal * 6 / 5, apply.stores.ideal));
    let shape = layer_norm(&gpu, 4096, 640);
    let counts = block(&gpu, &shape, last(&shape));
    // Of its f32 weights and biases each lane takes 32 bytes by two loads.
    assert_eq!(counts.stores.sectors, counts.stores.ideal);
}
