//! `bench plot`: results as drawings.

use crate::arguments;
use crate::results::results;
use crate::svg::{Anchor, Log, Svg, ticks};
use braid::atomic_file::write_atomic;
use braid::cli::failure::Failure;
use braid::cli::flag::{Argument, Flag};
use braid::cli::terminal;
use serde_json::Value;
use std::io::Write;
use std::path::PathBuf;

/// Width of a drawing and its margins, in pixels.
const WIDTH: f64 = 960.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 30.0;
/// Height of a bar and from one to the next.
const BAR: f64 = 22.0;
const PITCH: f64 = 44.0;
/// Height of a roofline.
const ROOF: f64 = 420.0;
/// Between two plots.
const GAP: f64 = 46.0;
const TEXT: f64 = 12.0;
/// Colours that those who do not see all of them can tell apart (Okabe and Ito).
const COLOURS: [&str; 8] = ["#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#8c6d31", "#555555"];

/// The results, and where the drawing goes.
#[derive(Default)]
pub struct Options {
    files: Vec<PathBuf>,
    output: Option<PathBuf>,
}

/// The flags.
pub const FLAGS: &[Flag<Options>] = &[Flag {
    long: "--output",
    short: Some('o'),
    value: Some("FILE"),
    help: "[default: standard output]",
    set: |o, v| v.path().map(|path| o.output = Some(path)),
    ..Flag::NEW
}];

/// Runs it; `false` where help was asked for.
pub fn run(mut parser: lexopt::Parser) -> Result<bool, Failure> {
    let mut options = Options::default();
    let file = |options: &mut Options, argument: &Argument, _: &mut lexopt::Parser| {
        let Argument::Value(file) = argument else { return Ok(false) };
        options.files.push(file.into());
        Ok(true)
    };
    if !arguments::read(&mut parser, FLAGS, &mut options, file)? {
        return Ok(false);
    }
    let Options { files, output } = options;
    if files.is_empty() {
        return Err(Failure::usage("plot: a file of results is needed, as `bench e2e -o json` writes it"));
    }
    let mut all = Vec::new();
    for file in &files {
        all.extend(results(file)?);
    }
    let drawing = draw(&all).ok_or_else(|| {
        let names = files.iter().map(|f| f.display().to_string()).collect::<Vec<_>>().join(", ");
        Failure::usage(format!("plot: nothing in {names} can be drawn; results of e2e, ops and roofline can"))
    })?;
    match output {
        Some(path) => write_atomic(&path, |file| file.write_all(drawing.as_bytes()))?,
        None => terminal::print(&drawing)?,
    }
    Ok(true)
}

/// Three digits that matter.
fn short(value: f64) -> String {
    let digits = (2.0 - value.max(1e-9).log10().floor()).clamp(0.0, 9.0) as usize;
    format!("{value:.digits$}")
}

/// One plot of all e2e results, then one for each of ops and roofline; `None` where there is none of them.
fn draw(results: &[Value]) -> Option<String> {
    let mut svg = Svg::new(WIDTH);
    let mut top = 0.0;
    let named = |name: &'static str| results.iter().filter(move |r| r["benchmark"] == name);
    let bars: Vec<_> = named("e2e").filter_map(Bar::of).collect();
    if !bars.is_empty() {
        top = stages(&mut svg, top, &bars);
    }
    for roof in named("ops").chain(named("roofline")).filter_map(Roof::of) {
        top = roof.draw(&mut svg, top);
    }
    (top > 0.0).then(|| svg.finish())
}

fn colour(k: usize) -> &'static str {
    COLOURS[k % COLOURS.len()]
}

/// The place of a name in a list that grows.
fn place(names: &mut Vec<String>, name: &str) -> usize {
    names.iter().position(|n| n == name).unwrap_or_else(|| {
        names.push(name.to_owned());
        names.len() - 1
    })
}

/// Names beside their colours, in as many lines as they need; the y below them.
fn legend(svg: &mut Svg, top: f64, names: &[String]) -> f64 {
    let (mut x, mut y) = (LEFT, top);
    for (k, name) in names.iter().enumerate() {
        let width = 26.0 + 7.0 * name.chars().count() as f64;
        if x + width > WIDTH - RIGHT && x > LEFT {
            (x, y) = (LEFT, y + 18.0);
        }
        svg.rectangle([x, y, 12.0, 12.0], colour(k), name);
        svg.text([x + 16.0, y + 10.5], TEXT, Anchor::Start, name);
        x += width;
    }
    y + 24.0
}

/// A request: what it was, and the mean seconds of its stages.
struct Bar {
    label: String,
    stages: Vec<(String, f64)>,
}

impl Bar {
    fn of(result: &Value) -> Option<Self> {
        let mean = result["mean_seconds"].as_f64()?;
        let average = |samples: &Value| {
            let samples: Vec<f64> = samples.as_array()?.iter().filter_map(Value::as_f64).collect();
            (!samples.is_empty()).then(|| samples.iter().sum::<f64>() / samples.len() as f64)
        };
        let known = ["text", "image", "condition", "denoise", "decode"];
        let order = |name: &str| known.iter().position(|k| *k == name).unwrap_or(known.len());
        let stages = result["stages"].as_object()?.iter();
        let mut stages: Vec<_> = stages.filter_map(|(name, s)| Some((name.clone(), average(s)?))).collect();
        stages.sort_by_key(|(name, _)| order(name));
        let rest = mean - stages.iter().map(|(_, s)| s).sum::<f64>();
        if rest > 0.0 {
            stages.push(("rest".into(), rest));
        }
        let text = |name: &str| result[name].as_str().unwrap_or("?").to_owned();
        let number = |name: &str| result[name].as_u64().unwrap_or(0);
        let label = format!(
            "{}, {}, {}x{}, {} steps, {} image(s), {} adapter(s), guidance {}: {mean:.3} s",
            text("model"),
            text("device"),
            number("width"),
            number("height"),
            number("steps"),
            number("pictures"),
            number("adapters"),
            result["cfg_scale"].as_f64().unwrap_or(0.0)
        );
        Some(Self { label, stages })
    }

    /// Start and length of each stage on an axis of that many pixels to a second.
    fn segments(&self, scale: f64) -> Vec<(f64, f64)> {
        let mut x = 0.0;
        let place = |(_, seconds): &(String, f64)| {
            let start = x;
            x += seconds * scale;
            (start, seconds * scale)
        };
        self.stages.iter().map(place).collect()
    }
}

fn stages(svg: &mut Svg, top: f64, bars: &[Bar]) -> f64 {
    let most = bars.iter().map(|b| b.stages.iter().map(|(_, s)| s).sum::<f64>()).fold(0.0, f64::max);
    let marks = ticks(most);
    let scale = (WIDTH - LEFT - RIGHT) / marks.last().copied().unwrap_or(1.0);
    svg.text([LEFT, top + 26.0], 16.0, Anchor::Start, "Seconds of a request, by stage");
    let mut names = Vec::new();
    bars.iter().flat_map(|b| &b.stages).for_each(|(name, _)| {
        place(&mut names, name);
    });
    let first = legend(svg, top + 38.0, &names) + 16.0;
    let bottom = first + PITCH * bars.len() as f64 - 8.0;
    for mark in &marks {
        let x = LEFT + mark * scale;
        svg.line(&[[x, first - 18.0], [x, bottom]], "#ddd", 1.0);
        svg.text([x, bottom + 16.0], TEXT, Anchor::Middle, &format!("{}", (mark * 1e6).round() / 1e6));
    }
    svg.text([WIDTH / 2.0, bottom + 34.0], TEXT, Anchor::Middle, "seconds, mean of the samples");
    for (i, bar) in bars.iter().enumerate() {
        let y = first + PITCH * i as f64;
        svg.text([LEFT + 2.0, y - 4.0], TEXT, Anchor::Start, &bar.label);
        for ((name, seconds), (x, width)) in bar.stages.iter().zip(bar.segments(scale)) {
            let k = place(&mut names, name);
            svg.rectangle([LEFT + x, y, width, BAR], colour(k), &format!("{name}: {seconds:.4} s"));
        }
    }
    svg.reach(bottom + GAP);
    bottom + GAP
}

/// An operation in a roofline.
struct Dot {
    kind: String,
    title: String,
    /// FLOPs to a byte.
    intensity: f64,
    flops_per_second: f64,
    /// Of all operations' time.
    share: f64,
}

struct Roof {
    title: String,
    /// FLOP/s and bytes/s; a roofline's kernels have fewer FLOPs than the operations where an upsample is folded in.
    peak: f64,
    bandwidth: f64,
    dots: Vec<Dot>,
    /// Operations without products, and their share of the time.
    left_out: (usize, f64),
}

impl Roof {
    fn of(result: &Value) -> Option<Self> {
        let measured = result["benchmark"] == "ops";
        let (device, peak, bandwidth) = if measured {
            let c = &result["ceilings"];
            (result["device"].as_str()?, c["flops_per_second"].as_f64()?, c["bytes_per_second"].as_f64()?)
        } else {
            let gpu = &result["gpu"];
            (gpu["name"].as_str()?, gpu["peak"].as_f64()?, gpu["bandwidth"].as_f64()?)
        };
        let how =
            if measured { "measured, with measured ceilings" } else { "predicted, with the data sheet's ceilings" };
        let number = |name: &str| result[name].as_u64().unwrap_or(0);
        let model = result["model"].as_str().unwrap_or("sdxl");
        let (width, height, rows) = (number("width"), number("height"), number("batch"));
        let title = format!("{model} on {device}, {width}x{height}, {rows} row(s): {how}");
        let mut roof = Self { title, peak, bandwidth, dots: Vec::new(), left_out: (0, 0.0) };
        for op in result["ops"].as_array()? {
            let seconds = op[if measured { "median_seconds" } else { "predicted_seconds" }].as_f64()?;
            let flops = op["kernel_flops"].as_f64().or_else(|| op["flops"].as_f64())?;
            let bytes = op["bytes"].as_f64()?;
            let count = op["count"].as_f64()?;
            if flops <= 0.0 {
                roof.left_out = (roof.left_out.0 + 1, roof.left_out.1 + count * seconds);
                continue;
            }
            let text = |name: &str| op[name].as_str().unwrap_or_default();
            let names = format!("{} {} {} {}", text("part"), text("kind"), text("shape"), text("with"));
            roof.dots.push(Dot {
                kind: text("kind").to_owned(),
                title: format!("{names}, {count} times {:.1} us", seconds * 1e6),
                intensity: flops / bytes.max(1.0),
                flops_per_second: flops / seconds.max(1e-9),
                share: count * seconds,
            });
        }
        let all = roof.dots.iter().map(|d| d.share).sum::<f64>() + roof.left_out.1;
        roof.dots.iter_mut().for_each(|d| d.share /= all);
        roof.left_out.1 /= all.max(1e-12);
        Some(roof)
    }

    /// The ceilings within the axes: up the memory's slope, then level.
    fn ceiling(&self, x: &Log, y: &Log) -> Vec<[f64; 2]> {
        let [[left, right], [low, _]] = [x.ends(), y.ends()];
        let ridge = self.peak / self.bandwidth;
        let start = left.max(low / self.bandwidth);
        let mut points = Vec::new();
        if start < ridge {
            points.push([x.at(start), y.at(start * self.bandwidth)]);
        }
        points.push([x.at(ridge.max(left)), y.at(self.peak)]);
        points.push([x.at(right), y.at(self.peak)]);
        points
    }

    fn draw(&self, svg: &mut Svg, top: f64) -> f64 {
        svg.text([LEFT, top + 26.0], 16.0, Anchor::Start, &self.title);
        let mut names = Vec::new();
        self.dots.iter().for_each(|d| {
            place(&mut names, &d.kind);
        });
        let first = legend(svg, top + 38.0, &names) + 12.0;
        let bottom = first + ROOF;
        let ridge = self.peak / self.bandwidth;
        let x = Log::new(self.dots.iter().map(|d| d.intensity).chain([ridge]), LEFT, WIDTH - RIGHT);
        let y = Log::new(self.dots.iter().map(|d| d.flops_per_second).chain([self.peak]), bottom, first);
        for e in x.from..=x.to {
            let (value, at) = (10f64.powi(e), x.at(10f64.powi(e)));
            svg.line(&[[at, first], [at, bottom]], "#ddd", 1.0);
            svg.text([at, bottom + 16.0], TEXT, Anchor::Middle, &format!("{value}"));
        }
        let (unit, name) = if self.peak < 1e12 { (1e9, "GFLOP/s") } else { (1e12, "TFLOP/s") };
        for e in y.from..=y.to {
            let (value, at) = (10f64.powi(e) / unit, y.at(10f64.powi(e)));
            svg.line(&[[LEFT, at], [WIDTH - RIGHT, at]], "#ddd", 1.0);
            svg.text([LEFT - 6.0, at + 4.0], TEXT, Anchor::End, &format!("{value}"));
        }
        svg.text([LEFT - 6.0, first - 14.0], TEXT, Anchor::End, name);
        svg.text([WIDTH / 2.0, bottom + 34.0], TEXT, Anchor::Middle, "FLOP to a byte; areas are shares of the time");
        svg.line(&self.ceiling(&x, &y), "#222", 1.5);
        let peak = format!("{} {name}", short(self.peak / unit));
        svg.text([WIDTH - RIGHT - 4.0, y.at(self.peak) - 6.0], TEXT, Anchor::End, &peak);
        let bandwidth = format!("{} GB/s", short(self.bandwidth / 1e9));
        let middle = (x.ends()[0].max(y.ends()[0] / self.bandwidth) * ridge).sqrt();
        let slope = [x.at(middle) - 8.0, y.at(middle * self.bandwidth) - 6.0];
        svg.text(slope, TEXT, Anchor::End, &bandwidth);
        for dot in &self.dots {
            let k = place(&mut names, &dot.kind);
            let radius = 2.5 + 40.0 * (dot.share.max(0.0) / std::f64::consts::PI).sqrt();
            svg.circle([x.at(dot.intensity), y.at(dot.flops_per_second), radius], colour(k), &dot.title);
        }
        let (count, share) = self.left_out;
        let note = format!("Not drawn: {count} operations without products, {:.1} % of the time.", share * 100.0);
        svg.text([LEFT, bottom + 52.0], TEXT, Anchor::Start, &note);
        svg.reach(bottom + GAP + 20.0);
        bottom + GAP + 20.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn e2e() -> Value {
        json!({"benchmark": "e2e", "model": "m <x>", "device": "cpu", "width": 64, "height": 64, "steps": 2,
            "pictures": 1, "adapters": 0, "cfg_scale": 5.0, "mean_seconds": 4.0,
            "stages": {"decode": [0.5, 1.5], "denoise": [2.0, 2.0], "text": [0.5, 0.5]}})
    }

    fn ops() -> Value {
        json!({"benchmark": "ops", "device": "cpu avx2", "model": "sdxl", "width": 64, "height": 64, "batch": 2,
            "ceilings": {"flops_per_second": 1e12, "bytes_per_second": 1e10},
            "ops": [
                {"part": "unet", "kind": "linear", "shape": "s", "with": "", "count": 3, "flops": 1e9, "bytes": 1e7,
                 "median_seconds": 2e-3},
                {"part": "unet", "kind": "layer norm", "shape": "s", "with": "", "count": 2, "flops": 0.0, "bytes": 1e7,
                 "median_seconds": 1e-3}]})
    }

    #[test]
    fn stages_end_to_end() {
        let bar = Bar::of(&e2e()).unwrap();
        let names: Vec<_> = bar.stages.iter().map(|(n, _)| n.as_str()).collect();
        assert_eq!(names, ["text", "denoise", "decode", "rest"]);
        assert_eq!(bar.segments(100.0), [(0.0, 50.0), (50.0, 200.0), (250.0, 100.0), (350.0, 50.0)]);
    }

    #[test]
    fn roofline_ridge() {
        let roof = Roof::of(&ops()).unwrap();
        let x = Log::new([1.0, 1000.0].into_iter(), 0.0, 300.0);
        let y = Log::new([1e9, 1e12].into_iter(), 300.0, 0.0);
        // 10 GB/s meets 1 TFLOP/s at 100 FLOP to a byte; at 1 it has 10 GFLOP/s, a third of the way up.
        let points: Vec<_> = roof.ceiling(&x, &y).iter().map(|p| p.map(f64::round)).collect();
        assert_eq!(points, [[0.0, 200.0], [200.0, 0.0], [300.0, 0.0]]);
        assert_eq!((roof.dots.len(), roof.left_out), (1, (1, 0.25)));
        assert_eq!((roof.dots[0].intensity, roof.dots[0].flops_per_second), (100.0, 5e11));
        assert!((roof.dots[0].share - 0.75).abs() < 1e-12);
    }

    #[test]
    fn digits() {
        assert_eq!([989.4, 4800.0, 6.123, 0.012_66].map(short), ["989", "4800", "6.12", "0.0127"]);
    }

    #[test]
    fn every_drawing() {
        let svg = draw(&[ops(), e2e(), json!({"benchmark": "cold"})]).unwrap();
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        assert_eq!(svg.matches("<circle").count(), 1);
        assert!(svg.contains("m &lt;x&gt;, cpu, 64x64, 2 steps"), "{svg}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        assert!(draw(&[json!({"benchmark": "cold"})]).is_none());
        assert!(draw(&[json!({"benchmark": "ops"}), json!({"benchmark": "e2e"})]).is_none());
    }
}
