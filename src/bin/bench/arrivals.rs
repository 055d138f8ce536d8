//! Requests of `bench serve`: when they come, what they ask for, and how many of them made their steps together.

use crate::setup;
use braid::{Error, ImagePrompt, Request};
use std::collections::BTreeMap;

/// Random numbers of 0 to 1, 1 left out (SplitMix64 by Steele, Lea and Flood).
fn uniform(state: &mut u64) -> f64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

/// Seconds at which requests come, a Poisson process of so many a second: the first gap, too, is an exponential one. Another rate scales
/// the arrivals of the same seed.
pub fn poisson(seed: u64, count: usize, rate: f64) -> Vec<f64> {
    let (mut state, mut at) = (seed, 0.0);
    let next = || {
        at -= (1.0 - uniform(&mut state)).ln() / rate;
        at
    };
    std::iter::repeat_with(next).take(count).collect()
}

/// A request like `base` whose prompt and reference no other number below 65,536 has.
///
/// # Errors
/// Those of [`setup::pattern`].
pub fn unseen(base: &Request, number: usize) -> Result<Request, Error> {
    const COLOURS: [&str; 5] = ["red", "a pale blue", "dark green", "white and yellow", "grey"];
    const THINGS: [&str; 7] = ["fox", "lighthouse", "old bridge", "bowl of fruit", "horse", "tower", "sailing boat"];
    const PLACES: [&str; 4] = ["in the snow", "by the sea at dawn", "under a stormy sky", "in a field, far away"];
    let (colour, thing, place) = (COLOURS[number % 5], THINGS[number / 5 % 7], PLACES[number / 35 % 4]);
    let mut request = base.clone();
    request.prompt = format!("{colour} {thing} {place}, number {number}");
    request.seed = base.seed.wrapping_add(number as u64);
    if !base.image_prompts.is_empty() {
        request.image_prompts = vec![ImagePrompt::new(setup::pattern(number)?)];
    }
    Ok(request)
}

/// Numbers of images that made a step together, counted from the reports of their steps.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct BatchSizes {
    /// Steps that so many images made together.
    pub steps: BTreeMap<usize, usize>,
    /// The requests whose steps of the present round have been reported.
    round: Vec<usize>,
}

impl BatchSizes {
    /// Takes the report that a request of one image has made `done` steps; with 0 that the image begins. In a round every image that
    /// has begun makes one step, and images begin between rounds.
    pub fn report(&mut self, request: usize, done: usize) {
        if done == 0 || self.round.contains(&request) {
            self.close();
        }
        if done > 0 {
            self.round.push(request);
        }
    }

    /// Ends the round.
    pub fn close(&mut self) {
        if !self.round.is_empty() {
            *self.steps.entry(self.round.len()).or_default() += 1;
            self.round.clear();
        }
    }

    /// Adds the steps of another run.
    pub fn add(&mut self, other: &Self) {
        other.steps.iter().for_each(|(size, steps)| *self.steps.entry(*size).or_default() += steps);
    }

    /// The mean number of images that make a step together; 0 where there was none.
    pub fn mean(&self) -> f64 {
        let steps: usize = self.steps.values().sum();
        let images: usize = self.steps.iter().map(|(size, steps)| size * steps).sum();
        images as f64 / steps.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn poisson_arrivals() {
        let (count, rate) = (10_000, 4.0);
        let at = poisson(7, count, rate);
        assert!(at.len() == count && at[0] > 0.0 && at.is_sorted_by(|a, b| a < b));
        let gaps: Vec<f64> = at.windows(2).map(|pair| pair[1] - pair[0]).collect();
        // Exponential: mean and deviation are 1 / rate, and gaps longer than that are a part of 1 / e.
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let deviation = crate::stats::deviation(&gaps).unwrap();
        let longer = gaps.iter().filter(|gap| **gap > 1.0 / rate).count() as f64 / gaps.len() as f64;
        assert!((mean * rate - 1.0).abs() < 0.03, "{mean}");
        assert!((deviation * rate - 1.0).abs() < 0.03, "{deviation}");
        assert!((longer - (-1.0f64).exp()).abs() < 0.02, "{longer}");
        // Gaps do not depend on the one before.
        let above: Vec<bool> = gaps.iter().map(|gap| *gap > 1.0 / rate).collect();
        let both = above.windows(2).filter(|pair| pair[0] && pair[1]).count() as f64 / gaps.len() as f64;
        assert!((both - longer * longer).abs() < 0.02, "{both}");
    }

    #[test]
    fn seeds_and_rates() {
        let at = poisson(1, 50, 2.0);
        assert_eq!(at, poisson(1, 50, 2.0));
        assert_ne!(at, poisson(2, 50, 2.0));
        let slower = poisson(1, 50, 0.5);
        assert!(at.iter().zip(&slower).all(|(a, b)| (4.0 * a - b).abs() < 1e-9 * b));
    }

    #[test]
    fn unseen_requests() {
        let image = setup::pattern(0).unwrap();
        let base = Request::new("a fox").with_seed(3).with_image_prompt(ImagePrompt::new(image));
        let made: Vec<Request> = [0, 1, 5, 255, 256, 257, 300].map(|n| unseen(&base, n).unwrap()).into();
        for (i, a) in made.iter().enumerate() {
            for b in &made[i + 1..] {
                assert!(a.prompt != b.prompt && a.seed != b.seed);
                assert_ne!(a.image_prompts[0].references, b.image_prompts[0].references);
            }
        }
        assert!(unseen(&Request::new("a fox"), 1).unwrap().image_prompts.is_empty());
    }

    #[test]
    fn images_by_step() {
        let mut sizes = BatchSizes::default();
        // 0 begins and makes a step alone, 1 joins, 0 ends, 1 makes its last step, and 2 follows it.
        for (request, done) in [(0, 0), (0, 1), (1, 0), (0, 2), (1, 1), (0, 3), (1, 2), (1, 3), (2, 0), (2, 1)] {
            sizes.report(request, done);
        }
        sizes.close();
        assert_eq!(sizes.steps, BTreeMap::from([(1, 3), (2, 2)]));
        assert_eq!(sizes.mean(), 7.0 / 5.0);
        let mut both = sizes.clone();
        both.add(&BatchSizes { steps: BTreeMap::from([(2, 1), (4, 1)]), round: Vec::new() });
        assert_eq!(both.steps, BTreeMap::from([(1, 3), (2, 3), (4, 1)]));
        assert_eq!(BatchSizes::default().mean(), 0.0);
    }
}
