//! What the interpreter counts at SDXL's sizes, one block each: the memory that a block touches is that of its tile, so a
//! sample of blocks at true size costs little. Printed (`cargo test --test kernels profile -- --nocapture`), and held to what
//! the kernels' heads promise: no bank conflicts in the main loops, whole sectors.

use crate::common::*;
use braid::device::cuda::params::*;
use braid::device::cuda::tiles;
use braid::tensor::DType;
use braid_ptx::Counts;

const DTYPE: DType = DType::F16;

fn show(what: &str, counts: &Counts) {
    println!(
        "{what}: {} warp instructions, mma share {:.2}, shared loads {:.3} and stores {:.3} of the ideal passes, global loads \
         {:.2} and stores {:.2} of the ideal sectors",
        counts.instructions(),
        counts.mma_share(),
        counts.shared_loads.passes as f64 / counts.shared_loads.ideal.max(1) as f64,
        counts.shared_stores.passes as f64 / counts.shared_stores.ideal.max(1) as f64,
        counts.loads.sectors as f64 / counts.loads.ideal.max(1) as f64,
        counts.stores.sectors as f64 / counts.stores.ideal.max(1) as f64,
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
    show("attention, 4096 tokens, 10 heads of 64", &counts);
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
    let params = ConvolutionParams {
        x0: gpu.filled(side * side * c0 * 2, 0x2c),
        x1: gpu.filled(side * side * (c - c0) * 2, 0x2c),
        // The rows of the block.
        w: gpu.filled_from(n * 9 * c * 2, (n - 64) * 9 * c * 2, 0x2c),
        finish: Finish {
            bias: gpu.filled(n * 2, 0x2c),
            residual: gpu.filled(side * side * n * 2, 0x2c),
            out: gpu.room(side * side * n * 2),
            residual_stride: n as i64,
            out_stride: n as i64,
            rows_of_image: (side * side) as i32,
            ..Finish::default()
        },
        pixels: (side * side) as i32,
        n: n as i32,
        channels0: c0 as i32,
        channels: c as i32,
        height: side as i32,
        width: side as i32,
        result_height: side as i32,
        result_width: side as i32,
        kernel_y: 3,
        kernel_x: 3,
        stride: 1,
        padding_y: 1,
        padding_x: 1,
        phases: 1,
    };
    let counts = gpu.sample("convolution_64x64", DTYPE, [16, 20, 1], &params, &[[15, 19, 0]]);
    show("convolution 64x64, 32x32, 1280 + 640 to 1280 channels", &counts);
    whole_sectors(&counts);
    // The way out of the accumulators has 2-way conflicts; the 540 steps of the main loop have none.
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
    show("gemm with GEGLU 128x128, 4096 x 640 to 2 x 2560", &counts);
    whole_sectors(&counts);
    // K is short here, so the way out of the accumulators weighs more: value and gate lie 64 bytes apart, a 4-way conflict.
    assert!(counts.shared_loads.passes * 10 <= counts.shared_loads.ideal * 13, "{:?}", counts.shared_loads);
}
