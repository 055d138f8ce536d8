//! Encoded images: files that take the place of references and need no image encoder.

use super::*;
use braid::error::Field;
use braid::{AlphaMode, Combine, EncodedImage, Fit, Reference};
use std::io::{Seek, SeekFrom, Write};
use std::path::PathBuf;

const BASE: &str = "ip-adapter.safetensors";
const PLUS: &str = "ip-adapter-plus.safetensors";

fn demo_file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo").join(name)
}

/// The bundled model, with its image encoder or without.
fn demo(adapter: &str, encoder: bool) -> Pipeline {
    let mut options = PipelineOptions::new(demo_file("sdxl.safetensors"))
        .with_config(demo_file("config"))
        .with_adapter(demo_file(adapter));
    options.clip_vision = encoder.then(|| demo_file("image_encoder"));
    Pipeline::load(&options).unwrap()
}

fn references() -> [Image; 3] {
    let open = |n: usize| Image::open(demo_file(&format!("references/{n}.png")), AlphaMode::CompositeOnWhite).unwrap();
    // One that is not square.
    let wide = Image::new(30, 20, (0..1800).map(|i| (i * 37 % 251) as u8).collect()).unwrap();
    [open(1), open(3), wide]
}

fn asked(prompt: ImagePrompt) -> Request {
    let mut request = Request::new("a big star").with_steps(2).with_guidance_scale(3.0).with_seed(3);
    request.image_prompts = vec![prompt];
    request
}

fn prompt<T: Into<ReferenceImage>>(images: Vec<T>) -> ImagePrompt {
    images.into_iter().fold(ImagePrompt::default(), |prompt, image| prompt.with_reference(image.into()))
}

/// The same images, byte for byte, without the encoder: one reference and several, weights, means and masks, a negative image.
#[test]
fn files_in_the_place_of_images() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    for adapter in [BASE, PLUS] {
        let (encoding, seeing, blind) = (demo(adapter, true), demo(adapter, true), demo(adapter, false));
        let [first, second, wide] = references();
        let images = || prompt(vec![first.clone(), wide.clone()]).with_fit(Fit::Pad);
        EncodedImage::save(&encoding.encode_references(0, &images()).unwrap(), path("two")).unwrap();
        EncodedImage::save(&encoding.encode_references(0, &prompt(vec![second.clone()])).unwrap(), path("one"))
            .unwrap();
        let (two, one) = (EncodedImage::load(path("two")).unwrap(), EncodedImage::load(path("one")).unwrap().remove(0));
        assert_eq!((two.len(), two[1].source_size(), one.path()), (2, (30, 20), path("one").as_path()));
        let opened = ReferenceImage::open(path("two"), AlphaMode::Ignore).unwrap();
        assert_eq!(opened, two.iter().cloned().map(ReferenceImage::from).collect::<Vec<_>>());

        type Change = fn(ImagePrompt, ReferenceImage) -> ImagePrompt;
        let mask = || Image::new(2, 1, vec![0, 0, 0, 255, 255, 255]).unwrap();
        let changes: [Change; 4] = [
            |prompt, _| prompt,
            |mut prompt, _| {
                prompt.references[0].weight = 0.3;
                prompt.with_combine(Combine::Average)
            },
            |prompt, negative| prompt.with_negative_image(negative),
            |mut prompt, other| {
                prompt.references.remove(0);
                prompt.with_reference(other)
            },
        ];
        for (i, change) in changes.into_iter().enumerate() {
            let by_image = asked(change(images(), second.clone().into()));
            let by_file = asked(change(prompt(two.clone()), one.clone().into()));
            let (seen, encoders) = compiled(|| generate(&seeing, &by_image).unwrap());
            let (unseen, none) = compiled(|| generate(&blind, &by_file).unwrap());
            assert_eq!(seen, unseen, "{adapter}: change {i}");
            if i == 0 {
                assert_eq!(encoders, none + 1, "{adapter}");
                // Beside the encoder that it was made with, too.
                assert_eq!(generate(&seeing, &by_file).unwrap(), unseen);
            }
        }
        let masked = |image: ReferenceImage| {
            asked(ImagePrompt::default().with_reference(Reference::new(image).with_mask(mask())))
        };
        assert_eq!(
            generate(&blind, &masked(one.clone().into())).unwrap(),
            generate(&seeing, &masked(second.clone().into())).unwrap()
        );
        let captured = asked(prompt(two.clone())).with_capture_intermediates(true);
        let tokens = &blind.generate(&captured).unwrap().intermediates["image_tokens"].data;
        let stored: Vec<f32> = two.iter().flat_map(EncodedImage::tokens).copied().collect();
        assert!(relative(&stored, tokens) < 1e-6);
        // The same images, the same file.
        EncodedImage::save(&encoding.encode_references(0, &images()).unwrap(), path("again")).unwrap();
        assert_eq!(std::fs::read(path("two")).unwrap(), std::fs::read(path("again")).unwrap());
    }
}

/// A file that was cut anywhere, and one with a changed bit, are refused and panic nowhere.
#[test]
fn damaged_files() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("one.safetensors");
    let encoded = demo(BASE, true).encode_references(0, &prompt(vec![references()[0].clone()])).unwrap();
    EncodedImage::save(&encoded, &path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let mut file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    let mut write = |at: usize, byte: u8| {
        file.seek(SeekFrom::Start(at as u64)).unwrap();
        file.write_all(&[byte]).unwrap();
    };
    let header = 8 + u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    for at in (0..header).chain((header..bytes.len()).step_by(5)) {
        write(at, bytes[at] ^ 1 << (at % 8));
        refused(EncodedImage::load(&path), &format!("a changed byte {at}"));
        write(at, bytes[at]);
    }
    assert_eq!(EncodedImage::load(&path).unwrap()[0].embedding(), encoded[0].embedding());
    for length in (0..bytes.len()).rev() {
        file.set_len(length as u64).unwrap();
        refused(ReferenceImage::open(&path, AlphaMode::Ignore), &format!("{length} bytes"));
        refused(EncodedImage::load(&path), &format!("{length} bytes"));
    }
    let text = refused(EncodedImage::load(demo_file("lora.safetensors")), "a LoRA").to_string();
    assert!(text.contains("this is a LoRA; an image or an image-prompt file is needed"), "{text}");
}

/// Images for another adapter, of another encoder, another size or fit.
#[test]
fn other_adapters_and_encoders() {
    let model = Model::folder();
    let image = || references()[2].clone();
    let fitted = || ImagePrompt::new(image()).with_fit(Fit::Stretch).with_resize((24, 12));
    let encode = |prompt: &ImagePrompt| model.load().unwrap().encode_references(0, prompt);
    let one = encode(&ImagePrompt::new(image())).unwrap();
    let stretched = encode(&fitted()).unwrap();
    let small = |prompt: ImagePrompt| {
        let mut request = request();
        request.image_prompts = vec![prompt];
        request
    };
    let refuse = |prompt: ImagePrompt, field: Field| {
        let error = refused(generate(&model.load().unwrap(), &small(prompt)), field.name());
        assert!(matches!(&error, Error::Parameter { field: named, .. } if *named == field), "{error}");
        error.to_string()
    };
    let pipeline = model.load().unwrap();
    let by_image = generate(&pipeline, &small(fitted())).unwrap();
    assert_eq!(generate(&pipeline, &small(prompt(stretched.clone()))).unwrap(), by_image);
    assert_eq!(generate(&pipeline, &small(prompt(stretched.clone()).with_fit(Fit::Stretch))).unwrap(), by_image);
    assert!(refuse(prompt(one.clone()).with_fit(Fit::Pad), Field::Fit).contains("was encoded with crop"));
    assert!(refuse(prompt(stretched).with_resize((12, 24)), Field::Resize).contains("was encoded with 24x12"));
    assert!(matches!(encode(&prompt(one.clone())), Err(Error::Parameter { field: Field::ImagePrompts, .. })));
    assert!(matches!(encode(&ImagePrompt::default()), Err(Error::Parameter { field: Field::ImagePrompts, .. })));
    let error = refused(pipeline.encode_references(1, &fitted()), "no such adapter");
    assert!(matches!(error, Error::Parameter { field: Field::Adapters, .. }), "{error}");

    let encoder = std::fs::read(model.path(PARTS[4].1)).unwrap();
    model.edit(PARTS[4].1, |tensors| {
        let changed = tensors.get_mut("vision_model.post_layernorm.bias").unwrap();
        changed.poison(0.25, Some(3));
    });
    let text = refuse(prompt(one.clone()), Field::ImagePrompts);
    assert!(text.contains("another image encoder than") && text.contains("clip_vision out"), "{text}");
    std::fs::write(model.path(PARTS[4].1), &encoder).unwrap();
    assert!(generate(&model.load().unwrap(), &small(prompt(one.clone()))).is_ok());
    // Heads are in no tensor.
    model.edit_json("image_encoder/config.json", |config| config["num_attention_heads"] = json!(1));
    assert!(refuse(prompt(one.clone()), Field::ImagePrompts).contains("another image encoder"));
    model.edit(ADAPTER, |tensors| tensors.get_mut("image_proj.norm.bias").unwrap().poison(0.25, Some(0)));
    let text = refuse(prompt(one.clone()), Field::ImagePrompts);
    assert!(text.contains("an encoded image was encoded for another IP-Adapter than"), "{text}");
    let negative = ImagePrompt::new(image()).with_negative_image(one[0].clone());
    assert!(refuse(negative, Field::NegativeImage).contains("another IP-Adapter"));
}
