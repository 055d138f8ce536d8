//! `bench plot`: results as drawings.

use crate::arguments;
use crate::results::results;
use braid::Error;
use braid::atomic_file::write_atomic;
use braid::cli::failure::Failure;
use braid::cli::flag::{Argument, Flag};
use braid::cli::terminal;
use plotters::chart::ChartContext;
use plotters::coord::{CoordTranslate, Shift};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::ops::Range;
use std::path::PathBuf;

/// Width of a drawing, and heights of its parts, in pixels.
const WIDTH: u32 = 1200;
const BAR: u32 = 54;
const ROOF: u32 = 560;
const FONT: (&str, u32) = ("sans-serif", 18);
const TITLE: (&str, u32) = ("sans-serif", 24);
const STAGES: [&str; 6] = ["text", "image", "condition", "denoise", "decode", "rest"];

/// Colours that those who do not see all of them can tell apart (Okabe and Ito), as 0xrrggbb.
const COLOURS: [u32; 8] = [0x0072b2, 0xe69f00, 0x009e73, 0xd55e00, 0x56b4e9, 0xcc79a7, 0x8c6d31, 0x555555];

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn<T = ()> = Result<T, DrawingAreaErrorKind<io::Error>>;

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
    let drawing = draw(&all).map_err(|e| Error::io("draw", &files[0])(io::Error::other(e)))?.ok_or_else(|| {
        let names = files.iter().map(|f| f.display().to_string()).collect::<Vec<_>>().join(", ");
        Failure::usage(format!("plot: nothing in {names} can be drawn; results of e2e, ops and roofline can"))
    })?;
    match output {
        Some(path) => write_atomic(&path, |file| file.write_all(drawing.as_bytes()))?,
        None => terminal::print(&drawing)?,
    }
    Ok(true)
}

/// One plot of all e2e results, then one for each of ops and roofline; `None` where there is none of them.
fn draw(results: &[Value]) -> Drawn<Option<String>> {
    let named = |name: &'static str| results.iter().filter(move |r| r["benchmark"] == name);
    let bars: Vec<_> = named("e2e").filter_map(Bar::of).collect();
    let roofs: Vec<_> = named("ops").chain(named("roofline")).filter_map(Roof::of).collect();
    if bars.is_empty() && roofs.is_empty() {
        return Ok(None);
    }
    // Room for the legend beside few bars.
    let above = if bars.is_empty() { 0 } else { 110 + BAR * bars.len().max(3) as u32 };
    let mut text = String::new();
    {
        let all = SVGBackend::with_string(&mut text, (WIDTH, above + ROOF * roofs.len() as u32)).into_drawing_area();
        all.fill(&WHITE)?;
        let (top, rest) = all.split_vertically(above);
        if !bars.is_empty() {
            stages(&top, &bars)?;
        }
        for (area, roof) in rest.split_evenly((roofs.len().max(1), 1)).iter().zip(&roofs) {
            roof.draw(area)?;
        }
        all.present()?;
    }
    // Control characters have no place in XML.
    Ok(Some(text.replace(|c: char| c.is_control() && c != '\n', "\u{fffd}")))
}

fn colour(k: usize) -> RGBColor {
    let [_, r, g, b] = COLOURS[k % COLOURS.len()].to_be_bytes();
    RGBColor(r, g, b)
}

fn swatch(style: ShapeStyle) -> impl Fn((i32, i32)) -> Rectangle<(i32, i32)> {
    move |(x, y)| Rectangle::new([(x, y - 6), (x + 16, y + 6)], style)
}

fn legend<'a, C: CoordTranslate>(chart: &mut ChartContext<'a, SVGBackend<'a>, C>) -> Drawn {
    let mut labels = chart.configure_series_labels();
    labels.position(SeriesLabelPosition::LowerRight).background_style(WHITE.mix(0.8)).label_font(FONT).draw()
}

/// A request: what it was, and from when to when its stages take, by their means, in seconds.
struct Bar {
    label: String,
    stages: [Range<f64>; STAGES.len()],
}

impl Bar {
    fn of(result: &Value) -> Option<Self> {
        let mean = result["mean_seconds"].as_f64()?;
        let stages = result["stages"].as_object()?;
        let mut end = 0.0;
        let stages = STAGES.map(|name| {
            let samples: Vec<f64> =
                stages.get(name).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_f64).collect();
            let average = samples.iter().sum::<f64>() / samples.len().max(1) as f64;
            let start = end;
            end += if name == "rest" { mean - start } else { average }.clamp(0.0, 1e9);
            start..end
        });
        let [model, device] = ["model", "device"].map(|name| result[name].as_str().unwrap_or("?"));
        let [width, height, steps, images, adapters] =
            ["width", "height", "steps", "pictures", "adapters"].map(|name| result[name].as_u64().unwrap_or(0));
        let guidance = result["cfg_scale"].as_f64().unwrap_or(0.0);
        let label = format!(
            "{model}, {device}, {width}x{height}, {steps} steps, {images} image(s), {adapters} adapter(s), \
             guidance {guidance}: {mean:.3} s"
        );
        Some(Self { label, stages })
    }
}

fn stages(area: &Area<'_>, bars: &[Bar]) -> Drawn {
    let most = bars.iter().map(|b| b.stages[STAGES.len() - 1].end).fold(1e-9, f64::max);
    let area = area.titled("Seconds of a request, by stage", TITLE)?;
    let mut chart = ChartBuilder::on(&area)
        .margin(20)
        .x_label_area_size(50)
        .build_cartesian_2d(0.0..1.2 * most, bars.len().max(3) as f64..0.0)?;
    let mut mesh = chart.configure_mesh();
    mesh.disable_y_mesh().disable_y_axis().label_style(FONT).x_desc("seconds, mean of the samples").draw()?;
    for (k, name) in STAGES.into_iter().enumerate() {
        let style = colour(k).filled();
        let stage = |(y, bar): (usize, &Bar)| {
            let Range { start, end } = bar.stages[k];
            Rectangle::new([(start, y as f64 + 0.5), (end, y as f64 + 0.95)], style)
        };
        chart.draw_series(bars.iter().enumerate().map(stage))?.label(name).legend(swatch(style));
    }
    let style = TextStyle::from(FONT.into_font()).pos(Pos::new(HPos::Left, VPos::Bottom));
    let label = |(y, bar): (usize, &Bar)| Text::new(bar.label.clone(), (0.0, y as f64 + 0.5), style.clone());
    chart.draw_series(bars.iter().enumerate().map(label))?;
    legend(&mut chart)
}

/// An operation in a roofline: FLOPs to a byte and a second, and its share of all operations' time.
#[derive(Debug, PartialEq)]
struct Dot {
    at: (f64, f64),
    share: f64,
}

struct Roof {
    title: String,
    /// FLOP/s and bytes/s; a roofline's kernels have fewer FLOPs than the operations where an upsample is folded in.
    peak: f64,
    bandwidth: f64,
    kinds: BTreeMap<String, Vec<Dot>>,
    /// Operations without products, and their share of the time.
    left_out: (usize, f64),
}

/// The decades that hold all of those values, and a little more, so that the lines at their ends are drawn.
fn decades(values: impl Iterator<Item = f64>) -> Range<f64> {
    let (low, high) = values.fold((f64::MAX, f64::MIN_POSITIVE), |(low, high), v| (low.min(v), high.max(v)));
    let from = low.log10().floor();
    0.999 * 10f64.powf(from)..1.001 * 10f64.powf(high.log10().ceil().max(from + 1.0))
}

impl Roof {
    fn of(result: &Value) -> Option<Self> {
        let (device, [peak, bandwidth], time, how) = if result["benchmark"] == "ops" {
            let ceilings = ["flops_per_second", "bytes_per_second"].map(|name| &result["ceilings"][name]);
            (&result["device"], ceilings, "median_seconds", "measured, with measured ceilings")
        } else {
            let [device, peak, bandwidth] = ["name", "peak", "bandwidth"].map(|name| &result["gpu"][name]);
            (device, [peak, bandwidth], "predicted_seconds", "predicted, with the data sheet's ceilings")
        };
        // What a logarithm takes.
        let positive = |value: f64| value.clamp(1e-15, 1e30);
        let (device, peak, bandwidth) = (device.as_str()?, positive(peak.as_f64()?), positive(bandwidth.as_f64()?));
        let model = result["model"].as_str().unwrap_or("sdxl");
        let [width, height, rows] = ["width", "height", "batch"].map(|name| result[name].as_u64().unwrap_or(0));
        let title = format!("{model} on {device}, {width}x{height}, {rows} row(s): {how}");
        let ops = result["ops"].as_array()?;
        let share = |op: &Value| Some(op["count"].as_f64()? * op[time].as_f64()?);
        let all = ops.iter().filter_map(share).sum::<f64>().max(1e-12);
        let mut roof = Self { title, peak, bandwidth, kinds: BTreeMap::new(), left_out: (0, 0.0) };
        for op in ops {
            let share = share(op)? / all;
            let flops = op["kernel_flops"].as_f64().or_else(|| op["flops"].as_f64())?;
            if flops <= 0.0 {
                roof.left_out = (roof.left_out.0 + 1, roof.left_out.1 + share);
                continue;
            }
            let [bytes, seconds] = [op["bytes"].as_f64()?.max(1.0), op[time].as_f64()?.max(1e-9)];
            let dot = Dot { at: (positive(flops / bytes), positive(flops / seconds)), share };
            roof.kinds.entry(op["kind"].as_str().unwrap_or_default().to_owned()).or_default().push(dot);
        }
        Some(roof)
    }

    /// The ceilings within the axes: up the memory's slope, then level.
    fn ceiling(&self, x: &Range<f64>, y: &Range<f64>) -> [(f64, f64); 3] {
        let points = [x.start.max(y.start / self.bandwidth), self.peak / self.bandwidth, x.end];
        points.map(|at| (at, (at * self.bandwidth).min(self.peak)))
    }

    fn draw(&self, area: &Area<'_>) -> Drawn {
        let dots = || self.kinds.values().flatten().map(|dot| dot.at);
        let x = decades(dots().map(|(x, _)| x).chain([self.peak / self.bandwidth]));
        let y = decades(dots().map(|(_, y)| y).chain([self.peak]));
        let (unit, name) = if self.peak < 1e12 { (1e9, "GFLOP/s") } else { (1e12, "TFLOP/s") };
        let (count, share) = (self.left_out.0, self.left_out.1 * 100.0);
        let below = "FLOP to a byte; areas are shares of the time. Not drawn:";
        let area = area.titled(&self.title, TITLE)?;
        let mut chart = ChartBuilder::on(&area)
            .margin(20)
            .x_label_area_size(50)
            .y_label_area_size(80)
            .build_cartesian_2d(x.clone().log_scale(), y.clone().log_scale())?;
        let power = |value: f64| 10f64.powi(value.log10().round() as i32);
        chart
            .configure_mesh()
            .max_light_lines(0)
            .label_style(FONT)
            .x_desc(format!("{below} {count} operations without products, {share:.1} % of the time."))
            .y_desc(name)
            .x_label_formatter(&|at| power(*at).to_string())
            .y_label_formatter(&|at| (power(*at) / unit).to_string())
            .draw()?;
        let ceilings = format!("{:.1} GB/s, {:.1} {name}", self.bandwidth / 1e9, self.peak / unit);
        let line = [PathElement::new(self.ceiling(&x, &y), BLACK.stroke_width(2))];
        let legend_line = |(x, y)| PathElement::new([(x, y), (x + 16, y)], BLACK.stroke_width(2));
        chart.draw_series(line)?.label(ceilings).legend(legend_line);
        for (k, (kind, dots)) in self.kinds.iter().enumerate() {
            let style = colour(k).mix(0.75).filled();
            let radius = |share: f64| (60.0 * share.sqrt()).round().clamp(2.0, 60.0) as u32;
            let circles = dots.iter().map(|dot| Circle::new(dot.at, radius(dot.share), style));
            chart.draw_series(circles)?.label(kind).legend(swatch(style));
        }
        legend(&mut chart)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn e2e() -> Value {
        json!({"benchmark": "e2e", "model": "m <x>\u{1b}", "device": "cpu", "width": 64, "height": 64, "steps": 2,
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
        let stages = Bar::of(&e2e()).unwrap().stages;
        assert_eq!(stages, [0.0..0.5, 0.5..0.5, 0.5..0.5, 0.5..2.5, 2.5..3.5, 3.5..4.0]);
    }

    #[test]
    fn roofline_ridge() {
        let roof = Roof::of(&ops()).unwrap();
        // 10 GB/s meets 1 TFLOP/s at 100 FLOP to a byte.
        let ends = |from: f64| [(from, from * 1e10), (100.0, 1e12), (1e3, 1e12)];
        assert_eq!(roof.ceiling(&(1.0..1e3), &(1e9..1e12)), ends(1.0));
        assert_eq!(roof.ceiling(&(1.0..1e3), &(2e10..1e12)), ends(2.0));
        let (at, share) = ((100.0, 5e11), 0.75);
        assert_eq!(roof.kinds, [("linear".to_owned(), vec![Dot { at, share }])].into());
        assert_eq!(roof.left_out, (1, 0.25));
    }

    #[test]
    fn every_drawing() {
        let svg = draw(&[ops(), e2e(), json!({"benchmark": "cold"})]).unwrap().unwrap();
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        assert_eq!(svg.matches("<circle").count(), 1);
        assert!(svg.contains("m &lt;x&gt;\u{fffd}, cpu, 64x64, 2 steps"), "{svg}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        assert!(draw(&[json!({"benchmark": "cold"})]).unwrap().is_none());
        assert!(draw(&[json!({"benchmark": "ops"}), json!({"benchmark": "e2e"})]).unwrap().is_none());
    }
}
