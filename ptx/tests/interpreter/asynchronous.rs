//! Instructions of sm_90 one by one: mbarriers, plain bulk copies, clusters, and what breaks their rules.

use super::common::upload;
use braid_ptx::{Fault, FaultKind, GlobalMemory, Launch, Module, Schedule, run};

const SCHEDULES: [Schedule; 3] = [Schedule::InOrder, Schedule::Greedy, Schedule::Random(3)];

/// Runs a body on `threads` threads of `blocks` blocks in clusters of so many; `%o` of each thread is the result, `%base` has the
/// bytes 0, 1, 2 and so on in 1024 bytes, which are returned, too.
fn cluster(body: &str, threads: u32, blocks: u32, schedule: Schedule) -> Result<(Vec<u32>, Vec<u8>), Fault> {
    launched(body, threads, blocks, schedule, false)
}

/// The same, where `early` in a launch that may begin before the one before it has ended.
fn launched(
    body: &str,
    threads: u32,
    blocks: u32,
    schedule: Schedule,
    early: bool,
) -> Result<(Vec<u32>, Vec<u8>), Fault> {
    let text = format!(
        ".version 8.0\n.target sm_90a\n.address_size 64\n.visible .entry k(.param .u64 data, .param .u64 out) {{
        .reg .pred %p<8>; .reg .b16 %h<8>; .reg .b32 %r<32>; .reg .b64 %d<16>; .reg .b32 %o; .reg .b32 %t; .reg .b64 %base; .reg .b64 %to;
        .reg .b32 %rank; .reg .b32 %x<4>; .reg .b64 %y;
        .shared .align 128 .b8 sh[1024]; .shared .align 8 .b8 bar[64];
        ld.param.u64 %base, [data]; ld.param.u64 %to, [out]; mov.u32 %o, 0; mov.u32 %t, %tid.x; mov.u32 %rank, %cluster_ctarank;
        mov.u32 %x0, %ntid.x; mov.u32 %x1, %ctaid.x; mad.lo.u32 %x2, %x1, %x0, %t; mul.wide.u32 %y, %x2, 4; add.s64 %to, %to, %y;
        setp.eq.u32 %p0, %t, 0;
        {body}
        st.global.u32 [%to], %o; ret; }}"
    );
    let module = Module::parse(&text).unwrap_or_else(|e| panic!("{body}: {e}"));
    let memory = GlobalMemory::new();
    let data = upload(&memory, (0..1024u32).map(|i| [i as u8]));
    let out = memory.alloc(u64::from(threads * blocks * 4));
    let params: Vec<u8> = [data, out].iter().flat_map(|p| p.to_le_bytes()).collect();
    let mut launch = Launch::new([blocks, 1, 1], [threads, 1, 1], &params);
    launch.cluster = Some([blocks, 1, 1]);
    launch.schedule = schedule;
    launch.early = early;
    launch.step_limit = 100_000;
    run(&module, "k", &memory, &launch)?;
    let mut bytes = vec![0; (threads * blocks * 4) as usize];
    // What threads that have ended leave unwritten.
    if !early {
        memory.read(out, &mut bytes).unwrap();
    }
    let mut left = vec![0; 1024];
    memory.read(data, &mut left).unwrap();
    Ok((bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect(), left))
}

fn each(body: &str, threads: u32, blocks: u32, check: impl Fn(Vec<u32>, Vec<u8>)) {
    for schedule in SCHEDULES {
        let (out, data) =
            cluster(body, threads, blocks, schedule).unwrap_or_else(|f| panic!("{schedule:?} {body}: {f}"));
        check(out, data);
    }
}

fn fault(body: &str, threads: u32, blocks: u32) -> Vec<Fault> {
    let of = |s: &Schedule| cluster(body, threads, blocks, *s).expect_err(body);
    SCHEDULES.iter().map(of).collect()
}

/// Every fault is a broken rule whose text holds `what`.
fn rule(body: &str, threads: u32, blocks: u32, what: &str) {
    for fault in fault(body, threads, blocks) {
        let fits = matches!(&fault.kind, FaultKind::Asynchronous(text) if text.contains(what));
        assert!(fits, "{body}: {fault}");
    }
}

fn race(body: &str, threads: u32, blocks: u32) {
    for fault in fault(body, threads, blocks) {
        assert!(matches!(fault.kind, FaultKind::Race { .. }), "{body}: {fault}");
    }
}

const INIT: &str = "@%p0 mbarrier.init.shared::cta.b64 [bar], 1; bar.sync 0;";

#[test]
fn states_and_parities() {
    // Two of three arrivals; the state has the phase and is not over; after the third it is.
    each(
        "@%p0 mbarrier.init.shared.b64 [bar], 3; bar.sync 0; @!%p0 bra end;
         mbarrier.arrive.shared.b64 %d0, [bar]; mbarrier.arrive.shared.b64 %d1, [bar], 1;
         mbarrier.pending_count.b64 %r0, %d1;
         mbarrier.test_wait.shared.b64 %p1, [bar], %d0; selp.u32 %r1, 1, 0, %p1;
         mbarrier.arrive.shared.b64 _, [bar];
         mbarrier.test_wait.shared.b64 %p2, [bar], %d0; selp.u32 %r2, 1, 0, %p2;
         mbarrier.test_wait.parity.shared.b64 %p3, [bar], 0; selp.u32 %r3, 1, 0, %p3;
         mbarrier.test_wait.parity.shared.b64 %p4, [bar], 1; selp.u32 %r4, 1, 0, %p4;
         shl.b32 %r2, %r2, 4; shl.b32 %r3, %r3, 8; shl.b32 %r4, %r4, 12; shl.b32 %r0, %r0, 16;
         or.b32 %o, %r0, %r1; or.b32 %o, %o, %r2; or.b32 %o, %o, %r3; or.b32 %o, %o, %r4;
         end:",
        32,
        1,
        |out, _| assert_eq!((out[0], out[1]), (0x2_0110, 0)),
    );
    // A fresh one lets those pass who wait for the phase before.
    each(
        &format!("{INIT} mbarrier.test_wait.parity.shared.b64 %p1, [bar], 1; selp.u32 %o, 1, 0, %p1;"),
        64,
        1,
        |out, _| {
            assert_eq!(out, [1; 64]);
        },
    );
}

/// One warp hands words to another through two mbarriers, four times.
#[test]
fn hand_over() {
    let body = |full: &str, empty: &str| {
        format!(
            "@%p0 mbarrier.init.shared.b64 [bar], 32; @%p0 mbarrier.init.shared.b64 [bar+8], 32; bar.sync 0;
             mov.u32 %r0, 0; mov.u32 %r1, 0; shl.b32 %r2, %t, 2; and.b32 %r2, %r2, 127; setp.ge.u32 %p1, %t, 32;
             mov.u32 %r9, sh; add.u32 %r2, %r2, %r9;
             next: and.b32 %r3, %r1, 1; xor.b32 %r4, %r3, 1; @%p1 bra take;
             {{ again: mbarrier.try_wait.parity.shared.b64 %p2, [bar+8], %r4; {empty} }}
             add.u32 %r5, %r1, 7; st.shared.u32 [%r2], %r5; mbarrier.arrive.shared.b64 _, [bar]; bra step;
             take:
             {{ again: mbarrier.try_wait.parity.shared.b64 %p2, [bar], %r3; {full} }}
             ld.shared.u32 %r6, [%r2]; add.u32 %o, %o, %r6; mbarrier.arrive.shared.b64 _, [bar+8];
             step: add.u32 %r1, %r1, 1; setp.lt.u32 %p3, %r1, 4; @%p3 bra next;"
        )
    };
    let wait = "@!%p2 bra again;";
    each(&body(wait, wait), 64, 1, |out, _| assert!(out[..32] == [0; 32] && out[32..] == [34; 32], "{out:?}"));
    // One arrival too few of the producer.
    for f in fault(&body(wait, wait).replace("[bar], 32", "[bar], 33"), 64, 1) {
        assert!(matches!(&f.kind, FaultKind::Deadlock { what } if what.contains("lacks 1 arrivals")), "{f}");
    }
}

#[test]
fn broken_rules() {
    rule("mbarrier.arrive.shared.b64 _, [bar];", 32, 1, "no mbarrier was initialised");
    rule("@%p0 mbarrier.init.shared.b64 [bar], 0;", 32, 1, "0 arrivals");
    rule(&format!("{INIT} @%p0 mbarrier.arrive.shared.b64 _, [bar], 2;"), 32, 1, "more arrivals");
    rule(&format!("{INIT} @%p0 mbarrier.arrive.noComplete.shared.b64 %d0, [bar], 1;"), 32, 1, "noComplete");
    rule("mov.u32 %r0, 2; mapa.shared::cluster.u32 %r1, %r0, 2;", 32, 2, "block 2 of a cluster of 2");
    rule("setmaxnreg.inc.sync.aligned.u32 100;", 128, 1, "multiples of 8");
    rule(
        "wgmma.fence.sync.aligned; wgmma.commit_group.sync.aligned; mov.u64 %d0, 0;
          wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%r0, %r1, %r2, %r3}, %d0, %d0, 0, 1, 1, 0, 0;",
        128,
        1,
        "without a wgmma.fence",
    );
    // The initialisation of another warp without a barrier between, seen or not seen.
    let late = "@%p0 mbarrier.init.shared.b64 [bar], 64; setp.lt.u32 %p1, %t, 32; @%p1 bra end; mov.u32 %r0, 0;
         spin: add.u32 %r0, %r0, 1; setp.lt.u32 %p2, %r0, 2000; @%p2 bra spin; mbarrier.arrive.shared.b64 _, [bar]; end:";
    for f in fault(late, 64, 1) {
        assert!(matches!(f.kind, FaultKind::Race { .. }) || f.to_string().contains("no mbarrier"), "{f}");
    }
}

/// Plain bytes from global memory, and back with another order.
#[test]
fn plain_copies() {
    let load = format!(
        "{INIT} @!%p0 bra wait; mbarrier.arrive.expect_tx.shared.b64 _, [bar], 128;
         cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [sh], [%base], 64, [bar];
         add.s64 %d0, %base, 256; cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [sh+64], [%d0], 64, [bar];
         wait:"
    );
    let wait = "{ again: mbarrier.try_wait.parity.shared.b64 %p2, [bar], 0; @!%p2 bra again; }";
    let word = "mov.u32 %r0, sh; shl.b32 %r1, %t, 2; add.u32 %r0, %r0, %r1; ld.shared.u32 %o, [%r0];";
    each(&format!("{load} {wait} {word}"), 32, 1, |out, _| {
        for (i, o) in out.iter().enumerate() {
            let first = if i < 16 { 4 * i } else { 256 + 4 * (i - 16) } as u32;
            assert_eq!(*o, u32::from_le_bytes([0, 1, 2, 3].map(|b| (first + b) as u8)), "{i}");
        }
    });
    for f in fault(&format!("{load} {word}"), 32, 1) {
        assert!(matches!(f.kind, FaultKind::Race { .. }), "{f}");
    }
    let store = |fence: &str, wait: &str| {
        format!(
            "mov.u32 %r0, sh; shl.b32 %r1, %t, 2; add.u32 %r0, %r0, %r1; add.u32 %r2, %t, 1000; st.shared.u32 [%r0], %r2; {fence}
             bar.sync 0; @!%p0 bra end; add.s64 %d0, %base, 512;
             cp.async.bulk.global.shared::cta.bulk_group [%d0], [sh], 128; cp.async.bulk.commit_group; {wait} end:"
        )
    };
    let (fence, all) = ("fence.proxy.async.shared::cta;", "cp.async.bulk.wait_group 0;");
    each(&store(fence, all), 32, 1, |_, data| {
        for (i, word) in data[512..640].as_chunks::<4>().0.iter().enumerate() {
            assert_eq!(u32::from_le_bytes(*word), i as u32 + 1000);
        }
    });
    for f in fault(&store("", all), 32, 1) {
        assert!(f.to_string().contains("without fence.proxy.async"), "{f}");
    }
    rule(&store(fence, ""), 32, 1, "wait_group is missing");
    let sum = store(fence, all).replace(
        "cp.async.bulk.global.shared::cta.bulk_group",
        "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.u32",
    );
    each(&sum, 32, 1, |_, data| {
        let before = u32::from_le_bytes([0, 1, 2, 3]);
        assert_eq!(u32::from_le_bytes(data[512..516].try_into().unwrap()), before.wrapping_add(1000));
    });
}

/// A copy that adds halves to what is there.
#[test]
fn added_halves() {
    let body =
        "mov.u32 %r0, sh; shl.b32 %r1, %t, 2; add.u32 %r0, %r0, %r1; mov.u32 %r2, 0x3c00b800; st.shared.u32 [%r0], %r2;
         fence.proxy.async.shared::cta; bar.sync 0; @!%p0 bra end; add.s64 %d0, %base, 48;
         cp.reduce.async.bulk.global.shared::cta.bulk_group.add.noftz.f16 [%d0], [sh], 16; cp.async.bulk.commit_group;
         cp.async.bulk.wait_group 0; end:";
    each(body, 32, 1, |_, data| {
        // 0x3130 is 0.162, 0x3332 is 0.225: -0.5 and 1 more.
        assert_eq!(u16::from_le_bytes([data[48], data[49]]), 0xb568);
        assert_eq!(u16::from_le_bytes([data[50], data[51]]), 0x3ce6);
    });
}

/// Accumulators have their value from the wait on, in whatever registers they were moved to; before, one that shows.
#[test]
fn accumulators_before_their_wait() {
    let body = |before: &str, after: &str| {
        format!(
            "mov.u32 %r20, sh; shl.b32 %r21, %t, 3; add.u32 %r20, %r20, %r21; mov.u32 %r22, 0x3c003c00; st.shared.v2.u32 [%r20], {{%r22, %r22}};
             fence.proxy.async.shared::cta; bar.sync 0; mov.u32 %r3, 0;
             mov.u32 %r23, sh; shr.u32 %r23, %r23, 4; cvt.u64.u32 %d0, %r23; mov.u64 %d1, 0x0000000000080000; or.b64 %d0, %d0, %d1;
             wgmma.fence.sync.aligned;
             wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {{%r0, %r1, %r2, %r3}}, %d0, %d0, 0, 1, 1, 0, 0;
             wgmma.commit_group.sync.aligned; {before} wgmma.wait_group.sync.aligned 0; {after}"
        )
    };
    // Every element is 1 and every sum 16; all cores of eight rows are the first ones.
    let sixteen = 16f32.to_bits();
    each(&body("", "mov.u32 %o, %r3;"), 128, 1, |out, _| assert_eq!(out, [sixteen; 128]));
    each(&body("mov.b32 %r8, %r3;", "mov.u32 %o, %r8;"), 128, 1, |out, _| assert_eq!(out, [sixteen; 128]));
    each(&body("add.u32 %o, %r3, 0;", ""), 128, 1, |out, _| assert!(out.iter().all(|o| f32::from_bits(*o).is_nan())));
    // The halves of a register, and one that is written again.
    let halves = "mov.b32 {%h0, %h1}, %r3;";
    each(&body(halves, "cvt.u32.u16 %o, %h1;"), 128, 1, |out, _| assert_eq!(out, [sixteen >> 16; 128]));
    each(&body("mov.b32 %r8, %r3; mov.u32 %r9, 5; mov.b32 %r8, %r9;", "mov.u32 %o, %r8;"), 128, 1, |out, _| {
        assert_eq!(out, [5; 128]);
    });
}

/// A copy that adds words of 64 bits to what is there.
#[test]
fn added_wide_words() {
    let body = "mov.u64 %d1, 0xff00000001; mov.u32 %r0, sh; shl.b32 %r1, %t, 3; add.u32 %r0, %r0, %r1; st.shared.u64 [%r0], %d1;
         fence.proxy.async.shared::cta; bar.sync 0; @!%p0 bra end;
         cp.reduce.async.bulk.global.shared::cta.bulk_group.add.u64 [%base], [sh], 16; cp.async.bulk.commit_group;
         cp.async.bulk.wait_group 0; end:";
    each(body, 32, 1, |_, data| {
        let before = u64::from_le_bytes([0, 1, 2, 3, 4, 5, 6, 7]);
        // The sum of bytes four carries into five.
        assert_eq!(u64::from_le_bytes(data[..8].try_into().unwrap()), before + 0xff_0000_0001);
    });
}

/// A block writes to the other's shared memory, by stores and by a copy that its mbarrier counts.
#[test]
fn other_blocks() {
    let meet = "barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;";
    let body = |first: &str, second: &str| {
        format!(
            "{INIT} mov.u32 %r0, sh; shl.b32 %r1, %t, 2; add.u32 %r0, %r0, %r1; mov.u32 %r2, 0; st.shared.u32 [%r0], %r2; {first}
             xor.b32 %r3, %rank, 1; mapa.shared::cluster.u32 %r4, %r0, %r3; mul.lo.u32 %r5, %rank, 100; add.u32 %r5, %r5, %t;
             st.shared::cluster.u32 [%r4], %r5; {second} ld.shared.u32 %o, [%r0];"
        )
    };
    each(&body(meet, meet), 32, 2, |out, _| {
        for (i, o) in out.iter().enumerate() {
            assert_eq!(*o as usize, if i < 32 { 100 + i } else { i - 32 }, "{i}");
        }
    });
    race(&body("", meet), 32, 2);
    race(&format!("{} {meet}", body(meet, "")), 32, 2);
    // Both write into the other's memory for long, so that one of them has ended first.
    let long = "mov.u32 %r6, 0; again: add.u32 %r6, %r6, 1; setp.lt.u32 %p1, %r6, 1000; st.shared::cluster.u32 [%r4], %r5; @%p1 bra again;";
    rule(&body(meet, long).replace("ld.shared.u32 %o, [%r0];", ""), 32, 2, "have ended");
    // 128 bytes to the other block; each waits at its own mbarrier.
    let copy = |fence: &str| {
        format!(
            "{INIT} mov.u32 %r0, sh; shl.b32 %r1, %t, 2; add.u32 %r2, %r0, %r1; mul.lo.u32 %r5, %rank, 100; add.u32 %r5, %r5, %t;
             st.shared.u32 [%r2], %r5; {fence} {meet} @!%p0 bra wait; mbarrier.arrive.expect_tx.shared.b64 _, [bar], 128;
             xor.b32 %r3, %rank, 1; add.u32 %r6, %r0, 512; mapa.shared::cluster.u32 %r4, %r6, %r3; mov.u32 %r7, bar;
             mapa.shared::cluster.u32 %r8, %r7, %r3;
             cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%r4], [%r0], 128, [%r8];
             wait: {{ again: mbarrier.try_wait.parity.shared.b64 %p2, [bar], 0; @!%p2 bra again; }} ld.shared.u32 %o, [%r2+512]; {meet}"
        )
    };
    each(&copy("fence.proxy.async;"), 32, 2, |out, _| {
        for (i, o) in out.iter().enumerate() {
            assert_eq!(*o as usize, if i < 32 { 100 + i } else { i - 32 }, "{i}");
        }
    });
    for f in fault(&copy(""), 32, 2) {
        assert!(f.to_string().contains("without fence.proxy.async"), "{f}");
    }
    each(
        "mov.u32 %r0, %cluster_nctarank; mov.u32 %r1, %clusterid.x; mad.lo.u32 %o, %r0, 10, %r1; add.u32 %o, %o, %rank;",
        32,
        4,
        |out, _| {
            assert_eq!((out[0], out[32], out[127]), (40, 41, 43));
        },
    );
}

#[test]
fn elected_lanes_and_registers() {
    each("elect.sync %r0|%p1, 0xffffffff; selp.u32 %o, 7, 0, %p1; add.u32 %o, %o, %r0;", 32, 1, |out, _| {
        assert_eq!(out.iter().sum::<u32>(), 7);
    });
    // The second group's increase waits for the first one's decrease.
    each(
        "setp.lt.u32 %p1, %t, 128; @%p1 bra less; setmaxnreg.inc.sync.aligned.u32 232; bra end;
         less: mov.u32 %r0, 0; spin: add.u32 %r0, %r0, 1; setp.lt.u32 %p2, %r0, 100; @%p2 bra spin;
         setmaxnreg.dec.sync.aligned.u32 40; end: mov.u32 %o, 1;",
        384,
        1,
        |out, _| assert_eq!(out, [1; 384]),
    );
    for f in fault("setmaxnreg.inc.sync.aligned.u32 232; mov.u32 %o, 1;", 384, 1) {
        assert!(matches!(f.kind, FaultKind::Deadlock { .. }), "{f}");
    }
}

/// In a launch that may begin before the one before it has ended, no thread touches global memory before it has waited, and no block
/// ends without having waited. In other launches nobody has to.
#[test]
fn early_launches() {
    let late = [
        "",
        "\nld.global.u32 %o, [%base];",
        "\natom.global.add.u32 %o, [%base], 1;",
        "\nred.global.add.u32 [%base], 1;",
        "mov.u32 %r1, sh;\n@%p0 cp.async.cg.shared.global [%r1], [%base], 16;\ncp.async.wait_all; bar.sync 0;",
        "griddepcontrol.launch_dependents;\nld.global.u32 %o, [%base];",
        // The other half of the warp, or the other warp.
        "setp.lt.u32 %p1, %t, 16; @%p1 griddepcontrol.wait;\nld.global.u32 %o, [%base];",
        "setp.lt.u32 %p1, %t, 32; @%p1 griddepcontrol.wait; bar.sync 0;\nld.global.u32 %o, [%base];",
    ];
    let never = ["exit;", "griddepcontrol.launch_dependents; exit;", "@!%p1 griddepcontrol.wait; exit;"];
    let in_time = [
        "griddepcontrol.wait; griddepcontrol.launch_dependents; ld.global.u32 %o, [%base]; red.global.add.u32 [%base], 1;",
        // A thread that has nothing to do with global memory need not wait.
        "@!%p0 exit; griddepcontrol.wait;",
    ];
    for schedule in SCHEDULES {
        let fault = |body: &str| {
            let body = format!("setp.eq.u32 %p1, %rank, 1; {body}");
            launched(&body, 64, 2, schedule, true).err()
        };
        for body in late {
            assert!(cluster(body, 64, 2, schedule).is_ok(), "{body}");
            let fault = fault(body).expect(body);
            assert!(matches!(fault.kind, FaultKind::TooEarly { bytes: 4 | 16, .. }), "{body}: {fault}");
            let line = body.split('\n').nth(1).map_or("st.global", |line| &line[..8]);
            assert!(fault.site.as_ref().unwrap().text.contains(line), "{body}: {fault}");
        }
        for body in never {
            assert_eq!(fault(body).expect(body).kind, FaultKind::NoWait, "{body}");
        }
        for body in in_time {
            assert_eq!(fault(body), None, "{body}");
        }
    }
}
