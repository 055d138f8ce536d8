//! Moves, address conversions, logic on predicates.

use super::decoder::{Decoder, Name};
use super::opcode::{Decoded, Opcode};
use crate::counts::InstructionKind;
use crate::instruction::{BoolOp, NONE, Op, Pred, Reg, SetP};
use crate::kernel::Const64;
use crate::lanes::{Cmp64, binary64, cmp64};
use crate::parse::{Operand, type_bytes};
use crate::space::{LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW};

impl<'a> Decoder<'a> {
    /// Decodes an instruction of this family; `false` if the opcode is of another.
    pub fn decode_move(&mut self, op: &mut Opcode<'a>, o: &[Operand<'a>]) -> Decoded<bool> {
        let base = op.base;
        match base {
            "mov" => self.mov(op, o)?,
            "cvta" => self.cvta(op, o)?,
            "cvt" => self.cvt(op, o)?,
            "setp" => self.setp(op, o)?,
            "set" => self.set(op, o)?,
            "selp" | "slct" => self.select(op, o)?,
            "and" | "or" | "xor" | "not" if op.take("pred") => {
                op.done()?;
                let d = self.dst_pred(o.first().ok_or("no operands")?)?;
                let a = self.pred(o.get(1).ok_or("no operands")?)?;
                let (b, join) = match op.base {
                    "not" => (Pred::TRUE, BoolOp::None),
                    base => {
                        let join = if base == "and" {
                            BoolOp::And
                        } else if base == "or" {
                            BoolOp::Or
                        } else {
                            BoolOp::Xor
                        };
                        (self.pred(o.get(2).ok_or("no operands")?)?, join)
                    }
                };
                let a = if op.base == "not" { a.not() } else { a };
                self.emit(Op::Logic { d, a, b, join }, InstructionKind::Predicate);
            }
            "isspacep" => {
                let space = op.last()?;
                op.done()?;
                let [p, a] = o else { return Err("isspacep without two operands".to_owned()) };
                let (p, a) = (self.dst_pred(p)?, self.src64(a)?);
                let f: Cmp64 = match space {
                    "shared" => cmp64!(|x, _y| x >> 44 == SHARED_WINDOW >> 44),
                    "local" => cmp64!(|x, _y| x >> 44 == LOCAL_WINDOW >> 44),
                    "param" => cmp64!(|x, _y| x >> 44 == PARAM_WINDOW >> 44),
                    "global" => cmp64!(|x, _y| x >> 44 > PARAM_WINDOW >> 44),
                    other => return Err(format!("isspacep.{other}")),
                };
                let set = SetP { f, p, q: NONE, a, b: a, join: BoolOp::None, c: Pred::TRUE };
                self.emit(Op::SetP64(Box::new(set)), InstructionKind::Predicate);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Decodes `mov`, with packing and unpacking of vectors.
    fn mov(&mut self, op: &mut Opcode<'a>, o: &[Operand<'a>]) -> Decoded {
        let ty = op.last()?;
        op.done()?;
        let [to, from] = o else { return Err("mov without two operands".to_owned()) };
        if ty == "pred" {
            let (d, a) = (self.dst_pred(to)?, self.pred(from)?);
            self.emit(Op::Logic { d, a, b: Pred::TRUE, join: BoolOp::None }, InstructionKind::Predicate);
            return Ok(());
        }
        let Some(bytes) = type_bytes(ty) else { return Err(format!("mov.{ty}")) };
        match (to, from) {
            (Operand::Vector(list), from) => {
                let part = bytes / list.len().max(1) as u64;
                let mut parts = Vec::new();
                for element in list {
                    parts.push(match self.dst(element)? {
                        // An unused element still takes its share of the bits.
                        Reg::None if part <= 2 => Reg::B16(NONE),
                        Reg::None => Reg::B32(NONE),
                        slot => slot,
                    });
                }
                let a = self.src(from, bytes)?;
                self.emit(Op::Unpack { parts: parts.into(), a }, InstructionKind::Move);
            }
            (to, Operand::Vector(list)) => {
                let part = bytes / list.len().max(1) as u64;
                let d = self.dst(to)?;
                let mut parts = Vec::new();
                for element in list {
                    parts.push(self.src(element, part)?);
                }
                self.emit(Op::Pack { d, parts: parts.into() }, InstructionKind::Move);
            }
            (to, from) => match self.dst(to)? {
                Reg::B64(d) => {
                    let a = self.src64(from)?;
                    self.emit(Op::Mov64 { d, a }, InstructionKind::Move);
                }
                Reg::B32(d) | Reg::B16(d) => {
                    let a = if bytes == 2 { self.src16(from)? } else { self.src32(from)? };
                    self.emit(Op::Mov32 { d, a }, InstructionKind::Move);
                }
                Reg::None => return Err("mov to nothing".to_owned()),
            },
        }
        Ok(())
    }

    /// Decodes `cvta`, between generic addresses and those of a state space.
    fn cvta(&mut self, op: &mut Opcode<'a>, o: &[Operand<'a>]) -> Decoded {
        let to = op.take("to");
        let space =
            op.find(|m| ["global", "shared", "shared::cta", "local", "const", "param"].iter().position(|s| *s == m));
        let ty = op.last()?;
        op.done()?;
        let [d, a] = o else { return Err("cvta without two operands".to_owned()) };
        if ty != "u64" {
            return Err(format!("cvta.{ty}"));
        }
        let window = match space {
            Some(0 | 4) => 0,
            Some(1 | 2) => SHARED_WINDOW,
            Some(3) => LOCAL_WINDOW,
            // The parameters of a call are in local memory.
            Some(5) => match a {
                Operand::Name(name) if matches!(self.lookup(name), Some(Name::Local(_))) => LOCAL_WINDOW,
                _ => PARAM_WINDOW,
            },
            _ => return Err("cvta without a space".to_owned()),
        };
        let (d, a) = (self.dst64(d)?, self.src64(a)?);
        let b = self.constant64(Const64::Value(if to { window.wrapping_neg() } else { window }));
        let f = binary64!(|x, y| x.wrapping_add(y));
        self.emit(Op::Binary64 { f, d, a, b }, InstructionKind::Move);
        Ok(())
    }
}
