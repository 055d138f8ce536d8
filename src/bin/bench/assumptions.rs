//! Everything that the model of the present kernels ([`crate::model`]) takes for granted, in one place.
//!
//! A change here is a commit of its own, which gives the results before and after. Nothing in this file has been measured by
//! this project; a device that runs `bench ops` calibrates it.

use braid::device::cuda::ops::tile;
use serde::Serialize;

/// The assumptions about one GPU.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Assumptions {
    /// The name in [`crate::gpus::GPUS`].
    pub gpu: &'static str,
    /// The target of the cubins that it runs.
    pub target: &'static str,
    /// The clock that it sustains under tensor-core load, in Hz.
    pub clock: f64,
    /// Cycles that one m16n8k16 with f32 sums takes of a scheduler's tensor core.
    pub product_cycles: f64,
    /// Bytes a cycle that L2 gives to each multiprocessor when all read.
    pub l2_bytes: f64,
    /// FLOP/s of the library's product of 4096x4096x4096.
    pub library: f64,
}

/// By GPU.
/// - Clocks: power holds an H100's long products to 1.4 to 1.5 GHz: 716 TFLOP/s of 989 at 1.83 GHz. An A100 holds its boost clock
///   (Chips and Cheese, "Nvidia's H100: Funny L2, and Tons of Bandwidth"). RTX 4090: the boost clock of its data sheet, which boards
///   exceed. L40S: 350 W for the 4090's chip, hence below its 2.49 GHz; not measured.
/// - A product: 2,048 multiplications and additions by 256 a cycle of an A100's tensor core, 128 of an L40S's, 64 of a 4090's with
///   f32 sums. On sm_90 the assembler itself puts 6 cycles between two `mma.sync` where wgmma's rate would be 4, which agrees with
///   what is reported of it, 0.63 of wgmma.
/// - L2: 6.0 TB/s on an H100 and 4.5 TB/s on an A100, in the range of read benchmarks (5.5 to 7, and 4 to 5, TB/s), over the
///   multiprocessors and the clock; 5.0 TB/s on a 4090, and per multiprocessor and cycle the same on an L40S. Lines that
///   neighbouring multiprocessors ask for at once may be fetched once (Nsight Compute calls the unit "L2 request coalescer"); that is
///   left out, so that figures bounded by L2 may come out slow.
/// - Library: fast.cu's README has 716 TFLOP/s for cuBLAS on an H100, a pull request (86) of NVIDIA's tilus 765 on an H200; the
///   others are 0.85, 0.90 and 0.85 of the peak.
pub const ASSUMED: [Assumptions; 5] = [
    Assumptions { gpu: "a100", target: "sm_80", clock: 1.41e9, product_cycles: 8.0, l2_bytes: 29.5, library: 265e12 },
    Assumptions { gpu: "h100", target: "sm_90a", clock: 1.45e9, product_cycles: 6.0, l2_bytes: 31.3, library: 716e12 },
    Assumptions { gpu: "h200", target: "sm_90a", clock: 1.45e9, product_cycles: 6.0, l2_bytes: 31.3, library: 765e12 },
    Assumptions {
        gpu: "rtx4090",
        target: "sm_89",
        clock: 2.52e9,
        product_cycles: 32.0,
        l2_bytes: 15.5,
        library: 149e12,
    },
    Assumptions { gpu: "l40s", target: "sm_89", clock: 2.2e9, product_cycles: 16.0, l2_bytes: 15.5, library: 272e12 },
];

/// Cycles of a scheduler's share of shared memory for an access of 16 bytes a lane: 512 bytes, 128 a cycle, four schedulers.
pub const SHARED_CYCLES: f64 = 16.0;

/// Cycles of a scheduler's share of the unit for exponentials: 32 lanes, 16 a cycle of a multiprocessor (CUDA C++ Programming Guide,
/// "Arithmetic Instructions").
pub const EXPONENTIAL_CYCLES: f64 = 8.0;

/// Instructions of a warp outside the main loop for each accumulator of a thread, by the interpreter's counts (docs/kernels.md)
/// less the turns of the loop: products and convolutions, and with GEGLU.
pub const EPILOGUE: [f64; 2] = [tile::EPILOGUE, 32.0];

/// Cycles of a wave in which nothing multiplies: the first loads arrive, the last stores leave.
pub const FILL: f64 = tile::FILL;

/// Seconds of a node of a graph, and the least that a kernel takes with it.
pub const NODE: f64 = 1e-6;
/// The least seconds of a kernel.
pub const LEAST: f64 = 3e-6;

/// The share of a memory's bandwidth on the data sheet that kernels reach.
pub const MEMORY: f64 = 0.9;

/// The tiles that the library is taken to choose from, and each one's rate beside the first's.
pub const LIBRARY_TILES: [(usize, usize, f64); 3] = [(128, 256, 1.0), (128, 128, 0.9), (64, 128, 0.75)];

/// The length of sums that the library's way in and out costs.
pub const LIBRARY_K: f64 = 256.0;

/// The assumptions about the GPU of that name.
pub fn of(gpu: &str) -> Option<Assumptions> {
    ASSUMED.into_iter().find(|assumed| assumed.gpu == gpu)
}

impl Assumptions {
    /// All of them in a few lines.
    pub fn text(&self) -> String {
        format!(
            "assumed: {:.2} GHz sustained, {} cycles a product of m16n8k16, L2 {} bytes a cycle and multiprocessor, library products \
             at most {:.0} TFLOP/s,\n{:.0} us a node and {:.0} us a kernel at least, {:.0} % of the memory's bandwidth, {FILL} cycles \
             to fill a wave, {:?} instructions an accumulator behind the loop; src/bin/bench/assumptions.rs has the sources",
            self.clock / 1e9,
            self.product_cycles,
            self.l2_bytes,
            self.library / 1e12,
            NODE * 1e6,
            LEAST * 1e6,
            MEMORY * 100.0,
            EPILOGUE,
        )
    }
}
