//! Texts that are added to a reference's embedding.

use super::*;
use braid::error::Field;
use braid::pipeline::Reference;
use braid::synthetic::{Stored, TensorSpec, write_safetensors};
use braid::tensor::DType;
use std::collections::BTreeMap;

/// A model whose image encoder and second text encoder give 24 values each.
fn matching() -> Model {
    Model::golden("diffusers", "heun-beta")
}

fn values() -> Vec<f32> {
    (0..24).map(|i| (i * 7 % 24) as f32 / 24.0).collect()
}

fn asked(reference: Reference) -> Request {
    let mut r = request();
    r.image_prompts = vec![ImagePrompt::default().with_reference(reference)];
    r
}

fn plain(values: Vec<f32>) -> Reference {
    Reference::new(ReferenceImage::Embedding(values))
}

/// A text is its prompt's pooled embedding, added with its factor: to the bit what the sum itself gives as an embedding.
#[test]
fn sums_of_embeddings() {
    let pipeline = matching().load().unwrap();
    let pooled = |text: &str| {
        let mut r = asked(plain(values())).with_capture_intermediates(true);
        r.prompt = text.into();
        pipeline.generate(&r).unwrap().intermediates["pooled"].data.clone()
    };
    let [stone, water] = ["a heap of stones", "water"].map(pooled);
    assert!(stone != water && stone.iter().any(|v| *v != 0.0));
    let mut sum = values();
    for (concept, factor) in [(&stone, -0.5f32), (&water, 0.25)] {
        sum.iter_mut().zip(concept).for_each(|(v, t)| *v += factor * t);
    }
    let draw = |reference| generate(&pipeline, &asked(reference)).unwrap();
    let with = |stone: f32| plain(values()).with_text("a heap of stones", stone).with_text("water", 0.25);
    assert!(draw(with(-0.5)) == draw(plain(sum)), "not the sum");
    assert!(draw(with(-0.5)) != draw(with(0.5)) && draw(with(-0.5)) != draw(plain(values())));
    // Factors of 0 leave the image as it is, beside other requests, too.
    let zero = plain(values()).with_text("water", 0.0);
    let alone = draw(plain(values()));
    assert!(draw(zero.clone()) == alone);
    let together = pipeline.generate_batch(&[asked(with(-0.5)), asked(zero)]);
    let images: Vec<Vec<u8>> = together.into_iter().map(|output| output.unwrap().images[0].rgb().to_vec()).collect();
    assert!(images[0] == draw(with(-0.5)) && images[1] == alone);
}

/// A LoRA of the second text encoder changes the prompt, and no text that is added to a reference.
#[test]
fn texts_without_loras() {
    let (model, module) = (matching(), "text_encoder_2.text_model.encoder.layers.0.mlp.fc1");
    let factor = |name: &str, shape: [usize; 2], seed| TensorSpec {
        name: format!("{module}.{name}.weight"),
        shape: shape.to_vec(),
        dtype: Stored::Float(DType::F32),
        scale: 0.5,
        offset: 0.0,
        seed,
    };
    let file = model.path("lora.safetensors");
    let factors = [factor("lora_A", [4, 24], 1), factor("lora_B", [48, 4], 2)];
    write_safetensors(&file, &factors, &BTreeMap::new()).unwrap();
    let (without, with) = (model.load().unwrap(), Pipeline::load(&model.options().with_lora(file)).unwrap());
    let pooled = |pipeline: &Pipeline| {
        let mut r = asked(plain(values())).with_capture_intermediates(true);
        r.prompt = "water".into();
        pipeline.generate(&r).unwrap().intermediates["pooled"].data.clone()
    };
    let (concept, changed) = (pooled(&without), pooled(&with));
    assert!(relative(&changed, &concept) > 1e-3);
    let sum = values().iter().zip(&concept).map(|(v, t)| v + -0.5 * t).collect();
    let draw = |reference| generate(&with, &asked(reference)).unwrap();
    assert!(draw(plain(values()).with_text("water", -0.5)) == draw(plain(sum)));
}

/// Encoders that do not belong together, a Plus adapter, a text that would be cut, a factor that is no number.
#[test]
fn texts_that_cannot_be_added() {
    let refusal = |pipeline: &Pipeline, request: &Request, what: &str| {
        let error = refused(pipeline.generate(request), what);
        assert!(matches!(error, Error::Parameter { field: Field::ReferenceTexts, .. }), "{what}: {error}");
        error.to_string()
    };
    let text = |text: &str, factor| asked(plain(values()).with_text(text, factor));
    let other = Model::folder().load().unwrap();
    let message = refusal(&other, &text("water", 1.0), "encoders of other sizes");
    assert!(message.contains("24 values, those of texts 32"), "{message}");
    let pipeline = matching().load().unwrap();
    let message = refusal(&pipeline, &text(&"stone ".repeat(200), 1.0), "a long text");
    assert!(message.contains("tokens too long"), "{message}");
    assert!(refusal(&pipeline, &text("water", f32::NAN), "NaN").contains("NaN"));
    let plus = Model::golden("diffusers", "plus-two-adapters");
    let options = PipelineOptions::new(plus.dir.path())
        .with_clip_vision(plus.path("image_encoder"))
        .with_adapter(plus.path("plus-face.safetensors"));
    let pipeline = Pipeline::load(&options).unwrap();
    assert!(refusal(&pipeline, &text("water", 1.0), "a Plus adapter").contains("Plus"));
}
