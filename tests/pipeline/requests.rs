//! Requests that cannot be, and images too large for the memory.

use super::*;
use braid::error::Field;
use braid::{LongPrompts, PromptWeights, SizeConditioning};

pub type Change<'a> = &'a dyn Fn(&mut Request);

/// Requests that cannot be are refused with the field's name; later requests give the same images as before.
pub fn refuses(pipeline: &Pipeline, good: &Request, bad: &[(Field, Change<'_>)]) {
    let before = generate(pipeline, good).unwrap();
    for (i, (field, change)) in bad.iter().enumerate() {
        let mut r = good.clone();
        change(&mut r);
        let error = refused(generate(pipeline, &r), field.name());
        assert!(matches!(&error, Error::Parameter { field: named, .. } if named == field), "{i}: {field}: {error}");
    }
    assert_eq!(generate(pipeline, good).unwrap(), before);
}

/// As diffusers' `scheduler.timesteps`; those that image to image leaves.
#[test]
fn timesteps() {
    let pipeline = Model::folder().load().unwrap();
    let mut r = Request::new("").with_steps(4).with_timestep_spacing(braid::TimestepSpacing::Trailing);
    assert_eq!(pipeline.timesteps(&r).unwrap(), [999.0, 749.0, 499.0, 249.0]);
    r = r.with_init_image(braid::Image::new(32, 32, vec![0; 3 * 32 * 32]).unwrap()).with_strength(0.5);
    assert_eq!(pipeline.timesteps(&r).unwrap(), [499.0, 249.0]);
    assert!(matches!(pipeline.timesteps(&r.with_steps(0)), Err(Error::Parameter { field: Field::Steps, .. })));
}

#[test]
fn b43_numbers() {
    let pipeline = Model::folder().load().unwrap();
    refuses(
        &pipeline,
        &request(),
        &[
            (Field::Steps, &|r| r.steps = 0),
            (Field::Steps, &|r| r.steps = 1_000_000_000),
            (Field::Steps, &|r| r.steps = usize::MAX),
            (Field::GuidanceScale, &|r| r.guidance_scale = f32::NAN),
            (Field::GuidanceScale, &|r| r.guidance_scale = f32::INFINITY),
            (Field::GuidanceRescale, &|r| r.guidance_rescale = f32::NAN),
            (Field::GuidanceRescale, &|r| r.guidance_rescale = -0.1),
            (Field::GuidanceRescale, &|r| r.guidance_rescale = 1.1),
            (Field::Width, &|r| r.width = Some(0)),
            (Field::Height, &|r| r.height = Some(0)),
            (Field::Height, &|r| (r.width, r.height) = (Some(1001), Some(1))),
            (Field::Height, &|r| r.height = Some(1001)),
            (Field::Width, &|r| r.width = Some(1_000_000_000)),
            (Field::Height, &|r| r.height = Some(usize::MAX)),
            (Field::NumImages, &|r| r.num_images = 0),
            (Field::NumImages, &|r| r.num_images = 1_000_000),
            (Field::NumImages, &|r| r.num_images = usize::MAX),
            (Field::ClipSkip, &|r| r.clip_skip = 2),
            (Field::ClipSkip, &|r| r.clip_skip = usize::MAX),
            (Field::Eta, &|r| r.eta = Some(-0.5)),
            (Field::Eta, &|r| r.eta = Some(1.5)),
            (Field::Eta, &|r| r.eta = Some(f32::NAN)),
            (Field::Noise, &|r| r.noise = Some(vec![0.0; 7])),
            (Field::Noise, &|r| r.noise = Some(Vec::new())),
        ],
    );
    let before = generate(&pipeline, &request()).unwrap();
    let mut r = request();
    r.noise = Some(vec![f32::NAN; 64]);
    assert!(matches!(refused(generate(&pipeline, &r), "noise"), Error::Parameter { field: Field::Noise, .. }));
    r = request();
    r.guidance_scale = f32::MAX;
    assert!(matches!(refused(generate(&pipeline, &r), "guidance"), Error::NotFinite { .. }));
    r = request();
    r.seed = u64::MAX;
    r.num_images = 2;
    assert_eq!(pipeline.generate(&r).unwrap().seeds, [u64::MAX, 0]);
    assert_eq!(generate(&pipeline, &request()).unwrap(), before);

    let mut options = Model::folder().options();
    for threads in [0, usize::MAX] {
        options.threads = Some(threads);
        let error = refused(Pipeline::load(&options), "threads");
        assert!(matches!(error, Error::Parameter { .. }), "{error}");
    }
}

/// DiffSynth's profile rounds sides and caps steps where diffusers refuses.
#[test]
fn b43_numbers_of_diffsynth() {
    let pipeline = Model::file().load().unwrap();
    let mut r = request();
    r.image_prompts.clear();
    (r.width, r.height) = (Some(1), Some(1));
    assert_eq!(generate(&pipeline, &r).unwrap().len(), 64 * 64 * 3);
    refuses(
        &pipeline,
        &r,
        &[
            (Field::Steps, &|r| r.steps = 0),
            (Field::Width, &|r| r.width = Some(usize::MAX)),
            (Field::Height, &|r| r.height = Some(0)),
            (Field::Eta, &|r| r.eta = Some(0.5)),
            (Field::ClipSkip, &|r| r.clip_skip = usize::MAX),
            (Field::Prompt2, &|r| r.prompt_2 = Some("a dog".into())),
            (Field::NegativePrompt2, &|r| r.negative_prompt_2 = Some("a dog".into())),
            (Field::LongPrompts, &|r| r.long_prompts = LongPrompts::Chunks),
            (Field::PromptWeights, &|r| r.prompt_weights = PromptWeights::A1111),
        ],
    );
}

/// Settings of prompts and sizes that would have no effect, or another than is asked for.
#[test]
fn prompt_options() {
    let pipeline = Model::folder().load().unwrap();
    let long = "fox ".repeat(3_000);
    let sizes = SizeConditioning::default;
    refuses(
        &pipeline,
        &request(),
        &[
            (Field::Prompt, &|r| (r.long_prompts, r.prompt) = (LongPrompts::Chunks, long.clone())),
            (Field::Prompt2, &|r| (r.long_prompts, r.prompt_2) = (LongPrompts::Chunks, Some(long.clone()))),
            (Field::Prompt, &|r| (r.prompt_weights, r.prompt) = (PromptWeights::A1111, "(a:1.2.3)".into())),
            (Field::Prompt2, &|r| (r.prompt_weights, r.prompt_2) = (PromptWeights::A1111, Some("a BREAK b".into()))),
            (Field::Prompt, &|r| (r.prompt_weights, r.prompt) = (PromptWeights::Compel, "a cat.swap(dog)".into())),
            (Field::Prompt2, &|r| {
                (r.prompt_weights, r.prompt_2) = (PromptWeights::Compel, Some("(\"a\", \"b\").blend(1)".into()))
            }),
            (Field::NegativePrompt, &|r| {
                (r.prompt_weights, r.negative_prompt) = (PromptWeights::Compel, Some("withLora(x, 1) a".into()))
            }),
            (Field::NegativeOriginalSize, &|r| r.negative_size_conditioning = sizes().with_original_size((8, 8))),
            (Field::NegativeTargetSize, &|r| r.negative_size_conditioning = sizes().with_target_size((8, 8))),
            (Field::NegativeCrop, &|r| r.negative_size_conditioning = sizes().with_crop((8, 8))),
        ],
    );
    // An empty second prompt is the first one; weights of 1 and brackets that are text change nothing.
    let before = generate(&pipeline, &request()).unwrap();
    let same =
        request().with_prompt_2("").with_long_prompts(LongPrompts::Chunks).with_prompt_weights(PromptWeights::A1111);
    assert_eq!(generate(&pipeline, &same).unwrap(), before);
    let size = sizes().with_crop((0, 0));
    assert_eq!(generate(&pipeline, &request().with_size_conditioning(size)).unwrap(), before);
    assert_ne!(generate(&pipeline, &request().with_size_conditioning(sizes().with_crop((500, 0)))).unwrap(), before);
}

/// Another of compel's weights, above 1 or below, compiles nothing; weights of 1 are the prompt without them.
#[test]
fn compel_weights() {
    let pipeline = Model::folder().load().unwrap();
    let plain = generate(&pipeline, &request()).unwrap();
    let weighted = |prompt: &str| {
        let mut r = request().with_prompt_weights(PromptWeights::Compel);
        r.prompt = prompt.into();
        r
    };
    let (first, count) = compiled(|| generate(&pipeline, &weighted("a (red)1.3 fox in the snow")).unwrap());
    assert!(count > 0);
    let image = |request: &Request| {
        let (image, count) = compiled(|| generate(&pipeline, request).unwrap());
        assert_eq!(count, 0, "{request:?}");
        image
    };
    assert!(close(&image(&weighted("a red fox in the snow")), &plain));
    let low = image(&weighted("a (red)0.3 fox in the snow"));
    assert!(!close(&low, &first) && !close(&low, &plain) && !close(&first, &plain));
    assert_ne!(image(&weighted("a (red)0.0 fox in the snow")), low);
    let blend = |weights: &str| image(&weighted(&format!("(\"a red fox in the snow\", \"a boat\").blend({weights})")));
    assert_ne!(blend("1, 1"), blend("1, 2"));
}

#[test]
fn b44_prompts() {
    for (model, long_fits) in [(Model::folder(), true), (Model::file(), false)] {
        let pipeline = model.load().unwrap();
        let mut good = request();
        good.image_prompts.clear();
        let before = generate(&pipeline, &good).unwrap();
        let mut r = good.clone();
        for prompt in ["", " ", "\0", "a\0b", "\x1b[31mred\x1b[0m", "\u{202e}abc", "\u{1f600}\u{301}", "<|endoftext|>"]
        {
            r.prompt = prompt.into();
            r.negative_prompt = Some(prompt.into());
            generate(&pipeline, &r).unwrap();
        }
        let long = "fox ".repeat(10_000);
        for (prompt, negative) in [(long.as_str(), None), ("fox", Some(long.clone()))] {
            r.prompt = prompt.into();
            r.negative_prompt = negative;
            match pipeline.generate(&r) {
                Ok(output) => {
                    assert!(long_fits);
                    assert_eq!(output.truncated_tokens > 9_000, prompt.len() > 3);
                }
                Err(Error::Parameter { field, what }) => {
                    assert!(!long_fits && what.to_string().contains("rows of 77"), "{what}");
                    assert_eq!(field, if prompt.len() > 3 { Field::Prompt } else { Field::NegativePrompt });
                }
                Err(other) => panic!("{other}"),
            }
        }
        assert_eq!(generate(&pipeline, &good).unwrap(), before);
    }
}

fn image(width: usize) -> ImagePrompt {
    ImagePrompt::default().with_reference(ReferenceImage::Embedding(vec![0.5; width]))
}

#[test]
fn b45_image_prompts() {
    let model = Model::folder();
    let pipeline = model.load().unwrap();
    let reference = || Image::new(8, 8, vec![9; 192]).unwrap();
    refuses(
        &pipeline,
        &request(),
        &[
            (Field::ScaleStrength, &|r| r.image_prompts = vec![image(24).with_scale(f32::NAN)]),
            (Field::ScaleStrength, &|r| r.image_prompts = vec![image(24).with_scale(f32::INFINITY)]),
            (Field::ScaleBlocks, &|r| {
                r.image_prompts = vec![image(24).with_scale(Scales::parse("1e30", 1e30).unwrap())]
            }),
            (Field::ScaleBlocks, &|r| {
                r.image_prompts = vec![image(24).with_scale(Scales::parse(r#"{"up": {"block_9": 1}}"#, 1.0).unwrap())];
            }),
            (Field::ImagePrompts, &|r| r.image_prompts = vec![image(24), image(24)]),
            (Field::ImagePrompts, &|r| r.image_prompts = vec![image(23)]),
            (Field::ImagePrompts, &|r| r.image_prompts = vec![image(0)]),
            (Field::Resize, &|r| {
                r.image_prompts = vec![ImagePrompt::new(reference())];
                r.image_prompts[0].resize = Some((0, 4));
            }),
            (Field::Resize, &|r| {
                r.image_prompts = vec![ImagePrompt::new(reference())];
                r.image_prompts[0].resize = Some((usize::MAX, 1 << 40));
            }),
        ],
    );
    let mut r = request();
    r.image_prompts = vec![ImagePrompt::default().with_reference(ReferenceImage::Embedding(vec![f32::NAN; 24]))];
    assert!(matches!(refused(generate(&pipeline, &r), "NaN"), Error::NotFinite { .. }));
    // An adapter without images, and one with an empty list, have no part.
    r.image_prompts = Vec::new();
    let without = generate(&pipeline, &r).unwrap();
    r.image_prompts = vec![ImagePrompt::default()];
    assert_eq!(generate(&pipeline, &r).unwrap(), without);
    assert_ne!(generate(&pipeline, &request()).unwrap(), without);

    // Images without an adapter, and images without an encoder.
    let bare = Pipeline::load(&PipelineOptions::new(model.dir.path())).unwrap();
    r.image_prompts = Vec::new();
    assert_eq!(generate(&bare, &r).unwrap(), without);
    let text = refused(generate(&bare, &request()), "no adapter").to_string();
    assert!(text.contains("1 image prompt for 0 adapters"), "{text}");
    std::fs::remove_dir_all(model.path("image_encoder")).unwrap();
    let blind = Pipeline::load(&PipelineOptions::new(model.dir.path()).with_adapter(model.path(ADAPTER))).unwrap();
    r.image_prompts = vec![ImagePrompt::new(reference())];
    let text = refused(generate(&blind, &r), "no encoder").to_string();
    assert!(text.contains("clip_vision"), "{text}");
    assert!(blind.encode_image(&reference()).is_err());
    generate(&blind, &request()).unwrap();
}

/// An image that memory cannot hold is refused at once, with a size that would fit.
#[cfg(target_os = "linux")]
#[test]
fn too_large_for_memory() {
    let pipeline = Model::folder().load().unwrap();
    let before = generate(&pipeline, &request()).unwrap();
    let have = braid::memory::available().unwrap();
    let mut r = request();
    (r.width, r.height) = (Some(16_384), Some(16_384));
    // The small VAE takes 43 GB for it.
    if have < 38 << 30 {
        let begin = std::time::Instant::now();
        match refused(generate(&pipeline, &r), "16384x16384") {
            Error::Memory { stage: "decode", need, have, hint } => {
                let hint = hint.to_string();
                assert!(need > have, "{need} {have}");
                assert!(hint.contains("would fit") || hint.contains("smaller"), "{hint}");
                assert!(hint.ends_with(", or set vae_tiling"), "{hint}");
            }
            other => panic!("{other}"),
        }
        assert!(begin.elapsed().as_secs_f64() < 2.0, "{:?}", begin.elapsed());
    }
    // 1000 images of 805 MB.
    r.num_images = 1000;
    assert!(matches!(refused(generate(&pipeline, &r), "many"), Error::Memory { .. }));
    // Embeddings whose keys and values fill the memory.
    let mut r = request();
    let one = r.image_prompts[0].references[0].clone();
    let bytes = one_image_bytes();
    let count = (have / bytes + 1) as usize;
    if count < 2_000_000 {
        r.image_prompts[0].references = vec![one; count];
        match refused(generate(&pipeline, &r), "references") {
            Error::Memory { stage: "condition", .. } => {}
            other => panic!("{other}"),
        }
    }
    assert_eq!(generate(&pipeline, &request()).unwrap(), before);
}

/// Bytes of keys and values of one reference in the small model: 4 tokens, 2 rows, twice the widths of 16 layers.
#[cfg(target_os = "linux")]
fn one_image_bytes() -> u64 {
    4 * 2 * 2 * (5 * 32 + 12 * 64) * 4
}
