//! Fully connected layers and convolutions.

use super::{check, compiled, scope, values};
use braid::graph::{Activation, Builder, Conv2dParams, LinearWeights};

fn has(kernels: &[String], name: &str) -> bool {
    kernels.iter().any(|kernel| kernel.starts_with(name))
}

#[test]
fn linear_with_every_epilogue() {
    if !compiled() {
        return;
    }
    // One row, one column, tails in every dimension, a K that is no multiple of 8.
    for (m, k, n) in [(1, 8, 1), (13, 40, 33), (70, 72, 136), (5, 20, 64), (3, 333, 24)] {
        for kind in [None, Some(Activation::Silu), Some(Activation::Gelu), Some(Activation::QuickGelu)] {
            let s = scope(&[("weight", &[n, k], 1), ("bias", &[n], 2)]);
            let (x, rows, residual) = (values(2 * m * k, 3), values(2 * n, 4), values(2 * m * n, 5));
            let mut b = Builder::new();
            let [xi, ri, ei] = [b.input("x", &[2, m, k]), b.input("rows", &[2, n]), b.input("residual", &[2, m, n])];
            let mut y = b.linear(xi, &s, n);
            if let Some(kind) = kind {
                y = b.broadcast_add(y, ri);
                y = b.activation(y, kind);
            }
            let y = b.add(ei, y);
            b.output("y", y);
            let graph = b.finish().unwrap();
            let kernels = check(&format!("linear {m} {k} {n} {kind:?}"), &graph, &[&x, &rows, &residual]);
            assert!(has(&kernels, "gemm_"));
        }
    }
}

#[test]
fn geglu() {
    if !compiled() {
        return;
    }
    for (m, k, inner) in [(5, 40, 16), (70, 24, 72), (9, 16, 50)] {
        let s = scope(&[("weight", &[2 * inner, k], 1), ("bias", &[2 * inner], 2)]);
        let x = values(m * k, 3);
        let mut b = Builder::new();
        let xi = b.input("x", &[1, m, k]);
        let y = b.linear(xi, &s, 2 * inner);
        let y = b.geglu(y);
        b.output("y", y);
        let kernels = check(&format!("geglu {m} {k} {inner}"), &b.finish().unwrap(), &[&x]);
        // A width that is no multiple of 8 takes two kernels.
        assert_eq!(has(&kernels, "gemm_geglu_"), inner != 50);
        assert_eq!(has(&kernels, "geglu_"), inner == 50);
    }
}

#[test]
fn convolutions() {
    if !compiled() {
        return;
    }
    for (n, h, w, c, o, kernel, stride, padding, kernels) in [
        (2, 5, 7, 4, 40, 3, 1, 1, "convolution_few_in"),
        (1, 6, 5, 3, 16, 3, 2, 1, "convolution_few_in"),
        (2, 5, 7, 16, 40, 3, 1, 1, "convolution_64x64"),
        (1, 9, 8, 24, 72, 3, 2, 1, "convolution_64x64"),
        (1, 5, 6, 24, 4, 3, 1, 1, "convolution_few_out_4"),
        (1, 5, 6, 24, 7, 3, 1, 1, "convolution_few_out_8"),
        (1, 12, 12, 3, 24, 4, 4, 0, "patches"),
        (1, 15, 16, 3, 24, 7, 7, 0, "patches"),
        (1, 4, 5, 4, 4, 1, 1, 0, "convolution_few_in"),
        (1, 4, 5, 16, 24, 1, 1, 0, "gemm"),
    ] {
        let s = scope(&[("weight", &[o, c, kernel, kernel], 1), ("bias", &[o], 2)]);
        let x = values(n * h * w * c, 3);
        let mut b = Builder::new();
        let xi = b.input("x", &[n, h, w, c]);
        let weights = LinearWeights::with_bias(&s, &[o, c, kernel, kernel]);
        let y = b.conv2d_with(xi, weights, Conv2dParams { kernel, stride, padding, resize: None });
        b.output("y", y);
        let name = format!("convolution {n}x{h}x{w}x{c} to {o}, {kernel}, {stride}");
        let launched = check(&name, &b.finish().unwrap(), &[&x]);
        assert!(has(&launched, kernels) || kernels == "gemm", "{name}: {launched:?}");
    }
}

#[test]
fn convolutions_with_every_epilogue() {
    if !compiled() {
        return;
    }
    for (c, o) in [(4, 24), (16, 40), (16, 4)] {
        let (n, h, w) = (2, 6, 5);
        let s = scope(&[("weight", &[o, c, 3, 3], 1), ("bias", &[o], 2)]);
        let (x, rows, residual) = (values(n * h * w * c, 3), values(n * o, 4), values(n * h * w * o, 5));
        let mut b = Builder::new();
        let [xi, ri, ei] = [b.input("x", &[n, h, w, c]), b.input("rows", &[n, o]), b.input("residual", &[n, h, w, o])];
        let y = b.conv2d(xi, &s, o, 3, 1);
        let y = b.broadcast_add(y, ri);
        let y = b.activation(y, Activation::Silu);
        let y = b.add(y, ei);
        b.output("y", y);
        check(&format!("convolution {c} to {o} with all"), &b.finish().unwrap(), &[&x, &rows, &residual]);
    }
}

#[test]
fn upsampled_convolutions() {
    if !compiled() {
        return;
    }
    for (h, w, gh, gw, c, phases) in [(3, 4, 6, 8, 16, true), (3, 5, 5, 9, 16, false), (3, 4, 6, 8, 4, false)] {
        let o = 24;
        let s = scope(&[("weight", &[o, c, 3, 3], 1), ("bias", &[o], 2)]);
        let x = values(2 * h * w * c, 3);
        let mut b = Builder::new();
        let xi = b.input("x", &[2, h, w, c]);
        let y = b.upsample(xi, gh, gw);
        let y = b.conv2d(y, &s, o, 3, 1);
        b.output("y", y);
        let kernels = check(&format!("{h}x{w} to {gh}x{gw}, {c}"), &b.finish().unwrap(), &[&x]);
        assert_eq!(has(&kernels, "upsample"), !phases);
    }
}

#[test]
fn joined_sources() {
    if !compiled() {
        return;
    }
    let (n, h, w, ca, cb, o, groups) = (2, 6, 7, 24, 40, 16, 4);
    let c = ca + cb;
    let s = scope(&[
        ("norm.weight", &[c], 1),
        ("norm.bias", &[c], 2),
        ("conv.weight", &[o, c, 3, 3], 3),
        ("direct.weight", &[o, c, 3, 3], 6),
        ("short.weight", &[o, c, 1, 1], 4),
    ]);
    let (a, bb) = (values(n * h * w * ca, 5), values(n * h * w * cb, 6));
    let mut b = Builder::new();
    let [ai, bi] = [b.input("a", &[n, h, w, ca]), b.input("b", &[n, h, w, cb])];
    let x = b.concat(ai, bi);
    let y = b.group_norm(x, &s.pp("norm"), groups, 1e-5);
    let y = b.activation(y, Activation::Silu);
    let y = b.conv2d_no_bias(y, &s.pp("conv"), o, 3, 1);
    let direct = b.conv2d_no_bias(x, &s.pp("direct"), o, 3, 1);
    let x = b.linear_no_bias(x, &s.pp("short"), o);
    let y = b.add(x, y);
    let y = b.add(y, direct);
    b.output("y", y);
    let kernels = check("joined sources", &b.finish().unwrap(), &[&a, &bb]);
    assert!(!has(&kernels, "concat"));
}
