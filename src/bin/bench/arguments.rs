//! The arguments of a benchmark.

use braid::cli::failure::Failure;
use braid::cli::flag::{self, Argument, Flag};
use lexopt::Parser;

/// Reads all arguments; `false` where help was asked for. `more` takes other arguments, or returns `false`.
pub fn read<T>(
    parser: &mut Parser,
    flags: &'static [Flag<T>],
    options: &mut T,
    mut more: impl FnMut(&mut T, &Argument, &mut Parser) -> Result<bool, Failure>,
) -> Result<bool, Failure> {
    while let Some(argument) = Argument::next(parser)? {
        if let Argument::Help = argument {
            return Ok(false);
        }
        if !flag::take(flags, &argument, options, parser)? && !more(options, &argument, parser)? {
            return Err(argument.unknown("bench --help"));
        }
    }
    Ok(true)
}
