//! `braid generate`.

use super::failure::{Failure, Outcome};
use super::flag;
use super::flags;
use super::previews::Previews;
use super::progress::Line;
use super::report::{Report, notes};
use super::saving::{SavedImages, Saving};
use super::system::{self, MemoryMonitor};
use super::{attribution, files, generate_batch, terminal};
use crate::output::ImageFormat;
use crate::parallel;
use crate::pipeline::{Callbacks, CancelToken, ImagePrompt, Output, Pipeline, Preview, ReferenceImage, Request};
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
    let _limit = parallel::limit(options.pipeline.threads);
    if let Some(path) = &options.batch {
        return generate_batch::run(&options, path);
    }
    let cancel = system::cancel_on_signal();
    let memory = MemoryMonitor::start();
    // Cheap checks come before the models are read.
    let names = files::numbered(&options.output, options.request.num_images);
    names.iter().try_for_each(|name| files::check_image(name))?;
    if let Some(path) = &options.dump {
        files::check_writable(path)?;
    }
    let sheets = options.attribution_names();
    options.preview_names().iter().chain(&sheets).try_for_each(|name| files::check_image(name))?;
    let references = options.reference_names();
    references.iter().try_for_each(files::check_writable)?;
    let image_prompts = system::reading(|| options.image_prompts())?;
    if !references.is_empty() {
        demand_images(&image_prompts)?;
    }
    let [init_image, mask] = system::reading(|| options.init_image_and_mask())?;

    let begin = Instant::now();
    let pipeline = system::reading(|| Pipeline::load(&options.pipeline))?;
    let loaded = begin.elapsed().as_secs_f64();
    let mut request =
        Request { image_prompts, init_image, mask, noise_dtype: pipeline.dtype(), ..options.request.clone() };
    let mut notes = notes(&pipeline);
    request.seed = options.drawn_seed();
    if options.seed.is_none() {
        notes.push(format!("seed {}", request.seed));
    }
    let (width, height) = pipeline.image_size(&request)?;
    if let Some(path) = &options.latents {
        request.noise = Some(system::reading(|| files::read_noise(path, request.num_images, (width, height)))?);
    }
    ImageFormat::of(&options.output)?.check(width, height)?;
    let saving = Saving::new(&pipeline);
    let mut saved = saving.of(&options, &names)?;
    notes.iter().for_each(|note| terminal::line("note: ", note));
    if !references.is_empty() {
        let images = request.image_prompts.iter().map(|prompt| pipeline.reference_images(prompt));
        let images = images.collect::<Result<Vec<_>, _>>()?;
        images.iter().flatten().zip(&references).try_for_each(|(image, name)| image.save(name))?;
    }

    let output = generate(&pipeline, &request, &cancel, (Previews::new(&options), Some(&mut saved)))?;
    let begin = Instant::now();
    if !sheets.is_empty() || options.dump.is_some() {
        system::stop(&cancel)?;
    }
    for (number, name) in sheets.iter().enumerate() {
        attribution::sheet(&options, &request.image_prompts, &output, number)?.save(name)?;
    }
    if let Some(path) = &options.dump {
        files::write_stages(path, &output.intermediates)?;
    }
    let saving_seconds = saved.seconds + begin.elapsed().as_secs_f64();
    if options.json {
        let mut report = Report::new(&pipeline, &output, &names, saved.scheduler.to_string(), &memory);
        report.took("load", loaded);
        report.took("save", saving_seconds);
        report.wrote(options.dump.as_ref(), &sheets);
        return terminal::print(&terminal::json(&report));
    }
    let seconds = loaded + output.seconds.values().sum::<f64>() + saving_seconds;
    terminal::print(&format!("{seconds:.1} s on {}\n", pipeline.device()))
}

/// Refuses references of which the encoder sees nothing that could be written.
fn demand_images(prompts: &[ImagePrompt]) -> Outcome {
    let mut references = prompts.iter().flat_map(|prompt| &prompt.references);
    if references.all(|reference| matches!(reference.image, ReferenceImage::Image(_))) {
        return Ok(());
    }
    Err(Failure::usage(
        "--save-reference: an image-prompt file holds no image; leave it out, or give the images themselves",
    ))
}

/// Generates with the progress line, previews, and images that are written as each is done; one that cannot be written stops it.
pub fn generate(
    pipeline: &Pipeline,
    request: &Request,
    cancel: &CancelToken,
    (mut previews, mut saved): (Option<Previews>, Option<&mut SavedImages<'_>>),
) -> Result<Output, Failure> {
    let mut line = Line::new();
    let mut tell = |progress| line.tell(progress);
    let mut callbacks = Callbacks::new().with_progress(&mut tell).with_cancel(cancel);
    let every = previews.as_ref().map(Previews::every);
    let mut show = |preview: Preview| previews.iter_mut().for_each(|previews| previews.write(&preview));
    if let Some(every) = every {
        callbacks = callbacks.with_preview(every, &mut show);
    }
    if let Some(saved) = &mut saved {
        callbacks = callbacks.with_image(move |image| {
            // The others would be drawn in vain.
            if !saved.save(&image) {
                cancel.cancel();
            }
        });
    }
    let result = pipeline.generate_with(request, callbacks);
    terminal::wipe();
    saved.map_or(Ok(()), SavedImages::outcome)?;
    Ok(result?)
}
