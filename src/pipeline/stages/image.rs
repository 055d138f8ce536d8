//! From image prompts to what the adapters' projections take.

use crate::cancel;
use crate::error::{Error, Field, Result, escape};
use crate::inputs::clip_image_processor::ClipImageProcessor;
use crate::inputs::image::Image;
use crate::inputs::resize::{Resampling, resize};
use crate::models::ip_adapter::AdapterConfig;
use crate::pipeline::captures::Captures;
use crate::pipeline::compile::Executables;
use crate::pipeline::content_cache::{ContentHasher, ContentKey, Held};
use crate::pipeline::encoded_image::{EncodedImage, EncodingOrigin, SourceImage};
use crate::pipeline::image_branches::average;
use crate::pipeline::image_prompt::{Combine, ImagePrompt, ReferenceImage};
use crate::pipeline::load::Models;
use crate::pipeline::plan::RequestPlan;
use crate::pipeline::reference_check::{check_embedding, encoder_hash};
use crate::pipeline::request::Request;
use crate::pipeline::stages::text::TextConcepts;
use crate::tensor::DType;
use std::borrow::Cow;
use std::sync::Arc;

/// The images of one adapter in use: embeddings `[E]`, or hidden states `[T, E]`.
pub(in crate::pipeline) struct AdapterImages {
    /// All of the positive row, or their mean.
    pub(in crate::pipeline) positive: Vec<f32>,
    /// One of the negative row, which stands there in the place of each; zeros where it is absent.
    pub(in crate::pipeline) negative: Option<Arc<[f32]>>,
}

/// The images of each adapter in use.
pub(in crate::pipeline) fn run(
    executables: &mut Executables<'_>,
    (request, plan): (&Request, &RequestPlan),
    concepts: &TextConcepts,
    captures: &mut Captures,
) -> Result<Vec<AdapterImages>> {
    let mut all = Vec::new();
    for &a in &plan.denoise.adapters {
        let prompt = &request.image_prompts[a];
        let (adapter, positions) = (&executables.compiler.models.adapters[a].config, plan.denoise.positions);
        let mut positive = Vec::new();
        for reference in &prompt.references {
            cancel::check()?;
            let mut values = embedding(executables, prompt, &reference.image, adapter)?;
            check_embedding(Field::ImagePrompts, &values, adapter, positions)?;
            for (text, factor) in &reference.texts {
                let lacks = || Error::Graph(format!("no embedding of `{}`", escape(text)));
                let concept = concepts.get(text).ok_or_else(lacks)?;
                values.iter_mut().zip(concept).for_each(|(v, t)| *v += factor * t);
            }
            finite(&values)?;
            positive.extend(values);
        }
        if prompt.combine == Combine::Average {
            positive = average(&prompt.references, &positive);
        }
        let (count, width) = (positive.len() / adapter.embedding_len(positions).max(1), adapter.embedding_dim);
        match adapter.takes_hidden_states() {
            true => captures.add("image_hidden", &[count, positions, width], || positive.clone()),
            false => captures.add("image_embeds", &[count, width], || positive.clone()),
        }
        cancel::check()?;
        let negative = match &prompt.negative_image {
            _ if plan.denoise.shape.batch < 2 => None,
            Some(image) => {
                let values = embedding(executables, prompt, image, adapter)?;
                check_embedding(Field::NegativeImage, &values, adapter, positions)?;
                Some(values.into())
            }
            None if adapter.takes_hidden_states() => match prompt.zero_image() {
                Some(zero) => Some(zero.clone()),
                None => Some(zero_image(executables)?),
            },
            None => None,
        };
        all.push(AdapterImages { positive, negative });
    }
    Ok(all)
}

/// One reference as an adapter takes it.
fn embedding(
    executables: &mut Executables<'_>,
    prompt: &ImagePrompt,
    image: &ReferenceImage,
    adapter: &AdapterConfig,
) -> Result<Vec<f32>> {
    let values = match image {
        ReferenceImage::Image(image) => encode(executables, prompt, image)?.of(adapter),
        ReferenceImage::Embedding(values) | ReferenceImage::Encoded(EncodedImage { embedding: values, .. }) => {
            values.clone()
        }
    };
    finite(&values)?;
    Ok(values)
}

/// The preprocessing of the model's image encoder.
///
/// # Errors
/// [`Error::Parameter`] where there is no encoder.
fn processor(models: &Models) -> Result<Cow<'_, ClipImageProcessor>> {
    let size = models.image_encoder()?.config.image_size;
    Ok(models.image_processor.as_ref().map_or_else(|| Cow::Owned(ClipImageProcessor::clip(size)), Cow::Borrowed))
}

/// An image as CLIP's own preprocessing gets it.
fn fit<'a>(models: &Models, prompt: &ImagePrompt, image: &'a Image) -> Result<Cow<'a, Image>> {
    let edge = processor(models)?.shortest_edge();
    match prompt.resize {
        Some((w, h)) => {
            let stretched = resize(image, w, h, Resampling::Bicubic)?;
            Ok(Cow::Owned(prompt.fit.apply(&stretched, edge)?.into_owned()))
        }
        None => prompt.fit.apply(image, edge),
    }
}

/// The images of a prompt as the encoder sees them, before their normalisation.
///
/// # Errors
/// [`Error::Parameter`] where there is no encoder.
pub(in crate::pipeline) fn visible(models: &Models, prompt: &ImagePrompt) -> Result<Vec<Image>> {
    let processor = processor(models)?;
    prompt.images(false).map(|image| processor.visible(&*fit(models, prompt, image)?)).collect()
}

fn finite(values: &[f32]) -> Result<()> {
    if values.iter().all(|v| v.is_finite()) {
        return Ok(());
    }
    let hint = "the image or the encoder's weights are damaged".into();
    Err(Error::NotFinite { stage: "the image encoder".into(), hint })
}

/// The encoder's results for an image; those that no adapter takes are empty.
pub(in crate::pipeline) struct Encoded {
    /// `image_embeds`, `[P]`.
    embeds: Vec<f32>,
    /// `image_hidden`, `[T, C]`.
    hidden: Vec<f32>,
}

impl Encoded {
    /// The result that an adapter takes.
    pub(in crate::pipeline) fn of(&self, adapter: &AdapterConfig) -> Vec<f32> {
        if adapter.takes_hidden_states() { self.hidden.clone() } else { self.embeds.clone() }
    }
}

/// Encodes an image that is fitted as a prompt says, unless that was done before.
pub(in crate::pipeline) fn encode(
    executables: &mut Executables<'_>,
    prompt: &ImagePrompt,
    image: &Image,
) -> Result<Arc<Encoded>> {
    let key = content(prompt, image);
    if let Some(known) = executables.cache.contents.get(key) {
        return Ok(known);
    }
    let encoded = Arc::new(encode_one(executables, preprocessed(executables.compiler.models, prompt, image)?)?);
    keep(executables, key, &encoded);
    Ok(encoded)
}

/// An image with the prompt that it is a part of.
type PromptImage<'a> = (&'a ImagePrompt, &'a Image);

/// Encodes the images of all prompts of a request, and of those that come after it, as [`images_ahead`] does.
pub(in crate::pipeline) fn ahead<'a>(
    executables: &mut Executables<'_>,
    request: (&'a Request, &'a RequestPlan),
    next: impl Iterator<Item = (&'a Request, &'a RequestPlan)>,
) -> Result<Held> {
    let images = |(request, plan): (&'a Request, &'a RequestPlan)| {
        let prompts = plan.denoise.adapters.iter().map(move |&a| &request.image_prompts[a]);
        let guided = plan.denoise.shape.batch > 1;
        prompts.flat_map(move |prompt| prompt.images(guided).map(move |image| (prompt, image)))
    };
    images_ahead(executables, images(request), next.flat_map(images))
}

/// Encodes a request's own images that no earlier one has, as many at once as the device takes where that is more than one, and others
/// where they leave room; the stages find them for as long as anyone has what is given.
fn images_ahead<'a>(
    executables: &mut Executables<'_>,
    own: impl Iterator<Item = PromptImage<'a>>,
    others: impl Iterator<Item = PromptImage<'a>>,
) -> Result<Held> {
    let (most, models) = (executables.compiler.device.encoder_rows(), executables.compiler.models);
    let mut held = Held::new();
    if most < 2 {
        return Ok(held);
    }
    let keyed = |(prompt, image): PromptImage<'a>| (content(prompt, image), (prompt, image));
    let new = (own.map(keyed), others.map(keyed));
    let new = executables.cache.contents.missing::<Encoded, _>(new, most, &mut held);
    for some in new.chunks(most) {
        cancel::check()?;
        // What is wrong with an image its own request tells.
        let pixels =
            some.iter().filter_map(|(key, (prompt, image))| Some((key, preprocessed(models, prompt, image).ok()?)));
        let (keys, pixels): (Vec<&ContentKey>, Vec<_>) = pixels.unzip();
        if pixels.is_empty() {
            continue;
        }
        let encoded = match encode_pixels(executables, &pixels) {
            // One at a time they take less.
            Err(Error::Memory { .. }) if pixels.len() > 1 => return Ok(held),
            encoded => encoded?,
        };
        for (key, encoded) in keys.into_iter().zip(encoded) {
            let encoded = Arc::new(encoded);
            keep(executables, *key, &encoded);
            held.push(encoded);
        }
    }
    Ok(held)
}

/// The key of an image's result.
fn content(prompt: &ImagePrompt, image: &Image) -> ContentKey {
    ContentHasher::new("image")
        .value(&(image.width(), image.height(), prompt.resize, prompt.fit))
        .bytes(image.rgb())
        .key()
}

/// Keeps a result for later, unless it has no meaning.
fn keep(executables: &mut Executables<'_>, key: ContentKey, encoded: &Arc<Encoded>) {
    if finite(&encoded.embeds).and_then(|()| finite(&encoded.hidden)).is_ok() {
        let bytes = 4 * (encoded.embeds.len() + encoded.hidden.len());
        executables.cache.contents.put(key, encoded.clone(), bytes);
    }
}

/// The pixels that the encoder takes of an image.
fn preprocessed(models: &Models, prompt: &ImagePrompt, image: &Image) -> Result<Vec<f32>> {
    Ok(processor(models)?.preprocess(&*fit(models, prompt, image)?))
}

/// The hidden states of an image whose normalised pixels are 0, made once.
fn zero_image(executables: &mut Executables<'_>) -> Result<Arc<[f32]>> {
    if let Some(known) = &executables.cache.zero_image {
        return Ok(known.clone());
    }
    let size = executables.compiler.models.image_encoder()?.config.image_size;
    let encoded = encode_one(executables, vec![0.0; size * size * 3])?;
    finite(&encoded.hidden)?;
    let hidden: Arc<[f32]> = encoded.hidden.as_slice().into();
    executables.cache.zero_image = Some(hidden.clone());
    Ok(hidden)
}

/// Encodes the references of a prompt for an adapter, with the image tokens of each.
///
/// # Errors
/// [`Error::Parameter`] where there is no encoder or no reference, or one that is no image; [`Error::NotFinite`].
pub(in crate::pipeline) fn encode_references(
    executables: &mut Executables<'_>,
    adapter: usize,
    prompt: &ImagePrompt,
    dtype: DType,
) -> Result<Vec<EncodedImage>> {
    prompt.check()?;
    let compiler = executables.compiler;
    let (model, vision) = (&compiler.models.adapters[adapter], compiler.models.image_encoder()?);
    let (config, positions) = (&model.config, vision.config.positions());
    let _held = images_ahead(executables, prompt.images(false).map(|image| (prompt, image)), std::iter::empty())?;
    let mut encoded = Vec::new();
    for reference in &prompt.references {
        let ReferenceImage::Image(image) = &reference.image else {
            return Err(Error::parameter(
                Field::ImagePrompts,
                "an embedding is among the references; images are needed",
            ));
        };
        encoded.push((SourceImage::of(image), embedding(executables, prompt, &reference.image, config)?));
    }
    if encoded.is_empty() {
        return Err(Error::parameter(Field::ImagePrompts, "a reference is needed, got none"));
    }
    let zero = if config.takes_hidden_states() { Some(zero_image(executables)?) } else { None };
    executables.cache.release_encoders();
    let shape = if zero.is_some() { vec![positions, config.embedding_dim] } else { vec![config.embedding_dim] };
    let origin = Arc::new(EncodingOrigin {
        path: Default::default(),
        adapter: model.hash(),
        encoder: encoder_hash(vision),
        shape,
        tokens: [config.num_tokens, config.cross_attention_dim],
        zero,
        fit: prompt.fit,
        resize: prompt.resize,
        dtype,
        device: compiler.device.name(),
    });
    let mut projection = compiler.device.compile(compiler.projection_graph(model, positions)?)?;
    let project = |(source, embedding): (SourceImage, Vec<f32>)| {
        let mut tokens = vec![0.0; config.num_tokens * config.cross_attention_dim];
        projection.run(&[embedding.as_slice().into()], &mut [&mut tokens])?;
        if !tokens.iter().all(|v| v.is_finite()) {
            let hint = "the adapter's weights are damaged".into();
            return Err(Error::NotFinite { stage: "the adapter's projection".into(), hint });
        }
        Ok(EncodedImage { origin: origin.clone(), embedding, tokens, source })
    };
    encoded.into_iter().map(project).collect()
}

/// The encoder's results for the pixels of an image.
fn encode_one(executables: &mut Executables<'_>, pixels: Vec<f32>) -> Result<Encoded> {
    let encoded = encode_pixels(executables, &[pixels])?.pop();
    encoded.ok_or_else(|| Error::Graph("an image encoder without images".into()))
}

/// The encoder's results for the pixels of each image.
fn encode_pixels(executables: &mut Executables<'_>, pixels: &[Vec<f32>]) -> Result<Vec<Encoded>> {
    let models = executables.compiler.models;
    let outputs = models.vision_outputs();
    let config = &models.image_encoder()?.config;
    let executable = executables.image_encoder(pixels.len())?;
    let images = executable.graph().inputs.first().map_or(0, |(_, id)| executable.graph().node(*id).shape[0]);
    // The last one stands for those that are not there.
    let all: Vec<f32> =
        (0..images).filter_map(|image| pixels.get(image).or(pixels.last())).flatten().copied().collect();
    let lens = [
        if outputs.embeds { config.projection_dim } else { 0 },
        if outputs.hidden { config.positions() * config.hidden_size } else { 0 },
    ];
    let mut results = lens.map(|len| vec![0.0; images * len]);
    let mut bound: Vec<&mut [f32]> =
        results.iter_mut().filter(|values| !values.is_empty()).map(Vec::as_mut_slice).collect();
    executable.run(&[(&all).into()], &mut bound)?;
    let part = |output: usize, image: usize| results[output][image * lens[output]..][..lens[output]].to_vec();
    Ok((0..pixels.len()).map(|image| Encoded { embeds: part(0, image), hidden: part(1, image) }).collect())
}
