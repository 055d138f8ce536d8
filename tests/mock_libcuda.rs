//! The driver for GPUs on mock libraries in place of libcuda and cuBLASLt: that each function gets what it is declared to get,
//! that algorithms are tried once and outside of captures, that no code that a library returns breaks anything.

#![cfg(all(feature = "cuda", target_os = "linux"))]
#![allow(clippy::unwrap_used)]

#[path = "common/mod.rs"]
mod common;
#[path = "common/mock.rs"]
mod mock;

use braid::device::cuda::NvidiaDriver;
use braid::device::cuda::driver::{
    Driver, Gemm, GemmEpilogue, Launch, MatrixRef, Swizzle, TensorMap, TensorMapDesc, TensorMapMode,
};
use braid::device::cuda::ops::registry::kernels;
use braid::error::Error;
use braid::tensor::DType;
use mock::{child, log};
use std::env;
use std::fs;
use std::io::Write;
use std::time::Duration;

/// The number of runs of each algorithm on one image, and on two at once.
fn tried<const COUNT: usize>(lines: &[String]) -> [[usize; 2]; COUNT] {
    let count = |wanted: String| lines.iter().filter(|line| **line == wanted).count();
    std::array::from_fn(|number| [N, 2 * N].map(|columns| count(format!("multiply {number} {columns}"))))
}

/// The runs of a trial: one image, both of them, both to see how long that takes, and three rounds.
const TRIED: [usize; 2] = [1, 1 + 1 + 3 * 20];
/// Those where an algorithm takes the images one by one.
const ONE_BY_ONE: [usize; 2] = [1 + 2 * TRIED[1], 0];

const M: usize = 24;
const N: usize = 8;
const K: usize = 16;

/// D [24, 8] = A^T B + bias + C for two images that share A, all with columns longer than they need be.
struct Product {
    driver: NvidiaDriver,
    gemm: Gemm,
    values: [Vec<u16>; 5],
}

/// The bits of small integers as bf16, the same at every call.
fn values(count: usize, seed: usize) -> Vec<u16> {
    let value = |i: usize| ((i * 7 + seed * 5) % 9) as f32 - 4.0;
    (0..count).map(|i| (value(i).to_bits() >> 16) as u16).collect()
}

fn number(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

impl Product {
    fn new(images: usize) -> Self {
        let driver = NvidiaDriver::new(0).unwrap();
        // A is stored [K, M]; columns of 24, 16 and, of C and D, 32.
        let values =
            [values(24 * M, 1), values(2 * 16 * N, 2), values(2 * 32 * N, 3), values(2 * 32 * N, 4), values(M, 5)];
        let [a, b, c, d, bias] = std::array::from_fn(|i| {
            let address = driver.allocate(values[i].len() * 2).unwrap();
            driver.upload(address, bytemuck::cast_slice(&values[i])).unwrap();
            address
        });
        let matrix = |data, leading, columns| MatrixRef { data, leading, stride: leading * columns };
        let gemm = Gemm {
            dtype: DType::BF16,
            m: M,
            n: N,
            k: K,
            batch: images,
            transpose_a: true,
            transpose_b: false,
            a: matrix(a, 24, 0),
            b: matrix(b, 16, N),
            d: matrix(d, 32, N),
            out_f32: false,
            epilogue: GemmEpilogue::BiasResidual(bias, matrix(c, 32, N)),
        };
        Self { driver, gemm, values }
    }

    fn result(&self) -> Vec<u16> {
        let mut bits = vec![0u16; self.values[3].len()];
        self.driver.download(self.gemm.d.data, bytemuck::cast_slice_mut(&mut bits)).unwrap();
        bits
    }

    /// Runs it and compares all of D's memory.
    fn check(&self) {
        let plan = self.driver.prepare_gemm(&self.gemm).unwrap();
        assert_eq!(self.result(), self.values[3], "preparing leaves operands alone");
        self.driver.gemm(plan).unwrap();
        let [a, b, c, d, bias] = &self.values;
        let mut want = d.clone();
        for (image, column, row) in (0..self.gemm.batch).flat_map(|i| (0..N * M).map(move |at| (i, at / M, at % M))) {
            let at = image * 32 * N + column * 32 + row;
            let dot: f32 = (0..K).map(|l| number(a[row * 24 + l]) * number(b[image * 16 * N + column * 16 + l])).sum();
            want[at] = ((dot + number(bias[row]) + number(c[at])).to_bits() >> 16) as u16;
        }
        assert_eq!(self.result(), want);
        self.driver.release_gemm(plan);
    }

    fn free(self) {
        let Gemm { a, b, d, epilogue: GemmEpilogue::BiasResidual(bias, c), .. } = self.gemm else { unreachable!() };
        [a.data, b.data, c.data, d.data, bias].into_iter().for_each(|address| self.driver.free(address));
    }
}

#[test]
fn one_trial_for_every_batch() {
    child(&[], |folder| {
        let product = Product::new(2);
        assert_eq!(product.driver.properties().name, "mock");
        log(folder);
        product.check();
        let lines = log(folder);
        assert!(lines.contains(&"suggest 8 for 8 columns".into()), "{lines:?}");
        // And the product's own.
        assert_eq!(tried(&lines), [TRIED, [1, 1 + TRIED[1]], ONE_BY_ONE]);
        assert_eq!(lines.last().unwrap(), "multiply 1 16");
        product.free();
        let lines = log(folder);
        assert_eq!(lines, ["released, 0 left"]);

        // A later driver with one image finds the choice on disk, and this one's batch is not in it.
        let alone = Product::new(1);
        log(folder);
        alone.check();
        assert_eq!(log(folder), ["multiply 1 8"]);
        let file = fs::read_dir(folder.join("cache")).unwrap().next().unwrap().unwrap();
        assert!(file.file_name().to_str().unwrap().starts_with("product."));
        let text = String::from_utf8_lossy(&fs::read(file.path()).unwrap()).into_owned();
        let key = "cuBLASLt 13.1.7; driver for CUDA 13040; mock, capability 8.0, 100 multiprocessors; no workspace, \
                   tried on 2 images; 8 suggestions; bf16 to bf16, 24x8x16 tn, columns 24 16 32 32, bias, residual";
        assert!(text.contains(key), "{text}");
    });
}

#[test]
fn algorithm_without_batch() {
    // Twice its time is the shortest.
    child(&[("MOCK_TIMES", "5,5,2")], |folder| {
        let product = Product::new(2);
        product.check();
        let lines = log(folder);
        assert_eq!(tried(&lines), [TRIED, TRIED, [2 + ONE_BY_ONE[0], 0]]);
        assert_eq!(lines[lines.len() - 2..], ["multiply 2 8", "multiply 2 8"]);
    });
}

#[test]
fn algorithm_without_batch_takes_twice_as_long() {
    child(&[("MOCK_TIMES", "5,5,3")], |folder| {
        let product = Product::new(2);
        product.check();
        assert_eq!(log(folder).last().unwrap(), "multiply 0 16");
    });
}

/// The fastest two split sums: one needs a workspace, the other has other bytes for an image in a batch.
#[test]
fn algorithm_with_split_sums() {
    child(&[("MOCK_TIMES", "5,3,4,1,1")], |folder| {
        let product = Product::new(2);
        log(folder);
        product.check();
        let lines = log(folder);
        assert_eq!(tried(&lines), [TRIED, [1, 1 + TRIED[1]], ONE_BY_ONE, [1, 1], [0, 0]]);
        assert_eq!(lines.last().unwrap(), "multiply 1 16");
        assert!(!lines.iter().any(|line| line.starts_with("refused")), "{lines:?}");
        assert!(lines.contains(&"allocate 4096".into()), "no workspace: {lines:?}");
        assert_eq!(lines.iter().filter(|line| line.starts_with("allocate")).count(), 1);
    });
}

/// The one that runs otherwise is not taken even where the next best does not run.
#[test]
fn split_sums_beside_a_failing_algorithm() {
    child(&[("MOCK_TIMES", "5,3,4,1,1"), ("MOCK_BROKEN", "1")], |folder| {
        let product = Product::new(2);
        product.check();
        assert_eq!(log(folder).last().unwrap(), "multiply 0 16");
    });
}

/// A round of long runs has fewer.
#[test]
fn long_products() {
    child(&[("MOCK_TIMES", "900,5000")], |folder| {
        let product = Product::new(1);
        product.check();
        assert_eq!(tried(&log(folder)), [[2, 1 + 1 + 3 * 2], [1, 1 + 1 + 3]]);
    });
}

/// Three images at once, of values whose sums round, and each alone; and where images do not follow one another.
#[test]
fn bytes_of_folded_images() {
    child(&[], |folder| {
        let driver = NvidiaDriver::new(0).unwrap();
        let place = |values: usize, seed: usize| {
            let bits = (0..values).map(|i| 0x3f80 + ((i * 37 + seed * 11) % 127) as u16).collect::<Vec<u16>>();
            let address = driver.allocate(2 * values).unwrap();
            driver.upload(address, bytemuck::cast_slice(&bits)).unwrap();
            address
        };
        let matrix = |data, stride| MatrixRef { data, leading: 16, stride };
        let (a, b, c, d) = (place(16 * 16, 1), place(3 * 16 * N, 2), place(3 * 16 * N, 3), place(3 * 16 * N, 4));
        let (dtype, m, n, k) = (DType::BF16, 16, N, 16);
        let (transpose_a, transpose_b, out_f32) = (true, false, false);
        let size = 16 * N;
        let result = |images, image: usize, strides: [usize; 2]| {
            let at = |address| address + (image * size * 2) as u64;
            let epilogue = GemmEpilogue::Residual(matrix(at(c), size));
            let (a, b, d) = (matrix(a, 0), matrix(at(b), strides[0]), matrix(at(d), strides[1]));
            let gemm = Gemm { dtype, m, n, k, batch: images, transpose_a, transpose_b, a, b, d, out_f32, epilogue };
            let plan = driver.prepare_gemm(&gemm).unwrap();
            log(folder);
            driver.memset(d.data, images * size * 2, 0).unwrap();
            driver.gemm(plan).unwrap();
            let mut bits = vec![0u16; images * size];
            driver.download(d.data, bytemuck::cast_slice_mut(&mut bits)).unwrap();
            driver.release_gemm(plan);
            (bits, log(folder))
        };
        let (together, lines) = result(3, 0, [size, size]);
        assert_eq!(lines, ["multiply 1 24"]);
        let alone = (0..3).flat_map(|image| result(1, image, [size, size]).0).collect::<Vec<_>>();
        assert_eq!(together, alone);
        assert!(together[..size] != together[size..2 * size]);
        // One B for all.
        let (of_one, lines) = result(3, 0, [0, size]);
        assert_eq!(lines, ["multiply 1 8"; 3]);
        assert!(of_one[..size] == alone[..size] && of_one[size..2 * size] != alone[size..2 * size]);
    });
}

/// Of two images and nothing after the sums, as f32, between columns that stay.
#[test]
fn results_in_f32() {
    child(&[], |_| {
        let Product { driver, gemm, values: [a, b, ..] } = Product::new(2);
        let kept = [7.0f32; 2 * 32 * N];
        let d = MatrixRef { data: driver.allocate(4 * kept.len()).unwrap(), ..gemm.d };
        driver.upload(d.data, bytemuck::cast_slice(&kept)).unwrap();
        let plan = driver.prepare_gemm(&Gemm { d, out_f32: true, epilogue: GemmEpilogue::None, ..gemm }).unwrap();
        driver.gemm(plan).unwrap();
        let mut got = kept;
        driver.download(d.data, bytemuck::cast_slice_mut(&mut got)).unwrap();
        let want = |at: usize| {
            let (row, column, image) = (at % 32, at / 32 % N, at / (32 * N));
            let x = &b[image * 16 * N + column * 16..];
            (0..K).map(|l| number(a[row * 24 + l]) * number(x[l])).sum::<f32>()
        };
        for (at, value) in got.iter().enumerate() {
            assert_eq!(*value, if at % 32 < M { want(at) } else { 7.0 }, "{at}");
        }
    });
}

#[test]
fn failing_algorithm() {
    child(&[("MOCK_BROKEN", "1"), ("MOCK_TIMES", "5,1,2")], |folder| {
        let product = Product::new(2);
        product.check();
        let lines = log(folder);
        assert_eq!(tried(&lines), [TRIED, [0, 0], [2 + ONE_BY_ONE[0], 0]]);
    });
}

#[test]
fn trials_disabled() {
    for setting in [("BRAID_TRIALS", "0"), ("BRAID_CACHE", "")] {
        child(&[setting], |folder| {
            let product = Product::new(2);
            log(folder);
            product.check();
            assert_eq!(log(folder), ["suggest 1 for 8 columns", "multiply 0 16"]);
        });
    }
}

#[test]
fn named_library() {
    for (named, used) in [("none", false), ("/nowhere", true), ("", true)] {
        child(&[("BRAID_CUBLASLT", named), ("TEST_USED", if used { "1" } else { "" })], |_| {
            let used = !env::var("TEST_USED").unwrap().is_empty();
            assert_eq!(NvidiaDriver::new(0).unwrap().properties().gemm, used);
        });
    }
}

/// An NVRTC that is named and not there is said once, whether another is found or not.
#[test]
fn named_compiler() {
    for (named, said) in [("/nowhere", "1"), ("", "0")] {
        child(&[("BRAID_NVRTC", named), ("TEST_SAID", said)], |_| {
            let (_, warnings) = common::warnings(|| NvidiaDriver::from_sources(0).map(|_| ()));
            let said = warnings.iter().filter(|line| line.contains("BRAID_NVRTC names /nowhere, which is not there"));
            assert_eq!(said.count().to_string(), env::var("TEST_SAID").unwrap(), "{warnings:?}");
        });
    }
}

#[test]
fn trial_out_of_memory() {
    child(&[], |folder| {
        let driver = NvidiaDriver::new(0).unwrap();
        let matrix = MatrixRef { data: 1 << 20, leading: 1 << 15, stride: 0 };
        let (dtype, m, n, k) = (DType::BF16, 1 << 15, 1 << 15, 1 << 15);
        let (transposes, epilogue) = ((true, false), GemmEpilogue::None);
        let (transpose_a, transpose_b) = transposes;
        let (a, b, d) = (matrix, matrix, matrix);
        let gemm = Gemm { dtype, m, n, k, batch: 1, transpose_a, transpose_b, a, b, d, out_f32: false, epilogue };
        log(folder);
        let plan = driver.prepare_gemm(&gemm).unwrap();
        assert_eq!(log(folder), ["suggest 8 for 32768 columns"]);
        assert!(!folder.join("cache").exists());
        driver.release_gemm(plan);
        let error = driver.allocate(1 << 31).unwrap_err();
        assert!(matches!(error, Error::Memory { need: 0x8000_0000, have: 0x1_8000_0000, .. }), "{error}");
    });
}

#[test]
fn trial_during_capture() {
    child(&[], |folder| {
        let product = Product::new(2);
        let plan = product.driver.prepare_gemm(&product.gemm).unwrap();
        log(folder);
        assert!(product.driver.begin_capture().unwrap());
        let error = product.driver.prepare_gemm(&Gemm { k: 8, ..product.gemm }).unwrap_err();
        assert!(error.to_string().contains("captured"), "{error}");
        product.driver.gemm(plan).unwrap();
        let graph = product.driver.end_capture().unwrap();
        assert_eq!(log(folder), ["multiply 1 16"]);
        assert_eq!(product.result(), product.values[3]);
        product.driver.prepare_gemm(&Gemm { k: 8, ..product.gemm }).unwrap();
        product.driver.launch_graph(graph).unwrap();
        product.driver.destroy_graph(graph);
    });
}

/// A second driver's choice waits for the capture of the first one's stream, during which cuBLASLt makes none.
#[test]
fn choice_beside_a_capture() {
    child(&[("BRAID_TRIALS", "0")], |folder| {
        let (first, second) = (Product::new(1), Product::new(1));
        let plan = first.driver.prepare_gemm(&first.gemm).unwrap();
        std::thread::scope(|scope| {
            assert!(first.driver.begin_capture().unwrap());
            let choice = scope.spawn(|| second.driver.prepare_gemm(&Gemm { k: 8, ..second.gemm }).map(|_| ()));
            std::thread::sleep(Duration::from_millis(50));
            first.driver.gemm(plan).unwrap();
            first.driver.end_capture().unwrap();
            choice.join().unwrap().unwrap();
        });
        assert_eq!(mock::complaints(&log(folder)), [""; 0]);
    });
}

/// A kernel's fault loses the device: the wait gives its name, and so does every later call.
#[test]
fn faults_of_kernels() {
    let Some(kernels) = mock::kernels(80) else {
        let _ = writeln!(std::io::stderr(), "faults_of_kernels: skipped: no NVRTC when this was built");
        return;
    };
    for (offset, want) in [
        ("1099511627776", "CUDA_ERROR_ILLEGAL_ADDRESS, 700"),
        ("2", "CUDA_ERROR_MISALIGNED_ADDRESS, 716"),
        // Read unwritten, which only the interpreter sees.
        ("0", "CUDA_ERROR_LAUNCH_FAILED, 719"),
    ] {
        let kernels = [("MOCK_PTX", kernels.to_str().unwrap()), ("TEST_OFFSET", offset), ("TEST_WANT", want)];
        child(&kernels, |_| {
            let driver = NvidiaDriver::new(0).unwrap();
            let kernel = self::kernels().find(|kernel| kernel.name == "weights_from_f32").unwrap();
            let entry = kernel.entry(DType::F16);
            let function = driver.function(kernel, &entry).unwrap();
            let [x, out] = [4, 2].map(|bytes| driver.allocate(bytes * 256).unwrap());
            // One row of 256 inputs, one tap.
            let x = x + env::var("TEST_OFFSET").unwrap().parse::<u64>().unwrap();
            let params = vec![x, out, 256, 1 | 256 << 32, 1].into_boxed_slice();
            let (grid, tensor_maps) = ([1, 1, 1], Vec::new());
            let launch = Launch { kernel, entry, function, grid, block: 256, shared: 0, params, tensor_maps };
            // The launch may be done at once.
            let error = driver.launch(&launch, false).and_then(|()| driver.synchronize()).unwrap_err().to_string();
            let want = env::var("TEST_WANT").unwrap();
            assert!(error.contains(&want) && error.contains("the device is lost"), "{error} is not {want}");
            assert_eq!(driver.allocate(1).unwrap_err().to_string(), error);
        });
    }
}

#[test]
fn unknown_codes() {
    for (fault, want) in [
        ("cuInit=98765", "device cuda: cuInit: error 98765, which the driver has no name for"),
        ("cuDeviceGetAttribute=-5", "cuDeviceGetAttribute: error -5, which"),
        ("cuStreamCreate=4000", "cuStreamCreate failed: error 4000, which the driver has no name for"),
        (
            "cuMemsetD8Async=700",
            "cuMemsetD8Async failed: CUDA_ERROR_ILLEGAL_ADDRESS, 700 (an illegal memory access was encountered); the device is lost",
        ),
        ("cublasLtMatmulDescCreate=14", "cublasLtMatmulDescCreate failed: CUBLAS_STATUS_INTERNAL_ERROR, 14"),
        ("cublasLtMatmulAlgoGetHeuristic=98765", "cublasLtMatmulAlgoGetHeuristic failed: status 98765"),
        // The trials left every algorithm out, and the run says why.
        ("cublasLtMatmul=4711", "cublasLtMatmul failed: status 4711, which has no name here"),
        ("cuMemcpyDtoHAsync_v2=77", "cuMemcpyDtoHAsync failed: error 77, which"),
        ("cuStreamEndCapture=951", "cuStreamEndCapture failed: error 951, which"),
        ("cuGraphLaunch=98765", "cuGraphLaunch failed: error 98765, which"),
    ] {
        child(&[("MOCK_FAULT", fault), ("MOCK_WANT", want)], |_| {
            let error = everything().unwrap_err().to_string();
            let want = env::var("MOCK_WANT").unwrap();
            assert!(error.contains(&want), "{error} is not {want}");
        });
    }
}

/// A GPU that is too old, and one that is not there.
#[test]
fn refused_devices() {
    for (capability, error) in
        [("75", "compute capability 7.5; 8.0 or later is needed"), ("80", "GPU 1 was asked for, 1 are there")]
    {
        child(&[("MOCK_CAPABILITY", capability), ("EXPECTED", error)], |_| {
            let error = env::var("EXPECTED").unwrap();
            let text = NvidiaDriver::new(usize::from(error.starts_with("GPU"))).map(|_| ()).unwrap_err().to_string();
            assert!(text.contains(&error), "{text}");
        });
    }
}

#[test]
fn trial_event_fault() {
    for fault in ["cuEventElapsedTime=98765", "none=1"] {
        child(&[("MOCK_FAULT", fault)], |folder| {
            everything().unwrap();
            let kept = env::var("MOCK_FAULT").unwrap() == "none=1";
            assert_eq!(folder.join("cache").exists(), kept);
            // Once chosen, and in the run and the capture.
            let lines = log(folder);
            assert_eq!(lines.iter().filter(|line| line.starts_with("suggest")).count(), 1, "{lines:?}");
        });
    }
}

/// A use of most functions.
fn everything() -> Result<(), Error> {
    let driver = NvidiaDriver::new(0)?;
    let matrix = MatrixRef { data: driver.allocate_zeroed(64 * 64 * 2)?, leading: 64, stride: 0 };
    let (dtype, epilogue) = (DType::BF16, GemmEpilogue::None);
    let (a, b, d) = (matrix, matrix, MatrixRef { data: driver.allocate_zeroed(64 * 64 * 2)?, ..matrix });
    let (transpose_a, transpose_b, out_f32) = (true, false, false);
    let gemm = Gemm { dtype, m: 64, n: 64, k: 64, batch: 1, transpose_a, transpose_b, a, b, d, out_f32, epilogue };
    let plan = driver.prepare_gemm(&gemm)?;
    driver.gemm(plan)?;
    driver.begin_capture()?;
    driver.gemm(plan)?;
    let graph = driver.end_capture()?;
    driver.launch_graph(graph)?;
    driver.record_event(1)?;
    driver.synchronize_event(1)?;
    driver.copy(a.data, d.data, 64)?;
    driver.staging(64)?.bytes().fill(1);
    driver.download(d.data, &mut [0; 64])?;
    driver.destroy_graph(graph);
    let held = 2 * 64 * 64 * 2;
    driver.memory_info().map(|memory| assert_eq!((memory.free, memory.total), ((6 << 30) - held, 8 << 30)))
}

/// The driver gets each value of a map in its place, tiled and im2col; the bit that drivers up to CUDA 13.1 set too many in the maps of
/// small tensors is taken out.
#[test]
fn tensor_maps() {
    for version in ["12080", "13020"] {
        child(&[("MOCK_DRIVER", version)], |folder| {
            let driver = NvidiaDriver::new(0).unwrap();
            let encoded = |map: &TensorMapDesc| driver.encode_tensor_map(map).unwrap();
            let bytes = |map: braid_ptx::TensorMap| TensorMap(bytemuck::cast(map.to_bytes()));
            for rows in [5, 200] {
                let dims = [(640, 1, 32), (rows, 648, 16), (3, 648 * rows, 2)];
                let map = TensorMapDesc::tiled(0x1_0010, DType::BF16, &dims, Swizzle::Bytes64);
                let (dims, strides) = ([640, rows as u64, 3], [1296, 1296 * rows as u64]);
                let mut want = braid_ptx::TensorMap::tiled(0x1_0010, &dims, &strides, &[32, 16, 2]);
                want.swizzle = braid_ptx::Swizzle::Bytes64;
                assert_eq!(encoded(&map), bytes(want), "{rows}");
            }
            let dims = [(64, 1, 0), (9, 64, 0), (7, 576, 0), (2, 4032, 0)];
            let (lower, upper) = (vec![-1, -2], vec![-3, -4]);
            let mode = TensorMapMode::Im2col { lower, upper, channels: 8, pixels: 128 };
            let tiled = TensorMapDesc::tiled(0x20, DType::F32, &dims, Swizzle::Bytes32);
            let map = TensorMapDesc { mode, element_strides: vec![1, 2, 3, 1], ..tiled };
            let (lower, upper) = ([-1, -2, 0], [-3, -4, 0]);
            let rows = braid_ptx::Im2col { lower, upper, channels: 8, pixels: 128 };
            let want = braid_ptx::TensorMap::im2col(0x20, &[64, 9, 7, 2], &[256, 2304, 16_128], rows);
            let mut want = want.with_elements(4, true);
            (want.swizzle, want.steps) = (braid_ptx::Swizzle::Bytes32, vec![1, 2, 3, 1]);
            assert_eq!(encoded(&map), bytes(want));
            // The driver is not asked where a rule is broken; what it refuses by itself is its error.
            let error = driver.encode_tensor_map(&TensorMapDesc { address: 8, ..map.clone() }).unwrap_err().to_string();
            assert_eq!(error, "graph: a tensor map at address 0x8; a multiple of 16 is needed");
            // SAFETY: no other thread reads or changes the environment now.
            unsafe { env::set_var("MOCK_FAULT", "cuTensorMapEncodeIm2col=1") };
            let error = driver.encode_tensor_map(&map).unwrap_err().to_string();
            assert!(error.contains("cuTensorMapEncodeIm2col failed: CUDA_ERROR_INVALID_VALUE"), "{error}");
            assert_eq!(mock::complaints(&log(folder)), [""; 0]);
        });
    }
}

#[test]
fn launch_arguments() {
    child(&[("MOCK_CAPABILITY", "90")], |folder| {
        let driver = NvidiaDriver::new(0).unwrap();
        let kernel = kernels().find(|kernel| kernel.shared > 48 << 10).unwrap();
        let entry = kernel.entry(kernel.types.each()[0]);
        let Ok(function) = driver.function(kernel, &entry) else {
            let name = "launch_arguments";
            let _ = writeln!(std::io::stderr(), "{name}: skipped: no NVRTC when this was built");
            return;
        };
        let (params, tensor_maps) = (vec![42u64].into_boxed_slice(), Vec::new());
        let grid = [5, 3, 2];
        let launch = Launch { kernel, entry, function, grid, block: 96, shared: 512, params, tensor_maps };
        driver.launch(&launch, false).unwrap();
        driver.launch(&launch, true).unwrap();
        let lines = log(folder);
        assert!(lines.contains(&format!("shared {}", kernel.shared)), "{lines:?}");
        let last = ["launch 5 3 2, 96 1 1, 512, 42", "launch 5 3 2, 96 1 1, 512, 42, early"];
        assert_eq!(lines[lines.len() - 2..], last);
    });
}

/// Launches may begin early where the code waits, which that for GPUs before 9.0 does not, where the driver captures such launches,
/// and where it is not forbidden.
#[test]
fn early_launches() {
    child(&[], |_| {
        let kernel = kernels().find(|kernel| kernel.name == "add").unwrap();
        for (capability, version, setting, early) in [
            ("80", "13040", "", false),
            ("89", "13040", "1", false),
            ("90", "12030", "", true),
            ("90", "12020", "1", false),
            ("90", "13040", "0", false),
            ("120", "13040", "1", true),
            // By the PTX, as no cubin is for it.
            ("110", "13040", "", true),
        ] {
            for (name, value) in [("MOCK_CAPABILITY", capability), ("MOCK_DRIVER", version), ("BRAID_PDL", setting)] {
                // SAFETY: no other thread reads or changes the environment now.
                unsafe { env::set_var(name, value) };
            }
            let Ok(function) = NvidiaDriver::new(0).and_then(|driver| driver.function(kernel, "add_f16")) else {
                let _ = writeln!(std::io::stderr(), "early_launches: skipped: no NVRTC when this was built");
                return;
            };
            assert_eq!(function.early, early, "{capability} {version} {setting}");
        }
    });
}
