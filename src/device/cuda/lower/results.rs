//! What becomes of results on the device: a decoder's output turns into pixels, and whether all are finite is noted.

use super::super::driver::command::Command;
use super::super::params::{FiniteParams, Pointer, Rgb8Params};
use super::super::tiles::blocks;
use super::{Lowering, launch, long};
use crate::device::Role;
use crate::error::Result;
use crate::graph::Graph;
use crate::tensor::DType;

/// Elements of a block of both kernels.
const BLOCK: usize = 1024;
/// Each byte of the flag until something is not finite; the flag is 0 then.
const FINITE: u8 = 0x7f;

/// Bytes of the pixels and of the flag after them.
pub(super) fn sizes(graph: &Graph, role: &Role) -> [usize; 2] {
    let pixels = match (role, graph.outputs.first()) {
        (Role::Decode { .. }, Some((_, id))) => graph.node(*id).len().next_multiple_of(4),
        _ => 0,
    };
    [pixels, 4]
}

impl Lowering<'_> {
    /// Comes after the nodes.
    pub(super) fn results(&mut self, role: &Role) -> Result<()> {
        let regions = self.regions;
        let [x, out, flag] = [regions.outputs, regions.pixels, regions.flag].map(|at| self.kept(at));
        let truncate = match role {
            Role::Condition => None,
            Role::Decode { truncate } => Some(i32::from(*truncate)),
            Role::Plain | Role::Denoise(_) => return Ok(()),
        };
        // What lies between outputs is zero for ever.
        let count = self.bindings.results;
        self.steps.push(Command::Memset(flag, 4, FINITE));
        let params = FiniteParams { x: Pointer(x), flag: Pointer(flag), count: long(count), value: 0, reserved: 0 };
        self.steps.push(Command::Launch(launch(DType::F32, "finite", [blocks(count, BLOCK), 1, 1], params)?));
        if let (Some(truncate), Some((_, id))) = (truncate, self.graph.outputs.first()) {
            let count = self.graph.node(*id).len();
            let x = Pointer(x + self.bindings.outputs[0] as u64 * 4);
            let params = Rgb8Params { x, out: Pointer(out), count: long(count), truncate, reserved: 0 };
            self.launch("rgb8", [blocks(count, BLOCK), 1, 1], params)?;
        }
        Ok(())
    }
}
