//! One request from beginning to end.

use super::compile::{self, RequestPlan};
use super::encode::{self, TextEmbeddings};
use super::executable_cache::ExecutableCache;
use super::memory_budget;
use super::prepare::{self, WorkloadShape};
use super::request::{Callbacks, HostTensor, MAX_SIDE, Output, Progress, ReferenceImage, Request, Stage};
use super::{ImagePrompt, Pipeline};
use crate::device::{DecodedImage, TensorRef};
use crate::error::{Error, Field, Result};
use crate::inputs::image::Image;
use crate::inputs::resize::resize;
use crate::memory;
use crate::models::unet::UnetShape;
use crate::schedulers::StepTable;
use std::collections::BTreeMap;
use std::time::Instant;

pub(super) fn generate(
    p: &Pipeline,
    programs: &mut ExecutableCache,
    request: &Request,
    watch: &mut Callbacks<'_>,
) -> Result<Output> {
    request.check()?;
    match draw(p, programs, request, watch) {
        // The likeliest cause is worth the seconds that it takes to look for it.
        Err(Error::NotFinite { stage, hint }) => {
            let bad = p.models.not_finite(&watch.cancel);
            let hint = match bad.first() {
                Some(first) => format!("{} weights are NaN or infinite, fetch the file again: {first}", bad.len()),
                None => hint,
            };
            Err(Error::NotFinite { stage, hint })
        }
        result => result,
    }
}

fn draw(p: &Pipeline, programs: &mut ExecutableCache, request: &Request, watch: &mut Callbacks<'_>) -> Result<Output> {
    let mut run = RequestRun::new(p, programs, request, watch)?;
    // What is too large is refused before any work: the decoder's program takes the most memory.
    run.images_fit()?;
    let shape = WorkloadShape::of(p, request)?;
    let plan = prepare::plan(p, &shape)?;
    let plan = run.executables.covering_plan(plan);
    memory_budget::require(p, run.executables, &plan, &shape)?;
    compile::decoder(p, run.executables, run.latent)?;
    let texts = run.stage(Stage::Text, RequestRun::texts)?;
    run.executables.release_encoders();
    let embeds = run.stage(Stage::Image, RequestRun::image_embeds)?;
    run.executables.release_encoders();
    let state = run.stage(Stage::Condition, |run| run.condition(&texts, &embeds))?;
    let mut pictures = Vec::new();
    for picture in 0..request.num_images {
        run.image = picture;
        let latents = run.stage(Stage::Denoise, |run| run.denoise(&state))?;
        pictures.push(run.stage(Stage::Decode, |run| run.decode(&latents))?);
    }
    let seeds = (0..request.num_images as u64).map(|i| request.seed.wrapping_add(i)).collect();
    let RequestRun { seconds, step_seconds, intermediates: stages, truncated_tokens: cut_tokens, .. } = run;
    Ok(Output { images: pictures, seeds, seconds, step_seconds, intermediates: stages, truncated_tokens: cut_tokens })
}

pub(super) struct RequestRun<'a, 'w> {
    pub(super) p: &'a Pipeline,
    pub(super) executables: &'a mut ExecutableCache,
    pub(super) request: &'a Request,
    pub(super) callbacks: &'a mut Callbacks<'w>,
    pub(super) table: StepTable,
    /// Height and width of the latents.
    pub(super) latent: [usize; 2],
    /// The adapters in use.
    pub(super) adapters: Vec<usize>,
    do_cfg: bool,
    pub(super) image: usize,
    seconds: BTreeMap<Stage, f64>,
    pub(super) step_seconds: Vec<f64>,
    intermediates: BTreeMap<String, HostTensor>,
    truncated_tokens: usize,
}

/// What the condition program made, and what else stays the same for all steps and pictures.
pub(super) struct Conditioning {
    pub(super) plan: RequestPlan,
    /// How many tokens count in each row: of the text, then of each adapter's pictures.
    pub(super) tokens: Vec<Vec<f32>>,
    pub(super) scales: Vec<f32>,
    /// The condition program's outputs, image tokens first.
    pub(super) values: Vec<TensorRef<'static>>,
    /// How many of the outputs after the image tokens hold a row for each step.
    pub(super) per_step: usize,
}

impl<'a, 'w> RequestRun<'a, 'w> {
    fn new(
        p: &'a Pipeline,
        programs: &'a mut ExecutableCache,
        request: &'a Request,
        watch: &'a mut Callbacks<'w>,
    ) -> Result<Self> {
        let table = p.scheduler_config(request)?.table(request.steps)?;
        if request.image_prompts.len() > p.num_adapters() {
            let what = format!("{} image prompts for {} adapters", request.image_prompts.len(), p.num_adapters());
            return Err(Error::parameter(Field::ImagePrompts, what));
        }
        let latent = latent_size(p, request.width, request.height)?;
        if let Some(noise) = &request.noise {
            let [c, h, w] = [p.models.unet.config.in_channels, latent[0], latent[1]];
            let (count, need) = (request.num_images, request.num_images * c * h * w);
            if noise.len() != need {
                let what =
                    format!("`noise` has {} values; {count} pictures of [{c}, {h}, {w}] need {need}", noise.len());
                return Err(Error::parameter(Field::Noise, what));
            }
            if !noise.iter().all(|v| v.is_finite()) {
                return Err(Error::parameter(Field::Noise, "`noise` holds values that are not finite"));
            }
        }
        let adapters: Vec<usize> =
            (0..request.image_prompts.len()).filter(|&a| !request.image_prompts[a].references.is_empty()).collect();
        Ok(Self {
            p,
            executables: programs,
            request,
            callbacks: watch,
            table,
            latent,
            adapters,
            do_cfg: p.compat.do_classifier_free_guidance(request.guidance_scale),
            image: 0,
            seconds: BTreeMap::new(),
            step_seconds: Vec::new(),
            intermediates: BTreeMap::new(),
            truncated_tokens: 0,
        })
    }

    fn batch(&self) -> usize {
        if self.do_cfg { 2 } else { 1 }
    }

    /// Runs a stage with its time taken and its begin told.
    fn stage<T>(&mut self, stage: Stage, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.callbacks.cancel.check()?;
        let steps = if stage == Stage::Denoise { self.table.steps.len() } else { 1 };
        self.report(stage, 0, steps);
        let begin = Instant::now();
        let result = work(self)?;
        *self.seconds.entry(stage).or_default() += begin.elapsed().as_secs_f64();
        if stage != Stage::Denoise {
            self.report(stage, 1, 1);
        }
        Ok(result)
    }

    fn report(&mut self, stage: Stage, done: usize, steps: usize) {
        let pictures = self.request.num_images;
        self.callbacks.report(Progress { stage, image: self.image, num_images: pictures, done, steps });
    }

    /// Keeps a stage; rows of one name follow one another. Adapters of different widths cannot: of their embeddings the first
    /// width is kept.
    pub(super) fn capture(&mut self, name: &str, shape: &[usize], data: impl FnOnce() -> Vec<f32>) {
        if self.request.capture_intermediates {
            let mut data = data();
            let tensor = self.intermediates.entry(name.to_owned()).or_insert_with(|| HostTensor {
                shape: std::iter::once(0).chain(shape[1..].iter().copied()).collect(),
                data: Vec::new(),
            });
            if tensor.shape[1..] == shape[1..] {
                tensor.shape[0] += shape[0];
                tensor.data.append(&mut data);
            }
        }
    }

    /// The positive prompt's embeddings and, with guidance, the negative one's.
    fn texts(&mut self) -> Result<Vec<TextEmbeddings>> {
        let request = self.request;
        let (positive, cut) =
            encode::text(self.p, self.executables, Field::Prompt, &request.prompt, request.clip_skip)?;
        if cut > 0 {
            tracing::warn!("the prompt is too long: its last {cut} tokens have no effect");
        }
        self.truncated_tokens = cut;
        let mut texts = vec![positive];
        if self.do_cfg {
            let zero = self.p.compat.zero_negative && self.p.models.zero_negative;
            texts.push(match &request.negative_prompt {
                None if zero => texts[0].zeros(),
                negative => {
                    // clip_skip is the prompt's alone, as in diffusers.
                    let negative = negative.as_deref().unwrap_or("");
                    encode::text(self.p, self.executables, Field::NegativePrompt, negative, 0)?.0
                }
            });
        }
        for (text, prefix) in texts.iter().zip(["", "negative_"]) {
            let (t, width) = (text.tokens, text.embeds.len() / text.tokens);
            self.capture(&format!("{prefix}text_embeds"), &[1, t, width], || text.embeds.clone());
            self.capture(&format!("{prefix}pooled"), &[1, text.pooled.len()], || text.pooled.clone());
        }
        Ok(texts)
    }

    /// Each used adapter's image embeddings, `[n, E]`.
    fn image_embeds(&mut self) -> Result<Vec<Vec<f32>>> {
        let mut all = Vec::new();
        for a in self.adapters.clone() {
            let ImagePrompt { references, resize: stretch, .. } = &self.request.image_prompts[a];
            let width = self.p.models.adapters[a].config.embedding_dim;
            let mut embeds = Vec::new();
            for reference in references {
                self.callbacks.cancel.check()?;
                let embedding = match reference {
                    ReferenceImage::Embedding(values) => values.clone(),
                    ReferenceImage::Image(picture) => match stretch {
                        Some((w, h)) => encode::image(self.p, self.executables, &resize(picture, *w, *h)?)?,
                        None => encode::image(self.p, self.executables, picture)?,
                    },
                };
                if embedding.len() != width {
                    let what = format!("an image embedding of {} values, the adapter takes {width}", embedding.len());
                    return Err(Error::parameter(Field::ImagePrompts, what));
                }
                if !all_finite(&embedding) {
                    let hint = "the picture or the encoder's weights are damaged".into();
                    return Err(Error::NotFinite { stage: "the image encoder".into(), hint });
                }
                embeds.extend(embedding);
            }
            self.capture("image_embeds", &[references.len(), width], || embeds.clone());
            all.push(embeds);
        }
        Ok(all)
    }

    fn condition(&mut self, texts: &[TextEmbeddings], embeds: &[Vec<f32>]) -> Result<Conditioning> {
        let p = self.p;
        let (batch, steps) = (self.batch(), self.table.steps.len());
        let config = &p.models.unet.config;
        let used: Vec<_> = self.adapters.iter().map(|&a| &p.models.adapters[a]).collect();
        let tokens = texts.iter().map(|t| t.tokens).max().unwrap_or(0);
        let counts: Vec<usize> =
            used.iter().zip(embeds).map(|(a, e)| e.len() / a.config.embedding_dim * a.config.num_tokens).collect();
        let shape =
            UnetShape { batch, height: self.latent[0], width: self.latent[1], tokens, image_tokens: counts.clone() };
        let plan = self.executables.covering_plan(RequestPlan::new(p, shape, steps, self.adapters.clone()));
        let scales = self.scales()?;
        let resident = self.steps(&plan).is_some();
        let program = compile::conditioner(p, self.executables, &plan)?;

        let mut timesteps: Vec<f32> = self.table.steps.iter().flat_map(|s| vec![s.timestep; batch]).collect();
        // Steps for which there is room and that are not made.
        timesteps.resize(plan.max_steps * batch, 0.0);
        let pooled: Vec<f32> = texts.iter().flat_map(|t| t.pooled.iter().copied()).collect();
        let factor = p.models.vae.config.scale_factor();
        let (h, w) = ((self.latent[0] * factor) as f32, (self.latent[1] * factor) as f32);
        let time_ids = [h, w, 0.0, 0.0, h, w].repeat(batch);
        // A shorter prompt is padded; the padding is never attended to.
        let row = plan.shape.tokens * config.cross_attention_dim;
        let mut text = vec![0.0; batch * row];
        for (t, row) in texts.iter().zip(text.chunks_exact_mut(row)) {
            row[..t.embeds.len()].copy_from_slice(&t.embeds);
        }
        // The negative row's picture is the zero embedding, and so is one for which there is room and that is not given.
        let images: Vec<Vec<f32>> = (embeds.iter().zip(&used).zip(&plan.shape.image_tokens))
            .map(|((e, adapter), tokens)| {
                let mut rows = e.clone();
                rows.resize(batch * tokens / adapter.config.num_tokens * adapter.config.embedding_dim, 0.0);
                rows
            })
            .collect();
        let mut inputs: Vec<&[f32]> = vec![&timesteps, &pooled, &time_ids, &text];
        inputs.extend(images.iter().map(Vec::as_slice));
        let hint = "weights of the text encoders, the adapter or the UNet are damaged";
        let damaged = || Error::NotFinite { stage: "the conditioning".into(), hint: hint.into() };
        // A sampler on the device finds them there.
        let left = if resident { program.run_resident(&inputs)? } else { None };
        let values: Vec<TensorRef<'static>> = match left {
            Some(left) if !left.finite => return Err(damaged()),
            Some(left) => left.values.into_iter().map(TensorRef::from).collect(),
            None => {
                let graph = program.graph();
                // Its results are kept for all steps; together they take more than its arena.
                let kept: usize = graph.outputs.iter().map(|(_, id)| graph.node(*id).len()).sum();
                let few = || "give fewer image prompts, a shorter prompt or fewer steps".into();
                memory::require("condition", kept as u64 * 4, few)?;
                let mut values: Vec<Vec<f32>> =
                    graph.outputs.iter().map(|(_, id)| vec![0.0; graph.node(*id).len()]).collect();
                program.run(&inputs, &mut values.iter_mut().map(Vec::as_mut_slice).collect::<Vec<_>>())?;
                if !values.iter().all(|v| all_finite(v)) {
                    return Err(damaged());
                }
                values.into_iter().map(TensorRef::from).collect()
            }
        };
        if self.request.capture_intermediates && !used.is_empty() {
            let mut all = Vec::new();
            for (values, count) in values.iter().zip(&counts) {
                all.extend_from_slice(&values.slice(0..count * config.cross_attention_dim)?.read()?);
            }
            let count = all.len() / config.cross_attention_dim;
            self.capture("image_tokens", &[1, count, config.cross_attention_dim], || all);
        }
        let mut tokens = vec![texts.iter().map(|t| t.tokens as f32).collect()];
        tokens.extend(counts.iter().map(|count| vec![*count as f32; batch]));
        Ok(Conditioning { plan, tokens, scales, values, per_step: config.resnets().len() })
    }

    /// `[L, A, B]`: the image strands' weights.
    fn scales(&self) -> Result<Vec<f32>> {
        let config = &self.p.models.unet.config;
        let resolved = self
            .adapters
            .iter()
            .map(|&a| self.request.image_prompts[a].scales.resolve(config))
            .collect::<Result<Vec<_>>>()?;
        let mut scales = Vec::new();
        for layer in 0..config.cross_layers().len() {
            for adapter in &resolved {
                let scale = adapter[layer];
                scales.push(scale.unwrap_or(0.0));
                if self.do_cfg {
                    let negative = self.p.compat.negative_image_scale;
                    scales.push(scale.map_or(0.0, |s| negative.unwrap_or(s)));
                }
            }
        }
        Ok(scales)
    }

    /// Whether all pictures of the request and one in f32 have room.
    fn images_fit(&self) -> Result<()> {
        let factor = self.p.models.vae.config.scale_factor();
        let values = (self.latent.iter().map(|side| side * factor).product::<usize>() * 3) as u64;
        let kept = if self.request.capture_intermediates { 5 } else { 1 };
        let need = values * (self.request.num_images as u64 * kept + 4);
        memory::require("decode", need, || "ask for fewer or smaller pictures".into())
    }

    fn decode(&mut self, latents: &TensorRef<'_>) -> Result<Image> {
        let (p, keep) = (self.p, self.request.capture_intermediates);
        let config = &p.models.vae.config;
        let [h, w] = self.latent.map(|side| side * config.scale_factor());
        let program = compile::decoder(p, self.executables, self.latent)?;
        let painted = match program.decode_rgb8(latents, keep)? {
            Some(painted) => painted,
            None => {
                let mut image = vec![0.0; h * w * config.out_channels];
                program.run(&[latents.read()?.as_ref()], &mut [&mut image])?;
                let rgb = image.iter().map(|v| pixel(unit(*v), p.compat.truncates_pixels)).collect();
                DecodedImage { rgb, finite: all_finite(&image), image }
            }
        };
        if !painted.finite {
            let hint = "the latents are out of its range; check the model file".into();
            return Err(Error::NotFinite { stage: "the VAE".into(), hint });
        }
        let picture = Image::new(w, h, painted.rgb)?;
        let image = || painted.image.into_iter().map(unit).collect();
        self.capture("image", &[1, h, w, config.out_channels], image);
        Ok(picture)
    }
}

/// From -1 to 1, as the decoder has it, to 0 to 1.
fn unit(value: f32) -> f32 {
    (value / 2.0 + 0.5).clamp(0.0, 1.0)
}

/// The byte of a value from 0 to 1.
fn pixel(value: f32, truncate: bool) -> u8 {
    let value = value * 255.0;
    if truncate { value as u8 } else { value.round_ties_even() as u8 }
}

/// Height and width of the latents.
pub(super) fn latent_size(p: &Pipeline, asked_width: Option<usize>, asked_height: Option<usize>) -> Result<[usize; 2]> {
    let (width, height) = p.default_size();
    let factor = p.models.vae.config.scale_factor();
    let side = |field: Field, asked: Option<usize>, default: usize| {
        let side = asked.unwrap_or(default);
        let bad = |what: String| Err(Error::parameter(field, what));
        if side == 0 || side > MAX_SIDE {
            return bad(format!("{side} given; 1 to {MAX_SIDE} is allowed"));
        }
        match p.compat.round_sides {
            Some(multiple) => Ok(side.next_multiple_of(multiple.max(factor)) / factor),
            // diffusers asks for 8 whatever the VAE.
            None if !side.is_multiple_of(factor.max(8)) => {
                let step = factor.max(8);
                let near = (side / step * step).max(step);
                bad(format!("{side} is not divisible by {step}; {near} or {} is", near + step))
            }
            None => Ok(side / factor),
        }
    };
    Ok([side(Field::Height, asked_height, height)?, side(Field::Width, asked_width, width)?])
}

fn all_finite(values: &[f32]) -> bool {
    values.iter().all(|v| v.is_finite())
}
