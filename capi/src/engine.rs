//! Engines.

use crate::callbacks::{deadline, demand_outside};
use crate::edge::{LastError, Outcome};
use crate::params::read;
use crate::pipeline::braid_pipeline;
use crate::pointers::{borrow, demand_zero, free, give};
use crate::request::{engine_options, request as read_request};
use crate::status::{BRAID_OK, braid_status};
use crate::structs::{braid_engine_options, braid_request, braid_submit_options};
use crate::ticket::{Gate, braid_ticket};
use braid::{Engine, Error, SubmitOptions};
use std::ffi::c_char;
use std::sync::{Arc, PoisonError, RwLock};

/// An engine; none once it was drained.
pub struct braid_engine {
    inner: RwLock<Option<Engine>>,
    error: LastError,
}

impl braid_engine {
    fn with<T>(&self, work: impl FnOnce(&Engine) -> T) -> Option<T> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner).as_ref().map(work)
    }
}

/// The settings of a request, and the gate of its callbacks.
///
/// # Safety
/// `given` and what it points to are as braid.h asks for.
unsafe fn submit_options(given: *const braid_submit_options) -> Outcome<(SubmitOptions, Option<Arc<Gate>>)> {
    let mut options = SubmitOptions::new();
    if given.is_null() {
        return Ok((options, None));
    }
    // SAFETY: as the caller promises.
    let given = unsafe { read(given, "options") }?;
    demand_zero(given.reserved, "options.reserved")?;
    options.priority = given.priority;
    options.deadline = deadline(given.deadline_ms);
    // SAFETY: as the caller promises.
    let gate = unsafe { Gate::read(given.callbacks) }?;
    if let Some(gate) = &gate {
        options = gate.add_to(options);
    }
    Ok((options, gate))
}

export! {
    fn braid_engine_new(
        pipeline: *const braid_pipeline,
        options: *const braid_engine_options,
        engine: *mut *mut braid_engine,
    ) -> braid_status {
        give(engine, "engine", || {
            let pipeline = borrow(pipeline, "pipeline")?.inner.clone();
            let inner = Engine::new(pipeline, engine_options(options)?)?;
            Ok(braid_engine { inner: RwLock::new(Some(inner)), error: LastError::default() })
        })
    }

    fn braid_engine_submit(
        engine: *const braid_engine,
        request: *const braid_request,
        options: *const braid_submit_options,
        ticket: *mut *mut braid_ticket,
    ) -> braid_status {
        give(ticket, "ticket", || {
            let engine = borrow(engine, "engine")?;
            engine.error.note(|| {
                let request = read_request(request, "request")?;
                let (options, gate) = submit_options(options)?;
                let submitted = engine.with(|engine| engine.submit_with(request, options));
                Ok(braid_ticket::new(submitted.unwrap_or(Err(Error::Stopped))?, gate))
            })
        })
    }

    fn braid_engine_waiting(engine: *const braid_engine) -> usize {
        Ok(borrow(engine, "engine")?.with(Engine::waiting).unwrap_or_default())
    }

    fn braid_engine_running(engine: *const braid_engine) -> usize {
        Ok(borrow(engine, "engine")?.with(Engine::running).unwrap_or_default())
    }

    fn braid_engine_drain(engine: *const braid_engine) -> braid_status {
        let engine = borrow(engine, "engine")?;
        engine.error.note(|| {
            demand_outside("braid_engine_drain")?;
            let taken = engine.inner.write().unwrap_or_else(PoisonError::into_inner).take();
            taken.into_iter().for_each(Engine::drain);
            Ok(BRAID_OK)
        })
    }

    fn braid_engine_last_error(engine: *const braid_engine, buffer: *mut c_char, size: usize) -> usize {
        borrow(engine, "engine")?.error.copy(buffer, size)
    }

    fn braid_engine_free(engine: *mut braid_engine) {
        // Its thread, on which callbacks run, cannot wait for itself.
        demand_outside("braid_engine_free")?;
        free(engine);
        Ok(())
    }
}
