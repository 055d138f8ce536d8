//! `braid demo`.

use crate::args::{Failure, count, text, unexpected, usage, value};
use crate::grid::{Place, Sheet};
use crate::{Outcome, files, generate, help, system, terminal};
use braid::error::{Error, escape};
use braid::inputs::image::{AlphaMode, Image};
use braid::pipeline::{CancelToken, ImagePrompt, ReferenceImage};
use braid::{Pipeline, PipelineOptions, Request};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What the columns of the sheet show; the references show other shapes.
const PROMPTS: [&str; 3] = ["a big star", "three hearts", "a moon"];
/// How much the adapter weighs along the strip.
const SCALES: [f32; 5] = [0.0, 0.25, 0.5, 0.75, 1.0];
/// The settings that the bundled model was tried with.
const STEPS: usize = 16;
const GUIDANCE: f32 = 3.0;
const FILES: [&str; 3] = ["sdxl.safetensors", "image_encoder/model.safetensors", "ip-adapter.safetensors"];

pub fn run(mut parser: lexopt::Parser) -> Outcome {
    let p = &mut parser;
    let (mut output, mut assets) = (PathBuf::from("braid-demo.png"), None);
    let (mut prompt, mut image, mut seed) = (None, None, 1);
    while let Some(arg) = p.next().map_err(usage)? {
        match arg {
            lexopt::Arg::Short('h') | lexopt::Arg::Long("help") => return help::print(help::DEMO),
            lexopt::Arg::Short('o') | lexopt::Arg::Long("output") => output = value(p, "--output")?.into(),
            lexopt::Arg::Short('p') | lexopt::Arg::Long("prompt") => prompt = Some(text(p, "--prompt")?),
            lexopt::Arg::Long("image") => image = Some(PathBuf::from(value(p, "--image")?)),
            lexopt::Arg::Short('s') | lexopt::Arg::Long("seed") => {
                seed = count(p, "--seed", 0, u32::MAX as usize)? as u64;
            }
            lexopt::Arg::Long("assets") => assets = Some(PathBuf::from(value(p, "--assets")?)),
            other => return Err(unexpected(other, "demo")),
        }
    }
    let cancel = system::cancel_on_signal();
    files::check_picture(&output)?;
    let assets = folder(assets)?;
    let reference = |name: &str| Image::open(assets.join("references").join(name), AlphaMode::CompositeOnWhite);
    let own = prompt.is_some() || image.is_some();
    let strip = image.map_or_else(|| reference("2.png"), |path| Image::open(path, AlphaMode::CompositeOnWhite))?;
    let references = if own { Vec::new() } else { vec![reference("1.png")?, reference("2.png")?, reference("3.png")?] };
    let prompt = prompt.unwrap_or_else(|| PROMPTS[0].to_owned());
    terminal::print(if own {
        "Left the reference picture, then what the text says: the image prompt's scale goes from 0 to 1, and the picture \
         takes on the reference's colours and texture.\n"
    } else {
        "Left the reference pictures. The text says what is drawn (the columns), the reference in which colours and texture \
         (the rows); in the last row the image prompt's scale goes from 0 to 1.\n"
    })?;

    let begin = Instant::now();
    let [model, encoder, adapter] = FILES.map(|f| assets.join(f));
    let options =
        PipelineOptions::new(model).with_config(assets.join("config")).with_clip_vision(encoder).with_adapter(adapter);
    let mut request = Request::new("");
    (request.steps, request.guidance_scale, request.seed) = (STEPS, GUIDANCE, seed);
    let mut demo = Demo { pipeline: Pipeline::load(&options)?, cancel, request, drawn: 0 };
    let sheet = demo.sheet(&references, &prompt, &strip)?;
    sheet.save(&output)?;
    let place = std::path::absolute(&output).unwrap_or(output);
    let (drawn, seconds) = (demo.drawn, begin.elapsed().as_secs_f64());
    let place = escape(&place.to_string_lossy());
    terminal::print(&format!("{drawn} pictures of {STEPS} steps in {seconds:.1} s\nThe sheet is in {place}\n"))
}

struct Demo {
    pipeline: Pipeline,
    cancel: CancelToken,
    request: Request,
    drawn: usize,
}

impl Demo {
    /// A row for each reference with a column for each of [`PROMPTS`]; below, `prompt` after `strip` at each of [`SCALES`].
    fn sheet(&mut self, references: &[Image], prompt: &str, strip: &Image) -> Result<Image, Failure> {
        let mut sheet = Sheet::new(references.len());
        for (row, reference) in references.iter().enumerate() {
            sheet.tile(Place::block(row, 0), reference)?;
            // The picture is encoded once; its embedding serves all prompts.
            let embedding = self.pipeline.encode_image(reference)?;
            for (column, text) in PROMPTS.into_iter().enumerate() {
                let place = Place::block(row, column + 1);
                if row == 0 {
                    sheet.label(place, text);
                }
                sheet.tile(place, &self.draw(text, &embedding, 1.0)?)?;
            }
        }
        let embedding = self.pipeline.encode_image(strip)?;
        let place = Place::strip(references.len(), 0);
        sheet.label(place, "scale");
        sheet.tile(place, strip)?;
        for (i, scale) in SCALES.into_iter().enumerate() {
            let place = Place::strip(references.len(), i + 1);
            sheet.label(place, &scale.to_string());
            sheet.tile(place, &self.draw(prompt, &embedding, scale)?)?;
        }
        Ok(sheet.finish()?)
    }

    fn draw(&mut self, prompt: &str, embedding: &[f32], scale: f32) -> Result<Image, Failure> {
        prompt.clone_into(&mut self.request.prompt);
        let reference = ReferenceImage::Embedding(embedding.to_vec());
        self.request.image_prompts = vec![ImagePrompt::default().with_reference(reference).with_scale(scale)];
        self.drawn += 1;
        let mut output = generate::draw(&self.pipeline, &self.request, &self.cancel)?;
        Ok(output.images.remove(0))
    }
}

/// Where the bundled model lies: `given`, else beside the executable, in the folder that Braid was built in, or here.
fn folder(given: Option<PathBuf>) -> Result<PathBuf, Failure> {
    let beside = std::env::current_exe().ok().and_then(|e| Some(e.parent()?.join("assets/demo")));
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo");
    let places = match given {
        Some(folder) => vec![folder],
        None => beside.into_iter().chain([built, "assets/demo".into()]).collect(),
    };
    let complete = |folder: &&PathBuf| FILES.iter().all(|file| folder.join(file).is_file());
    places.iter().find(complete).cloned().ok_or_else(|| {
        let sought: Vec<_> = places.iter().map(|p| p.display().to_string()).collect();
        Failure::Library(Error::Io {
            action: "find the demo's model",
            path: sought.join(" or ").into(),
            source: std::io::Error::new(
                std::io::ErrorKind::NotFound,
                "it is the folder assets/demo of Braid's repository, which the published crate leaves out; get it there and \
                 name it with --assets",
            ),
        })
    })
}
