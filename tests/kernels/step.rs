use crate::common::*;
use braid::device::cuda::ops::kernel::{Pointer, blocks};
use braid::device::cuda::ops::step::{AdvanceParams, FiniteParams, ModelInputParams, Rgb8Params, StepParams};
use braid::tensor::DType;
use braid_ptx::Schedule;

/// A row of the table, in the order of its columns; masks as the bits of a float.
type Row = [f32; 36];

/// The row of weights, where `history` has those of each tensor's next value; a tensor without any is not written.
fn row(weights: [f32; 9], x_from_history: [f32; 3], history: [[f32; 7]; 3]) -> Row {
    let mut row = [0.0; 36];
    row[..9].copy_from_slice(&weights);
    row[9..12].copy_from_slice(&x_from_history);
    row[12..33].copy_from_slice(history.as_flattened());
    let reads = |k: usize| x_from_history[k] != 0.0 || history.iter().any(|to| to[4 + k] != 0.0);
    let mask = |bit: &dyn Fn(usize) -> bool| f32::from_bits((0..3).map(|k| u32::from(bit(k)) << k).sum());
    row[33] = mask(&reads);
    row[34] = mask(&|k| history[k] != [0.0; 7]);
    row
}

fn guide(negative: &[f64], positive: &[f64], scale: f64, rescale: f64) -> Vec<f64> {
    let out: Vec<f64> = negative.iter().zip(positive).map(|(n, p)| n + scale * (p - n)).collect();
    let deviation = |x: &[f64]| {
        let mean = x.iter().sum::<f64>() / x.len() as f64;
        x.iter().map(|v| (v - mean).powi(2)).sum::<f64>().sqrt()
    };
    let (wanted, found) = (deviation(positive), deviation(&out));
    if rescale > 0.0 && found > 0.0 {
        return out.iter().map(|o| rescale * o * wanted / found + (1.0 - rescale) * o).collect();
    }
    out
}

fn advance(row: &Row, x: &mut [f64], output: &[f64], history: &mut [Vec<f64>; 3], noise: &[f64]) {
    let r = row.map(f64::from);
    for i in 0..x.len() {
        let x0 = (r[2] * x[i] + r[3] * output[i]).clamp(-r[4], r[4]);
        let before: [f64; 3] = std::array::from_fn(|k| history[k][i]);
        let sum = |w: [f64; 4], from: &[f64]| {
            let own = w[0] * x[i] + w[1] * output[i] + w[2] * x0 + w[3] * noise[i];
            own + from.iter().zip(before).map(|(w, h)| w * h).sum::<f64>()
        };
        let next = sum([r[5], r[6], r[7], r[8]], &r[9..12]);
        for (k, to) in r[12..33].chunks(7).enumerate().filter(|(_, to)| to.iter().any(|w| *w != 0.0)) {
            history[k][i] = sum([to[0], to[1], to[2], to[3]], &to[4..]);
        }
        x[i] = next;
    }
}

/// Three steps of two images: the counter, the table, history, noise in two slots, guidance with rescale for one of them.
#[test]
fn step_table() {
    if !compiled() {
        return;
    }
    let inf = f32::INFINITY;
    let none = [0.0; 7];
    let table: [Row; 3] = [
        row(
            [981.0, 0.5, 1.1, -0.4, inf, 0.9, 0.3, 0.0, 0.2],
            [0.0; 3],
            [[1.1, -0.4, 0.0, 0.0, 0.0, 0.0, 0.0], none, [0.5, 0.0, 0.0, 0.3, 0.0, 0.0, 0.0]],
        ),
        // Every weight that there is, each tensor read before it is written.
        row(
            [500.0, 0.6, 1.2, -0.5, 0.4, 0.8, 0.2, 0.3, 0.1],
            [-0.25, 0.0, 0.15],
            [
                [0.3, 0.1, 1.0, 0.2, -0.6, 0.0, 0.7],
                [0.0, 0.0, 0.0, 0.0, 0.9, 0.0, 0.1],
                [0.0, 0.0, 1.0, 0.0, 0.2, 0.0, 0.3],
            ],
        ),
        // The first tensor stays as it is.
        row(
            [1.0, 0.7, 1.0, -0.6, inf, 0.7, 0.1, 0.0, 0.0],
            [0.5, -0.3, 0.2],
            [none, [0.0, 0.0, 0.0, 0.4, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0]],
        ),
    ];
    let images = 2;
    for (n, is_guided) in [(5000, true), (12, true), (2100, false)] {
        let gpu = Gpu::new();
        let x = values(images * n, 1);
        let rows = if is_guided { 2 * images } else { images };
        let noise = values(2 * images * n, 2);
        let guidance = [5.0, 0.0, 7.5, 0.7];
        let chunks = n.div_ceil(2048);
        let counter = gpu.i32(&[0]);
        let progress = gpu.i32(&[-1]);
        let flags = gpu.i32(&[i32::MAX; 2]);
        let x_at = gpu.f32(&x);
        let mut params = StepParams {
            x: x_at,
            // Unwritten before the first step, whose weights for it are zero.
            history: gpu.room(3 * images * n * 4),
            noise: gpu.f32(&noise),
            table: gpu.f32(table.as_flattened()),
            guidance: gpu.f32(&guidance),
            moments: gpu.room(images * chunks * 16),
            step: counter,
            not_finite: flags,
            // Positive rows first, then the negative ones.
            image_stride: n as i64,
            negative: if is_guided { (images * n) as i64 } else { 0 },
            n: n as i32,
            images: images as i32,
            steps: 3,
            noise_slots: 2,
            ..StepParams::default()
        };
        let mut want = wide(&x);
        let mut history: [[Vec<f64>; 3]; 2] = std::array::from_fn(|_| std::array::from_fn(|_| vec![0.0; n]));
        for (s, row) in table.iter().enumerate() {
            for dtype in HALVES {
                let sample = gpu.room(rows * n * 2);
                let input = ModelInputParams {
                    x: x_at,
                    out: sample,
                    table: params.table,
                    step: counter,
                    image_stride: params.image_stride,
                    negative: params.negative,
                    n: n as i32,
                    steps: 3,
                    ..ModelInputParams::default()
                };
                gpu.launch("model_input", dtype, [blocks(n, 1024), images as u32, 1], &input);
                let exact: Vec<f64> = want.iter().map(|x| x * f64::from(row[1])).collect();
                let exact = exact.repeat(rows / images);
                close(&format!("input of step {s}"), dtype, &gpu.download(dtype, sample, rows * n), &exact);
            }
            // Chunks of different means, and an image whose guided output is constant: no deviation to rescale by.
            let mut output = values(rows * n, 10 + s as u32);
            output.iter_mut().enumerate().for_each(|(i, x)| *x += (i % n / 2048) as f32);
            if n == 12 {
                output.iter_mut().enumerate().filter(|(i, _)| i / n % 2 == 1).for_each(|(_, x)| *x = 0.75);
            }
            params.output = gpu.f32(&output);
            gpu.launch("guidance_moments", DType::F32, [chunks as u32, images as u32, 1], &params);
            if is_guided {
                // The second image's alone, which rescales: so that two devices are compared in them, too.
                gpu.download(DType::F32, Pointer(params.moments.0 + chunks as u64 * 16), chunks * 4);
            }
            gpu.once("step", DType::F32, [blocks(n, 1024), images as u32, 1], &params, Schedule::Random(3));
            let output = wide(&output);
            for i in 0..images {
                let (at, negative) = (i * n..(i + 1) * n, (images + i) * n);
                let out = match is_guided {
                    true => {
                        let [scale, rescale] = [0, 1].map(|k| f64::from(guidance[2 * i + k]));
                        guide(&output[negative..negative + n], &output[at.clone()], scale, rescale)
                    }
                    false => output[at.clone()].to_vec(),
                };
                let fresh = wide(&noise[(s % 2 * images + i) * n..][..n]);
                advance(row, &mut want[at], &out, &mut history[i], &fresh);
            }
            within(&format!("step {s} of {n}"), 2e-6, &gpu.download(DType::F32, x_at, images * n), &want);
            for k in [0, 1, 2].into_iter().filter(|k| s > 0 || *k != 1) {
                let at = Pointer(params.history.0 + (k * images * n * 4) as u64);
                let kept: Vec<f64> = history.iter().flat_map(|image| image[k].clone()).collect();
                within(&format!("history {k} of {s}"), 2e-6, &gpu.download(DType::F32, at, images * n), &kept);
            }
            let advance = AdvanceParams { step: counter, progress };
            gpu.once("step_advance", DType::F32, [1, 1, 1], &advance, Schedule::InOrder);
            assert_eq!(gpu.read(counter, 4), gpu.read(progress, 4));
        }
        assert_eq!(gpu.read(counter, 4), 3i32.to_le_bytes());
        assert_eq!(gpu.read(flags, 8), [i32::MAX; 2].map(i32::to_le_bytes).concat());
    }
}

/// A counter past the table's end takes its last row; noise past element 2^31 is found.
#[test]
fn step_past_the_table() {
    if !fits(11) {
        return;
    }
    let (gpu, n) = (Gpu::new(), 40);
    let row = row([0.0, 0.5, 1.0, 0.0, 9.0, 0.25, 0.0, 0.0, 2.0], [0.0; 3], [[0.0; 7]; 3]);
    let x = values(n, 1);
    let (table, step, x_at) = (gpu.f32(&row), gpu.i32(&[(1 << 26) - 1]), gpu.f32(&x));
    let out = gpu.room(n * 2);
    let input = ModelInputParams {
        x: x_at,
        out,
        table,
        step,
        image_stride: n as i64,
        n: n as i32,
        steps: 1,
        ..Default::default()
    };
    gpu.launch("model_input", DType::F16, [1, 1, 1], &input);
    let scaled = |factor: f64| wide(&x).iter().map(|x| x * factor).collect::<Vec<_>>();
    close("input", DType::F16, &gpu.download(DType::F16, out, n), &scaled(0.5));
    // Of 2^26 slots the last.
    let fresh = values(n, 2);
    let noise = gpu.room(n << 28);
    gpu.put(Pointer(noise.0 + (n as u64 * ((1 << 26) - 1)) * 4), DType::F32, &fresh);
    let params = StepParams {
        x: x_at,
        noise,
        output: gpu.f32(&vec![0.0; n]),
        table,
        guidance: gpu.f32(&[1.0, 0.0]),
        step,
        not_finite: gpu.i32(&[i32::MAX]),
        image_stride: n as i64,
        n: n as i32,
        images: 1,
        steps: 1,
        noise_slots: 1 << 26,
        ..StepParams::default()
    };
    let want: Vec<f64> = scaled(0.25).iter().zip(&fresh).map(|(x, n)| x + 2.0 * f64::from(*n)).collect();
    gpu.once("step", DType::F32, [1, 1, 1], &params, Schedule::InOrder);
    close("step", DType::F32, &gpu.download(DType::F32, x_at, n), &want);
}

/// Latents with the channels of an inpainting model beside them, of two images; and latents that a mask keeps after a step.
#[test]
fn inpainting() {
    if !compiled() {
        return;
    }
    let (gpu, images, pixels, [channels, extra]) = (Gpu::new(), 2, 700, [4, 5]);
    let (n, sample) = (pixels * channels, pixels * (channels + extra));
    let weights = |timestep, scale| [timestep, scale, 1.0, -0.5, f32::INFINITY, 0.9, 0.3, 0.0, 0.0];
    let table: [Row; 3] =
        [[900.0, 0.5], [500.0, 0.6], [1.0, 0.7]].map(|[t, scale]| row(weights(t, scale), [0.0; 3], [[0.0; 7]; 3]));
    // The last step keeps nothing.
    let levels = [[0.8f32, 0.6], [1.0, 0.0], [0.0, 0.0]];
    let (x, beside, output) = (values(images * n, 1), values(images * pixels * extra, 2), values(images * n, 3));
    let mask: Vec<f32> = values(images * n, 4).iter().map(|v| if *v > 0.0 { 1.0 } else { 0.0 }).collect();
    let kept = [mask, values(images * n, 5), values(images * n, 6)].concat();
    let (x_at, table_at, out) = (gpu.f32(&x), gpu.f32(table.as_flattened()), gpu.room(2 * images * sample * 2));
    for (s, (row, level)) in table.iter().zip(levels.map(|level| level.map(f64::from))).enumerate() {
        let before = wide(&gpu.download(DType::F32, x_at, images * n));
        let step = gpu.i32(&[s as i32]);
        let input = ModelInputParams {
            x: x_at,
            out,
            table: table_at,
            step,
            image_stride: sample as i64,
            negative: (images * sample) as i64,
            n: sample as i32,
            steps: 3,
            extra: gpu.f32(&beside),
            channels: channels as i32,
            extra_channels: extra as i32,
        };
        gpu.launch("model_input", DType::F16, [blocks(sample, 1024), images as u32, 1], &input);
        let joined = before.chunks(channels).zip(beside.chunks(extra)).flat_map(|(latents, beside)| {
            let latents = latents.iter().map(|v| v * f64::from(row[1]));
            latents.chain(beside.iter().map(|v| f64::from(*v))).collect::<Vec<_>>()
        });
        let joined: Vec<f64> = joined.collect();
        close("input", DType::F16, &gpu.download(DType::F16, out, 2 * images * sample), &joined.repeat(2));
        let params = StepParams {
            x: x_at,
            output: gpu.f32(&output),
            table: table_at,
            guidance: gpu.f32(&[1.0, 0.0, 1.0, 0.0]),
            step,
            not_finite: gpu.i32(&[i32::MAX; 2]),
            image_stride: n as i64,
            n: n as i32,
            images: images as i32,
            steps: 3,
            noise_slots: 1,
            kept: gpu.f32(&kept),
            kept_levels: gpu.f32(levels.as_flattened()),
            ..StepParams::default()
        };
        gpu.once("step", DType::F32, [blocks(n, 1024), images as u32, 1], &params, Schedule::Random(5));
        let wanted: Vec<f64> = (0..images * n)
            .map(|i| {
                let part = |k: usize| f64::from(kept[k * images * n + i]);
                let next = f64::from(row[5]) * before[i] + f64::from(row[6]) * f64::from(output[i]);
                let mixed = (1.0 - part(0)) * (level[0] * part(1) + level[1] * part(2)) + part(0) * next;
                if level == [0.0; 2] { next } else { mixed }
            })
            .collect();
        within(&format!("step {s}"), 2e-6, &gpu.download(DType::F32, x_at, images * n), &wanted);
    }
}

/// The first step that is not finite is marked for its image alone.
#[test]
fn not_finite_image() {
    if !compiled() {
        return;
    }
    let gpu = Gpu::new();
    let n = 1500;
    let row = row([0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0], [0.0; 3], [[0.0; 7]; 3]);
    let mut output = vec![0.5; 2 * n];
    output[n + 1400] = f32::NAN;
    let flags = gpu.i32(&[i32::MAX; 2]);
    let params = StepParams {
        x: gpu.f32(&vec![1.0; 2 * n]),
        output: gpu.f32(&output),
        table: gpu.f32(&row.repeat(5)),
        guidance: gpu.f32(&[1.0, 0.0, 1.0, 0.0]),
        step: gpu.i32(&[4]),
        not_finite: flags,
        image_stride: n as i64,
        n: n as i32,
        images: 2,
        steps: 5,
        noise_slots: 1,
        ..StepParams::default()
    };
    gpu.once("step", DType::F32, [2, 2, 1], &params, Schedule::InOrder);
    assert_eq!(gpu.read(flags, 8), [i32::MAX, 4].map(i32::to_le_bytes).concat());
    for dtype in [DType::F16, DType::BF16, DType::F32] {
        for (bad, marked) in [(f32::INFINITY, 9), (f32::NAN, 9), (-1.0, i32::MAX)] {
            let mut x = vec![1.0; 1030];
            x[1029] = bad;
            let flag = gpu.i32(&[i32::MAX]);
            let params = FiniteParams { x: gpu.upload(dtype, &x), flag, count: 1030, value: 9, reserved: 0 };
            gpu.launch("finite", dtype, [2, 1, 1], &params);
            assert_eq!(gpu.read(flag, 4), marked.to_le_bytes(), "{dtype} {bad}");
        }
    }
}

#[test]
fn pixel_rounding() {
    if !compiled() {
        return;
    }
    let gpu = Gpu::new();
    let mut x = values(1500, 1);
    x[..6].copy_from_slice(&[-1.0, 1.0, -7.0, 9.0, 0.0, f32::NAN]);
    for truncate in [0, 1] {
        let out = gpu.room(1500);
        let params = Rgb8Params { x: gpu.f32(&x), out, count: 1500, truncate, reserved: 0 };
        gpu.launch("rgb8", DType::F32, [2, 1, 1], &params);
        let byte = |x: &f32| {
            let v = (x / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0;
            if truncate == 1 { v as u8 } else { v.round_ties_even() as u8 }
        };
        assert_eq!(gpu.read(out, 1500), x.iter().map(byte).collect::<Vec<u8>>());
    }
}
