//! A fully connected layer whose second half gates the first.

use crate::reference::{geglu, linear};
use crate::table::{Case, CaseBuilder, operation};

fn case(m: usize, k: usize, inner: usize) -> Case {
    let mut c = CaseBuilder::new(format!("geglu {m} {k} {inner}"));
    let [weight, bias] = [c.weight("weight", &[2 * inner, k], 1), c.weight("bias", &[2 * inner], 2)];
    let (xi, x) = c.input("x", &[1, m, k], 3);
    let scope = c.scope();
    let y = c.graph.linear(xi, &scope, 2 * inner);
    let y = c.graph.geglu(y);
    c.output(y, geglu(&linear(&x, &weight, Some(&bias), k, 2 * inner), inner));
    // A width that is no multiple of 8 takes two kernels.
    let (launched, avoided) =
        if inner.is_multiple_of(8) { ("gemm_geglu_", "geglu_") } else { ("geglu_", "gemm_geglu_") };
    c.launches(launched);
    c.avoids(avoided);
    c.finish()
}

/// A sum after it, which no kernel of it takes along.
fn and_residual(m: usize, width: usize) -> Case {
    let mut c = CaseBuilder::new(format!("geglu {m} {width} and residual"));
    let weight = c.weight("weight", &[2 * width, width], 1);
    let (xi, x) = c.input("x", &[1, m, width], 3);
    let scope = c.scope();
    let y = c.graph.linear_no_bias(xi, &scope, 2 * width);
    let y = c.graph.geglu(y);
    let y = c.graph.add(xi, y);
    let gated = geglu(&linear(&x, &weight, None, width, 2 * width), width);
    c.output(y, gated.iter().zip(&x).map(|(y, x)| y + x).collect());
    c.finish()
}

fn cases() -> Vec<Case> {
    let sizes = [(5, 40, 16), (70, 24, 72), (9, 16, 50), (13, 20, 50), (30, 33, 130)];
    let residuals = [(5, 40), (9, 50)].map(|(m, width)| and_residual(m, width));
    sizes.into_iter().map(|(m, k, inner)| case(m, k, inner)).chain(residuals).collect()
}

operation!(cases());
