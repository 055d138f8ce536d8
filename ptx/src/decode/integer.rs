//! Integer arithmetic and logic.
//!
//! The common 32- and 64-bit operations have functions of their own; the rest goes through one function for any operation
//! and width.

use super::decoder::Decoder;
use super::opcode::{Decoded, Opcode};
use crate::arith::{IntOp, evaluate_integer, extend, immediate};
use crate::counts::InstructionKind;
use crate::instruction::{Op, Reg, Wide};
use crate::lanes::{Binary32, Binary64, binary32, binary64, ternary32, unary32, widened};
use crate::parse::{Number, Operand};

/// Bits and signedness of an integer type.
fn int_type(ty: &str) -> Option<(u32, bool)> {
    let signed = ty.starts_with('s');
    match ty {
        "u8" | "s8" | "b8" => Some((8, signed)),
        "u16" | "s16" | "b16" => Some((16, signed)),
        "u32" | "s32" | "b32" => Some((32, signed)),
        "u64" | "s64" | "b64" => Some((64, signed)),
        _ => None,
    }
}

/// The modifiers of integer instructions.
struct Modifiers {
    wide: bool,
    lo: bool,
    hi: bool,
    sat: bool,
    left: bool,
    right: bool,
    wrap: bool,
    clamp: bool,
    shiftamt: bool,
}

impl Modifiers {
    fn take(op: &mut Opcode) -> Self {
        Self {
            wide: op.take("wide"),
            lo: op.take("lo"),
            hi: op.take("hi"),
            sat: op.take("sat"),
            left: op.take("l"),
            right: op.take("r"),
            wrap: op.take("wrap"),
            clamp: op.take("clamp"),
            shiftamt: op.take("shiftamt"),
        }
    }
}

/// The operation of an opcode, and its number of sources.
fn operation(base: &str, m: &Modifiers) -> Decoded<(IntOp, usize)> {
    Ok(match base {
        "add" => (if m.sat { IntOp::AddSat } else { IntOp::Add }, 2),
        "sub" => (if m.sat { IntOp::SubSat } else { IntOp::Sub }, 2),
        "mul" if m.lo || m.hi => (if m.hi { IntOp::MulHi } else { IntOp::MulLo }, 2),
        "mad" if (m.lo || m.hi) && !m.sat => (if m.hi { IntOp::MadHi } else { IntOp::MadLo }, 3),
        "mul24" if m.lo => (IntOp::Mul24Lo, 2),
        "mad24" if m.lo => (IntOp::Mad24Lo, 3),
        "sad" => (IntOp::Sad, 3),
        "div" => (IntOp::Div, 2),
        "rem" => (IntOp::Rem, 2),
        "min" => (IntOp::Min, 2),
        "max" => (IntOp::Max, 2),
        "abs" => (IntOp::Abs, 1),
        "neg" => (IntOp::Neg, 1),
        "and" => (IntOp::And, 2),
        "or" => (IntOp::Or, 2),
        "xor" => (IntOp::Xor, 2),
        "not" => (IntOp::Not, 1),
        "cnot" => (IntOp::Cnot, 1),
        "shl" => (IntOp::Shl, 2),
        "shr" => (IntOp::Shr, 2),
        "bfe" => (IntOp::Bfe, 3),
        "bfi" => (IntOp::Bfi, 4),
        "brev" => (IntOp::Brev, 1),
        "popc" => (IntOp::Popc, 1),
        "clz" => (IntOp::Clz, 1),
        "bfind" => (if m.shiftamt { IntOp::BfindShift } else { IntOp::Bfind }, 1),
        "prmt" => (IntOp::Prmt, 3),
        "shf" => match (m.left, m.right, m.wrap, m.clamp) {
            (true, false, true, false) => (IntOp::ShfLWrap, 3),
            (true, false, false, true) => (IntOp::ShfLClamp, 3),
            (false, true, true, false) => (IntOp::ShfRWrap, 3),
            (false, true, false, true) => (IntOp::ShfRClamp, 3),
            _ => return Err("shf of that form".to_owned()),
        },
        other => return Err(format!("`{other}` of that form")),
    })
}

/// The function of a common 64-bit operation.
fn common64(op: IntOp) -> Option<Binary64> {
    Some(match op {
        IntOp::Add => binary64!(|x, y| x.wrapping_add(y)),
        IntOp::Sub => binary64!(|x, y| x.wrapping_sub(y)),
        IntOp::MulLo => binary64!(|x, y| x.wrapping_mul(y)),
        IntOp::And => binary64!(|x, y| x & y),
        IntOp::Or => binary64!(|x, y| x | y),
        IntOp::Xor => binary64!(|x, y| x ^ y),
        _ => return None,
    })
}

impl<'a> Decoder<'a> {
    /// Decodes an instruction of this family; `false` if the opcode is of another.
    pub fn decode_integer(&mut self, op: &mut Opcode<'a>, operands: &[Operand<'a>]) -> Decoded<bool> {
        const NAMES: [&str; 30] = [
            "add", "sub", "mul", "mad", "mul24", "mad24", "sad", "div", "rem", "min", "max", "abs", "neg", "and", "or",
            "xor", "not", "cnot", "shl", "shr", "shf", "bfe", "bfi", "brev", "popc", "clz", "bfind", "prmt", "lop3",
            "dp4a",
        ];
        if !NAMES.contains(&op.base) {
            return Ok(false);
        }
        let mut mode = 0;
        if op.base == "prmt" {
            let modes = ["f4e", "b4e", "rc8", "ecl", "ecr", "rc16"];
            mode = op.find(|m| modes.iter().position(|x| *x == m)).map_or(0, |i| i as u32 + 1);
        }
        if op.base == "dp4a" {
            return self.dp4a(op, operands);
        }
        let Some(ty) = op.find(int_type) else { return Ok(false) };
        self.int(op, operands, ty, mode)?;
        Ok(true)
    }

    /// Decodes an operation on a type of `(bits, signed)`; `mode` is the mode of `prmt`.
    fn int(&mut self, op: &mut Opcode<'a>, o: &[Operand<'a>], ty: (u32, bool), mode: u32) -> Decoded {
        let (bits, signed) = ty;
        let m = Modifiers::take(op);
        op.done()?;
        let need =
            |n: usize| if o.len() == n { Ok(()) } else { Err(format!("`{}` with {} operands", op.base, o.len())) };
        if m.wide {
            need(if op.base == "mul" { 3 } else { 4 })?;
            return self.mul_wide(op.base == "mad", o, bits, signed);
        }
        if op.base == "lop3" {
            need(5)?;
            let Operand::Number(Number::Int(lut)) = o[4] else { return Err("lop3 without a table".to_owned()) };
            let (d, a, b, c) = (self.dst32(&o[0])?, self.src32(&o[1])?, self.src32(&o[2])?, self.src32(&o[3])?);
            self.emit(Op::Lop3 { d, a, b, c, lut: lut as u8 }, InstructionKind::Integer);
            return Ok(());
        }
        if matches!(op.base, "and" | "or" | "xor" | "not") && m.sat {
            return Err("saturation of logic".to_owned());
        }
        let (which, sources) = operation(op.base, &m)?;
        need(sources + 1)?;
        // Logic on predicates has the type .pred and is decoded with the moves.
        if bits == 32 && self.int32(which, signed, o)? {
            return Ok(());
        }
        let mut s = [Reg::None; 4];
        for (i, reg) in s.iter_mut().enumerate().take(sources) {
            // Counts and positions have 32 bits at every width.
            let count = match which {
                IntOp::Shl | IntOp::Shr | IntOp::Bfe => i >= 1,
                IntOp::Bfi => i >= 2,
                _ => false,
            };
            *reg = self.src(&o[i + 1], if count { 4 } else { u64::from(bits / 8) })?;
        }
        if which == IntOp::Prmt {
            s[3] = Reg::B32(self.constant32(mode));
        }
        let d = self.dst(&o[0])?;
        if let (Reg::B64(d), Reg::B64(a), Reg::B64(b)) = (d, s[0], s[1])
            && bits == 64
            && let Some(f) = common64(which)
        {
            self.emit(Op::Binary64 { f, d, a, b }, InstructionKind::Integer);
            return Ok(());
        }
        let f = match (which, bits) {
            (IntOp::Shl, 64) => widened!(|s, _imm| if s[1] as u32 >= 64 { 0 } else { s[0] << s[1] as u32 }),
            (IntOp::Shr, 64) if !signed => {
                widened!(|s, _imm| if s[1] as u32 >= 64 { 0 } else { s[0] >> s[1] as u32 })
            }
            _ => evaluate_integer,
        };
        let imm = immediate(which, bits, signed);
        self.emit(Op::Wide(Box::new(Wide { f, d, s, imm })), InstructionKind::Integer);
        Ok(())
    }

    /// Decodes the 32-bit operations that have a function of their own.
    fn int32(&mut self, which: IntOp, signed: bool, o: &[Operand<'a>]) -> Decoded<bool> {
        let f: Binary32 = match (which, signed) {
            (IntOp::Add, _) => binary32!(|x, y| x.wrapping_add(y)),
            (IntOp::Sub, _) => binary32!(|x, y| x.wrapping_sub(y)),
            (IntOp::MulLo, _) => binary32!(|x, y| x.wrapping_mul(y)),
            (IntOp::Min, false) => binary32!(|x, y| x.min(y)),
            (IntOp::Max, false) => binary32!(|x, y| x.max(y)),
            (IntOp::Min, true) => binary32!(|x, y| (x as i32).min(y as i32) as u32),
            (IntOp::Max, true) => binary32!(|x, y| (x as i32).max(y as i32) as u32),
            (IntOp::And, _) => binary32!(|x, y| x & y),
            (IntOp::Or, _) => binary32!(|x, y| x | y),
            (IntOp::Xor, _) => binary32!(|x, y| x ^ y),
            (IntOp::Shl, _) => binary32!(|x, y| if y > 31 { 0 } else { x << y }),
            (IntOp::Shr, false) => binary32!(|x, y| if y > 31 { 0 } else { x >> y }),
            (IntOp::Shr, true) => binary32!(|x, y| ((x as i32) >> y.min(31)) as u32),
            (IntOp::MadLo, _) => {
                let f = ternary32!(|x, y, z| x.wrapping_mul(y).wrapping_add(z));
                let (d, a, b, c) = (self.dst32(&o[0])?, self.src32(&o[1])?, self.src32(&o[2])?, self.src32(&o[3])?);
                self.emit(Op::Ternary32 { f, d, a, b, c }, InstructionKind::Integer);
                return Ok(true);
            }
            (IntOp::Not | IntOp::Neg, _) => {
                let f = if which == IntOp::Not { unary32!(|x| !x) } else { unary32!(|x| x.wrapping_neg()) };
                let (d, a) = (self.dst32(&o[0])?, self.src32(&o[1])?);
                self.emit(Op::Unary32 { f, d, a }, InstructionKind::Integer);
                return Ok(true);
            }
            _ => return Ok(false),
        };
        let (d, a, b) = (self.dst32(&o[0])?, self.src32(&o[1])?, self.src32(&o[2])?);
        self.emit(Op::Binary32 { f, d, a, b }, InstructionKind::Integer);
        Ok(true)
    }

    /// Decodes `mul.wide` and `mad.wide`.
    fn mul_wide(&mut self, add: bool, o: &[Operand<'a>], bits: u32, signed: bool) -> Decoded {
        let bytes = u64::from(bits / 8);
        let d = self.dst(&o[0])?;
        let mut s = [self.src(&o[1], bytes)?, self.src(&o[2], bytes)?, Reg::None, Reg::None];
        if add {
            s[2] = self.src(&o[3], bytes * 2)?;
        }
        let f = match (bits, signed) {
            (32, false) => widened!(|s, _imm| s[0].wrapping_mul(s[1]).wrapping_add(s[2])),
            (32, true) => widened!(|s, _imm| {
                let product = i64::from(s[0] as i32).wrapping_mul(i64::from(s[1] as i32));
                (product as u64).wrapping_add(s[2])
            }),
            (16, false) => widened!(|s, _imm| (s[0] & 0xffff).wrapping_mul(s[1] & 0xffff).wrapping_add(s[2])),
            (16, true) => widened!(|s, _imm| {
                let product = i64::from(s[0] as i16) * i64::from(s[1] as i16);
                (product as u64).wrapping_add(s[2])
            }),
            _ => return Err("a wide product of 64-bit operands".to_owned()),
        };
        self.emit(Op::Wide(Box::new(Wide { f, d, s, imm: 0 })), InstructionKind::Integer);
        Ok(())
    }

    /// Decodes `dp4a`.
    fn dp4a(&mut self, op: &mut Opcode<'a>, o: &[Operand<'a>]) -> Decoded<bool> {
        let (b, a) = (op.last()?, op.last()?);
        op.done()?;
        let [d, x, y, c] = o else { return Err("dp4a without four operands".to_owned()) };
        let s = [self.src(x, 4)?, self.src(y, 4)?, self.src(c, 4)?, Reg::None];
        let d = self.dst(d)?;
        let imm = u32::from(a == "s32") | u32::from(b == "s32") << 1;
        let f = widened!(|s, imm| {
            let byte = |v: u64, i: u32, signed: bool| extend(v >> (8 * i), 8, signed);
            let sum: i128 = (0..4).map(|i| byte(s[0], i, imm & 1 != 0) * byte(s[1], i, imm & 2 != 0)).sum();
            s[2].wrapping_add(sum as u64)
        });
        self.emit(Op::Wide(Box::new(Wide { f, d, s, imm })), InstructionKind::Integer);
        Ok(true)
    }
}
