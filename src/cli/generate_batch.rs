//! `braid generate --batch`.

use super::batch;
use super::failure::{Failure, Outcome};
use super::flags::FlagNames;
use super::options::Options;
use super::progress::Line;
use super::report::{Report, notes};
use super::saving::{SavedImages, Saving};
use super::system::{self, MemoryMonitor};
use super::{files, terminal};
use crate::error::Error;
use crate::names::counted;
use crate::output::ImageFormat;
use crate::pipeline::{Callbacks, CancelToken, FinishedImage, Output, Pipeline, Progress, Request};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
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
    notes(&pipeline).iter().for_each(|note| terminal::line("note: ", note));
    let run = Run { path, pipeline: &pipeline, tasks: &tasks, memory: &memory, cancel: &cancel };
    let failed = run.all(&Saving::new(&pipeline))?;
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
    // The models are the same for all; what one request reads, another's image may not replace.
    let inputs: BTreeSet<&Path> = all.iter().flat_map(Options::input_files).collect();
    let written = names.as_slice().iter().map(|name| ("--output", name.as_path()));
    files::check_inputs_stay(written, all[0].model_files().chain(inputs))?;
    let mut before = 0;
    let task = |options: Options| {
        let count = options.request.num_images;
        let (names, seed) = (names.by_ref().take(count).collect(), options.drawn_seed());
        before += count;
        Task { options, names, before: before - count, seed }
    };
    Ok(all.into_iter().map(task).collect())
}

struct Run<'a> {
    path: &'a Path,
    pipeline: &'a Pipeline,
    tasks: &'a [Task],
    memory: &'a MemoryMonitor,
    cancel: &'a CancelToken,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Run<'_> {
    /// Runs all of them; returns how many failed.
    fn all(&self, saving: &Saving<'_>) -> Result<usize, Failure> {
        let line = Mutex::new(Line::new());
        let total = self.tasks.last().map_or(0, |task| task.before + task.names.len());
        let tell = |task: &Task, mut progress: Progress| {
            (progress.image, progress.num_images) = (progress.image + task.before, total);
            lock(&line).tell(progress);
        };
        let mut tells: Vec<_> = self.tasks.iter().map(|task| move |progress| tell(task, progress)).collect();
        // The images of each, from when it begins.
        let images: Vec<Mutex<Option<SavedImages<'_>>>> = self.tasks.iter().map(|_| Mutex::new(None)).collect();
        let images = &images;
        // The numbers of those that could be read, and the failures.
        let (numbers, failed) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
        let fail = |number: usize, failure: Failure| {
            terminal::wipe();
            if let Some(text) = failure.text(&FlagNames) {
                terminal::line("braid: ", &format!("request {} of {}: {text}", number + 1, self.path.display()));
            }
            lock(&failed).push(failure);
        };
        let requests = self.tasks.iter().zip(&mut tells).enumerate().filter_map(|(number, (task, tell))| {
            let begun = self.request(task).and_then(|request| Ok((request, saving.of(&task.options, &task.names)?)));
            match begun {
                Ok((request, saved)) => {
                    *lock(&images[number]) = Some(saved);
                    lock(&numbers).push(number);
                    let save = move |image: FinishedImage<'_>| {
                        if let Some(saved) = lock(&images[number]).as_mut() {
                            saved.save(&image);
                        }
                    };
                    let callbacks = Callbacks::new().with_progress(tell).with_cancel(self.cancel);
                    Some((request, callbacks.with_image(save)))
                }
                Err(failure) => {
                    fail(number, failure);
                    None
                }
            }
        });
        self.pipeline.generate_batch_with(requests, |ticket, result| {
            let number = lock(&numbers)[ticket];
            let Some(mut saved) = lock(&images[number]).take() else { return };
            let told = match result {
                // Told once, at the end.
                Err(Error::Cancelled) => saved.outcome(),
                result => result.map_err(Failure::from).and_then(|output| self.report(number, &output, &mut saved)),
            };
            if let Err(failure) = told {
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

    /// Tells of a request whose images have been written, or why one was not.
    fn report(&self, number: usize, output: &Output, saved: &mut SavedImages<'_>) -> Outcome {
        saved.outcome()?;
        let task = &self.tasks[number];
        if !task.options.json {
            return Ok(());
        }
        let mut report = Report::new(self.pipeline, output, &task.names, saved.scheduler.to_string(), self.memory);
        report.took("save", saved.seconds);
        terminal::print(&terminal::json(&report))
    }
}
