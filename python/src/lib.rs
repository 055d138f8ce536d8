//! The native half of the Python package `braid`: pipelines, requests and their results. Names, images and arguments as diffusers has
//! them are the affair of the Python half; dictionaries with the library's own field names come here.

mod arguments;
mod errors;
mod pipeline;
mod session;
mod waiting;

use pyo3::prelude::*;

/// The module `braid._braid`.
#[pymodule]
fn _braid(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<pipeline::NativePipeline>()?;
    module.add_class::<session::NativeSession>()?;
    module.add_class::<session::NativeLive>()?;
    module.add_class::<session::PreparedPrompts>()?;
    module.add_class::<pipeline::NativeOutput>()?;
    module.add_class::<pipeline::NativeEngine>()?;
    module.add_class::<pipeline::NativeTicket>()?;
    module.add_class::<arguments::EncodedImage>()?;
    module.add_function(wrap_pyfunction!(arguments::read_image, module)?)
}
