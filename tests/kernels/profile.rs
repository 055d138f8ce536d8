//! What the interpreter counts at SDXL's sizes, one block each: the memory that a block touches is that of its tile, so a
//! sample of blocks at true size costs little. Printed (`cargo test --test kernels profile -- --nocapture`), and held to what
//! the kernels' heads promise: no bank conflicts in the main loops, whole sectors.

use crate::common::*;
use braid::device::cuda::params::*;
use braid::device::cuda::tiles;
use braid::tensor::DType;
use braid_ptx::{Counts, Traffic};

const DTYPE: DType = DType::F16;

/// A row of the table that `make kernels` prints: sectors of 32 bytes for each request of a warp beside the fewest possible,
/// passes through the banks for each pass without a conflict.
fn show(kernel: &str, shape: &str, counts: &Counts) {
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

fn rows(data: Pointer, tokens: usize, width: usize) -> Rows {
    Rows { data, batch: (tokens * width) as i64, row: width as i64, head_stride: 64 }
}

#[test]
fn self_attention_of_4096_tokens() {
    if !compiled() {
        return;
    }
    let (tokens, c) = (4096, 640);
    let gpu = Gpu::new();
    let data = gpu.filled(tokens * 3 * c * 2, 0x2c);
    let fused = |part: usize| rows(Pointer(data.0 + (part * c * 2) as u64), tokens, 3 * c);
    let params = AttentionParams {
        q: fused(0),
        k: fused(1),
        v: fused(2),
        out: rows(gpu.room(tokens * c * 2), tokens, c),
        queries: tokens as i32,
        keys: tokens as i32,
        dim: 64,
        scale: tiles::attention_scale(64),
        ..AttentionParams::default()
    };
    let counts = gpu.sample("attention_64", DTYPE, [32, 10, 1], &params, &[[31, 9, 0]]);
    show("attention_64", "4096 tokens, 10 heads of 64", &counts);
    whole_sectors(&counts);
    assert_eq!(counts.shared_loads.passes, counts.shared_loads.ideal);
    assert_eq!(counts.shared_stores.passes, counts.shared_stores.ideal);
}

#[test]
fn convolution_of_1920_channels_from_two_sources() {
    if !compiled() {
        return;
    }
    let (side, c0, c, n) = (32, 1280, 1920, 1280);
    let gpu = Gpu::new();
    let mut params = ConvolutionParams {
        x0: gpu.filled(side * side * c0 * 2, 0x2c),
        x1: gpu.filled(side * side * (c - c0) * 2, 0x2c),
        // The rows of the block.
        w: gpu.filled_from(n * 9 * c * 2, (n - 64) * 9 * c * 2, 0x2c),
        channels0: c0 as i32,
        ..convolution([1, side, side], c, n, 3)
    };
    params.finish = Finish {
        bias: gpu.filled(n * 2, 0x2c),
        residual: gpu.filled(side * side * n * 2, 0x2c),
        out: gpu.room(side * side * n * 2),
        residual_stride: n as i64,
        ..params.finish
    };
    let counts = gpu.sample("convolution_64x64", DTYPE, [16, 20, 1], &params, &[[15, 19, 0]]);
    show("convolution_64x64", "32x32, 1280 + 640 to 1280 channels", &counts);
    whole_sectors(&counts);
    // The way out of the accumulators has 2-way conflicts; the 540 steps of the main loop have none.
    assert!(counts.shared_loads.passes * 100 <= counts.shared_loads.ideal * 101, "{:?}", counts.shared_loads);
}

/// The decoder's deepest in f32, by fma.
#[test]
fn convolution_of_the_decoder_in_f32() {
    if !compiled() {
        return;
    }
    let (side, c) = (128, 512);
    let gpu = Gpu::new();
    let pixel = c * 4;
    let mut params = ConvolutionParams {
        // The last two rows of the picture, and the rows of the block.
        x0: gpu.filled_from(side * side * pixel, (side - 2) * side * pixel, 0x2c),
        w: gpu.filled_from(c * 9 * pixel, (c - 64) * 9 * pixel, 0x2c),
        ..convolution([1, side, side], c, c, 3)
    };
    params.finish = Finish {
        bias: gpu.filled(c * 4, 0x2c),
        residual: gpu.filled_from(side * side * pixel, (side - 1) * side * pixel, 0x2c),
        out: gpu.room(side * side * pixel),
        residual_stride: c as i64,
        ..params.finish
    };
    let counts = gpu.sample("convolution_128x64", DType::F32, [128, 8, 1], &params, &[[127, 7, 0]]);
    show("convolution_128x64", "f32, 128x128, 512 to 512 channels", &counts);
    assert!(counts.loads.sectors * 10 <= counts.loads.ideal * 11, "{:?}", counts.loads);
    // A lane stores its 32 bytes by two stores, which fill a sector together.
    assert_eq!(counts.stores.sectors, 2 * counts.stores.ideal);
    assert!(counts.shared_loads.passes * 100 <= counts.shared_loads.ideal * 101, "{:?}", counts.shared_loads);
}

#[test]
fn product_of_the_feed_forward() {
    if !compiled() {
        return;
    }
    let (m, n, k) = (4096, 2560, 640);
    let gpu = Gpu::new();
    let params = GemmParams {
        x0: gpu.filled(m * k * 2, 0x2c),
        w: gpu.filled(2 * n * k * 2, 0x2c),
        x0_stride: k as i64,
        w_stride: k as i64,
        finish: Finish {
            bias: gpu.filled(2 * n * 2, 0x2c),
            out: gpu.room(m * n * 2),
            out_stride: n as i64,
            ..Finish::default()
        },
        m: m as i32,
        n: n as i32,
        k: k as i32,
        k0: k as i32,
        ..GemmParams::default()
    };
    let counts = gpu.sample("gemm_geglu_128x128", DTYPE, [32, 40, 1], &params, &[[31, 39, 0]]);
    show("gemm_geglu_128x128", "4096 x 640 to 2 x 2560", &counts);
    whole_sectors(&counts);
    // K is short here, so the way out of the accumulators weighs more: value and gate lie 64 bytes apart, a 4-way conflict.
    assert!(counts.shared_loads.passes * 10 <= counts.shared_loads.ideal * 13, "{:?}", counts.shared_loads);
}

/// Text and one image branch of 4 tokens at SDXL's two sizes of the picture.
#[test]
fn cross_attention_with_an_image_branch() {
    if !compiled() {
        return;
    }
    for (tokens, c) in [(4096, 640), (1024, 1280)] {
        let gpu = Gpu::new();
        let source = |n: usize| rows(gpu.filled(n * c * 2, 0x2c), n, c);
        let mut params = DecoupledParams {
            q: source(tokens),
            out: rows(gpu.room(tokens * c * 2), tokens, c),
            counts: gpu.i32(&[77, 4]),
            scales: gpu.f32(&[0.6]),
            queries: tokens as i32,
            dim: 64,
            strands: 2,
            batch: 1,
            scale: tiles::attention_scale(64),
            ..DecoupledParams::default()
        };
        for (strand, n) in [(0, 77), (1, 4)] {
            let (k, v, mask) = (source(n), source(n), Pointer(0));
            params.strand[strand] = Strand { k, v, mask, mask_batch: 0, capacity: n as i32, reserved: 0 };
        }
        let (x, heads) = ((tokens / 64) as u32, (c / 64) as u32);
        let counts = gpu.sample("decoupled_64", DTYPE, [x, heads, 1], &params, &[[x - 1, heads - 1, 0]]);
        show("decoupled_64", &format!("{tokens} queries, 77 + 4 tokens, {heads} heads of 64"), &counts);
        whole_sectors(&counts);
        assert_eq!(counts.shared_loads.passes, counts.shared_loads.ideal);
        assert_eq!(counts.shared_stores.passes, counts.shared_stores.ideal);
    }
}

#[test]
fn products_of_the_projections() {
    if !compiled() {
        return;
    }
    for (tile, m, n, k) in [
        ((128, 128), 4096, 640, 640),
        ((128, 64), 4096, 640, 2560),
        ((64, 64), 1024, 1280, 1280),
        ((64, 64), 77, 1280, 2048),
    ] {
        let tile = tiles::Tile { m: tile.0, n: tile.1 };
        let gpu = Gpu::new();
        let params = GemmParams {
            x0: gpu.filled(m * k * 2, 0x2c),
            w: gpu.filled(n * k * 2, 0x2c),
            x0_stride: k as i64,
            w_stride: k as i64,
            finish: Finish {
                bias: gpu.filled(n * 2, 0x2c),
                residual: gpu.filled(m * n * 2, 0x2c),
                out: gpu.room(m * n * 2),
                residual_stride: n as i64,
                out_stride: n as i64,
                ..Finish::default()
            },
            m: m as i32,
            n: n as i32,
            k: k as i32,
            k0: k as i32,
            ..GemmParams::default()
        };
        let [x, y] = tile.grid(m, n);
        let name = format!("gemm_{}", tile.name());
        let counts = gpu.sample(&name, DTYPE, [x, y, 1], &params, &[[0, y - 1, 0]]);
        show(&name, &format!("{m} x {k} to {n}"), &counts);
        assert_eq!(counts.stores.sectors, counts.stores.ideal);
        assert!(counts.loads.sectors * 10 <= counts.loads.ideal * 12, "{:?}", counts.loads);
        assert!(counts.shared_loads.passes * 10 <= counts.shared_loads.ideal * 12, "{:?}", counts.shared_loads);
    }
}

#[test]
fn norms_at_1024() {
    if !compiled() {
        return;
    }
    let (pixels, c, gpu) = (128 * 128, 320, Gpu::new());
    let slab = tiles::slab(pixels);
    let slabs = pixels / slab;
    let params = GroupNormParams {
        x0: gpu.filled(pixels * c * 2, 0x2c),
        x1: Pointer(0),
        weight: gpu.filled(c * 4, 0x3c),
        bias: gpu.filled(c * 4, 0x3c),
        moments: gpu.filled(slabs * 2 * c * 4, 0x3c),
        lines: gpu.filled(2 * c * 4, 0x3c),
        out: gpu.room(pixels * c * 2),
        pixels: pixels as i32,
        channels0: c as i32,
        channels: c as i32,
        groups: 32,
        slab: slab as i32,
        slabs: slabs as i32,
        silu: 1,
        eps: 1e-5,
    };
    let shape = "128x128, 320 channels";
    let moments = gpu.sample("group_norm_moments", DTYPE, [slabs as u32, 3, 1], &params, &[[0, 0, 0]]);
    show("group_norm_moments", shape, &moments);
    let lines = gpu.sample("group_norm_lines", DType::F32, [32, 1, 1], &params, &[[31, 0, 0]]);
    show("group_norm_lines", shape, &lines);
    let apply = gpu.sample("group_norm_apply", DTYPE, [128, 3, 1], &params, &[[0, 0, 0]]);
    show("group_norm_apply", shape, &apply);
    // Its 16 rows of pixels ask for the same lines.
    assert_eq!((apply.loads.sectors, apply.stores.sectors), (apply.loads.ideal * 6 / 5, apply.stores.ideal));
    let (rows, c) = (4096, 640);
    let params = LayerNormParams {
        x: gpu.filled(rows * c * 2, 0x2c),
        weight: gpu.filled(c * 4, 0x3c),
        bias: gpu.filled(c * 4, 0x3c),
        out: gpu.room(rows * c * 2),
        rows: rows as i32,
        channels: c as i32,
        eps: 1e-5,
        reserved: 0,
    };
    let counts = gpu.sample("layer_norm", DTYPE, [512, 1, 1], &params, &[[511, 0, 0]]);
    show("layer_norm", "4096 x 640", &counts);
    // Of its f32 weights and biases each lane takes 32 bytes by two loads.
    assert_eq!(counts.stores.sectors, counts.stores.ideal);
}
