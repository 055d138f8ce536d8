//! Rounding at midpoints, and numbers far out: NaN and infinity, scores of a thousand, large angles.

use crate::common::*;
use crate::interpreter;
use braid::device::cuda::ops::convolution::ConvolutionParams;
use braid::device::cuda::ops::gemm::GemmParams;
use braid::device::cuda::ops::kernel::{Pointer, blocks};
use braid::device::cuda::ops::layout::{PatchesParams, WeightsParams};
use braid::device::cuda::ops::pointwise::{AddParams, GegluParams, TimestepEmbeddingParams, UnaryParams};
use braid::device::cuda::ops::softmax_rows::SoftmaxParams;
use braid::device::cuda::ops::step::{FiniteParams, ImageState, ModelInputParams, StepParams};
use braid::tensor::DType;
use braid_ptx::Schedule;

/// Numbers of f32 at, just below and just above the middle between two numbers of the type: of normal and subnormal ones, about the
/// smallest and the largest, of either sign.
pub fn midpoints(dtype: DType) -> Vec<f32> {
    let next = |x: f32| interpreter_next(x, dtype);
    let starts: &[f32] = match dtype {
        DType::F16 => &[1.0, 1.5, 0.333_25, 1000.0, 2f32.powi(-14), 2f32.powi(-15), 2f32.powi(-24), 0.0, 65472.0],
        _ => &[1.0, 1.5, 0.333_007_8, 1000.0, 1e30, 1e-30, 3.375e38],
    };
    let mut all = Vec::new();
    for start in starts {
        let mut low = rounded(dtype, &[*start])[0];
        for _ in 0..3 {
            let high = next(low);
            let middle = low + (high - low) / 2.0;
            all.extend([f32::from_bits(middle.to_bits() - 1), middle, f32::from_bits(middle.to_bits() + 1)]);
            low = high;
        }
    }
    // Where infinity begins, and far beyond.
    all.extend(match dtype {
        DType::F16 => [65504.0, 65519.996, 65520.0, 1e6, f32::INFINITY],
        _ => [3.389_531_4e38, 3.396_17e38, 3.4e38, f32::MAX, f32::INFINITY],
    });
    all.retain(|x| !x.is_nan());
    let negative: Vec<f32> = all.iter().map(|x| -x).collect();
    // An odd number of them, so that there is a rest of a row.
    [all, negative, vec![1.0]].concat()
}

/// The next number of the type, at the end its unit further.
fn interpreter_next(x: f32, dtype: DType) -> f32 {
    match dtype {
        DType::F16 if x < 65504.0 => half::f16::from_bits(half::f16::from_f32(x).to_bits() + 1).to_f32(),
        DType::F16 => 65536.0,
        _ => f32::from_bits(x.to_bits() + 0x1_0000),
    }
}

/// Each kernel that stores what it has in f32 rounds to nearest, ties to even, in whole units and in the rest of a row.
#[test]
fn midpoints_to_even() {
    if !compiled() {
        return;
    }
    for dtype in HALVES {
        let x = midpoints(dtype);
        let (gpu, n) = (Gpu::new(), x.len());
        assert!(n % 8 != 0, "the rest of a row is to be seen");
        let want = interpreter::narrow(&x, dtype);
        let check = |name: &str, out: Pointer| assert_eq!(gpu.read(out, 2 * n), want, "{name} {dtype}");
        let from = gpu.f32(&x);

        let out = gpu.room(2 * n);
        let params = UnaryParams { x: from, out, count: n as i64, scale: 1.0, shift: 0.0 };
        gpu.launch("from_f32", dtype, [1, 1, 1], &params);
        check("from_f32", out);

        let out = gpu.room(2 * n);
        let params = WeightsParams { x: from, out, pitch: n as i64, n: 1, inputs: n as i32, taps: 1, reserved: 0 };
        gpu.launch("weights_from_f32", dtype, [blocks(n, 256), 1, 1], &params);
        check("weights_from_f32", out);

        let out = gpu.room(2 * n);
        let params = PatchesParams {
            x: from,
            out,
            pitch: n as i64,
            images: 1,
            height: 1,
            width: 1,
            channels: n as i32,
            side: 1,
            reserved: 0,
        };
        gpu.launch("patches", dtype, [blocks(n, 256), 1, 1], &params);
        check("patches", out);

        let out = gpu.room(2 * n);
        let mut row = [0f32; 12];
        row[1] = 1.0;
        let (table, step) = (gpu.f32(&row), gpu.i32(&[0]));
        let images = gpu.table(&[ImageState { x: from, table, step, rows: 1, steps: 1, ..ImageState::default() }]);
        let params = ModelInputParams { images, out, n: n as i32, ..Default::default() };
        gpu.launch("model_input", dtype, [1, 1, 1], &params);
        check("model_input", out);
    }
}

/// The same of sums of two numbers, in the kernels whose operands have the type.
#[test]
fn midpoints_of_sums() {
    if !compiled() {
        return;
    }
    for dtype in HALVES {
        let gpu = Gpu::new();
        let bits = if dtype == DType::F16 { 11 } else { 8 };
        // 1 + 2^-10 k and half a unit more, or a quarter, or three.
        let unit = 2f32.powi(1 - bits);
        let a: Vec<f32> = (0..24).map(|i| 1.0 + unit * (i / 3) as f32).collect();
        let b: Vec<f32> = (0..24).map(|i| unit * [0.5, 0.25, 0.75][i % 3]).collect();
        let n = a.len();
        let sums: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
        let want = interpreter::narrow(&sums, dtype);
        let (a_at, b_at, out) = (gpu.upload(dtype, &a), gpu.upload(dtype, &b), gpu.room(2 * n));
        let params = AddParams { a: a_at, b: b_at, out, rows: 1, each: 1, rows_b: 1, channels: n as i32, reserved: 0 };
        gpu.launch("add", dtype, [1, 1, 1], &params);
        assert_eq!(gpu.read(out, 2 * n), want, "add {dtype}");

        for tile in ["64x64", "128x64", "128x128"] {
            // A row [1, 1] by the columns [a, b].
            let w: Vec<f32> = (0..n).flat_map(|i| [a[i], b[i], 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]).collect();
            let (x, w, out) = (gpu.upload(dtype, &[1.0; 8]), gpu.upload(dtype, &w), gpu.room(2 * n));
            let mut params = GemmParams { x0: x, w, ..product(1, n, 8) };
            params.finish.out = out;
            gpu.launch(&format!("gemm_{tile}"), dtype, [1, 1, 1], &params);
            assert_eq!(gpu.read(out, 2 * n), want, "product {tile} {dtype}");
        }
    }
}

/// GEGLU clamps what is too large, infinity too; NaN stays, in its place alone.
#[test]
fn geglu_far_out() {
    if !compiled() {
        return;
    }
    let inf = f32::INFINITY;
    for dtype in HALVES {
        let most = if dtype == DType::F16 { 65504.0 } else { 3.389_531_4e38 };
        let big = if dtype == DType::F16 { 60000.0 } else { 1e38 };
        let pairs = [
            (big, 10.0, most),
            (-big, 10.0, -most),
            (inf, 1.0, most),
            (-inf, 1.0, -most),
            (2.0, inf, most),
            (-2.0, inf, -most),
            (big, 1.0, f32::NAN),
            (f32::NAN, 1.0, f32::NAN),
            (1.0, f32::NAN, f32::NAN),
            (0.0, inf, f32::NAN),
            (3.0, 100.0, 300.0),
        ];
        for c in [1, 8, 11] {
            let gpu = Gpu::new();
            let rows = pairs.len();
            // Row by row one of the pairs, whose value stands in the last column; 1 and 100 elsewhere.
            let side = |pick: &dyn Fn(usize) -> f32, other: f32, row: usize| {
                let mut line = vec![other; c];
                line[c - 1] = pick(row);
                line
            };
            let x: Vec<f32> = (0..rows)
                .flat_map(|r| [side(&|r| pairs[r].0, 1.0, r), side(&|r| pairs[r].1, 100.0, r)].concat())
                .collect();
            let out = gpu.room(rows * c * 2);
            let params =
                GegluParams { x: gpu.upload(dtype, &x), out, rows: rows as i64, channels: c as i32, reserved: 0 };
            gpu.launch("geglu", dtype, [blocks(rows * c.div_ceil(8), 256), 1, 1], &params);
            let got = gpu.download(dtype, out, rows * c);
            for (r, (value, gate, want)) in pairs.iter().enumerate() {
                let line = &got[r * c..(r + 1) * c];
                assert!(line[..c - 1].iter().all(|x| *x == 100.0), "{dtype} {c}: {line:?}");
                let same = line[c - 1] == *want || (want.is_nan() && line[c - 1].is_nan());
                // A value times gelu(1) fits.
                let fits = r == 6
                    && line[c - 1] == rounded(dtype, &[(f64::from(rounded(dtype, &[big])[0]) * gelu(1.0)) as f32])[0];
                assert!(same || fits, "{dtype}: {value} by {gate} gives {}", line[c - 1]);
            }
        }
    }
}

/// One element that is not finite is found wherever it stands.
#[test]
fn finite_everywhere() {
    if !compiled() {
        return;
    }
    let count = 3 * 1024 + 5;
    for dtype in ALL {
        for at in [0, 1, 255, 256, 512, 1023, 1024, 1500, 2047, 2048, 3071, 3072, count - 1] {
            for bad in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
                let gpu = Gpu::new();
                let mut x = vec![if dtype == DType::F16 { 65504.0 } else { 3e38 }; count];
                let flag = gpu.i32(&[i32::MAX]);
                let finite = |x: &[f32]| {
                    let params =
                        FiniteParams { x: gpu.upload(dtype, x), flag, count: count as i64, value: 9, reserved: 0 };
                    gpu.once("finite", dtype, [blocks(count, 1024), 1, 1], &params, Schedule::InOrder);
                    gpu.read(flag, 4)
                };
                assert_eq!(finite(&x), i32::MAX.to_le_bytes());
                x[at] = bad;
                assert_eq!(finite(&x), 9i32.to_le_bytes(), "{dtype}: {bad} at {at}");
            }
        }
    }
}

/// A step marks an image wherever the model's output is not finite, also where a clip brings its x0 back; nor does what it keeps
/// for later steps hide it.
#[test]
fn step_far_out() {
    if !compiled() {
        return;
    }
    let n = 2 * 1024 + 7;
    for (clip, bad) in [
        (1.5, f32::INFINITY),
        (1.5, f32::NEG_INFINITY),
        (1.5, f32::NAN),
        (f32::INFINITY, f32::INFINITY),
        (f32::INFINITY, f32::NEG_INFINITY),
    ] {
        for at in [0, 255, 256, 1023, 1024, 1700, 2047, 2048, n - 1] {
            let gpu = Gpu::new();
            // x0 is the output, and so is the next sample.
            let mut row = [0.0; 36];
            row[..8].copy_from_slice(&[0.0, 1.0, 0.0, 1.0, clip, 0.0, 0.0, 1.0]);
            // The first history tensor keeps x0.
            (row[14], row[34]) = (1.0, f32::from_bits(1));
            let mut output = vec![0.5; n];
            output[at] = bad;
            let (x, history, step) = (gpu.f32(&vec![1.0; n]), gpu.room(n * 4), gpu.i32(&[0, i32::MAX]));
            let images = gpu.table(&[ImageState {
                x,
                history,
                table: gpu.f32(&row),
                guidance: gpu.f32(&[1.0, 0.0]),
                step,
                rows: 1,
                steps: 1,
                ..ImageState::default()
            }]);
            let params = StepParams { images, output: gpu.f32(&output), n: n as i32, ..StepParams::default() };
            gpu.once("step", DType::F32, [blocks(n, 1024), 1, 1], &params, Schedule::InOrder);
            let got = gpu.download(DType::F32, x, n);
            let what = format!("clip {clip}, {bad} at {at}");
            assert!(got.iter().enumerate().all(|(i, x)| i == at || *x == 0.5), "{what}");
            // The output counts for the next sample by itself, too: none times infinity is NaN, which must not go unseen.
            assert!(!got[at].is_finite(), "{what}");
            assert_eq!(gpu.read(step, 8), [0; 8], "{what}");
            let kept = gpu.download(DType::F32, history, n)[at];
            assert!(!kept.is_finite(), "{what}: {kept}");
        }
    }
}

/// Scores of a thousand and of minus a thousand, in every row or in one column: nothing overflows, and nothing is lost.
#[test]
fn row_softmax_of_large_scores() {
    if !compiled() {
        return;
    }
    let columns = 300;
    let base = values(columns, 5);
    let rows: [Vec<f32>; 5] = [
        base.iter().map(|x| 1000.0 + x).collect(),
        base.iter().map(|x| -1000.0 + x).collect(),
        base.iter().map(|x| 1000.0 * x).collect(),
        (0..columns).map(|i| if i == 257 { -990.0 } else { -1000.0 }).collect(),
        (0..columns).map(|i| if i % 2 == 0 { 1000.0 } else { -1000.0 }).collect(),
    ];
    for dtype in ALL {
        let gpu = Gpu::new();
        let out = gpu.room(5 * columns * dtype.size());
        let params = SoftmaxParams {
            scores: gpu.f32(&rows.concat()),
            out,
            scores_stride: columns as i64,
            out_stride: columns as i64,
            columns: columns as i32,
            scale: std::f32::consts::LOG2_E,
        };
        gpu.launch("softmax_rows", dtype, [5, 1, 1], &params);
        let got = gpu.download(dtype, out, 5 * columns);
        for (i, row) in rows.iter().enumerate() {
            let most = wide(row).into_iter().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = wide(row).iter().map(|x| (x - most).exp()).collect();
            let sum: f64 = weights.iter().sum();
            let want: Vec<f64> = weights.iter().map(|w| w / sum).collect();
            // A score of 1000 in f32, by log2(e), leaves 2^-14 of a power of two.
            let bound = if dtype == DType::BF16 { 5e-3 } else { 6e-4 };
            within(&format!("{dtype}, row {i}"), bound, &got[i * columns..(i + 1) * columns], &want);
        }
    }
}

/// Sines and cosines of angles up to 1e5, near multiples of pi / 2 too, where the last part of the reduction counts.
#[test]
fn angles_of_large_times() {
    if !compiled() {
        return;
    }
    let near = |k: f64| (k * std::f64::consts::FRAC_PI_2) as f32;
    let x: Vec<f32> = [4097.0, 9999.5, 31_415.0, 99_999.0]
        .into_iter()
        .chain([1.0, 7.0, 1001.0, 20_000.0, 63_001.0].map(near))
        .collect();
    let (gpu, rows) = (Gpu::new(), x.len());
    // Of two channels the first frequency is 1: the angle is the time, exactly.
    let out = gpu.room(rows * 4);
    let params = TimestepEmbeddingParams { x: gpu.f32(&x), out, rows: rows as i32, channels: 2, flip: 0, shift: 0.0 };
    gpu.launch("timestep_embedding", DType::F16, [1, 1, 1], &params);
    let got = gpu.download(DType::F16, out, rows * 2);
    for (row, x) in x.iter().enumerate() {
        let (sine, cosine) = f64::from(*x).sin_cos();
        for (got, want) in [(got[2 * row], sine), (got[2 * row + 1], cosine)] {
            // Of a small result the relative error counts: 1e5 in f32 has units of 2^-7, each of which is an exact angle.
            let allowed = 2f64.powi(-11) * want.abs() + 2f64.powi(-25) + 2e-7;
            assert!((f64::from(got) - want).abs() <= allowed, "{x}: {got} for {want}");
        }
    }
}

/// Zeros before the image of other numbers in y and x: before it and, by the size of the result, after it.
#[test]
fn paddings_apart() {
    if !compiled() {
        return;
    }
    let (height, width, c, n) = (5usize, 6usize, 8usize, 16usize);
    // Before and after in y, before and after in x: all different.
    for ([top, bottom], [left, right]) in [([0, 1], [2, 3]), ([3, 0], [1, 2]), ([1, 2], [0, 3])] {
        let (rows, columns) = (height + top + bottom - 2, width + left + right - 2);
        for dtype in ALL {
            let gpu = Gpu::new();
            let x = rounded(dtype, &values(height * width * c, 1));
            let w = rounded(dtype, &values(n * 9 * c, 2));
            let out = gpu.room(rows * columns * n * dtype.size());
            let mut params = ConvolutionParams {
                x0: gpu.upload(dtype, &x),
                w: gpu.upload(dtype, &w),
                result_height: rows as i32,
                result_width: columns as i32,
                padding_y: top as i32,
                padding_x: left as i32,
                pixels: (rows * columns) as i32,
                ..convolution([1, height, width], c, n, 3)
            };
            params.finish.out = out;
            params.finish.rows_of_image = (rows * columns) as i32;
            gpu.launch("convolution_64x64", dtype, [blocks(rows * columns, 64), 1, 1], &params);
            let mut want = vec![0f64; rows * columns * n];
            for (i, sum) in want.iter_mut().enumerate() {
                let (oy, ox, n) = (i / n / columns, i / n % columns, i % n);
                for tap in 0..9 {
                    let (y, x0) = ((oy + tap / 3).wrapping_sub(top), (ox + tap % 3).wrapping_sub(left));
                    if y < height && x0 < width {
                        let at = (y * width + x0) * c;
                        *sum += (0..c).map(|i| f64::from(x[at + i]) * f64::from(w[(n * 9 + tap) * c + i])).sum::<f64>();
                    }
                }
            }
            close(
                &format!("{dtype} {top} {bottom} {left} {right}"),
                dtype,
                &gpu.download(dtype, out, want.len()),
                &want,
            );
        }
    }
}
