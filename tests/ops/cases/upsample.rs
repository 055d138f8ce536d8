//! An image enlarged on its way into a convolution.

use super::conv2d::WINOGRAD;
use crate::reference::Convolution;
use crate::table::{Case, CaseBuilder, operation};
use braid::graph::{Conv2dParams, LinearWeights};

struct Size {
    from: (usize, usize),
    to: (usize, usize),
    channels: usize,
    o: usize,
    bias: bool,
    /// Whether the result is added to another tensor.
    residual: bool,
}

fn case(Size { from, to, channels, o, bias, residual }: Size) -> Case {
    let mut c = CaseBuilder::new(format!("{from:?} to {to:?}, {channels} to {o}"));
    let weight = c.weight("weight", &[o, channels, 3, 3], 1);
    let bias = bias.then(|| c.weight("bias", &[o], 2));
    let shape = [2, from.0, from.1, channels];
    let (xi, x) = c.input("x", &shape, 3);
    let scope = c.scope();
    let y = c.graph.upsample(xi, to.0, to.1);
    let y = match bias {
        Some(_) => c.graph.conv2d(y, &scope, o, 3, 1),
        None => c.graph.conv2d_no_bias(y, &scope, o, 3, 1),
    };
    let convolution = Convolution { kernel: 3, stride: 1, padding: [1; 2], grid: to };
    let mut want = convolution.apply(&x, shape, &weight, bias.as_deref(), o);
    let y = match residual {
        true => {
            let (ri, more) = c.input("residual", &[2, to.0, to.1, o], 5);
            want.iter_mut().zip(more).for_each(|(sum, v)| *sum += v);
            c.graph.add(ri, y)
        }
        false => y,
    };
    c.output(y, want);
    if to.0 * to.1 > 200 {
        c.f32_error(WINOGRAD);
    }
    c.fused_nodes(2 + usize::from(residual));
    // Twice as large, and channels in eights: one product for each of four phases.
    let phases = to == (2 * from.0, 2 * from.1) && channels % 8 == 0;
    if phases {
        c.avoids("upsample")
    } else {
        c.launches("upsample")
    }
    c.finish()
}

/// A doubling, or nearly one, before a window that is not that of four phases.
fn other_window(to: (usize, usize), kernel: usize, stride: usize, padding: [usize; 2]) -> Case {
    let (from, channels, o) = ((3, 4), 16, 24);
    let mut c = CaseBuilder::new(format!("{from:?} to {to:?}, {kernel}, {stride}, {padding:?}"));
    let weight = c.weight("weight", &[o, channels, kernel, kernel], 1);
    let shape = [2, from.0, from.1, channels];
    let (xi, x) = c.input("x", &shape, 3);
    let scope = c.scope();
    let y = c.graph.upsample(xi, to.0, to.1);
    let weights = LinearWeights::no_bias(&scope, &[o, channels, kernel, kernel]);
    let y = c.graph.conv2d_with(y, weights, Conv2dParams { kernel, stride, padding, resize: None });
    let convolution = Convolution { kernel, stride, padding, grid: to };
    c.output(y, convolution.apply(&x, shape, &weight, None, o));
    c.launches("upsample");
    c.finish()
}

fn cases() -> Vec<Case> {
    let (double, other) = ((6, 8), (5, 9));
    vec![
        case(Size { from: (3, 4), to: double, channels: 16, o: 24, bias: true, residual: false }),
        case(Size { from: (3, 4), to: double, channels: 16, o: 24, bias: true, residual: true }),
        case(Size { from: (3, 5), to: other, channels: 16, o: 24, bias: true, residual: true }),
        case(Size { from: (3, 5), to: other, channels: 16, o: 24, bias: true, residual: false }),
        case(Size { from: (3, 4), to: double, channels: 4, o: 24, bias: true, residual: false }),
        case(Size { from: (3, 4), to: double, channels: 6, o: 8, bias: false, residual: false }),
        case(Size { from: (3, 5), to: other, channels: 6, o: 8, bias: false, residual: false }),
        case(Size { from: (8, 9), to: (16, 18), channels: 16, o: 24, bias: true, residual: true }),
        case(Size { from: (8, 9), to: (15, 17), channels: 16, o: 24, bias: true, residual: false }),
        other_window(double, 1, 1, [0; 2]),
        other_window(double, 3, 2, [1; 2]),
        other_window(double, 3, 2, [0, 1]),
        other_window(double, 3, 1, [0; 2]),
        other_window((6, 9), 3, 1, [1; 2]),
        other_window((5, 8), 3, 1, [1; 2]),
    ]
}

operation!(cases());
