//! Loads, stores, atomics, asynchronous copies, matrix loads.

use super::decoder::Decoder;
use super::opcode::{Decoded, Opcode};
use crate::counts::InstructionKind;
use crate::instruction::{Access, Atom, AtomOp, CopyAsync, MatrixAccess, NONE, Op, Reg};
use crate::kernel::Const64;
use crate::parse::{Number, Operand, type_bytes};
use crate::space::StateSpace;

/// Whether a modifier is a hint that does not change the result.
fn is_hint(m: &str) -> bool {
    m.starts_with("L1::")
        || m.starts_with("L2::")
        || matches!(
            m,
            "ca" | "cg" | "cs" | "lu" | "cv" | "wb" | "wt" | "nc" | "weak" | "cta" | "cluster" | "gpu" | "sys" | "mmio"
        )
}

/// The state space of a modifier.
fn space_of(m: &str) -> Option<StateSpace> {
    Some(match m {
        // The interpreter keeps constant variables in global memory.
        "global" | "const" => StateSpace::Global,
        "shared" | "shared::cta" | "shared::cluster" => StateSpace::Shared,
        "local" => StateSpace::Local,
        "param" | "param::entry" | "param::func" => StateSpace::Param,
        _ => return None,
    })
}

impl<'a> Decoder<'a> {
    /// Decodes an instruction of this family; `false` if the opcode is of another.
    pub fn decode_memory(&mut self, op: &mut Opcode<'a>, o: &[Operand<'a>]) -> Decoded<bool> {
        let base = op.base;
        match base {
            "ld" | "ldu" | "st" => self.access(op, o)?,
            "atom" | "red" => self.atom(op, o)?,
            "cp" if op.take("async") => self.copy_async(op, o)?,
            "ldmatrix" | "stmatrix" => self.matrix(op, o)?,
            "createpolicy" => {
                // Policies are used by hints only.
                let d = self.dst64(o.first().ok_or("no operands")?)?;
                let a = self.constant64(Const64::Value(0));
                self.emit(Op::Mov64 { d, a }, InstructionKind::Other);
            }
            "discard" | "applypriority" => self.emit(Op::Nop, InstructionKind::Other),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Takes the hints, and returns whether the last operand is a cache policy.
    fn hints(op: &mut Opcode<'a>) -> bool {
        let policy = op.take("L2::cache_hint");
        while op.find(|m| is_hint(m).then_some(())).is_some() {}
        policy
    }

    /// Decodes `ld` and `st`.
    fn access(&mut self, op: &mut Opcode<'a>, o: &[Operand<'a>]) -> Decoded {
        let store = op.base == "st";
        let ty = op.last()?;
        let Some(bytes) = type_bytes(ty).filter(|b| *b <= 8) else { return Err(format!("`{}.{ty}`", op.base)) };
        let policy = Self::hints(op);
        let strong = op.take("volatile") | op.take("relaxed") | op.take("acquire") | op.take("release");
        let space = op.find(space_of).unwrap_or(StateSpace::Generic);
        let count = if op.take("v2") {
            2
        } else if op.take("v4") {
            4
        } else {
            1
        };
        op.done()?;
        if o.len() != 2 + usize::from(policy) || bytes * count as u64 > 16 {
            return Err(format!("`{}` with {} operands of that size", op.base, o.len()));
        }
        let (value, at) = if store { (&o[1], &o[0]) } else { (&o[0], &o[1]) };
        let elements = self.elements(value).to_vec();
        if elements.len() != count {
            return Err(format!("{} elements where the type has {count}", elements.len()));
        }
        let mut regs = Vec::new();
        for element in &elements {
            regs.push(if store {
                match element {
                    Operand::Number(_) => self.src(element, bytes)?,
                    _ => self.source(element)?,
                }
            } else {
                self.dst(element)?
            });
        }
        let (addr, space) = self.address(at, space)?;
        let kind = match (space, store) {
            (StateSpace::Shared, false) => InstructionKind::SharedLoad,
            (StateSpace::Shared, true) => InstructionKind::SharedStore,
            (StateSpace::Global | StateSpace::Generic, false) => InstructionKind::GlobalLoad,
            (StateSpace::Global | StateSpace::Generic, true) => InstructionKind::GlobalStore,
            (StateSpace::Local | StateSpace::Param, _) => InstructionKind::Local,
        };
        let access = Access { space, addr, width: bytes as u8, signed: ty.starts_with('s'), strong, regs };
        self.emit(if store { Op::Store(Box::new(access)) } else { Op::Load(Box::new(access)) }, kind);
        Ok(())
    }

    /// Decodes `atom` and `red`.
    fn atom(&mut self, op: &mut Opcode<'a>, o: &[Operand<'a>]) -> Decoded {
        let red = op.base == "red";
        let ty = op.last()?;
        let _ = Self::hints(op);
        while op
            .find(|m| matches!(m, "relaxed" | "acquire" | "release" | "acq_rel" | "noftz" | "async").then_some(()))
            .is_some()
        {}
        let space = op.find(space_of).unwrap_or(StateSpace::Generic);
        let Some(name) = op.find(|m| {
            ["add", "exch", "cas", "min", "max", "and", "or", "xor", "inc", "dec"].iter().find(|n| **n == m).copied()
        }) else {
            return Err("an atomic of unknown kind".to_owned());
        };
        op.done()?;
        let which = match (name, ty) {
            ("add", "f32") => AtomOp::FAdd32,
            ("add", "f64") => AtomOp::FAdd64,
            ("add", "f16x2") => AtomOp::HAdd2,
            ("add", "bf16x2") => AtomOp::BAdd2,
            (_, "f32" | "f64" | "f16x2" | "bf16x2" | "f16" | "bf16" | "b16" | "b128") => {
                return Err(format!("atomic {name} of .{ty}"));
            }
            ("add", _) => AtomOp::Add,
            ("exch", _) => AtomOp::Exch,
            ("cas", _) => AtomOp::Cas,
            ("min", "s32" | "s64") => AtomOp::SMin,
            ("max", "s32" | "s64") => AtomOp::SMax,
            ("min", _) => AtomOp::Min,
            ("max", _) => AtomOp::Max,
            ("and", _) => AtomOp::And,
            ("or", _) => AtomOp::Or,
            ("xor", _) => AtomOp::Xor,
            ("inc", _) => AtomOp::Inc,
            _ => AtomOp::Dec,
        };
        let Some(bytes @ (4 | 8)) = type_bytes(ty) else { return Err(format!("atomic {name} of .{ty}")) };
        let (dst, rest) = if red { (Reg::None, o) } else { (self.dst(o.first().ok_or("no operands")?)?, &o[1..]) };
        let need = if which == AtomOp::Cas { 3 } else { 2 };
        if rest.len() < need {
            return Err("an atomic with too few operands".to_owned());
        }
        let (addr, space) = self.address(&rest[0], space)?;
        let b = self.src(&rest[1], bytes)?;
        let c = if need == 3 { self.src(&rest[2], bytes)? } else { Reg::None };
        let atom = Atom { op: which, space, addr, wide: bytes == 8, dst, b, c };
        self.emit(Op::Atom(Box::new(atom)), InstructionKind::Atomic);
        Ok(())
    }

    /// Decodes `cp.async` with its groups and waits.
    fn copy_async(&mut self, op: &mut Opcode<'a>, o: &[Operand<'a>]) -> Decoded {
        if op.take("commit_group") {
            op.done()?;
            self.emit(Op::Commit, InstructionKind::AsyncCopy);
            return Ok(());
        }
        if op.take("wait_all") {
            op.done()?;
            self.emit(Op::Wait { left: u32::MAX }, InstructionKind::AsyncCopy);
            return Ok(());
        }
        if op.take("wait_group") {
            op.done()?;
            let [Operand::Number(Number::Int(n))] = o else {
                return Err("cp.async.wait_group without a number".to_owned());
            };
            self.emit(Op::Wait { left: (*n).clamp(0, 1 << 20) as u32 }, InstructionKind::AsyncCopy);
            return Ok(());
        }
        let (ca, cg) = (op.modifiers.contains(&"ca"), op.modifiers.contains(&"cg"));
        let policy = Self::hints(op);
        let shared = op.take("shared") || op.take("shared::cta");
        if !(shared && op.take("global")) || ca == cg {
            return Err("cp.async of that form".to_owned());
        }
        op.done()?;
        let o = if policy { &o[..o.len() - 1] } else { o };
        let [dst, src, Operand::Number(Number::Int(size)), rest @ ..] = o else {
            return Err("cp.async with other operands than two addresses and a size".to_owned());
        };
        if !matches!((size, cg), (4 | 8, false) | (16, _)) {
            return Err(format!("cp.async of {size} bytes"));
        }
        let (mut src_size, mut ignore) = (Reg::None, None);
        match rest {
            [] => {}
            [x] if self.is_pred(x) => ignore = Some(self.pred(x)?),
            [x] => src_size = Reg::B32(self.src32(x)?),
            _ => return Err("cp.async with too many operands".to_owned()),
        }
        let (dst, _) = self.address(dst, StateSpace::Shared)?;
        let (src, _) = self.address(src, StateSpace::Global)?;
        self.emit(
            Op::CopyAsync(Box::new(CopyAsync { dst, src, size: *size as u8, src_size, ignore })),
            InstructionKind::AsyncCopy,
        );
        Ok(())
    }

    /// Decodes `ldmatrix` and `stmatrix`.
    fn matrix(&mut self, op: &mut Opcode<'a>, o: &[Operand<'a>]) -> Decoded {
        let store = op.base == "stmatrix";
        let known = op.take("sync") & op.take("aligned") & op.take("m8n8") & op.take("b16");
        let count = op.find(|m| match m {
            "x1" => Some(1),
            "x2" => Some(2),
            "x4" => Some(4),
            _ => None,
        });
        let trans = op.take("trans");
        let space = op.find(space_of);
        op.done()?;
        let (Some(count), Some(StateSpace::Shared) | None, true, [first, second]) = (count, space, known, o) else {
            return Err(format!("`{}` of that form", op.base));
        };
        let (list, at) = if store { (second, first) } else { (first, second) };
        let mut regs = Vec::new();
        for element in self.elements(list).to_vec() {
            regs.push(if store { self.src32(&element)? } else { self.dst32(&element)? });
        }
        if regs.len() != count || regs.contains(&NONE) {
            return Err(format!("{} registers for {count} matrices", regs.len()));
        }
        let space = space.unwrap_or(StateSpace::Generic);
        if space == StateSpace::Generic {
            return Err("a matrix load from a generic address".to_owned());
        }
        let (addr, _) = self.address(at, space)?;
        let kind = if store { InstructionKind::SharedStore } else { InstructionKind::Ldmatrix };
        self.emit(Op::Matrix(Box::new(MatrixAccess { addr, trans, store, regs })), kind);
        Ok(())
    }
}
