//! The least error of half precision: the CPU's f32 arithmetic with every weight and every result rounded to a type.

use super::interpreter::{narrow, wide};
use braid::Result;
use braid::device::cpu::Cpu;
use braid::device::{Compiled, Device, Executable, TensorData};
use braid::graph::{Builder, Graph, InputType, Node, Op};
use braid::tensor::DType;
use braid::weights::Weight;

/// See the module; the VAE, which `decoder` names, has a type of its own.
pub struct HalfPrecisionBaseline {
    pub cpu: Cpu,
    pub dtype: DType,
    pub decoder: DType,
}

struct BaselineExecutable {
    graph: Graph,
    nodes: Vec<Option<Box<dyn Executable>>>,
    dtype: DType,
}

fn rounded(weight: &Weight, dtype: DType) -> Weight {
    Weight::from_f32(&wide(&narrow(&weight.to_f32(), dtype), dtype), weight.shape(), weight.name()).unwrap()
}

/// The operation with its weights rounded.
fn rounded_op(op: &Op, dtype: DType) -> Op {
    let mut op = op.clone();
    op.weights_mut().into_iter().for_each(|w| *w = rounded(w, dtype));
    op
}

impl Device for HalfPrecisionBaseline {
    fn name(&self) -> String {
        "baseline".into()
    }

    fn compile(&self, graph: Graph) -> Result<Box<dyn Executable>> {
        let of_vae = graph.inputs.iter().any(|(name, _)| name == "latents" || name == "image");
        let dtype = if of_vae { self.decoder } else { self.dtype };
        let single = |node: &Node| -> Result<Option<Box<dyn Executable>>> {
            if matches!(node.op, Op::Input(_)) {
                return Ok(None);
            }
            let mut b = Builder::new();
            let inputs = (node.inputs.iter())
                .map(|id| match (graph.element_type(*id), &graph.node(*id).shape) {
                    (InputType::F32, shape) => b.input("i", shape),
                    (InputType::I32, shape) => b.input_i32("i", shape),
                })
                .collect();
            let id = b.input("o", &node.shape);
            let mut one = b.finish()?;
            let op = rounded_op(&node.op, dtype);
            one.nodes[node.inputs.len()] = Node { op, inputs, ..node.clone() };
            one.inputs.pop();
            one.outputs.push(("o".into(), id));
            self.cpu.compile(one).map(Some)
        };
        let nodes = graph.nodes.iter().map(single).collect::<Result<_>>()?;
        Ok(Box::new(BaselineExecutable { graph, nodes, dtype }))
    }
}

impl Executable for BaselineExecutable {
    fn run(&mut self, inputs: &[TensorData<'_>], outputs: &mut [&mut [f32]]) -> Result<()> {
        let places: Vec<usize> = {
            // The place of a node is that of the id which others know it by.
            let ids: Vec<_> =
                self.graph.inputs.iter().map(|(_, id)| std::ptr::from_ref(self.graph.node(*id))).collect();
            self.graph
                .nodes
                .iter()
                .map(|n| ids.iter().position(|id| std::ptr::eq(*id, n)).unwrap_or(usize::MAX))
                .collect()
        };
        let mut values: Vec<TensorData<'_>> = Vec::new();
        let at = |id| {
            let node = std::ptr::from_ref(self.graph.node(id));
            self.graph.nodes.iter().position(|n| std::ptr::eq(n, node)).unwrap()
        };
        for (i, node) in self.graph.nodes.iter().enumerate() {
            let value = match &mut self.nodes[i] {
                None => inputs[places[i]].view(),
                Some(executable) => {
                    let operands: Vec<TensorData<'_>> = node.inputs.iter().map(|id| values[at(*id)].view()).collect();
                    let mut out = vec![0.0; node.len()];
                    executable.run(&operands, &mut [&mut out])?;
                    let out =
                        if matches!(node.op, Op::Reshape) { out } else { wide(&narrow(&out, self.dtype), self.dtype) };
                    out.into()
                }
            };
            values.push(value);
        }
        for ((_, id), out) in self.graph.outputs.iter().zip(outputs) {
            let TensorData::F32(values) = &values[at(*id)] else { panic!("outputs are f32") };
            out.copy_from_slice(values);
        }
        Ok(())
    }
}

impl Compiled for BaselineExecutable {
    fn bytes(&self) -> usize {
        0
    }

    fn graph(&self) -> &Graph {
        &self.graph
    }
}
