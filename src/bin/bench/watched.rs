//! A device that tells what its programs cost: the time to make them, the bytes that they hold.

use braid::device::{Device, Program, Role, Sampled, Sampler, Sampling};
use braid::error::Result;
use braid::graph::Graph;
use braid::pipeline::{Progress, Stage};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What has been seen so far.
#[derive(Debug, Default)]
pub struct Log {
    /// The stage under way; none before the first.
    pub stage: Option<Stage>,
    /// Seconds in which programs were made, by the stage that asked for them.
    pub building: BTreeMap<Option<Stage>, f64>,
    /// Bytes of the programs that are there.
    pub live: u64,
    /// The most of them since [`Shared::take_peak`].
    peak: u64,
    /// When denoising began.
    pub denoise: Option<Instant>,
    /// When the first step was done.
    pub first_step: Option<Instant>,
}

/// A log that device and caller share.
#[derive(Debug, Clone, Default)]
pub struct Shared(Arc<Mutex<Log>>);

impl Shared {
    /// Looks at it or changes it.
    pub fn lock(&self) -> MutexGuard<'_, Log> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a request tells; true where a stage begins.
    pub fn progress(&self, progress: Progress) -> bool {
        let mut log = self.lock();
        if progress.stage == Stage::Denoise {
            let at = if progress.done == 0 { &mut log.denoise } else { &mut log.first_step };
            at.get_or_insert_with(Instant::now);
        }
        log.stage.replace(progress.stage) != Some(progress.stage)
    }

    /// The most bytes of programs since the last call.
    pub fn take_peak(&self) -> u64 {
        let mut log = self.lock();
        let live = log.live;
        std::mem::replace(&mut log.peak, live)
    }

    fn built(&self, program: Box<dyn Program>, took: Duration) -> Box<dyn Program> {
        let mut log = self.lock();
        let (stage, bytes) = (log.stage, program.bytes() as u64);
        *log.building.entry(stage).or_default() += took.as_secs_f64();
        log.live += bytes;
        log.peak = log.peak.max(log.live);
        drop(log);
        Box::new(Watched { program, bytes, log: self.clone() })
    }
}

/// The device around another one.
pub struct WatchedDevice {
    pub device: Box<dyn Device>,
    pub log: Shared,
}

impl Device for WatchedDevice {
    fn name(&self) -> String {
        self.device.name()
    }

    fn load(&self, graph: Graph) -> Result<Box<dyn Program>> {
        let begin = Instant::now();
        let program = self.device.load(graph)?;
        Ok(self.log.built(program, begin.elapsed()))
    }

    fn load_as(&self, graph: Graph, role: Role) -> Result<Box<dyn Program>> {
        let begin = Instant::now();
        let program = self.device.load_as(graph, role)?;
        Ok(self.log.built(program, begin.elapsed()))
    }

    fn estimate(&self, graph: Graph, role: Role) -> Result<Option<u64>> {
        self.device.estimate(graph, role)
    }

    fn room(&self) -> Result<Option<u64>> {
        self.device.room()
    }

    fn samples(&self) -> bool {
        self.device.samples()
    }
}

struct Watched {
    program: Box<dyn Program>,
    bytes: u64,
    log: Shared,
}

impl Program for Watched {
    fn run(&mut self, inputs: &[&[f32]], outputs: &mut [&mut [f32]]) -> Result<()> {
        self.program.run(inputs, outputs)
    }

    fn bytes(&self) -> usize {
        self.program.bytes()
    }

    fn graph(&self) -> &Graph {
        self.program.graph()
    }

    fn warm(&mut self) -> Result<()> {
        self.program.warm()
    }

    fn sampler(&mut self) -> Option<&mut dyn Sampler> {
        // The borrow of the trait object ends with this one.
        match self.program.sampler() {
            Some(_) => Some(self),
            None => None,
        }
    }
}

impl Sampler for Watched {
    fn sample(&mut self, job: &Sampling<'_>, reached: &mut dyn FnMut(usize) -> Result<()>) -> Result<Sampled> {
        match self.program.sampler() {
            Some(sampler) => sampler.sample(job, reached),
            None => Err(braid::Error::Graph("the program has no sampler".into())),
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let mut log = self.log.lock();
        log.live = log.live.saturating_sub(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fake(Graph);

    impl Program for Fake {
        fn run(&mut self, _: &[&[f32]], _: &mut [&mut [f32]]) -> Result<()> {
            Ok(())
        }

        fn bytes(&self) -> usize {
            10
        }

        fn graph(&self) -> &Graph {
            &self.0
        }
    }

    impl Device for Fake {
        fn name(&self) -> String {
            "fake".into()
        }

        fn load(&self, graph: Graph) -> Result<Box<dyn Program>> {
            std::thread::sleep(Duration::from_millis(20));
            Ok(Box::new(Fake(graph)))
        }
    }

    #[test]
    fn counts_what_is_there() {
        let log = Shared::default();
        let device = WatchedDevice { device: Box::new(Fake(Graph::default())), log: log.clone() };
        let first = device.load(Graph::default());
        let step = |stage, done| Progress { stage, picture: 0, pictures: 1, done, steps: 2 };
        assert!(log.progress(step(Stage::Denoise, 0)) && log.lock().first_step.is_none());
        let second = device.load_as(Graph::default(), Role::Decode);
        assert!(!log.progress(step(Stage::Denoise, 1)) && log.lock().first_step.is_some());
        assert_eq!(log.lock().live, 20);
        drop(first);
        assert_eq!((log.lock().live, log.take_peak(), log.take_peak()), (10, 20, 10));
        drop(second);
        let log = log.lock();
        assert_eq!((log.live, log.building.len()), (0, 2));
        assert!(log.building.values().all(|s| (0.02..1.0).contains(s)), "{:?}", log.building);
        assert_eq!(device.name(), "fake");
    }
}
