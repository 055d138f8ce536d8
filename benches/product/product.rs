//! The CPU's products at SDXL's own shapes, beside the libraries faer and gemm.
//!
//! The libraries get weights that are f32 already; Braid gets them as f16, as a checkpoint holds them, and widens them while
//! it multiplies. `cargo run --release --manifest-path benches/product/Cargo.toml -- --bench`; a part of a name picks some.

use braid::device::{Device, cpu::Cpu};
use braid::graph::Builder;
use braid::tensor::DType;
use braid::weights::{MappedBytes, Scope, Weight, Weights};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use half::f16;
use std::hint::black_box;
use std::sync::Arc;

/// Rows, outputs, inputs. At 256x256 pixels with guidance the deepest level has 128 rows, at 512x512 it has 512.
const LINEAR: [(&str, [usize; 3]); 5] = [
    ("to_q 1280, 128 rows", [128, 1280, 1280]),
    ("ff.2 1280, 128 rows", [128, 1280, 5120]),
    ("to_q 640, 512 rows", [512, 640, 640]),
    ("to_q 1280, 512 rows", [512, 1280, 1280]),
    ("2048 cubed", [2048, 2048, 2048]),
];

/// Height and width, inputs, outputs of 3x3 convolutions on two images.
const CONV: [(&str, [usize; 4]); 3] =
    [("conv 320", [32, 32, 320, 320]), ("conv 640", [16, 16, 640, 640]), ("conv 1280", [8, 8, 1280, 1280])];

fn weight(shape: &[usize]) -> Scope {
    let n = shape.iter().product::<usize>();
    let bytes = (0..n).flat_map(|i| f16::from_f32(((i * 7919) % 1021) as f32 / 512.0 - 1.0).to_le_bytes()).collect();
    let mut weights = Weights::new("bench");
    if let Some(w) = Weight::new(Arc::new(MappedBytes::owned(bytes)), 0, DType::F16, shape.to_vec(), "weight") {
        let _ = weights.insert("weight", w);
    }
    Scope::new(weights)
}

fn products(c: &mut Criterion) {
    let cpu = Cpu::new(None);
    let mut group = c.benchmark_group("linear");
    group.sample_size(10);
    for (name, [m, n, k]) in LINEAR {
        let scope = weight(&[n, k]);
        let mut b = Builder::new();
        let x = b.input("x", &[1, m, k]);
        let y = b.linear_no_bias(x, &scope, n);
        b.output("y", y);
        let mut executable = b.finish().and_then(|g| cpu.compile(g)).expect("a small graph loads");
        let x: Vec<f32> = (0..m * k).map(|i| ((i * 31) % 127) as f32 / 64.0 - 1.0).collect();
        let (mut y, mut z) = (vec![0f32; m * n], vec![0f32; m * n]);
        let wide = scope.get("weight", &[n, k]).to_f32();
        group.throughput(Throughput::Elements((2 * m * n * k) as u64));
        group.bench_function(BenchmarkId::new("braid, f16 weights", name), |b| {
            b.iter(|| executable.run(&[black_box(&x).into()], &mut [&mut y]).expect("a run"));
        });
        group.bench_function(BenchmarkId::new("faer, f32 weights", name), |b| {
            b.iter(|| {
                let a = faer::MatRef::from_row_major_slice(black_box(&x), m, k);
                let w = faer::MatRef::from_row_major_slice(&wide, n, k);
                let out = faer::MatMut::from_row_major_slice_mut(&mut z, m, n);
                let threads = faer::Par::rayon(cpu.threads());
                faer::linalg::matmul::matmul(out, faer::Accum::Replace, a, w.transpose(), 1.0, threads);
            });
        });
        // What is timed must be right: both give the same product.
        let scale = z.iter().fold(0f32, |m, v| m.max(v.abs()));
        assert!(y.iter().zip(&z).all(|(a, b)| (a - b).abs() <= 1e-4 * scale), "{name}: the products differ");
        group.bench_function(BenchmarkId::new("gemm, f32 weights", name), |b| {
            b.iter(|| {
                let (x, w) = (black_box(&x), &wide);
                // SAFETY: the pointers and strides are those of row-major [m, n], [m, k] and [n, k].
                unsafe {
                    gemm::gemm(
                        m,
                        n,
                        k,
                        z.as_mut_ptr(),
                        1,
                        n as isize,
                        false,
                        x.as_ptr(),
                        1,
                        k as isize,
                        w.as_ptr(),
                        k as isize,
                        1,
                        0.0,
                        1.0,
                        false,
                        false,
                        false,
                        gemm::Parallelism::Rayon(cpu.threads()),
                    );
                }
            });
        });
    }
    group.finish();
    let mut group = c.benchmark_group("convolution");
    group.sample_size(10);
    for (name, [h, w, ci, co]) in CONV {
        let scope = weight(&[co, ci, 3, 3]);
        let mut b = Builder::new();
        let x = b.input("x", &[2, h, w, ci]);
        let y = b.conv2d_no_bias(x, &scope, co, 3, 1);
        b.output("y", y);
        let mut executable = b.finish().and_then(|g| cpu.compile(g)).expect("a small graph loads");
        let x = vec![0.5f32; 2 * h * w * ci];
        let mut y = vec![0f32; 2 * h * w * co];
        group.throughput(Throughput::Elements((2 * 2 * h * w * co * ci * 9) as u64));
        group.bench_function(BenchmarkId::new("braid, f16 weights", name), |b| {
            b.iter(|| executable.run(&[black_box(&x).into()], &mut [&mut y]).expect("a run"));
        });
    }
    group.finish();
}

criterion_group!(benches, products);
criterion_main!(benches);
