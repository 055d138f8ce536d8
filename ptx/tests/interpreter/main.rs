//! The interpreter as its users call it, in one program: each file would else be compiled with all of the crate once more.
#![allow(clippy::unwrap_used)]

mod arithmetic;
mod asynchronous;
mod common;
mod edges;
mod faults;
mod fragments;
mod functions;
mod gemm;
mod hopper;
mod instructions;
mod lanes;
mod launches;
mod races;
mod spaces;
mod triton;
