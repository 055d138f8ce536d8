//! The configuration of a launch.

use crate::kernel::Kernel;

/// The order in which the warps of a block run, and the time at which `cp.async` takes effect.
///
/// The race checks are the same under every schedule; schedules differ in the values that a faulty kernel reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Schedule {
    /// Runs each warp to its next barrier, the first warp first; copies take effect at issue.
    #[default]
    InOrder,
    /// Runs each warp as long as it can, the last warp first; copies take effect at their wait.
    Greedy,
    /// Runs random warps for random times, from this seed; copies take effect at issue, at the wait or in between.
    Random(u64),
}

/// The arithmetic of what the PTX manual leaves open: the sums of `mma`, and `ex2.approx` and `rcp.approx` of f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Arithmetic {
    /// Rounds each step to nearest: closer to the exact result than a GPU.
    #[default]
    Exact,
    /// Aligns and truncates sums as the tensor cores of an A100 do, and moves approximations by up to the error that they
    /// may have, by a hash of the operand: 2 units in the last place for `ex2`, 1 for `rcp`.
    Hardware,
}

impl Arithmetic {
    /// The arithmetic that `BRAID_PTX_ARITHMETIC` names, for tests: `exact`, as without it, or `hardware`.
    ///
    /// # Panics
    /// If it names another.
    pub fn from_env() -> Self {
        match std::env::var("BRAID_PTX_ARITHMETIC").as_deref() {
            Err(_) | Ok("exact") => Self::Exact,
            Ok("hardware") => Self::Hardware,
            Ok(other) => panic!("BRAID_PTX_ARITHMETIC is `{other}`; set it to `exact` or `hardware`"),
        }
    }
}

/// The configuration of a launch.
#[derive(Clone, Debug)]
pub struct Launch<'a> {
    /// Number of blocks in x, y, z.
    pub grid: [u32; 3],
    /// Number of threads of a block in x, y, z.
    pub block: [u32; 3],
    /// Number of blocks of a cluster in x, y, z; `None`: the kernel's, or one.
    pub cluster: Option<[u32; 3]>,
    /// Bytes of dynamic shared memory.
    pub dynamic_shared: usize,
    /// The parameter buffer, as [`Kernel::params`] lays it out.
    pub params: &'a [u8],
    /// Whether it may begin before the launch before it has ended (the attribute of programmatic stream serialization): then global memory
    /// is out of a thread's reach until its `griddepcontrol.wait`, and a block that never waits is a fault.
    pub early: bool,
    /// Order of the warps and time of asynchronous copies.
    pub schedule: Schedule,
    /// Arithmetic of sums and approximations.
    pub arithmetic: Arithmetic,
    /// Indices of the blocks to run; `None`: the whole grid.
    pub blocks: Option<&'a [[u32; 3]]>,
    /// Whether accesses to shared and global memory are checked for races.
    pub check_races: bool,
    /// Number of warp instructions of one block above which [`crate::FaultKind::StepLimit`] is reported.
    pub step_limit: u64,
}

impl<'a> Launch<'a> {
    /// A launch of the whole grid in order, exact, with all checks and no dynamic shared memory.
    pub fn new(grid: [u32; 3], block: [u32; 3], params: &'a [u8]) -> Self {
        Self {
            grid,
            block,
            cluster: None,
            dynamic_shared: 0,
            params,
            early: false,
            schedule: Schedule::InOrder,
            arithmetic: Arithmetic::Exact,
            blocks: None,
            check_races: true,
            step_limit: 1 << 32,
        }
    }

    /// The blocks of a cluster.
    pub(crate) fn cluster_of(&self, kernel: &Kernel) -> [u32; 3] {
        self.cluster.or(kernel.cluster).unwrap_or([1; 3])
    }

    /// Checks that the launch fits the kernel.
    pub(crate) fn check(&self, kernel: &Kernel) -> Result<(), String> {
        if self.params.len() != kernel.param_bytes {
            return Err(format!("{} parameter bytes, the kernel takes {}", self.params.len(), kernel.param_bytes));
        }
        let threads = self.block.iter().map(|d| u64::from(*d)).product::<u64>();
        if threads == 0 || threads > 1024 {
            return Err(format!("blocks of {:?} threads; 1 to 1024 are possible", self.block));
        }
        if let Some(max) = kernel.max_threads {
            let most = max.iter().map(|d| u64::from(*d)).product::<u64>();
            if threads > most {
                return Err(format!("blocks of {threads} threads; .maxntid allows {most}"));
            }
        }
        if self.grid.contains(&0) || self.grid[1] > 65535 || self.grid[2] > 65535 || self.grid[0] > i32::MAX as u32 {
            return Err(format!("a grid of {:?} blocks; 1 to (2^31-1, 65535, 65535) are possible", self.grid));
        }
        let shared = kernel.dynamic_offset.saturating_add(self.dynamic_shared);
        if shared > MAX_SHARED {
            return Err(format!("{shared} bytes of shared memory; at most {MAX_SHARED} exist"));
        }
        let cluster = self.cluster_of(kernel);
        if kernel.cluster.is_some_and(|c| c != cluster) {
            return Err(format!("clusters of {cluster:?} blocks; the kernel needs {:?}", kernel.cluster));
        }
        if cluster.iter().product::<u32>() > 16 || cluster.iter().zip(self.grid).any(|(c, g)| *c == 0 || g % c != 0) {
            return Err(format!(
                "clusters of {cluster:?} blocks in a grid of {:?}; up to 16 that divide it are possible",
                self.grid
            ));
        }
        if cluster != [1; 3] && self.blocks.is_some() {
            return Err("single blocks of a launch with clusters".to_owned());
        }
        for b in self.blocks.unwrap_or(&[]) {
            if b.iter().zip(self.grid).any(|(b, g)| *b >= g) {
                return Err(format!("block {b:?} outside of the grid {:?}", self.grid));
            }
        }
        Ok(())
    }
}

/// Maximum shared memory of a block in bytes, as on sm_90 (227 KiB); sm_80 has 163.
const MAX_SHARED: usize = 227 << 10;
