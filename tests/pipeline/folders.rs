//! Parts that do not fit together, and hostile configurations.

use super::*;

#[test]
fn parts_of_different_models() {
    let model = Model::folder();
    let other = Model::file();
    // The adapter of another UNet.
    let text = refused(
        Pipeline::load(&PipelineOptions::new(model.dir.path()).with_adapter(other.path("ip-adapter_sdxl.bin"))),
        "adapter",
    );
    let text = text.to_string();
    assert!(text.contains("ip-adapter_sdxl.bin") && text.contains("another model"), "{text}");
    // The encoder of another adapter: both are named, and what is needed.
    let text =
        refused(Pipeline::load(&model.options().with_clip_vision(other.path("image_encoder"))), "encoder").to_string();
    assert!(text.contains(ADAPTER) && text.contains("24 wide") && text.contains("gives 128"), "{text}");
    // Text encoders of another model.
    let file = model.path("text_encoder_2");
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(model.path("text_encoder").join(name), file.join(name)).unwrap();
    }
    let text = refused(model.load(), "text encoder").to_string();
    assert!(text.contains("text_projection.weight missing"), "{text}");
}

#[test]
fn folders_of_other_pipelines() {
    let model = Model::folder();
    for class in [
        json!("StableDiffusionPipeline"),
        json!("StableDiffusionInpaintPipeline"),
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
    let before = generate(&model.load().unwrap(), &request()).unwrap();
    for (field, value) in [
        ("prediction_type", json!("flow_prediction")),
        ("beta_schedule", json!("sigmoid")),
        ("use_beta_sigmas", json!("x")),
        ("num_train_timesteps", json!(1u64 << 60)),
        ("num_train_timesteps", json!(0)),
        ("beta_start", json!("x")),
        ("trained_betas", json!([0.5, null])),
        ("steps_offset", json!(-1)),
        ("timestep_spacing", json!("\u{1b}[31m")),
    ] {
        model.edit_json(file, |v| v[field] = value.clone());
        let error = refused(model.load().and_then(|p| generate(&p, &request())), field);
        assert!(
            matches!(&error, Error::Config { field: f, path, .. } if f == field && path.ends_with(file)),
            "{error}"
        );
        std::fs::write(model.path(file), &sound).unwrap();
    }
    for text in ["", "[]", "<html>"] {
        std::fs::write(model.path(file), text).unwrap();
        let error = refused(model.load().and_then(|p| generate(&p, &request())), text);
        assert!(matches!(error, Error::Malformed { .. }), "{error}");
    }
    std::fs::write(model.path(file), &sound).unwrap();
    assert_eq!(generate(&model.load().unwrap(), &request()).unwrap(), before);
}

/// Every number of every configuration replaced by hostile ones: no panic, no balloon, and where the value is not the
/// one that the tensors have, an error. All of them with BRAID_LOAD_FULL, else a third.
#[test]
fn hostile_configurations() {
    let model = Model::folder();
    let mut r = request();
    (r.steps, r.width, r.height) = (1, Some(16), Some(16));
    let before = generate(&model.load().unwrap(), &r).unwrap();
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
                    Ok(pipeline) => match generate(&pipeline, &r) {
                        Ok(image) => assert_eq!(image.len(), before.len(), "{file}: {field}: {value}"),
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
                assert_eq!(generate(&model.load().unwrap(), &r).unwrap(), before);
                continue;
            }
            let error = refused(model.load(), text);
            assert!(matches!(error, Error::Malformed { .. }), "{file}: {error}");
        }
        std::fs::write(model.path(&file), sound.to_string()).unwrap();
    }
    assert!(refusals > 100, "{refusals}");
    assert_eq!(generate(&model.load().unwrap(), &r).unwrap(), before);
}

/// The values that the catalogue names are errors of the configuration itself, before any tensor is looked at.
#[test]
fn hostile_sizes() {
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
    let before = generate(&model.load().unwrap(), &request()).unwrap();
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
    assert_eq!(generate(&model.load().unwrap(), &request()).unwrap(), before);
    // CLIP's own vocabulary is too large for this text encoder.
    std::fs::remove_dir_all(model.path("tokenizer")).unwrap();
    let text = refused(model.load(), "no tokenizer").to_string();
    assert!(text.contains("knows 1000 tokens, its tokenizer 49408"), "{text}");
}

/// A file that is there and cannot be read does not count as absent: a model without it would draw another image.
#[cfg(unix)]
#[test]
fn unreadable_files_that_may_be_absent() {
    use std::os::unix::ffi::OsStrExt;
    let model = Model::folder();
    let mut options = PipelineOptions::new(model.dir.path()).with_adapter(model.path(ADAPTER));
    options.threads = Some(1);
    assert!(Pipeline::load(&options).is_ok());
    let pipe = |path: &Path| {
        let name = std::ffi::CString::new(path.as_os_str().as_bytes()).unwrap();
        // SAFETY: the name ends with a zero byte.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    };
    let link = |path: &Path| std::os::unix::fs::symlink("nothing", path).unwrap();
    let folder = |path: &Path| std::fs::create_dir(path).unwrap();
    let file = |path: &Path| std::fs::write(path, "").unwrap();
    let of_files: [&dyn Fn(&Path); 3] = [&link, &folder, &pipe];
    let of_folders: [&dyn Fn(&Path); 3] = [&link, &file, &pipe];
    for (name, others) in [
        ("scheduler/scheduler_config.json", of_files),
        ("scheduler", of_folders),
        ("image_encoder/config.json", of_files),
        ("image_encoder", of_folders),
        ("tokenizer/tokenizer_config.json", of_files),
        ("tokenizer/special_tokens_map.json", of_files),
        ("tokenizer/added_tokens.json", of_files),
        ("tokenizer/tokenizer.json", of_files),
        ("tokenizer", of_folders),
        ("tokenizer_2", of_folders),
    ] {
        let (path, aside) = (model.path(name), model.path("aside"));
        let was_there = std::fs::rename(&path, &aside).is_ok();
        for (kind, put) in others.iter().enumerate() {
            put(&path);
            let error = refused(Pipeline::load(&options), &format!("{name}, {kind}")).to_string();
            assert!(error.starts_with(&path.display().to_string()), "{name}, {kind}: {error}");
            match path.symlink_metadata().unwrap().is_dir() {
                true => std::fs::remove_dir(&path).unwrap(),
                false => std::fs::remove_file(&path).unwrap(),
            }
        }
        if was_there {
            std::fs::rename(&aside, &path).unwrap();
        }
    }
    assert!(Pipeline::load(&options).is_ok());
}
