//! The driver's code and the kernels together: requests through `NvidiaDriver` on a mock of libcuda and cuBLASLt that runs the
//! kernels' PTX, late and in random portions, and holds the driver's rules. They give the bytes of the interpreter alone.

#![cfg(all(feature = "cuda", target_os = "linux"))]
#![allow(clippy::unwrap_used)]

#[path = "common/mod.rs"]
mod common;
#[path = "common/device.rs"]
mod device;
#[path = "common/interpreter.rs"]
mod interpreter;
#[path = "common/mock.rs"]
mod mock;
#[allow(dead_code)] // Schedules and counts are for tests/cuda.
#[path = "common/ptx.rs"]
mod ptx;
#[path = "common/requests.rs"]
mod requests;
#[path = "common/sm90.rs"]
mod sm90;

use braid::device::cuda::driver::Driver;
use braid::device::cuda::{CudaDevice, NvidiaDriver};
use braid::device::{Executable, TensorData};
use braid::graph::{Builder, Graph};
use braid::pipeline::{Callbacks, CancelToken, Progress, Stage};
use braid::tensor::DType;
use braid::{Error, Pipeline, Request};
use ptx::PtxDriver;
use requests::{Bytes, bytes};
use std::path::Path;
use std::sync::Arc;

/// Plans faults (tests/mock_libcuda/src/faults.rs).
fn fail(faults: &str) {
    // SAFETY: no other thread reads or changes the environment now.
    unsafe { std::env::set_var("MOCK_FAULT", faults) };
}

/// Two images.
fn request(scale: f32) -> Request {
    requests::request(2, 2, scale)
}

/// The bytes of a request on the mock, which are the interpreter's.
fn compared(pipelines: &[Pipeline; 2], request: &Request) -> Bytes {
    let [on_mock, on_interpreter] = pipelines.each_ref().map(|pipeline| bytes(&pipeline.generate(request).unwrap()));
    assert!(on_mock == on_interpreter, "the mock's bytes differ");
    on_mock
}

fn pipelines(library: bool) -> [Pipeline; 2] {
    let model = common::Model::folder();
    let on_mock = NvidiaDriver::new(0).unwrap();
    let on_interpreter = PtxDriver::new().device(on_mock.properties().capability, on_mock.properties().multiprocessors);
    let drivers: [Arc<dyn Driver>; 2] = [Arc::new(on_mock), Arc::new(on_interpreter)];
    drivers.map(|driver| requests::pipeline(&model, driver, library))
}

/// The launches of a log, and those of them that may begin before the launch before has ended; each is behind a launch.
fn launches(lines: &[String]) -> [usize; 2] {
    let launch = |line: &&String| line.starts_with("launch ");
    let early = |line: &&String| launch(line) && line.ends_with(", early");
    let behind = lines.windows(2).filter(|pair| early(&&pair[1]) && launch(&&pair[0])).count();
    assert_eq!(behind, lines.iter().filter(early).count());
    [lines.iter().filter(launch).count(), behind]
}

/// Drops the pipelines: nothing is left, and nothing was against the rules.
fn closed(pipelines: [Pipeline; 2], folder: &Path) {
    drop(pipelines);
    let lines = mock::log(folder);
    assert_eq!(mock::complaints(&lines), [""; 0]);
    assert_eq!(lines.last().unwrap(), "released, 0 left");
}

fn joined(seed: &str, capability: &str, loading: &str, trials: &str, body: fn(&Path)) {
    let Some(kernels) = mock::kernels(if capability == "90" { 90 } else { 80 }) else {
        interpreter::compiled();
        return;
    };
    let kernels = kernels.to_str().unwrap();
    // Long ones, so that a round has one run; the fastest has sums that depend on the number of images.
    let products = [("BRAID_TRIALS", trials), ("MOCK_TIMES", "9000,5000,8000,1000,1000")];
    let device = [("MOCK_CAPABILITY", capability), ("MOCK_MULTIPROCESSORS", "4"), ("MOCK_LOADING", loading)];
    mock::child(&[&device[..], &[("MOCK_PTX", kernels), ("MOCK_SEED", seed)], &products[..]].concat(), body);
}

fn two_scales(folder: &Path) {
    let pipelines = pipelines(true);
    assert!(compared(&pipelines, &request(0.7)) != compared(&pipelines, &request(0.2)));
    closed(pipelines, folder);
}

#[test]
fn another_scale() {
    joined("1", "80", "lazy", "1", two_scales);
}

#[test]
#[ignore = "other times at which work is done: for make test-full"]
fn more_seeds() {
    ["5", "6"].into_iter().for_each(|seed| joined(seed, "80", "lazy", "1", two_scales));
}

/// A device with a byte too little for everything: the encoders go after their work. With a byte less than the rest takes the
/// request is refused before anything is allocated.
#[test]
fn little_memory() {
    joined("2", "80", "lazy", "0", |folder| {
        let model = common::Model::folder();
        let request = requests::request(1, 1, 0.7);
        let driver = Arc::new(NvidiaDriver::new(0).unwrap());
        let load = || requests::pipeline(&model, driver.clone(), false);
        let estimate = {
            let pipeline = load();
            pipeline.estimate(&pipeline.workload_shape(&request).unwrap()).unwrap().unwrap()
        };
        let (all, freed) = (estimate.peak_resident(), estimate.peak_offloaded());
        // SAFETY: no other thread reads or changes the environment now.
        let leave = |room: u64| unsafe { std::env::set_var("MOCK_MEMORY", room.to_string()) };
        leave(all - 1);
        let pipeline = load();
        pipeline.generate(&request).unwrap();
        assert_eq!(pipeline.device_memory_used() as u64, estimate.condition + estimate.denoise + estimate.decode);
        drop(pipeline);
        leave(freed - 1);
        let pipeline = load();
        mock::log(folder);
        match pipeline.generate(&request) {
            Err(Error::Memory { need, have, .. }) => assert_eq!((need, have), (freed, freed - 1)),
            other => panic!("{:?}", other.map(|_| ())),
        }
        assert!(!mock::log(folder).iter().any(|line| line.starts_with("allocate")));
        drop(pipeline);
        drop(driver);
        let lines = mock::log(folder);
        assert_eq!(mock::complaints(&lines), [""; 0]);
        assert_eq!(lines.last().unwrap(), "released, 0 left");
    });
}

#[test]
fn request_after_cancellation() {
    // Orin takes no cubin of this build, so these are the kernels of the PTX itself.
    joined("2", "87", "lazy", "0", |folder| {
        let pipelines = pipelines(false);
        let first = compared(&pipelines, &request(0.7));
        let cancel = CancelToken::new();
        let token = cancel.clone();
        let mut stop = move |progress: Progress| {
            if progress.stage == Stage::Denoise && progress.done == 1 {
                token.cancel();
            }
        };
        let callbacks = Callbacks::new().with_cancel(&cancel).with_progress(&mut stop);
        let cancelled = pipelines[0].generate_with(&request(0.7), callbacks);
        assert!(matches!(cancelled, Err(Error::Cancelled)), "{:?}", cancelled.map(|_| ()));
        assert!(bytes(&pipelines[0].generate(&request(0.7)).unwrap()) == first);
        closed(pipelines, folder);
    });
}

/// As with CUDA_MODULE_LOADING=EAGER: every kernel is there once its file is. On a GPU whose launches may begin early, but for those behind a
/// product of the library.
#[test]
fn eager_loading() {
    joined("4", "90", "eager", "0", |folder| {
        let pipelines = pipelines(true);
        compared(&pipelines, &requests::request(1, 2, 0.7));
        let lines = mock::log(folder);
        assert_eq!(mock::complaints(&lines), [""; 0]);
        let ([all, early], multiplied) = (launches(&lines), lines.iter().any(|line| line.starts_with("multiply ")));
        assert!(early > 0 && early < all && multiplied, "{early} of {all}");
        closed(pipelines, folder);
    });
}

#[test]
fn two_pipelines() {
    joined("3", "80", "lazy", "0", |folder| {
        requests::two_pipelines(1);
        let lines = mock::log(folder);
        assert_eq!(mock::complaints(&lines), [""; 0]);
        assert_eq!(lines.last().unwrap(), "released, 0 left");
    });
}

/// Kernels of sm_90a, with tensor maps that the driver encodes, once for launches one by one and for those of a captured graph. Where it
/// does not encode one, the error says so, and all is freed. All launches but the first may begin early; where they may not, the bytes are
/// the same.
#[test]
fn kernels_of_hopper() {
    let Some(kernels) = mock::kernels(90) else {
        interpreter::compiled();
        return;
    };
    let device = [("MOCK_CAPABILITY", "90"), ("MOCK_MULTIPROCESSORS", "2"), ("MOCK_SEED", "7")];
    // Such a driver sets a bit too many in the maps of small tensors.
    let driver = [("MOCK_PTX", kernels.to_str().unwrap()), ("MOCK_DRIVER", "12080")];
    mock::child(&[&device[..], &driver].concat(), |folder| {
        let on_interpreter = PtxDriver::new().device((9, 0), sm90::MULTIPROCESSORS);
        let on_mock = Arc::new(NvidiaDriver::new(0).unwrap());
        let drivers: [Arc<dyn Driver>; 2] = [on_mock.clone(), Arc::new(on_interpreter)];
        let devices = drivers.map(|driver| CudaDevice::new(driver, DType::F16).unwrap().with_cublaslt(false));
        let free = on_mock.memory_info().unwrap().free;
        for (call, number) in
            [("cuTensorMapEncodeTiled", 1), ("cuTensorMapEncodeTiled", 9), ("cuTensorMapEncodeIm2col", 1)]
        {
            fail(&format!("{call}@{number}=1"));
            match devices[0].compile_graph(sm90::block(1)) {
                Err(Error::Fault { call: said, lost: false, .. }) => assert_eq!(said, call),
                other => panic!("{call}: {:?}", other.map(|_| ())),
            }
            fail("");
            assert_eq!(on_mock.memory_info().unwrap().free, free, "{call}: memory is left");
        }
        drop(on_mock);
        let mut executables = devices.each_ref().map(|device| device.compile_graph(sm90::block(1)).unwrap());
        let launched = executables.each_ref().map(|executable| executable.report().kernels.clone());
        assert_eq!(launched[0], launched[1]);
        assert!(sm90::KERNELS.iter().all(|kernel| launched[0].keys().any(|name| name.starts_with(kernel))));
        let run = |executable: &mut dyn Executable, first| {
            let inputs = sm90::inputs(first, 1);
            let given: Vec<TensorData<'_>> = inputs.iter().map(|input| input.as_slice().into()).collect();
            let sizes = [128 * 192, 128 * 192, 512 * 192, 128 * 384, 512 * 192, 128 * 256];
            let mut out = sizes.map(|len| vec![f32::NAN; len]);
            executable.run(&given, &mut out.each_mut().map(Vec::as_mut_slice)).unwrap();
            out
        };
        assert_eq!(mock::complaints(&mock::log(folder)), [""; 0]);
        // The third run launches the graph once more, with other inputs.
        let bytes = [0, 0, 1].map(|first| {
            let [on_mock, on_interpreter] = executables.each_mut().map(|executable| run(executable, first));
            assert!(on_mock == on_interpreter, "the mock's bytes differ");
            on_mock
        });
        drop((executables, devices));
        let lines = mock::log(folder);
        assert_eq!(mock::complaints(&lines), [""; 0]);
        let all: usize = launched[0].values().sum();
        assert_eq!(launches(&lines), [2 * all, 2 * (all - 1)]);
        // SAFETY: no other thread reads or changes the environment now.
        unsafe { std::env::set_var("BRAID_PDL", "0") };
        let device = CudaDevice::new(Arc::new(NvidiaDriver::new(0).unwrap()), DType::F16).unwrap().with_cublaslt(false);
        let mut executable = device.compile_graph(sm90::block(1)).unwrap();
        assert!([run(&mut executable, 0), run(&mut executable, 1)] == bytes[1..], "early launches change bytes");
        drop((executable, device));
        let lines = mock::log(folder);
        assert_eq!(mock::complaints(&lines), [""; 0]);
        assert_eq!(launches(&lines)[1], 0);
        assert_eq!(lines.last().unwrap(), "released, 0 left");
    });
}

/// A kernel whose text lacks the wait of its cubin, by which the driver's code lets it begin early.
#[test]
fn missing_wait() {
    let Some(kernels) = mock::kernels(90) else {
        interpreter::compiled();
        return;
    };
    mock::child(&[("MOCK_CAPABILITY", "90"), ("MOCK_PTX", kernels.to_str().unwrap())], |folder| {
        let (whole, cut) = (std::env::var("MOCK_PTX").unwrap(), folder.join("cut"));
        let text = std::fs::read_to_string(Path::new(&whole).join("pointwise.ptx")).unwrap();
        std::fs::create_dir(&cut).unwrap();
        std::fs::write(cut.join("pointwise.ptx"), text.replace("griddepcontrol.wait;", "")).unwrap();
        // SAFETY: no other thread reads or changes the environment now.
        unsafe { std::env::set_var("MOCK_PTX", cut) };
        let device = CudaDevice::new(Arc::new(NvidiaDriver::new(0).unwrap()), DType::F16).unwrap();
        let mut executable = device.compile_graph(doubling()).unwrap();
        let error = executable.run(&[[1.0f32; 8].as_slice().into()], &mut [&mut [0.0f32; 8][..]]).unwrap_err();
        assert!(matches!(error, Error::Fault { lost: true, .. }), "{error}");
        let lines = mock::log(folder);
        let [fault] = mock::complaints(&lines)[..] else { panic!("{lines:?}") };
        let parts = ["fault: scale_shift_f16", "half.cuh:", "ld.global", "before griddepcontrol.wait"];
        assert!(parts.iter().all(|part| fault.contains(part)), "{fault}");
    });
}

/// Eight values times two.
fn doubling() -> Graph {
    let mut b = Builder::new();
    let x = b.input("x", &[1, 8]);
    let y = b.scale_shift(x, 2.0, 0.0);
    b.output("y", y);
    b.finish().unwrap()
}

/// A launch that fails while it is captured ends the capture; nothing is left of it, and the next run captures anew.
#[test]
fn fault_in_a_capture() {
    if !interpreter::compiled() {
        return;
    }
    mock::child(&[], |folder| {
        let driver = Arc::new(NvidiaDriver::new(0).unwrap());
        let device = CudaDevice::new(driver, DType::F16).unwrap().with_cublaslt(false);
        let mut executable = device.compile_graph(doubling()).unwrap();
        let mut run = || executable.run(&[[1.0f32; 8].as_slice().into()], &mut [&mut [0.0f32; 8][..]]);
        run().unwrap();
        for fault in ["cuLaunchKernelEx=1", "cuGraphInstantiateWithFlags=1", "cuStreamBeginCapture_v2=1"] {
            fail(fault);
            assert!(run().is_err(), "{fault}");
            fail("");
        }
        run().unwrap();
        run().unwrap();
        drop((executable, device));
        let lines = mock::log(folder);
        assert_eq!(mock::complaints(&lines), [""; 0]);
        assert_eq!(lines.last().unwrap(), "released, 0 left");
    });
}
