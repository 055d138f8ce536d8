//! Normalisations, tables and what goes element by element.

use super::{check, compiled, interpreter, scope, values};
use braid::graph::{Activation, Builder};
use braid::tensor::DType;
use braid::weights::{MappedBytes, Weight};
use std::sync::Arc;

#[test]
fn group_norm() {
    if !compiled() {
        return;
    }
    for (n, h, w, c, groups, silu) in [(2, 5, 7, 24, 4, true), (1, 1, 1, 8, 8, false), (1, 20, 9, 136, 8, true)] {
        let s = scope(&[("weight", &[c], 1), ("bias", &[c], 2)]);
        // A mean far from zero.
        let x: Vec<f32> = values(n * h * w * c, 3).iter().map(|v| v + 3.0).collect();
        let mut b = Builder::new();
        let xi = b.input("x", &[n, h, w, c]);
        let mut y = b.group_norm(xi, &s, groups, 1e-5);
        if silu {
            y = b.activation(y, Activation::Silu);
        }
        b.output("y", y);
        // Rounding an input of 4 costs 4 times what rounding one of 1 does.
        let graph = b.finish().unwrap();
        let inputs: Vec<f32> = x.iter().map(|v| half::bf16::from_f32(*v).to_f32()).collect();
        check(&format!("group norm {n}x{h}x{w}x{c}"), &graph, &[&inputs]);
    }
}

#[test]
fn layer_norm() {
    if !compiled() {
        return;
    }
    for (rows, c) in [(1, 8), (11, 24), (9, 1280)] {
        let s = scope(&[("weight", &[c], 1), ("bias", &[c], 2)]);
        let x = values(rows * c, 3);
        let mut b = Builder::new();
        let xi = b.input("x", &[1, rows, c]);
        let y = b.layer_norm(xi, &s, 1e-5);
        b.output("y", y);
        check(&format!("layer norm {rows}x{c}"), &b.finish().unwrap(), &[&x]);
    }
}

#[test]
fn tables() {
    if !compiled() {
        return;
    }
    let (c, tokens) = (24, 3);
    let s = scope(&[("table", &[10, c], 1), ("positions", &[4, c], 2), ("token", &[c], 3), ("places", &[4, c], 4)]);
    let mut b = Builder::new();
    let ids = b.input("ids", &[2, tokens]);
    let index = b.input("index", &[2]);
    let x = b.embedding(ids, s.get("table", &[10, c]), s.get("positions", &[4, c]));
    let picked = b.gather(x, Some(index));
    b.output("picked", picked);
    let y = b.prepend_class_token(x, s.get("token", &[c]), s.get("places", &[4, c]));
    let first = b.gather(y, None);
    b.output("first", first);
    b.output("all", y);
    // An id past the end takes the last row.
    check("tables", &b.finish().unwrap(), &[&[1.0, 9.0, 3.0, 0.0, 12.0, 5.0], &[2.0, 0.0]]);
}

#[test]
fn element_by_element() {
    if !compiled() {
        return;
    }
    // A width that is a multiple of 8 and one that is not.
    for c in [16, 6] {
        let (x, y, row, rows) = (values(2 * 5 * c, 1), values(2 * 5 * c, 2), values(5 * c, 3), values(2 * c, 4));
        let mut b = Builder::new();
        let [xi, yi] = [b.input("x", &[2, 5, c]), b.input("y", &[2, 5, c])];
        let [row_i, rows_i] = [b.input("row", &[5, c]), b.input("rows", &[2, c])];
        for (name, kind) in [("silu", Activation::Silu), ("gelu", Activation::Gelu), ("quick", Activation::QuickGelu)] {
            let y = b.activation(xi, kind);
            b.output(name, y);
        }
        let sum = b.add(xi, yi);
        b.output("sum", sum);
        let repeated = b.add(xi, row_i);
        b.output("repeated", repeated);
        let per_image = b.broadcast_add(xi, rows_i);
        b.output("per image", per_image);
        let joined = b.concat(xi, yi);
        b.output("joined", joined);
        let halves = b.geglu(joined);
        b.output("halves", halves);
        let scaled = b.scale_shift(xi, 0.13, -0.5);
        b.output("scaled", scaled);
        let picture = b.reshape(xi, &[2, 1, 5, c]);
        let large = b.upsample(picture, 2, 7);
        b.output("large", large);
        check(&format!("width {c}"), &b.finish().unwrap(), &[&x, &y, &row, &rows]);
    }
}

#[test]
fn sinusoids() {
    if !compiled() {
        return;
    }
    for (flip, shift) in [(true, 0.0), (false, 1.0)] {
        let mut b = Builder::new();
        let t = b.input("t", &[2, 3]);
        let y = b.timestep_embedding(t, 32, flip, shift);
        b.output("y", y);
        // What f16 could not hold: 1023.5, 4097.
        check("sinusoid", &b.finish().unwrap(), &[&[0.0, 1.0, 999.0, 1023.5, 512.25, 4097.0]]);
    }
}

#[test]
fn aliased_outputs() {
    if !compiled() {
        return;
    }
    let x = values(24, 1);
    let mut b = Builder::new();
    let xi = b.input("x", &[1, 3, 8]);
    let y = b.scale_shift(xi, 2.0, 0.0);
    let z = b.scale_shift(y, 1.0, 1.0);
    b.output("given", xi);
    b.output("twice", y);
    b.output("again", y);
    b.output("and read", z);
    check("outputs", &b.finish().unwrap(), &[&x]);
}

/// Weights in every type of a file, sliced, transposed and unaligned.
#[test]
fn weights_of_any_file() {
    if !compiled() {
        return;
    }
    let (n, k) = (24, 40);
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let data = interpreter::narrow(&values((n + 2) * k, 1), dtype);
        let odd: Vec<u8> = [&[0u8][..], &data].concat();
        let all = Weight::new(Arc::new(MappedBytes::owned(odd)), 1, dtype, vec![n + 2, k], "w").unwrap();
        let turned = Weight::new(Arc::new(MappedBytes::owned(data)), 0, dtype, vec![k, n + 2], "t").unwrap();
        let turned = turned.transposed().unwrap().rows(1, n).unwrap();
        let part = |weight: &Weight| braid::graph::LinearWeights { weight: weight.clone(), bias: None };
        let x = values(3 * k, 2);
        let mut b = Builder::new();
        let xi = b.input("x", &[1, 3, k]);
        let y = b.linear_parts(xi, vec![part(&all.rows(2, n).unwrap()), part(&turned)]);
        b.output("y", y);
        check(&format!("weights of {dtype}"), &b.finish().unwrap(), &[&x]);
    }
}
