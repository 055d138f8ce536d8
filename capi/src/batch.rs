//! Several requests at once.

use crate::callbacks::{Functions, demand_outside};
use crate::edge::{Failure, Outcome};
use crate::output::braid_output;
use crate::params::read_all;
use crate::pipeline::braid_pipeline;
use crate::pointers::{borrow, free, give};
use crate::request::request_of;
use crate::status::braid_status;
use crate::structs::{braid_callbacks, braid_request};
use braid::{Callbacks, Output, Request, Result};
use std::sync::{Mutex, PoisonError};

/// The results that were not taken yet.
pub struct braid_batch(Mutex<Vec<Option<Result<Output>>>>);

/// The requests with their callbacks.
///
/// # Safety
/// As braid.h asks for.
unsafe fn jobs<'a>(
    (requests, count): (*const braid_request, usize),
    callbacks: *const braid_callbacks,
) -> Outcome<Vec<(Request, Callbacks<'a>)>> {
    // SAFETY: as the caller promises.
    unsafe {
        let requests = read_all(requests, count, "requests")?;
        let functions = if callbacks.is_null() { Vec::new() } else { read_all(callbacks, count, "callbacks")? };
        let mut functions = functions.into_iter();
        let job = |given: &braid_request| {
            let callbacks = match functions.next() {
                Some(given) => Functions::of(given)?.callbacks(),
                None => Callbacks::new(),
            };
            Ok((request_of(given)?, callbacks))
        };
        requests.iter().map(job).collect()
    }
}

export! {
    fn braid_pipeline_generate_batch(
        pipeline: *const braid_pipeline,
        requests: *const braid_request,
        num_requests: usize,
        callbacks: *const braid_callbacks,
        batch: *mut *mut braid_batch,
    ) -> braid_status {
        give(batch, "batch", || {
            let pipeline = borrow(pipeline, "pipeline")?;
            pipeline.error.note(|| {
                demand_outside("braid_pipeline_generate_batch")?;
                let jobs = jobs((requests, num_requests), callbacks)?;
                let mut results: Vec<_> = jobs.iter().map(|_| None).collect();
                pipeline.inner.generate_batch_with(jobs, |number, result| results[number] = Some(result));
                Ok(braid_batch(Mutex::new(results)))
            })
        })
    }

    fn braid_batch_num_results(batch: *const braid_batch) -> usize {
        Ok(borrow(batch, "batch")?.0.lock().unwrap_or_else(PoisonError::into_inner).len())
    }

    fn braid_batch_take(batch: *const braid_batch, index: usize, output: *mut *mut braid_output) -> braid_status {
        give(output, "output", || {
            let batch = borrow(batch, "batch")?;
            let mut results = batch.0.lock().unwrap_or_else(PoisonError::into_inner);
            let count = results.len();
            let outside = || Failure::argument(format!("index: {index} given; there are {count} results"));
            let result = results.get_mut(index).ok_or_else(outside)?.take();
            let result = result.ok_or_else(|| Failure::argument(format!("index: result {index} was taken before")))?;
            Ok(braid_output(result?))
        })
    }

    fn braid_batch_free(batch: *mut braid_batch) {
        free(batch);
        Ok(())
    }
}
