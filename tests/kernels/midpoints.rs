//! Results in the middle between two numbers of the type: every kernel that stores a sum or a product rounds it once, ties to even.

use crate::common::*;
use crate::extremes::midpoints;
use crate::interpreter;
use braid::device::cuda::ops::attention::{self, AttentionParams};
use braid::device::cuda::ops::branches::{DecoupledParams, KvBranch};
use braid::device::cuda::ops::convolution::ConvolutionParams;
use braid::device::cuda::ops::convolution_narrow::NarrowParams;
use braid::device::cuda::ops::decoupled;
use braid::device::cuda::ops::group_norm::GroupNormParams;
use braid::device::cuda::ops::kernel::{Pointer, blocks};
use braid::device::cuda::ops::layer_norm::LayerNormParams;
use braid::device::cuda::ops::layout::WeightsParams;
use braid::device::cuda::ops::pointwise::{EmbeddingParams, GegluParams, PrependClassTokenParams, UnaryParams};
use braid::device::cuda::ops::strided_tensor::{StridedTensor, softmax_scale};
use braid::tensor::DType;

/// A type's unit at 1.
fn unit(dtype: DType) -> f32 {
    2f32.powi(if dtype == DType::F16 { -10 } else { -7 })
}

/// Numbers of the type and summands of it: each sum is exact in f32, and half, a quarter or three quarters of a unit from numbers
/// of the type.
fn summands(dtype: DType, n: usize) -> (Vec<f32>, Vec<f32>) {
    let unit = unit(dtype);
    let a = (0..n).map(|i| 1.0 + unit * (i / 3) as f32).collect();
    (a, (0..n).map(|i| unit * [0.5, 0.25, 0.75][i % 3]).collect())
}

fn sums(a: &[f32], b: &[f32]) -> Vec<f32> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

/// A device, and the check that what lies at an address are these numbers, each rounded once.
struct Rounding {
    gpu: Gpu,
    dtype: DType,
}

impl Rounding {
    fn check(&self, name: &str, out: Pointer, exact: &[f32]) {
        let want = interpreter::narrow(exact, self.dtype);
        assert_eq!(self.gpu.read(out, 2 * exact.len()), want, "{name} {}", self.dtype);
    }

    fn room(&self, count: usize) -> Pointer {
        self.gpu.room(2 * count)
    }

    fn up(&self, x: &[f32]) -> Pointer {
        self.gpu.upload(self.dtype, x)
    }
}

fn each(test: fn(&Rounding)) {
    if compiled() {
        HALVES.into_iter().for_each(|dtype| test(&Rounding { gpu: Gpu::new(), dtype }));
    }
}

/// Whole units of 8 values, and the rest of a row.
const WIDTHS: [usize; 2] = [24, 21];

#[test]
fn element_by_element() {
    each(|r| {
        for n in WIDTHS {
            let (a, b) = summands(r.dtype, n);
            for (k, shift) in [0.5, 0.25, 0.75].into_iter().enumerate() {
                let (out, shift) = (r.room(n), unit(r.dtype) * shift);
                let params = UnaryParams { x: r.up(&a), out, count: n as i64, scale: 1.0, shift };
                r.gpu.launch("scale_shift", r.dtype, [1, 1, 1], &params);
                r.check(&format!("scale_shift {k}"), out, &a.iter().map(|a| a + shift).collect::<Vec<_>>());
            }

            // The second row of a table of two, and a position.
            let out = r.room(n);
            let params = EmbeddingParams {
                ids: r.gpu.i32(&[1]),
                table: r.up(&[vec![5.0; n], a.clone()].concat()),
                positions: r.up(&b),
                out,
                rows: 1,
                tokens: 1,
                channels: n as i32,
                vocabulary: 2,
                reserved: 0,
            };
            r.gpu.launch("embedding", r.dtype, [1, 1, 1], &params);
            r.check("embedding", out, &sums(&a, &b));

            // The token first, then one of X.
            let out = r.room(2 * n);
            let params = PrependClassTokenParams {
                x: r.up(&a),
                token: r.up(&b),
                positions: r.up(&[a.clone(), b.clone()].concat()),
                out,
                rows: 2,
                tokens: 2,
                channels: n as i32,
            };
            r.gpu.launch("prepend_class_token", r.dtype, [1, 1, 1], &params);
            r.check("prepend_class_token", out, &[sums(&b, &a), sums(&a, &b)].concat());

            // gelu(24) is 24, and 24 times an odd number of units has half a unit more.
            let out = r.room(n);
            let params = GegluParams {
                x: r.up(&[a.clone(), vec![24.0; n]].concat()),
                out,
                rows: 1,
                channels: n as i32,
                reserved: 0,
            };
            r.gpu.launch("geglu", r.dtype, [1, 1, 1], &params);
            r.check("geglu", out, &a.iter().map(|a| a * 24.0).collect::<Vec<_>>());
        }
    });
}

#[test]
fn norms() {
    each(|r| {
        let n = 24;
        let (a, b) = summands(r.dtype, n);
        // Rows of 1 and -1 have the mean 0 and the variance 1.
        let x: Vec<f32> = (0..n).map(|i| if i % 2 == 0 { 1.0 } else { -1.0 }).collect();
        let want: Vec<f32> = (0..n).map(|i| x[i] * a[i] + b[i]).collect();
        let out = r.room(n);
        let (weight, bias) = (r.gpu.f32(&a), r.gpu.f32(&b));
        let params =
            LayerNormParams { x: r.up(&x), weight, bias, out, rows: 1, channels: n as i32, eps: 0.0, reserved: 0 };
        r.gpu.launch("layer_norm", r.dtype, [1, 1, 1], &params);
        r.check("layer_norm", out, &want);

        // The factor and the summand of each channel are there; two pixels.
        let out = r.room(2 * n);
        let params = GroupNormParams {
            x0: r.up(&[x.clone(), vec![1.0; n]].concat()),
            lines: r.gpu.f32(&[a.clone(), b.clone()].concat()),
            out,
            pixels: 2,
            channels0: n as i32,
            channels: n as i32,
            groups: 1,
            chunk: 32,
            chunks: 1,
            ..GroupNormParams::default()
        };
        r.gpu.launch("group_norm_apply", r.dtype, [1, 1, 1], &params);
        r.check("group_norm_apply", out, &[want, sums(&a, &b)].concat());
    });
}

/// A pixel of ones in two channels by weights [a, b]: the sums, with and without a bias.
#[test]
fn convolutions() {
    each(|r| {
        for (name, n, c) in [
            ("convolution_few_in", 24, 2),
            ("convolution_few_in", 21, 3),
            ("convolution_few_out_4", 4, 8),
            ("convolution_few_out_8", 8, 16),
            ("convolution_64x64", 24, 8),
            ("convolution_128x64", 21, 8),
            ("convolution_128x128", 24, 8),
        ] {
            let (a, b) = summands(r.dtype, n);
            let pixel: Vec<f32> = (0..c).map(|i| if i < 2 { 1.0 } else { 0.0 }).collect();
            let weights: Vec<f32> = (0..n * c).map(|at| [a[at / c], b[at / c], 9.0][(at % c).min(2)]).collect();
            for bias in [false, true] {
                let (x, w, out) = (r.up(&pixel), r.up(&weights), r.room(n));
                // A bias of a quarter: the sum has a tie where it had three quarters of a unit.
                let quarter = if bias { unit(r.dtype) / 4.0 } else { 0.0 };
                let bias = if bias { r.up(&vec![quarter; n]) } else { Pointer(0) };
                if name.starts_with("convolution_few") {
                    let side =
                        NarrowParams { kernel_y: 1, kernel_x: 1, padding_y: 0, padding_x: 0, ..narrow(1, 1, c, n) };
                    r.gpu.launch(name, r.dtype, [1, 1, 1], &NarrowParams { x, w, bias, out, ..side });
                } else {
                    let mut params =
                        ConvolutionParams { x0: x, w, padding_y: 0, padding_x: 0, ..convolution([1, 1, 1], c, n, 1) };
                    (params.finish.bias, params.finish.out) = (bias, out);
                    r.gpu.launch(name, r.dtype, [1, 1, 1], &params);
                }
                let want: Vec<f32> = sums(&a, &b).iter().map(|sum| sum + quarter).collect();
                r.check(name, out, &want);
            }
        }
    });
}

/// Two keys with equal scores, or as many of each of two kinds: the result is the middle of their values.
#[test]
fn attentions() {
    each(|r| {
        for (dim, queries, keys) in [(64, 1, 2), (64, 3, 2), (80, 1, 2), (104, 2, 2), (40, 1, 64), (64, 130, 128)] {
            let unit = unit(r.dtype);
            let low: Vec<f32> = (0..dim).map(|i| 1.0 + unit * i as f32).collect();
            let high: Vec<f32> = low.iter().map(|x| x + unit).collect();
            let middle: Vec<f32> = low.iter().map(|x| x + unit / 2.0).collect();
            let rows = |data, tokens: usize| StridedTensor {
                data,
                batch: (tokens * dim) as i64,
                row: dim as i64,
                head_stride: dim as i64,
            };
            let v: Vec<f32> = (0..keys).flat_map(|k| if k % 2 == 0 { low.clone() } else { high.clone() }).collect();
            let q = rows(r.up(&vec![0.0; queries * dim]), queries);
            let k = rows(r.up(&values(keys * dim, 3)), keys);
            let v = rows(r.up(&v), keys);
            let want: Vec<f32> = (0..queries).flat_map(|_| middle.clone()).collect();
            let [one, two] = [0, 1].map(|_| r.room(queries * dim));
            let config = attention::choose(dim).unwrap();
            let params = AttentionParams {
                q,
                k,
                v,
                out: rows(one, queries),
                counts: Pointer(0),
                queries: queries as i32,
                keys: keys as i32,
                dim: dim as i32,
                causal: 0,
                scale: softmax_scale(dim),
                reserved: 0,
            };
            r.gpu.launch(config.kernel.name, r.dtype, [blocks(queries, config.queries), 1, 1], &params);
            r.check(&format!("attention {dim} {keys}"), one, &want);

            let mut params = DecoupledParams {
                q,
                out: rows(two, queries),
                counts: r.gpu.i32(&[keys as i32]),
                scales: r.gpu.f32(&[0.0]),
                queries: queries as i32,
                dim: dim as i32,
                branches: 1,
                batch: 1,
                scale: softmax_scale(dim),
                ..DecoupledParams::default()
            };
            params.branch[0] = KvBranch { k, v, capacity: keys as i32, ..KvBranch::default() };
            let name = decoupled::choose(dim).unwrap().name;
            r.gpu.launch(name, r.dtype, [blocks(queries, decoupled::QUERIES), 1, 1], &params);
            r.check(&format!("decoupled {dim} {keys}"), two, &want);
        }
    });
}

/// A kernel with its centre alone has it in one tap of each phase, rounded.
#[test]
fn phase_kernels() {
    each(|r| {
        let centres = midpoints(r.dtype);
        let n = centres.len();
        let kernels: Vec<f32> =
            centres.iter().flat_map(|c| (0..9).map(|tap| if tap == 4 { *c } else { 0.0 })).collect();
        let out = r.room(16 * n);
        let params =
            WeightsParams { x: r.gpu.f32(&kernels), out, pitch: 0, n: n as i32, inputs: 1, taps: 9, reserved: 0 };
        r.gpu.launch("phases_from_f32", r.dtype, [blocks(16 * n, 256), 1, 1], &params);
        let got = r.gpu.download(r.dtype, out, 16 * n);
        let want = rounded(r.dtype, &centres);
        for (i, taps) in got.chunks(4).enumerate() {
            let there: Vec<f32> = taps.iter().copied().filter(|tap| *tap != 0.0).collect();
            let centre = want[i % n];
            assert!(there == [centre] || there.is_empty() && centre == 0.0, "{}: {taps:?} for {centre}", r.dtype);
        }
    });
}
