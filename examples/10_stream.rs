//! Image to image from frames: each one's latency, one after the other and overlapping, with another prompt and scale on the way.
//!
//!     cargo run --release --example 10_stream -- MODEL ADAPTER IMAGE CLIP_VISION

mod common;

use braid::{Image, ImagePrompt, LivePrompts, LiveScales, Request, Result};

/// Frames of a camera that passes over an image.
fn camera(image: &Image, side: usize) -> Result<Vec<Image>> {
    let room = image.width().min(image.height()) - side;
    let frame = |at: usize| {
        let row = |y: usize| &image.rgb()[3 * (y * image.width() + at)..][..3 * side];
        Image::new(side, side, (0..side).flat_map(|y| row(at + y)).copied().collect())
    };
    (0..6).map(|i| frame(i * room / 6)).collect()
}

fn main() -> Result<()> {
    let files = common::Files::from_args()?;
    let pipeline = files.with_adapter()?;
    let reference = files.reference()?;
    let side = reference.width().min(reference.height()) / 2 / 64 * 64;
    let frames = camera(&reference, side.max(32))?;

    // A checkpoint for few steps would take 2 to 4 of them, without guidance.
    let request = Request::new("a garden")
        .with_image_prompt(ImagePrompt::new(reference).with_scale(0.5))
        .with_init_image(frames[0].clone())
        .with_strength(0.5)
        .with_steps(files.steps)
        .with_guidance_scale(1.0);
    let session = pipeline.session(&request)?;
    // Encoded ahead; another thread would do this while frames are drawn.
    let harbour = session.prepare_prompts(session.request().prompts().with_prompt("a harbour"))?;

    let mut drawn = Vec::new();
    for overlap in [false, true] {
        let (prompts, scales) = (LivePrompts::new(), LiveScales::new());
        let stream = session.stream(frames.clone())?.with_overlap(overlap);
        for frame in stream.with_live_prompts(&prompts).with_live_scales(&scales) {
            let frame = frame?;
            println!("frame {} of {:?}: {:.0?}", frame.number, frame.request.prompt, frame.latency);
            frame.image().save(files.output(&format!("stream-{overlap}-{}.png", frame.number)))?;
            // A program would do this where its user types or moves a slider: it counts from the next frame that begins.
            if frame.number == 2 {
                prompts.set(&harbour);
                scales.set(0, 0.8)?;
            }
            drawn.push(frame);
        }
    }
    // The request of each frame gives it again, to the byte.
    let last = &drawn[drawn.len() - 1];
    let same = pipeline.generate(&last.request)?.images[0] == *last.image();
    println!("drawn alone: {}", if same { "the same image" } else { "another image" });
    Ok(())
}
