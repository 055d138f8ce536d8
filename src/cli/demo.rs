//! `braid demo`.

use super::failure::{Failure, Outcome};
use super::flag::{self, Flag, Group};
use super::flags::arithmetic;
use super::report::notes;
use super::sheet::{Place, Sheet};
use super::{files, generate, system, terminal};
use crate::error::{Error, escape};
use crate::inputs::image::{AlphaMode, Image};
use crate::pipeline::{CancelToken, ImagePrompt, ReferenceImage};
use crate::{DeviceChoice, Pipeline, PipelineOptions, Request};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The prompts of the sheet's columns; the references show other shapes.
const PROMPTS: [&str; 3] = ["a big star", "three hearts", "a moon"];
/// The scales of the adapter along its strip, and those of the LoRA.
const SCALES: [f32; 5] = [0.0, 0.25, 0.5, 0.75, 1.0];
const LORA_SCALES: [f32; 6] = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0];
/// The prompt of the LoRA's strip, full of colours of which the LoRA leaves one.
const COLOURFUL: &str = "a big red star on a blue dotted background";
/// The prompts of the parts drawn anew; short, for these are the labels, too.
const INPAINTED: [&str; 4] = ["a heart", "a star", "a ring", "a moon"];
/// The settings that the bundled model was tried with.
const STEPS: usize = 16;
const GUIDANCE: f32 = 3.0;
const FILES: [&str; 3] = ["sdxl.safetensors", "image_encoder/model.safetensors", "ip-adapter.safetensors"];
const REFERENCES: [&str; 3] = ["1.png", "2.png", "3.png"];
/// The files of the whole sheet besides.
const PLUS: &str = "ip-adapter-plus.safetensors";
const LORA: &str = "lora.safetensors";

/// The options of the command.
pub struct Options {
    output: PathBuf,
    prompt: Option<String>,
    image: Option<PathBuf>,
    seed: u64,
    device: DeviceChoice,
    assets: Option<PathBuf>,
}

const OUTPUT: Flag<Options> = Flag {
    long: "--output",
    short: Some('o'),
    value: Some("FILE"),
    help: ".png, .jpg or .webp [default: braid-demo.png]",
    set: |o, v| v.path().map(|path| o.output = path),
    ..Flag::NEW
};

const PROMPT: Flag<Options> = Flag {
    long: "--prompt",
    short: Some('p'),
    value: Some("TEXT"),
    help: "what to generate: circles, squares, triangles, stars, rings, crosses, hearts, diamonds, moons or flowers; one, \
           'two' or 'three'; 'big' or 'small'; 'on the left', 'at the top', ...; colours; 'on a blue striped background' \
           [default: a big star]",
    set: |o, v| v.text().map(|text| o.prompt = Some(text)),
    ..Flag::NEW
};

const IMAGE: Flag<Options> = Flag {
    long: "--image",
    value: Some("PATH"),
    help: "the reference image, one whose colours and texture are plain to see",
    set: |o, v| v.path().map(|path| o.image = Some(path)),
    ..Flag::NEW
};

const SEED: Flag<Options> = Flag {
    long: "--seed",
    short: Some('s'),
    value: Some("N"),
    help: "[default: 1]",
    set: |o, v| v.count(0, u32::MAX as usize).map(|seed| o.seed = seed as u64),
    ..Flag::NEW
};

const DEVICE: Flag<Options> = Flag {
    long: arithmetic::DEVICE.long,
    value: arithmetic::DEVICE.value,
    help: arithmetic::DEVICE.help,
    set: |o, v| v.named().map(|value| o.device = value),
    ..Flag::NEW
};

const ASSETS: Flag<Options> = Flag {
    long: "--assets",
    value: Some("DIR"),
    help: "where the bundled model is [default: assets/demo beside the executable or in the folder in which Braid was built]",
    set: |o, v| v.path().map(|path| o.assets = Some(path)),
    ..Flag::NEW
};

const FLAGS: &[Group<Options>] =
    &[Group { title: None, flags: &[OUTPUT, PROMPT, IMAGE, SEED, DEVICE, ASSETS], note: None }];

const ABOUT: &str = "\
Generates a sheet with the bundled model, a small SDXL with an IP-Adapter: three reference
images by three prompts; one image at image-prompt scales from 0 to 1; an IP-Adapter Plus; a
LoRA at scales from 0 to 1; and inpainting. Takes some seconds. With a prompt or an image of
yours, it generates the row of image-prompt scales alone.

Usage: braid demo [OPTIONS]
";

/// `braid help demo`.
pub fn help() -> String {
    format!("{ABOUT}\n{}", flag::help(FLAGS))
}

/// Runs the command.
pub fn run(mut parser: lexopt::Parser) -> Outcome {
    let output = PathBuf::from("braid-demo.png");
    let mut options = Options { output, prompt: None, image: None, seed: 1, device: DeviceChoice::Auto, assets: None };
    if !flag::parse(&mut parser, FLAGS, "demo", &mut options, |_, value| Err(value))? {
        return terminal::print(&help());
    }
    let Options { output, prompt, image, seed, device, assets } = options;
    let cancel = system::cancel_on_signal();
    files::check_image(&output)?;
    let assets = folder(assets)?;
    let places = REFERENCES.map(|name| assets.join("references").join(name));
    let read = places.iter().chain(&image).chain([&assets]).map(PathBuf::as_path);
    files::check_inputs_stay([("--output", output.as_path())], read)?;
    let reference = |i: usize| Image::open(&places[i], AlphaMode::CompositeOnWhite);
    let own = prompt.is_some() || image.is_some();
    let open = |path| system::reading(|| Image::open(path, AlphaMode::CompositeOnWhite));
    let strip = image.map_or_else(|| reference(1), open)?;
    let references = if own { Vec::new() } else { vec![reference(0)?, reference(1)?, reference(2)?] };
    let prompt = prompt.unwrap_or_else(|| PROMPTS[0].to_owned());
    terminal::print(if own { OWN } else { SHEET })?;

    let begin = Instant::now();
    let (pipeline, lora) = system::reading(|| load(&assets, device, own))?;
    notes(&pipeline).iter().for_each(|note| terminal::line("note: ", note));
    let mut request = Request::new("");
    (request.steps, request.guidance_scale, request.seed) = (STEPS, GUIDANCE, seed);
    let mut demo = Demo { pipeline, lora, cancel, request, drawn: 0 };
    let sheet = demo.sheet(&references, &prompt, &strip)?;
    sheet.save(&output)?;
    let place = std::path::absolute(&output).unwrap_or(output);
    let (drawn, seconds, device) = (demo.drawn, begin.elapsed().as_secs_f64(), demo.pipeline.device());
    let place = escape(&place.to_string_lossy());
    terminal::print(&format!(
        "{drawn} images of {STEPS} steps in {seconds:.1} s on {device}\nThe sheet is in {place}\n"
    ))
}

const OWN: &str = "\
Left the reference image, then what the text says: the image prompt's scale goes from 0 to 1, and the image takes on the \
reference's colours and texture.
";
const SHEET: &str = "\
Left the reference images. The text says what is shown (the columns), the reference in which colours and texture (the rows).
Below, row by row: the image prompt's scale from 0 to 1; an IP-Adapter Plus, which without any text shows what its reference \
shows, too; a LoRA of old photographs at scales from 0 to 1; inpainting of an image where a mask is white, with the image itself as \
the reference.
";

/// Loads the bundled model; for the whole sheet with the IP-Adapter Plus, too, and once more with the LoRA, which costs its
/// products at a scale of 0 as well.
fn load(assets: &Path, device: DeviceChoice, own: bool) -> Result<(Pipeline, Option<Pipeline>), Failure> {
    let [model, encoder, adapter] = FILES.map(|f| assets.join(f));
    let options = PipelineOptions::new(model).with_config(assets.join("config")).with_device(device);
    let main = options.clone().with_clip_vision(encoder).with_adapter(adapter);
    if own {
        return Ok((Pipeline::load(&main)?, None));
    }
    let main = Pipeline::load(&main.with_adapter(assets.join(PLUS)))?;
    Ok((main, Some(Pipeline::load(&options.with_lora(assets.join(LORA)))?)))
}

struct Demo {
    pipeline: Pipeline,
    /// For requests with scales of the LoRA.
    lora: Option<Pipeline>,
    cancel: CancelToken,
    request: Request,
    drawn: usize,
}

impl Demo {
    /// A row for each reference with a column for each of [`PROMPTS`]; below, `prompt` after `strip` at each of [`SCALES`];
    /// and where there are references, a strip each for the Plus adapter, the LoRA and inpainting.
    fn sheet(&mut self, references: &[Image], prompt: &str, strip: &Image) -> Result<Image, Failure> {
        let rows = references.len();
        let mut sheet = Sheet::new(rows, if rows > 0 { 4 } else { 1 });
        for (row, reference) in references.iter().enumerate() {
            sheet.tile(Place::block(row, 0), reference)?;
            // The image is encoded once; its embedding serves all prompts.
            let embedding = self.pipeline.encode_image(reference)?;
            for (column, text) in PROMPTS.into_iter().enumerate() {
                let place = Place::block(row, column + 1);
                if row == 0 {
                    sheet.label(place, text);
                }
                sheet.tile(place, &self.generate(text, after(&embedding, 1.0))?)?;
            }
        }
        let embedding = self.pipeline.encode_image(strip)?;
        let place = Place::strip(rows, 0, 0);
        sheet.label(place, "scale");
        sheet.tile(place, strip)?;
        for (i, scale) in SCALES.into_iter().enumerate() {
            let place = Place::strip(rows, 0, i + 1);
            sheet.label(place, &scale.to_string());
            sheet.tile(place, &self.generate(prompt, after(&embedding, scale))?)?;
        }
        if let [first, others @ ..] = references {
            self.plus(&mut sheet, rows, others)?;
            self.lora(&mut sheet, rows)?;
            self.inpainting(&mut sheet, rows, first)?;
        }
        Ok(sheet.finish()?)
    }

    /// Two references, and beside each what the Plus adapter makes of it without a text, with two seeds.
    fn plus(&mut self, sheet: &mut Sheet, rows: usize, references: &[Image]) -> Result<(), Failure> {
        let seed = self.request.seed;
        for (i, reference) in references.iter().enumerate() {
            let place = Place::strip(rows, 1, 3 * i);
            sheet.label(place, "Plus");
            sheet.tile(place, reference)?;
            for n in 1..3 {
                let place = Place::strip(rows, 1, 3 * i + n);
                sheet.label(place, "no text");
                self.request.seed = seed + n as u64;
                // The base adapter, which is the first, gets no image.
                let prompts = vec![ImagePrompt::default(), ImagePrompt::new(reference.clone())];
                sheet.tile(place, &self.generate("", prompts)?)?;
            }
        }
        self.request.seed = seed;
        Ok(())
    }

    fn lora(&mut self, sheet: &mut Sheet, rows: usize) -> Result<(), Failure> {
        for (i, scale) in LORA_SCALES.into_iter().enumerate() {
            let place = Place::strip(rows, 2, i);
            sheet.label(place, &if i == 0 { format!("LoRA {scale}") } else { scale.to_string() });
            self.request.lora_scales = vec![scale];
            sheet.tile(place, &self.generate(COLOURFUL, Vec::new())?)?;
        }
        self.request.lora_scales.clear();
        Ok(())
    }

    /// `image`, a mask, and each of [`INPAINTED`] in the image's own style where the mask is white.
    fn inpainting(&mut self, sheet: &mut Sheet, rows: usize, image: &Image) -> Result<(), Failure> {
        let embedding = self.pipeline.encode_image(image)?;
        let mask = disc(image.width(), image.height())?;
        for (column, (label, shown)) in [("image", image), ("mask", &mask)].into_iter().enumerate() {
            let place = Place::strip(rows, 3, column);
            sheet.label(place, label);
            sheet.tile(place, shown)?;
        }
        (self.request.init_image, self.request.mask) = (Some(image.clone()), Some(mask));
        self.request.strength = Some(1.0);
        for (i, text) in INPAINTED.into_iter().enumerate() {
            let place = Place::strip(rows, 3, i + 2);
            sheet.label(place, text);
            sheet.tile(place, &self.generate(text, after(&embedding, 1.0))?)?;
        }
        Ok(())
    }

    fn generate(&mut self, prompt: &str, image_prompts: Vec<ImagePrompt>) -> Result<Image, Failure> {
        prompt.clone_into(&mut self.request.prompt);
        self.request.image_prompts = image_prompts;
        self.drawn += 1;
        let pipeline = self.lora.as_ref().filter(|_| !self.request.lora_scales.is_empty()).unwrap_or(&self.pipeline);
        let mut output = generate::generate(pipeline, &self.request, &self.cancel, (None, None))?;
        Ok(output.images.remove(0))
    }
}

/// The image prompt of the base adapter.
fn after(embedding: &[f32], scale: f32) -> Vec<ImagePrompt> {
    let reference = ReferenceImage::Embedding(embedding.to_vec());
    vec![ImagePrompt::default().with_reference(reference).with_scale(scale)]
}

/// A mask that is white in a disc in the middle, two thirds as wide as the image.
fn disc(width: usize, height: usize) -> Result<Image, Error> {
    let radius = width.min(height) / 3;
    let inside =
        |i: usize| (i % width).abs_diff(width / 2).pow(2) + (i / width).abs_diff(height / 2).pow(2) < radius.pow(2);
    Image::new(width, height, (0..width * height).flat_map(|i| [if inside(i) { 255 } else { 0 }; 3]).collect())
}

/// Finds the bundled model: in `given`, else beside the executable, in the folder that Braid was built in, or here.
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
