//! Launches: the driver's rules, and the run.

use super::faults::{self, Fault, KERNEL};
use super::gpu::{Function, Gpu, violation};
use super::settings::{capability, driver_version, seed};
use super::status::*;
use super::stream::code_of;
use braid_ptx::Schedule;
use std::ffi::{c_int, c_void};

/// Bytes of dynamic shared memory that need no permission.
pub const SHARED: u32 = 48 << 10;

/// `CUlaunchConfig`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct LaunchConfig {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub shared: u32,
    pub stream: *mut c_void,
    pub attributes: *const LaunchAttribute,
    pub count: u32,
}

/// `CUlaunchAttribute`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct LaunchAttribute {
    pub id: u32,
    pub padding: u32,
    pub value: [u64; 8],
}

impl LaunchAttribute {
    /// Whether the launch may begin before the one before it has ended: that of programmatic stream serialization, the only one known.
    pub fn early(&self) -> bool {
        assert_eq!((self.id, self.value[0] as u32), (6, 1), "an attribute of a launch");
        true
    }
}

const _: () = assert!(size_of::<LaunchConfig>() == 56 && size_of::<LaunchAttribute>() == 72);

/// A launch, as the stream keeps it.
#[derive(Clone)]
pub struct Launch {
    pub id: u64,
    pub function: Function,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub shared: u32,
    pub params: Vec<u8>,
    /// Whether it may begin before the launch before it has ended.
    pub early: bool,
}

/// The most shared memory that a block may be permitted, of this compute capability.
pub fn most_shared() -> u32 {
    match capability() {
        80 | 87 => 163 << 10,
        90 | 100 | 103 => 227 << 10,
        _ => 99 << 10,
    }
}

impl Launch {
    /// The code for a launch that the driver refuses, in a capture or not.
    pub fn check(&self, captured: bool) -> Result<(), c_int> {
        let refuse = |code, what: String| Err(violation(code, &format!("{}: {what}", self.function.entry)));
        let [x, y, z] = self.grid;
        if self.grid.contains(&0) || x > i32::MAX as u32 || y > 65_535 || z > 65_535 {
            return refuse(INVALID_VALUE, format!("a grid of {:?} blocks", self.grid));
        }
        let threads: u32 = self.block.iter().product();
        if threads == 0 || threads > 1024 || self.block[2] > 64 {
            return refuse(INVALID_VALUE, format!("blocks of {:?} threads", self.block));
        }
        if self.shared > self.function.most_shared {
            let most = self.function.most_shared;
            return refuse(INVALID_VALUE, format!("{} bytes of shared memory, {most} are permitted", self.shared));
        }
        let since = if captured { 12_030 } else { 11_080 };
        if self.early && (capability() < 90 || driver_version() < since) {
            return refuse(INVALID_VALUE, "a launch that may begin early, for this device or this driver".into());
        }
        let loaded = &self.function.loaded;
        if let Some(&registers) = loaded.registers.get(&self.function.entry) {
            // A warp's registers are given in portions of 256.
            let warps = threads.div_ceil(32);
            if warps * (registers * 32).next_multiple_of(256) > 65_536 {
                return refuse(LAUNCH_OUT_OF_RESOURCES, format!("{threads} threads of {registers} registers"));
            }
        }
        Ok(())
    }

    /// Runs the kernel; where it fails, with the code that the device is lost by.
    pub fn run(&self, gpu: &Gpu) -> Result<(), (c_int, String)> {
        let entry = &self.function.entry;
        if let Some(Fault { code, .. }) = faults::of_call(KERNEL) {
            return Err((code, format!("{entry} was to lose the device")));
        }
        let Some(module) = self.function.loaded.module() else { return Ok(()) };
        if !gpu.modules.contains_key(&self.function.module) {
            return Err((ILLEGAL_ADDRESS, format!("{entry} runs after its module was unloaded")));
        }
        let mut run = braid_ptx::Launch::new(self.grid, self.block, &self.params);
        run.dynamic_shared = self.shared as usize;
        run.early = self.early;
        run.schedule = Schedule::Random(seed() ^ self.id);
        run.arithmetic = braid_ptx::Arithmetic::from_env();
        // Races within a kernel are what the kernels' own tests look for, at twice the time.
        run.check_races = false;
        let ran = braid_ptx::run(&module, entry, &gpu.memory, &run);
        ran.map(|_| ()).map_err(|fault| (code_of(&fault.kind), format!("{entry}: {fault}")))
    }
}
