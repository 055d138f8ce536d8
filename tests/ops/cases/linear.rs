//! Fully connected layers with everything that fuses into them.

use crate::reference::{activation, linear};
use crate::table::{Case, CaseBuilder, operation};
use braid::graph::Activation;

struct Size {
    images: usize,
    m: usize,
    k: usize,
    n: usize,
}

/// `activation(x w^T + bias + rows) + residual`; without an activation there are no rows.
fn case(Size { images, m, k, n }: Size, kind: Option<Activation>) -> Case {
    let mut c = CaseBuilder::new(format!("linear {images}x{m} {k} {n} {kind:?}"));
    let [weight, bias] = [c.weight("weight", &[n, k], 1), c.weight("bias", &[n], 2)];
    let (xi, x) = c.input("x", &[images, m, k], 3);
    let (ri, rows) = c.input("rows", &[images, n], 4);
    let (ei, residual) = c.input("residual", &[images, m, n], 5);
    let scope = c.scope();
    let mut y = c.graph.linear(xi, &scope, n);
    if let Some(kind) = kind {
        y = c.graph.broadcast_add(y, ri);
        y = c.graph.activation(y, kind);
    }
    let y = c.graph.add(ei, y);
    let mut want = linear(&x, &weight, Some(&bias), k, n);
    for (at, v) in want.iter_mut().enumerate() {
        if let Some(kind) = kind {
            *v = activation(kind, *v + rows[at / (m * n) * n + at % n]);
        }
        *v += residual[at];
    }
    c.output(y, want);
    c.fused_nodes(4);
    c.launches("gemm_");
    c.finish()
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    // One row, one column, tails in every dimension, a K that is no multiple of 8.
    for (m, k, n) in [(1, 8, 1), (13, 40, 33), (70, 72, 136), (5, 20, 64), (3, 333, 24)] {
        for kind in [None, Some(Activation::Silu), Some(Activation::Gelu), Some(Activation::QuickGelu)] {
            cases.push(case(Size { images: 2, m, k, n }, kind));
        }
    }
    for (m, k, n) in [(1, 1, 1), (13, 7, 33), (25, 1300, 64), (40, 64, 96), (3, 2500, 31)] {
        cases.push(case(Size { images: 1, m, k, n }, Some(Activation::QuickGelu)));
    }
    cases
}

operation!(cases());
