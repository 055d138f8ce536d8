//! `braid encode-image`.

use super::adapters::ReferenceFile;
use super::failure::{Failure, Outcome};
use super::flag::{self, Flag, Group};
use super::flags::{arithmetic, files as file_flags, image_prompts, models};
use super::options::Options;
use super::report::notes;
use super::{files, system, terminal};
use crate::error::escape;
use crate::names::counted;
use crate::parallel;
use crate::pipeline::{EncodedImage, Pipeline};
use serde_json::json;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Instant;

const ABOUT: &str = "\
Encodes reference images for an IP-Adapter and writes an image-prompt file. `braid generate`
takes it in the place of the images, without the image encoder and with the same result.

Usage: braid encode-image IMAGE... -o FILE --model PATH --ip-adapter PATH [OPTIONS]

  braid encode-image fox.png -o fox.ipprompt.safetensors --model sdxl.safetensors \\
      --clip-vision image_encoder --ip-adapter ip-adapter_sdxl.safetensors
  braid generate --model sdxl.safetensors --ip-adapter ip-adapter_sdxl.safetensors \\
      --ip-adapter-image fox.ipprompt.safetensors -p 'a fox in the snow'

The file goes with the adapter and the image encoder that it was made with; others are
refused. It stands for all of its images, each with the weight and the mask given for it.
";

/// The image-prompt file.
const OUTPUT: Flag<Options> = Flag {
    long: file_flags::OUTPUT.long,
    short: file_flags::OUTPUT.short,
    value: Some("FILE"),
    help: "the image-prompt file, a .safetensors",
    set: |o, v| v.path().map(|value| o.output = value),
    ..Flag::NEW
};

const JSON: Flag<Options> = Flag { help: "one line of JSON on standard output", ..file_flags::JSON };

const FLAGS: &[Group<Options>] = &[Group {
    title: None,
    flags: &[
        OUTPUT,
        models::MODEL,
        models::CONFIG,
        models::CLIP_VISION,
        models::NO_MMAP,
        Flag { help: "the IP-Adapter (.safetensors or .bin)", ..image_prompts::IP_ADAPTER },
        image_prompts::IP_ADAPTER_FIT,
        image_prompts::IP_ADAPTER_IMAGE_RESIZE,
        arithmetic::COMPAT,
        arithmetic::DTYPE,
        arithmetic::DEVICE,
        arithmetic::THREADS,
        JSON,
    ],
    note: None,
}];

/// `braid help encode-image`.
pub fn help() -> String {
    format!("{ABOUT}\n{}", flag::help(FLAGS))
}

/// Runs the command.
pub fn run(mut parser: lexopt::Parser) -> Outcome {
    let mut options = Options { output: PathBuf::new(), prompt: Some(String::new()), ..Options::default() };
    let mut images = Vec::new();
    let image = |_: &mut Options, path: OsString| {
        images.push(ReferenceFile { path: path.into(), ..ReferenceFile::default() });
        Ok(())
    };
    if !flag::parse(&mut parser, FLAGS, "encode-image", &mut options, image)? {
        return terminal::print(&help());
    }
    if images.is_empty() {
        return Err(Failure::usage("encode-image: an image is needed, as in `braid encode-image fox.png -o FILE ..`"));
    }
    let [adapter] = options.adapters.all.as_mut_slice() else {
        let count = options.adapters.all.len();
        return Err(Failure::usage(format!("--ip-adapter: one is needed, got {count}; a file is for one adapter")));
    };
    adapter.images = images;
    if options.output.extension().is_none_or(|extension| extension != "safetensors") {
        return Err(Failure::usage("--output: missing, or no name that ends in .safetensors"));
    }
    options.check()?;
    let _limit = parallel::limit(options.pipeline.threads);
    let _ = system::cancel_on_signal();
    files::check_writable(&options.output)?;
    let prompts = system::reading(|| options.image_prompts())?;
    let begin = Instant::now();
    let pipeline = system::reading(|| Pipeline::load(&options.pipeline))?;
    notes(&pipeline).iter().for_each(|note| terminal::line("note: ", note));
    // Nothing is half written while it runs, so that a signal may end it.
    let encoded = system::reading(|| pipeline.encode_references(0, &prompts[0]))?;
    EncodedImage::save(&encoded, &options.output)?;
    let (seconds, device, count) = (begin.elapsed().as_secs_f64(), pipeline.device(), encoded.len());
    let tokens = encoded[0].num_tokens();
    if options.json {
        let file = options.output.to_string_lossy();
        let report = json!({
            "file": file, "images": count, "tokens": tokens, "seconds": seconds, "device": device,
        });
        return terminal::print(&terminal::json(&report));
    }
    let file = escape(&options.output.to_string_lossy());
    let (images, tokens) = (counted(count, "image"), counted(tokens, "token"));
    terminal::print(&format!("{file}  {images} of {tokens}, {seconds:.1} s on {device}\n"))
}
