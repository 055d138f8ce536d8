//! Attention of every kind.

use super::{check, compiled, scope, values};
use braid::graph::{Builder, ChannelSlice, KvBranch, NodeId};

#[test]
fn self_attention_with_merged_projections() {
    if !compiled() {
        return;
    }
    for (heads, dim, tokens, causal, kernel) in [
        (2, 64, 150, false, "attention_64"),
        (2, 16, 77, true, "attention_64"),
        (1, 80, 65, true, "attention_80"),
        (1, 104, 17, false, "attention_112"),
        (1, 8, 1, false, "attention_64"),
        // The VAE's, in small: products and a softmax.
        (2, 128, 70, false, "softmax_rows"),
    ] {
        let c = heads * dim;
        let s = scope(&[
            ("q.weight", &[c, 24], 1),
            ("k.weight", &[c, 24], 2),
            ("v.weight", &[c, 24], 3),
            ("v.bias", &[c], 4),
        ]);
        let x = values(2 * tokens * 24, 5);
        let mut b = Builder::new();
        let xi = b.input("x", &[2, tokens, 24]);
        let q = b.linear_no_bias(xi, &s.pp("q"), c);
        let k = b.linear_no_bias(xi, &s.pp("k"), c);
        let v = b.linear(xi, &s.pp("v"), c);
        let y = b.attention(q, k, v, heads, causal);
        b.output("y", y);
        let kernels = check(&format!("attention {heads}x{dim} {tokens} {causal}"), &b.finish().unwrap(), &[&x]);
        assert!(kernels.iter().any(|k| k.starts_with(kernel)), "{kernels:?}");
    }
}

fn strand(operand: usize, width: usize, length: Option<usize>, scale: Option<(usize, usize)>) -> KvBranch {
    let at = |start| ChannelSlice { operand, start };
    KvBranch { keys: at(0), values: at(width), length, scale }
}

#[test]
fn branch_softmaxes() {
    if !compiled() {
        return;
    }
    let (heads, tokens, c, text, image) = (2, 30, 80, 154, 8);
    let q = values(2 * tokens * c, 1);
    let kv = [values(2 * text * 2 * c, 2), values(2 * image * 2 * c, 3), values(2 * image * 2 * c, 4)];
    // Scales [layer, adapter, image]; the second layer's are used. A zero skips: its keys may hold anything.
    let (lengths, scales) = ([154.0, 77.0], [9.0, 9.0, 9.0, 9.0, 0.6, 1.0, 0.0, -0.5]);
    let mut poisoned = kv[2].clone();
    poisoned[..image * 2 * c].fill(f32::NAN);
    let mut b = Builder::new();
    let shapes: [&[usize]; 6] =
        [&[2, 5, 6, c], &[2], &[2, 2, 2], &[2, text, 2 * c], &[2, image, 2 * c], &[2, image, 2 * c]];
    let operands: Vec<NodeId> = shapes.iter().map(|s| b.input("i", s)).collect();
    let strands = vec![strand(3, c, Some(1), None), strand(4, c, None, Some((2, 4))), strand(5, c, None, Some((2, 6)))];
    let y = b.decoupled_attention(&operands, heads, false, strands);
    b.output("y", y);
    let inputs: [&[f32]; 6] = [&q, &lengths, &scales, &kv[0], &kv[1], &poisoned];
    let kernels = check("strands", &b.finish().unwrap(), &inputs);
    assert!(kernels.iter().any(|k| k.starts_with("decoupled_64")), "{kernels:?}");
}

/// A strand alone that has a weight, strands without any, and lengths of one strand.
#[test]
fn other_branches() {
    if !compiled() {
        return;
    }
    let (heads, tokens, c, keys) = (1, 9, 64, 21);
    let (q, a, second) = (values(2 * tokens * c, 1), values(2 * keys * 2 * c, 2), values(2 * keys * 2 * c, 3));
    for (name, strands) in [
        ("one with a weight", vec![strand(3, c, None, Some((2, 1)))]),
        ("two without", vec![strand(3, c, None, None), strand(4, c, Some(1), None)]),
        ("two with", vec![strand(3, c, Some(1), Some((2, 0))), strand(4, c, None, Some((2, 2)))]),
        ("one with a length", vec![strand(3, c, Some(1), None)]),
    ] {
        let mut b = Builder::new();
        let shapes: [&[usize]; 5] = [&[2, tokens, c], &[2], &[4], &[2, keys, 2 * c], &[2, keys, 2 * c]];
        let operands: Vec<NodeId> = shapes.iter().map(|s| b.input("i", s)).collect();
        let y = b.decoupled_attention(&operands, heads, false, strands);
        b.output("y", y);
        let inputs: [&[f32]; 5] = [&q, &[21.0, 5.0], &[0.5, 2.0, -1.0, 0.25], &a, &second];
        check(name, &b.finish().unwrap(), &inputs);
    }
}

/// Without an adapter the operand of the weights is empty.
#[test]
fn branch_without_adapters() {
    if !compiled() {
        return;
    }
    let (tokens, c, keys) = (9, 64, 21);
    let (q, kv) = (values(2 * tokens * c, 1), values(2 * keys * 2 * c, 2));
    let mut b = Builder::new();
    let shapes: [&[usize]; 4] = [&[2, tokens, c], &[2], &[3, 0, 2], &[2, keys, 2 * c]];
    let operands: Vec<NodeId> = shapes.iter().map(|s| b.input("i", s)).collect();
    let y = b.decoupled_attention(&operands, 1, false, vec![strand(3, c, Some(1), None)]);
    b.output("y", y);
    let inputs: [&[f32]; 4] = [&q, &[21.0, 5.0], &[], &kv];
    check("no adapter", &b.finish().unwrap(), &inputs);
}
