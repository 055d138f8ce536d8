//! Graphs made ready on a device, and their runs.

pub(crate) mod bindings;
mod denoise_loop;
pub(crate) mod executable;
pub(crate) mod report;
mod resident;
