//! Memory: what of it may be read, bytes beside bytes, alignment, the memory of the block before.

use super::common::{fault, grid, threads};
use braid_ptx::{FaultKind, GlobalMemory, Launch, MemorySpace, Module, Schedule, run};

fn one(body: &str) -> u32 {
    threads(body, 1).unwrap_or_else(|fault| panic!("{body}: {fault}"))[0]
}

fn unwritten(body: &str, count: u32) {
    let kind = fault(body, count);
    assert!(matches!(kind, FaultKind::Uninitialised { .. }), "{body}: {kind}");
}

fn outside(body: &str, wanted: MemorySpace) {
    match fault(body, 1) {
        FaultKind::OutOfBounds { space, .. } if space == wanted => {}
        other => panic!("{body}: {other}"),
    }
}

fn misaligned(body: &str, to: u32) {
    match fault(body, 32) {
        FaultKind::Misaligned { align, .. } if align == to => {}
        other => panic!("{body}: {other}"),
    }
}

const LOCAL: &str = ".local .align 8 .b8 mine[8];";

#[test]
fn ends_of_each_space() {
    let local = |access: &str| format!("{{ {LOCAL} {access} }}");
    assert_eq!(one(&local("st.local.u32 [mine+4], 3; ld.local.u32 %o, [mine+4];")), 3);
    outside(&local("st.local.u32 [mine+8], 3;"), MemorySpace::Local);
    outside(&local("st.local.v4.u32 [mine+16], {3, 3, 3, 3};"), MemorySpace::Local);
    outside("ld.param.u32 %o, [out+8];", MemorySpace::Param);
    outside("mov.u32 %r1, sh; st.shared.u32 [%r1+1024], 1;", MemorySpace::Shared);
    outside("mov.u32 %r1, sh; st.shared.u32 [%r1+-4], 1;", MemorySpace::Shared);
    // Two allocations, one after the other: what lies past the end of the first is in none.
    let memory = GlobalMemory::new();
    for bytes in [256, 1, 4096] {
        let (first, next) = (memory.alloc(bytes), memory.alloc(bytes));
        memory.fill(first, bytes, 1).unwrap();
        memory.fill(next, bytes, 1).unwrap();
        assert!(memory.read(first + bytes, &mut [0; 1]).is_err() && memory.read(next - 1, &mut [0; 1]).is_err());
        assert!(memory.read(first, &mut vec![0; bytes as usize + 1]).is_err());
    }
}

#[test]
fn addresses_that_wrap() {
    // A register of 32 bits and a negative offset.
    assert_eq!(one("mov.u32 %r1, sh; st.shared.u32 [%r1], 5; add.u32 %r1, %r1, 16; ld.shared.u32 %o, [%r1+-16];"), 5);
    assert_eq!(one("mov.u32 %r1, 4294967292; mov.u32 %r2, 6; st.shared.u32 [%r1+12], %r2; ld.shared.u32 %o, [8];"), 6);
}

#[test]
fn spaces_of_generic_addresses() {
    // Global, shared and local memory by one kind of address.
    let start = format!(
        "{LOCAL} .reg .b64 %l; mov.u64 %d1, sh; cvta.shared.u64 %d1, %d1; mov.u64 %l, mine; cvta.local.u64 %l, %l;"
    );
    for (address, want) in [("%base", 1), ("%d1", 2), ("%l", 4)] {
        let mut body = format!("{{ {start} st.u32 [{address}], 9; ld.u32 %r1, [{address}]; sub.u32 %o, %r1, 9;");
        for (space, bit) in [("global", 1), ("shared", 2), ("local", 4)] {
            body += &format!("isspacep.{space} %p1, {address}; selp.u32 %r2, {bit}, 0, %p1; add.u32 %o, %o, %r2;");
        }
        assert_eq!(one(&(body + "}")), want, "{address}");
    }
}

#[test]
fn alignment_by_width() {
    misaligned("ld.param.u32 %o, [data+2];", 4);
    misaligned(&format!("{{ {LOCAL} st.local.u32 [mine+2], 3; }}"), 4);
    misaligned("ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%base+8];", 16);
    misaligned("ld.global.v2.u32 {%r1, %r2}, [%base+4];", 8);
    misaligned("mov.u32 %r1, sh; st.shared.v4.u32 [%r1+8], {%t, %t, %t, %t};", 16);
    misaligned("mov.u32 %r1, sh; cp.async.cg.shared.global [%r1], [%base+8], 16;", 16);
    misaligned("mov.u32 %r1, sh; cp.async.ca.shared.global [%r1+4], [%base], 8;", 8);
    let rows = "mov.u32 %r1, sh; mad.lo.u32 %r1, %t, 16, %r1; st.shared.v4.u32 [%r1], {%t, %t, %t, %t};
        bar.warp.sync -1; mov.u32 %r1, sh;";
    for offset in [4, 8] {
        misaligned(&format!("{rows} ldmatrix.sync.aligned.m8n8.x1.shared.b16 {{%r2}}, [%r1+{offset}];"), 16);
    }
}

#[test]
fn parts_that_were_written() {
    unwritten(&format!("{{ {LOCAL} st.local.u8 [mine], 1; ld.local.u32 %o, [mine]; }}"), 1);
    unwritten(&format!("{{ {LOCAL} st.local.u32 [mine+4], 1; ld.local.u32 %o, [mine]; }}"), 1);
    unwritten("mov.u32 %r1, sh; st.shared.u8 [%r1], 1; ld.shared.u32 %o, [%r1];", 1);
    unwritten("mov.u32 %r1, sh; st.shared.u32 [%r1], 1; ld.shared.v4.u32 {%r2, %r3, %r4, %o}, [%r1];", 1);
    let memory = GlobalMemory::new();
    let text = ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 data) { .reg .b64 %d<2>;
        .reg .b32 %r<2>; ld.param.u64 %d1, [data]; atom.global.add.u32 %r1, [%d1], 1; ret; }";
    let atomic = Module::parse(text).unwrap();
    let words = memory.alloc(8);
    memory.write(words + 4, &[1; 4]).unwrap();
    let launched = run(&atomic, "k", &memory, &Launch::new([1; 3], [1; 3], &words.to_le_bytes()));
    assert!(matches!(launched.unwrap_err().kind, FaultKind::Uninitialised { .. }));
    // A copy reads its source when it is issued, though nobody waits for it.
    for (address, unset) in [("%base+1024", false), ("%to+0", true)] {
        let body = format!("mov.u32 %r1, sh; cp.async.ca.shared.global [%r1], [{address}], 4;");
        for schedule in [Schedule::InOrder, Schedule::Greedy] {
            let memory = GlobalMemory::new();
            let text = format!(
                ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 data, .param .u64 out) {{
                .reg .b32 %r<4>; .reg .b64 %base; .reg .b64 %to; .shared .align 16 .b8 sh[64];
                ld.param.u64 %base, [data]; ld.param.u64 %to, [out]; {body} ret; }}"
            );
            let params: Vec<u8> =
                [memory.alloc(1024), memory.alloc(64)].iter().flat_map(|at| at.to_le_bytes()).collect();
            let mut launch = Launch::new([1; 3], [1; 3], &params);
            launch.schedule = schedule;
            let fault = run(&Module::parse(&text).unwrap(), "k", &memory, &launch).unwrap_err();
            let right = matches!(fault.kind, FaultKind::Uninitialised { .. }) == unset;
            assert!(
                right && matches!(fault.kind, FaultKind::Uninitialised { .. } | FaultKind::OutOfBounds { .. }),
                "{fault}"
            );
        }
    }
}

#[test]
fn bytes_beside_bytes() {
    let memory = GlobalMemory::new();
    let at = memory.alloc(100);
    let mut got = [0; 8];
    memory.write(at, &[1, 2, 3, 4, 5, 6, 7, 8]).unwrap();
    memory.write(at + 1, &[9]).unwrap();
    memory.write(at + 6, &[8, 7]).unwrap();
    memory.read(at, &mut got).unwrap();
    assert_eq!(got, [1, 9, 3, 4, 5, 6, 8, 7]);
    memory.fill(at, 100, 0xa5).unwrap();
    let mut all = [0; 100];
    memory.read(at, &mut all).unwrap();
    assert_eq!(all, [0xa5; 100]);
    // What is forgotten, to the byte.
    for (from, bytes) in [(3, 1), (10, 7), (60, 9), (0, 100)] {
        memory.fill(at, 100, 1).unwrap();
        memory.forget(at + from, bytes).unwrap();
        for i in 0..100 {
            let there = memory.read(at + i, &mut [0]).is_ok();
            assert_eq!(there, i < from || i >= from + bytes, "{i} of {from} and {bytes}");
        }
    }
    // Registers wider than what is stored.
    let body = "mov.u32 %r1, 0x1234ffff; mov.u32 %r2, 0xabcd0001; st.global.v2.u16 [%base], {%r1, %r2}; ld.global.u32 %o, [%base];";
    assert_eq!(one(body), 0x0001_ffff);
    assert_eq!(one("mov.u32 %r1, 0x1ff; st.global.u8 [%base+1], %r1; ld.global.u32 %o, [%base];"), 0xff07);
    assert_eq!(one("mov.u32 %r1, 0x18000; st.global.u16 [%base], %r1; ld.global.s16 %o, [%base];"), 0xffff_8000);
    assert_eq!(one("mov.u32 %r1, 0x80; st.global.u8 [%base], %r1; ld.global.s8 %o, [%base];"), 0xffff_ff80);
}

/// A variable of a module that says no value is zero, each time anew in another memory.
#[test]
fn variables_without_a_value() {
    let text = ".version 8.0\n.target sm_80\n.address_size 64\n.global .align 4 .u32 count[3];\n.visible .entry k() {
        .reg .b32 %r<4>; ld.global.u32 %r1, [count+8]; add.u32 %r1, %r1, 1; st.global.u32 [count+8], %r1; ret; }";
    let module = Module::parse(text).unwrap();
    for _ in 0..2 {
        let memory = GlobalMemory::new();
        for times in 1..3u32 {
            run(&module, "k", &memory, &Launch::new([1; 3], [1; 3], &[])).unwrap();
            let mut got = [0; 12];
            memory.read(memory.symbol(&module, "count").unwrap(), &mut got).unwrap();
            assert_eq!(got[8..], times.to_le_bytes());
            assert_eq!(got[..8], [0; 8]);
        }
    }
}

/// Blocks follow one another on one thread of the host: the second finds nothing of the first.
#[test]
fn nothing_of_the_block_before() {
    let two = |first: &str, second: &str, schedule| {
        let body = format!(
            "{LOCAL} .reg .pred %u; mov.u32 %r1, sh; mov.u32 %r2, %ctaid.x; setp.ne.u32 %p1, %r2, 0; @%p1 bra SECOND;
            {first} bra END; SECOND: {second} END:"
        );
        grid(&body, [[2, 1, 1], [1; 3]], &[7; 64], schedule).map(|(words, _)| words[1])
    };
    for schedule in [Schedule::InOrder, Schedule::Greedy] {
        for (first, second) in [
            ("st.local.u32 [mine], 5;", "ld.local.u32 %o, [mine];"),
            ("st.shared.u32 [%r1], 5;", "ld.shared.u32 %o, [%r1];"),
            ("cp.async.ca.shared.global [%r1], [%base], 4;", "cp.async.wait_all; ld.shared.u32 %o, [%r1];"),
        ] {
            let fault = two(first, second, schedule).expect_err(second);
            assert!(matches!(fault.kind, FaultKind::Uninitialised { .. }), "{second}: {fault}");
        }
        // A predicate, a register and the writes to shared memory.
        let set = "setp.eq.u32 %u, 0, 0; mov.u32 %r5, 4; st.shared.u8 [%r1+1], 1;";
        assert_eq!(two(set, "selp.u32 %o, 1, 2, %u;", schedule).unwrap(), 2);
        assert_ne!(two(set, "mov.u32 %o, %r5;", schedule).unwrap(), 4);
        assert_eq!(two(set, "st.shared.u32 [%r1], 3; ld.shared.u32 %o, [%r1];", schedule).unwrap(), 3);
    }
}
