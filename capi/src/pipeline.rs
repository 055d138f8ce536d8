//! Pipelines.

use crate::callbacks::{callbacks as read_callbacks, demand_outside};
use crate::edge::{LastError, copy};
use crate::encoded::braid_encoded_images;
use crate::names::CNames;
use crate::output::braid_output;
use crate::params::read;
use crate::pointers::{borrow, free, give, store};
use crate::request::{image_prompt, pipeline_options, request as read_request};
use crate::status::{BRAID_OK, braid_status};
use crate::structs::{braid_callbacks, braid_image_prompt, braid_pipeline_options, braid_request};
use braid::Pipeline;
use std::ffi::c_char;
use std::sync::Arc;

/// A pipeline, shared with the engines that draw with it.
pub struct braid_pipeline {
    pub(crate) inner: Arc<Pipeline>,
    pub(crate) error: LastError,
}

export! {
    fn braid_pipeline_load(options: *const braid_pipeline_options, pipeline: *mut *mut braid_pipeline) -> braid_status {
        give(pipeline, "pipeline", || {
            let inner = Arc::new(Pipeline::load(&pipeline_options(options)?)?);
            Ok(braid_pipeline { inner, error: LastError::default() })
        })
    }

    fn braid_pipeline_device(pipeline: *const braid_pipeline, buffer: *mut c_char, size: usize) -> usize {
        copy(&borrow(pipeline, "pipeline")?.inner.device(), buffer, size)
    }

    fn braid_pipeline_dtype(pipeline: *const braid_pipeline, buffer: *mut c_char, size: usize) -> usize {
        copy(&borrow(pipeline, "pipeline")?.inner.dtype().to_string(), buffer, size)
    }

    fn braid_pipeline_notes(pipeline: *const braid_pipeline, buffer: *mut c_char, size: usize) -> usize {
        let inner = &borrow(pipeline, "pipeline")?.inner;
        let lines: Vec<String> = inner.notes().map(|note| note.describe(&CNames)).collect();
        copy(&lines.join("\n"), buffer, size)
    }

    fn braid_pipeline_num_adapters(pipeline: *const braid_pipeline) -> usize {
        Ok(borrow(pipeline, "pipeline")?.inner.num_adapters())
    }

    fn braid_pipeline_num_loras(pipeline: *const braid_pipeline) -> usize {
        Ok(borrow(pipeline, "pipeline")?.inner.num_loras())
    }

    fn braid_pipeline_default_size(pipeline: *const braid_pipeline, width: *mut usize, height: *mut usize) -> braid_status {
        let size = borrow(pipeline, "pipeline")?.inner.default_size();
        store(width, size.0, "width")?;
        store(height, size.1, "height")
    }

    fn braid_pipeline_last_error(pipeline: *const braid_pipeline, buffer: *mut c_char, size: usize) -> usize {
        borrow(pipeline, "pipeline")?.error.copy(buffer, size)
    }

    fn braid_pipeline_free(pipeline: *mut braid_pipeline) {
        free(pipeline);
        Ok(())
    }

    fn braid_pipeline_generate(
        pipeline: *const braid_pipeline,
        request: *const braid_request,
        callbacks: *const braid_callbacks,
        output: *mut *mut braid_output,
    ) -> braid_status {
        give(output, "output", || {
            let pipeline = borrow(pipeline, "pipeline")?;
            pipeline.error.note(|| {
                demand_outside("braid_pipeline_generate")?;
                let request = read_request(request, "request")?;
                Ok(braid_output(pipeline.inner.generate_with(&request, read_callbacks(callbacks)?)?))
            })
        })
    }

    fn braid_pipeline_try_generate(
        pipeline: *const braid_pipeline,
        request: *const braid_request,
        callbacks: *const braid_callbacks,
        output: *mut *mut braid_output,
    ) -> braid_status {
        give(output, "output", || {
            let pipeline = borrow(pipeline, "pipeline")?;
            pipeline.error.note(|| {
                let request = read_request(request, "request")?;
                Ok(braid_output(pipeline.inner.try_generate_with(&request, read_callbacks(callbacks)?)?))
            })
        })
    }

    fn braid_pipeline_prepare(pipeline: *const braid_pipeline, request: *const braid_request) -> braid_status {
        let pipeline = borrow(pipeline, "pipeline")?;
        pipeline.error.note(|| {
            demand_outside("braid_pipeline_prepare")?;
            let shape = pipeline.inner.workload_shape(&read_request(request, "request")?)?;
            pipeline.inner.prepare(&shape)?;
            Ok(BRAID_OK)
        })
    }

    fn braid_pipeline_encode_references(
        pipeline: *const braid_pipeline,
        adapter: usize,
        prompt: *const braid_image_prompt,
        encoded: *mut *mut braid_encoded_images,
    ) -> braid_status {
        give(encoded, "encoded", || {
            let pipeline = borrow(pipeline, "pipeline")?;
            pipeline.error.note(|| {
                demand_outside("braid_pipeline_encode_references")?;
                let prompt = image_prompt(&read(prompt, "prompt")?, "prompt")?;
                Ok(braid_encoded_images(pipeline.inner.encode_references(adapter, &prompt)?))
            })
        })
    }
}
