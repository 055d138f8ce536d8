//! The lanes of warps: indices, masks, partial warps, lanes that have ended, members of an operation, warps at a barrier.

use super::common::{fault, grid, threads};
use braid_ptx::{FaultKind, Schedule};

fn divergent(body: &str, count: u32) {
    let kind = fault(body, count);
    assert!(matches!(kind, FaultKind::Divergent { .. }), "{body}: {kind}");
}

/// Checks `%o` of each of so many threads.
fn each(body: &str, count: u32, want: impl Fn(u32) -> u32) {
    let got = threads(body, count).unwrap_or_else(|fault| panic!("{body}: {fault}"));
    let want: Vec<u32> = (0..count).map(want).collect();
    assert_eq!(got, want, "{body}");
}

#[test]
fn indices_in_three_dimensions() {
    let (blocks, size) = ([2, 3, 4], [4, 3, 5]);
    let run = |body: &str| grid(body, [blocks, size], &[0], Schedule::InOrder);
    // Digit by digit.
    let parts = ["%tid.x", "%tid.y", "%tid.z", "%ctaid.x", "%ctaid.y", "%ctaid.z"];
    let body: String = parts.iter().rev().map(|r| format!("mov.u32 %r1, {r}; mad.lo.u32 %o, %o, 10, %r1;")).collect();
    let mut want = Vec::new();
    for (block, thread) in (0..24).flat_map(|block| (0..60).map(move |thread| (block, thread))) {
        let digits = [thread % 4, thread / 4 % 3, thread / 12, block % 2, block / 2 % 3, block / 6];
        want.push(digits.iter().rev().fold(0, |number, digit| number * 10 + digit));
    }
    assert_eq!(run(&body).unwrap().0, want);
    let parts = ["%ntid.x", "%ntid.y", "%ntid.z", "%nctaid.x", "%nctaid.y", "%nctaid.z", "%nwarpid"];
    let body: String = parts.iter().map(|r| format!("mov.u32 %r1, {r}; mad.lo.u32 %o, %o, 10, %r1;")).collect();
    assert!(run(&body).unwrap().0.iter().all(|number| *number == 4_352_342));
    // A fault names the thread and the block by all three.
    let fault = run("setp.eq.u32 %p1, %t, 43; mov.u32 %r1, %ctaid.z; setp.eq.and.u32 %p1, %r1, 2, %p1; @%p1 trap;");
    let fault = fault.unwrap_err();
    assert_eq!((fault.block, fault.thread, fault.kind), ([0, 0, 2], Some([3, 1, 3]), FaultKind::Trap));
}

#[test]
fn lane_masks() {
    type Mask = fn(u32) -> u32;
    let masks: [(&str, Mask); 5] = [
        ("eq", |l| 1 << l),
        ("lt", |l| (1 << l) - 1),
        ("le", |l| u32::MAX >> (31 - l)),
        ("ge", |l| u32::MAX << l),
        ("gt", |l| (u64::from(u32::MAX) << (l + 1)) as u32),
    ];
    for (name, mask) in masks {
        each(&format!("mov.u32 %o, %lanemask_{name};"), 32, mask);
    }
    each("activemask.b32 %o;", 5, |_| 31);
}

/// Lanes that an instruction's guard leaves out keep their values.
#[test]
fn lanes_that_a_guard_leaves_out() {
    let odd = "and.b32 %r1, %t, 1; setp.eq.u32 %p1, %r1, 1; mov.u32 %o, 5; setp.eq.u32 %p2, 0, 0;";
    let of = |t: u32, other: u32| if t % 2 == 1 { other } else { 5 };
    each(&format!("{odd} @%p1 ld.global.u32 %o, [%base];"), 32, |t| of(t, 7));
    each(&format!("{odd} @%p1 mov.u32 %o, 9;"), 32, |t| of(t, 9));
    each(&format!("{odd} @%p1 atom.global.exch.b32 %o, [%base], 7;"), 32, |t| of(t, 7));
    each(&format!("{odd} @%p1 setp.ne.u32 %p2, 0, 0; @!%p2 mov.u32 %o, 8;"), 32, |t| of(t, 8));
    each(&format!("{odd} @!%p1 bra ON; mov.u32 %o, 3; ON:"), 32, |t| of(t, 3));
    each(&format!("{odd} @%p1 exit;"), 32, |t| of(t, u32::MAX));
    each(&format!("{odd} @%p1 bra GONE; bra ON; GONE: exit; ON: add.u32 %o, %o, 1;"), 32, |t| {
        if t % 2 == 1 { u32::MAX } else { 6 }
    });
}

#[test]
fn partial_warps_and_lanes_that_have_ended() {
    let all = "setp.eq.u32 %p1, 0, 0; vote.sync.ballot.b32 %o, %p1, -1;";
    // A second warp of eight.
    each(&format!("bar.warp.sync -1; {all}"), 40, |t| if t < 32 { u32::MAX } else { 0xff });
    // Lanes that have ended are not waited for, whether they ended before or while the others wait.
    each(&format!("setp.lt.u32 %p2, %t, 8; @%p2 exit; {all}"), 32, |t| if t < 8 { u32::MAX } else { 0xffff_ff00 });
    let late = format!("setp.ge.u32 %p2, %t, 16; @%p2 bra LATE; {all} bra END; LATE: add.u32 %r1, %t, 1; exit; END:");
    each(&late, 32, |t| if t < 16 { 0xffff } else { u32::MAX });
}

#[test]
fn members_of_an_operation() {
    let half = "setp.lt.u32 %p1, %t, 16; and.b32 %r1, %t, 16; shl.b32 %r2, 0xffff, %r1;";
    // Halves of a warp by themselves.
    each(
        &format!("{half} setp.eq.u32 %p2, %t, 3; vote.sync.any.pred %p3, %p2, %r2; selp.u32 %o, 1, 0, %p3;"),
        32,
        |t| u32::from(t < 16),
    );
    each(&format!("{half} vote.sync.ballot.b32 %o, %p1, %r2;"), 32, |t| if t < 16 { 0xffff } else { 0 });
    each(&format!("{half} vote.sync.uni.pred %p3, %p1, %r2; selp.u32 %o, 1, 0, %p3;"), 32, |_| 1);
    each(&format!("{half} sub.u32 %r3, %t, 20; redux.sync.max.s32 %o, %r3, %r2;"), 32, |t| {
        if t < 16 { -5i32 as u32 } else { 11 }
    });
    each(&format!("{half} sub.u32 %r3, %t, 20; redux.sync.min.s32 %o, %r3, %r2;"), 32, |t| {
        if t < 16 { -20i32 as u32 } else { -4i32 as u32 }
    });
    each("sub.u32 %r3, %t, 20; redux.sync.max.s32 %o, %r3, -1;", 32, |_| 11);
    // A lane that is no member, members that do not run it, and one that reads from such a lane.
    divergent("bar.warp.sync 0xffff;", 32);
    divergent("setp.lt.u32 %p1, %t, 16; @%p1 bar.warp.sync -1;", 32);
    divergent("setp.lt.u32 %p1, %t, 16; @!%p1 bra END; shfl.sync.idx.b32 %o, %t, 20, 31, 0xffff; END:", 32);
}

#[test]
fn sources_of_shuffles() {
    let shuffled = |form: &str, want: &dyn Fn(u32) -> (u32, bool)| {
        let body = format!("shfl.sync.{form}, -1; selp.u32 %r1, 100, 0, %p1; add.u32 %o, %r2, %r1;");
        each(&body, 32, |t| want(t).0 + 100 * u32::from(want(t).1));
    };
    shuffled("up.b32 %r2|%p1, %t, 2, 0", &|t| if t >= 2 { (t - 2, true) } else { (t, false) });
    shuffled("down.b32 %r2|%p1, %t, 2, 31", &|t| if t < 30 { (t + 2, true) } else { (t, false) });
    // Segments of eight.
    let c = 24 << 8 | 7;
    shuffled(&format!("bfly.b32 %r2|%p1, %t, 8, {c}"), &|t| if t & 8 != 0 { (t ^ 8, true) } else { (t, false) });
    shuffled(&format!("idx.b32 %r2|%p1, %t, 5, {c}"), &|t| (t / 8 * 8 + 5, true));
    shuffled(&format!("up.b32 %r2|%p1, %t, 1, {}", 24 << 8), &|t| if t % 8 > 0 { (t - 1, true) } else { (t, false) });
}

#[test]
fn instructions_of_the_whole_warp() {
    let row =
        "mov.u32 %r1, sh; mad.lo.u32 %r1, %t, 16, %r1; st.shared.v4.u32 [%r1], {%t, %t, %t, %t}; bar.warp.sync -1;";
    let load = "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r2}, [%r1];";
    let product = "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%f0, %f1, %f2, %f3}, {%r2, %r2}, {%r2},
        {0f00000000, 0f00000000, 0f00000000, 0f00000000};";
    threads(&format!("{row} {load} {product}"), 32).unwrap();
    for one in [load, product] {
        divergent(&format!("{row} mov.u32 %r2, 0; {one}"), 16);
        divergent(&format!("{row} mov.u32 %r2, 0; setp.ne.u32 %p1, %t, 7; @%p1 {one}"), 32);
        divergent(&format!("{row} mov.u32 %r2, 0; setp.eq.u32 %p1, %t, 7; @%p1 exit; {one}"), 32);
    }
}

#[test]
fn warps_at_a_barrier() {
    // One has ended before, or ends while the other waits, at each barrier.
    for (barrier, ends) in [(0, 0), (0, 1), (3, 0), (3, 1)] {
        let body =
            format!("shr.u32 %r1, %t, 5; setp.eq.u32 %p1, %r1, {ends}; @%p1 exit; bar.sync {barrier}; mov.u32 %o, 1;");
        each(&body, 64, |t| if t / 32 == ends { u32::MAX } else { 1 });
    }
    // A guard that some lanes fail, a count that is not of whole warps, two counts at one barrier.
    divergent("setp.lt.u32 %p1, %t, 16; @%p1 bar.sync 0;", 32);
    divergent("bar.sync 1, 48;", 64);
    divergent("shr.u32 %r1, %t, 5; min.u32 %r1, %r1, 1; mad.lo.u32 %r1, %r1, 32, 64; bar.sync 1, %r1;", 96);
    // Of 64 threads one, all but one, all.
    for (which, first, one, but, all) in [("or", 0, 1, 1, 1), ("and", 0, 0, 0, 1)] {
        for (test, want) in [
            ("lt.u32 %p1, %t, 0", first),
            ("eq.u32 %p1, %t, 40", one),
            ("ne.u32 %p1, %t, 40", but),
            ("lt.u32 %p1, %t, 64", all),
        ] {
            each(&format!("setp.{test}; bar.red.{which}.pred %p2, 0, %p1; selp.u32 %o, 1, 0, %p2;"), 64, |_| want);
        }
    }
    each("setp.gt.u32 %p1, %t, 29; bar.red.popc.u32 %o, 0, %p1;", 64, |_| 34);
}

#[test]
fn order_of_the_schedules() {
    // Warps take numbers: the first warp first, or the last.
    let body = "and.b32 %r1, %t, 31; setp.eq.u32 %p1, %r1, 0; @%p1 atom.global.add.u32 %o, [%base], 1;";
    for (schedule, want) in [(Schedule::InOrder, [0, 1, 2, 3]), (Schedule::Greedy, [3, 2, 1, 0])] {
        let (all, _) = grid(body, [[1; 3], [128, 1, 1]], &[0; 4], schedule).unwrap();
        assert_eq!([0, 32, 64, 96].map(|t| all[t]), want, "{schedule:?}");
    }
}
