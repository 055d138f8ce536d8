use crate::common::*;
use braid::device::cuda::ops::group_norm::GroupNormParams;
use braid::device::cuda::ops::kernel::blocks;
use braid::device::cuda::ops::layer_norm::LayerNormParams;
use braid::device::cuda::ops::softmax_rows::SoftmaxParams;
use braid::tensor::DType;

struct Case {
    images: usize,
    pixels: usize,
    channels: [usize; 2],
    groups: usize,
    chunk: usize,
    silu: bool,
    mean: f32,
}

fn group_norm(dtype: DType, case: &Case) -> Vec<f32> {
    let &Case { images, pixels, channels, groups, chunk, silu, mean } = case;
    let c = channels[0] + channels[1];
    let gpu = Gpu::new();
    let source = |s: usize| -> Vec<f32> {
        let x = values(images * pixels * channels[s], 1 + s as u32);
        rounded(dtype, &x.iter().map(|x| x + mean).collect::<Vec<_>>())
    };
    let x = [source(0), source(1)];
    let (weight, bias) = (values(c, 3), values(c, 4));
    let chunks = pixels.div_ceil(chunk);
    let out = gpu.room(images * pixels * c * dtype.size());
    let params = GroupNormParams {
        x0: gpu.upload(dtype, &x[0]),
        x1: gpu.upload(dtype, &x[1]),
        weight: gpu.f32(&weight),
        bias: gpu.f32(&bias),
        moments0: gpu.room(images * chunks * 2 * channels[0] * 4),
        moments1: gpu.room(images * chunks * 2 * channels[1] * 4),
        lines: gpu.room(images * 2 * c * 4),
        out,
        pixels: pixels as i32,
        channels0: channels[0] as i32,
        channels: c as i32,
        groups: groups as i32,
        chunk: chunk as i32,
        chunks: chunks as i32,
        silu: silu.into(),
        eps: 1e-5,
    };
    let wide = blocks(c, 128);
    // Read after each, so that two devices are compared in what is between, too.
    gpu.launch("group_norm_moments", dtype, [chunks as u32, wide, images as u32], &params);
    for (at, width) in [params.moments0, params.moments1].into_iter().zip(channels) {
        gpu.download(DType::F32, at, images * chunks * 2 * width);
    }
    gpu.launch("group_norm_lines", DType::F32, [groups as u32, images as u32, 1], &params);
    gpu.download(DType::F32, params.lines, images * 2 * c);
    gpu.launch("group_norm_apply", dtype, [blocks(pixels, 128), wide, images as u32], &params);
    // Row by row, channels joined.
    let joined: Vec<f32> = (0..images * pixels)
        .flat_map(|row| [0, 1].map(|s| x[s][row * channels[s]..][..channels[s]].to_vec()).concat())
        .collect();
    let mut want = vec![0.0; images * pixels * c];
    let mut naive = vec![0.0; images * pixels * c];
    let width = c / groups;
    for image in 0..images {
        for group in 0..groups {
            let all: Vec<usize> = (0..pixels)
                .flat_map(|p| (group * width..(group + 1) * width).map(move |i| (image * pixels + p) * c + i))
                .collect();
            let n = all.len() as f64;
            let mean = all.iter().map(|&i| f64::from(joined[i])).sum::<f64>() / n;
            let variance = all.iter().map(|&i| (f64::from(joined[i]) - mean).powi(2)).sum::<f64>() / n;
            for &i in &all {
                let line = (f64::from(joined[i]) - mean) / (variance + 1e-5).sqrt() * f64::from(weight[i % c]);
                let y = line + f64::from(bias[i % c]);
                want[i] = if silu { swish(y, 1.0) } else { y };
            }
            let n = n as f32;
            let mean = all.iter().map(|&i| joined[i]).sum::<f32>() / n;
            let variance = all.iter().map(|&i| (joined[i] - mean).powi(2)).sum::<f32>() / n;
            for &i in &all {
                let y = (joined[i] - mean) / (variance + 1e-5).sqrt() * weight[i % c] + bias[i % c];
                naive[i] = if silu { y / (1.0 + (-y).exp()) } else { y };
            }
        }
    }
    let got = gpu.download(dtype, out, want.len());
    let what = format!("{dtype} {pixels} {channels:?} {groups}");
    if dtype == DType::F32 {
        within_f32(&what, &got, &want, &naive);
    } else {
        // Where the mean is taken off, its multiples in f32 are larger than the results.
        let largest = want.iter().fold(0f64, |a, b| a.max(b.abs()));
        close_beside(&what, dtype, &got, &want, largest + f64::from(mean) / 10.0);
    }
    got
}

#[test]
fn group_norm_sources() {
    if !compiled() {
        return;
    }
    let plain = Case { images: 2, pixels: 70, channels: [64, 0], groups: 32, chunk: 32, silu: false, mean: 0.0 };
    for dtype in ALL {
        group_norm(dtype, &plain);
        // 320 channels in 32 groups of 10, which no 16-byte unit respects; groups across the seam.
        group_norm(dtype, &Case { channels: [320, 0], pixels: 35, silu: true, ..plain });
        group_norm(dtype, &Case { channels: [40, 152], pixels: 33, silu: true, ..plain });
        group_norm(dtype, &Case { channels: [8, 0], groups: 1, pixels: 1, ..plain });
        group_norm(dtype, &Case { channels: [32, 0], groups: 4, pixels: 300, chunk: 17, ..plain });
    }
    // More chunks of a group's channels than a block joins at once.
    group_norm(DType::BF16, &Case { images: 1, channels: [32, 0], groups: 1, pixels: 265, chunk: 4, ..plain });
    // A mean far from zero costs no digits.
    group_norm(DType::F16, &Case { mean: 100.0, ..plain });
    group_norm(DType::F32, &Case { mean: 100.0, ..plain });
    // An image is the same alone and in a batch.
    let run = |images| group_norm(DType::F16, &Case { images, channels: [40, 24], ..plain });
    let (alone, batch) = (run(1), run(4));
    assert_eq!(alone[..], batch[..alone.len()]);
}

#[test]
fn layer_norm_of_odd_widths() {
    if !compiled() {
        return;
    }
    for dtype in HALVES {
        for (rows, c) in [(1, 8), (9, 264), (3, 1280), (5, 2048)] {
            let gpu = Gpu::new();
            let x = rounded(dtype, &values(rows * c, 1).iter().map(|x| 3.0 * x + 1.0).collect::<Vec<_>>());
            let (weight, bias) = (values(c, 2), values(c, 3));
            let out = gpu.room(rows * c * 2);
            let params = LayerNormParams {
                x: gpu.upload(dtype, &x),
                weight: gpu.f32(&weight),
                bias: gpu.f32(&bias),
                out,
                rows: rows as i32,
                channels: c as i32,
                eps: 1e-5,
                reserved: 0,
            };
            gpu.launch("layer_norm", dtype, [blocks(rows, 8), 1, 1], &params);
            let mut want = Vec::new();
            for row in x.chunks_exact(c) {
                let mean = wide(row).iter().sum::<f64>() / c as f64;
                let variance = wide(row).iter().map(|x| (x - mean).powi(2)).sum::<f64>() / c as f64;
                let line = |i: usize| (f64::from(row[i]) - mean) / (variance + 1e-5).sqrt() * f64::from(weight[i]);
                want.extend((0..c).map(|i| line(i) + f64::from(bias[i])));
            }
            close(&format!("{dtype} {rows} {c}"), dtype, &gpu.download(dtype, out, rows * c), &want);
        }
    }
}

#[test]
fn row_softmax_padding() {
    if !compiled() {
        return;
    }
    for dtype in ALL {
        for (rows, columns, stride) in [(1, 1, 8), (3, 77, 80), (2, 1000, 1000), (2, 513, 520)] {
            let gpu = Gpu::new();
            let x: Vec<f32> = values(rows * columns, 1).iter().map(|x| 20.0 * x).collect();
            let out = gpu.room(rows * stride * dtype.size());
            let params = SoftmaxParams {
                scores: gpu.f32(&x),
                out,
                scores_stride: columns as i64,
                out_stride: stride as i64,
                columns: columns as i32,
                scale: std::f32::consts::LOG2_E * 0.5,
            };
            gpu.launch("softmax_rows", dtype, [rows as u32, 1, 1], &params);
            let (mut want, mut naive) = (Vec::new(), Vec::new());
            for row in x.chunks_exact(columns) {
                let sum: f64 = wide(row).iter().map(|x| (0.5 * x).exp()).sum();
                want.extend(wide(row).iter().map(|x| (0.5 * x).exp() / sum));
                want.resize(want.len() + stride - columns, 0.0);
                let greatest = row.iter().fold(f32::NEG_INFINITY, |a, b| a.max(0.5 * b));
                let weights: Vec<f32> = row.iter().map(|x| (0.5 * x - greatest).exp()).collect();
                let sum: f32 = weights.iter().sum();
                naive.extend(weights.iter().map(|w| w / sum));
                naive.resize(want.len(), 0.0);
            }
            let got = gpu.download(dtype, out, rows * stride);
            // f16 loses the smallest weights.
            let what = format!("softmax {dtype} {rows} {columns}");
            close(&what, dtype, &got, &want);
            if dtype == DType::F32 {
                within_f32(&what, &got, &want, &naive);
            }
            assert!(got.chunks_exact(stride).all(|row| row[columns..].iter().all(|x| *x == 0.0)));
        }
    }
}
