//! The VAE of another file: names and kinds of files, what its configuration counts for, what is refused. The arithmetic is compared
//! with diffusers in tests/goldens.rs.

use super::*;
use braid::device::cpu::Cpu;
use braid::pipeline::ModelTensors;
use braid::synthetic::{Sizes, in_memory};
use braid::weights::{Weight, Weights};

const OTHER: &str = "other/other_vae.safetensors";

fn vae_case() -> Model {
    Model::golden("diffusers", "vae-file")
}

fn options(model: &Model, vae: &Path) -> PipelineOptions {
    let mut options = PipelineOptions::new(model.dir.path()).with_vae(vae);
    options.threads = Some(1);
    options
}

fn small() -> Request {
    Request::new("a red fox").with_steps(1).with_width(32).with_height(32)
}

/// The same tensors under other names.
fn renamed(weights: &Weights, rename: impl Fn(&str) -> Option<String>) -> Weights {
    let mut out = Weights::new("other");
    for (name, weight) in weights.iter() {
        if let Some(name) = rename(name) {
            out.insert(name, weight.clone()).unwrap();
        }
    }
    out
}

/// Original names with each prefix, a checkpoint's and diffusers' names: all give the image of the checkpoint's own VAE. A checkpoint
/// without a VAE takes one, too.
#[test]
fn layouts() {
    const PREFIX: &str = "first_stage_model.";
    let checkpoint = in_memory("made", &Sizes::small().checkpoint()).unwrap();
    let image = |checkpoint: &Weights, vae: Option<Weights>| {
        let tensors = ModelTensors { checkpoint: checkpoint.clone(), vae, ..ModelTensors::default() };
        let pipeline =
            Pipeline::from_tensors(&tensors, &PipelineOptions::new("unread"), Some(Box::new(Cpu::new(Some(1)))))?;
        generate(&pipeline, &small())
    };
    let want = image(&checkpoint, None).unwrap();
    let with = |prefix: &str| renamed(&checkpoint, |n| Some(format!("{prefix}{}", n.strip_prefix(PREFIX)?)));
    let diffusers = braid::weights::single_file::vae(&checkpoint).unwrap();
    for file in [with(PREFIX), with("vae."), with(""), checkpoint.clone(), diffusers] {
        assert!(image(&checkpoint, Some(file)).unwrap() == want);
    }
    let without = renamed(&checkpoint, |n| (!n.starts_with(PREFIX)).then(|| n.to_owned()));
    let text = refused(image(&without, None), "no VAE").to_string();
    assert!(text.contains("holds no VAE") && text.contains("or one of another file"), "{text}");
    assert!(image(&without, Some(with(""))).unwrap() == want);
    // Within the checkpoint the prefix may be the other one.
    let other = renamed(&checkpoint, |n| Some(n.replace(PREFIX, "vae.")));
    assert!(image(&other, None).unwrap() == want);
    let report = braid::inspect::inspect(Path::new("other"), &with("vae.")).unwrap();
    assert!(report.supported && report.family == "a VAE", "{report}");
    assert!(report.fits.iter().any(|fit| fit.contains("in the place of its own VAE")), "{report}");
    let mut flux = with("");
    flux = renamed(&flux, |n| (n != "decoder.conv_in.weight").then(|| n.to_owned()));
    flux.insert("decoder.conv_in.weight", Weight::from_f32(&vec![0.0; 64 * 16 * 9], &[64, 16, 3, 3], "w").unwrap())
        .unwrap();
    let text = refused(image(&checkpoint, Some(flux)), "16 channels").to_string();
    assert!(
        text.starts_with(
            "other: this VAE decodes latents of 16 channels, as those of Stable Diffusion 3 and Flux do; "
        ),
        "{text}"
    );
}

/// A file takes what sizes do not tell of the model's own VAE, or of the configuration beside it, which is told where it differs; the
/// configuration of something else beside it has no part.
#[test]
fn configurations() {
    let model = vae_case();
    let path = model.path(OTHER);
    let image = |vae: &Path| {
        let (pipeline, told) = warnings(|| Pipeline::load(&options(&model, vae)));
        (generate(&pipeline.unwrap(), &small()).unwrap(), told)
    };
    let (want, told) = image(&path);
    assert!(told.is_empty(), "{told:?}");
    let own = generate(&Pipeline::load(&PipelineOptions::new(model.dir.path())).unwrap(), &small()).unwrap();
    assert_ne!(own, want);
    std::fs::write(model.path("other/config.json"), r#"{"_class_name": "UNet2DConditionModel"}"#).unwrap();
    assert_eq!(image(&path), (want.clone(), vec![]));
    let mut config: Value =
        serde_json::from_str(&std::fs::read_to_string(model.path("vae/config.json")).unwrap()).unwrap();
    config["block_out_channels"] = json!([16, 16, 24, 32]);
    let write = |config: &Value| std::fs::write(model.path("other/config.json"), config.to_string()).unwrap();
    write(&config);
    assert_eq!(image(&path), (want.clone(), vec![]));
    config["scaling_factor"] = json!(0.18215);
    write(&config);
    let (scaled, told) = image(&path);
    assert_ne!(scaled, want);
    assert!(told.len() == 1 && told[0].contains("scaling factor 0.18215 counts, as in diffusers"), "{told:?}");
    config["_class_name"] = json!("AutoencoderTiny");
    write(&config);
    assert_eq!(image(&path), (want.clone(), vec![]));
    // A folder's own counts whatever its class.
    std::fs::rename(&path, model.path("other/diffusion_pytorch_model.safetensors")).unwrap();
    let text = refused(Pipeline::load(&options(&model, &model.path("other"))), "tiny").to_string();
    assert!(text.contains("AutoencoderTiny"), "{text}");
    std::fs::remove_file(model.path("other/config.json")).unwrap();
    assert_eq!(image(&model.path("other")).0, want);
}

/// The model's own VAE may be missing; what is wrong with the other one is said of it.
#[test]
fn missing_and_damaged() {
    let model = vae_case();
    let path = model.path(OTHER);
    let text = refused(Pipeline::load(&options(&model, model.dir.path())), "a model").to_string();
    assert!(text.contains("the folder of a whole model; give its vae/"), "{text}");
    let text = refused(Pipeline::load(&options(&model, &model.path("unet"))), "a UNet").to_string();
    assert!(text.contains("an SDXL UNet with diffusers' names; SDXL's VAE is needed"), "{text}");
    assert!(matches!(refused(Pipeline::load(&options(&model, Path::new("none"))), "nothing"), Error::Io { .. }));
    let want = generate(&Pipeline::load(&options(&model, &path)).unwrap(), &small()).unwrap();
    model.edit(OTHER, |tensors| tensors.retain(|name, _| !name.contains(".encoder.")));
    std::fs::remove_file(model.path("vae/diffusion_pytorch_model.safetensors")).unwrap();
    model.edit_json("model_index.json", |index| index["vae"] = json!([null, null]));
    let pipeline = Pipeline::load(&options(&model, &path)).unwrap();
    assert_eq!(generate(&pipeline, &small()).unwrap(), want);
    let picture = Image::new(32, 32, vec![9; 32 * 32 * 3]).unwrap();
    let text =
        refused(generate(&pipeline, &small().with_init_image(picture).with_strength(1.0)), "no encoder").to_string();
    assert!(text.contains("other_vae.safetensors has no encoder") && text.contains("or vae of another file"), "{text}");
    model.edit(OTHER, |tensors| {
        tensors.get_mut("first_stage_model.decoder.conv_in.bias").unwrap().poison(f32::NAN, Some(1))
    });
    let pipeline = Pipeline::load(&options(&model, &path)).unwrap();
    match refused(generate(&pipeline, &small()), "NaN") {
        Error::NotFinite { hint, .. } => {
            assert!(hint.contains("other_vae.safetensors: decoder.conv_in.bias"), "{hint}")
        }
        other => panic!("{other}"),
    }
    model.edit(OTHER, |tensors| drop(tensors.remove("first_stage_model.decoder.conv_out.bias")));
    let text = refused(Pipeline::load(&options(&model, &path)), "a tensor").to_string();
    assert!(text.contains("other_vae.safetensors") && text.contains("decoder.conv_out.bias missing"), "{text}");
}
