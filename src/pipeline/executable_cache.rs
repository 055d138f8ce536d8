//! The programs that a pipeline has built, kept for the next request.

use super::Pipeline;
use super::compile::RequestPlan;
use crate::device::{Executable, LoopSteps};
use crate::error::{Error, Result};
use crate::models::unet::UnetShape;
use std::collections::HashSet;
use std::time::Instant;

/// What a program was built for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ExecutableKey {
    /// Encoder and depth.
    Text {
        encoder: usize,
        depth: usize,
    },
    Image,
    Condition(RequestPlan),
    /// For a sampler on the device with its steps.
    Denoise {
        shape: UnetShape,
        steps: Option<LoopSteps>,
    },
    Decode {
        height: usize,
        width: usize,
    },
}

/// The most recently used programs, newest last.
#[derive(Default)]
pub(super) struct ExecutableCache {
    kept: Vec<(ExecutableKey, Box<dyn Executable>)>,
    /// What was prepared for, newest last.
    plans: Vec<RequestPlan>,
    /// Whether encoders go once they have done their work.
    pub(super) free_encoders: bool,
}

/// The target of the events that tell of programs, at the level of debugging: `held`, the bytes that all of them hold (on a GPU
/// their weights are among them), and where one was made `seconds`, the time that it took.
pub const EXECUTABLES: &str = "braid::programs";

/// Programs kept: those of two resolutions with all their stages.
const KEPT: usize = 12;
/// Plans that are remembered.
const PLANS: usize = 4;

impl ExecutableCache {
    /// The program for `key`, built by `build` where it is not there.
    pub(super) fn get(
        &mut self,
        key: ExecutableKey,
        build: impl Fn() -> Result<Box<dyn Executable>>,
    ) -> Result<&mut dyn Executable> {
        let (entry, seconds) = match self.kept.iter().position(|(k, _)| *k == key) {
            Some(at) => (self.kept.remove(at), None),
            None => {
                if self.kept.len() == KEPT {
                    self.kept.remove(0);
                }
                let begin = Instant::now();
                let program = match build() {
                    // Programs of other stages and sizes make room.
                    Err(Error::Memory { .. }) if !self.kept.is_empty() => {
                        self.clear();
                        build()?
                    }
                    program => program?,
                };
                ((key, program), Some(begin.elapsed().as_secs_f64()))
            }
        };
        let at = self.kept.len();
        self.kept.push(entry);
        if let Some(seconds) = seconds {
            tracing::debug!(target: EXECUTABLES, seconds, held = self.bytes() as u64, "made a program");
        }
        Ok(self.kept[at].1.as_mut())
    }

    /// Whether UNet and decoder of a plan are there.
    pub(super) fn has(&self, p: &Pipeline, plan: &RequestPlan) -> bool {
        let UnetShape { height, width, .. } = plan.shape;
        let denoise = ExecutableKey::Denoise { shape: plan.shape.clone(), steps: plan.sampler(p) };
        [denoise, ExecutableKey::Decode { height, width }].iter().all(|key| self.kept.iter().any(|(k, _)| k == key))
    }

    /// Lets the encoders go, where that was decided.
    pub(super) fn release_encoders(&mut self) {
        if self.free_encoders {
            self.kept.retain(|(key, _)| !matches!(key, ExecutableKey::Text { .. } | ExecutableKey::Image));
            tracing::debug!(target: EXECUTABLES, held = self.bytes() as u64, "gave the encoders back");
        }
    }

    /// Remembers that programs for this plan are there.
    pub(super) fn prepared(&mut self, plan: RequestPlan) {
        self.plans.retain(|p| *p != plan);
        if self.plans.len() == PLANS {
            self.plans.remove(0);
        }
        self.plans.push(plan);
    }

    /// The newest plan that was prepared for and covers this one; else this one.
    pub(super) fn covering_plan(&self, plan: RequestPlan) -> RequestPlan {
        self.plans.iter().rev().find(|prepared| prepared.covers(&plan)).cloned().unwrap_or(plan)
    }

    /// Bytes held by all of them: what they share counts once.
    pub(super) fn bytes(&self) -> usize {
        let (mut all, mut seen) = (0, HashSet::new());
        for (_, program) in &self.kept {
            all += program.bytes();
            for (piece, bytes) in program.shared() {
                if !seen.insert(piece) {
                    all -= bytes;
                }
            }
        }
        all
    }

    /// Lets all of them go.
    pub(super) fn clear(&mut self) {
        self.kept.clear();
        self.plans.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Graph;

    /// With the pieces that it shares.
    struct Fake(Graph, Vec<u64>);

    impl Executable for Fake {
        fn run(&mut self, _: &[&[f32]], _: &mut [&mut [f32]]) -> Result<()> {
            Ok(())
        }

        fn bytes(&self) -> usize {
            10
        }

        fn shared(&self) -> Vec<(u64, usize)> {
            self.1.iter().map(|piece| (*piece, 3)).collect()
        }

        fn graph(&self) -> &Graph {
            &self.0
        }
    }

    fn fake() -> Result<Box<dyn Executable>> {
        Ok(Box::new(Fake(Graph::default(), Vec::new())))
    }

    fn key(width: usize) -> ExecutableKey {
        ExecutableKey::Decode { height: 1, width }
    }

    #[test]
    fn the_oldest_make_room() {
        let mut programs = ExecutableCache::default();
        for width in 0..KEPT + 3 {
            programs.get(key(width), fake).unwrap();
            programs.get(key(0), || panic!("the one in use was given up")).unwrap();
        }
        assert_eq!(programs.bytes(), KEPT * 10);
        assert!(!programs.kept.iter().any(|(k, _)| *k == key(1)));
    }

    #[test]
    fn what_is_shared_counts_once() {
        let mut programs = ExecutableCache::default();
        for (width, pieces) in [vec![7], vec![7, 8], vec![9], vec![]].into_iter().enumerate() {
            programs.get(key(width), || Ok(Box::new(Fake(Graph::default(), pieces.clone())))).unwrap();
        }
        assert_eq!(programs.bytes(), 4 * 10 - 3);
    }

    #[test]
    fn where_memory_is_short_the_others_go() {
        let short = || Err(Error::Memory { stage: "decode", need: 2, have: 1, hint: "".into() });
        let mut programs = ExecutableCache::default();
        programs.get(key(0), fake).unwrap();
        programs.get(key(1), fake).unwrap();
        let tries = std::cell::Cell::new(0);
        let second = || {
            tries.set(tries.get() + 1);
            if tries.get() == 1 { short() } else { fake() }
        };
        programs.get(key(2), second).unwrap();
        assert_eq!((tries.get(), programs.bytes()), (2, 10));
        // What does not fit alone is an error, at once where nothing can go.
        assert!(programs.get(key(3), short).is_err());
        assert_eq!(programs.bytes(), 0);
    }
}
