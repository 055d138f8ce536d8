//! Previews of an image under way: when they come, what they show, and that they change nothing.

use super::*;
use braid::pipeline::{Callbacks, CancelToken, Preview};
use braid::schedulers::SchedulerKind;

/// A preview's place and its bytes: image, evaluations done, all of them.
type Seen = (usize, usize, usize, Vec<u8>);

fn previewed(pipeline: &Pipeline, request: &Request, every: usize) -> (braid::Result<Vec<u8>>, Vec<Seen>) {
    let mut seen = Vec::new();
    let mut show = |preview: Preview| {
        let size = (request.width.unwrap() / 8, request.height.unwrap() / 8);
        assert_eq!((preview.pixels.width(), preview.pixels.height()), size);
        seen.push((preview.image, preview.done, preview.steps, preview.pixels.into_rgb()));
    };
    let output = pipeline.generate_with(request, Callbacks::new().with_preview(every, &mut show));
    (output.map(|output| output.images.into_iter().flat_map(Image::into_rgb).collect()), seen)
}

/// They come after each so many evaluations of each image, compile nothing, and the images are those without them. What the last step
/// predicts are the latents themselves.
#[test]
fn count_and_contents() {
    let pipeline = Model::golden("diffusers", "vae-file");
    let pipeline = Pipeline::load(&PipelineOptions::new(pipeline.dir.path())).unwrap();
    let mut r = Request::new("a red fox").with_steps(5).with_width(48).with_height(32).with_num_images(2).with_seed(3);
    let want = generate(&pipeline, &r).unwrap();
    let ((got, seen), compiles) = compiled(|| previewed(&pipeline, &r, 2));
    assert_eq!(compiles, 0);
    assert!(got.unwrap() == want);
    let places: Vec<_> = seen.iter().map(|(image, done, steps, _)| (*image, *done, *steps)).collect();
    assert_eq!(places, [(0, 2, 5), (1, 2, 5), (0, 4, 5), (1, 4, 5)]);
    r.num_images = 1;
    for (kind, evaluations) in [(SchedulerKind::Euler, 5), (SchedulerKind::Heun, 9), (SchedulerKind::Lcm, 5)] {
        r.scheduler = Some(kind);
        let seen = previewed(&pipeline, &r, 1).1;
        assert_eq!(seen.len(), evaluations, "{kind}");
        let previews: Vec<_> = seen.into_iter().map(|seen| seen.3).collect();
        assert!(previews.windows(2).all(|pair| pair[0] != pair[1]), "{kind}");
        let latents = pipeline.generate(&r.clone().with_capture_intermediates(true)).unwrap().intermediates;
        let latents = &latents["latents"].data;
        const RED: [f32; 4] = [0.3651, -0.2533, 0.1076, -0.3165];
        for (i, pixel) in previews.last().unwrap().chunks_exact(3).enumerate() {
            let red: f32 = (0..4).map(|c| latents[c * 24 + i] * RED[c]).sum::<f32>() + 0.1084;
            let red = ((red / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0) as u8;
            assert!(pixel[0].abs_diff(red) <= 1, "{kind}: pixel {i}: {} {red}", pixel[0]);
        }
    }
    assert!(previewed(&pipeline, &r, usize::MAX).1.is_empty());
}

/// A request that is cancelled while a preview is shown ends there, and the next one is whole.
#[test]
fn cancelled_within() {
    let model = Model::folder();
    let pipeline = model.load().unwrap();
    let mut r = request();
    r.steps = 4;
    let want = generate(&pipeline, &r).unwrap();
    let (cancel, mut shown) = (CancelToken::new(), 0);
    let mut show = |preview: Preview| {
        shown += 1;
        if preview.done == 2 {
            cancel.cancel();
        }
    };
    let callbacks = Callbacks::new().with_preview(1, &mut show).with_cancel(&cancel);
    assert!(matches!(refused(pipeline.generate_with(&r, callbacks), "cancelled"), Error::Cancelled));
    assert_eq!(shown, 2);
    assert!(generate(&pipeline, &r).unwrap() == want);
}
