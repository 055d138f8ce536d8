//! Tests that need a GPU: its driver and its library do what the launch layer asks.

#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used)]

#[path = "common/mod.rs"]
mod common;
#[path = "common/device.rs"]
mod device;
#[allow(dead_code)] // Values alone.
#[path = "common/interpreter.rs"]
mod interpreter;
#[path = "common/requests.rs"]
mod requests;

use braid::device::cuda::NvidiaDriver;
use braid::device::cuda::driver::{Driver, Gemm, GemmEpilogue, MatrixRef};
use braid::pipeline::Stage;
use braid::tensor::DType;
use braid::{Engine, EngineOptions, Error, SubmitOptions, Ticket};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// The first GPU, or a line that says which test is skipped.
fn gpu() -> Option<NvidiaDriver> {
    let found = NvidiaDriver::new(0);
    if let Err(why) = &found {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("a test");
        println!("{why}");
        let _ = writeln!(std::io::stderr(), "{name}: skipped: no CUDA device");
    }
    found.ok()
}

/// The first request issues its work; the second launches what was captured.
#[test]
fn captured_and_issued() {
    if gpu().is_none() {
        return;
    }
    let pipeline = requests::on_gpu(&common::Model::folder());
    let [issued, captured, again] =
        [(); 3].map(|()| requests::bytes(&pipeline.generate(&requests::request(1, 3, 0.7)).unwrap()));
    assert!(issued == captured && captured == again, "captured work differs from the same work issued");
}

/// Launches that may begin before the one before them has ended, issued, captured and launched again, and in another process none that may:
/// the same bytes.
#[test]
fn early_launches() {
    if gpu().is_none() {
        return;
    }
    let pipeline = requests::on_gpu(&common::Model::folder());
    let mut hasher = DefaultHasher::new();
    for _ in 0..3 {
        requests::bytes(&pipeline.generate(&requests::request(1, 3, 0.7)).unwrap()).hash(&mut hasher);
    }
    let drawn = format!("drawn: {:016x}", hasher.finish());
    println!("{drawn}");
    if std::env::var_os("BRAID_PDL").is_none() {
        let mut without = Command::new(std::env::current_exe().unwrap());
        without.args(["--exact", "early_launches", "--nocapture"]).env("BRAID_PDL", "0");
        let said = String::from_utf8_lossy(&without.output().unwrap().stdout).into_owned();
        assert!(said.contains(&drawn), "{drawn}, but with BRAID_PDL=0: {said}");
    }
}

#[test]
fn alone_and_in_a_batch() {
    if gpu().is_none() {
        return;
    }
    let pipeline = requests::on_gpu(&common::Model::folder());
    let together = pipeline.generate(&requests::request(3, 3, 0.7)).unwrap();
    for (i, image) in together.images.iter().enumerate() {
        let mut request = requests::request(1, 3, 0.7);
        request.seed += i as u64;
        let alone = pipeline.generate(&request).unwrap();
        assert!(alone.images[0].rgb() == image.rgb(), "image {i} differs from the same drawn alone");
    }
}

/// Requests of an engine, of other prompts and steps, give the bytes that each has alone; one that is stopped at its first step concerns no
/// other.
#[test]
fn engine_and_cancellation() {
    if gpu().is_none() {
        return;
    }
    let pipeline = Arc::new(requests::on_gpu(&common::Model::folder()));
    let several: Vec<_> = (0..4)
        .map(|i| {
            let mut request = requests::request(1, 2 + i % 2, 0.7);
            (request.prompt, request.seed) = (format!("{i} boats"), i as u64);
            request
        })
        .collect();
    let alone: Vec<_> = several.iter().map(|request| requests::bytes(&pipeline.generate(request).unwrap())).collect();
    // Their encoders run together then.
    pipeline.clear_cache();
    let engine = Engine::new(pipeline, EngineOptions::default()).unwrap();
    let cancel = Arc::new(OnceLock::<Ticket>::new());
    let of_callback = cancel.clone();
    let stop = SubmitOptions::new().with_progress(move |progress| {
        if progress.stage == Stage::Denoise && progress.done == 1 {
            of_callback.wait().cancel();
        }
    });
    let long = engine.submit_with(requests::request(1, 50, 0.7), stop).unwrap();
    let long = cancel.get_or_init(|| long);
    let tickets: Vec<_> = several.into_iter().map(|request| engine.submit(request).unwrap()).collect();
    for (i, (ticket, alone)) in tickets.into_iter().zip(&alone).enumerate() {
        assert!(requests::bytes(&ticket.wait().unwrap()) == *alone, "request {i} differs from the same drawn alone");
    }
    assert!(matches!(long.wait_for(Duration::MAX), Some(Err(Error::Cancelled))));
}

#[test]
fn two_pipelines() {
    if gpu().is_some() {
        requests::two_pipelines(4);
    }
}

#[test]
fn large_copy() {
    let Some(gpu) = gpu() else { return };
    let bytes = 1 << 30;
    let (from, to) = (gpu.allocate_zeroed(bytes).unwrap(), gpu.allocate(bytes).unwrap());
    gpu.memset(from, bytes, 0x3c).unwrap();
    gpu.copy(from, to, bytes).unwrap();
    let mut end = [0; 64];
    gpu.download(to + bytes as u64 - 64, &mut end).unwrap();
    assert_eq!(end, [0x3c; 64]);
    gpu.free(from);
    gpu.free(to);
}

#[test]
fn large_product() {
    let Some(gpu) = gpu() else { return };
    let n = 8192usize;
    let [a, b, d] = [(); 3].map(|()| gpu.allocate_zeroed(n * n * 2).unwrap());
    // 0x3c3c is 1 + 60/1024.
    gpu.memset(a, n * n * 2, 0x3c).unwrap();
    gpu.memset(b, n * n * 2, 0x3c).unwrap();
    let matrix = |data| MatrixRef { data, leading: n, stride: 0 };
    let (m, k) = (n, n);
    let gemm = Gemm {
        dtype: DType::F16,
        m,
        n,
        k,
        batch: 1,
        transpose_a: true,
        transpose_b: false,
        a: matrix(a),
        b: matrix(b),
        d: matrix(d),
        out_f32: false,
        epilogue: GemmEpilogue::None,
    };
    let plan = gpu.prepare_gemm(&gemm).unwrap();
    gpu.gemm(plan).unwrap();
    let mut last = [0; 2];
    gpu.download(d + (n * n * 2) as u64 - 2, &mut last).unwrap();
    let (got, want) = (half::f16::from_le_bytes(last).to_f64(), n as f64 * (1.0f64 + 60.0 / 1024.0).powi(2));
    assert!((got - want).abs() <= 8.0, "{got} for {want}");
    gpu.release_gemm(plan);
    [a, b, d].into_iter().for_each(|address| gpu.free(address));
}

/// Products of SDXL's shapes, narrower where they would take long elsewhere than on a GPU: one image of a batch of four, computed
/// alone, has the same bytes, and they are near those of a plain loop.
#[test]
fn batch_invariance() {
    let Some(gpu) = gpu() else { return };
    for (m, n, k, residual) in
        [(640, 1024, 640, true), (320, 4096, 320, false), (1280, 77, 2048, false), (1280, 260, 1280, true)]
    {
        let images = 4;
        let bits = |count: usize, seed: usize| -> Vec<u16> {
            let value =
                |i: usize| half::bf16::from_f32(((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.0 - 1.0).to_bits();
            (0..count).map(value).collect()
        };
        let values = [bits(m * k, 1), bits(images * n * k, 2), bits(images * m * n, 3), bits(m, 4)];
        let [a, b, c, bias] = std::array::from_fn(|i| {
            let address = gpu.allocate_zeroed(values[i].len() * 2).unwrap();
            gpu.upload(address, bytemuck::cast_slice(&values[i])).unwrap();
            address
        });
        let d = gpu.allocate_zeroed(images * m * n * 2).unwrap();
        let matrix = |data, leading, stride| MatrixRef { data, leading, stride };
        // From the image of that number on.
        let gemm = |first: usize, batch: usize| {
            let at = |data: u64, len: usize| data + (first * len * 2) as u64;
            let c = matrix(at(c, m * n), m, m * n);
            Gemm {
                dtype: DType::BF16,
                m,
                n,
                k,
                batch,
                transpose_a: true,
                transpose_b: false,
                a: matrix(a, k, 0),
                b: matrix(at(b, n * k), k, n * k),
                d: matrix(at(d, m * n), m, m * n),
                out_f32: false,
                epilogue: if residual { GemmEpilogue::BiasResidual(bias, c) } else { GemmEpilogue::Bias(bias) },
            }
        };
        let result = |gemm: &Gemm| {
            gpu.memset(d, images * m * n * 2, 0).unwrap();
            let plan = gpu.prepare_gemm(gemm).unwrap();
            gpu.gemm(plan).unwrap();
            gpu.release_gemm(plan);
            let mut bits = vec![0u16; images * m * n];
            gpu.download(d, bytemuck::cast_slice_mut(&mut bits)).unwrap();
            bits
        };
        let together = result(&gemm(0, images));
        for image in 0..images {
            let (alone, range) = (result(&gemm(image, 1)), image * m * n..(image + 1) * m * n);
            assert!(alone[range.clone()] == together[range], "{m}x{n}x{k}, image {image}");
        }
        let number = |which: usize, at: usize| half::bf16::from_bits(values[which][at]).to_f64();
        for at in (0..images * m * n).step_by(1009) {
            let (column, row) = (at / m, at % m);
            let dot: f64 = (0..k).map(|l| number(0, row * k + l) * number(1, column * k + l)).sum();
            let want = dot + number(3, row) + if residual { number(2, at) } else { 0.0 };
            let got = half::bf16::from_bits(together[at]).to_f64();
            assert!((got - want).abs() <= 0.01 * want.abs() + 0.01, "{m}x{n}x{k} at {at}: {got} for {want}");
        }
        [a, b, c, bias, d].into_iter().for_each(|address| gpu.free(address));
    }
}
