//! Images that are drawn again from their metadata.

use super::{Case, braid, failure, stderr, stdout};
use braid::PngMetadata;
use braid::inputs::image::{AlphaMode, Image};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

fn draw_again(file: &str, more: &[&str]) -> Output {
    braid().args(["replay", file]).args(more).output().unwrap()
}

fn fine(mut command: Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
}

/// The same image comes again, and from what is written of it once more.
fn same(case: &Case, name: &str) {
    let (file, new, newer) = (case.path(name), case.path("out-new.png"), case.path("out-newer.png"));
    let output = draw_again(&file, &["-o", &new, "--json"]);
    assert!(output.status.success() && stderr(&output).is_empty(), "{name}: {}", stderr(&output));
    let json: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!((&json["largest_difference"], &json["different_pixels"]), (&0.into(), &0.into()), "{name}");
    assert_eq!((&json["file"], &json["output"]), (&file.as_str().into(), &new.as_str().into()));
    let output = draw_again(&new, &["-o", &newer]);
    assert!(output.status.success(), "{name}: {}", stderr(&output));
    assert!(stdout(&output).contains("largest difference 0, weights by fingerprints, "), "{}", stdout(&output));
    let open = |path: &str| Image::open(path, AlphaMode::Ignore).unwrap();
    assert!(open(&file) == open(&new) && open(&file) == open(&newer), "{name}");
}

fn metadata(file: &str) -> PngMetadata {
    let reader = png::Decoder::new(std::io::BufReader::new(std::fs::File::open(file).unwrap())).read_info().unwrap();
    let find = |key: &str| {
        let mut texts = reader.info().uncompressed_latin1_text.iter();
        texts.find(|text| text.keyword == key).map(|text| text.text.clone())
    };
    let mut metadata = PngMetadata::default();
    (metadata.parameters, metadata.braid) = (find("parameters"), find("braid"));
    metadata
}

/// Writes an image anew with a change of its text `braid`.
fn edit(file: &str, change: impl FnOnce(&mut Value)) {
    let mut metadata = metadata(file);
    let mut json = serde_json::from_str(&metadata.braid.unwrap()).unwrap();
    change(&mut json);
    metadata.braid = Some(json.to_string());
    Image::open(file, AlphaMode::Ignore).unwrap().save_with_metadata(file, &metadata).unwrap();
}

/// One of several images with references, LoRA and preset, image to image with a mask, noise of a file, a drawn seed.
#[test]
fn same_images() {
    let case = Case::make("diffusers", "euler");
    let picture = |name: &str| case.folder.join("../pictures").join(name).to_str().unwrap().to_owned();
    let (landscape, portrait, ramp) = (picture("landscape.png"), picture("portrait.png"), picture("mask-ramp.png"));
    let adapter = case.path("ip-adapter.safetensors");
    let references = ["--ip-adapter", &adapter, "--ip-adapter-image", &landscape, "--ip-adapter-mask", &ramp];
    let more = ["--ip-adapter-strength", "0.5", "--ip-adapter-negative-image", &portrait, "-b", "2", "-s", "4"];
    fine(case.short(&[&references[..], &more, &["--sampling-method", "euler-a", "--steps", "3"]].concat()));
    same(&case, "out-1.png");
    fine(case.short(&["-s", "-1", "-n", "\u{732b}", "--dtype", "f16", "--steps", "2"]));
    same(&case, "out.png");
    let stages = case.path("out.safetensors");
    fine(case.short(&["-b", "2", "-s", "7", "--dump", &stages]));
    let noise = case.path("noise.safetensors");
    let tensors = std::fs::read(&stages).unwrap();
    let all = safetensors::SafeTensors::deserialize(&tensors).unwrap();
    std::fs::write(&noise, safetensors::serialize([("noise", all.tensor("noise").unwrap())], None).unwrap()).unwrap();
    fine(case.short(&["-b", "2", "--latents-in", &noise, "-s", "1"]));
    same(&case, "out-1.png");

    let case = Case::make("diffusers", "lora-text");
    let lora = format!("{}:-0.5", case.path("text.safetensors"));
    fine(case.short(&["--lora", &lora, "--preset", "lcm"]));
    same(&case, "out.png");
    let case = Case::make("diffusers", "inpaint-blend");
    let mask = picture("mask.png");
    fine(case.short(&["-i", &landscape, "--mask", &mask, "--steps", "3", "--strength", "0.9", "-b", "2"]));
    same(&case, "out-1.png");
}

/// No folder of this machine is in an image without paths, nothing in one without metadata, and neither can be drawn again.
#[test]
fn without_paths_and_without_metadata() {
    let case = Case::make("diffusers", "euler");
    let landscape = case.path("landscape.png");
    std::fs::copy(case.folder.join("../pictures/landscape.png"), &landscape).unwrap();
    let (adapter, encoder, lines) =
        (case.path("ip-adapter.safetensors"), case.path("image_encoder/"), case.path("lines.jsonl"));
    std::fs::write(&lines, format!("{{\"init_img\": {landscape:?}, \"mask\": {landscape:?}}}\n")).unwrap();
    let references = ["--ip-adapter", &adapter, "--ip-adapter-image", &landscape, "--clip-vision", &encoder];
    let plain = ["-i", &landscape, "--mask", &landscape, "--ip-adapter-negative-image", &landscape];
    let folder = case.dir.path().to_str().unwrap();
    let file = case.path("out.png");
    let draw = |how: &str, more: &[&str]| {
        fine(case.short(&[&references[..], more, &["--steps", "2", "--metadata", how]].concat()));
        (metadata(&file), String::from_utf8_lossy(&std::fs::read(&file).unwrap()).contains(folder))
    };
    let (full, named) = draw("full", &plain);
    assert!(named && full.braid.unwrap().contains("\"command\":[\"generate\""));
    let (without, named) = draw("no-paths", &plain);
    assert!(!named, "{without:?}");
    assert_eq!(without.parameters, full.parameters);
    let json: Value = serde_json::from_str(&without.braid.unwrap()).unwrap();
    let landscape = Value::from("landscape.png");
    let adapter = &json["ip_adapters"][0];
    assert_eq!(adapter["ip_adapter"], "ip-adapter.safetensors");
    for name in [&adapter["images"][0], &adapter["negative_image"], &json["init_img"], &json["mask"]] {
        assert_eq!(*name, landscape);
    }
    assert_eq!((&json["clip_vision"], &json["command"]), (&"image_encoder".into(), &Value::Null));
    assert!(json["inputs"][0]["path"] == landscape && json["inputs"][0]["xxh3"].is_string(), "{json}");
    let text = failure(&draw_again(&file, &[]), 1);
    assert!(text.contains("--metadata no-paths, without the command"), "{text}");
    let (batch, named) = draw("no-paths", &["--batch", &lines]);
    assert!(!named && batch.braid.as_ref().unwrap().contains("\"mask\":\"landscape.png\""), "{batch:?}");
    assert_eq!(draw("none", &plain), (PngMetadata::default(), false));
    let text = failure(&draw_again(&file, &[]), 1);
    assert!(text.contains("written with --metadata none"), "{text}");
    let grid = |how: &str| {
        let command = case.short(&[&references[..], &["--metadata", how]].concat());
        let arguments = command.get_args().skip(1).chain(["--over", "seed=1,2"].map(std::ffi::OsStr::new));
        fine({
            let mut sweep = braid();
            sweep.arg("sweep").args(arguments);
            sweep
        });
        (metadata(&file).braid, String::from_utf8_lossy(&std::fs::read(&file).unwrap()).contains(folder))
    };
    let (without, named) = grid("no-paths");
    assert!(!named && without.as_ref().unwrap().contains("landscape.png"), "{without:?}");
    assert_eq!(grid("none"), (None, false));
}

/// Images of a file of requests, and a grid.
#[test]
fn batches_and_grids() {
    let case = Case::make("diffusers", "euler");
    let (reference, lines) = (case.path("reference.png"), case.path("lines.jsonl"));
    let image = Image::new(20, 30, (0..1800).map(|i| (i * 7 % 251) as u8).collect()).unwrap();
    image.save(Path::new(&reference)).unwrap();
    let text = format!(
        "{{\"seed\": 3, \"batch_count\": 2}}\n{{\"ip_adapter_image\": [\"{reference}\", \"{reference}\"], \"steps\": 2}}"
    );
    std::fs::write(&lines, text).unwrap();
    let (adapter, encoder) = (case.path("ip-adapter.safetensors"), case.path("image_encoder"));
    let common = ["--ip-adapter", &adapter, "--ip-adapter-image", &reference, "--clip-vision", &encoder];
    fine(case.short(&[&common[..], &["--batch", &lines]].concat()));
    // The lines are in the images.
    std::fs::remove_file(&lines).unwrap();
    same(&case, "out-1.png");
    same(&case, "out-2.png");
    let short = case.short(&[&common[..], &["--over", "strength=0:1:0.5", "--over", "seed=3,5"]].concat());
    let mut command = braid();
    command.args(short.get_args().map(|arg| if arg == "generate" { "sweep".as_ref() } else { arg }));
    fine(command);
    same(&case, "out.png");
}

/// An image that was changed, and one whose files are gone or others.
#[test]
fn other_images_and_files() {
    let case = Case::make("diffusers", "euler");
    let (reference, out) = (case.path("reference.png"), case.path("out.png"));
    let image = |offset: u8| Image::new(20, 30, vec![offset; 1800]).unwrap();
    image(7).save(&reference).unwrap();
    let adapter = case.path("ip-adapter.safetensors");
    fine(case.short(&["--ip-adapter", &adapter, "--ip-adapter-image", &reference]));
    let whole = std::fs::read(&out).unwrap();
    let old = Image::open(&out, AlphaMode::Ignore).unwrap();
    let mut rgb = old.rgb().to_vec();
    (rgb[0], rgb[5]) = (rgb[0].wrapping_add(128), rgb[5] ^ 1);
    Image::new(32, 32, rgb).unwrap().save_with_metadata(&out, &metadata(&out)).unwrap();
    let output = draw_again(&out, &["-o", &case.path("out-new.png")]);
    let text = failure(&output, 1);
    assert!(text.contains("2 of its pixels differ, by up to 128 of 255"), "{text}");
    assert!(stdout(&output).contains("largest difference 128"), "{}", stdout(&output));
    assert_eq!(Image::open(case.path("out-new.png"), AlphaMode::Ignore).unwrap(), old);
    Image::new(16, 64, old.rgb().to_vec()).unwrap().save_with_metadata(&out, &metadata(&out)).unwrap();
    assert!(failure(&draw_again(&out, &[]), 1).contains("it has 16x64 pixels, drawn again 32x32"));
    std::fs::write(&out, &whole).unwrap();

    image(8).save(&reference).unwrap();
    let text = failure(&draw_again(&out, &[]), 1);
    assert!(text.contains("reference.png is another file than it was"), "{text}");
    std::fs::remove_file(&reference).unwrap();
    assert!(failure(&draw_again(&out, &[]), 1).contains("reference.png is not there"));
    image(7).save(&reference).unwrap();
    // The first byte of a tensor, which fingerprints have; then one that they have not.
    let unet = case.path("unet/diffusion_pytorch_model.safetensors");
    let weights = std::fs::read(&unet).unwrap();
    let at = 8 + u64::from_le_bytes(*weights.first_chunk().unwrap()) as usize;
    let change = |at: usize| {
        let mut changed = weights.clone();
        changed[at] ^= 1;
        std::fs::write(&unet, changed).unwrap();
    };
    let recorded = || case.short(&["--ip-adapter", &adapter, "--ip-adapter-image", &reference, "--record-hashes"]);
    change(at);
    let text = failure(&draw_again(&out, &[]), 1);
    assert!(text.contains("its weights are not those of now: unet of ") && !text.contains("vae of"), "{text}");
    let far = far_byte(&weights, at);
    change(far);
    // The lowest bit of a weight changes no pixel.
    assert!(draw_again(&out, &[]).status.success());
    std::fs::write(&unet, &weights).unwrap();
    fine(recorded());
    let output = draw_again(&out, &["--json"]);
    let json: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!((&json["weights"], &json["largest_difference"]), (&"hashes".into(), &0.into()));
    // Another image of it has hashes, too.
    let new = case.path("out-new.png");
    assert!(draw_again(&out, &["-o", &new]).status.success());
    let json: Value = serde_json::from_str(&metadata(&new).braid.unwrap()).unwrap();
    assert!(json["weights"]["unet"].as_str().unwrap().starts_with("xxh3:"), "{json}");
    change(far);
    assert!(failure(&draw_again(&out, &[]), 1).contains("unet of "));
    std::fs::remove_file(&unet).unwrap();
    assert!(failure(&draw_again(&out, &[]), 1).contains("unet"));
}

/// A mask and a negative image that are others than they were; a model that the record does not know.
#[test]
fn other_masks_and_models() {
    let case = Case::make("diffusers", "euler");
    let picture = |name: &str| case.folder.join("../pictures").join(name).to_str().unwrap().to_owned();
    let (adapter, out) = (case.path("ip-adapter.safetensors"), case.path("out.png"));
    let [mask, negative] = ["mask.png", "negative.png"].map(|name| case.path(name));
    let write = |file: &str, value: u8| Image::new(8, 8, vec![value; 192]).unwrap().save(Path::new(file)).unwrap();
    write(&mask, 200);
    write(&negative, 90);
    let reference =
        ["--ip-adapter", &adapter, "--ip-adapter-image", &picture("landscape.png"), "--ip-adapter-mask", &mask];
    fine(case.short(&[&reference[..], &["--ip-adapter-negative-image", &negative]].concat()));
    for (file, value) in [(&mask, 200), (&negative, 90)] {
        write(file, value + 1);
        let text = failure(&draw_again(&out, &[]), 1);
        assert!(text.contains(&format!("{file} is another file than it was")), "{text}");
        write(file, value);
    }
    assert!(draw_again(&out, &[]).status.success());
    edit(&out, |json| drop(json["weights"].as_object_mut().unwrap().remove("vae")));
    assert!(failure(&draw_again(&out, &[]), 1).contains("vae of "));
}

/// The place of a byte of a tensor's data that is neither among its first ones nor in its middle.
fn far_byte(file: &[u8], data: usize) -> usize {
    let header: Value = serde_json::from_slice(&file[8..data]).unwrap();
    let ranges = header.as_object().unwrap().values().filter_map(|tensor| tensor["data_offsets"].as_array());
    let ends = ranges.map(|range| [0, 1].map(|i| range[i].as_u64().unwrap() as usize));
    let [begin, _] = ends.into_iter().find(|[begin, end]| end - begin > 1000).unwrap();
    data + begin + 200
}

/// Images without metadata, or with those of others.
#[test]
fn other_metadata() {
    let case = Case::make("diffusers", "euler");
    let out = case.path("out.png");
    fine(case.short(&[]));
    let (image, own) = (Image::open(&out, AlphaMode::Ignore).unwrap(), metadata(&out));
    let refused = |text: &str| {
        let told = failure(&draw_again(&out, &[]), 1);
        assert!(told.contains(text) && told.contains("out.png"), "{text}: {told}");
    };
    image.save(&out).unwrap();
    refused("it has no text `braid`");
    let mut other = own.clone();
    other.braid = None;
    image.save_with_metadata(&out, &other).unwrap();
    refused("made by another program");
    other.braid = Some("{".into());
    image.save_with_metadata(&out, &other).unwrap();
    refused("its text `braid` is damaged");
    let with = |change: &dyn Fn(&mut Value)| {
        image.save_with_metadata(&out, &own).unwrap();
        edit(&out, change);
    };
    with(&|json| drop(json.as_object_mut().unwrap().remove("command")));
    refused(concat!("made by Braid ", env!("CARGO_PKG_VERSION"), ", which did not record its command yet"));
    with(&|json| json["command"] = Value::Null);
    refused("not UTF-8");
    with(&|json| json["command"] = serde_json::json!(["demo"]));
    refused("its command is `demo`");
    with(&|json| json["command"] = serde_json::json!(["generate", "--stepz", "2"]));
    refused("its command cannot be run: option --stepz is not known");
    with(&|json| json["noise_dtype"] = "f8".into());
    refused("its noise is of the type f8");
    with(&|json| json["weights"]["lora"] = "fingerprint:0".into());
    refused("lora, which is not loaded now");
    with(&|json| json["inputs"] = serde_json::json!([{"path": "a pipe", "xxh3": null}]));
    refused("a pipe was no regular file");
    let jpeg = case.path("out.jpg");
    fine(case.short(&["-o", &jpeg]));
    assert!(failure(&draw_again(&jpeg, &[]), 1).contains("out.jpg: no PNG file"));
    assert!(failure(&draw_again("/none.png", &[]), 1).contains("/none.png"));
    assert!(failure(&draw_again(&out, &["-o", "a.bmp"]), 2).contains("a.bmp"));
    let none = braid().arg("replay").output().unwrap();
    assert!(failure(&none, 2).contains("one PNG is needed, got 0"));
    assert!(failure(&draw_again(&out, &[&out]), 2).contains("got 2"));
}
