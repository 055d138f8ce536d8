//! Measurements that need a process of their own: the executable starts itself again.

use crate::arguments;
use crate::lists::Format;
use crate::machine::Place;
use crate::setup::{self, BenchModel, Loaded, Setup};
use braid::Request;
use braid::cli::failure::Failure;
use braid::cli::flag::{self, Argument, Flag};
use braid::cli::terminal;
use braid::device::cuda::CudaDevice;
use braid::error::Error;
use braid::pipeline::{DeviceChoice, MAX_SIDE};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

static BEGUN: OnceLock<(Duration, Instant)> = OnceLock::new();

fn clock() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// To be called first in `main`.
pub fn begin() {
    let _ = BEGUN.set((clock(), Instant::now()));
}

/// The instruction that a child was started with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    /// The index of the place.
    place: usize,
    /// The time of day at which it was started.
    spawned: Duration,
}

/// The hidden flag that the executable gives its child.
const CHILD: &str = "--child";

impl Order {
    fn parse(text: &str) -> Option<Self> {
        let (place, nanoseconds) = text.split_once(':')?;
        Some(Self { place: place.parse().ok()?, spawned: Duration::from_nanos(nanoseconds.parse().ok()?) })
    }

    /// Seconds from the start of the process to `main`.
    pub fn start_seconds(&self) -> f64 {
        BEGUN.get().map_or(0.0, |(at, _)| at.saturating_sub(self.spawned).as_secs_f64())
    }
}

/// Seconds since `main` began.
pub fn seconds() -> f64 {
    BEGUN.get().map_or(0.0, |(_, at)| at.elapsed().as_secs_f64())
}

/// The same at another time.
pub fn seconds_at(at: Instant) -> f64 {
    BEGUN.get().map_or(0.0, |(_, begun)| at.saturating_duration_since(*begun).as_secs_f64())
}

/// The flags of a benchmark of one request, most of which run each measurement in a process of its own.
pub struct Options {
    pub setup: Setup,
    pub steps: usize,
    pub repetitions: usize,
    adapter: Option<bool>,
    size: Option<usize>,
    pub format: Format,
    pub order: Option<Order>,
}

const STEPS: Flag<Options> = Flag {
    long: "--steps",
    short: Some('n'),
    value: Some("N"),
    help: "[default: 4 for cold, 2 for memory, 20 for serve]",
    set: |o, v| v.count(1, 1000).map(|steps| o.steps = steps),
    ..Flag::NEW
};

const SIZE: Flag<Options> = Flag {
    long: "--size",
    value: Some("N"),
    help: "width and height [default: the model's own size]",
    set: |o, v| v.count(1, MAX_SIDE).map(|size| o.size = Some(size)),
    ..Flag::NEW
};

const ADAPTER: Flag<Options> = Flag {
    long: "--adapter",
    value: Some("SWITCH"),
    help: "on or off [default: on where there is one]",
    set: |o, v| v.choice(&[("on", true), ("off", false)]).map(|on| o.adapter = Some(on)),
    ..Flag::NEW
};

const OUTPUT: Flag<Options> = Flag {
    long: "--output",
    short: Some('o'),
    value: Some("FORMAT"),
    help: "md, csv, json or jsonl [default: md]",
    set: |o, v| Format::read(v).map(|format| o.format = format),
    ..Flag::NEW
};

const ORDER: Flag<Options> =
    Flag { long: CHILD, set: |o, v| v.text().map(|text| o.order = Order::parse(&text)), ..Flag::NEW };

/// The flags of all.
pub const FLAGS: &[Flag<Options>] = &[STEPS, SIZE, ADAPTER, OUTPUT, ORDER];

/// Flags where there are several measurements.
pub const REPEATED: &[Flag<Options>] = &[Flag {
    long: "--repetitions",
    short: Some('r'),
    value: Some("N"),
    help: "processes of cold, rounds of serve [default: 5, 3]",
    set: |o, v| v.count(1, 10_000).map(|n| o.repetitions = n),
    ..Flag::NEW
}];

impl Options {
    /// The defaults; no repetitions where there is one measurement.
    pub fn new(steps: usize, repetitions: usize) -> Self {
        let (setup, format) = (Setup::new(), Format::Markdown);
        Self { setup, steps, repetitions, adapter: None, size: None, format, order: None }
    }

    /// Reads them; `None` where help was asked for.
    pub fn read(p: &mut lexopt::Parser, steps: usize, repetitions: usize) -> Result<Option<Self>, Failure> {
        let mut options = Self::new(steps, repetitions);
        if !arguments::read(p, &[], &mut options, Self::take)? {
            return Ok(None);
        }
        options.check()?;
        Ok(Some(options))
    }

    /// Applies a flag if it is one of these.
    pub fn take(&mut self, argument: &Argument, p: &mut lexopt::Parser) -> Result<bool, Failure> {
        let repeated = if self.repetitions > 0 { REPEATED } else { &[] };
        Ok(flag::take(FLAGS, argument, self, p)?
            || flag::take(repeated, argument, self, p)?
            || self.setup.take(argument, p)?)
    }

    /// Checks the flags beside one another, once all are read.
    pub fn check(&mut self) -> Result<(), Failure> {
        if self.size.is_some() {
            let request = &mut self.setup.generate.request;
            if request.width.is_some() || request.height.is_some() {
                return Err(Failure::usage("--size: it and --width or --height exclude each other"));
            }
            (request.width, request.height) = (self.size, self.size);
        }
        Ok(())
    }

    /// The request, with the adapter's image where it is on.
    pub fn request(&self, model: &BenchModel) -> Result<Request, Failure> {
        let mut request = self.setup.request();
        request.steps = self.steps;
        if request.width.is_none() && request.height.is_none() {
            (request.width, request.height) = (model.side, model.side);
        }
        match (self.adapter, model.has_adapter()) {
            (Some(true), false) => return Err(setup::no_adapter()),
            (Some(false), _) => {}
            _ => request.image_prompts = model.images.clone(),
        }
        Ok(request)
    }

    /// Runs `sample` for each device and type in new processes and returns their results; `sample` is the child's part, which
    /// ends the process.
    pub fn each<T: Serialize + DeserializeOwned>(
        &self,
        sample: impl FnOnce(&Order, &Place) -> Result<T, Failure>,
    ) -> Result<Vec<(Place, Vec<T>)>, Failure> {
        let places = self.setup.places();
        if let Some(order) = self.order {
            let place = places.get(order.place).ok_or_else(|| Failure::usage(format!("{CHILD}: no such device")))?;
            terminal::print(&terminal::json(&sample(&order, place)?))?;
            return Err(Failure::Told(0));
        }
        // Wrong arguments are reported once, before any child starts.
        let model = self.setup.model()?;
        self.request(&model)?;
        drop(model);
        let mut all: Vec<(Place, Vec<T>)> = Vec::new();
        for (i, place) in places.iter().enumerate() {
            // The CPU computes in f32 whatever the type.
            if place.device == DeviceChoice::Cpu && all.iter().any(|(p, _)| p.device == DeviceChoice::Cpu) {
                continue;
            }
            all.push((*place, (0..self.repetitions.max(1)).map(|_| spawn(i)).collect::<Result<_, _>>()?));
        }
        Ok(all)
    }
}

/// Starts this executable again with the same arguments for one sample.
fn spawn<T: DeserializeOwned>(place: usize) -> Result<T, Failure> {
    let fail = |action, source| Failure::from(Error::Io { action, path: "a process for one sample".into(), source });
    let executable = std::env::current_exe().map_err(|e| fail("find", e))?;
    let mut command = Command::new(executable);
    command.args(std::env::args_os().skip(1)).arg(CHILD).arg(format!("{place}:{}", clock().as_nanos()));
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn();
    let output = child.and_then(|child| child.wait_with_output()).map_err(|e| fail("run", e))?;
    if !output.status.success() {
        // The child has reported the error, unless a signal ended it.
        if output.status.code().is_none() {
            terminal::line("bench: ", &format!("a process for one sample ended by {}", output.status));
        }
        return Err(Failure::Told(output.status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)));
    }
    serde_json::from_slice(&output.stdout).map_err(|e| fail("read from", e.into()))
}

/// Loads the model on a device, or says why it cannot; `opened` gets the device first.
pub fn load(
    model: &BenchModel,
    place: &Place,
    adapter: bool,
    opened: impl FnOnce(Option<&CudaDevice>),
) -> Result<Result<Loaded, String>, Failure> {
    let gpu = match place.open() {
        Ok(gpu) => gpu,
        Err(error) => return setup::skipped(error).map(Err),
    };
    opened(gpu.as_ref());
    match model.load(place, gpu, adapter) {
        Ok(loaded) => Ok(Ok(loaded)),
        Err(error) => setup::skipped(error).map(Err),
    }
}

/// Fails where nothing at all was measured: a list may name devices that this machine lacks. `rows` has the reason of each
/// skipped row.
pub fn something_measured<'a>(rows: impl Iterator<Item = Option<&'a str>>) -> Result<(), Failure> {
    let whys: Vec<_> = rows.collect();
    match whys.iter().flatten().next() {
        Some(why) if whys.iter().all(Option::is_some) => {
            terminal::line("bench: ", &format!("nothing was measured: {why}"));
            Err(Failure::Told(1))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders() {
        let order = Order { place: 3, spawned: Duration::from_nanos(1_700_000_000_123_456_789) };
        assert_eq!(Order::parse("3:1700000000123456789"), Some(order));
        for text in ["", "3", "3:", ":1", "-1:1", "a:b"] {
            assert_eq!(Order::parse(text), None, "{text}");
        }
    }
}
