//! Weights in every type of a file: sliced, transposed and unaligned.

use crate::interpreter::{narrow, values, wide};
use crate::reference::linear;
use crate::table::{Case, CaseBuilder, operation};
use braid::graph::LinearWeights;
use braid::tensor::DType;
use braid::weights::{MappedBytes, Weight};
use std::sync::Arc;

fn case(dtype: DType) -> Case {
    let (n, k) = (24, 40);
    let data = narrow(&values((n + 2) * k, 1), dtype);
    let stored: Vec<f64> = wide(&data, dtype).iter().map(|v| f64::from(*v)).collect();
    let odd: Vec<u8> = [&[0u8][..], &data].concat();
    let all = Weight::new(Arc::new(MappedBytes::owned(odd)), 1, dtype, vec![n + 2, k], "w").unwrap();
    let turned = Weight::new(Arc::new(MappedBytes::owned(data)), 0, dtype, vec![k, n + 2], "t").unwrap();
    let turned = turned.transposed().unwrap().rows(1, n).unwrap();
    let part = |weight: &Weight| LinearWeights::from(weight.clone());
    let mut c = CaseBuilder::new(format!("weights of {dtype}"));
    let (xi, x) = c.input("x", &[1, 3, k], 2);
    let y = c.graph.linear_parts(xi, vec![part(&all.rows(2, n).unwrap()), part(&turned)]);
    let columns: Vec<f64> =
        (0..n).flat_map(|j| (0..k).map(move |i| (i, j))).map(|(i, j)| stored[i * (n + 2) + j + 1]).collect();
    let weights = [&stored[2 * k..], &columns].concat();
    c.output(y, linear(&x, &weights, None, k, 2 * n));
    c.finish()
}

operation!([DType::F32, DType::F16, DType::BF16].map(case));
