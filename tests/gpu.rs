//! What only a GPU can show: that its driver and its library do what the launch layer asks.

#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used)]

use braid::device::cuda::cudarc::CudaDriver;
use braid::device::cuda::driver::{Driver, Gemm, GemmEpilogue, Matrix};
use braid::tensor::DType;
use std::io::Write;

/// The first GPU, or a line that says which test is skipped.
fn gpu() -> Option<CudaDriver> {
    let found = CudaDriver::new(0);
    if let Err(why) = &found {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("a test");
        println!("{why}");
        let _ = writeln!(std::io::stderr(), "{name}: skipped: no CUDA device");
    }
    found.ok()
}

#[test]
fn a_large_copy() {
    let Some(gpu) = gpu() else { return };
    let bytes = 1 << 30;
    let (from, to) = (gpu.allocate(bytes).unwrap(), gpu.allocate(bytes).unwrap());
    gpu.fill(from, bytes, 0x3c).unwrap();
    gpu.copy(from, to, bytes).unwrap();
    let mut end = [0; 64];
    gpu.download(to + bytes as u64 - 64, &mut end).unwrap();
    assert_eq!(end, [0x3c; 64]);
    gpu.free(from);
    gpu.free(to);
}

#[test]
fn a_large_product() {
    let Some(gpu) = gpu() else { return };
    let n = 8192usize;
    let [a, b, d] = [(); 3].map(|()| gpu.allocate(n * n * 2).unwrap());
    // 0x3c3c is 1 + 60/1024.
    gpu.fill(a, n * n * 2, 0x3c).unwrap();
    gpu.fill(b, n * n * 2, 0x3c).unwrap();
    let matrix = |data| Matrix { data, leading: n, stride: 0 };
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
