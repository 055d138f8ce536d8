//! Every CUDA kernel, as NVRTC compiled it, run by the PTX interpreter against a plain f64 reference.
//!
//! Shapes are small and odd: one row, tails in every dimension. Each launch is repeated under several schedules, with every
//! access checked for bounds, alignment, initialisation and races.

#![allow(clippy::unwrap_used)]

mod attention;
mod common;
mod convolution;
mod figures;
mod gemm;
#[path = "../common/interpreter.rs"]
mod interpreter;
mod large;
mod norms;
mod pointwise;
mod profile;
mod step;
