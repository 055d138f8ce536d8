//! What GPUs can do at most, by their makers' data sheets.

use serde::Serialize;

/// A GPU.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Gpu {
    /// The name that `--gpu` takes.
    pub name: &'static str,
    /// FLOP/s of dense f16 products on the tensor cores with f32 sums, which is what the kernels do.
    pub peak: f64,
    /// Bytes a second of its memory.
    pub bandwidth: f64,
    /// Multiprocessors.
    pub multiprocessors: usize,
}

/// NVIDIA's figures. Data sheets that state sparse products alone are halved.
/// - A100 80GB SXM: "NVIDIA A100 Tensor Core GPU" data sheet (312 TFLOPS, 2,039 GB/s); 108 SMs by the Ampere whitepaper.
/// - H100 SXM: "NVIDIA H100 Tensor Core GPU" data sheet (1,979 TFLOPS sparse, 3.35 TB/s); 132 SMs by the Hopper whitepaper.
/// - H200 SXM: "NVIDIA H200 Tensor Core GPU" data sheet (1,979 TFLOPS sparse, 4.8 TB/s); the H100's 132 SMs.
/// - RTX 4090: "NVIDIA Ada GPU Architecture" whitepaper (165.2 TFLOPS with FP32 accumulate, 1,008 GB/s, 128 SMs).
/// - L40S: "NVIDIA L40S GPU" data sheet (362.05 TFLOPS, 864 GB/s); 142 SMs, by 18,176 CUDA cores of 128 each.
pub const GPUS: [Gpu; 5] = [
    Gpu { name: "a100", peak: 312e12, bandwidth: 2.039e12, multiprocessors: 108 },
    Gpu { name: "h100", peak: 989.5e12, bandwidth: 3.35e12, multiprocessors: 132 },
    Gpu { name: "h200", peak: 989.5e12, bandwidth: 4.8e12, multiprocessors: 132 },
    Gpu { name: "rtx4090", peak: 165.2e12, bandwidth: 1.008e12, multiprocessors: 128 },
    Gpu { name: "l40s", peak: 362.05e12, bandwidth: 0.864e12, multiprocessors: 142 },
];

/// The GPU of that name.
pub fn find(name: &str) -> Option<Gpu> {
    GPUS.into_iter().find(|g| g.name.eq_ignore_ascii_case(name))
}
