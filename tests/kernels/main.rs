//! Every CUDA kernel, as NVRTC compiled it, run by the PTX interpreter against a plain f64 reference.
//!
//! Shapes are small and odd: one row, tails in every dimension. Each launch is repeated under several schedules, with every
//! access checked for bounds, alignment, initialisation and races. With BRAID_TEST_DRIVER=cuda the same tests run on the first
//! GPU, with `both` on the two of them, and what they leave is compared kernel by kernel (second_device.rs).

#![allow(clippy::unwrap_used)]

mod attention;
mod common;
mod convolution;
#[path = "../common/device.rs"]
mod device;
mod extremes;
mod figures;
mod fp8;
#[path = "../common/functions.rs"]
mod functions;
mod gemm;
#[path = "../common/interpreter.rs"]
mod interpreter;
mod large;
mod midpoints;
mod norms;
mod pointwise;
mod profile;
#[allow(dead_code)] // What the launch layer's tests need besides.
#[path = "../common/ptx.rs"]
mod ptx;
mod second_device;
mod shapes;
mod sm90;
mod step;
mod timing;
