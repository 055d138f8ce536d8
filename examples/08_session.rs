//! Draw again from one prepared request: other seeds, scales and guidance cost their steps alone.
//!
//!     cargo run --release --example 08_session -- MODEL ADAPTER IMAGE CLIP_VISION

mod common;

use braid::{ImagePrompt, Request, Result, Stage};

fn main() -> Result<()> {
    let files = common::Files::from_args()?;
    let pipeline = files.with_adapter()?;
    let request =
        Request::new("a garden").with_image_prompt(ImagePrompt::new(files.reference()?)).with_steps(files.steps);

    // Runs the encoders, and makes the keys and values of text and reference in every layer.
    let session = pipeline.session(&request)?;
    let prepared = |seconds: &std::collections::BTreeMap<Stage, f64>| -> f64 {
        [Stage::Text, Stage::Image, Stage::Condition].iter().filter_map(|stage| seconds.get(stage)).sum()
    };
    for (seed, scale, guidance) in [(0, 1.0, 5.0), (1, 1.0, 5.0), (1, 0.4, 5.0), (1, 0.4, 8.0)] {
        let mut request = session.request().clone().with_seed(seed).with_guidance_scale(guidance);
        request.image_prompts[0].scales = scale.into();
        let output = session.generate(&request)?;
        let path = files.output(&format!("session-{seed}-{scale}-{guidance}.png"));
        output.images[0].save(&path)?;
        println!("{}: {:.6} s before the steps", path.display(), prepared(&output.seconds));
        // The pipeline is free in between; this is another request of its own.
        pipeline.generate(&Request::new("a harbour").with_steps(1))?;
    }
    Ok(())
}
