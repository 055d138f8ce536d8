//! The kernels at SDXL's sizes, for 1024x1024: what profile.rs counts of them and timing.rs times. All values are alike, which
//! neither counts nor, but for the power that it takes, times depend on.

use crate::common::*;
use braid::device::cuda::driver::TensorMapDesc;
use braid::device::cuda::ops::attention::AttentionParams;
use braid::device::cuda::ops::attention_sm90::FullAttention;
use braid::device::cuda::ops::branches::{DecoupledParams, KvBranch};
use braid::device::cuda::ops::convolution::ConvolutionParams;
use braid::device::cuda::ops::convolution_narrow::NarrowParams;
use braid::device::cuda::ops::convolution_sm90::Convolution;
use braid::device::cuda::ops::decoupled_sm90;
use braid::device::cuda::ops::epilogue::EpilogueParams;
use braid::device::cuda::ops::gemm::GemmParams;
use braid::device::cuda::ops::gemm_sm90::{Product, Rows};
use braid::device::cuda::ops::group_norm;
use braid::device::cuda::ops::group_norm::GroupNormParams;
use braid::device::cuda::ops::kernel::{Pointer, blocks};
use braid::device::cuda::ops::layer_norm::LayerNormParams;
use braid::device::cuda::ops::pointwise::AddParams;
use braid::device::cuda::ops::softmax_rows::SoftmaxParams;
use braid::device::cuda::ops::strided_tensor::{StridedTensor, softmax_scale};
use braid::device::cuda::ops::tile::Tile;
use braid::device::cuda::ops::tile_sm90::grid;
use braid::tensor::DType;

pub const DTYPE: DType = DType::F16;

/// A launch, and what it takes.
#[derive(Clone)]
pub struct Shape {
    pub kernel: String,
    pub dtype: DType,
    /// In words.
    pub shape: String,
    pub grid: [u32; 3],
    pub params: Vec<u8>,
    /// Tensor maps, by their offsets in the parameters.
    pub maps: Vec<(usize, TensorMapDesc)>,
    /// Multiplications and additions.
    pub flops: f64,
    /// The bytes that must be read and written, each once.
    pub bytes: f64,
    /// The product that the library may do instead: rows, columns, the sums' length.
    pub product: Option<[usize; 3]>,
}

impl Shape {
    fn new<P: bytemuck::Pod>(kernel: impl Into<String>, shape: impl Into<String>, grid: [u32; 3], params: &P) -> Self {
        let params = bytemuck::bytes_of(params).to_vec();
        let (kernel, shape) = (kernel.into(), shape.into());
        Self { kernel, dtype: DTYPE, shape, grid, params, maps: Vec::new(), flops: 0.0, bytes: 0.0, product: None }
    }

    /// `flops` and halves moved.
    fn takes(self, flops: usize, halves: usize) -> Self {
        Self { flops: flops as f64, bytes: 2.0 * halves as f64, ..self }
    }

    /// The same work by the kernel of sm_90a, with that tile where it has several.
    pub fn by_wgmma(&self, tile: Tile, multiprocessors: usize) -> Self {
        let whole = |tiles: usize| [tiles.min(multiprocessors) as u32, 1, 1];
        let size = |n: i32| n as usize;
        match self.kernel.split('_').next() {
            Some("attention") => {
                let AttentionParams { q, k, v, out, queries, .. } = self.read();
                let (queries, heads) = (size(queries), self.grid[1] as usize);
                let all = FullAttention { q, k, v, out, queries, keys: queries, heads, images: 1 };
                self.with("attention_sm90_64".into(), whole(queries.div_ceil(128) * heads), all.params(DTYPE))
            }
            Some("decoupled") => {
                let (of, heads) = (self.read(), self.grid[1] as usize);
                let tiles = decoupled_sm90::tiles(&of, heads);
                self.with("decoupled_sm90_64".into(), whole(tiles), decoupled_sm90::params(of, heads, DTYPE))
            }
            Some("convolution") => {
                let ConvolutionParams { x0, x1, w, finish, n, channels0, channels, height, width, .. } = self.read();
                let [image, result] = [[size(height), size(width)]; 2];
                let channels = [size(channels0), size(channels - channels0)];
                let (x, w, n, images, kernel, stride, padding, phases) = ([x0.0, x1.0], w.0, size(n), 1, 3, 1, 1, 1);
                let all =
                    Convolution { x, channels, w, images, image, result, n, kernel, stride, padding, phases, finish };
                let grid = all.grid(tile, multiprocessors);
                self.with(format!("convolution_sm90_{}", tile.name()), grid, all.params(DTYPE, tile))
            }
            _ => {
                let GemmParams { x0, w, m, n, k, finish, .. } = self.read();
                let ([m, n, k], geglu) = ([m, n, k].map(size), self.kernel.contains("geglu"));
                let x = [Rows { at: x0.0, columns: k, stride: k }, Rows::default()];
                let all = Product { x, w: w.0, m, n, finish };
                let columns = if geglu { 2 * n } else { n };
                let grid = grid([m.div_ceil(tile.m), columns.div_ceil(tile.n)], multiprocessors);
                let kernel = format!("gemm_{}sm90_{}", if geglu { "geglu_" } else { "" }, tile.name());
                self.with(kernel, grid, all.params(DTYPE, tile, geglu))
            }
        }
    }

    fn with<P: bytemuck::Pod>(&self, kernel: String, grid: [u32; 3], given: (P, Vec<(usize, TensorMapDesc)>)) -> Self {
        let (params, maps) = (bytemuck::bytes_of(&given.0).to_vec(), given.1);
        // The library's product stands beside the other kernel.
        Self { kernel, grid, params, maps, product: None, ..self.clone() }
    }

    fn read<P: bytemuck::AnyBitPattern>(&self) -> P {
        bytemuck::pod_read_unaligned(&self.params)
    }
}

fn rows(data: Pointer, tokens: usize, width: usize) -> StridedTensor {
    StridedTensor { data, batch: (tokens * width) as i64, row: width as i64, head_stride: 64 }
}

/// Self-attention over a fused `[tokens, 3 c]`, heads of 64.
pub fn attention(gpu: &Gpu, tokens: usize, c: usize) -> Shape {
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
        scale: softmax_scale(64),
        ..AttentionParams::default()
    };
    let heads = c / 64;
    let grid = [blocks(tokens, 128), heads as u32, 1];
    let shape = format!("{tokens} tokens, {heads} heads of 64");
    Shape::new("attention_64", shape, grid, &params).takes(4 * tokens * tokens * c, 4 * tokens * c)
}

/// Text of 77 tokens and one image branch of 4.
pub fn decoupled(gpu: &Gpu, tokens: usize, c: usize) -> Shape {
    let source = |n: usize| rows(gpu.filled(n * c * 2, 0x2c), n, c);
    let mut params = DecoupledParams {
        q: source(tokens),
        out: rows(gpu.room(tokens * c * 2), tokens, c),
        counts: gpu.i32(&[77, 4]),
        scales: gpu.f32(&[0.6]),
        queries: tokens as i32,
        dim: 64,
        branches: 2,
        batch: 1,
        scale: softmax_scale(64),
        ..DecoupledParams::default()
    };
    for (branch, n) in [(0, 77), (1, 4)] {
        let (k, v, mask) = (source(n), source(n), Pointer(0));
        params.branch[branch] = KvBranch { k, v, mask, mask_batch: 0, capacity: n as i32, reserved: 0 };
    }
    let heads = c / 64;
    let shape = format!("{tokens} queries, 77 + 4 tokens, {heads} heads of 64");
    let grid = [blocks(tokens, 64), heads as u32, 1];
    Shape::new("decoupled_64", shape, grid, &params).takes(4 * tokens * 81 * c, 2 * (tokens + 81) * c)
}

/// A 3x3 convolution of images `side` wide and high from two sources, with bias and residual. Of the weights only the rows
/// from `from` on are written.
pub fn convolved(gpu: &Gpu, tile: &str, side: usize, [c0, c1]: [usize; 2], n: usize, from: usize) -> Shape {
    convolved_as(DTYPE, gpu, tile, side, [c0, c1], n, from)
}

/// The same of another type.
pub fn convolved_as(
    dtype: DType,
    gpu: &Gpu,
    tile: &str,
    side: usize,
    [c0, c1]: [usize; 2],
    n: usize,
    from: usize,
) -> Shape {
    let (pixels, c, bytes) = (side * side, c0 + c1, dtype.size());
    let mut params = ConvolutionParams {
        x0: gpu.filled(pixels * c0 * bytes, 0x2c),
        x1: if c1 == 0 { Pointer(0) } else { gpu.filled(pixels * c1 * bytes, 0x2c) },
        w: gpu.filled_from(n * 9 * c * bytes, from * 9 * c * bytes, 0x2c),
        channels0: c0 as i32,
        ..convolution([1, side, side], c, n, 3)
    };
    params.finish = EpilogueParams {
        bias: gpu.filled(n * bytes, 0x2c),
        residual: gpu.filled(pixels * n * bytes, 0x2c),
        out: gpu.room(pixels * n * bytes),
        residual_stride: n as i64,
        ..params.finish
    };
    let size: Vec<usize> = tile.split('x').map(|t| t.parse().unwrap()).collect();
    let grid = [blocks(pixels, size[0]), blocks(n, size[1]), 1];
    let sources = if c1 == 0 { c0.to_string() } else { format!("{c0} + {c1}") };
    let float = if dtype == DType::F32 { "f32, " } else { "" };
    let shape = format!("{float}{side}x{side}, {sources} to {n} channels");
    let shape = Shape::new(format!("convolution_{tile}"), shape, grid, &params);
    let halves = (pixels * c + 9 * c * n + 2 * pixels * n) * bytes / 2;
    Shape { dtype, ..shape.takes(18 * pixels * c * n, halves) }
}

/// The feed-forward's first product with GEGLU; `n` is the result's width, of which a tile makes half its own.
pub fn geglu(gpu: &Gpu, tile: Tile, m: usize, n: usize, k: usize) -> Shape {
    let mut params =
        GemmParams { x0: gpu.filled(m * k * 2, 0x2c), w: gpu.filled(2 * n * k * 2, 0x2c), ..product(m, n, k) };
    params.finish.bias = gpu.filled(2 * n * 2, 0x2c);
    params.finish.out = gpu.room(m * n * 2);
    let [x, y] = Tile { m: tile.m, n: tile.n / 2 }.grid(m, n);
    Shape::new(format!("gemm_geglu_{}", tile.name()), format!("{m} x {k} to 2 x {n}"), [x, y, 1], &params)
        .takes(4 * m * n * k, m * k + 2 * n * k + m * n)
}

/// A projection with bias and residual.
pub fn projection(gpu: &Gpu, tile: Tile, m: usize, n: usize, k: usize) -> Shape {
    let mut params = GemmParams { x0: gpu.filled(m * k * 2, 0x2c), w: gpu.filled(n * k * 2, 0x2c), ..product(m, n, k) };
    params.finish = EpilogueParams {
        bias: gpu.filled(n * 2, 0x2c),
        residual: gpu.filled(m * n * 2, 0x2c),
        out: gpu.room(m * n * 2),
        residual_stride: n as i64,
        ..params.finish
    };
    let [x, y] = tile.grid(m, n);
    let shape = Shape::new(format!("gemm_{}", tile.name()), format!("{m} x {k} to {n}"), [x, y, 1], &params);
    Shape { product: Some([m, n, k]), ..shape.takes(2 * m * n * k, m * k + n * k + 2 * m * n) }
}

/// The three kernels of a group normalisation of 32 groups with SiLU.
pub fn group_norm(gpu: &Gpu, side: usize, c: usize) -> [Shape; 3] {
    let pixels = side * side;
    let chunk = group_norm::pixels_of_part(pixels);
    let chunks = pixels / chunk;
    let params = GroupNormParams {
        x0: gpu.filled(pixels * c * 2, 0x2c),
        x1: Pointer(0),
        weight: gpu.filled(c * 4, 0x3c),
        bias: gpu.filled(c * 4, 0x3c),
        moments0: gpu.filled(chunks * 2 * c * 4, 0x3c),
        moments1: Pointer(0),
        lines: gpu.filled(2 * c * 4, 0x3c),
        out: gpu.room(pixels * c * 2),
        pixels: pixels as i32,
        channels0: c as i32,
        channels: c as i32,
        groups: 32,
        chunk: chunk as i32,
        chunks: chunks as i32,
        silu: 1,
        eps: 1e-5,
    };
    let wide = blocks(c, 128);
    let shape = |kernel: &str, grid| Shape::new(kernel, format!("{side}x{side}, {c} channels"), grid, &params);
    let moments = shape("group_norm_moments", [chunks as u32, wide, 1]).takes(0, pixels * c + 4 * chunks * c);
    let lines = shape("group_norm_lines", [32, 1, 1]).takes(0, 4 * chunks * c + 4 * c);
    let apply = shape("group_norm_apply", [blocks(pixels, 128), wide, 1]).takes(0, 2 * pixels * c);
    [moments, Shape { dtype: DType::F32, ..lines }, apply]
}

pub fn layer_norm(gpu: &Gpu, rows: usize, c: usize) -> Shape {
    let params = LayerNormParams {
        x: gpu.filled(rows * c * 2, 0x2c),
        weight: gpu.filled(c * 4, 0x3c),
        bias: gpu.filled(c * 4, 0x3c),
        out: gpu.room(rows * c * 2),
        rows: rows as i32,
        channels: c as i32,
        eps: 1e-5,
        reserved: 0,
    };
    let grid = [blocks(rows, 8), 1, 1];
    Shape::new("layer_norm", format!("{rows} x {c}"), grid, &params).takes(0, 2 * rows * c)
}

/// Scores of the VAE's attention: f32 to halves.
pub fn softmax(gpu: &Gpu, rows: usize, columns: usize) -> Shape {
    let params = SoftmaxParams {
        scores: gpu.filled(rows * columns * 4, 0x3c),
        out: gpu.room(rows * columns * 2),
        scores_stride: columns as i64,
        out_stride: columns as i64,
        columns: columns as i32,
        scale: 1.0,
    };
    let grid = [rows as u32, 1, 1];
    Shape::new("softmax_rows", format!("{rows} x {columns}"), grid, &params).takes(0, 3 * rows * columns)
}

pub fn add(gpu: &Gpu, rows: usize, c: usize) -> Shape {
    let params = AddParams {
        a: gpu.filled(rows * c * 2, 0x2c),
        b: gpu.filled(rows * c * 2, 0x2c),
        out: gpu.room(rows * c * 2),
        rows: rows as i64,
        each: 1,
        rows_b: rows as i64,
        channels: c as i32,
        reserved: 0,
    };
    let grid = [blocks(rows * c / 8, 256), 1, 1];
    Shape::new("add", format!("{rows} x {c}"), grid, &params).takes(0, 3 * rows * c)
}

/// The convolution of the VAE's image to its three colours.
pub fn to_colours(gpu: &Gpu, side: usize, c: usize) -> Shape {
    let (pixels, n) = (side * side, 3);
    let params = NarrowParams {
        x: gpu.filled(pixels * c * 2, 0x2c),
        w: gpu.filled(n * 9 * c * 2, 0x2c),
        bias: gpu.filled(n * 2, 0x2c),
        out: gpu.room(pixels * n * 2),
        ..narrow(1, side, c, n)
    };
    let grid = [blocks(pixels, 16), 1, 1];
    Shape::new("convolution_few_out_4", format!("{side}x{side}, {c} to {n} channels"), grid, &params)
        .takes(18 * pixels * c * n, pixels * (c + n))
}
