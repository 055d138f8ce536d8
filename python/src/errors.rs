//! The library's errors as exceptions of `braid.errors`.

use braid::Error;
use pyo3::prelude::*;

/// The class in `braid.errors` for an error.
fn class(error: &Error) -> &'static str {
    match error {
        Error::Io { .. } => "FileError",
        Error::Malformed { .. } => "MalformedFileError",
        Error::Changed { .. } => "ChangedFileError",
        Error::Mismatch { .. } | Error::Tensors { .. } => "MismatchError",
        Error::Config { .. } => "ConfigError",
        Error::Parameter { .. } => "ParameterError",
        Error::Memory { .. } => "OutOfMemoryError",
        Error::NotFinite { .. } => "NotFiniteError",
        Error::Cancelled => "Cancelled",
        Error::Busy { .. } => "Busy",
        Error::Late => "Late",
        Error::InCallback => "InCallback",
        Error::Stopped => "Stopped",
        Error::Device { .. } | Error::Fault { .. } => "DeviceError",
        _ => "Error",
    }
}

/// The exception for an error. A refused parameter's has its name as `field`, a file's its path as `path`.
pub fn exception(py: Python<'_>, error: &Error) -> PyErr {
    let raise = || -> PyResult<PyErr> {
        let value = py.import("braid.errors")?.getattr(class(error))?.call1((error.to_string(),))?;
        if let Error::Parameter { field, .. } = error {
            value.setattr("field", field.name())?;
        }
        if let Error::Io { path, .. }
        | Error::Malformed { path, .. }
        | Error::Changed { path, .. }
        | Error::Mismatch { path, .. }
        | Error::Tensors { path, .. }
        | Error::Config { path, .. } = error
        {
            value.setattr("path", path.as_os_str())?;
        }
        Ok(PyErr::from_value(value))
    };
    raise().unwrap_or_else(|failure| failure)
}

/// Turns a result of the library into one of Python.
pub fn to_python<T>(py: Python<'_>, result: braid::Result<T>) -> PyResult<T> {
    result.map_err(|error| exception(py, &error))
}
