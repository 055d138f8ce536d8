//! Graphs made ready on a device, and their runs.

mod bindings;
pub(crate) mod denoise_loop;
pub(crate) mod executable;
mod lower;
pub(crate) mod report;
pub(crate) mod resident;
mod results;
