//! Requests that begin with an image: what is refused, what is compiled, and what a mask keeps. The arithmetic is compared with
//! diffusers in tests/goldens.rs.

use super::requests::{Change, refuses};
use super::*;
use braid::Compat;
use braid::device::cpu::Cpu;
use braid::error::Field;
use braid::pipeline::ModelTensors;
use braid::schedulers::{SchedulerConfig, SchedulerKind};
use braid::synthetic::{Sizes, in_memory};
use braid::weights::Weights;

fn picture(width: usize, height: usize, seed: usize) -> Image {
    let rgb = (0..width * height * 3).map(|i| ((i + seed).wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    Image::new(width, height, rgb).unwrap()
}

/// White on its left half.
fn mask(width: usize, height: usize) -> Image {
    let row = |x: usize| [if 2 * x < width { 255 } else { 0 }; 3];
    Image::new(width, height, (0..height).flat_map(|_| (0..width).flat_map(row)).collect()).unwrap()
}

fn plain(value: u8) -> Image {
    Image::new(8, 8, vec![value; 192]).unwrap()
}

/// Two of four steps on an image of the request's size.
fn begun() -> Request {
    let mut r = request();
    (r.steps, r.strength, r.init_image) = (4, Some(0.5), Some(picture(32, 32, 1)));
    r
}

fn stage(pipeline: &Pipeline, request: &Request, name: &str) -> Vec<f32> {
    let request = request.clone().with_capture_intermediates(true);
    pipeline.generate(&request).unwrap().intermediates[name].data.clone()
}

#[test]
fn impossible_combinations() {
    let pipeline = Model::folder().load().unwrap();
    let small: Change<'_> = &|r| (r.width, r.height, r.init_image) = (None, None, Some(picture(7, 40, 1)));
    let bad: [(Field, Change<'_>); 12] = [
        (Field::Strength, &|r| r.init_image = None),
        (Field::Mask, &|r| (r.init_image, r.strength, r.mask) = (None, None, Some(mask(32, 32)))),
        (Field::Strength, &|r| r.strength = Some(-0.1)),
        (Field::Strength, &|r| r.strength = Some(1.000_001)),
        (Field::Strength, &|r| r.strength = Some(f64::NAN)),
        (Field::Strength, &|r| r.strength = Some(0.0)),
        (Field::Strength, &|r| r.strength = Some(0.249)),
        (Field::Strength, &|r| (r.strength, r.mask) = (Some(0.0), Some(mask(32, 32)))),
        (Field::InitImage, small),
        (Field::Width, &|r| r.width = Some(33)),
        (Field::Noise, &|r| r.noise = Some(vec![0.0; 9 * 16])),
        (Field::Steps, &|r| r.steps = 0),
    ];
    refuses(&pipeline, &begun(), &bad);
    let mut r = begun();
    (r.init_image, r.steps) = (None, 2);
    let text = refused(generate(&pipeline, &r), "strength").to_string();
    assert_eq!(text, "strength: it is the part of the steps that is run on an image; give init_image or leave it out");
    r = begun();
    r.strength = Some(0.1);
    let text = refused(generate(&pipeline, &r), "strength").to_string();
    assert_eq!(text, "strength: 0.1 of 4 steps is less than one; give at least 0.250");
}

/// A single file in memory whose UNet takes so many channels.
fn single_file(channels: usize, compat: Compat) -> (Weights, braid::Result<Pipeline>) {
    const CONV: &str = "model.diffusion_model.input_blocks.0.0.weight";
    let mut specs = Sizes::small().checkpoint();
    specs.iter_mut().filter(|spec| spec.name == CONV).for_each(|spec| spec.shape[1] = channels);
    let checkpoint = in_memory("made", &specs).unwrap();
    let tensors = ModelTensors { checkpoint: checkpoint.clone(), ..ModelTensors::default() };
    let options = PipelineOptions::new("unread").with_compat(compat);
    (checkpoint, Pipeline::from_tensors(&tensors, &options, Some(Box::new(Cpu::new(Some(1))))))
}

/// DiffSynth takes the mean of the VAE's distribution, draws the noise alone, runs all steps, and has no inpainting.
#[test]
fn diffsynth_profile() {
    let pipeline = single_file(4, Compat::diffsynth()).1.unwrap();
    let mut r = begun().with_init_image(picture(64, 64, 5));
    (r.width, r.height) = (None, None);
    r.image_prompts.clear();
    let init = stage(&pipeline, &r, "init_latents");
    assert_eq!(init, stage(&pipeline, &r.clone().with_seed(99), "init_latents"));
    let mut text = r.clone();
    (text.init_image, text.strength, text.width, text.height) = (None, None, Some(64), Some(64));
    assert_eq!(stage(&pipeline, &r, "noise"), stage(&pipeline, &text, "noise"));
    assert_eq!(pipeline.generate(&r).unwrap().step_seconds.len(), 4);
    // Another scheduler's steps are diffusers'.
    let euler = r.clone().with_scheduler(SchedulerKind::Euler);
    assert_eq!(pipeline.generate(&euler).unwrap().step_seconds.len(), 2);
    let text = refused(generate(&pipeline, &r.clone().with_mask(mask(64, 64))), "mask").to_string();
    assert_eq!(
        text,
        "mask: diffsynth's SDXL has no inpainting that could be followed; leave it out, or use `compat: diffusers`"
    );
}

/// A model with 9 channels needs a mask, and other numbers of channels are no model of ours.
#[test]
fn inpainting_models() {
    let model = Model::golden("diffusers", "inpaint-channels");
    let pipeline = Pipeline::load(&PipelineOptions::new(model.dir.path())).unwrap();
    let mut r = Request::new("a red fox").with_steps(2).with_width(32).with_height(32);
    for image in [None, Some(picture(32, 32, 1))] {
        r.init_image = image;
        let error = refused(generate(&pipeline, &r), "no mask");
        assert!(matches!(&error, Error::Parameter { field: Field::Mask, .. }), "{error}");
        let text = error.to_string();
        assert!(
            text.contains("takes 9 channels") && text.contains("give init_image and mask, or another model"),
            "{text}"
        );
    }
    generate(&pipeline, &r.clone().with_mask(mask(20, 20)).with_strength(0.9)).unwrap();
    model.edit_json("unet/config.json", |v| v["in_channels"] = json!(8));
    model.edit("unet/diffusion_pytorch_model.safetensors", |tensors| {
        let conv = &tensors["conv_in.weight"];
        let shape = [conv.shape[0], 8, 3, 3];
        let cut = conv.shaped(&shape);
        tensors.insert("conv_in.weight".into(), cut);
    });
    let text = refused(Pipeline::load(&PipelineOptions::new(model.dir.path())), "8 channels").to_string();
    assert!(text.contains("this UNet takes 8 channels and gives 4: as many, or 9 in a model for inpainting"), "{text}");
}

/// A single file of 9 channels is one for inpainting, told so by `inspect`; one of 8 is for another task.
#[test]
fn inpainting_file() {
    let load = |channels: usize| {
        let (checkpoint, pipeline) = single_file(channels, Compat::diffusers());
        (braid::inspect::inspect(Path::new("made"), &checkpoint).unwrap(), pipeline)
    };
    let (report, pipeline) = load(9);
    assert!(report.supported && report.family == "an SDXL inpainting checkpoint", "{report}");
    assert!(report.notes.iter().any(|note| note.starts_with("for inpainting")), "{report}");
    let pipeline = pipeline.unwrap();
    let r = Request::new("x").with_steps(2).with_width(64).with_height(32).with_init_image(picture(64, 32, 2));
    assert!(matches!(refused(generate(&pipeline, &r), "no mask"), Error::Parameter { field: Field::Mask, .. }));
    let masked = generate(&pipeline, &r.clone().with_mask(mask(64, 32))).unwrap();
    assert_ne!(generate(&pipeline, &r.with_mask(plain(255))).unwrap(), masked);
    let (report, pipeline) = load(8);
    assert!(!report.supported, "{report}");
    let text = refused(pipeline, "8 channels").to_string();
    assert!(
        text.contains("for another task; its UNet takes 8 channels instead of 4, or of an inpainting model's 9"),
        "{text}"
    );
}

/// A VAE without an encoder still decodes; what is missing or damaged of one is named.
#[test]
fn damaged_encoders() {
    const VAE: &str = "vae/diffusion_pytorch_model.safetensors";
    let model = Model::folder();
    model.edit(VAE, |tensors| tensors.get_mut("encoder.conv_in.weight").unwrap().poison(f32::NAN, Some(3)));
    let pipeline = model.load().unwrap();
    match refused(generate(&pipeline, &begun()), "NaN") {
        Error::NotFinite { stage, hint } => {
            assert!(stage == "the VAE's encoder" && hint.contains("encoder.conv_in.weight"), "{stage}: {hint}");
        }
        other => panic!("{other}"),
    }
    generate(&pipeline, &request()).unwrap();
    model.edit(VAE, |tensors| drop(tensors.remove("encoder.conv_in.weight")));
    let pipeline = model.load().unwrap();
    let text = refused(generate(&pipeline, &begun()), "a tensor").to_string();
    assert!(text.contains("VAE encoder: encoder.conv_in.weight missing"), "{text}");
    generate(&pipeline, &request()).unwrap();
    model.edit(VAE, |tensors| {
        tensors.retain(|name, _| !name.starts_with("encoder.") && !name.starts_with("quant_conv."))
    });
    let pipeline = model.load().unwrap();
    let text = refused(generate(&pipeline, &begun()), "no encoder").to_string();
    assert!(text.starts_with("init_image: the VAE of ") && text.contains("has no encoder"), "{text}");
    generate(&pipeline, &request()).unwrap();
}

/// The first image compiles the VAE's encoder; other strengths, images and masks of its size compile nothing.
#[test]
fn compiled_once() {
    for case in ["euler", "inpaint-channels"] {
        let model = Model::golden("diffusers", case);
        let pipeline = Pipeline::load(&PipelineOptions::new(model.dir.path())).unwrap();
        let mut r = begun();
        r.image_prompts.clear();
        let compiles = |r: &Request| compiled(|| generate(&pipeline, r).unwrap());
        if case == "euler" {
            let (init_image, strength) = (r.init_image.take(), r.strength.take());
            compiles(&r);
            (r.init_image, r.strength) = (init_image, strength);
            // The VAE's encoder; then a mask, which needs nothing new.
            assert_eq!(compiles(&r).1, 1);
        }
        r.mask = Some(mask(32, 32));
        let (mut last, first) = compiles(&r);
        assert_eq!(first > 0, case != "euler", "{case}: {first}");
        let changes: [Change<'_>; 6] = [
            &|r| r.strength = Some(0.75),
            &|r| r.strength = Some(1.0),
            &|r| r.init_image = Some(picture(40, 24, 3)),
            &|r| r.mask = Some(mask(9, 70)),
            &|r| r.scheduler = Some(SchedulerKind::EulerAncestral),
            &|r| r.num_images = 2,
        ];
        for (i, change) in changes.into_iter().enumerate() {
            change(&mut r);
            let (image, compiled) = compiles(&r);
            // Two images at once have a loop of as many rows.
            assert_eq!(compiled, usize::from(i == 5), "{case}: change {i}");
            assert_ne!(image, last, "{case}: change {i} changes nothing");
            last = image;
        }
    }
}

/// A black mask keeps the image's latents to the bit, a white one nothing: then the steps are those of image to image.
#[test]
fn masks_at_their_ends() {
    let pipeline = Model::folder().load().unwrap();
    let kept = begun().with_mask(plain(0));
    assert_eq!(stage(&pipeline, &kept, "latents"), stage(&pipeline, &kept, "init_latents"));
    // 127 of 255 is below one half, 128 above it.
    assert_eq!(generate(&pipeline, &kept).unwrap(), generate(&pipeline, &begun().with_mask(plain(127))).unwrap());
    let anew = begun().with_mask(plain(255));
    assert_eq!(stage(&pipeline, &anew, "latents"), stage(&pipeline, &begun(), "latents"));
    assert_eq!(generate(&pipeline, &anew).unwrap(), generate(&pipeline, &begun().with_mask(plain(128))).unwrap());
    // At strength 1 without a mask the image still counts, with a white one it does not.
    let other = |r: Request| r.with_strength(1.0).with_init_image(picture(32, 32, 9));
    let same = |r: Request| r.with_strength(1.0);
    assert_ne!(generate(&pipeline, &same(begun())).unwrap(), generate(&pipeline, &other(begun())).unwrap());
    assert_eq!(generate(&pipeline, &same(anew.clone())).unwrap(), generate(&pipeline, &other(anew.clone())).unwrap());
    let mut noise = anew.with_strength(1.0);
    (noise.noise, noise.seed) = (Some(stage(&pipeline, &noise, "noise")), 99);
    let mut text = request().with_noise(noise.noise.clone().unwrap());
    text.steps = 4;
    assert_eq!(stage(&pipeline, &noise, "latents"), stage(&pipeline, &text, "latents"));
}

/// Sizes: the image's own, rounded down, without a mask; the model's with one. An image is that of its seed whatever it is made with, and
/// given noise stands for what is drawn.
#[test]
fn sizes_seeds_and_given_noise() {
    let pipeline = Model::folder().load().unwrap();
    let size = |r: &Request| {
        let image = &pipeline.generate(r).unwrap().images[0];
        assert_eq!(pipeline.image_size(r).unwrap(), (image.width(), image.height()));
        (image.width(), image.height())
    };
    let mut r = begun().with_init_image(picture(43, 31, 4));
    (r.width, r.height) = (None, None);
    assert_eq!(size(&r), (40, 24));
    r.height = Some(32);
    assert_eq!(size(&r), (40, 32));
    r.height = None;
    assert_eq!(size(&r.clone().with_mask(mask(43, 31))), pipeline.default_size());
    for mask in [None, Some(mask(32, 32))] {
        let mut r = begun().with_scheduler(SchedulerKind::EulerAncestral).with_num_images(2);
        r.mask = mask;
        let both = pipeline.generate(&r).unwrap().images;
        let second = r.clone().with_seed(r.seed + 1).with_num_images(1);
        assert_eq!(pipeline.generate(&second).unwrap().images[0], both[1]);
        assert_ne!(both[0], both[1]);
        let mut given = begun();
        given.mask = r.mask;
        let plain = generate(&pipeline, &given).unwrap();
        given.noise = Some(stage(&pipeline, &given, "noise"));
        assert_eq!(generate(&pipeline, &given).unwrap(), plain);
    }
    // Each image takes its own part of the noise.
    let mut two = request().with_num_images(2);
    let drawn = generate(&pipeline, &two).unwrap();
    (two.noise, two.seed) = (Some(stage(&pipeline, &two, "noise")), 99);
    assert_eq!(generate(&pipeline, &two).unwrap(), drawn);
}

/// The memory of the VAE's encoder is none on the CPU, where a shape is prepared with it, too.
#[test]
fn prepared_shapes() {
    let pipeline = Model::folder().load().unwrap();
    let mut r = begun().with_init_image(picture(43, 31, 4));
    (r.width, r.height) = (None, None);
    let shape = pipeline.workload_shape(&r).unwrap();
    assert_eq!((shape.width, shape.height, shape.init_image), (Some(40), Some(24), true));
    pipeline.prepare(&shape).unwrap();
    let before = pipeline.device_memory_used();
    generate(&pipeline, &r).unwrap();
    // The text encoders and all others were there.
    assert_eq!(pipeline.device_memory_used(), before);
    assert!(!pipeline.workload_shape(&request()).unwrap().init_image);
}

/// Python's `int(steps * strength)`, in its f64; the first step reads no history; DiffSynth's scheduler runs all steps.
#[test]
fn steps_of_a_strength() {
    for (steps, strength, kept) in
        [(5, 0.6, 3), (10, 0.7, 7), (50, 0.9999, 49), (50, 0.58, 28), (50, 0.29, 14), (3, 1.0, 3), (1000, 0.001, 1)]
    {
        for &kind in SchedulerKind::ALL {
            let config = SchedulerConfig::sdxl_default().with_kind(kind).unwrap();
            let (Ok(whole), Ok(table)) = (config.table(steps), config.image_to_image_table(steps, strength)) else {
                assert!(kind == SchedulerKind::Lcm && steps > 50 || steps == 1000, "{kind} {steps}");
                continue;
            };
            // Some schedulers evaluate the model twice a step, but for the last one.
            let evaluations = if whole.steps.len() == 2 * steps - 1 { 2 } else { 1 };
            let left_out = (steps - kept) * if steps == 1 { 1 } else { evaluations };
            assert_eq!(table.steps.len(), whole.steps.len() - left_out, "{kind}: {strength} of {steps}");
            assert_eq!(table.steps[0].x_from_history, [0.0; 3], "{kind}");
            assert_eq!(table.steps[0].level, whole.steps[left_out].level, "{kind}");
            if !whole.uses_history() {
                assert_eq!(table.steps[1..], whole.steps[left_out + 1..], "{kind}");
            }
            let falling = table.steps.windows(2).all(|w| w[0].level.sigma >= w[1].level.sigma);
            assert!(falling && table.steps.iter().all(|row| row.level.alpha > 0.0), "{kind}");
        }
    }
    let diffsynth = SchedulerConfig::diffsynth();
    let table = diffsynth.image_to_image_table(4, 0.6).unwrap();
    let timesteps: Vec<f32> = table.steps.iter().map(|row| row.timestep).collect();
    assert_eq!(timesteps, [599.0, 399.0, 200.0, 0.0]);
    assert_eq!(diffsynth.image_to_image_table(4, 1.0).unwrap(), diffsynth.table(4).unwrap());
    assert_eq!(diffsynth.image_to_image_table(4, 0.0).unwrap().steps.len(), 1);
    assert_eq!(diffsynth.image_to_image_table(50, 0.0025).unwrap().steps.len(), 2);
    // 0.57 of 1000 is a little less than 570 as a product, and rounded.
    assert_eq!(diffsynth.image_to_image_table(4, 0.57).unwrap().steps[0].timestep, 569.0);
}
