//! Sessions: requests that are drawn again from one prepared conditioning.

use crate::callbacks::{callbacks as read_callbacks, demand_outside};
use crate::edge::LastError;
use crate::live::braid_prepared_prompts;
use crate::output::braid_output;
use crate::pipeline::braid_pipeline;
use crate::pointers::{borrow, free, give};
use crate::request::{prompts as read_prompts, request as read_request};
use crate::status::braid_status;
use crate::structs::{braid_callbacks, braid_request};
use braid::{Pipeline, Session};
use std::ffi::c_char;
use std::sync::Arc;

/// A session that shares its pipeline.
pub(crate) type Shared = Session<Arc<Pipeline>>;

/// A session, shared with its streams.
pub struct braid_session {
    pub(crate) inner: Arc<Shared>,
    pub(crate) error: LastError,
}

export! {
    fn braid_pipeline_session(
        pipeline: *const braid_pipeline,
        request: *const braid_request,
        session: *mut *mut braid_session,
    ) -> braid_status {
        give(session, "session", || {
            let pipeline = borrow(pipeline, "pipeline")?;
            pipeline.error.note(|| {
                demand_outside("braid_pipeline_session")?;
                let inner = Session::new(pipeline.inner.clone(), &read_request(request, "request")?)?;
                Ok(braid_session { inner: Arc::new(inner), error: LastError::default() })
            })
        })
    }

    fn braid_pipeline_prepare_prompts(
        pipeline: *const braid_pipeline,
        request: *const braid_request,
        prompts: *const braid_request,
        prepared: *mut *mut braid_prepared_prompts,
    ) -> braid_status {
        give(prepared, "prepared", || {
            let pipeline = borrow(pipeline, "pipeline")?;
            pipeline.error.note(|| {
                demand_outside("braid_pipeline_prepare_prompts")?;
                let (request, prompts) = (read_request(request, "request")?, read_prompts(prompts, "prompts")?);
                Ok(braid_prepared_prompts(pipeline.inner.prepare_prompts(&request, prompts)?))
            })
        })
    }

    fn braid_session_generate(
        session: *const braid_session,
        request: *const braid_request,
        callbacks: *const braid_callbacks,
        output: *mut *mut braid_output,
    ) -> braid_status {
        give(output, "output", || {
            let session = borrow(session, "session")?;
            session.error.note(|| {
                demand_outside("braid_session_generate")?;
                let request = match request.is_null() {
                    true => session.inner.request().clone(),
                    false => read_request(request, "request")?,
                };
                Ok(braid_output(session.inner.generate_with(&request, read_callbacks(callbacks)?)?))
            })
        })
    }

    fn braid_session_prepare_prompts(
        session: *const braid_session,
        prompts: *const braid_request,
        prepared: *mut *mut braid_prepared_prompts,
    ) -> braid_status {
        give(prepared, "prepared", || {
            let session = borrow(session, "session")?;
            session.error.note(|| {
                demand_outside("braid_session_prepare_prompts")?;
                Ok(braid_prepared_prompts(session.inner.prepare_prompts(read_prompts(prompts, "prompts")?)?))
            })
        })
    }

    fn braid_session_last_error(session: *const braid_session, buffer: *mut c_char, size: usize) -> usize {
        borrow(session, "session")?.error.copy(buffer, size)
    }

    fn braid_session_free(session: *mut braid_session) {
        free(session);
        Ok(())
    }
}
