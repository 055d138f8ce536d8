//! What must not break: damaged models, wrong files and senseless requests through the whole pipeline. The numbers are
//! those of the catalogue of bad inputs; the readers' own cases are in tests/weights, tests/pictures.rs and
//! tests/tokenizer.rs.

#![allow(clippy::unwrap_used)]

mod common;

use braid::error::Error;
use braid::inputs::picture::Picture;
use braid::pipeline::{ImagePrompt, Reference, Scales};
use braid::{Pipeline, PipelineOptions, Request};
use common::{Model, draw, read, request, warnings};
use serde_json::{Value, json};
use std::path::Path;

const PARTS: [(&str, &str); 5] = [
    ("UNet", "unet/diffusion_pytorch_model.safetensors"),
    ("VAE decoder", "vae/diffusion_pytorch_model.safetensors"),
    ("text encoder", "text_encoder/model.safetensors"),
    ("text encoder", "text_encoder_2/model.safetensors"),
    ("image encoder", "image_encoder/model.safetensors"),
];
const ADAPTER: &str = "ip-adapter.safetensors";

/// The error, or a panic that says what was accepted.
fn refused<T>(result: braid::Result<T>, what: &str) -> Error {
    match result {
        Ok(_) => panic!("{what} was accepted"),
        Err(error) => {
            let text = error.to_string();
            assert!(!text.contains(|c: char| c.is_control()), "{what}: {text:?}");
            error
        }
    }
}

/// Whether the picture depends on a tensor of a folder: not on what follows the layer whose state is taken, nor on rows of
/// tokens that the prompt lacks.
fn matters(part: &str, name: &str) -> bool {
    let unused = match part {
        "VAE decoder" => name.starts_with("encoder.") || name.starts_with("quant_conv."),
        "text encoder" => {
            name.contains("layers.2.") || name.contains("final_layer_norm") || name.contains("text_projection")
        }
        _ => false,
    };
    !unused && !name.contains("position_ids") && !name.contains("token_embedding")
}

/// NaN or infinity in weights is named when they are loaded, and never gives a picture. All tensors with BRAID_LOAD_FULL.
#[test]
fn b16_weights_that_are_not_finite() {
    let full = std::env::var_os("BRAID_LOAD_FULL").is_some();
    let mut r = request();
    (r.steps, r.width, r.height) = (1, Some(16), Some(16));
    let picture = Picture::new(40, 30, (0..3600).map(|i| (i * 7 % 256) as u8).collect()).unwrap();
    r.images = vec![ImagePrompt::new(picture)];
    let model = Model::folder();
    let parts = PARTS.iter().chain(&[("IP-Adapter", ADAPTER)]);
    for (part, file) in parts {
        let sound = std::fs::read(model.path(file)).unwrap();
        let names: Vec<String> = read(&model.path(file)).into_keys().filter(|n| matters(part, n)).collect();
        let step = if full { 1 } else { names.len().div_ceil(5) };
        for name in names.iter().step_by(step).chain(names.last()) {
            for (value, at) in [(f32::NAN, Some(0)), (f32::NAN, None), (f32::INFINITY, None)] {
                model.edit(file, |tensors| tensors.get_mut(name).unwrap().poison(value, at));
                // Loading reads no weights; the error of the first result that is not finite names them.
                let pipeline = model.load().unwrap();
                let what = format!("{file}: {name} = {value} at {at:?}");
                match refused(draw(&pipeline, &r), &what) {
                    Error::NotFinite { hint, .. } => assert!(hint.contains(name.as_str()), "{what}: {hint}"),
                    other => panic!("{what}: {other}"),
                }
                std::fs::write(model.path(file), &sound).unwrap();
            }
        }
    }
    draw(&model.load().unwrap(), &r).unwrap();
    // `braid inspect` names them too.
    let name = "image_proj.norm.bias";
    model.edit(ADAPTER, |tensors| tensors.get_mut(name).unwrap().poison(f32::NAN, Some(0)));
    let path = model.path(ADAPTER);
    let weights = braid::weights::open(&path, &Default::default()).unwrap();
    let report = braid::inspect::inspect(&path, &weights).unwrap().to_string();
    assert!(report.contains("NaN") && report.contains("norm.bias"), "{report}");
}

#[test]
fn b17_missing_and_misshaped_tensors_are_all_listed() {
    let check = |model: &Model, file: &str, part: &str| {
        let names: Vec<String> = read(&model.path(file)).into_keys().filter(|n| matters(part, n)).collect();
        let gone = [&names[1], &names[names.len() / 2], &names[names.len() - 1]];
        let shapes = [&names[2], &names[names.len() - 2]];
        model.edit(file, |tensors| {
            gone.iter().for_each(|n| drop(tensors.remove(*n)));
            for name in shapes {
                let tensor = tensors.get_mut(name).unwrap();
                let mut shape = tensor.shape.clone();
                shape[0] += 1;
                *tensor = tensor.shaped(&shape);
            }
        });
        match refused(model.load(), file) {
            Error::Tensors { path, model, problems } => {
                assert!(path.to_string_lossy().contains(file), "{}", path.display());
                assert_eq!(model, part);
                assert_eq!(problems.len(), 5, "{problems:?}");
                for name in gone {
                    assert!(
                        problems.iter().any(|p| p.starts_with(&format!("{name} missing, expected ["))),
                        "{problems:?}"
                    );
                }
                for name in shapes {
                    assert!(problems.iter().any(|p| p.starts_with(&format!("{name} is ["))), "{problems:?}");
                }
            }
            other => panic!("{file}: {other}"),
        }
    };
    for (part, file) in PARTS {
        check(&Model::folder(), file, part);
    }
    // An adapter: gaps among its matrices, then other shapes.
    let model = Model::folder();
    let sound = std::fs::read(model.path(ADAPTER)).unwrap();
    let expect = |names: &[&str]| match refused(model.load(), "a damaged adapter") {
        Error::Tensors { problems, .. } => {
            assert_eq!(problems.len(), names.len(), "{problems:?}");
            names.iter().for_each(|n| assert!(problems.iter().any(|p| p.starts_with(n)), "{n}: {problems:?}"));
        }
        other => panic!("{other}"),
    };
    model.edit(ADAPTER, |t| {
        t.remove("ip_adapter.1.to_k_ip.weight").unwrap();
        t.remove("ip_adapter.5.to_v_ip.weight").unwrap();
    });
    expect(&["ip_adapter.1.to_k_ip.weight", "ip_adapter.5.to_v_ip.weight"]);
    std::fs::write(model.path(ADAPTER), &sound).unwrap();
    model.edit(ADAPTER, |t| {
        t.remove("image_proj.proj.bias").unwrap();
        for name in ["ip_adapter.1.to_v_ip.weight", "ip_adapter.7.to_v_ip.weight"] {
            let other = t[name].shaped(&[5, 7]);
            t.insert(name.into(), other);
        }
    });
    expect(&["image_proj.proj.bias", "ip_adapter.1.to_v_ip.weight", "ip_adapter.7.to_v_ip.weight"]);
    std::fs::write(model.path(ADAPTER), &sound).unwrap();
    let pairs = "1 pairs of matrices";
    model.edit(ADAPTER, |t| t.retain(|n, _| n.starts_with("image_proj") || n.starts_with("ip_adapter.1.")));
    let text = refused(model.load(), pairs).to_string();
    assert!(text.contains(pairs) && text.contains("another model"), "{text}");
}

#[test]
fn b17_missing_tensors_of_a_single_file() {
    let model = Model::file();
    let gone = ["model.diffusion_model.input_blocks.1.0.in_layers.0.bias", "model.diffusion_model.out.2.bias"];
    model.edit("sdxl.safetensors", |t| gone.iter().for_each(|n| drop(t.remove(*n).unwrap())));
    match refused(model.load(), "a checkpoint with gaps") {
        Error::Tensors { problems, .. } => assert_eq!(problems.len(), 2, "{problems:?}"),
        other => panic!("{other}"),
    }
}

/// Tensors that no layer has are worth a warning and change nothing, even a bias where the model has none.
#[test]
fn b17_extra_tensors() {
    let model = Model::folder();
    let before = draw(&model.load().unwrap(), &request()).unwrap();
    for (file, name, shape) in [
        (PARTS[0].1, "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.bias", [32]),
        (PARTS[0].1, "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k.bias", [3]),
        (PARTS[1].1, "decoder.extra", [3]),
        (PARTS[2].1, "text_model.extra", [3]),
        (PARTS[3].1, "text_model.extra", [3]),
        (PARTS[4].1, "vision_model.extra", [3]),
        (ADAPTER, "image_proj.extra", [3]),
    ] {
        model.edit(file, |tensors| {
            let mut extra = tensors.values().find(|t| t.shape.len() == 1).unwrap().shaped(&shape);
            extra.poison(1.0, None);
            tensors.insert(name.into(), extra);
        });
        let (pipeline, lines) = warnings(|| model.load().unwrap());
        assert!(lines.iter().any(|l| l.contains("not used") && l.contains(name)), "{name}: {lines:?}");
        assert_eq!(draw(&pipeline, &request()).unwrap(), before, "{name}");
        model.edit(file, |tensors| drop(tensors.remove(name)));
    }
}

/// A safetensors file of tiny tensors.
fn tensors(path: &Path, names: &[(&str, &[usize])]) {
    let spec = |(name, shape): &(&str, &[usize])| braid::synth::TensorSpec {
        name: (*name).into(),
        shape: shape.to_vec(),
        dtype: braid::synth::Stored::Float(braid::tensor::DType::F16),
        scale: 1.0,
        offset: 0.0,
        seed: 0,
    };
    let specs: Vec<_> = names.iter().map(spec).collect();
    braid::synth::write_safetensors(path, &specs, &Default::default()).unwrap();
}

#[test]
fn b18_wrong_families_are_named() {
    const CONV: &str = "model.diffusion_model.input_blocks.0.0.weight";
    let model = Model::folder();
    let path = model.path("wrong.safetensors");
    type Names<'a> = &'a [(&'a str, &'a [usize])];
    let as_model: &[(Names<'_>, &str)] = &[
        (&[(CONV, &[8, 4, 1, 1]), ("cond_stage_model.transformer.text_model.x", &[1])], "Stable Diffusion 1.x"),
        (&[(CONV, &[8, 4, 1, 1]), ("cond_stage_model.model.ln_final.bias", &[1])], "Stable Diffusion 2.x"),
        (&[("model.diffusion_model.joint_blocks.0.x", &[1])], "Stable Diffusion 3"),
        (&[("double_blocks.0.img_attn.norm.key_norm.scale", &[1])], "Flux"),
        (&[(CONV, &[8, 4, 1, 1]), ("conditioner.embedders.0.model.ln_final.bias", &[1])], "SDXL refiner"),
        (&[(CONV, &[8, 9, 1, 1]), ("conditioner.embedders.1.model.ln_final.bias", &[1])], "SDXL inpainting"),
        (&[("lora_unet_x.lora_down.weight", &[1])], "LoRA"),
        (&[("vision_model.pre_layrnorm.weight", &[1])], "CLIP image encoder"),
        (&[("image_proj.proj.weight", &[1, 1]), ("ip_adapter.1.to_k_ip.weight", &[1, 2])], "base IP-Adapter"),
        (&[("anything", &[1])], "no kind of file"),
    ];
    for (names, family) in as_model {
        tensors(&path, names);
        let error = refused(Pipeline::load(&PipelineOptions::new(&path)), family);
        assert!(matches!(error, Error::Mismatch { .. }) && error.to_string().contains(family), "{family}: {error}");
    }
    let as_adapter: &[(Names<'_>, &str)] = &[
        (&[("image_proj.latents", &[1]), ("ip_adapter.1.to_k_ip.weight", &[1, 64])], "IP-Adapter Plus"),
        (&[("image_proj.proj.3.weight", &[1]), ("ip_adapter.1.to_k_ip.weight", &[1, 64])], "Full Face"),
        (&[("image_proj.norm.weight", &[1]), ("ip_adapter.1.to_k_ip.weight", &[1, 64])], "FaceID"),
        (&[("image_proj.proj.weight", &[1, 1]), ("ip_adapter.1.to_k_ip.weight", &[1, 768])], "Stable Diffusion 1.x"),
        (&[("vision_model.pre_layrnorm.weight", &[1])], "CLIP image encoder"),
        (&[("conditioner.embedders.1.x", &[1])], "SDXL base checkpoint"),
        (&[("anything", &[1])], "no kind of file"),
    ];
    for (names, family) in as_adapter {
        tensors(&path, names);
        let error = refused(Pipeline::load(&PipelineOptions::new(model.dir.path()).adapter(&path)), family);
        let text = error.to_string();
        assert!(matches!(error, Error::Mismatch { .. }) && text.contains(family), "{family}: {text}");
        assert!(text.contains("ip-adapter_sdxl"), "{text}");
    }
    for (file, family) in [
        (ADAPTER, "base IP-Adapter"),
        ("text_encoder/model.safetensors", "CLIP text encoder"),
        (PARTS[0].1, "SDXL UNet"),
    ] {
        std::fs::copy(model.path(file), &path).unwrap();
        let text = refused(Pipeline::load(&model.options().clip_vision(&path)), family).to_string();
        assert!(text.contains(family) && text.contains("image_encoder"), "{text}");
    }
}

#[test]
fn b19_pages_and_pointers() {
    let model = Model::folder();
    let html: &[u8] = b"<!DOCTYPE html><html><body>Login\x1b[31m</body></html>";
    let lfs: &[u8] = b"version https://git-lfs.github.com/spec/v1\noid sha256:1234\nsize 6938040682\n";
    for (bytes, what) in [(html, "HTML"), (lfs, "git-LFS"), (b"", "empty"), (b"PK\x03\x04", "zip")] {
        for file in PARTS.iter().map(|p| p.1).chain([ADAPTER]) {
            let sound = std::fs::read(model.path(file)).unwrap();
            std::fs::write(model.path(file), bytes).unwrap();
            let text = refused(model.load(), file).to_string();
            assert!(text.contains(file) && text.contains(what), "{file}: {text}");
            std::fs::write(model.path(file), sound).unwrap();
        }
        let path = model.path("sdxl.ckpt");
        std::fs::write(&path, bytes).unwrap();
        let text = refused(Pipeline::load(&PipelineOptions::new(path)), what).to_string();
        assert!(text.contains(what), "{text}");
    }
    refused(Pipeline::load(&PipelineOptions::new(model.path("absent"))), "an absent path");
    model.load().unwrap();
}

#[test]
fn b20_shards() {
    let model = Model::golden("diffusers", "euler-a-two-adapters");
    let index = "unet/diffusion_pytorch_model.safetensors.index.json";
    let options = PipelineOptions::new(model.dir.path());
    Pipeline::load(&options).unwrap();
    let sound = std::fs::read(model.path(index)).unwrap();
    let shard = |to: &'static str| {
        model.edit_json(index, |v| {
            let map = v["weight_map"].as_object_mut().unwrap();
            let first = map.keys().next().unwrap().clone();
            map[&first] = to.into();
        });
        let text = refused(Pipeline::load(&options), to).to_string();
        std::fs::write(model.path(index), &sound).unwrap();
        text
    };
    assert!(shard("../vae/diffusion_pytorch_model.safetensors").contains("not a plain file name"));
    assert!(shard("/etc/passwd").contains("not a plain file name"));
    assert!(shard("absent.safetensors").contains("missing"));
    Pipeline::load(&options).unwrap();
}

type Change<'a> = &'a dyn Fn(&mut Request);

/// Requests that cannot be are refused with the flag's name; what follows is drawn as before.
fn refuses(pipeline: &Pipeline, good: &Request, bad: &[(&str, Change<'_>)]) {
    let before = draw(pipeline, good).unwrap();
    for (i, (flag, change)) in bad.iter().enumerate() {
        let mut r = good.clone();
        change(&mut r);
        let error = refused(draw(pipeline, &r), flag);
        assert!(matches!(&error, Error::Parameter { name, .. } if name == flag), "{i}: {flag}: {error}");
    }
    assert_eq!(draw(pipeline, good).unwrap(), before);
}

#[test]
fn b43_numbers() {
    let pipeline = Model::folder().load().unwrap();
    refuses(
        &pipeline,
        &request(),
        &[
            ("--steps", &|r| r.steps = 0),
            ("--steps", &|r| r.steps = 1_000_000_000),
            ("--steps", &|r| r.steps = usize::MAX),
            ("--cfg-scale", &|r| r.guidance = f32::NAN),
            ("--cfg-scale", &|r| r.guidance = f32::INFINITY),
            ("--guidance-rescale", &|r| r.guidance_rescale = f32::NAN),
            ("--guidance-rescale", &|r| r.guidance_rescale = -0.1),
            ("--guidance-rescale", &|r| r.guidance_rescale = 1.1),
            ("--width", &|r| r.width = Some(0)),
            ("--height", &|r| r.height = Some(0)),
            ("--height", &|r| (r.width, r.height) = (Some(1001), Some(1))),
            ("--height", &|r| r.height = Some(1001)),
            ("--width", &|r| r.width = Some(1_000_000_000)),
            ("--height", &|r| r.height = Some(usize::MAX)),
            ("--batch-count", &|r| r.count = 0),
            ("--batch-count", &|r| r.count = 1_000_000),
            ("--batch-count", &|r| r.count = usize::MAX),
            ("--clip-skip", &|r| r.clip_skip = 2),
            ("--clip-skip", &|r| r.clip_skip = usize::MAX),
            ("eta", &|r| r.eta = Some(-0.5)),
            ("eta", &|r| r.eta = Some(1.5)),
            ("eta", &|r| r.eta = Some(f32::NAN)),
            ("--latents-in", &|r| r.noise = Some(vec![0.0; 7])),
            ("--latents-in", &|r| r.noise = Some(Vec::new())),
        ],
    );
    let before = draw(&pipeline, &request()).unwrap();
    let mut r = request();
    r.noise = Some(vec![f32::NAN; 64]);
    assert!(matches!(refused(draw(&pipeline, &r), "noise"), Error::NotFinite { .. }));
    r = request();
    r.guidance = f32::MAX;
    assert!(matches!(refused(draw(&pipeline, &r), "guidance"), Error::NotFinite { .. }));
    r = request();
    r.seed = u64::MAX;
    r.count = 2;
    assert_eq!(pipeline.generate(&r, &mut Default::default()).unwrap().seeds, [u64::MAX, 0]);
    assert_eq!(draw(&pipeline, &request()).unwrap(), before);

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
    r.images.clear();
    (r.width, r.height) = (Some(1), Some(1));
    assert_eq!(draw(&pipeline, &r).unwrap().len(), 64 * 64 * 3);
    refuses(
        &pipeline,
        &r,
        &[
            ("--steps", &|r| r.steps = 0),
            ("--width", &|r| r.width = Some(usize::MAX)),
            ("--height", &|r| r.height = Some(0)),
            ("eta", &|r| r.eta = Some(0.5)),
            ("--clip-skip", &|r| r.clip_skip = usize::MAX),
        ],
    );
}

#[test]
fn b44_prompts() {
    for (model, long_fits) in [(Model::folder(), true), (Model::file(), false)] {
        let pipeline = model.load().unwrap();
        let mut good = request();
        good.images.clear();
        let before = draw(&pipeline, &good).unwrap();
        let mut r = good.clone();
        for prompt in ["", " ", "\0", "a\0b", "\x1b[31mred\x1b[0m", "\u{202e}abc", "\u{1f600}\u{301}", "<|endoftext|>"]
        {
            r.prompt = prompt.into();
            r.negative_prompt = Some(prompt.into());
            draw(&pipeline, &r).unwrap();
        }
        let long = "fox ".repeat(10_000);
        for (prompt, negative) in [(long.as_str(), None), ("fox", Some(long.clone()))] {
            r.prompt = prompt.into();
            r.negative_prompt = negative;
            match pipeline.generate(&r, &mut Default::default()) {
                Ok(output) => {
                    assert!(long_fits);
                    assert_eq!(output.cut_tokens > 9_000, prompt.len() > 3);
                }
                Err(Error::Parameter { name, what }) => {
                    assert!(!long_fits && what.contains("rows of 77"), "{what}");
                    assert_eq!(name, if prompt.len() > 3 { "--prompt" } else { "--negative-prompt" });
                }
                Err(other) => panic!("{other}"),
            }
        }
        assert_eq!(draw(&pipeline, &good).unwrap(), before);
    }
}

fn image(width: usize) -> ImagePrompt {
    ImagePrompt::default().with(Reference::Embedding(vec![0.5; width]))
}

#[test]
fn b45_image_prompts() {
    let model = Model::folder();
    let pipeline = model.load().unwrap();
    let picture = || Picture::new(8, 8, vec![9; 192]).unwrap();
    refuses(
        &pipeline,
        &request(),
        &[
            ("--ip-adapter-strength", &|r| r.images = vec![image(24).scaled(f32::NAN)]),
            ("--ip-adapter-strength", &|r| r.images = vec![image(24).scaled(f32::INFINITY)]),
            ("--ip-adapter-blocks", &|r| r.images = vec![image(24).scaled(Scales::parse("1e30", 1e30).unwrap())]),
            ("--ip-adapter-blocks", &|r| {
                r.images = vec![image(24).scaled(Scales::parse(r#"{"up": {"block_9": 1}}"#, 1.0).unwrap())];
            }),
            ("--ip-adapter-image", &|r| r.images = vec![image(24), image(24)]),
            ("--ip-adapter-image", &|r| r.images = vec![image(23)]),
            ("--ip-adapter-image", &|r| r.images = vec![image(0)]),
            ("picture size", &|r| {
                r.images = vec![ImagePrompt::new(picture())];
                r.images[0].resize = Some((0, 4));
            }),
            ("picture size", &|r| {
                r.images = vec![ImagePrompt::new(picture())];
                r.images[0].resize = Some((usize::MAX, 1 << 40));
            }),
        ],
    );
    let mut r = request();
    r.images = vec![ImagePrompt::default().with(Reference::Embedding(vec![f32::NAN; 24]))];
    assert!(matches!(refused(draw(&pipeline, &r), "NaN"), Error::NotFinite { .. }));
    // An adapter without images, and one with an empty list, have no part.
    r.images = Vec::new();
    let without = draw(&pipeline, &r).unwrap();
    r.images = vec![ImagePrompt::default()];
    assert_eq!(draw(&pipeline, &r).unwrap(), without);
    assert_ne!(draw(&pipeline, &request()).unwrap(), without);

    // Images without an adapter, and pictures without an encoder.
    let bare = Pipeline::load(&PipelineOptions::new(model.dir.path())).unwrap();
    r.images = Vec::new();
    assert_eq!(draw(&bare, &r).unwrap(), without);
    let text = refused(draw(&bare, &request()), "no adapter").to_string();
    assert!(text.contains("1 image prompts for 0 adapters"), "{text}");
    std::fs::remove_dir_all(model.path("image_encoder")).unwrap();
    let blind = Pipeline::load(&PipelineOptions::new(model.dir.path()).adapter(model.path(ADAPTER))).unwrap();
    r.images = vec![ImagePrompt::new(picture())];
    let text = refused(draw(&blind, &r), "no encoder").to_string();
    assert!(text.contains("--clip-vision"), "{text}");
    assert!(blind.encode_image(&picture()).is_err());
    draw(&blind, &request()).unwrap();
}

#[test]
fn parts_of_different_models() {
    let model = Model::folder();
    let other = Model::file();
    // The adapter of another UNet.
    let text = refused(
        Pipeline::load(&PipelineOptions::new(model.dir.path()).adapter(other.path("ip-adapter_sdxl.bin"))),
        "adapter",
    );
    let text = text.to_string();
    assert!(text.contains("ip-adapter_sdxl.bin") && text.contains("another model"), "{text}");
    // The encoder of another adapter: both are named, and what is needed.
    let text =
        refused(Pipeline::load(&model.options().clip_vision(other.path("image_encoder"))), "encoder").to_string();
    assert!(text.contains(ADAPTER) && text.contains("24 wide") && text.contains("gives 128"), "{text}");
    // Text encoders of another model.
    let file = model.path("text_encoder_2");
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(model.path("text_encoder").join(name), file.join(name)).unwrap();
    }
    let text = refused(model.load(), "text encoder").to_string();
    assert!(text.contains("no text_projection"), "{text}");
}

#[test]
fn folders_of_other_pipelines() {
    let model = Model::folder();
    for class in [
        json!("StableDiffusionPipeline"),
        json!("StableDiffusionXLInpaintPipeline"),
        json!("FluxPipeline"),
        json!("\u{1b}[31m"),
        json!(7),
        json!(null),
    ] {
        model.edit_json("model_index.json", |v| v["_class_name"] = class.clone());
        let error = refused(model.load(), "another pipeline");
        assert!(matches!(&error, Error::Config { field, .. } if field == "_class_name"), "{error}");
    }
    // The refiner.
    model.edit_json("model_index.json", |v| {
        v["_class_name"] = json!("StableDiffusionXLImg2ImgPipeline");
        v["text_encoder"] = json!([null, null]);
    });
    let error = refused(model.load(), "the refiner");
    assert!(matches!(&error, Error::Config { field, .. } if field == "text_encoder"), "{error}");
    for text in ["", "{", "[]", "7", &"[".repeat(100_000)] {
        std::fs::write(model.path("model_index.json"), text).unwrap();
        refused(model.load(), text);
    }
    std::fs::remove_file(model.path("model_index.json")).unwrap();
    assert!(refused(model.load(), "no index").to_string().contains("model_index.json"));
    std::fs::create_dir(model.path("model_index.json")).unwrap();
    assert!(refused(model.load(), "a folder").to_string().contains("not a regular file"));
}

#[test]
fn scheduler_fields() {
    let model = Model::folder();
    let file = "scheduler/scheduler_config.json";
    let sound = std::fs::read(model.path(file)).unwrap();
    let before = draw(&model.load().unwrap(), &request()).unwrap();
    for (field, value) in [
        ("_class_name", json!("HeunDiscreteScheduler")),
        ("prediction_type", json!("flow_prediction")),
        ("beta_schedule", json!("sigmoid")),
        ("use_beta_sigmas", json!(true)),
        ("num_train_timesteps", json!(1u64 << 60)),
        ("num_train_timesteps", json!(0)),
        ("beta_start", json!("x")),
        ("trained_betas", json!([0.5, null])),
        ("steps_offset", json!(-1)),
        ("timestep_spacing", json!("\u{1b}[31m")),
    ] {
        model.edit_json(file, |v| v[field] = value.clone());
        let error = refused(model.load().and_then(|p| draw(&p, &request())), field);
        assert!(
            matches!(&error, Error::Config { field: f, path, .. } if f == field && path.ends_with(file)),
            "{error}"
        );
        std::fs::write(model.path(file), &sound).unwrap();
    }
    for text in ["", "[]", "<html>"] {
        std::fs::write(model.path(file), text).unwrap();
        let error = refused(model.load().and_then(|p| draw(&p, &request())), text);
        assert!(matches!(error, Error::Malformed { .. }), "{error}");
    }
    std::fs::write(model.path(file), &sound).unwrap();
    assert_eq!(draw(&model.load().unwrap(), &request()).unwrap(), before);
}

/// Every number of every configuration replaced by hostile ones: no panic, no balloon, and where the value is not the
/// one that the tensors have, an error. All of them with BRAID_LOAD_FULL, else a third.
#[test]
fn hostile_configurations() {
    let model = Model::folder();
    let mut r = request();
    (r.steps, r.width, r.height) = (1, Some(16), Some(16));
    let before = draw(&model.load().unwrap(), &r).unwrap();
    let values = [
        json!(0),
        json!(1),
        json!(-1),
        json!(3),
        json!(1_000_000),
        json!(1_000_000_000),
        json!(u64::MAX),
        json!(1e300),
        json!(0.5),
        json!("\u{1b}[31m"),
        json!([]),
        json!([0]),
        json!([1_000_000_000, 1_000_000_000, 1_000_000_000]),
        json!({}),
        json!(true),
    ];
    let full = std::env::var_os("BRAID_LOAD_FULL").is_some();
    let mut refusals = 0;
    for part in ["unet", "vae", "text_encoder", "text_encoder_2", "image_encoder"] {
        let file = format!("{part}/config.json");
        let sound: Value = serde_json::from_str(&std::fs::read_to_string(model.path(&file)).unwrap()).unwrap();
        let fields: Vec<String> = sound.as_object().unwrap().keys().cloned().collect();
        for (i, field) in fields.iter().enumerate() {
            let original = &sound[field];
            let inner = original.as_array().is_some_and(|a| a.iter().all(Value::is_number));
            if !(original.is_number() || inner || original.is_boolean()) {
                continue;
            }
            for value in values.iter().skip(if full { 0 } else { i % 3 }).step_by(if full { 1 } else { 3 }) {
                let mut changed = sound.clone();
                changed[field] = value.clone();
                std::fs::write(model.path(&file), changed.to_string()).unwrap();
                match model.load() {
                    Ok(pipeline) => match draw(&pipeline, &r) {
                        Ok(picture) => assert_eq!(picture.len(), before.len(), "{file}: {field}: {value}"),
                        Err(error) => assert!(!matches!(error, Error::Graph(_)), "{file}: {field}: {value}: {error}"),
                    },
                    Err(Error::Config { path, .. }) => {
                        assert!(path.ends_with(&file));
                        refusals += 1;
                    }
                    Err(Error::Tensors { .. } | Error::Mismatch { .. }) => refusals += 1,
                    Err(other) => panic!("{file}: {field}: {value}: {other}"),
                }
            }
        }
        let no_object = ["[]", "null", "\"x\""];
        for text in ["", "{", &"[".repeat(100_000)].into_iter().chain(no_object) {
            std::fs::write(model.path(&file), text).unwrap();
            if part == "image_encoder" && no_object.contains(&text) {
                // Another model's configuration may lie there: sizes are read off the tensors.
                assert_eq!(draw(&model.load().unwrap(), &r).unwrap(), before);
                continue;
            }
            let error = refused(model.load(), text);
            assert!(matches!(error, Error::Malformed { .. }), "{file}: {error}");
        }
        std::fs::write(model.path(&file), sound.to_string()).unwrap();
    }
    assert!(refusals > 100, "{refusals}");
    assert_eq!(draw(&model.load().unwrap(), &r).unwrap(), before);
}

/// The values that the catalogue names are errors of the configuration itself, before any tensor is looked at.
#[test]
fn hostile_sizes_are_named() {
    let model = Model::folder();
    for (part, field, value) in [
        ("unet", "block_out_channels", json!([1_000_000_000, 64, 64])),
        ("unet", "attention_head_dim", json!(0)),
        ("unet", "layers_per_block", json!(1_000_000_000)),
        ("unet", "layers_per_block", json!(1_000_000)),
        ("unet", "transformer_layers_per_block", json!(1_000_000_000)),
        ("unet", "transformer_layers_per_block", json!([1, 1, 1_000_000])),
        ("unet", "norm_num_groups", json!(0)),
        ("unet", "sample_size", json!(-8)),
        ("unet", "addition_time_embed_dim", json!(7)),
        ("unet", "freq_shift", json!(4)),
        ("vae", "block_out_channels", json!([1_000_000_000, 16, 16, 16])),
        ("vae", "layers_per_block", json!(1_000_000)),
        ("vae", "norm_num_groups", json!(0)),
        ("vae", "latent_channels", json!("4")),
        ("vae", "out_channels", json!(4)),
        ("vae", "scaling_factor", json!(0)),
        ("vae", "latents_mean", json!([0.5])),
        ("vae", "shift_factor", json!(0.1)),
        ("vae", "_class_name", json!("AutoencoderTiny")),
        ("text_encoder", "num_attention_heads", json!(0)),
        ("text_encoder", "num_hidden_layers", json!(1_000_000)),
        ("text_encoder_2", "vocab_size", json!(-1)),
        ("text_encoder_2", "max_position_embeddings", json!(0)),
        ("image_encoder", "patch_size", json!(0)),
        ("image_encoder", "image_size", json!(1_000_000_000)),
        ("image_encoder", "num_hidden_layers", json!(1_000_000_000)),
    ] {
        let file = format!("{part}/config.json");
        let sound = std::fs::read(model.path(&file)).unwrap();
        model.edit_json(&file, |v| v[field] = value.clone());
        let error = refused(model.load(), field);
        let text = error.to_string();
        assert!(matches!(&error, Error::Config { field: f, .. } if f == field), "{file}: {field}: {text}");
        std::fs::write(model.path(&file), sound).unwrap();
    }
    // No positions for the tokens that the tokenizer gives.
    model.edit_json("text_encoder/config.json", |v| v["max_position_embeddings"] = json!(64));
    model.edit("text_encoder/model.safetensors", |t| {
        let name = "text_model.embeddings.position_embedding.weight";
        let cut = t[name].shaped(&[64, 32]);
        t.insert(name.into(), cut);
    });
    let text = refused(model.load(), "64 positions").to_string();
    assert!(text.contains("64 positions") && text.contains("model_max_length"), "{text}");
}

#[test]
fn tokenizer_folders() {
    let model = Model::folder();
    let before = draw(&model.load().unwrap(), &request()).unwrap();
    for (file, text) in [
        ("tokenizer/vocab.json", ""),
        ("tokenizer/vocab.json", "{}"),
        ("tokenizer/vocab.json", r#"{"a": 4000000000}"#),
        ("tokenizer/vocab.json", r#"{"a": -1}"#),
        ("tokenizer/vocab.json", "<html>"),
        ("tokenizer/merges.txt", "#version: 0.2\nno such</w>\n"),
        ("tokenizer/merges.txt", "\u{1b}[31m\n"),
        ("tokenizer/tokenizer_config.json", "["),
        ("tokenizer/tokenizer_config.json", r#"{"model_max_length": 0}"#),
        ("tokenizer/tokenizer_config.json", r#"{"model_max_length": 1e30}"#),
        ("tokenizer/tokenizer_config.json", r#"{"model_max_length": 60000}"#),
        ("tokenizer/tokenizer_config.json", r#"{"model_max_length": 32}"#),
        ("tokenizer_2/tokenizer.json", "{}"),
        ("tokenizer_2/tokenizer.json", r#"{"model": {"type": "BPE", "vocab": {"a": 7}, "merges": []}}"#),
        ("tokenizer_2/vocab.json", "[]"),
    ] {
        let path = model.path(file);
        let sound = std::fs::read(&path).ok();
        std::fs::write(&path, text).unwrap();
        let error = refused(model.load(), &format!("{file}: {text}"));
        let typed = matches!(error, Error::Malformed { .. } | Error::Mismatch { .. } | Error::Config { .. });
        assert!(typed, "{file}: {text}: {error}");
        match sound {
            Some(bytes) => std::fs::write(&path, bytes).unwrap(),
            None => std::fs::remove_file(&path).unwrap(),
        }
    }
    for file in ["tokenizer/vocab.json", "tokenizer/merges.txt"] {
        let sound = std::fs::read(model.path(file)).unwrap();
        std::fs::remove_file(model.path(file)).unwrap();
        refused(model.load(), file);
        std::fs::write(model.path(file), sound).unwrap();
    }
    assert_eq!(draw(&model.load().unwrap(), &request()).unwrap(), before);
    // CLIP's own vocabulary is too large for this text encoder.
    std::fs::remove_dir_all(model.path("tokenizer")).unwrap();
    let text = refused(model.load(), "no tokenizer").to_string();
    assert!(text.contains("knows 1000 tokens, its tokenizer 49408"), "{text}");
}

/// A picture that memory cannot hold is refused at once, with a size that would fit.
#[cfg(target_os = "linux")]
#[test]
fn too_large_for_memory() {
    let pipeline = Model::folder().load().unwrap();
    let before = draw(&pipeline, &request()).unwrap();
    let have = braid::memory::available().unwrap();
    let mut r = request();
    (r.width, r.height) = (Some(16_384), Some(16_384));
    // The small VAE takes 43 GB for it.
    if have < 38 << 30 {
        let begin = std::time::Instant::now();
        match refused(draw(&pipeline, &r), "16384x16384") {
            Error::Memory { stage: "decode", need, have, hint } => {
                assert!(need > have, "{need} {have}");
                assert!(hint.contains("would fit") || hint.contains("smaller"), "{hint}");
            }
            other => panic!("{other}"),
        }
        assert!(begin.elapsed().as_secs_f64() < 2.0, "{:?}", begin.elapsed());
    }
    // 1000 pictures of 805 MB.
    r.count = 1000;
    assert!(matches!(refused(draw(&pipeline, &r), "many"), Error::Memory { .. }));
    // Embeddings whose keys and values fill the memory.
    let mut r = request();
    let one = r.images[0].references[0].clone();
    let bytes = one_image_bytes();
    let count = (have / bytes + 1) as usize;
    if count < 2_000_000 {
        r.images[0].references = vec![one; count];
        match refused(draw(&pipeline, &r), "references") {
            Error::Memory { stage: "condition", .. } => {}
            other => panic!("{other}"),
        }
    }
    assert_eq!(draw(&pipeline, &request()).unwrap(), before);
}

/// Bytes of keys and values of one reference in the small model: 4 tokens, 2 rows, twice the widths of 16 layers.
#[cfg(target_os = "linux")]
fn one_image_bytes() -> u64 {
    4 * 2 * 2 * (5 * 32 + 12 * 64) * 4
}
