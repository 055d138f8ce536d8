//! `bench serve`: requests that come whether or not the ones before are done, to a queue that draws them together.

use crate::arguments;
use crate::arrivals::{BatchSizes, poisson, unseen};
use crate::check;
use crate::child::{self, Options as OneRequest};
use crate::host::Host;
use crate::lists;
use crate::machine::{Machine, Place};
use crate::serve_row::{ALONE, Case, MEASURED, Measured, Policy, Round, Row, TITLES};
use crate::setup::{self, BenchModel};
use crate::stats::median;
use braid::cli::failure::Failure;
use braid::cli::flag::Flag;
use braid::cli::terminal;
use braid::pipeline::{self, Progress, Stage};
use braid::{Engine, EngineOptions, Error, Pipeline, Request, SubmitOptions};
use std::ops::RangeFrom;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The times at which requests come.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Load {
    /// A part of what one at a time serves.
    Share(f64),
    /// Requests a second.
    Rate(f64),
    /// All at once.
    Offline,
}

/// The measurements that were asked for.
pub struct Options {
    request: OneRequest,
    loads: Vec<Load>,
    max_batches: Vec<usize>,
    gathers: Vec<usize>,
    max_waiting: usize,
    requests: usize,
    seed: u64,
    /// Whether prompts and references are new in every request.
    mixed: bool,
}

const LOAD: Flag<Options> = Flag {
    long: "--load",
    value: Some("LIST"),
    help: "requests a second as a part of what one at a time serves, 0.5,0.9; or `offline`: all come at once [default: 0.8]",
    set: |o, v| {
        let loads = v.list(|item| match item {
            "offline" => Ok(Load::Offline),
            share => positive("--load", share).map(Load::Share),
        })?;
        o.loads.extend(loads);
        Ok(())
    },
    ..Flag::NEW
};

const RATE: Flag<Options> = Flag {
    long: "--rate",
    value: Some("LIST"),
    help: "requests a second",
    set: |o, v| {
        o.loads.extend(v.list(|item| positive("--rate", item).map(Load::Rate))?);
        Ok(())
    },
    ..Flag::NEW
};

const MAX_BATCH: Flag<Options> = Flag {
    long: "--max-batch",
    value: Some("LIST"),
    help: "most requests that are drawn at once, beside one at a time [default: 4]",
    set: |o, v| lists::numbers(v, 1, pipeline::MAX_BATCH).map(|sizes| o.max_batches = sizes),
    ..Flag::NEW
};

const GATHER: Flag<Options> = Flag {
    long: "--gather",
    value: Some("LIST"),
    help: "milliseconds that the first request waits for others where nothing is drawn [default: 0]",
    set: |o, v| lists::numbers(v, 0, 600_000).map(|gathers| o.gathers = gathers),
    ..Flag::NEW
};

const MAX_WAITING: Flag<Options> = Flag {
    long: "--max-waiting",
    value: Some("N"),
    help: "most requests that wait; more are refused, but not those of offline [default: 64]",
    set: |o, v| v.count(1, MOST_REQUESTS).map(|n| o.max_waiting = n),
    ..Flag::NEW
};

const REQUESTS: Flag<Options> = Flag {
    long: "--requests",
    value: Some("N"),
    help: "requests of a round [default: 40]",
    set: |o, v| v.count(1, MOST_REQUESTS).map(|n| o.requests = n),
    ..Flag::NEW
};

const SEED: Flag<Options> = Flag {
    long: "--seed",
    short: Some('s'),
    value: Some("N"),
    help: "of the arrivals of the first round; each round has the next one [default: 0]",
    set: |o, v| v.count(0, usize::MAX).map(|seed| o.seed = seed as u64),
    ..Flag::NEW
};

const PROMPTS: Flag<Options> = Flag {
    long: "--prompts",
    value: Some("KIND"),
    help: "mixed: prompts and references that were never seen before, nothing is kept; same: those of the command, \
           encoded once [default: mixed]",
    set: |o, v| v.choice(&[("mixed", true), ("same", false)]).map(|mixed| o.mixed = mixed),
    ..Flag::NEW
};

/// The flags beside those of [`OneRequest`].
pub const FLAGS: &[Flag<Options>] = &[LOAD, RATE, MAX_BATCH, GATHER, MAX_WAITING, REQUESTS, SEED, PROMPTS];

/// The most requests of a round.
const MOST_REQUESTS: usize = 10_000;

/// A number above 0 of a list.
fn positive(flag: &str, text: &str) -> Result<f64, Failure> {
    let number = text.parse::<f64>().ok().filter(|number| number.is_finite() && *number > 0.0);
    number.ok_or_else(|| Failure::usage(format!("{flag}: must be numbers above 0, got `{text}`")))
}

impl Options {
    /// One at a time, then every batch with every wait.
    fn policies(&self) -> Vec<Policy> {
        let together = self
            .max_batches
            .iter()
            .filter(|size| **size > 1)
            .flat_map(|&max_batch| self.gathers.iter().map(move |&gather_ms| Policy { max_batch, gather_ms }));
        std::iter::once(ALONE).chain(together).collect()
    }

    /// The most requests that are drawn at once in any policy.
    fn most(&self) -> usize {
        self.policies().iter().map(|policy| policy.max_batch).max().unwrap_or(1)
    }
}

/// Runs it; `false` where help was asked for.
pub fn run(mut parser: lexopt::Parser) -> Result<bool, Failure> {
    let mut options = Options {
        request: OneRequest::new(20, 3),
        loads: Vec::new(),
        max_batches: vec![4],
        gathers: vec![0],
        max_waiting: EngineOptions::default().max_waiting,
        requests: 40,
        seed: 0,
        mixed: true,
    };
    if !arguments::read(&mut parser, FLAGS, &mut options, |options, argument, p| options.request.take(argument, p))? {
        return Ok(false);
    }
    options.request.check()?;
    if options.loads.is_empty() {
        options.loads.push(Load::Share(0.8));
    }
    let mut model = options.request.setup.model()?;
    if !options.mixed {
        model.keep_encoded();
    }
    let request = options.request.request(&model)?;
    let mut rows = Vec::new();
    for place in options.request.setup.places() {
        let place = Place { max_batch: Some(options.most()), ..place };
        rows.extend(Bench { model: &model, options: &options }.place(&place, &request)?);
    }
    let titles = [&Machine::TITLES[..], &Host::TITLES, &TITLES].concat();
    let about = titles.len() - MEASURED;
    terminal::print(&lists::one_table(&rows, options.request.format, (&titles, about), |row| vec![row.cells()]))?;
    child::something_measured(rows.iter().map(|row| row.skipped.as_deref()))?;
    Ok(true)
}

/// A benchmark under way.
struct Bench<'a> {
    model: &'a BenchModel,
    options: &'a Options,
}

/// A pipeline that has drawn its first requests.
struct Warm {
    pipeline: Arc<Pipeline>,
    /// The request of which all others are made.
    request: Request,
    /// Seconds of one alone.
    alone_seconds: f64,
}

impl Bench<'_> {
    /// Measures everything on one device and in one type, or says why not.
    fn place(&self, place: &Place, request: &Request) -> Result<Vec<Row>, Failure> {
        let loaded = match child::load(self.model, place, !request.image_prompts.is_empty(), |_| ())? {
            Ok(loaded) => loaded,
            Err(why) => return Ok(self.skip(&place.machine(None), request, &why)),
        };
        let (width, height) = loaded.pipeline.image_size(request)?;
        let mut request = request.clone();
        (request.width, request.height) = (Some(width), Some(height));
        request.noise_dtype = loaded.pipeline.dtype();
        let mut numbers = 0..;
        let mut warm = Warm { pipeline: loaded.pipeline.into(), request, alone_seconds: 0.0 };
        if let Err(error) = self.warm_up(&mut warm, &mut numbers) {
            return Ok(self.skip(&loaded.machine, &warm.request, &setup::skipped(error)?));
        }
        let mut rows = Vec::new();
        for &load in &self.options.loads {
            match self.rounds(&warm, load, &mut numbers)? {
                Ok(rounds) => rows.extend(self.rows(&warm, &loaded.machine, load, &rounds)),
                Err(why) => {
                    let of = |policy: &Policy| self.row(&loaded.machine, &warm.request, (load, None), *policy);
                    let skipped = |row: Row| Row { skipped: Some(why.clone()), ..row };
                    rows.extend(self.options.policies().iter().map(of).map(skipped));
                }
            }
        }
        Ok(rows)
    }

    /// Requests that come next.
    fn requests(&self, base: &Request, count: usize, numbers: &mut RangeFrom<usize>) -> Result<Vec<Request>, Error> {
        let of = |number| if self.options.mixed { unseen(base, number) } else { Ok(base.clone()) };
        numbers.by_ref().take(count).map(of).collect()
    }

    /// Compiles what any number of requests at once runs, runs it, and times requests one after the other.
    fn warm_up(&self, warm: &mut Warm, numbers: &mut RangeFrom<usize>) -> Result<(), Error> {
        const TIMED: usize = 3;
        let (pipeline, most) = (&warm.pipeline, self.options.most());
        for images in 1..=most {
            pipeline.prepare(&pipeline.workload_shape(&warm.request.clone().with_num_images(images))?)?;
        }
        let mut first = self.requests(&warm.request, most, numbers)?;
        // They leave one after the other, so that smaller numbers make steps together, too.
        for (i, request) in first.iter_mut().enumerate() {
            request.steps = (warm.request.steps * (i + 1)).div_ceil(most);
        }
        pipeline.generate_batch(&first).into_iter().try_for_each(|result| result.map(drop))?;
        let mut seconds = Vec::new();
        for request in self.requests(&warm.request, TIMED, numbers)? {
            let begin = Instant::now();
            pipeline.generate(&request)?;
            seconds.push(begin.elapsed().as_secs_f64());
        }
        warm.alone_seconds = median(&seconds);
        Ok(())
    }

    /// The arrivals of a round.
    fn arrivals(&self, rate: Option<f64>, round: usize) -> Vec<f64> {
        let (count, seed) = (self.options.requests, self.options.seed.wrapping_add(round as u64));
        rate.map_or_else(|| vec![0.0; count], |rate| poisson(seed, count, rate))
    }

    /// The rounds of every policy, each round with the same requests at the same times, in turn; the inner error says why they cannot
    /// run here.
    fn rounds(
        &self,
        warm: &Warm,
        load: Load,
        numbers: &mut RangeFrom<usize>,
    ) -> Result<Result<Vec<Vec<Round>>, String>, Failure> {
        let policies = self.options.policies();
        let mut rounds: Vec<Vec<Round>> = vec![Vec::new(); policies.len()];
        for round in 0..self.options.request.repetitions {
            let arrivals = self.arrivals(rate(load, warm.alone_seconds), round);
            let requests = self.requests(&warm.request, arrivals.len(), numbers)?;
            let mut order: Vec<usize> = (0..policies.len()).collect();
            // The first of a round is the last of the next one.
            if round % 2 == 1 {
                order.reverse();
            }
            let mut checksums: Vec<Option<u32>> = vec![None; requests.len()];
            for at in order {
                let served = match self.serve(&warm.pipeline, policies[at], &arrivals, &requests) {
                    Ok(served) => served,
                    Err(error) => return setup::skipped(error).map(Err),
                };
                rounds[at].push(served.round);
                same_images(&mut checksums, &served.checksums)?;
            }
        }
        Ok(Ok(rounds))
    }

    /// Submits each request at its time and waits for all.
    fn serve(
        &self,
        pipeline: &Arc<Pipeline>,
        policy: Policy,
        arrivals: &[f64],
        requests: &[Request],
    ) -> Result<Served, Error> {
        let is_offline = arrivals.iter().all(|at| *at == 0.0);
        let max_waiting = if is_offline { requests.len() } else { self.options.max_waiting };
        let options = EngineOptions::default()
            .with_max_running(policy.max_batch)
            .with_gather(Duration::from_millis(policy.gather_ms as u64))
            .with_max_waiting(max_waiting);
        let engine = Engine::new(pipeline.clone(), options)?;
        let batches = Arc::new(Mutex::new(BatchSizes::default()));
        let begin = Instant::now();
        let results: Vec<Option<(f64, u32)>> = std::thread::scope(|scope| {
            let mut waiting = Vec::new();
            for (number, (at, request)) in arrivals.iter().zip(requests).enumerate() {
                let (request, options) = (request.clone(), reporting(number, &batches));
                // A request's time counts from when it was to come, so a late one hides nothing.
                std::thread::sleep(Duration::from_secs_f64(*at).saturating_sub(begin.elapsed()));
                waiting.push(match engine.submit_with(request, options) {
                    Err(Error::Busy { .. }) => None,
                    ticket => {
                        let ticket = ticket?;
                        Some(scope.spawn(move || {
                            let output = ticket.wait();
                            let seconds = begin.elapsed().as_secs_f64();
                            output.map(|output| (seconds, check::checksum(&output.images)))
                        }))
                    }
                });
            }
            let joined = waiting.into_iter().map(|thread| {
                let panicked = |_| Err(Error::Panicked("a thread that waited".into()));
                thread.map(|thread| thread.join().unwrap_or_else(panicked)).transpose()
            });
            joined.collect::<Result<_, Error>>()
        })?;
        let latencies = results.iter().zip(arrivals).map(|(result, at)| result.map(|(seconds, _)| seconds - at));
        let last = results.iter().flatten().map(|(seconds, _)| *seconds).fold(0.0, f64::max);
        let mut batches = batches.lock().unwrap_or_else(PoisonError::into_inner).clone();
        batches.close();
        let span = last - arrivals.first().copied().unwrap_or(0.0);
        let round = Round { latencies: latencies.collect(), span, batches };
        Ok(Served { round, checksums: results.iter().map(|result| result.map(|(_, checksum)| checksum)).collect() })
    }

    fn rows(&self, warm: &Warm, machine: &Machine, load: Load, rounds: &[Vec<Round>]) -> Vec<Row> {
        let of = |(at, policy): (usize, Policy)| {
            let alone = rounds.first().filter(|_| at > 0).map(Vec::as_slice);
            let measured = Measured::new(&rounds[at], alone, warm.alone_seconds);
            let rate = rate(load, warm.alone_seconds);
            Row { measured: Some(measured), ..self.row(machine, &warm.request, (load, rate), policy) }
        };
        self.options.policies().into_iter().enumerate().map(of).collect()
    }

    fn skip(&self, machine: &Machine, request: &Request, why: &str) -> Vec<Row> {
        let of = |load: &Load| {
            let row = |policy| self.row(machine, request, (*load, None), policy);
            self.options.policies().into_iter().map(row).collect::<Vec<_>>()
        };
        let rows = self.options.loads.iter().flat_map(of);
        rows.map(|row| Row { skipped: Some(why.to_owned()), ..row }).collect()
    }

    fn row(&self, machine: &Machine, request: &Request, (load, rate): (Load, Option<f64>), policy: Policy) -> Row {
        Row {
            benchmark: "serve",
            host: Host::now(),
            machine: machine.clone(),
            model: self.model.name.clone(),
            scenario: if load == Load::Offline { "offline" } else { "server" },
            case: Case {
                adapters: request.image_prompts.len(),
                width: request.width,
                height: request.height,
                steps: request.steps,
                cfg_scale: request.guidance_scale,
                prompts: if self.options.mixed { "mixed" } else { "same" },
                requests: self.options.requests,
                repetitions: self.options.request.repetitions,
                seed: self.options.seed,
                max_waiting: self.options.max_waiting,
                load: if let Load::Share(share) = load { Some(share) } else { None },
                rate,
            },
            policy,
            measured: None,
            skipped: None,
        }
    }
}

/// Requests a second; none where all come at once.
fn rate(load: Load, alone_seconds: f64) -> Option<f64> {
    match load {
        Load::Share(share) => Some(share / alone_seconds),
        Load::Rate(rate) => Some(rate),
        Load::Offline => None,
    }
}

/// A round, with the checksum of each image that was served.
struct Served {
    round: Round,
    checksums: Vec<Option<u32>>,
}

/// Callbacks that count the images of each step.
fn reporting(request: usize, batches: &Arc<Mutex<BatchSizes>>) -> SubmitOptions {
    let batches = batches.clone();
    SubmitOptions::new().with_progress(move |progress: Progress| {
        if progress.stage == Stage::Denoise {
            batches.lock().unwrap_or_else(PoisonError::into_inner).report(request, progress.done);
        }
    })
}

/// Whether every request has the image that it had in another policy: a measurement of wrong images is worth nothing.
fn same_images(known: &mut [Option<u32>], now: &[Option<u32>]) -> Result<(), Failure> {
    for (known, now) in known.iter_mut().zip(now) {
        match (*known, *now) {
            (Some(known), Some(now)) if known != now => {
                let what = format!(
                    "a request has other images together with others, checksums {known:08x} and {now:08x}; nothing is reported"
                );
                terminal::line("bench: ", &what);
                return Err(Failure::Told(1));
            }
            _ => *known = known.or(*now),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates() {
        assert_eq!(rate(Load::Share(0.5), 0.25), Some(2.0));
        assert_eq!(rate(Load::Rate(3.0), 0.25), Some(3.0));
        assert_eq!(rate(Load::Offline, 0.25), None);
    }

    #[test]
    fn images_compared() {
        let mut known = vec![None; 3];
        assert!(same_images(&mut known, &[Some(1), None, Some(3)]).is_ok());
        assert!(same_images(&mut known, &[Some(1), Some(2), None]).is_ok());
        assert_eq!(known, [Some(1), Some(2), Some(3)]);
        assert!(same_images(&mut known, &[None, Some(7), None]).is_err());
    }
}
