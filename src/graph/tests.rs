//! The memory plan's places, the sizes of SDXL's graphs, and the differences between profiles in the graphs.

use super::*;
use crate::compat::Compat;
use crate::device::cpu::Cpu;
use crate::device::{Device, TensorData};
use crate::models::published;
use crate::models::unet::{BranchShape, ConditioningPart, UnetConfig, UnetShape, conditioning, denoiser};
use crate::models::vae::vae_decoder;
use crate::weights::{Scope, Weights};

/// A scope without tensors: all that it gives are stand-ins.
fn empty() -> Scope {
    Scope::new(Weights::new("none"))
}

fn shape(batch: usize, side: usize, image_tokens: &[usize]) -> UnetShape {
    let branches = BranchShape::of_adapters(image_tokens);
    UnetShape { batch, height: side, width: side, tokens: 77, branches, attribution: Vec::new() }
}

fn small() -> UnetConfig {
    UnetConfig {
        block_out_channels: vec![32, 64, 64],
        transformer_layers_per_block: vec![0, 1, 2],
        num_attention_heads: vec![2, 2, 4],
        cross_attention_dim: 16,
        addition_time_embed_dim: 4,
        projection_class_embeddings_input_dim: 40,
        ..published::unet()
    }
}

/// Runs a plan with tags for values: whatever a node reads must still be what its operand wrote.
fn check_plan(graph: &Graph) -> MemoryPlan {
    let plan = MemoryPlan::new(graph);
    let mut arena: Vec<usize> = vec![usize::MAX; plan.arena];
    let mut outputs = vec![usize::MAX; graph.outputs.len()];
    let owner = |mut i: usize| {
        while matches!(graph.nodes[i].op, Op::Reshape) {
            i = graph.nodes[i].inputs[0].0;
        }
        i
    };
    let intact = |arena: &[usize], outputs: &[usize], i: usize| match plan.locations[i] {
        Location::Input(k) => graph.inputs[k].1.0 == owner(i),
        Location::Output(k) => outputs[k] == owner(i),
        Location::Arena(at) => arena[at..at + graph.nodes[i].len()].iter().all(|tag| *tag == owner(i)),
    };
    for (i, node) in graph.nodes.iter().enumerate() {
        if matches!(node.op, Op::Input(_) | Op::Reshape) {
            continue;
        }
        // The result is written while the operands are read: it must not lie on them.
        match plan.locations[i] {
            Location::Arena(at) => {
                // A device reads 16 bytes at a time.
                assert!(at.is_multiple_of(16), "`{}` lies at {at}", node.name);
                arena[at..at + node.len()].fill(i);
            }
            Location::Output(k) => {
                assert_eq!(outputs[k], usize::MAX, "output {k} is written twice");
                assert_eq!(owner(graph.outputs[k].1.0), i);
                outputs[k] = i;
            }
            Location::Input(k) => panic!("{} is written to input {k}", node.name),
        }
        for id in &node.inputs {
            let operand = &graph.nodes[id.0].name;
            assert!(intact(&arena, &outputs, id.0), "`{operand}` is gone when {i} `{}` reads it", node.name);
        }
    }
    for (k, id) in &plan.copies {
        assert!(intact(&arena, &outputs, id.0), "output {k} is gone before it is copied");
        outputs[*k] = owner(id.0);
    }
    for ((name, id), got) in graph.outputs.iter().zip(&outputs) {
        assert_eq!(*got, owner(id.0), "output `{name}`");
    }
    plan
}

#[test]
fn no_overlap_in_real_graphs() {
    let config = small();
    for compat in [Compat::diffusers(), Compat::diffsynth()] {
        for adapters in [&[][..], &[4], &[4, 8]] {
            let graph = denoiser(&config, &empty(), &shape(2, 10, adapters), &compat).unwrap();
            let plain = check_plan(&graph).arena;
            assert!(check_plan(&fuse(graph)).arena < plain);
        }
    }
    let graph = conditioning(&config, &empty(), &shape(2, 10, &[]), 3, &[], ConditioningPart::ALL).unwrap();
    check_plan(&graph);
    check_plan(&fuse(graph));
    let graph = vae_decoder(&published::vae(), &empty(), 2, 3, &Compat::diffusers()).unwrap();
    check_plan(&graph);
    check_plan(&fuse(graph));
}

#[test]
fn no_overlap_in_random_graphs() {
    let mut state = 1u64;
    let mut random = move |n: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n
    };
    for _ in 0..300 {
        let mut b = Builder::new();
        let scope = empty();
        let mut made: Vec<NodeId> =
            (0..1 + random(3)).map(|i| b.input(format!("in{i}"), &[1, 2 + random(3), 2, 4 << random(3)])).collect();
        for _ in 0..1 + random(40) {
            // Mostly recent results, now and then an old one.
            let x = made[if random(4) == 0 { random(made.len()) } else { made.len() - 1 - random(made.len().min(3)) }];
            let s = b.shape(x).to_vec();
            let alike: Vec<NodeId> = made.iter().copied().filter(|y| b.shape(*y) == s).collect();
            let y = alike[random(alike.len())];
            made.push(match random(9) {
                0 => b.activation(x, Activation::Silu),
                1 => b.add(x, y),
                2 if s[3] < 64 => b.concat(x, y),
                3 => b.linear(x, &scope, 4 << random(4)),
                4 => b.group_norm(x, &scope, 2, 1e-5),
                5 => b.reshape(x, &[1, s[1] * s[2], 1, s[3]]),
                6 if s[1] * s[2] < 64 => b.upsample(x, s[1] * 2, s[2]),
                7 => b.conv2d(x, &scope, s[3], 3, 1),
                _ => b.scale_shift(x, 2.0, 1.0),
            });
        }
        // Outputs may be inputs, reshapes, and one node twice.
        for i in 0..1 + random(4) {
            b.output(format!("out{i}"), made[random(made.len())]);
        }
        let graph = b.finish().unwrap();
        check_plan(&graph);
        check_plan(&fuse(graph));
    }
}

/// Bytes of the arenas of SDXL at 1024x1024 in f32, and the work of one evaluation.
#[test]
fn sizes_of_sdxl() {
    let compat = Compat::diffusers();
    let config = published::unet();
    let arena = |graph: Graph| MemoryPlan::new(&fuse(graph)).arena as f64 * 4.0 / f64::from(1 << 20);
    let denoise = arena(denoiser(&config, &empty(), &shape(2, 128, &[4]), &compat).unwrap());
    let decode = arena(vae_decoder(&published::vae(), &empty(), 128, 128, &compat).unwrap());
    println!("arena of the UNet, guided: {denoise:.0} MiB; of the VAE decoder: {decode:.0} MiB");
    assert!(denoise < 400.0, "{denoise} MiB");
    assert!(decode < 2600.0, "{decode} MiB");
    let one = denoiser(&config, &empty(), &shape(1, 128, &[]), &compat).unwrap();
    let hoisted = conditioning(&config, &empty(), &shape(1, 128, &[]), 1, &[], ConditioningPart::ALL).unwrap();
    let macs = (one.macs() + hoisted.macs()) as f64;
    println!("{:e} multiplications an evaluation, {:e} once", one.macs() as f64, hoisted.macs() as f64);
    assert!((macs / 3.381e12 - 1.0).abs() < 0.01, "{macs:e}");
    assert_eq!(one.macs(), fuse(one.clone()).macs());
}

/// The eps of every group norm of a graph whose weight's name passes `which`.
fn eps(graph: &Graph, which: impl Fn(&str) -> bool) -> Vec<f32> {
    let eps = |n: &Node| match &n.op {
        Op::GroupNorm { eps, .. } if which(&n.name) => Some(*eps),
        _ => None,
    };
    graph.nodes.iter().filter_map(eps).collect()
}

#[test]
fn eps_of_the_profiles() {
    for (compat, transformer, out) in [(Compat::diffusers(), 1e-6, 1e-6), (Compat::diffsynth(), 1e-5, 1e-5)] {
        let graph = fuse(denoiser(&published::unet(), &empty(), &shape(2, 8, &[4]), &compat).unwrap());
        let of_transformer = |name: &str| name.contains("attentions") && name.ends_with(".norm.weight");
        // 2 + 2 in the down blocks, 1 in the middle, 3 + 3 in the up blocks.
        assert_eq!(eps(&graph, of_transformer), [transformer; 11]);
        // Two in each of 17 resnets, and the last.
        assert_eq!(eps(&graph, |name| !of_transformer(name)), [1e-5; 35]);
        let graph = fuse(vae_decoder(&published::vae(), &empty(), 8, 8, &compat).unwrap());
        let last = |name: &str| name == "decoder.conv_norm_out.weight";
        assert_eq!(eps(&graph, last), [out]);
        // Two in each of 14 resnets, and the attention's.
        assert_eq!(eps(&graph, |name| !last(name)), [1e-6; 29]);
    }
}

/// A node alone: operands become inputs, each once; the result is what the whole graph has.
#[test]
fn a_node_alone() {
    let mut b = Builder::new();
    let x = b.input("x", &[1, 3, 8]);
    let y = b.scale_shift(x, 2.0, 0.5);
    let z = b.attention(y, y, x, 2, false);
    b.output("z", z);
    let graph = b.finish().unwrap();
    let (id, _) = graph.iter().last().unwrap();
    let alone = graph.single(id);
    assert_eq!((alone.nodes.len(), alone.inputs.len(), alone.outputs.len()), (3, 2, 1));
    assert_eq!(alone.macs(), graph.macs());
    let x: Vec<f32> = (0..24u8).map(|i| f32::from(i % 7) / 4.0 - 0.5).collect();
    let y: Vec<f32> = x.iter().map(|x| x * 2.0 + 0.5).collect();
    let run = |graph: &Graph, inputs: &[TensorData<'_>]| {
        let mut out = vec![f32::NAN; 24];
        Cpu::new(Some(1)).compile(graph.clone()).unwrap().run(inputs, &mut [&mut out]).unwrap();
        out
    };
    assert_eq!(run(&alone, &[(&y).into(), (&x).into()]), run(&graph, &[(&x).into()]));
}

/// An operation that reads an input of the other type is an error with its name, of a builder and of a device.
#[test]
fn misread_inputs() {
    let refusal = |build: &dyn Fn(&mut Builder)| {
        let mut b = Builder::new();
        build(&mut b);
        b.finish().unwrap_err().to_string()
    };
    let s = empty();
    let tables = || (s.get("table", &[10, 8]), s.get("positions", &[4, 8]));
    let slice = |operand, start| ChannelSlice { operand, start };
    let branch = KvBranch { keys: slice(1, 0), values: slice(1, 8), length: Some(2), scale: None, mask: None };
    let embedding = refusal(&|b| {
        let ids = b.input("ids", &[2, 3]);
        b.embedding(ids, vec![tables().0], tables().1);
    });
    assert!(embedding.contains("`table` reads `ids` as i32, which is f32"), "{embedding}");
    let computed = refusal(&|b| {
        let (ids, x) = (b.input_i32("ids", &[2, 3]), b.input("x", &[2]));
        let rows = b.embedding(ids, vec![tables().0], tables().1);
        let index = b.scale_shift(x, 1.0, 1.0);
        b.gather(rows, Some(index));
    });
    assert!(computed.contains("`gather` reads `scale and shift` as i32, which is f32"), "{computed}");
    let length = refusal(&|b| {
        let [q, kv, length] = [b.input("q", &[2, 3, 8]), b.input("kv", &[2, 3, 16]), b.input("length", &[2])];
        b.decoupled_attention(&[q, kv, length], 1, false, vec![branch]);
    });
    assert!(length.contains("`attention` reads `length` as i32, which is f32"), "{length}");
    let keys = refusal(&|b| {
        let [q, kv, n] = [b.input("q", &[2, 3, 8]), b.input_i32("kv", &[2, 3, 16]), b.input_i32("n", &[2])];
        b.decoupled_attention(&[q, kv, n], 1, false, vec![branch]);
    });
    assert!(keys.contains("`attention` reads `kv` as f32, which is i32"), "{keys}");
    let images = refusal(&|b| {
        let [q, kv, n] = [b.input("q", &[2, 3, 8]), b.input("kv", &[2, 3, 16]), b.input_i32("n", &[3])];
        b.decoupled_attention(&[q, kv, n], 1, false, vec![branch]);
    });
    assert!(images.contains("lengths [3] for the images of [2, 3, 8]"), "{images}");
    // A reshape is of its operand's type.
    let reshaped = refusal(&|b| {
        let ids = b.input_i32("ids", &[2, 3]);
        let ids = b.reshape(ids, &[3, 2]);
        b.activation(ids, Activation::Silu);
    });
    assert!(reshaped.contains("`activation` reads `reshape` as f32, which is i32"), "{reshaped}");
    let kept = refusal(&|b| {
        let ids = b.input_i32("ids", &[2, 3]);
        b.output("y", ids);
    });
    assert!(kept.contains("output `y` is `ids` of i32"), "{kept}");
    let mut b = Builder::new();
    let x = b.input("x", &[2, 3]);
    let y = b.activation(x, Activation::Silu);
    b.output("y", y);
    let mut graph = b.finish().unwrap();
    graph.nodes[0].op = Op::Input(InputType::I32);
    let text = Cpu::new(Some(1)).compile(graph).map(|_| ()).unwrap_err().to_string();
    assert!(text.contains("`activation` reads `x` as f32"), "{text}");
}
