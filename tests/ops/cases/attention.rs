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

fn cases() -> Vec<Case> {
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
    .collect()
}

operation!(cases());
