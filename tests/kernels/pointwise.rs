use crate::common::*;
use braid::device::cuda::ops::kernel::{Pointer, blocks};
use braid::device::cuda::ops::layout::{PatchesParams, TransposeParams, WeightsParams};
use braid::device::cuda::ops::pointwise::{
    AddParams, ConcatParams, EmbeddingParams, GatherParams, GegluParams, PrependClassTokenParams, ScaleChannelsParams,
    TimestepEmbeddingParams, UnaryParams, UpsampleParams,
};
use braid::tensor::DType;

fn grid(units: usize) -> [u32; 3] {
    [blocks(units, 256), 1, 1]
}

/// Units of 8 channels.
fn row_grid(rows: usize, channels: usize) -> [u32; 3] {
    grid(rows * channels.div_ceil(8))
}

#[test]
fn activations_and_conversions() {
    if !compiled() {
        return;
    }
    type Exact = fn(f64) -> f64;
    let cases: [(&str, Exact); 8] = [
        ("silu", |x| swish(x, 1.0)),
        ("gelu", gelu),
        ("quick_gelu", |x| swish(x, 1.702)),
        ("relu", |x| x.max(0.0)),
        ("soft_clamp", |x| 0.5 * (x / 0.5).tanh()),
        ("scale_shift", |x| 0.5 * x + 2.0),
        ("from_f32", |x| 0.5 * x + 2.0),
        ("to_f32", |x| 0.5 * x + 2.0),
    ];
    for dtype in ALL {
        // f32 has no activations of its own.
        for (name, exact) in cases.into_iter().skip(if dtype == DType::F32 { 3 } else { 0 }) {
            for count in [1, 8, 2500] {
                let gpu = Gpu::new();
                let from = if name == "from_f32" { DType::F32 } else { dtype };
                let to = if name == "to_f32" { DType::F32 } else { dtype };
                let x = rounded(from, &values(count, 1).iter().map(|x| 6.0 * x).collect::<Vec<_>>());
                let out = gpu.room(count * to.size());
                let x_at = gpu.upload(from, &x);
                let params = UnaryParams { x: x_at, out, count: count as i64, scale: 0.5, shift: 2.0 };
                gpu.launch(name, dtype, grid(count.div_ceil(8)), &params);
                let want: Vec<f64> = wide(&x).into_iter().map(exact).collect();
                close(&format!("{name} {dtype} {count}"), to, &gpu.download(to, out, count), &want);
            }
        }
    }
}

/// Far out nothing overflows on the way and NaN stays.
#[test]
fn activations_far_out() {
    if !compiled() {
        return;
    }
    for (name, at_minus_100) in [("silu", 0.0), ("gelu", 0.0), ("quick_gelu", 0.0)] {
        let gpu = Gpu::new();
        let x = gpu.upload(DType::F16, &[-60000.0, -100.0, 0.0, 100.0, 60000.0, f32::NAN]);
        let out = gpu.room(12);
        let params = UnaryParams { x, out, count: 6, scale: 0.0, shift: 0.0 };
        gpu.launch(name, DType::F16, [1, 1, 1], &params);
        let got = gpu.download(DType::F16, out, 6);
        assert_eq!(
            got[..5],
            [at_minus_100, at_minus_100, 0.0, 100.0, 60000.0].map(|x: f32| half::f16::from_f32(x).to_f32())
        );
        assert!(got[5].is_nan(), "{name}: {got:?}");
    }
    for dtype in ALL {
        for (name, ends) in [("relu", [0.0, 100.0]), ("soft_clamp", [-3.0, 3.0])] {
            let gpu = Gpu::new();
            let x = gpu.upload(dtype, &[-100.0, 0.0, 100.0, f32::NAN]);
            let out = gpu.room(16);
            gpu.launch(name, dtype, [1, 1, 1], &UnaryParams { x, out, count: 4, scale: 3.0, shift: 0.0 });
            let got = gpu.download(dtype, out, 4);
            assert!(got[..3] == [ends[0], 0.0, ends[1]] && got[3].is_nan(), "{name} {dtype}: {got:?}");
        }
    }
}

/// GELU of every finite f16 is the nearest f16 but for 5 % of a unit in the last place, in the tail as well, where 1 + erf would have
/// lost its digits. Under 1 s.
#[test]
fn gelu_of_every_f16() {
    if !compiled() {
        return;
    }
    let gpu = Gpu::new();
    let x: Vec<f32> =
        (0..=u16::MAX).map(|bits| half::f16::from_bits(bits).to_f32()).filter(|x| x.is_finite()).collect();
    let out = gpu.room(x.len() * 2);
    let params = UnaryParams { x: gpu.upload(DType::F16, &x), out, count: x.len() as i64, scale: 0.0, shift: 0.0 };
    gpu.launch("gelu", DType::F16, grid(x.len().div_ceil(8)), &params);
    for (x, got) in x.iter().zip(gpu.download(DType::F16, out, x.len())) {
        let want = gelu(f64::from(*x));
        // A unit in the last place of f16, whose least is 2^-24.
        let unit = 2f64.powf((want.abs().log2().floor() - 10.0).max(-24.0));
        assert!((f64::from(got) - want).abs() <= 0.55 * unit, "gelu({x}) = {got:e}, expected {want:e}");
    }
}

#[test]
fn factors_of_channels() {
    if !compiled() {
        return;
    }
    for dtype in HALVES {
        for (rows, c) in [(1, 1), (7, 24), (30, 13), (300, 8)] {
            let gpu = Gpu::new();
            let x = rounded(dtype, &values(rows * c, 1));
            let factors = values(c, 2);
            let (x_at, factors_at) = (gpu.upload(dtype, &x), gpu.upload(DType::F32, &factors));
            let out = gpu.room(rows * c * 2);
            let params = ScaleChannelsParams {
                x: x_at,
                factors: factors_at,
                out,
                rows: rows as i64,
                channels: c as i32,
                reserved: 0,
            };
            gpu.launch("scale_channels", dtype, row_grid(rows, c), &params);
            let want: Vec<f64> = x.iter().enumerate().map(|(i, x)| f64::from(*x) * f64::from(factors[i % c])).collect();
            close(&format!("{dtype} {rows} {c}"), dtype, &gpu.download(dtype, out, rows * c), &want);
        }
    }
}

#[test]
fn geglu_and_concat() {
    if !compiled() {
        return;
    }
    for dtype in HALVES {
        for (rows, c) in [(1, 1), (7, 24), (30, 13), (300, 8)] {
            let gpu = Gpu::new();
            let what = format!("{dtype} {rows} {c}");
            let x = rounded(dtype, &values(rows * 2 * c, 1).iter().map(|x| 3.0 * x).collect::<Vec<_>>());
            let out = gpu.room(rows * c * 2);
            let x_at = gpu.upload(dtype, &x);
            let params = GegluParams { x: x_at, out, rows: rows as i64, channels: c as i32, reserved: 0 };
            gpu.launch("geglu", dtype, row_grid(rows, c), &params);
            let half = |i: usize, side: usize| f64::from(x[(i / c * 2 + side) * c + i % c]);
            let want: Vec<f64> = (0..rows * c).map(|i| half(i, 0) * gelu(half(i, 1))).collect();
            close(&what, dtype, &gpu.download(dtype, out, rows * c), &want);

            let a = rounded(dtype, &values(rows * c, 2));
            for c1 in [8, 5] {
                let b = rounded(dtype, &values(rows * c1, 4));
                let all = c + c1;
                let out = gpu.room(rows * all * 2);
                let (a_at, b_at) = (gpu.upload(dtype, &a), gpu.upload(dtype, &b));
                let params = ConcatParams {
                    a: a_at,
                    b: b_at,
                    out,
                    rows: rows as i64,
                    channels0: c as i32,
                    channels: all as i32,
                };
                gpu.launch("concat", dtype, row_grid(rows, all), &params);
                let want: Vec<f32> = (0..rows * all)
                    .map(|i| if i % all < c { a[i / all * c + i % all] } else { b[i / all * c1 + i % all - c] })
                    .collect();
                assert_eq!(gpu.download(dtype, out, rows * all), want, "{what} {c1}");
            }
        }
    }
}

#[test]
fn sums() {
    if !compiled() {
        return;
    }
    for dtype in ALL {
        for (rows, c) in [(1, 1), (7, 24), (30, 13), (300, 8)] {
            let (gpu, a) = (Gpu::new(), rounded(dtype, &values(rows * c, 2)));
            for (each, rows_b) in [(1, rows), (1, rows.div_ceil(3)), (rows.div_ceil(2), 2)] {
                let b = rounded(dtype, &values(rows_b * c, 3));
                let out = gpu.room(rows * c * dtype.size());
                let params = AddParams {
                    a: gpu.upload(dtype, &a),
                    b: gpu.upload(dtype, &b),
                    out,
                    rows: rows as i64,
                    each: each as i64,
                    rows_b: rows_b as i64,
                    channels: c as i32,
                    reserved: 0,
                };
                gpu.launch("add", dtype, row_grid(rows, c), &params);
                let want: Vec<f64> =
                    (0..rows * c).map(|i| f64::from(a[i]) + f64::from(b[i / c / each % rows_b * c + i % c])).collect();
                close(&format!("{dtype} {rows} {c}"), dtype, &gpu.download(dtype, out, rows * c), &want);
            }
        }
    }
}

#[test]
fn upsampling_rows() {
    if !compiled() {
        return;
    }
    for (from, to, c) in [([3, 5], [6, 10], 8), ([10, 7], [19, 13], 8), ([2, 3], [5, 4], 3)] {
        let gpu = Gpu::new();
        let x = rounded(DType::F16, &values(2 * from[0] * from[1] * c, 1));
        let n = 2 * to[0] * to[1] * c;
        let out = gpu.room(n * 2);
        let params = UpsampleParams {
            x: gpu.upload(DType::F16, &x),
            out,
            images: 2,
            height: from[0] as i32,
            width: from[1] as i32,
            result_height: to[0] as i32,
            result_width: to[1] as i32,
            channels: c as i32,
        };
        gpu.launch("upsample", DType::F16, row_grid(n / c, c), &params);
        let nearest =
            |at: usize, axis: usize| ((at as f32 * (from[axis] as f32 / to[axis] as f32)) as usize).min(from[axis] - 1);
        let want: Vec<f32> = (0..n)
            .map(|i| {
                let (row, image) = (i / c, i / c / (to[0] * to[1]));
                let (y, x0) = (nearest(row / to[1] % to[0], 0), nearest(row % to[1], 1));
                x[((image * from[0] + y) * from[1] + x0) * c + i % c]
            })
            .collect();
        assert_eq!(gpu.download(DType::F16, out, n), want, "{from:?} to {to:?}");
    }
}

#[test]
fn timestep_embedding() {
    if !compiled() {
        return;
    }
    for dtype in HALVES {
        for (c, flip, shift) in [(320, 1, 0.0), (256, 0, 1.0), (6, 1, 0.0)] {
            let gpu = Gpu::new();
            let x = [0.0, 1.0, 981.0, 500.5, 1024.0];
            let out = gpu.room(x.len() * c * 2);
            let params =
                TimestepEmbeddingParams { x: gpu.f32(&x), out, rows: x.len() as i32, channels: c as i32, flip, shift };
            gpu.launch("timestep_embedding", dtype, grid(x.len() * c / 2), &params);
            let half = c / 2;
            let mut want = Vec::new();
            for x in x {
                let angle =
                    |i: usize| f64::from(x) * (-(10_000f64.ln()) * i as f64 / (half as f64 - f64::from(shift))).exp();
                let [first, second]: [fn(f64) -> f64; 2] =
                    if flip == 1 { [f64::cos, f64::sin] } else { [f64::sin, f64::cos] };
                want.extend((0..half).map(|i| first(angle(i))));
                want.extend((0..half).map(|i| second(angle(i))));
            }
            // An angle of 1024 times a frequency that is 2 units of f32 off.
            let got = gpu.download(dtype, out, want.len());
            close_beside(&format!("{dtype} {c} {flip}"), dtype, &got, &want, 80.0);
        }
    }
}

#[test]
fn embeddings_and_rows() {
    if !compiled() {
        return;
    }
    for dtype in HALVES {
        for c in [24, 5] {
            let (gpu, images, tokens, vocabulary) = (Gpu::new(), 2, 7, 11);
            let what = format!("{dtype} {c}");
            let table = rounded(dtype, &values(vocabulary * c, 1));
            let positions = rounded(dtype, &values((tokens + 1) * c, 2));
            let ids: Vec<i32> = (0..images * tokens).map(|i| (i * 5 % 13) as i32).collect();
            let rows = images * tokens;
            let out = gpu.room(rows * c * 2);
            let positions_at = gpu.upload(dtype, &positions);
            let params = EmbeddingParams {
                ids: gpu.i32(&ids),
                table: gpu.upload(dtype, &table),
                positions: positions_at,
                out,
                rows: rows as i64,
                tokens: tokens as i32,
                channels: c as i32,
                vocabulary: vocabulary as i32,
                reserved: 0,
            };
            gpu.launch("embedding", dtype, row_grid(rows, c), &params);
            let id = |row: usize| (ids[row] as usize).min(vocabulary - 1);
            let want: Vec<f64> = (0..rows * c)
                .map(|i| f64::from(table[id(i / c) * c + i % c]) + f64::from(positions[i / c % tokens * c + i % c]))
                .collect();
            let embedded = gpu.download(dtype, out, rows * c);
            close(&what, dtype, &embedded, &want);

            let token = rounded(dtype, &values(c, 3));
            let all = images * (tokens + 1);
            let classed = gpu.room(all * c * 2);
            let params = PrependClassTokenParams {
                x: out,
                token: gpu.upload(dtype, &token),
                positions: positions_at,
                out: classed,
                rows: all as i64,
                tokens: tokens as i32 + 1,
                channels: c as i32,
            };
            gpu.launch("prepend_class_token", dtype, row_grid(all, c), &params);
            let want: Vec<f64> = (0..all * c)
                .map(|i| {
                    let (image, t, i) = (i / c / (tokens + 1), i / c % (tokens + 1), i % c);
                    let first = if t == 0 { token[i] } else { embedded[(image * tokens + t - 1) * c + i] };
                    f64::from(first) + f64::from(positions[t * c + i])
                })
                .collect();
            close(&what, dtype, &gpu.download(dtype, classed, all * c), &want);

            for index in [None, Some([3, 99])] {
                let taken = gpu.room(images * c * 2);
                let params = GatherParams {
                    x: out,
                    index: index.map_or(Pointer(0), |i| gpu.i32(&i)),
                    out: taken,
                    rows: images as i32,
                    tokens: tokens as i32,
                    channels: c as i32,
                    reserved: 0,
                };
                gpu.launch("gather", dtype, row_grid(images, c), &params);
                let row = |image: usize| index.map_or(0, |i| (i[image] as usize).min(tokens - 1));
                let want: Vec<f32> =
                    (0..images * c).map(|i| embedded[(i / c * tokens + row(i / c)) * c + i % c]).collect();
                assert_eq!(gpu.download(dtype, taken, images * c), want, "{what} {index:?}");
            }
        }
    }
}

#[test]
fn layouts() {
    if !compiled() {
        return;
    }
    for dtype in ALL {
        for (name, from) in [("f16", DType::F16), ("bf16", DType::BF16), ("f32", DType::F32)] {
            for (n, inputs, taps, pitch) in [(5, 3, 9, 27), (4, 3, 4, 16), (3, 40, 1, 40)] {
                let gpu = Gpu::new();
                let x = rounded(from, &values(n * inputs * taps, 1));
                let out = gpu.room(n * pitch * dtype.size());
                let params = WeightsParams {
                    x: gpu.upload(from, &x),
                    out,
                    pitch: pitch as i64,
                    n: n as i32,
                    inputs: inputs as i32,
                    taps: taps as i32,
                    reserved: 0,
                };
                gpu.launch(&format!("weights_from_{name}"), dtype, grid(n * pitch), &params);
                let value = |at: usize| {
                    let (n, k) = (at / pitch, at % pitch);
                    if k < taps * inputs { x[(n * inputs + k % inputs) * taps + k / inputs] } else { 0.0 }
                };
                let want = rounded(dtype, &(0..n * pitch).map(value).collect::<Vec<_>>());
                assert_eq!(gpu.download(dtype, out, n * pitch), want, "{dtype} from {name} {n} {inputs} {taps}");
            }
        }
        for (rows, columns, pitch) in [(33, 40, 40), (5, 3, 8), (64, 65, 64)] {
            let gpu = Gpu::new();
            let x = rounded(dtype, &values(2 * rows * columns, 1));
            let out = gpu.room(2 * columns * pitch * dtype.size());
            let params = TransposeParams {
                x: gpu.upload(dtype, &x),
                out,
                x_stride: columns as i64,
                x_image: (rows * columns) as i64,
                pitch: pitch as i64,
                out_image: (columns * pitch) as i64,
                rows: rows as i32,
                columns: columns as i32,
            };
            gpu.launch("transpose", dtype, [blocks(pitch, 32), blocks(columns, 32), 2], &params);
            let value = |at: usize| {
                let (image, row, column) = (at / (columns * pitch), at % pitch, at / pitch % columns);
                if row < rows { x[(image * rows + row) * columns + column] } else { 0.0 }
            };
            let want: Vec<f32> = (0..2 * columns * pitch).map(value).collect();
            assert_eq!(gpu.download(dtype, out, want.len()), want, "{dtype} {rows} {columns}");
        }
    }
}

#[test]
fn patches() {
    if !compiled() {
        return;
    }
    for dtype in HALVES {
        let gpu = Gpu::new();
        let (images, height, width, c, side, pitch) = (2, 4, 6, 3, 2, 16);
        let x = values(images * height * width * c, 1);
        let n = images * 2 * 3 * pitch;
        let out = gpu.room(n * 2);
        let params = PatchesParams {
            x: gpu.f32(&x),
            out,
            pitch: pitch as i64,
            images: images as i32,
            height: height as i32,
            width: width as i32,
            channels: c as i32,
            side: side as i32,
            reserved: 0,
        };
        gpu.launch("patches", dtype, grid(n), &params);
        let value = |at: usize| {
            let (patch, k) = (at / pitch, at % pitch);
            let (image, gy, gx, tap) = (patch / 6, patch / 3 % 2, patch % 3, k / c);
            if tap >= 4 {
                return 0.0;
            }
            x[((image * height + gy * side + tap / side) * width + gx * side + tap % side) * c + k % c]
        };
        assert_eq!(gpu.download(dtype, out, n), rounded(dtype, &(0..n).map(value).collect::<Vec<_>>()));
    }
}
