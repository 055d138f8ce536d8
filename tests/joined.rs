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

use braid::device::cuda::driver::Driver;
use braid::device::cuda::{CudaDevice, NvidiaDriver};
use braid::pipeline::{Callbacks, CancelToken, ImagePrompt, Output, Progress, Stage};
use braid::schedulers::SchedulerKind;
use braid::tensor::DType;
use braid::{Error, Image, Pipeline, Request};
use interpreter::values;
use ptx::PtxDriver;
use std::path::Path;
use std::sync::Arc;

/// Two images, guided, of an image prompt that goes through the image encoder.
fn request(scale: f32) -> Request {
    let mut request = common::request();
    (request.width, request.height) = (Some(16), Some(16));
    (request.steps, request.scheduler) = (2, Some(SchedulerKind::EulerAncestral));
    (request.guidance_scale, request.num_images) = (4.0, 2);
    let pixels = values(3 * 30 * 20, 5).iter().map(|v| (v * 127.0 + 128.0) as u8).collect();
    let image = Image::new(30, 20, pixels).unwrap();
    request.image_prompts = vec![ImagePrompt::new(image).with_scale(scale)];
    request.capture_intermediates = true;
    request
}

/// Images and everything on the way.
type Bytes = (Vec<Vec<u8>>, Vec<(String, Vec<u32>)>);

fn bytes(output: &Output) -> Bytes {
    let bits = |data: &[f32]| data.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    let images = output.images.iter().map(|image| image.rgb().to_vec()).collect();
    (images, output.intermediates.iter().map(|(name, tensor)| (name.clone(), bits(&tensor.data))).collect())
}

/// The bytes of a request on the mock, which are the interpreter's.
fn compared(pipelines: &[Pipeline; 2], request: &Request) -> Bytes {
    let [on_mock, on_interpreter] = pipelines.each_ref().map(|pipeline| bytes(&pipeline.generate(request).unwrap()));
    assert!(on_mock == on_interpreter, "the mock's bytes differ");
    on_mock
}

fn pipelines(library: bool) -> [Pipeline; 2] {
    let model = common::Model::folder();
    let drivers: [Arc<dyn Driver>; 2] = [Arc::new(NvidiaDriver::new(0).unwrap()), Arc::new(PtxDriver::new())];
    drivers.map(|driver| {
        let device = CudaDevice::new(driver, DType::F16).unwrap().with_cublaslt(library);
        Pipeline::load_with_device(&model.options(), Some(Box::new(device))).unwrap()
    })
}

/// Drops the pipelines: nothing is left, and nothing was against the rules.
fn closed(pipelines: [Pipeline; 2], folder: &Path) {
    drop(pipelines);
    let lines = mock::log(folder);
    assert_eq!(mock::complaints(&lines), [""; 0]);
    assert_eq!(lines.last().unwrap(), "released, 0 left");
}

fn joined(seed: &str, capability: &str, body: fn(&Path)) {
    let Some(kernels) = mock::kernels() else {
        interpreter::compiled();
        return;
    };
    let kernels = kernels.to_str().unwrap();
    let products = ("BRAID_TRIALS", "0");
    let device = [("MOCK_CAPABILITY", capability), ("MOCK_MULTIPROCESSORS", "4")];
    mock::child(&[&device[..], &[("MOCK_PTX", kernels), ("MOCK_SEED", seed), products]].concat(), body);
}

#[test]
fn another_scale() {
    joined("1", "80", |folder| {
        let pipelines = pipelines(true);
        assert!(compared(&pipelines, &request(0.7)) != compared(&pipelines, &request(0.2)));
        closed(pipelines, folder);
    });
}

#[test]
fn request_after_cancellation() {
    // Orin takes no cubin of this build, so these are the kernels of the PTX itself.
    joined("2", "87", |folder| {
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
