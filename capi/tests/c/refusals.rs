//! Arguments that cannot be, in every function: refused with a text that names them, and NULL in the place of a result.

use super::compiler::{adapter, model};
use braid_c::attribution::*;
use braid_c::batch::*;
use braid_c::callbacks::*;
use braid_c::cancel::*;
use braid_c::edge::{braid_last_error, braid_version};
use braid_c::encoded::*;
use braid_c::engine::*;
use braid_c::image::*;
use braid_c::live::*;
use braid_c::output::*;
use braid_c::params::Params;
use braid_c::pipeline::*;
use braid_c::session::*;
use braid_c::status::*;
use braid_c::stream::*;
use braid_c::structs::*;
use braid_c::ticket::*;
use std::ffi::{CStr, CString, c_char};
use std::ptr::{null, null_mut};

fn last() -> String {
    let mut text = [0u8; 1000];
    // SAFETY: the buffer has as many bytes.
    unsafe { braid_last_error(text.as_mut_ptr().cast(), text.len()) };
    CStr::from_bytes_until_nul(&text).unwrap().to_str().unwrap().to_owned()
}

/// Checks the status and the beginning of the text.
#[track_caller]
fn refused(status: braid_status, expected: braid_status, begins: &str) {
    assert_eq!((status, true), (expected, last().starts_with(begins)), "{}", last());
}

/// A handle that is not there, as a result's place has it before.
fn place<T>() -> *mut T {
    std::ptr::dangling_mut()
}

fn text(value: &str) -> CString {
    CString::new(value).unwrap()
}

fn load() -> *mut braid_pipeline {
    let (model, adapter) = (text(model().to_str().unwrap()), text(adapter().to_str().unwrap()));
    let adapters = [adapter.as_ptr()];
    let options = braid_pipeline_options {
        model: model.as_ptr(),
        adapters: adapters.as_ptr(),
        num_adapters: 1,
        threads: 1,
        ..braid_pipeline_options::defaults()
    };
    let mut pipeline = null_mut();
    // SAFETY: the pointers are sound.
    assert_eq!(unsafe { braid_pipeline_load(&options, &mut pipeline) }, BRAID_OK, "{}", last());
    pipeline
}

#[test]
fn null_handles() {
    // SAFETY: null is allowed everywhere.
    unsafe {
        let argument = BRAID_ERROR_INVALID_ARGUMENT;
        refused(braid_image_save(null(), c"x.png".as_ptr()), argument, "image: NULL");
        assert_eq!((braid_image_width(null()), braid_image_height(null())), (0, 0));
        assert!(braid_image_rgb(null()).is_null() && last().starts_with("image: NULL"));
        refused(braid_pipeline_load(null(), &mut place()), argument, "options: NULL");
        refused(braid_pipeline_load(null(), null_mut()), argument, "pipeline: NULL");
        let mut output = place();
        refused(braid_pipeline_generate(null(), null(), null(), &mut output), argument, "pipeline: NULL");
        assert!(output.is_null());
        refused(braid_pipeline_generate(null(), null(), null(), null_mut()), argument, "output: NULL");
        refused(braid_pipeline_generate_batch(null(), null(), 0, null(), &mut place()), argument, "pipeline: NULL");
        let mut output = place();
        refused(braid_pipeline_try_generate(null(), null(), null(), &mut output), argument, "pipeline: NULL");
        assert!(output.is_null() && braid_output_step_seconds(null(), &mut 0).is_null());
        refused(braid_pipeline_prepare(null(), null()), argument, "pipeline: NULL");
        refused(braid_pipeline_default_size(null(), null_mut(), null_mut()), argument, "pipeline: NULL");
        refused(braid_pipeline_encode_references(null(), 0, null(), &mut place()), argument, "pipeline: NULL");
        assert_eq!(braid_pipeline_device(null(), null_mut(), 0), 0);
        refused(braid_encoded_images_save(null(), null()), argument, "encoded: NULL");
        refused(braid_encoded_images_load(null(), &mut place()), argument, "path: NULL");
        refused(braid_batch_take(null(), 0, &mut place()), argument, "batch: NULL");
        assert_eq!(braid_batch_num_results(null()), 0);
        refused(braid_output_seed(null(), 0, null_mut()), argument, "output: NULL");
        assert!(braid_output_image(null(), 0).is_null());
        braid_cancel_token_cancel(null());
        assert!(last().starts_with("token: NULL"));
        refused(braid_engine_new(null(), null(), &mut place()), argument, "pipeline: NULL");
        refused(braid_engine_submit(null(), null(), null(), &mut place()), argument, "engine: NULL");
        refused(braid_engine_drain(null()), argument, "engine: NULL");
        refused(braid_ticket_wait(null(), 0, &mut place()), argument, "ticket: NULL");
        refused(braid_ticket_cancel(null()), argument, "ticket: NULL");
        refused(braid_ticket_state(null(), null_mut(), null_mut()), argument, "ticket: NULL");
        refused(braid_pipeline_session(null(), null(), &mut place()), argument, "pipeline: NULL");
        refused(braid_pipeline_prepare_prompts(null(), null(), null(), &mut place()), argument, "pipeline: NULL");
        refused(braid_session_generate(null(), null(), null(), &mut place()), argument, "session: NULL");
        refused(braid_session_prepare_prompts(null(), null(), &mut place()), argument, "session: NULL");
        refused(braid_session_stream(null(), None, null_mut(), null(), &mut place()), argument, "session: NULL");
        let mut frame = place();
        refused(braid_stream_next(null(), &mut frame), argument, "stream: NULL");
        assert!(frame.is_null() && braid_frame_output(null()).is_null());
        assert_eq!((braid_frame_number(null()), braid_frame_latency(null())), (0, 0.0));
        refused(braid_live_scales_set(null(), 0, 1.0, null()), argument, "live: NULL");
        refused(braid_live_prompts_set(null(), null()), argument, "live: NULL");
        refused(braid_ticket_set_prompts(null(), null()), argument, "ticket: NULL");
        refused(braid_cancel_token_scope(null(), None, null_mut()), argument, "token: NULL");
        refused(braid_output_scale_change(null(), 0, 0, &mut 0, &mut 0, &mut 0.0), argument, "output: NULL");
        assert!(braid_output_attribution(null(), 0).is_null() && braid_attribution_map_values(null()).is_null());
        assert!(braid_encoded_images_embedding(null(), 0, &mut 0).is_null());
        refused(braid_request_init(null_mut(), 8), argument, "braid_request: NULL");
        assert_eq!(CStr::from_ptr(braid_status_name(argument)), c"BRAID_ERROR_INVALID_ARGUMENT");
        assert_eq!(CStr::from_ptr(braid_status_name(braid_status(-1))), c"unknown status");
        assert!(!braid_version().is_null());
    }
}

#[test]
fn images() {
    let rgb = [7u8; 12];
    let mut image = place();
    // SAFETY: the sizes are those of the array.
    unsafe {
        refused(braid_image_new(2, 2, rgb.as_ptr(), 11, &mut image), BRAID_ERROR_PARAMETER, "rgb: 2x2 takes 12");
        assert!(image.is_null());
        refused(braid_image_new(2, 2, null(), 12, &mut image), BRAID_ERROR_INVALID_ARGUMENT, "rgb: NULL given for 12");
        refused(braid_image_new(0, 0, null(), 0, &mut image), BRAID_ERROR_PARAMETER, "rgb: 0x0");
        refused(
            braid_image_decode(rgb.as_ptr(), 12, 0, &mut image),
            BRAID_ERROR_MALFORMED,
            "bytes: this is not an image",
        );
        refused(braid_image_decode(null(), 0, 0, &mut image), BRAID_ERROR_MALFORMED, "bytes: ");
        let alpha = "alpha: 2 given; BRAID_ALPHA_ON_WHITE (0)";
        refused(braid_image_decode(rgb.as_ptr(), 12, 2, &mut image), BRAID_ERROR_INVALID_ARGUMENT, alpha);
        refused(braid_image_open(c"/none.png".as_ptr(), 0, &mut image), BRAID_ERROR_IO, "/none.png: cannot open");
        refused(braid_image_open(c"\xff.png".as_ptr(), 0, &mut image), BRAID_ERROR_INVALID_ARGUMENT, "path: `");
        assert!(last().ends_with("` is not UTF-8"), "{}", last());
        assert_eq!(braid_image_new(2, 2, rgb.as_ptr(), 12, &mut image), BRAID_OK);
        refused(braid_image_save(image, c"/none/x.png".as_ptr()), BRAID_ERROR_IO, "/none/x.png: cannot write");
        refused(braid_image_save(image, c"x.bmp".as_ptr()), BRAID_ERROR_PARAMETER, "path: x.bmp");
        refused(braid_image_save(image, null()), BRAID_ERROR_INVALID_ARGUMENT, "path: NULL");
        let status = braid_image_save_with_metadata(image, c"x.png".as_ptr(), null(), c"\xff".as_ptr());
        refused(status, BRAID_ERROR_INVALID_ARGUMENT, "braid: `");
        braid_image_free(image);
    }
}

/// A pixel of RGB 20, 40, 60 that is transparent, by both treatments.
#[test]
fn transparency() {
    const PNG: [u8; 70] = [
        137, 80, 78, 71, 13, 10, 26, 10, 0, 0, 0, 13, 73, 72, 68, 82, 0, 0, 0, 1, 0, 0, 0, 1, 8, 6, 0, 0, 0, 31, 21,
        196, 137, 0, 0, 0, 13, 73, 68, 65, 84, 120, 156, 99, 16, 209, 176, 97, 0, 0, 1, 69, 0, 121, 58, 50, 122, 5, 0,
        0, 0, 0, 73, 69, 78, 68, 174, 66, 96, 130,
    ];
    for (alpha, want) in [(BRAID_ALPHA_ON_WHITE, [255; 3]), (BRAID_ALPHA_IGNORE, [20, 40, 60])] {
        let mut image = place();
        // SAFETY: the sizes are those of the arrays.
        unsafe {
            assert_eq!(braid_image_decode(PNG.as_ptr(), PNG.len(), alpha, &mut image), BRAID_OK, "{}", last());
            assert_eq!(std::slice::from_raw_parts(braid_image_rgb(image), 3), want);
            braid_image_free(image);
        }
    }
}

#[test]
fn requests() {
    let pipeline = load();
    let given = braid_request { prompt: c"p".as_ptr(), width: 16, height: 16, steps: 1, ..braid_request::defaults() };
    let mut output = place();
    // SAFETY: the pointers are null or sound.
    unsafe {
        let mut generate = |request: &braid_request| braid_pipeline_generate(pipeline, request, null(), &mut output);
        let (argument, parameter) = (BRAID_ERROR_INVALID_ARGUMENT, BRAID_ERROR_PARAMETER);
        refused(generate(&braid_request { struct_size: 0, ..given }), argument, "request.struct_size: 0 given");
        refused(generate(&braid_request { steps: 0, ..given }), parameter, "steps: 0 given");
        refused(generate(&braid_request { width: 17, ..given }), parameter, "width: ");
        refused(
            generate(&braid_request { guidance_start: 0.5, guidance_end: 0.2, ..given }),
            parameter,
            "guidance_start, ",
        );
        refused(generate(&braid_request { strength: 0.5, ..given }), parameter, "strength: ");
        refused(generate(&braid_request { strength: -2.0, ..given }), parameter, "strength: ");
        let ddim = braid_request { scheduler: c"ddim".as_ptr(), ..given };
        refused(generate(&braid_request { eta: 1.5, ..ddim }), parameter, "eta: ");
        let scales = [1.0f32];
        let scaled = braid_request { lora_scales: scales.as_ptr(), num_lora_scales: 1, ..given };
        refused(generate(&scaled), parameter, "lora_scales: ");
        let prompts = [braid_image_prompt::defaults(); 2];
        let many = braid_request { image_prompts: prompts.as_ptr(), num_image_prompts: 2, ..given };
        refused(generate(&many), parameter, "image_prompts: ");
        // What a thread did last is not what the pipeline did last.
        assert_eq!(braid_image_save(null(), null()), argument);
        let mut kept = [0u8; 100];
        braid_pipeline_last_error(pipeline, kept.as_mut_ptr().cast(), 100);
        assert!(kept.starts_with(b"image_prompts: "), "{:?}", CStr::from_bytes_until_nul(&kept));
        // A request of an older program, which knows the prompt alone: everything else is by default.
        let older = braid_request { struct_size: 16, steps: 0, num_images: 0, ..given };
        assert_eq!(braid_pipeline_prepare(pipeline, &older), BRAID_OK, "{}", last());

        let every = braid_callbacks { on_preview: Some(unreached), preview_every: 0, ..braid_callbacks::defaults() };
        refused(braid_pipeline_generate(pipeline, &given, &every, &mut output), argument, "preview_every: 0");
        assert!(output.is_null());
        let mut batch = place();
        let requests = [given, braid_request { prompt: null(), ..given }];
        let status = braid_pipeline_generate_batch(pipeline, requests.as_ptr(), 2, null(), &mut batch);
        refused(status, argument, "prompt: NULL");
        assert!(batch.is_null());
        braid_pipeline_free(pipeline);
    }
}

unsafe extern "C" fn unreached(_: *const braid_preview, _: *mut std::ffi::c_void) -> i32 {
    0
}

#[test]
fn engines() {
    let pipeline = load();
    let given = braid_request { prompt: c"p".as_ptr(), width: 16, height: 16, steps: 1, ..braid_request::defaults() };
    let (mut engine, mut ticket) = (place(), place());
    // SAFETY: the pointers are null or sound.
    unsafe {
        let (argument, parameter) = (BRAID_ERROR_INVALID_ARGUMENT, BRAID_ERROR_PARAMETER);
        let none = braid_engine_options { max_running: 0, ..braid_engine_options::defaults() };
        refused(braid_engine_new(pipeline, &none, &mut engine), parameter, "max_running: 0 given");
        assert!(engine.is_null());
        assert_eq!(braid_engine_new(pipeline, null(), &mut engine), BRAID_OK);
        braid_pipeline_free(pipeline);
        let token = braid_cancel_token_new();
        let callbacks = braid_callbacks { cancel: token, ..braid_callbacks::defaults() };
        let options = braid_submit_options { callbacks: &callbacks, ..braid_submit_options::defaults() };
        refused(braid_engine_submit(engine, &given, &options, &mut ticket), argument, "callbacks.cancel: ");
        let live = braid_live_scales_new();
        let callbacks = braid_callbacks { live_scales: live, ..braid_callbacks::defaults() };
        let options = braid_submit_options { callbacks: &callbacks, ..options };
        refused(braid_engine_submit(engine, &given, &options, &mut ticket), argument, "callbacks.live_scales: ");
        refused(braid_live_scales_set(live, 0, f32::NAN, null()), parameter, "scale: NaN");
        let callbacks = braid_callbacks { deadline_ms: 0, ..braid_callbacks::defaults() };
        let options = braid_submit_options { callbacks: &callbacks, ..options };
        refused(braid_engine_submit(engine, &given, &options, &mut ticket), argument, "callbacks.deadline_ms: ");
        braid_live_scales_free(live);
        let live = braid_live_prompts_new();
        refused(braid_live_prompts_set(live, null()), argument, "prompts: NULL");
        braid_live_prompts_free(live);
        let options = braid_submit_options { reserved: 1, ..braid_submit_options::defaults() };
        refused(braid_engine_submit(engine, &given, &options, &mut ticket), argument, "options.reserved: ");
        let wrong = braid_request { num_images: 0, ..given };
        refused(braid_engine_submit(engine, &wrong, null(), &mut ticket), parameter, "num_images: 0");
        assert!(ticket.is_null());
        // A deadline that no clock reaches is none.
        let options = braid_submit_options { deadline_ms: i64::MAX, ..braid_submit_options::defaults() };
        assert_eq!(braid_engine_submit(engine, &given, &options, &mut ticket), BRAID_OK, "{}", last());
        refused(braid_ticket_state(ticket, null_mut(), null_mut()), argument, "state: NULL");
        refused(braid_ticket_set_scales(ticket, 0, f32::INFINITY, null()), parameter, "scale: inf");
        let mut output = place();
        assert_eq!(braid_ticket_wait(ticket, -1, &mut output), BRAID_OK, "{}", last());
        let mut number = 0u64;
        refused(braid_output_seed(output, 1, &mut number), argument, "index: 1 given; there are 1 images");
        refused(braid_output_upcast_vae(output, 1, &mut 0), argument, "index: 1 given; there are 1 images");
        let none = "index: 0 given; there are 0 changes of prompts";
        refused(braid_output_prompt_change(output, 0, 0, &mut 0), argument, none);
        let scale_change = |image| braid_output_scale_change(output, image, 0, &mut 0, &mut 0, &mut 0.0);
        refused(scale_change(1), argument, "image: 1 given; there are 1 images");
        refused(braid_output_seconds(output, -1, &mut 0.0), argument, "stage: -1 given");
        refused(braid_output_seconds(output, 0, null_mut()), argument, "seconds: NULL");
        assert!(braid_output_step_seconds(output, null_mut()).is_null() && last().starts_with("num_steps: NULL"));
        braid_output_free(output);
        braid_ticket_free(ticket);
        braid_cancel_token_free(token);
        braid_engine_free(engine);
    }
}

/// A text that a program asks for in pieces.
#[test]
fn sizes_of_texts() {
    // SAFETY: the buffer has as many bytes.
    unsafe {
        braid_image_save(null(), null());
        let whole = last();
        let size = braid_last_error(null_mut(), 0);
        assert_eq!(size, whole.len() + 1);
        let mut short = [1 as c_char; 6];
        assert_eq!(braid_last_error(short.as_mut_ptr(), 6), size);
        assert_eq!(CStr::from_ptr(short.as_ptr()).to_str().unwrap(), &whole[..5]);
    }
    assert_eq!(STAGES.len(), 6);
}
