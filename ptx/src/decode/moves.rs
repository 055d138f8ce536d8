//! Moves, conversions, comparisons, selections.

use super::float::rounding;
use super::{Decoded, Decoder, LOCAL_WINDOW, Name, Opcode, PARAM_WINDOW, SHARED_WINDOW};
use crate::arith::{Format, Round, bf16_to_f32, canonical, f16_to_f32, f32_to_bf16, f32_to_f16};
use crate::counts::InstructionKind;
use crate::lanes::{binary32, cmp64, unary32, widened};
use crate::parse::{Operand, type_bytes};
use crate::program::{BoolOp, Cmp64, Lanes32, Lanes64, NONE, Op, Pred, Reg, SetP, Wide};

/// A conversion between two types, as the immediate of a [`Wide`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Convert {
    to: Type,
    from: Type,
    round: Round,
    /// Round to an integral value: `.rni` and its kin.
    integral: bool,
    ftz: bool,
    sat: bool,
    relu: bool,
}

/// A scalar type of `cvt`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Type {
    Int(u32, bool),
    Float(Format),
}

const TYPES: [(&str, Type); 14] = [
    ("u8", Type::Int(8, false)),
    ("u16", Type::Int(16, false)),
    ("u32", Type::Int(32, false)),
    ("u64", Type::Int(64, false)),
    ("s8", Type::Int(8, true)),
    ("s16", Type::Int(16, true)),
    ("s32", Type::Int(32, true)),
    ("s64", Type::Int(64, true)),
    ("f16", Type::Float(Format::F16)),
    ("bf16", Type::Float(Format::Bf16)),
    ("tf32", Type::Float(Format::Tf32)),
    ("f32", Type::Float(Format::F32)),
    ("f64", Type::Float(Format::F64)),
    ("b8", Type::Int(8, false)),
];

impl Convert {
    fn pack(self) -> u32 {
        let index = |t: Type| TYPES.iter().position(|x| x.1 == t).unwrap_or(0) as u32;
        let flags = [self.integral, self.ftz, self.sat, self.relu];
        let bits = flags.iter().enumerate().fold(0, |bits, (i, flag)| bits | u32::from(*flag) << i);
        bits | index(self.to) << 8 | index(self.from) << 16 | self.round.code() << 24
    }

    fn unpack(imm: u32) -> Self {
        let flag = |i: u32| imm >> i & 1 != 0;
        Self {
            to: TYPES[(imm >> 8 & 0xff) as usize].1,
            from: TYPES[(imm >> 16 & 0xff) as usize].1,
            round: Round::from_code(imm >> 24),
            integral: flag(0),
            ftz: flag(1),
            sat: flag(2),
            relu: flag(3),
        }
    }

    /// One value; a narrow signed result is sign-extended to 64 bits, as wide destinations need it.
    fn apply(self, bits: u64) -> u64 {
        match (self.from, self.to) {
            (Type::Int(from, signed), Type::Int(to, to_signed)) => {
                let up = 64 - from;
                let value = if signed { i128::from((bits << up) as i64 >> up) } else { i128::from(bits << up >> up) };
                clamp_int(value, to, to_signed, self.sat)
            }
            (Type::Int(from, signed), Type::Float(f)) => {
                let up = 64 - from;
                let value = if signed { (bits << up) as i64 >> up } else { (bits << up >> up) as i64 };
                let odd =
                    if signed { int_to_odd(value < 0, value.unsigned_abs()) } else { int_to_odd(false, value as u64) };
                let exact_to_f64 =
                    if f == Format::F64 { if signed { value as f64 } else { value as u64 as f64 } } else { odd };
                f.encode(exact_to_f64, self.round)
            }
            (Type::Float(f), Type::Int(to, signed)) => {
                let mut x = f.decode(bits);
                if self.ftz && f.is_subnormal(x) {
                    x = 0.0;
                }
                // Out of range saturates without being asked; NaN is zero, or the sign bit alone for 64-bit targets.
                if x.is_nan() {
                    return if to == 64 { 1 << 63 } else { 0 };
                }
                let x = self.round.integral(x);
                let value = if x.abs() >= 2f64.powi(65) { (x.signum() as i128) << 65 } else { x as i128 };
                clamp_int(value, to, signed, true)
            }
            (Type::Float(from), Type::Float(to)) => {
                let mut x = from.decode(bits);
                if self.ftz && from == Format::F32 && from.is_subnormal(x) {
                    x = 0f64.copysign(x);
                }
                if self.integral && !x.is_nan() {
                    x = self.round.integral(x).copysign(x);
                }
                let mode = if self.integral { Round::Nearest } else { self.round };
                x = to.round(x, mode);
                if self.ftz && to == Format::F32 && to.is_subnormal(x) {
                    x = 0f64.copysign(x);
                }
                if self.sat {
                    x = if x > 0.0 { x.min(1.0) } else { 0.0 };
                }
                if self.relu && !x.is_nan() {
                    x = if x > 0.0 { x } else { 0.0 };
                }
                to.encode(x, Round::Nearest)
            }
        }
    }
}

/// An integer as f64, rounded to odd.
fn int_to_odd(negative: bool, magnitude: u64) -> f64 {
    let lost = 11u32.saturating_sub(magnitude.leading_zeros());
    let kept = magnitude >> lost;
    let sticky = u64::from(kept << lost != magnitude);
    let x = (kept | sticky) as f64 * 2f64.powi(lost as i32);
    if negative { -x } else { x }
}

fn clamp_int(value: i128, bits: u32, signed: bool, saturate: bool) -> u64 {
    let (low, high) =
        if signed { (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1) } else { (0, (1i128 << bits) - 1) };
    let value = if saturate { value.clamp(low, high) } else { value };
    let up = 64 - bits;
    let cut = (value as u64) << up;
    if signed { (cut as i64 >> up) as u64 } else { cut >> up }
}

fn convert(s: &[Lanes64; 4], imm: u32, d: &mut Lanes64) {
    let cvt = Convert::unpack(imm);
    for i in 0..32 {
        d[i] = cvt.apply(s[0][i]);
    }
}

/// Two f32 into one register of halves: the first operand is the upper.
fn convert_pair(s: &[Lanes64; 4], imm: u32, d: &mut Lanes64) {
    let cvt = Convert::unpack(imm);
    for i in 0..32 {
        d[i] = cvt.apply(s[0][i]) << 16 | cvt.apply(s[1][i]);
    }
}

impl<'a> Decoder<'a> {
    pub(super) fn decode_move(&mut self, op: &mut Opcode<'a>, o: &[Operand<'a>]) -> Decoded<bool> {
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
                        // A gap still takes its share of the bits.
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
            // The parameter of a call lies in local memory.
            Some(5) => match a {
                Operand::Name(name) if matches!(self.lookup(name), Some(Name::Local(_))) => LOCAL_WINDOW,
                _ => PARAM_WINDOW,
            },
            _ => return Err("cvta without a space".to_owned()),
        };
        let (d, a) = (self.dst64(d)?, self.src64(a)?);
        let b = self.constant64(crate::program::Const64::Value(if to { window.wrapping_neg() } else { window }));
        let f = crate::lanes::binary64!(|x, y| x.wrapping_add(y));
        self.emit(Op::Binary64 { f, d, a, b }, InstructionKind::Move);
        Ok(())
    }

    fn cvt(&mut self, op: &mut Opcode<'a>, o: &[Operand<'a>]) -> Decoded {
        let find = |m: &str| TYPES.iter().find(|t| t.0 == m).map(|t| t.1);
        let from = op.last()?;
        let to = op.last()?;
        let (packed, to) = match to {
            "f16x2" => (true, "f16"),
            "bf16x2" => (true, "bf16"),
            other => (false, other),
        };
        let Some(from) = find(from) else { return Err(format!("cvt from .{from}")) };
        let Some(to) = find(to) else { return Err(format!("cvt to .{to}")) };
        let integral = op.find(|m| match m {
            "rni" => Some(Round::Nearest),
            "rzi" => Some(Round::Zero),
            "rmi" => Some(Round::Down),
            "rpi" => Some(Round::Up),
            _ => None,
        });
        let round = op.find(rounding).or_else(|| op.take("rna").then_some(Round::Away));
        let cvt = Convert {
            to,
            from,
            round: integral.or(round).unwrap_or(Round::Nearest),
            integral: integral.is_some(),
            ftz: op.take("ftz"),
            sat: op.take("sat"),
            relu: op.take("relu"),
        };
        op.done()?;
        if packed {
            let [d, high, low] = o else { return Err("cvt to a pair without two sources".to_owned()) };
            let (d, a, b) = (self.dst32(d)?, self.src32(high)?, self.src32(low)?);
            if cvt.round == Round::Nearest && !cvt.relu && !cvt.sat && from == Type::Float(Format::F32) {
                let f = match to {
                    Type::Float(Format::F16) => {
                        binary32!(|x, y| f32_to_f16(f32::from_bits(x)) << 16 | f32_to_f16(f32::from_bits(y)))
                    }
                    _ => binary32!(|x, y| f32_to_bf16(f32::from_bits(x)) << 16 | f32_to_bf16(f32::from_bits(y))),
                };
                self.emit(Op::Binary32 { f, d, a, b }, InstructionKind::Convert);
                return Ok(());
            }
            let s = [Reg::B32(a), Reg::B32(b), Reg::None, Reg::None];
            self.emit(
                Op::Wide(Box::new(Wide { f: convert_pair, d: Reg::B32(d), s, imm: cvt.pack() })),
                InstructionKind::Convert,
            );
            return Ok(());
        }
        let [d, a] = o else { return Err("cvt without two operands".to_owned()) };
        let width = |t: Type| match t {
            Type::Int(bits, _) => u64::from(bits / 8),
            Type::Float(Format::F16 | Format::Bf16) => 2,
            Type::Float(Format::F64) => 8,
            Type::Float(_) => 4,
        };
        // A source register may be wider than its type, as in cvt.u16.u8 %rs, %r.
        let a = match a {
            Operand::Number(_) => self.src(a, width(from))?,
            _ => self.source(a)?,
        };
        let d = self.dst(d)?;
        let plain = !cvt.sat && !cvt.ftz && !cvt.relu && !cvt.integral;
        if plain && let (Reg::B32(d) | Reg::B16(d), Reg::B32(a) | Reg::B16(a)) = (d, a) {
            let near = cvt.round == Round::Nearest;
            let f: Option<fn(&Lanes32, &mut Lanes32)> = match (from, to) {
                (Type::Float(Format::F16), Type::Float(Format::F32)) => Some(unary32!(|x| canonical(f16_to_f32(x)))),
                (Type::Float(Format::Bf16), Type::Float(Format::F32)) => Some(unary32!(|x| canonical(bf16_to_f32(x)))),
                (Type::Float(Format::F32), Type::Float(Format::F16)) if near => {
                    Some(unary32!(|x| f32_to_f16(f32::from_bits(x))))
                }
                (Type::Float(Format::F32), Type::Float(Format::Bf16)) if near => {
                    Some(unary32!(|x| f32_to_bf16(f32::from_bits(x))))
                }
                (Type::Int(32, true), Type::Float(Format::F32)) if near => {
                    Some(unary32!(|x| (x as i32 as f32).to_bits()))
                }
                (Type::Int(32, false), Type::Float(Format::F32)) if near => Some(unary32!(|x| (x as f32).to_bits())),
                (Type::Int(8, false), Type::Int(..)) => Some(unary32!(|x| x & 0xff)),
                (Type::Int(16, false), Type::Int(32, _)) => Some(unary32!(|x| x & 0xffff)),
                (Type::Int(16 | 32, _), Type::Int(16, _)) => Some(unary32!(|x| x & 0xffff)),
                (Type::Int(32, _), Type::Int(32, _)) => Some(unary32!(|x| x)),
                _ => None,
            };
            if let Some(f) = f {
                self.emit(Op::Unary32 { f, d, a }, InstructionKind::Convert);
                return Ok(());
            }
        }
        let f = match (from, to) {
            (Type::Int(32, false), Type::Int(64, _)) if plain => widened!(|s, _imm| s[0] & 0xffff_ffff),
            (Type::Int(32, true), Type::Int(64, _)) if plain => widened!(|s, _imm| i64::from(s[0] as i32) as u64),
            (Type::Int(64, _), Type::Int(32 | 64, _)) if plain => widened!(|s, _imm| s[0]),
            _ => convert,
        };
        let s = [a, Reg::None, Reg::None, Reg::None];
        self.emit(Op::Wide(Box::new(Wide { f, d, s, imm: cvt.pack() })), InstructionKind::Convert);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cvt(to: &str, from: &str, round: Round, integral: bool, bits: u64) -> u64 {
        let find = |m: &str| TYPES.iter().find(|t| t.0 == m).unwrap().1;
        let cvt = Convert { to: find(to), from: find(from), round, integral, ftz: false, sat: false, relu: false };
        assert_eq!(Convert::unpack(cvt.pack()), cvt);
        cvt.apply(bits)
    }

    #[test]
    fn conversions() {
        let f = |x: f32| u64::from(x.to_bits());
        assert_eq!(cvt("s32", "f32", Round::Zero, true, f(-2.7)), (-2i64) as u64);
        assert_eq!(cvt("s32", "f32", Round::Nearest, true, f(2.5)), 2);
        assert_eq!(cvt("u32", "f32", Round::Zero, true, f(-1.0)), 0);
        assert_eq!(cvt("s32", "f32", Round::Zero, true, f(1e20)), 0x7fff_ffff);
        assert_eq!(cvt("s32", "f32", Round::Zero, true, f(f32::NAN)), 0);
        assert_eq!(cvt("u8", "f32", Round::Nearest, true, f(300.0)), 255);
        assert_eq!(cvt("f32", "f32", Round::Nearest, true, f(-0.3)), f(-0.0));
        assert_eq!(cvt("f32", "f32", Round::Down, true, f(-0.3)), f(-1.0));
        assert_eq!(cvt("s64", "s16", Round::Nearest, false, 0x8000), 0xffff_ffff_ffff_8000);
        assert_eq!(cvt("f32", "u64", Round::Nearest, false, u64::MAX), f(18_446_744_073_709_551_616.0));
        assert_eq!(cvt("f32", "u64", Round::Zero, false, u64::MAX), f(18_446_742_974_197_923_840.0));
        assert_eq!(cvt("f32", "s32", Round::Nearest, false, 0xffff_ffff), f(-1.0));
        assert_eq!(cvt("f16", "f32", Round::Zero, false, f(65519.0)), 0x7bff);
        assert_eq!(cvt("tf32", "f32", Round::Away, false, 0x3f80_1000), 0x3f80_2000);
        assert_eq!(cvt("f64", "f32", Round::Nearest, false, f(0.1)), f64::from(0.1f32).to_bits());
    }
}
