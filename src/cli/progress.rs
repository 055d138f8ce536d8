//! The progress line.

use super::terminal;
use crate::pipeline::{Progress, Stage};
use std::collections::BTreeMap;
use std::time::Instant;

/// Shows the library's progress as one updating line, where standard error is a terminal.
pub struct Line {
    shown: bool,
    begin: Instant,
    /// Those of several images that have begun; they may share evaluations.
    images: BTreeMap<usize, Begun>,
}

/// An image whose steps have begun.
#[derive(Default)]
struct Begun {
    done: usize,
    steps: usize,
    decoded: bool,
}

impl Line {
    /// A line that is empty until the first progress.
    pub fn new() -> Self {
        Self { shown: terminal::is_terminal(), begin: Instant::now(), images: BTreeMap::new() }
    }

    /// Shows a step.
    pub fn tell(&mut self, progress: Progress) {
        if self.shown {
            terminal::status(&self.text(progress));
        }
    }

    /// The line after a step: of one image its own, of several the sums of them all.
    fn text(&mut self, p: Progress) -> String {
        let several = p.num_images > 1;
        let begins = if several { self.images.is_empty() } else { p.done == 0 };
        if begins {
            self.begin = Instant::now();
        }
        if several && matches!(p.stage, Stage::Denoise | Stage::Decode) {
            let image = self.images.entry(p.image).or_default();
            match p.stage {
                Stage::Denoise => (image.done, image.steps) = (p.done, p.steps),
                _ => image.decoded = p.done == p.steps,
            }
        }
        let seconds = self.begin.elapsed().as_secs_f64();
        match (self.images.is_empty(), p.stage) {
            (true, Stage::Denoise) => denoise((p.done, p.steps), seconds),
            (true, stage) => stage.name().to_owned(),
            // The text of a request that joins, and so on, would hide the others' steps.
            (false, _) => {
                let begun = self.images.values();
                let most = begun.clone().map(|image| image.steps).max().unwrap_or(0);
                let ahead = p.num_images.saturating_sub(self.images.len()) * most;
                let (done, steps) = begun.clone().fold((0, ahead), |(d, s), image| (d + image.done, s + image.steps));
                let decoded = begun.filter(|image| image.decoded).count();
                format!("{decoded} of {} images  {}", p.num_images, denoise((done, steps), seconds))
            }
        }
    }
}

/// A bar of steps with their rate.
fn denoise((done, steps): (usize, usize), seconds: f64) -> String {
    let bar: String = (0..20).map(|i| if i * steps < done * 20 { '#' } else { '.' }).collect();
    let mut line = format!("denoise [{bar}] {done}/{steps}");
    if done > 0 && seconds > 0.0 {
        let rate = done as f64 / seconds;
        let speed = if rate < 1.0 { format!("{:.2} s/it", 1.0 / rate) } else { format!("{rate:.2} it/s") };
        let left = (steps.saturating_sub(done) as f64 / rate).round() as u64;
        line.push_str(&format!("  {speed}  {}:{:02} left", left / 60, left % 60));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line() -> Line {
        Line { shown: false, begin: Instant::now(), images: BTreeMap::new() }
    }

    /// The text without the rate, which time has a part in.
    fn told(
        line: &mut Line,
        stage: Stage,
        (image, num_images): (usize, usize),
        (done, steps): (usize, usize),
    ) -> String {
        let text = line.text(Progress { stage, image, num_images, done, steps });
        text.split_once("  ").map_or(text.clone(), |(first, rest)| match num_images {
            1 => first.to_owned(),
            _ => format!("{first}  {}", rest.split("  ").next().unwrap_or_default()),
        })
    }

    #[test]
    fn one_image() {
        let mut line = line();
        assert_eq!(told(&mut line, Stage::Text, (0, 1), (0, 1)), "text");
        assert_eq!(told(&mut line, Stage::Denoise, (0, 1), (0, 4)), "denoise [....................] 0/4");
        assert_eq!(told(&mut line, Stage::Denoise, (0, 1), (1, 4)), "denoise [#####...............] 1/4");
        assert_eq!(told(&mut line, Stage::Decode, (0, 1), (0, 1)), "decode");
    }

    /// Images that share evaluations, the last of which joins late and has its text encoded then: the line only grows.
    #[test]
    fn images_of_a_batch() {
        let mut line = line();
        let mut tell = |stage, image, steps| told(&mut line, stage, (image, 3), steps);
        assert_eq!(tell(Stage::Text, 0, (0, 1)), "text");
        assert_eq!(tell(Stage::Denoise, 0, (0, 2)), "0 of 3 images  denoise [....................] 0/6");
        assert_eq!(tell(Stage::Denoise, 1, (0, 2)), "0 of 3 images  denoise [....................] 0/6");
        assert_eq!(tell(Stage::Denoise, 0, (1, 2)), "0 of 3 images  denoise [####................] 1/6");
        assert_eq!(tell(Stage::Denoise, 1, (1, 2)), "0 of 3 images  denoise [#######.............] 2/6");
        assert_eq!(tell(Stage::Denoise, 0, (2, 2)), "0 of 3 images  denoise [##########..........] 3/6");
        assert_eq!(tell(Stage::Decode, 0, (0, 1)), "0 of 3 images  denoise [##########..........] 3/6");
        assert_eq!(tell(Stage::Decode, 0, (1, 1)), "1 of 3 images  denoise [##########..........] 3/6");
        assert_eq!(tell(Stage::Text, 2, (0, 1)), "1 of 3 images  denoise [##########..........] 3/6");
        assert_eq!(tell(Stage::Denoise, 2, (1, 2)), "1 of 3 images  denoise [##############......] 4/6");
    }
}
