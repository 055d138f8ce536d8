//! Comparisons and selections.

use super::decoder::{Decoder, Name};
use super::opcode::{Decoded, Opcode};
use crate::arith::{bf16_to_f32, f16_to_f32, flush};
use crate::counts::InstructionKind;
use crate::instruction::{BoolOp, NONE, Op, Pred, SetP};
use crate::lanes::{Cmp32, Cmp64, CmpPair, Lanes32, cmp32, cmp64};
use crate::parse::{Operand, type_bytes};

/// The names of the comparisons.
const COMPARISONS: [&str; 18] = [
    "eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan", "lo", "ls", "hi", "hs",
];

/// Comparisons of floats: f32, f32 with flushing, f64.
fn float_compare(name: &str) -> Option<(Cmp32, Cmp32, Cmp64)> {
    macro_rules! three {
        (|$x:ident, $y:ident| $e:expr) => {
            (
                cmp32!(|a, b| {
                    let ($x, $y) = (f32::from_bits(a), f32::from_bits(b));
                    $e
                }),
                cmp32!(|a, b| {
                    let ($x, $y) = (f32::from_bits(flush(a)), f32::from_bits(flush(b)));
                    $e
                }),
                cmp64!(|a, b| {
                    let ($x, $y) = (f64::from_bits(a), f64::from_bits(b));
                    $e
                }),
            )
        };
    }
    Some(match name {
        "eq" => three!(|x, y| x == y),
        // Ordered: false if an operand is NaN.
        "ne" => three!(|x, y| (x < y) | (x > y)),
        "lt" => three!(|x, y| x < y),
        "le" => three!(|x, y| x <= y),
        "gt" => three!(|x, y| x > y),
        "ge" => three!(|x, y| x >= y),
        "equ" => three!(|x, y| !((x < y) | (x > y))),
        "neu" => three!(|x, y| x != y),
        "ltu" => three!(|x, y| (x < y) | x.is_nan() | y.is_nan()),
        "leu" => three!(|x, y| (x <= y) | x.is_nan() | y.is_nan()),
        "gtu" => three!(|x, y| (x > y) | x.is_nan() | y.is_nan()),
        "geu" => three!(|x, y| (x >= y) | x.is_nan() | y.is_nan()),
        "num" => three!(|x, y| !(x.is_nan() | y.is_nan())),
        "nan" => three!(|x, y| x.is_nan() | y.is_nan()),
        _ => return None,
    })
}

/// Comparisons of integers: 16-bit, 32-bit, 64-bit.
fn int_compare(name: &str, signed: bool) -> Option<(Cmp32, Cmp32, Cmp64)> {
    macro_rules! three {
        (|$x:ident, $y:ident| $e:expr) => {
            if signed {
                (
                    cmp32!(|a, b| {
                        let ($x, $y) = (a as i16, b as i16);
                        $e
                    }),
                    cmp32!(|a, b| {
                        let ($x, $y) = (a as i32, b as i32);
                        $e
                    }),
                    cmp64!(|a, b| {
                        let ($x, $y) = (a as i64, b as i64);
                        $e
                    }),
                )
            } else {
                (
                    cmp32!(|a, b| {
                        let ($x, $y) = (a as u16, b as u16);
                        $e
                    }),
                    cmp32!(|$x, $y| $e),
                    cmp64!(|$x, $y| $e),
                )
            }
        };
    }
    Some(match name {
        "eq" => three!(|x, y| x == y),
        "ne" => three!(|x, y| x != y),
        "lt" | "lo" => three!(|x, y| x < y),
        "le" | "ls" => three!(|x, y| x <= y),
        "gt" | "hi" => three!(|x, y| x > y),
        "ge" | "hs" => three!(|x, y| x >= y),
        _ => return None,
    })
}

/// Widens the halves of two registers at bit `shift` to f32, so that the f32 comparison applies.
fn widen(a: &Lanes32, b: &Lanes32, shift: u32, f: fn(u32) -> f32) -> (Lanes32, Lanes32) {
    (a.map(|v| f(v >> shift & 0xffff).to_bits()), b.map(|v| f(v >> shift & 0xffff).to_bits()))
}

impl<'a> Decoder<'a> {
    /// Decodes `setp`.
    pub fn setp(&mut self, op: &mut Opcode<'a>, o: &[Operand<'a>]) -> Decoded {
        let [to, a, b, rest @ ..] = o else { return Err("setp with too few operands".to_owned()) };
        let (p, q) = match to {
            Operand::Pair(p, q) => (self.dst_pred(p)?, self.dst_pred(q)?),
            to => (self.dst_pred(to)?, NONE),
        };
        self.compare(op, (p, q), a, b, rest)
    }

    /// Decodes the comparison of `setp` or `set` into predicates `p` and `q`.
    fn compare(
        &mut self,
        op: &mut Opcode<'a>,
        (p, q): (u32, u32),
        a: &Operand<'a>,
        b: &Operand<'a>,
        rest: &[Operand<'a>],
    ) -> Decoded {
        let ty = op.last()?;
        let join = op.find(|m| match m {
            "and" => Some(BoolOp::And),
            "or" => Some(BoolOp::Or),
            "xor" => Some(BoolOp::Xor),
            _ => None,
        });
        let Some(name) = op.find(|m| COMPARISONS.iter().find(|c| **c == m).copied()) else {
            return Err("a comparison of unknown kind".to_owned());
        };
        let ftz = op.take("ftz");
        op.done()?;
        let (c, join) = match (rest, join) {
            ([], None) => (Pred::TRUE, BoolOp::None),
            ([c], Some(join)) => (self.pred(c)?, join),
            _ => return Err("setp with a third operand but no boolean operation, or the reverse".to_owned()),
        };
        let unknown = || format!("comparison .{name} of .{ty}");
        let halves = matches!(ty, "f16" | "bf16" | "f16x2" | "bf16x2");
        if ty == "f64" || matches!(ty, "u64" | "s64" | "b64") {
            let f =
                if ty == "f64" { float_compare(name) } else { int_compare(name, ty == "s64") }.ok_or_else(unknown)?.2;
            let (a, b) = (self.src64(a)?, self.src64(b)?);
            self.emit(Op::SetP64(Box::new(SetP { f, p, q, a, b, join, c })), InstructionKind::Predicate);
            return Ok(());
        }
        if halves {
            let (a, b) = (self.src16(a)?, self.src16(b)?);
            let f = half_compare(name, ty.starts_with('b'), ty.ends_with("x2")).ok_or_else(unknown)?;
            let set = SetP { f, p, q, a, b, join, c };
            self.emit(Op::SetPacked(Box::new(set)), InstructionKind::Predicate);
            return Ok(());
        }
        let f = match ty {
            "f32" => {
                let (plain, flushed, _) = float_compare(name).ok_or_else(unknown)?;
                if ftz { flushed } else { plain }
            }
            "u16" | "s16" | "b16" => int_compare(name, ty == "s16").ok_or_else(unknown)?.0,
            "u32" | "s32" | "b32" => int_compare(name, ty == "s32").ok_or_else(unknown)?.1,
            _ => return Err(unknown()),
        };
        let (a, b) =
            if ty.ends_with("16") { (self.src16(a)?, self.src16(b)?) } else { (self.src32(a)?, self.src32(b)?) };
        self.emit(Op::SetP32(Box::new(SetP { f, p, q, a, b, join, c })), InstructionKind::Predicate);
        Ok(())
    }

    /// Decodes `set`, a comparison with the result all ones or 1.0.
    pub fn set(&mut self, op: &mut Opcode<'a>, o: &[Operand<'a>]) -> Decoded {
        let [d, a, b, rest @ ..] = o else { return Err("set with too few operands".to_owned()) };
        let d = self.dst32(d)?;
        let from = op.last()?;
        let to = op.last()?;
        let one = match to {
            "u32" | "s32" => u32::MAX,
            "f32" => 1f32.to_bits(),
            _ => return Err(format!("set to .{to}")),
        };
        op.modifiers.push(from);
        let Name::Pred(p) = self.new_reg("pred")? else { return Err("set".to_owned()) };
        self.compare(op, (p, NONE), a, b, rest)?;
        let (yes, no) = (self.constant32(one), self.constant32(0));
        self.emit(Op::Sel32 { d, a: yes, b: no, p: Pred::new(p, false) }, InstructionKind::Predicate);
        Ok(())
    }

    /// Decodes `selp` and `slct`.
    pub fn select(&mut self, op: &mut Opcode<'a>, o: &[Operand<'a>]) -> Decoded {
        let [d, a, b, c] = o else { return Err(format!("`{}` without four operands", op.base)) };
        let p = if op.base == "slct" {
            let test = op.last()?;
            let Name::Pred(p) = self.new_reg("pred")? else { return Err("slct".to_owned()) };
            let ftz = op.take("ftz");
            let f: Cmp32 = match test {
                "s32" => cmp32!(|x, _y| x as i32 >= 0),
                "f32" if ftz => cmp32!(|x, _y| f32::from_bits(flush(x)) >= 0.0),
                "f32" => cmp32!(|x, _y| f32::from_bits(x) >= 0.0),
                _ => return Err(format!("slct by .{test}")),
            };
            let c = self.src32(c)?;
            let set = SetP { f, p, q: NONE, a: c, b: c, join: BoolOp::None, c: Pred::TRUE };
            self.emit(Op::SetP32(Box::new(set)), InstructionKind::Predicate);
            Pred::new(p, false)
        } else {
            self.pred(c)?
        };
        let ty = op.last()?;
        op.done()?;
        match type_bytes(ty) {
            Some(8) => {
                let (d, a, b) = (self.dst64(d)?, self.src64(a)?, self.src64(b)?);
                self.emit(Op::Sel64 { d, a, b, p }, InstructionKind::Predicate);
            }
            Some(bytes @ (2 | 4)) => {
                let d = self.dst32(d)?;
                let mut get = |x| if bytes == 2 { self.src16(x) } else { self.src32(x) };
                let (a, b) = (get(a)?, get(b)?);
                self.emit(Op::Sel32 { d, a, b, p }, InstructionKind::Predicate);
            }
            _ => return Err(format!("`{}.{ty}`", op.base)),
        }
        Ok(())
    }
}

/// Comparisons of halves: of both elements of a pair, or of one element twice.
fn half_compare(name: &str, bf16: bool, x2: bool) -> Option<CmpPair> {
    macro_rules! of {
        ($name:literal) => {{
            fn both(a: &Lanes32, b: &Lanes32, f: fn(u32) -> f32, x2: bool) -> (u32, u32) {
                let Some((compare, _, _)) = float_compare($name) else { return (0, 0) };
                let (x, y) = widen(a, b, 0, f);
                let low = compare(&x, &y);
                let (x, y) = widen(a, b, if x2 { 16 } else { 0 }, f);
                (low, compare(&x, &y))
            }
            match (bf16, x2) {
                (false, false) => |a: &Lanes32, b: &Lanes32| both(a, b, f16_to_f32, false),
                (false, true) => |a: &Lanes32, b: &Lanes32| both(a, b, f16_to_f32, true),
                (true, false) => |a: &Lanes32, b: &Lanes32| both(a, b, bf16_to_f32, false),
                (true, true) => |a: &Lanes32, b: &Lanes32| both(a, b, bf16_to_f32, true),
            }
        }};
    }
    let f: CmpPair = match name {
        "eq" => of!("eq"),
        "ne" => of!("ne"),
        "lt" => of!("lt"),
        "le" => of!("le"),
        "gt" => of!("gt"),
        "ge" => of!("ge"),
        "equ" => of!("equ"),
        "neu" => of!("neu"),
        "ltu" => of!("ltu"),
        "leu" => of!("leu"),
        "gtu" => of!("gtu"),
        "geu" => of!("geu"),
        "num" => of!("num"),
        "nan" => of!("nan"),
        _ => return None,
    };
    Some(f)
}
