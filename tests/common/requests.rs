//! Requests on a GPU, or on a mock of one, that say of themselves whether they are right.

use super::common::Model;
use super::interpreter::values;
use braid::device::cuda::driver::Driver;
use braid::device::cuda::{CudaDevice, NvidiaDriver};
use braid::pipeline::{ImagePrompt, Output};
use braid::schedulers::SchedulerKind;
use braid::tensor::DType;
use braid::{Image, Pipeline, Request};
use std::sync::Arc;

/// The small model on a driver.
pub fn pipeline(model: &Model, driver: Arc<dyn Driver>, library: bool) -> Pipeline {
    let device = CudaDevice::new(driver, DType::F16).unwrap().with_cublaslt(library);
    Pipeline::load_with_device(&model.options(), Some(Box::new(device))).unwrap()
}

/// The small model on the first GPU.
pub fn on_gpu(model: &Model) -> Pipeline {
    pipeline(model, Arc::new(NvidiaDriver::new(0).unwrap()), true)
}

/// A guided request of an image prompt that goes through the image encoder.
pub fn request(images: usize, steps: usize, scale: f32) -> Request {
    let mut request = super::common::request();
    (request.width, request.height) = (Some(16), Some(16));
    (request.steps, request.scheduler) = (steps, Some(SchedulerKind::EulerAncestral));
    (request.guidance_scale, request.num_images) = (4.0, images);
    let pixels = values(3 * 30 * 20, 5).iter().map(|v| (v * 127.0 + 128.0) as u8).collect();
    let image = Image::new(30, 20, pixels).unwrap();
    request.image_prompts = vec![ImagePrompt::new(image).with_scale(scale)];
    request.capture_intermediates = true;
    request
}

/// Images and everything on the way.
pub type Bytes = (Vec<Vec<u8>>, Vec<(String, Vec<u32>)>);

pub fn bytes(output: &Output) -> Bytes {
    let bits = |data: &[f32]| data.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    let images = output.images.iter().map(|image| image.rgb().to_vec()).collect();
    (images, output.intermediates.iter().map(|(name, tensor)| (name.clone(), bits(&tensor.data))).collect())
}

/// Two pipelines with a driver each, at the same time in two threads, and one of them alone: the same bytes.
pub fn two_pipelines(steps: usize) {
    let model = Model::folder();
    let pipelines = [(); 2].map(|()| on_gpu(&model));
    let drawn = std::thread::scope(|scope| {
        let draw = |pipeline| move || bytes(&Pipeline::generate(pipeline, &request(1, steps, 0.7)).unwrap());
        let threads = pipelines.each_ref().map(|pipeline| scope.spawn(draw(pipeline)));
        threads.map(|thread| thread.join().unwrap())
    });
    assert!(drawn[0] == drawn[1], "two pipelines in two threads differ");
    let [first, _] = pipelines;
    assert!(bytes(&first.generate(&request(1, steps, 0.7)).unwrap()) == drawn[0], "the bytes differ from those alone");
}
