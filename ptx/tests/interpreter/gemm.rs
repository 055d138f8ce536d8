//! A matrix product compiled by NVRTC (cp.async, ldmatrix, mma.sync) against f64, and the faults reported when parts of its
//! synchronisation are missing.

use super::common::{download, line_of, module, noise, product_error, upload};
use braid_ptx::{Counts, Fault, FaultKind, GlobalMemory, Hazard, InstructionKind, Launch, Schedule, run};
use half::f16;

const M: usize = 128;
const N: usize = 64;
const K: usize = 128;

/// The error relative to the largest value, and the counts.
fn gemm(variant: &str, schedule: Schedule, check_races: bool) -> Result<(f64, Counts), Fault> {
    let name = if variant.is_empty() { "gemm".to_owned() } else { format!("gemm.{variant}") };
    let memory = GlobalMemory::new();
    let mut next = noise(7);
    let mut matrix = |n| (0..n).map(|_| f16::from_f32(next())).collect::<Vec<_>>();
    let (a, b) = (matrix(M * K), matrix(N * K));
    let pa = upload(&memory, a.iter().map(|x| x.to_le_bytes()));
    let pb = upload(&memory, b.iter().map(|x| x.to_le_bytes()));
    let pc = memory.alloc((M * N * 4) as u64);
    let mut params: Vec<u8> = [pa, pb, pc].iter().flat_map(|p| p.to_le_bytes()).collect();
    params.extend([M as u32, N as u32, K as u32, 0].iter().flat_map(|v| v.to_le_bytes()));
    let mut launch = Launch::new([(N / 64) as u32, (M / 64) as u32, 1], [128, 1, 1], &params);
    launch.schedule = schedule;
    launch.check_races = check_races;
    let counts = run(&module(&name), "gemm", &memory, &launch)?;
    let c = download(&memory, pc, M * N);
    let error =
        product_error([M, N, K], |row, k| a[row * K + k].to_f64(), |k, col| b[col * K + k].to_f64(), |i| c[i].into());
    Ok((error, counts))
}

const SCHEDULES: [Schedule; 4] = [Schedule::InOrder, Schedule::Greedy, Schedule::Random(1), Schedule::Random(99)];

#[test]
fn f64_parity() {
    for schedule in SCHEDULES {
        let (error, counts) = gemm("", schedule, true).unwrap();
        assert!(error < 3e-7, "{schedule:?}: {error}");
        // 2 blocks of 4 warps, 4 steps of 2 x 8 products.
        assert_eq!(counts.of(InstructionKind::Mma), 2 * 4 * 4 * 16);
        // Each of A and B is read once a block: 64 rows of K halves, in whole sectors.
        assert_eq!((counts.loads.sectors, counts.loads.ideal), (2 * 2 * 64 * 8, 2 * 2 * 64 * 8));
        // The padded tiles are free of bank conflicts.
        assert_eq!(counts.shared_loads.passes, counts.shared_loads.ideal);
        assert_eq!(counts.barriers, 2 * 4 * 4 * 2);
    }
}

#[test]
fn swapped_fragments() {
    let (error, _) = gemm("SWAP", Schedule::InOrder, true).unwrap();
    assert!(error > 0.1, "{error}");
}

/// The hazard, and the lines through which each of the two accesses was inlined.
fn hazard(variant: &str, schedule: Schedule) -> (Hazard, Vec<u32>, Vec<u32>) {
    let fault = gemm(variant, schedule, true).unwrap_err();
    let FaultKind::Race { hazard, other, .. } = &fault.kind else { panic!("{fault}") };
    let site = fault.site.unwrap();
    let lines = |s: &braid_ptx::Site| s.source.iter().map(|s| s.line).collect();
    assert!(site.source[0].file.ends_with("gemm.cu"));
    (*hazard, lines(&site), lines(other))
}

#[test]
fn missing_synchronisation() {
    let fill_a = line_of("gemm.cu", "p.k + k0 + chunk + skew);");
    let fill_b = line_of("gemm.cu", "p.k + k0 + chunk);");
    let load_a = line_of("gemm.cu", "PITCH + k + lane / 16 * 8));");
    let load_b = line_of("gemm.cu", "PITCH + k + lane / 8 % 2 * 8));");
    let fills = |lines: &[u32]| lines.contains(&fill_a) || lines.contains(&fill_b);
    let loads = |lines: &[u32]| lines.contains(&load_a) || lines.contains(&load_b);
    for schedule in SCHEDULES {
        let (kind, at, other) = hazard("NO_WAIT", schedule);
        assert!(kind == Hazard::ReadBeforeWait && loads(&at) && fills(&other), "{schedule:?}: {kind} {at:?} {other:?}");
        // A warp ahead fills the buffer that another reads, or has read.
        let (kind, at, other) = hazard("NO_TRAILING", schedule);
        let expected = match kind {
            Hazard::WriteAfterRead => fills(&at) && loads(&other),
            _ => kind == Hazard::ReadBeforeWait && loads(&at) && fills(&other),
        };
        assert!(expected, "{schedule:?}: {kind} {at:?} {other:?}");
        // Without the barrier the other warps' copies may not even have been issued.
        let fault = gemm("NO_BARRIER", schedule, true).unwrap_err();
        let race = matches!(fault.kind, FaultKind::Race { .. } | FaultKind::Uninitialised { .. });
        assert!(race, "{schedule:?}: {fault}");
    }
    // Without its trailing barrier the product is right where copies land late: only the shadow sees the defect there.
    let (error, _) = gemm("NO_TRAILING", Schedule::Greedy, false).unwrap();
    assert!(error < 3e-7, "{error}");
    let (error, _) = gemm("NO_TRAILING", Schedule::InOrder, false).unwrap();
    assert!(error > 0.1, "{error}");
}

#[test]
fn out_of_bounds() {
    let fault = gemm("SHIFT", Schedule::InOrder, true).unwrap_err();
    assert!(matches!(fault.kind, FaultKind::OutOfBounds { .. }), "{fault}");
    let line = line_of("gemm.cu", "p.k + k0 + chunk + skew);");
    assert!(fault.site.as_ref().unwrap().source.iter().any(|s| s.line == line), "{fault}");
}
