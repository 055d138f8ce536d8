//! The speed of each kernel on a GPU at SDXL's sizes, beside that GPU's copies and products in the same run.
//!
//! `cargo test --release --test kernels timing -- --nocapture --test-threads 1` prints the table; tools/gpu-check.sh keeps it.
//! The launches of a row lie in one captured graph and follow each other over several sets of tensors, so many that between
//! two uses of one lie 256 MiB of others, more than any L2 cache has (32 sets at most: only the smallest stay in it). Time is
//! the host's, from before a number of graph launches to after them, divided by the launches.

use crate::common::*;
use crate::device::{Where, cuda, skip};
use crate::second_device::turn;
use crate::shapes::*;
use braid::device::cuda::driver::{Driver, Gemm, GemmEpilogue, GemmPlan, Launch, MatrixRef};
use braid::device::cuda::ops::gemm::GemmParams;
use braid::device::cuda::ops::registry::kernels;
use braid::device::cuda::ops::tile::Tile;
use std::time::{Duration, Instant};

/// The work that a row repeats.
enum Work {
    Launch(Launch),
    Product(GemmPlan),
    Copy(u64, u64, usize),
}

fn enqueue(driver: &dyn Driver, work: &[Work]) {
    for work in work {
        match work {
            Work::Launch(launch) => driver.launch(launch, false).unwrap(),
            Work::Product(plan) => driver.gemm(*plan).unwrap(),
            Work::Copy(from, to, bytes) => driver.copy(*from, *to, *bytes).unwrap(),
        }
    }
}

/// Seconds of one piece of work: of five runs of at least `least` the fastest.
fn seconds(driver: &dyn Driver, work: &[Work], least: Duration) -> f64 {
    let _turn = turn();
    // Once outside of the graph: modules are loaded at first use.
    enqueue(driver, work);
    driver.synchronize().unwrap();
    let graph = driver.begin_capture().unwrap().then(|| {
        enqueue(driver, work);
        driver.end_capture().unwrap()
    });
    let run = |launches: u32| {
        driver.synchronize().unwrap();
        let start = Instant::now();
        for _ in 0..launches {
            match graph {
                Some(graph) => driver.launch_graph(graph).unwrap(),
                None => enqueue(driver, work),
            }
        }
        driver.synchronize().unwrap();
        start.elapsed()
    };
    let mut launches = 1;
    while run(launches) < least && launches < 1 << 20 {
        launches *= 2;
    }
    let best = (0..5).map(|_| run(launches)).min().unwrap_or_default();
    if let Some(graph) = graph {
        driver.destroy_graph(graph);
    }
    best.as_secs_f64() / f64::from(launches) / work.len() as f64
}

/// The best that the GPU can do: bytes and floating-point operations a second.
struct Ceilings {
    bytes: f64,
    flops: f64,
}

impl Ceilings {
    fn measure(driver: &dyn Driver, least: Duration) -> Self {
        let (bytes, n) = (1usize << 30, 8192usize);
        let [a, b] = [(); 2].map(|()| driver.allocate_zeroed(bytes).unwrap());
        let copied = 2.0 * bytes as f64 / seconds(driver, &[Work::Copy(a, b, bytes)], least);
        let product = |transpose_b| {
            let matrix =
                |at: u64, part: usize| MatrixRef { data: at + (part * n * n * 2) as u64, leading: n, stride: 0 };
            let gemm = Gemm {
                dtype: DTYPE,
                m: n,
                n,
                k: n,
                batch: 1,
                transpose_a: true,
                transpose_b,
                a: matrix(a, 0),
                b: matrix(a, 1),
                d: matrix(b, 0),
                out_f32: false,
                epilogue: GemmEpilogue::None,
            };
            let plan = driver.prepare_gemm(&gemm).unwrap();
            let time = seconds(driver, &[Work::Product(plan)], least);
            driver.release_gemm(plan);
            2.0 * (n as f64).powi(3) / time
        };
        driver.memset(a, bytes, 0x2c).unwrap();
        let flops = if driver.properties().gemm { product(false).max(product(true)) } else { f64::INFINITY };
        [a, b].into_iter().for_each(|at| driver.free(at));
        Self { bytes: copied, flops }
    }

    /// The share of the time that the scarcer of the two would take at least.
    fn share(&self, shape: &Shape, seconds: f64) -> f64 {
        (shape.bytes / self.bytes).max(shape.flops / self.flops) / seconds
    }

    fn row(&self, kernel: &str, shape: &Shape, seconds: f64) -> String {
        format!(
            "| `{kernel}` | {} | {:.1} | {:.0} | {:.1} | {:.0} % |",
            shape.shape,
            seconds * 1e6,
            shape.bytes / seconds / 1e9,
            shape.flops / seconds / 1e12,
            100.0 * self.share(shape, seconds),
        )
    }
}

/// The library's product of what a `gemm` kernel computes: our rows are its columns.
fn of_library(driver: &dyn Driver, shape: &Shape) -> Option<Work> {
    let [m, n, k] = shape.product.filter(|_| driver.properties().gemm)?;
    let p: GemmParams = bytemuck::pod_read_unaligned(&shape.params);
    let matrix = |data: u64, leading: usize| MatrixRef { data, leading, stride: 0 };
    let gemm = Gemm {
        dtype: shape.dtype,
        m: n,
        n: m,
        k,
        batch: 1,
        transpose_a: true,
        transpose_b: false,
        a: matrix(p.w.0, k),
        b: matrix(p.x0.0, k),
        d: matrix(p.finish.out.0, n),
        out_f32: false,
        epilogue: GemmEpilogue::BiasResidual(p.finish.bias.0, matrix(p.finish.residual.0, n)),
    };
    Some(Work::Product(driver.prepare_gemm(&gemm).unwrap()))
}

type Shapes = fn(&Gpu) -> Vec<Shape>;

/// The shapes of each kind of kernel that take the UNet and the decoder longest.
const CASES: [Shapes; 25] = [
    |gpu| vec![attention(gpu, 4096, 640)],
    |gpu| vec![attention(gpu, 1024, 1280)],
    |gpu| vec![decoupled(gpu, 4096, 640)],
    |gpu| vec![decoupled(gpu, 1024, 1280)],
    |gpu| vec![convolved(gpu, "256x128", 128, [320, 0], 320, 0)],
    |gpu| vec![convolved(gpu, "128x64", 128, [320, 0], 320, 0)],
    |gpu| vec![convolved(gpu, "256x128", 64, [640, 0], 640, 0)],
    |gpu| vec![convolved(gpu, "128x128", 64, [640, 0], 640, 0)],
    |gpu| vec![convolved(gpu, "64x64", 32, [1280, 640], 1280, 0)],
    |gpu| vec![convolved(gpu, "128x128", 512, [256, 0], 256, 0)],
    |gpu| vec![to_colours(gpu, 1024, 128)],
    |gpu| vec![geglu(gpu, Tile::TALL, 4096, 2560, 640)],
    |gpu| vec![geglu(gpu, Tile::LARGE, 4096, 2560, 640)],
    |gpu| vec![geglu(gpu, Tile::TALL, 1024, 5120, 1280)],
    |gpu| vec![geglu(gpu, Tile::LARGE, 1024, 5120, 1280)],
    |gpu| vec![projection(gpu, Tile::TALL, 4096, 640, 640)],
    |gpu| vec![projection(gpu, Tile::LARGE, 4096, 640, 640)],
    |gpu| vec![projection(gpu, Tile::MEDIUM, 4096, 640, 2560)],
    |gpu| vec![projection(gpu, Tile::SMALL, 1024, 1280, 1280)],
    |gpu| vec![projection(gpu, Tile::SMALL, 77, 1280, 2048)],
    |gpu| group_norm(gpu, 128, 320).into(),
    |gpu| group_norm(gpu, 1024, 128).into(),
    |gpu| vec![layer_norm(gpu, 4096, 640)],
    |gpu| vec![softmax(gpu, 4096, 16_384)],
    |gpu| vec![add(gpu, 4096, 640)],
];

/// The same by the kernels of sm_90a, with the tiles that an H200 takes.
const CASES_OF_HOPPER: [Shapes; 11] = [
    |gpu| by_wgmma(gpu, &attention(gpu, 4096, 640), WIDE),
    |gpu| by_wgmma(gpu, &attention(gpu, 1024, 1280), WIDE),
    |gpu| by_wgmma(gpu, &decoupled(gpu, 4096, 640), WIDE),
    |gpu| by_wgmma(gpu, &decoupled(gpu, 1024, 1280), WIDE),
    |gpu| by_wgmma(gpu, &convolved(gpu, "128x128", 128, [320, 0], 320, 0), TALL),
    |gpu| by_wgmma(gpu, &convolved(gpu, "128x128", 64, [640, 0], 640, 0), TALL),
    |gpu| by_wgmma(gpu, &convolved(gpu, "128x128", 32, [1280, 640], 1280, 0), WIDE),
    |gpu| by_wgmma(gpu, &geglu(gpu, Tile::LARGE, 4096, 2560, 640), TALL),
    |gpu| by_wgmma(gpu, &geglu(gpu, Tile::LARGE, 1024, 5120, 1280), TALL),
    |gpu| by_wgmma(gpu, &projection(gpu, Tile::LARGE, 4096, 640, 640), WIDE),
    |gpu| by_wgmma(gpu, &projection(gpu, Tile::LARGE, 1024, 1280, 1280), WIDE),
];
const WIDE: Tile = Tile { m: 128, n: 160 };
const TALL: Tile = Tile { m: 256, n: 160 };

fn by_wgmma(gpu: &Gpu, shape: &Shape, tile: Tile) -> Vec<Shape> {
    vec![shape.by_wgmma(tile, gpu.second().unwrap().driver().properties().multiprocessors)]
}

/// Sets of tensors of a case, as the head of this file says.
fn sets(first: &[Shape]) -> usize {
    let bytes = first.iter().map(|shape| shape.bytes).sum::<f64>().max(1.0);
    (f64::from(1 << 28) / bytes).ceil().clamp(1.0, 32.0) as usize
}

#[test]
fn kernels_beside_ceilings() {
    if !crate::interpreter::compiled() {
        return;
    }
    let Some(driver) = cuda() else {
        skip("no CUDA device");
        return;
    };
    let (driver, least) = (driver.as_ref(), Duration::from_millis(20));
    let ceilings = Ceilings::measure(driver, least);
    let (copy, product) = (ceilings.bytes / 1e9, ceilings.flops / 1e12);
    println!("ceiling: copy {copy:.0} GB/s read and written on {}", driver.properties().name);
    println!("ceiling: product {product:.0} TFLOP/s of {DTYPE} on {}", driver.properties().name);
    println!("| kernel | shape | microseconds | GB/s | TFLOP/s | of the ceiling |");
    println!("|---|---|--:|--:|--:|--:|");
    let hopper = if driver.properties().capability == (9, 0) { &CASES_OF_HOPPER[..] } else { &[] };
    for case in CASES.iter().chain(hopper) {
        let gpu = Gpu::on(Where::Cuda);
        let mut all = vec![case(&gpu)];
        let count = sets(&all[0]);
        all.extend((1..count).map(|_| case(&gpu)));
        for (i, shape) in all[0].iter().enumerate() {
            let launches: Vec<Work> = all.iter().map(|set| Work::Launch(launch(&gpu, &set[i]))).collect();
            println!("{}", ceilings.row(&shape.kernel, shape, seconds(driver, &launches, least)));
            let products: Vec<Work> = all.iter().filter_map(|set| of_library(driver, &set[i])).collect();
            if !products.is_empty() {
                println!("{}", ceilings.row("cuBLASLt", shape, seconds(driver, &products, least)));
            }
            for work in products {
                let Work::Product(plan) = work else { continue };
                driver.release_gemm(plan);
            }
        }
    }
}

fn launch(gpu: &Gpu, shape: &Shape) -> Launch {
    let kernel = kernels().find(|kernel| kernel.name == shape.kernel).unwrap();
    gpu.second().unwrap().launch_of(kernel, shape.dtype, shape.grid, &shape.params, &shape.maps)
}

/// The measuring itself, on the interpreter: the work is done, by the library's way as by the kernel's, and time passes.
#[test]
fn timed_results() {
    if !crate::interpreter::compiled() {
        return;
    }
    let gpu = Gpu::on(Where::Twice);
    let driver = gpu.second().unwrap().driver();
    let (m, n, k) = (5, 16, 8);
    let shape = projection(&gpu, Tile::SMALL, m, n, k);
    let launch = launch(&gpu, &shape);
    let out = bytemuck::pod_read_unaligned::<GemmParams>(bytemuck::cast_slice(&launch.params)).finish.out.0;
    let there = Shape { params: launch.bytes().to_vec(), ..projection(&gpu, Tile::SMALL, m, n, k) };
    let results = [Work::Launch(launch), of_library(driver, &there).unwrap()].map(|work| {
        driver.memset(out, m * n * 2, 0).unwrap();
        let time = seconds(driver, &[work], Duration::from_micros(100));
        assert!(time > 0.0 && time < 1.0, "{time}");
        let mut result = vec![0; m * n * 2];
        driver.download(out, &mut result).unwrap();
        result
    });
    // 0x2c2c is 2^-4 (1 + 44/1024).
    let x = (1.0f32 + 44.0 / 1024.0) / 16.0;
    let want = half::f16::from_f32(8.0 * x * x + 2.0 * x).to_le_bytes().repeat(m * n);
    assert_eq!(results, [want.clone(), want]);
    let copy = [Work::Copy(out, out + 16, 16)];
    assert!(seconds(driver, &copy, Duration::ZERO) > 0.0);
}

/// The kernels of sm_90a compute what those do whose shapes they are timed at.
#[test]
fn shapes_by_wgmma() {
    if !crate::interpreter::compiled() {
        return;
    }
    let gpu = Gpu::on(Where::Alone);
    let second = gpu.second().unwrap();
    for (shape, halves) in [
        (attention(&gpu, 130, 128), 130 * 128),
        (decoupled(&gpu, 130, 128), 130 * 128),
        (convolved(&gpu, "64x64", 12, [64, 0], 16, 0), 144 * 16),
        (geglu(&gpu, Tile::SMALL, 130, 16, 64), 130 * 16),
        (projection(&gpu, Tile::SMALL, 130, 16, 64), 130 * 16),
    ] {
        let hopper = shape.by_wgmma(WIDE, 2);
        // The result's map is the last one.
        let out = hopper.maps.last().unwrap().1.address;
        let [other, ours] = [&shape, &hopper].map(|shape| {
            second.fill(out, 2 * halves, 0xff);
            second.driver().launch(&launch(&gpu, shape), false).unwrap();
            second.driver().synchronize().unwrap();
            crate::interpreter::wide(&second.read(out, 2 * halves), DTYPE)
        });
        let alike = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-3 * a.abs();
        assert!(ours.iter().zip(&other).all(alike), "{}: {:?} {:?}", hopper.kernel, &ours[..4], &other[..4]);
        assert!(hopper.kernel.contains("sm90") && hopper.flops == shape.flops);
    }
}

#[test]
fn shares_of_a_ceiling() {
    if !crate::interpreter::compiled() {
        return;
    }
    let gpu = Gpu::on(Where::Interpreter);
    let shape = layer_norm(&gpu, 1, 640);
    let ceilings = Ceilings { bytes: 2e12, flops: 1e15 };
    let bound_by_bytes = Shape { flops: 1e9, bytes: 2e7, shape: "a shape".into(), ..shape };
    assert!((ceilings.share(&bound_by_bytes, 2e-5) - 0.5).abs() < 1e-12);
    assert_eq!(
        ceilings.row("layer_norm", &bound_by_bytes, 2e-5),
        "| `layer_norm` | a shape | 20.0 | 1000 | 50.0 | 50 % |"
    );
    let bound_by_sums = Shape { flops: 1e11, ..bound_by_bytes };
    assert!((ceilings.share(&bound_by_sums, 1e-3) - 0.1).abs() < 1e-12);
    assert_eq!(sets(&[Shape { bytes: 1e8, ..bound_by_sums }]), 3);
}
