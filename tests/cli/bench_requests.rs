//! `bench` on small models.

use super::{Case, stderr, stdout};
use serde_json::Value;
use std::process::{Command, Output};

fn bench(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bench"))
        .args(args)
        .args(["--threads", "2"])
        .env("BRAID_CACHE", "")
        .output()
        .unwrap()
}

/// The rows of a run that must succeed and say nothing.
pub fn rows(args: &[&str]) -> Vec<Value> {
    let output = bench(&[args, &["-o", "json"]].concat());
    assert!(output.status.success() && stderr(&output).is_empty(), "{}", stderr(&output));
    serde_json::from_str(&stdout(&output)).unwrap()
}

pub fn number(row: &Value, name: &str) -> f64 {
    row[name].as_f64().unwrap_or_else(|| panic!("{name}: {row}"))
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

/// The usage error that such arguments give.
pub fn refused(args: &[&str]) -> String {
    let output = bench(args);
    let text = stderr(&output);
    assert_eq!((output.status.code(), text.lines().count()), (Some(2), 1), "{text}");
    text
}

#[test]
fn sample_rows() {
    let case = Case::make("diffusers", "euler");
    let model = case.path(".");
    let args = ["e2e", "--model", &model, "--steps", "2", "-W", "32", "-H", "32", "-r", "3", "--device", "cpu"];
    let rows = rows(&args);
    let samples = numbers(&rows[0]["seconds"]);
    assert_eq!((samples.len(), &rows[0]["steps"], &rows[0]["width"]), (3, &2.into(), &32.into()));
    let mean = samples.iter().sum::<f64>() / 3.0;
    let sd = (samples.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / 2.0).sqrt();
    assert!((number(&rows[0], "mean_seconds") - mean).abs() < 1e-9);
    assert!((number(&rows[0], "sd_seconds") - sd).abs() < 1e-9);
    assert_eq!(rows[0]["stages"]["denoise"].as_array().unwrap().len(), 3);
    let text = |format: &str| {
        let output = bench(&[&args[..], &["-r", "1", "-o", format]].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        stdout(&output)
    };
    assert!(text("jsonl").starts_with("{\"benchmark\":\"e2e\""));
    let (csv, md) = (text("csv"), text("md"));
    assert_eq!(csv.lines().count(), 2);
    // What is the same in every row stands above the table, which a terminal can hold.
    let (above, table) = md.split_once("\n\n").unwrap();
    assert!(table.lines().count() == 3 && table.lines().all(|l| l.starts_with("| ") && l.ends_with(" |")), "{md}");
    assert!(md.lines().all(|l| l.chars().count() <= 100) && above.contains("device: cpu"), "{md}");
    // Who, where, when and from what, in every format.
    for part in ["cpu", env!("CARGO_PKG_VERSION"), env!("BRAID_COMMIT"), "f32", "none"] {
        assert!(csv.contains(part) && md.contains(part), "{part}: {csv}");
    }
}

#[test]
fn list_combinations() {
    let case = Case::make("diffusers", "euler");
    let model = case.path(".");
    let more = ["-n", "1,2", "--size", "32..64+32", "-r", "2", "--warmup", "2", "--device", "cpu"];
    let rows = rows(&[&["e2e", "--model", &model], &more[..]].concat());
    let found: Vec<_> = rows.iter().map(|r| (r["width"].as_u64(), r["steps"].as_u64())).collect();
    assert_eq!(found, [(32, 1), (32, 2), (64, 1), (64, 2)].map(|(w, n)| (Some(w), Some(n))));
    let row = &rows[3];
    assert_eq!((&row["warmup"], row["seconds"].as_array().unwrap().len()), (&2.into(), 2));
    assert!((number(row, "pictures_per_second") * number(row, "mean_seconds") - 1.0).abs() < 1e-9);
    assert!(number(row, "p50_seconds") <= number(row, "p99_seconds"));
    let shares: f64 = row["stage_share"].as_object().unwrap().values().map(|v| v.as_f64().unwrap()).sum();
    assert!((0.5..=1.001).contains(&shares), "{shares}");
}

#[test]
fn row_provenance() {
    let case = Case::make("diffusers", "euler");
    let model = case.path(".");
    let row = &rows(&["e2e", "--model", &model, "-n", "1", "--size", "32", "-r", "1", "--device", "cpu"])[0];
    assert!(row["date"].as_str().unwrap().ends_with('Z'));
    assert_eq!((&row["device"], &row["driver"], &row["dtype"]), (&"cpu".into(), &"none".into(), &"f32".into()));
    assert_eq!((&row["threads"], &row["vae_dtype"]), (&2.into(), &"f32".into()));
    assert_eq!(row["quantize"], "none");
    assert!(!row["device_name"].as_str().unwrap().is_empty());
    let commit = row["commit"].as_str().unwrap();
    let known = commit.len() == 12 && commit.bytes().all(|b| b.is_ascii_hexdigit());
    assert!(known || commit == "unknown", "{commit}");
    let build = if cfg!(debug_assertions) { "debug" } else { "release" };
    assert_eq!((&row["build"], &row["version"]), (&build.into(), &env!("CARGO_PKG_VERSION").into()));
    let checksum = row["checksum"].as_str().unwrap();
    assert!(checksum.len() == 8 && checksum != "00000000" && row["skipped"].is_null(), "{checksum}");
}

#[test]
fn quantized_rows() {
    let case = Case::make("diffusers", "euler");
    let model = case.path(".");
    let args = ["e2e", "--model", &model, "-n", "1", "--size", "32", "-r", "1", "--quantize", "int8", "--device"];
    let rows = rows(&[&args[..], &["cpu,cuda:99"]].concat());
    assert_eq!((&rows[0]["dtype"], &rows[0]["quantize"]), (&"f32".into(), &"int8".into()));
    assert!(rows[0]["skipped"].is_null());
    assert!(rows[1]["skipped"].as_str().unwrap().contains("--quantize"), "{}", rows[1]);
}

#[test]
fn unavailable_devices() {
    let case = Case::make("diffusers", "euler");
    let model = case.path(".");
    let args = ["e2e", "--model", &model, "-n", "1", "--size", "32", "-r", "1"];
    // No machine has that many GPUs.
    let rows = rows(&[&args[..], &["--device", "cpu,cuda:99", "--dtype", "f16,bf16,f32"]].concat());
    let found: Vec<_> =
        rows.iter().map(|r| (r["device"].as_str(), r["dtype"].as_str(), !r["skipped"].is_null())).collect();
    let [cpu, gpu] = [Some("cpu"), Some("cuda:99")];
    let [f32, f16, bf16] = [Some("f32"), Some("f16"), Some("bf16")];
    let on_gpu = [(gpu, f16, true), (gpu, bf16, true), (gpu, f32, true)];
    assert_eq!(found, [&[(cpu, f32, false), (cpu, bf16, false), (cpu, f32, true)][..], &on_gpu].concat());
    assert_ne!(rows[0]["checksum"], rows[1]["checksum"]);
    assert!(rows[2]["skipped"].as_str().unwrap().contains("computes in f32"));
    for row in &rows[3..5] {
        assert!(row["skipped"].as_str().unwrap().contains("cuda:99"), "{row}");
        assert!(row.get("mean_seconds").is_none());
    }
    // Where nothing at all was measured, the status says so, and the rows are there nevertheless.
    for more in [&["--device", "cuda:99"][..], &["--device", "cuda:99", "--dtype", "f32"]] {
        let output = bench(&[&args[..], more, &["-o", "csv"]].concat());
        assert_eq!((output.status.code(), stdout(&output).lines().count()), (Some(1), 2));
        assert!(stderr(&output).contains("nothing was measured: "), "{}", stderr(&output));
    }
    assert!(refused(&[&args[..], &["--device", "cpu,tpu"]].concat()).contains("tpu"));
    assert!(refused(&[&args[..], &["--dtype", "f16,f8"]].concat()).contains("f8"));
    assert!(refused(&[&args[..], &["--frobnicate"]].concat()).contains("--frobnicate"));
}

#[test]
fn adapter_cost() {
    let args = ["e2e", "--model", "demo", "-n", "2", "--size", "64", "-r", "2", "--device", "cpu"];
    let rows = rows(&[&args[..], &["--adapter", "off,on"]].concat());
    assert_eq!((rows.len(), &rows[0]["adapters"], &rows[1]["adapters"]), (2, &0.into(), &1.into()));
    let (off, on) = (numbers(&rows[0]["seconds"]), numbers(&rows[1]["seconds"]));
    // The median of two is their mean.
    let percent = 100.0 * ((on[0] / off[0] + on[1] / off[1]) / 2.0 - 1.0);
    assert!((number(&rows[1], "adapter_overhead_percent") - percent).abs() < 1e-6);
    assert!(number(&rows[1], "adapter_denoise_overhead_percent").is_finite());
    assert!(rows[0]["adapter_overhead_percent"].is_null());
    assert_ne!(rows[0]["checksum"], rows[1]["checksum"], "the adapter has no effect");
    assert!(rows[0]["stages"].get("image").is_some() && number(&rows[1]["stage_share"], "image") > 0.0);
    let case = Case::make("diffusers", "euler");
    assert!(refused(&["e2e", "--model", &case.path("."), "--adapter", "on"]).contains("--ip-adapter"));
    assert!(refused(&["e2e", "--model", "demo", "--adapter", "both"]).contains("both"));
}

#[test]
fn mlperf_scenarios() {
    let case = Case::make("diffusers", "euler");
    let model = case.path(".");
    let args =
        ["e2e", "--model", &model, "--preset", "mlperf", "--size", "32", "-b", "2", "-r", "1", "--device", "cpu"];
    let rows = rows(&args);
    let found: Vec<_> = rows.iter().map(|r| (r["scenario"].as_str(), r["pictures"].as_u64())).collect();
    let offline = Some("offline");
    assert_eq!(found, [(Some("single-stream"), Some(1)), (offline, Some(2))]);
    for row in &rows {
        assert_eq!((&row["steps"], &row["cfg_scale"], &row["width"]), (&20.into(), &8.0.into(), &32.into()));
        let pictures = number(row, "pictures");
        assert!((number(row, "pictures_per_second") * number(row, "mean_seconds") - pictures).abs() < 1e-9);
    }
    // Of the whole size, but without the time that it takes: there is no such GPU.
    let output = bench(&["e2e", "--model", &model, "--preset", "mlperf", "--device", "cuda:99", "-o", "json"]);
    let rows: Vec<Value> = serde_json::from_str(&stdout(&output)).unwrap();
    assert!(rows.iter().all(|row| row["width"] == 1024 && row["height"] == 1024), "{rows:?}");
    assert!(refused(&["e2e", "--model", &model, "--preset", "mlcommons"]).contains("mlcommons"));
}

#[test]
fn nan_model() {
    let case = Case::make("diffusers", "euler");
    let file = case.dir.path().join("unet/diffusion_pytorch_model.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let end = bytes.len();
    bytes[end - 64..].fill(0xff);
    std::fs::write(&file, bytes).unwrap();
    let output = bench(&["e2e", "--model", &case.path("."), "-n", "1", "--size", "32", "-r", "1", "--device", "cpu"]);
    let text = stderr(&output);
    assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(1), ""), "{text}");
    assert!(text.contains("NaN") && text.lines().count() == 1, "{text}");
}

#[test]
fn model_without_files() {
    let args = ["e2e", "--model", "synthetic:small", "-n", "1", "-r", "1", "--device", "cpu"];
    let made = &rows(&[&args[..], &["--adapter", "on,off"]].concat());
    assert_eq!((&made[0]["model"], &made[0]["width"]), (&"synthetic:small".into(), &128.into()));
    assert_ne!(made[0]["checksum"], made[1]["checksum"], "the adapter has no effect");
    // It is the same model as one that is written, and gives the same image.
    let dir = tempfile::tempdir().unwrap();
    let sizes = braid::synthetic::Sizes::small();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let none = std::collections::BTreeMap::new();
    braid::synthetic::write_safetensors(path("m.safetensors").as_ref(), &sizes.checkpoint(), &none).unwrap();
    let model = path("m.safetensors");
    let file = &rows(&["e2e", "--model", &model, "--size", "128", "-n", "1", "-r", "1", "--device", "cpu"]);
    assert_eq!(file[0]["checksum"], made[1]["checksum"]);
    assert!(refused(&["e2e", "--model", "synthetic:flux"]).contains("synthetic:flux"));
    assert!(refused(&[&args[..], &["--ip-adapter", "a"]].concat()).contains("--ip-adapter"));
}

#[test]
fn cold_start() {
    let args = ["cold", "--model", "synthetic:small", "-n", "3", "--size", "64", "-r", "2", "--device", "cpu,cuda:99"];
    let found = rows(&args);
    assert_eq!(
        (found.len(), found[0]["device"].as_str(), found[1]["device"].as_str()),
        (2, Some("cpu"), Some("cuda:99"))
    );
    let row = &found[0];
    let (seconds, parts) = (numbers(&row["seconds"]), row["parts"].as_object().unwrap());
    assert_eq!((seconds.len(), &row["width"], &row["adapters"], parts.len()), (2, &64.into(), &1.into(), 13));
    for (i, whole) in seconds.iter().enumerate() {
        let part = |name: &str| numbers(&parts[name])[i];
        // The parts are the whole, and none of it is left over in number.
        assert!((parts.values().map(|p| numbers(p)[i]).sum::<f64>() - whole).abs() < 1e-9);
        assert!(part("rest").abs() < 0.1 * whole, "{row}");
        for name in [
            "start",
            "arguments",
            "map",
            "programs",
            "text",
            "image",
            "condition",
            "first_step",
            "other_steps",
            "decode",
        ] {
            assert!(part(name) > 0.0, "{name}: {row}");
        }
        assert!(numbers(&row["first_step_seconds"])[i] < *whole);
    }
    assert!((number(row, "median_seconds") - (seconds[0] + seconds[1]) / 2.0).abs() < 1e-9);
    assert!(number(row, "make_median_seconds") > 0.0 && number(row, "warm_up_median_seconds").is_finite());
    assert!(found[1]["skipped"].as_str().unwrap().contains("cuda:99") && found[1].get("seconds").is_none());
    // The image is the one that a process for many of them generates.
    let same =
        &rows(&["e2e", "--model", "synthetic:small", "-n", "3", "--size", "64", "-r", "1", "--device", "cpu"])[0];
    assert_eq!(row["checksum"], same["checksum"]);
    let output =
        bench(&["cold", "--model", "demo", "-n", "1", "--size", "64", "-r", "1", "--device", "cpu", "-o", "md"]);
    let text = stdout(&output);
    // Too many columns for a terminal: a line each.
    let (above, table) = text.split_once("\n\n").unwrap();
    assert!(
        output.status.success() && above.replace('\n', " ").contains("model: demo, size: 64x64, steps: 1"),
        "{text}"
    );
    assert!(table.lines().all(|l| l.starts_with("| ") && l.ends_with(" |")), "{text}");
    assert!(text.lines().all(|l| l.chars().count() <= 100), "{text}");
    for title in ["picture s", "to first step s", "start", "arguments", "programs", "first_step", "decode", "rest"] {
        assert!(table.lines().any(|l| l.starts_with(&format!("| {title} "))), "{title}: {text}");
    }
}

#[test]
fn child_process_errors() {
    assert!(refused(&["cold"]).contains("--model"));
    assert!(refused(&["memory", "--model", "demo", "-r", "2"]).contains("-r"));
    assert!(refused(&["cold", "--model", "demo", "--size", "64", "-W", "64"]).contains("--size"));
    // What only the loaded model can tell.
    assert!(refused(&["cold", "--model", "demo", "--size", "33", "--device", "cpu"]).contains("33"));
    let output = bench(&["memory", "--model", "/none/m"]);
    assert_eq!((output.status.code(), stderr(&output).lines().count()), (Some(1), 1));
    let output = bench(&["memory", "--model", "demo", "--device", "cuda:99", "-o", "csv"]);
    assert_eq!((output.status.code(), stdout(&output).lines().count()), (Some(1), 2));
    assert!(stderr(&output).contains("nothing was measured"));
}

#[test]
fn stage_memory() {
    let args = ["memory", "--model", "synthetic:small", "--size", "128", "-n", "1", "--device", "cpu"];
    let row = &rows(&args)[0];
    let stages = row["stages"].as_array().unwrap();
    let names: Vec<_> = stages.iter().map(|s| s["stage"].as_str().unwrap()).collect();
    assert_eq!(names, ["load", "build", "text", "image", "condition", "denoise", "decode"]);
    assert!(row["estimate"].is_null() && row["width"] == 128, "{row}");
    let predicted: Vec<_> = stages[1..].iter().map(|s| s["predicted_bytes"].as_u64().unwrap()).collect();
    assert!(predicted.is_sorted() && predicted[0] > 0, "{predicted:?}");
    if cfg!(target_os = "linux") {
        let bytes = |stage: usize, name: &str| stages[stage][name].as_u64().unwrap();
        // What was made is in anonymous memory: half precision, two bytes a parameter.
        let sizes = braid::synthetic::Sizes::small();
        let tensors = [sizes.checkpoint(), sizes.image_encoder(), sizes.ip_adapter()].concat();
        let made: usize = tensors.iter().filter_map(|t| t.bytes()).sum();
        assert!(bytes(0, "anonymous_bytes") > made as u64, "{row}");
        // Executables of several MB are told to within a factor of two.
        let (plan, measured) = (predicted[5], bytes(6, "measured_bytes"));
        assert!(plan > 4 << 20 && measured > plan / 2 && measured < plan * 2, "{row}");
        assert!(bytes(6, "anonymous_bytes") >= measured);
    }
    assert!(stages.iter().all(|s| s["device_bytes"].is_null()));
    let output = bench(&[&args[..], &["-o", "csv"]].concat());
    assert_eq!(stdout(&output).lines().count(), 8);
}
