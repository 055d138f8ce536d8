//! Sessions, and scales and prompts that change while images are drawn.

use crate::arguments::request;
use crate::errors::to_python;
use crate::waiting::{demand_outside, interruptible};
use braid::{CancelToken, LivePrompts, LiveScales, Pipeline, Scales, Session};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::sync::Arc;

/// A request's conditioning, held for later calls.
#[pyclass(frozen, module = "braid._braid")]
pub struct NativeSession {
    inner: Session<Arc<Pipeline>>,
    pipeline: Arc<Pipeline>,
}

impl NativeSession {
    /// Encodes a request, and holds the result for as long as the session lasts.
    pub fn new(py: Python<'_>, pipeline: &Arc<Pipeline>, arguments: &Bound<'_, PyDict>) -> PyResult<Self> {
        demand_outside(py, pipeline)?;
        let (request, pipeline) = (request(arguments, pipeline.dtype())?, pipeline.clone());
        let inner = interruptible(py, &CancelToken::new(), || Session::new(pipeline.clone(), &request))?;
        Ok(Self { inner, pipeline })
    }
}

#[pymethods]
impl NativeSession {
    /// Encodes the words and references of a request, which are to take the place of the session's own.
    fn prepare_prompts(&self, py: Python<'_>, arguments: &Bound<'_, PyDict>) -> PyResult<PreparedPrompts> {
        demand_outside(py, &self.pipeline)?;
        let prompts = request(arguments, self.pipeline.dtype())?.prompts();
        let inner = interruptible(py, &CancelToken::new(), || self.inner.prepare_prompts(prompts))?;
        Ok(PreparedPrompts { inner })
    }

    fn __repr__(&self) -> String {
        format!("<braid.{:?}>", self.inner)
    }
}

/// Prompts and references that are encoded for a session's request.
#[pyclass(frozen, module = "braid")]
pub struct PreparedPrompts {
    pub inner: braid::PreparedPrompts,
}

#[pymethods]
impl PreparedPrompts {
    fn __repr__(&self) -> String {
        format!("<braid.{:?}>", self.inner)
    }
}

/// The handles by which scales and prompts are set while a call runs.
#[pyclass(frozen, module = "braid._braid")]
pub struct NativeLive {
    pub scales: LiveScales,
    pub prompts: LivePrompts,
}

#[pymethods]
impl NativeLive {
    #[new]
    fn new() -> Self {
        Self { scales: LiveScales::new(), prompts: LivePrompts::new() }
    }

    fn set_scales(&self, py: Python<'_>, adapter: usize, blocks: &str, strength: f32) -> PyResult<()> {
        let scales = Scales::parse(blocks, strength);
        to_python(py, scales.and_then(|scales| self.scales.set(adapter, scales)))
    }

    fn set_prompts(&self, prompts: &Bound<'_, PreparedPrompts>) {
        self.prompts.set(&prompts.get().inner);
    }
}
