//! `braid sweep` on a small model.

use super::{Case, braid, failure, run, stderr, stdout};
use braid::inputs::image::{AlphaMode, Image};
use serde_json::Value;

/// A sweep's command: the case's short run with another name.
fn sweep(case: &Case, more: &[&str]) -> std::process::Command {
    let short = case.short(more);
    let mut command = braid();
    command.args(short.get_args().map(|arg| if arg == "generate" { "sweep".as_ref() } else { arg }));
    command
}

/// Each image of a grid is that of `generate` with the same settings.
#[test]
fn images_of_a_grid() {
    let case = Case::make("diffusers", "euler");
    let reference = case.path("reference.png");
    let image = Image::new(20, 30, (0..1800).map(|i| (i * 7 % 251) as u8).collect()).unwrap();
    image.save(std::path::Path::new(&reference)).unwrap();
    let (adapter, encoder) = (case.path("ip-adapter.safetensors"), case.path("image_encoder"));
    let common = ["--ip-adapter", &adapter, "--ip-adapter-image", &reference, "--clip-vision", &encoder];
    let over = ["--over", "strength=0:1:0.5", "--over", "seed=3,5", "--json"];
    let output = sweep(&case, &[&common[..], &over].concat()).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let report: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(report["images"], 6);
    assert_eq!(report["over"][0]["values"].as_array().unwrap().len(), 3);
    let grid = Image::open(case.path("out.png"), AlphaMode::Ignore).unwrap();
    // Labels of twelve letters of 16 pixels before the rows, a line of them above the columns.
    let (left, top) = (12 + 12 * 16 + 8, 12 + 24);
    assert_eq!((grid.width(), grid.height()), (left + 2 * 32 + 8 + 12, top + 3 * 32 + 2 * 8 + 12));
    for (row, strength) in ["0", "0.5", "1"].into_iter().enumerate() {
        for (column, seed) in ["3", "5"].into_iter().enumerate() {
            let own = ["--ip-adapter-strength", strength, "-s", seed];
            assert!(case.short(&[&common[..], &own].concat()).output().unwrap().status.success());
            let alone = Image::open(case.path("out.png"), AlphaMode::Ignore).unwrap();
            let (x, y) = (left + column * 40, top + row * 40);
            let rows = (y..y + 32).flat_map(|y| &grid.rgb()[(y * grid.width() + x) * 3..][..32 * 3]);
            assert!(rows.eq(alone.rgb()), "strength {strength}, seed {seed}");
        }
    }
}

/// A random seed is drawn once for all cells and told; labels of a setting `seed` name what was drawn; the grid can be drawn again.
#[test]
fn random_seeds() {
    let case = Case::make("diffusers", "euler");
    let drawn = |more: &[&str]| {
        let output = sweep(&case, &[more, &["--json"]].concat()).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        let report: Value = serde_json::from_str(&stdout(&output)).unwrap();
        let seed = report["seed"].as_u64().unwrap();
        assert!(stderr(&output).contains(&format!("note: seed {seed}\n")), "{}", stderr(&output));
        (seed, report["over"].clone(), Image::open(case.path("out.png"), AlphaMode::Ignore).unwrap())
    };
    let replays = || run(&["replay", &case.path("out.png")]);
    let (seed, _, grid) = drawn(&["-s", "-1", "--over", "steps=1,2"]);
    let again = replays();
    assert!(again.status.success(), "{}", stderr(&again));
    let with = |seed: &str, over: &str| {
        let output = sweep(&case, &["-s", seed, "--over", over]).output().unwrap();
        assert!(output.status.success() && stderr(&output).is_empty(), "{}", stderr(&output));
        Image::open(case.path("out.png"), AlphaMode::Ignore).unwrap()
    };
    assert!(with(&seed.to_string(), "steps=1,2") == grid, "not the seed that was told");
    let (other, over, grid) = drawn(&["--over", "seed=-1,7,-1"]);
    assert_ne!(other, seed);
    let values = [other.to_string(), "7".into(), (other + 2).to_string()];
    assert_eq!(over[0]["values"], serde_json::json!(values));
    let again = replays();
    assert!(again.status.success(), "{}", stderr(&again));
    assert!(with("0", &format!("seed={}", values.join(","))) == grid);
}

/// A format that cannot hold the grid is refused before anything is drawn, though it could hold each image.
#[test]
fn grid_too_long_for_its_format() {
    let case = Case::make("diffusers", "euler");
    // 341 columns of 40 pixels with gaps of 8 between them, and margins of 12: one pixel more than a WebP's side has.
    let out = case.path("out.webp");
    let text = failure(&sweep(&case, &["--over", "seed=1:341:1", "-W", "40", "-o", &out]).output().unwrap(), 2);
    assert!(text.contains("--output: WebP holds sides of up to 16383, got 16384"), "{text}");
    assert!(case.written().is_empty());
}

/// Axes that are long together are counted before any cell is made.
#[test]
fn b43_more_cells_than_memory_holds() {
    let case = Case::make("diffusers", "euler");
    let axes = ["seed", "cfg-scale", "steps", "clip-skip", "width"].map(|name| format!("{name}=1:1000:1"));
    let over: Vec<&str> = axes.iter().flat_map(|axis| ["--over", axis]).collect();
    let text = failure(&sweep(&case, &over).output().unwrap(), 2);
    assert!(text.contains("--over: 1000000000000000 images; 1000 are allowed"), "{text}");
}

#[test]
fn wrong_sweeps() {
    let case = Case::make("diffusers", "euler");
    let refused = |more: &[&str]| failure(&sweep(&case, more).output().unwrap(), 2);
    assert!(refused(&[]).contains("--over: missing"));
    for (over, text) in [
        ("seed", "NAME=VALUES is needed"),
        ("seed=1,,2", "a value is missing"),
        ("steps=0,1", "--steps: must be"),
        ("stepz=1", "`stepz` is not known"),
        ("model=a,b", "whole command's"),
        ("dtype=f32,bf16", "whole command's"),
        ("width=32,40", "one size"),
        ("seed=1:2:0", "the step leads away"),
    ] {
        let told = refused(&["--over", over]);
        assert!(told.contains(text), "{over}: {told}");
    }
    assert!(refused(&["--over", "seed=1", "--over", "--seed=2"]).contains("given twice"));
    assert!(refused(&["--over", "seed=1", "-b", "2"]).contains("--batch-count"));
    let dump = case.path("d.safetensors");
    assert!(refused(&["--over", "seed=1", "--dump", &dump]).contains("--dump: has no place in a sweep"));
    assert!(refused(&["--over", "strength=1"]).contains("no --ip-adapter"));
}
