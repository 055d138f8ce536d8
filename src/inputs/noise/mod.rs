//! Noise: the normal numbers that torch's generators give for a seed, so that a seed gives the same image everywhere.
//!
//! torch has two: the CPU's (mt19937) and CUDA's (Philox). A seed gives different noise on the two, and on the CPU also
//! different noise for each dtype.

mod mt19937;
mod philox;

pub use mt19937::Mt19937;
pub use philox::{Philox, PhiloxGrid};

use crate::tensor::DType;
use std::f64::consts::TAU;

/// The torch generator that the noise follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RngKind {
    /// `torch.Generator("cpu")`.
    #[default]
    Cpu,
    /// `torch.Generator("cuda")` on a GPU of this size.
    Cuda(PhiloxGrid),
}

/// A seeded stream of normal numbers, equal to `torch.randn(n, dtype=dtype, generator=g)` call for call.
#[derive(Debug, Clone)]
pub enum Generator {
    /// The stream of `torch.Generator("cpu")`, with the sine half of the last pair of a short draw.
    Cpu {
        /// The source of random words.
        mt19937: Mt19937,
        /// The next number of a draw of fewer than 16, whatever that draw's dtype.
        next_normal: Option<f64>,
    },
    /// The stream of `torch.Generator("cuda")`.
    Cuda(Philox),
}

impl Generator {
    /// Makes the generator that `manual_seed(seed)` gives. The CPU's looks at the lower 32 bits of the seed only, as
    /// torch's does.
    pub fn new(kind: RngKind, seed: u64) -> Self {
        match kind {
            RngKind::Cpu => Self::Cpu { mt19937: Mt19937::new(seed as u32), next_normal: None },
            RngKind::Cuda(grid) => Self::Cuda(Philox::new(seed, grid)),
        }
    }

    /// Draws the next `n` standard normal numbers in `dtype`, widened to f32.
    ///
    /// Against torch's CPU generator: f32 within 2e-6 (torch takes logarithm, sine and cosine from a vector library,
    /// this from f64), f16 and bf16 equal but for the rare last bit. Fewer than 16 numbers are made in f64 one by one,
    /// 16 or more in blocks, so `randn(20)` does not begin as `randn(5)` does; this is torch's behaviour too.
    pub fn randn(&mut self, n: usize, dtype: DType) -> Vec<f32> {
        match self {
            Self::Cpu { mt19937, next_normal } if n < 16 => {
                (0..n).map(|_| round(one_by_one(mt19937, next_normal) as f32, dtype)).collect()
            }
            Self::Cpu { mt19937, .. } => {
                let mut data = vec![0.0; n];
                uniform(mt19937, &mut data, dtype);
                for block in data.as_chunks_mut::<16>().0 {
                    box_muller(block, dtype);
                }
                // A ragged end: the last 16 numbers, which overlap finished ones, are drawn afresh.
                if !n.is_multiple_of(16)
                    && let Some(last) = data.last_chunk_mut::<16>()
                {
                    uniform(mt19937, last, dtype);
                    box_muller(last, dtype);
                }
                data
            }
            // CUDA always draws in f32 and rounds at the end.
            Self::Cuda(philox) => {
                let mut data = philox.randn(n);
                data.iter_mut().for_each(|x| *x = round(*x, dtype));
                data
            }
        }
    }
}

/// Rounds to `dtype`, half to even, and widens again.
fn round(x: f32, dtype: DType) -> f32 {
    match dtype {
        DType::F32 => x,
        DType::F16 => half::f16::from_f32(x).to_f32(),
        DType::BF16 => half::bf16::from_f32(x).to_f32(),
    }
}

/// Draws uniform numbers in [0, 1) from one word each; as many of its low bits as the dtype has digits, over 2^digits.
fn uniform(mt19937: &mut Mt19937, out: &mut [f32], dtype: DType) {
    let digits = match dtype {
        DType::F32 => 24,
        DType::F16 => 11,
        DType::BF16 => 8,
    };
    let (mask, scale) = ((1u32 << digits) - 1, 1.0 / (1u32 << digits) as f32);
    out.iter_mut().for_each(|x| *x = (mt19937.next_word() & mask) as f32 * scale);
}

/// Transforms 16 uniform numbers as Box and Muller: number j with number j + 8, every operation rounded to `dtype`.
fn box_muller(block: &mut [f32; 16], dtype: DType) {
    for j in 0..8 {
        let u1 = round(1.0 - block[j], dtype); // [0, 1) to (0, 1], for the logarithm
        let u2 = block[j + 8];
        let log = round(f64::from(u1).ln() as f32, dtype);
        let radius = round(round(-2.0 * log, dtype).sqrt(), dtype);
        let theta = match dtype {
            DType::F32 => TAU as f32 * u2,
            _ => round((TAU * f64::from(u2)) as f32, dtype),
        };
        let (sin, cos) = f64::from(theta).sin_cos();
        block[j] = round(radius * round(cos as f32, dtype), dtype);
        block[j + 8] = round(radius * round(sin as f32, dtype), dtype);
    }
}

/// Draws one number as torch does for short draws: f64 pairs, the cosine first, the sine kept for the next number.
fn one_by_one(mt19937: &mut Mt19937, next_normal: &mut Option<f64>) -> f64 {
    if let Some(value) = next_normal.take() {
        return value;
    }
    let mut uniform = || {
        let high = u64::from(mt19937.next_word());
        let bits = (high << 32 | u64::from(mt19937.next_word())) & ((1 << 53) - 1);
        bits as f64 / (1u64 << 53) as f64
    };
    let (u1, u2) = (uniform(), uniform());
    let radius = (-2.0 * (-u2).ln_1p()).sqrt();
    let (sin, cos) = (TAU * u1).sin_cos();
    *next_normal = Some(radius * sin);
    radius * cos
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn numbers(value: &Value) -> Vec<f32> {
        value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
    }

    fn dtype(value: &Value) -> DType {
        match value.as_str().unwrap() {
            "f32" => DType::F32,
            "f16" => DType::F16,
            "bf16" => DType::BF16,
            other => panic!("{other}"),
        }
    }

    /// Every stream of the golden file, made by torch 2.11: draws follow each other on one generator.
    #[test]
    fn torch_cpu_streams() {
        let file: Value = serde_json::from_str(include_str!("../../../tests/data/noise.json")).unwrap();
        let mut compared = 0;
        let mut worst = 0f32;
        let mut inexact = 0;
        for stream in file.as_array().unwrap() {
            let seed = stream["seed"].as_str().unwrap().parse().unwrap();
            let mut generator = Generator::new(RngKind::Cpu, seed);
            for draw in stream["draws"].as_array().unwrap() {
                let (n, dtype) = (draw["n"].as_u64().unwrap() as usize, dtype(&draw["dtype"]));
                let got = generator.randn(n, dtype);
                assert_eq!(got.len(), n);
                let picked: Vec<f32> = got.into_iter().step_by(draw["step"].as_u64().unwrap() as usize).collect();
                let expected = numbers(&draw["values"]);
                assert_eq!(picked.len(), expected.len());
                for (i, (a, b)) in picked.iter().zip(&expected).enumerate() {
                    let close = match dtype {
                        DType::F32 => {
                            worst = worst.max((a - b).abs());
                            (a - b).abs() <= 2e-6
                        }
                        DType::F16 | DType::BF16 => {
                            inexact += usize::from(a != b);
                            let digits = if dtype == DType::F16 { 10 } else { 7 };
                            (a - b).abs() <= b.abs() * (0.5f32).powi(digits)
                        }
                    };
                    assert!(close, "seed {seed}, {n} numbers of {dtype}: number {i} is {a}, torch gives {b}");
                    compared += 1;
                }
            }
        }
        assert!(compared > 2000, "{compared}");
        assert_eq!(inexact, 0, "16-bit numbers that are off by their last bit");
        println!("{compared} numbers, f32 within {worst:e}");
    }

    #[test]
    fn cpu_seed_width() {
        let mut low = Generator::new(RngKind::Cpu, 7);
        let mut high = Generator::new(RngKind::Cpu, (1 << 32) + 7);
        assert_eq!(low.randn(32, DType::F32), high.randn(32, DType::F32));
        let cuda = RngKind::Cuda(PhiloxGrid::H100);
        let (mut low, mut high) = (Generator::new(cuda, 7), Generator::new(cuda, (1 << 32) + 7));
        assert_ne!(low.randn(32, DType::F32), high.randn(32, DType::F32));
    }

    #[test]
    fn empty_draw() {
        for source in [RngKind::Cpu, RngKind::Cuda(PhiloxGrid::H100)] {
            let mut generator = Generator::new(source, 1);
            let expected = generator.clone().randn(17, DType::F32);
            assert!(generator.randn(0, DType::F32).is_empty());
            assert_eq!(generator.randn(17, DType::F32), expected);
        }
    }

    /// The literals are published: torch.manual_seed(0); torch.randn(n, device="cuda").
    #[test]
    fn torch_cuda_stream() {
        let mut generator = Generator::new(RngKind::Cuda(PhiloxGrid::H100), 0);
        let expected = [-0.9246626, -0.4253442, -2.6438457, 0.1451839, -0.1208665, -0.5797256];
        for (a, b) in generator.clone().randn(12, DType::F32)[..6].iter().zip(expected) {
            assert!((a - b).abs() < 2e-6, "{a} {b}");
        }
        // Published too: manual_seed(42), then six draws of four, each of which moves the stream on.
        let mut draws = Generator::new(RngKind::Cuda(PhiloxGrid::H100), 42);
        let expected = [
            [0.1940, 2.1614, -0.1721, 0.8491],
            [0.1391, -0.1082, -0.7174, 0.7566],
            [-0.5187, 1.2268, 0.6255, -0.9117],
            [-0.6974, -1.8688, -0.8832, -1.6627],
            [-1.2682, -0.0383, -0.1029, 1.4400],
            [1.4640, -0.3238, 0.7740, 1.5892],
        ];
        for expected in expected {
            for (a, b) in draws.randn(4, DType::F32).into_iter().zip(expected) {
                assert!((a - b).abs() < 6e-5, "{a} {b}");
            }
        }
        // f16 is the f32 number rounded.
        let half = generator.randn(12, DType::F16);
        assert_eq!(half[0], half::f16::from_f32(-0.9246626).to_f32());
    }
}
