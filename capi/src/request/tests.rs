//! Every field in its place, and fields that are refused.

use super::*;
use crate::edge::Outcome;
use crate::params::Params;
use braid::{
    Combine, Compat, DeviceChoice, EncoderResidency, Fit, LongPrompts, PredictionType, PromptWeights, Quantization,
    Scales, SchedulerKind, SigmaSchedule, TimestepSpacing,
};
use std::ffi::CStr;

fn pixels(width: usize) -> braid_image {
    braid_image(Image::new(width, 1, vec![0; 3 * width]).unwrap())
}

fn given() -> braid_request {
    braid_request { prompt: c"p".as_ptr(), ..braid_request::defaults() }
}

fn read_request(given: &braid_request) -> Outcome<Request> {
    // SAFETY: every pointer of these tests is null or sound.
    unsafe { request(given, "request") }
}

/// Each field arrives in its place; a Rust request that is built likewise prints the same.
#[test]
fn every_field_of_a_request() {
    let sizes = |[original, crop, target]: [(usize, usize); 3]| {
        SizeConditioning::default().with_original_size(original).with_crop(crop).with_target_size(target)
    };
    let [mask, init] = [4, 5].map(pixels);
    let lora_scales = [0.5, -1.0];
    let request = braid_request {
        negative_prompt: c"n".as_ptr(),
        prompt_2: c"p2".as_ptr(),
        negative_prompt_2: c"n2".as_ptr(),
        long_prompts: c"chunks".as_ptr(),
        prompt_weights: c"compel".as_ptr(),
        width: 64,
        height: 32,
        steps: 7,
        num_images: 3,
        seed: u64::MAX,
        guidance_scale: 4.5,
        guidance_rescale: 0.5,
        guidance_start: 0.125,
        guidance_end: 0.875,
        lora_scales: lora_scales.as_ptr(),
        num_lora_scales: 2,
        scheduler: c"ddim".as_ptr(),
        sigma_schedule: c"karras".as_ptr(),
        prediction_type: c"v".as_ptr(),
        timestep_spacing: c"trailing".as_ptr(),
        rng: c"cuda".as_ptr(),
        noise_dtype: c"bf16".as_ptr(),
        init_image: &init,
        mask: &mask,
        original_width: 1,
        original_height: 2,
        crop_left: 3,
        crop_top: 4,
        target_width: 5,
        target_height: 6,
        negative_original_width: 7,
        negative_original_height: 8,
        negative_crop_left: 9,
        negative_crop_top: 10,
        negative_target_width: 11,
        negative_target_height: 12,
        strength: 0.25,
        eta: 0.0,
        clip_skip: 2,
        ..given()
    };
    let expected = Request::new("p")
        .with_negative_prompt("n")
        .with_prompt_2("p2")
        .with_negative_prompt_2("n2")
        .with_long_prompts(LongPrompts::Chunks)
        .with_prompt_weights(PromptWeights::Compel)
        .with_width(64)
        .with_height(32)
        .with_steps(7)
        .with_num_images(3)
        .with_seed(u64::MAX)
        .with_guidance_scale(4.5)
        .with_guidance_rescale(0.5)
        .with_guidance_interval((0.125, 0.875))
        .with_size_conditioning(sizes([(1, 2), (3, 4), (5, 6)]))
        .with_negative_size_conditioning(sizes([(7, 8), (9, 10), (11, 12)]))
        .with_lora_scales(lora_scales)
        .with_scheduler(SchedulerKind::Ddim)
        .with_sigma_schedule(SigmaSchedule::Karras)
        .with_prediction_type(PredictionType::V)
        .with_timestep_spacing(TimestepSpacing::Trailing)
        .with_rng(RngKind::Cuda(PhiloxGrid::default()))
        .with_noise_dtype(DType::BF16)
        .with_init_image(init.0.clone())
        .with_mask(mask.0.clone())
        .with_strength(0.25)
        .with_eta(0.0)
        .with_clip_skip(2);
    assert_eq!(format!("{:?}", read_request(&request).unwrap()), format!("{expected:?}"));
    assert_eq!(format!("{:?}", read_request(&given()).unwrap()), format!("{:?}", Request::new("p")));
}

/// Numbers, and what changes between two steps.
#[test]
fn later_fields_of_a_request() {
    let numbers = [0.5f32, -1.0];
    let reference =
        braid_reference { embedding: numbers.as_ptr(), num_embedding_values: 2, ..braid_reference::defaults() };
    let prompt = braid_image_prompt {
        references: &reference,
        num_references: 1,
        negative_embedding: numbers.as_ptr(),
        num_negative_embedding_values: 1,
        ..braid_image_prompt::defaults()
    };
    let scale_changes = [
        braid_scale_change { step: 1, adapter: 2, scale: 0.5, ..braid_scale_change::defaults() },
        braid_scale_change { step: 3, blocks: c"style".as_ptr(), ..braid_scale_change::defaults() },
    ];
    let other = braid_request { negative_prompt: c"o".as_ptr(), steps: 9, ..given() };
    let prompt_change = braid_prompt_change { step: 4, prompts: &other, ..braid_prompt_change::defaults() };
    let request = braid_request {
        image_prompts: &prompt,
        num_image_prompts: 1,
        noise: numbers.as_ptr(),
        num_noise_values: 2,
        scale_changes: scale_changes.as_ptr(),
        num_scale_changes: 2,
        prompt_changes: &prompt_change,
        num_prompt_changes: 1,
        attribution: 1,
        ..given()
    };
    let mut prompt = ImagePrompt::default().with_reference(Reference::new(ReferenceImage::Embedding(numbers.to_vec())));
    prompt.negative_image = Some(ReferenceImage::Embedding(vec![0.5]));
    let expected = Request::new("p")
        .with_image_prompt(prompt)
        .with_noise(numbers.to_vec())
        .with_scale_change(1, 2, 0.5)
        .with_scale_change(3, 0, Scales::parse("style", 1.0).unwrap())
        .with_prompt_change(4, Request::new("p").with_negative_prompt("o").prompts())
        .with_attribution(true);
    assert_eq!(format!("{:?}", read_request(&request).unwrap()), format!("{expected:?}"));
}

#[test]
fn every_field_of_an_image_prompt() {
    let [first, second, negative, mask] = [1, 2, 3, 4].map(pixels);
    let (texts, factors) = ([c"fur", c"snow"].map(CStr::as_ptr), [0.5, -0.25]);
    let references = [
        braid_reference {
            image: &first,
            mask: &mask,
            texts: texts.as_ptr(),
            text_factors: factors.as_ptr(),
            num_texts: 2,
            weight: 0.5,
            ..braid_reference::defaults()
        },
        braid_reference { image: &second, mask: &mask, ..braid_reference::defaults() },
    ];
    let prompts = [
        braid_image_prompt::defaults(),
        braid_image_prompt {
            references: references.as_ptr(),
            num_references: 2,
            blocks: c"style".as_ptr(),
            combine: c"add".as_ptr(),
            fit: c"pad".as_ptr(),
            negative_image: &negative,
            start: 0.25,
            end: 0.75,
            scale: 0.6,
            resize_width: 30,
            resize_height: 20,
            ..braid_image_prompt::defaults()
        },
    ];
    let request = braid_request { image_prompts: prompts.as_ptr(), num_image_prompts: 2, ..given() };
    let first = Reference::new(first.0.clone()).with_weight(0.5).with_mask(mask.0.clone());
    let prompt = ImagePrompt::default()
        .with_reference(first.with_text("fur", 0.5).with_text("snow", -0.25))
        .with_reference(Reference::new(second.0.clone()).with_mask(mask.0.clone()))
        .with_scale(Scales::parse("style", 0.6).unwrap())
        .with_combine(Combine::Add)
        .with_fit(Fit::Pad)
        .with_negative_image(negative.0.clone())
        .with_start(0.25)
        .with_end(0.75)
        .with_resize((30, 20));
    let expected = Request::new("p").with_image_prompt(ImagePrompt::default()).with_image_prompt(prompt);
    assert_eq!(format!("{:?}", read_request(&request).unwrap()), format!("{expected:?}"));
}

#[test]
fn every_field_of_the_options() {
    let text = |text: &'static CStr| text.as_ptr();
    let [adapters, loras, embeddings] = [[c"a", c"b"], [c"c", c"d"], [c"e", c"f"]].map(|list| list.map(text));
    let options = braid_pipeline_options {
        model: text(c"m"),
        config: text(c"k"),
        vae: text(c"v"),
        taesd: text(c"t"),
        clip_vision: text(c"i"),
        adapters: adapters.as_ptr(),
        num_adapters: 2,
        loras: loras.as_ptr(),
        num_loras: 2,
        embeddings: embeddings.as_ptr(),
        num_embeddings: 1,
        compat: text(c"diffsynth"),
        device: text(c"cuda:3"),
        dtype: text(c"f16"),
        vae_dtype: text(c"f32"),
        quantize: text(c"int8"),
        encoders: text(c"free"),
        max_batch: 4,
        threads: 5,
        max_noise_bytes: 6,
        max_cache_bytes: 7,
        vae_tiling: 512,
        mmap: 0,
        ..braid_pipeline_options::defaults()
    };
    let mut expected = PipelineOptions::new("m")
        .with_config("k")
        .with_vae("v")
        .with_taesd("t")
        .with_clip_vision("i")
        .with_adapter("a")
        .with_adapter("b")
        .with_lora("c")
        .with_lora("d")
        .with_embedding("e")
        .with_compat(Compat::diffsynth())
        .with_device(DeviceChoice::Cuda(3))
        .with_dtype(DType::F16)
        .with_vae_dtype(DType::F32)
        .with_quantize(Quantization::Int8)
        .with_max_batch(4)
        .with_threads(5)
        .with_max_cache_bytes(7)
        .with_vae_tiling(512)
        .with_mmap(false);
    (expected.encoders, expected.max_noise_bytes) = (EncoderResidency::Free, 6);
    // SAFETY: the pointers are sound.
    let read = |options: &braid_pipeline_options| unsafe { pipeline_options(options) }.unwrap();
    assert_eq!(format!("{:?}", read(&options)), format!("{expected:?}"));
    let plain = braid_pipeline_options { model: text(c"m"), ..braid_pipeline_options::defaults() };
    assert_eq!(format!("{:?}", read(&plain)), format!("{:?}", PipelineOptions::new("m")));
}

/// Each text names the field at fault, as C spells it.
#[test]
fn refused_fields() {
    let image = pixels(1);
    let reference = braid_reference { image: &image, ..braid_reference::defaults() };
    let of_prompt = |prompt: braid_image_prompt| {
        read_request(&braid_request { image_prompts: &prompt, num_image_prompts: 1, ..given() })
    };
    let of_reference = |reference: braid_reference| {
        of_prompt(braid_image_prompt { references: &reference, num_references: 1, ..braid_image_prompt::defaults() })
    };
    let (prompt, change) = (braid_image_prompt::defaults(), braid_prompt_change::defaults());
    let latin = c"caf\xe9";
    let cases: [(Outcome<Request>, &str); 24] = [
        (read_request(&braid_request::defaults()), "prompt: NULL given"),
        (read_request(&braid_request { prompt: latin.as_ptr(), ..given() }), "prompt: `caf\u{fffd}` is not UTF-8"),
        (read_request(&braid_request { scheduler: c"pndm".as_ptr(), ..given() }), "scheduler: unknown value `pndm`"),
        (read_request(&braid_request { sigma_schedule: c"x".as_ptr(), ..given() }), "sigma_schedule: unknown"),
        (read_request(&braid_request { noise_dtype: c"f64".as_ptr(), ..given() }), "noise_dtype: unknown value `f64`"),
        (read_request(&braid_request { rng: c"mps".as_ptr(), ..given() }), "rng: unknown value `mps`"),
        (read_request(&braid_request { num_lora_scales: 2, ..given() }), "lora_scales: NULL given for 2 values"),
        (
            read_request(&braid_request { lora_scales: std::ptr::dangling(), num_lora_scales: usize::MAX, ..given() }),
            "lora_scales: no array of",
        ),
        (read_request(&braid_request { num_image_prompts: 1, ..given() }), "image_prompts[0]: NULL given"),
        (of_prompt(braid_image_prompt { struct_size: 1, ..prompt }), "image_prompts[0].struct_size: 1 given"),
        (of_prompt(braid_image_prompt { num_references: 1, ..prompt }), "image_prompts[0].references[0]: NULL"),
        (of_prompt(braid_image_prompt { blocks: c"all".as_ptr(), ..prompt }), "blocks: `all` is not full"),
        (of_prompt(braid_image_prompt { scale: f32::NAN, ..prompt }), "scale: NaN is not"),
        (of_prompt(braid_image_prompt { combine: c"sum".as_ptr(), ..prompt }), "combine: unknown value `sum`"),
        (
            of_reference(braid_reference { image: std::ptr::null(), ..reference }),
            "image_prompts[0].references[0]: image, encoded and embedding are NULL",
        ),
        (
            of_reference(braid_reference { reserved: 1, ..reference }),
            "image_prompts[0].references[0].reserved: 1 given",
        ),
        (of_prompt(braid_image_prompt { reserved: 1, ..prompt }), "image_prompts[0].reserved: 1 given"),
        (
            of_reference(braid_reference { embedding: [0.0].as_ptr(), num_embedding_values: 1, ..reference }),
            "image_prompts[0].references[0]: image and embedding given",
        ),
        (
            of_prompt(braid_image_prompt { num_negative_embedding_values: 1, ..prompt }),
            "image_prompts[0].negative_embedding: NULL given for 1 values",
        ),
        (read_request(&braid_request { num_noise_values: 1, ..given() }), "noise: NULL given for 1 values"),
        (read_request(&braid_request { attribution: 2, ..given() }), "attribution: 2 given"),
        (read_request(&braid_request { reserved: 1, ..given() }), "request.reserved: 1 given"),
        (read_request(&braid_request { num_scale_changes: 1, ..given() }), "scale_changes[0]: NULL given"),
        (
            read_request(&braid_request { prompt_changes: &change, num_prompt_changes: 1, ..given() }),
            "prompt_changes[0].prompts: NULL given",
        ),
    ];
    for (outcome, begins) in cases {
        let text = outcome.unwrap_err().text();
        assert!(text.starts_with(begins), "{text} / {begins}");
    }
    let options = braid_pipeline_options { model: c"m".as_ptr(), ..braid_pipeline_options::defaults() };
    let list = [c"a".as_ptr(), std::ptr::null()];
    for (options, begins) in [
        (braid_pipeline_options { mmap: 2, ..options }, "mmap: 2 given"),
        (braid_pipeline_options { device: c"tpu".as_ptr(), ..options }, "device: `tpu`"),
        (braid_pipeline_options { adapters: list.as_ptr(), num_adapters: 2, ..options }, "adapters[1]: NULL given"),
        (braid_pipeline_options { dtype: c"int8".as_ptr(), ..options }, "dtype: unknown value `int8`"),
    ] {
        // SAFETY: the pointers are null or sound.
        let text = unsafe { pipeline_options(&options) }.unwrap_err().text();
        assert!(text.starts_with(begins), "{text} / {begins}");
    }
}
