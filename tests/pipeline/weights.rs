//! Damaged and foreign weight files.

use super::*;

/// NaN or infinity in weights never gives an image, and the error names it. All tensors with BRAID_LOAD_FULL.
#[test]
fn b16_not_finite_weights() {
    let full = std::env::var_os("BRAID_LOAD_FULL").is_some();
    let mut r = request();
    (r.steps, r.width, r.height) = (1, Some(16), Some(16));
    let image = Image::new(40, 30, (0..3600).map(|i| (i * 7 % 256) as u8).collect()).unwrap();
    r.image_prompts = vec![ImagePrompt::new(image)];
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
                match refused(generate(&pipeline, &r), &what) {
                    Error::NotFinite { hint, .. } => assert!(hint.contains(name.as_str()), "{what}: {hint}"),
                    other => panic!("{what}: {other}"),
                }
                std::fs::write(model.path(file), &sound).unwrap();
            }
        }
    }
    generate(&model.load().unwrap(), &r).unwrap();
    // `braid inspect` names them too.
    let name = "image_proj.norm.bias";
    model.edit(ADAPTER, |tensors| tensors.get_mut(name).unwrap().poison(f32::NAN, Some(0)));
    let path = model.path(ADAPTER);
    let weights = braid::weights::open(&path, &Default::default()).unwrap();
    let report = braid::inspect::inspect(&path, &weights).unwrap().to_string();
    assert!(report.contains("NaN") && report.contains("norm.bias"), "{report}");
}

#[test]
fn b17_missing_and_misshaped_tensors() {
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
fn b17_missing_single_file_tensors() {
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
    let before = generate(&model.load().unwrap(), &request()).unwrap();
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
        assert_eq!(generate(&pipeline, &request()).unwrap(), before, "{name}");
        model.edit(file, |tensors| drop(tensors.remove(name)));
    }
}

/// A safetensors file of tiny tensors.
fn tensors(path: &Path, names: &[(&str, &[usize])]) {
    let spec = |(name, shape): &(&str, &[usize])| braid::synthetic::TensorSpec {
        name: (*name).into(),
        shape: shape.to_vec(),
        dtype: braid::synthetic::Stored::Float(braid::tensor::DType::F16),
        scale: 1.0,
        offset: 0.0,
        seed: 0,
    };
    let specs: Vec<_> = names.iter().map(spec).collect();
    braid::synthetic::write_safetensors(path, &specs, &Default::default()).unwrap();
}

#[test]
fn b18_wrong_families() {
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
        (&[(CONV, &[8, 8, 1, 1]), ("conditioner.embedders.1.model.ln_final.bias", &[1])], "another task"),
        (&[("lora_unet_x.lora_down.weight", &[1])], "LoRA"),
        (&[("vision_model.pre_layrnorm.weight", &[1])], "CLIP image encoder"),
        (&[("image_proj.proj.weight", &[1, 1]), ("ip_adapter.1.to_k_ip.weight", &[1, 2])], "base IP-Adapter"),
        (&[("anything", &[1])], "an unknown kind of file"),
    ];
    for (names, family) in as_model {
        tensors(&path, names);
        let error = refused(Pipeline::load(&PipelineOptions::new(&path)), family);
        assert!(matches!(error, Error::Mismatch { .. }) && error.to_string().contains(family), "{family}: {error}");
    }
    let as_adapter: &[(Names<'_>, &str)] = &[
        (&[("image_proj.latents", &[1]), ("ip_adapter.1.to_k_ip.weight", &[1, 768])], "Plus for Stable Diffusion 1.x"),
        (&[("image_proj.proj.3.weight", &[1]), ("ip_adapter.1.to_k_ip.weight", &[1, 64])], "Full Face"),
        (&[("image_proj.norm.weight", &[1]), ("ip_adapter.1.to_k_ip.weight", &[1, 64])], "FaceID"),
        (&[("image_proj.proj.weight", &[1, 1]), ("ip_adapter.1.to_k_ip.weight", &[1, 768])], "Stable Diffusion 1.x"),
        (&[("vision_model.pre_layrnorm.weight", &[1])], "CLIP image encoder"),
        (&[("conditioner.embedders.1.x", &[1])], "SDXL base checkpoint"),
        (&[("anything", &[1])], "an unknown kind of file"),
    ];
    for (names, family) in as_adapter {
        tensors(&path, names);
        let error = refused(Pipeline::load(&PipelineOptions::new(model.dir.path()).with_adapter(&path)), family);
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
        let text = refused(Pipeline::load(&model.options().with_clip_vision(&path)), family).to_string();
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
