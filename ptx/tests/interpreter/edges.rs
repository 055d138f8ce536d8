//! Accesses at the edges: of an allocation, of what was written, of a block's memory; and races whose reader is not the last one.

use braid_ptx::{Fault, FaultKind, GlobalMemory, Hazard, Launch, Module, run};

/// Bytes of the allocation, of which the first `WRITTEN` are written.
const BYTES: u64 = 1024;

/// Runs a body on `threads` threads of `blocks` blocks; %d1 is the address of the allocation, %t the thread, %b the block.
fn ran(body: &str, threads: u32, blocks: u32, written: u64) -> Result<Vec<u8>, Fault> {
    let text = format!(
        ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 data) {{
        .reg .pred %p<4>; .reg .b32 %r<16>; .reg .b64 %d<8>; .reg .b32 %t; .reg .b32 %b; .shared .align 16 .b8 sh[512];
        ld.param.u64 %d1, [data]; mov.u32 %t, %tid.x; mov.u32 %b, %ctaid.x;
        {body}
        ret; }}"
    );
    let module = Module::parse(&text).unwrap_or_else(|e| panic!("{body}: {e}"));
    let memory = GlobalMemory::new();
    let data = memory.alloc(BYTES);
    memory.fill(data, written, 7).unwrap();
    run(&module, "k", &memory, &Launch::new([blocks, 1, 1], [threads, 1, 1], &data.to_le_bytes()))?;
    let mut bytes = vec![0; written as usize];
    memory.read(data, &mut bytes).unwrap();
    Ok(bytes)
}

fn kind(body: &str, threads: u32, blocks: u32, written: u64) -> FaultKind {
    ran(body, threads, blocks, written).map(|_| ()).expect_err(body).kind
}

#[test]
fn accesses_across_the_end() {
    // Of every width that may straddle: the address is aligned, or the fault would be another.
    for (body, at) in [
        ("ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%d1+1008];", None),
        ("ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%d1+1024];", Some(16)),
        ("ld.global.v2.u64 {%d2, %d3}, [%d1+1024];", Some(16)),
        ("st.global.v4.u32 [%d1+1024], {%r1, %r1, %r1, %r1};", Some(16)),
        ("ld.global.u8 %r1, [%d1+1024];", Some(1)),
        ("ld.global.u8 %r1, [%d1+-1];", Some(1)),
    ] {
        match (ran(&format!("mov.u32 %r1, 0; {body}"), 1, 1, BYTES), at) {
            (Ok(_), None) => {}
            (Err(Fault { kind: FaultKind::OutOfBounds { bytes, .. }, .. }), Some(want)) => {
                assert_eq!(bytes, want, "{body}")
            }
            (other, _) => panic!("{body}: {other:?}"),
        }
    }
    // An allocation whose end is no multiple of the access: bytes 8 to 24 of 16.
    let memory = GlobalMemory::new();
    let small = memory.alloc(24);
    memory.fill(small, 24, 1).unwrap();
    assert!(memory.read(small + 16, &mut [0; 8]).is_ok() && memory.read(small + 16, &mut [0; 9]).is_err());
    let text = ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 data) { .reg .b64 %d<4>;
        ld.param.u64 %d1, [data]; ld.global.v2.u64 {%d2, %d3}, [%d1+16]; ret; }";
    let fault = run(&Module::parse(text).unwrap(), "k", &memory, &Launch::new([1; 3], [1; 3], &small.to_le_bytes()));
    assert!(matches!(fault.unwrap_err().kind, FaultKind::OutOfBounds { bytes: 16, .. }));
}

#[test]
fn partly_written_loads() {
    for (body, written, good) in [
        ("ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%d1];", 16, true),
        ("ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%d1];", 15, false),
        ("ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%d1];", 8, false),
        ("ld.global.v2.u64 {%d2, %d3}, [%d1+16];", 24, false),
        ("ld.global.u64 %d2, [%d1+16];", 24, true),
        ("ld.global.u32 %r1, [%d1+16];", 19, false),
        ("ld.global.u16 %r1, [%d1+16];", 18, true),
    ] {
        match ran(body, 1, 1, written) {
            Ok(_) => assert!(good, "{body} of {written} bytes"),
            Err(fault) => assert!(!good && matches!(fault.kind, FaultKind::Uninitialised { .. }), "{body}: {fault}"),
        }
    }
    let half = "mov.u32 %r1, sh; st.shared.v2.u32 [%r1], {%t, %t}; ld.shared.v4.u32 {%r2, %r3, %r4, %r5}, [%r1];";
    assert!(matches!(kind(half, 1, 1, 0), FaultKind::Uninitialised { .. }));
}

#[test]
fn shared_memory_of_the_next_block() {
    // The first block writes its shared memory; the second reads its own, which nobody has written.
    let body = "mov.u32 %r1, sh; setp.ne.u32 %p1, %b, 0; @%p1 bra READ; st.shared.u32 [%r1], 5; bra END;
        READ: ld.shared.u32 %r2, [%r1]; st.global.u32 [%d1], %r2; END:";
    ran(body, 1, 1, BYTES).unwrap();
    assert!(matches!(kind(body, 1, 2, BYTES), FaultKind::Uninitialised { .. }));
}

#[test]
fn any_reader_before_a_writer() {
    // Some warps read a word; warp 3 writes it, with no barrier of the block between.
    let body = |readers: &[u32]| {
        let reads: String =
            readers.iter().map(|w| format!("setp.eq.u32 %p1, %r2, {w}; @%p1 ld.shared.u32 %r3, [%r1];\n")).collect();
        format!(
            "mov.u32 %r1, sh; shr.u32 %r2, %t, 5; setp.eq.u32 %p2, %t, 0; @%p2 st.shared.u32 [%r1], 1; bar.sync 0;
             {reads} bar.warp.sync -1; setp.eq.u32 %p3, %t, 96; @%p3 st.shared.u32 [%r1], 2;"
        )
    };
    for readers in [&[0u32][..], &[1], &[2], &[0, 1], &[1, 0], &[0, 1, 2], &[2, 1, 0]] {
        match kind(&body(readers), 128, 1, 0) {
            FaultKind::Race { hazard, .. } => {
                assert!(matches!(hazard, Hazard::WriteAfterRead | Hazard::ReadAfterWrite), "{readers:?}: {hazard}")
            }
            other => panic!("{readers:?}: {other}"),
        }
    }
    // The writer's own warp may read before it writes: its lanes meet in between.
    ran(&body(&[3]), 128, 1, 0).unwrap();
    // Of two readers one is the writer's own warp: the other counts.
    for readers in [[0, 3], [3, 0]] {
        assert!(matches!(kind(&body(&readers), 128, 1, 0), FaultKind::Race { .. }), "{readers:?}");
    }
    // Blocks: two read a word of global memory, a third writes it.
    let global =
        "setp.lt.u32 %p1, %b, 2; @%p1 ld.global.u32 %r3, [%d1]; setp.eq.u32 %p2, %b, 2; @%p2 st.global.u32 [%d1], 2;";
    assert!(matches!(kind(global, 1, 3, BYTES), FaultKind::Race { .. }));
    ran(global, 1, 2, BYTES).unwrap();
}

#[test]
fn signed_and_unsigned_extremes() {
    let stored = |body: &str| {
        let bytes = ran(&format!("{body} st.global.u32 [%d1], %r1;"), 1, 1, 16).unwrap();
        u32::from_le_bytes(bytes[..4].try_into().unwrap())
    };
    let cases = [
        ("min.s32 %r1, -5, 3;", -5i32 as u32),
        ("min.s32 %r1, 3, -5;", -5i32 as u32),
        ("max.s32 %r1, -5, 3;", 3),
        ("max.s32 %r1, 3, -5;", 3),
        ("min.u32 %r1, -5, 3;", 3),
        ("max.u32 %r1, 3, -5;", -5i32 as u32),
        ("min.s32 %r1, -2147483648, 2147483647;", 0x8000_0000),
        (
            "{ .reg .b16 %h<4>; mov.b16 %h1, -5; mov.b16 %h2, 3; min.s16 %h3, %h1, %h2; cvt.s32.s16 %r1, %h3; }",
            -5i32 as u32,
        ),
        ("{ .reg .b16 %h<4>; mov.b16 %h1, -5; mov.b16 %h2, 3; min.u16 %h3, %h1, %h2; cvt.u32.u16 %r1, %h3; }", 3),
    ];
    for (body, want) in cases {
        assert_eq!(stored(body), want, "{body}");
    }
    for (operation, want) in [("min.s32", -4i32 as u32), ("max.s32", 7), ("min.u32", 0), ("max.u32", u32::MAX)] {
        // Lanes hold -4 to 27; the word 7 was there.
        let body = format!(
            "mov.u32 %r4, 7; st.global.u32 [%d1], %r4; bar.warp.sync -1; sub.u32 %r2, %t, 4;
             {}atom.global.{operation} %r3, [%d1], %r2;",
            if operation.starts_with("max.s") { "setp.gt.s32 %p1, %r2, 5; @%p1 mov.u32 %r2, 5; " } else { "" }
        );
        let bytes = ran(&body, 32, 1, 16).unwrap();
        assert_eq!(u32::from_le_bytes(bytes[..4].try_into().unwrap()), want, "{operation}");
    }
}
