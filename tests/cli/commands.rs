//! The other commands.

use super::{Case, failure, goldens, run, stderr, stdout};
use braid::inputs::picture::{self, Alpha};
use serde_json::Value;
use std::path::Path;

#[test]
fn inspect_tells_what_goes_together() {
    let case = Case::make("diffusers", "euler");
    let other = Case::make("diffsynth", "one_image");
    let (adapter, encoder) = (case.path("ip-adapter.safetensors"), case.path("image_encoder"));
    let output = run(&["inspect", &case.path("."), &adapter, &encoder, &other.path("sdxl.safetensors")]);
    assert!(output.status.success(), "{}", stderr(&output));
    let text = stdout(&output);
    for part in ["a diffusers folder of SDXL", "IP-Adapter", "text_encoder_2", "M parameters"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(text.contains(&format!("{adapter} fits {encoder}\n")), "{text}");
    let output = run(&["inspect", "--json", &adapter, &encoder]);
    let lines: Vec<Value> = stdout(&output).lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    assert_eq!((&lines[0]["supported"], &lines[0]["path"]), (&true.into(), &adapter.as_str().into()));
    assert!(lines[0]["parts"][0]["parameters"].as_u64().unwrap() > 0);
}

#[test]
fn inspect_names_what_it_cannot_read() {
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
fn synth_refuses_what_is_there() {
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
    for part in [version, instructions, "no CUDA support yet", "cores", "available"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn the_demo_draws_a_sheet() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sheet.png");
    let mut command = super::braid();
    let output = command.args(["demo", "-o", path.to_str().unwrap()]).env("TMPDIR", dir.path()).output().unwrap();
    assert!(output.status.success() && stderr(&output).is_empty(), "{}", stderr(&output));
    let text = stdout(&output);
    assert!(text.lines().next().unwrap().contains("three reference pictures") && text.contains("random"), "{text}");
    assert!(text.ends_with(&format!("The sheet is in {}\n", path.display())), "{text}");
    // The model's files are gone.
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    let sheet = picture::load(&path, Alpha::Drop).unwrap();
    let tile = |row: usize, column: usize| -> Vec<u8> {
        let (x, y) = (36 + 20 + column * 212, 36 + 28 + row * 212);
        (y..y + 192).flat_map(|y| sheet.rgb()[(y * sheet.width() + x) * 3..][..192 * 3].to_vec()).collect()
    };
    let difference =
        |a: &[u8], b: &[u8]| a.iter().zip(b).map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>() / a.len() as f64;
    // Without the adapter all are one picture; the stronger it is, the further they part.
    assert_eq!(tile(0, 1), tile(1, 1));
    for (a, b) in [(0, 1), (1, 2), (0, 2)] {
        let apart = [2, 3].map(|c| difference(&tile(a, c), &tile(b, c)));
        assert!(apart[0] > 1.0 && apart[1] > 1.5 * apart[0], "{apart:?}");
    }
}
