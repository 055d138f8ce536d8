//! The command `braid`: parses arguments, calls the library, prints.

mod args;
mod demo;
mod doctor;
mod files;
mod flags;
mod generate;
mod grid;
mod help;
mod inspect;
mod metadata;
mod options;
mod progress;
mod report;
mod synth;
mod system;
mod terminal;

use args::Failure;
use std::process::ExitCode;

/// What a command returns.
type Outcome = Result<(), Failure>;

fn main() -> ExitCode {
    terminal::install();
    system::install_bus_error();
    let result = std::panic::catch_unwind(run).unwrap_or(Err(Failure::Told(1)));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if let Some(text) = failure.text() {
                terminal::line("braid: ", &text);
            }
            ExitCode::from(failure.status())
        }
    }
}

fn run() -> Outcome {
    let mut parser = args::parser();
    let Some(first) = parser.next().map_err(args::usage)? else {
        return Err(Failure::usage(
            "a command is needed: generate, demo, inspect, synth or doctor; see `braid --help`",
        ));
    };
    match first {
        lexopt::Arg::Short('h') | lexopt::Arg::Long("help") => help::print(help::BRAID),
        lexopt::Arg::Short('V') | lexopt::Arg::Long("version") => {
            terminal::print(concat!("braid ", env!("CARGO_PKG_VERSION"), "\n"))
        }
        lexopt::Arg::Value(name) => match name.to_str() {
            Some("generate") => generate::run(parser),
            Some("demo") => demo::run(parser),
            Some("inspect") => inspect::run(parser),
            Some("synth") => synth::run(parser),
            Some("doctor") => doctor::run(parser),
            Some("help") => help::run(parser),
            _ => Err(Failure::usage(format!(
                "`{}` is no command; there are generate, demo, inspect, synth, doctor and help",
                name.to_string_lossy()
            ))),
        },
        other => Err(args::unexpected(other, "")),
    }
}
