//! The flags of an image prompt: what they write, and that they reach the result.

use super::{Case, run, stderr, stdout};
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

/// The second image's sheet is that of the image alone, with its seed.
#[test]
fn attribution_of_each_image() {
    let case = Case::make("diffusers", "euler");
    let reference = case.folder.join("../pictures/landscape.png").to_str().unwrap().to_owned();
    let (adapter, maps) = (case.path("ip-adapter.safetensors"), case.path("maps.png"));
    let sheet = |more: &[&str], name: &str| {
        let prompt = ["--ip-adapter", &adapter, "--ip-adapter-image", &reference, "--attribution", &maps];
        let output = case.short(&[&prompt[..], more].concat()).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        Image::open(case.path(name), AlphaMode::Ignore).unwrap()
    };
    let second = sheet(&["-s", "3", "-b", "2"], "maps-1.png");
    assert!(second == sheet(&["-s", "4"], "maps.png"));
    assert!(second != sheet(&["-s", "3"], "maps.png"));
}

/// Sheets whose rows are those of files with several images; `--json` names them.
#[test]
fn attribution_of_several_files() {
    let case = Case::make("diffusers", "euler");
    let picture = |name: &str| case.folder.join("../pictures").join(name).to_str().unwrap().to_owned();
    let (landscape, portrait) = (picture("landscape.png"), picture("portrait.png"));
    let (adapter, pair, maps) =
        (case.path("ip-adapter.safetensors"), case.path("pair.safetensors"), case.path("maps.png"));
    let encode = ["encode-image", "--device", "cpu", "--model", &case.path("."), "--ip-adapter", &adapter];
    let output = run(&[&encode[..], &[&landscape, &portrait, "-o", &pair]].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    let prompt = ["--ip-adapter", &adapter, "--ip-adapter-image", &pair, "--ip-adapter-image", &landscape];
    let output = case.short(&[&prompt[..], &["--attribution", &maps, "--json"]].concat()).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let report: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(report["attribution"], serde_json::json!([maps]));
    let sheet = Image::open(&maps, AlphaMode::Ignore).unwrap();
    // Three rows under a line of labels, behind names of nine letters, `landscape`.
    assert_eq!(sheet.height(), 2 * 12 + 24 + 3 * 32 + 2 * 8);
    let columns = (sheet.width() - (2 * 12 + 9 * 16 + 8) + 8) / 40;
    assert_eq!(sheet.width(), 2 * 12 + 9 * 16 + 8 + columns * 40 - 8);
    // Each row has its own reference's maps, behind the image: the third's is the first's, by another file.
    let row = |row: usize| -> Vec<u8> {
        let (x, y) = (12 + 9 * 16 + 8 + 40, 12 + 24 + row * 40);
        let part = (y..y + 32).flat_map(|y| &sheet.rgb()[(y * sheet.width() + x) * 3..(y + 1) * sheet.width() * 3]);
        part.copied().collect()
    };
    assert!(row(0) == row(2) && row(0) != row(1));
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
