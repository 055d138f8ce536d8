//! Requests that share evaluations of the model: other prompts, seeds, steps and guidance, the same bytes as one by one.
//!
//!     cargo run --release --example 07_batch -- MODEL

mod common;

use braid::{Callbacks, Progress, Request, Result, Stage};
use std::time::Instant;

fn main() -> Result<()> {
    let files = common::Files::from_args()?;
    let pipeline = files.plain()?;
    let request = |prompt: &str| Request::new(prompt).with_steps(files.steps);
    let requests = [
        request("a castle on a hill").with_seed(7),
        request("a boat on a lake").with_steps(files.steps + 2),
        request("a forest in autumn").with_guidance_scale(1.0),
        // Found out before anything is drawn; the others are not concerned.
        request("a harbour").with_steps(0),
    ];

    let begin = Instant::now();
    for (i, result) in pipeline.generate_batch(&requests).into_iter().enumerate() {
        match result {
            Ok(output) => output.images[0].save(files.output(&format!("batch-{i}.png")))?,
            Err(error) => println!("request {i}: {error}"),
        }
    }
    println!("together in {:.3} s", begin.elapsed().as_secs_f64());

    // A queue of any length: a request is taken when there is room for it, and its result is there as soon as it is done.
    let mut steps = 0;
    let mut count = |progress: Progress| steps += usize::from(progress.stage == Stage::Denoise && progress.done > 0);
    let mut callbacks = Some(Callbacks::new().with_progress(&mut count));
    let queue =
        (0..6).map(|seed| (request("a castle on a hill").with_seed(seed), callbacks.take().unwrap_or_default()));
    pipeline.generate_batch_with(queue, |i, result| match result {
        Ok(output) => println!("seed {i}: {:?}", output.images[0]),
        Err(error) => println!("seed {i}: {error}"),
    });
    drop(callbacks);
    println!("the first took {steps} steps");
    Ok(())
}
