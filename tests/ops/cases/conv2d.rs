//! Convolutions of every size that the models have, and with everything that fuses into them.

use crate::reference::{Convolution, activation, concat};
use crate::table::{Case, CaseBuilder, operation};
use braid::graph::{Activation, Conv2dParams, LinearWeights};

/// The CPU's error where it multiplies in Winograd's way, at 16 tiles of 4x4 results and 16 channels or more.
pub const WINOGRAD: f64 = 6e-6;

struct Size {
    /// Images, height, width, channels.
    x: [usize; 4],
    o: usize,
    kernel: usize,
    stride: usize,
    padding: [usize; 2],
}

fn plain(Size { x: shape, o, kernel, stride, padding }: Size, bias: bool, launched: Option<&'static str>) -> Case {
    let [_, h, w, channels] = shape;
    let mut c = CaseBuilder::new(format!("convolution {shape:?} to {o}, {kernel}, {stride}, {padding:?}"));
    let weight = c.weight("weight", &[o, channels, kernel, kernel], 1);
    let bias = bias.then(|| c.weight("bias", &[o], 2));
    let (xi, x) = c.input("x", &shape, 3);
    let scope = c.scope();
    let shape_of_weight = [o, channels, kernel, kernel];
    let weights = match bias {
        Some(_) => LinearWeights::with_bias(&scope, &shape_of_weight),
        None => LinearWeights::no_bias(&scope, &shape_of_weight),
    };
    let y = c.graph.conv2d_with(xi, weights, Conv2dParams { kernel, stride, padding, resize: None });
    let convolution = Convolution { kernel, stride, padding, grid: (h, w) };
    c.output(y, convolution.apply(&x, shape, &weight, bias.as_deref(), o));
    if h * w > 200 {
        c.f32_error(WINOGRAD);
    }
    launched.into_iter().for_each(|kernel| c.launches(kernel));
    c.finish()
}

fn every_epilogue((h, w): (usize, usize), channels: usize, o: usize) -> Case {
    let n = 2;
    let mut c = CaseBuilder::new(format!("convolution {h}x{w} of {channels} to {o} with all"));
    if h * w > 200 {
        c.f32_error(WINOGRAD);
    }
    let [weight, bias] = [c.weight("weight", &[o, channels, 3, 3], 1), c.weight("bias", &[o], 2)];
    let (xi, x) = c.input("x", &[n, h, w, channels], 3);
    let (ri, rows) = c.input("rows", &[n, o], 4);
    let (ei, residual) = c.input("residual", &[n, h, w, o], 5);
    let scope = c.scope();
    let y = c.graph.conv2d(xi, &scope, o, 3, 1);
    let y = c.graph.broadcast_add(y, ri);
    let y = c.graph.activation(y, Activation::Silu);
    let y = c.graph.add(y, ei);
    let convolution = Convolution { kernel: 3, stride: 1, padding: [1; 2], grid: (h, w) };
    let mut want = convolution.apply(&x, [n, h, w, channels], &weight, Some(&bias), o);
    for (at, v) in want.iter_mut().enumerate() {
        *v = activation(Activation::Silu, *v + rows[at / (h * w * o) * o + at % o]) + residual[at];
    }
    c.output(y, want);
    c.finish()
}

/// Patches of images whose channels, 3 and 2, come from two tensors.
fn patches_of_two_sources() -> Case {
    let (n, h, w, o) = (2, 8, 12, 16);
    let mut c = CaseBuilder::new("patches of two sources");
    let weight = c.weight("weight", &[o, 5, 4, 4], 1);
    let (ai, a) = c.input("a", &[n, h, w, 3], 2);
    let (bi, b) = c.input("b", &[n, h, w, 2], 3);
    let scope = c.scope();
    let x = c.graph.concat(ai, bi);
    let weights = LinearWeights::no_bias(&scope, &[o, 5, 4, 4]);
    let y = c.graph.conv2d_with(x, weights, Conv2dParams { kernel: 4, stride: 4, padding: [0; 2], resize: None });
    let convolution = Convolution { kernel: 4, stride: 4, padding: [0; 2], grid: (h, w) };
    c.output(y, convolution.apply(&concat(&a, 3, &b, 2), [n, h, w, 5], &weight, None, o));
    c.finish()
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (x, o, kernel, stride, padding, launched) in [
        ([2, 5, 7, 4], 40, 3, 1, 1, Some("convolution_few_in")),
        ([1, 6, 5, 3], 16, 3, 2, 1, Some("convolution_few_in")),
        ([2, 5, 7, 16], 40, 3, 1, 1, Some("convolution_64x64")),
        ([2, 9, 8, 24], 72, 3, 2, 1, Some("convolution_64x64")),
        ([1, 5, 6, 24], 4, 3, 1, 1, Some("convolution_few_out_4")),
        ([1, 5, 6, 24], 7, 3, 1, 1, Some("convolution_few_out_8")),
        ([1, 12, 12, 3], 24, 4, 4, 0, Some("patches")),
        ([1, 15, 16, 3], 24, 7, 7, 0, Some("patches")),
        ([1, 4, 5, 4], 4, 1, 1, 0, Some("convolution_few_in")),
        ([1, 4, 5, 16], 24, 1, 1, 0, None),
    ] {
        cases.push(plain(Size { x, o, kernel, stride, padding: [padding; 2] }, true, launched));
    }
    let mut refused = plain(Size { x: [1, 8, 6, 130], o: 5, kernel: 3, stride: 2, padding: [1; 2] }, false, None);
    refused.cuda_refuses = Some("130");
    cases.push(refused);
    for (x, o, kernel, stride, padding) in [
        ([2, 5, 7, 4], 33, 3, 1, 1),
        ([2, 7, 9, 3], 40, 3, 2, 1),
        ([1, 12, 12, 3], 20, 4, 4, 0),
        ([1, 3, 3, 40], 64, 1, 1, 0),
    ] {
        cases.push(plain(Size { x, o, kernel, stride, padding: [padding; 2] }, false, None));
    }
    // The downsamplers of the VAE's encoder, at even and odd sides, by each kernel.
    for (x, o, launched) in [
        ([2, 6, 8, 16], 24, "convolution_64x64"),
        ([1, 7, 5, 16], 16, "convolution_64x64"),
        ([2, 7, 6, 24], 4, "convolution_few_out_4"),
        ([2, 6, 7, 3], 16, "convolution_few_in"),
    ] {
        cases.push(plain(Size { x, o, kernel: 3, stride: 2, padding: [0, 1] }, true, Some(launched)));
    }
    // Of a pixel each with a stride or padding; kernels as large as their stride, or nearly; patches of two images; more output
    // channels than a block of the kernel for few inputs takes.
    for (x, o, kernel, stride, padding, launched) in [
        ([2, 5, 6, 16], 24, 1, 2, [0, 0], "convolution_64x64"),
        ([1, 4, 5, 16], 24, 1, 1, [1, 1], "convolution_64x64"),
        ([2, 9, 9, 3], 16, 3, 3, [1, 1], "convolution_few_in"),
        ([1, 8, 10, 3], 16, 4, 2, [0, 0], "convolution_few_in"),
        ([2, 12, 16, 3], 24, 4, 4, [0, 0], "patches"),
        ([1, 8, 10, 3], 16, 2, 2, [0, 0], "patches"),
        ([1, 5, 7, 4], 136, 3, 1, [1, 1], "convolution_few_in"),
    ] {
        cases.push(plain(Size { x, o, kernel, stride, padding }, true, Some(launched)));
    }
    cases.push(patches_of_two_sources());
    cases.extend([(4, 24), (16, 40), (16, 4)].map(|(channels, o)| every_epilogue((6, 5), channels, o)));
    // Tiles of 2x2 results: whole ones and parts, several images, blocks of channels, panels of outputs, other paddings.
    for (x, o, padding) in [
        ([3, 8, 8, 136], 40, [1, 1]),
        ([2, 4, 4, 24], 33, [1, 1]),
        ([1, 7, 10, 16], 8, [0, 0]),
        ([2, 2, 31, 16], 24, [1, 1]),
    ] {
        cases.push(plain(Size { x, o, kernel: 3, stride: 1, padding }, true, None));
    }
    // Tiles of 4x4 results: whole ones and parts, several images, blocks of channels, panels of outputs, other paddings.
    for (x, o, padding) in [
        ([2, 17, 18, 24], 40, [1, 1]),
        ([1, 16, 16, 16], 4, [1, 1]),
        ([1, 18, 19, 24], 33, [0, 0]),
        ([1, 16, 17, 136], 8, [1, 1]),
        ([3, 4, 61, 16], 24, [1, 1]),
    ] {
        cases.push(plain(Size { x, o, kernel: 3, stride: 1, padding }, true, None));
    }
    let mut refused = plain(Size { x: [1, 16, 15, 20], o: 5, kernel: 3, stride: 1, padding: [1; 2] }, false, None);
    refused.cuda_refuses = Some("20 input channels");
    cases.push(refused);
    cases.push(every_epilogue((16, 14), 16, 40));
    cases.push(plain(Size { x: [1, 33, 32, 16], o: 8, kernel: 3, stride: 2, padding: [1; 2] }, true, None));
    cases
}

operation!(cases());
