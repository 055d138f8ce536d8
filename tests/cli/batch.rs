//! `braid generate --batch` on a small model.

use super::{Case, failure, stderr, stdout};
use braid::inputs::image::{AlphaMode, Image};
use serde_json::Value;

/// Each image is that of the command run for its line alone; a line that fails is told, and the others go on.
#[test]
fn requests_of_a_file() {
    let case = Case::make("diffusers", "euler");
    let (reference, lines) = (case.path("reference.png"), case.path("lines.jsonl"));
    Image::new(20, 30, (0..1800).map(|i| (i * 7 % 251) as u8).collect())
        .unwrap()
        .save(std::path::Path::new(&reference))
        .unwrap();
    let text = format!(
        "{{\"prompt\": \"a fox\", \"seed\": 3, \"batch_count\": 2}}\n\n{{\"ip_adapter_image\": [\"{reference}\", \"{reference}\"], \
         \"steps\": 3}}\n{{\"ip_adapter_image\": \"/none.png\"}}\n{{\"width\": 40, \"cfg_scale\": 1, \"height\": 24}}\n"
    );
    std::fs::write(&lines, text).unwrap();
    let adapter = case.path("ip-adapter.safetensors");
    let encoder = case.path("image_encoder");
    let common = ["--ip-adapter", &adapter, "--ip-adapter-image", &reference, "--clip-vision", &encoder];
    let output = case.short(&[&common[..], &["--batch", &lines, "--json"]].concat()).output().unwrap();
    let told = failure(&output, 1);
    assert!(told.contains("request 3 of") && told.contains("/none.png"), "{told}");
    let reports: Vec<Value> = stdout(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut files: Vec<String> =
        reports.iter().flat_map(|r| r["files"].as_array().unwrap()).map(Value::to_string).collect();
    files.sort();
    assert_eq!(files.len(), 4);
    assert_eq!(case.written(), ["out-0.png", "out-1.png", "out-2.png", "out-4.png"]);
    let load = |name: &str| Image::open(case.path(name), AlphaMode::Ignore).unwrap();
    let images = ["out-0.png", "out-1.png", "out-2.png", "out-4.png"].map(load);
    let alone = |more: &[&str]| {
        let output = case.short(&[&common[..], more].concat()).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        load("out.png")
    };
    assert_eq!(alone(&["-p", "a fox", "-s", "4"]), images[1]);
    assert_eq!(alone(&["--ip-adapter-image", &reference, "--steps", "3"]), images[2]);
    assert_eq!(alone(&["-W", "40", "-H", "24", "--cfg-scale", "1"]), images[3]);
    assert_ne!(images[0], images[1]);
}

/// An image of one line is not written over what another line reads.
#[test]
fn images_that_another_line_reads() {
    let case = Case::make("diffusers", "euler");
    let (lines, first) = (case.path("lines.jsonl"), case.path("out-0.png"));
    Image::new(8, 8, vec![5; 192]).unwrap().save(&first).unwrap();
    let before = std::fs::read(&first).unwrap();
    std::fs::write(&lines, format!("{{}}\n{{\"init_img\": {first:?}}}\n")).unwrap();
    let text = failure(&case.short(&["--batch", &lines]).output().unwrap(), 2);
    assert!(text.contains("out-0.png is read as"), "{text}");
    assert_eq!(std::fs::read(&first).unwrap(), before);
}

/// Wrong lines end the command before any work is done, with their number.
#[test]
fn wrong_files() {
    let case = Case::make("diffusers", "euler");
    let lines = case.path("lines.jsonl");
    let refused = |text: &str, more: &[&str]| {
        std::fs::write(&lines, text).unwrap();
        failure(&case.short(&[&["--batch", &lines], more].concat()).output().unwrap(), 2)
    };
    let text = refused("{}\n{\"stepz\": 1}\n", &[]);
    assert!(text.contains("lines.jsonl line 2: `stepz` is not known"), "{text}");
    assert!(refused("\n", &[]).contains("has no request"));
    let dump = case.path("d.safetensors");
    assert!(refused("{}\n", &["--dump", &dump]).contains("--dump: has no place beside --batch"));
    let missing = case.short(&["--batch", "/none.jsonl"]).output().unwrap();
    assert!(failure(&missing, 1).contains("/none.jsonl"));
    assert!(case.written().is_empty());
}
