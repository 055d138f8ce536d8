//! The command that draws an image again from its metadata.

use super::failure::{Failure, Outcome};
use super::flag::{self, Flag, Generated, Group};
use super::flags::{self, arithmetic, files as file_flags};
use super::metadata::{grid_metadata, png_metadata};
use super::options::Options;
use super::record::{FINGERPRINT, NO_PATHS, Provenance, Record};
use super::sweep::Sweep;
use super::{batch, files, generate, system, terminal};
use crate::error::{Error, Result, escape};
use crate::inputs::image::{AlphaMode, Image};
use crate::output::{ImageFormat, PngMetadata};
use crate::pipeline::{CancelToken, DeviceChoice, Pipeline, Request};
use crate::tensor::DType;
use lexopt::Parser;
use serde_json::{Value, json};
use std::ffi::OsString;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::time::Instant;

const ABOUT: &str = "\
Draws an image again from the metadata that `braid generate` or `braid sweep` left in its
PNG, and tells the largest difference, which is 0 on the same machine.

Usage: braid replay FILE.png [-o FILE] [OPTIONS]

The command that is recorded runs again, for this image alone, in the folder in which it
ran. Reference images, masks and all else that it read besides the models must be the same
to the byte. Of the weights fingerprints must be the same: names, shapes and a few bytes of
each tensor; or, where the image was made with --record-hashes, hashes of every byte.

Exit status: 0 the same image; 1 another one, or what is missing to draw it.
";

/// The options of the command.
#[derive(Default)]
struct Arguments {
    images: Vec<PathBuf>,
    output: Option<PathBuf>,
    device: Option<DeviceChoice>,
    threads: Option<usize>,
    json: bool,
}

const FLAGS: &[Group<Arguments>] = &[Group {
    title: None,
    flags: &[
        Flag {
            long: file_flags::OUTPUT.long,
            short: file_flags::OUTPUT.short,
            value: Some("FILE"),
            help: "write the new image: .png, .jpg or .webp",
            set: |o, v| v.path().map(|value| o.output = Some(value)),
            ..Flag::NEW
        },
        Flag {
            long: arithmetic::DEVICE.long,
            value: arithmetic::DEVICE.value,
            help: "auto, cpu, cuda or cuda:N [default: as recorded]",
            set: |o, v| v.named().map(|value| o.device = Some(value)),
            ..Flag::NEW
        },
        Flag {
            long: arithmetic::THREADS.long,
            short: arithmetic::THREADS.short,
            value: arithmetic::THREADS.value,
            help: "CPU threads [default: as recorded]",
            set: |o, v| v.count(1, crate::pipeline::MAX_THREADS).map(|value| o.threads = Some(value)),
            ..Flag::NEW
        },
        Flag {
            long: file_flags::JSON.long,
            help: "one line of JSON on standard output",
            set: |o, _| {
                o.json = true;
                Ok(())
            },
            ..Flag::NEW
        },
    ],
    note: None,
}];

/// The help of the command.
pub fn help() -> String {
    format!("{ABOUT}\n{}", flag::help(FLAGS))
}

/// Runs the command.
pub fn run(mut parser: Parser) -> Outcome {
    let mut arguments = Arguments::default();
    let image = |arguments: &mut Arguments, path: OsString| {
        arguments.images.push(path.into());
        Ok(())
    };
    if !flag::parse(&mut parser, FLAGS, "replay", &mut arguments, image)? {
        return terminal::print(&help());
    }
    let [path] = arguments.images.as_slice() else {
        let count = arguments.images.len();
        return Err(Failure::usage(format!("replay: one PNG is needed, got {count}, as in `braid replay braid.png`")));
    };
    let cancel = system::cancel_on_signal();
    if let Some(output) = &arguments.output {
        files::check_image(output)?;
        files::check_inputs_stay([("--output", output.as_path())], [path.as_path()])?;
    }
    let (old, recorded) =
        system::reading(|| Ok::<_, Error>((Image::open(path, AlphaMode::Ignore)?, Recorded::read(path)?)))?;
    let mut drawing = Drawing::of(path, &recorded)?;
    system::reading(|| recorded.check_inputs(path))?;
    let noise_dtype = recorded.noise_dtype(path)?;
    for options in drawing.options() {
        options.pipeline.device = arguments.device.unwrap_or(options.pipeline.device);
        options.pipeline.threads = arguments.threads.or(options.pipeline.threads);
    }
    let begin = Instant::now();
    let pipeline = system::reading(|| Pipeline::load(&drawing.options()[0].pipeline))?;
    let others = system::reading(|| recorded.record.provenance.other_weights(&pipeline));
    if !others.is_empty() {
        let what = format!("its weights are not those of now: {}", others.join("; "));
        return Err(Error::mismatch(path, what).into());
    }
    let (new, upcast_vae) = drawing.draw(&pipeline, recorded.record.number, noise_dtype, &cancel)?;
    system::stop(&cancel)?;
    if let Some(output) = &arguments.output {
        ImageFormat::of(output)?.check(new.width(), new.height())?;
        new.save_with_metadata(output, &drawing.metadata(&pipeline, &recorded, (&new, upcast_vae))?)?;
    }
    compare(path, &old, &new, &recorded, &pipeline, (&arguments, begin))
}

/// Tells how the images differ; where they do, that is a failure.
fn compare(
    path: &Path,
    old: &Image,
    new: &Image,
    recorded: &Recorded,
    pipeline: &Pipeline,
    (arguments, begin): (&Arguments, Instant),
) -> Outcome {
    let [size, new_size] = [old, new].map(|image| (image.width(), image.height()));
    if size != new_size {
        let ((w, h), (now_w, now_h)) = (size, new_size);
        let what = format!("it has {w}x{h} pixels, drawn again {now_w}x{now_h}; it was changed after it was made");
        return Err(Error::mismatch(path, what).into());
    }
    let pixels = old.rgb().as_chunks::<3>().0.iter().zip(new.rgb().as_chunks::<3>().0);
    let apart = |(a, b): (&[u8; 3], &[u8; 3])| a.iter().zip(b).map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0);
    let different: Vec<u8> = pixels.map(apart).filter(|apart| *apart > 0).collect();
    let (largest, count) = (different.iter().copied().max().unwrap_or(0), different.len());
    let (seconds, device) = (begin.elapsed().as_secs_f64(), pipeline.device());
    let Recorded { record, version, .. } = recorded;
    let provenance = &record.provenance;
    let by = match provenance.weights.values().any(|digest| digest.starts_with(FINGERPRINT)) {
        true => "fingerprints",
        false => "hashes",
    };
    terminal::print(&if arguments.json {
        let output = arguments.output.as_ref().map(|output| output.to_string_lossy());
        terminal::json(&json!({
            "file": path.to_string_lossy(), "output": output, "largest_difference": largest, "different_pixels": count,
            "weights": by, "device": device, "recorded_device": provenance.device, "version": env!("CARGO_PKG_VERSION"),
            "recorded_version": version, "seconds": seconds,
        }))
    } else {
        let ((w, h), file) = (size, escape(&path.to_string_lossy()));
        format!("{file}  {w}x{h}, largest difference {largest}, weights by {by}, {seconds:.1} s on {device}\n")
    })?;
    if largest == 0 {
        return Ok(());
    }
    let what = format!(
        "drawn again, {count} of its pixels differ, by up to {largest} of 255: it was made by Braid {version} on {}, and drawn \
         again by Braid {} on {device}",
        provenance.device,
        env!("CARGO_PKG_VERSION")
    );
    Err(Error::mismatch(path, what).into())
}

/// The most bytes of a record's text, unpacked: more than any command line has, and little beside what a packed one could become.
const MAX_TEXT: usize = 1 << 20;

/// The first text of a PNG file under a keyword; within, none where it cannot be unpacked or is too long.
fn text_of(info: &png::Info<'_>, keyword: &str) -> Option<Option<String>> {
    let latin = info.uncompressed_latin1_text.iter().find(|text| text.keyword == keyword);
    let packed = info.compressed_latin1_text.iter().find(|text| text.keyword == keyword).cloned();
    let utf8 = info.utf8_text.iter().find(|text| text.keyword == keyword).cloned();
    let text = match (latin, packed, utf8) {
        (Some(text), ..) => Some(text.text.clone()),
        (_, Some(mut text), _) => text.decompress_text_with_limit(MAX_TEXT).and_then(|()| text.get_text()).ok(),
        (.., Some(mut text)) => text.decompress_text_with_limit(MAX_TEXT).and_then(|()| text.get_text()).ok(),
        _ => return None,
    };
    Some(text.filter(|text| text.len() <= MAX_TEXT))
}

/// Reads the requests that a PNG file records, as [`run`] does before it opens any other file.
///
/// # Errors
/// [`Failure::Library`] where the file is no PNG file, or its metadata are missing or damaged.
pub fn requests(path: &Path) -> Result<Vec<Options>, Failure> {
    let recorded = Recorded::read(path)?;
    recorded.noise_dtype(path)?;
    Ok(Drawing::of(path, &recorded)?.options().to_vec())
}

/// The record of an image, with what its settings say besides.
struct Recorded {
    record: Record,
    /// The image's seed; of a grid the random one, where one was drawn.
    seed: Option<u64>,
    version: String,
}

impl Recorded {
    /// Reads it from a PNG file.
    fn read(path: &Path) -> Result<Self> {
        let fail = |what: String| Error::mismatch(path, what);
        let file = BufReader::new(File::open(path).map_err(Error::io("open", path))?);
        let reader = png::Decoder::new(file).read_info().map_err(|_| {
            fail("no PNG file, and so without metadata; images of other formats cannot be drawn again".into())
        })?;
        let Some(text) = text_of(reader.info(), "braid") else {
            let what = match text_of(reader.info(), "parameters") {
                Some(_) => "it was made by another program: it has a text `parameters`, but none `braid`",
                None => {
                    "it has no text `braid`: it was made by another program, written with --metadata none, or its metadata were \
                     removed"
                }
            };
            return Err(fail(what.into()));
        };
        let damaged = |why: String| Error::malformed(path, format!("its text `braid` is damaged: {why}"));
        let text = text.ok_or_else(|| damaged(format!("it cannot be unpacked, or has more than {MAX_TEXT} bytes")))?;
        let json: Value = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
        let version = json["version"].as_str().unwrap_or("of an unknown version").to_owned();
        if json.get("command").is_none() {
            return Err(fail(format!("it was made by Braid {version}, which did not record its command yet")));
        }
        let seed = json["seed"].as_u64();
        let record = serde_json::from_value(json).map_err(|error| damaged(error.to_string()))?;
        Ok(Self { record, seed, version })
    }

    /// Checks that the files which the request read are still there and the same.
    fn check_inputs(&self, path: &Path) -> Result<()> {
        let problems: Vec<String> = self.record.inputs.iter().filter_map(|input| input.problem()).collect();
        if problems.is_empty() {
            return Ok(());
        }
        let what = format!("it cannot be drawn again: {} (from this folder)", problems.join("; "));
        Err(Error::mismatch(path, what))
    }

    /// The type in which noise was drawn.
    fn noise_dtype(&self, path: &Path) -> Result<DType> {
        let name = &self.record.provenance.noise_dtype;
        let unknown = || Error::mismatch(path, format!("its noise is of the type {name}, which is not known here"));
        DType::from_name(name).ok_or_else(unknown)
    }
}

/// An image or a grid that is drawn again.
enum Drawing {
    /// An image of a request.
    Image(Box<Options>),
    /// A grid.
    Grid(Box<Sweep>),
}

impl Drawing {
    /// Reads the command of a record.
    fn of(path: &Path, recorded: &Recorded) -> Result<Self, Failure> {
        let fail = |what: &str| Failure::from(Error::mismatch(path, what));
        let Some(command) = &recorded.record.command else {
            return Err(fail(match recorded.record.metadata.as_deref() {
                Some(NO_PATHS) => "it was written with --metadata no-paths, without the command that draws it again",
                _ => "its command had an argument that is not UTF-8 and could not be recorded",
            }));
        };
        let (name, arguments) = command.split_first().ok_or_else(|| fail("its command is empty"))?;
        let mut parser = Parser::from_args(arguments);
        // Its flags are those of another command line, so that their failure is the file's.
        let wrong = |failure: Failure| match failure.text(&flags::FlagNames) {
            Some(text) => fail(&format!("its command cannot be run: {text}")),
            None => failure,
        };
        match name.as_str() {
            "generate" => {
                let options = flags::parse(parser).map_err(wrong)?.ok_or_else(|| fail("its command asks for help"))?;
                let mut options = match &recorded.record.batch_line {
                    Some(line) => batch::apply(&options, line).map_err(wrong)?,
                    None => options,
                };
                options.seed = Some(recorded.seed.ok_or_else(|| fail("its seed is missing"))?);
                options.invocation.line = recorded.record.batch_line.clone();
                Ok(Self::Image(Box::new(options)))
            }
            "sweep" => {
                let sweep = Sweep::parse(&mut parser).map_err(wrong)?;
                let mut sweep = sweep.ok_or_else(|| fail("its command asks for help"))?;
                if let Some(seed) = recorded.seed {
                    sweep.set_seed(seed);
                }
                Ok(Self::Grid(Box::new(sweep)))
            }
            other => Err(fail(&format!("its command is `{}`, which is not known here", escape(other)))),
        }
    }

    /// The options of its requests.
    fn options(&mut self) -> &mut [Options] {
        match self {
            Self::Image(options) => std::slice::from_mut(options.as_mut()),
            Self::Grid(sweep) => &mut sweep.cells,
        }
    }

    /// Draws it, with noise of that type; also says whether its VAE ran in f32 after all.
    fn draw(
        &self,
        pipeline: &Pipeline,
        number: usize,
        noise_dtype: DType,
        cancel: &CancelToken,
    ) -> Result<(Image, bool), Failure> {
        match self {
            Self::Grid(sweep) => Ok((sweep.draw(pipeline, noise_dtype, cancel)?, false)),
            Self::Image(options) => {
                let request = batch::request_of(options, options.seed.unwrap_or_default(), pipeline)?;
                let noise = noise(options, number, pipeline.image_size(&request)?)?;
                let (capture_intermediates, attribution) = (false, false);
                let request =
                    Request { num_images: 1, noise, noise_dtype, capture_intermediates, attribution, ..request };
                let mut output = generate::generate(pipeline, &request, cancel, (None, None))?;
                Ok((output.images.remove(0), output.upcast_vae.remove(0)))
            }
        }
    }

    /// The metadata of the new image: those of the old one, with what is now.
    fn metadata(
        &self,
        pipeline: &Pipeline,
        recorded: &Recorded,
        (new, upcast_vae): (&Image, bool),
    ) -> Result<PngMetadata> {
        let hashes = !recorded.record.provenance.weights.values().any(|digest| digest.starts_with(FINGERPRINT));
        let mut provenance = system::reading(|| Provenance::new(pipeline, hashes));
        provenance.noise_dtype.clone_from(&recorded.record.provenance.noise_dtype);
        Ok(match self {
            Self::Grid(sweep) => grid_metadata(&sweep.cells, sweep.seed, &provenance),
            Self::Image(options) => {
                let (seed, number) = (options.seed.unwrap_or_default(), recorded.record.number);
                let scheduler = pipeline.scheduler_config(&options.request)?.kind();
                let (width, height, metadata) = (new.width(), new.height(), options.metadata);
                let generated = Generated { scheduler, number, seed, upcast_vae, width, height, metadata };
                png_metadata(options, &generated, &provenance)
            }
        })
    }
}

/// The noise of the image of that number, where it came from a file.
fn noise(options: &Options, number: usize, size: (usize, usize)) -> Result<Option<Vec<f32>>, Failure> {
    let Some(path) = &options.latents else { return Ok(None) };
    let count = options.request.num_images;
    let all = system::reading(|| files::read_noise(path, count, size))?;
    let each = all.len() / count;
    let own = all.get(number * each..(number + 1) * each);
    let missing = || Error::mismatch(path, format!("there is no noise of the image {number} of {count}"));
    Ok(Some(own.ok_or_else(missing)?.to_vec()))
}
