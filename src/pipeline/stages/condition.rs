//! The step-invariant conditioning.

use super::text::TextEmbeddings;
use crate::device::{TensorData, TensorRef};
use crate::error::{Error, Result};
use crate::models::unet::{BranchShape, DenoiserInput, DenoiserInterface, InputRole};
use crate::pipeline::captures::Captures;
use crate::pipeline::compile::Executables;
use crate::pipeline::image_branches::ImageBranches;
use crate::pipeline::lora::bound;
use crate::pipeline::memory_budget::require_conditioning;
use crate::pipeline::plan::RequestPlan;
use crate::pipeline::stages::image::AdapterImages;
use std::collections::HashMap;
use std::sync::Arc;

/// The denoiser's inputs for an image of the request, the same for all of its images: all but the LoRAs' scales.
pub(in crate::pipeline) type Conditioning = Vec<Arc<TensorRef<'static>>>;

/// Binds the denoiser's inputs: the conditioner's outputs by their names, the numbers of tokens, and what the branches bring.
fn bind(
    interface: &DenoiserInterface,
    tokens: &[Vec<i32>],
    mut values: HashMap<String, TensorRef<'static>>,
    branches: &ImageBranches,
) -> Result<Conditioning> {
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
                values.remove(&input.name).ok_or_else(|| lacks(input))?
            }
        }))
    };
    interface.inputs.iter().map(bind).collect()
}

/// Runs the conditioner.
pub(in crate::pipeline) fn run(
    executables: &mut Executables<'_>,
    plan: &RequestPlan,
    texts: &[TextEmbeddings],
    images: &[AdapterImages],
    captures: &mut Captures,
) -> Result<Conditioning> {
    let config = &executables.compiler.models.unet.config;
    let inputs = inputs(executables, plan, texts, images);
    let mut inputs: Vec<TensorData<'_>> = inputs.iter().map(TensorData::from).collect();
    require_conditioning(executables, &plan.denoise, plan.placement)?;
    let conditioner = executables.conditioner(&plan.denoise, plan.placement)?;
    inputs.extend(bound(conditioner.graph(), &plan.lora_scales.unet));
    let outputs = conditioner.run_resident(&inputs)?;
    if !outputs.finite {
        let hint = "weights of the text encoders, the adapter or the UNet are damaged".into();
        return Err(Error::NotFinite { stage: "the conditioning".into(), hint });
    }
    if captures.enabled() && !plan.branches.tokens.is_empty() {
        let width = config.cross_attention_dim;
        let mut all = Vec::new();
        // The branches' image tokens are the first of the outputs.
        for (values, count) in outputs.values.iter().zip(&plan.branches.tokens) {
            all.extend_from_slice(&values.slice(0..count * width)?.read()?);
        }
        captures.add("image_tokens", &[1, all.len() / width, width], || all);
    }
    let mut tokens = vec![texts.iter().map(|t| t.tokens as i32).collect()];
    tokens.extend(plan.branches.tokens.iter().map(|count| vec![*count as i32; plan.denoise.shape.batch]));
    let interface = DenoiserInterface::new(config, &plan.denoise.shape);
    let values = interface.conditioning_outputs().into_iter().zip(outputs.values).collect();
    bind(&interface, &tokens, values, &plan.branches)
}

/// The conditioner's inputs: timesteps, pooled text, sizes, text, and each image branch's embeddings and weights.
fn inputs(
    executables: &Executables<'_>,
    plan: &RequestPlan,
    texts: &[TextEmbeddings],
    images: &[AdapterImages],
) -> Vec<Vec<f32>> {
    let models = executables.compiler.models;
    let shape = &plan.denoise.shape;
    let batch = shape.batch;
    let mut timesteps: Vec<f32> = plan.table.steps.iter().flat_map(|s| vec![s.timestep; batch]).collect();
    // Room for steps that are not made.
    timesteps.resize(plan.denoise.max_steps * batch, 0.0);
    let pooled: Vec<f32> = texts.iter().flat_map(|t| t.pooled.iter().copied()).collect();
    let time_ids = plan.time_ids[..batch].concat();
    // A shorter prompt is padded; the padding is never attended to.
    let row = shape.tokens * models.unet.config.cross_attention_dim;
    let mut text = vec![0.0; batch * row];
    for (t, row) in texts.iter().zip(text.chunks_exact_mut(row)) {
        row[..t.embeds.len()].copy_from_slice(&t.embeds);
    }
    let mut inputs = vec![timesteps, pooled, time_ids, text];
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
