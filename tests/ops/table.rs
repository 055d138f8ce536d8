//! The shape of a case, and what builds one: named tensors of seeded values, known as f32 to the graph and as f64 to the reference.

use super::interpreter::{values, weight_values};
use braid::device::TensorData;
use braid::graph::{Builder, Graph, NodeId};
use braid::weights::{Scope, Weight, Weights};
use std::collections::BTreeMap;

/// A graph with its inputs, and the outputs that plain loops in f64 give.
pub struct Case {
    pub name: String,
    pub graph: Graph,
    pub inputs: Vec<TensorData<'static>>,
    pub want: Vec<Vec<f64>>,
    /// The nodes that are left after fusion.
    pub fused_nodes: Option<usize>,
    /// Beginnings of the names of kernels that a GPU launches for it.
    pub launches: Vec<&'static str>,
    /// Beginnings of those that it does not launch.
    pub avoids: Vec<&'static str>,
    /// The text of the error with which the CUDA backend refuses it.
    pub cuda_refuses: Option<&'static str>,
    /// The largest relative L2 error of f32 arithmetic against f64.
    pub f32_error: f64,
}

/// Declares the tests of a file of cases, one a backend.
macro_rules! operation {
    ($cases:expr) => {
        #[test]
        fn cpu() {
            $cases.iter().for_each(crate::run::on_cpu);
        }

        #[test]
        fn cpu_in_bf16() {
            $cases.iter().for_each(crate::run::on_cpu_in_bf16);
        }

        #[test]
        fn cuda() {
            if crate::drivers::compiled() {
                $cases.iter().for_each(crate::run::on_cuda);
            }
        }
    };
}
pub(crate) use operation;

/// Builds a case: declares inputs and weights, and remembers their values.
pub struct CaseBuilder {
    pub graph: Builder,
    name: String,
    inputs: Vec<TensorData<'static>>,
    weights: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    scopes: Vec<Scope>,
    want: Vec<Vec<f64>>,
    fused_nodes: Option<usize>,
    launches: Vec<&'static str>,
    avoids: Vec<&'static str>,
    cuda_refuses: Option<&'static str>,
    f32_error: f64,
}

impl CaseBuilder {
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            graph: Builder::new(),
            name: name.into(),
            inputs: Vec::new(),
            weights: BTreeMap::new(),
            scopes: Vec::new(),
            want: Vec::new(),
            fused_nodes: None,
            launches: Vec::new(),
            avoids: Vec::new(),
            cuda_refuses: None,
            f32_error: 2e-6,
        }
    }

    /// An input of values in -1..1.
    pub fn input(&mut self, name: &str, shape: &[usize], seed: u32) -> (NodeId, Vec<f64>) {
        self.given(name, shape, values(shape.iter().product(), seed))
    }

    /// An input of these values.
    pub fn given(&mut self, name: &str, shape: &[usize], data: Vec<f32>) -> (NodeId, Vec<f64>) {
        let wide = data.iter().map(|v| f64::from(*v)).collect();
        self.inputs.push(data.into());
        (self.graph.input(name, shape), wide)
    }

    /// An input of these integers.
    pub fn integers(&mut self, name: &str, shape: &[usize], data: &[i32]) -> NodeId {
        self.inputs.push(data.to_vec().into());
        self.graph.input_i32(name, shape)
    }

    /// Values of an input that the graph declares by itself, as its last one.
    pub fn bound(&mut self, data: Vec<f32>) {
        self.inputs.push(data.into());
    }

    /// A weight in f32, see [`weight_values`].
    pub fn weight(&mut self, name: &str, shape: &[usize], seed: u32) -> Vec<f64> {
        let data = weight_values(shape, seed);
        let wide = data.iter().map(|v| f64::from(*v)).collect();
        self.weights.insert(name.to_owned(), (shape.to_vec(), data));
        wide
    }

    /// The weights declared so far. One that a graph asks for and that is not among them fails [`CaseBuilder::finish`].
    pub fn scope(&mut self) -> Scope {
        let mut weights = Weights::new("test");
        for (name, (shape, data)) in &self.weights {
            weights.insert(name.as_str(), Weight::from_f32(data, shape, name).unwrap()).unwrap();
        }
        let scope = Scope::new(weights);
        self.scopes.push(scope.clone());
        scope
    }

    pub fn output(&mut self, id: NodeId, want: Vec<f64>) {
        self.graph.output(format!("output {}", self.want.len()), id);
        self.want.push(want);
    }

    pub fn fused_nodes(&mut self, nodes: usize) {
        self.fused_nodes = Some(nodes);
    }

    pub fn launches(&mut self, kernel: &'static str) {
        self.launches.push(kernel);
    }

    pub fn avoids(&mut self, kernel: &'static str) {
        self.avoids.push(kernel);
    }

    pub fn cuda_refuses(&mut self, message: &'static str) {
        self.cuda_refuses = Some(message);
    }

    /// For a case whose rounding is large by its nature; the default is 2e-6.
    pub fn f32_error(&mut self, error: f64) {
        self.f32_error = error;
    }

    pub fn finish(self) -> Case {
        let Self { graph, name, inputs, scopes, want, fused_nodes, launches, avoids, cuda_refuses, f32_error, .. } =
            self;
        scopes.iter().for_each(|scope| drop(scope.finish(&name).unwrap()));
        let graph = graph.finish().unwrap_or_else(|e| panic!("{name}: {e}"));
        Case { name, graph, inputs, want, fused_nodes, launches, avoids, cuda_refuses, f32_error }
    }
}
