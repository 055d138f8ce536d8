//! Self-attention whose three projections become one product.

use crate::reference::{Attention, linear};
use crate::table::{Case, CaseBuilder, operation};

fn case(attention: Attention, tokens: usize, kernel: Option<&'static str>) -> Case {
    let Attention { heads, dim, causal } = attention;
    let (channels, inputs) = (heads * dim, 24);
    let mut c = CaseBuilder::new(format!("attention {heads}x{dim} {tokens} {causal}"));
    let weights = ["q", "k", "v"].map(|name| format!("{name}.weight"));
    let [q, k, v] = [0, 1, 2].map(|i| c.weight(&weights[i], &[channels, inputs], i as u32 + 1));
    let bias = c.weight("v.bias", &[channels], 4);
    let (xi, x) = c.input("x", &[2, tokens, inputs], 5);
    let scope = c.scope();
    let g = &mut c.graph;
    let [qi, ki] = ["q", "k"].map(|name| g.linear_no_bias(xi, &scope.pp(name), channels));
    let vi = g.linear(xi, &scope.pp("v"), channels);
    let y = g.attention(qi, ki, vi, heads, causal);
    let image = |x: &[f64]| {
        let project = |w: &[f64], bias: Option<&[f64]>| linear(x, w, bias, inputs, channels);
        attention.apply(&project(&q, None), &project(&k, None), &project(&v, Some(&bias)), tokens)
    };
    c.output(y, x.chunks(tokens * inputs).flat_map(image).collect());
    c.fused_nodes(3);
    kernel.into_iter().for_each(|kernel| c.launches(kernel));
    c.finish()
}

/// Keys and values of one product of 24 channels, in which the values begin at the twelfth, or alone.
fn refused(joined: bool, message: &'static str) -> Case {
    let attention = Attention { heads: 1, dim: 12, causal: false };
    let mut c = CaseBuilder::new(message);
    let (qi, q) = c.input("q", &[1, 3, 12], 1);
    let (x, y) = if joined {
        let [k, v] = [c.weight("k.weight", &[12, 8], 2), c.weight("v.weight", &[12, 8], 3)];
        let (xi, x) = c.input("x", &[1, 5, 8], 4);
        let scope = c.scope();
        let [ki, vi] = ["k", "v"].map(|name| c.graph.linear_no_bias(xi, &scope.pp(name), 12));
        ([linear(&x, &k, None, 8, 12), linear(&x, &v, None, 8, 12)], c.graph.attention(qi, ki, vi, 1, false))
    } else {
        let ((ki, k), (vi, v)) = (c.input("k", &[1, 5, 12], 2), c.input("v", &[1, 5, 12], 3));
        ([k, v], c.graph.attention(qi, ki, vi, 1, false))
    };
    c.output(y, attention.apply(&q, &x[0], &x[1], 5));
    c.cuda_refuses(message);
    c.finish()
}

fn cases() -> Vec<Case> {
    let mut masked = case(Attention { heads: 1, dim: 128, causal: true }, 9, None);
    masked.cuda_refuses = Some("up to 112 where tokens are masked");
    let others = [
        refused(true, "an operand of 24 channels, read from 12 on"),
        refused(false, "an operand of 12 channels, read from 0 on"),
        masked,
    ];
    [
        (2, 64, 150, false, Some("attention_64")),
        (2, 16, 77, true, Some("attention_64")),
        (1, 80, 65, true, Some("attention_80")),
        (3, 80, 140, true, Some("attention_80")),
        (1, 104, 17, false, Some("attention_112")),
        (1, 8, 1, false, Some("attention_64")),
        (4, 8, 1, true, Some("attention_64")),
        // The VAE's, in small: products and a softmax.
        (2, 128, 70, false, Some("softmax_rows")),
        (1, 512, 260, false, Some("softmax_rows")),
    ]
    .into_iter()
    .map(|(heads, dim, tokens, causal, kernel)| case(Attention { heads, dim, causal }, tokens, kernel))
    .chain(others)
    .collect()
}

operation!(cases());
