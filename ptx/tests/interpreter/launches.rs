//! Whole launches: chosen blocks over sparse memory, counted barriers, concurrent launches, determinism.

use super::common::{module, upload};
use braid_ptx::{FaultKind, GlobalMemory, InstructionKind, Launch, Module, Schedule, run};

/// Kernels of the tests. In `pipe`, the first warp writes to shared memory and the second reads, ordered by counted barriers.
const PIPE: &str = ".version 8.0
.target sm_80
.address_size 64
.visible .entry pipe(.param .u64 out) .maxntid 64, 1, 1 {
  .reg .pred %p<3>; .reg .b32 %r<9>; .reg .b64 %d<4>; .shared .align 4 .b8 slot[128];
  ld.param.u64 %d1, [out]; mov.u32 %r1, %tid.x; and.b32 %r2, %r1, 31; shl.b32 %r3, %r2, 2;
  mov.u32 %r4, slot; add.u32 %r4, %r4, %r3; cvt.u64.u32 %d2, %r3; add.u64 %d1, %d1, %d2;
  mov.u32 %r5, 0; mov.u32 %r7, 0;
  setp.lt.u32 %p1, %r1, 32; @!%p1 bra consume;
produce:
  add.u32 %r6, %r5, %r2;
  st.shared.u32 [%r4], %r6;
  bar.arrive 1, 64;
  bar.sync 2, 64;
  add.u32 %r5, %r5, 1; setp.lt.u32 %p2, %r5, 10; @%p2 bra produce;
  ret;
consume:
  bar.sync 1, 64;
  xor.b32 %r8, %r4, 4;
  ld.shared.u32 %r6, [%r8];
  bar.arrive 2, 64;
  add.u32 %r7, %r7, %r6;
  add.u32 %r5, %r5, 1; setp.lt.u32 %p2, %r5, 10; @%p2 bra consume;
  st.global.u32 [%d1], %r7;
  ret;
}
.visible .entry votes(.param .u64 out) {
  .reg .pred %p<3>; .reg .b32 %r<4>; .reg .b64 %d<3>;
  ld.param.u64 %d1, [out]; mov.u32 %r1, %tid.x; setp.lt.u32 %p1, %r1, 37;
  barrier.red.popc.aligned.u32 %r2, 0, %p1;
  barrier.cta.red.and.aligned.pred %p2, 0, %p1; selp.u32 %r3, 1000, 0, %p2; add.u32 %r2, %r2, %r3;
  bar.red.or.pred %p2, 0, %p1; selp.u32 %r3, 100, 0, %p2; add.u32 %r2, %r2, %r3;
  mul.wide.u32 %d2, %r1, 4; add.u64 %d1, %d1, %d2; st.global.u32 [%d1], %r2; ret;
}
.visible .entry far(.param .u64 data) {
  .reg .b32 %r<4>; .reg .b64 %d<4>;
  ld.param.u64 %d1, [data]; mov.u32 %r1, %ctaid.x; mul.wide.u32 %d2, %r1, 1048576; add.u64 %d1, %d1, %d2;
  mov.u32 %r2, %tid.x; mul.wide.u32 %d3, %r2, 4; add.u64 %d1, %d1, %d3; st.global.u32 [%d1], %r1; ret;
}
";

fn words(memory: &GlobalMemory, at: u64, n: usize) -> Vec<u32> {
    let mut bytes = vec![0; 4 * n];
    memory.read(at, &mut bytes).unwrap();
    bytes.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect()
}

#[test]
fn counted_barriers() {
    let right = Module::parse(PIPE).unwrap();
    // Without the barrier by which the consumer releases the slot.
    let wrong = Module::parse(&PIPE.replace("bar.sync 2, 64;", "").replace("bar.arrive 2, 64;", "")).unwrap();
    for seed in 0..8 {
        let memory = GlobalMemory::new();
        let out = memory.alloc(128);
        let params = out.to_le_bytes();
        let mut launch = Launch::new([1, 1, 1], [64, 1, 1], &params);
        launch.schedule = if seed == 0 { Schedule::InOrder } else { Schedule::Random(seed) };
        run(&right, "pipe", &memory, &launch).unwrap_or_else(|f| panic!("{f}"));
        let sums = words(&memory, out, 32);
        assert!(sums.iter().enumerate().all(|(lane, s)| *s == 45 + 10 * (lane as u32 ^ 1)), "{sums:?}");
        let fault = run(&wrong, "pipe", &memory, &launch).unwrap_err();
        assert!(matches!(fault.kind, FaultKind::Race { .. } | FaultKind::Deadlock { .. }), "{fault}");
    }
}

#[test]
fn barrier_reductions() {
    let memory = GlobalMemory::new();
    let out = memory.alloc(256);
    run(&Module::parse(PIPE).unwrap(), "votes", &memory, &Launch::new([1, 1, 1], [64, 1, 1], &out.to_le_bytes()))
        .unwrap();
    assert!(words(&memory, out, 64).iter().all(|w| *w == 137));
}

#[test]
fn chosen_blocks() {
    let memory = GlobalMemory::new();
    let data = memory.alloc(64 << 30);
    let params = data.to_le_bytes();
    let chosen = [[0, 0, 0], [65_535, 0, 0], [40_000, 0, 0]];
    let mut launch = Launch::new([65_536, 1, 1], [96, 1, 1], &params);
    launch.blocks = Some(&chosen);
    let counts = run(&Module::parse(PIPE).unwrap(), "far", &memory, &launch).unwrap();
    assert_eq!((counts.blocks, counts.of(InstructionKind::GlobalStore), counts.stores.sectors), (3, 9, 36));
    assert_eq!(words(&memory, data + 40_000 * (1 << 20), 96), [40_000; 96]);
    assert!(memory.read(data + (1 << 20), &mut [0; 4]).is_err());
    launch.blocks = Some(&[[65_536, 0, 0]]);
    assert!(matches!(
        run(&Module::parse(PIPE).unwrap(), "far", &memory, &launch).unwrap_err().kind,
        FaultKind::Launch(_)
    ));
}

#[test]
fn chosen_blocks_in_three_dimensions() {
    let text = ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 out) {
        .reg .b32 %r<9>; .reg .b64 %d<3>; ld.param.u64 %d1, [out];
        mov.u32 %r1, %ctaid.x; mov.u32 %r2, %ctaid.y; mov.u32 %r3, %ctaid.z;
        mad.lo.u32 %r4, %r3, 3, %r2; mad.lo.u32 %r4, %r4, 2, %r1; mul.wide.u32 %d2, %r4, 4; add.u64 %d1, %d1, %d2;
        st.global.u32 [%d1], 1; ret; }";
    let memory = GlobalMemory::new();
    let out = memory.alloc(4 * 24);
    memory.fill(out, 4 * 24, 0).unwrap();
    let params = out.to_le_bytes();
    let mut launch = Launch::new([2, 3, 4], [1; 3], &params);
    let chosen = [[1, 0, 0], [0, 2, 0], [1, 1, 2], [0, 0, 3]];
    launch.blocks = Some(&chosen);
    run(&Module::parse(text).unwrap(), "k", &memory, &launch).unwrap();
    let there: Vec<usize> = (0..24).filter(|i| words(&memory, out, 24)[*i] == 1).collect();
    assert_eq!(there, [1, 4, 15, 18]);
}

/// Limits of a launch, to the last thread, block and byte.
#[test]
fn limits_of_launches() {
    let module = |bounds: &str| {
        let text = format!(
            ".version 8.0\n.target sm_80\n.address_size 64\n.extern .shared .align 16 .b8 room[];
            .visible .entry k(.param .u32 at) {bounds} {{ .reg .b32 %r<4>; .reg .pred %p<2>; mov.u32 %r1, room;
            ld.param.u32 %r2, [at]; add.u32 %r1, %r1, %r2; mov.u32 %r3, %tid.x; setp.eq.u32 %p1, %r3, 0;
            @%p1 st.shared.u32 [%r1], 1; ret; }}"
        );
        Module::parse(&text).unwrap()
    };
    let run = |bounds: &str, grid, block, shared: usize, at: u32| {
        let params = at.to_le_bytes();
        let mut launch = Launch::new(grid, block, &params);
        // One block will do.
        (launch.dynamic_shared, launch.blocks) = (shared, Some(&[[0u32; 3]][..]));
        run(&module(bounds), "k", &GlobalMemory::new(), &launch).map(|_| ()).map_err(|fault| fault.kind)
    };
    let one = [1; 3];
    let refused = |result| assert!(matches!(result, Err(FaultKind::Launch(_))), "{result:?}");
    run("", one, [1024, 1, 1], 16, 0).unwrap();
    refused(run("", one, [1025, 1, 1], 16, 0));
    refused(run("", one, [0, 1, 1], 16, 0));
    run(".maxntid 64, 1, 1", one, [64, 1, 1], 16, 0).unwrap();
    refused(run(".maxntid 64, 1, 1", one, [65, 1, 1], 16, 0));
    for side in [1, 2] {
        let grid = |n| std::array::from_fn(|d| if d == side { n } else { 1 });
        run("", grid(65_535), one, 16, 0).unwrap();
        refused(run("", grid(65_536), one, 16, 0));
        refused(run("", grid(0), one, 16, 0));
    }
    run("", one, one, 227 << 10, (227 << 10) - 4).unwrap();
    refused(run("", one, one, (227 << 10) + 1, 0));
    // The end of what the launch asked for.
    run("", one, one, 64, 60).unwrap();
    assert!(matches!(run("", one, one, 64, 64), Err(FaultKind::OutOfBounds { .. })));
    // Parameters of another size.
    for bytes in [0, 3, 5, 8] {
        let params = vec![0; bytes];
        let launch = Launch::new(one, one, &params);
        refused(
            braid_ptx::run(&module(""), "k", &GlobalMemory::new(), &launch).map(|_| ()).map_err(|fault| fault.kind),
        );
    }
}

#[test]
fn concurrent_launches() {
    let module = module("functions");
    let memory = GlobalMemory::new();
    let once = || {
        let from = upload(&memory, (0..1000).map(|i| (i as f32).to_le_bytes()));
        let to = memory.alloc(4004);
        let mut params: Vec<u8> = [from, to].iter().flat_map(|p| p.to_le_bytes()).collect();
        params.extend([1000u32, 3].iter().flat_map(|v| v.to_le_bytes()));
        let counts = run(&module, "functions", &memory, &Launch::new([8, 1, 1], [128, 1, 1], &params)).unwrap();
        let result = words(&memory, to, 1000);
        assert!(memory.free(from) && memory.free(to));
        (counts, result)
    };
    let first = once();
    std::thread::scope(|s| {
        let runs: Vec<_> = (0..4).map(|_| s.spawn(once)).collect();
        for r in runs {
            assert_eq!(r.join().unwrap(), first);
        }
    });
}
