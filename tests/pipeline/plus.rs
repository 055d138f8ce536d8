//! IP-Adapter Plus through the whole pipeline: files, embeddings, the negative row, what does not fit.

use super::*;
use braid::error::Field;
use braid::inputs::resize::{Resampling, resize};
use braid::{Compat, Fit, Reference};

const PLUS: &str = "plus-face.safetensors";

/// A base adapter, then a Plus one, with the encoder of both; the encoder's hidden states are 10 x 80.
fn two() -> Model {
    Model::golden("diffusers", "plus-two-adapters")
}

fn options(model: &Model, adapters: &[&str]) -> PipelineOptions {
    let mut options = PipelineOptions::new(model.dir.path()).with_clip_vision(model.path("image_encoder"));
    for adapter in adapters {
        options = options.with_adapter(model.path(adapter));
    }
    options.threads = Some(1);
    options
}

fn load(model: &Model, adapters: &[&str]) -> Pipeline {
    Pipeline::load(&options(model, adapters)).unwrap()
}

fn reference() -> Image {
    let values = |n: usize| (0..n).map(|i| (i * 37 % 251) as u8).collect();
    Image::new(20, 20, values(20 * 20 * 3)).unwrap()
}

fn asked(images: Vec<ImagePrompt>) -> Request {
    let mut r = request();
    r.image_prompts = images;
    r
}

/// An adapter gets the same from an image as from its embedding, whichever the other one has; a request with other embeddings
/// alone compiles nothing and needs the encoder no more.
#[test]
fn embeddings() {
    let model = two();
    let pipeline = load(&model, &[ADAPTER, PLUS]);
    let image = || ImagePrompt::new(reference());
    let encoded = |adapter: usize| {
        let embedding = pipeline.encode_image_for(adapter, &reference()).unwrap();
        ImagePrompt::default().with_reference(ReferenceImage::Embedding(embedding))
    };
    let by_image = generate(&pipeline, &asked(vec![image(), image()])).unwrap();
    let held = pipeline.device_memory_used();
    assert_eq!(generate(&pipeline, &asked(vec![encoded(0), image()])).unwrap(), by_image);
    assert_eq!(generate(&pipeline, &asked(vec![image(), encoded(1)])).unwrap(), by_image);
    assert_eq!(pipeline.device_memory_used(), held);
    assert_ne!(generate(&pipeline, &asked(vec![image()])).unwrap(), by_image);
    assert!(matches!(pipeline.encode_image_for(2, &reference()), Err(Error::Parameter { field: Field::Adapters, .. })));
    let short = asked(vec![ImagePrompt::default(), encoded(0)]);
    let text = refused(generate(&pipeline, &short), "a base embedding for a Plus adapter").to_string();
    assert!(text.contains("32 values, an IP-Adapter Plus takes 800") && text.contains("10 x 80"), "{text}");
    let long = asked(vec![encoded(1)]);
    let text = refused(generate(&pipeline, &long), "hidden states for a base adapter").to_string();
    assert!(text.contains("800 values, the adapter takes 32"), "{text}");

    // Without an encoder embeddings do where there is no negative row, or an embedding for it.
    let hidden = pipeline.encode_image_for(1, &reference()).unwrap();
    let other = hidden.iter().rev().copied().collect();
    let embedded = ImagePrompt::default().with_reference(ReferenceImage::Embedding(hidden));
    let negative = embedded.clone().with_negative_image(ReferenceImage::Embedding(other));
    let mut r = asked(vec![ImagePrompt::default(), embedded]);
    let with_negative = asked(vec![ImagePrompt::default(), negative]);
    let guided = generate(&pipeline, &r).unwrap();
    let guided_by_negative = generate(&pipeline, &with_negative).unwrap();
    assert_ne!(guided_by_negative, guided);
    std::fs::rename(model.path("image_encoder"), model.path("elsewhere")).unwrap();
    let mut blind = options(&model, &[ADAPTER, PLUS]);
    blind.clip_vision = None;
    let blind = Pipeline::load(&blind).unwrap();
    let error = refused(generate(&blind, &r), "no encoder for the negative row");
    assert!(matches!(&error, Error::Parameter { field: Field::ClipVision, .. }), "{error}");
    assert!(error.to_string().contains("negative row"), "{error}");
    assert_eq!(generate(&blind, &with_negative).unwrap(), guided_by_negative);
    r.guidance_scale = 1.0;
    let unguided = generate(&pipeline, &r).unwrap();
    assert_eq!(generate(&blind, &r).unwrap(), unguided);
    assert_ne!(unguided, guided);
}

/// An adapter whose fellow is unused gets its own prompt: masks, weights, size and fit of its references.
#[test]
fn the_second_of_two() {
    let model = two();
    let mask = |from: u8| Image::new(4, 1, (0..12).map(|i| from.abs_diff(20 * (i / 3))).collect()).unwrap();
    let wide = resize(&reference(), 40, 24, Resampling::Bicubic).unwrap();
    let prompt = |image: Image| {
        ImagePrompt::default()
            .with_reference(Reference::new(image).with_mask(mask(0)).with_weight(0.5))
            .with_reference(Reference::new(reference()).with_mask(mask(255)))
            .with_fit(Fit::Pad)
    };
    let alone = generate(&load(&model, &[PLUS]), &asked(vec![prompt(wide.clone())])).unwrap();
    let pipeline = load(&model, &[ADAPTER, PLUS]);
    assert_eq!(generate(&pipeline, &asked(vec![ImagePrompt::default(), prompt(wide.clone())])).unwrap(), alone);
    // A size comes before the fit, as does an image of that size.
    let sized = pipeline.reference_images(&prompt(reference()).with_resize((40, 24))).unwrap();
    assert_eq!(sized[0], pipeline.reference_images(&prompt(wide.clone())).unwrap()[0]);
    assert_ne!(sized[0], pipeline.reference_images(&prompt(wide).with_fit(Fit::Crop)).unwrap()[0]);
}

/// More room than a request needs (a plan prepared for more images) changes nothing, in either row.
#[test]
fn prepared_for_more_images() {
    let model = two();
    let r = asked(vec![ImagePrompt::default(), ImagePrompt::new(reference())]);
    let want = generate(&load(&model, &[ADAPTER, PLUS]), &r).unwrap();
    let pipeline = load(&model, &[ADAPTER, PLUS]);
    let mut shape = pipeline.workload_shape(&r).unwrap();
    shape.num_references = vec![0, 3];
    pipeline.prepare(&shape).unwrap();
    assert_eq!(generate(&pipeline, &r).unwrap(), want);
}

/// Diffusers' own names of a resampler are the published ones in other words.
#[test]
fn names_of_diffusers() {
    let model = two();
    let r = asked(vec![ImagePrompt::new(reference())]);
    let want = generate(&load(&model, &[PLUS]), &r).unwrap();
    model.edit(PLUS, |tensors| {
        let own = [
            (".0.norm1.", ".ln0."),
            (".0.norm2.", ".ln1."),
            (".0.to_q.", ".attn.to_q."),
            (".0.to_out.", ".attn.to_out.0."),
            (".1.0.", ".ff.0."),
            (".1.1.", ".ff.1.net.0.proj."),
            (".1.3.", ".ff.1.net.2."),
        ];
        for (name, tensor) in std::mem::take(tensors) {
            let Some((layer, rest)) = name.strip_prefix("image_proj.layers.").and_then(|n| n.split_once('.')) else {
                tensors.insert(name, tensor);
                continue;
            };
            let rest = format!(".{rest}");
            if rest == ".0.to_kv.weight" {
                let half = tensor.shape[0] / 2;
                for (part, bytes) in ["to_k", "to_v"].iter().zip(tensor.bytes.chunks(tensor.bytes.len() / 2)) {
                    let shape = vec![half, tensor.shape[1]];
                    let part = format!("image_proj.layers.{layer}.attn.{part}.weight");
                    tensors.insert(part, common::Tensor { shape, bytes: bytes.to_vec(), ..tensor.clone() });
                }
                continue;
            }
            let (from, to) = own.iter().find(|(from, _)| rest.starts_with(from)).unwrap();
            tensors.insert(format!("image_proj.layers.{layer}{}", rest.replacen(from, to, 1)), tensor);
        }
    });
    assert_eq!(generate(&load(&model, &[PLUS]), &r).unwrap(), want);
}

/// Layers are counted; tensors of other resamplers, other encoders, and profiles without such adapters are refused by name.
#[test]
fn other_resamplers_and_encoders() {
    let model = two();
    let r = asked(vec![ImagePrompt::new(reference())]);
    let four = generate(&load(&model, &[PLUS]), &r).unwrap();
    let whole = std::fs::read(model.path(PLUS)).unwrap();
    model.edit(PLUS, |tensors| tensors.retain(|name, _| !name.contains("layers.3.")));
    assert_ne!(generate(&load(&model, &[PLUS]), &r).unwrap(), four);
    let refusal = |change: &dyn Fn(&mut common::Tensors)| {
        std::fs::write(model.path(PLUS), &whole).unwrap();
        model.edit(PLUS, change);
        refused(Pipeline::load(&options(&model, &[PLUS])), "a resampler").to_string()
    };
    let text = refusal(&|t| {
        t.remove("image_proj.layers.2.0.norm1.bias");
    });
    assert!(text.contains("image_proj.layers.2.0.norm1.bias missing"), "{text}");
    let text = refusal(&|t| {
        let extra = t["image_proj.latents"].shaped(&[4, 96]);
        t.insert("image_proj.pos_emb.weight".into(), extra);
    });
    assert!(text.contains("image_proj.pos_emb.weight is no tensor of an IP-Adapter Plus"), "{text}");
    let text = refusal(&|t| {
        let narrow = t["image_proj.layers.0.0.to_q.weight"].shaped(&[100, 96]);
        t.insert("image_proj.layers.0.0.to_q.weight".into(), narrow);
    });
    assert!(text.contains("100 rows"), "{text}");
    let text = refusal(&|t| {
        let other = t["image_proj.proj_in.weight"].shaped(&[96, 56]);
        t.insert("image_proj.proj_in.weight".into(), other);
    });
    assert!(text.contains("hidden states 56 wide") && text.contains("gives 80"), "{text}");
    std::fs::write(model.path(PLUS), &whole).unwrap();
    let error = refused(Pipeline::load(&options(&model, &[PLUS]).with_compat(Compat::diffsynth())), "diffsynth");
    assert!(matches!(&error, Error::Parameter { field: Field::Compat, .. }), "{error}");
    assert!(error.to_string().contains("IP-Adapter Plus, which the profile diffsynth does not have"), "{error}");
}
