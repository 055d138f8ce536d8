//! Every operation against a plain f64 implementation, over shapes with odd sizes and tails.

use super::executable::CpuExecutable;
use super::*;
use crate::graph::{Activation, Builder, ChannelSlice, KvBranch, LinearWeights, NodeId, Op};
use crate::weights::{Scope, Weight, Weights};

/// Values in -1..1 from a small generator.
fn values(n: usize, seed: u32) -> Vec<f32> {
    let mut x = seed.wrapping_mul(2_654_435_769) | 1;
    (0..n)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 17;
            x ^= x << 5;
            (x >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

fn scope(tensors: &[(&str, &[usize], u32)]) -> Scope {
    let mut weights = Weights::new("test");
    for (name, shape, seed) in tensors {
        let data = values(shape.iter().product(), *seed);
        weights.insert(*name, Weight::from_f32(&data, shape, name).unwrap()).unwrap();
    }
    Scope::new(weights)
}

/// Runs a graph with and without fusion and on one and on three threads; all must agree bit by bit between thread counts
/// and to rounding with and without fusion.
fn run(graph: Graph, inputs: &[&[f32]]) -> Vec<f32> {
    let once = |threads: usize, graph: Graph| {
        let mut executable = CpuExecutable::new(Arc::new(Pool::new(threads)), graph).unwrap();
        let len = executable.graph.node(executable.graph.outputs[0].1).len();
        let mut out = vec![f32::NAN; len];
        executable.run(inputs, &mut [&mut out]).unwrap();
        let first = out.clone();
        executable.run(inputs, &mut [&mut out]).unwrap();
        assert_eq!(first, out, "a second run differs");
        out
    };
    let fused = once(1, fuse(graph.clone()));
    assert_eq!(fused, once(3, fuse(graph.clone())), "the number of threads changes the result");
    close(&once(2, graph), &fused.iter().map(|v| f64::from(*v)).collect::<Vec<_>>());
    fused
}

fn close(got: &[f32], want: &[f64]) {
    assert_eq!(got.len(), want.len());
    let norm: f64 = want.iter().map(|w| w * w).sum::<f64>().max(1e-30);
    let error: f64 = got.iter().zip(want).map(|(g, w)| (f64::from(*g) - w).powi(2)).sum();
    assert!((error / norm).sqrt() < 2e-6, "relative error {}", (error / norm).sqrt());
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|v| f64::from(*v)).collect()
}

/// By its series, which loses its digits far out, where erf is 1 to 1e-9.
fn erf64(x: f64) -> f64 {
    if x.abs() > 4.3 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..120 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

#[test]
fn linear_with_every_epilogue() {
    for (m, k, n) in [(1, 1, 1), (13, 7, 33), (25, 1300, 64), (40, 64, 96), (3, 2500, 31)] {
        let s = scope(&[("weight", &[n, k], 1), ("bias", &[n], 2)]);
        let (x, rows, residual) = (values(m * k, 3), values(n, 4), values(m * n, 5));
        let mut b = Builder::new();
        let [xi, ri, ei] = [b.input("x", &[1, m, k]), b.input("rows", &[1, n]), b.input("residual", &[1, m, n])];
        let y = b.linear(xi, &s, n);
        let y = b.broadcast_add(y, ri);
        let y = b.activation(y, Activation::QuickGelu);
        let y = b.add(ei, y);
        b.output("y", y);
        let graph = b.finish().unwrap();
        assert_eq!(fuse(graph.clone()).nodes.len(), 4);
        let got = run(graph, &[&x, &rows, &residual]);
        let (w, bias) = (wide(&values(n * k, 1)), wide(&values(n, 2)));
        let mut want = vec![0.0; m * n];
        for i in 0..m {
            for j in 0..n {
                let dot: f64 = (0..k).map(|c| f64::from(x[i * k + c]) * w[j * k + c]).sum();
                let v = dot + bias[j] + f64::from(rows[j]);
                want[i * n + j] = v / (1.0 + (-1.702 * v).exp()) + f64::from(residual[i * n + j]);
            }
        }
        close(&got, &want);
    }
}

#[test]
fn geglu_columns() {
    for (m, k, inner) in [(5, 40, 16), (13, 20, 50), (30, 33, 130)] {
        let s = scope(&[("weight", &[2 * inner, k], 1), ("bias", &[2 * inner], 2)]);
        let x = values(m * k, 3);
        let mut b = Builder::new();
        let xi = b.input("x", &[1, m, k]);
        let y = b.linear(xi, &s, 2 * inner);
        let y = b.geglu(y);
        b.output("y", y);
        let got = run(b.finish().unwrap(), &[&x]);
        let (w, bias) = (wide(&values(2 * inner * k, 1)), wide(&values(2 * inner, 2)));
        let dot = |i: usize, j: usize| (0..k).map(|c| f64::from(x[i * k + c]) * w[j * k + c]).sum::<f64>() + bias[j];
        let gelu = |v: f64| 0.5 * v * (1.0 + erf64(v / std::f64::consts::SQRT_2));
        let want: Vec<f64> =
            (0..m * inner).map(|i| dot(i / inner, i % inner) * gelu(dot(i / inner, inner + i % inner))).collect();
        close(&got, &want);
    }
}

/// A convolution of a joined, resized image, in f64.
fn conv64(x: &[f64], [n, h, w, c]: [usize; 4], k: &[f64], o: usize, geometry: Geometry64) -> Vec<f64> {
    let Geometry64 { kernel, stride, padding, grid } = geometry;
    let (oh, ow) = ((grid.0 + 2 * padding - kernel) / stride + 1, (grid.1 + 2 * padding - kernel) / stride + 1);
    let mut out = Vec::new();
    for i in 0..n {
        for y in 0..oh {
            for xx in 0..ow {
                for oc in 0..o {
                    let mut sum = 0.0;
                    for ky in 0..kernel {
                        for kx in 0..kernel {
                            let (gy, gx) = (y * stride + ky, xx * stride + kx);
                            if gy < padding || gx < padding || gy - padding >= grid.0 || gx - padding >= grid.1 {
                                continue;
                            }
                            let (sy, sx) = ((gy - padding) * h / grid.0, (gx - padding) * w / grid.1);
                            for ic in 0..c {
                                sum += x[((i * h + sy) * w + sx) * c + ic]
                                    * k[((oc * c + ic) * kernel + ky) * kernel + kx];
                            }
                        }
                    }
                    out.push(sum);
                }
            }
        }
    }
    out
}

struct Geometry64 {
    kernel: usize,
    stride: usize,
    padding: usize,
    grid: (usize, usize),
}

#[test]
fn convolutions() {
    for (n, h, w, c, o, kernel, stride) in [
        (2, 5, 7, 4, 33, 3, 1),
        (1, 8, 6, 130, 5, 3, 2),
        (2, 7, 9, 3, 40, 3, 2),
        (1, 12, 12, 3, 20, 4, 4),
        (1, 3, 3, 40, 64, 1, 1),
    ] {
        let s = scope(&[("weight", &[o, c, kernel, kernel], 1)]);
        let x = values(n * h * w * c, 3);
        let mut b = Builder::new();
        let xi = b.input("x", &[n, h, w, c]);
        let padding = if kernel == stride { 0 } else { kernel / 2 };
        let weights = LinearWeights::no_bias(&s, &[o, c, kernel, kernel]);
        let y = b.conv2d_with(xi, weights, crate::graph::Conv2dParams { kernel, stride, padding, resize: None });
        b.output("y", y);
        let got = run(b.finish().unwrap(), &[&x]);
        let k = wide(&values(o * c * kernel * kernel, 1));
        let geometry = Geometry64 { kernel, stride, padding, grid: (h, w) };
        close(&got, &conv64(&wide(&x), [n, h, w, c], &k, o, geometry));
    }
}

#[test]
fn folded_upsampling() {
    for (h, w, gh, gw) in [(3, 4, 6, 8), (3, 5, 5, 9)] {
        let (c, o) = (6, 8);
        let s = scope(&[("weight", &[o, c, 3, 3], 1)]);
        let x = values(2 * h * w * c, 3);
        let mut b = Builder::new();
        let xi = b.input("x", &[2, h, w, c]);
        let y = b.upsample(xi, gh, gw);
        let y = b.conv2d_no_bias(y, &s, o, 3, 1);
        b.output("y", y);
        let graph = b.finish().unwrap();
        assert_eq!(fuse(graph.clone()).nodes.len(), 2);
        let got = run(graph, &[&x]);
        let geometry = Geometry64 { kernel: 3, stride: 1, padding: 1, grid: (gh, gw) };
        close(&got, &conv64(&wide(&x), [2, h, w, c], &wide(&values(o * c * 9, 1)), o, geometry));
    }
}

#[test]
fn joined_sources() {
    let (n, p, ca, cb, o, groups) = (2, 150, 24, 40, 12, 4);
    let c = ca + cb;
    let s = scope(&[
        ("norm.weight", &[c], 1),
        ("norm.bias", &[c], 2),
        ("conv.weight", &[o, c, 3, 3], 3),
        ("short.weight", &[o, c, 1, 1], 4),
    ]);
    let (a, bb) = (values(n * p * ca, 5), values(n * p * cb, 6));
    let mut b = Builder::new();
    let [ai, bi] = [b.input("a", &[n, 10, 15, ca]), b.input("b", &[n, 10, 15, cb])];
    let x = b.concat(ai, bi);
    let h = b.group_norm(x, &s.pp("norm"), groups, 1e-5);
    let h = b.activation(h, Activation::Silu);
    let h = b.conv2d_no_bias(h, &s.pp("conv"), o, 3, 1);
    let x = b.linear_no_bias(x, &s.pp("short"), o);
    let y = b.add(x, h);
    b.output("y", y);
    let graph = b.finish().unwrap();
    let fused = fuse(graph.clone());
    assert!(fused.nodes.iter().all(|n| !matches!(n.op, Op::Concat | Op::Add | Op::Activation(_))));
    let got = run(graph, &[&a, &bb]);
    let x: Vec<f64> = (0..n * p)
        .flat_map(|r| a[r * ca..][..ca].iter().chain(&bb[r * cb..][..cb]).map(|v| f64::from(*v)).collect::<Vec<_>>())
        .collect();
    let (gain, shift) = (wide(&values(c, 1)), wide(&values(c, 2)));
    let mut h = vec![0.0; x.len()];
    let width = c / groups;
    for i in 0..n {
        for g in 0..groups {
            let at = |r: usize, k: usize| (i * p + r) * c + g * width + k;
            let all: Vec<f64> = (0..p * width).map(|e| x[at(e / width, e % width)]).collect();
            let mean = all.iter().sum::<f64>() / all.len() as f64;
            let var = all.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / all.len() as f64;
            for e in 0..p * width {
                let channel = g * width + e % width;
                let v = (x[at(e / width, e % width)] - mean) / (var + 1e-5).sqrt() * gain[channel] + shift[channel];
                h[at(e / width, e % width)] = v / (1.0 + (-v).exp());
            }
        }
    }
    let geometry = |kernel: usize| Geometry64 { kernel, stride: 1, padding: kernel / 2, grid: (10, 15) };
    let h = conv64(&h, [n, 10, 15, c], &wide(&values(o * c * 9, 3)), o, geometry(3));
    let short = conv64(&x, [n, 10, 15, c], &wide(&values(o * c, 4)), o, geometry(1));
    close(&got, &h.iter().zip(&short).map(|(a, b)| a + b).collect::<Vec<_>>());
}

#[derive(Clone, Copy)]
struct Case {
    heads: usize,
    dim: usize,
    tokens: usize,
    causal: bool,
}

fn attention64(q: &[f64], k: &[f64], v: &[f64], case: Case, seen: usize) -> Vec<f64> {
    let Case { heads, dim, tokens, causal, .. } = case;
    let c = heads * dim;
    let mut out = vec![0.0; tokens * c];
    for head in 0..heads {
        for t in 0..tokens {
            let keys = if causal { seen.min(t + 1) } else { seen };
            let row = |x: &[f64], r: usize| x[r * c + head * dim..][..dim].to_vec();
            let scores: Vec<f64> = (0..keys)
                .map(|j| row(q, t).iter().zip(row(k, j)).map(|(a, b)| a * b).sum::<f64>() / (dim as f64).sqrt())
                .collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
            for d in 0..dim {
                out[t * c + head * dim + d] =
                    (0..keys).map(|j| (scores[j] - max).exp() / sum * v[j * c + head * dim + d]).sum();
            }
        }
    }
    out
}

#[test]
fn self_attention_with_merged_projections() {
    for case in [
        Case { heads: 2, dim: 64, tokens: 150, causal: false },
        Case { heads: 3, dim: 80, tokens: 140, causal: true },
        Case { heads: 1, dim: 104, tokens: 17, causal: false },
        Case { heads: 1, dim: 512, tokens: 260, causal: false },
        Case { heads: 4, dim: 8, tokens: 1, causal: true },
    ] {
        let c = case.heads * case.dim;
        let s = scope(&[
            ("q.weight", &[c, 24], 1),
            ("k.weight", &[c, 24], 2),
            ("v.weight", &[c, 24], 3),
            ("v.bias", &[c], 4),
        ]);
        let x = values(2 * case.tokens * 24, 5);
        let mut b = Builder::new();
        let xi = b.input("x", &[2, case.tokens, 24]);
        let q = b.linear_no_bias(xi, &s.pp("q"), c);
        let k = b.linear_no_bias(xi, &s.pp("k"), c);
        let v = b.linear(xi, &s.pp("v"), c);
        let y = b.attention(q, k, v, case.heads, case.causal);
        b.output("y", y);
        let graph = b.finish().unwrap();
        assert_eq!(fuse(graph.clone()).nodes.len(), 3);
        let got = run(graph, &[&x]);
        let project = |seed: u32, bias: Option<u32>, image: usize| -> Vec<f64> {
            let w = wide(&values(c * 24, seed));
            let bias = bias.map_or(vec![0.0; c], |s| wide(&values(c, s)));
            (0..case.tokens * c)
                .map(|i| {
                    let row = &x[(image * case.tokens + i / c) * 24..][..24];
                    row.iter().zip(&w[i % c * 24..]).map(|(a, b)| f64::from(*a) * b).sum::<f64>() + bias[i % c]
                })
                .collect()
        };
        let want: Vec<f64> = (0..2)
            .flat_map(|i| {
                attention64(&project(1, None, i), &project(2, None, i), &project(3, Some(4), i), case, case.tokens)
            })
            .collect();
        close(&got, &want);
    }
}

#[test]
fn branch_softmaxes() {
    let case = Case { heads: 2, dim: 40, tokens: 30, causal: false };
    let (c, text, image) = (80, 154, 8);
    let q = values(2 * case.tokens * c, 1);
    let kv = [values(2 * text * 2 * c, 2), values(2 * image * 2 * c, 3), values(2 * image * 2 * c, 4)];
    // Scales [layer, adapter, row]; the second layer's are used. A zero skips: its keys may hold anything.
    let (lengths, scales) = ([154.0, 77.0], [9.0, 9.0, 9.0, 9.0, 0.6, 1.0, 0.0, -0.5]);
    let mut poisoned = kv[2].clone();
    poisoned[..image * 2 * c].fill(f32::NAN);
    let mut b = Builder::new();
    let shapes: [&[usize]; 6] =
        [&[2, 5, 6, c], &[2], &[2, 2, 2], &[2, text, 2 * c], &[2, image, 2 * c], &[2, image, 2 * c]];
    let operands: Vec<NodeId> = shapes.iter().map(|s| b.input("i", s)).collect();
    let branch = |operand: usize, length, scale| KvBranch {
        keys: ChannelSlice { operand, start: 0 },
        values: ChannelSlice { operand, start: c },
        length,
        scale,
    };
    let branches = vec![branch(3, Some(1), None), branch(4, None, Some((2, 4))), branch(5, None, Some((2, 6)))];
    let y = b.decoupled_attention(&operands, case.heads, false, branches);
    b.output("y", y);
    let got = run(b.finish().unwrap(), &[&q, &lengths, &scales, &kv[0], &kv[1], &poisoned]);
    let mut want = Vec::new();
    for i in 0..2 {
        let halves = |x: &[f32], keys: usize| -> (Vec<f64>, Vec<f64>) {
            let rows = x[i * keys * 2 * c..][..keys * 2 * c].chunks(2 * c);
            (rows.clone().flat_map(|r| wide(&r[..c])).collect(), rows.flat_map(|r| wide(&r[c..])).collect())
        };
        let q = wide(&q[i * case.tokens * c..][..case.tokens * c]);
        let mut sum = vec![0.0; q.len()];
        for (s, (x, keys, seen)) in
            [(&kv[0], text, lengths[i] as usize), (&kv[1], image, image), (&kv[2], image, image)]
                .into_iter()
                .enumerate()
        {
            let weight = if s == 0 { 1.0 } else { f64::from(scales[4 + (s - 1) * 2 + i]) };
            let (k, v) = halves(x, keys);
            let part = attention64(&q, &k, &v, case, seen);
            sum.iter_mut().zip(part).for_each(|(o, p)| *o += weight * p);
        }
        want.extend(sum);
    }
    close(&got, &want);
}

#[test]
fn pointwise_and_tables() {
    let s =
        scope(&[("table", &[10, 6], 1), ("positions", &[4, 6], 2), ("norm.weight", &[6], 3), ("norm.bias", &[6], 4)]);
    let mut b = Builder::new();
    let ids = b.input("ids", &[2, 3]);
    let index = b.input("index", &[2]);
    let x = b.embedding(ids, s.get("table", &[10, 6]), s.get("positions", &[4, 6]));
    let x = b.layer_norm(x, &s.pp("norm"), 1e-5);
    let x = b.gather(x, Some(index));
    b.output("y", x);
    let got = run(b.finish().unwrap(), &[&[1.0, 9.0, 3.0, 0.0, 2.0, 5.0], &[2.0, 0.0]]);
    let (table, positions) = (wide(&values(60, 1)), wide(&values(24, 2)));
    let (gain, shift) = (wide(&values(6, 3)), wide(&values(6, 4)));
    let mut want = Vec::new();
    for (id, t) in [(3, 2), (0, 0)] {
        let row: Vec<f64> = (0..6).map(|j| table[id * 6 + j] + positions[t * 6 + j]).collect();
        let mean = row.iter().sum::<f64>() / 6.0;
        let var = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / 6.0;
        want.extend((0..6).map(|j| (row[j] - mean) / (var + 1e-5).sqrt() * gain[j] + shift[j]));
    }
    close(&got, &want);
}

#[test]
fn wrong_binding() {
    let mut b = Builder::new();
    let x = b.input("x", &[2, 3]);
    let y = b.scale_shift(x, 2.0, 1.0);
    b.output("y", y);
    let mut executable = Cpu::new(Some(1)).compile(b.finish().unwrap()).unwrap();
    let mut out = [0.0; 6];
    let text = executable.run(&[&[0.0; 5]], &mut [&mut out]).unwrap_err().to_string();
    assert!(text.contains("`x` is [2, 3], bound to 5"), "{text}");
    executable.run(&[&[1.0; 6]], &mut [&mut out]).unwrap();
    assert_eq!(out, [3.0; 6]);
}
