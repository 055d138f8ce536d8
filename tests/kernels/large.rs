//! True sizes over sparse memory: a few blocks of launches whose tensors have more than 2^31 elements, of the longest K, of the
//! VAE's images at 1024x1024. Only what the blocks read is written, so a read of anything else is a fault.

use crate::common::*;
use braid::device::cuda::ops::attention::AttentionParams;
use braid::device::cuda::ops::branches::{DecoupledParams, KvBranch};
use braid::device::cuda::ops::convolution::ConvolutionParams;
use braid::device::cuda::ops::convolution_narrow::NarrowParams;
use braid::device::cuda::ops::epilogue::EpilogueParams;
use braid::device::cuda::ops::gemm::GemmParams;
use braid::device::cuda::ops::group_norm;
use braid::device::cuda::ops::group_norm::GroupNormParams;
use braid::device::cuda::ops::kernel::{Pointer, blocks};
use braid::device::cuda::ops::layer_norm::LayerNormParams;
use braid::device::cuda::ops::pointwise::{AddParams, GegluParams, UnaryParams};
use braid::device::cuda::ops::softmax_rows::SoftmaxParams;
use braid::device::cuda::ops::strided_tensor::{StridedTensor, softmax_scale};
use braid::tensor::DType;

/// A tensor of which any value can be had and only some are in memory.
#[derive(Clone, Copy)]
struct Sparse {
    at: Pointer,
    dtype: DType,
    seed: u64,
    gain: f32,
}

impl Sparse {
    fn new(gpu: &Gpu, dtype: DType, elements: usize, seed: u64, gain: f32) -> Self {
        Self { at: gpu.room(elements * dtype.size()), dtype, seed, gain }
    }

    /// In -gain..gain, as the type holds it.
    fn value(&self, i: usize) -> f32 {
        let mut x = (i as u64 ^ self.seed << 48).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        x = (x ^ x >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
        let x = ((x >> 40) as f32 / (1 << 23) as f32 - 1.0) * self.gain;
        match self.dtype {
            DType::F16 => half::f16::from_f32(x).to_f32(),
            DType::BF16 => half::bf16::from_f32(x).to_f32(),
            _ => x,
        }
    }

    fn wide(&self, i: usize) -> f64 {
        f64::from(self.value(i))
    }

    /// Puts these elements into memory.
    fn fill(self, gpu: &Gpu, elements: std::ops::Range<usize>) -> Self {
        let x: Vec<f32> = elements.clone().map(|i| self.value(i)).collect();
        gpu.put(Pointer(self.at.0 + (elements.start * self.dtype.size()) as u64), self.dtype, &x);
        self
    }
}

/// The element `i` of a result.
fn part(at: Pointer, i: usize, dtype: DType) -> Pointer {
    Pointer(at.0 + (i * dtype.size()) as u64)
}

/// A 3x3 convolution with padding 1; the last 64x64 block of it.
struct ConvInput {
    images: usize,
    side: usize,
    channels: [usize; 2],
    n: usize,
}

fn last_block_of_a_convolution(dtype: DType, s: &ConvInput) {
    let &ConvInput { images, side, channels, n } = s;
    let (c, pixels, gpu) = (channels[0] + channels[1], images * side * side, Gpu::new());
    let k = 9 * c;
    // The rows under the last 64 pixels and the one above.
    let first = pixels - (64usize.div_ceil(side) + 1) * side;
    let x = [0, 1].map(|i| {
        let x = Sparse::new(&gpu, dtype, pixels * channels[i], 1 + i as u64, 1.0);
        x.fill(&gpu, first * channels[i]..pixels * channels[i])
    });
    let w = Sparse::new(&gpu, dtype, n * k, 3, 1.7 / (k as f32).sqrt()).fill(&gpu, (n - 64) * k..n * k);
    let residual = Sparse::new(&gpu, dtype, pixels * n, 4, 1.0).fill(&gpu, (pixels - 64) * n..pixels * n);
    let out = gpu.room(pixels * n * dtype.size());
    let mut params =
        ConvolutionParams { x0: x[0].at, x1: x[1].at, w: w.at, ..convolution([images, side, side], c, n, 3) };
    params.channels0 = channels[0] as i32;
    params.finish = EpilogueParams { residual: residual.at, out, residual_stride: n as i64, ..params.finish };
    let grid = [blocks(pixels, 64), blocks(n, 64), 1];
    gpu.sample("convolution_64x64", dtype, grid, &params, &[[grid[0] - 1, grid[1] - 1, 0]]);
    let weights: Vec<f64> = ((n - 64) * k..n * k).map(|i| w.wide(i)).collect();
    let (mut got, mut want) = (Vec::new(), Vec::new());
    for m in (pixels - 64)..pixels {
        let (y, x0) = (m / side % side, m % side);
        let mut patch = vec![0.0; k];
        for tap in 0..9 {
            let (sy, sx) = ((y + tap / 3).wrapping_sub(1), (x0 + tap % 3).wrapping_sub(1));
            if sy < side && sx < side {
                let at = m / (side * side) * side * side + sy * side + sx;
                for i in 0..c {
                    let (s, i0) = if i < channels[0] { (0, i) } else { (1, i - channels[0]) };
                    patch[tap * c + i] = x[s].wide(at * channels[s] + i0);
                }
            }
        }
        let dot = |w: &[f64]| patch.iter().zip(w).map(|(a, b)| a * b).sum::<f64>();
        let row = m * n + n - 64;
        want.extend(weights.chunks_exact(k).enumerate().map(|(i, w)| dot(w) + residual.wide(row + i)));
        got.extend(gpu.download(dtype, part(out, row, dtype), 64));
    }
    // A tensor core cuts off after eight products: each time up to 2^-24 of the sum so far, all in one direction.
    let largest = want.iter().fold(0f64, |a, b| a.max(b.abs()));
    let cuts = (9 * (channels[0] + channels[1])) as f64 / 8.0 * 2f64.powi(-24) / 3e-6;
    close_beside(
        &format!("{dtype} {images} of {side}x{side}, {channels:?} to {n}"),
        dtype,
        &got,
        &want,
        largest * cuts.max(1.0),
    );
}

/// The up blocks' longest sum: 1280 + 1280 channels under nine taps.
#[test]
fn convolution_with_k_of_23040() {
    if !fits(1) {
        return;
    }
    for dtype in HALVES {
        last_block_of_a_convolution(dtype, &ConvInput { images: 1, side: 32, channels: [1280, 1280], n: 1280 });
    }
}

/// 2^32 elements before the last image's: a product of 32 bits would lie in the first.
#[test]
fn seventeenth_image_of_1024() {
    if !fits(27) {
        return;
    }
    for dtype in ALL {
        last_block_of_a_convolution(dtype, &ConvInput { images: 17, side: 1024, channels: [256, 0], n: 256 });
    }
}

/// The VAE's last doubling, 512x512 to 1024x1024 as four 2x2 convolutions, in the ninth image; the weights are as given.
#[test]
fn doubling_to_1024() {
    if !fits(7) {
        return;
    }
    for dtype in [DType::BF16, DType::F32] {
        doubling(dtype);
    }
}

fn doubling(dtype: DType) {
    let (images, side, c, n) = (9, 512, 256, 256);
    let (pixels, gpu) = (images * side * side, Gpu::new());
    let k = 4 * c;
    let x = Sparse::new(&gpu, dtype, pixels * c, 1, 1.0).fill(&gpu, (pixels - 2 * side) * c..pixels * c);
    let w = Sparse::new(&gpu, dtype, 4 * n * k, 2, 0.05).fill(&gpu, 0..4 * n * k);
    let out = gpu.room(4 * pixels * n * dtype.size());
    let mut params = ConvolutionParams { x0: x.at, w: w.at, phases: 4, ..convolution([images, side, side], c, n, 2) };
    params.finish.out = out;
    let grid = [blocks(pixels, 64), blocks(n, 64), 4];
    let blocks: Vec<[u32; 3]> = (0..4).map(|phase| [grid[0] - 1, 3, phase]).collect();
    gpu.sample("convolution_64x64", dtype, grid, &params, &blocks);
    let (mut got, mut want) = (Vec::new(), Vec::new());
    for m in (pixels - 64)..pixels {
        for phase in 0..4 {
            let (a, b) = (phase / 2, phase % 2);
            let mut patch = vec![0.0; k];
            for tap in 0..4 {
                let (sy, sx) = (m / side % side + a + tap / 2, m % side + b + tap % 2);
                // One row and column of padding before.
                if (1..=side).contains(&sy) && (1..=side).contains(&sx) {
                    let at = m / (side * side) * side * side + (sy - 1) * side + sx - 1;
                    (0..c).for_each(|i| patch[tap * c + i] = x.wide(at * c + i));
                }
            }
            let row = ((2 * (m / side) + a) * 2 * side + 2 * (m % side) + b) * n + 192;
            for i in 192..n {
                let from = (phase * n + i) * k;
                want.push(patch.iter().enumerate().map(|(j, x)| x * w.wide(from + j)).sum());
            }
            got.extend(gpu.download(dtype, part(out, row, dtype), 64));
        }
    }
    close(&format!("{dtype} doubling to 1024"), dtype, &got, &want);
}

#[test]
fn product_with_more_than_2_32_elements() {
    if !fits(17) {
        return;
    }
    for dtype in HALVES {
        let (m, n, k, gpu) = ((1 << 22) + 33, 1024, 1024, Gpu::new());
        let x = Sparse::new(&gpu, dtype, m * k, 1, 1.0).fill(&gpu, (m - 33) * k..m * k);
        let w = Sparse::new(&gpu, dtype, n * k, 2, 0.05).fill(&gpu, (n - 64) * k..n * k);
        let out = gpu.room(m * n * 2);
        let mut params = GemmParams { x0: x.at, w: w.at, ..product(m, n, k) };
        params.finish.out = out;
        let grid = [blocks(m, 64), 16, 1];
        gpu.sample("gemm_64x64", dtype, grid, &params, &[[grid[0] - 1, 15, 0]]);
        let (mut got, mut want) = (Vec::new(), Vec::new());
        for row in m - 33..m {
            got.extend(gpu.download(dtype, part(out, row * n + n - 64, dtype), 64));
            let dot = |column: usize| (0..k).map(|i| x.wide(row * k + i) * w.wide(column * k + i)).sum::<f64>();
            want.extend((n - 64..n).map(dot));
        }
        close(&format!("{dtype}"), dtype, &got, &want);
    }
}

/// Rows 2^27 elements apart, so that the second block's lie past 2^32; both attentions.
#[test]
fn attention_over_rows_far_apart() {
    if !fits(163) {
        return;
    }
    let (tokens, dim, row, dtype) = (130, 64, 1usize << 27, DType::F16);
    let gpu = Gpu::new();
    let source = |seed| {
        let x = Sparse::new(&gpu, dtype, tokens * row, seed, 1.5);
        (0..tokens).fold(x, |x, t| x.fill(&gpu, t * row..t * row + dim))
    };
    let x = [source(1), source(2), source(3)];
    let rows = |data: Pointer| StridedTensor { data, batch: 0, row: row as i64, head_stride: 0 };
    let [q, k, v] = x.map(|x| rows(x.at));
    let want: Vec<f64> = (0..tokens)
        .flat_map(|t| {
            let dot = |key: usize| (0..dim).map(|i| x[0].wide(t * row + i) * x[1].wide(key * row + i)).sum::<f64>();
            let weights: Vec<f64> = (0..tokens).map(|key| (dot(key) / 8.0).exp()).collect();
            let sum: f64 = weights.iter().sum();
            let column = move |i: usize| {
                weights.iter().enumerate().map(|(key, w)| w * x[2].wide(key * row + i)).sum::<f64>() / sum
            };
            (0..dim).map(column).collect::<Vec<_>>()
        })
        .collect();
    let check = |name: &str, out: Pointer| {
        let got: Vec<f32> = (0..tokens).flat_map(|t| gpu.download(dtype, part(out, t * row, dtype), dim)).collect();
        within(name, 8e-4, &got, &want);
    };
    let (queries, scale) = (tokens as i32, softmax_scale(dim));
    let out = gpu.room(tokens * row * 2);
    let params = AttentionParams {
        q,
        k,
        v,
        out: rows(out),
        queries,
        keys: queries,
        dim: 64,
        scale,
        ..AttentionParams::default()
    };
    gpu.launch("attention_64", dtype, [2, 1, 1], &params);
    check("attention", out);
    let out = gpu.room(tokens * row * 2);
    let mut params = DecoupledParams {
        q,
        out: rows(out),
        counts: gpu.i32(&[queries]),
        scales: gpu.f32(&[0.0]),
        queries,
        dim: 64,
        branches: 1,
        batch: 1,
        scale,
        ..DecoupledParams::default()
    };
    params.branch[0] = KvBranch { k, v, mask: Pointer(0), mask_batch: 0, capacity: queries, reserved: 0 };
    gpu.launch("decoupled_64", dtype, [3, 1, 1], &params);
    check("decoupled", out);
}

/// 256 channels at 1024x1024, the ninth image: the last chunk's moments, a group joined from all chunks, the last block's result.
#[test]
fn group_norm_at_1024() {
    if !fits(10) {
        return;
    }
    for dtype in [DType::BF16, DType::F32] {
        group_norm(dtype);
    }
}

fn group_norm(dtype: DType) {
    let (images, pixels, c, groups) = (9usize, 1usize << 20, 256, 32);
    let (chunk, last, gpu) = (group_norm::pixels_of_part(pixels), 8usize, Gpu::new());
    let (chunks, end) = (pixels / chunk, images * pixels * c);
    let x = Sparse::new(&gpu, dtype, end, 1, 1.0).fill(&gpu, end - chunk * c..end);
    let moments = Sparse::new(&gpu, DType::F32, images * chunks * 2 * c, 2, 1.0);
    let from = last * chunks * 2 * c;
    // Means and, a row of channels later, sums of squares; what is positive may serve as both.
    let known = |i: usize| moments.value(i).abs();
    let all: Vec<f32> = (from..from + chunks * 2 * c).map(known).collect();
    gpu.put(part(moments.at, from, DType::F32), DType::F32, &all);
    let lines = gpu.room(images * 2 * c * 4);
    let out = gpu.room(end * dtype.size());
    let params = GroupNormParams {
        x0: x.at,
        x1: Pointer(0),
        weight: gpu.f32(&vec![1.5; c]),
        bias: gpu.f32(&vec![0.25; c]),
        moments0: moments.at,
        moments1: Pointer(0),
        lines,
        out,
        pixels: pixels as i32,
        channels0: c as i32,
        channels: c as i32,
        groups,
        chunk: chunk as i32,
        chunks: chunks as i32,
        silu: 0,
        eps: 1e-5,
    };
    // The last group of the last image, from moments that are given.
    gpu.sample("group_norm_lines", DType::F32, [32, 9, 1], &params, &[[31, 8, 0]]);
    let entries: Vec<(f64, f64)> = (0..chunks)
        .flat_map(|s| (c - 8..c).map(move |i| from + s * 2 * c + i))
        .map(|i| (f64::from(known(i)), f64::from(known(i + c))))
        .collect();
    let mean = entries.iter().map(|e| e.0).sum::<f64>() / entries.len() as f64;
    let squares: f64 = entries.iter().map(|e| e.1 + chunk as f64 * (e.0 - mean).powi(2)).sum();
    let scale = 1.5 / (squares / (entries.len() * chunk) as f64 + 1e-5).sqrt();
    let line = |i: usize| part(lines, last * 2 * c + i, DType::F32);
    within("factors", 1e-5, &gpu.download(DType::F32, line(c - 8), 8), &[scale; 8]);
    within("summands", 1e-5, &gpu.download(DType::F32, line(2 * c - 8), 8), &[0.25 - mean * scale; 8]);
    // The last chunk's moments, of 128 channels.
    gpu.sample("group_norm_moments", dtype, [chunks as u32, 2, 9], &params, &[[chunks as u32 - 1, 1, 8]]);
    let channel = |i: usize| (0..chunk).map(move |p| x.wide(end - (chunk - p) * c + i));
    let want: Vec<f64> = (128..c).map(|i| channel(i).sum::<f64>() / chunk as f64).collect();
    let at = (images * chunks - 1) * 2 * c + 128;
    within("means", 1e-4, &gpu.download(DType::F32, part(moments.at, at, DType::F32), 128), &want);
    // The last block's result; its lines are given.
    let factors: Vec<f32> = (0..2 * c).map(|i| 0.5 + i as f32 / 512.0).collect();
    gpu.put(line(0), DType::F32, &factors);
    gpu.sample("group_norm_apply", dtype, [8192, 2, 9], &params, &[[8191, 1, 8]]);
    for pixel in [0, 127] {
        let row = end - (128 - pixel) * c + 128;
        let want: Vec<f64> =
            (128..c).map(|i| x.wide(row + i - 128) * f64::from(factors[i]) + f64::from(factors[c + i])).collect();
        close("applied", dtype, &gpu.download(dtype, part(out, row, dtype), 128), &want);
    }
}

/// The VAE's first and last convolution at 1024x1024, in the seventeenth image.
#[test]
fn narrow_convolutions_at_1024() {
    if !fits(9) {
        return;
    }
    let (images, side) = (17, 1024);
    let pixels = images * side * side;
    for dtype in ALL {
        for (name, c, n, outputs) in [("convolution_few_in", 3, 128, 128), ("convolution_few_out_4", 128, 3, 0)] {
            let gpu = Gpu::new();
            let x = Sparse::new(&gpu, dtype, pixels * c, 1, 1.0).fill(&gpu, (pixels - 2 * side) * c..pixels * c);
            let w = Sparse::new(&gpu, dtype, n * 9 * c, 2, 0.2).fill(&gpu, 0..n * 9 * c);
            let out = gpu.room(pixels * n * dtype.size());
            let params = NarrowParams { x: x.at, w: w.at, out, ..narrow(images, side, c, n) };
            let grid = [blocks(pixels, 16), blocks(outputs.max(1), 128), 1];
            gpu.sample(name, dtype, grid, &params, &[[grid[0] - 1, 0, 0]]);
            let mut want = Vec::new();
            for m in pixels - 16..pixels {
                for o in 0..n {
                    let mut sum = 0.0;
                    for tap in 0..9 {
                        // The last row of the image: nothing is below it.
                        let (dy, column) = (tap / 3, m % side + tap % 3);
                        if dy < 2 && (1..=side).contains(&column) {
                            let at = (m / side + dy - 1) * side + column - 1;
                            sum += (0..c).map(|i| x.wide(at * c + i) * w.wide((o * 9 + tap) * c + i)).sum::<f64>();
                        }
                    }
                    want.push(sum);
                }
            }
            let got = gpu.download(dtype, part(out, (pixels - 16) * n, dtype), 16 * n);
            close(&format!("{name} {dtype}"), dtype, &got, &want);
        }
    }
}

/// Rows of 320 channels up to element 2^32: the last block of each.
#[test]
fn pointwise_and_rows_past_2_32_elements() {
    if !fits(54) {
        return;
    }
    let (dtype, c) = (DType::F16, 320);
    let rows = (1usize << 32) / c + 64;
    let gpu = Gpu::new();
    let (end, tail) = (rows * c, 64 * c);
    let a = Sparse::new(&gpu, dtype, end, 1, 1.0).fill(&gpu, end - tail..end);
    let b = Sparse::new(&gpu, dtype, 2 * end, 2, 1.0).fill(&gpu, 2 * (end - tail)..2 * end);
    let out = gpu.room(2 * end * 2);
    let grid = [blocks(rows * c / 8, 256), 1, 1];
    let last = [[grid[0] - 1, 0, 0]];
    // The last units, all within the last block.
    let few = end - 64..end;
    let result = |i: usize| gpu.download(dtype, part(out, i, dtype), 64);

    let params = AddParams {
        a: a.at,
        b: b.at,
        out,
        rows: rows as i64,
        each: 1,
        rows_b: 2 * rows as i64,
        channels: c as i32,
        reserved: 0,
    };
    // b's rows are given from twice as far on.
    let shifted = AddParams { b: part(b.at, end, dtype), ..params };
    gpu.sample("add", dtype, grid, &shifted, &last);
    close("add", dtype, &result(few.start), &few.clone().map(|i| a.wide(i) + b.wide(end + i)).collect::<Vec<_>>());

    let params = GegluParams { x: b.at, out, rows: rows as i64, channels: c as i32, reserved: 0 };
    gpu.sample("geglu", dtype, grid, &params, &last);
    let half = |i: usize, side: usize| b.wide((i / c * 2 + side) * c + i % c);
    let want: Vec<f64> = few.clone().map(|i| half(i, 0) * gelu(half(i, 1))).collect();
    close("geglu", dtype, &result(few.start), &want);

    let params = UnaryParams { x: a.at, out, count: end as i64, scale: 0.5, shift: 2.0 };
    gpu.sample("scale_shift", dtype, grid, &params, &last);
    close("scale_shift", dtype, &result(few.start), &few.map(|i| 0.5 * a.wide(i) + 2.0).collect::<Vec<_>>());

    let params = LayerNormParams {
        x: a.at,
        weight: gpu.f32(&vec![1.0; c]),
        bias: gpu.f32(&vec![0.0; c]),
        out,
        rows: rows as i32,
        channels: c as i32,
        eps: 1e-5,
        reserved: 0,
    };
    let grid = [blocks(rows, 8), 1, 1];
    gpu.sample("layer_norm", dtype, grid, &params, &[[grid[0] - 1, 0, 0]]);
    let row: Vec<f64> = (end - c..end).map(|i| a.wide(i)).collect();
    let mean = row.iter().sum::<f64>() / c as f64;
    let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / c as f64;
    let want: Vec<f64> = row.iter().map(|x| (x - mean) / (variance + 1e-5).sqrt()).collect();
    close("layer_norm", dtype, &gpu.download(dtype, part(out, end - c, dtype), c), &want);

    // Scores of the VAE's attention at 1024x1024: 128 * 128 columns.
    let (rows, columns) = ((1 << 17) + 1, 1 << 14);
    let scores = Sparse::new(&gpu, DType::F32, rows * columns, 3, 8.0).fill(&gpu, (rows - 1) * columns..rows * columns);
    let row: Vec<f64> = ((rows - 1) * columns..rows * columns).map(|i| scores.wide(i).exp()).collect();
    let sum: f64 = row.iter().sum();
    let want: Vec<f64> = row.iter().map(|x| x / sum).collect();
    for dtype in [DType::BF16, DType::F32] {
        let out = gpu.room(rows * columns * dtype.size());
        let params = SoftmaxParams {
            scores: scores.at,
            out,
            scores_stride: columns as i64,
            out_stride: columns as i64,
            columns: columns as i32,
            scale: std::f32::consts::LOG2_E,
        };
        gpu.sample("softmax_rows", dtype, [rows as u32, 1, 1], &params, &[[rows as u32 - 1, 0, 0]]);
        let got = gpu.download(dtype, part(out, (rows - 1) * columns, dtype), columns);
        close("softmax_rows", dtype, &got, &want);
    }
}
