//! Normalisation of rows.

use crate::reference::Norm;
use crate::table::{Case, CaseBuilder, operation};

fn case(rows: usize, channels: usize) -> Case {
    let mut c = CaseBuilder::new(format!("layer norm {rows}x{channels}"));
    let (weight, bias) = (c.weight("weight", &[channels], 1), c.weight("bias", &[channels], 2));
    let (xi, x) = c.input("x", &[1, rows, channels], 3);
    let scope = c.scope();
    let y = c.graph.layer_norm(xi, &scope, 1e-5);
    c.output(y, Norm { weight: &weight, bias: &bias, eps: 1e-5 }.layer(&x));
    c.finish()
}

operation!([case(1, 8), case(11, 24), case(9, 1280)]);
