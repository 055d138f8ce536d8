//! `braid demo`.

use crate::args::{text, unexpected, usage, value};
use crate::{Outcome, files, generate, grid, help, system, terminal};
use braid::error::{Error, escape};
use braid::inputs::noise::{Generator, Source};
use braid::inputs::picture::{self, Picture};
use braid::models::config::{AdapterConfig, ClipTextConfig, ClipVisionConfig, UnetConfig, VaeConfig};
use braid::models::fit::cross_attention_widths;
use braid::output::{Texts, save};
use braid::pipeline::ImagePrompt;
use braid::synth::{Sizes, write_safetensors, write_torch};
use braid::tensor::DType;
use braid::{Pipeline, PipelineOptions, Request};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// How much the reference weighs in each column.
const SCALES: [f32; 3] = [0.0, 1.0, 3.0];
const STEPS: usize = 6;
/// Latents on a side of a picture.
const LATENT: usize = grid::TILE / 8;

pub fn run(mut parser: lexopt::Parser) -> Outcome {
    let p = &mut parser;
    let (mut output, mut prompt, mut image) =
        (PathBuf::from("braid-demo.png"), "a quilt of woven threads".to_owned(), None);
    while let Some(arg) = p.next().map_err(usage)? {
        match arg {
            lexopt::Arg::Short('h') | lexopt::Arg::Long("help") => return help::print(help::DEMO),
            lexopt::Arg::Short('o') | lexopt::Arg::Long("output") => output = value(p, "--output")?.into(),
            lexopt::Arg::Short('p') | lexopt::Arg::Long("prompt") => prompt = text(p, "--prompt")?,
            lexopt::Arg::Long("image") => image = Some(PathBuf::from(value(p, "--image")?)),
            other => return Err(unexpected(other, "demo")),
        }
    }
    let cancel = system::cancel_on_signal();
    files::check_picture(&output)?;
    let mut references = grid::references()?;
    if let Some(path) = image {
        references[0] = grid::tile(&picture::load(path, picture::Alpha::White)?)?;
    }
    terminal::print(
        "A sheet of three reference pictures (left), each drawn at adapter strength 0, 1 and 3 (the gauges on top).\n\
         The model is small and its weights are random: what you see is texture, not a motif. At strength 0 all rows are \
         one picture; to the right each goes its own reference's way.\n",
    )?;
    let begin = Instant::now();
    let folder = Folder::new()?;
    let pipeline = Pipeline::load(&small_model(&folder.0)?)?;
    let mut request = Request::new(prompt);
    (request.width, request.height) = (Some(grid::TILE), Some(grid::TILE));
    (request.steps, request.guidance) = (STEPS, 3.0);
    request.noise = Some(smooth_noise());
    let mut rows: Vec<Vec<Picture>> = Vec::new();
    for reference in references {
        let mut row = vec![reference.clone()];
        for scale in SCALES {
            if let Some(same) = rows.first().filter(|_| scale == 0.0) {
                row.push(same[1].clone());
                continue;
            }
            request.images = vec![ImagePrompt::new(reference.clone()).scaled(scale)];
            row.append(&mut generate::draw(&pipeline, &request, &cancel)?.pictures);
        }
        rows.push(row);
    }
    save(&grid::sheet(&rows, &SCALES.map(|s| s / 3.0))?, &output, &Texts::default())?;
    let place = std::path::absolute(&output).unwrap_or(output);
    let (count, seconds) = (3 * SCALES.len() - 2, begin.elapsed().as_secs_f64());
    let place = escape(&place.to_string_lossy());
    terminal::print(&format!("{count} pictures of {STEPS} steps in {seconds:.1} s\nThe sheet is in {place}\n"))
}

/// Noise of few waves instead of white noise, which a random model would only show as grain: `[4, h, w]`, variance 1.
fn smooth_noise() -> Vec<f32> {
    let mut draws = Generator::new(Source::Cpu, 7).randn(4 * 12 * 4, DType::F32).into_iter();
    let mut draw = || draws.next().unwrap_or_default();
    let mut noise = Vec::new();
    for _ in 0..4 {
        let waves: Vec<[f32; 4]> = (0..12).map(|_| [draw(), draw(), draw(), draw()]).collect();
        let mut plane: Vec<f32> = (0..LATENT * LATENT)
            .map(|i| {
                let (x, y) = ((i % LATENT) as f32 / LATENT as f32, (i / LATENT) as f32 / LATENT as f32);
                waves.iter().map(|[u, v, phase, size]| size * (9.0 * (u * x + v * y) + 6.3 * phase).sin()).sum()
            })
            .collect();
        let mean = plane.iter().sum::<f32>() / plane.len() as f32;
        let deviation = (plane.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / plane.len() as f32).sqrt();
        plane.iter_mut().for_each(|v| *v = (*v - mean) / deviation.max(1e-6));
        noise.append(&mut plane);
    }
    noise
}

/// Writes the model's three files.
fn small_model(folder: &Path) -> Result<PipelineOptions, Error> {
    let sizes = sizes();
    let [model, encoder, adapter] =
        ["sdxl.safetensors", "image_encoder.safetensors", "ip-adapter.bin"].map(|n| folder.join(n));
    write_safetensors(&model, &sizes.checkpoint(), &BTreeMap::new())?;
    write_safetensors(&encoder, &sizes.image_encoder(), &BTreeMap::new())?;
    write_torch(&adapter, &sizes.ip_adapter())?;
    Ok(PipelineOptions::new(model).clip_vision(encoder).adapter(adapter))
}

/// SDXL's structure with every width and depth cut down; the vocabulary and the VAE's factor of 8 stay.
fn sizes() -> Sizes {
    let published = Sizes::published();
    let unet = UnetConfig {
        channels: vec![64, 128, 256],
        transformer_layers: vec![0, 1, 2],
        heads: vec![1, 2, 4],
        context: 128,
        addition_time: 32,
        addition_input: 6 * 32 + 64,
        ..published.unet
    };
    let text = ClipTextConfig { hidden: 64, layers: 3, heads: 1, intermediate: 256, ..published.text };
    let text_2 =
        ClipTextConfig { hidden: 64, layers: 3, heads: 1, intermediate: 256, projection: Some(64), ..published.text_2 };
    let vae = VaeConfig { channels: vec![32, 64, 64, 64], layers: 1, ..published.vae };
    let vision = ClipVisionConfig {
        hidden: 128,
        layers: 2,
        heads: 2,
        intermediate: 512,
        image: 112,
        patch: 14,
        projection: 64,
        ..published.vision
    };
    let adapter = AdapterConfig { embedding: 64, tokens: 4, context: 128, widths: cross_attention_widths(&unet) };
    Sizes { unet, text, text_2, vae, vision, adapter }
}

/// A folder that is removed with all it holds.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self, Error> {
        let path = std::env::temp_dir().join(format!("braid-demo-{}", std::process::id()));
        std::fs::create_dir(&path).map_err(Error::io("create", &path))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
