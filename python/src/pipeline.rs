//! Pipelines, results, engines and tickets.

use crate::arguments::{EncodedImage, image_prompt, options, request};
use crate::errors::{exception, to_python};
use crate::session::{NativeLive, NativeSession, PreparedPrompts};
use crate::waiting::{LOOK, demand_outside, interruptible};
use braid::{
    Callbacks, CancelToken, Engine, EngineOptions, Error, Output, Pipeline, Request, Scales, Stage, SubmitOptions,
    Ticket, TicketStatus,
};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyTuple};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Loaded models.
#[pyclass(frozen, name = "NativePipeline", module = "braid._braid")]
pub struct NativePipeline {
    inner: Arc<Pipeline>,
}

/// Python's callbacks of a call, and what one of them has raised.
struct PythonCallbacks {
    on_step: Option<Py<PyAny>>,
    /// With the model evaluations from one preview to the next.
    on_preview: Option<(usize, Py<PyAny>)>,
    cancel: CancelToken,
    raised: Mutex<Option<PyErr>>,
}

impl PythonCallbacks {
    /// The library's callbacks of one of the call's requests, by its number.
    fn of_request(&self, number: usize, timesteps: Vec<f32>) -> Callbacks<'_> {
        let mut callbacks = Callbacks::new().with_cancel(&self.cancel);
        if let Some(call) = &self.on_step {
            callbacks = callbacks.with_progress(move |progress| {
                if progress.stage == Stage::Denoise && progress.done > 0 {
                    let timestep = timesteps.get(progress.done - 1).copied();
                    let arguments = (number, progress.image, progress.done, progress.steps, timestep);
                    self.run(|py| call.call1(py, arguments));
                }
            });
        }
        if let Some((every, call)) = &self.on_preview {
            callbacks = callbacks.with_preview(*every, move |preview| {
                let (width, height) = (preview.pixels.width(), preview.pixels.height());
                self.run(|py| {
                    let pixels = (width, height, PyBytes::new(py, preview.pixels.rgb()));
                    call.call1(py, (number, preview.image, preview.done, pixels))
                });
            });
        }
        callbacks
    }

    /// Calls into Python, unless the call is to stop; what is raised there stops it.
    fn run(&self, call: impl for<'py> FnOnce(Python<'py>) -> PyResult<Py<PyAny>>) {
        if self.cancel.is_cancelled() {
            return;
        }
        if let Err(error) = Python::attach(|py| call(py).map(drop)) {
            self.cancel.cancel();
            *self.raised.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        }
    }

    fn take(&self) -> Option<PyErr> {
        self.raised.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

#[pymethods]
impl NativePipeline {
    #[new]
    fn new(py: Python<'_>, model: PathBuf, arguments: &Bound<'_, PyDict>) -> PyResult<Self> {
        let options = options(model, arguments)?;
        let inner = interruptible(py, &CancelToken::new(), || Pipeline::load(&options))?;
        Ok(Self { inner: Arc::new(inner) })
    }

    #[getter]
    fn device(&self) -> String {
        self.inner.device()
    }

    #[getter]
    fn dtype(&self) -> String {
        self.inner.dtype().to_string()
    }

    #[getter]
    fn num_adapters(&self) -> usize {
        self.inner.num_adapters()
    }

    /// Decisions about the device and the types, and their reasons, for the user.
    #[getter]
    fn notes(&self) -> Vec<String> {
        self.inner.notes().map(ToString::to_string).collect()
    }

    /// Encodes a request, and holds the result for as long as the session lasts.
    fn session(&self, py: Python<'_>, arguments: &Bound<'_, PyDict>) -> PyResult<NativeSession> {
        NativeSession::new(py, &self.inner, arguments)
    }

    /// Draws requests together: the result of each, or the exception that ended it. `on_step(request, image, done, steps, timestep)` is
    /// called after each step, `on_preview[1](request, image, done, (width, height, RGB bytes))` after each `on_preview[0]` of them; what
    /// they raise ends all requests, and so does the first failure with `fail_fast`.
    fn generate<'py>(
        &self,
        py: Python<'py>,
        requests: Vec<Bound<'py, PyDict>>,
        on_step: Option<Py<PyAny>>,
        on_preview: Option<(usize, Py<PyAny>)>,
        live: Option<&Bound<'py, NativeLive>>,
        fail_fast: bool,
    ) -> PyResult<Vec<Bound<'py, PyAny>>> {
        let requests = requests.iter().map(|arguments| request(arguments, self.inner.dtype()));
        let requests = requests.collect::<PyResult<Vec<Request>>>()?;
        demand_outside(py, &self.inner)?;
        let ours = &PythonCallbacks { on_step, on_preview, cancel: CancelToken::new(), raised: Mutex::new(None) };
        let live = live.map(Bound::get);
        let drawn = interruptible(py, &ours.cancel, || {
            let mut results: Vec<_> = requests.iter().map(|_| Err(Error::Cancelled)).collect();
            let mut failure = None;
            let jobs = requests.into_iter().enumerate().map(|(number, request)| {
                // Where there are none, the request fails by itself.
                let timesteps = self.inner.timesteps(&request).unwrap_or_default();
                let mut callbacks = ours.of_request(number, timesteps);
                if let Some(live) = live {
                    callbacks = callbacks.with_live_scales(&live.scales).with_live_prompts(&live.prompts);
                }
                (request, callbacks)
            });
            self.inner.generate_batch_with(jobs, |number, result| match result {
                Err(error) if fail_fast => {
                    ours.cancel.cancel();
                    failure.get_or_insert(error);
                }
                result => results[number] = result,
            });
            failure.map_or(Ok(results), Err)
        });
        if let Some(raised) = ours.take() {
            return Err(raised);
        }
        let python = |result| match result {
            Ok(inner) => Ok(Bound::new(py, NativeOutput { inner })?.into_any()),
            Err(error) => Ok(exception(py, &error).into_value(py).into_bound(py).into_any()),
        };
        drawn?.into_iter().map(python).collect()
    }

    /// Encodes the references of an image prompt for an adapter.
    fn encode(&self, py: Python<'_>, adapter: usize, prompt: &Bound<'_, PyDict>) -> PyResult<Vec<EncodedImage>> {
        demand_outside(py, &self.inner)?;
        let prompt = image_prompt(prompt)?;
        let images = interruptible(py, &CancelToken::new(), || self.inner.encode_references(adapter, &prompt))?;
        Ok(images.into_iter().map(|inner| EncodedImage { inner }).collect())
    }
}

/// The result of a request.
#[pyclass(frozen, module = "braid._braid")]
pub struct NativeOutput {
    inner: Output,
}

#[pymethods]
impl NativeOutput {
    /// Width, height and RGB bytes of each image.
    #[getter]
    fn images<'py>(&self, py: Python<'py>) -> Vec<(usize, usize, Bound<'py, PyBytes>)> {
        let images = self.inner.images.iter();
        images.map(|image| (image.width(), image.height(), PyBytes::new(py, image.rgb()))).collect()
    }

    #[getter]
    fn seeds(&self) -> Vec<u64> {
        self.inner.seeds.clone()
    }

    #[getter]
    fn upcast_vae(&self) -> Vec<bool> {
        self.inner.upcast_vae.clone()
    }

    /// Seconds by stage.
    #[getter]
    fn seconds<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let seconds = PyDict::new(py);
        self.inner.seconds.iter().try_for_each(|(stage, value)| seconds.set_item(stage.name(), value))?;
        Ok(seconds)
    }

    #[getter]
    fn step_seconds(&self) -> Vec<f64> {
        self.inner.step_seconds.clone()
    }

    #[getter]
    fn truncated_tokens(&self) -> usize {
        self.inner.truncated_tokens
    }
}

/// A queue before a pipeline.
#[pyclass(frozen, module = "braid._braid")]
pub struct NativeEngine {
    inner: Mutex<Option<Engine>>,
    pipeline: Arc<Pipeline>,
}

#[pymethods]
impl NativeEngine {
    #[new]
    #[pyo3(signature = (pipeline, max_waiting=None, max_running=None, gather=None))]
    fn new(
        pipeline: &Bound<'_, NativePipeline>,
        max_waiting: Option<usize>,
        max_running: Option<usize>,
        gather: Option<f64>,
    ) -> PyResult<Self> {
        let mut options = EngineOptions::default();
        if let Some(requests) = max_waiting {
            options = options.with_max_waiting(requests);
        }
        if let Some(requests) = max_running {
            options = options.with_max_running(requests);
        }
        if let Some(seconds) = gather {
            options = options.with_gather(duration("gather", seconds)?);
        }
        let shared = pipeline.get().inner.clone();
        let engine = to_python(pipeline.py(), Engine::new(shared.clone(), options))?;
        Ok(Self { inner: Mutex::new(Some(engine)), pipeline: shared })
    }

    #[pyo3(signature = (arguments, priority=0, deadline=None))]
    fn submit(&self, arguments: &Bound<'_, PyDict>, priority: i32, deadline: Option<f64>) -> PyResult<NativeTicket> {
        let py = arguments.py();
        let request = request(arguments, self.pipeline.dtype())?;
        let mut options = SubmitOptions::new().with_priority(priority);
        if let Some(seconds) = deadline {
            options = options.with_deadline(Instant::now() + duration("deadline", seconds)?);
        }
        let engine = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let engine = engine.as_ref().ok_or_else(|| exception(py, &Error::Stopped))?;
        let ticket = to_python(py, engine.submit_with(request, options))?;
        Ok(NativeTicket { inner: Mutex::new(Some(ticket)) })
    }

    #[getter]
    fn waiting(&self) -> usize {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map_or(0, Engine::waiting)
    }

    #[getter]
    fn running(&self) -> usize {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map_or(0, Engine::running)
    }

    /// Takes no more requests; returns when those that were submitted are done, or, without `drain`, cancelled.
    fn close(&self, py: Python<'_>, drain: bool) {
        let engine = self.inner.lock().unwrap_or_else(PoisonError::into_inner).take();
        py.detach(|| match engine {
            Some(engine) if drain => engine.drain(),
            engine => drop(engine),
        });
    }
}

fn duration(name: &str, seconds: f64) -> PyResult<Duration> {
    let value = Duration::try_from_secs_f64(seconds);
    value.map_err(|_| PyValueError::new_err(format!("{name}: {seconds} seconds; a number of at least 0 is expected")))
}

/// A submitted request; dropping it cancels the request.
#[pyclass(frozen, module = "braid._braid")]
pub struct NativeTicket {
    inner: Mutex<Option<Ticket>>,
}

#[pymethods]
impl NativeTicket {
    /// The result, or None where it is not there within `timeout` seconds. It can be taken once. While one thread waits, others wait
    /// for it.
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<NativeOutput>> {
        let end = match timeout {
            Some(seconds) => Instant::now().checked_add(duration("timeout", seconds)?),
            None => None,
        };
        loop {
            let left = end.map_or(LOOK, |end| LOOK.min(end.saturating_duration_since(Instant::now())));
            let result = py.detach(|| {
                let mut ticket = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
                let taken = ticket.take()?;
                match taken.wait_timeout(left) {
                    Ok(result) => Some(Ok(result)),
                    Err(waiting) => {
                        *ticket = Some(waiting);
                        Some(Err(()))
                    }
                }
            });
            match result {
                None => return Err(PyValueError::new_err("the ticket's result was taken")),
                Some(Ok(result)) => return to_python(py, result).map(|inner| Some(NativeOutput { inner })),
                Some(Err(())) => py.check_signals()?,
            }
            if end.is_some_and(|end| end <= Instant::now()) {
                return Ok(None);
            }
        }
    }

    fn cancel(&self, py: Python<'_>) {
        py.detach(|| {
            if let Some(ticket) = &*self.inner.lock().unwrap_or_else(PoisonError::into_inner) {
                ticket.cancel();
            }
        });
    }

    /// Sets an adapter's scales from the next step on.
    fn set_scales(&self, py: Python<'_>, adapter: usize, blocks: &str, strength: f32) -> PyResult<()> {
        let scales = to_python(py, Scales::parse(blocks, strength))?;
        py.detach(|| match &*self.inner.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(ticket) => ticket.set_scales(adapter, scales),
            None => Ok(()),
        })
        .map_err(|error| exception(py, &error))
    }

    /// Exchanges the prompts and references from the next step on.
    fn set_prompts(&self, py: Python<'_>, prompts: &Bound<'_, PreparedPrompts>) {
        let prompts = &prompts.get().inner;
        py.detach(|| {
            if let Some(ticket) = &*self.inner.lock().unwrap_or_else(PoisonError::into_inner) {
                ticket.set_prompts(prompts);
            }
        });
    }

    /// `("waiting", requests before it)`, `("running", done, steps)` or `("done",)`.
    fn status<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        let status = py.detach(|| {
            self.inner
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .as_ref()
                .map_or(TicketStatus::Done, Ticket::status)
        });
        match status {
            TicketStatus::Waiting { ahead } => ("waiting", ahead).into_pyobject(py),
            TicketStatus::Running { progress } => {
                let (done, steps) = progress.map_or((0, 0), |p| (p.done, p.steps));
                ("running", done, steps).into_pyobject(py)
            }
            _ => ("done",).into_pyobject(py),
        }
    }
}
