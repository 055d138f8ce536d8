//! Throughput and latency: `bench e2e` times whole requests, `bench serve` a queue of them, `bench ops` each operation, `bench roofline`
//! predicts the best that a GPU could reach, `bench plot` draws them.

mod arguments;
mod arrivals;
mod assumptions;
mod check;
mod child;
mod cold;
mod e2e;
mod frames;
mod gauge;
mod gpus;
mod help;
mod host;
mod listener;
mod lists;
mod machine;
mod memory;
mod model;
mod ops;
mod plot;
mod prediction;
mod results;
mod roofline;
mod row;
mod serve;
mod serve_row;
mod setup;
mod sm90;
mod stats;
mod throughput;
mod timing;
mod work;
mod work_options;

use braid::cli::failure::{Failure, Outcome};
use braid::cli::flag::Argument;
use braid::cli::{exit, terminal};
use lexopt::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    child::begin();
    terminal::install();
    exit("bench: ", std::panic::catch_unwind(run).unwrap_or(Err(Failure::Told(1))))
}

fn run() -> Outcome {
    let mut parser = Parser::from_env();
    let Some(argument) = Argument::next(&mut parser)? else {
        terminal::print(&help::text())?;
        return Err(Failure::usage("a benchmark is needed: e2e, serve, cold, memory, ops, roofline or plot"));
    };
    let benchmark = match &argument {
        Argument::Help => return terminal::print(&help::text()),
        Argument::Value(name) => match name.to_str() {
            Some("e2e") => e2e::run,
            Some("serve") => serve::run,
            Some("cold") => cold::run,
            Some("memory") => memory::run,
            Some("ops") => ops::run,
            Some("plot") => plot::run,
            Some("roofline") => roofline::run,
            _ => return Err(argument.unknown("bench --help")),
        },
        Argument::Flag(_) => return Err(argument.unknown("bench --help")),
    };
    if benchmark(parser)? { Ok(()) } else { terminal::print(&help::text()) }
}
