//! `braid generate` on small models.

use super::{Case, braid, run, stderr, stdout};
use braid::inputs::image::{AlphaMode, Image};
use safetensors::SafeTensors;
use serde_json::Value;

fn numbers(data: &[u8]) -> Vec<f32> {
    data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// Runs a golden case by its flags; its dump must be the peer's.
fn golden(profile: &str, name: &str) {
    let case = Case::make(profile, name);
    let (dump, out) = (case.path("out.safetensors"), case.path("out.png"));
    let mut args = case.flags();
    args.extend(["--dump", &dump, "-o", &out, "--json"].map(String::from));
    let output = braid().args(&args).output().unwrap();
    assert!(output.status.success() && stderr(&output).is_empty(), "{}", stderr(&output));
    let (got, want) = (std::fs::read(&dump).unwrap(), std::fs::read(case.folder.join("stages.safetensors")).unwrap());
    let (got, want) = (SafeTensors::deserialize(&got).unwrap(), SafeTensors::deserialize(&want).unwrap());
    for (stage, want) in want.tensors() {
        let got = got.tensor(&stage).unwrap();
        assert_eq!((got.shape(), got.dtype()), (want.shape(), safetensors::Dtype::F32), "{name}: {stage}");
        let (got, want) = (numbers(got.data()), numbers(want.data()));
        let norm = want.iter().map(|w| w * w).sum::<f32>().sqrt();
        let error = got.iter().zip(&want).map(|(g, w)| (g - w).powi(2)).sum::<f32>().sqrt();
        assert!(error <= 1e-4 * norm, "{name}: {stage}: {error} of {norm}");
    }
    let request = &case.json["request"];
    let size = |key: &str| request[key].as_u64().unwrap() as usize;
    let first = if request["batch"].as_u64().unwrap_or(1) > 1 { case.path("out-0.png") } else { out };
    let image = Image::open(&first, AlphaMode::Ignore).unwrap();
    assert_eq!((image.width(), image.height()), (size("width"), size("height")));
}

#[test]
fn dump_goldens() {
    golden("diffusers", "euler");
    golden("diffusers", "dpmpp-karras-two-images");
    golden("diffusers", "flags-over-folder");
    golden("diffusers", "lora-peft-two");
    golden("diffusers", "inpaint-channels");
    golden("diffusers", "vae-file");
    golden("diffusers", "taesd-img2img");
    golden("diffusers", "inpaint-blend-strength-1");
    golden("diffsynth", "two_images");
    golden("diffsynth", "instant_style");
}

#[test]
fn json_output() {
    let case = Case::make("diffusers", "euler");
    let output = case.short(&["--json", "-b", "2", "-s", "5", "--steps", "2"]).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let text = stdout(&output);
    assert!(text.ends_with('\n') && text.lines().count() == 1);
    let json: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["files"], serde_json::json!([case.path("out-0.png"), case.path("out-1.png")]));
    assert_eq!(case.written(), ["out-0.png", "out-1.png"]);
    assert_eq!((&json["seed"], &json["seeds"]), (&5.into(), &serde_json::json!([5, 6])));
    assert_eq!((&json["device"], &json["steps"]), (&"cpu".into(), &2.into()));
    assert_eq!((&json["width"], &json["sampling_method"]), (&32.into(), &"euler".into()));
    for stage in ["load", "text", "condition", "denoise", "decode", "save", "total"] {
        assert!(json["seconds"][stage].as_f64().unwrap() >= 0.0, "{stage}");
    }
    assert_eq!(json["step_seconds"].as_array().unwrap().len(), 4);
    if cfg!(target_os = "linux") {
        let (all, anonymous) = (json["peak_bytes"].as_u64().unwrap(), json["peak_anonymous_bytes"].as_u64().unwrap());
        assert!(anonymous > 100_000 && all > anonymous, "{all} {anonymous}");
    }
    // An image does not depend on what is generated with it.
    case.short(&["-s", "6", "--steps", "2"]).output().unwrap();
    let load = |name: &str| Image::open(case.path(name), AlphaMode::Ignore).unwrap();
    assert_eq!(load("out.png"), load("out-1.png"));
    assert_ne!(load("out.png"), load("out-0.png"));
}

#[test]
fn seeds() {
    let case = Case::make("diffusers", "euler");
    let seed = || {
        let output = case.short(&["-s", "-1", "--json"]).output().unwrap();
        let json: Value = serde_json::from_str(&stdout(&output)).unwrap();
        let seed = json["seed"].as_u64().unwrap();
        assert_eq!(stderr(&output), format!("note: seed {seed}\n"));
        seed
    };
    assert_ne!(seed(), seed());
    let output = case.short(&["-s", "18446744073709551615", "--json"]).output().unwrap();
    assert!(stdout(&output).contains("\"seed\":18446744073709551615"), "{}", stdout(&output));
}

#[test]
fn image_formats_and_png_metadata() {
    let case = Case::make("diffusers", "euler");
    for name in ["out.jpg", "out.webp"] {
        let output = case.short(&["-o", &case.path(name)]).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        assert!(stdout(&output).contains("32x32, seed 0"));
        assert_eq!(Image::open(case.path(name), AlphaMode::Ignore).unwrap().width(), 32);
    }
    let image = case.folder.join("../pictures/landscape.png");
    let adapter = case.path("ip-adapter.safetensors");
    let more = ["-n", "no\nbirds", "-s", "7", "--ip-adapter", &adapter, "--ip-adapter-image", image.to_str().unwrap()];
    let more = [&more[..], &["--ip-adapter-strength", "0.5", "--ip-adapter-blocks", "style"]].concat();
    let output = case.short(&more).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let file = std::io::BufReader::new(std::fs::File::open(case.path("out.png")).unwrap());
    let reader = png::Decoder::new(file).read_info().unwrap();
    let texts = &reader.info().uncompressed_latin1_text;
    assert_eq!(texts.iter().map(|t| t.keyword.as_str()).collect::<Vec<_>>(), ["parameters", "braid"]);
    let model = case.dir.path().file_name().unwrap().to_str().unwrap();
    let expected = format!(
        "x\nNegative prompt: no\nbirds\nSteps: 1, Sampler: Euler, CFG scale: 5, Seed: 7, Size: 32x32, Model: {model}, \
         IP-Adapter: ip-adapter, IP-Adapter images: landscape, IP-Adapter strength: 0.5, IP-Adapter blocks: style, \
         Version: Braid {}",
        env!("CARGO_PKG_VERSION")
    );
    assert_eq!(texts[0].text, expected);
    let json: Value = serde_json::from_str(&texts[1].text).unwrap();
    assert_eq!((&json["seed"], &json["cfg_scale"], &json["width"]), (&7.into(), &5.0.into(), &32.into()));
    assert_eq!(json["ip_adapters"][0]["strength"], 0.5);
    assert_eq!(json["negative_prompt"], "no\nbirds");
}

/// A LoRA's scale in the texts, a name with a colon, and what is wrong with a flag.
#[test]
fn lora_flags() {
    let case = Case::make("diffusers", "lora-text");
    let odd = case.path("v1:text.safetensors");
    std::fs::copy(case.path("text.safetensors"), &odd).unwrap();
    let (first, second) = (format!("{odd}:-0.5"), odd.clone());
    let output = case.short(&["--lora", &first, "--lora", &second, "--preset", "lcm"]).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let file = std::io::BufReader::new(std::fs::File::open(case.path("out.png")).unwrap());
    let reader = png::Decoder::new(file).read_info().unwrap();
    let texts = &reader.info().uncompressed_latin1_text;
    let loras = "LoRA: v1:text, LoRA scale: -0.5, LoRA 2: v1:text, LoRA 2 scale: 1, ";
    assert!(
        texts[0].text.contains(loras) && texts[0].text.contains("Sampler: LCM, CFG scale: 1, "),
        "{}",
        texts[0].text
    );
    let json: Value = serde_json::from_str(&texts[1].text).unwrap();
    assert_eq!(json["loras"], serde_json::json!([{"lora": odd, "scale": -0.5}, {"lora": odd, "scale": 1.0}]));
    // `short` gives the number of steps.
    assert_eq!((&json["preset"], &json["steps"]), (&"lcm".into(), &1.into()));
    for (lora, message) in
        [(format!("{odd}:x"), "--lora: the scale `x`"), ("absent.safetensors".into(), "absent.safetensors")]
    {
        let output = case.short(&["--lora", &lora]).output().unwrap();
        assert!(!output.status.success() && stderr(&output).contains(message), "{}", stderr(&output));
    }
    let output = run(&["inspect", &odd]);
    assert!(stdout(&output).contains("a LoRA\n") && stdout(&output).contains("of other shapes than SDXL base has"));
}

/// Textual inversions in the texts, and what `inspect` says of them.
#[test]
fn embedding_flags() {
    let case = Case::make("diffusers", "embeddings");
    let (style, sea) = (case.path("mat-style.safetensors"), case.path("<sea>.safetensors"));
    let output = case.short(&["--embedding", &style, "--embedding", &sea, "-n", "mat-style <sea>"]).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let file = std::io::BufReader::new(std::fs::File::open(case.path("out.png")).unwrap());
    let reader = png::Decoder::new(file).read_info().unwrap();
    let texts = &reader.info().uncompressed_latin1_text;
    assert!(texts[0].text.contains("Embedding: mat-style, Embedding 2: <sea>, "), "{}", texts[0].text);
    let json: Value = serde_json::from_str(&texts[1].text).unwrap();
    assert_eq!(json["embeddings"], serde_json::json!([style, sea]));
    let output = case.short(&["--embedding", &style, "--embedding", &style]).output().unwrap();
    assert!(!output.status.success() && stderr(&output).contains("--embedding: "), "{}", stderr(&output));
    let text = stdout(&run(&["inspect", &style]));
    assert!(text.contains("a textual inversion (not supported)") && text.contains("`clip_l` is 16 wide"), "{text}");
}

/// The image to begin with and its mask are told, with the strength that counted.
#[test]
fn metadata_of_an_inpainting() {
    let case = Case::make("diffusers", "inpaint-blend");
    let picture = |name: &str| case.folder.join("../pictures").join(name).to_str().unwrap().to_owned();
    let (image, mask) = (picture("landscape.png"), picture("mask.png"));
    let texts = |more: &[&str]| {
        let output = case.short(&[&["-i", &image, "--steps", "2", "--json"], more].concat()).output().unwrap();
        assert!(output.status.success() && stderr(&output).is_empty(), "{}", stderr(&output));
        let report: Value = serde_json::from_str(&stdout(&output)).unwrap();
        assert!(report["seconds"]["encode"].as_f64().unwrap() >= 0.0);
        assert_eq!(report["step_seconds"].as_array().unwrap().len(), 1);
        let file = std::io::BufReader::new(std::fs::File::open(case.path("out.png")).unwrap());
        let reader = png::Decoder::new(file).read_info().unwrap();
        let texts: Vec<_> = reader.info().uncompressed_latin1_text.iter().map(|t| t.text.clone()).collect();
        (texts[0].clone(), serde_json::from_str::<Value>(&texts[1]).unwrap())
    };
    let (parameters, json) = texts(&["--mask", &mask, "--strength", "0.9"]);
    assert!(parameters.contains(", Denoising strength: 0.9, Mask: mask, Version"), "{parameters}");
    assert_eq!(
        (&json["init_img"], &json["mask"], &json["strength"]),
        (&image.as_str().into(), &mask.as_str().into(), &0.9.into())
    );
    let (parameters, json) = texts(&[]);
    assert!(parameters.contains("Denoising strength: 0.75") && !parameters.contains("Mask"), "{parameters}");
    assert_eq!((&json["mask"], &json["strength"]), (&Value::Null, &0.75.into()));
}

/// A preview for each image, beside it; one that cannot be written is told once and ends nothing.
#[test]
fn preview_files() {
    let case = Case::make("diffusers", "euler");
    let preview = case.path("out-look.png");
    let output = case.short(&["-b", "2", "--steps", "2", "--preview", &preview]).output().unwrap();
    assert!(output.status.success() && stderr(&output).is_empty(), "{}", stderr(&output));
    assert_eq!(case.written(), ["out-0.png", "out-1.png", "out-look-0.png", "out-look-1.png"]);
    let picture = Image::open(case.path("out-look-0.png"), AlphaMode::Ignore).unwrap();
    assert_eq!((picture.width(), picture.height()), (4, 4));
    assert_ne!(picture, Image::open(case.path("out-look-1.png"), AlphaMode::Ignore).unwrap());
    let output = case.short(&["--steps", "3", "--preview", &preview, "--preview-every", "4"]).output().unwrap();
    assert!(output.status.success() && !std::path::Path::new(&preview).exists(), "{}", stderr(&output));
}

/// A VAE of another file is named in the image's texts.
#[test]
fn metadata_of_a_vae() {
    let case = Case::make("diffusers", "vae-file");
    let vae = case.path("other/other_vae.safetensors");
    let output = case.short(&["--vae", &vae, "--steps", "1", "--vae-tiling"]).output().unwrap();
    assert!(output.status.success() && stderr(&output).is_empty(), "{}", stderr(&output));
    let file = std::io::BufReader::new(std::fs::File::open(case.path("out.png")).unwrap());
    let reader = png::Decoder::new(file).read_info().unwrap();
    let texts: Vec<_> = reader.info().uncompressed_latin1_text.iter().map(|t| t.text.clone()).collect();
    assert!(texts[0].contains(", VAE: other_vae, VAE tiling: 512, "), "{}", texts[0]);
    let json: Value = serde_json::from_str(&texts[1]).unwrap();
    assert_eq!((&json["vae"], &json["vae_tiling"], &json["taesd"]), (&vae.as_str().into(), &true.into(), &Value::Null));
    let output = case.short(&["--vae", &case.path("unet")]).output().unwrap();
    assert!(!output.status.success() && stderr(&output).contains("SDXL's VAE is needed"), "{}", stderr(&output));
}

/// Flags in another order give the same image.
#[test]
fn single_adapter_argument_order() {
    let case = Case::make("diffusers", "euler");
    let image = case.folder.join("../pictures/landscape.png");
    let (adapter, image) = (case.path("ip-adapter.safetensors"), image.to_str().unwrap());
    let mut seen = Vec::new();
    for args in [
        ["--ip-adapter", &adapter, "--ip-adapter-image", image, "--ip-adapter-strength", "2"],
        ["--ip-adapter-strength", "2", "--ip-adapter-image", image, "--ip-adapter", &adapter],
        ["--ip-adapter", &adapter, "--ip-adapter-image", image, "--ip-adapter-strength", "0"],
    ] {
        assert!(case.short(&args).output().unwrap().status.success());
        seen.push(Image::open(case.path("out.png"), AlphaMode::Ignore).unwrap());
    }
    assert_eq!(seen[0], seen[1]);
    assert_ne!(seen[0], seen[2]);
}

/// Quantized weights are kept in the cache, where there is one; the image is the same with it and without.
#[test]
fn int8() {
    let case = Case::make("diffusers", "euler");
    let image = || Image::open(case.path("out.png"), AlphaMode::Ignore).unwrap();
    let run = |more: &[&str], cache: &str| {
        let output = case.short(more).env("BRAID_CACHE", cache).output().unwrap();
        assert!(output.status.success());
        (image(), stderr(&output))
    };
    let (plain, _) = run(&[], "");
    let (alone, said) = run(&["--quantize", "int8"], "");
    assert_ne!(alone, plain);
    assert!(said.is_empty() || said.starts_with("note: --quantize int8 is slower"), "{said}");
    let folder = case.path("cache");
    assert_eq!(run(&["--quantize", "int8"], &folder), (alone.clone(), said.clone()));
    let files = || std::fs::read_dir(format!("{folder}/int8")).unwrap().count();
    let count = files();
    assert!(count > 20, "{count}");
    assert_eq!(run(&["--quantize", "int8", "-t", "1"], &folder), (alone.clone(), said.clone()));
    assert_eq!(files(), count);
    // A file in the folder's place: one line says so.
    let (image, warned) = run(&["--quantize", "int8"], &case.path("out.png"));
    assert!(image == alone && warned.contains("could not be stored"), "{warned}");
    assert_eq!(warned.lines().count(), said.lines().count() + 1, "{warned}");
    let output = case.short(&["--quantize", "int8", "--device", "cuda"]).output().unwrap();
    assert!(output.status.code() == Some(2) && stderr(&output).contains("int8 is computed on the CPU alone"));
}

#[test]
fn device_notes() {
    let case = Case::make("diffusers", "euler");
    let note = |more: &[&str]| {
        let output = case.short(more).output().unwrap();
        assert!(output.status.success());
        stderr(&output)
    };
    assert_eq!(note(&[]), "");
    let auto = note(&["--device", "auto"]);
    assert!(auto.contains("CPU") && auto.contains("CUDA") && auto.lines().count() == 1, "{auto}");
    let plain = Image::open(case.path("out.png"), AlphaMode::Ignore).unwrap();
    assert!(note(&["--dtype", "f16"]).starts_with("note: --dtype f16"));
    // Another type draws other noise.
    assert_ne!(Image::open(case.path("out.png"), AlphaMode::Ignore).unwrap(), plain);
    assert!(note(&["--vae-dtype", "f16"]).contains("no effect"));
    assert_eq!(Image::open(case.path("out.png"), AlphaMode::Ignore).unwrap(), plain);
    assert_eq!(note(&["--vae-dtype", "bf16"]), "");
    let decoded = Image::open(case.path("out.png"), AlphaMode::Ignore).unwrap();
    assert_ne!(decoded, plain);
    // Whether the processor is faster in it or not: one line at most, and noise of its own.
    let text = note(&["--dtype", "bf16"]);
    assert!(text.is_empty() || text.starts_with("note: --dtype bf16 is no faster"), "{text}");
    let bf16 = Image::open(case.path("out.png"), AlphaMode::Ignore).unwrap();
    assert!(bf16 != plain && bf16 != decoded);
    assert_eq!(note(&["--dtype", "bf16", "--vae-dtype", "f32"]), text);
    assert_ne!(Image::open(case.path("out.png"), AlphaMode::Ignore).unwrap(), bf16);
    assert_eq!(note(&["--rng", "cuda"]), "");
    assert_ne!(Image::open(case.path("out.png"), AlphaMode::Ignore).unwrap(), plain);
    assert_eq!(note(&["--no-mmap"]), "");
    assert_eq!(Image::open(case.path("out.png"), AlphaMode::Ignore).unwrap(), plain);
}

#[test]
fn noise_from_a_file() {
    let case = Case::make("diffusers", "euler");
    let (dump, noise) = (case.path("d.safetensors"), case.path("n.safetensors"));
    assert!(case.short(&["-s", "3", "--dump", &dump]).output().unwrap().status.success());
    let plain = Image::open(case.path("out.png"), AlphaMode::Ignore).unwrap();
    // The dump itself holds `noise`.
    assert!(case.short(&["-s", "99", "--latents-in", &dump]).output().unwrap().status.success());
    assert_eq!(Image::open(case.path("out.png"), AlphaMode::Ignore).unwrap(), plain);
    let bytes = std::fs::read(&dump).unwrap();
    let shape = SafeTensors::deserialize(&bytes).unwrap().tensor("noise").unwrap().shape().to_vec();
    let len: usize = shape.iter().product();
    let [n, c, h, w] = shape[..] else { panic!("{shape:?}") };
    let mut bad = vec![0f32; len];
    bad[3] = f32::NAN;
    for (name, shape, values, part) in [
        ("noises", shape.clone(), vec![0f32; len], "there is no tensor `noise`"),
        ("noise", vec![n, c, h * 2, w / 2], vec![0f32; len], "needs [1, 4"),
        ("noise", vec![n, c, h * w], vec![0f32; len], "needs [1, 4"),
        ("noise", vec![2, c, h, w], vec![0f32; 2 * len], "needs [1, 4"),
        ("noise", shape.clone(), bad, "NaN at element 3"),
    ] {
        let bytes = bytemuck::cast_slice(&values);
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape, bytes).unwrap();
        std::fs::write(&noise, safetensors::serialize([(name, view)], None).unwrap()).unwrap();
        let text = super::failure(&case.short(&["--latents-in", &noise]).output().unwrap(), 1);
        assert!(text.contains(part), "{text}");
    }
    let half = vec![0u8; len * 2];
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F16, shape, &half).unwrap();
    std::fs::write(&noise, safetensors::serialize([("noise", view)], None).unwrap()).unwrap();
    let text = super::failure(&case.short(&["--latents-in", &noise]).output().unwrap(), 1);
    assert!(text.contains("type f16"), "{text}");
}

/// Whatever is in a prompt, an image is generated and nothing of it reaches the terminal.
#[test]
fn b44_prompts_on_a_terminal() {
    let case = Case::make("diffusers", "euler");
    let long = "word ".repeat(10_000);
    for prompt in ["", "\x1b]0;title\x07\x1b[31m red \u{9b}31m", long.as_str(), "猫 \u{202e}"] {
        let output = case.short(&["-p", prompt, "--json"]).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        let text = stderr(&output) + &stdout(&output);
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
        assert!(stderr(&output).lines().all(|l| l.starts_with("warning: ")), "{}", stderr(&output));
    }
    let output = run(&["generate", "--model", "/none/\x1b[31m\u{9b}m", "-p", "x", "-o", &case.path("out.png")]);
    let text = super::failure(&output, 1);
    assert!(text.contains("\\u{1b}[31m"), "{text}");
}
