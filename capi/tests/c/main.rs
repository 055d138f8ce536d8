//! The interface as C sees it: the header against the library, and programs that are compiled, linked and run.

#![allow(clippy::unwrap_used)]

mod compiler;
mod header;
mod install;
mod programs;
mod refusals;
mod triton;
