//! Normalisation of rows.

use crate::interpreter::values;
use crate::reference::Norm;
use crate::table::{Case, CaseBuilder, operation};

/// Rows of values up to `size`.
fn case(rows: usize, channels: usize, size: f32) -> Case {
    let mut c = CaseBuilder::new(format!("layer norm {rows}x{channels} of {size}"));
    let (weight, bias) = (c.weight("weight", &[channels], 1), c.weight("bias", &[channels], 2));
    let (xi, x) = c.given("x", &[1, rows, channels], values(rows * channels, 3).iter().map(|v| v * size).collect());
    let scope = c.scope();
    let y = c.graph.layer_norm(xi, &scope, 1e-5);
    c.output(y, Norm { weight: &weight, bias: &bias, eps: 1e-5 }.layer(&x));
    c.finish()
}

// With a variance of 3e-5, eps counts for a seventh of what is under the root.
operation!([case(1, 8, 1.0), case(11, 24, 1.0), case(9, 1280, 1.0), case(5, 640, 0.01)]);
