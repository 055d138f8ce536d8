//! Graphs compiled for a device, and their runs.

mod bindings;
mod capture;
mod commands;
pub(crate) mod denoise_loop;
pub(crate) mod executable;
mod image_state;
mod lower;
pub(crate) mod report;
pub(crate) mod resident;
mod results;
