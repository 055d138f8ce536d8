//! Low-rank updates beside products and convolutions, against the same with merged weights.

use super::conv2d::WINOGRAD;
use crate::interpreter::{values, weight_values};
use crate::reference::{Attention, Convolution, activation, geglu, linear};
use crate::table::{Case, CaseBuilder, operation};
use braid::graph::{Activation, Conv2dParams, LinearWeights};
use braid::weights::Weight;
use braid::weights::lora::LowRank;

/// Ranks of two LoRAs, whose scales differ and of which the second one's are negative.
const RANKS: [usize; 2] = [8, 16];

/// The second is longer than what the CPU sums over at once.
const LONG_RANKS: [usize; 2] = [8, 1160];

/// A case in which every matrix has two updates.
struct Lora {
    c: CaseBuilder,
    ranks: [usize; 2],
    /// Of every row of every right factor, in order.
    scales: Vec<f32>,
    /// The number of matrices that will have updates.
    matrices: usize,
}

impl Lora {
    fn new(name: &str, matrices: usize) -> Self {
        Self { c: CaseBuilder::new(format!("low rank: {name}")), ranks: RANKS, scales: Vec::new(), matrices }
    }

    /// Weights of that shape with two updates, and the same merged.
    fn weights(&mut self, shape: &[usize], bias: Option<usize>) -> (LinearWeights, Vec<f64>) {
        let seed = 100 * (1 + self.scales.len() as u32);
        let data = weight_values(shape, seed);
        let mut merged: Vec<f64> = data.iter().map(|v| f64::from(*v)).collect();
        let inner: usize = shape[1..].iter().product();
        let of = self.matrices * self.ranks.iter().sum::<usize>();
        let mut low_rank = LowRank { down: Vec::new(), up: Vec::new(), start: self.scales.len(), of };
        for (i, rank) in self.ranks.into_iter().enumerate() {
            let right = [&[rank], &shape[1..]].concat();
            let (down, up) = (weight_values(&right, seed + 3), weight_values(&[shape[0], rank], seed + 5));
            for r in 0..rank {
                let scale = (0.3 + 0.05 * r as f32) * if i == 0 { 1.0 } else { -1.0 };
                self.scales.push(scale);
                for (at, value) in merged.iter_mut().enumerate() {
                    let product = f64::from(up[at / inner * rank + r]) * f64::from(down[r * inner + at % inner]);
                    *value += f64::from(scale) * product;
                }
            }
            low_rank.down.push(Weight::from_f32(&down, &right, "down").unwrap());
            low_rank.up.push(Weight::from_f32(&up, &[shape[0], rank], "up").unwrap());
        }
        let weight = Weight::from_f32(&data, shape, "weight").unwrap();
        let bias = bias.map(|n| Weight::from_f32(&values(n, 7), &[n], "bias").unwrap());
        (LinearWeights { weight, bias, low_rank: Some(low_rank), quantizable: false }, merged)
    }

    fn finish(mut self) -> Case {
        let scales = std::mem::take(&mut self.scales);
        self.c.bound(scales);
        self.c.finish()
    }
}

fn wide(weights: &LinearWeights) -> Vec<f64> {
    weights.bias.as_ref().unwrap().to_f32().into_iter().map(f64::from).collect()
}

/// `activation(x w^T + bias + rows) + residual`.
fn product((m, k, n): (usize, usize, usize), kind: Option<Activation>, ranks: [usize; 2]) -> Case {
    let mut lora = Lora::new(&format!("linear {m} {k} {n} {kind:?} {ranks:?}"), 1);
    lora.ranks = ranks;
    let (weights, merged) = lora.weights(&[n, k], Some(n));
    let bias = wide(&weights);
    let c = &mut lora.c;
    let (xi, x) = c.input("x", &[2, m, k], 3);
    let (ri, rows) = c.input("rows", &[2, n], 4);
    let (ei, residual) = c.input("residual", &[2, m, n], 5);
    let mut y = c.graph.linear_parts(xi, vec![weights]);
    y = c.graph.broadcast_add(y, ri);
    if let Some(kind) = kind {
        y = c.graph.activation(y, kind);
    }
    let y = c.graph.add(ei, y);
    let mut want = linear(&x, &merged, Some(&bias), k, n);
    for (at, v) in want.iter_mut().enumerate() {
        *v += rows[at / (m * n) * n + at % n];
        *v = kind.map_or(*v, |kind| activation(kind, *v)) + residual[at];
    }
    c.output(y, want);
    // Three inputs, the scales, the right factors, their scaling, and one product.
    c.fused_nodes(7);
    lora.finish()
}

fn gated((m, k, n): (usize, usize, usize)) -> Case {
    let mut lora = Lora::new(&format!("geglu {m} {k} {n}"), 1);
    let (weights, merged) = lora.weights(&[2 * n, k], Some(2 * n));
    let bias = wide(&weights);
    let c = &mut lora.c;
    let (xi, x) = c.input("x", &[2, m, k], 3);
    let y = c.graph.linear_parts(xi, vec![weights]);
    let y = c.graph.geglu(y);
    c.output(y, geglu(&linear(&x, &merged, Some(&bias), k, 2 * n), n));
    c.fused_nodes(5);
    lora.finish()
}

/// Query, key and value become one product, and their right factors one before it, where their scales stand in that order.
fn attention(in_order: bool) -> Case {
    let attention = Attention { heads: 2, dim: 40, causal: false };
    let (channels, inputs, tokens) = (80, 24, 21);
    let mut lora = Lora::new(&format!("attention {in_order}"), 3);
    let mut parts = [0, 1, 2].map(|_| lora.weights(&[channels, inputs], None));
    if !in_order {
        parts.reverse();
    }
    let c = &mut lora.c;
    let (xi, x) = c.input("x", &[2, tokens, inputs], 5);
    let [q, k, v] = parts.clone().map(|(weights, _)| c.graph.linear_parts(xi, vec![weights]));
    let y = c.graph.attention(q, k, v, 2, false);
    let image = |x: &[f64]| {
        let [q, k, v] = [0, 1, 2].map(|i| linear(x, &parts[i].1, None, inputs, channels));
        attention.apply(&q, &k, &v, tokens)
    };
    c.output(y, x.chunks(tokens * inputs).flat_map(image).collect());
    // The input, the scales, the right factors, their scaling, one product and attention; or all of that for each of the three.
    c.fused_nodes(if in_order { 6 } else { 12 });
    lora.finish()
}

/// Matrices of so many rows over one operand, with updates or without.
fn parts<const N: usize>(parts: [(usize, bool); N]) -> Case {
    let (m, k) = (9, 40);
    let mut lora = Lora::new(&format!("parts {parts:?}"), parts.iter().filter(|(_, updated)| *updated).count());
    let mut merged = Vec::new();
    let weights = parts.map(|(n, updated)| {
        let (weights, values) = lora.weights(&[n, k], None);
        if updated {
            merged.extend(values);
            return weights;
        }
        lora.scales.truncate(lora.scales.len() - RANKS.iter().sum::<usize>());
        merged.extend(weights.weight.to_f32().into_iter().map(f64::from));
        weights.weight.into()
    });
    let c = &mut lora.c;
    let (xi, x) = c.input("x", &[1, m, k], 3);
    let y = c.graph.linear_parts(xi, weights.to_vec());
    c.output(y, linear(&x, &merged, None, k, parts.iter().map(|(n, _)| n).sum()));
    lora.finish()
}

/// Updated columns that begin in the midst of 8, and cannot be stored 8 at a time.
fn columns_apart() -> Case {
    let mut case = parts([(4, true), (8, true), (4, true)]);
    case.cuda_refuses = Some("from column 4 on");
    case
}

struct Image {
    size: (usize, usize),
    channels: [usize; 2],
    o: usize,
    kernel: usize,
    stride: usize,
    enlarged: bool,
}

/// A convolution with everything that fuses into it: sources that are joined, an enlargement before, rows and a residual after.
fn convolution(Image { size: (h, w), channels, o, kernel, stride, enlarged }: Image) -> Case {
    let n = 2;
    let inputs = channels[0] + channels[1];
    let mut lora = Lora::new(&format!("convolution {h}x{w} of {channels:?} to {o}, {kernel}, {stride}, {enlarged}"), 1);
    let (weights, merged) = lora.weights(&[o, inputs, kernel, kernel], Some(o));
    let bias = wide(&weights);
    let c = &mut lora.c;
    let (mut xi, mut x) = c.input("x", &[n, h, w, channels[0]], 3);
    if channels[1] > 0 {
        let (second, y) = c.input("second", &[n, h, w, channels[1]], 8);
        xi = c.graph.concat(xi, second);
        x = crate::reference::concat(&x, channels[0], &y, channels[1]);
    }
    let grid = if enlarged { (2 * h, 2 * w) } else { (h, w) };
    if enlarged {
        xi = c.graph.upsample(xi, grid.0, grid.1);
    }
    let padding = [kernel / 2; 2];
    let y = c.graph.conv2d_with(xi, weights, Conv2dParams { kernel, stride, padding, resize: None });
    let shape = c.graph.shape(y).to_vec();
    let (ri, rows) = c.input("rows", &[n, o], 4);
    let (ei, residual) = c.input("residual", &shape, 5);
    let y = c.graph.broadcast_add(y, ri);
    let y = c.graph.add(ei, y);
    let convolution = Convolution { kernel, stride, padding, grid };
    let mut want = convolution.apply(&x, [n, h, w, inputs], &merged, Some(&bias), o);
    let image = shape[1] * shape[2] * o;
    for (at, v) in want.iter_mut().enumerate() {
        *v += rows[at / image * o + at % o] + residual[at];
    }
    c.output(y, want);
    if h * w > 200 {
        c.f32_error(WINOGRAD);
    }
    lora.finish()
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for size in [(1, 8, 8), (13, 40, 33), (70, 72, 136), (3, 333, 24)] {
        for kind in [None, Some(Activation::Silu), Some(Activation::Gelu), Some(Activation::QuickGelu)] {
            cases.push(product(size, kind, RANKS));
        }
    }
    cases.push(product((5, 24, 16), None, LONG_RANKS));
    cases.extend([gated((70, 40, 80)), gated((5, 24, 20)), attention(true), attention(false)]);
    cases.extend([[true; 2], [false, true], [true, false]].map(|updated| parts(updated.map(|updated| (24, updated)))));
    cases.extend([parts([(8, true), (40, true), (24, true)]), parts([(12, true), (8, true)]), columns_apart()]);
    for (size, channels, o, kernel, stride, enlarged) in [
        ((6, 5), [24, 0], 40, 3, 1, false),
        ((6, 5), [24, 0], 40, 3, 2, false),
        ((6, 5), [16, 8], 40, 3, 1, false),
        ((6, 5), [16, 0], 24, 3, 1, true),
        ((6, 5), [4, 0], 40, 3, 1, false),
        ((6, 5), [24, 0], 4, 3, 1, false),
        ((16, 13), [16, 8], 40, 3, 1, false),
    ] {
        cases.push(convolution(Image { size, channels, o, kernel, stride, enlarged }));
    }
    cases
}

operation!(cases());
