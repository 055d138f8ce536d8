//! `braid sweep`.

use super::batch;
use super::failure::{Failure, Outcome};
use super::files;
use super::flag::{self, Argument, Flag};
use super::flags::{self, FlagNames};
use super::grid::Grid;
use super::metadata::grid_metadata;
use super::options::{Invocation, Options};
use super::progress::Line;
use super::record::Provenance;
use super::report::notes;
use super::{system, terminal};
use crate::error::escape;
use crate::inputs::image::Image;
use crate::names::counted;
use crate::output::ImageFormat;
use crate::parallel;
use crate::pipeline::{Callbacks, CancelToken, MAX_NUM_IMAGES, Output, Pipeline, Progress, Request};
use crate::tensor::DType;
use serde_json::{Map, Value as Json, json};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

const ABOUT: &str = "\
Generates a labelled grid of images that differ in some settings. Prompts, reference images
and all else that cells have in common are computed once, and cells share evaluations of the
model.

Usage: braid sweep --over NAME=VALUES [--over NAME=VALUES]... [OPTIONS]

      --over NAME=VALUES        a setting and its values: any flag below that is a
                                request's, with _ for -. VALUES are 1,2,3 or a range
                                FIRST:LAST:STEP. The last setting given goes along the
                                columns, all others down the rows. `strength` is
                                --ip-adapter-strength where there is no --init-img,
                                `reference` --ip-adapter-image

  braid sweep --model sdxl.safetensors --clip-vision image_encoder \\
      --ip-adapter ip-adapter.safetensors --ip-adapter-image fox.png -p 'a fox' \\
      --over strength=0:1:0.25 --over seed=1,2,3 -o grid.png

The other options are those of `braid generate`:
";

/// `braid help sweep`.
pub fn help() -> String {
    format!("{ABOUT}\n{}", flag::help(flags::GENERATE))
}

/// The flags of the command alone.
const FLAGS: &[Flag<Arguments>] = &[Flag {
    long: "--over",
    value: Some("NAME=VALUES"),
    help: "a setting and its values",
    set: |o, v| v.text().map(|text| o.over.push(text)),
    ..Flag::NEW
}];

struct Arguments {
    options: Options,
    over: Vec<String>,
}

/// A setting that differs.
#[derive(Debug, Clone, PartialEq)]
struct Axis {
    /// As it was given.
    name: String,
    /// The name of its flag, with `_`.
    key: String,
    values: Vec<String>,
}

/// A sweep whose arguments have been read and checked.
pub struct Sweep {
    options: Options,
    axes: Vec<Axis>,
    /// The options of each cell, row by row; at least one.
    pub cells: Vec<Options>,
    /// The random seed, where a cell asks for one; see [`Sweep::set_seed`].
    pub seed: Option<u64>,
}

/// Runs the command.
pub fn run(mut parser: lexopt::Parser) -> Outcome {
    let Some(mut sweep) = Sweep::parse(&mut parser)? else { return terminal::print(&help()) };
    if let Some(seed) = sweep.cells.iter().find(|cell| cell.seed.is_none()).map(Options::drawn_seed) {
        sweep.set_seed(seed);
    }
    let Sweep { options, axes, cells, seed } = &sweep;
    let _limit = parallel::limit(options.pipeline.threads);
    let cancel = system::cancel_on_signal();
    files::check_image(&options.output)?;
    let begin = Instant::now();
    let pipeline = system::reading(|| Pipeline::load(&cells[0].pipeline))?;
    let notes = notes(&pipeline).into_iter().chain(seed.map(|seed| format!("seed {seed}")));
    notes.for_each(|note| terminal::line("note: ", &note));
    let grid = sweep.draw(&pipeline, pipeline.dtype(), &cancel)?;
    let provenance = system::reading(|| Provenance::new(&pipeline, options.record_hashes));
    grid.save_with_metadata(&options.output, &grid_metadata(cells, *seed, &provenance))?;
    let (seconds, device) = (begin.elapsed().as_secs_f64(), pipeline.device());
    if options.json {
        let axes: Vec<_> = axes.iter().map(|axis| json!({"name": axis.key, "values": axis.values})).collect();
        let file = options.output.to_string_lossy();
        return terminal::print(&terminal::json(&json!({
            "file": file, "over": axes, "images": cells.len(), "seed": seed, "seconds": seconds, "device": device,
        })));
    }
    let file = escape(&options.output.to_string_lossy());
    terminal::print(&format!("{file}  {}, {seconds:.1} s on {device}\n", counted(cells.len(), "image")))
}

impl Sweep {
    /// Reads the arguments; `None` where only help was asked for.
    pub fn parse(parser: &mut lexopt::Parser) -> Result<Option<Self>, Failure> {
        let invocation = Invocation::new("sweep", parser);
        let mut sweep = Arguments { options: Options { invocation, ..Options::default() }, over: Vec::new() };
        while let Some(argument) = Argument::next(parser)? {
            let flags = flags::GENERATE.iter().flat_map(|group| group.flags);
            match argument {
                Argument::Help => return Ok(None),
                flag if flag::take(FLAGS, &flag, &mut sweep, parser)? => {}
                flag if flag::take(flags, &flag, &mut sweep.options, parser)? => {}
                other => return Err(other.unknown("braid help sweep")),
            }
        }
        let Arguments { options, over } = sweep;
        let axes = over.iter().map(|text| Axis::read(text, &options)).collect::<Result<Vec<_>, _>>()?;
        let Some((columns, rows)) = axes.split_last() else {
            return Err(Failure::usage(
                "--over: missing; give a setting and its values, as in --over strength=0:1:0.25",
            ));
        };
        if let Some(axis) = axes.iter().enumerate().find(|(i, axis)| axes[..*i].iter().any(|a| a.key == axis.key)) {
            return Err(Failure::usage(format!("--over: {} is given twice", axis.1.name)));
        }
        let cells = cells(&options, rows, columns)?;
        Ok(Some(Self { options, axes, cells, seed: None }))
    }

    /// Gives a drawn seed to the cells that ask for a random one: the same to all of them, so that they differ in their settings alone.
    /// Random seeds among the values of a setting `seed` are this one and those after it, by their place there.
    pub fn set_seed(&mut self, seed: u64) {
        let axis = self.axes.iter().position(|axis| axis.key == "seed");
        for (cell, at) in self.cells.iter_mut().zip(combinations(&self.axes)) {
            if cell.seed.is_some() {
                continue;
            }
            let place = axis.map_or(0, |axis| at[axis]);
            let own = seed.wrapping_add(place as u64);
            cell.seed = Some(own);
            if let Some(axis) = axis {
                // What labels say.
                self.axes[axis].values[place] = own.to_string();
            }
        }
        self.seed = Some(seed);
    }

    /// Draws the grid, with noise of that type.
    pub fn draw(&self, pipeline: &Pipeline, noise_dtype: DType, cancel: &CancelToken) -> Result<Image, Failure> {
        let request = |cell: &Options| {
            let request = batch::request_of(cell, cell.seed.unwrap_or_default(), pipeline)?;
            Ok::<_, Failure>(Request { noise_dtype, ..request })
        };
        let requests = self.cells.iter().map(request).collect::<Result<Vec<_>, _>>()?;
        let size = one_size(pipeline, &requests)?;
        let (rows, columns) = self.axes.split_at(self.axes.len() - 1);
        let grid = Grid::new(columns[0].labels(size.0), row_labels(rows), size)?;
        let (width, height) = grid.size();
        ImageFormat::of(&self.options.output)?.check(width, height)?;
        let images = draw(pipeline, requests, cancel)?;
        system::stop(cancel)?;
        Ok(grid.draw(images.iter())?)
    }
}

impl Axis {
    /// Reads `NAME=VALUES`.
    fn read(text: &str, options: &Options) -> Result<Self, Failure> {
        let wrong = |what: &str| Failure::usage(format!("--over: `{}`: {what}", escape(text)));
        let Some((name, values)) = text.split_once('=') else {
            return Err(wrong("NAME=VALUES is needed, as in seed=1,2,3 or strength=0:1:0.25"));
        };
        let key = match name {
            "strength" if options.init_image.is_none() => "ip_adapter_strength".to_owned(),
            "reference" => "ip_adapter_image".to_owned(),
            name => name.trim_start_matches('-').replace('-', "_"),
        };
        let values = match range(values).map_err(wrong)? {
            Some(values) => values,
            // JSON has commas of its own.
            None if values.starts_with('{') => vec![values.to_owned()],
            None => values.split(',').map(|value| value.trim().to_owned()).collect(),
        };
        if values.iter().any(String::is_empty) {
            return Err(wrong("a value is missing"));
        }
        Ok(Self { name: name.to_owned(), key, values })
    }

    /// The value as a label; of a path the file's name.
    fn label(&self, i: usize) -> String {
        let value = &self.values[i];
        if self.key == "ip_adapter_image" {
            return Path::new(value).file_stem().unwrap_or_default().to_string_lossy().into_owned();
        }
        value.clone()
    }

    /// The labels of columns of that width; the setting's name is there where it fits.
    fn labels(&self, width: usize) -> Vec<String> {
        let label = |i: usize| {
            let (short, long) = (self.label(i), format!("{} {}", self.name, self.label(i)));
            if long.chars().count() * super::canvas::LETTER <= width { long } else { short }
        };
        (0..self.values.len()).map(label).collect()
    }
}

/// The bytes that the cells' copies of a command may have together: a thousand of a prompt of 200,000 letters.
const MAX_COPIED: usize = 200 << 20;

/// The most digits behind the point of a range's numbers: f64 tells no more apart.
const MAX_DIGITS: usize = 17;

/// The values of `FIRST:LAST:STEP`; none where the text is no range.
fn range(text: &str) -> Result<Option<Vec<String>>, &'static str> {
    let parts: Vec<&str> = text.split(':').collect();
    let [first, last, step] = parts.as_slice() else { return Ok(None) };
    let number = |text: &&str| text.parse::<f64>().ok().filter(|value| value.is_finite());
    let (Some(from), Some(to), Some(by)) = (number(first), number(last), number(step)) else { return Ok(None) };
    if by == 0.0 || (to - from) / by < 0.0 {
        return Err("the step leads away from the last value");
    }
    // A little more than the last, for steps that no binary fraction is.
    let count = ((to - from) / by + 1e-6).floor() + 1.0;
    if count > MAX_NUM_IMAGES as f64 {
        return Err("too many values");
    }
    let digits = |text: &str| text.split_once('.').map_or(0, |(_, digits)| digits.len());
    let digits = digits(first).max(digits(step));
    if digits > MAX_DIGITS {
        return Err("too many digits behind the point");
    }
    Ok(Some((0..count as usize).map(|i| format!("{:.digits$}", from + by * i as f64)).collect()))
}

/// The numbers of each axis' value, row by row; the last axis changes fastest.
fn combinations(axes: &[Axis]) -> Vec<Vec<usize>> {
    axes.iter().fold(vec![Vec::new()], |all, axis| {
        let with = |before: &Vec<usize>, i: usize| before.iter().copied().chain([i]).collect();
        all.iter().flat_map(|before| (0..axis.values.len()).map(move |i| with(before, i))).collect()
    })
}

fn row_labels(rows: &[Axis]) -> Vec<String> {
    let label = |at: Vec<usize>| {
        let parts = rows.iter().zip(at).map(|(axis, i)| format!("{} {}", axis.name, axis.label(i)));
        parts.collect::<Vec<_>>().join(" ")
    };
    combinations(rows).into_iter().map(label).collect()
}

/// The options of each cell, row by row.
fn cells(options: &Options, rows: &[Axis], columns: &Axis) -> Result<Vec<Options>, Failure> {
    if options.request.num_images > 1 || options.batch.is_some() {
        return Err(Failure::usage("--batch-count and --batch: have no place in a sweep; give --over seed=1,2,3"));
    }
    batch::demand_no_files(options, "in a sweep")?;
    let axes: Vec<Axis> = rows.iter().chain([columns]).cloned().collect();
    // Counted before they are made: a few long axes have more than any memory holds.
    let count = axes.iter().fold(1, |count: usize, axis| count.saturating_mul(axis.values.len()));
    if count > MAX_NUM_IMAGES {
        return Err(Failure::usage(format!("--over: {count} images; {MAX_NUM_IMAGES} are allowed")));
    }
    // Each cell has a copy of all settings, whose command may be a stranger's where an image is drawn again.
    let command: usize = options.invocation.command.iter().flatten().map(|argument| argument.len() + 100).sum();
    if count * command > MAX_COPIED {
        return Err(Failure::usage(format!("--over: {count} images are too many for a command that is so long")));
    }
    let cell = |at: Vec<usize>| {
        let pairs = axes.iter().zip(at).map(|(axis, i)| (axis.key.clone(), Json::from(axis.values[i].as_str())));
        batch::apply(options, &pairs.collect::<Map<_, _>>())
    };
    let cells = combinations(&axes).into_iter().map(cell).collect::<Result<Vec<_>, _>>();
    cells.map_err(|failure| match failure.text(&FlagNames) {
        Some(text) => Failure::usage(if text.starts_with("--") { text } else { format!("--over: {text}") }),
        None => failure,
    })
}

/// The width and height of all images.
fn one_size(pipeline: &Pipeline, requests: &[Request]) -> Result<(usize, usize), Failure> {
    let sizes = requests.iter().map(|request| pipeline.image_size(request)).collect::<Result<Vec<_>, _>>()?;
    if sizes.iter().any(|size| *size != sizes[0]) {
        return Err(Failure::usage("--over: all images of a grid must be of one size"));
    }
    Ok(sizes[0])
}

/// Draws all of them; the first failure ends the sweep.
fn draw(pipeline: &Pipeline, requests: Vec<Request>, cancel: &CancelToken) -> Result<Vec<Image>, Failure> {
    let (count, line) = (requests.len(), Mutex::new(Line::new()));
    let tell = |number: usize, mut progress: Progress| {
        (progress.image, progress.num_images) = (number, count);
        line.lock().unwrap_or_else(PoisonError::into_inner).tell(progress);
    };
    let tell = &tell;
    let jobs = requests.into_iter().enumerate().map(|(number, request)| {
        (request, Callbacks::new().with_cancel(cancel).with_progress(move |progress| tell(number, progress)))
    });
    let mut outputs: Vec<Option<Output>> = (0..count).map(|_| None).collect();
    let mut failure = None;
    pipeline.generate_batch_with(jobs, |number, result| match result {
        Ok(output) => outputs[number] = Some(output),
        Err(error) => {
            // The others would be in vain.
            cancel.cancel();
            failure.get_or_insert(error);
        }
    });
    terminal::wipe();
    match failure {
        Some(error) => Err(error.into()),
        None => Ok(outputs.into_iter().flatten().filter_map(|output| output.images.into_iter().next()).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values() {
        let values = |text: &str| Axis::read(text, &Options::default()).unwrap().values;
        assert_eq!(values("strength=0:1:0.25"), ["0.00", "0.25", "0.50", "0.75", "1.00"]);
        assert_eq!(values("strength=0:1:0.1").len(), 11);
        assert_eq!(values("seed=3:1:-1"), ["3", "2", "1"]);
        assert_eq!(values("seed=1, 2,5"), ["1", "2", "5"]);
        assert_eq!(values("original_size=8x8,9x9"), ["8x8", "9x9"]);
        assert_eq!(values("ip-adapter-blocks={\"up\": {\"block_0\": [0, 1, 0]}}").len(), 1);
        for bad in ["seed", "seed=", "seed=1,,2", "seed=1:2:0", "seed=1:2:-1", "seed=0:1e9:1"] {
            assert!(Axis::read(bad, &Options::default()).is_err(), "{bad}");
        }
        let tiny = |zeros: usize| format!("strength=0.{}1:1:1", "0".repeat(zeros));
        assert_eq!(values(&tiny(16))[0], "0.00000000000000001");
        for zeros in [17, 70_000] {
            assert!(Axis::read(&tiny(zeros), &Options::default()).is_err(), "{zeros}");
        }
        let long = Options {
            invocation: Invocation { command: Some(vec!["x".repeat(1 << 20)]), line: None },
            ..Options::default()
        };
        let columns = Axis::read("seed=1:1000:1", &long).unwrap();
        assert!(cells(&long, &[], &columns).unwrap_err().text(&FlagNames).unwrap().contains("so long"));
        let key = |text: &str, options: &Options| Axis::read(text, options).unwrap().key;
        let with_image = Options { init_image: Some("i.png".into()), ..Options::default() };
        assert_eq!(key("strength=1", &Options::default()), "ip_adapter_strength");
        assert_eq!(key("strength=1", &with_image), "strength");
        assert_eq!(key("--cfg-scale=1", &with_image), "cfg_scale");
    }

    #[test]
    fn order_of_cells() {
        let axis = |text: &str| Axis::read(text, &Options::default()).unwrap();
        let axes = [axis("reference=a/b.png,c.png"), axis("steps=1,2,3")];
        assert_eq!(combinations(&axes), [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]);
        assert_eq!(row_labels(&axes[..1]), ["reference b", "reference c"]);
        assert_eq!(
            (row_labels(&[]), axes[1].labels(112)),
            (vec![String::new()], vec!["steps 1".into(), "steps 2".into(), "steps 3".into()])
        );
        assert_eq!(axes[1].labels(111)[0], "1");
    }
}
