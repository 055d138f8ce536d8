//! Group normalisation, with the SiLU that fuses into it.

use crate::interpreter::values;
use crate::reference::{Norm, activation};
use crate::table::{Case, CaseBuilder, operation};
use braid::graph::Activation;

/// With activations after it, one after the other; the first one fuses where it is SiLU.
fn case(shape: [usize; 4], groups: usize, after: &[Activation], eps: f32) -> Case {
    let [n, _, _, channels] = shape;
    let mut c = CaseBuilder::new(format!("group norm {shape:?} in {groups}, {after:?}"));
    let (weight, bias) = (c.weight("weight", &[channels], 1), c.weight("bias", &[channels], 2));
    // A mean far from zero; rounding an input of 4 costs 4 times what rounding one of 1 does, so they are rounded before.
    let x = values(shape.iter().product(), 3).iter().map(|v| half::bf16::from_f32(v + 3.0).to_f32()).collect();
    let (xi, x) = c.given("x", &shape, x);
    let scope = c.scope();
    let mut y = c.graph.group_norm(xi, &scope, groups, eps);
    let mut want = Norm { weight: &weight, bias: &bias, eps: f64::from(eps) }.group(&x, n, groups);
    for &kind in after {
        y = c.graph.activation(y, kind);
        want.iter_mut().for_each(|v| *v = activation(kind, *v));
    }
    c.fused_nodes(2 + after.len() - usize::from(after.first() == Some(&Activation::Silu)));
    // One value in a group is its own mean: what is left of it is the rounding of the mean, over the root of eps.
    if shape[1] * shape[2] * channels == groups {
        c.f32_error(5e-4);
    }
    c.output(y, want);
    c.finish()
}

fn cases() -> Vec<Case> {
    use Activation::{Gelu, QuickGelu, Silu};
    vec![
        case([2, 5, 7, 24], 4, &[Silu], 1e-5),
        case([1, 1, 1, 8], 8, &[], 1e-5),
        case([1, 20, 9, 136], 8, &[Silu], 1e-6),
        // As large as the variance.
        case([1, 3, 5, 16], 4, &[], 0.3),
        case([1, 3, 5, 16], 4, &[Gelu], 1e-5),
        case([1, 3, 5, 16], 4, &[QuickGelu, Silu], 1e-5),
        case([1, 3, 5, 16], 4, &[Silu, Silu], 1e-5),
    ]
}

operation!(cases());
