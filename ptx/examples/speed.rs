//! Measures the speed of the interpreter: `cargo run --release -p braid-ptx --example speed`.
//!
//! Prints warp instructions per second of processor time for arithmetic, memory, and the tensor-core matrix product, each in
//! one block of one warp on one core; and for the tiled matrix product of the tests, with and without race checks.

use std::time::{Duration, Instant};

use braid_ptx::{GlobalMemory, Launch, Module, run};

/// Processor time of all threads so far, if the system reports it; elapsed time would vary with the load of the machine.
fn processor() -> Option<Duration> {
    let mut total = 0;
    for task in std::fs::read_dir("/proc/self/task").ok()? {
        let text = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        total += text.split(' ').next()?.parse::<u64>().ok()?;
    }
    Some(Duration::from_nanos(total))
}

/// Runs a function and returns its seconds of processor time, or elapsed seconds.
fn timed<T>(f: impl FnOnce() -> T) -> (T, f64) {
    let (start, before) = (Instant::now(), processor());
    let result = f();
    let spent = match (before, processor()) {
        (Some(before), Some(after)) => after - before,
        _ => start.elapsed(),
    };
    (result, spent.as_secs_f64())
}

/// A loop around a body of PTX.
fn kernel(body: &str, repeat: usize) -> String {
    let body = body.repeat(repeat);
    format!(
        ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 data, .param .u32 n) {{
        .reg .pred %p<2>; .reg .b32 %r<20>; .reg .f32 %f<20>; .reg .b64 %d<5>;
        .shared .align 16 .b8 s[512];
        ld.param.u64 %d0, [data]; ld.param.u32 %r0, [n];
        mov.u32 %r1, %tid.x; mul.wide.u32 %d1, %r1, 16; add.s64 %d2, %d0, %d1;
        mov.u64 %d3, s; add.s64 %d3, %d3, %d1; cvt.u32.u64 %r18, %d3;
        mov.f32 %f1, 0f3F800000; mov.f32 %f2, 0f3F000000; mov.u32 %r2, 7; mov.f32 %f16, %f1; mov.f32 %f17, %f1;
        st.shared.v4.f32 [%d3], {{%f1, %f1, %f1, %f1}};
        bar.warp.sync -1;
        loop:
        {body}
        sub.s32 %r0, %r0, 1; setp.ne.s32 %p1, %r0, 0; @%p1 bra loop;
        ret; }}"
    )
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mma = "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%f4,%f5,%f6,%f7}, {%r2,%r3,%r4,%r5}, {%r6,%r7}, \
               {%f4,%f5,%f6,%f7};";
    let cases = [
        ("integer, add and xor", "add.s32 %r2, %r2, %r1; xor.b32 %r3, %r2, %r1;", 10, 40_000),
        ("float, fused multiply-add", "fma.rn.f32 %f3, %f1, %f2, %f3; fma.rn.f32 %f4, %f1, %f2, %f4;", 10, 40_000),
        ("exponential", "ex2.approx.ftz.f32 %f3, %f2;", 10, 20_000),
        ("load 16 bytes a lane, global", "ld.global.v4.f32 {%f4,%f5,%f6,%f7}, [%d2];", 10, 10_000),
        ("load 16 bytes a lane, shared", "ld.shared.v4.f32 {%f4,%f5,%f6,%f7}, [%d3];", 10, 10_000),
        ("ldmatrix.x4", "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r2,%r3,%r4,%r5}, [%r18];", 10, 10_000),
        ("shuffle", "shfl.sync.bfly.b32 %r2, %r2, 1, 31, -1;", 10, 20_000),
        ("mma.sync m16n8k16", mma, 10, 10_000),
    ];
    for (name, body, repeat, n) in cases {
        for races in [true, false] {
            let module = Module::parse(&kernel(body, repeat))?;
            let memory = GlobalMemory::new();
            let data = memory.alloc(512);
            memory.fill(data, 512, 0)?;
            let mut params = data.to_le_bytes().to_vec();
            params.extend(u32::to_le_bytes(n));
            let mut launch = Launch::new([1, 1, 1], [32, 1, 1], &params);
            launch.check_races = races;
            let (counts, seconds) = timed(|| run(&module, "k", &memory, &launch));
            let rate = counts?.instructions() as f64 / seconds / 1e6;
            let checks = if races { "with race checks" } else { "without" };
            println!("{name:32} {rate:8.1} million warp instructions a second, {checks}");
        }
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/gemm.ptx");
    let module = Module::parse(&std::fs::read_to_string(path)?)?;
    let (m, n, k) = (256, 256, 512u32);
    for races in [true, false] {
        let memory = GlobalMemory::new();
        let [a, b, c] = [m * k * 2, n * k * 2, m * n * 4].map(|bytes| memory.alloc(bytes.into()));
        memory.fill(a, (m * k * 2).into(), 0x3c)?;
        memory.fill(b, (n * k * 2).into(), 0x3c)?;
        let mut params: Vec<u8> = [a, b, c].iter().flat_map(|p| p.to_le_bytes()).collect();
        params.extend([m, n, k, 0].iter().flat_map(|v| v.to_le_bytes()));
        let mut launch = Launch::new([n / 64, m / 64, 1], [128, 1, 1], &params);
        launch.check_races = races;
        let (counts, seconds) = timed(|| run(&module, "gemm", &memory, &launch));
        let counts = counts?;
        println!(
            "gemm {m} x {n} x {k}, races {races}: {seconds:.2} core seconds, {:.1} million warp instructions a second, \
             {:.3} GFLOP/s, mma share {:.2}",
            counts.instructions() as f64 / seconds / 1e6,
            2.0 * f64::from(m) * f64::from(n) * f64::from(k) / seconds / 1e9,
            counts.mma_share()
        );
    }
    Ok(())
}
