//! The step-invariant conditioning.

use super::text::TextEmbeddings;
use crate::device::{TensorData, TensorRef};
use crate::error::{Error, Result};
use crate::models::unet::{
    BranchShape, ConditioningPart, DenoiserInput, DenoiserInterface, InputRole, image_tokens_output,
};
use crate::pipeline::captures::Captures;
use crate::pipeline::compile::Executables;
use crate::pipeline::content_cache::ContentHasher;
use crate::pipeline::image_branches::ImageBranches;
use crate::pipeline::load::Models;
use crate::pipeline::lora::bound;
use crate::pipeline::memory_budget::require_conditioning;
use crate::pipeline::plan::RequestPlan;
use crate::pipeline::stages::image::AdapterImages;
use std::collections::HashMap;
use std::sync::Arc;

/// The conditioning of a request's images, the same for all of them.
pub(in crate::pipeline) struct Conditioning {
    /// The denoiser's inputs: all but the LoRAs' scales.
    pub(in crate::pipeline) inputs: Vec<Arc<TensorRef<'static>>>,
    /// Whether they outlast other runs of the conditioner.
    pub(in crate::pipeline) outlasts: bool,
}

/// The results of a part of the conditioner by their names, in its order.
type Results = Vec<(String, Arc<TensorRef<'static>>)>;

/// Binds the denoiser's inputs: the conditioner's results by their names, the numbers of tokens, and what the branches bring.
fn bind(
    interface: &DenoiserInterface,
    tokens: &[Vec<i32>],
    mut values: HashMap<String, Arc<TensorRef<'static>>>,
    branches: &ImageBranches,
) -> Result<Vec<Arc<TensorRef<'static>>>> {
    let lacks = |input: &DenoiserInput| Error::Graph(format!("the conditioning has no `{}`", input.name));
    let bind = |input: &DenoiserInput| {
        Ok(Arc::new(match input.role {
            // The loop supplies the latents.
            InputRole::Sample => Vec::<f32>::new().into(),
            InputRole::TextTokens => tokens[0].clone().into(),
            InputRole::Scales => branches.scales.clone().into(),
            InputRole::ImageTokens { branch } => tokens[branch + 1].clone().into(),
            InputRole::Mask { branch, queries } => {
                branches.masks.get(&(branch, queries)).ok_or_else(|| lacks(input))?.clone().into()
            }
            InputRole::TimeEmbedding { .. } | InputRole::TextKeysValues { .. } | InputRole::ImageKeysValues { .. } => {
                return values.remove(&input.name).ok_or_else(|| lacks(input));
            }
        }))
    };
    interface.inputs.iter().map(bind).collect()
}

/// Runs the conditioner; what an earlier request has computed from the same values is taken as it is.
pub(in crate::pipeline) fn run(
    executables: &mut Executables<'_>,
    plan: &RequestPlan,
    texts: &[TextEmbeddings],
    images: &[AdapterImages],
    captures: &mut Captures,
) -> Result<Conditioning> {
    require_conditioning(executables, &plan.denoise, plan.placement)?;
    let models = executables.compiler.models;
    let width = models.unet.config.cross_attention_dim;
    let (mut values, mut outlasts) = (HashMap::new(), true);
    for part in plan.denoise.conditioning_parts() {
        let inputs = match part {
            ConditioningPart::Time => times(plan, texts),
            ConditioningPart::Text => vec![text(plan, texts, width)],
            ConditioningPart::Image => image_embeddings(models, plan, images),
        };
        let (results, outlast) = run_part(executables, plan, *part, &inputs)?;
        values.extend(results.iter().cloned());
        outlasts &= outlast;
    }
    if captures.enabled() && !plan.branches.tokens.is_empty() {
        let mut all = Vec::new();
        for (branch, count) in plan.branches.tokens.iter().enumerate() {
            let tokens = values.get(&image_tokens_output(branch));
            let tokens = tokens.ok_or_else(|| Error::Graph("the conditioning has no image tokens".into()))?;
            all.extend_from_slice(&tokens.slice(0..count * width)?.read()?);
        }
        captures.add("image_tokens", &[1, all.len() / width, width], || all);
    }
    let mut tokens = vec![texts.iter().map(|t| t.tokens as i32).collect()];
    tokens.extend(plan.branches.tokens.iter().map(|count| vec![*count as i32; plan.denoise.shape.batch]));
    let interface = DenoiserInterface::new(&models.unet.config, &plan.denoise.shape);
    Ok(Conditioning { inputs: bind(&interface, &tokens, values, &plan.branches)?, outlasts })
}

/// Runs a part of the conditioner, or finds the results of an earlier run on the same values; also says whether they outlast the next run.
fn run_part(
    executables: &mut Executables<'_>,
    plan: &RequestPlan,
    part: ConditioningPart,
    inputs: &[Vec<f32>],
) -> Result<(Arc<Results>, bool)> {
    let lora_scales = &plan.lora_scales.unet;
    let hasher = ContentHasher::new("conditioning")
        .value(&(part, plan.denoise.conditioning(part), plan.placement))
        .bytes(bytemuck::cast_slice(lora_scales));
    let hasher = inputs.iter().fold(hasher, |hasher, input| hasher.bytes(bytemuck::cast_slice(input)));
    let key = hasher.key();
    if let Some(known) = executables.cache.contents.get(key) {
        return Ok((known, true));
    }
    let conditioner = executables.conditioner(part, &plan.denoise, plan.placement)?;
    let names: Vec<String> = conditioner.graph().outputs.iter().map(|(name, _)| name.clone()).collect();
    let mut given: Vec<TensorData<'_>> = inputs.iter().map(TensorData::from).collect();
    given.extend(bound(conditioner.graph(), lora_scales));
    let outputs = conditioner.run_resident(&given)?;
    if !outputs.finite {
        let hint = "weights of the text encoders, the adapter or the UNet are damaged".into();
        return Err(Error::NotFinite { stage: "the conditioning".into(), hint });
    }
    let bytes = 4 * outputs.values.iter().map(TensorRef::len).sum::<usize>();
    let on_device = outputs.values.iter().any(|values| matches!(values, TensorRef::Device(_)));
    let results = |values: Vec<TensorRef<'static>>| -> Arc<Results> {
        Arc::new(names.into_iter().zip(values.into_iter().map(Arc::new)).collect())
    };
    if !on_device {
        let results = results(outputs.values);
        executables.cache.contents.put(key, results.clone(), bytes);
        return Ok((results, true));
    }
    // A request that joins before the images are done runs the conditioner again.
    let overwritten = executables.joins && executables.most_images(plan.latent) > 1;
    let needed = executables.cache.contents.records() || overwritten;
    // Where encoders are freed, the memory is for the denoise loop, which is still to be compiled.
    if !needed && (executables.cache.free_encoders || !executables.cache.contents.holds(bytes)) {
        return Ok((results(outputs.values), false));
    }
    let conditioner = executables.conditioner(part, &plan.denoise, plan.placement)?;
    match conditioner.persist(outputs.values.clone()) {
        Ok(values) => {
            let results = results(values);
            executables.cache.contents.put_on_device(key, results.clone(), bytes);
            Ok((results, true))
        }
        // What is not needed makes no request fail; no other one joins it then.
        Err(Error::Memory { .. }) if !executables.cache.contents.records() => Ok((results(outputs.values), false)),
        Err(error) => Err(error),
    }
}

/// The inputs of the time embeddings: timesteps, pooled text, sizes.
fn times(plan: &RequestPlan, texts: &[TextEmbeddings]) -> Vec<Vec<f32>> {
    let batch = plan.denoise.shape.batch;
    let mut timesteps: Vec<f32> = plan.table.steps.iter().flat_map(|s| vec![s.timestep; batch]).collect();
    // Room for steps that are not made.
    timesteps.resize(plan.denoise.max_steps * batch, 0.0);
    let pooled = texts.iter().flat_map(|t| t.pooled.iter().copied()).collect();
    vec![timesteps, pooled, plan.time_ids[..batch].concat()]
}

/// The text of all rows, of that width.
fn text(plan: &RequestPlan, texts: &[TextEmbeddings], width: usize) -> Vec<f32> {
    let shape = &plan.denoise.shape;
    // A shorter prompt is padded; the padding is never attended to.
    let mut text = vec![0.0; shape.batch * shape.tokens * width];
    for (t, row) in texts.iter().zip(text.chunks_exact_mut(shape.tokens * width)) {
        row[..t.embeds.len()].copy_from_slice(&t.embeds);
    }
    text
}

/// Each image branch's embeddings and weights.
fn image_embeddings(models: &Models, plan: &RequestPlan, images: &[AdapterImages]) -> Vec<Vec<f32>> {
    let (shape, mut inputs) = (&plan.denoise.shape, Vec::new());
    let batch = shape.batch;
    // An image for which there is room and that is not given is zeros.
    for (branch, BranchShape { adapter, tokens, .. }) in shape.branches.iter().enumerate() {
        let config = &models.adapters[plan.denoise.adapters[*adapter]].config;
        let (room, each) = (tokens / config.num_tokens, config.embedding_len(plan.denoise.positions));
        let references = &plan.branches.references[branch];
        let images = &images[*adapter];
        let positive = &images.positive[references.start * each..references.end * each];
        for precise in [false, plan.branches.precise[branch]] {
            let mut rows = vec![0.0; batch * room * each];
            let (row, negative_row) = rows.split_at_mut(room * each);
            row[..positive.len()].copy_from_slice(positive);
            match &images.negative {
                _ if negative_row.is_empty() => {}
                _ if precise => negative_row[..positive.len()].copy_from_slice(positive),
                Some(negative) => {
                    negative_row.chunks_exact_mut(each).for_each(|image| image.copy_from_slice(negative));
                }
                None => {}
            }
            inputs.push(rows);
        }
        if room > 1 {
            let weights = plan.branches.weights[branch].iter().chain(std::iter::repeat(&1.0)).take(room);
            inputs.push(weights.flat_map(|weight| vec![*weight; config.num_tokens]).collect());
        }
    }
    inputs
}
