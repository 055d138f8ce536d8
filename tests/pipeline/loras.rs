//! LoRAs: files that cannot be, and scales that change between requests.

use super::*;
use braid::error::Field;
use common::{Tensor, Tensors};

const KOHYA: &str = "kohya.safetensors";

/// A small model with a LoRA for UNet and both text encoders, and its adapter.
fn model() -> Model {
    Model::golden("diffusers", "lora-kohya")
}

fn options(model: &Model, loras: &[&str]) -> PipelineOptions {
    loras.iter().fold(model.options(), |options, lora| options.with_lora(model.path(lora)))
}

fn with(scales: &[f32]) -> Request {
    request().with_lora_scales(scales)
}

/// Another scale compiles nothing, and reads no file: they are gone by then.
#[test]
fn scales_change_between_requests() {
    let model = model();
    let options = options(&model, &[KOHYA, KOHYA]).with_mmap(false);
    let pipeline = Pipeline::load(&options).unwrap();
    assert_eq!(pipeline.num_loras(), 2);
    let (path, plain) = (model.dir.path().to_owned(), model.load().unwrap());
    let without = generate(&plain, &request()).unwrap();
    drop((plain, model));
    assert!(!path.exists());
    let (first, count) = compiled(|| generate(&pipeline, &with(&[0.7, 0.1])).unwrap());
    assert!(count >= 5);
    let image = |scales: &[f32]| {
        let (image, count) = compiled(|| generate(&pipeline, &with(scales)).unwrap());
        assert_eq!(count, 0, "{scales:?}");
        image
    };
    // Two of one file add up, and what is missing is 1.
    assert!(close(&image(&[0.4, 0.4]), &first) && close(&image(&[-0.2, 1.0]), &first));
    assert_eq!((image(&[]), image(&[1.0])), (image(&[1.0, 1.0]), image(&[1.0, 1.0])));
    assert!(!close(&image(&[0.8, 0.1]), &first) && !close(&image(&[-0.7, -0.1]), &first));
    // A scale of 0 is the model alone, to the byte, and so are two that cancel, nearly.
    assert_eq!(image(&[0.0, 0.0]), without);
    assert!(close(&image(&[0.7, -0.7]), &without));
    assert_eq!(image(&[0.7, 0.1]), first);
}

#[test]
fn scales_that_cannot_be() {
    let model = model();
    let pipeline = Pipeline::load(&options(&model, &[KOHYA])).unwrap();
    for scales in [&[1.0, 1.0][..], &[f32::NAN], &[f32::INFINITY]] {
        let error = refused(generate(&pipeline, &with(scales)), "lora_scales");
        assert!(matches!(error, Error::Parameter { field: Field::LoraScales, .. }), "{error}");
    }
    let error = refused(generate(&model.load().unwrap(), &with(&[1.0])), "lora_scales");
    assert!(error.to_string().contains("1 scale for 0 LoRAs"), "{error}");
    let huge = refused(generate(&pipeline, &with(&[1e38])), "a scale that overflows");
    assert!(matches!(huge, Error::NotFinite { .. }), "{huge}");
}

/// Files that are no LoRA, one of another method, for another model, damaged: each is refused by name.
#[test]
fn files_that_cannot_be() {
    let model = model();
    let tensor = |shape: &[usize]| Tensor {
        dtype: safetensors::Dtype::F32,
        shape: shape.to_vec(),
        bytes: vec![0; 4 * shape.iter().product::<usize>()],
    };
    let first = |tensors: &Tensors| tensors.keys().find(|name| name.ends_with(".lora_down.weight")).unwrap().clone();
    type Change<'a> = &'a dyn Fn(&mut Tensors);
    let other = "lora_unet_down_blocks_2_attentions_1_transformer_blocks_0_attn2_to_k";
    let cases: [(Change<'_>, &[&str]); 8] = [
        (&|t| drop(t.insert("lora_unet_x.dora_scale".into(), tensor(&[1]))), &["DoRA"]),
        (&|t| drop(t.insert("lora_unet_x.hada_w1_a".into(), tensor(&[1]))), &["LoHa"]),
        (&|t| drop(t.insert("lora_unet_x.lokr_w1".into(), tensor(&[1]))), &["LoKr"]),
        (&|t| drop(t.insert("lora_unet_x.on_input".into(), tensor(&[1]))), &["IA3"]),
        (
            &|t| drop(t.insert(format!("{other}.lora_down.weight"), tensor(&[4, 768]))),
            &["Stable Diffusion 1.x", "768 wide"],
        ),
        (&|t| *t = t.iter().map(|(n, x)| (format!("lora_unet_x{n}"), x.clone())).collect(), &["none of the LoRA's"]),
        (&|t| drop(t.remove(&first(t))), &["not its right"]),
        (
            &|t| {
                let name = first(t);
                let shape = [&[7][..], &t[&name].shape[1..]].concat();
                *t.get_mut(&name).unwrap() = tensor(&shape);
            },
            &["1 of", "other shapes"],
        ),
    ];
    for (i, (change, texts)) in cases.into_iter().enumerate() {
        std::fs::copy(model.path(KOHYA), model.path("bad.safetensors")).unwrap();
        model.edit("bad.safetensors", change);
        let error = refused(Pipeline::load(&options(&model, &["bad.safetensors"])), "a LoRA");
        let text = error.to_string();
        assert!(matches!(error, Error::Mismatch { .. } | Error::Malformed { .. }), "{i}: {text}");
        assert!(text.contains("bad.safetensors") && texts.iter().all(|part| text.contains(part)), "{i}: {text}");
    }
    let error = refused(Pipeline::load(&options(&model, &["ip-adapter.safetensors"])), "an adapter");
    assert!(error.to_string().contains("IP-Adapter"), "{error}");
    let error = refused(Pipeline::load(&options(&model, &["vae/diffusion_pytorch_model.safetensors"])), "a VAE");
    assert!(error.to_string().contains("this is a VAE"), "{error}");
    let error = refused(Pipeline::load(&options(&model, &["absent.safetensors"])), "nothing");
    assert!(matches!(error, Error::Io { .. }), "{error}");
    // NaN within is found when it shows.
    std::fs::copy(model.path(KOHYA), model.path("nan.safetensors")).unwrap();
    model.edit("nan.safetensors", |t| t.values_mut().next().unwrap().poison(f32::NAN, Some(0)));
    let loaded = Pipeline::load(&options(&model, &["nan.safetensors"]));
    let error = loaded.map_or_else(|error| error, |pipeline| refused(generate(&pipeline, &request()), "NaN"));
    assert!(error.to_string().contains("nan.safetensors"), "{error}");
}

/// Names that are no module are told, once a file.
#[test]
fn unknown_modules_are_told() {
    let model = model();
    model.edit(KOHYA, |tensors| {
        for name in ["lora_unet_y.lora_down.weight", "lora_unet_y.lora_up.weight"] {
            let tensor = tensors.values().next().unwrap().clone();
            tensors.insert(name.into(), tensor);
        }
    });
    let (pipeline, told) = warnings(|| Pipeline::load(&options(&model, &[KOHYA])));
    pipeline.unwrap();
    let told: Vec<_> = told.iter().filter(|line| line.contains("lora_unet_y")).collect();
    assert!(told.len() == 1 && told[0].contains("1 of the LoRA's"), "{told:?}");
}
