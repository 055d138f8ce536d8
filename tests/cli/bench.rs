//! `bench ops`, `bench roofline` and `bench plot`, as a script sees them.

use super::{stderr, stdout};
use serde_json::Value;
use std::process::{Command, Output};

fn bench(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bench")).args(args).output().unwrap()
}

fn json(args: &[&str]) -> Value {
    let output = bench(args);
    assert!(output.status.success() && stderr(&output).is_empty(), "{}", stderr(&output));
    serde_json::from_str(&stdout(&output)).unwrap()
}

#[test]
fn ops_roofline_and_plot() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let measured = json(&[
        "ops",
        "--model",
        "small",
        "--size",
        "64",
        "-r",
        "3",
        "-t",
        "1",
        "--only",
        "3x3/1",
        "--adapter",
        "-o",
        "json",
    ]);
    let row = &measured[0];
    assert_eq!((&row["benchmark"], &row["model"], &row["batch"]), (&"ops".into(), &"small".into(), &2.into()));
    let number = |value: &Value| value.as_f64().unwrap();
    let ceiling = number(&row["ceilings"]["flops_per_second"]);
    assert!(ceiling > 0.0 && number(&row["ceilings"]["bytes_per_second"]) > 0.0);
    let ops = row["ops"].as_array().unwrap();
    assert!(ops.len() > 5 && ops.iter().all(|o| o["kind"] == "convolution"), "{row}");
    for op in ops {
        let mut seconds: Vec<f64> = op["seconds"].as_array().unwrap().iter().map(number).collect();
        seconds.sort_by(f64::total_cmp);
        assert_eq!((seconds.len(), number(&op["median_seconds"])), (3, seconds[1]));
        assert!((number(&op["flops_per_second"]) * seconds[1] / number(&op["flops"]) - 1.0).abs() < 1e-9);
        assert!((number(&op["compute_share"]) * ceiling / number(&op["flops_per_second"]) - 1.0).abs() < 1e-9);
    }
    // The convolutions stand beside their predictions, the sum of a step not, as not all of it was measured.
    let (file, svg) = (path("ops.json"), path("ops.svg"));
    std::fs::write(&file, measured.to_string()).unwrap();
    let small = ["--gpu", "h200", "--model", "small", "--size", "64", "--adapter", "-o", "json"];
    let roof = json(&[&["roofline"][..], &small, &["--measured", &file, "--parts", "unet,vae"]].concat());
    let there: Vec<&Value> =
        roof[0]["ops"].as_array().unwrap().iter().filter(|o| !o["measured_seconds"].is_null()).collect();
    assert!(!there.is_empty() && there.iter().all(|o| o["with"].as_str().unwrap().starts_with("3x3/1")), "{there:?}");
    assert_eq!(there.len(), ops.len());
    assert!(roof[0]["measured_seconds"].is_null());
    assert!(roof[0]["ops"].as_array().unwrap().iter().any(|o| o["kind"] == "decoupled attention"));

    let roofs = path("roof.json");
    std::fs::write(&roofs, roof.to_string()).unwrap();
    assert_eq!(bench(&["plot", &file, &roofs, "-o", &svg]).status.code(), Some(0));
    let text = std::fs::read_to_string(&svg).unwrap();
    let multiply = |o: &&Value| number(&o["flops"]) > 0.0;
    let dots = ops.len() + roof[0]["ops"].as_array().unwrap().iter().filter(multiply).count();
    assert_eq!(text.matches("<circle").count(), dots);
    assert_eq!(stdout(&bench(&["plot", &file, &roofs])), text);
}

/// A request is its parts, each as often as it runs; an image of an adapter is encoded once.
#[test]
fn whole_image_prediction() {
    let predict = |args: &[&str]| json(&[&["roofline", "--gpu", "h200", "-o", "json"][..], args].concat());
    let row = &predict(&["--steps", "20", "--adapter", "--parts", "vae"])[0];
    let number = |value: &Value| value.as_f64().unwrap();
    let stages = row["stages"].as_array().unwrap();
    let runs: Vec<_> = stages.iter().map(|s| (s["part"].as_str().unwrap(), s["runs"].as_u64().unwrap())).collect();
    assert_eq!(runs, [("text", 1), ("image", 1), ("condition", 1), ("unet", 20), ("vae", 1)]);
    let all: f64 = stages.iter().map(|s| number(&s["runs"]) * number(&s["predicted_seconds"])).sum();
    assert!((all / number(&row["picture_predicted_seconds"]) - 1.0).abs() < 1e-9);
    // 10.5 TFLOP of the decoder and 0.97 of ViT-bigG.
    assert!((number(&stages[4]["flops"]) / 10.5e12 - 1.0).abs() < 0.01, "{}", stages[4]);
    assert!((number(&stages[1]["flops"]) / 0.97e12 - 1.0).abs() < 0.02, "{}", stages[1]);
    assert!(row["ops"].as_array().unwrap().iter().all(|o| o["part"] == "vae"));
    let plain = &predict(&["--steps", "1"])[0];
    assert_eq!((plain["stages"][1]["runs"].as_u64(), number(&plain["stages"][1]["flops"])), (Some(0), 0.0));
}

/// A frame is TAESD and the UNet, with what lies around them; a new reference is its encoder and the conditioning that it changes.
#[test]
fn frames_of_a_stream() {
    let number = |value: &Value| value.as_f64().unwrap();
    let predict = |stream: &str| {
        let args = ["roofline", "--gpu", "h200", "--size", "512", "-b", "1", "-n", "1", "--adapter", "-o", "json"];
        json(&[&args[..], &["--stream", stream]].concat())[0].clone()
    };
    let runs = |row: &Value| -> Vec<(String, u64)> {
        let stages = row["stages"].as_array().unwrap().iter();
        stages.map(|s| (s["part"].as_str().unwrap().to_owned(), s["runs"].as_u64().unwrap())).collect()
    };
    let of = |row: &Value, part: &str, key: &str| {
        let stages = row["stages"].as_array().unwrap();
        number(&stages.iter().find(|s| s["part"] == part).unwrap()[key])
    };
    let from_text = predict("txt2img");
    let parts = [("image", 0), ("reference", 0), ("unet", 1), ("taesd-decoder", 1)];
    assert_eq!(runs(&from_text), parts.map(|(part, runs)| (part.to_owned(), runs)));
    let from_images = predict("img2img");
    assert!(runs(&from_images).contains(&("taesd-encoder".to_owned(), 1)), "{:?}", runs(&from_images));
    // Thirty 3x3 convolutions of 64 channels in each half, and what is before, between and after them.
    assert!((of(&from_text, "taesd-decoder", "flops") / 141.3e9 - 1.0).abs() < 0.01);
    assert!((of(&from_images, "taesd-encoder", "flops") / 122.3e9 - 1.0).abs() < 0.01);
    assert!((of(&from_text, "image", "flops") / 0.97e12 - 1.0).abs() < 0.02);
    for row in [&from_text, &from_images] {
        let frames = &row["frames"];
        let all = |keys: &[&str], key: &str| keys.iter().map(|part| of(row, part, key)).sum::<f64>();
        let mut parts = vec!["unet", "taesd-decoder"];
        parts.extend((frames["stream"] == "img2img").then_some("taesd-encoder"));
        assert!((number(&frames["floor_seconds"]) / all(&parts, "floor_seconds") - 1.0).abs() < 1e-9);
        let reference = all(&["image", "reference"], "floor_seconds");
        assert!((number(&frames["reference_floor_seconds"]) / reference - 1.0).abs() < 1e-9);
        // The loop has a node for its input, one for the step and one for its counter; the decoder makes bytes.
        assert!(number(&frames["nodes"]) >= all(&parts, "nodes") + 4.0, "{frames}");
        if let Some(modelled) = frames["modelled_seconds"].as_f64() {
            let beside = number(&frames["around_seconds"]);
            assert!((modelled / (all(&parts, "modelled_seconds") + beside) - 1.0).abs() < 1e-9);
            assert!(beside > 2.0 * 10e-6 && beside < 1e-3, "{frames}");
            assert!((number(&frames["frames_per_second"]) * modelled - 1.0).abs() < 1e-9);
        }
    }
    assert!(number(&from_images["frames"]["around_seconds"]) > number(&from_text["frames"]["around_seconds"]));
}

#[test]
fn bad_arguments() {
    let dir = tempfile::tempdir().unwrap();
    let (text, other) = (dir.path().join("text.json"), dir.path().join("other.json"));
    std::fs::write(&text, "{\"benchmark\": ").unwrap();
    std::fs::write(&other, "[{\"benchmark\": \"cold\"}]").unwrap();
    let (text, other) = (text.to_str().unwrap(), other.to_str().unwrap());
    for (args, status, part) in [
        (&["ops", "--parts", "unet,decoder"][..], 2, "--parts"),
        (&["ops", "--model", "sd15"], 2, "--model"),
        (&["ops", "--size", "100"], 2, "--size"),
        (&["ops", "--dtype", "f32"], 2, "--dtype"),
        (&["ops", "--device", "tpu"], 2, "--device"),
        (&["ops", "--device", "cuda:99"], 1, "cuda"),
        (&["ops", "--model", "small", "--size", "64", "-r", "1", "--only", "no such"], 2, "--only"),
        (&["roofline", "--gpu", "a100", "--measured", "/none/m.json"], 1, "/none/m.json"),
        (&["roofline", "--gpu", "a100", "--measured", other], 2, "--measured"),
        (&["roofline", "--gpu", "a100", "--stream", "video"], 2, "--stream"),
        (&["plot"], 2, "plot"),
        (&["plot", "/none/m.json"], 1, "/none/m.json"),
        (&["plot", text], 1, "JSON"),
        (&["plot", other], 2, "other.json"),
    ] {
        let output = bench(args);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(status), "{args:?}: {said}");
        assert!(said.contains(part) && said.lines().count() == 1 && stdout(&output).is_empty(), "{args:?}: {said}");
    }
}
