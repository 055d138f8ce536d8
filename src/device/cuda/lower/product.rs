//! Fully connected layers and convolutions.

use super::super::driver::command::Command;
use super::super::gemm::Linear;
use super::super::params::{
    ActivationCode, ConvolutionParams, EpilogueParams, GemmParams, NarrowParams, PatchesParams, Pointer,
};
use super::super::tiles::{self, Tile, blocks};
use super::{Lowering, ResultSlot, int, long, pointwise, refused};
use crate::error::Result;
use crate::graph::{Activation, Conv2dParams, Epilogue, EpilogueActivation, Graph, ImplicitGemm, Node};

/// Inputs times taps that the kernel for few input channels takes at most.
const FEW_IN: usize = 144;
/// Output channels that the kernel for few of them takes at most.
const FEW_OUT: usize = 8;

/// What computes a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ProductForm {
    /// `gemm`, or the library.
    Matrix,
    /// Pictures cut into patches, then as [`Form::MatrixRef`].
    Patches,
    /// `convolution`.
    Window,
    /// `convolution_few_in`, what it does not do itself after it.
    FewIn,
    /// `convolution_few_out`.
    FewOut,
}

/// Channels of the sources together.
fn channels(graph: &Graph, node: &Node, p: ImplicitGemm<'_>) -> usize {
    node.inputs.iter().take(p.sources).map(|id| graph.node(*id).channels()).sum()
}

fn bare(p: ImplicitGemm<'_>) -> bool {
    p.epilogue == Epilogue::default()
}

/// Whether each tap of a window meets each pixel at most once and the rows of a patch's matrix would not be whole units.
pub(in super::super) fn is_patches(graph: &Graph, node: &Node, p: ImplicitGemm<'_>) -> bool {
    p.conv.is_some_and(|w| w.kernel == w.stride && w.kernel > 1 && w.padding == 0 && w.resize.is_none())
        && p.sources == 1
        && !channels(graph, node, p).is_multiple_of(8)
}

/// Whether a product's result can be stored as f32.
pub(in super::super) fn writes_f32(graph: &Graph, node: &Node, p: ImplicitGemm<'_>) -> bool {
    match form(graph, node, p) {
        Some(ProductForm::FewIn) => bare(p),
        Some(_) => p.epilogue.activation != EpilogueActivation::Geglu,
        None => false,
    }
}

/// The operand whose rows a product's kernel adds by itself, and can find by the step's number.
pub(in super::super) fn rows_at(graph: &Graph, node: &Node, p: ImplicitGemm<'_>) -> Option<usize> {
    let own = matches!(form(graph, node, p), Some(ProductForm::Matrix | ProductForm::Patches | ProductForm::Window));
    p.per_image_bias().filter(|_| own)
}

fn form(graph: &Graph, node: &Node, p: ImplicitGemm<'_>) -> Option<ProductForm> {
    let Some(w) = p.conv else { return Some(ProductForm::Matrix) };
    let c = channels(graph, node, p);
    if w.kernel == 1 && w.stride == 1 && w.padding == 0 && w.resize.is_none() && c.is_multiple_of(8) {
        return Some(ProductForm::Matrix);
    }
    if is_patches(graph, node, p) {
        return Some(ProductForm::Patches);
    }
    if c.is_multiple_of(8) {
        let few = node.channels() <= FEW_OUT && bare(p) && p.sources == 1;
        return Some(if few { ProductForm::FewOut } else { ProductForm::Window });
    }
    (w.kernel * w.kernel * c <= FEW_IN).then_some(ProductForm::FewIn)
}

fn code(activation: EpilogueActivation) -> ActivationCode {
    match activation {
        EpilogueActivation::Pointwise(Activation::Silu) => ActivationCode::Silu,
        EpilogueActivation::Pointwise(Activation::Gelu) => ActivationCode::Gelu,
        EpilogueActivation::Pointwise(Activation::QuickGelu) => ActivationCode::QuickGelu,
        EpilogueActivation::None | EpilogueActivation::Geglu => ActivationCode::None,
    }
}

/// The left factor of a product of matrices: one or two sources whose rows are whole 16-byte units.
#[derive(Debug, Clone, Copy)]
pub(super) struct LeftOperand {
    pub(super) x: [u64; 2],
    pub(super) width: [usize; 2],
    /// Elements from row to row.
    pub(super) stride: [usize; 2],
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

impl Lowering<'_> {
    pub(super) fn product(&mut self, i: usize, node: &Node, p: ImplicitGemm<'_>) -> Result<()> {
        let Some(form) = form(self.graph, node, p) else {
            let c = channels(self.graph, node, p);
            let what =
                format!("{c} input channels; a multiple of 8 is needed, or few: {FEW_IN} with all taps of the kernel");
            return Err(refused(node, &what));
        };
        let out = self.result(i);
        match form {
            ProductForm::Matrix => {
                let left = self.left(node, p)?;
                self.matrix(node, p, left, (1, channels(self.graph, node, p)), out)
            }
            ProductForm::Patches => self.patches(node, p, out),
            ProductForm::Window => self.window(node, p, out),
            ProductForm::FewIn | ProductForm::FewOut => self.narrow(node, p, form, out),
        }
    }

    /// The sources of a fully connected layer, joined or padded where their widths are no whole units.
    fn left(&mut self, node: &Node, p: ImplicitGemm<'_>) -> Result<LeftOperand> {
        let k = channels(self.graph, node, p);
        let width = self.width(node.inputs[0]);
        if k.is_multiple_of(8) && width.is_multiple_of(8) {
            let second = if p.sources == 2 { self.place(node.inputs[1]) } else { 0 };
            let widths = [width, k - width];
            return Ok(LeftOperand { x: [self.place(node.inputs[0]), second], width: widths, stride: widths });
        }
        let x = if p.sources == 2 { self.joined(node.inputs[0], node.inputs[1])? } else { self.place(node.inputs[0]) };
        if k.is_multiple_of(8) {
            return Ok(LeftOperand::one(x, k, k));
        }
        // Patches of one pixel are rows with zeros up to the pitch.
        let rows = self.graph.node(node.inputs[0]).len() / width;
        let float = self.scratch(rows * k * 4);
        self.unary("to_f32", x, float, rows * k, 1.0, 0.0)?;
        let pitch = k.next_multiple_of(8);
        let to = self.scratch(rows * pitch * self.size());
        self.cut(float, [1, rows, 1, k], 1, (to, pitch))?;
        Ok(LeftOperand::one(to, pitch, pitch))
    }

    /// f32 pictures cut into patches of that side, a row each.
    fn cut(&mut self, x: u64, shape: [usize; 4], side: usize, (to, pitch): (u64, usize)) -> Result<()> {
        let [images, height, width, channels] = shape;
        let params = PatchesParams {
            x: Pointer(x),
            out: Pointer(to),
            pitch: long(pitch),
            images: int(images),
            height: int(height),
            width: int(width),
            channels: int(channels),
            side: int(side),
            reserved: 0,
        };
        let count = images * (height / side) * (width / side) * pitch;
        self.launch("patches", [blocks(count, 256), 1, 1], params)
    }

    fn patches(&mut self, node: &Node, p: ImplicitGemm<'_>, out: ResultSlot) -> Result<()> {
        let side = p.conv.map_or(1, |w| w.kernel);
        let shape = &self.graph.node(node.inputs[0]).shape;
        let shape = [shape[0], shape[1], shape[2], shape[3]];
        let pitch = (side * side * shape[3]).next_multiple_of(8);
        let to = self.scratch(node.len() / node.channels() * pitch * self.size());
        let x = self.floats(node.inputs[0])?;
        self.cut(x, shape, side, (to, pitch))?;
        self.matrix(node, p, LeftOperand::one(to, pitch, pitch), (side * side, shape[3]), out)
    }

    /// Everything that follows a product.
    fn finish(&mut self, node: &Node, p: ImplicitGemm<'_>, rows_of_image: usize, out: ResultSlot) -> EpilogueParams {
        let bias = self.jobs.biases(p.parts).map_or(0, |at| self.weight(at));
        let (rows, step, rows_step) = match p.per_image_bias() {
            Some(operand) => self.rows(node.inputs[operand]),
            None => (0, 0, 0),
        };
        let residual = p.residual().map_or(0, |operand| self.place(node.inputs[operand]));
        let n = node.channels();
        EpilogueParams {
            bias: Pointer(bias),
            rows: Pointer(rows),
            step: Pointer(step),
            rows_step,
            residual: Pointer(residual),
            out: Pointer(out.at),
            residual_stride: if p.epilogue.residual { long(n) } else { 0 },
            out_stride: long(n),
            rows_of_image: int(rows_of_image),
            activation: code(p.epilogue.activation) as i32,
            out_f32: i32::from(out.float),
            ..EpilogueParams::default()
        }
    }

    /// A product of matrices; the weights have `taps` times `inputs` values a row.
    fn matrix(
        &mut self,
        node: &Node,
        p: ImplicitGemm<'_>,
        left: LeftOperand,
        (taps, inputs): (usize, usize),
        out: ResultSlot,
    ) -> Result<()> {
        let (n, k) = (node.channels(), left.k());
        let (m, images) = (node.len() / n, node.shape[0]);
        let w = self.jobs.joined(p.parts, inputs, taps, k);
        let w = self.weight(w);
        let finish = self.finish(node, p, m / images, out);
        if p.epilogue.activation == EpilogueActivation::Geglu {
            return self.product_geglu(left, (w, k), [m, n, k], finish);
        }
        let library = self.settings.library && !self.is_f32();
        if library
            && left.x[1] == 0
            && !p.epilogue.per_image_bias
            && p.epilogue.activation == EpilogueActivation::None
            && n.is_multiple_of(8)
        {
            let linear = Linear {
                dtype: self.settings.dtype,
                images,
                rows: m / images,
                n,
                k,
                x: (left.x[0], left.stride[0]),
                w: (w, k),
                out: (out.at, n),
                out_f32: out.float,
                bias: finish.bias.0,
                residual: (finish.residual.0, n),
            };
            // The library takes C and the bias in the type of D.
            if !(out.float && (p.epilogue.residual || finish.bias.0 != 0)) {
                self.steps.push(Command::Gemm(linear.gemm()));
                return Ok(());
            }
        }
        self.gemm(left, (w, k), [m, n, k], finish)
    }

    fn gemm_params(left: LeftOperand, w: (u64, usize), [m, n, k]: [usize; 3], finish: EpilogueParams) -> GemmParams {
        GemmParams {
            x0: Pointer(left.x[0]),
            x1: Pointer(left.x[1]),
            w: Pointer(w.0),
            x0_stride: long(left.stride[0]),
            x1_stride: long(left.stride[1]),
            w_stride: long(w.1),
            finish,
            m: int(m),
            n: int(n),
            k: int(k),
            k0: int(left.width[0]),
        }
    }

    /// The tile for an `[m, n]` result.
    fn tile(&self, m: usize, n: usize) -> Tile {
        let choose = if self.is_f32() { tiles::f32_product } else { tiles::product };
        choose(m, n, self.settings.multiprocessors)
    }

    /// `X W^T` and what follows it, by our own kernel.
    pub(super) fn gemm(
        &mut self,
        left: LeftOperand,
        w: (u64, usize),
        [m, n, k]: [usize; 3],
        finish: EpilogueParams,
    ) -> Result<()> {
        let tile = self.tile(m, n);
        let [x, y] = tile.grid(m, n);
        let params = Self::gemm_params(left, w, [m, n, k], finish);
        self.launch(&format!("gemm_{}", tile.name()), [x, y, 1], params)
    }

    /// The first half of the columns times GELU of the second; `n` is the width of the result.
    fn product_geglu(
        &mut self,
        left: LeftOperand,
        w: (u64, usize),
        [m, n, k]: [usize; 3],
        finish: EpilogueParams,
    ) -> Result<()> {
        if n.is_multiple_of(8) {
            let tile = tiles::geglu(m, n, self.settings.multiprocessors);
            let grid = [blocks(m, tile.m), blocks(n, tile.n / 2), 1];
            let params = Self::gemm_params(left, w, [m, n, k], finish);
            return self.launch(&format!("gemm_geglu_{}", tile.name()), grid, params);
        }
        let both = self.scratch(m * 2 * n * self.size());
        let out = finish.out.0;
        let finish = EpilogueParams { out: Pointer(both), out_stride: long(2 * n), ..finish };
        self.gemm(left, w, [m, 2 * n, k], finish)?;
        self.geglu(both, out, m, n)
    }

    /// The sources of a convolution and their height and width; enlarged first where the convolution cannot do that itself.
    fn picture(&mut self, node: &Node, p: ImplicitGemm<'_>, w: &Conv2dParams) -> Result<([u64; 2], [usize; 2])> {
        let shape = &self.graph.node(node.inputs[0]).shape;
        let (images, height, width) = (shape[0], shape[1], shape[2]);
        let mut x = [0; 2];
        for (s, place) in x.iter_mut().enumerate().take(p.sources) {
            *place = self.place(node.inputs[s]);
            if let Some((to_height, to_width)) = w.resize {
                let c = self.width(node.inputs[s]);
                let to = self.scratch(images * to_height * to_width * c * self.size());
                self.upsample_at(*place, [images, height, width, c], [to_height, to_width], to)?;
                *place = to;
            }
        }
        let (height, width) = w.resize.unwrap_or((height, width));
        Ok((x, [height, width]))
    }

    fn window(&mut self, node: &Node, p: ImplicitGemm<'_>, out: ResultSlot) -> Result<()> {
        let Some(w) = p.conv else { return Err(refused(node, "a convolution without a window")) };
        let shape = &self.graph.node(node.inputs[0]).shape;
        let (images, height, width) = (shape[0], shape[1], shape[2]);
        let (n, c) = (node.channels(), channels(self.graph, node, p));
        let taps = w.kernel * w.kernel;
        let doubled = w.resize == Some((2 * height, 2 * width)) && (w.kernel, w.stride, w.padding) == (3, 1, 1);
        let single = p.parts.len() == 1 && p.parts[0].weight.shape().len() == 4;
        let mut params = ConvolutionParams {
            n: int(n),
            channels0: int(self.width(node.inputs[0])),
            channels: int(c),
            stride: int(w.stride),
            padding_y: int(w.padding),
            padding_x: int(w.padding),
            ..ConvolutionParams::default()
        };
        let (weight, pixels, phases) = if doubled && single {
            params.x0 = Pointer(self.place(node.inputs[0]));
            params.x1 = Pointer(if p.sources == 2 { self.place(node.inputs[1]) } else { 0 });
            (params.height, params.width) = (int(height), int(width));
            (params.result_height, params.result_width) = (int(height), int(width));
            (params.kernel_y, params.kernel_x, params.phases) = (2, 2, 4);
            (self.jobs.phases(&p.parts[0].weight), height * width, 4)
        } else {
            let (x, [height, width]) = self.picture(node, p, &w)?;
            (params.x0, params.x1) = (Pointer(x[0]), Pointer(x[1]));
            (params.height, params.width) = (int(height), int(width));
            (params.result_height, params.result_width) = (int(node.shape[1]), int(node.shape[2]));
            (params.kernel_y, params.kernel_x, params.phases) = (int(w.kernel), int(w.kernel), 1);
            (self.jobs.joined(p.parts, c, taps, taps * c), node.shape[1] * node.shape[2], 1)
        };
        if !self.width(node.inputs[0]).is_multiple_of(8) {
            if params.phases == 4 || w.resize.is_some() {
                return Err(self.uneven(node, p.sources));
            }
            params.x0 = Pointer(self.joined(node.inputs[0], node.inputs[1])?);
            (params.x1, params.channels0) = (Pointer(0), int(c));
        }
        params.w = Pointer(self.weight(weight));
        params.pixels = int(images * pixels);
        params.finish = self.finish(node, p, pixels, out);
        let tile = self.tile(images * pixels * phases, n);
        let [x, y] = tile.grid(images * pixels, n);
        self.launch(&format!("convolution_{}", tile.name()), [x, y, blocks(phases, 1)], params)
    }

    /// Few channels on one side; the kernels add the bias alone.
    fn narrow(&mut self, node: &Node, p: ImplicitGemm<'_>, form: ProductForm, out: ResultSlot) -> Result<()> {
        let Some(w) = p.conv else { return Err(refused(node, "a convolution without a window")) };
        let (n, c) = (node.channels(), channels(self.graph, node, p));
        let (m, taps) = (node.len() / n, w.kernel * w.kernel);
        let (mut x, [height, width]) = self.picture(node, p, &w)?;
        if p.sources == 2 {
            if w.resize.is_some() {
                return Err(self.uneven(node, p.sources));
            }
            x[0] = self.joined(node.inputs[0], node.inputs[1])?;
        }
        let weight = self.jobs.joined(p.parts, c, taps, taps * c);
        let finish = self.finish(node, p, m / node.shape[0], out);
        let params = NarrowParams {
            x: Pointer(x[0]),
            w: Pointer(self.weight(weight)),
            bias: finish.bias,
            out: Pointer(out.at),
            pixels: int(m),
            n: int(n),
            channels: int(c),
            height: int(height),
            width: int(width),
            result_height: int(node.shape[1]),
            result_width: int(node.shape[2]),
            kernel_y: int(w.kernel),
            kernel_x: int(w.kernel),
            stride: int(w.stride),
            padding_y: int(w.padding),
            padding_x: int(w.padding),
            out_f32: i32::from(out.float),
            reserved: 0,
        };
        match form {
            ProductForm::FewOut if n <= 4 => self.launch("convolution_few_out_4", [blocks(m, 16), 1, 1], params)?,
            ProductForm::FewOut => self.launch("convolution_few_out_8", [blocks(m, 16), 1, 1], params)?,
            _ => self.launch("convolution_few_in", [blocks(m, 16), blocks(n, 128), 1], params)?,
        }
        if p.epilogue.per_image_bias {
            let images = node.shape[0];
            self.add(out.at, finish.rows.0, out.at, [m, m / images, images], n)?;
        }
        if let EpilogueActivation::Pointwise(kind) = p.epilogue.activation {
            self.unary(pointwise::activation(kind), out.at, out.at, m * n, 1.0, 0.0)?;
        }
        if p.epilogue.residual {
            self.add(out.at, finish.residual.0, out.at, [m, 1, m], n)?;
        }
        Ok(())
    }
}
