//! The driver of the tests: an interpreter of the very PTX that NVRTC made of the kernels.

use super::interpreter::{module_on, narrow, wide};
use braid::device::cuda::driver::{
    Call, CallCounter, CallCounts, DeviceProperties, Driver, EVENTS, Function, Gemm, GemmPlan, GraphExec, Kernel,
    Launch, MatrixRef, MemoryInfo as Room, Swizzle, TensorMap, TensorMapDesc, TensorMapMode,
};
use braid::tensor::DType;
use braid::{Error, Result};
use braid_ptx::{GlobalMemory, Schedule};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::{ThreadId, current, sleep};
use std::time::Duration;

#[derive(Debug, Clone)]
enum Recorded {
    Launch(Launch, bool),
    Gemm(GemmPlan),
    Copy(u64, u64, usize),
    Memset(u64, usize, u8),
}

/// See the module.
pub struct PtxDriver {
    facts: DeviceProperties,
    room: u64,
    schedule: Schedule,
    captures: bool,
    /// The time between a capture's beginning and its first command.
    pause: Duration,
    memory: GlobalMemory,
    sizes: Mutex<BTreeMap<u64, usize>>,
    functions: Mutex<Vec<(&'static str, String)>>,
    launched: Mutex<BTreeMap<String, usize>>,
    gemms: Mutex<Vec<Gemm>>,
    recording: Mutex<Option<(ThreadId, Vec<Recorded>)>>,
    graphs: Mutex<Vec<Vec<Recorded>>>,
    events: Mutex<[u64; EVENTS]>,
    counter: CallCounter,
    up: AtomicU64,
    down: AtomicU64,
}

fn fault(call: &str, what: impl Display) -> Error {
    Error::Fault { device: "ptx".into(), call: call.into(), what: what.to_string(), lost: false }
}

/// A tensor map as the interpreter has it.
pub fn tensor_map(desc: &TensorMapDesc) -> braid_ptx::TensorMap {
    let TensorMapDesc { address, dims, strides, .. } = desc;
    let map = match &desc.mode {
        TensorMapMode::Tiled(tile) => braid_ptx::TensorMap::tiled(*address, dims, strides, tile),
        TensorMapMode::Im2col { lower, upper, channels, pixels } => {
            let corners = |corners: &[i32]| std::array::from_fn(|i| corners.get(i).map_or(0, |c| *c as i16));
            let (channels, pixels) = (*channels as u16, *pixels as u16);
            let rows = braid_ptx::Im2col { lower: corners(lower), upper: corners(upper), channels, pixels };
            braid_ptx::TensorMap::im2col(*address, dims, strides, rows)
        }
    };
    let swizzle = match desc.swizzle {
        Swizzle::None => braid_ptx::Swizzle::None,
        Swizzle::Bytes32 => braid_ptx::Swizzle::Bytes32,
        Swizzle::Bytes64 => braid_ptx::Swizzle::Bytes64,
        Swizzle::Bytes128 => braid_ptx::Swizzle::Bytes128,
    };
    let mut map = map.with_elements(desc.dtype.size() as u8, true);
    map.steps = desc.element_strides.iter().map(|step| *step as u8).collect();
    map.swizzle = swizzle;
    map
}

/// The number of launches so far with the same kernel, grid and parameters but for addresses. Which threads access what depends on
/// little else, and looking for races takes as long as all the rest: it is done twice for each.
fn seen_before(launch: &Launch) -> usize {
    type Kind = (String, [u32; 3], u32, Vec<u64>);
    static SEEN: Mutex<BTreeMap<Kind, usize>> = Mutex::new(BTreeMap::new());
    // The interpreter's addresses begin at 7 << 44.
    let parameters = launch.params.iter().map(|word| if word >> 44 == 7 { 0 } else { *word });
    let kind = (launch.entry.clone(), launch.grid, launch.shared, parameters.collect());
    let mut seen = SEEN.lock().unwrap();
    let times = seen.entry(kind).or_default();
    *times += 1;
    *times - 1
}

impl PtxDriver {
    pub fn new() -> Self {
        let facts =
            DeviceProperties { name: "PTX interpreter".into(), capability: (8, 0), multiprocessors: 4, gemm: true };
        Self {
            facts,
            room: 8 << 30,
            schedule: Schedule::InOrder,
            captures: true,
            pause: Duration::ZERO,
            memory: GlobalMemory::new(),
            sizes: Mutex::default(),
            functions: Mutex::default(),
            launched: Mutex::default(),
            gemms: Mutex::default(),
            recording: Mutex::default(),
            graphs: Mutex::default(),
            events: Mutex::default(),
            counter: CallCounter::default(),
            up: AtomicU64::new(0),
            down: AtomicU64::new(0),
        }
    }

    /// With another schedule of warps and asynchronous copies.
    pub fn schedule(self, schedule: Schedule) -> Self {
        Self { schedule, ..self }
    }

    /// As a device of that compute capability with so many multiprocessors.
    #[allow(dead_code)] // For tests/cuda.
    pub fn device(self, capability: (u32, u32), multiprocessors: usize) -> Self {
        Self { facts: DeviceProperties { capability, multiprocessors, ..self.facts }, ..self }
    }

    /// Without capture.
    pub fn direct(self) -> Self {
        Self { captures: false, ..self }
    }

    /// With a pause in each capture, in which another thread would be seen.
    #[allow(dead_code)] // For tests/cuda.
    pub fn pausing(self, pause: Duration) -> Self {
        Self { pause, ..self }
    }

    /// With so much memory.
    pub fn room(self, room: u64) -> Self {
        Self { room, ..self }
    }

    /// The launches so far, by entry point.
    #[allow(dead_code)] // For tests/cuda.
    pub fn launched(&self) -> BTreeMap<String, usize> {
        self.launched.lock().unwrap().clone()
    }

    /// Bytes that are allocated.
    pub fn held(&self) -> usize {
        self.sizes.lock().unwrap().values().sum()
    }

    /// Bytes that went up and that came down.
    pub fn moved(&self) -> [u64; 2] {
        [self.up.load(Relaxed), self.down.load(Relaxed)]
    }

    /// Takes a step down instead of doing it, during a capture.
    fn record(&self, step: impl FnOnce() -> Recorded) -> bool {
        match self.recording.lock().unwrap().as_mut() {
            Some((thread, steps)) => {
                assert_eq!(*thread, current().id(), "another thread's work in a capture");
                steps.push(step());
                true
            }
            None => false,
        }
    }

    fn do_launch(&self, launch: &Launch, early: bool) -> Result<()> {
        let (module_name, entry) = self.functions.lock().unwrap()[launch.function.handle as usize].clone();
        assert_eq!(entry, launch.entry);
        let mut run = braid_ptx::Launch::new(launch.grid, [launch.block, 1, 1], launch.bytes());
        run.dynamic_shared = launch.shared as usize;
        run.early = early;
        run.schedule = self.schedule;
        run.arithmetic = braid_ptx::Arithmetic::from_env();
        run.check_races = seen_before(launch) < 2;
        let module = module_on(module_name, self.facts.capability);
        braid_ptx::run(&module, &entry, &self.memory, &run).map_err(|f| fault(&entry, f))?;
        *self.launched.lock().unwrap().entry(entry).or_default() += 1;
        Ok(())
    }

    /// Values from a matrix's first element to its last, of one product.
    fn matrix(&self, m: &MatrixRef, batch: usize, [rows, columns]: [usize; 2], dtype: DType) -> Result<Vec<f32>> {
        let count = (columns - 1) * m.leading + rows;
        let mut bytes = vec![0; count * dtype.size()];
        // Column by column: what lies between may be unwritten.
        for column in 0..columns {
            let at = column * m.leading * dtype.size();
            let to = &mut bytes[at..at + rows * dtype.size()];
            let from = m.data + (batch * m.stride * dtype.size() + at) as u64;
            self.memory.read(from, to).map_err(|f| fault("gemm", f))?;
        }
        Ok(wide(&bytes, dtype))
    }

    fn do_gemm(&self, gemm: &Gemm) -> Result<()> {
        let out = if gemm.out_f32 { DType::F32 } else { gemm.dtype };
        let shape = |rows, columns, transposed| if transposed { [columns, rows] } else { [rows, columns] };
        for batch in 0..gemm.batch {
            let a = self.matrix(&gemm.a, batch, shape(gemm.m, gemm.k, gemm.transpose_a), gemm.dtype)?;
            let b = self.matrix(&gemm.b, batch, shape(gemm.k, gemm.n, gemm.transpose_b), gemm.dtype)?;
            let c = match gemm.epilogue.residual() {
                Some(c) => Some((c, self.matrix(&c, batch, [gemm.m, gemm.n], out)?)),
                None => None,
            };
            let bias = match gemm.epilogue.bias() {
                Some(data) => {
                    // The library takes it in the type of D.
                    let column = MatrixRef { data, leading: gemm.m, stride: 0 };
                    self.matrix(&column, 0, [gemm.m, 1], out)?
                }
                None => vec![0.0; gemm.m],
            };
            // A's columns one after the other, so that the sums of a column of D are next to each other.
            let element = |l, row| if gemm.transpose_a { row * gemm.a.leading + l } else { l * gemm.a.leading + row };
            let left: Vec<f32> = (0..gemm.k * gemm.m).map(|i| a[element(i / gemm.m, i % gemm.m)]).collect();
            for column in 0..gemm.n {
                let mut sums = vec![0.0; gemm.m];
                for (l, line) in left.chunks_exact(gemm.m).enumerate() {
                    let (l, column) = if gemm.transpose_b { (column, l) } else { (l, column) };
                    let y = b[column * gemm.b.leading + l];
                    sums.iter_mut().zip(line).for_each(|(sum, x)| *sum += x * y);
                }
                let mut values: Vec<f32> = bias.iter().zip(sums).map(|(bias, sum)| bias + sum).collect();
                if let Some((m, c)) = &c {
                    let c = &c[column * m.leading..][..gemm.m];
                    values.iter_mut().zip(c).for_each(|(value, c)| *value += c);
                }
                let at = (batch * gemm.d.stride + column * gemm.d.leading) * out.size();
                self.memory.write(gemm.d.data + at as u64, &narrow(&values, out)).map_err(|f| fault("gemm", f))?;
            }
        }
        Ok(())
    }

    fn do_copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        let mut buffer = vec![0; bytes];
        self.memory.read(from, &mut buffer).map_err(|f| fault("copy", f))?;
        self.memory.write(to, &buffer).map_err(|f| fault("copy", f))
    }
}

impl Driver for PtxDriver {
    fn properties(&self) -> &DeviceProperties {
        &self.facts
    }

    fn memory_info(&self) -> Result<Room> {
        Ok(Room { free: self.room.saturating_sub(self.held() as u64), total: self.room })
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        self.counter.count(Call::Allocation);
        let have = self.memory_info()?.free;
        if bytes as u64 > have {
            return Err(Error::Memory { stage: "test", need: bytes as u64, have, hint: "".into() });
        }
        // Unwritten: the interpreter reports who reads it before writing it.
        let address = self.memory.alloc(bytes as u64);
        self.sizes.lock().unwrap().insert(address, bytes);
        Ok(address)
    }

    fn free(&self, address: u64) {
        assert!(self.memory.free(address), "{address:#x} was not allocated");
        self.sizes.lock().unwrap().remove(&address);
    }

    fn upload(&self, to: u64, bytes: &[u8]) -> Result<()> {
        assert!(self.recording.lock().unwrap().is_none(), "a wait in a capture");
        self.counter.count(Call::Copy);
        self.up.fetch_add(bytes.len() as u64, Relaxed);
        self.memory.write(to, bytes).map_err(|f| fault("upload", f))
    }

    fn download(&self, from: u64, bytes: &mut [u8]) -> Result<()> {
        assert!(self.recording.lock().unwrap().is_none(), "a wait in a capture");
        self.counter.count(Call::Copy);
        self.counter.count(Call::Synchronize);
        self.down.fetch_add(bytes.len() as u64, Relaxed);
        self.memory.read(from, bytes).map_err(|f| fault("download", f))
    }

    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        self.counter.count(Call::Copy);
        if self.record(|| Recorded::Copy(from, to, bytes)) { Ok(()) } else { self.do_copy(from, to, bytes) }
    }

    fn memset(&self, to: u64, bytes: usize, value: u8) -> Result<()> {
        if self.record(|| Recorded::Memset(to, bytes, value)) {
            return Ok(());
        }
        self.memory.fill(to, bytes as u64, value).map_err(|f| fault("fill", f))
    }

    fn function(&self, kernel: &Kernel, entry: &str) -> Result<Function> {
        let mut functions = self.functions.lock().unwrap();
        functions.push((kernel.module, entry.to_owned()));
        Ok(Function { handle: functions.len() as u64 - 1, early: self.facts.capability >= (9, 0) })
    }

    fn encode_tensor_map(&self, map: &TensorMapDesc) -> Result<TensorMap> {
        Ok(TensorMap(bytemuck::cast(tensor_map(map).to_bytes())))
    }

    fn launch(&self, launch: &Launch, early: bool) -> Result<()> {
        assert!(launch.function.early || !early, "{} may not begin early", launch.entry);
        self.counter.count(Call::Launch);
        if self.record(|| Recorded::Launch(launch.clone(), early)) { Ok(()) } else { self.do_launch(launch, early) }
    }

    /// Takes products whose columns begin at multiples of 16 bytes, as the library's algorithms are told.
    fn prepare_gemm(&self, gemm: &Gemm) -> Result<GemmPlan> {
        let out = if gemm.out_f32 { 4 } else { gemm.dtype.size() };
        let results = [gemm.d, gemm.epilogue.residual().unwrap_or(gemm.d)].map(|matrix| (matrix, out));
        for (m, size) in [gemm.a, gemm.b].map(|matrix| (matrix, gemm.dtype.size())).into_iter().chain(results) {
            let bytes = [m.data, (m.leading * size) as u64, (m.stride * size) as u64];
            assert!(bytes.iter().all(|bytes| bytes.is_multiple_of(16)), "{gemm:?}");
        }
        let mut gemms = self.gemms.lock().unwrap();
        gemms.push(*gemm);
        Ok(GemmPlan(gemms.len() as u64 - 1))
    }

    fn gemm(&self, plan: GemmPlan) -> Result<()> {
        self.counter.count(Call::Gemm);
        if self.record(|| Recorded::Gemm(plan)) {
            return Ok(());
        }
        let gemm = self.gemms.lock().unwrap()[plan.0 as usize];
        self.do_gemm(&gemm)
    }

    fn release_gemm(&self, _: GemmPlan) {}

    fn begin_capture(&self) -> Result<bool> {
        if self.captures {
            *self.recording.lock().unwrap() = Some((current().id(), Vec::new()));
            sleep(self.pause);
        }
        Ok(self.captures)
    }

    fn end_capture(&self) -> Result<GraphExec> {
        let begun = self.recording.lock().unwrap().take();
        let (_, steps) = begun.ok_or_else(|| fault("end_capture", "nothing was begun"))?;
        let mut graphs = self.graphs.lock().unwrap();
        graphs.push(steps);
        self.counter.count(Call::Capture);
        Ok(GraphExec(graphs.len() as u64 - 1))
    }

    fn launch_graph(&self, graph: GraphExec) -> Result<()> {
        self.counter.count(Call::GraphLaunch);
        let steps = self.graphs.lock().unwrap()[graph.0 as usize].clone();
        for step in &steps {
            match step {
                Recorded::Launch(launch, early) => self.do_launch(launch, *early)?,
                Recorded::Gemm(plan) => {
                    let gemm = self.gemms.lock().unwrap()[plan.0 as usize];
                    self.do_gemm(&gemm)?;
                }
                Recorded::Copy(from, to, bytes) => self.do_copy(*from, *to, *bytes)?,
                Recorded::Memset(to, bytes, value) => {
                    self.memory.fill(*to, *bytes as u64, *value).map_err(|f| fault("fill", f))?;
                }
            }
        }
        Ok(())
    }

    fn destroy_graph(&self, graph: GraphExec) {
        self.graphs.lock().unwrap()[graph.0 as usize].clear();
    }

    fn record_event(&self, which: usize) -> Result<()> {
        assert!(which < EVENTS && self.recording.lock().unwrap().is_none());
        self.events.lock().unwrap()[which] += 1;
        Ok(())
    }

    fn synchronize_event(&self, which: usize) -> Result<()> {
        self.counter.count(Call::EventSynchronize);
        assert!(self.events.lock().unwrap()[which] > 0, "event {which} was never recorded");
        Ok(())
    }

    fn synchronize(&self) -> Result<()> {
        assert!(self.recording.lock().unwrap().is_none(), "a wait in a capture");
        self.counter.count(Call::Synchronize);
        Ok(())
    }

    fn calls(&self) -> CallCounts {
        self.counter.calls()
    }
}
