//! Settings that a model states in its several places: obeyed, refused by name, or told. About 4 s.

use super::*;
use braid::inputs::clip_image_processor::{IMAGE_MEAN, IMAGE_STD};
use braid::pipeline::ModelTensors;
use braid::schedulers::SchedulerKind;
use common::{Tensor, Tensors};

const INDEX: &str = "model_index.json";
const SCHEDULER: &str = "scheduler/scheduler_config.json";

/// The kind of scheduler that is used, or the error.
fn kind(model: &Model, r: &Request) -> braid::Result<SchedulerKind> {
    Ok(model.load()?.scheduler_config(r)?.kind())
}

#[test]
fn the_index_names_the_scheduler() {
    let model = Model::folder();
    let r = request();
    // The class in the index, the one in the scheduler's file, what diffusers makes of them.
    for (index, own, expected) in [
        ("EulerAncestralDiscreteScheduler", json!("EulerDiscreteScheduler"), SchedulerKind::EulerAncestral),
        ("EulerDiscreteScheduler", json!("PNDMScheduler"), SchedulerKind::Euler),
        ("EulerDiscreteScheduler", json!(null), SchedulerKind::Euler),
        ("DDIMScheduler", json!("DDIMScheduler"), SchedulerKind::Ddim),
    ] {
        model.edit_json(INDEX, |v| v["scheduler"][1] = json!(index));
        model.edit_json(SCHEDULER, |v| v["_class_name"] = own.clone());
        let (found, told) = warnings(|| kind(&model, &r));
        assert_eq!(found.unwrap(), expected, "{index}, {own}");
        let differs = own.as_str().is_some_and(|own| own != index);
        assert_eq!(told.iter().any(|line| line.contains("which counts")), differs, "{told:?}");
    }
    // Another one is refused by the index, unless the request chooses.
    model.edit_json(INDEX, |v| v["scheduler"][1] = json!("DEISMultistepScheduler"));
    let text = refused(kind(&model, &r), "DEIS").to_string();
    assert!(text.contains(INDEX) && text.contains("DEISMultistepScheduler"), "{text}");
    assert_eq!(kind(&model, &r.clone().with_scheduler(SchedulerKind::Ddim)).unwrap(), SchedulerKind::Ddim);
    // Without a scheduler in the index its own file counts.
    model.edit_json(INDEX, |v| v["scheduler"] = json!([null, null]));
    model.edit_json(SCHEDULER, |v| v["_class_name"] = json!("LCMScheduler"));
    assert_eq!(kind(&model, &r).unwrap(), SchedulerKind::Lcm);
    // A scheduler that is named and missing.
    model.edit_json(INDEX, |v| v["scheduler"] = json!(["diffusers", "EulerDiscreteScheduler"]));
    std::fs::remove_file(model.path(SCHEDULER)).unwrap();
    let text = refused(model.load(), "no scheduler").to_string();
    assert!(text.contains("`scheduler`") && text.contains("scheduler_config.json"), "{text}");
}

/// Models of another noise process: no other scheduler is advised, and none is taken.
#[test]
fn other_noise_processes() {
    let model = Model::folder();
    let sound = [INDEX, SCHEDULER].map(|file| (file, std::fs::read(model.path(file)).unwrap()));
    let edm = ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler", "FlowMatchEulerDiscreteScheduler"];
    let classes = edm.iter().flat_map(|class| [(INDEX, "scheduler", *class), (SCHEDULER, "_class_name", class)]);
    let flow = [(SCHEDULER, "prediction_type", "flow_prediction"), (SCHEDULER, "use_flow_sigmas", "true")];
    for (file, field, value) in classes.chain(flow) {
        model.edit_json(file, |v| match field {
            "scheduler" => v[field][1] = json!(value),
            "use_flow_sigmas" => v[field] = json!(true),
            _ => v[field] = json!(value),
        });
        for scheduler in [None, Some(SchedulerKind::Euler), Some(SchedulerKind::Dpmpp2M)] {
            let mut r = request();
            r.scheduler = scheduler;
            let error = refused(kind(&model, &r), value);
            let text = error.to_string();
            assert!(matches!(&error, Error::Config { field: f, .. } if f == field), "{text}");
            assert!(text.contains("not supported") && !text.contains("choose another"), "{text}");
        }
        sound.iter().for_each(|(file, bytes)| std::fs::write(model.path(file), bytes).unwrap());
    }
    kind(&model, &request()).unwrap();
}

#[test]
fn the_folders_own_feature_extractor() {
    let model = Model::folder();
    let image = Image::new(40, 30, (0..3600).map(|i| (i * 7 % 256) as u8).collect()).unwrap();
    let embeds = || model.load().and_then(|pipeline| pipeline.encode_image(&image));
    let plain = embeds().unwrap();
    let vision: Value =
        serde_json::from_slice(&std::fs::read(model.path("image_encoder/config.json")).unwrap()).unwrap();
    let size = &vision["image_size"];
    // Not named by the index, it does not count, as in diffusers.
    std::fs::create_dir(model.path("feature_extractor")).unwrap();
    let put = |change: &dyn Fn(&mut Value)| {
        let mut value = json!({
            "crop_size": {"height": size, "width": size}, "size": {"shortest_edge": size}, "resample": 3,
            "do_resize": true, "do_center_crop": true, "do_normalize": true, "do_rescale": true,
            "do_convert_rgb": true, "rescale_factor": 1.0 / 255.0, "image_mean": IMAGE_MEAN, "image_std": IMAGE_STD,
        });
        change(&mut value);
        std::fs::write(model.path("feature_extractor/preprocessor_config.json"), value.to_string()).unwrap();
    };
    let half = |v: &mut Value| (v["image_mean"], v["image_std"]) = (json!([0.5, 0.5, 0.5]), json!([0.5, 0.5, 0.5]));
    put(&half);
    assert_eq!(embeds().unwrap(), plain);
    model.edit_json(INDEX, |v| v["feature_extractor"] = json!(["transformers", "CLIPImageProcessor"]));
    let halved = embeds().unwrap();
    let apart = |a: &[f32]| a.iter().zip(&plain).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(apart(&halved) > 1e-3, "{}", apart(&halved));
    put(&|_| {});
    assert!(apart(&embeds().unwrap()) < 1e-5);
    put(&|v| (v["crop_size"], v["size"]) = (size.clone(), size.clone()));
    assert!(apart(&embeds().unwrap()) < 1e-5);
    for (field, value) in [
        ("resample", json!(2)),
        ("do_center_crop", json!(false)),
        ("do_rescale", json!(false)),
        ("rescale_factor", json!(1.0)),
        ("image_mean", json!([0.5, 0.5])),
        ("image_std", json!([0.5, 0.0, 0.5])),
        ("crop_size", json!({"height": 8, "width": 8})),
    ] {
        put(&|v| v[field] = value.clone());
        let error = refused(embeds(), field);
        assert!(matches!(&error, Error::Config { field: f, .. } if f == field), "{error}");
    }
    std::fs::remove_file(model.path("feature_extractor/preprocessor_config.json")).unwrap();
    assert!(refused(model.load(), "missing").to_string().contains("feature_extractor"));
}

/// The index names the text encoders' classes; their own configurations' `architectures` do not count.
#[test]
fn architectures() {
    let model = Model::folder();
    let before = generate(&model.load().unwrap(), &request()).unwrap();
    for value in [json!(["CLIPTextModel"]), json!(null), json!([]), json!("x")] {
        model.edit_json("text_encoder_2/config.json", |v| v["architectures"] = value.clone());
        model.edit_json("text_encoder/config.json", |v| v["architectures"] = json!(["CLIPModel"]));
        assert_eq!(generate(&model.load().unwrap(), &request()).unwrap(), before, "{value}");
    }
}

#[test]
fn unusual_json() {
    let model = Model::folder();
    let sound = std::fs::read(model.path(INDEX)).unwrap();
    std::fs::write(model.path(INDEX), [b"\xef\xbb\xbf", &sound[..]].concat()).unwrap();
    assert!(refused(model.load(), "BOM").to_string().contains("byte order mark"));
    std::fs::write(model.path(INDEX), &sound).unwrap();
    model.edit_json(INDEX, |v| v["_class_name"] = json!(["StableDiffusionXLPipeline"]));
    assert!(refused(model.load(), "a list").to_string().contains("[\"StableDiffusionXLPipeline\"]"));
}

/// Paths that are given in a model's place.
#[test]
fn paths_of_the_hub() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("hub");
    std::fs::create_dir_all(root.join("models--a--b/snapshots/0")).unwrap();
    std::fs::create_dir_all(root.join("models--a--b/refs")).unwrap();
    for (path, part) in [
        (root.clone(), "models--OWNER--NAME/snapshots"),
        (root.join("models--a--b"), "snapshots/"),
        ("owner-of/some-model".into(), "repository's name"),
    ] {
        let text = refused(Pipeline::load(&PipelineOptions::new(&path)), part).to_string();
        assert!(text.contains(part), "{text}");
    }
}

fn scalar(dtype: safetensors::Dtype, bytes: usize) -> Tensor {
    Tensor { dtype, shape: vec![1], bytes: vec![0; bytes] }
}

/// A single file with something added gives the same image, or is refused with the true reason.
#[test]
fn strays_in_a_single_file() {
    use safetensors::Dtype::{BOOL, F32, F64, I64};
    let model = Model::file();
    let file = "sdxl.safetensors";
    let sound = std::fs::read(model.path(file)).unwrap();
    let mut r = request();
    (r.image_prompts, r.width, r.height) = (Vec::new(), Some(64), Some(64));
    let load = || Pipeline::load(&PipelineOptions::new(model.path(file)));
    let (sound_pipeline, lines) = warnings(|| load().unwrap());
    assert!(lines.is_empty(), "{lines:?}");
    let before = generate(&sound_pipeline, &r).unwrap();
    let projection = "conditioner.embedders.1.model.text_projection";
    type Change<'a> = &'a dyn Fn(&mut Tensors);
    let harmless: [(&str, Change<'_>); 4] = [
        ("F64", &|t| drop(t.insert("alphas_cumprod".into(), scalar(F64, 8)))),
        ("LoRA", &|t| drop(t.insert("lora_unet_x.alpha".into(), scalar(F32, 4)))),
        ("adapter", &|t| drop(t.insert("ip_adapter.x".into(), scalar(F32, 4)))),
        ("projection", &|t| {
            let other = t[projection].clone();
            t.insert(format!("{projection}.weight"), other.shaped(&other.shape));
        }),
    ];
    let strays =
        |lines: &[String]| lines.iter().filter(|line| line.contains("1 tensor(s) are no part of an SDXL")).count();
    for (what, change) in harmless {
        model.edit(file, change);
        let (pipeline, lines) = warnings(|| load().unwrap());
        assert_eq!(strays(&lines), usize::from(what != "projection"), "{what}: {lines:?}");
        assert_eq!(generate(&pipeline, &r).unwrap(), before, "{what}");
        std::fs::write(model.path(file), &sound).unwrap();
    }
    // A marker counts by its name, whatever its type.
    for (dtype, bytes) in [(F32, 4), (I64, 8), (BOOL, 1), (F64, 8)] {
        model.edit(file, |t| drop(t.insert("v_pred".into(), scalar(dtype, bytes))));
        assert_ne!(generate(&load().unwrap(), &r).unwrap(), before, "{dtype:?}");
        std::fs::write(model.path(file), &sound).unwrap();
        model.edit(file, |t| drop(t.insert("edm_vpred.sigma_max".into(), scalar(dtype, bytes))));
        assert!(refused(load(), "CosXL").to_string().contains("CosXL"));
        std::fs::write(model.path(file), &sound).unwrap();
    }
    // Quantised, by whom.
    let matrix = "model.diffusion_model.input_blocks.0.0.weight";
    model.edit(file, |t| {
        let old = t[matrix].clone();
        let bytes = vec![0; old.shape.iter().product()];
        t.insert(matrix.into(), Tensor { dtype: safetensors::Dtype::I8, shape: old.shape, bytes });
        t.insert("model.diffusion_model.input_blocks.0.0.SCB".into(), scalar(F32, 4));
    });
    let text = refused(load(), "INT8").to_string();
    assert!(text.contains("quantised (INT8 by bitsandbytes)"), "{text}");
    // A tensor that is needed, of a type that is not read.
    std::fs::write(model.path(file), &sound).unwrap();
    let needed = "model.diffusion_model.out.2.bias";
    model.edit(file, |t| {
        let old = t[needed].clone();
        let bytes = vec![0; 8 * old.shape.iter().product::<usize>()];
        t.insert(needed.into(), Tensor { dtype: F64, shape: old.shape, bytes });
    });
    let text = refused(load(), "F64").to_string();
    assert!(text.contains("conv_out.bias is of type F64"), "{text}");
}

/// Metadata that contradict the markers are told.
#[test]
fn prediction_in_metadata() {
    let model = Model::file();
    let path = model.path("sdxl.safetensors");
    let write = |said: &str| {
        let tensors = read(&path);
        let views = tensors
            .iter()
            .map(|(n, t)| (n, safetensors::tensor::TensorView::new(t.dtype, t.shape.clone(), &t.bytes).unwrap()));
        let metadata = [("modelspec.prediction_type".to_owned(), said.to_owned())].into();
        std::fs::write(&path, safetensors::serialize(views, Some(metadata)).unwrap()).unwrap();
    };
    for (said, told) in [("v", true), ("v_prediction", true), ("epsilon", false)] {
        write(said);
        let (result, lines) = warnings(|| Pipeline::load(&PipelineOptions::new(&path)));
        result.unwrap();
        assert_eq!(lines.iter().any(|l| l.contains("modelspec.prediction_type")), told, "{said}: {lines:?}");
    }
}

/// A marker beside a folder's configuration, which counts, is told where the two differ.
#[cfg(unix)]
#[test]
fn marker_beside_a_configuration() {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo");
    let dir = tempfile::tempdir().unwrap();
    for part in ["model_index.json", "text_encoder", "text_encoder_2", "unet", "vae"] {
        std::os::unix::fs::symlink(demo.join("config").join(part), dir.path().join(part)).unwrap();
    }
    std::fs::create_dir(dir.path().join("scheduler")).unwrap();
    let own = std::fs::read_to_string(demo.join("config").join(SCHEDULER)).unwrap();
    let mut checkpoint = braid::weights::open(&demo.join("sdxl.safetensors"), &Default::default()).unwrap();
    let mut lines = |prediction: &str, marked: bool| {
        std::fs::write(dir.path().join(SCHEDULER), own.replace("v_prediction", prediction)).unwrap();
        if marked && !checkpoint.contains("v_pred") {
            let marker = braid::weights::Weight::from_f32(&[0.0], &[1], "v_pred").unwrap();
            checkpoint.insert("v_pred", marker).unwrap();
        }
        let tensors = ModelTensors { checkpoint: checkpoint.clone(), ..ModelTensors::default() };
        let options = PipelineOptions::new("demo").with_config(dir.path());
        let (pipeline, lines) = warnings(|| Pipeline::from_tensors(&tensors, &options, None));
        pipeline.unwrap();
        lines.iter().filter(|line| line.contains("the marker `v_pred`")).count()
    };
    assert_eq!(lines("v_prediction", false), 0);
    assert_eq!(lines("v_prediction", true), 0);
    assert_eq!(lines("epsilon", true), 1);
}

/// transformers writes some image encoders without the prefix of the model's own part.
#[test]
fn image_encoder_without_prefix() {
    let model = Model::folder();
    let image = Image::new(40, 30, vec![90; 3600]).unwrap();
    let before = model.load().unwrap().encode_image(&image).unwrap();
    model.edit("image_encoder/model.safetensors", |tensors| {
        *tensors = std::mem::take(tensors)
            .into_iter()
            .map(|(n, t)| (n.strip_prefix("vision_model.").unwrap_or(&n).to_owned(), t))
            .collect();
    });
    assert_eq!(model.load().unwrap().encode_image(&image).unwrap(), before);
}
