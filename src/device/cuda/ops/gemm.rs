//! Fully connected layers: products of matrices, by our own kernels or by cuBLASLt.

use super::epilogue::EpilogueParams;
use super::gemm_fp8_sm90;
use super::gemm_sm90::{self, Product, Rows};
use super::kernel::{KernelFile, Pointer, blocks, kernel, param_structs, to_i32, to_i64};
use super::layout::patches;
use super::lowering::Lowering;
use super::pointwise::{geglu, joined, to_f32};
use super::quantize_sm90;
use super::tile::{self, Tile, TileDevice};
use super::tile_sm90;
use crate::device::cuda::driver::command::Command;
use crate::device::cuda::driver::gemm::{Gemm, GemmEpilogue, MatrixRef};
use crate::device::cuda::driver::kernel::{
    Kernel,
    Types::{All, Halves},
};
use crate::error::Result;
use crate::graph::{EpilogueActivation, Graph, ImplicitGemm, Node};
use crate::tensor::DType;

param_structs! {
    /// Parameters of `gemm`'s kernels.
    GemmParams: 136 {
        x0: Pointer = 0,
        x1: Pointer = 8,
        w: Pointer = 16,
        x0_stride: i64 = 24,
        x1_stride: i64 = 32,
        w_stride: i64 = 40,
        finish: EpilogueParams = 48,
        m: i32 = 120,
        n: i32 = 124,
        k: i32 = 128,
        k0: i32 = 132,
    }
}

static GEMM_256X128: Kernel = kernel::<GemmParams>("gemm", "gemm_256x128", Halves, 256, tile::shared(256, 128));
static GEMM_128X128: Kernel = kernel::<GemmParams>("gemm", "gemm_128x128", Halves, 128, tile::shared(128, 128));
static GEMM_128X64: Kernel = kernel::<GemmParams>("gemm", "gemm_128x64", All, 128, tile::shared(128, 64));
static GEMM_64X64: Kernel = kernel::<GemmParams>("gemm", "gemm_64x64", All, 128, tile::shared(64, 64));
static GEGLU_256X128: Kernel = kernel::<GemmParams>("gemm", "gemm_geglu_256x128", Halves, 256, tile::shared(256, 128));
static GEGLU_128X128: Kernel = kernel::<GemmParams>("gemm", "gemm_geglu_128x128", Halves, 128, tile::shared(128, 128));
static GEGLU_64X64: Kernel = kernel::<GemmParams>("gemm", "gemm_geglu_64x64", Halves, 128, tile::shared(64, 64));

/// The kernel file.
pub(crate) static FILE: KernelFile = KernelFile {
    kernels: &[&GEMM_256X128, &GEMM_128X128, &GEMM_128X64, &GEMM_64X64, &GEGLU_256X128, &GEGLU_128X128, &GEGLU_64X64],
    structs: STRUCTS,
};

/// The sizes of a product: a result `[m, n]`, sums of `k`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GemmShape {
    /// Rows of the result.
    pub m: usize,
    /// Columns of the result.
    pub n: usize,
    /// The length of the sums.
    pub k: usize,
}

/// All that the choice of a way to compute a product depends on.
#[derive(Debug, Clone, Copy)]
pub struct GemmDesc {
    /// The sizes; with GEGLU, `n` is the width of its result.
    pub shape: GemmShape,
    /// The images whose rows are the result's.
    pub images: usize,
    /// The storage type.
    pub dtype: DType,
    /// Whether the left factor comes from two tensors.
    pub two_sources: bool,
    /// Whether a bias is added.
    pub bias: bool,
    /// Whether a bias of each image is added.
    pub per_image_bias: bool,
    /// The activation before the residual.
    pub activation: EpilogueActivation,
    /// Whether a residual is added.
    pub residual: bool,
    /// Whether the result is stored as f32.
    pub out_f32: bool,
    /// Whether cuBLASLt is there and wanted.
    pub cublaslt: bool,
    /// The device.
    pub device: TileDevice,
}

/// A way to compute a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GemmConfig {
    /// By the library.
    CublasLt,
    /// By our kernel of that tile.
    Tiled(Tile),
    /// By our kernel of that tile, which ends with GEGLU.
    Geglu(Tile),
    /// Twice as wide by our kernel of that tile, then GEGLU.
    ThenGeglu(Tile),
    /// By our kernel of sm_90a of that tile.
    Sm90(Tile),
    /// By our kernel of sm_90a of that tile, which ends with GEGLU.
    GegluSm90(Tile),
}

/// Chooses how a product is computed: by whom, only as the rows of one image have it, so that an image does not depend on those that share
/// its batch.
pub fn choose(desc: &GemmDesc) -> GemmConfig {
    let GemmShape { m, n, .. } = desc.shape;
    if let Some(config) = choose_sm90(desc) {
        return config;
    }
    if desc.activation == EpilogueActivation::Geglu {
        return match n.is_multiple_of(8) {
            true => GemmConfig::Geglu(geglu_tile(m, n, desc.device)),
            false => GemmConfig::ThenGeglu(tile_for(m, 2 * n, desc.dtype, desc.device)),
        };
    }
    if is_for_the_library(desc) {
        return GemmConfig::CublasLt;
    }
    GemmConfig::Tiled(tile_for(m, n, desc.dtype, desc.device))
}

/// Whether cuBLASLt is there and its epilogues suffice.
fn is_for_the_library(desc: &GemmDesc) -> bool {
    let plain = !desc.two_sources && !desc.per_image_bias && desc.activation == EpilogueActivation::None;
    // The library takes C and the bias in the type of D.
    let of_one_type = !(desc.out_f32 && (desc.residual || desc.bias));
    desc.cublaslt && desc.dtype != DType::F32 && plain && desc.shape.n.is_multiple_of(8) && of_one_type
}

/// The choice of a kernel of sm_90a; `None` where none takes the product or another way is faster.
fn choose_sm90(desc: &GemmDesc) -> Option<GemmConfig> {
    let GemmShape { m, n, .. } = desc.shape;
    let (geglu, device) = (desc.activation == EpilogueActivation::Geglu, desc.device);
    let finished = geglu || desc.activation == EpilogueActivation::None;
    let (rows, columns) = (m / desc.images.max(1), if geglu { 2 * n } else { n });
    if desc.dtype == DType::F32 || desc.out_f32 || !finished || !n.is_multiple_of(8) {
        return None;
    }
    if !tile_sm90::takes(rows, columns, device) {
        return None;
    }
    if is_for_the_library(desc) && !tile_sm90::beats_library(rows, columns, desc.shape.k, device) {
        return None;
    }
    let tile = tile_sm90::choose(m, columns, device);
    Some(if geglu { GemmConfig::GegluSm90(tile) } else { GemmConfig::Sm90(tile) })
}

/// The tile for an `[m, n]` result.
pub(super) fn tile_for(m: usize, n: usize, dtype: DType, device: TileDevice) -> Tile {
    let choose = if dtype == DType::F32 { tile::choose_f32 } else { tile::choose };
    choose(m, n, device)
}

/// The tile of `gemm_geglu`, which has no 128x64; `n` is the width of the result.
pub fn geglu_tile(m: usize, n: usize, device: TileDevice) -> Tile {
    match tile::choose(m, 2 * n, device) {
        Tile::MEDIUM => Tile::LARGE,
        tile => tile,
    }
}

/// The left factor of a product of matrices: one or two sources whose rows are whole 16-byte units.
#[derive(Debug, Clone, Copy)]
pub(super) struct LeftOperand {
    /// Addresses; the second is 0 where there is one source.
    x: [u64; 2],
    width: [usize; 2],
    /// Elements from row to row.
    stride: [usize; 2],
}

impl LeftOperand {
    /// One matrix.
    pub(super) fn one(x: u64, width: usize, stride: usize) -> Self {
        Self { x: [x, 0], width: [width, 0], stride: [stride, 0] }
    }

    fn k(&self) -> usize {
        self.width[0] + self.width[1]
    }
}

/// Channels of the sources together.
pub(super) fn channels(graph: &Graph, node: &Node, gemm: ImplicitGemm<'_>) -> usize {
    node.inputs.iter().take(gemm.sources).map(|id| graph.node(*id).channels()).sum()
}

/// The sources of a fully connected layer, joined or padded where their widths are no whole units.
pub(super) fn sources(l: &mut Lowering<'_>, node: &Node, gemm: ImplicitGemm<'_>) -> Result<LeftOperand> {
    let k = channels(l.graph, node, gemm);
    let width = l.width(node.inputs[0]);
    let two = gemm.sources == 2;
    if k.is_multiple_of(8) && width.is_multiple_of(8) {
        let second = if two { l.place(node.inputs[1]) } else { 0 };
        let widths = [width, k - width];
        return Ok(LeftOperand { x: [l.place(node.inputs[0]), second], width: widths, stride: widths });
    }
    let x = if two { joined(l, node.inputs[0], node.inputs[1])? } else { l.place(node.inputs[0]) };
    if k.is_multiple_of(8) {
        return Ok(LeftOperand::one(x, k, k));
    }
    // Patches of one pixel are rows with zeros up to the pitch.
    let rows = l.graph.node(node.inputs[0]).len() / width;
    let float = l.scratch(rows * k * 4);
    to_f32(l, x, float, rows * k)?;
    let pitch = k.next_multiple_of(8);
    let to = l.scratch(rows * pitch * l.size());
    patches(l, float, [1, rows, 1, k], 1, (to, pitch))?;
    Ok(LeftOperand::one(to, pitch, pitch))
}

/// Lowers a product whose epilogue is given.
pub(super) fn finished_product(
    l: &mut Lowering<'_>,
    node: &Node,
    gemm: ImplicitGemm<'_>,
    left: LeftOperand,
    (taps, inputs): (usize, usize),
    finish: EpilogueParams,
) -> Result<()> {
    let (images, k) = (node.shape[0], left.k());
    let m = node.len() / node.channels();
    let n = gemm.outputs();
    if taps == 1 && inputs == k && is_for_fp8(l, gemm, left, finish) {
        return fp8(l, gemm, left, m, finish);
    }
    let w = l.weights.joined(gemm.parts, inputs, taps, k);
    let w = (l.weight(w), k);
    let shape = GemmShape { m, n, k };
    let config = choose(&GemmDesc {
        shape,
        images,
        dtype: l.options.dtype,
        two_sources: left.x[1] != 0,
        bias: finish.bias.0 != 0,
        per_image_bias: gemm.epilogue.per_image_bias,
        activation: gemm.epilogue.activation,
        residual: finish.residual.0 != 0,
        out_f32: finish.out_f32 != 0,
        cublaslt: l.options.cublaslt,
        device: l.options.tile_device(),
    });
    match config {
        GemmConfig::CublasLt => {
            let row_major = RowMajorGemm {
                dtype: l.options.dtype,
                images,
                rows: m / images,
                n,
                k,
                x: (left.x[0], left.stride[0]),
                w,
                out: (finish.out.0, n),
                out_f32: finish.out_f32 != 0,
                bias: finish.bias.0,
                residual: (finish.residual.0, n),
            };
            l.commands.push(Command::Gemm(row_major.column_major()));
            Ok(())
        }
        GemmConfig::Tiled(tile) => tiled(l, tile, params(left, w, shape, finish)),
        GemmConfig::Geglu(tile) => {
            let kernel = match tile {
                Tile::TALL => &GEGLU_256X128,
                Tile::LARGE => &GEGLU_128X128,
                _ => &GEGLU_64X64,
            };
            let grid = [blocks(m, tile.m), blocks(n, tile.n / 2), 1];
            l.launch(kernel, grid, params(left, w, shape, finish))
        }
        GemmConfig::Sm90(tile) | GemmConfig::GegluSm90(tile) => {
            let x = [0, 1].map(|s| Rows { at: left.x[s], columns: left.width[s], stride: left.stride[s] });
            let product = Product { x, w: w.0, m, n, finish };
            gemm_sm90::launch(l, &product, tile, matches!(config, GemmConfig::GegluSm90(_)))
        }
        GemmConfig::ThenGeglu(tile) => {
            let both = l.scratch(m * 2 * n * l.size());
            let wide = EpilogueParams { out: Pointer(both), out_stride: to_i64(2 * n), ..finish };
            tiled(l, tile, params(left, w, GemmShape { n: 2 * n, ..shape }, wide))?;
            geglu(l, both, finish.out.0, m, n)
        }
    }
}

/// Whether a product multiplies e4m3.
fn is_for_fp8(l: &Lowering<'_>, gemm: ImplicitGemm<'_>, left: LeftOperand, finish: EpilogueParams) -> bool {
    let whole = left.x[1] == 0 && left.stride[0] == left.k() && gemm.outputs().is_multiple_of(8);
    let activation = gemm.epilogue.activation;
    let finished = matches!(activation, EpilogueActivation::None | EpilogueActivation::Geglu) && finish.out_f32 == 0;
    whole && finished && quantize_sm90::takes(l, gemm, left.k())
}

/// Rounds the rows of a product of `m` rows to e4m3 and multiplies them.
fn fp8(
    l: &mut Lowering<'_>,
    gemm: ImplicitGemm<'_>,
    left: LeftOperand,
    m: usize,
    finish: EpilogueParams,
) -> Result<()> {
    let (n, k, geglu) = (gemm.outputs(), left.k(), gemm.epilogue.activation == EpilogueActivation::Geglu);
    let w = l.weights.quantized(gemm.parts, k, 1);
    let operands = [quantize_sm90::quantized(l, left.x[0], [m, k])?, l.quantized_weight(w)];
    let tile = tile_sm90::choose_fp8((m, gemm.columns(), k), l.options.tile_device());
    let product = Product { x: [Rows::default(); 2], w: 0, m, n, finish };
    gemm_fp8_sm90::launch(l, &product, k, operands, tile, geglu)
}

/// Adds `X W^T` and its epilogue by our own kernel; `w` is an address and the elements from row to row.
pub(super) fn gemm(
    l: &mut Lowering<'_>,
    left: LeftOperand,
    w: (u64, usize),
    shape: GemmShape,
    finish: EpilogueParams,
) -> Result<()> {
    let tile = tile_for(shape.m, shape.n, l.options.dtype, l.options.tile_device());
    tiled(l, tile, params(left, w, shape, finish))
}

fn tiled(l: &mut Lowering<'_>, tile: Tile, params: GemmParams) -> Result<()> {
    let kernel = match tile {
        Tile::TALL => &GEMM_256X128,
        Tile::LARGE => &GEMM_128X128,
        Tile::MEDIUM => &GEMM_128X64,
        _ => &GEMM_64X64,
    };
    let [m, n] = [params.m, params.n].map(|count| usize::try_from(count).unwrap_or(0));
    let [x, y] = tile.grid(m, n);
    l.launch(kernel, [x, y, 1], params)
}

fn params(left: LeftOperand, w: (u64, usize), shape: GemmShape, finish: EpilogueParams) -> GemmParams {
    GemmParams {
        x0: Pointer(left.x[0]),
        x1: Pointer(left.x[1]),
        w: Pointer(w.0),
        x0_stride: to_i64(left.stride[0]),
        x1_stride: to_i64(left.stride[1]),
        w_stride: to_i64(w.1),
        finish,
        m: to_i32(shape.m),
        n: to_i32(shape.n),
        k: to_i32(shape.k),
        k0: to_i32(left.width[0]),
    }
}

/// `Y [rows, n] = X [rows, k] W^T + bias + residual` for each image, W `[n, k]`, all row-major; addresses, strides from row to row
/// in elements.
#[derive(Debug, Clone, Copy)]
struct RowMajorGemm {
    /// The storage type.
    dtype: DType,
    /// Images: a product each, so that the library's choice for one image does not depend on how many there are.
    images: usize,
    /// Rows of an image.
    rows: usize,
    /// Columns of Y.
    n: usize,
    /// Columns of X.
    k: usize,
    /// X and its stride.
    x: (u64, usize),
    /// W and its stride.
    w: (u64, usize),
    /// Y and its stride.
    out: (u64, usize),
    /// Whether Y is f32.
    out_f32: bool,
    /// `[n]`, or 0.
    bias: u64,
    /// A tensor as Y and its stride, or 0.
    residual: (u64, usize),
}

impl RowMajorGemm {
    /// The same product, column-major: Y^T = W X^T. A row-major matrix is the transpose of the column-major one in the same
    /// bytes, so Y^T is `n` by `rows`, W comes transposed, X as it is, and the bias runs down Y^T's columns.
    fn column_major(&self) -> Gemm {
        let images = |(data, leading): (u64, usize)| MatrixRef { data, leading, stride: self.rows * leading };
        let residual = (self.residual.0 != 0).then(|| images(self.residual));
        let epilogue = match (self.bias, residual) {
            (0, None) => GemmEpilogue::None,
            (bias, None) => GemmEpilogue::Bias(bias),
            (0, Some(residual)) => GemmEpilogue::Residual(residual),
            (bias, Some(residual)) => GemmEpilogue::BiasResidual(bias, residual),
        };
        Gemm {
            dtype: self.dtype,
            m: self.n,
            n: self.rows,
            k: self.k,
            batch: self.images,
            transpose_a: true,
            transpose_b: false,
            a: MatrixRef { data: self.w.0, leading: self.w.1, stride: 0 },
            b: images(self.x),
            d: images(self.out),
            out_f32: self.out_f32,
            epilogue,
        }
    }
}

#[cfg(test)]
#[path = "gemm_tests.rs"]
mod tests;
