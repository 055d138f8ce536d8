//! `braid generate`.

use crate::args::Failure;
use crate::options::Options;
use crate::progress::Line;
use crate::report::Report;
use crate::system::{self, Memory};
use crate::{Outcome, files, metadata, terminal};
use braid::error::{Error, escape};
use braid::inputs::image::Image;
use braid::output::ImageFormat;
use braid::pipeline::{Callbacks, CancelToken, ImagePrompt, Output, ReferenceImage};
use braid::tensor::DType;
use braid::{Pipeline, PipelineOptions, Request};
use std::hash::{BuildHasher, Hasher};
use std::time::Instant;

pub fn run(parser: lexopt::Parser) -> Outcome {
    let Some(options) = Options::parse(parser)? else { return Ok(()) };
    let cancel = system::cancel_on_signal();
    let memory = Memory::watch();
    // What is cheap to find out comes before the models are read.
    let names = files::numbered(&options.output, options.count);
    names.iter().try_for_each(|name| files::check_picture(name))?;
    if let Some(path) = &options.dump {
        files::check_writable(path)?;
    }
    let images = images(&options)?;

    let begin = Instant::now();
    let pipeline = load(&options)?;
    let loaded = begin.elapsed().as_secs_f64();
    let mut notes = notes(&options, &pipeline);
    let mut request = request(&options, images, &mut notes);
    request.noise_dtype = pipeline.dtype();
    let method = pipeline.scheduler_config(&request)?.kind();
    if let Some(path) = &options.latents {
        request.noise = Some(files::read_noise(path, options.count, pipeline.image_size(&request)?)?);
    }
    let (width, height) = pipeline.image_size(&request)?;
    ImageFormat::of(&options.output)?.check(width, height)?;
    notes.iter().for_each(|note| terminal::line("note: ", note));

    let output = draw(&pipeline, &request, &cancel)?;
    let begin = Instant::now();
    for ((picture, seed), name) in output.images.iter().zip(&output.seeds).zip(&names) {
        stop(&cancel)?;
        let texts = metadata::texts(&options, method, *seed, (picture.width(), picture.height()));
        picture.save_with_metadata(name, &texts)?;
    }
    if let Some(path) = &options.dump {
        files::write_stages(path, &output.intermediates)?;
    }
    let saved = begin.elapsed().as_secs_f64();
    if options.json {
        let mut report = Report::new(&pipeline, &output, &names, method.to_string(), &memory);
        report.took("load", loaded);
        report.took("save", saved);
        report.dumped(options.dump.as_ref());
        return terminal::print(&terminal::json(&report));
    }
    let seconds = loaded + output.seconds.values().sum::<f64>() + saved;
    let lines = output.images.iter().zip(&output.seeds).zip(&names).map(|((picture, seed), name)| {
        let name = escape(&name.to_string_lossy());
        format!("{name}  {}x{}, seed {seed}\n", picture.width(), picture.height())
    });
    terminal::print(&format!("{}{seconds:.1} s on {}\n", lines.collect::<String>(), pipeline.device()))
}

/// Generates with the progress line; a request that a signal stopped says so.
pub fn draw(pipeline: &Pipeline, request: &Request, cancel: &CancelToken) -> Result<Output, Failure> {
    let mut line = Line::new();
    let mut tell = |progress| line.tell(progress);
    let watch = Callbacks::new().with_progress(&mut tell).with_cancel(cancel);
    let result = pipeline.generate_with(request, watch);
    terminal::wipe();
    match (result, system::signalled()) {
        (Err(Error::Cancelled), Some(signal)) => Err(Failure::Signal(signal)),
        (result, _) => Ok(result?),
    }
}

/// An error where a signal came.
fn stop(cancel: &CancelToken) -> Result<(), Failure> {
    match system::signalled() {
        Some(signal) if cancel.is_cancelled() => Err(Failure::Signal(signal)),
        _ => Ok(()),
    }
}

/// What is to be said about the device and types.
fn notes(options: &Options, pipeline: &Pipeline) -> Vec<String> {
    let mut notes: Vec<String> = pipeline.device_note().map(crate::flags::message).into_iter().collect();
    if pipeline.device() != "cpu" {
        return notes;
    }
    if let Some(dtype) = options.dtype.filter(|d| *d != DType::F32) {
        notes.push(format!("--dtype {dtype}: on the CPU the noise is drawn in {dtype}, all arithmetic stays f32"));
    }
    if let Some(dtype) = options.vae_dtype.filter(|d| *d != DType::F32) {
        notes.push(format!("--vae-dtype {dtype}: has no effect on the CPU, which computes in f32"));
    }
    notes
}

fn images(options: &Options) -> Result<Vec<ImagePrompt>, Failure> {
    let prompt = |adapter: &crate::options::Adapter| {
        let mut prompt = ImagePrompt::default().with_scale(adapter.scales()?);
        prompt.resize = options.resize;
        for path in &adapter.images {
            prompt.references.push(ReferenceImage::Image(Image::open(path, options.compat.alpha)?));
        }
        Ok(prompt)
    };
    options.adapters.iter().map(prompt).collect()
}

fn load(options: &Options) -> Result<Pipeline, Failure> {
    let mut load = PipelineOptions::new(&options.model).with_compat(options.compat.clone());
    load.config.clone_from(&options.config);
    load.clip_vision.clone_from(&options.clip_vision);
    load.adapters = options.adapters.iter().map(|a| a.path.clone()).collect();
    load.threads = options.threads;
    load.mmap = options.mmap;
    load.encoders = options.encoders;
    (load.device, load.dtype, load.vae_dtype) = (options.device, options.dtype, options.vae_dtype);
    Ok(Pipeline::load(&load)?)
}

fn request(o: &Options, images: Vec<ImagePrompt>, notes: &mut Vec<String>) -> Request {
    let mut r = Request::new(&o.prompt);
    r.negative_prompt.clone_from(&o.negative);
    (r.steps, r.guidance_scale, r.guidance_rescale) = (o.steps, o.guidance, o.guidance_rescale);
    (r.width, r.height, r.num_images) = (o.width, o.height, o.count);
    (r.scheduler, r.sigma_schedule, r.prediction_type, r.timestep_spacing, r.eta) =
        (o.method, o.schedule, o.prediction, o.spacing, o.eta);
    (r.clip_skip, r.rng) = (o.clip_skip, o.rng);
    r.image_prompts = images;
    r.capture_intermediates = o.dump.is_some();
    r.seed = o.seed.unwrap_or_else(|| {
        // torch's CPU generator looks at 32 bits only.
        let seed = std::hash::RandomState::new().build_hasher().finish() >> 32;
        notes.push(format!("seed {seed}"));
        seed
    });
    r
}
