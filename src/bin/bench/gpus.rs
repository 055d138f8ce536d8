//! Peak rates of GPUs, by their makers' data sheets.

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
    /// The compute capability.
    pub capability: (u32, u32),
    /// The boost clock behind `peak`, in Hz.
    pub clock: f64,
    /// Bytes of the L2 cache.
    pub l2: usize,
    /// Bytes of shared memory of a multiprocessor.
    pub shared: usize,
}

/// NVIDIA's figures. Data sheets that state sparse products alone are halved.
/// - A100 80GB SXM: "NVIDIA A100 Tensor Core GPU" data sheet (312 TFLOPS, 2,039 GB/s); 108 SMs, 1,410 MHz and 40 MB L2 by the
///   "NVIDIA A100 Tensor Core GPU Architecture" whitepaper; 164 KB by the "Ampere Tuning Guide".
/// - H100 SXM: "NVIDIA H100 Tensor Core GPU" data sheet (1,979 TFLOPS sparse, 3.35 TB/s); 132 SMs and 50 MB L2 by the "NVIDIA H100
///   Tensor Core GPU Architecture" whitepaper, which has 989.4 TFLOPS dense, hence 1,830 MHz; 228 KB by the "Hopper Tuning Guide".
/// - H200 SXM: "NVIDIA H200 Tensor Core GPU" data sheet (1,979 TFLOPS sparse, 4.8 TB/s); the H100's chip.
/// - RTX 4090: "NVIDIA Ada GPU Architecture" whitepaper (165.2 TFLOPS with FP32 accumulate, half of what it does with FP16
///   accumulate; 1,008 GB/s, 128 SMs, 2,520 MHz, 72 MB L2); 100 KB by the "Ada Tuning Guide".
/// - L40S: "NVIDIA L40S" data sheet (362.05 TFLOPS, 864 GB/s, 18,176 CUDA cores, which at 128 each are 142 SMs; FP32 accumulate is
///   not slower there); 96 MB L2 as the L40 of the same chip has, 100 KB by the "Ada Tuning Guide". Its tensor figure is that of
///   2,490 MHz, its FP32 figure (91.6 TFLOPS) that of 2,520 MHz.
pub const GPUS: [Gpu; 5] = [
    Gpu {
        name: "a100",
        peak: 312e12,
        bandwidth: 2.039e12,
        multiprocessors: 108,
        capability: (8, 0),
        clock: 1.41e9,
        l2: 40 << 20,
        shared: 164 << 10,
    },
    Gpu {
        name: "h100",
        peak: 989.4e12,
        bandwidth: 3.35e12,
        multiprocessors: 132,
        capability: (9, 0),
        clock: 1.83e9,
        l2: 50 << 20,
        shared: 228 << 10,
    },
    Gpu {
        name: "h200",
        peak: 989.4e12,
        bandwidth: 4.8e12,
        multiprocessors: 132,
        capability: (9, 0),
        clock: 1.83e9,
        l2: 50 << 20,
        shared: 228 << 10,
    },
    Gpu {
        name: "rtx4090",
        peak: 165.2e12,
        bandwidth: 1.008e12,
        multiprocessors: 128,
        capability: (8, 9),
        clock: 2.52e9,
        l2: 72 << 20,
        shared: 100 << 10,
    },
    Gpu {
        name: "l40s",
        peak: 362.05e12,
        bandwidth: 0.864e12,
        multiprocessors: 142,
        capability: (8, 9),
        clock: 2.49e9,
        l2: 96 << 20,
        shared: 100 << 10,
    },
];

/// The GPU of that name.
pub fn find(name: &str) -> Option<Gpu> {
    GPUS.into_iter().find(|g| g.name.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The figures hang together: a multiprocessor's FLOPs in a cycle, with f32 sums, are a power of two.
    #[test]
    fn peaks_by_clock_and_multiprocessors() {
        for (name, cycle) in
            [("a100", 2048.0), ("h100", 4096.0), ("h200", 4096.0), ("rtx4090", 512.0), ("l40s", 1024.0)]
        {
            let gpu = find(name).unwrap();
            let peak = gpu.multiprocessors as f64 * cycle * gpu.clock;
            assert!((gpu.peak / peak - 1.0).abs() < 0.001, "{name}: {peak}");
        }
    }
}
