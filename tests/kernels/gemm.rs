use crate::common::*;
use braid::device::cuda::ops::epilogue::EpilogueParams;
use braid::device::cuda::ops::gemm::GemmParams;
use braid::device::cuda::ops::kernel::Pointer;
use braid::device::cuda::ops::tile::Tile;
use braid::tensor::DType;

fn activated(code: i32, x: f64) -> f64 {
    match code {
        1 => swish(x, 1.0),
        2 => gelu(x),
        3 => swish(x, 1.702),
        _ => x,
    }
}

struct Case {
    m: usize,
    n: usize,
    k: usize,
    /// Columns of the first of two sources; `k` for one.
    k0: usize,
    activation: i32,
    extras: bool,
    out_f32: bool,
    /// Elements from row to row beyond the columns: of each source, of W, of the residual, of the result.
    beyond: [usize; 4],
}

/// Rows so many elements apart; what lies between them is not finite, and would be seen if it were read.
fn apart(x: &[f32], columns: usize, beyond: usize) -> Vec<f32> {
    x.chunks(columns.max(1)).flat_map(|row| row.iter().copied().chain(vec![f32::NAN; beyond])).collect()
}

fn gemm(dtype: DType, tile: Tile, case: &Case) -> Vec<f32> {
    let &Case { m, n, k, k0, activation, extras, out_f32, beyond } = case;
    let gpu = Gpu::new();
    let scale = 1.0 / (k as f32).sqrt();
    let x0 = rounded(dtype, &values(m * k0, 1));
    let x1 = rounded(dtype, &values(m * (k - k0), 2));
    let w = rounded(dtype, &values(n * k, 3).iter().map(|w| w * scale * 3.0).collect::<Vec<_>>());
    let bias = rounded(dtype, &values(n, 4));
    let each = m.div_ceil(2);
    let rows = rounded(dtype, &values(2 * n, 5));
    let residual = rounded(dtype, &values(m * n, 6));
    let out_type = if out_f32 { DType::F32 } else { dtype };
    // What lies between the result's rows stays.
    let out = match beyond[3] {
        0 => gpu.room(m * n * out_type.size()),
        between => gpu.upload(out_type, &vec![7.0; m * (n + between)]),
    };
    let optional = |x: &[f32]| if extras { gpu.upload(dtype, x) } else { Pointer(0) };
    let params = GemmParams {
        x0: gpu.upload(dtype, &apart(&x0, k0, beyond[0])),
        x1: gpu.upload(dtype, &apart(&x1, k - k0, beyond[0])),
        w: gpu.upload(dtype, &apart(&w, k, beyond[1])),
        x0_stride: (k0 + beyond[0]) as i64,
        x1_stride: (k - k0 + beyond[0]) as i64,
        w_stride: (k + beyond[1]) as i64,
        finish: EpilogueParams {
            bias: optional(&bias),
            rows: optional(&rows),
            residual: optional(&apart(&residual, n, beyond[2])),
            out,
            residual_stride: (n + beyond[2]) as i64,
            out_stride: (n + beyond[3]) as i64,
            rows_of_image: each as i32,
            activation,
            out_f32: out_f32.into(),
            ..EpilogueParams::default()
        },
        m: m as i32,
        n: n as i32,
        k: k as i32,
        k0: k0 as i32,
    };
    let [x, y] = tile.grid(m, n);
    gpu.launch(&format!("gemm_{}", tile.name()), dtype, [x, y, 1], &params);
    let parts = Parts { x: [&x0, &x1], w: &w, bias: &bias, rows: &rows, residual: &residual };
    let want: Vec<f64> = parts.result(case, |y| activated(activation, y));
    let stored = gpu.download(out_type, out, m * (n + beyond[3]));
    let (got, between): (Vec<_>, Vec<_>) = stored.chunks(n + beyond[3]).map(|row| row.split_at(n)).unzip();
    let got = got.concat();
    let what = format!("{dtype} {} {m} {n} {k} {k0} activation {activation} {beyond:?}", tile.name());
    assert!(between.concat().iter().all(|v| *v == 7.0), "{what}: something is stored between the rows");
    close(&what, out_type, &got, &want);
    if dtype == DType::F32 && activation == 0 {
        within_f32(&what, &got, &want, &parts.result::<f32>(case, |y| y));
    }
    got
}

/// The operands of a product.
struct Parts<'a> {
    x: [&'a [f32]; 2],
    w: &'a [f32],
    bias: &'a [f32],
    rows: &'a [f32],
    residual: &'a [f32],
}

impl Parts<'_> {
    fn result<S: Real>(&self, case: &Case, activated: impl Fn(S) -> S) -> Vec<S> {
        let &Case { m, n, k, k0, extras, .. } = case;
        let one = |i: usize| {
            let (row, column) = (i / n, i % n);
            let x = self.x[0][row * k0..][..k0].iter().chain(&self.x[1][row * (k - k0)..][..k - k0]);
            let mut y = S::default();
            x.zip(&self.w[column * k..][..k]).for_each(|(a, b)| y += S::from(*a) * S::from(*b));
            if extras {
                y += S::from(self.bias[column]);
                y += S::from(self.rows[row / m.div_ceil(2) * n + column]);
            }
            y = activated(y);
            if extras {
                y += S::from(self.residual[i]);
            }
            y
        };
        (0..m * n).map(one).collect()
    }
}

/// The tiles that a type has.
fn tiles(dtype: DType) -> &'static [Tile] {
    if dtype == DType::F32 { &TILES[2..] } else { &TILES }
}

const TILES: [Tile; 4] = [Tile::TALL, Tile::LARGE, Tile::MEDIUM, Tile::SMALL];

#[test]
fn tile_invariance() {
    if !compiled() {
        return;
    }
    for dtype in ALL {
        for (m, n, k, k0) in [
            (1, 8, 8, 8),
            (65, 72, 40, 40),
            (130, 136, 200, 96),
            (5, 3, 64, 64),
            (33, 67, 72, 8),
            (3, 70, 1032, 512),
            (300, 136, 40, 16),
        ] {
            let case = Case { m, n, k, k0, activation: 0, extras: true, out_f32: false, beyond: [0; 4] };
            let results: Vec<Vec<f32>> = tiles(dtype).iter().map(|&tile| gemm(dtype, tile, &case)).collect();
            assert!(results.iter().all(|r| *r == results[0]), "{dtype} {m} {n} {k}: the tile changes the result");
        }
    }
}

#[test]
fn activations_and_f32_results() {
    if !compiled() {
        return;
    }
    for dtype in ALL {
        for activation in 0..4 {
            let case = Case {
                m: 20,
                n: 40,
                k: 48,
                k0: 48,
                activation,
                extras: activation % 2 == 0,
                out_f32: false,
                beyond: [0; 4],
            };
            gemm(dtype, Tile::SMALL, &case);
        }
        for n in [40, 13] {
            gemm(
                dtype,
                Tile::SMALL,
                &Case { m: 20, n, k: 48, k0: 48, activation: 0, extras: false, out_f32: true, beyond: [0; 4] },
            );
        }
    }
}

/// Rows further apart than they are long: of operands by multiples of 8, of the residual and of the result by any number.
#[test]
fn strides_beyond_the_columns() {
    if !compiled() {
        return;
    }
    for dtype in ALL {
        for (n, out_f32, beyond) in [
            (16, false, [8, 16, 16, 8]),
            (16, false, [8, 0, 0, 3]),
            (16, false, [0, 8, 5, 0]),
            (24, false, [16, 8, 4, 4]),
            (13, false, [8, 8, 3, 11]),
            (16, true, [8, 8, 8, 1]),
            (13, true, [8, 8, 0, 3]),
        ] {
            let case = Case { m: 5, n, k: 40, k0: 24, activation: 0, extras: !out_f32, out_f32, beyond };
            let tiles = if n == 24 { tiles(dtype) } else { &[Tile::SMALL] };
            tiles.iter().for_each(|&tile| drop(gemm(dtype, tile, &case)));
        }
    }
}

#[test]
fn geglu_products() {
    if !compiled() {
        return;
    }
    for dtype in HALVES {
        for (tile, m, n, k) in [
            (Tile::LARGE, 70, 72, 40),
            (Tile::SMALL, 70, 72, 40),
            (Tile::SMALL, 1, 8, 8),
            (Tile::LARGE, 129, 136, 72),
            (Tile::TALL, 259, 72, 72),
            // The last step lies where the result goes.
            (Tile::LARGE, 20, 64, 136),
            (Tile::TALL, 20, 64, 136),
        ] {
            let gpu = Gpu::new();
            let x = rounded(dtype, &values(m * k, 1));
            let w = rounded(dtype, &values(2 * n * k, 2));
            let bias = rounded(dtype, &values(2 * n, 3));
            let out = gpu.room(m * n * 2);
            let params = GemmParams {
                x0: gpu.upload(dtype, &x),
                w: gpu.upload(dtype, &w),
                x0_stride: k as i64,
                w_stride: k as i64,
                finish: EpilogueParams {
                    bias: gpu.upload(dtype, &bias),
                    out,
                    out_stride: n as i64,
                    ..EpilogueParams::default()
                },
                m: m as i32,
                n: n as i32,
                k: k as i32,
                k0: k as i32,
                ..GemmParams::default()
            };
            let [gx, gy] = Tile { m: tile.m, n: tile.n / 2 }.grid(m, n);
            gpu.launch(&format!("gemm_geglu_{}", tile.name()), dtype, [gx, gy, 1], &params);
            let dot = |row: usize, column: usize| -> f64 {
                let pairs = x[row * k..][..k].iter().zip(&w[column * k..][..k]);
                pairs.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() + f64::from(bias[column])
            };
            let want: Vec<f64> = (0..m * n).map(|i| dot(i / n, i % n) * gelu(dot(i / n, n + i % n))).collect();
            close(&format!("{dtype} {} {m} {n} {k}", tile.name()), dtype, &gpu.download(dtype, out, m * n), &want);
        }
    }
}

/// GEGLU's result is kept in the range of f16 where the product of its halves leaves it.
#[test]
fn geglu_overflow() {
    if !compiled() {
        return;
    }
    let gpu = Gpu::new();
    // Every other value is below the range.
    let sign = |i: usize| if i < 64 && i / 8 % 2 == 1 { -1.0 } else { 1.0 };
    let (x, w) = (vec![100.0; 8], (0..16 * 8).map(sign).collect::<Vec<f32>>());
    let out = gpu.room(16);
    let params = GemmParams {
        x0: gpu.upload(DType::F16, &x),
        w: gpu.upload(DType::F16, &w),
        x0_stride: 8,
        w_stride: 8,
        finish: EpilogueParams { out, out_stride: 8, ..EpilogueParams::default() },
        m: 1,
        n: 8,
        k: 8,
        k0: 8,
        ..GemmParams::default()
    };
    gpu.launch("gemm_geglu_64x64", DType::F16, [1, 1, 1], &params);
    assert_eq!(gpu.download(DType::F16, out, 8), [65504.0, -65504.0].repeat(4));
}

/// Values that are not finite stay in their row, also where the padding of K and of the rows is filled.
#[test]
fn not_finite_row() {
    if !compiled() {
        return;
    }
    for dtype in ALL {
        a_row_that_is_nan(dtype);
    }
}

fn a_row_that_is_nan(dtype: DType) {
    let (m, n, k, gpu) = (5, 8, 40, Gpu::new());
    let mut x = rounded(dtype, &values(m * k, 1));
    let w = rounded(dtype, &values(n * k, 2));
    let dot = |i: usize| (0..k).map(|j| f64::from(x[i / n * k + j]) * f64::from(w[i % n * k + j])).sum::<f64>();
    let want: Vec<f64> = (0..m * n).map(dot).collect();
    x[0] = f32::NAN;
    let out = gpu.room(m * n * dtype.size());
    let mut params = GemmParams { x0: gpu.upload(dtype, &x), w: gpu.upload(dtype, &w), ..product(m, n, k) };
    params.finish.out = out;
    gpu.launch("gemm_64x64", dtype, [1, 1, 1], &params);
    let got = gpu.download(dtype, out, m * n);
    assert!(got[..n].iter().all(|x| x.is_nan()), "{got:?}");
    close("the other rows", dtype, &got[n..], &want[n..]);
}
