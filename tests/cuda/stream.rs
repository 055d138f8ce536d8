//! Frames that follow one another on the device.

use super::common::{Model, request};
use super::ptx::PtxDriver;
use super::{compiled, values};
use braid::device::cuda::CudaDevice;
use braid::device::cuda::driver::Driver;
use braid::inputs::image::Image;
use braid::pipeline::{ImagePrompt, LivePrompts, ReferenceImage};
use braid::tensor::DType;
use braid::{Frame, Pipeline, Reference, Request};
use std::sync::Arc;

fn picture(seed: usize) -> Image {
    Image::new(16, 16, (0..768).map(|i| ((i + 77 * seed).wrapping_mul(2_654_435_761) >> 13) as u8).collect()).unwrap()
}

fn embedding(number: u32) -> ReferenceImage {
    ReferenceImage::Embedding(values(24, number))
}

/// Two steps on an image.
fn base() -> Request {
    let mut request = request().with_steps(4).with_strength(0.5).with_init_image(picture(0));
    (request.width, request.height) = (None, None);
    request.image_prompts = vec![ImagePrompt::default().with_reference(embedding(1))];
    request
}

/// Frames by captured graphs: nothing is allocated or captured after the first ones, also where prompts change; each has the bytes of its
/// request alone, whatever is kept of earlier ones.
#[test]
fn frames() {
    if !compiled() {
        return;
    }
    let model = Model::folder();
    let driver = Arc::new(PtxDriver::new());
    let device = CudaDevice::new(driver.clone(), DType::F16).unwrap().with_cublaslt(false);
    let options = model.options().with_max_cache_bytes(0).with_max_batch(2);
    let pipeline = Pipeline::load_with_device(&options, Some(Box::new(device))).unwrap();
    let session = pipeline.session(&base()).unwrap();
    let other = base().prompts().with_prompt("a boat").with_references(0, [Reference::new(embedding(2))]);
    let prepared = session.prepare_prompts(other).unwrap();
    let draw = |overlap: bool| -> Vec<Frame> {
        let live = LivePrompts::new();
        let source = (1..4).map(|seed| {
            if seed == 2 {
                live.set(&prepared);
            }
            picture(seed)
        });
        let stream = session.stream(source).unwrap().with_overlap(overlap).with_live_prompts(&live);
        stream.map(|frame| frame.unwrap()).collect()
    };
    let first = draw(false);
    let before = driver.calls();
    let again = draw(false);
    let after = driver.calls();
    assert_eq!((after.allocations, after.captures), (before.allocations, before.captures));
    let together = draw(true);
    for ((first, again), together) in first.iter().zip(&again).zip(&together) {
        let wanted = pipeline.generate(&first.request).unwrap().images;
        assert!([first, again, together].iter().all(|frame| frame.output.images == wanted), "frame {}", first.number);
    }
    assert!(first[0].request.prompt != first[1].request.prompt && first[2].request.prompt == "a boat");
}
