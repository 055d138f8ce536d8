//! Graphs made ready on a device, and their runs.

mod bindings;
mod denoise_loop;
pub(crate) mod executable;
mod lower;
pub(crate) mod report;
mod resident;
