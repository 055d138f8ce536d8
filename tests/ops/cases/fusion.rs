//! Nodes so close to a product that they could be taken into it, and must not be, or only in part.

use super::conv2d::WINOGRAD;
use crate::reference::{Convolution, activation, concat, linear};
use crate::table::{Case, CaseBuilder, operation};
use braid::graph::Activation;

const IMAGES: usize = 2;

/// Rows for each image that are added after what ends a product: an activation or a residual, before which they would come.
fn rows_at_the_end(residual: bool) -> Case {
    let (m, k, n) = (5, 24, 16);
    let mut c = CaseBuilder::new(format!("rows after a product's end, residual {residual}"));
    let weight = c.weight("weight", &[n, k], 1);
    let (xi, x) = c.input("x", &[IMAGES, m, k], 2);
    let (ri, rows) = c.input("rows", &[IMAGES, n], 3);
    let scope = c.scope();
    let y = c.graph.linear_no_bias(xi, &scope, n);
    let mut want = linear(&x, &weight, None, k, n);
    let y = if residual {
        let (ei, more) = c.input("residual", &[IMAGES, m, n], 4);
        want.iter_mut().zip(more).for_each(|(a, b)| *a += b);
        c.graph.add(ei, y)
    } else {
        want.iter_mut().for_each(|v| *v = activation(Activation::Silu, *v));
        c.graph.activation(y, Activation::Silu)
    };
    let y = c.graph.broadcast_add(y, ri);
    want.iter_mut().enumerate().for_each(|(at, v)| *v += rows[at / (m * n) * n + at % n]);
    c.output(y, want);
    c.finish()
}

/// An image enlarged twice on its way into a convolution, of which only the second is taken in.
fn enlarged_twice() -> Case {
    let (h, w, channels, o) = (3, 4, 16, 24);
    let mut c = CaseBuilder::new("enlarged twice".to_owned());
    let weight = c.weight("weight", &[o, channels, 3, 3], 1);
    let (xi, x) = c.input("x", &[IMAGES, h, w, channels], 2);
    let scope = c.scope();
    // 7 rows and 5 columns of 3 and 4, then 14 and 11: not what one step from the first to the last gives.
    let y = c.graph.upsample(xi, 7, 5);
    let y = c.graph.upsample(y, 14, 11);
    let y = c.graph.conv2d_no_bias(y, &scope, o, 3, 1);
    let mut middle = Vec::new();
    for (image, y, x_at) in (0..IMAGES * 7 * 5).map(|i| (i / 35, i / 5 % 7, i % 5)) {
        let from = (image * h + y * h / 7) * w + x_at * w / 5;
        middle.extend_from_slice(&x[from * channels..][..channels]);
    }
    let convolution = Convolution { kernel: 3, stride: 1, padding: [1; 2], grid: (14, 11) };
    c.output(y, convolution.apply(&middle, [IMAGES, 7, 5, channels], &weight, None, o));
    c.f32_error(WINOGRAD);
    c.finish()
}

/// A join that a layer reads as its input and, with `twice`, as what is added to its result: then it must be there.
fn joined([ca, cb]: [usize; 2], twice: bool) -> Case {
    let (m, channels) = (7, ca + cb);
    let mut c = CaseBuilder::new(format!("joined {ca} and {cb}, read twice {twice}"));
    let weight = c.weight("weight", &[channels, channels], 1);
    let (ai, a) = c.input("a", &[IMAGES, m, ca], 2);
    let (bi, b) = c.input("b", &[IMAGES, m, cb], 3);
    let scope = c.scope();
    let x = c.graph.concat(ai, bi);
    let y = c.graph.linear_no_bias(x, &scope, channels);
    let wide = concat(&a, ca, &b, cb);
    let mut want = linear(&wide, &weight, None, channels, channels);
    let y = if twice {
        want.iter_mut().zip(&wide).for_each(|(a, b)| *a += b);
        c.graph.add(x, y)
    } else {
        y
    };
    c.output(y, want);
    c.finish()
}

fn cases() -> Vec<Case> {
    let mut cases = vec![rows_at_the_end(false), rows_at_the_end(true), enlarged_twice()];
    // Widths in eights, and others of which the sum is one or is none.
    cases.extend([[16, 8], [3, 5], [3, 4]].map(|widths| joined(widths, false)));
    cases.extend([[16, 8], [3, 4]].map(|widths| joined(widths, true)));
    cases
}

operation!(cases());
