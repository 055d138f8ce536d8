//! The cost of a LoRA on the CPU: a transformer layer of SDXL's UNet at 1024x1024 with a LoRA of rank 64 on every fully connected
//! layer and without, in turn, and what merging it into the weights would take. `cargo bench --bench low_rank [RANK]`.

use braid::Result;
use braid::device::{Device, Executable, TensorData, cpu::Cpu};
use braid::graph::{Builder, Graph, LORA_SCALES};
use braid::tensor::DType;
use braid::weights::lora::{Lora, LoraComponent, LoraSet, LoraTargets};
use braid::weights::{MappedBytes, Scope, Weight, Weights};
use half::f16;
use std::sync::Arc;
use std::time::Instant;

/// Tokens of an image, channels, heads; two images, and the times that each is run.
const LAYERS: [([usize; 3], usize); 2] = [([4096, 640, 10], 7), ([1024, 1280, 20], 9)];
const TEXT: usize = 77;

fn layer([tokens, width, heads]: [usize; 3], scope: &Scope) -> Result<Graph> {
    let mut b = Builder::new();
    let x = b.input("x", &[2, tokens, width]);
    let [k, v] = ["keys", "values"].map(|name| b.input(name, &[2, TEXT, width]));
    let attn = scope.pp("attn1");
    let h = b.layer_norm(x, &scope.pp("norm1"), 1e-5);
    let [q1, k1, v1] = ["to_q", "to_k", "to_v"].map(|part| b.linear_no_bias(h, &attn.pp(part), width));
    let h = b.attention(q1, k1, v1, heads, false);
    let h = b.linear(h, &attn.pp("to_out.0"), width);
    let x = b.add(x, h);
    let attn = scope.pp("attn2");
    let h = b.layer_norm(x, &scope.pp("norm2"), 1e-5);
    let q = b.linear_no_bias(h, &attn.pp("to_q"), width);
    let h = b.attention(q, k, v, heads, false);
    let h = b.linear(h, &attn.pp("to_out.0"), width);
    let x = b.add(x, h);
    let h = b.layer_norm(x, &scope.pp("norm3"), 1e-5);
    let h = b.linear(h, &scope.pp("ff.net.0.proj"), 8 * width);
    let h = b.geglu(h);
    let h = b.linear(h, &scope.pp("ff.net.2"), width);
    let x = b.add(x, h);
    b.output("x", x);
    b.finish()
}

fn tensor(shape: &[usize], name: &str) -> Weight {
    let n: usize = shape.iter().product();
    let value = |i: usize| f16::from_f32((((i * 7919) % 1021) as f32 / 512.0 - 1.0) / 32.0).to_le_bytes();
    let bytes = Arc::new(MappedBytes::owned((0..n).flat_map(value).collect()));
    Weight::new(bytes, 0, DType::F16, shape.to_vec(), name).expect("a tensor of that size")
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

fn seconds(executable: &mut dyn Executable, inputs: &[TensorData<'_>], out: &mut [f32]) -> Result<f64> {
    let begun = Instant::now();
    executable.run(inputs, &mut [out])?;
    Ok(begun.elapsed().as_secs_f64())
}

/// The seconds in which `up * down` of every matrix is made in f32, which merging takes at least, each time a scale changes.
fn merging(cpu: &Cpu, table: &[(String, Vec<usize>)], rank: usize) -> Result<f64> {
    let mut all = 0.0;
    for (name, shape) in table.iter().filter(|(_, shape)| shape.len() == 2) {
        let mut b = Builder::new();
        let x = b.input("x", &[1, shape[0], rank]);
        let y = b.linear_parts(x, vec![tensor(&[shape[1], rank], name).into()]);
        b.output("y", y);
        let mut executable = cpu.compile(b.finish()?)?;
        let (x, mut y) = (vec![0.5; shape[0] * rank], vec![0.0; shape[0] * shape[1]]);
        let times: Result<Vec<f64>> = (0..3).map(|_| seconds(executable.as_mut(), &[(&x).into()], &mut y)).collect();
        all += median(times?);
    }
    Ok(all)
}

fn main() -> Result<()> {
    let rank = std::env::args().filter_map(|arg| arg.parse().ok()).next().unwrap_or(64);
    let cpu = Cpu::new(None);
    for (sizes, runs) in LAYERS {
        let recording = Scope::recording();
        layer(sizes, &recording)?;
        let table = recording.declared();
        let (mut weights, mut file) = (Weights::new("layer"), Weights::new("lora"));
        for (name, shape) in &table {
            weights.insert(name.as_str(), tensor(shape, name))?;
            if let (Some(module), [n, k]) = (name.strip_suffix(".weight"), &shape[..]) {
                file.insert(format!("unet.{module}.lora_A.weight"), tensor(&[rank, *k], "down"))?;
                file.insert(format!("unet.{module}.lora_B.weight"), tensor(&[*n, rank], "up"))?;
            }
        }
        let none = Vec::new();
        let lora = Lora::read(&file, &LoraTargets::new(&table, [&none, &none]))?;
        let set = Arc::new(LoraSet::new(LoraComponent::Unet, &[lora]));
        let scales = set.scales(&[0.7]);
        let scope = Scope::new(weights);
        let mut plain = cpu.compile(layer(sizes, &scope)?)?;
        let mut with = cpu.compile(layer(sizes, &scope.with_loras(set))?)?;
        let [tokens, width, _] = sizes;
        let x: Vec<f32> = (0..2 * tokens * width).map(|i| ((i * 31) % 127) as f32 / 64.0 - 1.0).collect();
        let kv = vec![0.1; 2 * TEXT * width];
        let mut out = vec![0.0; x.len()];
        let inputs: [TensorData<'_>; 4] = [(&x).into(), (&kv).into(), (&kv).into(), (&scales).into()];
        assert_eq!(with.graph().inputs[3].0, LORA_SCALES);
        let (mut first, mut second) = (Vec::new(), Vec::new());
        for _ in 0..runs {
            first.push(seconds(plain.as_mut(), &inputs[..3], &mut out)?);
            second.push(seconds(with.as_mut(), &inputs, &mut out)?);
        }
        let (plain_s, with_s, merging) = (median(first), median(second), merging(&cpu, &table, rank)?);
        println!(
            "2 x {tokens} x {width}, rank {rank}: {:.0} ms without, {:.0} ms with ({:+.1} %); merging would take {:.0} ms ({:.1} % \
             of the layer) at each change of a scale; bytes held {} and {}",
            plain_s * 1e3,
            with_s * 1e3,
            (with_s / plain_s - 1.0) * 100.0,
            merging * 1e3,
            merging / plain_s * 100.0,
            plain.bytes(),
            with.bytes()
        );
    }
    Ok(())
}
