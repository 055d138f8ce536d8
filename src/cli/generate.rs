//! `braid generate`.

use super::failure::{Failure, Outcome};
use super::flag::{self, Generated};
use super::flags::{self, FlagNames};
use super::options::Options;
use super::previews::Previews;
use super::progress::Line;
use super::report::Report;
use super::system::{self, MemoryMonitor};
use super::{files, metadata, terminal};
use crate::error::{Error, escape};
use crate::output::ImageFormat;
use crate::pipeline::{Callbacks, CancelToken, Output, Pipeline, Preview, Request};
use crate::tensor::DType;
use std::hash::{BuildHasher, Hasher};
use std::path::PathBuf;
use std::time::Instant;

const ABOUT: &str = "\
Generates images from a prompt and reference images.

Usage: braid generate --model PATH -p TEXT [OPTIONS]

  braid generate --model sdxl.safetensors --clip-vision image_encoder \\
      --ip-adapter ip-adapter_sdxl.safetensors --ip-adapter-image fox.png \\
      -p 'a fox in the snow' -o out.png
";

/// `braid help generate`.
pub fn help() -> String {
    format!("{ABOUT}\n{}", flag::help(flags::GENERATE))
}

/// Runs the command.
pub fn run(parser: lexopt::Parser) -> Outcome {
    let Some(options) = flags::parse(parser)? else { return terminal::print(&help()) };
    let cancel = system::cancel_on_signal();
    let memory = MemoryMonitor::start();
    // Cheap checks come before the models are read.
    let names = files::numbered(&options.output, options.request.num_images);
    names.iter().try_for_each(|name| files::check_image(name))?;
    if let Some(path) = &options.dump {
        files::check_writable(path)?;
    }
    options.preview_names().iter().try_for_each(|name| files::check_image(name))?;
    let references = options.reference_names();
    references.iter().try_for_each(|name| files::check_writable(name))?;
    let image_prompts = system::reading(|| options.image_prompts())?;
    let [init_image, mask] = system::reading(|| options.init_image_and_mask())?;

    let begin = Instant::now();
    let pipeline = system::reading(|| Pipeline::load(&options.pipeline))?;
    let loaded = begin.elapsed().as_secs_f64();
    let mut request =
        Request { image_prompts, init_image, mask, noise_dtype: pipeline.dtype(), ..options.request.clone() };
    let mut notes = notes(&options, &pipeline);
    request.seed = options.seed.unwrap_or_else(random_seed);
    if options.seed.is_none() {
        notes.push(format!("seed {}", request.seed));
    }
    let (width, height) = pipeline.image_size(&request)?;
    if let Some(path) = &options.latents {
        request.noise = Some(system::reading(|| files::read_noise(path, request.num_images, (width, height)))?);
    }
    ImageFormat::of(&options.output)?.check(width, height)?;
    let scheduler = pipeline.scheduler_config(&request)?.kind();
    notes.iter().for_each(|note| terminal::line("note: ", note));
    if !references.is_empty() {
        let images = request.image_prompts.iter().map(|prompt| pipeline.reference_images(prompt));
        let images = images.collect::<Result<Vec<_>, _>>()?;
        images.iter().flatten().zip(&references).try_for_each(|(image, name)| image.save(name))?;
    }

    let output = generate(&pipeline, &request, &cancel, Previews::new(&options))?;
    let begin = Instant::now();
    for ((image, seed), name) in output.images.iter().zip(&output.seeds).zip(&names) {
        stop(&cancel)?;
        let generated = Generated { scheduler, seed: *seed, width: image.width(), height: image.height() };
        image.save_with_metadata(name, &metadata::png_metadata(&options, &generated))?;
    }
    if let Some(path) = &options.dump {
        files::write_stages(path, &output.intermediates)?;
    }
    let saved = begin.elapsed().as_secs_f64();
    if options.json {
        let mut report = Report::new(&pipeline, &output, &names, scheduler.to_string(), &memory);
        report.took("load", loaded);
        report.took("save", saved);
        report.dumped(options.dump.as_ref());
        return terminal::print(&terminal::json(&report));
    }
    let seconds = loaded + output.seconds.values().sum::<f64>() + saved;
    terminal::print(&format!("{}{seconds:.1} s on {}\n", summary(&output, &names), pipeline.device()))
}

/// A line for each image.
fn summary(output: &Output, names: &[PathBuf]) -> String {
    let line = |((image, seed), name): ((&crate::Image, &u64), &PathBuf)| {
        let name = escape(&name.to_string_lossy());
        format!("{name}  {}x{}, seed {seed}\n", image.width(), image.height())
    };
    output.images.iter().zip(&output.seeds).zip(names).map(line).collect()
}

/// Draws a seed; torch's CPU generator looks at 32 bits only.
fn random_seed() -> u64 {
    std::hash::RandomState::new().build_hasher().finish() >> 32
}

/// Generates with the progress line and previews; a request that a signal stopped says so.
pub fn generate(
    pipeline: &Pipeline,
    request: &Request,
    cancel: &CancelToken,
    mut previews: Option<Previews>,
) -> Result<Output, Failure> {
    let mut line = Line::new();
    let mut tell = |progress| line.tell(progress);
    let mut callbacks = Callbacks::new().with_progress(&mut tell).with_cancel(cancel);
    let every = previews.as_ref().map(Previews::every);
    let mut show = |preview: Preview| previews.iter_mut().for_each(|previews| previews.write(&preview));
    if let Some(every) = every {
        callbacks = callbacks.with_preview(every, &mut show);
    }
    let result = pipeline.generate_with(request, callbacks);
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

/// Notes about the device and the data types.
fn notes(options: &Options, pipeline: &Pipeline) -> Vec<String> {
    let mut notes: Vec<String> = pipeline.device_note().map(|note| note.describe(&FlagNames)).into_iter().collect();
    if pipeline.device() != "cpu" {
        return notes;
    }
    notes.extend(pipeline.quantize_note().map(|note| note.describe(&FlagNames)));
    notes.extend(pipeline.dtype_note().map(|note| note.describe(&FlagNames)));
    if options.pipeline.dtype == Some(DType::F16) {
        notes.push("--dtype f16: on the CPU the noise is drawn in f16, all arithmetic stays f32".into());
    }
    if options.pipeline.vae_dtype == Some(DType::F16) {
        notes.push("--vae-dtype f16: has no effect on the CPU, which computes in f32 or bf16".into());
    }
    notes
}
