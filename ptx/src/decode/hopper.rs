//! Instructions of sm_90: mbarriers, tensor maps, clusters; bulk copies and `wgmma` have files of their own.

use super::decoder::Decoder;
use super::opcode::{Decoded, Opcode};
use crate::asynchronous::{MapAction, MapOp, MbarrierAction, MbarrierOp};
use crate::counts::InstructionKind;
use crate::instruction::{Address, NONE, Op, Reg};
use crate::memory::MapField;
use crate::parse::{Number, Operand};
use crate::space::StateSpace;

/// No address.
pub(super) const NOWHERE: Address = Address { base: Reg::None, offset: 0 };

/// The shared memory of the block or of the cluster.
pub(super) fn shared_space(m: &str) -> Option<StateSpace> {
    matches!(m, "shared" | "shared::cta" | "shared::cluster").then_some(StateSpace::Shared)
}

/// Modifiers of order and scope, which the checks take from the operation.
fn take_order(op: &mut Opcode) {
    let known = ["relaxed", "acquire", "release", "acq_rel", "cta", "cluster", "gpu", "sys"];
    while op.find(|m| known.contains(&m).then_some(())).is_some() {}
}

pub(super) fn integer(operand: &Operand) -> Decoded<u32> {
    match operand {
        Operand::Number(Number::Int(n)) => Ok((*n).clamp(0, u32::MAX.into()) as u32),
        _ => Err("an operand that is no number".to_owned()),
    }
}

impl<'a> Decoder<'a> {
    /// Decodes an instruction of this family; `false` if the opcode is of another.
    pub fn decode_hopper(&mut self, op: &mut Opcode<'a>, o: &[Operand<'a>]) -> Decoded<bool> {
        let base = op.base;
        match base {
            "mbarrier" => self.mbarrier(op, o)?,
            "cp" if op.modifiers.starts_with(&["async", "mbarrier"]) => self.copy_arrival(op, o)?,
            "cp" if op.modifiers.contains(&"bulk") => self.bulk(op, o)?,
            "tensormap" => self.tensor_map(op, o)?,
            "fence" if op.modifiers.contains(&"proxy") || op.modifiers.iter().any(|m| m.starts_with("proxy::")) => {
                self.proxy_fence(op, o)?;
            }
            "fence" if op.take("mbarrier_init") => {
                take_order(op);
                op.done()?;
                self.emit(Op::Nop, InstructionKind::Barrier);
            }
            "wgmma" => self.wgmma(op, o)?,
            "elect" => {
                op.take("sync");
                op.done()?;
                let [to, members] = o else { return Err("elect of that form".to_owned()) };
                let (d, p) = match to {
                    Operand::Pair(d, p) => (self.dst(d)?, self.dst_pred(p)?),
                    p => (Reg::None, self.dst_pred(p)?),
                };
                let members = self.src32(members)?;
                self.elect(d, p, members);
            }
            "setmaxnreg" => {
                let (inc, dec) = (op.take("inc"), op.take("dec"));
                let known = op.take("sync") & op.take("aligned") & op.take("u32");
                op.done()?;
                let (true, true, [count]) = (known, inc != dec, o) else {
                    return Err("setmaxnreg of that form".to_owned());
                };
                let count = integer(count)?;
                self.emit(Op::SetRegisters { count, increase: inc }, InstructionKind::Other);
            }
            "mapa" | "getctarank" => self.cluster_address(op, o)?,
            "barrier" if op.take("cluster") => {
                let (arrive, wait) = (op.take("arrive"), op.take("wait"));
                op.take("aligned");
                take_order(op);
                op.done()?;
                match (arrive, wait) {
                    (true, false) => self.emit(Op::ClusterArrive, InstructionKind::Barrier),
                    (false, true) => self.emit(Op::ClusterWait, InstructionKind::Barrier),
                    _ => return Err("barrier.cluster of that form".to_owned()),
                }
            }
            "griddepcontrol" => {
                let waits = op.take("wait");
                if !waits && !op.take("launch_dependents") {
                    return Err("griddepcontrol of that form".to_owned());
                }
                op.done()?;
                // The next launch begins when it likes.
                self.emit(if waits { Op::GridWait } else { Op::Nop }, InstructionKind::Other);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn mbarrier(&mut self, op: &mut Opcode<'a>, o: &[Operand<'a>]) -> Decoded {
        let parity = op.take("parity");
        let mut action = op
            .find(|m| {
                Some(match m {
                    "init" => MbarrierAction::Init,
                    "inval" => MbarrierAction::Inval,
                    "arrive" => MbarrierAction::Arrive,
                    "arrive_drop" => MbarrierAction::ArriveDrop,
                    "complete_tx" => MbarrierAction::CompleteBytes,
                    "test_wait" | "try_wait" => MbarrierAction::TestWait { parity },
                    "pending_count" => MbarrierAction::PendingCount,
                    _ => return None,
                })
            })
            .unwrap_or(MbarrierAction::ExpectBytes);
        if op.take("expect_tx") && action == MbarrierAction::Arrive {
            action = MbarrierAction::ArriveExpectBytes;
        } else if op.take("noComplete") && action == MbarrierAction::Arrive {
            action = MbarrierAction::ArriveNoComplete;
        }
        take_order(op);
        let space = op.find(shared_space).unwrap_or(StateSpace::Generic);
        let known = op.take("b64");
        op.done()?;
        if !known {
            return Err("mbarrier without .b64".to_owned());
        }
        let mut m = MbarrierOp { action, space, addr: NOWHERE, dst: Reg::None, pred: NONE, a: Reg::None };
        let one = Reg::B32(self.constant32(1));
        match (action, o) {
            (MbarrierAction::Inval, [at]) => (m.addr, m.a) = (self.address(at, space)?.0, one),
            (MbarrierAction::Init | MbarrierAction::ExpectBytes | MbarrierAction::CompleteBytes, [at, n]) => {
                (m.addr, m.a) = (self.address(at, space)?.0, Reg::B32(self.src32(n)?));
            }
            (MbarrierAction::TestWait { parity }, [p, at, state] | [p, at, state, _]) => {
                m.pred = self.dst_pred(p)?;
                m.addr = self.address(at, space)?.0;
                m.a = if parity { Reg::B32(self.src32(state)?) } else { Reg::B64(self.src64(state)?) };
            }
            (MbarrierAction::PendingCount, [d, state]) => (m.dst, m.a) = (self.dst(d)?, Reg::B64(self.src64(state)?)),
            (_, [at] | [at, _]) if matches!(at, Operand::Address(..)) => {
                m.addr = self.address(at, space)?.0;
                m.a = o.get(1).map_or(Ok(one), |n| self.src32(n).map(Reg::B32))?;
            }
            (_, [d, at] | [d, at, _]) => {
                m.dst = self.dst(d)?;
                m.addr = self.address(at, space)?.0;
                m.a = o.get(2).map_or(Ok(one), |n| self.src32(n).map(Reg::B32))?;
            }
            _ => return Err("mbarrier of that form".to_owned()),
        }
        self.emit(Op::Mbarrier(Box::new(m)), InstructionKind::Barrier);
        Ok(())
    }

    fn copy_arrival(&mut self, op: &mut Opcode<'a>, o: &[Operand<'a>]) -> Decoded {
        let known = op.take("async") & op.take("mbarrier") & op.take("arrive");
        let action = if op.take("noinc") { MbarrierAction::ArriveNoComplete } else { MbarrierAction::Arrive };
        let space = op.find(shared_space).unwrap_or(StateSpace::Generic);
        op.take("b64");
        op.done()?;
        let (true, [at]) = (known, o) else { return Err("cp.async.mbarrier of that form".to_owned()) };
        let addr = self.address(at, space)?.0;
        let m = MbarrierOp { action, space, addr, dst: Reg::None, pred: NONE, a: Reg::None };
        self.emit(Op::ArriveAfterCopies(Box::new(m)), InstructionKind::AsyncCopy);
        Ok(())
    }

    fn tensor_map(&mut self, op: &mut Opcode<'a>, o: &[Operand<'a>]) -> Decoded {
        if op.take("cp_fenceproxy") {
            // tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu.sync.aligned [to], [from], 128
            let [to, from, _] = o else { return Err("tensormap.cp_fenceproxy of that form".to_owned()) };
            let addr = self.address(to, StateSpace::Global)?.0;
            let from = self.address(from, StateSpace::Shared)?.0;
            let op = MapOp { action: MapAction::CopyFence, addr, from, value: Reg::None };
            self.emit(Op::TensorMap(Box::new(op)), InstructionKind::Barrier);
            return Ok(());
        }
        let known = op.take("replace") & op.take("tile");
        let name = op.modifiers.first().copied().unwrap_or("");
        op.modifiers.retain(|m| *m != name);
        let space = op.find(|m| match m {
            "global" => Some(StateSpace::Global),
            _ => shared_space(m),
        });
        let known = known & op.take("b1024");
        let wide = op.take("b64");
        op.take("b32");
        op.done()?;
        let (index, value) = match o {
            [_, value] => (0, value),
            [_, index, value] => (integer(index)? as u8, value),
            _ => return Err("tensormap.replace of that form".to_owned()),
        };
        let field = match name {
            "global_address" => MapField::Address,
            "rank" => MapField::Rank,
            "box_dim" => MapField::BoxDim(index),
            "global_dim" => MapField::GlobalDim(index),
            "global_stride" => MapField::GlobalStride(index),
            "element_stride" => MapField::ElementStride(index),
            "elemtype" => MapField::ElementType,
            "interleave_layout" => MapField::Interleave,
            "swizzle_mode" => MapField::Swizzle,
            "fill_mode" => MapField::Fill,
            _ => return Err(format!("tensormap.replace of {name}")),
        };
        if !known || index > 4 {
            return Err("tensormap.replace of that form".to_owned());
        }
        let value = if wide { Reg::B64(self.src64(value)?) } else { Reg::B32(self.src32(value)?) };
        let addr = self.address(&o[0], space.unwrap_or(StateSpace::Generic))?.0;
        let op = MapOp { action: MapAction::Replace(field), addr, from: NOWHERE, value };
        self.emit(Op::TensorMap(Box::new(op)), InstructionKind::Other);
        Ok(())
    }

    fn proxy_fence(&mut self, op: &mut Opcode<'a>, o: &[Operand<'a>]) -> Decoded {
        let map = op.find(|m| m.starts_with("tensormap").then_some(())).is_some();
        let acquire = op.modifiers.contains(&"acquire");
        let of_async = op.find(|m| m.starts_with("async").then_some(())).is_some();
        let alias = op.take("alias");
        op.take("proxy");
        take_order(op);
        op.find(|m| matches!(m, "global" | "shared::cta" | "shared::cluster").then_some(()));
        op.find(|m| m.starts_with("sync_restrict").then_some(()));
        op.done()?;
        match o {
            [at, ..] if map && acquire => {
                let addr = self.address(at, StateSpace::Generic)?.0;
                let op = MapOp { action: MapAction::Acquire, addr, from: NOWHERE, value: Reg::None };
                self.emit(Op::TensorMap(Box::new(op)), InstructionKind::Barrier);
            }
            _ if of_async => self.emit(Op::FenceProxy, InstructionKind::Barrier),
            _ if map || alias => self.emit(Op::Nop, InstructionKind::Barrier),
            _ => return Err("fence.proxy of that form".to_owned()),
        }
        Ok(())
    }

    fn cluster_address(&mut self, op: &mut Opcode<'a>, o: &[Operand<'a>]) -> Decoded {
        let bytes = match op.last()? {
            "u32" => 4,
            "u64" => 8,
            ty => return Err(format!("`{}` of .{ty}", op.base)),
        };
        let generic = op.find(shared_space).is_none();
        op.done()?;
        match (op.base, o) {
            ("mapa", [d, a, rank]) => {
                let (d, a, rank) = (self.dst(d)?, self.src(a, bytes)?, self.src32(rank)?);
                self.emit(Op::MapAddress { d, a, rank, generic }, InstructionKind::Integer);
            }
            ("getctarank", [d, a]) => {
                let (d, a) = (self.dst(d)?, self.src(a, bytes)?);
                self.emit(Op::RankOfAddress { d, a }, InstructionKind::Integer);
            }
            _ => return Err(format!("`{}` of that form", op.base)),
        }
        Ok(())
    }
}
