//! A request leaves nothing behind for the next one.

use super::*;
use braid::inputs::noise::RngKind;
use braid::schedulers::{PredictionType, SchedulerKind, SigmaSchedule, TimestepSpacing};

/// A difference of a request.
type Change<'a> = &'a dyn Fn(&mut Request);

fn embedding(offset: usize) -> ReferenceImage {
    ReferenceImage::Embedding((0..24).map(|i| (i + offset) as f32 / 24.0).collect())
}

/// Bright above, dark below.
fn picture() -> Image {
    Image::new(16, 16, (0..768).map(|i| 255 - (i / 3) as u8).collect()).unwrap()
}

/// Three steps: with two, Karras' noise levels are those of the other schedule.
fn base() -> Request {
    let mut request = request();
    request.steps = 3;
    request
}

/// One difference to the request before, at a time: the image is that of a pipeline of its own, and so is the first one's again.
#[test]
fn one_difference_at_a_time() {
    let model = Model::folder();
    let pipeline = model.load().unwrap();
    let first = generate(&pipeline, &base()).unwrap();
    let changes: [(&str, Change<'_>); 22] = [
        ("prompt", &|r| r.prompt = "a blue boat".into()),
        ("negative prompt", &|r| r.negative_prompt = Some("fog".into())),
        ("scheduler", &|r| r.scheduler = Some(SchedulerKind::Ddim)),
        ("scheduler with noise", &|r| r.scheduler = Some(SchedulerKind::EulerAncestral)),
        ("schedule", &|r| r.sigma_schedule = Some(SigmaSchedule::Karras)),
        ("prediction", &|r| r.prediction_type = Some(PredictionType::V)),
        ("spacing", &|r| r.timestep_spacing = Some(TimestepSpacing::Trailing)),
        ("steps", &|r| r.steps = 4),
        ("guidance scale", &|r| r.guidance_scale = 2.0),
        ("no guidance", &|r| r.guidance_scale = 1.0),
        ("guidance rescale", &|r| r.guidance_rescale = 0.5),
        ("scale", &|r| r.image_prompts[0] = r.image_prompts[0].clone().with_scale(0.3)),
        ("image prompt", &|r| r.image_prompts[0] = ImagePrompt::default().with_reference(embedding(3))),
        ("two references", &|r| r.image_prompts[0] = r.image_prompts[0].clone().with_reference(embedding(5))),
        ("no image prompt", &|r| r.image_prompts.clear()),
        ("seed", &|r| r.seed = 8),
        ("clip skip", &|r| r.clip_skip = 1),
        ("random numbers", &|r| r.rng = RngKind::Cuda(Default::default())),
        ("an image to begin with", &|r| r.init_image = Some(picture())),
        ("a mask", &|r| (r.init_image, r.mask) = (Some(picture()), Some(picture()))),
        ("a mask at strength 1", &|r| {
            (r.init_image, r.mask, r.strength) = (Some(picture()), Some(picture()), Some(1.0))
        }),
        ("size", &|r| (r.width, r.height) = (Some(24), Some(40))),
    ];
    for (name, change) in changes {
        let mut other = base();
        change(&mut other);
        let own = generate(&model.load().unwrap(), &other).unwrap();
        assert!(own != first, "{name} changes nothing");
        assert!(generate(&pipeline, &other).unwrap() == own, "{name}: the request before shows");
        assert!(generate(&pipeline, &base()).unwrap() == first, "{name} shows in the request after it");
    }
}
