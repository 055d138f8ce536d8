//! Kernels of sm_90a compiled by NVRTC (TMA, mbarriers, wgmma, clusters) against f64, and the faults reported when a part of their
//! synchronisation is cut out of the PTX or changed.

use super::common::{noise, product_error, upload};
use braid_ptx::{
    Counts, Fault, FaultKind, GlobalMemory, Hazard, Im2col, InstructionKind, Launch, Module, Schedule, Swizzle,
    TensorMap, run,
};
use half::f16;

const M: usize = 256;
const N: usize = 128;
/// Five steps of a ring of three stages.
const K: usize = 320;

const SCHEDULES: [Schedule; 4] = [Schedule::InOrder, Schedule::Greedy, Schedule::Random(1), Schedule::Random(99)];

fn text(name: &str) -> String {
    std::fs::read_to_string(format!("{}/tests/data/{name}.ptx", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// The map of a matrix of halves by rows, in tiles.
fn map(address: u64, rows: usize, columns: usize, tile: [u32; 2], swizzle: Swizzle) -> Vec<u8> {
    let mut map = TensorMap::tiled(address, &[columns as u64, rows as u64], &[columns as u64 * 2], &tile);
    map.swizzle = swizzle;
    map.to_bytes().to_vec()
}

/// The largest error relative to the largest value, and the counts.
fn product(ptx: &str, cluster: bool, schedule: Schedule) -> Result<(f64, Counts), Fault> {
    let module = Module::parse(ptx).unwrap();
    let memory = GlobalMemory::new();
    let mut next = noise(7);
    let mut matrix = |n| (0..n).map(|_| f16::from_f32(next())).collect::<Vec<_>>();
    let (a, b) = (matrix(M * K), matrix(N * K));
    let pa = upload(&memory, a.iter().map(|x| x.to_le_bytes()));
    let pb = upload(&memory, b.iter().map(|x| x.to_le_bytes()));
    let pc = memory.alloc((M * N * 2) as u64);
    let rows_of_b = if cluster { 32 } else { 64 };
    let mut params = map(pa, M, K, [64, 128], Swizzle::Bytes128);
    params.extend(map(pb, N, K, [64, rows_of_b], Swizzle::Bytes128));
    params.extend(map(pc, M, N, [64, 64], Swizzle::None));
    params.extend((K as u32).to_le_bytes());
    let mut launch = Launch::new([(M / 128) as u32, (N / 64) as u32, 1], [384, 1, 1], &params);
    launch.dynamic_shared = 3 * 24_576 + 16_384;
    launch.schedule = schedule;
    launch.step_limit = 1 << 22;
    let counts = run(&module, "hopper", &memory, &launch)?;
    let mut out = vec![0; M * N * 2];
    memory.read(pc, &mut out).unwrap();
    let out = out.as_chunks::<2>().0;
    let error = product_error(
        [M, N, K],
        |row, k| a[row * K + k].to_f64(),
        |k, col| b[col * K + k].to_f64(),
        |i| f16::from_le_bytes(out[i]).to_f64(),
    );
    Ok((error, counts))
}

#[test]
fn f64_parity() {
    for (name, cluster) in [("hopper", false), ("hopper.CLUSTER", true)] {
        for schedule in SCHEDULES {
            let (error, counts) =
                product(&text(name), cluster, schedule).unwrap_or_else(|f| panic!("{name} {schedule:?}: {f}"));
            assert!(error < 6e-4, "{name} {schedule:?}: {error}");
            // 4 blocks, 8 warps, 5 steps of 4 products, a fence, a commit and a wait.
            assert_eq!(counts.of(InstructionKind::Mma), 4 * 8 * 5 * 7);
            assert_eq!(counts.blocks, 4);
        }
    }
}

/// The PTX with a text changed wherever it stands.
fn changed(name: &str, from: &str, to: &str) -> String {
    let whole = text(name);
    assert!(whole.contains(from), "no `{from}` in {name}");
    whole.replace(from, to)
}

/// The PTX without the lines that hold a text.
fn without(name: &str, text_of_line: &str) -> String {
    let whole = text(name);
    assert!(whole.contains(text_of_line), "no `{text_of_line}` in {name}");
    whole.lines().filter(|line| !line.contains(text_of_line)).collect::<Vec<_>>().join("\n")
}

/// The fault of a defect under each schedule, or the error of the result.
fn seen(ptx: &str, cluster: bool) -> Vec<Result<f64, FaultKind>> {
    SCHEDULES.iter().map(|s| product(ptx, cluster, *s).map(|(error, _)| error).map_err(|f| f.kind)).collect()
}

fn hazard(kind: &FaultKind) -> Option<Hazard> {
    match kind {
        FaultKind::Race { hazard, .. } => Some(*hazard),
        _ => None,
    }
}

/// Each defect is a fault under every schedule, of one of these kinds.
#[test]
fn defects() {
    let race = |k: &FaultKind| hazard(k).is_some();
    let deadlock = |k: &FaultKind| matches!(k, FaultKind::Deadlock { what } if what.contains("lacks"));
    let rule = |k: &FaultKind| matches!(k, FaultKind::Asynchronous(_));
    type Expected<'a> = &'a dyn Fn(&FaultKind) -> bool;
    let lost = |k: &FaultKind| race(k) || matches!(k, FaultKind::Uninitialised { .. });
    let drop = |line: &str| without("hopper", line);
    let cases: [(&str, String, Expected); 12] = [
        ("the producer does not wait for empty stages", drop("bra empty;"), &|k| race(k) || rule(k)),
        ("a consumer does not wait for its tiles", drop("bra full;"), &lost),
        ("no arrival at the empty barrier", drop("mbarrier.arrive.shared::cta.b64 _, ["), &deadlock),
        ("fewer bytes are expected", changed("hopper", "mov.u32 \t%r150, 24576;", "mov.u32 %r150, 16384;"), &|k| {
            rule(k) || race(k) || deadlock(k)
        }),
        ("more bytes are expected", changed("hopper", "mov.u32 \t%r150, 24576;", "mov.u32 %r150, 24592;"), &deadlock),
        ("no fence before the first product", drop("wgmma.fence.sync.aligned;"), &rule),
        ("products are not waited for", drop("wgmma.wait_group.sync.aligned 0;"), &race),
        ("the results are not fenced", drop("fence.proxy.async.shared::cta;"), &|k| {
            hazard(k) == Some(Hazard::NoProxyFence)
        }),
        ("no barrier before the results are read", drop("bar.sync %r"), &race),
        ("the copy of the results is not waited for", drop("cp.async.bulk.wait_group.read 0;"), &rule),
        ("the mbarriers are not initialised", drop("mbarrier.init.shared::cta.b64"), &rule),
        ("no barrier after the initialisation", drop("bar.sync \t0;"), &|k| race(k) || rule(k)),
    ];
    for (what, ptx, expected) in cases {
        for (result, schedule) in seen(&ptx, false).iter().zip(SCHEDULES) {
            let Err(kind) = result else { panic!("{what} {schedule:?}: {result:?}") };
            assert!(expected(kind), "{what} {schedule:?}: {kind}");
        }
    }
}

/// Defects of addresses and orders, which give other results or faults.
#[test]
fn wrong_results() {
    let descriptor = (1u64 << 62 | 64 << 32 | 1 << 16).to_string();
    let stride = (1u64 << 62 | 32 << 32 | 1 << 16).to_string();
    let swizzle = (2u64 << 62 | 64 << 32 | 1 << 16) as i64;
    for (what, to) in [("the stride of a descriptor", stride), ("the swizzle of a descriptor", swizzle.to_string())] {
        assert!(text("hopper").contains(&descriptor), "no descriptor {descriptor}");
        for result in seen(&text("hopper").replace(&descriptor, &to), false) {
            assert!(result.as_ref().map_or(true, |error| *error > 0.1), "{what}: {result:?}");
        }
    }
}

/// Defects of a cluster.
#[test]
fn cluster_defects() {
    let barrier = changed("hopper.CLUSTER", "barrier.cluster.wait.acquire.aligned;", "");
    let own = text("hopper.CLUSTER");
    // `mapa at, address, block;` as `mov at, address;`
    let own: Vec<String> = own
        .lines()
        .map(|line| match line.split_once("mapa.shared::cluster.u32 at, ") {
            Some((before, after)) => {
                let (address, rest) = after.split_once(", ").unwrap();
                format!("{before}mov.u32 at, {address};{}", rest.split_once(';').unwrap().1)
            }
            None => line.to_owned(),
        })
        .collect();
    assert_ne!(own.join("\n"), text("hopper.CLUSTER").trim_end());
    let once = changed("hopper.CLUSTER", ", 3;", ", 1;");
    let whole = text("hopper.CLUSTER");
    let (before, after) = whole.split_at(whole.rfind("barrier.cluster.arrive").unwrap());
    let last = format!("{before}{}", after.split_once(".wait.acquire.aligned;").unwrap().1);
    for (what, ptx) in [
        ("no barriers of the cluster", barrier),
        ("arrivals at the own block only", own.join("\n")),
        ("no copy to the other", once),
        ("no barrier before the end", last),
    ] {
        for (result, schedule) in seen(&ptx, true).iter().zip(SCHEDULES) {
            assert!(result.is_err(), "{what} {schedule:?}: {result:?}");
        }
    }
}

/// An im2col map: rows of 32 channels of a 3x3 convolution with padding.
#[test]
fn im2col_pixels() {
    let (channels, width, height, images) = (32usize, 5usize, 4usize, 2usize);
    let memory = GlobalMemory::new();
    let value = |n: usize, y: usize, x: usize, c: usize| (((n * height + y) * width + x) * channels + c) as u16 + 1;
    let all = (0..images * height * width * channels).map(|i| (i as u16 + 1).to_le_bytes());
    let data = upload(&memory, all);
    let rows = 12;
    let corners = Im2col { lower: [-1, -1, 0], upper: [-1, -1, 0], channels: 32, pixels: rows as u16 };
    let strides = [64, 64 * width as u64, 64 * (width * height) as u64];
    let map =
        TensorMap::im2col(data, &[channels as u64, width as u64, height as u64, images as u64], &strides, corners);
    let out = memory.alloc((rows * channels * 2) as u64);
    let module = Module::parse(&text("hopper")).unwrap();
    // From output pixel (3, 2) of image 0, so that the ends of rows and of the image lie within.
    for (tap_x, tap_y) in [(0, 0), (1, 1), (2, 0), (2, 2)] {
        for schedule in SCHEDULES {
            let mut params = map.to_bytes().to_vec();
            for v in [3 - 1, 2 - 1, 0, tap_x, tap_y, rows as i32] {
                params.extend(v.to_le_bytes());
            }
            params.extend(out.to_le_bytes());
            let mut launch = Launch::new([1, 1, 1], [32, 1, 1], &params);
            launch.dynamic_shared = rows * 64;
            launch.schedule = schedule;
            run(&module, "pixels", &memory, &launch).unwrap_or_else(|f| panic!("{f}"));
            let mut bytes = vec![0; rows * channels * 2];
            memory.read(out, &mut bytes).unwrap();
            for (i, row) in bytes.chunks_exact(64).enumerate() {
                let pixel = 2 * width + 3 + i;
                let (n, y, x) = (pixel / (width * height), pixel / width % height, pixel % width);
                let (y, x) = (y as i32 - 1 + tap_y, x as i32 - 1 + tap_x);
                let inside = (0..height as i32).contains(&y) && (0..width as i32).contains(&x);
                for (c, got) in row.as_chunks::<2>().0.iter().enumerate() {
                    let want = if inside { value(n, y as usize, x as usize, c) } else { 0 };
                    assert_eq!(u16::from_le_bytes(*got), want, "row {i}, channel {c}, tap {tap_x} {tap_y}");
                }
            }
        }
    }
}

/// A tensor map made by the kernel, whose tile reaches beyond the tensor; without its fence it may not be used.
#[test]
fn map_made_on_the_device() {
    let memory = GlobalMemory::new();
    let data = upload(&memory, (0..12 * 24i32).map(i32::to_le_bytes));
    let made = memory.alloc(128);
    let out = memory.alloc(512);
    let mut params = made.to_le_bytes().to_vec();
    params.extend(data.to_le_bytes());
    params.extend(out.to_le_bytes());
    for schedule in SCHEDULES {
        let mut launch = Launch::new([1, 1, 1], [32, 1, 1], &params);
        launch.schedule = schedule;
        run(&Module::parse(&text("hopper")).unwrap(), "made_map", &memory, &launch).unwrap_or_else(|f| panic!("{f}"));
        let mut bytes = [0; 512];
        memory.read(out, &mut bytes).unwrap();
        for (i, got) in bytes.as_chunks::<4>().0.iter().enumerate() {
            let (y, x) = (2 + i as i32 / 16, 4 + i as i32 % 16);
            let want = if x < 18 && y < 12 { y * 24 + x } else { 0 };
            assert_eq!(i32::from_le_bytes(*got), want, "{x} {y}");
        }
        let ptx = changed("hopper", "fence.proxy.tensormap::generic.acquire.gpu [", "// [");
        let fault = run(&Module::parse(&ptx).unwrap(), "made_map", &memory, &launch).unwrap_err();
        assert!(fault.to_string().contains("fence.proxy.tensormap"), "{fault}");
    }
}
