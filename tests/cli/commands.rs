//! The other commands.

use super::{Case, failure, goldens, run, stderr, stdout};
use braid::inputs::image::{AlphaMode, Image};
use serde_json::Value;
use std::path::Path;

const ASTRONAUT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/astronaut.jpg");

#[test]
fn inspect_compatibility() {
    let case = Case::make("diffusers", "euler");
    let other = Case::make("diffsynth", "one_image");
    let (adapter, encoder) = (case.path("ip-adapter.safetensors"), case.path("image_encoder"));
    let output = run(&["inspect", &case.path("."), &adapter, &encoder, &other.path("sdxl.safetensors")]);
    assert!(output.status.success(), "{}", stderr(&output));
    let text = stdout(&output);
    let scheduler = "scheduler EulerDiscreteScheduler, prediction_type epsilon, timestep_spacing leading";
    for part in
        ["a diffusers folder of SDXL", "IP-Adapter", "text_encoder_2", "M parameters", scheduler, "position_ids (I64)"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(text.contains(&format!("{adapter} fits {encoder}\n")), "{text}");
    let output = run(&["inspect", "--json", &adapter, &encoder]);
    let lines: Vec<Value> = stdout(&output).lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    assert_eq!((&lines[0]["supported"], &lines[0]["path"]), (&true.into(), &adapter.as_str().into()));
    assert!(lines[0]["parts"][0]["parameters"].as_u64().unwrap() > 0);
}

/// A name that is no text is one all the same, and the line of JSON is there.
#[cfg(target_os = "linux")]
#[test]
fn inspect_names_that_are_not_utf8() {
    use std::os::unix::ffi::OsStrExt;
    let case = Case::make("diffusers", "euler");
    let path = case.dir.path().join(std::ffi::OsStr::from_bytes(b"a\xff.safetensors"));
    std::fs::copy(case.path("ip-adapter.safetensors"), &path).unwrap();
    let output = super::braid().args(["inspect", "--json"]).arg(&path).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let report: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert!(report["path"].as_str().unwrap().ends_with("a\u{fffd}.safetensors"), "{report}");
    assert_eq!(report["supported"], true);
}

/// A Plus adapter: its kind, its resampler and the encoder that it needs; a file's metadata.
#[test]
fn inspect_plus_and_metadata() {
    let case = Case::make("diffusers", "plus-two-adapters");
    let (plus, encoder) = (case.path("plus-face.safetensors"), case.path("image_encoder"));
    let output = run(&["inspect", &plus, &encoder]);
    let text = stdout(&output);
    for part in [
        "an IP-Adapter Plus",
        "3 image tokens, 64 wide",
        "a resampler of 4 layers, latents 96 wide, 2 heads",
        "hidden states 80 wide",
        &format!("{plus} fits {encoder}\n"),
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let path = case.path("stated.safetensors");
    let said = [("modelspec.title".to_owned(), "a \u{1b} title".to_owned()), ("long".to_owned(), "x".repeat(200))];
    braid::synthetic::write_safetensors(Path::new(&path), &[], &said.into()).unwrap();
    let text = stdout(&run(&["inspect", &path]));
    assert!(
        text.contains("metadata modelspec.title: a ") && text.contains(&format!("{} ..", "x".repeat(80))),
        "{text}"
    );
    assert!(!text.contains('\u{1b}'), "{text}");
}

/// A LoRA for a model of other sizes than the published ones: what it holds, and of the models given which it fits.
#[test]
fn inspect_loras() {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo");
    let [lora, model] =
        ["lora.safetensors", "sdxl.safetensors"].map(|name| demo.join(name).to_str().unwrap().to_owned());
    let output = run(&["inspect", &lora]);
    assert!(output.status.success() && stderr(&output).is_empty(), "{}", stderr(&output));
    let text = stdout(&output);
    for part in
        ["a LoRA\n", "unet: ", " modules of other shapes than SDXL base has", "goes with a model with SDXL's names"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    let case = Case::make("diffsynth", "one_image");
    let other = case.path("sdxl.safetensors");
    let text = stdout(&run(&["inspect", &lora, &model, &other]));
    assert!(text.contains(&format!("{lora} fits {model}\n")), "{text}");
    assert!(text.contains(&format!("{lora} does not fit {other}: ")), "{text}");
}

#[test]
fn inspect_unreadable_files() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/weights");
    let path = |name: &str| data.join(name).to_str().unwrap().to_owned();
    assert!(failure(&run(&["inspect", &path("legacy.bin")]), 1).contains("legacy.bin"));
    // One bad file does not hide the others.
    let output = run(&["inspect", &path("bare.bin"), &path("many.bin")]);
    assert!(failure(&output, 1).contains("bare.bin"));
    assert!(stdout(&output).contains("60 tensors"));
    let png = goldens("diffusers").join("pictures/alpha.png");
    assert!(failure(&run(&["inspect", png.to_str().unwrap()]), 1).contains("alpha.png"));
    assert!(failure(&run(&["inspect", "/none"]), 1).contains("/none"));
}

#[test]
fn synth_existing_files() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("image_encoder")).unwrap();
    std::fs::write(dir.path().join("image_encoder/config.json"), "mine").unwrap();
    let text = failure(&run(&["synth", "sdxl", dir.path().to_str().unwrap()]), 1);
    assert!(text.contains("config.json") && text.contains("--force"), "{text}");
    assert_eq!(std::fs::read(dir.path().join("image_encoder/config.json")).unwrap(), b"mine");
    if cfg!(target_os = "linux") {
        let text = failure(&run(&["synth", "sdxl", "/proc/braid"]), 1);
        assert!(text.contains("bytes are needed and 0 are free"), "{text}");
    }
}

#[test]
fn doctor() {
    let output = run(&["doctor"]);
    assert!(output.status.success() && stderr(&output).is_empty());
    let text = stdout(&output);
    let (version, instructions) = (env!("CARGO_PKG_VERSION"), braid::device::cpu::Cpu::instructions());
    for part in [
        version,
        instructions,
        "CUDA",
        "driver library",
        "cpu; ",
        "cores",
        "available",
        "--dtype bf16",
        "--quantize int8",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

/// A tile of the demo's sheet; x, y and side as `grid.rs` lays them out.
fn tile(sheet: &Image, x: usize, y: usize, side: usize) -> Vec<u8> {
    (y..y + side).flat_map(|y| sheet.rgb()[(y * sheet.width() + x) * 3..][..side * 3].to_vec()).collect()
}

/// The mean difference of the tiles' mean colours.
fn difference(a: &[u8], b: &[u8]) -> f64 {
    let mean = |tile: &[u8], c: usize| {
        tile.iter().skip(c).step_by(3).map(|&v| f64::from(v)).sum::<f64>() * 3.0 / tile.len() as f64
    };
    (0..3).map(|c| (mean(a, c) - mean(b, c)).abs()).sum::<f64>() / 3.0
}

/// The mean difference of the tiles' values, of those for which `counts` holds by their place.
fn values_apart(a: &[u8], b: &[u8], counts: impl Fn(usize) -> bool) -> f64 {
    let chosen: Vec<_> = (0..a.len()).filter(|&i| counts(i)).collect();
    chosen.iter().map(|&i| f64::from(a[i].abs_diff(b[i]))).sum::<f64>() / chosen.len() as f64
}

/// The mean difference of the mean colours of 8 by 8 parts of two tiles, which may have other sides.
fn parts_apart(a: &[u8], b: &[u8]) -> f64 {
    let parts = |tile: &[u8]| {
        let side = (tile.len() / 3).isqrt();
        let mut sums = vec![(0.0, 0.0); 8 * 8 * 3];
        for (i, &v) in tile.iter().enumerate() {
            let (x, y) = (i / 3 % side * 8 / side, i / 3 / side * 8 / side);
            let (sum, count) = &mut sums[(y * 8 + x) * 3 + i % 3];
            (*sum, *count) = (*sum + f64::from(v), *count + 1.0);
        }
        sums.into_iter().map(|(sum, count)| sum / count).collect::<Vec<_>>()
    };
    let (a, b) = (parts(a), parts(b));
    a.iter().zip(&b).map(|(a, b)| (a - b).abs()).sum::<f64>() / a.len() as f64
}

/// The mean difference of a tile's pixels from the one tint that the LoRA leaves, each at its own lightness
/// (`tools/demo_model/lora.py`, `colourfulness`).
fn off_tint(tile: &[u8]) -> f64 {
    let pixel = |rgb: &[u8]| {
        let light: f64 = rgb.iter().zip([0.299, 0.587, 0.114]).map(|(&v, w)| f64::from(v) * w).sum();
        rgb.iter().zip([1.15, 0.97, 0.73]).map(|(&v, t)| (f64::from(v) - light * t).abs()).sum::<f64>()
    };
    tile.chunks_exact(3).map(pixel).sum::<f64>() / tile.len() as f64
}

#[test]
fn demo_sheet() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sheet.png");
    let output = run(&["demo", "--device", "cpu", "-o", path.to_str().unwrap()]);
    assert!(output.status.success() && stderr(&output).is_empty(), "{}", stderr(&output));
    let text = stdout(&output);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 4, "{text}");
    assert!(lines[0].contains("reference images") && lines[2].starts_with("28 images of 16 steps in "), "{text}");
    assert!(["Plus", "LoRA", "inpainting"].iter().all(|part| lines[1].contains(part)), "{text}");
    assert_eq!(lines[3], format!("The sheet is in {}", path.display()));
    let sheet = Image::open(&path, AlphaMode::Ignore).unwrap();
    assert_eq!((sheet.width(), sheet.height()), (940, 36 + 28 + 3 * 222 + 28 + 128 + 3 * 176 + 36));
    // Each reference's row goes by its own colours: it is nearer to them than to those of the other two, on average.
    let block = |row: usize, column: usize| tile(&sheet, 36 + column * 222, 64 + row * 222, 202);
    let apart =
        |reference: usize, row: usize| (1..4).map(|c| difference(&block(reference, 0), &block(row, c))).sum::<f64>();
    for row in 0..3 {
        assert!((0..3).filter(|&r| r != row).all(|r| apart(row, row) < apart(r, row)), "row {row}");
    }
    // Along the strip, too.
    let strip = |row: usize, column: usize| tile(&sheet, 36 + column * 148, 64 + 3 * 222 + 28 + row * 176, 128);
    assert!(difference(&strip(0, 0), &strip(0, 5)) < difference(&strip(0, 0), &strip(0, 1)));

    // What the Plus adapter draws without a text is nearer to its reference, part by part, than to the other, and than what the base
    // adapter draws of the same reference with a text.
    for (row, other) in [(0, 1), (1, 0)] {
        let reference = |row: usize| strip(1, 3 * row);
        let base = (1..4).map(|c| parts_apart(&block(row + 1, 0), &block(row + 1, c))).fold(f64::INFINITY, f64::min);
        for column in [1, 2] {
            let drawn = strip(1, 3 * row + column);
            let [own, others] = [row, other].map(|r| parts_apart(&reference(r), &drawn));
            println!("Plus: {own:.1} from its reference, {others:.1} from the other, the base adapter {base:.1}");
            assert!(own < 0.5 * others && own < base, "{own:.1}, {others:.1}, {base:.1}");
        }
    }

    let tints: Vec<_> = (0..6).map(|column| off_tint(&strip(2, column))).collect();
    println!("LoRA {tints:.1?}");
    assert!(tints.windows(2).all(|w| w[1] < w[0]) && tints[5] < 0.25 * tints[0], "{tints:.1?}");

    // Inpainting keeps the image where the mask is black, but for the VAE's error, and draws another where it is white.
    let mask = strip(3, 1);
    for column in 2..6 {
        let [kept, drawn] = [0, 255].map(|v| values_apart(&strip(3, 0), &strip(3, column), |i| mask[i] == v));
        println!("inpainting: kept {kept:.1}, drawn {drawn:.1}");
        assert!(kept < 6.0 && drawn > 3.0 * kept, "column {column}: {kept:.1} outside, {drawn:.1} inside");
    }
}

#[test]
fn demo_prompt_and_image() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("strip.png");
    let output = run(&["demo", "-p", "two rings", "--image", ASTRONAUT, "--seed", "3", "-o", path.to_str().unwrap()]);
    // Without a GPU a line says why there is none.
    assert!(output.status.success() && stderr(&output).lines().all(|line| line.starts_with("note: using the CPU")));
    assert!(stdout(&output).contains("\n5 images of 16 steps in ") && stdout(&output).contains(" s on "));
    let text = failure(&run(&["demo", "--device", "cuda:99"]), 1);
    assert!(text.contains("cuda:99") || text.contains("--device cpu"), "{text}");
    let sheet = Image::open(&path, AlphaMode::Ignore).unwrap();
    assert_eq!((sheet.width(), sheet.height()), (940, 36 + 28 + 128 + 36));
    let text = failure(&run(&["demo", "--assets", "/none/demo"]), 1);
    assert!(text.contains("/none/demo") && text.contains("--assets"), "{text}");
}

/// `--config` is for single files: a folder has its own configurations.
#[test]
fn configurations_for_a_single_file() {
    let demo = |name: &str| format!("{}/assets/demo/{name}", env!("CARGO_MANIFEST_DIR"));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.png");
    let generate = |config: &str| {
        run(&[
            "generate",
            "--model",
            &demo("sdxl.safetensors"),
            "--config",
            config,
            "-p",
            "a ring",
            "--steps",
            "1",
            "-s",
            "1",
            "-o",
            path.to_str().unwrap(),
        ])
    };
    let output = generate(&demo("config"));
    assert!(output.status.success(), "{}", stderr(&output));
    // The UNet's sample_size of 16 makes 128 pixels; without configurations SDXL's 1024 would be meant.
    assert_eq!(Image::open(&path, AlphaMode::Ignore).unwrap().width(), 128);
    let text = failure(&generate(&demo("none")), 1);
    assert!(text.contains("model_index.json"), "{text}");
    let text = failure(&run(&["generate", "--model", &demo("."), "--config", &demo("config"), "-p", "a ring"]), 2);
    assert!(text.contains("--config"), "{text}");
}

#[test]
fn bench_sdxl_operations() {
    let bench = |args: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_bench")).arg("roofline").args(args).output();
        output.unwrap()
    };
    let output = bench(&["--gpu", "h200,a100", "--size", "1024", "-o", "json"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let json: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(json.as_array().unwrap().len(), 2);
    for row in json.as_array().unwrap() {
        let number = |name: &str| row[name].as_f64().unwrap();
        assert!((number("pass_flops") / 6.76e12 - 1.0).abs() < 0.01);
        // Two rows; what is made once a request is no part of a step.
        assert!((number("step_flops") / 2.0 / 6.76e12 - 1.0).abs() < 0.02);
        assert!(number("floor_seconds") >= number("step_flops") / row["gpu"]["peak"].as_f64().unwrap());
        assert!(number("predicted_seconds") > number("floor_seconds"));
        let worst: Vec<f64> = row["worst"].as_array().unwrap().iter().map(wave).collect();
        assert_eq!(worst.len(), 10);
        assert!(worst.is_sorted() && worst[0] < 1.0);
        assert!(row["ops"].as_array().unwrap().iter().all(|o| o["cut"].is_null() || wave(o) >= worst[0]));
    }
    let text = stdout(&bench(&["--gpu", "l40s"]));
    assert!(text.contains("TFLOP per UNet pass") && text.contains("The 10 worst by wave efficiency"), "{text}");
    assert_eq!(stdout(&bench(&["--gpu", "h100", "--size", "512,1024", "-o", "jsonl"])).lines().count(), 2);
    for (args, flag) in
        [(&[][..], "--gpu"), (&["--gpu", "x"], "--gpu"), (&["--gpu", "a100", "--size", "1..9"], "--size")]
    {
        let output = bench(args);
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).contains(flag) && stderr(&output).lines().count() == 1);
    }
}

fn wave(operation: &Value) -> f64 {
    operation["cut"]["wave_efficiency"].as_f64().unwrap()
}
