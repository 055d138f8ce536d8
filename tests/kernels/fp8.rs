//! The kernels of e4m3: rows rounded with a scale each, and products and convolutions of them. All tiles, any number of blocks and every
//! schedule give the same bytes.

use crate::common::*;
use crate::sm90::{Images, convolutions_of, products_of, weight};
use braid::device::cuda::ops::convolution_fp8_sm90;
use braid::device::cuda::ops::convolution_sm90::Convolution;
use braid::device::cuda::ops::epilogue::EpilogueParams;
use braid::device::cuda::ops::gemm_fp8_sm90;
use braid::device::cuda::ops::gemm_sm90::{Product, Rows};
use braid::device::cuda::ops::kernel::Quantized;
use braid::device::cuda::ops::quantize_sm90::QuantizeParams;
use braid::device::cuda::ops::tile::Tile;
use braid::tensor::DType;

const TILES: [Tile; 4] =
    [Tile { m: 128, n: 160 }, Tile { m: 256, n: 160 }, Tile { m: 128, n: 128 }, Tile { m: 256, n: 128 }];

/// The value of an e4m3: four bits of exponent with a bias of 7, three of fraction, no infinity.
fn value(code: u8) -> f32 {
    let (exponent, fraction) = (i32::from(code >> 3 & 15), f32::from(code & 7) / 8.0);
    let size = match (exponent, code & 127) {
        (_, 127) => f32::NAN,
        (0, _) => fraction * 2f32.powi(-6),
        _ => (1.0 + fraction) * 2f32.powi(exponent - 7),
    };
    if code & 128 == 0 { size } else { -size }
}

/// The code nearest to a value, at equal distance the even one; of NaN any NaN.
fn code(x: f32) -> u8 {
    if x.is_nan() {
        return 127;
    }
    let away = |code: &u8| (value(*code) - x.abs().min(448.0)).abs();
    let nearest = (0..127u8).min_by(|a, b| away(a).total_cmp(&away(b)).then((a & 1).cmp(&(b & 1)))).unwrap();
    nearest | if x.is_sign_negative() { 128 } else { 0 }
}

/// Rows as codes and scales.
fn quantized(x: &[f32], columns: usize) -> (Vec<u8>, Vec<f32>) {
    let (mut codes, mut scales) = (Vec::new(), Vec::new());
    for row in x.chunks(columns) {
        let finite = row.iter().all(|x| x.is_finite());
        let largest = if finite { row.iter().fold(1e-30, |a: f32, x| a.max(x.abs())) } else { f32::NAN };
        codes.extend(row.iter().map(|x| code(x * (448.0 / largest))));
        scales.push(largest / 448.0);
    }
    (codes, scales)
}

#[test]
fn quantized_rows() {
    if !compiled_for_hopper() {
        return;
    }
    // Fewer columns than a warp's, and more; a warp's rows and a last block that is not full.
    for (dtype, rows, columns) in [(DType::F16, 13, 264), (DType::BF16, 5, 8), (DType::F32, 9, 520)] {
        let mut x = values(rows * columns, 3);
        x[columns..2 * columns].fill(0.0);
        x[2 * columns + 5] = f32::NAN;
        x[3 * columns + 7] = f32::NEG_INFINITY;
        x[4 * columns..5 * columns].iter_mut().for_each(|x| *x *= 1e-7);
        // The largest, its negative, halfway between two codes, and below the least.
        for (x, y) in x.iter_mut().zip([448.0, -448.0, 17.0, 19.0, 2f32.powi(-10), -1.5 * 2f32.powi(-9), 3e-4, 464.0]) {
            *x = y;
        }
        let x = rounded(dtype, &x);
        let gpu = Gpu::new();
        let (out, scales) = (gpu.room(rows * columns), gpu.room(rows * 4));
        let [rows_i32, columns_i32] = [rows, columns].map(|count| count as i32);
        let params = QuantizeParams { x: gpu.upload(dtype, &x), out, scales, rows: rows_i32, columns: columns_i32 };
        gpu.launch("quantize_rows", dtype, [rows.div_ceil(8) as u32, 1, 1], &params);
        let (codes, factors) = quantized(&x, columns);
        let got = gpu.download(DType::F32, scales, rows);
        assert!(got.iter().zip(&factors).all(|(a, b)| a == b || a.is_nan() && b.is_nan()), "{dtype}: {got:?}");
        // Zeros have their value's sign.
        assert_eq!(gpu.read(out, rows * columns), codes, "{dtype}");
    }
}

/// Rows of e4m3 on the device, and their values.
fn operand(gpu: &Gpu, x: &[f32], columns: usize) -> (Quantized, Vec<f32>) {
    let (codes, scales) = quantized(x, columns);
    let rows = codes.chunks(columns).zip(&scales);
    let exact = rows.flat_map(|(row, scale)| row.iter().map(move |code| value(*code) * scale)).collect();
    (Quantized { at: gpu.bytes(&codes).0, scales: gpu.f32(&scales).0 }, exact)
}

/// Values whose rows are of very different sizes.
fn uneven(count: usize, columns: usize, seed: u32) -> Vec<f32> {
    let size = |i: usize| [1.0, 0.02, 25.0][i / columns % 3];
    values(count, seed).iter().enumerate().map(|(i, x)| x * size(i)).collect()
}

/// A product of rounded rows, as [`products_of`].
fn product(dtype: DType, geglu: bool, (m, n, k): (usize, usize, usize), tiles: &[Tile]) -> Vec<Vec<f32>> {
    let gpu = Gpu::new();
    let (x, x_values) = operand(&gpu, &uneven(m * k, k, 1), k);
    let (w, w_values) = operand(&gpu, &weight(if geglu { 2 * n } else { n }, k), k);
    let product = Product { x: [Rows::default(); 2], w: 0, m, n, finish: EpilogueParams::default() };
    let given = |product: &Product, tile| gemm_fp8_sm90::params(product, k, [x, w], dtype, tile, geglu);
    products_of(&gpu, (dtype, geglu), product, [&x_values, &w_values], ("fp8_sm90", tiles), given)
}

#[test]
fn products() {
    if !compiled_for_hopper() {
        return;
    }
    for geglu in [false, true] {
        // Tails in every dimension; less than a tile.
        for size in [(140, 168, 272), (70, 8, 128)] {
            let tiles = if size.0 == 140 { &TILES[..] } else { &TILES[..1] };
            let got = product(DType::F16, geglu, size, tiles);
            assert!(got.iter().all(|result| *result == got[0]), "{size:?} {geglu}: tile or schedule change a result");
        }
        product(DType::BF16, geglu, (30, 24, 144), &TILES[3..]);
    }
}

/// A convolution of rounded pixels, as [`convolutions_of`].
fn convolution(dtype: DType, s: Images, tiles: &[Tile]) -> Vec<Vec<f32>> {
    let gpu = Gpu::new();
    let (pixels, c) = (s.images * s.image[0] * s.image[1], s.channels[0]);
    let (x, x_values) = operand(&gpu, &uneven(pixels * c, c, 1), c);
    let k = s.kernel * s.kernel * c;
    let (w, w_values) = operand(&gpu, &weight(s.phases * s.n, k), k);
    let given = |all: &Convolution, tile| convolution_fp8_sm90::params(all, [x, w], dtype, tile);
    convolutions_of(&gpu, dtype, s, ([&x_values, &[]], &w_values), ("fp8_sm90", tiles), given)
}

/// Whole images.
const PLAIN: Images = Images {
    images: 2,
    image: [5, 7],
    channels: [128, 0],
    n: 24,
    kernel: 3,
    stride: 1,
    padding: 1,
    result: [5, 7],
    phases: 1,
};

#[test]
fn convolutions() {
    if !compiled_for_hopper() {
        return;
    }
    // A tap's last channels are no whole step.
    let uneven = Images { channels: [144, 0], kernel: 2, result: [6, 8], n: 168, ..PLAIN };
    for s in [
        uneven,
        // Halved, with padding on all sides.
        Images { images: 3, image: [16, 16], result: [8, 8], stride: 2, ..PLAIN },
        // A doubling, then 3x3, in four phases; a tile ends within an image.
        Images { images: 3, result: [5, 7], phases: 4, ..uneven },
    ] {
        let tiles = if s.stride == 1 && s.phases == 1 { &TILES[..] } else { &TILES[..1] };
        let got = convolution(DType::F16, s, tiles);
        assert!(got.iter().all(|result| *result == got[0]), "{:?}: tile or schedule change a result", s.image);
    }
    convolution(DType::BF16, Images { images: 1, ..uneven }, &TILES[1..2]);
}

/// Images of a batch have the bytes that each has alone.
#[test]
fn convolution_of_a_batch() {
    if !compiled_for_hopper() {
        return;
    }
    // 35 pixels: images begin and end within tiles.
    let both = Images { channels: [128, 0], n: 24, ..PLAIN };
    let [batch, alone] =
        [2, 1].map(|images| convolution(DType::F16, Images { images, ..both }, &TILES[2..3]).remove(0));
    // The first image and all that is added to it are the same.
    assert_eq!(batch.len(), 2 * alone.len());
    assert_eq!(batch[..alone.len()], alone[..]);
}

/// A row that is not finite stays alone, and so does a pixel, but for its neighbours under the kernel.
#[test]
fn rows_that_are_not_finite() {
    if !compiled_for_hopper() {
        return;
    }
    let (gpu, tile, dtype) = (Gpu::new(), TILES[2], DType::F16);
    let (height, width, k, n) = (4, 5, 128, 8);
    let (m, bad) = (height * width, 7);
    let mut x = values(m * k, 1);
    x[bad * k + 3] = f32::INFINITY;
    let (x, _) = operand(&gpu, &x, k);
    let [row, kernel] = [(k, 2), (9 * k, 3)].map(|(k, seed)| operand(&gpu, &values(n * k, seed), k).0);
    let not_finite = |launch: &dyn Fn(EpilogueParams)| -> Vec<usize> {
        let out = gpu.room(m * n * 2);
        launch(EpilogueParams { out, out_stride: n as i64, ..EpilogueParams::default() });
        let got = gpu.download(dtype, out, m * n);
        (0..m).filter(|i| got[i * n..][..n].iter().any(|x| !x.is_finite())).collect()
    };
    let product = |finish| {
        let product = Product { x: [Rows::default(); 2], w: 0, m, n, finish };
        let (params, maps) = gemm_fp8_sm90::params(&product, k, [x, row], dtype, tile, false);
        gpu.mapped("gemm_fp8_sm90_128x128", dtype, [2, 1, 1], &params, &maps, &[braid_ptx::Schedule::InOrder]);
    };
    assert_eq!(not_finite(&product), [bad]);
    let image = [height, width];
    let of = |finish| Convolution {
        x: [0; 2],
        channels: [k, 0],
        w: 0,
        images: 1,
        image,
        result: image,
        n,
        kernel: 3,
        stride: 1,
        padding: 1,
        phases: 1,
        finish,
    };
    let convolution = |finish| {
        let (params, maps) = convolution_fp8_sm90::params(&of(finish), [x, kernel], dtype, tile);
        gpu.mapped("convolution_fp8_sm90_128x128", dtype, [2, 1, 1], &params, &maps, &[braid_ptx::Schedule::InOrder]);
    };
    let around = |i: &usize| (i / width).abs_diff(bad / width) <= 1 && (i % width).abs_diff(bad % width) <= 1;
    let wanted: Vec<usize> = (0..m).filter(around).collect();
    assert_eq!(not_finite(&convolution), wanted);
}
