//! Faults of a GPU and its libraries, on the mock of libcuda: what is not there, memory that is short at any allocation, calls that fail,
//! a device that is lost. The numbers are those of the catalogue (docs/reliability.md).

#![cfg(all(feature = "cuda", target_os = "linux"))]
#![allow(clippy::unwrap_used)]

#[path = "common/mod.rs"]
mod common;
#[path = "common/device.rs"]
mod device;
#[allow(dead_code)] // Values in a kernel's type are for its tests.
#[path = "common/interpreter.rs"]
mod interpreter;
#[path = "common/mock.rs"]
mod mock;
#[allow(dead_code)] // Two pipelines are for tests/joined.rs.
#[path = "common/requests.rs"]
mod requests;

use braid::device::cuda::driver::Driver;
use braid::device::cuda::{CudaDevice, NvidiaDriver};
use braid::pipeline::{Callbacks, DeviceChoice, Progress};
use braid::tensor::DType;
use braid::{Engine, EngineOptions, Error, Pipeline, Request};
use requests::{Bytes, bytes};
use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;

/// An image that takes both text encoders, the conditioning, the UNet and the VAE. By three steps the loop's commands are launched one by
/// one, captured, and launched as a graph.
fn request(steps: usize) -> Request {
    let mut request = common::request().with_width(16).with_height(16).with_steps(steps);
    request.guidance_scale = 1.0;
    request.with_capture_intermediates(true)
}

/// Runs `body` in a process with the mock of a GPU that runs the kernels.
fn on_mock(more: &[(&str, &str)], body: fn(&Path)) {
    let Some(kernels) = mock::kernels(80) else {
        interpreter::compiled();
        return;
    };
    let device = [("MOCK_CAPABILITY", "80"), ("MOCK_MULTIPROCESSORS", "4"), ("BRAID_TRIALS", "0")];
    mock::child(&[&device[..], &[("MOCK_PTX", kernels.to_str().unwrap())], more].concat(), body);
}

/// Plans faults (tests/mock_libcuda/src/faults.rs); calls are counted from here.
fn plan(faults: &str) {
    // SAFETY: no other thread of the process reads or changes the environment now.
    unsafe { env::set_var("MOCK_FAULT", faults) };
}

/// A pipeline whose device's memory is watched.
struct Watched {
    driver: Arc<NvidiaDriver>,
    pipeline: Pipeline,
    request: Request,
    /// Free before anything is allocated.
    free: u64,
    /// The bytes of the request before any fault, and the memory that the device holds after it.
    want: Bytes,
    held: u64,
}

impl Watched {
    fn new(request: Request, library: bool) -> Self {
        let driver = Arc::new(NvidiaDriver::new(0).unwrap());
        let pipeline = requests::pipeline(&common::Model::folder(), driver.clone(), library);
        let free = driver.memory_info().unwrap().free;
        let want = bytes(&pipeline.generate(&request).unwrap());
        let held = free - driver.memory_info().unwrap().free;
        Self { driver, pipeline, request, free, want, held }
    }

    /// The device memory that is allocated, which is what the pipeline says.
    fn allocated(&self) -> u64 {
        let bytes = self.free - self.driver.memory_info().unwrap().free;
        assert_eq!(bytes, self.pipeline.device_memory_used() as u64, "memory that nobody holds");
        bytes
    }

    /// Frees all that the pipeline holds.
    fn clear(&self) {
        self.pipeline.clear_cache();
        assert_eq!(self.allocated(), 0, "left after the cache was cleared");
    }

    /// Does `work` with that fault of a call, and says which function had it, if it was called so often. Afterwards the pipeline holds no
    /// more than after a good request.
    fn fault<T>(&self, folder: &Path, fault: &str, work: impl FnOnce(&Pipeline, &Request) -> T) -> (T, Option<String>) {
        mock::log(folder);
        plan(fault);
        let result = work(&self.pipeline, &self.request);
        plan("");
        let lines = mock::log(folder);
        assert_eq!(mock::complaints(&lines), [""; 0], "{fault}");
        let left = self.allocated();
        assert!(left <= self.held, "{fault}: {left} bytes are left");
        (result, lines.iter().find_map(|line| line.strip_suffix(" fails")).map(str::to_owned))
    }

    /// Holds that the next request has the bytes of before.
    fn same_bytes(&self, after: &str) {
        assert!(bytes(&self.pipeline.generate(&self.request).unwrap()) == self.want, "{after}: other bytes after it");
    }

    /// Does `work` without anything compiled and with that fault; `None` where the call was not made so often. The next request has the
    /// bytes of before.
    fn with_fault<T>(&self, folder: &Path, fault: &str, work: impl FnOnce(&Pipeline, &Request) -> T) -> Option<T> {
        self.clear();
        let (result, failed) = self.fault(folder, fault, work);
        failed?;
        self.same_bytes(fault);
        Some(result)
    }

    /// Does `work` without anything compiled, where there is no memory from the n-th allocation on, for every n. After some of them a
    /// request has the bytes of before.
    fn without_memory<T>(&self, folder: &Path, work: impl Fn(&Pipeline, &Request) -> T) -> Vec<T> {
        let mut results = Vec::new();
        loop {
            self.clear();
            let fault = format!("cuMemAlloc_v2@{}+=2", results.len() + 1);
            let (result, failed) = self.fault(folder, &fault, &work);
            if failed.is_none() {
                return results;
            }
            results.push(result);
            if results.len().is_multiple_of(8) {
                self.same_bytes(&fault);
            }
        }
    }

    /// Drops everything: nothing is left.
    fn close(self, folder: &Path) {
        drop((self.pipeline, self.driver));
        let lines = mock::log(folder);
        assert_eq!(mock::complaints(&lines), [""; 0]);
        assert_eq!(lines.last().unwrap(), "released, 0 left");
    }
}

/// The stage of an error that says how much memory is needed and free, and what to do.
fn short_memory(error: &Error) -> &'static str {
    let text = error.to_string();
    let Error::Memory { stage, need, have, .. } = error else { panic!("{text}") };
    assert!(*need > 0 && text.contains(&format!("{need} bytes needed, {have} available")), "{text}");
    assert!(*have > 0 && text.contains("free memory of mock") && text.contains("`device: cpu`"), "{text}");
    assert!(text.contains("what is free lies in pieces"), "{text}");
    stage
}

/// The functions that are called by `work`, in order, but for those that tests/mock_libcuda/src/faults.rs leaves out.
fn called<T>(folder: &Path, work: impl FnOnce() -> T) -> (T, Vec<String>) {
    mock::log(folder);
    plan("call@1+=0");
    let result = work();
    plan("");
    let lines = mock::log(folder);
    (result, lines.iter().filter_map(|line| line.strip_suffix(" is called")).map(str::to_owned).collect())
}

/// The numbers of calls, from 1: of each function between each two others, where that comes first and where it comes last.
fn moments(calls: &[String]) -> BTreeSet<usize> {
    let mut ends: BTreeMap<&[String], [usize; 2]> = BTreeMap::new();
    for (at, around) in calls.windows(3).enumerate() {
        ends.entry(around).or_insert([at + 2; 2])[1] = at + 2;
    }
    ends.into_values().flatten().chain([1, calls.len()]).collect()
}

/// Holds that an error is that of a function which failed and left the device as it is.
#[track_caller]
fn says_call(function: &str, error: &Error) {
    let Error::Fault { call, lost: false, .. } = error else { panic!("{function}: {error}") };
    let called = match function {
        // By which the mock's cuBLASLt hands a product over, and the name of a capture's end.
        "mockMultiply" => "cublasLtMatmul",
        "capture" => "cuStreamEndCapture",
        function => function,
    };
    assert!(called.starts_with(call.split(' ').next().unwrap()), "{function}: {error}");
}

#[test]
fn f01_no_libcuda() {
    mock::child(&[("LD_LIBRARY_PATH", "/nowhere")], |_| {
        let Err(error) = NvidiaDriver::new(0) else {
            device::skip("a GPU's driver is installed");
            return;
        };
        let text = error.to_string();
        assert!(text.contains("libcuda.so.1 was not found in") && text.contains("LD_LIBRARY_PATH"), "{text}");
        assert!(text.contains("install the driver, or use `device: cpu`"), "{text}");
        let model = common::Model::folder();
        let pipeline = Pipeline::load(&model.options().with_device(DeviceChoice::Auto)).unwrap();
        let note = pipeline.device_note().unwrap().to_string();
        assert!(pipeline.device() == "cpu" && note.contains("libcuda.so.1"), "{note}");
        assert!(common::generate(&pipeline, &common::request()).is_ok());
    });
}

/// A library of that name that is another, and a toolkit's stub, by its code, where there is no driver.
#[test]
fn f02_stub_or_a_missing_symbol() {
    let folder = tempfile::tempdir().unwrap();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let libc = maps.lines().find_map(|line| line.split_whitespace().last().filter(|path| path.contains("libc.so")));
    symlink(libc.unwrap(), folder.path().join("libcuda.so.1")).unwrap();
    for (variable, value, want) in [
        ("LD_LIBRARY_PATH", folder.path().to_str().unwrap(), "the NVIDIA driver's library lacks cuInit"),
        ("MOCK_FAULT", "cuInit=34", "libcuda.so.1 was not found"),
    ] {
        mock::child(&[(variable, value), ("TEST_WANT", want)], |_| {
            let text = NvidiaDriver::new(0).map(|_| ()).unwrap_err().to_string();
            let want = env::var("TEST_WANT").unwrap();
            assert!(text.contains(&want) && text.contains("`device: cpu`"), "{text}");
        });
    }
}

/// A warning that names the library and the places, and the GPU is used.
#[test]
fn f03_no_cublas() {
    let folder = tempfile::tempdir().unwrap();
    symlink(mock::library(), folder.path().join("libcuda.so.1")).unwrap();
    let nowhere = folder.path().join("nothing");
    let nowhere = nowhere.to_str().unwrap();
    let elsewhere = ["VIRTUAL_ENV", "CONDA_PREFIX", "HOME", "CUDA_PATH", "CUDA_HOME"].map(|name| (name, nowhere));
    let own = [("LD_LIBRARY_PATH", folder.path().to_str().unwrap()), ("BRAID_CUBLASLT", nowhere)];
    mock::child(&[&own[..], &elsewhere].concat(), |_| {
        let (driver, warnings) = common::warnings(|| NvidiaDriver::new(0).unwrap());
        if driver.properties().gemm {
            device::skip("cuBLASLt is installed");
            return;
        }
        let said = warnings.join("\n");
        for part in
            ["libcublasLt.so.13", "BRAID_CUBLASLT", "CUDA_PATH", "/usr/local/cuda*", "Python's packages", "pip install"]
        {
            assert!(said.contains(part), "{part}: {said}");
        }
        assert!(said.contains(&format!("BRAID_CUBLASLT names {}", env::var("BRAID_CUBLASLT").unwrap())), "{said}");
    });
}

/// Both versions are named.
#[test]
fn f04_old_driver() {
    mock::child(&[("MOCK_DRIVER", "11080")], |_| {
        let text = NvidiaDriver::new(0).map(|_| ()).unwrap_err().to_string();
        assert!(text.contains("the NVIDIA driver is for CUDA 11.8; one for CUDA 12 or later is needed"), "{text}");
        assert!(text.contains("`device: cpu`"), "{text}");
    });
}

/// Every allocation of a request, and of all that it compiles, from the n-th on, for every n; and of `prepare`. The device does no work.
#[test]
fn f05_out_of_memory_at_every_allocation() {
    on_mock(&[("MOCK_WORK", "none")], |folder| {
        let watched = Watched::new(request(1), false);
        let results = watched.without_memory(folder, Pipeline::generate);
        let mut stages = BTreeSet::new();
        for (number, result) in results.iter().enumerate() {
            match result {
                Err(error) => _ = stages.insert(short_memory(error)),
                // Nothing that the request could not do without.
                Ok(output) => assert!(bytes(output) == watched.want, "{number}"),
            }
        }
        let shape = watched.pipeline.workload_shape(&watched.request).unwrap();
        let prepared = watched.without_memory(folder, |pipeline, _| pipeline.prepare(&shape));
        prepared.iter().for_each(|result| _ = result.as_ref().map_err(short_memory));
        watched.same_bytes("prepare");
        println!("{} allocations of a request, {stages:?}, {} of prepare", results.len(), prepared.len());
        // The VAE, the UNet with its images' memory, the encoders and the conditioning.
        assert!(["decode", "denoise", "the GPU"].iter().all(|stage| stages.contains(stage)), "{stages:?}");
        assert!(results.len() > 20 && prepared.len() > 15);
        watched.close(folder);
    });
}

/// While images are drawn, an allocation alone, for which room is made, or all from one on; the host's memory, and the driver's own.
#[test]
fn f05_out_of_memory_once() {
    on_mock(&[], |folder| {
        let watched = Watched::new(request(1), false);
        for calls in ["1", "9", "20", "15+"] {
            let fault = format!("cuMemAlloc_v2@{calls}=2");
            match watched.with_fault(folder, &fault, Pipeline::generate).unwrap() {
                Err(error) => _ = short_memory(&error),
                Ok(output) => assert!(bytes(&output) == watched.want, "{fault}"),
            }
        }
        // Host memory for copies, and memory that the driver takes for itself.
        let staging = watched.with_fault(folder, "cuMemHostAlloc=2", Pipeline::generate).unwrap();
        assert!(matches!(staging.unwrap_err(), Error::Memory { stage: "decode", .. }));
        let captured = |pipeline: &Pipeline, _: &Request| pipeline.generate(&request(3));
        let own = watched.with_fault(folder, "cuGraphInstantiateWithFlags=2", captured).unwrap();
        let text = own.unwrap_err().to_string();
        assert!(text.contains("the driver does not say how many") && text.contains("`device: cpu`"), "{text}");
        watched.close(folder);
    });
}

/// Memory that is short for a moment is so for one request of several, which share evaluations; the others have the bytes of before.
#[test]
fn f05_out_of_memory_in_a_batch() {
    on_mock(&[], |folder| {
        let mut watched = Watched::new(request(1), false);
        let requests = [0, 1, 2].map(|seed| request(1).with_seed(seed));
        let draw = |pipeline: &Pipeline, _: &Request| pipeline.generate_batch(&requests);
        let want: Vec<_> =
            draw(&watched.pipeline, &watched.request).iter().map(|result| bytes(result.as_ref().unwrap())).collect();
        watched.held = watched.allocated();
        let (mut drawn, mut refused) = (0, 0);
        for number in (1..).step_by(11) {
            let Some(results) = watched.with_fault(folder, &format!("cuMemAlloc_v2@{number}=2"), draw) else { break };
            for (result, want) in results.iter().zip(&want) {
                match result {
                    Ok(output) => {
                        assert!(bytes(output) == *want, "allocation {number}");
                        drawn += 1;
                    }
                    Err(error) => {
                        short_memory(error);
                        refused += 1;
                    }
                }
            }
        }
        println!("{drawn} drawn, {refused} refused");
        assert!(drawn > 0 && refused > 0, "{drawn} drawn, {refused} refused");
        watched.close(folder);
    });
}

/// Calls that fail once, and a device that goes on: the next image has the bytes of before.
#[test]
fn f05_calls_that_fail_once() {
    on_mock(&[], |folder| {
        let watched = Watched::new(request(3), true);
        for call in [
            // At a conversion of weights, and in a run.
            "cuLaunchKernelEx@1=701",
            "cuLaunchKernelEx@500=701",
            "mockMultiply@7=13",
            "cuMemcpyHtoDAsync_v2@1=1",
            "cuMemcpyDtoHAsync_v2@1=1",
            "capture@1=1",
            "cuGraphLaunch@2=1",
            "cuEventSynchronize@1=1",
            "cuStreamSynchronize@4=1",
        ] {
            let result =
                watched.with_fault(folder, call, Pipeline::generate).unwrap_or_else(|| panic!("{call}: never"));
            says_call(call.split('@').next().unwrap(), &result.unwrap_err());
        }
        watched.close(folder);
    });
}

/// Each function at each of its moments, by what is called before and after it, on a device that does no work: the error names it, all is
/// freed, and the next request is drawn.
#[test]
fn f05_every_call_that_fails() {
    on_mock(&[("MOCK_WORK", "none")], |folder| {
        let watched = Watched::new(request(3), true);
        watched.clear();
        let (drawn, calls) = called(folder, || watched.pipeline.generate(&watched.request));
        drawn.unwrap();
        let moments = moments(&calls);
        for (done, number) in moments.iter().enumerate() {
            watched.clear();
            let (result, failed) = watched.fault(folder, &format!("call@{number}=1"), Pipeline::generate);
            assert_eq!(failed.as_ref(), Some(&calls[number - 1]), "call {number}");
            match (failed.unwrap().as_str(), result) {
                // One algorithm more that does not take all images at once.
                ("cublasLtMatmulAlgoCheck", Ok(_)) => {}
                (function, Ok(_)) => panic!("{function} fails, and nobody says so"),
                (function, Err(error)) => says_call(function, &error),
            }
            if done % 8 == 0 {
                watched.same_bytes(&format!("call {number}"));
            }
        }
        let functions: BTreeSet<_> = moments.iter().map(|number| &calls[number - 1]).collect();
        assert_eq!(functions.len(), calls.iter().collect::<BTreeSet<_>>().len());
        println!("{} of {} calls failed, of {functions:?}", moments.len(), calls.len());
        assert!(moments.len() > 60 && functions.len() > 20);
        watched.close(folder);
    });
}

/// Every call by which a device is opened, once: the error names it, or a part is left out; all is given back, and the device can be opened.
#[test]
fn f05_calls_that_open_a_device() {
    on_mock(&[], |folder| {
        let open = || NvidiaDriver::new(0);
        // The first one looks for the library, too.
        drop(open().unwrap());
        let (driver, calls) = called(folder, || open().unwrap());
        drop(driver);
        for (number, function) in (1..).zip(&calls) {
            plan(&format!("call@{number}=1"));
            let opened = open();
            plan("");
            match opened {
                // Own products take the library's place, and the next image of the kernels the first one's; a version that the library
                // does not tell is one that nothing was tried on.
                Ok(driver) if function == "cublasLtCreate" => assert!(!driver.properties().gemm),
                Ok(driver) if ["cublasLtGetProperty", "cuModuleLoadData"].contains(&function.as_str()) => {
                    assert!(driver.properties().gemm);
                }
                Ok(_) => panic!("{function} fails, and nobody says so"),
                Err(error) => {
                    let name = function.split('_').next().unwrap();
                    assert!(error.to_string().contains(name), "{function}: {error}");
                }
            }
            drop(open().unwrap());
            let lines = mock::log(folder);
            assert_eq!(mock::complaints(&lines), [""; 0], "{function}");
            assert_eq!(lines.last().unwrap(), "released, 0 left", "{function}");
        }
        println!("{} calls failed", calls.len());
        assert!(calls.len() > 12, "{calls:?}");
    });
}

/// The error of a device that is lost, with the driver's code.
fn lost<T>(result: braid::Result<T>) -> String {
    let error = result.map(|_| ()).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, Error::Fault { lost: true, .. }), "{text}");
    assert!(text.contains("the device is lost to this process: start it again, or use `device: cpu`"), "{text}");
    text
}

/// Whatever call meets it, the device is lost to all pipelines of the process, at once and with the first error; a CPU is not.
#[test]
fn f06_lost_device() {
    for (fault, code) in [
        ("cuLaunchKernelEx@9!700", "CUDA_ERROR_ILLEGAL_ADDRESS, 700"),
        ("kernel@60!716", "CUDA_ERROR_MISALIGNED_ADDRESS, 716"),
        ("cuGraphLaunch@1!719", "CUDA_ERROR_LAUNCH_FAILED, 719"),
        ("cuStreamSynchronize@3!700", "CUDA_ERROR_ILLEGAL_ADDRESS, 700"),
        ("cuMemFree_v2@1!700", "CUDA_ERROR_ILLEGAL_ADDRESS, 700"),
        // The next image of the kernels does not help.
        ("cuModuleLoadData@1!700", "CUDA_ERROR_ILLEGAL_ADDRESS, 700"),
        // Nobody knows when what is under way ends.
        ("cuStreamSynchronize@2+=1", "CUDA_ERROR_INVALID_VALUE, 1"),
        // Seen by cuBLASLt first, whose status says nothing of it.
        ("mockMultiply@5!700", "CUDA_ERROR_ILLEGAL_ADDRESS, 700"),
    ] {
        on_mock(&[("TEST_FAULT", fault), ("TEST_CODE", code)], |folder| {
            let model = common::Model::folder();
            let driver: Arc<dyn Driver> = Arc::new(NvidiaDriver::new(0).unwrap());
            let [first, second] = [(); 2].map(|()| requests::pipeline(&model, driver.clone(), true));
            let other = requests::on_gpu(&model);
            other.generate(&request(1)).unwrap();
            let (fault, code) = (env::var("TEST_FAULT").unwrap(), env::var("TEST_CODE").unwrap());
            plan(&fault);
            let said = lost(first.generate(&request(3)));
            assert!(said.contains(&code), "{said} is not {code}");
            for pipeline in [&first, &second, &other] {
                let mut told = 0;
                let tell = |_: Progress| told += 1;
                assert_eq!(lost(pipeline.generate_with(&request(3), Callbacks::new().with_progress(tell))), said);
                assert_eq!(told, 0, "work on a device that is lost");
            }
            let shape = first.workload_shape(&request(3)).unwrap();
            assert_eq!(lost(first.prepare(&shape)), said);
            assert_eq!(lost(NvidiaDriver::new(0)), said);
            assert!(matches!(&second.generate_batch(&[request(3)])[..], [Err(Error::Fault { lost: true, .. })]));
            // Nothing of it hangs or panics.
            drop((first, second, other, driver));
            assert_eq!(lost(NvidiaDriver::new(0)), said);
            plan("");
            let cpu = Pipeline::load(&model.options().with_device(DeviceChoice::Auto)).unwrap();
            let note = cpu.device_note().unwrap().to_string();
            assert!(
                cpu.device() == "cpu" && note.contains("using the CPU, not CUDA") && note.contains(&code),
                "{note}"
            );
            let drawn = [cpu, model.load().unwrap()].map(|cpu| common::generate(&cpu, &common::request()).unwrap());
            assert_eq!(drawn[0], drawn[1]);
            let violations = mock::log(folder).into_iter().filter(|line| line.starts_with("violation: "));
            assert_eq!(violations.collect::<Vec<_>>(), [""; 0]);
        });
    }
}

/// Requests that are drawn and requests that wait end with the error.
#[test]
fn f06_engine_on_a_lost_device() {
    on_mock(&[], |_| {
        let pipeline = requests::on_gpu(&common::Model::folder());
        pipeline.generate(&request(3)).unwrap();
        plan("cuGraphLaunch@1!700");
        let engine = Engine::new(pipeline, EngineOptions::default().with_max_running(2)).unwrap();
        let tickets: Vec<_> = (0..5).map(|seed| engine.submit(request(3).with_seed(seed)).unwrap()).collect();
        let said: BTreeSet<String> = tickets.into_iter().map(|ticket| lost(ticket.wait())).collect();
        assert!(said.len() == 1 && said.first().unwrap().contains("700"), "{said:?}");
        assert_eq!(lost(engine.submit(request(3)).unwrap().wait()), *said.first().unwrap());
        engine.drain();
    });
}

/// A VAE that f16 is too narrow for, where there is no memory for it in f32: an error that says both, and the pipeline is usable.
#[test]
fn f14_no_memory_for_the_vae_in_f32() {
    on_mock(&[], |folder| {
        let model = common::Model::folder();
        model.edit("vae/diffusion_pytorch_model.safetensors", |tensors| {
            let mut poison = |name: &str, value, at| tensors.get_mut(name).unwrap().poison(value, at);
            poison("decoder.conv_norm_out.weight", 1e-3, None);
            poison("decoder.conv_out.weight", 1e5, Some(0));
        });
        let driver: Arc<dyn Driver> = Arc::new(NvidiaDriver::new(0).unwrap());
        let load = || {
            let device = CudaDevice::new(driver.clone(), DType::F16).unwrap().with_decoder(DType::F16);
            Pipeline::load_with_device(&model.options(), Some(Box::new(device))).unwrap()
        };
        mock::log(folder);
        let drawn = load().generate(&request(3)).unwrap();
        assert_eq!(drawn.upcast_vae, [true]);
        let allocations = mock::log(folder).iter().filter(|line| line.starts_with("allocate ")).count();
        let pipeline = load();
        // The last ones are those of the VAE in f32.
        plan(&format!("cuMemAlloc_v2@{allocations}+=2"));
        match pipeline.generate(&request(3)) {
            Err(Error::NotFinite { stage, hint }) => {
                assert_eq!(stage, "the VAE");
                let parts = ["it may not in f32", "no memory: out of memory in decode: ", " bytes needed, "];
                assert!(parts.iter().all(|part| hint.contains(part)), "{hint}");
            }
            other => panic!("{:?}", other.map(|_| ())),
        }
        plan("");
        assert!(bytes(&pipeline.generate(&request(3)).unwrap()) == bytes(&drawn));
    });
}
