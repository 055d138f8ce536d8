use crate::common::*;
use braid::device::cuda::ops::kernel::{Pointer, blocks};
use braid::device::cuda::ops::step::{
    AdvanceParams, FiniteParams, ImageState, ModelInputParams, Rgb8Params, StepInputsParams, StepParams, VaryingInput,
};
use braid::tensor::DType;
use braid_ptx::Schedule;

/// A row of the table, in the order of its columns; masks as the bits of a float.
type Row = [f32; 36];

/// The row of weights, where `history` has those of each tensor's next value; a tensor without any is not written.
fn row(weights: [f32; 9], x_from_history: [f32; 3], history: [[f32; 7]; 3]) -> Row {
    let mut row = [0.0; 36];
    row[..9].copy_from_slice(&weights);
    row[9..12].copy_from_slice(&x_from_history);
    row[12..33].copy_from_slice(history.as_flattened());
    let reads = |k: usize| x_from_history[k] != 0.0 || history.iter().any(|to| to[4 + k] != 0.0);
    let mask = |bit: &dyn Fn(usize) -> bool| f32::from_bits((0..3).map(|k| u32::from(bit(k)) << k).sum());
    row[33] = mask(&reads);
    row[34] = mask(&|k| history[k] != [0.0; 7]);
    row
}

fn guide(negative: &[f64], positive: &[f64], scale: f64, rescale: f64) -> Vec<f64> {
    let out: Vec<f64> = negative.iter().zip(positive).map(|(n, p)| n + scale * (p - n)).collect();
    let deviation = |x: &[f64]| {
        let mean = x.iter().sum::<f64>() / x.len() as f64;
        x.iter().map(|v| (v - mean).powi(2)).sum::<f64>().sqrt()
    };
    let (wanted, found) = (deviation(positive), deviation(&out));
    if rescale > 0.0 && found > 0.0 {
        return out.iter().map(|o| rescale * o * wanted / found + (1.0 - rescale) * o).collect();
    }
    out
}

fn advance(row: &Row, x: &mut [f64], output: &[f64], history: &mut [Vec<f64>; 3], noise: &[f64]) {
    let r = row.map(f64::from);
    for i in 0..x.len() {
        let x0 = (r[2] * x[i] + r[3] * output[i]).clamp(-r[4], r[4]);
        let before: [f64; 3] = std::array::from_fn(|k| history[k][i]);
        let sum = |w: [f64; 4], from: &[f64]| {
            let own = w[0] * x[i] + w[1] * output[i] + w[2] * x0 + w[3] * noise[i];
            own + from.iter().zip(before).map(|(w, h)| w * h).sum::<f64>()
        };
        let next = sum([r[5], r[6], r[7], r[8]], &r[9..12]);
        for (k, to) in r[12..33].chunks(7).enumerate().filter(|(_, to)| to.iter().any(|w| *w != 0.0)) {
            history[k][i] = sum([to[0], to[1], to[2], to[3]], &to[4..]);
        }
        x[i] = next;
    }
}

/// Three steps of two images: the counter, the table, history, noise in two slots, guidance with rescale for one of them.
#[test]
fn step_table() {
    if !compiled() {
        return;
    }
    let inf = f32::INFINITY;
    let none = [0.0; 7];
    let table: [Row; 3] = [
        row(
            [981.0, 0.5, 1.1, -0.4, inf, 0.9, 0.3, 0.0, 0.2],
            [0.0; 3],
            [[1.1, -0.4, 0.0, 0.0, 0.0, 0.0, 0.0], none, [0.5, 0.0, 0.0, 0.3, 0.0, 0.0, 0.0]],
        ),
        // Every weight that there is, each tensor read before it is written.
        row(
            [500.0, 0.6, 1.2, -0.5, 0.4, 0.8, 0.2, 0.3, 0.1],
            [-0.25, 0.0, 0.15],
            [
                [0.3, 0.1, 1.0, 0.2, -0.6, 0.0, 0.7],
                [0.0, 0.0, 0.0, 0.0, 0.9, 0.0, 0.1],
                [0.0, 0.0, 1.0, 0.0, 0.2, 0.0, 0.3],
            ],
        ),
        // The first tensor stays as it is.
        row(
            [1.0, 0.7, 1.0, -0.6, inf, 0.7, 0.1, 0.0, 0.0],
            [0.5, -0.3, 0.2],
            [none, [0.0, 0.0, 0.0, 0.4, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0]],
        ),
    ];
    // The first image's row of the table is always the second one's next, which is at its last step and stays there.
    for (n, rows) in [(5000usize, [2, 2]), (12, [2, 2]), (2100, [1, 1]), (2100, [1, 2])] {
        let gpu = Gpu::new();
        let guidance = [[5.0, 0.0], [7.5, 0.7]];
        let chunks = n.div_ceil(2048);
        let begin = [0, 1];
        let mut images: [Image; 2] =
            std::array::from_fn(|i| Image::new(&gpu, &table, begin[i], guidance[i], (n, i as u32)));
        // A place without an image lies between them, and what lies beyond the rows stays.
        let first = [0, rows[0] + 1];
        let all = first[1] + rows[1];
        let states = [images[0].state(first[0], rows[0]), ImageState::default(), images[1].state(first[1], rows[1])];
        let at = gpu.table(&states);
        for s in 0..table.len() {
            for dtype in HALVES {
                let sample = gpu.filled(all * n * 2, 0);
                let input = ModelInputParams { images: at, out: sample, n: n as i32, ..Default::default() };
                gpu.launch("model_input", dtype, [blocks(n, 1024), 3, 1], &input);
                let mut exact = vec![0.0; all * n];
                for (i, image) in images.iter().enumerate() {
                    let scaled: Vec<f64> =
                        image.want.iter().map(|x| x * f64::from(table[image.number(s)][1])).collect();
                    exact[first[i] * n..][..rows[i] * n].copy_from_slice(&scaled.repeat(rows[i]));
                }
                close(&format!("input of step {s}"), dtype, &gpu.download(dtype, sample, all * n), &exact);
            }
            // Chunks of different means, and an image whose guided output is constant: no deviation to rescale by.
            let mut output = values(all * n, 10 + s as u32);
            output.iter_mut().enumerate().for_each(|(i, x)| *x += (i % n / 2048) as f32);
            if n == 12 {
                output[first[1] * n..].fill(0.75);
            }
            let moments = gpu.room(3 * chunks * 16);
            let params =
                StepParams { images: at, output: gpu.f32(&output), moments, n: n as i32, ..StepParams::default() };
            gpu.launch("guidance_moments", DType::F32, [chunks as u32, 3, 1], &params);
            if rows[1] == 2 {
                // The second image's alone, which rescales: so that two devices are compared in them, too.
                gpu.download(DType::F32, Pointer(moments.0 + 2 * chunks as u64 * 16), chunks * 4);
            }
            gpu.once("step", DType::F32, [blocks(n, 1024), 3, 1], &params, Schedule::Random(3));
            let output = wide(&output);
            for (i, image) in images.iter_mut().enumerate() {
                let own = &output[first[i] * n..][..rows[i] * n];
                let out = match rows[i] {
                    2 => guide(&own[n..], &own[..n], f64::from(guidance[i][0]), f64::from(guidance[i][1])),
                    _ => own.to_vec(),
                };
                image.advance(&table, s, &out);
                image.check(&gpu, s);
            }
            gpu.once("step_advance", DType::F32, [3, 1, 1], &AdvanceParams { images: at }, Schedule::InOrder);
            for (image, begin) in images.iter().zip(begin) {
                let counters = [begin + s as i32 + 1, i32::MAX];
                assert_eq!(gpu.read(image.step, 8), counters.map(i32::to_le_bytes).concat());
            }
        }
    }
}

/// An image of those above: what it has on the device, and what should be there.
struct Image {
    n: usize,
    begin: i32,
    steps: usize,
    x: Pointer,
    history: Pointer,
    noise: Pointer,
    table: Pointer,
    guidance: Pointer,
    step: Pointer,
    want: Vec<f64>,
    want_history: [Vec<f64>; 3],
    fresh: Vec<f32>,
}

impl Image {
    fn new(gpu: &Gpu, table: &[Row], begin: i32, guidance: [f32; 2], (n, seed): (usize, u32)) -> Self {
        let (x, fresh) = (values(n, 1 + 7 * seed), values(table.len() * n, 2 + 7 * seed));
        Self {
            n,
            begin,
            steps: table.len(),
            x: gpu.f32(&x),
            // Where it is unwritten, the weights for it are zero.
            history: if begin == 0 { gpu.room(3 * n * 4) } else { gpu.f32(&vec![0.0; 3 * n]) },
            noise: gpu.f32(&fresh),
            table: gpu.f32(table.as_flattened()),
            guidance: gpu.f32(&guidance),
            step: gpu.i32(&[begin, i32::MAX]),
            want: wide(&x),
            want_history: std::array::from_fn(|_| vec![0.0; n]),
            fresh,
        }
    }

    fn state(&self, first: usize, rows: usize) -> ImageState {
        ImageState {
            x: self.x,
            history: self.history,
            noise: self.noise,
            table: self.table,
            guidance: self.guidance,
            step: self.step,
            first: first as i32,
            rows: rows as i32,
            steps: self.steps as i32,
            ..ImageState::default()
        }
    }

    /// The row of its table in that step of the test.
    fn number(&self, s: usize) -> usize {
        (self.begin as usize + s).min(self.steps - 1)
    }

    fn advance(&mut self, table: &[Row], s: usize, output: &[f64]) {
        let number = self.number(s);
        let fresh = wide(&self.fresh[number * self.n..][..self.n]);
        advance(&table[number], &mut self.want, output, &mut self.want_history, &fresh);
    }

    fn check(&self, gpu: &Gpu, s: usize) {
        let n = self.n;
        within(&format!("step {s} of {n}"), 2e-6, &gpu.download(DType::F32, self.x, n), &self.want);
        for k in [0, 1, 2].into_iter().filter(|k| s > 0 || *k != 1) {
            let at = Pointer(self.history.0 + (k * n * 4) as u64);
            within(&format!("history {k} of {s}"), 2e-6, &gpu.download(DType::F32, at, n), &self.want_history[k]);
        }
    }
}

/// Each row gets its image's values of the image's step: in f32, and in the type as far as they are read so. Rows come first or last; an
/// image of two rows may take part with its first alone.
#[test]
fn varying_inputs() {
    if !compiled() {
        return;
    }
    // Widths on both sides of a block; the last input is read as f32 alone.
    let (widths, lasts, rows) = ([300, 40, 70], [0, 1, 1], 4);
    let total: usize = widths.iter().sum();
    // Their rows, those that take part, the first of these, steps and the step.
    let images = [(2, 2, 2, 5, 3), (2, 1, 1, 4, 0), (1, 1, 0, 3, 9)];
    for dtype in HALVES {
        let gpu = Gpu::new();
        let varying: Vec<Vec<f32>> =
            images.iter().enumerate().map(|(i, (held, .., steps, _))| values(steps * held * total, i as u32)).collect();
        let states = images.iter().zip(&varying).map(|((held, taken, first, steps, step), varying)| ImageState {
            x: gpu.f32(&[0.0]),
            varying: gpu.f32(varying),
            step: gpu.i32(&[*step]),
            first: *first,
            rows: *taken,
            held: *held as i32,
            steps: *steps as i32,
            ..ImageState::default()
        });
        let states: Vec<ImageState> = [ImageState::default()].into_iter().chain(states).collect();
        let start = |k: usize| widths[..k].iter().sum::<usize>();
        let at = |k: usize| 16 + rows * start(k) + 5 * k;
        let inputs: Vec<VaryingInput> = (0..3)
            .map(|k| VaryingInput {
                at: at(k) as i64,
                start: start(k) as i32,
                width: widths[k] as i32,
                last: lasts[k],
                reserved: 0,
            })
            .collect();
        let (all, converted_count) = (at(2) + rows * widths[2], at(2));
        let (floats, converted) = (gpu.f32(&vec![7.0; all]), gpu.upload(dtype, &vec![7.0; converted_count]));
        let params = StepInputsParams {
            images: gpu.table(&states),
            inputs: gpu.bytes(bytemuck::cast_slice(&inputs)),
            floats,
            converted,
            converted_count: converted_count as i64,
            count: 4,
            rows: rows as i32,
        };
        gpu.launch("step_inputs", dtype, [3, rows as u32, 1], &params);
        let mut want = vec![7.0; all];
        for ((held, taken, first, steps, step), varying) in images.iter().zip(&varying) {
            let step = (*step as usize).min(steps - 1);
            for k in 0..3 {
                let from = &varying[start(k) * steps * held + step * widths[k] * held..];
                for (row, e) in (0..*taken as usize).flat_map(|row| (0..widths[k]).map(move |e| (row, e))) {
                    let to = *first as usize + row;
                    let (from, to) = match lasts[k] {
                        0 => (from[row * widths[k] + e], to * widths[k] + e),
                        _ => (from[e * held + row], e * rows + to),
                    };
                    want[at(k) + to] = from;
                }
            }
        }
        assert_eq!(gpu.download(DType::F32, floats, all), want);
        assert_eq!(gpu.download(dtype, converted, converted_count), rounded(dtype, &want[..converted_count]));
    }
}

/// A counter past the table's end takes its last row, which is found past element 2^31, and so is its noise.
#[test]
fn step_past_the_table() {
    if !fits(21) {
        return;
    }
    let (gpu, n, steps) = (Gpu::new(), 40, 1 << 26);
    let row = row([0.0, 0.5, 1.0, 0.0, 9.0, 0.25, 0.0, 0.0, 2.0], [0.0; 3], [[0.0; 7]; 3]);
    let (x, fresh) = (values(n, 1), values(n, 2));
    let last = |each: usize| {
        let at = gpu.room((each * 4) << 26);
        (at, Pointer(at.0 + (each as u64 * (steps - 1)) * 4))
    };
    let ((table, last_row), (noise, last_noise)) = (last(36), last(n));
    gpu.put(last_row, DType::F32, &row);
    gpu.put(last_noise, DType::F32, &fresh);
    let x_at = gpu.f32(&x);
    let images = gpu.table(&[ImageState {
        x: x_at,
        noise,
        table,
        guidance: gpu.f32(&[1.0, 0.0]),
        step: gpu.i32(&[steps as i32, i32::MAX]),
        rows: 1,
        steps: steps as i32,
        ..ImageState::default()
    }]);
    let out = gpu.room(n * 2);
    let input = ModelInputParams { images, out, n: n as i32, ..Default::default() };
    gpu.launch("model_input", DType::F16, [1, 1, 1], &input);
    let scaled = |factor: f64| wide(&x).iter().map(|x| x * factor).collect::<Vec<_>>();
    close("input", DType::F16, &gpu.download(DType::F16, out, n), &scaled(0.5));
    let params = StepParams { images, output: gpu.f32(&vec![0.0; n]), n: n as i32, ..StepParams::default() };
    let want: Vec<f64> = scaled(0.25).iter().zip(&fresh).map(|(x, n)| x + 2.0 * f64::from(*n)).collect();
    gpu.once("step", DType::F32, [1, 1, 1], &params, Schedule::InOrder);
    close("step", DType::F32, &gpu.download(DType::F32, x_at, n), &want);
}

/// Latents with the channels of an inpainting model beside them, of two images; and latents that a mask keeps after a step.
#[test]
fn inpainting() {
    if !compiled() {
        return;
    }
    let (gpu, images, pixels, [channels, extra]) = (Gpu::new(), 2, 700, [4, 5]);
    let (n, sample) = (pixels * channels, pixels * (channels + extra));
    let weights = |timestep, scale| [timestep, scale, 1.0, -0.5, f32::INFINITY, 0.9, 0.3, 0.0, 0.0];
    let table: [Row; 3] =
        [[900.0, 0.5], [500.0, 0.6], [1.0, 0.7]].map(|[t, scale]| row(weights(t, scale), [0.0; 3], [[0.0; 7]; 3]));
    // The last step keeps nothing.
    let levels = [[0.8f32, 0.6], [1.0, 0.0], [0.0, 0.0]];
    let part = |of: &[f32], i: usize| of[i * of.len() / images..(i + 1) * of.len() / images].to_vec();
    let (x, beside, output) = (values(images * n, 1), values(images * pixels * extra, 2), values(2 * images * n, 3));
    let kept: Vec<Vec<f32>> = (0..images as u32)
        .map(|i| {
            let mask: Vec<f32> = values(n, 4 + i).iter().map(|v| if *v > 0.0 { 1.0 } else { 0.0 }).collect();
            [mask, values(n, 6 + i), values(n, 8 + i)].concat()
        })
        .collect();
    let (steps, out) = ([(); 2].map(|()| gpu.i32(&[0, i32::MAX])), gpu.room(2 * images * sample * 2));
    let x_at = [0, 1].map(|i| gpu.f32(&part(&x, i)));
    let state = |i: usize| ImageState {
        x: x_at[i],
        table: gpu.f32(table.as_flattened()),
        guidance: gpu.f32(&[1.0, 0.0]),
        kept: gpu.f32(&kept[i]),
        // The second image keeps nothing.
        kept_levels: if i == 0 { gpu.f32(levels.as_flattened()) } else { Pointer(0) },
        extra: gpu.f32(&part(&beside, i)),
        step: steps[i],
        first: 2 * i as i32,
        rows: 2,
        steps: 3,
        ..ImageState::default()
    };
    let at = gpu.table(&[state(0), state(1)]);
    for (s, (row, level)) in table.iter().zip(levels.map(|level| level.map(f64::from))).enumerate() {
        let before: Vec<f64> = x_at.iter().flat_map(|x| wide(&gpu.download(DType::F32, *x, n))).collect();
        let input = ModelInputParams {
            images: at,
            out,
            n: sample as i32,
            channels: channels as i32,
            extra_channels: extra as i32,
            reserved: 0,
        };
        gpu.launch("model_input", DType::F16, [blocks(sample, 1024), images as u32, 1], &input);
        let joined = before.chunks(channels).zip(beside.chunks(extra)).flat_map(|(latents, beside)| {
            let latents = latents.iter().map(|v| v * f64::from(row[1]));
            latents.chain(beside.iter().map(|v| f64::from(*v))).collect::<Vec<_>>()
        });
        let joined: Vec<f64> = joined.collect();
        let joined: Vec<f64> = joined.chunks(sample).flat_map(|image| image.repeat(2)).collect();
        close("input", DType::F16, &gpu.download(DType::F16, out, 2 * images * sample), &joined);
        let params = StepParams {
            images: at,
            output: gpu.f32(&output),
            moments: gpu.room(images * n.div_ceil(2048) * 16),
            n: n as i32,
            reserved: 0,
        };
        gpu.once("step", DType::F32, [blocks(n, 1024), images as u32, 1], &params, Schedule::Random(5));
        for i in 0..images {
            // Guidance of 1 leaves what the positive row gives, but for the last bits.
            let positive = &output[2 * i * n..][..n];
            let wanted: Vec<f64> = (0..n)
                .map(|j| {
                    let part = |k: usize| f64::from(kept[i][k * n + j]);
                    let next = f64::from(row[5]) * before[i * n + j] + f64::from(row[6]) * f64::from(positive[j]);
                    let mixed = (1.0 - part(0)) * (level[0] * part(1) + level[1] * part(2)) + part(0) * next;
                    if i == 1 || level == [0.0; 2] { next } else { mixed }
                })
                .collect();
            within(&format!("step {s} of image {i}"), 2e-6, &gpu.download(DType::F32, x_at[i], n), &wanted);
        }
        gpu.once("step_advance", DType::F32, [2, 1, 1], &AdvanceParams { images: at }, Schedule::InOrder);
    }
}

/// The first step that is not finite is marked for its image alone.
#[test]
fn not_finite_image() {
    if !compiled() {
        return;
    }
    let gpu = Gpu::new();
    let n = 1500;
    let row = row([0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0], [0.0; 3], [[0.0; 7]; 3]);
    let mut output = vec![0.5; 2 * n];
    output[n + 1400] = f32::NAN;
    let counters = [4, 2].map(|step| gpu.i32(&[step, i32::MAX]));
    let state = |i: usize| ImageState {
        x: gpu.f32(&vec![1.0; n]),
        table: gpu.f32(&row.repeat(5)),
        guidance: gpu.f32(&[1.0, 0.0]),
        step: counters[i],
        first: i as i32,
        rows: 1,
        steps: 5,
        ..ImageState::default()
    };
    let images = gpu.table(&[state(0), state(1)]);
    let params = StepParams { images, output: gpu.f32(&output), n: n as i32, ..StepParams::default() };
    gpu.once("step", DType::F32, [2, 2, 1], &params, Schedule::InOrder);
    let marked = [[4, i32::MAX], [2, 2]].map(|counters| counters.map(i32::to_le_bytes).concat());
    assert_eq!(counters.map(|at| gpu.read(at, 8)), marked);
    for dtype in [DType::F16, DType::BF16, DType::F32] {
        for (bad, marked) in [(f32::INFINITY, 9), (f32::NAN, 9), (-1.0, i32::MAX)] {
            let mut x = vec![1.0; 1030];
            x[1029] = bad;
            let flag = gpu.i32(&[i32::MAX]);
            let params = FiniteParams { x: gpu.upload(dtype, &x), flag, count: 1030, value: 9, reserved: 0 };
            gpu.launch("finite", dtype, [2, 1, 1], &params);
            assert_eq!(gpu.read(flag, 4), marked.to_le_bytes(), "{dtype} {bad}");
        }
    }
}

#[test]
fn pixel_rounding() {
    if !compiled() {
        return;
    }
    let gpu = Gpu::new();
    let mut x = values(1500, 1);
    x[..6].copy_from_slice(&[-1.0, 1.0, -7.0, 9.0, 0.0, f32::NAN]);
    for truncate in [0, 1] {
        let out = gpu.room(1500);
        let params = Rgb8Params { x: gpu.f32(&x), out, count: 1500, truncate, reserved: 0 };
        gpu.launch("rgb8", DType::F32, [2, 1, 1], &params);
        let byte = |x: &f32| {
            let v = (x / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0;
            if truncate == 1 { v as u8 } else { v.round_ties_even() as u8 }
        };
        assert_eq!(gpu.read(out, 1500), x.iter().map(byte).collect::<Vec<u8>>());
    }
}
