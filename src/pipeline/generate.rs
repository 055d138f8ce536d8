//! One request from beginning to end.

use super::build::{self, Plan};
use super::encode::{self, Text};
use super::prepare::{self, Shape};
use super::programs::Programs;
use super::request::{MAX_SIDE, Output, Progress, Reference, Request, Stage, StageTensor, Watch};
use super::room;
use super::{ImagePrompt, Pipeline};
use crate::device::{Painted, Values};
use crate::error::{Error, Result};
use crate::inputs::picture::Picture;
use crate::inputs::resize::resize;
use crate::memory;
use crate::models::unet::UnetShape;
use crate::schedulers::Table;
use std::collections::BTreeMap;
use std::time::Instant;

pub(super) fn generate(
    p: &Pipeline,
    programs: &mut Programs,
    request: &Request,
    watch: &mut Watch<'_>,
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

fn draw(p: &Pipeline, programs: &mut Programs, request: &Request, watch: &mut Watch<'_>) -> Result<Output> {
    let mut run = Run::new(p, programs, request, watch)?;
    // What is too large is refused before any work: the decoder's program takes the most memory.
    run.pictures_fit()?;
    let shape = Shape::of(p, request)?;
    let plan = prepare::plan(p, &shape)?;
    let plan = run.programs.plan_for(plan);
    room::demand(p, run.programs, &plan, &shape)?;
    build::decoder(p, run.programs, run.latent)?;
    let texts = run.stage(Stage::Text, Run::texts)?;
    run.programs.encoded();
    let embeds = run.stage(Stage::Image, Run::image_embeds)?;
    run.programs.encoded();
    let state = run.stage(Stage::Condition, |run| run.condition(&texts, &embeds))?;
    let mut pictures = Vec::new();
    for picture in 0..request.count {
        run.picture = picture;
        let latents = run.stage(Stage::Denoise, |run| run.denoise(&state))?;
        pictures.push(run.stage(Stage::Decode, |run| run.decode(&latents))?);
    }
    let seeds = (0..request.count as u64).map(|i| request.seed.wrapping_add(i)).collect();
    let Run { seconds, step_seconds, stages, cut_tokens, .. } = run;
    Ok(Output { pictures, seeds, seconds, step_seconds, stages, cut_tokens })
}

pub(super) struct Run<'a, 'w> {
    pub(super) p: &'a Pipeline,
    pub(super) programs: &'a mut Programs,
    pub(super) request: &'a Request,
    pub(super) watch: &'a mut Watch<'w>,
    pub(super) table: Table,
    /// Height and width of the latents.
    pub(super) latent: [usize; 2],
    /// The adapters in use.
    pub(super) adapters: Vec<usize>,
    guided: bool,
    pub(super) picture: usize,
    seconds: BTreeMap<Stage, f64>,
    pub(super) step_seconds: Vec<f64>,
    stages: BTreeMap<String, StageTensor>,
    cut_tokens: usize,
}

/// What the condition program made, and what else stays the same for all steps and pictures.
pub(super) struct State {
    pub(super) plan: Plan,
    /// How many tokens count in each row: of the text, then of each adapter's pictures.
    pub(super) tokens: Vec<Vec<f32>>,
    pub(super) scales: Vec<f32>,
    /// The condition program's outputs, image tokens first.
    pub(super) values: Vec<Values<'static>>,
    /// How many of the outputs after the image tokens hold a row for each step.
    pub(super) per_step: usize,
}

impl<'a, 'w> Run<'a, 'w> {
    fn new(
        p: &'a Pipeline,
        programs: &'a mut Programs,
        request: &'a Request,
        watch: &'a mut Watch<'w>,
    ) -> Result<Self> {
        let table = p.sampler(request)?.table(request.steps)?;
        if request.images.len() > p.adapters() {
            let what = format!("{} image prompts for {} adapters", request.images.len(), p.adapters());
            return Err(Error::parameter("--ip-adapter-image", what));
        }
        let latent = latent_size(p, request.width, request.height)?;
        if let Some(noise) = &request.noise {
            let [c, h, w] = [p.models.unet.config.in_channels, latent[0], latent[1]];
            let (count, need) = (request.count, request.count * c * h * w);
            if noise.len() != need {
                let what =
                    format!("`noise` has {} values; {count} pictures of [{c}, {h}, {w}] need {need}", noise.len());
                return Err(Error::parameter("--latents-in", what));
            }
            if !noise.iter().all(|v| v.is_finite()) {
                return Err(Error::parameter("--latents-in", "`noise` holds values that are not finite"));
            }
        }
        let adapters: Vec<usize> =
            (0..request.images.len()).filter(|&a| !request.images[a].references.is_empty()).collect();
        Ok(Self {
            p,
            programs,
            request,
            watch,
            table,
            latent,
            adapters,
            guided: p.compat.guides(request.guidance),
            picture: 0,
            seconds: BTreeMap::new(),
            step_seconds: Vec::new(),
            stages: BTreeMap::new(),
            cut_tokens: 0,
        })
    }

    fn batch(&self) -> usize {
        if self.guided { 2 } else { 1 }
    }

    /// Runs a stage with its time taken and its begin told.
    fn stage<T>(&mut self, stage: Stage, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.watch.cancel.check()?;
        let steps = if stage == Stage::Denoise { self.table.steps.len() } else { 1 };
        self.tell(stage, 0, steps);
        let begin = Instant::now();
        let result = work(self)?;
        *self.seconds.entry(stage).or_default() += begin.elapsed().as_secs_f64();
        if stage != Stage::Denoise {
            self.tell(stage, 1, 1);
        }
        Ok(result)
    }

    fn tell(&mut self, stage: Stage, done: usize, steps: usize) {
        let pictures = self.request.count;
        self.watch.tell(Progress { stage, picture: self.picture, pictures, done, steps });
    }

    /// Keeps a stage; rows of one name follow one another. Adapters of different widths cannot: of their embeddings the first
    /// width is kept.
    pub(super) fn keep(&mut self, name: &str, shape: &[usize], data: impl FnOnce() -> Vec<f32>) {
        if self.request.keep_stages {
            let mut data = data();
            let tensor = self.stages.entry(name.to_owned()).or_insert_with(|| StageTensor {
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
    fn texts(&mut self) -> Result<Vec<Text>> {
        let request = self.request;
        let (positive, cut) = encode::text(self.p, self.programs, "--prompt", &request.prompt, request.clip_skip)?;
        if cut > 0 {
            tracing::warn!("the prompt is too long: its last {cut} tokens have no effect");
        }
        self.cut_tokens = cut;
        let mut texts = vec![positive];
        if self.guided {
            let zero = self.p.compat.zero_negative && self.p.models.zero_negative;
            texts.push(match &request.negative_prompt {
                None if zero => texts[0].zeros(),
                negative => {
                    // clip_skip is the prompt's alone, as in diffusers.
                    let negative = negative.as_deref().unwrap_or("");
                    encode::text(self.p, self.programs, "--negative-prompt", negative, 0)?.0
                }
            });
        }
        for (text, prefix) in texts.iter().zip(["", "negative_"]) {
            let (t, width) = (text.tokens, text.embeds.len() / text.tokens);
            self.keep(&format!("{prefix}text_embeds"), &[1, t, width], || text.embeds.clone());
            self.keep(&format!("{prefix}pooled"), &[1, text.pooled.len()], || text.pooled.clone());
        }
        Ok(texts)
    }

    /// Each used adapter's image embeddings, `[n, E]`.
    fn image_embeds(&mut self) -> Result<Vec<Vec<f32>>> {
        let mut all = Vec::new();
        for a in self.adapters.clone() {
            let ImagePrompt { references, resize: stretch, .. } = &self.request.images[a];
            let width = self.p.models.adapters[a].config.embedding;
            let mut embeds = Vec::new();
            for reference in references {
                self.watch.cancel.check()?;
                let embedding = match reference {
                    Reference::Embedding(values) => values.clone(),
                    Reference::Picture(picture) => match stretch {
                        Some((w, h)) => encode::image(self.p, self.programs, &resize(picture, *w, *h)?)?,
                        None => encode::image(self.p, self.programs, picture)?,
                    },
                };
                if embedding.len() != width {
                    let what = format!("an image embedding of {} values, the adapter takes {width}", embedding.len());
                    return Err(Error::parameter("--ip-adapter-image", what));
                }
                if !all_finite(&embedding) {
                    let hint = "the picture or the encoder's weights are damaged".into();
                    return Err(Error::NotFinite { stage: "the image encoder".into(), hint });
                }
                embeds.extend(embedding);
            }
            self.keep("image_embeds", &[references.len(), width], || embeds.clone());
            all.push(embeds);
        }
        Ok(all)
    }

    fn condition(&mut self, texts: &[Text], embeds: &[Vec<f32>]) -> Result<State> {
        let p = self.p;
        let (batch, steps) = (self.batch(), self.table.steps.len());
        let config = &p.models.unet.config;
        let used: Vec<_> = self.adapters.iter().map(|&a| &p.models.adapters[a]).collect();
        let tokens = texts.iter().map(|t| t.tokens).max().unwrap_or(0);
        let counts: Vec<usize> =
            used.iter().zip(embeds).map(|(a, e)| e.len() / a.config.embedding * a.config.tokens).collect();
        let shape =
            UnetShape { batch, height: self.latent[0], width: self.latent[1], tokens, image_tokens: counts.clone() };
        let plan = self.programs.plan_for(Plan::new(p, shape, steps, self.adapters.clone()));
        let scales = self.scales()?;
        let resident = self.steps(&plan).is_some();
        let program = build::conditioner(p, self.programs, &plan)?;

        let mut timesteps: Vec<f32> = self.table.steps.iter().flat_map(|s| vec![s.timestep; batch]).collect();
        // Steps for which there is room and that are not made.
        timesteps.resize(plan.most * batch, 0.0);
        let pooled: Vec<f32> = texts.iter().flat_map(|t| t.pooled.iter().copied()).collect();
        let factor = p.models.vae.config.factor();
        let (h, w) = ((self.latent[0] * factor) as f32, (self.latent[1] * factor) as f32);
        let time_ids = [h, w, 0.0, 0.0, h, w].repeat(batch);
        // A shorter prompt is padded; the padding is never attended to.
        let row = plan.shape.tokens * config.context;
        let mut text = vec![0.0; batch * row];
        for (t, row) in texts.iter().zip(text.chunks_exact_mut(row)) {
            row[..t.embeds.len()].copy_from_slice(&t.embeds);
        }
        // The negative row's picture is the zero embedding, and so is one for which there is room and that is not given.
        let images: Vec<Vec<f32>> = (embeds.iter().zip(&used).zip(&plan.shape.image_tokens))
            .map(|((e, adapter), tokens)| {
                let mut rows = e.clone();
                rows.resize(batch * tokens / adapter.config.tokens * adapter.config.embedding, 0.0);
                rows
            })
            .collect();
        let mut inputs: Vec<&[f32]> = vec![&timesteps, &pooled, &time_ids, &text];
        inputs.extend(images.iter().map(Vec::as_slice));
        let hint = "weights of the text encoders, the adapter or the UNet are damaged (`braid inspect`)";
        let damaged = || Error::NotFinite { stage: "the conditioning".into(), hint: hint.into() };
        // A sampler on the device finds them there.
        let left = if resident { program.leave(&inputs)? } else { None };
        let values: Vec<Values<'static>> = match left {
            Some(left) if !left.finite => return Err(damaged()),
            Some(left) => left.values.into_iter().map(Values::from).collect(),
            None => {
                let graph = program.graph();
                // Its results are kept for all steps; together they take more than its arena.
                let kept: usize = graph.outputs.iter().map(|(_, id)| graph.node(*id).len()).sum();
                let few = || "give fewer image prompts, a shorter prompt or fewer steps".to_owned();
                memory::demand("condition", kept as u64 * 4, few)?;
                let mut values: Vec<Vec<f32>> =
                    graph.outputs.iter().map(|(_, id)| vec![0.0; graph.node(*id).len()]).collect();
                program.run(&inputs, &mut values.iter_mut().map(Vec::as_mut_slice).collect::<Vec<_>>())?;
                if !values.iter().all(|v| all_finite(v)) {
                    return Err(damaged());
                }
                values.into_iter().map(Values::from).collect()
            }
        };
        if self.request.keep_stages && !used.is_empty() {
            let mut all = Vec::new();
            for (values, count) in values.iter().zip(&counts) {
                all.extend_from_slice(&values.part(0..count * config.context)?.read()?);
            }
            let count = all.len() / config.context;
            self.keep("image_tokens", &[1, count, config.context], || all);
        }
        let mut tokens = vec![texts.iter().map(|t| t.tokens as f32).collect()];
        tokens.extend(counts.iter().map(|count| vec![*count as f32; batch]));
        Ok(State { plan, tokens, scales, values, per_step: config.resnets().len() })
    }

    /// `[L, A, B]`: the image strands' weights.
    fn scales(&self) -> Result<Vec<f32>> {
        let config = &self.p.models.unet.config;
        let resolved =
            self.adapters.iter().map(|&a| self.request.images[a].scales.resolve(config)).collect::<Result<Vec<_>>>()?;
        let mut scales = Vec::new();
        for layer in 0..config.cross_layers().len() {
            for adapter in &resolved {
                let scale = adapter[layer];
                scales.push(scale.unwrap_or(0.0));
                if self.guided {
                    let negative = self.p.compat.negative_image_scale;
                    scales.push(scale.map_or(0.0, |s| negative.unwrap_or(s)));
                }
            }
        }
        Ok(scales)
    }

    /// Whether all pictures of the request and one in f32 have room.
    fn pictures_fit(&self) -> Result<()> {
        let factor = self.p.models.vae.config.factor();
        let values = (self.latent.iter().map(|side| side * factor).product::<usize>() * 3) as u64;
        let kept = if self.request.keep_stages { 5 } else { 1 };
        let need = values * (self.request.count as u64 * kept + 4);
        memory::demand("decode", need, || "ask for fewer or smaller pictures".into())
    }

    fn decode(&mut self, latents: &Values<'_>) -> Result<Picture> {
        let (p, keep) = (self.p, self.request.keep_stages);
        let config = &p.models.vae.config;
        let [h, w] = self.latent.map(|side| side * config.factor());
        let program = build::decoder(p, self.programs, self.latent)?;
        let painted = match program.paint(latents, keep)? {
            Some(painted) => painted,
            None => {
                let mut image = vec![0.0; h * w * config.out_channels];
                program.run(&[latents.read()?.as_ref()], &mut [&mut image])?;
                let rgb = image.iter().map(|v| pixel(unit(*v), p.compat.truncates_pixels)).collect();
                Painted { rgb, finite: all_finite(&image), image }
            }
        };
        if !painted.finite {
            let hint = "the latents are out of its range; check the model file".into();
            return Err(Error::NotFinite { stage: "the VAE".into(), hint });
        }
        let picture = Picture::new(w, h, painted.rgb)?;
        let image = || painted.image.into_iter().map(unit).collect();
        self.keep("image", &[1, h, w, config.out_channels], image);
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
    let factor = p.models.vae.config.factor();
    let side = |flag: &str, asked: Option<usize>, default: usize| {
        let side = asked.unwrap_or(default);
        let bad = |what: String| Err(Error::parameter(flag, what));
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
    Ok([side("--height", asked_height, height)?, side("--width", asked_width, width)?])
}

fn all_finite(values: &[f32]) -> bool {
    values.iter().all(|v| v.is_finite())
}
