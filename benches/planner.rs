//! From SDXL's configuration to a plan: building the UNet's graph, fusing it, placing its tensors, and lowering it for a GPU.
//! `cargo bench --bench planner`; no weights are read.

use braid::Compat;
use braid::device::cuda::{ChunkLimits, LoweringOptions, LoweringReport};
use braid::graph::{Graph, MemoryPlan, fuse};
use braid::models::published;
use braid::models::unet::{BranchShape, UnetShape, denoiser};
use braid::tensor::DType;
use braid::weights::{MappedBytes, Scope, Weight, Weights};
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use std::hint::black_box;
use std::sync::Arc;

/// The published UNet's tensors, each of one element that repeats.
fn hollow() -> Scope {
    let storage = Arc::new(MappedBytes::owned(vec![0; 2]));
    let mut weights = Weights::new("published");
    for (name, shape) in published::unet().tensors() {
        let strides = vec![0; shape.len()];
        let weight = Weight::strided(storage.clone(), 0, DType::F16, shape, strides, name.as_str());
        weights.insert(name, weight.expect("one element")).expect("names differ");
    }
    Scope::new(weights)
}

fn planner(c: &mut Criterion) {
    let (config, scope) = (published::unet(), hollow());
    let shape = UnetShape {
        batch: 2,
        height: 128,
        width: 128,
        tokens: 77,
        branches: BranchShape::of_adapters(&[4]),
        attribution: Vec::new(),
    };
    let build = || -> Graph { denoiser(&config, &scope, &shape, &Compat::diffusers()).expect("the sizes fit") };
    let (raw, fused) = (build(), fuse(build()));
    assert!(fused.nodes.len() < raw.nodes.len() && fused.macs() == raw.macs());
    let settings = LoweringOptions {
        dtype: DType::F16,
        multiprocessors: 132,
        capability: (9, 0),
        cublaslt: false,
        fp8: false,
        limits: ChunkLimits::DEFAULT,
    };
    let mut group = c.benchmark_group("planner, SDXL's UNet at 1024x1024");
    group.sample_size(10);
    group.bench_function("build", |b| b.iter(|| black_box(build())));
    group.bench_function("fuse", |b| b.iter_batched(|| raw.clone(), fuse, BatchSize::LargeInput));
    group.bench_function("plan", |b| b.iter(|| MemoryPlan::new(black_box(&fused))));
    group.bench_function("fuse, plan and lower for 132 multiprocessors", |b| {
        b.iter_batched(
            || raw.clone(),
            |g| LoweringReport::of(g, &settings).expect("kernels take it"),
            BatchSize::LargeInput,
        );
    });
    group.finish();
}

criterion_group!(benches, planner);
criterion_main!(benches);
