//! Element-wise operations: activations, sums, joins, gates, scales, enlarged images.

use crate::reference::{activation, concat, geglu};
use crate::table::{Case, CaseBuilder, operation};
use braid::graph::Activation;

/// Rows of an image: together more elements than a block of any kernel takes.
const T: usize = 300;

fn case(c: usize) -> Case {
    let mut b = CaseBuilder::new(format!("element by element, width {c}"));
    let (xi, x) = b.input("x", &[2, T, c], 1);
    let (yi, y) = b.input("y", &[2, T, c], 2);
    let (row_i, row) = b.input("row", &[T, c], 3);
    let (rows_i, rows) = b.input("rows", &[2, c], 4);
    let with = |other: &dyn Fn(usize) -> f64| x.iter().enumerate().map(|(at, v)| v + other(at)).collect::<Vec<_>>();
    for kind in [Activation::Silu, Activation::Gelu, Activation::QuickGelu] {
        let id = b.graph.activation(xi, kind);
        b.output(id, x.iter().map(|v| activation(kind, *v)).collect());
    }
    let positive = b.graph.relu(xi);
    b.output(positive, x.iter().map(|v| v.max(0.0)).collect());
    let clamped = b.graph.soft_clamp(xi, 0.7);
    b.output(clamped, x.iter().map(|v| f64::from(0.7f32) * (v / f64::from(0.7f32)).tanh()).collect());
    let sum = b.graph.add(xi, yi);
    b.output(sum, with(&|at| y[at]));
    let repeated = b.graph.add(xi, row_i);
    b.output(repeated, with(&|at| row[at % (T * c)]));
    let per_image = b.graph.broadcast_add(xi, rows_i);
    b.output(per_image, with(&|at| rows[at / (T * c) * c + at % c]));
    let (factors_i, factors) = b.given("factors", &[T], crate::interpreter::values(T, 5));
    let weighted = b.graph.scale_rows(xi, factors_i);
    b.output(weighted, x.iter().enumerate().map(|(at, v)| v * factors[at / c % T]).collect());
    let joined = b.graph.concat(xi, yi);
    b.output(joined, concat(&x, c, &y, c));
    let halves = b.graph.geglu(joined);
    b.output(halves, geglu(&concat(&x, c, &y, c), c));
    let scaled = b.graph.scale_shift(xi, 0.13, -0.5);
    b.output(scaled, x.iter().map(|v| v * f64::from(0.13f32) - 0.5).collect());
    let image = b.graph.reshape(xi, &[2, 1, T, c]);
    let large = b.graph.upsample(image, 2, T + 2);
    let nearest = |at: usize| x[(at / (2 * (T + 2) * c) * T + at / c % (T + 2) * T / (T + 2)) * c + at % c];
    b.output(large, (0..2 * 2 * (T + 2) * c).map(nearest).collect());
    b.finish()
}

// A width that is a multiple of 8 and one that is not.
operation!([case(16), case(6)]);
