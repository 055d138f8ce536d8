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

/// By GPU. *Read* is a source that was read for this list; *not confirmed* one that was named and could not be found again.
/// - Clocks. A100: the boost clock of its data sheet, held under load (read: Chips and Cheese, "Nvidia's H100: Funny L2, and Tons of
///   Bandwidth"). H100 and H200: assumed, that power holds long products to 1.4 to 1.5 GHz; the same article read 1,395 MHz at times
///   from an H100 PCIe of 350 W, and none for SXM. RTX 4090: the boost clock of the data sheet, assumed held. L40S: assumed, 350 W
///   for the 4090's chip being less than its 2.49 GHz ask.
/// - A product: 2,048 multiplications and additions by 256 a cycle of an A100's tensor core, 128 of an L40S's, 64 of a 4090's with
///   f32 sums: NVIDIA's data sheets' dense peaks over clock, multiprocessors and four. An H100's peak is 512 a cycle, 4 cycles (read:
///   4,096 FLOP a cycle and multiprocessor at 1.83 GHz, pull request 650 of NVIDIA's cudnn-frontend), by wgmma. That `mma.sync` takes 6 is
///   assumed: the assembler puts 6 cycles between two on sm_90. 0.63 of wgmma is reported of it, not confirmed.
/// - L2: 6.0 TB/s on an H100, 4.5 TB/s on an A100, 5.0 TB/s on a 4090, over multiprocessors and clock; an L40S as a 4090. Assumed, in
///   the range of read benchmarks that were named (5.5 to 7, and 4 to 5, TB/s), not confirmed. Lines that
///   neighbouring multiprocessors ask for at once may be fetched once (Nsight Compute calls the unit "L2 request coalescer"); that is
///   left out, so that figures bounded by L2 may come out slow.
/// - Library on an H100 SXM: 716 TFLOP/s for 4096x4096x4096 by fast.cu's author, not confirmed at that size. Read: 741 and 798 for
///   6144 and 8192 (fast.cu's README), 755 for 8192 (pull request 159 of NVIDIA's tilus), 519 for 8192 from another machine (issue 13 of
///   fast.cu). H200: 765, not confirmed; read: 685 for an H200 NVL at 8192, a board of less power (pull request 154 of tilus). The
///   others: assumed, 0.85, 0.90 and 0.85 of the peak.
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

/// Cycles of a scheduler's share of shared memory for an access of 16 bytes a lane: 512 bytes, 128 a cycle (32 banks of 4 bytes, CUDA
/// C++ Programming Guide; not confirmed), four schedulers.
pub const SHARED_CYCLES: f64 = 16.0;

/// Cycles of a scheduler's share of the unit for exponentials: 32 lanes, 16 a cycle of a multiprocessor (CUDA C++ Programming Guide,
/// "Arithmetic Instructions"; not confirmed).
pub const EXPONENTIAL_CYCLES: f64 = 8.0;

/// The share of the shorter of products and exponentials that lies under the other where an attention's groups of warps take turns:
/// of FlashAttention-3's published 497 TFLOP/s at head size 64 (model and its test in `sm90.rs`), where their sum gives 386.
pub const HIDDEN: f64 = 0.45;

/// Instructions of a warp outside the main loop of a product or a convolution for each accumulator of a thread, by the interpreter's
/// counts (docs/kernels.md) less the turns of the loop: their code has every activation and width, of which a launch takes one. GEGLU
/// and attention go straight through theirs, so their instructions are counted in the cubin.
pub const EPILOGUE: f64 = tile::EPILOGUE;

/// Cycles of a wave in which nothing multiplies: the first loads arrive, the last stores leave. Assumed.
pub const FILL: f64 = tile::FILL;

/// Seconds of a node of a graph, and the least that a kernel takes with it. Assumed, and the same for launches that may begin before the one
/// before has ended: they save a part of it, but of kernels like these none is published. Read: 10 % of a token's time on an RTX PRO 6000,
/// 4 to 5 % on a DGX Spark (pull request 22522 of llama.cpp), where kernels take a few microseconds each.
pub const NODE: f64 = 1e-6;
/// The least seconds of a kernel. Assumed.
pub const LEAST: f64 = 3e-6;

/// Seconds in which the host launches a captured graph and learns of its end, where nothing else is under way. Assumed.
pub const GRAPH: f64 = 10e-6;

/// Bytes a second between host and device: PCIe 4 with 16 lanes. Assumed; PCIe 5, which an H100 and an H200 have, does twice that.
pub const HOST: f64 = 25e9;

/// Bytes that move within the device for each value of the UNet's inputs where an image begins: copied in f32, then converted to f16.
pub const BEGIN: f64 = 14.0;

/// The share of a memory's bandwidth on the data sheet that kernels reach. Assumed.
pub const MEMORY: f64 = 0.9;

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
             to fill a wave, {EPILOGUE} instructions an accumulator behind the loop; src/bin/bench/assumptions.rs has the sources",
            self.clock / 1e9,
            self.product_cycles,
            self.l2_bytes,
            self.library / 1e12,
            NODE * 1e6,
            LEAST * 1e6,
            MEMORY * 100.0,
        )
    }
}
