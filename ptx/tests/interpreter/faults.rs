//! Planted defects, compiled by NVRTC: each is reported with its source line.

use super::common::{line_of, module};
use braid_ptx::{Fault, FaultKind, GlobalMemory, Hazard, Launch, MemorySpace, Module, Schedule, run};

/// Runs a kernel of faults.cu on 64 threads and `blocks` blocks, over 64 floats that are 1 where `written`.
fn launch(kernel: &str, threads: u32, blocks: u32, written: bool) -> Result<(), Fault> {
    let module = module("faults");
    let mut result = Ok(());
    for schedule in [Schedule::InOrder, Schedule::Greedy, Schedule::Random(3), Schedule::Random(4)] {
        let memory = GlobalMemory::new();
        let data = memory.alloc(64 * 4 * u64::from(blocks));
        if written {
            memory.write(data, &1f32.to_le_bytes().repeat(64)).unwrap();
        }
        let mut params = data.to_le_bytes().to_vec();
        if kernel == "unwritten_global" {
            params.extend(memory.alloc(256).to_le_bytes());
        }
        let mut launch = Launch::new([blocks, 1, 1], [threads, 1, 1], &params);
        launch.schedule = schedule;
        launch.step_limit = 100_000;
        let now = run(&module, kernel, &memory, &launch).map(|_| ());
        // The verdict is the same under every schedule; who is named first may differ.
        let line = |r: &Result<(), Fault>| r.as_ref().err().map(|f| f.site.as_ref().map(|s| s.source.clone()));
        if schedule != Schedule::InOrder && kernel != "split_barrier" && kernel != "stuck" && kernel != "warps_apart" {
            assert_eq!(now.is_err(), result.is_err(), "{kernel} {schedule:?}: {now:?}");
            let both = [&now, &result].map(line);
            assert!(both[0] == both[1] || hazard_of(&now).is_some(), "{kernel} {schedule:?}: {now:?} {result:?}");
        }
        if schedule == Schedule::InOrder {
            result = now;
        }
    }
    result
}

fn hazard_of(result: &Result<(), Fault>) -> Option<Hazard> {
    match result {
        Err(Fault { kind: FaultKind::Race { hazard, .. }, .. }) => Some(*hazard),
        _ => None,
    }
}

/// The fault of a kernel in its first schedule, at the marked line.
fn fault(kernel: &str, threads: u32, blocks: u32, written: bool) -> FaultKind {
    let fault = launch(kernel, threads, blocks, written).unwrap_err();
    let line = line_of("faults.cu", &format!("FAULT {kernel}"));
    let site = fault.site.as_ref().unwrap();
    assert_eq!(site.source[0].line, line, "{fault}");
    assert!(fault.to_string().contains(&format!("faults.cu:{line}")), "{fault}");
    assert_eq!(fault.kernel, kernel);
    fault.kind
}

fn race(kind: FaultKind) -> (Hazard, MemorySpace, u32) {
    match kind {
        FaultKind::Race { hazard, space, other, .. } => (hazard, space, other.source[0].line),
        other => panic!("{other}"),
    }
}

#[test]
fn shared_memory_races() {
    let at = |kernel: &str| line_of("faults.cu", &format!("FAULT {kernel}"));
    // Either warp may come first: the write and the read are named in the order in which they happened.
    for (kernel, hazards) in [
        ("no_barrier", [Hazard::ReadAfterWrite, Hazard::WriteAfterRead]),
        ("overwrite", [Hazard::WriteAfterRead, Hazard::ReadAfterWrite]),
    ] {
        let fault = launch(kernel, 64, 1, false).unwrap_err();
        let here = fault.site.as_ref().unwrap().source[0].line;
        let (hazard, space, other) = race(fault.kind);
        let line = at(kernel);
        let expected = if hazard == hazards[0] { (line, line - 1) } else { (line - 1, line) };
        assert_eq!((here, other, space), (expected.0, expected.1, MemorySpace::Shared), "{kernel} {hazard}");
        assert!(hazards.contains(&hazard));
    }
    let (hazard, _, other) = race(fault("warp_order", 32, 1, false));
    assert_eq!((hazard, other), (Hazard::ReadAfterWrite, at("warp_order") - 1));
    launch("warp_order_right", 32, 1, false).unwrap();
}

#[test]
fn block_races() {
    let at = |kernel: &str| line_of("faults.cu", &format!("FAULT {kernel}"));
    let (hazard, space, other) = race(fault("blocks_meet", 64, 2, false));
    assert_eq!((hazard, space, other), (Hazard::WriteAfterWrite, MemorySpace::Global, at("blocks_meet")));
    launch("blocks_meet", 64, 1, false).unwrap();
    let result = launch("blocks_read", 64, 2, true);
    assert!(matches!(hazard_of(&result), Some(Hazard::ReadAfterWrite | Hazard::WriteAfterRead)), "{result:?}");
}

#[test]
fn bad_addresses() {
    match fault("past_end", 64, 1, false) {
        FaultKind::OutOfBounds { space: MemorySpace::Global, bytes: 4, near, .. } => {
            assert!(near.contains("byte 256 of the allocation of 256 bytes"), "{near}");
        }
        other => panic!("{other}"),
    }
    assert!(matches!(
        fault("past_shared", 32, 2, false),
        FaultKind::OutOfBounds { space: MemorySpace::Shared, address: 128, .. }
    ));
    assert!(matches!(fault("crooked", 64, 1, false), FaultKind::Misaligned { align: 16, .. }));
    assert!(matches!(fault("unwritten", 64, 1, false), FaultKind::Uninitialised { space: MemorySpace::Shared, .. }));
    assert!(matches!(
        fault("unwritten_global", 64, 1, false),
        FaultKind::Uninitialised { space: MemorySpace::Global, .. }
    ));
}

#[test]
fn bad_barriers() {
    match launch("split_barrier", 64, 1, false).unwrap_err() {
        Fault { kind: FaultKind::Divergent { what }, .. } => {
            let line = line_of("faults.cu", "FAULT split_barrier");
            assert!(what.contains(&format!("faults.cu:{line}")) && what.contains("0x55555555"), "{what}");
        }
        other => panic!("{other}"),
    }
    match launch("warps_apart", 64, 1, false).unwrap_err() {
        Fault { kind: FaultKind::Divergent { what }, site: Some(site), .. } => {
            let line = line_of("faults.cu", "FAULT warps_apart");
            assert_eq!(site.source[0].line, line, "{what}");
            assert!(what.contains(&format!("faults.cu:{}", line - 4)), "{what}");
        }
        other => panic!("{other}"),
    }
    match launch("stuck", 64, 1, false).unwrap_err() {
        Fault { kind: FaultKind::Deadlock { what }, .. } => {
            let line = line_of("faults.cu", "FAULT stuck");
            assert!(what.contains(&format!("warp 0 at barrier 1, faults.cu:{line}")), "{what}");
            assert!(what.contains(&format!("warp 1 at barrier 2, faults.cu:{}", line + 2)), "{what}");
        }
        other => panic!("{other}"),
    }
}

#[test]
fn deadlocks_limits_traps() {
    // The other half waits at the barrier.
    assert!(matches!(fault("half_shuffle", 32, 1, false), FaultKind::Divergent { .. }));
    assert_eq!(fault("trapped", 32, 1, true), FaultKind::Trap);
    let memory = GlobalMemory::new();
    let flag = memory.alloc(4);
    memory.write(flag, &[0; 4]).unwrap();
    let params = flag.to_le_bytes();
    let mut launch = Launch::new([1, 1, 1], [32, 1, 1], &params);
    launch.step_limit = 1000;
    let fault = run(&module("faults"), "endless", &memory, &launch).unwrap_err();
    assert_eq!(fault.kind, FaultKind::StepLimit { limit: 1000 });
    launch.params = &params[..4];
    let fault = run(&module("faults"), "endless", &memory, &launch).unwrap_err();
    assert_eq!(fault.to_string(), "kernel endless: 4 parameter bytes, the kernel takes 8");
    let fault = run(&module("faults"), "none", &memory, &launch).unwrap_err();
    assert!(fault.to_string().contains("no such kernel; there are: blocks_meet,"), "{fault}");
}

/// A register that was never written: no valid address, no number, and as an integer far from zero, so that results show it.
#[test]
fn unset_registers() {
    let run_of = |body: &str| {
        let text = format!(
            ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 out) {{
            .reg .b32 %r<4>; .reg .f32 %f<4>; .reg .b64 %d<4>; .reg .b64 %at; .reg .pred %p<2>;
            ld.param.u64 %at, [out];
            {body}
            ret; }}"
        );
        let module = Module::parse(&text).unwrap_or_else(|e| panic!("{body}: {e}"));
        let memory = GlobalMemory::new();
        let out = memory.alloc(16);
        let result = run(&module, "k", &memory, &Launch::new([1, 1, 1], [1, 1, 1], &out.to_le_bytes()));
        let mut word = [0; 4];
        result.map(|_| memory.read(out, &mut word).map(|()| u32::from_le_bytes(word)).unwrap())
    };
    // As an address, of a load, of a store and of a sum with what is known.
    for body in [
        "ld.global.u32 %r0, [%d0]; st.global.u32 [%at], %r0;",
        "mov.u32 %r0, 1; st.global.u32 [%d1], %r0;",
        "add.s64 %d2, %at, %d3; mov.u32 %r0, 1; st.global.u32 [%d2], %r0;",
        "mul.wide.u32 %d2, %r3, 4; add.s64 %d2, %d2, %at; ld.global.u32 %r0, [%d2];",
    ] {
        let fault = run_of(body).unwrap_err();
        // Odd, so an access of more than a byte is misaligned before it is anything else.
        assert!(matches!(fault.kind, FaultKind::Misaligned { .. } | FaultKind::OutOfBounds { .. }), "{body}: {fault}");
        assert!(fault.to_string().contains("kernel k"), "{fault}");
    }
    // As a number: what is computed from it is none either, and no comparison with it holds.
    for body in
        ["st.global.f32 [%at], %f0;", "mov.f32 %f0, 0f00000000; mul.f32 %f0, %f0, %f1; st.global.f32 [%at], %f0;"]
    {
        assert!(f32::from_bits(run_of(body).unwrap()).is_nan(), "{body}");
    }
    let compared =
        "mov.f32 %f0, 0f00000000; setp.le.f32 %p1, %f1, %f0; selp.u32 %r0, 1, 2, %p1; st.global.u32 [%at], %r0;";
    assert_eq!(run_of(compared).unwrap(), 2);
    // As a count it is too large for any loop to end well, and written it is what was written.
    assert_eq!(run_of("st.global.u32 [%at], %r1;").unwrap(), 0x7fff_dead);
    assert_eq!(run_of("mov.u32 %r1, 7; st.global.u32 [%at], %r1;").unwrap(), 7);
}
