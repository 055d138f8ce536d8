//! Helpers shared by the tests.

use braid_ptx::{Fault, FaultKind, GlobalMemory, Launch, Module, Schedule, run};

/// A module from `tests/data`.
pub fn module(name: &str) -> Module {
    let path = format!("{}/tests/data/{name}.ptx", env!("CARGO_MANIFEST_DIR"));
    Module::parse(&std::fs::read_to_string(&path).unwrap()).unwrap()
}

/// The line of a source in `tests/data` that holds this text.
pub fn line_of(file: &str, text: &str) -> u32 {
    let path = format!("{}/tests/data/{file}", env!("CARGO_MANIFEST_DIR"));
    let source = std::fs::read_to_string(&path).unwrap();
    // The mark ends its line, so that one name may begin another.
    source.lines().position(|l| l.ends_with(text)).unwrap_or_else(|| panic!("no `{text}` in {file}")) as u32 + 1
}

/// Reproducible random numbers in [-1, 1).
pub fn noise(seed: u32) -> impl FnMut() -> f32 {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    }
}

/// The largest error of a product's elements, by rows, relative to its largest one; NaN if one is.
pub fn product_error(
    [m, n, k]: [usize; 3],
    a: impl Fn(usize, usize) -> f64,
    b: impl Fn(usize, usize) -> f64,
    got: impl Fn(usize) -> f64,
) -> f64 {
    let (mut worst, mut largest) = (0f64, 0f64);
    for i in 0..m * n {
        let (row, col) = (i / n, i % n);
        let exact: f64 = (0..k).map(|x| a(row, x) * b(x, col)).sum();
        let error = (got(i) - exact).abs();
        worst = if error <= worst { worst } else { error };
        largest = largest.max(exact.abs());
    }
    worst / largest
}

pub fn upload<const N: usize>(memory: &GlobalMemory, values: impl Iterator<Item = [u8; N]>) -> u64 {
    let bytes: Vec<u8> = values.flatten().collect();
    let at = memory.alloc(bytes.len() as u64);
    memory.write(at, &bytes).unwrap();
    at
}

pub fn download(memory: &GlobalMemory, at: u64, count: usize) -> Vec<f32> {
    let mut bytes = vec![0; 4 * count];
    memory.read(at, &mut bytes).unwrap();
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// Runs a body on every thread of a grid, one block after another on one thread of the host. `%o`, `%q` and registers of every kind
/// are there; `%t` is the thread's number in its block, `%base` the address of `data`. The result is `%o` of each thread, all ones
/// where a thread has ended before, and what is left of the data.
pub fn grid(
    body: &str,
    [blocks, threads]: [[u32; 3]; 2],
    data: &[u8],
    schedule: Schedule,
) -> Result<(Vec<u32>, Vec<u8>), Fault> {
    let text = format!(
        ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 data, .param .u64 out) {{
        .reg .pred %p<8>; .reg .b16 %h<8>; .reg .b32 %r<16>; .reg .f32 %f<8>; .reg .b64 %d<8>; .reg .f64 %g<4>;
        .reg .b32 %o; .reg .b32 %t; .reg .b32 %x<8>; .reg .b64 %q; .reg .b64 %base; .reg .b64 %to; .reg .b64 %y;
        .shared .align 16 .b8 sh[1024];
        ld.param.u64 %base, [data]; ld.param.u64 %to, [out]; mov.u32 %o, 0; mov.u64 %q, 0;
        mov.u32 %x0, %ntid.x; mov.u32 %x1, %ntid.y; mov.u32 %x2, %tid.x; mov.u32 %x3, %tid.y; mov.u32 %x4, %tid.z;
        mad.lo.u32 %t, %x4, %x1, %x3; mad.lo.u32 %t, %t, %x0, %x2;
        mov.u32 %x5, %ctaid.z; mov.u32 %x6, %nctaid.y; mov.u32 %x7, %ctaid.y; mad.lo.u32 %x5, %x5, %x6, %x7;
        mov.u32 %x6, %nctaid.x; mov.u32 %x7, %ctaid.x; mad.lo.u32 %x5, %x5, %x6, %x7;
        mul.lo.u32 %x6, %x0, %x1; mov.u32 %x7, %ntid.z; mul.lo.u32 %x6, %x6, %x7; mad.lo.u32 %x5, %x5, %x6, %t;
        mul.wide.u32 %y, %x5, 4; add.s64 %to, %to, %y;
        {body}
        st.global.u32 [%to], %o; ret; }}"
    );
    let module = Module::parse(&text).unwrap_or_else(|e| panic!("{body}: {e}"));
    let memory = GlobalMemory::new();
    let at = upload(&memory, data.iter().map(|byte| [*byte]));
    let count = blocks.iter().chain(&threads).product::<u32>() as usize;
    let out = memory.alloc(4 * count as u64);
    memory.fill(out, 4 * count as u64, 0xff).unwrap();
    let params: Vec<u8> = [at, out].iter().flat_map(|p| p.to_le_bytes()).collect();
    let mut launch = Launch::new(blocks, threads, &params);
    (launch.schedule, launch.step_limit) = (schedule, 1_000_000);
    let alone = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    alone.install(|| run(&module, "k", &memory, &launch))?;
    let (mut words, mut left) = (vec![0; 4 * count], vec![0; data.len()]);
    memory.read(out, &mut words).unwrap();
    memory.read(at, &mut left).unwrap();
    Ok((words.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect(), left))
}

/// `%o` of each thread of one block, in order, over 64 words of 7.
pub fn threads(body: &str, count: u32) -> Result<Vec<u32>, Fault> {
    let data = 7u32.to_le_bytes().repeat(64);
    grid(body, [[1; 3], [count, 1, 1]], &data, Schedule::InOrder).map(|(words, _)| words)
}

/// The fault of such a block.
pub fn fault(body: &str, count: u32) -> FaultKind {
    threads(body, count).expect_err(body).kind
}
