//! The kernels of sm_90a: products, convolutions and attention by wgmma, with operands and results by tensor maps. All tiles, any number
//! of blocks and every schedule give the same bytes.

use crate::common::*;
use braid::device::cuda::driver::TensorMapDesc;
use braid::device::cuda::ops::attention_sm90::FullAttention;
use braid::device::cuda::ops::convolution_sm90::{Convolution, ConvolutionSm90Params};
use braid::device::cuda::ops::epilogue::EpilogueParams;
use braid::device::cuda::ops::gemm_sm90::{GemmSm90Params, Product, Rows};
use braid::device::cuda::ops::kernel::Pointer;
use braid::device::cuda::ops::moments::RUN;
use braid::device::cuda::ops::strided_tensor::StridedTensor;
use braid::device::cuda::ops::tile::Tile;
use braid::device::cuda::ops::tile_sm90::grid;
use braid::tensor::DType;
use braid_ptx::Schedule;

const TILES: [Tile; 4] =
    [Tile { m: 128, n: 160 }, Tile { m: 256, n: 160 }, Tile { m: 128, n: 128 }, Tile { m: 128, n: 256 }];

/// The runs of a tile: multiprocessors of the grid, and schedules. A tile for one group of warps, and one for both, run twice.
fn runs(tile: Tile) -> &'static [(usize, Schedule)] {
    let all = &[(4, Schedule::Greedy), (2, Schedule::Random(7)), (6, Schedule::InOrder)];
    if tile.n == 160 { &all[..2] } else { &all[2..] }
}

/// Room for the moments of `rows` of `n` columns where an image has whole runs of them.
fn moments_room(gpu: &Gpu, (rows, of_image, n): (usize, usize, usize)) -> Pointer {
    if of_image.is_multiple_of(RUN) { gpu.room(rows / RUN * 2 * n * 4) } else { Pointer(0) }
}

/// The moments that were stored beside a result of `n` columns, which are those of its values; `run` is the run of a row.
fn moments(gpu: &Gpu, at: Pointer, (result, n): (&[f32], usize), run: impl Fn(usize) -> usize) -> Vec<f32> {
    if at.0 == 0 {
        return Vec::new();
    }
    let runs = result.len() / n / RUN;
    let got = gpu.download(DType::F32, at, runs * 2 * n);
    gpu.put(at, DType::F32, &vec![f32::NAN; got.len()]);
    let mut rows = vec![Vec::new(); runs];
    (0..runs * RUN).for_each(|row| rows[run(row)].push(row));
    for (i, c) in (0..runs).flat_map(|i| (0..n).map(move |c| (i, c))) {
        let x: Vec<f64> = rows[i].iter().map(|row| f64::from(result[row * n + c])).collect();
        let mean = x.iter().sum::<f64>() / RUN as f64;
        let squares: f64 = x.iter().map(|x| (x - mean).powi(2)).sum();
        let largest = x.iter().fold(0f64, |a, b| a.max(b.abs()));
        let [m, q] = [0, n].map(|further| f64::from(got[i * 2 * n + further + c]));
        let near = (m - mean).abs() <= 3e-7 * largest && (q - squares).abs() <= 1e-5 * squares;
        assert!(near, "run {i}, column {c}: {m} and {q} for {mean} and {squares}");
    }
    got
}

/// Parameters, and maps by their offsets in them.
type Given<P> = (P, Vec<(usize, TensorMapDesc)>);

/// The results of a kernel by some tiles, each beside f64's; whether all are the same is for the caller. `given` has the grid for so many
/// multiprocessors, and what is launched; the results go to `out`. What `after` has of them, read between the runs, follows them.
fn results<P: bytemuck::Pod>(
    gpu: &Gpu,
    (kernel, dtype): (&str, DType),
    tiles: &[Tile],
    given: impl Fn(Tile, usize) -> ([u32; 3], Given<P>),
    (out, want): (Pointer, &[f64]),
    after: impl Fn(&[f32]) -> Vec<f32>,
) -> Vec<Vec<f32>> {
    let mut got = Vec::new();
    for &tile in tiles {
        let name = format!("{kernel}_{}", tile.name());
        for (multiprocessors, schedule) in runs(tile) {
            let (grid, (params, maps)) = given(tile, *multiprocessors);
            // What an earlier run stored would hide that nothing is stored.
            gpu.put(out, dtype, &vec![f32::NAN; want.len()]);
            gpu.mapped(&name, dtype, grid, &params, &maps, &[*schedule]);
            let result = gpu.download(dtype, out, want.len());
            close(&format!("{name} {dtype} of {}", want.len()), dtype, &result, want);
            let more = after(&result);
            got.push([result, more].concat());
        }
    }
    got
}

/// Products of operands of these values, `[m, k]` and `[n, k]`, with GEGLU `[2 n, k]`, and all that the epilogue adds, as [`results`].
/// `product` has the operands and sizes that `given` needs.
pub fn products_of(
    gpu: &Gpu,
    (dtype, geglu): (DType, bool),
    product: Product,
    [x, w]: [&[f32]; 2],
    (kind, tiles): (&str, &[Tile]),
    given: impl Fn(&Product, Tile) -> Given<GemmSm90Params>,
) -> Vec<Vec<f32>> {
    let Product { m, n, .. } = product;
    let (all, k) = (if geglu { 2 * n } else { n }, x.len() / m);
    let [bias, rows, residual] =
        [(all, 4), (2 * n, 5), (m * n, 6)].map(|(count, seed)| rounded(dtype, &values(count, seed)));
    let (each, out) = (m.div_ceil(2), gpu.room(m * n * 2));
    let moments_at = if geglu { Pointer(0) } else { moments_room(gpu, (m, each, n)) };
    let optional = |x: &[f32]| if geglu { Pointer(0) } else { gpu.upload(dtype, x) };
    let finish = EpilogueParams {
        bias: gpu.upload(dtype, &bias),
        rows: optional(&rows),
        residual: optional(&residual),
        out,
        moments: moments_at,
        residual_stride: n as i64,
        out_stride: n as i64,
        rows_of_image: each as i32,
        ..EpilogueParams::default()
    };
    let product = Product { finish, ..product };
    let dot = |row: usize, column: usize| -> f64 {
        let pairs = x[row * k..][..k].iter().zip(&w[column * k..][..k]);
        pairs.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() + f64::from(bias[column])
    };
    let want = |i: usize| {
        let (row, column) = (i / n, i % n);
        if geglu {
            return dot(row, column) * gelu(dot(row, n + column));
        }
        dot(row, column) + f64::from(rows[row / each * n + column]) + f64::from(residual[i])
    };
    let want: Vec<f64> = (0..m * n).map(want).collect();
    let launch = |tile: Tile, multiprocessors| {
        (grid([m.div_ceil(tile.m), all.div_ceil(tile.n)], multiprocessors), given(&product, tile))
    };
    let kernel = format!("gemm{}_{kind}", if geglu { "_geglu" } else { "" });
    let after = |result: &[f32]| moments(gpu, moments_at, (result, n), |row| row / RUN);
    results(gpu, (&kernel, dtype), tiles, launch, (out, &want), after)
}

/// Values of a weight of `rows` by sums of `k`.
pub fn weight(rows: usize, k: usize) -> Vec<f32> {
    values(rows * k, 3).iter().map(|w| w * 3.0 / (k as f32).sqrt()).collect()
}

struct Case {
    m: usize,
    n: usize,
    k: usize,
    /// Columns of the first of two sources; `k` for one.
    k0: usize,
}

/// A product of halves, as [`products_of`].
fn product(dtype: DType, geglu: bool, &Case { m, n, k, k0 }: &Case, tiles: &[Tile]) -> Vec<Vec<f32>> {
    let gpu = Gpu::new();
    let x = [rounded(dtype, &values(m * k0, 1)), rounded(dtype, &values(m * (k - k0), 2))];
    let w = rounded(dtype, &weight(if geglu { 2 * n } else { n }, k));
    let source = |x: &[f32], columns: usize| Rows { at: gpu.upload(dtype, x).0, columns, stride: columns };
    let sources = [source(&x[0], k0), source(&x[1], k - k0)];
    let product = Product { x: sources, w: gpu.upload(dtype, &w).0, m, n, finish: EpilogueParams::default() };
    let row = |m: usize| [&x[0][m * k0..][..k0], &x[1][m * (k - k0)..][..k - k0]].concat();
    let joined: Vec<f32> = (0..m).flat_map(row).collect();
    let given = |product: &Product, tile| product.params(dtype, tile, geglu);
    products_of(&gpu, (dtype, geglu), product, [&joined, &w], ("sm90", tiles), given)
}

#[test]
fn products() {
    if !compiled_for_hopper() {
        return;
    }
    for geglu in [false, true] {
        // Tails in every dimension and of both sources; less than a tile; a second source of whole steps; two bands of tiles.
        for case in [(300, 200, 200, 136), (70, 8, 64, 64), (130, 336, 192, 128), (1152, 328, 8, 8)] {
            let case = Case { m: case.0, n: case.1, k: case.2, k0: case.3 };
            let tiles = match case.m {
                300 => &TILES[..],
                1152 if geglu => continue,
                1152 => &TILES[..1],
                _ => &TILES[..2],
            };
            let got = product(DType::F16, geglu, &case, tiles);
            assert!(got.iter().all(|result| *result == got[0]), "{} {geglu}: tile or schedule change a result", case.m);
            if case.m == 130 {
                product(DType::BF16, geglu, &case, &TILES[..1]);
            }
        }
    }
}

/// GEGLU's result is kept in the range of f16 where the product of its halves leaves it; a row that is not finite stays alone.
#[test]
fn products_beyond_the_range() {
    if !compiled_for_hopper() {
        return;
    }
    let (gpu, tile, dtype) = (Gpu::new(), TILES[0], DType::F16);
    let sign = |i: usize| if i < 64 && i / 8 % 2 == 1 { -1.0 } else { 1.0 };
    let mut x = vec![100.0; 3 * 8];
    x[8] = f32::NAN;
    let w = gpu.upload(dtype, &(0..16 * 8).map(sign).collect::<Vec<f32>>()).0;
    let out = gpu.room(3 * 16);
    let finish = EpilogueParams { out, out_stride: 8, ..EpilogueParams::default() };
    let first = Rows { at: gpu.upload(dtype, &x).0, columns: 8, stride: 8 };
    let (params, maps) = Product { x: [first, Rows::default()], w, m: 3, n: 8, finish }.params(dtype, tile, true);
    gpu.mapped("gemm_geglu_sm90_128x160", dtype, [2, 1, 1], &params, &maps, &[Schedule::InOrder]);
    let got = gpu.download(dtype, out, 24);
    let row = [65504.0, -65504.0].repeat(4);
    assert_eq!([&got[..8], &got[16..]], [&row[..]; 2]);
    assert!(got[8..16].iter().all(|x| x.is_nan()), "{got:?}");
}

/// A mean 200 times as large as the deviations costs their squares no digits.
#[test]
fn products_far_from_zero() {
    if !compiled_for_hopper() {
        return;
    }
    let (gpu, tile, dtype, n) = (Gpu::new(), TILES[0], DType::F16, 8);
    let x = gpu.upload(dtype, &values(RUN * 64, 1)).0;
    let w = gpu.upload(dtype, &values(n * 64, 2).iter().map(|w| w / 8.0).collect::<Vec<_>>()).0;
    let (out, moments_at) = (gpu.room(RUN * n * 2), moments_room(&gpu, (RUN, RUN, n)));
    let bias = gpu.upload(dtype, &[200.0, 0.0, -200.0, 50.0, 200.0, 1.0, 60.0, 120.0]);
    let rows_of_image = RUN as i32;
    let finish = EpilogueParams {
        bias,
        out,
        moments: moments_at,
        out_stride: n as i64,
        rows_of_image,
        ..EpilogueParams::default()
    };
    let first = Rows { at: x, columns: 64, stride: 64 };
    let (params, maps) = Product { x: [first, Rows::default()], w, m: RUN, n, finish }.params(dtype, tile, false);
    gpu.mapped("gemm_sm90_128x160", dtype, [2, 1, 1], &params, &maps, &[Schedule::InOrder]);
    moments(&gpu, moments_at, (&gpu.download(dtype, out, RUN * n), n), |row| row / RUN);
}

/// The sizes of a convolution of `kernel` by `kernel`.
#[derive(Clone, Copy)]
pub struct Images {
    pub images: usize,
    pub image: [usize; 2],
    pub channels: [usize; 2],
    pub n: usize,
    pub kernel: usize,
    pub stride: usize,
    pub padding: usize,
    pub result: [usize; 2],
    pub phases: usize,
}

impl Images {
    /// The pixel of an image and the phase of a place of the result, doubled where there are four.
    fn place(&self, at: usize) -> (usize, [usize; 2], [usize; 2]) {
        let double = if self.phases == 4 { 2 } else { 1 };
        let [height, width] = self.result.map(|side| side * double);
        let (y, x) = (at / width % height, at % width);
        (at / width / height, [y / double, x / double], [y % double, x % double])
    }

    /// The run of a row of the result: those of an image follow each other, phase by phase.
    fn run(&self, row: usize) -> usize {
        let (image, [y, x], [down, right]) = self.place(row);
        let [height, width] = self.result;
        (image * self.phases + 2 * down + right) * (height * width / RUN) + (y * width + x) / RUN
    }

    fn sum(&self, x: [&[f32]; 2], w: &[f32], at: usize, n: usize) -> f64 {
        let (image, [y, x0], [down, right]) = self.place(at);
        let (phase, all) = (2 * down + right, self.channels[0] + self.channels[1]);
        let mut sum = 0.0;
        for tap in 0..self.kernel * self.kernel {
            let row = (y * self.stride + tap / self.kernel + down).wrapping_sub(self.padding);
            let column = (x0 * self.stride + tap % self.kernel + right).wrapping_sub(self.padding);
            if row >= self.image[0] || column >= self.image[1] {
                continue;
            }
            let pixel = (image * self.image[0] + row) * self.image[1] + column;
            let taps = &w[((phase * self.n + n) * self.kernel * self.kernel + tap) * all..][..all];
            let [a, b] = [0, 1].map(|s| &x[s][pixel * self.channels[s]..][..self.channels[s]]);
            sum += a.iter().chain(b).zip(taps).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        }
        sum
    }
}

/// Convolutions of images of these values and a weight of those, with all that the epilogue adds, as [`results`]. The operands' addresses
/// are for `given`.
pub fn convolutions_of(
    gpu: &Gpu,
    dtype: DType,
    s: Images,
    (x, w): ([&[f32]; 2], &[f32]),
    (kind, tiles): (&str, &[Tile]),
    given: impl Fn(&Convolution, Tile) -> Given<ConvolutionSm90Params>,
) -> Vec<Vec<f32>> {
    let of_image = s.phases * s.result[0] * s.result[1];
    let len = s.images * of_image * s.n;
    let [bias, rows, residual] =
        [(s.n, 4), (s.images * s.n, 5), (len, 6)].map(|(count, seed)| rounded(dtype, &values(count, seed)));
    let out = gpu.room(len * 2);
    let moments_at = moments_room(gpu, (s.images * of_image, s.result[0] * s.result[1], s.n));
    let finish = EpilogueParams {
        bias: gpu.upload(dtype, &bias),
        rows: gpu.upload(dtype, &rows),
        residual: gpu.upload(dtype, &residual),
        out,
        moments: moments_at,
        residual_stride: s.n as i64,
        out_stride: s.n as i64,
        rows_of_image: (s.result[0] * s.result[1]) as i32,
        ..EpilogueParams::default()
    };
    let Images { images, image, channels, n, kernel, stride, padding, result, phases } = s;
    let all =
        Convolution { x: [0; 2], channels, w: 0, images, image, result, n, kernel, stride, padding, phases, finish };
    let want = |i: usize| {
        let (place, n) = (i / s.n, i % s.n);
        let added = [bias[n], rows[place / of_image * s.n + n], residual[i]].map(f64::from);
        s.sum(x, w, place, n) + added.iter().sum::<f64>()
    };
    let want: Vec<f64> = (0..len).map(want).collect();
    let launch = |tile, multiprocessors| (all.grid(tile, multiprocessors), given(&all, tile));
    let after = |result: &[f32]| moments(gpu, moments_at, (result, s.n), |row| s.run(row));
    results(gpu, (&format!("convolution_{kind}"), dtype), tiles, launch, (out, &want), after)
}

/// A convolution of halves, as [`convolutions_of`].
fn convolution(dtype: DType, s: Images, tiles: &[Tile]) -> Vec<Vec<f32>> {
    let gpu = Gpu::new();
    let pixels = s.images * s.image[0] * s.image[1];
    let x = [0, 1].map(|i| rounded(dtype, &values(pixels * s.channels[i], 1 + i as u32)));
    let w = rounded(dtype, &weight(s.phases * s.n, s.kernel * s.kernel * (s.channels[0] + s.channels[1])));
    let (at, w_at) = ([0, 1].map(|i| gpu.upload(dtype, &x[i]).0), gpu.upload(dtype, &w).0);
    let given = |all: &Convolution, tile| Convolution { x: at, w: w_at, ..*all }.params(dtype, tile);
    convolutions_of(&gpu, dtype, s, ([&x[0], &x[1]], &w), ("sm90", tiles), given)
}

#[test]
fn convolutions() {
    if !compiled_for_hopper() {
        return;
    }
    let plain = Images {
        images: 2,
        image: [5, 7],
        channels: [72, 64],
        n: 40,
        kernel: 3,
        stride: 1,
        padding: 1,
        result: [5, 7],
        phases: 1,
    };
    let one = Images { channels: [64, 0], ..plain };
    for s in [
        plain,
        // Halved, with padding on all sides, moments of each image's one run, and on the far ones alone.
        Images { image: [16, 16], result: [8, 8], n: 168, stride: 2, ..one },
        Images { image: [9, 20], result: [4, 10], n: 8, stride: 2, padding: 0, ..one },
        // A doubling, then 3x3, in four phases of two runs an image, and where a tile ends within an image.
        Images { image: [8, 16], result: [8, 16], n: 24, kernel: 2, phases: 4, ..one },
        Images { images: 3, image: [6, 8], result: [6, 8], n: 8, kernel: 2, phases: 4, ..one },
        Images { kernel: 5, padding: 2, n: 24, images: 5, ..one },
        // Two bands of tiles.
        Images { images: 1, image: [34, 33], result: [34, 33], n: 328, kernel: 1, padding: 0, ..one },
    ] {
        let tiles = match s.n {
            40 | 168 => &TILES[..],
            328 => &TILES[..1],
            _ => &TILES[..2],
        };
        let got = convolution(DType::F16, s, tiles);
        assert!(got.iter().all(|result| *result == got[0]), "{:?}: tile or schedule change a result", s.image);
    }
    convolution(DType::BF16, Images { image: [8, 8], result: [8, 8], ..plain }, &TILES[..1]);
}

/// Images of a batch have the bytes that each has alone.
#[test]
fn convolution_of_a_batch() {
    if !compiled_for_hopper() {
        return;
    }
    // 35 pixels: images begin and end within tiles.
    let both = Images {
        images: 2,
        image: [5, 7],
        channels: [64, 0],
        n: 24,
        kernel: 3,
        stride: 1,
        padding: 1,
        result: [5, 7],
        phases: 1,
    };
    let [batch, alone] = [2, 1].map(|images| convolution(DType::F16, Images { images, ..both }, &TILES[..1]).remove(0));
    // The first image and all that is added to it are the same.
    assert_eq!(batch.len(), 2 * alone.len());
    assert_eq!(batch[..alone.len()], alone[..]);
}

/// softmax(q k^T / 8) v for `heads` of 64 columns side by side, by hand.
fn softmax([q, k, v]: [&[f32]; 3], [queries, keys, heads]: [usize; 3]) -> Vec<f64> {
    let c = heads * 64;
    let mut out = vec![0.0; queries * c];
    for (query, h) in (0..queries).flat_map(|query| (0..heads).map(move |h| (query, h))) {
        let head = |x: &[f32], t: usize| -> Vec<f64> { wide(&x[t * c + h * 64..][..64]) };
        let row = head(q, query);
        let score = |t: usize| row.iter().zip(head(k, t)).map(|(a, b)| a * b).sum::<f64>() / 8.0;
        let scores: Vec<f64> = (0..keys).map(score).collect();
        let most = scores.iter().fold(f64::MIN, |a, b| a.max(*b));
        let weights: Vec<f64> = scores.iter().map(|score| (score - most).exp()).collect();
        let sum: f64 = weights.iter().sum();
        for (t, weight) in weights.iter().enumerate() {
            let to = &mut out[query * c + h * 64..][..64];
            to.iter_mut().zip(head(v, t)).for_each(|(to, v)| *to += weight / sum * v);
        }
    }
    out
}

/// Attention of images of `queries` over `keys`; large inputs make a softmax of few keys.
fn attention(dtype: DType, [images, heads, queries, keys]: [usize; 4], gain: f32) {
    let (gpu, c) = (Gpu::new(), heads * 64);
    let inputs = |tokens: usize, gain: f32, seed: u32| {
        rounded(dtype, &values(images * tokens * c, seed).iter().map(|x| x * gain).collect::<Vec<_>>())
    };
    let (q, k, v) = (inputs(queries, gain, 1), inputs(keys, gain, 2), inputs(keys, 1.0, 3));
    let tensor = |data: Pointer, tokens: usize| StridedTensor {
        data,
        batch: (tokens * c) as i64,
        row: c as i64,
        head_stride: 64,
    };
    let out = gpu.room(images * queries * c * 2);
    let all = FullAttention {
        q: tensor(gpu.upload(dtype, &q), queries),
        k: tensor(gpu.upload(dtype, &k), keys),
        v: tensor(gpu.upload(dtype, &v), keys),
        out: tensor(out, queries),
        queries,
        keys,
        heads,
        images,
    };
    let of = |x: &[f32], image: usize, tokens: usize| x[image * tokens * c..][..tokens * c].to_vec();
    let want =
        |image| softmax([&of(&q, image, queries), &of(&k, image, keys), &of(&v, image, keys)], [queries, keys, heads]);
    let want: Vec<f64> = (0..images).flat_map(want).collect();
    let (params, maps) = all.params(dtype);
    let mut first = None;
    for (blocks, schedule) in [(1, Schedule::InOrder), (3, Schedule::Greedy), (2, Schedule::Random(5))] {
        gpu.put(out, dtype, &vec![f32::NAN; want.len()]);
        gpu.mapped("attention_sm90_64", dtype, [blocks, 1, 1], &params, &maps, &[schedule]);
        let got = gpu.download(dtype, out, want.len());
        let bound = if dtype == DType::F16 { 8e-4 } else { 6e-3 };
        within(&format!("{dtype} {images} {heads} {queries} {keys} {gain}"), bound, &got, &want);
        assert!(*first.get_or_insert_with(|| got.clone()) == got, "blocks or schedule change a result");
    }
}

#[test]
fn attentions() {
    if !compiled_for_hopper() {
        return;
    }
    for (sizes, gain) in [([2, 2, 200, 130], 2.0), ([1, 1, 5, 3], 1.0), ([1, 1, 64, 600], 4.0), ([1, 3, 128, 128], 1.0)]
    {
        attention(DType::F16, sizes, gain);
    }
    attention(DType::BF16, [1, 1, 130, 300], 2.0);
}
