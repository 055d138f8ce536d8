//! Two sources joined by channels, which normalisation, convolution and layer read where they are.

use super::conv2d::WINOGRAD;
use crate::reference::{Convolution, Norm, activation, concat, linear};
use crate::table::{Case, CaseBuilder, operation};
use braid::graph::{Activation, Op, fuse};

struct Size {
    h: usize,
    w: usize,
    o: usize,
    /// Also a convolution of the joined sources themselves.
    direct: bool,
}

fn case(Size { h, w, o, direct }: Size) -> Case {
    let (n, ca, cb, groups) = (2, 24, 40, 4);
    let channels = ca + cb;
    let mut c = CaseBuilder::new(format!("joined sources {h}x{w} to {o}"));
    let (gain, shift) = (c.weight("norm.weight", &[channels], 1), c.weight("norm.bias", &[channels], 2));
    let conv = c.weight("conv.weight", &[o, channels, 3, 3], 3);
    let short = c.weight("short.weight", &[o, channels, 1, 1], 4);
    let second = c.weight("direct.weight", &[o, channels, 3, 3], 6);
    let (ai, a) = c.input("a", &[n, h, w, ca], 5);
    let (bi, b) = c.input("b", &[n, h, w, cb], 6);
    let scope = c.scope();
    let g = &mut c.graph;
    let x = g.concat(ai, bi);
    let y = g.group_norm(x, &scope.pp("norm"), groups, 1e-5);
    let y = g.activation(y, Activation::Silu);
    let y = g.conv2d_no_bias(y, &scope.pp("conv"), o, 3, 1);
    let beside = direct.then(|| g.conv2d_no_bias(x, &scope.pp("direct"), o, 3, 1));
    let x = g.linear_no_bias(x, &scope.pp("short"), o);
    let mut y = g.add(x, y);
    if let Some(beside) = beside {
        y = g.add(y, beside);
    }

    let x = concat(&a, ca, &b, cb);
    let normal = Norm { weight: &gain, bias: &shift, eps: 1e-5 }.group(&x, n, groups);
    let normal: Vec<f64> = normal.iter().map(|v| activation(Activation::Silu, *v)).collect();
    let window = Convolution { kernel: 3, stride: 1, padding: [1; 2], grid: (h, w) };
    let shape = [n, h, w, channels];
    let mut want = window.apply(&normal, shape, &conv, None, o);
    let mut add = |more: Vec<f64>| want.iter_mut().zip(more).for_each(|(a, b)| *a += b);
    add(linear(&x, &short, None, channels, o));
    if direct {
        add(window.apply(&x, shape, &second, None, o));
    }
    c.output(y, want);
    if h * w > 200 {
        c.f32_error(WINOGRAD);
    }
    c.avoids("concat");
    c.finish()
}

fn cases() -> Vec<Case> {
    vec![
        case(Size { h: 10, w: 15, o: 12, direct: false }),
        case(Size { h: 6, w: 7, o: 16, direct: true }),
        case(Size { h: 16, w: 15, o: 12, direct: true }),
        case(Size { h: 6, w: 7, o: 4, direct: true }),
    ]
}

/// Nothing of the join is left but its readers.
#[test]
fn fused() {
    let fused = fuse(cases().remove(0).graph);
    assert!(fused.iter().all(|(_, n)| !matches!(n.op, Op::Concat | Op::Add | Op::Activation(_))));
}

operation!(cases());
