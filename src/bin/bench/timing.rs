//! Times graphs of one operation on a device, and the best that the device does.

use crate::machine::Place;
use braid::Error;
use braid::cli::failure::Failure;
use braid::cli::terminal;
use braid::device::cpu::{Cpu, FpMath};
use braid::device::cuda::{CudaDevice, CudaExecutable};
use braid::device::{Device, Executable, TensorData};
use braid::graph::{Builder, Graph, Op};
use braid::pipeline::{DeviceChoice, Quantization};
use braid::tensor::DType;
use braid::weights::{MappedBytes, Weight};
use serde::Serialize;
use std::sync::Arc;
use std::time::Instant;

/// Bytes that go through a GPU's caches between two runs: more than the largest L2 of [`crate::gpus`].
const GPU_FLUSH: usize = 128 << 20;
/// The same of a processor that does not say how large its last cache is.
const CPU_FLUSH: usize = 128 << 20;
/// Runs that a GPU times in one go.
const TIMES: usize = 10;

/// Makes that many f16 of either sign between 2^-7 and 2^-6, so that sums of thousands of products stay small.
pub fn random(count: usize) -> Arc<MappedBytes> {
    let mut x = 1u32;
    let next = || {
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        ((x & 0x83ff) as u16 | 0x2000).to_le_bytes()
    };
    Arc::new(MappedBytes::owned(std::iter::repeat_with(next).take(count).flatten().collect()))
}

/// The device that is timed.
enum Target {
    Cpu(Cpu),
    Cuda(CudaDevice),
}

/// An executable of a [`Target`].
enum Timed {
    Cpu(Box<dyn Executable>),
    Cuda(Box<CudaExecutable>),
}

impl Target {
    fn compile(&self, graph: Graph) -> Result<Timed, Error> {
        Ok(match self {
            Self::Cpu(cpu) => Timed::Cpu(cpu.compile(graph)?),
            Self::Cuda(device) => Timed::Cuda(Box::new(device.compile_graph(graph)?)),
        })
    }
}

impl Timed {
    fn run(&mut self, inputs: &[TensorData<'_>], output: &mut [f32]) -> Result<(), Error> {
        match self {
            Self::Cpu(executable) => executable.run(inputs, &mut [output]),
            Self::Cuda(executable) => executable.run(inputs, &mut [output]),
        }
    }
}

/// A device and how it is timed.
pub struct Bench {
    device: Target,
    pub name: String,
    pub threads: usize,
    /// Bytes of an activation.
    pub size: usize,
    /// Side of the product that shows what can be computed, and elements of the copy.
    pub square: usize,
    copied: usize,
    pub flush: Flush,
    pub timing: Timing,
}

/// Memory that is written between two runs, so that nothing stays in the caches.
pub struct Flush {
    pub bytes: usize,
    buffer: Vec<u64>,
}

impl Flush {
    /// Twice the last cache of the first core.
    fn of_cpu() -> Self {
        let text = std::fs::read_to_string("/sys/devices/system/cpu/cpu0/cache/index3/size").unwrap_or_default();
        let kib = text.trim().strip_suffix('K').and_then(|n| n.parse::<usize>().ok());
        let bytes = kib.map_or(CPU_FLUSH, |k| (2 * k) << 10).min(1 << 30);
        Self { bytes, buffer: vec![0; bytes / 8] }
    }

    /// On every core, as each has caches of its own.
    fn walk(&mut self) {
        braid::parallel::for_each(usize::MAX, self.buffer.chunks_mut(1 << 13), |chunk| {
            chunk.iter_mut().step_by(8).for_each(|word| *word = word.wrapping_add(1));
        });
        std::hint::black_box(&self.buffer);
    }
}

/// The device and the number of runs.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    pub device: DeviceChoice,
    /// The type; the device's own where absent.
    pub dtype: Option<DType>,
    /// The type to which layers are quantized that may be.
    pub quantize: Option<Quantization>,
    pub threads: Option<usize>,
    pub repetitions: usize,
    pub warmup: usize,
}

impl Bench {
    pub fn open(timing: &Timing) -> Result<Self, Error> {
        let dtype = timing.dtype.unwrap_or(DType::F16);
        let place = Place {
            device: timing.device,
            dtype: Some(dtype),
            vae_dtype: Some(dtype),
            quantize: timing.quantize,
            threads: timing.threads,
            max_batch: None,
        };
        let quantized = timing.quantize.map_or_else(String::new, |quantize| format!(", {quantize}"));
        Ok(match place.open()? {
            Some(device) => Self {
                name: format!("{}, {dtype}{quantized}", device.driver().properties().name),
                device: Target::Cuda(device),
                threads: 0,
                size: 2,
                square: 8192,
                copied: 64 << 20,
                flush: Flush { bytes: GPU_FLUSH, buffer: Vec::new() },
                timing: *timing,
            },
            None => {
                let bf16 = timing.dtype == Some(DType::BF16);
                let (fp_math, dtype) = if bf16 { (FpMath::Bf16, DType::BF16) } else { (FpMath::F32, DType::F32) };
                let cpu = Cpu::new(timing.threads).with_fp_math(fp_math);
                let cpu = if timing.quantize.is_some() { cpu.with_int8(Cpu::int8_folder()) } else { cpu };
                Self {
                    name: format!("cpu {}, {dtype}{quantized}", Cpu::instructions()),
                    threads: cpu.threads(),
                    device: Target::Cpu(cpu),
                    size: 4,
                    square: 2048,
                    copied: 16 << 20,
                    flush: Flush::of_cpu(),
                    timing: *timing,
                }
            }
        })
    }

    /// The seconds of each run of a graph of one operation, after two runs that must agree and be finite.
    pub fn time(&mut self, graph: Graph, what: &str) -> Result<Vec<f64>, Failure> {
        let inputs = operands(&graph);
        let len: usize = graph.outputs.iter().map(|(_, id)| graph.node(*id).len()).sum();
        let (mut result, mut again) = (vec![f32::NAN; len], vec![f32::NAN; len]);
        let mut executable = self.device.compile(graph)?;
        executable.run(&inputs, &mut result)?;
        executable.run(&inputs, &mut again)?;
        if result != again || !result.iter().all(|v| v.is_finite()) {
            let wrong = if result == again { "its result is not finite" } else { "two runs gave different results" };
            terminal::line("bench: ", &format!("{what}: {wrong}; nothing is reported"));
            return Err(Failure::Told(1));
        }
        let mut seconds = Vec::new();
        for run in 0..self.timing.warmup + self.timing.repetitions {
            let taken = match &mut executable {
                Timed::Cuda(executable) => executable.benchmark(self.flush.bytes, TIMES)?,
                Timed::Cpu(executable) => {
                    self.flush.walk();
                    let begin = Instant::now();
                    executable.run(&inputs, &mut [&mut result])?;
                    begin.elapsed().as_secs_f64()
                }
            };
            if run >= self.timing.warmup {
                seconds.push(taken);
            }
        }
        Ok(seconds)
    }

    /// Measures the best that the device does, by the shortest run of each.
    pub fn ceilings(&mut self, storage: &Arc<MappedBytes>) -> Result<Ceilings, Failure> {
        let best = |seconds: Vec<f64>| seconds.into_iter().fold(f64::INFINITY, f64::min).max(1e-9);
        let mut b = Builder::new();
        let x = b.input("x", &[1, self.copied / 1024, 1024]);
        let y = b.scale_shift(x, 1.0, 0.0);
        b.output("y", y);
        let copy = best(self.time(b.finish()?, "the copy")?);
        let n = self.square;
        let mut b = Builder::new();
        let x = b.input("x", &[1, n, n]);
        let weight = Weight::new(storage.clone(), 0, DType::F16, vec![n, n], "w");
        let weight = weight.ok_or_else(|| Error::Graph("the product's weights do not fit their storage".into()))?;
        let y = b.linear_parts(x, vec![weight.into()]);
        b.output("y", y);
        let product = best(self.time(b.finish()?, "the product")?);
        Ok(Ceilings {
            copy_bytes: 2 * self.copied * self.size,
            bytes_per_second: (2 * self.copied * self.size) as f64 / copy,
            product_side: n,
            flops_per_second: 2.0 * (n * n * n) as f64 / product,
        })
    }
}

/// Values for the inputs of a graph of one operation: ids, places and counts that exist, weights of 1, else random numbers.
fn operands(graph: &Graph) -> Vec<TensorData<'static>> {
    let Some(node) = graph.nodes.last() else { return Vec::new() };
    let mut x = 12_345u32;
    let mut random = || {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (x >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    let operand = |k: usize| graph.node(node.inputs[k]);
    let mut values = |k: usize, len: usize| -> TensorData<'static> {
        let floats: Vec<f32> = match &node.op {
            Op::Embedding { table, .. } => {
                return (0..len).map(|i| ((i * 7919) % table[0].shape()[0]) as i32).collect::<Vec<_>>().into();
            }
            Op::Gather if k == 1 => return vec![(operand(0).tokens() / 2) as i32; len].into(),
            Op::TimestepEmbedding { .. } => (0..len).map(|i| (i * 20 % 1000) as f32).collect(),
            Op::Attention(a) => {
                let counted = a.branches.iter().find(|s| s.length == Some(k));
                if let Some(branch) = counted {
                    return vec![operand(branch.keys.operand).tokens() as i32; len].into();
                }
                let weight = a.branches.iter().any(|s| s.scale.is_some_and(|(at, _)| at == k));
                if weight { vec![1.0; len] } else { (0..len).map(|_| random()).collect() }
            }
            _ => (0..len).map(|_| random()).collect(),
        };
        floats.into()
    };
    let place = |id| node.inputs.iter().position(|operand| *operand == id).unwrap_or(0);
    graph.inputs.iter().map(|(_, id)| values(place(*id), graph.node(*id).len())).collect()
}

/// Measured peak rates of the device.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Ceilings {
    /// Bytes read and written by the copy.
    pub copy_bytes: usize,
    pub bytes_per_second: f64,
    /// Rows, columns and sum of the product.
    pub product_side: usize,
    pub flops_per_second: f64,
}
