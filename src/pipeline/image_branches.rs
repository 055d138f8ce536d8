//! The image branches of a request: which references share a softmax, and the scales, weights and masks of each.

use super::compile::Compiler;
use super::denoise_plan::DenoisePlan;
use super::image_prompt::{Combine, ImagePrompt, Reference};
use super::request::Request;
use crate::error::{Error, Field, Result};
use crate::inputs::mask::Mask;
use crate::models::ip_adapter::{LayerScale, Scales};
use crate::models::unet::{BranchShape, DenoiserInterface, UnetConfig};
use std::collections::HashMap;
use std::ops::Range;

/// The most image branches of a request; a device may have no room for more.
pub(super) const MAX_IMAGE_BRANCHES: usize = 16;

/// The branches of one image prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PromptBranches {
    /// The references, of which an average makes one.
    pub(super) num_references: usize,
    /// Whether each has a softmax of its own.
    pub(super) separate: bool,
    /// Whether each has a mask.
    pub(super) masked: bool,
}

impl PromptBranches {
    pub(super) fn new(prompt: &ImagePrompt) -> Self {
        let masked = prompt.references.iter().any(|reference| reference.mask.is_some());
        let num_references = match prompt.combine {
            Combine::Average => prompt.references.len().min(1),
            Combine::Concat | Combine::Add => prompt.references.len(),
        };
        let separate = num_references > 1 && (masked || prompt.combine == Combine::Add);
        Self { num_references, separate, masked }
    }

    /// The branches of an adapter in use, each of whose references makes that many tokens.
    ///
    /// # Errors
    /// [`Error::Parameter`] where there are more than can be.
    pub(super) fn shapes(&self, adapter: usize, tokens: usize) -> Result<Vec<BranchShape>> {
        let (count, masked) = (self.num_references, self.masked);
        if self.separate {
            if count > MAX_IMAGE_BRANCHES {
                return Err(too_many(count));
            }
            return Ok(vec![BranchShape { adapter, tokens, masked }; count]);
        }
        let Some(tokens) = count.checked_mul(tokens) else {
            return Err(Error::parameter(Field::ImagePrompts, "more references than can be counted"));
        };
        Ok(vec![BranchShape { adapter, tokens, masked }])
    }
}

/// The error for more branches than can be.
pub(super) fn too_many(count: usize) -> Error {
    let what = format!("{count} references and adapters with a softmax each; {MAX_IMAGE_BRANCHES} are allowed");
    Error::parameter(Field::ImagePrompts, what)
}

/// The inputs of the image branches that a request brings, beside keys and values.
pub(super) struct ImageBranches {
    /// The references of each branch, among those of its adapter.
    pub(super) references: Vec<Range<usize>>,
    /// The tokens of each branch.
    pub(super) tokens: Vec<usize>,
    /// The weights of the values of each branch's references.
    pub(super) weights: Vec<Vec<f32>>,
    /// Whether the negative row of each branch has the positive one's images in the layout's transformer.
    pub(super) precise: Vec<bool>,
    /// `[S, L, A, B]`: the weight of each branch in each cross-attention and step.
    pub(super) scales: Vec<f32>,
    /// The factor of each branch's scales.
    factors: Vec<f32>,
    /// The factors of a branch's mask in the cross-attentions of so many queries.
    pub(super) masks: HashMap<(usize, usize), Vec<f32>>,
}

impl ImageBranches {
    /// Plans the branches of a request of that many steps. `own` has the request's own sizes, `plan` those that it runs on.
    ///
    /// # Errors
    /// [`Error::Parameter`].
    pub(super) fn new(
        compiler: &Compiler<'_>,
        request: &Request,
        own: &[BranchShape],
        plan: &DenoisePlan,
        steps: usize,
    ) -> Result<Self> {
        let mut branches = Self {
            references: Vec::new(),
            tokens: own.iter().map(|branch| branch.tokens).collect(),
            weights: Vec::new(),
            precise: Vec::new(),
            scales: Vec::new(),
            factors: Vec::new(),
            masks: HashMap::new(),
        };
        for (index, &a) in plan.adapters.iter().enumerate() {
            let prompt = &request.image_prompts[a];
            let shape = PromptBranches::new(prompt);
            let count = own.iter().filter(|branch| branch.adapter == index).count();
            let size = shape.num_references.checked_div(count).unwrap_or(0);
            for i in 0..count {
                let references = i * size..(i + 1) * size;
                let (factor, weights) = weights(prompt, references.clone());
                branches.references.push(references);
                branches.weights.push(weights);
                branches.precise.push(prompt.scales.is_precise());
                branches.factors.push(factor);
            }
        }
        let config = &compiler.models.unet.config;
        let given: Vec<_> = request.image_prompts.iter().map(|prompt| prompt.scales.clone()).collect();
        branches.scales = branches.scales_of(compiler, (request, &given), plan, steps)?;
        branches.masks = branches.masks(request, config, plan, compiler.models.vae.config.scale_factor())?;
        Ok(branches)
    }

    /// As [`Self::scales`], where the image prompts of a request have these scales instead.
    ///
    /// # Errors
    /// [`Error::Parameter`].
    pub(super) fn scales_of(
        &self,
        compiler: &Compiler<'_>,
        (request, given): (&Request, &[Scales]),
        plan: &DenoisePlan,
        steps: usize,
    ) -> Result<Vec<f32>> {
        scales(compiler, (request, given), plan, &self.factors, steps)
    }

    /// The masks of all branches.
    fn masks(
        &self,
        request: &Request,
        config: &UnetConfig,
        plan: &DenoisePlan,
        scale_factor: usize,
    ) -> Result<HashMap<(usize, usize), Vec<f32>>> {
        let mut masks = HashMap::new();
        let [width, height] = [plan.shape.width, plan.shape.height].map(|side| side * scale_factor);
        let resolutions = plan.shape.mask_resolutions(config);
        for (branch, (shape, references)) in plan.shape.branches.iter().zip(&self.references).enumerate() {
            let prompt = &request.image_prompts[plan.adapters[shape.adapter]];
            let reference = prompt.references.get(references.start);
            let Some(mask) = reference.and_then(|reference| reference.mask.as_ref()) else { continue };
            let mask = Mask::new(mask, width, height)?;
            masks.extend(resolutions.iter().map(|&queries| ((branch, queries), mask.downsample(queries))));
        }
        Ok(masks)
    }
}

/// The factor of a branch's result, and those of its references' values.
fn weights(prompt: &ImagePrompt, references: Range<usize>) -> (f32, Vec<f32>) {
    let of = |references: &[Reference]| references.iter().map(|reference| reference.weight).collect::<Vec<_>>();
    if prompt.combine == Combine::Average {
        let any = prompt.references.iter().any(|reference| reference.weight != 0.0);
        return (if any { 1.0 } else { 0.0 }, vec![1.0]);
    }
    match of(&prompt.references[references]).as_slice() {
        [one] => (*one, vec![1.0]),
        several => (1.0, several.to_vec()),
    }
}

/// `[S, L, A, B]`: the weight of each branch in each cross-attention and step.
fn scales(
    compiler: &Compiler<'_>,
    (request, given): (&Request, &[Scales]),
    plan: &DenoisePlan,
    factors: &[f32],
    steps: usize,
) -> Result<Vec<f32>> {
    let config = &compiler.models.unet.config;
    let interface = DenoiserInterface::new(config, &plan.shape);
    let prompts: Vec<_> = plan.adapters.iter().map(|&a| &request.image_prompts[a]).collect();
    let resolved = plan.adapters.iter().map(|&a| given[a].resolve(config)).collect::<Result<Vec<_>>>()?;
    let (batch, layers) = (plan.shape.batch, config.cross_layers().len());
    let mut all = Vec::new();
    for step in 0..steps {
        let mut scales = vec![0.0; layers * factors.len() * batch];
        for (branch, (shape, factor)) in plan.shape.branches.iter().zip(factors).enumerate() {
            if !prompts[shape.adapter].acts(step, steps) {
                continue;
            }
            for (layer, scale) in resolved[shape.adapter].iter().enumerate() {
                let row = &mut scales[interface.scale_offset(layer, branch)..][..batch];
                let (positive, scale) = match *scale {
                    LayerScale::Absent => continue,
                    LayerScale::NegativeRow(scale) => (0.0, scale),
                    LayerScale::Both(scale) => (scale * factor, scale),
                };
                row[0] = positive;
                if let Some(negative) = row.get_mut(1) {
                    *negative = compiler.compat.negative_image_scale.unwrap_or(scale) * factor;
                }
                if row.iter().any(|scale| !scale.is_finite()) {
                    let what = format!("the weight {factor} times the scale {scale} is not a finite number");
                    return Err(Error::parameter(Field::ReferenceWeight, what));
                }
            }
        }
        all.extend(scales);
    }
    Ok(all)
}

/// The mean of embeddings `[n, E]`, each times its weight: `sum(w e) / sum(w)`. Weights that are all 0 give the plain mean, which
/// then has no effect.
pub(super) fn average(references: &[Reference], embeddings: &[f32]) -> Vec<f32> {
    let weights: Vec<f64> = references.iter().map(|reference| f64::from(reference.weight)).collect();
    let weights = if weights.iter().any(|w| *w != 0.0) { weights } else { vec![1.0; references.len()] };
    let sum: f64 = weights.iter().sum();
    let width = embeddings.len() / references.len().max(1);
    let mut mean = vec![0.0; width];
    for (values, weight) in embeddings.chunks_exact(width.max(1)).zip(&weights) {
        mean.iter_mut().zip(values).for_each(|(mean, v)| *mean += weight * f64::from(*v));
    }
    mean.into_iter().map(|v| (v / sum) as f32).collect()
}
