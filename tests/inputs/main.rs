//! Images and texts, as the peers read them.

#![allow(clippy::unwrap_used)]

mod images;
mod jpegs;
mod tokenizer;
