//! The present kernels, modelled from their machine code: how long a launch takes by the assumptions in [`crate::assumptions`].
//!
//! An iteration of a main loop takes the longest of what the resident warps of a scheduler ask of it together: issue, tensor core, shared
//! memory, L2; and of what one warp's stall counts come to. Where a loop has exponentials, its two products and what lies between
//! depend on each other, and nothing arranges for one warp to multiply while another takes exponentials, so both add up.
//! Beside the iterations stand the instructions before and behind the loop and the time in which a wave fills.

use crate::assumptions::{self, Assumptions, EPILOGUE, EXPONENTIAL_CYCLES, FILL, LEAST, MEMORY, NODE, SHARED_CYCLES};
use crate::gpus::Gpu;
use crate::sm90::{self, count, read, tile};
use braid::device::cuda::compile::cubin::{self, Counts, Loop};
use braid::device::cuda::compile::images::{Code, modules};
use braid::device::cuda::driver::Launch;
use braid::device::cuda::ops::attention::AttentionParams;
use braid::device::cuda::ops::branches::DecoupledParams;
use braid::device::cuda::ops::convolution::ConvolutionParams;
use braid::device::cuda::ops::gemm::GemmParams;
use braid::device::cuda::ops::group_norm::GroupNormParams;
use braid::device::cuda::ops::tile_sm90;
use serde::Serialize;
use std::collections::HashMap;
use std::sync::{LazyLock, Mutex};

/// The values of K that an iteration of a product's loop takes, and the keys of attention's.
const STEP: usize = 32;
const KEYS: usize = 64;

/// An iteration of a loop, in cycles of one scheduler for one block.
#[derive(Debug, Clone, Copy, Default)]
struct Iteration {
    /// One warp's own stalls: the least that an iteration takes.
    own: f64,
    issue: f64,
    tensor: f64,
    shared: f64,
    exponentials: f64,
    /// Bytes that the block takes from L2.
    bytes: f64,
}

impl Iteration {
    /// One of a block of so many warps to a scheduler, each of which executes `body`.
    fn new(body: Counts, warps: usize, bytes: usize, assumed: &Assumptions) -> Self {
        let all = |count: usize| (warps * count) as f64;
        Self {
            own: body.stalls as f64,
            issue: all(body.executed),
            tensor: all(body.products) * assumed.product_cycles,
            shared: all(body.shared) * SHARED_CYCLES,
            exponentials: all(body.exponentials) * EXPONENTIAL_CYCLES,
            bytes: bytes as f64,
        }
    }

    /// The cycles in which `resident` blocks take an iteration each, and what bounds them.
    fn cycles(&self, resident: f64, assumed: &Assumptions) -> (f64, &'static str) {
        let all = [
            (self.own, "stalls"),
            (resident * self.issue, "issue"),
            (
                resident * (self.tensor + self.exponentials),
                if self.exponentials > 0.0 { "tensor + exp" } else { "tensor" },
            ),
            (resident * self.shared, "shared"),
            (resident * self.bytes / assumed.l2_bytes, "L2"),
        ];
        all.into_iter().max_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or_default()
    }
}

/// A kernel on a GPU.
#[derive(Debug, Clone, Copy)]
struct Kernel {
    iteration: Iteration,
    /// Instructions outside the loop, of a block's warps on one scheduler.
    outside: f64,
    /// Blocks that a multiprocessor holds.
    resident: usize,
}

impl Kernel {
    /// The seconds of so many blocks of so many iterations.
    fn seconds(&self, (blocks, iterations): (usize, usize), multiprocessors: usize, assumed: &Assumptions) -> f64 {
        let wave = |resident: usize| {
            let resident = resident as f64;
            iterations as f64 * self.iteration.cycles(resident, assumed).0 + resident * self.outside + FILL
        };
        let room = multiprocessors * self.resident.max(1);
        let rest = blocks % room;
        let last = if rest > 0 { wave(rest.div_ceil(multiprocessors)) } else { 0.0 };
        ((blocks / room) as f64 * wave(self.resident) + last) / assumed.clock
    }

    fn of(launch: &Launch, assumed: &Assumptions) -> Option<Self> {
        let found = machine_code(launch.kernel.module, &launch.entry, assumed.target)?;
        let warps = launch.kernel.threads.div_ceil(128) as usize;
        let straight = (warps * found.code.outside.executed) as f64;
        let (bytes, outside) = match tile(launch.kernel.name) {
            Some((m, n)) if launch.kernel.name.contains("geglu") => ((m + n) * 64, straight),
            Some((m, n)) => ((m + n) * 64, (m * n / 128) as f64 * EPILOGUE),
            None => (2 * KEYS * 2 * width(launch.kernel.name)?, straight),
        };
        let shared = launch.kernel.shared + found.shared;
        let resident = cubin::resident_blocks(assumed.target, launch.kernel.threads, found.registers, shared)?;
        let iteration = Iteration::new(found.code.body, warps, bytes, assumed);
        Some(Self { iteration, outside, resident: resident as usize })
    }
}

/// The loop of a kernel, with the resources of its blocks.
#[derive(Clone, Copy)]
struct MachineCode {
    code: Loop,
    registers: u32,
    shared: u32,
}

type Read = Mutex<HashMap<(String, &'static str), Option<MachineCode>>>;

fn machine_code(module: &str, entry: &str, target: &'static str) -> Option<MachineCode> {
    static READ: LazyLock<Read> = LazyLock::new(Read::default);
    let mut read = READ.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    *read.entry((entry.to_owned(), target)).or_insert_with(|| {
        let Code::Compiled(binaries) = modules().iter().find(|m| m.name == module)?.code else { return None };
        let binary = binaries.iter().find(|binary| binary.target == target)?;
        let elf = binary.unpack().ok()?;
        let code = cubin::main_loop(cubin::code(&elf, entry)?, target)?;
        let logged = |word| cubin::logged(binary.log, entry, word);
        Some(MachineCode { code, registers: logged(" registers"), shared: logged(" bytes smem") })
    })
}

/// The width of the heads that an attention kernel is for.
fn width(kernel: &str) -> Option<usize> {
    kernel.rsplit_once('_')?.1.parse().ok()
}

/// The iterations that a launch's main loop takes; `None` for kernels without one.
fn iterations(launch: &Launch) -> Option<usize> {
    match launch.kernel.module {
        "gemm" => Some(count(read::<GemmParams>(launch)?.k).div_ceil(STEP)),
        "convolution" => {
            let p: ConvolutionParams = read(launch)?;
            Some((count(p.kernel_y) * count(p.kernel_x) * count(p.channels)).div_ceil(STEP))
        }
        "attention" => Some(count(read::<AttentionParams>(launch)?.keys).div_ceil(KEYS)),
        "decoupled" => {
            let p: DecoupledParams = read(launch)?;
            let branches = p.branch.iter().take(count(p.branches));
            Some(branches.map(|branch| count(branch.capacity).div_ceil(KEYS)).sum())
        }
        _ => None,
    }
}

/// An operation as modelled.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Modelled {
    /// Seconds.
    pub seconds: f64,
    /// The longest part: `tensor`, `L2`, `memory`, `library` and so on.
    pub bound: &'static str,
    /// Nodes of the graph.
    pub nodes: usize,
}

/// The model of an operation of which `launches` are ours and `library` ([m, n, k], products) is the library's; `bytes` must move.
/// `None` where the build has no machine code of a kernel.
pub fn operation(launches: &[Launch], library: &[[usize; 3]], bytes: f64, gpu: &Gpu) -> Option<Modelled> {
    let assumed = assumptions::of(gpu.name)?;
    let mut computing = 0.0;
    let mut longest = (0.0, "memory");
    for launch in launches {
        if let Some(work) = sm90::Work::of(launch) {
            let (seconds, bound) = work.seconds(gpu, &assumed);
            computing += seconds;
            longest = if seconds > longest.0 { (seconds, bound) } else { longest };
            continue;
        }
        let Some(iterations) = iterations(launch) else { continue };
        if launch.entry.ends_with("_f32") {
            return None;
        }
        let kernel = Kernel::of(launch, &assumed)?;
        let blocks = launch.grid.iter().map(|n| *n as usize).product();
        let seconds = kernel.seconds((blocks, iterations), gpu.multiprocessors, &assumed);
        let bound = kernel.iteration.cycles(kernel.resident as f64, &assumed).1;
        computing += seconds;
        longest = if seconds > longest.0 { (seconds, bound) } else { longest };
    }
    for shape in library {
        let seconds = library_seconds(*shape, gpu, &assumed);
        computing += seconds;
        longest = if seconds > longest.0 { (seconds, "library") } else { longest };
    }
    let nodes = launches.len() + library.len();
    let moving = bytes / (gpu.bandwidth * MEMORY);
    let again: f64 = launches.iter().map(|launch| read_again(launch, gpu, &assumed)).sum();
    let work = computing.max(moving) + again;
    let (start, least) = (nodes as f64 * NODE, nodes as f64 * LEAST);
    let bound = match () {
        () if work + start < least => "launch",
        () if moving > computing => "memory",
        () => longest.1,
    };
    Some(Modelled { seconds: (work + start).max(least), bound, nodes })
}

/// The seconds in which a norm's moments read what its result is made of, which is read again for that: from L2 where half of it holds
/// all, else from memory.
fn read_again(launch: &Launch, gpu: &Gpu, assumed: &Assumptions) -> f64 {
    let params = read::<GroupNormParams>(launch).filter(|_| launch.kernel.name == "group_norm_moments");
    let Some(p) = params else { return 0.0 };
    let size = if launch.entry.ends_with("_f32") { 4 } else { 2 };
    let bytes = launch.grid[2] as usize * count(p.pixels) * count(p.channels) * size;
    let l2 = assumed.l2_bytes * gpu.multiprocessors as f64 * assumed.clock;
    bytes as f64 / if bytes <= gpu.l2 / 2 { l2 } else { gpu.bandwidth * MEMORY }
}

/// The library's product: whole waves of the tile that takes least, at a rate of which 4096x4096x4096 gives what is assumed.
fn library_seconds([m, n, k]: [usize; 3], gpu: &Gpu, assumed: &Assumptions) -> f64 {
    let work = |size| tile_sm90::library_work(size, gpu.multiprocessors);
    let known = 2.0 * 4096.0_f64.powi(3) / assumed.library;
    known * work((m, n, k)) / work((4096, 4096, 4096))
}

#[cfg(test)]
#[path = "model_tests.rs"]
mod tests;
