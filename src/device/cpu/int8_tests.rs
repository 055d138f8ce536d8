//! Layers in int8: against the same layers in f32 on operands that are rounded as they should be.

use super::fp_math::Operands;
use super::int8_panels::Int8Weights;
use super::*;
use crate::graph::{Activation, Builder, Conv2dParams, LinearWeights, NodeId};
use crate::weights::lora::LowRank;
use crate::weights::{Scope, Weight, Weights};
use std::fs;
use std::path::Path;

type Build<'a> = &'a dyn Fn(&mut Builder, NodeId, &Scope) -> NodeId;

/// Values of about 1 with now and then a large one.
fn values(len: usize, seed: u32) -> Vec<f32> {
    let mut x = seed.wrapping_mul(2_654_435_761);
    let mut next = || {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (x >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|i| next() * if i % 97 == 5 { 4.0 } else { 1.0 }).collect()
}

/// Each run of `len` values rounded to multiples of a 127th of its greatest magnitude.
fn rounded(values: &[f32], len: usize) -> Vec<f32> {
    let round = |run: &[f32]| {
        let scale = run.iter().fold(0f32, |most, v| most.max(v.abs())) / 127.0;
        run.iter().map(|v| (v * (1.0 / scale)).round_ties_even() * scale).collect::<Vec<_>>()
    };
    values.chunks(len).flat_map(round).collect()
}

/// A layer's weights, the shape of its input and its input.
struct Layer<'a> {
    weight: (&'a [usize], Vec<f32>),
    x: (&'a [usize], Vec<f32>),
    build: Build<'a>,
}

impl<'a> Layer<'a> {
    fn new(weight: &'a [usize], x: &'a [usize], build: Build<'a>) -> Self {
        let made = |shape: &[usize], seed| values(shape.iter().product(), seed);
        Self { weight: (weight, made(weight, 1)), x: (x, made(x, 3)), build }
    }

    /// The same with its operands rounded as int8 rounds them.
    fn rounded(&self) -> Self {
        let row = self.weight.0[1..].iter().product();
        let weight = (self.weight.0, rounded(&self.weight.1, row));
        Self { weight, x: (self.x.0, rounded(&self.x.1, self.x.0[self.x.0.len() - 1])), build: self.build }
    }

    /// Its result on so many threads, in int8 with these weights or in f32.
    fn run(&self, threads: usize, int8: Option<&Int8Weights>) -> Vec<f32> {
        let bias = values(self.weight.0[0], 2);
        let mut all = Weights::new("w");
        for (name, shape, values) in [("weight", self.weight.0, &self.weight.1), ("bias", &self.weight.0[..1], &bias)] {
            all.insert(name, Weight::from_f32(values, shape, name).unwrap()).unwrap();
        }
        let mut b = Builder::new();
        let x = b.input("x", self.x.0);
        let y = (self.build)(&mut b, x, &Scope::new(all).with_quantizable(|_| true));
        b.output("y", y);
        let arithmetic = Arithmetic { operands: Operands::F32, int8 };
        let pool = Arc::new(Pool::new(threads));
        let mut executable = CpuExecutable::new(pool, fuse(b.finish().unwrap()), arithmetic).unwrap();
        let mut out = vec![f32::NAN; executable.graph.node(executable.graph.outputs[0].1).len()];
        let lora_scales = [0.5; 12];
        let inputs = [(&self.x.1).into(), (&lora_scales[..]).into()];
        executable.run(&inputs[..executable.graph.inputs.len()], &mut [&mut out]).unwrap();
        out
    }
}

fn relative(got: &[f32], want: &[f32]) -> f64 {
    let sum = |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v) * f64::from(v)).sum::<f64>();
    (sum(&mut got.iter().zip(want).map(|(g, w)| g - w)) / sum(&mut want.iter().copied())).sqrt()
}

/// A layer gives what f32 gives on rounded operands, from a file of the cache and without one, on one thread and on three.
fn rounds_operands(name: &str, layer: &Layer<'_>) {
    let want = layer.rounded().run(1, None);
    let folder = tempfile::tempdir().unwrap();
    let written = layer.run(1, Some(&Int8Weights::at(None)));
    let error = relative(&written, &want);
    assert!(error < 3e-6, "{name}: {error:e}");
    // Rounded at all: f32 is nearer to itself.
    assert!(relative(&written, &layer.run(1, None)) > 1e-4, "{name}");
    for threads in [1, 3] {
        // The first of these makes the file, the second reads it.
        let mapped = layer.run(threads, Some(&Int8Weights::at(Some(folder.path().join("deep")))));
        assert_eq!(mapped, written, "{name} on {threads} threads");
    }
    assert_eq!(fs::read_dir(folder.path().join("deep")).unwrap().count(), 1, "{name}");
}

#[test]
fn linear() {
    for (m, k, n) in [(5, 16, 33), (1, 17, 1), (13, 31, 31), (25, 1153, 70), (37, 2311, 300), (3, 5120, 34)] {
        let build = move |b: &mut Builder, x, s: &Scope| b.linear(x, s, n);
        rounds_operands(&format!("linear {m} {k} {n}"), &Layer::new(&[n, k], &[1, m, k], &build));
    }
}

#[test]
fn convolutions() {
    for (h, w, c, o, kernel, stride) in
        [(5, 7, 16, 33, 3, 1), (6, 5, 129, 34, 3, 2), (9, 4, 260, 20, 3, 1), (4, 3, 37, 40, 1, 1), (1, 1, 64, 32, 3, 1)]
    {
        let build = move |b: &mut Builder, x, s: &Scope| b.conv2d(x, s, o, kernel, stride);
        let shapes = ([o, c, kernel, kernel], [2, h, w, c]);
        rounds_operands(&format!("conv {h} {w} {c} {o} {kernel}"), &Layer::new(&shapes.0, &shapes.1, &build));
    }
}

/// GEGLU, an activation and a residual after the sums, an upsample before them.
#[test]
fn epilogues() {
    let geglu = |b: &mut Builder, x, s: &Scope| {
        let y = b.linear(x, s, 2 * 40);
        b.geglu(y)
    };
    rounds_operands("geglu", &Layer::new(&[80, 50], &[1, 30, 50], &geglu));
    let silu = |b: &mut Builder, x, s: &Scope| {
        let (y, z) = (b.linear(x, s, 50), b.linear(x, s, 50));
        let z = b.activation(z, Activation::Silu);
        b.add(y, z)
    };
    rounds_operands("silu and residual", &Layer::new(&[50, 50], &[1, 30, 50], &silu));
    let upsampled = |b: &mut Builder, x, s: &Scope| {
        let y = b.upsample(x, 9, 10);
        b.conv2d(y, s, 24, 3, 1)
    };
    rounds_operands("upsample", &Layer::new(&[24, 20, 3, 3], &[2, 5, 5, 20], &upsampled));
}

/// Low-rank updates see the operands as they are. The input is of whole numbers up to 127, which rounding leaves as they are.
#[test]
fn low_rank_updates() {
    let factor = |shape: &[usize], seed| Weight::from_f32(&values(shape.iter().product(), seed), shape, "l").unwrap();
    let with = |scope: &Scope, shape: &[usize], ranks: [usize; 2], o: usize| {
        let down = ranks.map(|rank| factor(&[&[rank], &shape[1..]].concat(), 7)).to_vec();
        let up = ranks.map(|rank| factor(&[o, rank], 8)).to_vec();
        let low_rank = Some(LowRank { down, up, start: 0, of: 12 });
        LinearWeights { low_rank, ..LinearWeights::with_bias(scope, shape) }
    };
    let whole = |layer: &mut Layer<'_>| {
        let row = layer.x.0[layer.x.0.len() - 1];
        layer.x.1.iter_mut().enumerate().for_each(|(i, v)| *v = if i % row == 0 { 127.0 } else { (*v * 25.0).round() });
    };
    let linear = |b: &mut Builder, x, s: &Scope| b.linear_parts(x, vec![with(s, &[70, 50], [5, 7], 70)]);
    let mut layer = Layer::new(&[70, 50], &[1, 41, 50], &linear);
    whole(&mut layer);
    rounds_operands("linear with updates", &layer);
    let params = Conv2dParams { kernel: 3, stride: 1, padding: [1; 2], resize: None };
    let conv = |b: &mut Builder, x, s: &Scope| b.conv2d_with(x, with(s, &[70, 20, 3, 3], [5, 7], 70), params);
    let mut layer = Layer::new(&[70, 20, 3, 3], &[2, 5, 7, 20], &conv);
    whole(&mut layer);
    rounds_operands("convolution with updates", &layer);
}

/// Two sources have one scale a pixel.
#[test]
fn joined_sources() {
    let build = |b: &mut Builder, x, s: &Scope| {
        let y = b.scale_shift(x, 1.0, 0.0);
        let joined = b.concat(x, y);
        b.conv2d(joined, s, 24, 3, 1)
    };
    let layer = Layer::new(&[24, 2 * 21, 3, 3], &[1, 5, 6, 21], &build);
    rounds_operands("joined sources", &layer);
}

/// A row has the bits that it has among others.
#[test]
fn rows_alone() {
    let build = |b: &mut Builder, x, s: &Scope| b.linear(x, s, 290);
    let weights = Int8Weights::at(None);
    let all = Layer::new(&[290, 700], &[1, 40, 700], &build);
    let results = all.run(2, Some(&weights));
    for rows in [0..1, 7..20, 33..40] {
        let shape = [1, rows.len(), 700];
        let x = all.x.1[rows.start * 700..rows.end * 700].to_vec();
        let some = Layer { x: (&shape, x), weight: (all.weight.0, all.weight.1.clone()), build: &build };
        assert_eq!(some.run(2, Some(&weights)), results[rows.start * 290..rows.end * 290], "{rows:?}");
    }
}

/// Values that are not finite reach every result that they take part in, so that they are noticed.
#[test]
fn not_finite() {
    let build = |b: &mut Builder, x, s: &Scope| b.linear(x, s, 40);
    for bad in [f32::NAN, f32::INFINITY] {
        let mut layer = Layer::new(&[40, 20], &[1, 30, 20], &build);
        layer.x.1[7 * 20 + 3] = bad;
        let out = layer.run(1, Some(&Int8Weights::at(None)));
        assert!(out.chunks(40).enumerate().all(|(m, row)| row.iter().all(|v| v.is_nan() == (m == 7))));
        let mut layer = Layer::new(&[40, 20], &[1, 30, 20], &build);
        layer.weight.1[33 * 20 + 3] = bad;
        let out = layer.run(1, Some(&Int8Weights::at(None)));
        assert!(out.chunks(40).all(|row| row.iter().enumerate().all(|(n, v)| v.is_nan() == (n == 33))));
    }
}

/// Weights of zeros and an input of zeros give the bias.
#[test]
fn zeros() {
    let build = |b: &mut Builder, x, s: &Scope| b.conv2d(x, s, 40, 3, 1);
    let mut layer = Layer::new(&[40, 20, 3, 3], &[1, 4, 4, 20], &build);
    layer.weight.1[..180].fill(0.0);
    let (weights, bias) = (Int8Weights::at(None), values(40, 2));
    assert!(layer.run(1, Some(&weights)).chunks(40).all(|pixel| pixel[0] == bias[0] && pixel[1] != bias[1]));
    layer.x.1.fill(0.0);
    assert!(layer.run(1, Some(&weights)).chunks(40).all(|pixel| pixel == bias));
}

/// The files of a folder, sorted.
fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// Damaged files are made again, other weights get another file, and a folder that cannot be written changes no result.
#[test]
fn cache_files() {
    let build = |b: &mut Builder, x, s: &Scope| b.linear(x, s, 40);
    let folder = tempfile::tempdir().unwrap();
    let at = |folder: &Path| Int8Weights::at(Some(folder.to_path_buf()));
    let mut layer = Layer::new(&[40, 20], &[1, 3, 20], &build);
    let want = layer.run(1, Some(&at(folder.path())));
    let file = files(folder.path()).pop().unwrap();
    let whole = fs::read(&file).unwrap();
    for damage in 0..6 {
        let mut bad = whole.clone();
        match damage {
            0 => bad.truncate(whole.len() - 4),
            1 => bad.truncate(3),
            2 => bad.extend([0; 4]),
            3 => bad[2] ^= 1,
            4 => bad[whole.len() / 2] ^= 1,
            _ => bad[25] ^= 1,
        }
        fs::write(&file, bad).unwrap();
        assert_eq!(layer.run(1, Some(&at(folder.path()))), want, "damage {damage}");
        assert_eq!(fs::read(&file).unwrap(), whole, "damage {damage}");
    }
    // The smallest change of one weight.
    layer.weight.1[0] = f32::from_bits(layer.weight.1[0].to_bits() ^ 1);
    layer.run(1, Some(&at(folder.path())));
    assert_eq!(files(folder.path()).len(), 2);
    // A file in the folder's place.
    assert_eq!(Layer::new(&[40, 20], &[1, 3, 20], &build).run(1, Some(&at(&file))), want);
    assert_eq!(files(folder.path()).len(), 2);
}

/// One layer's panels are made once for all executables of a device.
#[test]
fn shared_panels() {
    let weight = Weight::from_f32(&values(40 * 20, 1), &[40, 20], "weight").unwrap();
    let mut all = Weights::new("w");
    all.insert("weight", weight).unwrap();
    let scope = Scope::new(all).with_quantizable(|_| true);
    let int8 = Int8Weights::at(None);
    for rows in [3, 5] {
        let mut b = Builder::new();
        let x = b.input("x", &[1, rows, 20]);
        let y = b.linear_no_bias(x, &scope, 40);
        b.output("y", y);
        let arithmetic = Arithmetic { operands: Operands::F32, int8: Some(&int8) };
        CpuExecutable::new(Arc::new(Pool::new(1)), b.finish().unwrap(), arithmetic).unwrap();
        assert_eq!(int8.len(), 1);
    }
}
