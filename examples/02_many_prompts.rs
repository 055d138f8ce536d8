//! Several prompts through one pipeline: the models are loaded once, the executables compiled once.
//!
//!     cargo run --release --example 02_many_prompts -- MODEL

mod common;

use braid::{Request, Result};

fn main() -> Result<()> {
    let files = common::Files::from_args()?;
    let pipeline = files.plain()?;

    let prompts = ["a castle on a hill", "a boat on a lake", "a forest in autumn"];
    for (i, prompt) in prompts.into_iter().enumerate() {
        // Requests are independent of one another, so their order does not matter.
        let request = Request::new(prompt).with_steps(files.steps).with_seed(7);
        let output = pipeline.generate(&request)?;
        let path = files.output(&format!("prompt-{i}.png"));
        output.images[0].save(&path)?;
        println!("`{prompt}` in {:.3} s: {}", output.seconds.values().sum::<f64>(), path.display());
    }

    // A pipeline keeps the executables of its latest sizes. They can be dropped; the next request compiles them again.
    println!("executables hold {:.1} MB", pipeline.device_memory_used() as f64 / 1e6);
    pipeline.clear_cache();
    println!("after `clear_cache` {:.1} MB", pipeline.device_memory_used() as f64 / 1e6);
    Ok(())
}
