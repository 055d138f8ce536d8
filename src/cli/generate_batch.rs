//! `braid generate --batch`.

use super::batch;
use super::failure::{Failure, Outcome};
use super::flag::Generated;
use super::flags::FlagNames;
use super::options::Options;
use super::progress::Line;
use super::record::Provenance;
use super::report::{Report, notes, summary};
use super::system::{self, MemoryMonitor};
use super::{files, metadata, terminal};
use crate::error::Error;
use crate::names::counted;
use crate::output::ImageFormat;
use crate::pipeline::{Callbacks, CancelToken, Output, Pipeline, Progress, Request};
use crate::schedulers::SchedulerKind;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Instant;

/// A request of the file.
struct Task {
    options: Options,
    /// The files of its images.
    names: Vec<PathBuf>,
    /// The images of the requests before it.
    before: usize,
    seed: u64,
}

/// Runs the requests of a file: what fails is told and the others go on.
pub fn run(options: &Options, path: &Path) -> Outcome {
    let cancel = system::cancel_on_signal();
    let memory = MemoryMonitor::start();
    let tasks = tasks(batch::read(options, path)?, &options.output)?;
    let begin = Instant::now();
    let pipeline = system::reading(|| Pipeline::load(&tasks[0].options.pipeline))?;
    notes(options, &pipeline).iter().for_each(|note| terminal::line("note: ", note));
    let provenance = OnceLock::new();
    let run = Run { path, pipeline: &pipeline, tasks: &tasks, memory: &memory, cancel: &cancel, provenance };
    let failed = run.all()?;
    if !options.json {
        let (seconds, done, all) =
            (begin.elapsed().as_secs_f64(), tasks.len() - failed, counted(tasks.len(), "request"));
        terminal::print(&format!("{done} of {all}, {seconds:.1} s on {}\n", pipeline.device()))?;
    }
    if failed > 0 { Err(Failure::Told(1)) } else { Ok(()) }
}

/// Names the files of all images, and checks that they can be written.
fn tasks(all: Vec<Options>, output: &Path) -> Result<Vec<Task>, Failure> {
    let total = all.iter().map(|options| options.request.num_images).sum();
    let mut names = files::numbered(output, total).into_iter();
    names.clone().try_for_each(|name| files::check_image(&name))?;
    let mut before = 0;
    let task = |options: Options| {
        let count = options.request.num_images;
        let (names, seed): (Vec<PathBuf>, _) = (names.by_ref().take(count).collect(), options.drawn_seed());
        options.check_inputs_stay(names.iter().map(|name| ("--output", name.as_path())))?;
        before += count;
        Ok(Task { options, names, before: before - count, seed })
    };
    all.into_iter().map(task).collect()
}

struct Run<'a> {
    path: &'a Path,
    pipeline: &'a Pipeline,
    tasks: &'a [Task],
    memory: &'a MemoryMonitor,
    cancel: &'a CancelToken,
    /// Made with the first image, when the weights have been read anyway.
    provenance: OnceLock<Provenance>,
}

impl Run<'_> {
    /// Runs all of them; returns how many failed.
    fn all(&self) -> Result<usize, Failure> {
        let line = Mutex::new(Line::new());
        let total = self.tasks.last().map_or(0, |task| task.before + task.names.len());
        let tell = |task: &Task, mut progress: Progress| {
            (progress.image, progress.num_images) = (progress.image + task.before, total);
            line.lock().unwrap_or_else(PoisonError::into_inner).tell(progress);
        };
        let mut tells: Vec<_> = self.tasks.iter().map(|task| move |progress| tell(task, progress)).collect();
        // The numbers of those that could be read, and the failures.
        let (numbers, failed) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
        let fail = |number: usize, failure: Failure| {
            terminal::wipe();
            if let Some(text) = failure.text(&FlagNames) {
                terminal::line("braid: ", &format!("request {} of {}: {text}", number + 1, self.path.display()));
            }
            failed.lock().unwrap_or_else(PoisonError::into_inner).push(failure);
        };
        let requests = self.tasks.iter().zip(&mut tells).enumerate().filter_map(|(number, (task, tell))| {
            match self.request(task) {
                Ok(request) => {
                    numbers.lock().unwrap_or_else(PoisonError::into_inner).push(number);
                    Some((request, Callbacks::new().with_progress(tell).with_cancel(self.cancel)))
                }
                Err(failure) => {
                    fail(number, failure);
                    None
                }
            }
        });
        self.pipeline.generate_batch_with(requests, |ticket, result| {
            let number = numbers.lock().unwrap_or_else(PoisonError::into_inner)[ticket];
            let saved = match result {
                // Told once, at the end.
                Err(Error::Cancelled) => Ok(()),
                result => result.map_err(Failure::from).and_then(|output| self.save(&self.tasks[number], &output)),
            };
            if let Err(failure) = saved {
                fail(number, failure);
            }
        });
        terminal::wipe();
        system::stop(self.cancel)?;
        Ok(failed.into_inner().unwrap_or_else(PoisonError::into_inner).len())
    }

    /// The request of a task, with the images that it names.
    fn request(&self, task: &Task) -> Result<Request, Failure> {
        let options = &task.options;
        let request = batch::request_of(options, task.seed, self.pipeline)?;
        let (width, height) = self.pipeline.image_size(&request)?;
        ImageFormat::of(&options.output)?.check(width, height)?;
        Ok(request)
    }

    /// Writes the images of a task and tells of them.
    fn save(&self, task: &Task, output: &Output) -> Outcome {
        system::stop(self.cancel)?;
        let begin = Instant::now();
        let scheduler = self.scheduler(task)?;
        let provenance = || Provenance::new(self.pipeline, task.options.record_hashes);
        let provenance = self.provenance.get_or_init(provenance);
        for (number, ((image, seed), name)) in output.images.iter().zip(&output.seeds).zip(&task.names).enumerate() {
            let generated = Generated { scheduler, number, seed: *seed, width: image.width(), height: image.height() };
            image.save_with_metadata(name, &metadata::png_metadata(&task.options, &generated, provenance))?;
        }
        terminal::wipe();
        if !task.options.json {
            return terminal::print(&summary(output, &task.names));
        }
        let mut report = Report::new(self.pipeline, output, &task.names, scheduler.to_string(), self.memory);
        report.took("save", begin.elapsed().as_secs_f64());
        terminal::print(&terminal::json(&report))
    }

    fn scheduler(&self, task: &Task) -> Result<SchedulerKind, Failure> {
        Ok(self.pipeline.scheduler_config(&task.options.request)?.kind())
    }
}
