//! Requests and options as the library takes them, made of what C gives.

#[cfg(test)]
mod tests;

use crate::edge::{Failure, Outcome};
use crate::encoded::braid_encoded_images;
use crate::image::braid_image;
use crate::live::scales;
use crate::params::{read, read_all};
use crate::pointers::{demand_zero, optional_text, slice, switch, text, texts};
use crate::structs::{
    BRAID_UNSET, braid_engine_options, braid_image_prompt, braid_pipeline_options, braid_prompt_change,
    braid_reference, braid_request, braid_scale_change,
};
use braid::{
    DType, EngineOptions, Error, Image, ImagePrompt, PhiloxGrid, PipelineOptions, Prompts, Reference, ReferenceImage,
    Request, RngKind, SizeConditioning,
};
use std::ffi::c_char;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// Reads a named value; none where the pointer is null.
unsafe fn named<T: FromStr<Err = Error>>(pointer: *const c_char, name: &str) -> Outcome<Option<T>> {
    // SAFETY: as the caller promises.
    let text = unsafe { optional_text(pointer, name) }?;
    Ok(text.map(str::parse).transpose()?)
}

unsafe fn dtype(pointer: *const c_char, name: &str) -> Outcome<Option<DType>> {
    // SAFETY: as the caller promises.
    let Some(text) = (unsafe { optional_text(pointer, name) })? else { return Ok(None) };
    let unknown = || Failure::parameter(format!("{name}: unknown value `{text}` (expected f32, f16 or bf16)"));
    DType::from_name(text).map(Some).ok_or_else(unknown)
}

unsafe fn rng(pointer: *const c_char) -> Outcome<RngKind> {
    // SAFETY: as the caller promises.
    match unsafe { optional_text(pointer, "rng") }? {
        None | Some("cpu") => Ok(RngKind::Cpu),
        Some("cuda") => Ok(RngKind::Cuda(PhiloxGrid::default())),
        Some(other) => Err(Failure::parameter(format!("rng: unknown value `{other}` (expected cpu or cuda)"))),
    }
}

unsafe fn paths(pointer: *const *const c_char, count: usize, name: &str) -> Outcome<Vec<PathBuf>> {
    // SAFETY: as the caller promises.
    Ok(unsafe { texts(pointer, count, name) }?.into_iter().map(PathBuf::from).collect())
}

unsafe fn image(pointer: *const braid_image) -> Option<Image> {
    // SAFETY: as the caller promises.
    unsafe { pointer.as_ref() }.map(|image| image.0.clone())
}

/// A pair of which 0 and 0 is none.
fn pair(first: u32, second: u32) -> Option<(usize, usize)> {
    Some((first as usize, second as usize)).filter(|pair| *pair != (0, 0))
}

fn sizes([original, crop, target]: [(u32, u32); 3]) -> SizeConditioning {
    let mut sizes = SizeConditioning::default();
    sizes.original_size = pair(original.0, original.1);
    sizes.crop = pair(crop.0, crop.1);
    sizes.target_size = pair(target.0, target.1);
    sizes
}

fn positive(value: usize) -> Option<usize> {
    Some(value).filter(|value| *value > 0)
}

/// The options of a pipeline.
///
/// # Errors
/// [`Failure`] that names the field.
///
/// # Safety
/// `given` and what it points to are as braid.h asks for.
pub(crate) unsafe fn pipeline_options(given: *const braid_pipeline_options) -> Outcome<PipelineOptions> {
    // SAFETY: as the caller promises.
    unsafe {
        let given = read(given, "options")?;
        let path = |pointer, name| Ok::<_, Failure>(optional_text(pointer, name)?.map(PathBuf::from));
        let mut options = PipelineOptions::new(text(given.model, "model")?);
        options.config = path(given.config, "config")?;
        options.vae = path(given.vae, "vae")?;
        options.taesd = path(given.taesd, "taesd")?;
        options.clip_vision = path(given.clip_vision, "clip_vision")?;
        options.adapters = paths(given.adapters, given.num_adapters, "adapters")?;
        options.loras = paths(given.loras, given.num_loras, "loras")?;
        options.embeddings = paths(given.embeddings, given.num_embeddings, "embeddings")?;
        options.compat = named(given.compat, "compat")?.unwrap_or(options.compat);
        options.device = named(given.device, "device")?.unwrap_or(options.device);
        options.dtype = dtype(given.dtype, "dtype")?;
        options.vae_dtype = dtype(given.vae_dtype, "vae_dtype")?;
        options.quantize = named(given.quantize, "quantize")?;
        options.encoders = named(given.encoders, "encoders")?.unwrap_or(options.encoders);
        options.max_batch = positive(given.max_batch);
        options.threads = positive(given.threads);
        options.max_noise_bytes = given.max_noise_bytes;
        options.max_cache_bytes = given.max_cache_bytes;
        options.vae_tiling = positive(given.vae_tiling as usize);
        options.mmap = switch(given.mmap, "mmap")?;
        Ok(options)
    }
}

/// Numbers; none where the pointer is null and they are 0.
unsafe fn numbers(pointer: *const f32, count: usize, name: &str) -> Outcome<Option<Vec<f32>>> {
    if pointer.is_null() && count == 0 {
        return Ok(None);
    }
    // SAFETY: as the caller promises.
    Ok(Some(unsafe { slice(pointer, count, name) }?.to_vec()))
}

/// The contents of a reference, of which one at most may be given; none where all are null.
unsafe fn contents(
    (image, encoded): (*const braid_image, *const braid_encoded_images),
    (embedding, num_values): (*const f32, usize),
    (at, prefix): (&str, &str),
) -> Outcome<Vec<ReferenceImage>> {
    // SAFETY: as the caller promises.
    let (image, encoded, embedding) = unsafe {
        let embedding = numbers(embedding, num_values, &format!("{at}.{prefix}embedding"))?;
        (image.as_ref(), encoded.as_ref(), embedding)
    };
    let given = [("image", image.is_some()), ("encoded", encoded.is_some()), ("embedding", embedding.is_some())];
    let mut given = given.iter().filter(|(_, is_given)| *is_given);
    if let (Some((first, _)), Some((second, _))) = (given.next(), given.next()) {
        let what = format!("{at}: {prefix}{first} and {prefix}{second} given; give one of them");
        return Err(Failure::argument(what));
    }
    let image = image.map(|image| ReferenceImage::from(image.0.clone()));
    let encoded = encoded.into_iter().flat_map(|encoded| &encoded.0).cloned().map(ReferenceImage::Encoded);
    Ok(image.into_iter().chain(encoded).chain(embedding.map(ReferenceImage::Embedding)).collect())
}

/// The image prompt of an adapter.
///
/// # Errors
/// [`Failure`] that names the field; `at` stands for the prompt.
///
/// # Safety
/// The pointers in `given` are as braid.h asks for.
pub(crate) unsafe fn image_prompt(given: &braid_image_prompt, at: &str) -> Outcome<ImagePrompt> {
    demand_zero(given.reserved, &format!("{at}.reserved"))?;
    let mut prompt = ImagePrompt::default();
    // SAFETY: as the caller promises.
    unsafe {
        let name = format!("{at}.references");
        let references: Vec<braid_reference> = read_all(given.references, given.num_references, &name)?;
        for (i, given) in references.iter().enumerate() {
            let at = format!("{name}[{i}]");
            demand_zero(given.reserved, &format!("{at}.reserved"))?;
            let embedding = (given.embedding, given.num_embedding_values);
            let contents = contents((given.image, given.encoded), embedding, (&at, ""))?;
            if contents.is_empty() {
                let what = format!("{at}: image, encoded and embedding are NULL; give one of them");
                return Err(Failure::argument(what));
            }
            let mask = image(given.mask);
            let words = texts(given.texts, given.num_texts, &format!("{at}.texts"))?;
            let factors = slice(given.text_factors, given.num_texts, &format!("{at}.text_factors"))?;
            for content in contents {
                let mut reference = Reference::new(content).with_weight(given.weight);
                reference.mask.clone_from(&mask);
                reference.texts = words.iter().map(|word| (*word).to_owned()).zip(factors.iter().copied()).collect();
                prompt.references.push(reference);
            }
        }
        let embedding = (given.negative_embedding, given.num_negative_embedding_values);
        let mut negative = contents((given.negative_image, given.negative_encoded), embedding, (at, "negative_"))?;
        if negative.len() > 1 {
            let what = format!("{at}.negative_encoded: {} images given; one is needed", negative.len());
            return Err(Failure::argument(what));
        }
        prompt.negative_image = negative.pop();
        prompt.scales = scales(given.scale, given.blocks)?;
        prompt.combine = named(given.combine, "combine")?.unwrap_or_default();
        prompt.fit = named(given.fit, "fit")?.unwrap_or_default();
    }
    (prompt.start, prompt.end) = (given.start, given.end);
    prompt.resize = pair(given.resize_width, given.resize_height);
    Ok(prompt)
}

/// A request.
///
/// # Errors
/// [`Failure`] that names the field; `name` stands for the request.
///
/// # Safety
/// `given` and what it points to are as braid.h asks for.
pub(crate) unsafe fn request(given: *const braid_request, name: &str) -> Outcome<Request> {
    // SAFETY: as the caller promises.
    unsafe { request_of(&read(given, name)?) }
}

/// A request that was read.
///
/// # Errors
/// As [`request`].
///
/// # Safety
/// The pointers in `given` are as braid.h asks for.
pub(crate) unsafe fn request_of(given: &braid_request) -> Outcome<Request> {
    // SAFETY: as the caller promises.
    unsafe {
        let mut request = words(given)?;
        request.long_prompts = named(given.long_prompts, "long_prompts")?.unwrap_or_default();
        request.prompt_weights = named(given.prompt_weights, "prompt_weights")?.unwrap_or_default();
        (request.width, request.height) = (positive(given.width), positive(given.height));
        (request.steps, request.num_images, request.seed) = (given.steps, given.num_images, given.seed);
        (request.guidance_scale, request.guidance_rescale) = (given.guidance_scale, given.guidance_rescale);
        let interval = (given.guidance_start, given.guidance_end);
        request.guidance_interval = Some(interval).filter(|interval| *interval != (0.0, 1.0));
        request.size_conditioning = sizes([
            (given.original_width, given.original_height),
            (given.crop_left, given.crop_top),
            (given.target_width, given.target_height),
        ]);
        request.negative_size_conditioning = sizes([
            (given.negative_original_width, given.negative_original_height),
            (given.negative_crop_left, given.negative_crop_top),
            (given.negative_target_width, given.negative_target_height),
        ]);
        request.lora_scales = slice(given.lora_scales, given.num_lora_scales, "lora_scales")?.to_vec();
        request.scheduler = named(given.scheduler, "scheduler")?;
        request.sigma_schedule = named(given.sigma_schedule, "sigma_schedule")?;
        request.prediction_type = named(given.prediction_type, "prediction_type")?;
        request.timestep_spacing = named(given.timestep_spacing, "timestep_spacing")?;
        request.rng = rng(given.rng)?;
        request.noise_dtype = dtype(given.noise_dtype, "noise_dtype")?.unwrap_or(request.noise_dtype);
        (request.init_image, request.mask) = (image(given.init_image), image(given.mask));
        request.strength = Some(given.strength).filter(|strength| *strength != BRAID_UNSET);
        request.eta = Some(given.eta).filter(|eta| f64::from(*eta) != BRAID_UNSET);
        request.clip_skip = given.clip_skip as usize;
        request.noise = numbers(given.noise, given.num_noise_values, "noise")?;
        demand_zero(given.reserved, "request.reserved")?;
        request.attribution = switch(given.attribution, "attribution")?;
        with_changes(request, given)
    }
}

/// A request with the words and the image prompts of one that was read, and nothing else of it.
unsafe fn words(given: &braid_request) -> Outcome<Request> {
    // SAFETY: as the caller promises.
    unsafe {
        let optional = |pointer, name| Ok::<_, Failure>(optional_text(pointer, name)?.map(str::to_owned));
        let mut request = Request::new(text(given.prompt, "prompt")?);
        request.negative_prompt = optional(given.negative_prompt, "negative_prompt")?;
        request.prompt_2 = optional(given.prompt_2, "prompt_2")?;
        request.negative_prompt_2 = optional(given.negative_prompt_2, "negative_prompt_2")?;
        let prompts: Vec<braid_image_prompt> = read_all(given.image_prompts, given.num_image_prompts, "image_prompts")?;
        let prompts = prompts.iter().enumerate();
        request.image_prompts =
            prompts.map(|(i, prompt)| image_prompt(prompt, &format!("image_prompts[{i}]"))).collect::<Outcome<_>>()?;
        Ok(request)
    }
}

/// The request with its changes of scales and prompts.
unsafe fn with_changes(mut request: Request, given: &braid_request) -> Outcome<Request> {
    // SAFETY: as the caller promises.
    unsafe {
        let changes: Vec<braid_scale_change> = read_all(given.scale_changes, given.num_scale_changes, "scale_changes")?;
        for (i, change) in changes.iter().enumerate() {
            demand_zero(change.reserved, &format!("scale_changes[{i}].reserved"))?;
            request = request.with_scale_change(change.step, change.adapter, scales(change.scale, change.blocks)?);
        }
        let changes: Vec<braid_prompt_change> =
            read_all(given.prompt_changes, given.num_prompt_changes, "prompt_changes")?;
        for (i, change) in changes.iter().enumerate() {
            let prompts = prompts(change.prompts, &format!("prompt_changes[{i}].prompts"))?;
            request = request.with_prompt_change(change.step, prompts);
        }
        Ok(request)
    }
}

/// The words and references of a request; `name` stands for it.
///
/// # Errors
/// [`Failure`] that names the field.
///
/// # Safety
/// `given` and what it points to are as braid.h asks for.
pub(crate) unsafe fn prompts(given: *const braid_request, name: &str) -> Outcome<Prompts> {
    // SAFETY: as the caller promises.
    Ok(unsafe { words(&read(given, name)?) }?.prompts())
}

/// The options of an engine.
///
/// # Errors
/// [`Failure::Argument`].
///
/// # Safety
/// `given` is null or as braid.h asks for.
pub(crate) unsafe fn engine_options(given: *const braid_engine_options) -> Outcome<EngineOptions> {
    if given.is_null() {
        return Ok(EngineOptions::default());
    }
    // SAFETY: as the caller promises.
    let given = unsafe { read(given, "options") }?;
    for (value, name) in [(given.max_waiting, "max_waiting"), (given.max_running, "max_running")] {
        if value == 0 {
            return Err(Failure::parameter(format!("{name}: 0 given; at least 1 is needed")));
        }
    }
    Ok(EngineOptions::default()
        .with_max_waiting(given.max_waiting)
        .with_max_running(given.max_running)
        .with_gather(Duration::from_millis(given.gather_ms))
        .with_aging(Duration::from_millis(given.aging_ms)))
}
