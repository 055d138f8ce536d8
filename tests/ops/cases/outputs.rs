//! Outputs that are no result of their own: an input, one result twice, one that is also read.

use crate::table::{Case, CaseBuilder, operation};

fn case() -> Case {
    let mut c = CaseBuilder::new("outputs");
    let (xi, x) = c.input("x", &[1, 300, 8], 1);
    let y = c.graph.scale_shift(xi, 2.0, 0.0);
    let z = c.graph.scale_shift(y, 1.0, 1.0);
    let twice: Vec<f64> = x.iter().map(|v| 2.0 * v).collect();
    c.output(xi, x);
    c.output(y, twice.clone());
    c.output(y, twice.clone());
    c.output(z, twice.iter().map(|v| v + 1.0).collect());
    c.finish()
}

operation!([case()]);
