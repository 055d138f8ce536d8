//! Small models through the whole pipeline, stage by stage, against what the peers computed for them.
//!
//! tools/goldens/README.md says what a case holds and how to make it anew.

#![allow(clippy::unwrap_used)]

#[path = "common/case.rs"]
mod case;
#[path = "common/demo_goldens.rs"]
mod demo_goldens;
#[path = "common/half_precision_limits.rs"]
mod half_precision_limits;

use braid::tensor::DType;
use braid::{Compat, Pipeline};
use case::{Case, goldens, stages};

fn relative(got: &[f32], want: &[f32]) -> f64 {
    let square = |v: f32| f64::from(v) * f64::from(v);
    let norm: f64 = want.iter().map(|w| square(*w)).sum();
    let error: f64 = got.iter().zip(want).map(|(g, w)| square(g - w)).sum();
    // Where the peer has zeros there must be zeros.
    if norm == 0.0 { if error == 0.0 { 0.0 } else { f64::INFINITY } } else { (error / norm).sqrt() }
}

/// Runs a case; the worst relative error of each stage.
fn check(profile: &str, name: &str) {
    let case = Case::open(profile, name);
    let dir = tempfile::tempdir().unwrap();
    braid::synthetic::from_recipe(&case.recipe(), dir.path()).unwrap();
    let pipeline = Pipeline::load(&case.options(dir.path())).unwrap();
    let request = case.request();
    let output = pipeline.generate(&request).unwrap();
    let mut report = String::new();
    let mut failed = false;
    for (stage, want) in stages(&case.folder.join("stages.safetensors")) {
        let Some(got) = output.intermediates.get(&stage) else {
            report += &format!("\n  {stage}: missing");
            failed = true;
            continue;
        };
        assert_eq!(got.shape, want.shape, "{name}: {stage}");
        let worst = got.data.iter().zip(&want.data).map(|(g, w)| (g - w).abs()).fold(0f32, f32::max);
        let error = relative(&got.data, &want.data);
        let good = match stage.as_str() {
            "noise" => worst <= 2e-6,
            "image" => error <= 1e-4 && worst <= 1.0 / 255.0,
            _ => error <= 1e-4,
        };
        failed |= !good;
        report += &format!("\n  {stage}: relative {error:.1e}, worst {worst:.1e}{}", if good { "" } else { "  <--" });
    }
    println!("{profile}/{name}:{report}");
    assert!(!failed, "{profile}/{name}:{report}");
    assert_eq!(output.images.len(), request.num_images);
    // The image is the image stage, rounded as the profile does.
    let compat: Compat = profile.parse().unwrap();
    let rounded =
        |v: &f32| if compat.truncates_pixels { (v * 255.0) as u8 } else { (v * 255.0).round_ties_even() as u8 };
    let image = &output.intermediates["image"];
    let pixels = image.data.len() / request.num_images;
    for (decoded, image) in output.images.iter().zip(image.data.chunks_exact(pixels)) {
        let wrong = decoded.rgb().iter().zip(image).filter(|(p, v)| p.abs_diff(rounded(v)) > 0).count();
        assert_eq!(wrong, 0);
    }
}

macro_rules! cases {
    ($profile:ident: $($name:ident = $folder:literal),* $(,)?) => {
        mod $profile {
            $(#[test]
            fn $name() {
                super::check(stringify!($profile), $folder);
            })*

            #[test]
            fn case_list() {
                let listed = [$($folder),*];
                for entry in std::fs::read_dir(super::goldens(stringify!($profile))).unwrap() {
                    let entry = entry.unwrap();
                    let name = entry.file_name().into_string().unwrap();
                    if entry.path().join("case.json").exists() {
                        assert!(listed.contains(&name.as_str()), "{name} is not tested");
                    }
                }
            }
        }
    };
}

cases! { diffusers:
    add_from_the_second_step = "add-from-the-second-step",
    average_negative = "average-negative",
    blocks_composition = "blocks-composition",
    blocks_precise = "blocks-precise",
    blocks_precise_add = "blocks-precise-add",
    blocks_strong = "blocks-strong",
    blocks_strong_and_composition = "blocks-strong-and-composition",
    masks = "masks",
    masks_two_adapters = "masks-two-adapters",
    weights_concat = "weights-concat",
    weights_two_adapters = "weights-two-adapters",
    compel = "compel",
    compel_rows = "compel-rows",
    ddim_style = "ddim-style",
    dpmpp_2m_sde_exponential = "dpmpp-2m-sde-exponential",
    dpmpp_karras_two_images = "dpmpp-karras-two-images",
    embeddings = "embeddings",
    embeddings_rows = "embeddings-rows",
    euler = "euler",
    euler_a_two_adapters = "euler-a-two-adapters",
    flags_over_folder = "flags-over-folder",
    full_vocabulary_long = "full-vocabulary-long",
    full_vocabulary_unicode = "full-vocabulary-unicode",
    heun_beta = "heun-beta",
    img2img_ancestral = "img2img-ancestral",
    img2img_dpmpp = "img2img-dpmpp",
    img2img_euler = "img2img-euler",
    img2img_lcm_adapter = "img2img-lcm-adapter",
    inpaint_blend = "inpaint-blend",
    inpaint_blend_strength_1 = "inpaint-blend-strength-1",
    inpaint_channels = "inpaint-channels",
    inpaint_channels_strength_1 = "inpaint-channels-strength-1",
    jpeg = "jpeg",
    lcm_unguided = "lcm-unguided",
    long_prompt_weights = "long-prompt-weights",
    lora_kohya = "lora-kohya",
    lora_peft_two = "lora-peft-two",
    lora_text = "lora-text",
    plus = "plus",
    plus_average = "plus-average",
    plus_masks = "plus-masks",
    plus_two_adapters = "plus-two-adapters",
    prompt_2_sizes = "prompt-2-sizes",
    pruned = "pruned",
    pruned_without_middle = "pruned-without-middle",
    saved_by_transformers_5 = "saved-by-transformers-5",
    style_layout_and_zero = "style-layout-and-zero",
    taesd = "taesd",
    taesd_img2img = "taesd-img2img",
    tiles = "tiles",
    tiles_img2img = "tiles-img2img",
    v_trailing_rescale = "v-trailing-rescale",
    vae_file = "vae-file",
    vae_folder_img2img = "vae-folder-img2img",
    wide = "wide",
}

cases! { diffsynth:
    instant_style = "instant_style",
    long_prompt = "long_prompt",
    one_image = "one_image",
    seven_steps = "seven_steps",
    two_images = "two_images",
    unguided = "unguided",
}

/// The CPU's products in bf16, from the same noise, within the limits that tests/cuda has for this type.
mod bf16 {
    use super::half_precision_limits::{ASKED, of_diffusers};
    use super::*;
    use braid::device::cpu::Cpu;

    /// Relative L2 of the latents and dB of the image.
    fn run(name: &str, dtype: DType, vae: Option<DType>) -> (f64, f64) {
        let case = Case::open("diffusers", name);
        let dir = tempfile::tempdir().unwrap();
        braid::synthetic::from_recipe(&case.recipe(), dir.path()).unwrap();
        let mut options = case.options(dir.path()).with_dtype(dtype);
        options.vae_dtype = vae;
        let output = Pipeline::load(&options).unwrap().generate(&case.request()).unwrap();
        let want: std::collections::HashMap<_, _> =
            stages(&case.folder.join("stages.safetensors")).into_iter().collect();
        let bytes: Vec<u8> = want["image"].data.iter().map(|v| (v * 255.0).round_ties_even() as u8).collect();
        let got: Vec<u8> = output.images.iter().flat_map(|image| image.rgb()).copied().collect();
        let latents = relative(&output.intermediates["latents"].data, &want["latents"].data);
        (latents, demo_goldens::psnr(&got, &bytes))
    }

    /// The beginning of a list: two of it where plain code takes seconds for each.
    fn some(all: usize) -> usize {
        if Cpu::instructions() == "portable" { all.min(2) } else { all }
    }

    #[test]
    fn golden_cases() {
        let names = [
            "euler",
            "ddim-style",
            "v-trailing-rescale",
            "lcm-unguided",
            "compel",
            "lora-kohya",
            "embeddings",
            "plus",
            "plus-two-adapters",
            "masks",
            "img2img-euler",
            "inpaint-channels",
            "taesd",
            "tiles",
        ];
        for name in &names[..some(names.len())] {
            let (latents, psnr) = run(name, DType::BF16, None);
            let (most, least) = of_diffusers(name).map_or(ASKED[1], |own| (1.5 * own[1].0, own[1].1 - 3.0));
            println!("{name} in bf16: latents {latents:.1e} of {most:.1e}, {psnr:.1} dB of {least:.1}");
            assert!(latents > 1e-4, "{name}: latents {latents:.1e} are f32's");
            assert!(latents <= most && psnr >= least, "{name}: latents {latents:.1e}, {psnr:.1} dB");
        }
    }

    /// The VAE has a type of its own: in bf16 after a UNet in f32, and the reverse, which changes no latents.
    #[test]
    fn vae_types() {
        let (latents, psnr) = run("ddim-style", DType::F32, Some(DType::BF16));
        assert!(latents < 1e-4 && psnr > 45.0 && psnr < 65.0, "latents {latents:.1e}, {psnr:.1} dB");
        let [own, other] = [None, Some(DType::F32)].map(|vae| run("ddim-style", DType::BF16, vae));
        assert!(own.0 == other.0 && own.1 != other.1, "{own:?} {other:?}");
    }

    #[test]
    fn bundled_model() {
        let goldens = demo_goldens::DemoGoldens::open();
        let pipeline = Pipeline::load(&demo_goldens::options().with_dtype(DType::BF16)).unwrap();
        for i in 0..some(goldens.count()) {
            let (latents, psnr) = goldens.compare(i, &pipeline);
            println!("bundled model {i} in bf16: latents {latents:.1e}, {psnr:.1} dB");
            assert!(latents <= ASKED[1].0 && psnr >= ASKED[1].1, "{i}: latents {latents:.1e}, {psnr:.1} dB");
        }
    }
}
