//! The same request at several scales of the image prompt. The reference image is encoded once.
//!
//!     cargo run --release --example 03_sweep_scale -- MODEL ADAPTER IMAGE CLIP_VISION

mod common;

use braid::{ImagePrompt, ReferenceImage, Request, Result, Scales};

fn main() -> Result<()> {
    let files = common::Files::from_args()?;
    let pipeline = files.with_adapter()?;

    // The embedding can be stored and used again: with it no request runs the image encoder.
    let embedding = pipeline.encode_image(&files.reference()?)?;
    println!("{} became {} numbers", files.image.display(), embedding.len());

    let mut request = Request::new("a garden");
    request.steps = files.steps;
    // A scale is data, not a part of the executable: nothing is compiled again when it changes.
    for scale in [0.0, 0.3, 0.6, 1.0] {
        let image =
            ImagePrompt::default().with_reference(ReferenceImage::Embedding(embedding.clone())).with_scale(scale);
        request.image_prompts = vec![image];
        let output = pipeline.generate(&request)?;
        let path = files.output(&format!("scale-{scale}.png"));
        output.images[0].save(&path)?;
        println!("scale {scale}: {:.3} s, {}", output.seconds.values().sum::<f64>(), path.display());
    }

    // Only the transformers that carry style take part.
    let image = ImagePrompt::default()
        .with_reference(ReferenceImage::Embedding(embedding))
        .with_scale(Scales::parse("style", 1.0)?);
    request.image_prompts = vec![image];
    let output = pipeline.generate(&request)?;
    let path = files.output("style.png");
    output.images[0].save(&path)?;
    println!("style only: {}", path.display());
    Ok(())
}
