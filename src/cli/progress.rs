//! The progress line.

use super::terminal;
use crate::pipeline::{Progress, Stage};
use std::time::Instant;

/// Shows the library's progress as one updating line, where standard error is a terminal.
pub struct Line {
    shown: bool,
    begin: Instant,
}

impl Line {
    /// A line that is empty until the first progress.
    pub fn new() -> Self {
        Self { shown: terminal::is_terminal(), begin: Instant::now() }
    }

    /// Shows a step.
    pub fn tell(&mut self, progress: Progress) {
        if !self.shown {
            return;
        }
        if progress.done == 0 {
            self.begin = Instant::now();
        }
        terminal::status(&text(progress, self.begin.elapsed().as_secs_f64()));
    }
}

fn text(p: Progress, seconds: f64) -> String {
    let which = if p.num_images > 1 && matches!(p.stage, Stage::Denoise | Stage::Decode) {
        format!("image {}/{}  ", p.image + 1, p.num_images)
    } else {
        String::new()
    };
    if p.stage != Stage::Denoise {
        return format!("{which}{}", p.stage.name());
    }
    let bar: String = (0..20).map(|i| if i * p.steps < p.done * 20 { '#' } else { '.' }).collect();
    let mut line = format!("{which}denoise [{bar}] {}/{}", p.done, p.steps);
    if p.done > 0 && seconds > 0.0 {
        let rate = p.done as f64 / seconds;
        let speed = if rate < 1.0 { format!("{:.2} s/it", 1.0 / rate) } else { format!("{rate:.2} it/s") };
        let left = ((p.steps - p.done) as f64 / rate).round() as u64;
        line.push_str(&format!("  {speed}  {}:{:02} left", left / 60, left % 60));
    }
    line
}
