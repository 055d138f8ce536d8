//! Stop a request from another thread; the pipeline stays usable.
//!
//!     cargo run --release --example 04_cancel -- MODEL

mod common;

use braid::{Callbacks, CancelToken, Error, Progress, Request, Result, Stage};
use std::sync::mpsc;

fn main() -> Result<()> {
    let files = common::Files::from_args()?;
    let pipeline = files.plain()?;
    let mut request = Request::new("a long journey");
    request.steps = 500;

    let cancel = CancelToken::new();
    let (begun, wait) = mpsc::channel();
    let result = std::thread::scope(|scope| {
        let token = cancel.clone();
        scope.spawn(move || {
            // In an application: a button, a closed connection, a signal.
            if wait.recv().is_ok() {
                token.cancel();
            }
        });
        let mut done = 0;
        let mut progress = |p: Progress| {
            if p.stage == Stage::Denoise {
                done = p.done;
                if done == 2 {
                    let _ = begun.send(());
                }
            }
        };
        let callbacks = Callbacks::new().with_progress(&mut progress).with_cancel(&cancel);
        let result = pipeline.generate_with(&request, callbacks);
        println!("stopped after {done} of {} steps", request.steps);
        // Ends the other thread if the request failed before its second step.
        drop(begun);
        result
    });
    match result {
        Err(Error::Cancelled) => println!("the request says it was cancelled"),
        Err(other) => return Err(other),
        Ok(_) => println!("the request was finished before it could be stopped"),
    }

    request.steps = files.steps;
    let output = pipeline.generate(&request)?;
    println!("the next request gives {:?}", output.images[0]);
    Ok(())
}
