//! As much of SVG as the plots need, and the arithmetic of their axes.

use std::fmt::Write;

/// A drawing that grows downwards.
pub struct Svg {
    body: String,
    width: f64,
    height: f64,
}

/// The anchor of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anchor {
    Start,
    Middle,
    End,
}

/// Text as XML takes it; control characters have no place in it.
fn escape(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

impl Svg {
    /// An empty drawing of that width.
    pub fn new(width: f64) -> Self {
        Self { body: String::new(), width, height: 0.0 }
    }

    /// Makes the drawing reach down to there.
    pub fn reach(&mut self, y: f64) {
        self.height = self.height.max(y);
    }

    pub fn rectangle(&mut self, [x, y, w, h]: [f64; 4], fill: &str, title: &str) {
        let _ = writeln!(
            self.body,
            r#"<rect x="{x:.2}" y="{y:.2}" width="{w:.2}" height="{h:.2}" fill="{fill}"><title>{}</title></rect>"#,
            escape(title)
        );
    }

    pub fn circle(&mut self, [x, y, r]: [f64; 3], fill: &str, title: &str) {
        let _ = writeln!(
            self.body,
            r#"<circle cx="{x:.2}" cy="{y:.2}" r="{r:.2}" fill="{fill}" fill-opacity="0.75"><title>{}</title></circle>"#,
            escape(title)
        );
    }

    pub fn line(&mut self, points: &[[f64; 2]], stroke: &str, width: f64) {
        let points: Vec<_> = points.iter().map(|[x, y]| format!("{x:.2},{y:.2}")).collect();
        let _ = writeln!(
            self.body,
            r#"<polyline points="{}" fill="none" stroke="{stroke}" stroke-width="{width}"/>"#,
            points.join(" ")
        );
    }

    pub fn text(&mut self, [x, y]: [f64; 2], size: f64, anchor: Anchor, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let text = escape(text);
        let _ = writeln!(
            self.body,
            r##"<text x="{x:.2}" y="{y:.2}" font-size="{size}" text-anchor="{anchor}" fill="#222">{text}</text>"##
        );
    }

    /// The whole document.
    pub fn finish(self) -> String {
        let (w, h) = (self.width.ceil(), self.height.ceil());
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{w}\" height=\"{h}\" viewBox=\"0 0 {w} {h}\" \
             font-family=\"sans-serif\">\n<rect width=\"{w}\" height=\"{h}\" fill=\"#fff\"/>\n{}</svg>\n",
            self.body
        )
    }
}

/// A logarithmic axis over whole decades.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Log {
    /// Exponents of its ends.
    pub from: i32,
    pub to: i32,
    /// The places of its ends in the drawing.
    start: f64,
    end: f64,
}

impl Log {
    /// The decades that hold all of those positive values.
    pub fn new(values: impl Iterator<Item = f64>, start: f64, end: f64) -> Self {
        let (low, high) = values
            .filter(|v| v.is_finite() && *v > 0.0)
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v.log10()), high.max(v.log10())));
        let (low, high) = if low <= high { (low, high) } else { (0.0, 1.0) };
        let from = low.floor() as i32;
        Self { from, to: (high.ceil() as i32).max(from + 1), start, end }
    }

    /// The place of a positive value.
    pub fn at(&self, value: f64) -> f64 {
        let share = (value.log10() - f64::from(self.from)) / f64::from(self.to - self.from);
        self.start + share * (self.end - self.start)
    }

    /// The values at its ends.
    pub fn ends(&self) -> [f64; 2] {
        [self.from, self.to].map(|e| 10f64.powi(e))
    }
}

/// Round numbers from 0 to at least `most`, about five of them.
pub fn ticks(most: f64) -> Vec<f64> {
    if !(most.is_finite() && most > 0.0) {
        return vec![0.0, 1.0];
    }
    let rough = most / 5.0;
    let decade = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|f| f * decade).find(|s| *s >= rough * 0.999).unwrap_or(rough);
    (0..=(most / step - 1e-9).ceil() as usize).map(|i| i as f64 * step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decades() {
        let axis = Log::new([3.0, 0.5, 700.0].into_iter(), 100.0, 500.0);
        assert_eq!((axis.from, axis.to), (-1, 3));
        assert_eq!([0.1, 1.0, 10.0, 1000.0].map(|v| axis.at(v).round()), [100.0, 200.0, 300.0, 500.0]);
        // Upwards in a drawing whose y grows downwards.
        assert_eq!(Log::new([1.0, 100.0].into_iter(), 300.0, 0.0).at(10.0), 150.0);
        assert_eq!(Log::new([10.0].into_iter(), 0.0, 1.0).ends(), [10.0, 100.0]);
        assert_eq!(Log::new([0.0, f64::NAN].into_iter(), 0.0, 1.0).from, 0);
    }

    #[test]
    fn round_numbers() {
        assert_eq!(ticks(10.0), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(ticks(0.9), [0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0]);
        assert_eq!(ticks(23.0).last(), Some(&25.0));
        assert_eq!(ticks(f64::NAN), [0.0, 1.0]);
    }

    #[test]
    fn text_escapes() {
        let mut svg = Svg::new(10.0);
        svg.text([0.0, 0.0], 12.0, Anchor::Start, "</text><script>\u{1b}&\"");
        let text = svg.finish();
        assert!(text.contains("&lt;/text&gt;&lt;script&gt;\u{fffd}&amp;&quot;"), "{text}");
        assert_eq!(text.matches("<text").count(), 1);
    }
}
