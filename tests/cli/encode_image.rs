//! `braid encode-image`, and its files in the place of reference images.

use super::{Case, braid, failure, stderr, stdout};
use braid::inputs::image::{AlphaMode, Image};
use serde_json::Value;
use std::process::{Command, Output};

fn encode(case: &Case, adapter: &str, more: &[&str]) -> Command {
    let mut command = braid();
    command.args(["encode-image", "--device", "cpu", "--threads", "2", "--model", &case.path(".")]);
    command.args(["--ip-adapter", &case.path(adapter)]).args(more);
    command
}

fn fine(mut command: Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    output
}

fn image(case: &Case) -> Image {
    Image::open(case.path("out.png"), AlphaMode::Ignore).unwrap()
}

/// With the encoder's files gone, the images are those of the references themselves; each adapter takes its own file.
#[test]
fn files_in_the_place_of_images() {
    let case = Case::make("diffusers", "plus-two-adapters");
    let picture = |name: &str| case.folder.join("../pictures").join(name).to_str().unwrap().to_owned();
    let (landscape, portrait) = (picture("landscape.png"), picture("portrait.png"));
    let [base, plus, negative] = ["base", "plus", "negative"].map(|name| case.path(&format!("{name}.safetensors")));
    let [adapter, face] = ["ip-adapter.safetensors", "plus-face.safetensors"].map(|name| case.path(name));
    let generate = |references: [&[&str]; 3]| {
        let [first, second, third] = references;
        let adapters = [&["--ip-adapter", &adapter][..], first, third, &["--ip-adapter", &face], second].concat();
        fine(case.short(&[&["--steps", "2"][..], &adapters].concat()));
        image(&case)
    };
    let shown = ["--ip-adapter-image", &landscape, "--ip-adapter-image", &portrait, "--ip-adapter-weight", "0.5"];
    let by_image = generate([
        &["--ip-adapter-image", &portrait],
        &[&shown[..2], &["--ip-adapter-weight", "0.5"], &shown[2..]].concat(),
        &["--ip-adapter-negative-image", &landscape],
    ]);
    let output = fine(encode(&case, "plus-face.safetensors", &[&landscape, &portrait, "-o", &plus, "--json"]));
    let json: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!((&json["file"], &json["images"], &json["tokens"]), (&plus.as_str().into(), &2.into(), &3.into()));
    let output = fine(encode(&case, "ip-adapter.safetensors", &[&portrait, "-o", &base]));
    assert!(stdout(&output).contains("base.safetensors  1 image of "), "{}", stdout(&output));
    fine(encode(&case, "ip-adapter.safetensors", &["-o", &negative, &landscape]));
    std::fs::remove_dir_all(case.path("image_encoder")).unwrap();
    let by_file = generate([
        &["--ip-adapter-image", &base],
        // A weight counts for each image of the file.
        &["--ip-adapter-image", &plus, "--ip-adapter-weight", "0.5"],
        &["--ip-adapter-negative-image", &negative],
    ]);
    assert_eq!(by_file, by_image);

    let refused = |adapter: &str, more: &[&str], status| {
        let adapter = ["--ip-adapter", adapter];
        failure(&case.short(&[&adapter[..], more].concat()).output().unwrap(), status)
    };
    let text = refused(&face, &["--ip-adapter-image", &base], 2);
    assert!(
        text.contains("--ip-adapter-image: ") && text.contains("base.safetensors was encoded for another"),
        "{text}"
    );
    let text = refused(&adapter, &["--ip-adapter-image", &base, "--ip-adapter-negative-image", &plus], 2);
    assert!(text.contains("--ip-adapter-negative-image: ") && text.contains("holds 2 images"), "{text}");
    let text = refused(&adapter, &["--ip-adapter-image", &base, "--ip-adapter-fit", "pad"], 2);
    assert!(text.contains("--ip-adapter-fit: ") && text.contains("encoded with crop"), "{text}");
    let text = refused(&adapter, &["--ip-adapter-image", &base, "--save-reference", &case.path("seen.png")], 2);
    assert!(text.contains("--save-reference: an image-prompt file holds no image"), "{text}");
    let text = refused(&adapter, &["--ip-adapter-image", &adapter], 1);
    assert!(
        text.contains("ip-adapter.safetensors: this is a base IP-Adapter for SDXL; an image or an image-prompt"),
        "{text}"
    );
    let mut bytes = std::fs::read(&base).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&base, bytes).unwrap();
    assert!(refused(&adapter, &["--ip-adapter-image", &base], 1).contains("the image-prompt file is damaged"));
    let text = stdout(&super::run(&["inspect", &plus]));
    assert!(text.contains("an image-prompt file\n") && text.contains("metadata fit: crop"), "{text}");
}

/// Texts are added to the embedding of a file's images as to those of the images themselves.
#[test]
fn texts_beside_a_file() {
    let case = Case::make("diffusers", "heun-beta");
    let landscape = case.folder.join("../pictures/landscape.png").to_str().unwrap().to_owned();
    let (adapter, file) = (case.path("ip-adapter.safetensors"), case.path("reference.safetensors"));
    fine(encode(&case, "ip-adapter.safetensors", &[&landscape, "-o", &file]));
    let draw = |reference: &str, more: &[&str]| {
        fine(case.short(&[&["--ip-adapter", &adapter, "--ip-adapter-image", reference][..], more].concat()));
        image(&case)
    };
    let text = ["--ip-adapter-text", "a heap of stones:-0.5"];
    let by_image = draw(&landscape, &text);
    assert_ne!(by_image, draw(&landscape, &[]));
    assert_eq!(by_image, draw(&file, &text));
}

#[test]
fn wrong_encodings() {
    let case = Case::make("diffusers", "euler");
    let picture = case.folder.join("../pictures/landscape.png");
    let (picture, out) = (picture.to_str().unwrap(), case.path("out.safetensors"));
    let refused =
        |more: &[&str], status| failure(&encode(&case, "ip-adapter.safetensors", more).output().unwrap(), status);
    assert!(refused(&["-o", &out], 2).contains("encode-image: an image is needed"));
    assert!(refused(&[picture], 2).contains("--output"));
    assert!(refused(&[picture, "-o", &case.path("out.png")], 2).contains(".safetensors"));
    assert!(refused(&[picture, "-o", &out, "--steps", "2"], 2).contains("--steps"));
    assert!(refused(&[picture, "-o", &case.path("none/out.safetensors")], 1).contains("there is no folder"));
    assert!(refused(&["/none.png", "-o", &out], 1).contains("/none.png"));
    let adapter = case.path("ip-adapter.safetensors");
    assert!(refused(&[picture, "-o", &out, "--ip-adapter", &adapter], 2).contains("one is needed, got 2"));
    fine(encode(&case, "ip-adapter.safetensors", &[picture, "-o", &out]));
    let again = case.path("out-again.safetensors");
    assert!(refused(&[&out, "-o", &again], 2).contains("--ip-adapter-image: an embedding is among"));
    std::fs::remove_dir_all(case.path("image_encoder")).unwrap();
    assert!(refused(&[picture, "-o", &again], 2).contains("--clip-vision"));
    assert_eq!(case.written(), ["out.safetensors"]);
}
