//! Several prompts through one pipeline: the models are loaded once, the programs are built once.
//!
//!     cargo run --release --example 02_many_prompts -- MODEL

mod common;

use braid::{Request, Result};

fn main() -> Result<()> {
    let files = common::Files::from_args()?;
    let pipeline = files.plain()?;

    let prompts = ["a castle on a hill", "a boat on a lake", "a forest in autumn"];
    for (i, prompt) in prompts.into_iter().enumerate() {
        let mut request = Request::new(prompt);
        request.steps = files.steps;
        // Only the settings that differ are set; each request stands by itself, so their order does not matter.
        request.seed = 7;
        let output = pipeline.generate(&request)?;
        let path = files.output(&format!("prompt-{i}.png"));
        output.images[0].save(&path)?;
        println!("`{prompt}` in {:.3} s: {}", output.seconds.values().sum::<f64>(), path.display());
    }

    // A pipeline keeps the programs of its latest sizes. They can be given back; the next request builds them anew.
    println!("programs hold {:.1} MB", pipeline.device_memory_used() as f64 / 1e6);
    pipeline.clear_cache();
    println!("after `release` {:.1} MB", pipeline.device_memory_used() as f64 / 1e6);
    Ok(())
}
