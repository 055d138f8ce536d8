//! Change the image prompt's scale while the image is drawn, and draw the same image again from what was told.
//!
//!     cargo run --release --example 09_live_scale -- MODEL ADAPTER IMAGE CLIP_VISION

mod common;

use braid::{Engine, EngineOptions, ImagePrompt, Request, Result, Stage, SubmitOptions};
use std::sync::mpsc;

fn main() -> Result<()> {
    let files = common::Files::from_args()?;
    let engine = Engine::new(files.with_adapter()?, EngineOptions::default())?;
    let request =
        Request::new("a garden").with_image_prompt(ImagePrompt::new(files.reference()?)).with_steps(files.steps);

    let (told, progress) = mpsc::channel();
    let tell = move |progress: braid::Progress| _ = told.send(progress);
    let ticket = engine.submit_with(request.clone(), SubmitOptions::new().with_progress(tell))?;
    // A program would do this where its user moves a slider.
    let begun = progress.iter().find(|progress| progress.stage == Stage::Denoise && progress.done == 1);
    println!("{begun:?}");
    ticket.set_scales(0, 0.2)?;

    let output = ticket.wait()?;
    output.images[0].save(files.output("live.png"))?;
    // Where the steps were faster than this thread, nothing has changed.
    println!("{:?}", output.scale_changes[0]);

    // The changes as a part of a request give the same bytes.
    let mut again = request;
    again.scale_changes.clone_from(&output.scale_changes[0]);
    let same = engine.submit(again)?.wait()?.images == output.images;
    println!("drawn again: {}", if same { "the same image" } else { "another image" });
    Ok(())
}
