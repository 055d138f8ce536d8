//! TAESD: its files, what each half does, previews by it, what is refused. The arithmetic is compared with diffusers in tests/goldens.rs.

use super::*;
use braid::pipeline::{Callbacks, Preview};
use common::{Tensor, Tensors};

const FILE: &str = "taesd/diffusion_pytorch_model.safetensors";

fn options(model: &Model, taesd: Option<&str>) -> PipelineOptions {
    let mut options = PipelineOptions::new(model.dir.path());
    options.taesd = taesd.map(|path| model.path(path));
    options.threads = Some(1);
    options
}

fn load(model: &Model, taesd: &str) -> braid::Result<Pipeline> {
    Pipeline::load(&options(model, Some(taesd)))
}

fn small() -> Request {
    Request::new("a red fox").with_steps(2).with_width(48).with_height(32).with_seed(3)
}

fn begun() -> Request {
    let picture = Image::new(48, 32, (0..48 * 32 * 3).map(|i| (i * 7 % 251) as u8).collect()).unwrap();
    small().with_init_image(picture).with_strength(0.5)
}

fn init_latents(pipeline: &Pipeline) -> Vec<f32> {
    pipeline.generate(&begun().with_capture_intermediates(true)).unwrap().intermediates["init_latents"].data.clone()
}

/// Writes the tensors under other names; those without one are left out.
fn write(model: &Model, file: &str, rename: impl Fn(&str) -> Option<String>) {
    std::fs::copy(model.path(FILE), model.path(file)).unwrap();
    model.edit(file, |tensors| {
        *tensors = std::mem::take(tensors).into_iter().filter_map(|(n, t)| Some((rename(&n)?, t))).collect();
    });
}

/// The original name, behind a prefix: the decoder's layers are one further.
fn original(name: &str, half: &str, prefix: &str) -> Option<String> {
    let (n, rest) = name.strip_prefix(half)?.strip_prefix(".layers.")?.split_once('.')?;
    Some(format!("{prefix}{}.{rest}", n.parse::<usize>().unwrap() + usize::from(half == "decoder")))
}

/// One half or both, under every name; the VAE does what a file lacks.
#[test]
fn files_of_each_layout() {
    let model = Model::golden("diffusers", "taesd");
    // The scaling factor is one of the golden's own.
    std::fs::remove_file(model.path("taesd/config.json")).unwrap();
    let vae = Pipeline::load(&options(&model, None)).unwrap();
    let whole = load(&model, FILE).unwrap();
    let (decoded, encoded) = (generate(&whole, &small()).unwrap(), init_latents(&whole));
    assert_ne!(decoded, generate(&vae, &small()).unwrap());
    assert_ne!(encoded, init_latents(&vae));
    write(&model, "taesdxl_decoder.safetensors", |n| original(n, "decoder", ""));
    write(&model, "taesdxl_encoder.safetensors", |n| original(n, "encoder", ""));
    write(&model, "halves.safetensors", |n| {
        original(n, "encoder", "taesd_encoder.").or_else(|| original(n, "decoder", "taesd_decoder."))
    });
    write(&model, "class.safetensors", |n| {
        original(n, "encoder", "encoder.").or_else(|| original(n, "decoder", "decoder."))
    });
    for (file, decodes, encodes) in [
        ("taesdxl_decoder.safetensors", true, false),
        ("taesdxl_encoder.safetensors", false, true),
        ("halves.safetensors", true, true),
        ("class.safetensors", true, true),
        ("taesd", true, true),
    ] {
        let pipeline = load(&model, file).unwrap();
        assert_eq!(generate(&pipeline, &small()).unwrap() == decoded, decodes, "{file}");
        assert_eq!(init_latents(&pipeline) == encoded, encodes, "{file}");
        assert_eq!(init_latents(&pipeline) == init_latents(&vae), !encodes, "{file}");
    }
    // Nothing is drawn for the encoder: the noise is the first draw, as without an image.
    let noise = |request: &Request| {
        whole.generate(&request.clone().with_capture_intermediates(true)).unwrap().intermediates["noise"].data.clone()
    };
    assert_eq!(noise(&begun()), noise(&small()));
}

/// Previews are decoded by it, nothing more is compiled for them, and the last one is the image.
#[test]
fn previews_and_counts() {
    let model = Model::golden("diffusers", "taesd");
    let pipeline = load(&model, "taesd").unwrap();
    let request = small().with_steps(3).with_num_images(2);
    let want = pipeline.generate(&request).unwrap();
    let mut seen = Vec::new();
    let mut show = |preview: Preview| seen.push(preview);
    let callbacks = Callbacks::new().with_preview(1, &mut show);
    let (got, compiles) = compiled(|| pipeline.generate_with(&request, callbacks).unwrap());
    assert_eq!((compiles, got.images == want.images), (0, true));
    assert_eq!(seen.len(), 6);
    for (preview, image) in [&seen[4], &seen[5]].into_iter().zip(&want.images) {
        let apart = preview.pixels.rgb().iter().zip(image.rgb()).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        assert!(preview.pixels.width() == 48 && apart <= 1, "{apart}");
    }
    assert_ne!(seen[0].pixels, seen[4].pixels);
    // The first image to begin with compiles the encoder.
    assert_eq!(compiled(|| generate(&pipeline, &begun().with_steps(3).with_num_images(2)).unwrap()).1, 1);
}

#[test]
fn wrong_files() {
    let model = Model::golden("diffusers", "taesd");
    let error = |file: &str| refused(load(&model, file), file).to_string();
    let text = error("vae");
    assert!(text.contains("`_class_name` is \"AutoencoderKL\""), "{text}");
    let text = error("vae/diffusion_pytorch_model.safetensors");
    assert!(text.contains("this is a VAE; TAESD for SDXL is needed, such as taesdxl"), "{text}");
    let text = error("unet/diffusion_pytorch_model.safetensors");
    assert!(text.contains("this is an SDXL UNet with diffusers' names; TAESD"), "{text}");
    let given = options(&model, None).with_vae(model.path(FILE));
    let text = refused(Pipeline::load(&given), "as the VAE").to_string();
    assert!(text.contains("this is TAESD, a tiny autoencoder, which has an option of its own"), "{text}");
    let edited = |change: &dyn Fn(&mut Tensors)| {
        write(&model, "edited.safetensors", |n| Some(n.to_owned()));
        model.edit("edited.safetensors", change);
        error("edited.safetensors")
    };
    let shaped = |tensor: &Tensor, shape: &[usize]| tensor.shaped(shape);
    let text = edited(&|tensors| {
        let first = shaped(&tensors["decoder.layers.0.weight"], &[16, 16, 3, 3]);
        tensors.insert("decoder.layers.0.weight".into(), first);
    });
    assert!(text.contains("the TAESD decoder is for latents of 16 channels") && text.contains("or Flux"), "{text}");
    let text = edited(&|tensors| drop(tensors.remove("decoder.layers.7.conv.2.bias")));
    assert!(text.contains("TAESD decoder: decoder.layers.7.conv.2.bias missing"), "{text}");
    let text = edited(&|tensors| drop(tensors.remove("encoder.layers.6.weight")));
    assert!(text.contains("the TAESD encoder is not TAESD's: layer 6"), "{text}");
    // A level less: other pixels to a latent.
    let text = edited(&|tensors| {
        let layer = |name: &str| name.strip_prefix("decoder.layers.")?.split('.').next()?.parse::<usize>().ok();
        let all = std::mem::take(tensors).into_iter().filter(|(name, _)| !matches!(layer(name), Some(15..=17)));
        *tensors =
            all.map(|(name, tensor)| (name.replace("decoder.layers.18.", "decoder.layers.15."), tensor)).collect();
    });
    assert!(text.contains("of 4 channels with 4 pixels to a latent; the model's have 4 and 8"), "{text}");
    write(&model, "edited.safetensors", |n| Some(n.to_owned()));
    model.edit("edited.safetensors", |t| t.get_mut("decoder.layers.0.bias").unwrap().poison(f32::NAN, Some(0)));
    let pipeline = load(&model, "edited.safetensors").unwrap();
    match refused(generate(&pipeline, &small()), "NaN") {
        Error::NotFinite { hint, .. } => assert!(hint.contains("edited.safetensors: decoder.layers.0.bias"), "{hint}"),
        other => panic!("{other}"),
    }
}
