//! The device: its memory, its handles, and what becomes of it.

use super::faults::{self, Fault};
use super::image::Loaded;
use super::settings::{log, memory, seed};
use super::status::*;
use super::stream::{Event, Stream, Work};
use braid_ptx::GlobalMemory;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::c_int;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

/// A function of a module.
#[derive(Clone)]
pub struct Function {
    pub module: u64,
    pub loaded: Arc<Loaded>,
    pub entry: String,
    /// Bytes of dynamic shared memory that it may take.
    pub most_shared: u32,
    /// Whether its code is on the device.
    pub ready: bool,
}

/// See the module.
pub struct Gpu {
    pub memory: GlobalMemory,
    /// Addresses and lengths of what is allocated.
    pub sizes: BTreeMap<u64, usize>,
    /// Pinned memory of the host.
    pub pinned: BTreeMap<usize, Vec<u8>>,
    /// The primary context, while it is retained, and how often that was.
    pub context: Option<(u64, usize)>,
    pub streams: BTreeMap<u64, Stream>,
    pub events: BTreeMap<u64, Event>,
    pub modules: BTreeMap<u64, Arc<Loaded>>,
    pub functions: BTreeMap<u64, Function>,
    pub graphs: BTreeMap<u64, Vec<Work>>,
    pub executable_graphs: BTreeMap<u64, Vec<Work>>,
    /// Moves on with the products that are computed.
    pub clock: u64,
    next: u64,
    random: u64,
    /// The code of the fault that the device is lost by.
    lost: Option<c_int>,
}

thread_local! {
    static CURRENT: Cell<u64> = const { Cell::new(0) };
}

static GPU: LazyLock<Mutex<Gpu>> = LazyLock::new(|| Mutex::new(Gpu::new()));

impl Gpu {
    fn new() -> Self {
        Self {
            memory: GlobalMemory::new(),
            sizes: BTreeMap::new(),
            pinned: BTreeMap::new(),
            context: None,
            streams: BTreeMap::new(),
            events: BTreeMap::new(),
            modules: BTreeMap::new(),
            functions: BTreeMap::new(),
            graphs: BTreeMap::new(),
            executable_graphs: BTreeMap::new(),
            clock: 0,
            next: 0x1000,
            random: seed().wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            lost: None,
        }
    }

    /// The device, whoever calls.
    pub fn lock() -> MutexGuard<'static, Self> {
        GPU.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The device for a call that needs a context to be current in its thread, and a device that is not lost.
    pub fn enter(call: &str) -> Result<MutexGuard<'static, Self>, c_int> {
        let gpu = Self::lock();
        gpu.lost.map_or(Ok(()), Err)?;
        if gpu.context.is_none_or(|(id, _)| id != CURRENT.get()) {
            return Err(violation(INVALID_CONTEXT, &format!("{call} without a current context")));
        }
        Ok(gpu)
    }

    /// As [`Gpu::enter`], for a call that a capture in this thread forbids: it breaks the capture.
    pub fn enter_outside_capture(call: &str) -> Result<MutexGuard<'static, Self>, c_int> {
        let mut gpu = Self::enter(call)?;
        let this = std::thread::current().id();
        for stream in gpu.streams.values_mut() {
            if let Some(capture) = stream.capture.as_mut().filter(|capture| capture.thread == this) {
                capture.broken = true;
                return Err(violation(CAPTURE_UNSUPPORTED, &format!("{call} during a capture")));
            }
        }
        Ok(gpu)
    }

    /// Makes a context current.
    pub fn set_current(&self, context: u64) -> Result<(), c_int> {
        if self.context.is_none_or(|(id, _)| id != context) {
            return Err(violation(INVALID_CONTEXT, "a context that is not retained is made current"));
        }
        CURRENT.set(context);
        Ok(())
    }

    /// Bytes of the device's memory that are left.
    pub fn free_memory(&self) -> usize {
        let held: usize = self.sizes.values().sum();
        (memory() as usize).saturating_sub(held)
    }

    /// A number for a new handle.
    pub fn handle(&mut self) -> u64 {
        self.next += 16;
        self.next
    }

    /// The next random number below `end`.
    pub fn random(&mut self, end: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) % end
    }

    /// Loses the device: every call from now on fails with that code.
    pub fn lose(&mut self, code: c_int, why: &str) {
        if self.lost.is_none() {
            self.lost = Some(code);
            log(&format!("fault: {why}"));
            eprintln!("mock libcuda: fault: {why}");
        }
    }

    /// Handles and pieces of memory that are alive, besides contexts.
    pub fn handles(&self) -> usize {
        let graphs = self.graphs.len() + self.executable_graphs.len();
        let memory = self.sizes.len() + self.pinned.len();
        self.streams.len() + self.events.len() + self.modules.len() + graphs + memory
    }

    /// The code that a lost device gives.
    pub fn lost(&self) -> Option<c_int> {
        self.lost
    }
}

/// Counts a call, and gives the code that a test has asked for in place of what the call does.
pub fn fault_of(call: &str) -> Option<c_int> {
    let Fault { code, loses } = faults::of_call(call)?;
    if loses {
        Gpu::lock().lose(code, &format!("{call} was to lose the device"));
    }
    Some(code)
}

/// Notes that a rule is broken, and gives the code that the driver returns for it.
pub fn violation(code: c_int, what: &str) -> c_int {
    log(&format!("violation: {what}"));
    eprintln!("mock libcuda: violation: {what}");
    code
}
