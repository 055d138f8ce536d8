//! The command, as a script sees it.

#![allow(clippy::unwrap_used)]

#[path = "cli/batch.rs"]
mod batch;
#[path = "cli/bench.rs"]
mod bench;
#[path = "cli/bench_requests.rs"]
mod bench_requests;
#[path = "cli/bench_serve.rs"]
mod bench_serve;
#[path = "cli/commands.rs"]
mod commands;
#[path = "common/mod.rs"]
mod common;
#[path = "cli/encode_image.rs"]
mod encode_image;
#[path = "cli/faults.rs"]
mod faults;
#[path = "cli/generate.rs"]
mod generate;
#[path = "cli/guide.rs"]
mod guide;
#[path = "cli/image_prompts.rs"]
mod image_prompts;
#[path = "cli/outputs.rs"]
mod outputs;
#[path = "cli/replay.rs"]
mod replay;
#[cfg(unix)]
#[path = "cli/signals.rs"]
mod signals;
#[path = "cli/sweep.rs"]
mod sweep;
#[path = "cli/usage.rs"]
mod usage;

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn braid() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_braid"));
    command.env_remove("LD_LIBRARY_PATH");
    command
}

fn run(args: &[&str]) -> Output {
    braid().args(args).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The one line of a failure, which must be all that is said.
fn failure(output: &Output, status: i32) -> String {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(status), "{text}");
    assert!(text.starts_with("braid: ") && text.ends_with('\n') && text.lines().count() == 1, "{text:?}");
    assert!(!text.trim_end().contains(char::is_control), "{text:?}");
    text
}

fn goldens(profile: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(profile)
}

/// A golden case with its files made anew.
struct Case {
    folder: PathBuf,
    json: Value,
    dir: tempfile::TempDir,
}

impl Case {
    fn make(profile: &str, name: &str) -> Self {
        let folder = goldens(profile).join(name);
        let json = serde_json::from_str(&std::fs::read_to_string(folder.join("case.json")).unwrap()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        braid::synthetic::from_recipe(&folder.join("recipe.json"), dir.path()).unwrap();
        Self { folder, json, dir }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    /// The model alone, for a short run.
    fn model(&self) -> Vec<String> {
        let model = self.path(self.json["files"]["model"].as_str().unwrap());
        ["generate", "--device", "cpu", "--threads", "2", "--model", &model].map(String::from).to_vec()
    }

    /// A short run that writes `out.png`.
    fn short(&self, more: &[&str]) -> Command {
        let mut command = braid();
        command.args(self.model()).args([
            "-p",
            "x",
            "--steps",
            "1",
            "-W",
            "32",
            "-H",
            "32",
            "-o",
            &self.path("out.png"),
        ]);
        command.args(more);
        command
    }

    /// Everything that the case asks for, as flags.
    fn flags(&self) -> Vec<String> {
        let request = &self.json["request"];
        let mut flags = self.model();
        let mut add = |flag: &str, value: &str| flags.extend([flag.to_owned(), value.to_owned()]);
        add("--compat", self.json["profile"].as_str().unwrap());
        for (flag, key) in [("--clip-vision", "clip_vision"), ("--vae", "vae"), ("--taesd", "taesd")] {
            if let Some(path) = self.json["files"][key].as_str() {
                add(flag, &self.path(path));
            }
        }
        let named = [
            ("--prompt", "prompt"),
            ("--negative-prompt", "negative_prompt"),
            ("--steps", "steps"),
            ("--cfg-scale", "cfg_scale"),
            ("--guidance-rescale", "guidance_rescale"),
            ("--width", "width"),
            ("--height", "height"),
            ("--seed", "seed"),
            ("--batch-count", "batch"),
            ("--sampling-method", "sampling_method"),
            ("--schedule", "schedule"),
            ("--prediction", "prediction"),
            ("--timestep-spacing", "timestep_spacing"),
            ("--clip-skip", "clip_skip"),
            ("--eta", "eta"),
            ("--strength", "strength"),
        ];
        for (flag, key) in named {
            match &request[key] {
                Value::Null => {}
                // DDIM's alone.
                Value::Number(n) if key == "eta" && n.as_f64() == Some(0.0) => {}
                Value::String(text) => add(flag, text),
                other => add(flag, &other.to_string()),
            }
        }
        for (flag, key) in [("--init-img", "init_image"), ("--mask", "mask")] {
            if let Some(path) = request[key].as_str() {
                add(flag, self.folder.join(path).to_str().unwrap());
            }
        }
        if let Some([w, h]) = request["image_resize"].as_array().map(Vec::as_slice) {
            add("--ip-adapter-image-resize", &format!("{w}x{h}"));
        }
        for lora in request["loras"].as_array().into_iter().flatten() {
            add("--lora", &format!("{}:{}", self.path(lora["path"].as_str().unwrap()), lora["scale"]));
        }
        for adapter in request["ip_adapters"].as_array().unwrap() {
            add("--ip-adapter", &self.path(adapter["path"].as_str().unwrap()));
            for image in adapter["images"].as_array().unwrap() {
                add("--ip-adapter-image", self.folder.join(image.as_str().unwrap()).to_str().unwrap());
            }
            match &adapter["strength"] {
                Value::Number(n) => add("--ip-adapter-strength", &n.to_string()),
                object => add("--ip-adapter-blocks", &object.to_string()),
            }
            if request["instant_style"].as_bool() == Some(true) {
                add("--ip-adapter-blocks", "style");
            }
        }
        flags
    }

    /// Names in the folder that begin with a dot or with `out`.
    fn written(&self) -> Vec<String> {
        let names = std::fs::read_dir(self.dir.path()).unwrap();
        let mut names: Vec<_> = names.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|n| n.starts_with(['.']) || n.starts_with("out"));
        names.sort();
        names
    }
}
