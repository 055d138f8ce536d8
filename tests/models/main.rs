//! The models' tensors: names and shapes of the published files, and the files of every golden case.

#![allow(clippy::unwrap_used)]

mod layouts;
mod recipes;
