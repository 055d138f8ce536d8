//! The commands: flags, output, failures. All of `braid` is here; `bench` uses the parts that it shares.

pub mod adapters;
mod attribution;
pub mod batch;
mod canvas;
mod demo;
mod doctor;
mod encode_image;
pub mod failure;
mod files;
pub mod flag;
pub mod flags;
mod generate;
mod generate_batch;
mod grid;
mod inspect;
mod labels;
mod metadata;
pub mod options;
pub mod presets;
mod previews;
mod progress;
mod record;
pub mod replay;
mod report;
mod saving;
mod sheet;
mod sweep;
mod synth;
mod system;
pub mod terminal;
pub mod value;

use crate::error::Error;
use failure::{Failure, Outcome};
use flag::Argument;
use flags::FlagNames;
use lexopt::Parser;
use std::process::ExitCode;
use value::any_of;

const COMMANDS: &[&str] = &["generate", "sweep", "encode-image", "replay", "demo", "inspect", "synth", "doctor"];

const HELP: &str = "\
Stable Diffusion XL with IP-Adapter image prompts.

Usage: braid COMMAND [OPTIONS]

Commands:
  generate       generate images from a prompt and reference images
  sweep          generate a labelled grid of images that differ in some settings
  encode-image   encode reference images once, into a file that takes their place
  replay         draw an image again from its metadata and tell how much it differs
  demo           generate a sheet with a small built-in model; needs no files
  inspect        say what weight files are, what they hold and what they go with
  synth          write a full-size SDXL of random weights, for measurements
  doctor         say what this machine has
  help           help on a command: braid help generate

Options:
  -h, --help      this text
  -V, --version   the version

Exit status: 0 done; 2 wrong usage; 1 any other failure, with one line on standard
error that says what and where; 130 or 143 when stopped by SIGINT or SIGTERM.
";

/// Runs the command `braid`.
pub fn braid() -> ExitCode {
    terminal::install();
    system::install_signals();
    exit("braid: ", std::panic::catch_unwind(run).unwrap_or(Err(Failure::Told(1))))
}

/// The exit status of an outcome; a failure goes to standard error after `prefix`.
pub fn exit(prefix: &str, outcome: Outcome) -> ExitCode {
    let outcome = match (outcome, system::signalled()) {
        (Err(Failure::Library(Error::Cancelled)), Some(signal)) => Err(Failure::Signal(signal)),
        (outcome, _) => outcome,
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if let Some(text) = failure.text(&FlagNames) {
                terminal::line(prefix, &text);
            }
            ExitCode::from(failure.status())
        }
    }
}

fn run() -> Outcome {
    let mut parser = Parser::from_env();
    let argument = Argument::next(&mut parser)?
        .ok_or_else(|| Failure::usage(format!("a command is needed: {}; see `braid --help`", any_of(COMMANDS))))?;
    match argument {
        Argument::Help => terminal::print(HELP),
        Argument::Flag(name) if name == "-V" || name == "--version" => {
            terminal::print(concat!("braid ", env!("CARGO_PKG_VERSION"), "\n"))
        }
        Argument::Value(name) => match name.to_str() {
            Some("generate") => generate::run(parser),
            Some("sweep") => sweep::run(parser),
            Some("encode-image") => encode_image::run(parser),
            Some("replay") => replay::run(parser),
            Some("demo") => demo::run(parser),
            Some("inspect") => inspect::run(parser),
            Some("synth") => synth::run(parser),
            Some("doctor") => doctor::run(parser),
            Some("help") => help(parser),
            _ => Err(Failure::usage(format!(
                "`{}` is no command; there are {} and help",
                name.to_string_lossy(),
                COMMANDS.join(", ")
            ))),
        },
        other => Err(other.unknown("braid --help")),
    }
}

/// `braid help [COMMAND]`.
fn help(mut parser: Parser) -> Outcome {
    let name = match Argument::next(&mut parser)? {
        None => return terminal::print(HELP),
        Some(Argument::Value(name)) => name.to_string_lossy().into_owned(),
        Some(other) => return Err(other.unknown("braid --help")),
    };
    terminal::print(&match name.as_str() {
        "generate" => generate::help(),
        "sweep" => sweep::help(),
        "encode-image" => encode_image::help(),
        "replay" => replay::help(),
        "demo" => demo::help(),
        "inspect" => inspect::help(),
        "synth" => synth::help(),
        "doctor" => doctor::help(),
        "help" => HELP.to_owned(),
        _ => return Err(Failure::usage(format!("help: `{name}` is no command; see `braid --help`"))),
    })
}
