//! A row of `bench serve`.

use crate::arrivals::BatchSizes;
use crate::host::Host;
use crate::machine::Machine;
use crate::stats::{mean, median, percentile, sorted};
use serde::Serialize;
use std::collections::BTreeMap;

/// The policy of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Policy {
    /// The most requests that are drawn at once.
    pub max_batch: usize,
    /// The milliseconds that the first request waits for others, where nothing is drawn.
    pub gather_ms: usize,
}

/// Requests one after the other.
pub const ALONE: Policy = Policy { max_batch: 1, gather_ms: 0 };

/// The requests of a row: how many, when they come, and what they ask for.
#[derive(Clone, Serialize)]
pub struct Case {
    pub adapters: usize,
    /// Absent where nothing was loaded that could tell the model's own size.
    pub width: Option<usize>,
    pub height: Option<usize>,
    pub steps: usize,
    pub cfg_scale: f32,
    /// `mixed` or `same`.
    pub prompts: &'static str,
    /// Requests of a round.
    pub requests: usize,
    pub repetitions: usize,
    /// The seed of the first round's arrivals; each round has the next one.
    pub seed: u64,
    pub max_waiting: usize,
    /// The requests that come, as a part of what one at a time serves, where that was asked for.
    pub load: Option<f64>,
    /// Requests a second; absent where all come at once, or nothing was measured.
    pub rate: Option<f64>,
}

/// One policy under one load, or why it was not measured.
#[derive(Serialize)]
pub struct Row {
    pub benchmark: &'static str,
    #[serde(flatten)]
    pub host: Host,
    #[serde(flatten)]
    pub machine: Machine,
    pub model: String,
    /// MLPerf's name: `server`, or `offline` where all requests come at once.
    pub scenario: &'static str,
    #[serde(flatten)]
    pub case: Case,
    #[serde(flatten)]
    pub policy: Policy,
    #[serde(flatten)]
    pub measured: Option<Measured>,
    /// Why nothing was measured.
    pub skipped: Option<String>,
}

/// A round of one policy.
#[derive(Debug, Default, Clone)]
pub struct Round {
    /// For each request the seconds from the time at which it was to come to its result; none where it was refused.
    pub latencies: Vec<Option<f64>>,
    /// Seconds from the first arrival to the last result.
    pub span: f64,
    pub batches: BatchSizes,
}

impl Round {
    fn served(&self) -> Vec<f64> {
        self.latencies.iter().flatten().copied().collect()
    }

    fn percentile(&self, percent: usize) -> f64 {
        percentile(&sorted(&self.served()), percent)
    }

    fn rate(&self) -> f64 {
        self.served().len() as f64 / self.span
    }
}

/// The rounds of one policy, together. Latencies are of the requests that were served.
#[derive(Serialize)]
pub struct Measured {
    /// Seconds of a request alone, the median of those that were timed before the rounds.
    pub alone_seconds: f64,
    pub served: usize,
    pub refused: usize,
    pub mean_seconds: f64,
    pub p50_seconds: f64,
    pub p90_seconds: f64,
    pub p99_seconds: f64,
    pub pictures_per_second: f64,
    /// The mean number of images that made a step together.
    pub batch_mean: f64,
    /// Steps that so many images made together.
    pub batch_steps: BTreeMap<usize, usize>,
    /// These figures beside one at a time with the same arrivals: the median over the rounds. Absent for one at a time.
    pub p50_ratio: Option<f64>,
    pub p99_ratio: Option<f64>,
    pub throughput_ratio: Option<f64>,
    /// Each round's latencies, in the order of the arrivals; null where a request was refused.
    pub seconds: Vec<Vec<Option<f64>>>,
}

impl Measured {
    /// Summarizes the rounds of a policy; `alone` has those of one at a time, for other policies.
    pub fn new(rounds: &[Round], alone: Option<&[Round]>, alone_seconds: f64) -> Self {
        let served: Vec<f64> = rounds.iter().flat_map(Round::served).collect();
        let rising = sorted(&served);
        let mut batches = BatchSizes::default();
        rounds.iter().for_each(|round| batches.add(&round.batches));
        let ratio = |of: &dyn Fn(&Round) -> f64| {
            let ratios: Vec<f64> = rounds.iter().zip(alone?).map(|(round, alone)| of(round) / of(alone)).collect();
            Some(median(&ratios))
        };
        Self {
            alone_seconds,
            served: served.len(),
            refused: rounds.iter().flat_map(|round| &round.latencies).filter(|latency| latency.is_none()).count(),
            mean_seconds: mean(&served),
            p50_seconds: percentile(&rising, 50),
            p90_seconds: percentile(&rising, 90),
            p99_seconds: percentile(&rising, 99),
            pictures_per_second: served.len() as f64 / rounds.iter().map(|round| round.span).sum::<f64>(),
            batch_mean: batches.mean(),
            batch_steps: batches.steps,
            p50_ratio: ratio(&|round| round.percentile(50)),
            p99_ratio: ratio(&|round| round.percentile(99)),
            throughput_ratio: ratio(&Round::rate),
            seconds: rounds.iter().map(|round| round.latencies.clone()).collect(),
        }
    }
}

/// The number of the last columns, which hold what was measured or why nothing was.
pub const MEASURED: usize = 12;

/// The titles of the cells after the machine's and the host's.
pub const TITLES: [&str; 24] = [
    "model",
    "scenario",
    "size",
    "steps",
    "adapters",
    "prompts",
    "requests",
    "rounds",
    "load",
    "rate/s",
    "max batch",
    "gather ms",
    "mean s",
    "p50 s",
    "p90 s",
    "p99 s",
    "pictures/s",
    "batch",
    "refused",
    "p50 ratio",
    "p99 ratio",
    "pictures/s ratio",
    "alone s",
    "skipped",
];

impl Row {
    /// The row of a table; see [`TITLES`].
    pub fn cells(&self) -> Vec<String> {
        let (case, policy) = (&self.case, &self.policy);
        let number = |value: Option<f64>| value.map_or(String::new(), |v| format!("{v:.4}"));
        let mut cells = self.machine.cells();
        cells.extend(self.host.cells());
        cells.extend([
            self.model.clone(),
            self.scenario.to_owned(),
            case.width.zip(case.height).map_or(String::new(), |(w, h)| format!("{w}x{h}")),
            case.steps.to_string(),
            case.adapters.to_string(),
            case.prompts.to_owned(),
            case.requests.to_string(),
            case.repetitions.to_string(),
            case.load.map_or(String::new(), |load| load.to_string()),
            number(case.rate),
            policy.max_batch.to_string(),
            policy.gather_ms.to_string(),
        ]);
        match &self.measured {
            Some(m) => {
                let first = [m.mean_seconds, m.p50_seconds, m.p90_seconds, m.p99_seconds, m.pictures_per_second];
                cells.extend(first.map(|value| number(Some(value))));
                cells.extend([number(Some(m.batch_mean)), m.refused.to_string()]);
                cells.extend([m.p50_ratio, m.p99_ratio, m.throughput_ratio, Some(m.alone_seconds)].map(number));
            }
            None => cells.extend(vec![String::new(); MEASURED - 1]),
        }
        cells.push(self.skipped.clone().unwrap_or_default());
        cells
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(latencies: &[Option<f64>], span: f64, steps: &[(usize, usize)]) -> Round {
        let mut batches = BatchSizes::default();
        batches.steps.extend(steps.iter().copied());
        Round { latencies: latencies.to_vec(), span, batches }
    }

    #[test]
    fn rounds_together() {
        let alone = [
            round(&[Some(2.0), Some(4.0), Some(6.0)], 6.0, &[(1, 9)]),
            round(&[Some(1.0), Some(2.0), Some(8.0)], 8.0, &[(1, 9)]),
            round(&[Some(1.0), Some(10.0), Some(10.0)], 3.0, &[(1, 9)]),
        ];
        let batched = [
            round(&[Some(2.0), Some(2.0), Some(3.0)], 3.0, &[(1, 3), (2, 3)]),
            round(&[Some(2.0), Some(2.0), None], 4.0, &[(2, 3)]),
            round(&[Some(1.0), Some(1.0), Some(1.0)], 3.0, &[(3, 3)]),
        ];
        let measured = Measured::new(&batched, Some(&alone), 0.5);
        assert_eq!((measured.served, measured.refused, measured.alone_seconds), (8, 1, 0.5));
        assert_eq!((measured.p50_seconds, measured.p99_seconds, measured.mean_seconds), (2.0, 3.0, 1.75));
        assert_eq!(measured.pictures_per_second, 0.8);
        assert_eq!(measured.batch_steps, BTreeMap::from([(1, 3), (2, 6), (3, 3)]));
        assert_eq!(measured.batch_mean, 2.0);
        // By round 0.5, 1, 0.1; 0.5, 0.25, 0.1; 2, 4/3, 1.
        assert_eq!((measured.p50_ratio, measured.p99_ratio), (Some(0.5), Some(0.25)));
        assert!((measured.throughput_ratio.unwrap_or(0.0) - 4.0 / 3.0).abs() < 1e-9);
        let itself = Measured::new(&alone, None, 0.5);
        assert_eq!((itself.p50_ratio, itself.batch_mean, itself.refused), (None, 1.0, 0));
        assert_eq!(measured.seconds[1], [Some(2.0), Some(2.0), None]);
    }
}
