//! Accesses of shared and global memory that nothing orders, one kind at a time, beside the same accesses in order.

use super::common::{grid, threads};
use braid_ptx::{Fault, FaultKind, Hazard, Schedule};

const START: &str = "mov.u32 %r1, sh; shr.u32 %r2, %t, 5; and.b32 %r3, %t, 31; mov.u32 %r4, %ctaid.x;";

/// Lines that only some threads run: `w1` a warp, `l3` a lane of every warp, `b2` a block; `-` for all.
fn body(lines: &[(&str, &str)]) -> String {
    let mut text = START.to_owned();
    for (who, line) in lines {
        let terms: Vec<&str> = who.split(' ').filter(|term| *term != "-").collect();
        if terms.is_empty() {
            text += line;
            continue;
        }
        text += "setp.eq.u32 %p1, 0, 0;";
        for term in terms {
            let (kind, number) = term.split_at(1);
            let register = ["w", "l", "b"].iter().position(|k| *k == kind).unwrap() + 2;
            text += &format!("setp.eq.and.u32 %p1, %r{register}, {number}, %p1;");
        }
        text += &format!("@%p1 {line}\n");
    }
    text
}

fn raced(what: &str, result: Result<(), Fault>) -> Hazard {
    match result {
        Err(Fault { kind: FaultKind::Race { hazard, .. }, .. }) => hazard,
        other => panic!("{what}: {other:?}"),
    }
}

fn shared(lines: &[(&str, &str)]) -> Result<(), Fault> {
    threads(&body(lines), 128).map(|_| ())
}

/// Each pair of accesses is a race, and is none with a barrier of the block between.
#[test]
fn accesses_of_two_warps() {
    let init = ("w0", "st.shared.v4.u32 [%r1], {1, 1, 1, 1};");
    let barrier = ("-", "bar.sync 0;");
    for (first, second) in [
        ("st.shared.u32 [%r1], 2;", "st.shared.u32 [%r1], 3;"),
        ("ld.shared.u32 %r5, [%r1];", "st.shared.u32 [%r1], 3;"),
        ("st.shared.u32 [%r1], 2;", "ld.shared.u32 %r5, [%r1];"),
        ("st.shared.u8 [%r1+2], 2;", "ld.shared.u32 %r5, [%r1];"),
        ("st.shared.u8 [%r1+2], 2;", "st.shared.u8 [%r1+2], 3;"),
        ("st.shared.u8 [%r1+1], 2;", "ld.shared.u16 %r5, [%r1];"),
        ("ld.shared.u32 %r5, [%r1];", "st.shared.u8 [%r1+3], 3;"),
        ("st.shared.v4.u32 [%r1], {2, 2, 2, 2};", "ld.shared.u32 %r5, [%r1+12];"),
        ("ld.shared.v4.u32 {%r5, %r6, %r7, %r8}, [%r1];", "st.shared.u32 [%r1+12], 3;"),
        ("st.shared.u32 [%r1], 2;", "atom.shared.add.u32 %r5, [%r1], 1;"),
        ("atom.shared.add.u32 %r5, [%r1], 1;", "ld.shared.u32 %r6, [%r1];"),
        ("atom.shared.add.u32 %r5, [%r1], 1;", "st.shared.u32 [%r1], 2;"),
    ] {
        let what = format!("{first} {second}");
        raced(&what, shared(&[init, barrier, ("w0 l0", first), ("w1 l0", second)]));
        shared(&[init, barrier, ("w0 l0", first), barrier, ("w1 l0", second)])
            .unwrap_or_else(|f| panic!("{what}: {f}"));
    }
    // Atomics beside one another, and each its own bytes of a word, in either order.
    for (first, second) in [
        ("atom.shared.add.u32 %r5, [%r1], 1;", "atom.shared.add.u32 %r5, [%r1], 1;"),
        ("st.shared.u8 [%r1], 2;", "st.shared.u8 [%r1+1], 3;"),
        ("st.shared.u8 [%r1+1], 2;", "st.shared.u8 [%r1], 3;"),
        ("st.shared.u8 [%r1+3], 2;", "st.shared.u16 [%r1], 3;"),
        ("ld.shared.u32 %r5, [%r1];", "ld.shared.u32 %r5, [%r1];"),
    ] {
        shared(&[init, barrier, ("w0 l0", first), ("w1 l0", second)])
            .unwrap_or_else(|f| panic!("{first} {second}: {f}"));
    }
    // A byte that one warp wrote is still known once another has written the byte beside it.
    for byte in [1, 2, 3] {
        let write = format!("st.shared.u8 [%r1+{byte}], 2;");
        let lines = [
            init,
            barrier,
            ("w0 l0", &write),
            ("w1 l0", "st.shared.u8 [%r1], 3;"),
            ("w2 l0", "ld.shared.u32 %r5, [%r1];"),
        ];
        raced(&write, shared(&lines));
    }
}

/// A writer that is ordered after the first of two readers, and not after the second.
#[test]
fn second_of_two_readers() {
    let init = [("w0", "st.shared.u32 [%r1], 1;"), ("-", "bar.sync 0;")];
    let read = |warp| (warp, "ld.shared.u32 %r5, [%r1];");
    let meet = [("w0", "bar.sync 1, 64;"), ("w3", "bar.sync 1, 64;")];
    let write = ("w3 l0", "st.shared.u32 [%r1], 2;");
    let of = |readers: &[(&'static str, &'static str)], then: &[(&'static str, &'static str)]| {
        shared(&[&init, readers, then, &[write]].concat())
    };
    raced("0, then 1", of(&[read("w0"), read("w1")], &meet));
    of(&[read("w0")], &meet).unwrap();
    of(&[read("w0"), read("w1")], &[("-", "bar.sync 2;")]).unwrap();
}

/// Lanes of one warp, which only its own synchronisation orders.
#[test]
fn accesses_of_two_lanes() {
    let init = ("l0", "st.shared.u32 [%r1], 1;");
    let sync = ("-", "bar.warp.sync -1;");
    let of = |lines: &[(&str, &str)]| threads(&body(lines), 32).map(|_| ());
    let (read, write) = ("ld.shared.u32 %r5, [%r1];", "st.shared.u32 [%r1], 2;");
    raced("write, read", of(&[init, ("l1", read)]));
    raced("write, write", of(&[init, ("l1", write)]));
    raced("read, write", of(&[init, sync, ("l2", read), ("l1", write)]));
    // The reader before the last one counts, too, and the writer's own read does not.
    raced("two reads, write", of(&[init, sync, ("l2", read), ("l1", read), ("l1", write)]));
    of(&[init, sync, ("l1", read), ("l1", write)]).unwrap();
    of(&[init, sync, ("l2", read), sync, ("l1", write)]).unwrap();
    // What comes right behind a synchronisation is not before it.
    raced("behind a synchronisation", of(&[init, sync, ("l1", write), ("l2", read)]));
    raced("twice", of(&[init, sync, sync, ("l1", write), ("l2", write)]));
}

/// Rows of matrices, to their last bytes.
#[test]
fn accesses_of_matrices() {
    let rows = ("w0", "mad.lo.u32 %r6, %r3, 16, %r1;");
    let all = ("-", "mad.lo.u32 %r6, %r3, 16, %r1;");
    let init = ("w0", "st.shared.v4.u32 [%r6], {%t, %t, %t, %t};");
    let (load, store) = (
        "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r7}, [%r6];",
        "stmatrix.sync.aligned.m8n8.x1.shared.b16 [%r6], {%r3};",
    );
    let barrier = ("-", "bar.sync 0;");
    for (first, second) in [
        (load, "w1 l7 st.shared.u32 [%r6+12], 3;"),
        (store, "w1 l7 ld.shared.u32 %r7, [%r6+12];"),
        (store, "w1 l7 st.shared.u32 [%r6+4], 3;"),
    ] {
        let (who, second) = second.split_at(5);
        let lines = [all, init, barrier, ("w0", first), (who, second)];
        raced(first, shared(&lines));
        shared(&[all, init, barrier, ("w0", first), barrier, (who, second)]).unwrap();
    }
    raced("two stores", shared(&[all, init, barrier, ("w0", store), ("w1", store)]));
    raced("store, load", shared(&[all, init, barrier, ("w0", store), ("w1", load)]));
    shared(&[all, init, barrier, ("w0", load), ("w1", load)]).unwrap();
    shared(&[rows, init, ("w0", "bar.warp.sync -1;"), ("w0", load)]).unwrap();
}

/// Copies that are under way: who may touch their bytes, and whose wait they are over with.
#[test]
fn copies_under_way() {
    let lane = ("-", "mad.lo.u32 %r6, %r3, 16, %r1;");
    let copy = ("-", "cp.async.cg.shared.global [%r6], [%base], 16;");
    let (commit, wait) = (("-", "cp.async.commit_group;"), ("-", "cp.async.wait_group 0;"));
    let read = ("-", "ld.shared.u32 %o, [%r6];");
    for schedule in [Schedule::InOrder, Schedule::Greedy, Schedule::Random(5)] {
        let of = |lines: &[(&str, &str)]| {
            grid(&body(lines), [[1; 3], [32, 1, 1]], &7u32.to_le_bytes().repeat(64), schedule).map(|_| ())
        };
        of(&[lane, copy, commit, wait, read]).unwrap();
        let hazard = raced("a read before the wait", of(&[lane, copy, commit, read]));
        assert_eq!(hazard, Hazard::ReadBeforeWait);
        let hazard = raced("a write before the wait", of(&[lane, copy, commit, ("-", "st.shared.u32 [%r6+12], 3;")]));
        assert_eq!(hazard, Hazard::WriteBeforeWait);
        raced("a second copy to the place", of(&[lane, copy, commit, copy]));
        // A lane that does not commit, or does not wait, has none that is over.
        raced(
            "lane 3 does not commit",
            of(&[lane, copy, ("-", "setp.ne.u32 %p2, %r3, 3;"), ("-", "@%p2 cp.async.commit_group;"), wait, read]),
        );
        raced(
            "lane 3 does not wait",
            of(&[lane, copy, commit, ("-", "setp.ne.u32 %p2, %r3, 3;"), ("-", "@%p2 cp.async.wait_group 0;"), read]),
        );
        // Of two groups the first is over.
        let next = ("-", "cp.async.cg.shared.global [%r6+512], [%base], 16;");
        let one = ("-", "cp.async.wait_group 1;");
        of(&[lane, copy, commit, next, commit, one, read]).unwrap();
        raced("the second group", of(&[lane, copy, commit, next, commit, one, ("-", "ld.shared.u32 %o, [%r6+512];")]));
        // Another lane's copy is over for this one behind a synchronisation.
        let other = ("-", "xor.b32 %r6, %r6, 16;");
        raced("another lane's copy", of(&[lane, copy, commit, wait, other, read]));
        of(&[lane, copy, commit, wait, ("-", "bar.warp.sync -1;"), other, read]).unwrap();
        raced("its last bytes", of(&[lane, copy, commit, wait, other, ("-", "ld.shared.u32 %o, [%r6+12];")]));
    }
}

/// Blocks that access the same global memory.
#[test]
fn accesses_of_two_blocks() {
    let of = |blocks: u32, first: &str, second: &str| {
        let last = format!("b{}", blocks - 1);
        let lines = [("b0 l0", first), (last.as_str(), second)];
        grid(&body(&lines), [[blocks, 1, 1], [1; 3]], &[7; 64], Schedule::InOrder).map(|_| ())
    };
    for blocks in [2, 257] {
        for (first, second) in [
            ("st.global.u32 [%base], 1;", "st.global.u32 [%base], 1;"),
            ("st.global.v4.u32 [%base], {1, 1, 1, 1};", "st.global.v4.u32 [%base], {1, 1, 1, 1};"),
            ("st.global.v4.u32 [%base], {1, 1, 1, 1};", "ld.global.u16 %r5, [%base+14];"),
            ("ld.global.v4.u32 {%r5, %r6, %r7, %r8}, [%base];", "st.global.u32 [%base+12], 1;"),
            ("st.global.u32 [%base], 1;", "ld.global.u32 %r5, [%base];"),
            ("st.global.u8 [%base+1], 1;", "ld.global.u32 %r5, [%base];"),
            ("st.global.u8 [%base+1], 1;", "st.global.u8 [%base+1], 1;"),
            ("st.global.u32 [%base], 1;", "cp.async.ca.shared.global [%r1], [%base], 4;"),
            ("cp.async.cg.shared.global [%r1], [%base], 16;", "st.global.u32 [%base+12], 1;"),
        ] {
            raced(&format!("{blocks}: {first} {second}"), of(blocks, first, second));
        }
    }
    for (first, second) in [
        ("st.global.u8 [%base], 1;", "st.global.u8 [%base+1], 1;"),
        ("st.global.u8 [%base+1], 1;", "ld.global.u8 %r5, [%base];"),
        ("st.global.u16 [%base], 1;", "st.global.u16 [%base+2], 1;"),
        ("ld.global.u32 %r5, [%base];", "ld.global.u32 %r5, [%base];"),
        ("atom.global.add.u32 %r5, [%base], 1;", "atom.global.add.u32 %r5, [%base], 1;"),
    ] {
        of(2, first, second).unwrap_or_else(|fault| panic!("{first} {second}: {fault}"));
    }
}
