//! One table of cases for every operation, for every backend: the CPU, and the CUDA backend on an interpreter of PTX or, with
//! BRAID_TEST_DRIVER, on the first GPU (`cuda`) or on both (`both`).
//!
//! An operation has a file under `cases`, which says what its cases are and ends with [`operation!`].

#![allow(clippy::unwrap_used)]

mod attribution;
mod cases;
#[path = "../common/device.rs"]
mod device;
#[path = "../common/drivers.rs"]
mod drivers;
#[path = "../common/functions.rs"]
mod functions;
#[path = "../common/half_precision_baseline.rs"]
mod half_precision_baseline;
#[path = "../common/interpreter.rs"]
mod interpreter;
#[allow(dead_code)] // Schedules and counts are for tests/cuda.
#[path = "../common/ptx.rs"]
mod ptx;
mod reference;
mod run;
#[path = "../common/small_unet.rs"]
mod small_unet;
mod table;
