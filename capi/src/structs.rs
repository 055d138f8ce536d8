//! The structs of the interface and their defaults, which are the library's.

use crate::cancel::braid_cancel_token;
use crate::encoded::braid_encoded_images;
use crate::image::braid_image;
use crate::live::{braid_live_prompts, braid_live_scales};
use crate::params::{Layout, Params, init};
use crate::status::braid_status;
use braid::{EngineOptions, ImagePrompt, PipelineOptions, Request};
use std::ffi::{c_char, c_void};
use std::ptr::{null, null_mut};

/// See braid.h.
pub type braid_progress_fn = Option<unsafe extern "C" fn(*const braid_progress, *mut c_void) -> i32>;
/// See braid.h.
pub type braid_preview_fn = Option<unsafe extern "C" fn(*const braid_preview, *mut c_void) -> i32>;
/// See braid.h.
pub type braid_image_fn = Option<unsafe extern "C" fn(*const braid_finished_image, *mut c_void) -> i32>;

/// The value that leaves `eta` and `strength` to the library.
pub const BRAID_UNSET: f64 = -1.0;

params! {
    braid_pipeline_options {
        model: *const c_char = null(),
        config: *const c_char = null(),
        vae: *const c_char = null(),
        taesd: *const c_char = null(),
        clip_vision: *const c_char = null(),
        adapters: *const *const c_char = null(),
        num_adapters: usize = 0,
        loras: *const *const c_char = null(),
        num_loras: usize = 0,
        embeddings: *const *const c_char = null(),
        num_embeddings: usize = 0,
        compat: *const c_char = null(),
        device: *const c_char = null(),
        dtype: *const c_char = null(),
        vae_dtype: *const c_char = null(),
        quantize: *const c_char = null(),
        encoders: *const c_char = null(),
        max_batch: usize = 0,
        threads: usize = 0,
        max_noise_bytes: u64 = PipelineOptions::new("").max_noise_bytes,
        max_cache_bytes: u64 = PipelineOptions::new("").max_cache_bytes,
        vae_tiling: u32 = 0,
        mmap: u32 = u32::from(PipelineOptions::new("").mmap),
    }

    braid_reference {
        image: *const braid_image = null(),
        encoded: *const braid_encoded_images = null(),
        mask: *const braid_image = null(),
        texts: *const *const c_char = null(),
        text_factors: *const f32 = null(),
        num_texts: usize = 0,
        weight: f32 = 1.0,
        reserved: u32 = 0,
        embedding: *const f32 = null(),
        num_embedding_values: usize = 0,
    }

    braid_image_prompt {
        references: *const braid_reference = null(),
        num_references: usize = 0,
        blocks: *const c_char = null(),
        combine: *const c_char = null(),
        fit: *const c_char = null(),
        negative_image: *const braid_image = null(),
        negative_encoded: *const braid_encoded_images = null(),
        start: f64 = ImagePrompt::default().start,
        end: f64 = ImagePrompt::default().end,
        scale: f32 = ImagePrompt::default().scales.strength(),
        resize_width: u32 = 0,
        resize_height: u32 = 0,
        reserved: u32 = 0,
        negative_embedding: *const f32 = null(),
        num_negative_embedding_values: usize = 0,
    }

    braid_scale_change {
        step: usize = 0,
        adapter: usize = 0,
        blocks: *const c_char = null(),
        scale: f32 = 1.0,
        reserved: u32 = 0,
    }

    braid_prompt_change {
        step: usize = 0,
        prompts: *const braid_request = null(),
    }

    braid_request {
        prompt: *const c_char = null(),
        negative_prompt: *const c_char = null(),
        prompt_2: *const c_char = null(),
        negative_prompt_2: *const c_char = null(),
        long_prompts: *const c_char = null(),
        prompt_weights: *const c_char = null(),
        width: usize = 0,
        height: usize = 0,
        steps: usize = Request::new("").steps,
        num_images: usize = Request::new("").num_images,
        seed: u64 = Request::new("").seed,
        guidance_scale: f32 = Request::new("").guidance_scale,
        guidance_rescale: f32 = Request::new("").guidance_rescale,
        guidance_start: f64 = 0.0,
        guidance_end: f64 = 1.0,
        image_prompts: *const braid_image_prompt = null(),
        num_image_prompts: usize = 0,
        lora_scales: *const f32 = null(),
        num_lora_scales: usize = 0,
        scheduler: *const c_char = null(),
        sigma_schedule: *const c_char = null(),
        prediction_type: *const c_char = null(),
        timestep_spacing: *const c_char = null(),
        rng: *const c_char = null(),
        noise_dtype: *const c_char = null(),
        init_image: *const braid_image = null(),
        mask: *const braid_image = null(),
        original_width: u32 = 0,
        original_height: u32 = 0,
        crop_left: u32 = 0,
        crop_top: u32 = 0,
        target_width: u32 = 0,
        target_height: u32 = 0,
        negative_original_width: u32 = 0,
        negative_original_height: u32 = 0,
        negative_crop_left: u32 = 0,
        negative_crop_top: u32 = 0,
        negative_target_width: u32 = 0,
        negative_target_height: u32 = 0,
        strength: f64 = BRAID_UNSET,
        eta: f32 = BRAID_UNSET as f32,
        clip_skip: u32 = 0,
        noise: *const f32 = null(),
        num_noise_values: usize = 0,
        scale_changes: *const braid_scale_change = null(),
        num_scale_changes: usize = 0,
        prompt_changes: *const braid_prompt_change = null(),
        num_prompt_changes: usize = 0,
        attribution: u32 = 0,
        reserved: u32 = 0,
    }

    braid_progress {
        image: usize = 0,
        num_images: usize = 0,
        done: usize = 0,
        steps: usize = 0,
        stage: i32 = 0,
        reserved: u32 = 0,
    }

    braid_preview {
        pixels: *const braid_image = null(),
        image: usize = 0,
        done: usize = 0,
        steps: usize = 0,
    }

    braid_callbacks {
        user_data: *mut c_void = null_mut(),
        on_progress: braid_progress_fn = None,
        on_preview: braid_preview_fn = None,
        preview_every: usize = 1,
        cancel: *const braid_cancel_token = null(),
        on_image: braid_image_fn = None,
        live_scales: *const braid_live_scales = null(),
        live_prompts: *const braid_live_prompts = null(),
        deadline_ms: i64 = -1,
    }

    braid_finished_image {
        image: *const braid_image = null(),
        number: usize = 0,
        seed: u64 = 0,
        upcast_vae: i32 = 0,
        reserved: u32 = 0,
    }

    braid_stream_options {
        live_scales: *const braid_live_scales = null(),
        live_prompts: *const braid_live_prompts = null(),
        seed_per_frame: u32 = 0,
        overlap: u32 = 0,
    }

    braid_engine_options {
        max_waiting: usize = EngineOptions::default().max_waiting,
        max_running: usize = EngineOptions::default().max_running,
        gather_ms: u64 = EngineOptions::default().gather.as_millis() as u64,
        aging_ms: u64 = EngineOptions::default().aging.as_millis() as u64,
    }

    braid_submit_options {
        deadline_ms: i64 = -1,
        callbacks: *const braid_callbacks = null(),
        priority: i32 = 0,
        reserved: u32 = 0,
    }
}

/// The layouts of all structs.
pub const LAYOUTS: &[Layout] = &[
    braid_pipeline_options::LAYOUT,
    braid_reference::LAYOUT,
    braid_image_prompt::LAYOUT,
    braid_scale_change::LAYOUT,
    braid_prompt_change::LAYOUT,
    braid_request::LAYOUT,
    braid_progress::LAYOUT,
    braid_preview::LAYOUT,
    braid_callbacks::LAYOUT,
    braid_finished_image::LAYOUT,
    braid_stream_options::LAYOUT,
    braid_engine_options::LAYOUT,
    braid_submit_options::LAYOUT,
];

export! {
    fn braid_pipeline_options_init(options: *mut braid_pipeline_options, struct_size: usize) -> braid_status {
        init(options, struct_size)
    }

    fn braid_reference_init(reference: *mut braid_reference, struct_size: usize) -> braid_status {
        init(reference, struct_size)
    }

    fn braid_image_prompt_init(prompt: *mut braid_image_prompt, struct_size: usize) -> braid_status {
        init(prompt, struct_size)
    }

    fn braid_scale_change_init(change: *mut braid_scale_change, struct_size: usize) -> braid_status {
        init(change, struct_size)
    }

    fn braid_prompt_change_init(change: *mut braid_prompt_change, struct_size: usize) -> braid_status {
        init(change, struct_size)
    }

    fn braid_request_init(request: *mut braid_request, struct_size: usize) -> braid_status {
        init(request, struct_size)
    }

    fn braid_callbacks_init(callbacks: *mut braid_callbacks, struct_size: usize) -> braid_status {
        init(callbacks, struct_size)
    }

    fn braid_stream_options_init(options: *mut braid_stream_options, struct_size: usize) -> braid_status {
        init(options, struct_size)
    }

    fn braid_engine_options_init(options: *mut braid_engine_options, struct_size: usize) -> braid_status {
        init(options, struct_size)
    }

    fn braid_submit_options_init(options: *mut braid_submit_options, struct_size: usize) -> braid_status {
        init(options, struct_size)
    }
}
