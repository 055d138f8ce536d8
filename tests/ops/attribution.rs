//! The norms of the references' parts that a denoiser gives beside its output, against plain loops in f64.

use super::drivers::outputs;
use super::interpreter::{values, weight_values};
use super::reference::Attention;
use super::small_unet::small_unet;
use braid::Compat;
use braid::device::cpu::Cpu;
use braid::device::{Device, TensorData};
use braid::graph::{Graph, NodeId, Op};
use braid::models::unet::{BranchShape, UnetConfig, UnetShape, denoiser};
use braid::weights::{Scope, Weight, Weights};
use std::collections::HashMap;

const ROWS: usize = 2;
const TEXT: usize = 9;
/// Text tokens of each row, and image tokens of each branch in each row.
const SEEN: [[usize; ROWS]; 3] = [[9, 4], [8, 8], [4, 3]];
/// Tokens of a reference.
const EACH: usize = 4;
/// The references of each branch; the first one's share a softmax and have a mask.
const REFERENCES: [usize; 2] = [2, 1];

fn graph(config: &UnetConfig, attribution: &[usize]) -> Graph {
    let mut weights = Weights::new("test");
    for (i, (name, shape)) in config.tensors().into_iter().enumerate() {
        let weight = Weight::from_f32(&weight_values(&shape, i as u32), &shape, &name).unwrap();
        weights.insert(name, weight).unwrap();
    }
    let branch = |adapter: usize| {
        let tokens = REFERENCES[adapter] * EACH;
        BranchShape { adapter, tokens, masked: adapter == 0 }
    };
    let (branches, attribution) = (vec![branch(0), branch(1)], attribution.to_vec());
    let shape = UnetShape { batch: ROWS, height: 8, width: 6, tokens: TEXT, branches, attribution };
    denoiser(config, &Scope::new(weights), &shape, &Compat::diffusers()).unwrap()
}

fn inputs(graph: &Graph) -> Vec<TensorData<'static>> {
    let counts = |branch: usize| SEEN[branch].map(|n| n as i32).to_vec();
    let input = |(k, (name, id)): (usize, &(String, NodeId))| -> TensorData<'static> {
        match name.as_str() {
            "tokens" => counts(0).into(),
            "image_tokens.0" => counts(1).into(),
            "image_tokens.1" => counts(2).into(),
            _ => {
                let mut values = values(graph.node(*id).len(), 1000 + k as u32);
                if name.starts_with("mask") || name == "scales" {
                    // A fifth of them has no part, so that zeros are met, too.
                    values.iter_mut().step_by(5).for_each(|v| *v = 0.0);
                }
                values.into()
            }
        }
    };
    graph.inputs.iter().enumerate().map(input).collect()
}

/// The values of inputs and outputs, by name.
type Named = HashMap<String, Vec<f64>>;

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| f64::from(*v)).collect()
}

/// The norms that an attention should give for row `r`: `[T, 1 + R]`.
fn norms(named: &Named, path: &str, layer: usize, r: usize, heads: usize) -> Vec<f64> {
    let row = |values: &[f64]| values[r * values.len() / ROWS..(r + 1) * values.len() / ROWS].to_vec();
    let q = row(&named[&format!("query.{path}")]);
    let c = named[path].len() / ROWS / TEXT / 2;
    let tokens = q.len() / c;
    let attention = Attention { heads, dim: c / heads, causal: false };
    // Keys, and values of which only those of some tokens are left.
    let part = |name: &str, seen: usize, left: &dyn Fn(usize) -> bool| {
        let kv = row(&named[name]);
        let side = |start: usize, left: &dyn Fn(usize) -> bool| -> Vec<f64> {
            let rows = kv.chunks(2 * c).enumerate();
            rows.flat_map(|(t, kv)| kv[start..start + c].iter().map(move |v| (t, *v)))
                .map(|(t, v)| if left(t) { v } else { 0.0 })
                .collect()
        };
        attention.apply(&q, &side(0, &|_| true), &side(c, left), seen)
    };
    let norm = |values: &[f64], t: usize| values[t * c..(t + 1) * c].iter().map(|v| v * v).sum::<f64>().sqrt();
    let text = part(path, SEEN[0][r], &|_| true);
    let mut all: Vec<Vec<f64>> = vec![(0..tokens).map(|t| norm(&text, t)).collect()];
    for (branch, &count) in REFERENCES.iter().enumerate() {
        let scale = named["scales"][(layer * REFERENCES.len() + branch) * ROWS + r];
        let mask = named.get(&format!("mask.{branch}.{tokens}"));
        for reference in 0..count {
            let own = part(&format!("{path}.ip{branch}"), SEEN[branch + 1][r], &|t| t / EACH == reference);
            let factor = |t: usize| (scale * mask.map_or(1.0, |mask| mask[t])).abs();
            all.push((0..tokens).map(|t| factor(t) * norm(&own, t)).collect());
        }
    }
    (0..tokens).flat_map(|t| all.iter().map(move |values| values[t])).collect()
}

#[test]
fn norms_of_references() {
    let config = small_unet();
    let mut graph = graph(&config, &REFERENCES);
    // The queries of each cross-attention are outputs as well: the attention over all branches names its layer by its text's keys.
    let mut queries = Vec::new();
    for node in &graph.nodes {
        if let Op::Attention(attention) = &node.op
            && attention.branches.len() == 3
        {
            let path = graph.node(node.inputs[attention.branches[0].keys.operand]).name.clone();
            queries.push((format!("query.{path}"), node.inputs[0]));
        }
    }
    graph.outputs.extend(queries);
    let inputs = inputs(&graph);
    let results = outputs(Cpu::new(Some(2)).compile(graph.clone()).unwrap().as_mut(), &inputs);
    let mut named: Named = graph.outputs.iter().zip(&results).map(|((name, _), v)| (name.clone(), wide(v))).collect();
    for ((name, _), values) in graph.inputs.iter().zip(&inputs) {
        if let TensorData::F32(values) = values {
            named.insert(name.clone(), wide(values));
        }
    }
    let layers = config.cross_layers();
    assert_eq!(layers.len(), 1 + 2 + 2 + 2 * 2 + 2);
    let heads = |path: &str| if path.starts_with("down_blocks.1.") || path.starts_with("up_blocks.1.") { 1 } else { 2 };
    let mut zeros = 0;
    for (i, layer) in layers.iter().enumerate() {
        assert_eq!(graph.outputs[1 + i].0, format!("attribution.{}", layer.path));
        let got = &named[&graph.outputs[1 + i].0];
        let want: Vec<f64> = (0..ROWS).flat_map(|r| norms(&named, &layer.path, i, r, heads(&layer.path))).collect();
        assert_eq!(got.len(), want.len());
        let largest = want.iter().copied().fold(0.0, f64::max);
        for (at, (got, want)) in got.iter().zip(&want).enumerate() {
            assert!((got - want).abs() < 1e-5 * largest, "{} {at}: {got}, {want} are right", layer.path);
            zeros += usize::from(*want == 0.0 && *got == 0.0);
        }
    }
    assert!(zeros > 0);
}

/// The model's output is the same to the bit.
#[test]
fn same_output() {
    let config = small_unet();
    let run = |attribution: &[usize]| {
        let graph = graph(&config, attribution);
        outputs(Cpu::new(Some(2)).compile(graph.clone()).unwrap().as_mut(), &inputs(&graph))
    };
    let (plain, attributed) = (run(&[]), run(&REFERENCES));
    assert_eq!((plain.len(), attributed.len()), (1, 1 + config.cross_layers().len()));
    assert_eq!(plain[0], attributed[0]);
}
