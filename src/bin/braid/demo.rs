//! `braid demo`.
use crate::Outcome;
pub fn run(_: lexopt::Parser) -> Outcome {
    Ok(())
}
