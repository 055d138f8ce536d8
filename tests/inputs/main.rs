//! Images and texts, as the peers read them.

#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;
mod images;
mod jpegs;
mod prompts;
mod tokenizer;
