//! Load a model, generate one image, save it.
//!
//!     cargo run --release --example 01_generate -- MODEL

mod common;

use braid::{Callbacks, Progress, Request, Result};

fn main() -> Result<()> {
    let files = common::Files::from_args()?;
    // Loading maps the files and checks that they belong together; the weights are not copied.
    let pipeline = files.plain()?;
    println!("runs on {}", pipeline.device());

    let request =
        Request::new("a red fox in the snow").with_negative_prompt("blurry").with_steps(files.steps).with_seed(1);

    // Called when a stage begins and after each of its steps.
    let show = |p: Progress| println!("{:<9} {}/{}", p.stage.name(), p.done, p.steps);
    let output = pipeline.generate_with(&request, Callbacks::new().with_progress(show))?;

    let path = files.output("fox.png");
    output.images[0].save(&path)?;
    let [seconds, steps] = [output.seconds.values().sum::<f64>(), output.step_seconds.iter().sum()];
    println!("{:?} in {seconds:.2} s, of which {steps:.2} s in the steps: {}", output.images[0], path.display());
    Ok(())
}
