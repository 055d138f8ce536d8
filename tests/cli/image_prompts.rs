//! The flags of an image prompt: what they write, and that they reach the result.

use super::{Case, stderr};
use braid::inputs::image::{AlphaMode, Image};
use serde_json::Value;

#[test]
fn image_prompt_flags() {
    let case = Case::make("diffusers", "euler");
    let picture = |name: &str| case.folder.join("../pictures").join(name).to_str().unwrap().to_owned();
    let (landscape, portrait, alpha) = (picture("landscape.png"), picture("portrait.png"), picture("alpha.png"));
    let (ramp, disc) = (picture("mask-ramp.png"), picture("mask-disc.png"));
    let (adapter, seen) = (case.path("ip-adapter.safetensors"), case.path("seen.png"));
    let args = [
        ["--ip-adapter", adapter.as_str()],
        ["--ip-adapter-image", &landscape],
        ["--ip-adapter-weight", "0.5"],
        ["--ip-adapter-mask", &ramp],
        ["--ip-adapter-image", &portrait],
        ["--ip-adapter-mask", &disc],
        ["--ip-adapter-combine", "add"],
        ["--ip-adapter-end", "1"],
        ["--ip-adapter-negative-image", &alpha],
        ["--ip-adapter-fit", "pad"],
        ["--save-reference", &seen],
    ]
    .concat();
    let output = case.short(&args).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    // As large as the encoder's input; the padding stands above and below, and left and right.
    for (name, edge) in [("seen-0.png", 14), ("seen-1.png", 14 * 28)] {
        let reference = Image::open(case.path(name), AlphaMode::Ignore).unwrap();
        assert_eq!((reference.width(), reference.height()), (28, 28));
        assert_eq!(reference.rgb()[3 * edge..][..3], [123, 117, 104], "{name}");
    }
    let file = std::io::BufReader::new(std::fs::File::open(case.path("out.png")).unwrap());
    let reader = png::Decoder::new(file).read_info().unwrap();
    let texts = &reader.info().uncompressed_latin1_text;
    let words = "IP-Adapter weights: 0.5 1, IP-Adapter masks: mask-ramp mask-disc, IP-Adapter combine: add, \
                 IP-Adapter end: 1, IP-Adapter negative image: alpha";
    assert!(texts[0].text.contains(words), "{}", texts[0].text);
    let json: Value = serde_json::from_str(&texts[1].text).unwrap();
    let prompt = &json["ip_adapters"][0];
    assert_eq!((&prompt["weights"], &prompt["combine"]), (&serde_json::json!([0.5, 1.0]), &"add".into()));
    assert_eq!((&json["ip_adapter_fit"], prompt["masks"].as_array().map(Vec::len)), (&"pad".into(), Some(2)));

    // One after the other left out, the image is another one.
    let whole = Image::open(case.path("out.png"), AlphaMode::Ignore).unwrap();
    for flag in ["--ip-adapter-weight", "--ip-adapter-negative-image", "--ip-adapter-fit"] {
        let pairs = args.chunks(2).filter(|pair| pair[0] != flag && pair[0] != "--save-reference");
        let output = case.short(&pairs.flatten().copied().collect::<Vec<_>>()).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        assert_ne!(Image::open(case.path("out.png"), AlphaMode::Ignore).unwrap(), whole, "{flag}");
    }
}

/// A sheet for each image, beside it, and the same images as without.
#[test]
fn attribution_sheets() {
    let case = Case::make("diffusers", "euler");
    let reference = case.folder.join("../pictures/landscape.png").to_str().unwrap().to_owned();
    let adapter = case.path("ip-adapter.safetensors");
    let draw = |more: &[&str]| {
        let prompt = ["-b", "2", "--ip-adapter", &adapter, "--ip-adapter-image", &reference];
        let output = case.short(&[&prompt[..], more].concat()).output().unwrap();
        assert!(output.status.success() && stderr(&output).is_empty(), "{}", stderr(&output));
        ["out-0.png", "out-1.png"].map(|name| Image::open(case.path(name), AlphaMode::Ignore).unwrap())
    };
    let plain = draw(&[]);
    assert!(draw(&["--attribution", &case.path("out-maps.png")]) == plain);
    assert_eq!(case.written(), ["out-0.png", "out-1.png", "out-maps-0.png", "out-maps-1.png"]);
    let sheets = ["out-maps-0.png", "out-maps-1.png"];
    let sheets = sheets.map(|name| Image::open(case.path(name), AlphaMode::Ignore).unwrap());
    // The image, down, mid and up at least, and the reference's name before them.
    assert!(sheets[0].width() > 4 * 32 + "landscape".len() * 16 && sheets[0].height() > 32);
    assert!(sheets[0] != sheets[1]);
    // The greatest value of a sheet is white.
    assert!(sheets.iter().all(|sheet| sheet.rgb().chunks_exact(3).any(|pixel| pixel == [255; 3])));
}
