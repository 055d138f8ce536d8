//! Euclidean norms of rows.

use crate::table::{Case, CaseBuilder, operation};

fn case(rows: usize, channels: usize) -> Case {
    let mut c = CaseBuilder::new(format!("vector norm {rows}x{channels}"));
    let (xi, x) = c.input("x", &[2, rows, channels], 1);
    let y = c.graph.vector_norm(xi);
    c.output(y, x.chunks(channels).map(|row| row.iter().map(|v| v * v).sum::<f64>().sqrt()).collect());
    c.cuda_refuses("there is no kernel");
    c.finish()
}

operation!([case(1, 8), case(37, 24), case(9, 1283)]);
