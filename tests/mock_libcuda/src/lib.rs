//! libcuda and libcublasLt without a GPU: the functions that Braid calls, in one library under both names.
//!
//! Work on a stream is done late: when the host waits for it, and some of it at any call, in portions that `MOCK_SEED` decides.
//! Launches run the kernels' PTX on an interpreter, products are computed from their descriptors. The rules of the driver hold: a
//! call that breaks one returns the driver's code and writes a line `violation: ..` to the log. What a device does wrong
//! ([`gpu::Gpu::lose`]) is a line `fault: ..`, and every call after it fails.
//!
//! It is set up by environment variables ([`settings`]), which also make any call fail ([`faults`]).

#![allow(non_snake_case, clippy::missing_safety_doc, clippy::too_many_arguments)]

mod cublaslt;
pub mod driver;
mod faults;
mod gpu;
mod image;
pub mod launch;
mod nvrtc;
mod product;
mod settings;
pub mod status;
mod stream;
pub mod tensor_map;
