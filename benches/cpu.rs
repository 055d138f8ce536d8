//! The CPU's operations at SDXL's shapes of 256x256 pixels, two rows. `cargo bench --bench cpu`; product.rs has the products
//! beside other libraries.

use braid::device::{Device, Executable, TensorData, cpu::Cpu};
use braid::graph::{Activation, Builder, ChannelSlice, Graph, KvBranch, NodeId};
use braid::tensor::DType;
use braid::weights::{MappedBytes, Scope, Weight, Weights};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use std::sync::Arc;

/// f16 weights between 2^-7 and 2^-6 of either sign.
fn scope(tensors: &[(&str, &[usize])]) -> Scope {
    let mut weights = Weights::new("bench");
    let mut x = 1u32;
    for (name, shape) in tensors {
        let element = || {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((x >> 16) as u16 & 0x83ff | 0x2000).to_le_bytes()
        };
        let bytes = std::iter::repeat_with(element).take(shape.iter().product()).flatten().collect();
        let weight = Weight::new(Arc::new(MappedBytes::owned(bytes)), 0, DType::F16, shape.to_vec(), *name);
        weights.insert(*name, weight.expect("the storage fits")).expect("names differ");
    }
    Scope::new(weights)
}

/// Builds a graph of one output.
fn graph(build: impl FnOnce(&mut Builder) -> NodeId) -> Graph {
    let mut b = Builder::new();
    let y = build(&mut b);
    b.output("y", y);
    b.finish().expect("the operands fit")
}

/// Times a graph on operands of -1..1, or of one number where that is the operand's name.
fn run(c: &mut Criterion, cpu: &Cpu, name: &str, graph: Graph) {
    let fill = |name: &str, len: usize| -> Vec<f32> {
        match name.parse::<f32>() {
            Ok(value) => vec![value; len],
            Err(_) => (0..len).map(|i| ((i * 31) % 127) as f32 / 64.0 - 1.0).collect(),
        }
    };
    let inputs: Vec<_> = graph.inputs.iter().map(|(name, id)| fill(name, graph.node(*id).len())).collect();
    let inputs: Vec<TensorData<'_>> = inputs.iter().map(TensorData::from).collect();
    let mut y = vec![f32::NAN; graph.node(graph.outputs[0].1).len()];
    let macs = graph.macs();
    let mut executable: Box<dyn Executable> = cpu.compile(graph).expect("a small graph loads");
    executable.run(&inputs, &mut [&mut y]).expect("a run");
    // What is timed must be right, as far as it shows: finite, and the same twice.
    let first = y.clone();
    executable.run(&inputs, &mut [&mut y]).expect("a run");
    assert!(y == first && y.iter().all(|v| v.is_finite()), "{name}: the results are not finite or differ");
    let mut group = c.benchmark_group("cpu");
    group.sample_size(10);
    group.throughput(if macs > 0 { Throughput::Elements(2 * macs) } else { Throughput::Bytes(8 * y.len() as u64) });
    group.bench_function(name, |b| b.iter(|| executable.run(black_box(&inputs), &mut [&mut y]).expect("a run")));
    group.finish();
}

/// Queries over branches of that many tokens, keys beside values, each branch after the first with a weight of its own.
fn decoupled(b: &mut Builder, tokens: usize, heads: usize, branches: &[usize]) -> NodeId {
    let width = heads * 64;
    let mut operands = vec![b.input("q", &[2, tokens, width])];
    let mut list = Vec::new();
    for (k, len) in branches.iter().enumerate() {
        operands.push(b.input("kv", &[2, *len, 2 * width]));
        let columns = |start| ChannelSlice { operand: k + 1, start };
        let scale = k.checked_sub(1).map(|before| (branches.len() + 1, 2 * before));
        list.push(KvBranch { keys: columns(0), values: columns(width), length: None, scale, mask: None });
    }
    operands.push(b.input("1", &[branches.len() - 1, 2]));
    b.decoupled_attention(&operands, heads, false, list)
}

fn operations(c: &mut Criterion) {
    let cpu = Cpu::new(None);
    let linear = scope(&[("weight", &[1280, 1280]), ("bias", &[1280])]);
    let product = graph(|b| {
        let x = b.input("x", &[2, 64, 1280]);
        b.linear(x, &linear, 1280)
    });
    run(c, &cpu, "product 128x1280x1280", product);
    let wide = scope(&[("weight", &[10_240, 1280]), ("bias", &[10_240])]);
    let geglu = graph(|b| {
        let x = b.input("x", &[2, 64, 1280]);
        let x = b.linear(x, &wide, 10_240);
        b.geglu(x)
    });
    run(c, &cpu, "product with GEGLU 128x10240x1280", geglu);
    let kernel = scope(&[("weight", &[640, 640, 3, 3]), ("bias", &[640])]);
    let convolution = graph(|b| {
        let x = b.input("x", &[2, 16, 16, 640]);
        b.conv2d(x, &kernel, 640, 3, 1)
    });
    run(c, &cpu, "convolution 3x3 16x16 640 to 640", convolution);
    let norm = scope(&[("weight", &[320]), ("bias", &[320])]);
    let group_norm = graph(|b| {
        let x = b.input("x", &[2, 32, 32, 320]);
        let x = b.group_norm(x, &norm, 32, 1e-5);
        b.activation(x, Activation::Silu)
    });
    run(c, &cpu, "group norm with SiLU 32x32x320", group_norm);
    let attention = graph(|b| {
        let [q, k, v] = ["q", "k", "v"].map(|name| b.input(name, &[2, 256, 640]));
        b.attention(q, k, v, 10, false)
    });
    run(c, &cpu, "attention 256 tokens, 10 heads", attention);
    run(c, &cpu, "decoupled attention 256 tokens over 77+4", graph(|b| decoupled(b, 256, 10, &[77, 4])));
}

criterion_group!(benches, operations);
criterion_main!(benches);
