//! Operations of warps and blocks: barriers, shuffles, votes, reductions, matrix products.

use super::decoder::Decoder;
use super::opcode::{Decoded, Opcode};
use crate::counts::InstructionKind;
use crate::instruction::{
    BarReduce, Barrier, Collective, CollectiveOp, ElementType, Mma, NONE, Op, Pred, Reg, ShflMode,
};
use crate::parse::Operand;

impl<'a> Decoder<'a> {
    /// Decodes an instruction of this family; `false` if the opcode is of another.
    pub fn decode_warp(&mut self, op: &mut Opcode<'a>, o: &[Operand<'a>]) -> Decoded<bool> {
        let base = op.base;
        match base {
            "bar" if op.take("warp") => {
                if !op.take("sync") {
                    return Err("bar.warp without .sync".to_owned());
                }
                op.done()?;
                let members = self.src32(o.first().ok_or("bar.warp.sync without a mask")?)?;
                self.collective(CollectiveOp::Barrier, members, |_| {});
            }
            "bar" | "barrier" => self.barrier(op, o)?,
            "membar" | "fence" => {
                let known =
                    ["cta", "gl", "sys", "gpu", "sc", "acq_rel", "acquire", "release", "cluster", "proxy", "alias"];
                while op.find(|m| known.contains(&m).then_some(())).is_some() {}
                op.done()?;
                self.emit(Op::Nop, InstructionKind::Barrier);
            }
            "shfl" => self.shuffle(op, o)?,
            "vote" => self.vote(op, o)?,
            "match" => self.matching(op, o)?,
            "redux" => self.redux(op, o)?,
            "activemask" => {
                op.take("b32");
                op.done()?;
                let d = self.dst32(o.first().ok_or("no operands")?)?;
                self.emit(Op::ActiveMask { d }, InstructionKind::Warp);
            }
            "mma" => self.mma(op, o)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Emits an operation over the lanes of a member mask; `set` fills in its operands.
    fn collective(&mut self, op: CollectiveOp, members: u32, set: impl FnOnce(&mut Collective)) {
        let none = Reg::None;
        let mut w = Collective { op, dst: none, pred: NONE, a: none, b: none, c: none, vote: Pred::TRUE, members };
        set(&mut w);
        let kind = if op == CollectiveOp::Barrier { InstructionKind::Barrier } else { InstructionKind::Warp };
        self.emit(Op::Collective(Box::new(w)), kind);
    }

    /// Emits the election of one lane of a member mask.
    pub(super) fn elect(&mut self, d: Reg, p: u32, members: u32) {
        self.collective(CollectiveOp::Elect, members, |w| (w.dst, w.pred) = (d, p));
    }

    /// Decodes `bar` and `barrier`.
    fn barrier(&mut self, op: &mut Opcode<'a>, o: &[Operand<'a>]) -> Decoded {
        let aligned = op.take("aligned") || op.base == "bar";
        op.take("cta");
        let (sync, arrive, red) = (op.take("sync"), op.take("arrive"), op.take("red"));
        let mut barrier = Barrier { id: NONE, count: NONE, arrive, aligned, reduce: None, dst: NONE };
        let mut rest = o;
        if red {
            let which = op.find(|m| match m {
                "popc" => Some(BarReduce::Popc),
                "and" => Some(BarReduce::And),
                "or" => Some(BarReduce::Or),
                _ => None,
            });
            let ty = op.last()?;
            let (Some(which), [d, middle @ .., p]) = (which, o) else { return Err("bar.red of that form".to_owned()) };
            barrier.reduce = Some((which, self.pred(p)?));
            barrier.dst = if ty == "pred" { self.dst_pred(d)? } else { self.dst32(d)? };
            rest = middle;
        }
        op.done()?;
        if u8::from(sync) + u8::from(arrive) + u8::from(red) != 1 {
            return Err("a barrier that neither waits nor arrives".to_owned());
        }
        match rest {
            [id] if !arrive => barrier.id = self.src32(id)?,
            [id, count] => {
                barrier.id = self.src32(id)?;
                barrier.count = self.src32(count)?;
            }
            _ => return Err("a barrier without a number".to_owned()),
        }
        self.emit(Op::Barrier(Box::new(barrier)), InstructionKind::Barrier);
        Ok(())
    }

    /// Decodes `shfl.sync`.
    fn shuffle(&mut self, op: &mut Opcode<'a>, o: &[Operand<'a>]) -> Decoded {
        let mode = op.find(|m| match m {
            "up" => Some(ShflMode::Up),
            "down" => Some(ShflMode::Down),
            "bfly" => Some(ShflMode::Bfly),
            "idx" => Some(ShflMode::Idx),
            _ => None,
        });
        let known = op.take("sync") & op.take("b32");
        op.done()?;
        let (Some(mode), true, [to, a, b, c, members]) = (mode, known, o) else {
            return Err("shfl of that form".to_owned());
        };
        let (d, p) = match to {
            Operand::Pair(d, p) => (self.dst(d)?, self.dst_pred(p)?),
            d => (self.dst(d)?, NONE),
        };
        let (a, b, c) = (self.src(a, 4)?, self.src(b, 4)?, self.src(c, 4)?);
        let members = self.src32(members)?;
        self.collective(CollectiveOp::Shfl(mode), members, |w| {
            (w.dst, w.pred, w.a, w.b, w.c) = (d, p, a, b, c);
        });
        Ok(())
    }

    /// Decodes `vote.sync`.
    fn vote(&mut self, op: &mut Opcode<'a>, o: &[Operand<'a>]) -> Decoded {
        let which = op.find(|m| match m {
            "all" => Some(CollectiveOp::VoteAll),
            "any" => Some(CollectiveOp::VoteAny),
            "uni" => Some(CollectiveOp::VoteUni),
            "ballot" => Some(CollectiveOp::Ballot),
            _ => None,
        });
        let known = op.take("sync") & (op.take("pred") | op.take("b32"));
        op.done()?;
        let (Some(which), true, [d, p, members]) = (which, known, o) else {
            return Err("vote of that form".to_owned());
        };
        let vote = self.pred(p)?;
        let members = self.src32(members)?;
        let (dst, pred) =
            if which == CollectiveOp::Ballot { (self.dst(d)?, NONE) } else { (Reg::None, self.dst_pred(d)?) };
        self.collective(which, members, |w| (w.dst, w.pred, w.vote) = (dst, pred, vote));
        Ok(())
    }

    /// Decodes `match.sync`.
    fn matching(&mut self, op: &mut Opcode<'a>, o: &[Operand<'a>]) -> Decoded {
        let (any, all) = (op.take("any"), op.take("all"));
        let known = op.take("sync");
        let bytes = if op.take("b64") {
            8
        } else if op.take("b32") {
            4
        } else {
            0
        };
        op.done()?;
        let (true, true, [to, a, members]) = (known && bytes != 0, any != all, o) else {
            return Err("match of that form".to_owned());
        };
        let (d, p) = match to {
            Operand::Pair(d, p) => (self.dst(d)?, self.dst_pred(p)?),
            d => (self.dst(d)?, NONE),
        };
        let a = self.src(a, bytes)?;
        let members = self.src32(members)?;
        let which = if any { CollectiveOp::MatchAny } else { CollectiveOp::MatchAll };
        self.collective(which, members, |w| (w.dst, w.pred, w.a) = (d, p, a));
        Ok(())
    }

    /// Decodes `redux.sync`.
    fn redux(&mut self, op: &mut Opcode<'a>, o: &[Operand<'a>]) -> Decoded {
        let ty = op.last()?;
        let signed = ty == "s32";
        let which = op.find(|m| match (m, signed) {
            ("add", _) => Some(CollectiveOp::ReduxAdd),
            ("min", false) => Some(CollectiveOp::ReduxMin),
            ("max", false) => Some(CollectiveOp::ReduxMax),
            ("min", true) => Some(CollectiveOp::ReduxSMin),
            ("max", true) => Some(CollectiveOp::ReduxSMax),
            ("and", _) => Some(CollectiveOp::ReduxAnd),
            ("or", _) => Some(CollectiveOp::ReduxOr),
            ("xor", _) => Some(CollectiveOp::ReduxXor),
            _ => None,
        });
        let known = op.take("sync") && matches!(ty, "s32" | "u32" | "b32");
        op.done()?;
        let (Some(which), true, [d, a, members]) = (which, known, o) else {
            return Err("redux of that form".to_owned());
        };
        let (d, a) = (self.dst(d)?, self.src(a, 4)?);
        let members = self.src32(members)?;
        self.collective(which, members, |w| (w.dst, w.a) = (d, a));
        Ok(())
    }

    /// Decodes `mma.sync`.
    fn mma(&mut self, op: &mut Opcode<'a>, o: &[Operand<'a>]) -> Decoded {
        let known = op.take("sync") & op.take("aligned") & op.take("row") & op.take("col");
        let shape = op.find(|m| match m {
            "m16n8k4" => Some(4),
            "m16n8k8" => Some(8),
            "m16n8k16" => Some(16),
            _ => None,
        });
        let types = std::mem::take(&mut op.modifiers);
        let (elem, half) = match types.as_slice() {
            ["f32", "f16", "f16", "f32"] => (ElementType::F16, false),
            ["f16", "f16", "f16", "f16"] => (ElementType::F16, true),
            ["f32", "bf16", "bf16", "f32"] => (ElementType::Bf16, false),
            ["f32", "tf32", "tf32", "f32"] => (ElementType::Tf32, false),
            _ => return Err(format!("mma of types .{}", types.join("."))),
        };
        let (Some(k), true, [d, a, b, c]) = (shape, known, o) else { return Err("mma of that form".to_owned()) };
        // Registers of A and B: 16 x k and k x 8 elements over 32 lanes, of two or four bytes.
        let (na, nb) = match (elem, k) {
            (ElementType::Tf32, 4) => (2, 1),
            (ElementType::Tf32, 8) => (4, 2),
            (ElementType::F16 | ElementType::Bf16, 8) => (2, 1),
            (ElementType::F16 | ElementType::Bf16, 16) => (4, 2),
            _ => return Err(format!("mma of k = {k} for that type")),
        };
        let nc = if half { 2 } else { 4 };
        let mut sources = [Vec::new(), Vec::new(), Vec::new()];
        for (list, (operand, n)) in sources.iter_mut().zip([(a, na), (b, nb), (c, nc)]) {
            for element in self.elements(operand).to_vec() {
                list.push(self.src32(&element)?);
            }
            if list.len() != n {
                return Err(format!("a fragment of {} registers where {n} are expected", list.len()));
            }
        }
        let mut to = Vec::new();
        for element in self.elements(d).to_vec() {
            to.push(self.dst32(&element)?);
        }
        if to.len() != nc {
            return Err(format!("a result of {} registers where {nc} are expected", to.len()));
        }
        let [a, b, c] = sources;
        self.emit(Op::Mma(Box::new(Mma { k, elem, half, d: to, a, b, c })), InstructionKind::Mma);
        Ok(())
    }
}
