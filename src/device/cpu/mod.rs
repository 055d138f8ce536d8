//! The CPU: f32 arithmetic on all cores, the default where there is no GPU and the reference for every other device.

mod attention;
mod kernel;
mod norm;
mod pack;
mod pool;
mod product;
mod scratch;
mod simd;
#[cfg(test)]
mod tests;

use self::attention::CpuAttention;
use self::norm::CpuGroupNorm;
use self::pack::widen;
use self::pool::Pool;
use self::product::CpuProduct;
use self::scratch::Scratch;
use super::{Device, Executable};
use crate::error::Result;
use crate::graph::{Graph, Location, MemoryPlan, Node, Op, fuse};
use crate::memory;
use crate::weights::Weight;
use std::sync::Arc;

/// The CPU with a pool of threads of its own.
#[derive(Clone)]
pub struct Cpu {
    pool: Arc<Pool>,
}

impl Cpu {
    /// A device of that many threads; `None` means one for each core.
    pub fn new(threads: Option<usize>) -> Self {
        let cores = || std::thread::available_parallelism().map_or(1, |n| n.get());
        Self { pool: Arc::new(Pool::new(threads.unwrap_or_else(cores))) }
    }

    /// The number of threads.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// The instruction set that is used: `avx512`, `avx2` or `portable`.
    pub fn instructions() -> &'static str {
        match simd::isa() {
            simd::Isa::Avx512 => "avx512",
            simd::Isa::Avx2 => "avx2",
            simd::Isa::Portable => "portable",
        }
    }
}

impl std::fmt::Debug for Cpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Cpu({} threads)", self.threads())
    }
}

impl Device for Cpu {
    fn name(&self) -> String {
        "cpu".into()
    }

    fn compile(&self, graph: Graph) -> Result<Box<dyn Executable>> {
        Ok(Box::new(CpuExecutable::new(self.pool.clone(), fuse(graph))?))
    }
}

/// What a node needs at run time besides its operands.
enum Ready {
    Nothing,
    Product(CpuProduct),
    Attention(CpuAttention),
    GroupNorm(CpuGroupNorm),
    LayerNorm { weight: Vec<f32>, bias: Vec<f32> },
    Positions { token: Vec<f32>, positions: Vec<f32> },
}

/// Where memory is short, unless the caller knows better.
const STAGE: &str = "planning";

struct CpuExecutable {
    pool: Arc<Pool>,
    graph: Graph,
    plan: MemoryPlan,
    ready: Vec<Ready>,
    arena: Vec<f32>,
    zeros: Vec<f32>,
    scratch: Scratch,
    bytes: usize,
}

impl CpuExecutable {
    fn new(pool: Arc<Pool>, graph: Graph) -> Result<Self> {
        let threads = pool.threads();
        let plan = MemoryPlan::new(&graph);
        let norms: usize = graph
            .nodes
            .iter()
            .filter(|n| matches!(n.op, Op::GroupNorm { .. }))
            .map(|n| CpuGroupNorm::bytes(n.channels(), n.shape[0], n.tokens()))
            .sum();
        let hint = || "ask for a smaller image or free memory".into();
        // Before the norms' statistics are allocated below.
        memory::require(STAGE, (plan.arena as u64 * 4).saturating_add(norms as u64), hint)?;
        let ready: Vec<Ready> = graph.nodes.iter().map(|n| prepare(&graph, n, threads)).collect();
        let (mut scratch, mut bytes, mut widest) = (0, norms, 1);
        for (node, ready) in graph.nodes.iter().zip(&ready) {
            widest = widest.max(node.channels());
            match ready {
                Ready::Product(p) => {
                    scratch = scratch.max(p.scratch());
                    bytes += p.bytes();
                }
                Ready::Attention(a) => scratch = scratch.max(a.scratch()),
                Ready::GroupNorm(_) => {}
                Ready::LayerNorm { weight, bias } => bytes += (weight.len() + bias.len()) * 4,
                Ready::Positions { token, positions } => bytes += (token.len() + positions.len()) * 4,
                Ready::Nothing => {}
            }
        }
        let need = (plan.arena as u64).saturating_add((threads * scratch + widest) as u64).saturating_mul(4);
        memory::require(STAGE, need, hint)?;
        let arena = memory::zeroed(STAGE, plan.arena, need, hint)?;
        let scratch = Scratch::new(threads, scratch);
        bytes += arena.len() * 4 + scratch.bytes() + widest * 4;
        Ok(Self { pool, graph, plan, ready, arena, zeros: vec![0.0; widest], scratch, bytes })
    }
}

fn prepare(graph: &Graph, node: &Node, threads: usize) -> Ready {
    let shapes: Vec<&[usize]> = node.inputs.iter().map(|id| graph.node(*id).shape.as_slice()).collect();
    if let Some(gemm) = node.op.implicit_gemm() {
        return Ready::Product(CpuProduct::new(gemm, &shapes, &node.shape, threads));
    }
    match &node.op {
        Op::Attention(a) => Ready::Attention(CpuAttention::new(a, node, &shapes)),
        Op::GroupNorm { groups, eps, weight, bias, silu } => {
            let second = shapes.get(1).map_or(0, |s| s[s.len() - 1]);
            let channels = [shapes[0][shapes[0].len() - 1], second];
            Ready::GroupNorm(CpuGroupNorm::new(
                *groups,
                *eps,
                *silu,
                weight.to_f32(),
                bias.to_f32(),
                channels,
                node.shape[0],
                node.tokens(),
            ))
        }
        Op::LayerNorm { weight, bias, .. } => Ready::LayerNorm { weight: weight.to_f32(), bias: bias.to_f32() },
        Op::Embedding { positions, .. } => Ready::Positions { token: Vec::new(), positions: positions.to_f32() },
        Op::PrependClassToken { token, positions } => {
            Ready::Positions { token: token.to_f32(), positions: positions.to_f32() }
        }
        _ => Ready::Nothing,
    }
}

impl Executable for CpuExecutable {
    fn run(&mut self, inputs: &[&[f32]], outputs: &mut [&mut [f32]]) -> Result<()> {
        self.graph.check_bindings(inputs, outputs)?;
        let inputs: Vec<*const f32> = inputs.iter().map(|b| b.as_ptr()).collect();
        let outputs: Vec<*mut f32> = outputs.iter_mut().map(|b| b.as_mut_ptr()).collect();
        let arena = self.arena.as_mut_ptr();
        let place = |i: usize| match self.plan.locations[i] {
            Location::Input(k) => inputs[k].cast_mut(),
            Location::Output(k) => outputs[k],
            // SAFETY: the plan keeps every place inside the arena.
            Location::Arena(at) => unsafe { arena.add(at) },
        };
        for (i, node) in self.graph.nodes.iter().enumerate() {
            // SAFETY: every place has the length of its node's shape (checked above and by the plan), results that live at the
            // same time do not overlap, and inputs are never a result's place.
            unsafe { self.execute(node, &self.ready[i], &place, place(i)) };
        }
        for (k, id) in &self.plan.copies {
            // SAFETY: both have the length of that node, and an output is never another node's place.
            unsafe { outputs[*k].copy_from_nonoverlapping(place(id.0), self.graph.node(*id).len()) };
        }
        Ok(())
    }

    fn bytes(&self) -> usize {
        self.bytes
    }

    fn graph(&self) -> &Graph {
        &self.graph
    }
}

/// A pointer that threads share; they write disjoint parts.
#[derive(Clone, Copy)]
struct Out(*mut f32);

// SAFETY: see the uses: rows of different items are disjoint.
unsafe impl Sync for Out {}

impl Out {
    /// # Safety
    /// The range lies inside the result and no other thread uses it.
    #[allow(clippy::mut_from_ref)]
    unsafe fn slice(&self, at: usize, len: usize) -> &mut [f32] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(at), len) }
    }
}

/// Rows that one item of a pointwise operation takes.
const ROWS: usize = 16;

impl CpuExecutable {
    /// # Safety
    /// `place` gives each operand's bytes and `out` the result's, of the lengths of their shapes.
    unsafe fn execute(&self, node: &Node, ready: &Ready, place: &impl Fn(usize) -> *mut f32, out: *mut f32) {
        let operand = |k: usize| place(node.inputs[k].0).cast_const();
        // SAFETY: the caller's promise.
        let input = |k: usize| unsafe { std::slice::from_raw_parts(operand(k), self.graph.node(node.inputs[k]).len()) };
        let c = node.channels();
        let count = node.len() / c.max(1);
        let result = Out(out);
        let rows = |work: &(dyn Fn(usize, &mut [f32]) + Sync)| {
            self.pool.run(count.div_ceil(ROWS), &|item, _| {
                for row in item * ROWS..((item + 1) * ROWS).min(count) {
                    // SAFETY: each row is written by one item.
                    work(row, unsafe { result.slice(row * c, c) });
                }
            });
        };
        match (&node.op, ready) {
            (Op::Input | Op::Reshape, _) => {}
            (op @ (Op::Linear(_) | Op::Conv2d(_)), Ready::Product(product)) => {
                let Some(gemm) = op.implicit_gemm() else { return };
                let at = |k: Option<usize>| k.map_or(std::ptr::null(), operand);
                let operands = product::Operands {
                    sources: [operand(0), at((gemm.sources == 2).then_some(1))],
                    rows: at(gemm.per_image_bias()),
                    residual: at(gemm.residual()),
                    zeros: self.zeros.as_ptr(),
                    out,
                };
                // SAFETY: the operands have the shapes that the product was prepared for.
                unsafe { product.run(&self.pool, &self.scratch, operands) };
            }
            (Op::Attention(_), Ready::Attention(attention)) => {
                let mut inputs = [std::ptr::null(); attention::Operands::MAX];
                for (k, p) in inputs.iter_mut().enumerate().take(node.inputs.len()) {
                    *p = operand(k);
                }
                // SAFETY: as above.
                unsafe { attention.run(&self.pool, &self.scratch, &attention::Operands { inputs, out }) };
            }
            (Op::GroupNorm { .. }, Ready::GroupNorm(norm)) => {
                let second = if node.inputs.len() == 2 { operand(1) } else { operand(0) };
                // SAFETY: as above.
                unsafe { norm.run(&self.pool, norm::Operands { sources: [operand(0), second], out }) };
            }
            (Op::LayerNorm { eps, .. }, Ready::LayerNorm { weight, bias }) => {
                let x = input(0);
                rows(&|row, out| norm::layer_norm(out, &x[row * c..][..c], weight, bias, *eps));
            }
            (Op::Embedding { table, .. }, Ready::Positions { positions, .. }) => {
                let (ids, tokens) = (input(0), node.shape[node.shape.len() - 2]);
                rows(&|row, out| {
                    row_of(table, ids[row] as usize, out);
                    product::add(out, &positions[row % tokens * c..][..c]);
                });
            }
            (Op::PrependClassToken { .. }, Ready::Positions { token, positions }) => {
                let (x, tokens) = (input(0), node.shape[1]);
                rows(&|row, out| {
                    let (image, t) = (row / tokens, row % tokens);
                    let from = if t == 0 { token } else { &x[(image * (tokens - 1) + t - 1) * c..][..c] };
                    out.copy_from_slice(from);
                    product::add(out, &positions[t * c..][..c]);
                });
            }
            (Op::Activation(kind), _) => {
                let x = input(0);
                rows(&|row, out| {
                    out.copy_from_slice(&x[row * c..][..c]);
                    product::activate(out, *kind);
                });
            }
            (Op::Geglu, _) => {
                let x = input(0);
                rows(&|row, out| {
                    let (value, gate) = x[row * 2 * c..][..2 * c].split_at(c);
                    product::times_gelu(out, value, gate);
                });
            }
            (Op::Add, _) => {
                let (a, b) = (input(0), input(1));
                rows(&|row, out| {
                    out.copy_from_slice(&a[row * c..][..c]);
                    product::add(out, &b[row * c % b.len()..][..c]);
                });
            }
            (Op::BroadcastAdd, _) => {
                let (a, b, per_image) = (input(0), input(1), count / node.shape[0]);
                rows(&|row, out| {
                    out.copy_from_slice(&a[row * c..][..c]);
                    product::add(out, &b[row / per_image * c..][..c]);
                });
            }
            (Op::Concat, _) => {
                let (a, b) = (input(0), input(1));
                let (wa, wb) = (a.len() / count, b.len() / count);
                rows(&|row, out| {
                    out[..wa].copy_from_slice(&a[row * wa..][..wa]);
                    out[wa..].copy_from_slice(&b[row * wb..][..wb]);
                });
            }
            (Op::Upsample { .. }, _) => {
                let (x, from) = (input(0), &self.graph.node(node.inputs[0]).shape);
                let (h, w, oh, ow) = (from[1], from[2], node.shape[1], node.shape[2]);
                rows(&|row, out| {
                    let (image, y, x0) = (row / (oh * ow), row / ow % oh, row % ow);
                    let at = (image * h + product::nearest(y, oh, h)) * w + product::nearest(x0, ow, w);
                    out.copy_from_slice(&x[at * c..][..c]);
                });
            }
            (Op::TimestepEmbedding { flip, shift, .. }, _) => {
                let (x, half) = (input(0), c / 2);
                rows(&|row, out| {
                    for i in 0..half {
                        let exponent = -(10_000f32.ln()) * i as f32 / (half as f32 - shift);
                        let angle = x[row] * exponent.exp();
                        let (first, second) =
                            if *flip { (angle.cos(), angle.sin()) } else { (angle.sin(), angle.cos()) };
                        out[i] = first;
                        out[half + i] = second;
                    }
                });
            }
            (Op::Gather, _) => {
                let x = input(0);
                let index = (node.inputs.len() > 1).then(|| input(1));
                let tokens = x.len() / (count * c);
                rows(&|row, out| {
                    let t = index.map_or(0, |i| (i[row] as usize).min(tokens - 1));
                    out.copy_from_slice(&x[(row * tokens + t) * c..][..c]);
                });
            }
            (Op::ScaleShift { scale, shift }, _) => {
                let x = input(0);
                rows(&|row, out| out.iter_mut().zip(&x[row * c..][..c]).for_each(|(o, x)| *o = x * scale + shift));
            }
            // `prepare` makes the matching value for every operation above.
            _ => unreachable!("an operation without its preparation"),
        }
    }
}

/// One row of a table as f32; an index past the end takes the last row.
fn row_of(table: &Weight, index: usize, out: &mut [f32]) {
    let size = table.dtype().size();
    let at = index.min(table.shape()[0] - 1) * out.len() * size;
    widen(&table.bytes()[at..at + out.len() * size], table.dtype(), out);
}
