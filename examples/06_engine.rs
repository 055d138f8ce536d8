//! Submit requests from many threads to one queue, with priorities, deadlines and cancellation.
//!
//!     cargo run --release --example 06_engine -- MODEL

mod common;

use braid::{Engine, EngineOptions, Error, Request, Result, SubmitOptions};
use std::time::{Duration, Instant};

fn main() -> Result<()> {
    let files = common::Files::from_args()?;
    let engine = Engine::new(files.plain()?, EngineOptions::default().with_max_waiting(4))?;
    let request = |seed| {
        let mut request = Request::new("a lighthouse");
        (request.seed, request.steps) = (seed, files.steps);
        request
    };

    // Each client waits for its own; requests of one size are drawn together.
    std::thread::scope(|scope| {
        for seed in 0..3 {
            let ticket = engine.submit(request(seed));
            scope.spawn(move || match ticket.and_then(|ticket| ticket.wait()) {
                Ok(output) => println!("seed {seed}: {:?}", output.images[0]),
                Err(error) => println!("seed {seed}: {error}"),
            });
        }
    });

    // Begins before others that wait; useless after a minute.
    let urgent = SubmitOptions::new().with_priority(1).with_deadline(Instant::now() + Duration::from_secs(60));
    let ticket = engine.submit_with(request(3), urgent)?;
    println!("{:?}", ticket.status());
    println!("{:?}", ticket.wait()?.images[0]);

    // More than may wait are refused at once, for the caller to answer.
    let tickets: Vec<_> = (0..20).map(|seed| engine.submit(request(seed))).collect();
    let busy = tickets.iter().filter(|ticket| matches!(ticket, Err(Error::Busy { .. }))).count();
    println!("{} taken, {busy} refused", tickets.len() - busy);
    // A dropped ticket cancels its request.
    drop(tickets);
    engine.drain();
    Ok(())
}
