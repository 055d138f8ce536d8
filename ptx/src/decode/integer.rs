//! Integer arithmetic and logic.
//!
//! The common 32- and 64-bit operations have functions of their own; the rest go through one scalar function over a table
//! of operations, at any width.

use super::{Decoded, Decoder, Opcode};
use crate::counts::InstructionKind;
use crate::lanes::{binary32, binary64, ternary32, unary32, widened};
use crate::parse::{Number, Operand};
use crate::program::{Lanes64, Op, Reg, Wide};

/// Operations of [`scalar`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum IntOp {
    Add,
    Sub,
    MulLo,
    MulHi,
    MadLo,
    MadHi,
    Sad,
    Div,
    Rem,
    Min,
    Max,
    Abs,
    Neg,
    And,
    Or,
    Xor,
    Not,
    Cnot,
    Shl,
    Shr,
    Bfe,
    Bfi,
    Brev,
    Popc,
    Clz,
    Bfind,
    BfindShift,
    AddSat,
    SubSat,
    ShfLClamp,
    ShfLWrap,
    ShfRClamp,
    ShfRWrap,
    Prmt,
    Mul24Lo,
    Mad24Lo,
}

const TABLE: [IntOp; 36] = [
    IntOp::Add,
    IntOp::Sub,
    IntOp::MulLo,
    IntOp::MulHi,
    IntOp::MadLo,
    IntOp::MadHi,
    IntOp::Sad,
    IntOp::Div,
    IntOp::Rem,
    IntOp::Min,
    IntOp::Max,
    IntOp::Abs,
    IntOp::Neg,
    IntOp::And,
    IntOp::Or,
    IntOp::Xor,
    IntOp::Not,
    IntOp::Cnot,
    IntOp::Shl,
    IntOp::Shr,
    IntOp::Bfe,
    IntOp::Bfi,
    IntOp::Brev,
    IntOp::Popc,
    IntOp::Clz,
    IntOp::Bfind,
    IntOp::BfindShift,
    IntOp::AddSat,
    IntOp::SubSat,
    IntOp::ShfLClamp,
    IntOp::ShfLWrap,
    IntOp::ShfRClamp,
    IntOp::ShfRWrap,
    IntOp::Prmt,
    IntOp::Mul24Lo,
    IntOp::Mad24Lo,
];

/// The value of the lowest bits, sign-extended where `signed`.
fn extend(value: u64, bits: u32, signed: bool) -> i128 {
    let up = 64 - bits;
    if signed { i128::from(((value << up) as i64) >> up) } else { i128::from((value << up) >> up) }
}

/// One operation at a width of 16, 32 or 64 bits; the result's bits above the width are not defined.
pub(crate) fn scalar(op: IntOp, bits: u32, signed: bool, s: [u64; 4]) -> u64 {
    let value = |i: usize| extend(s[i], bits, signed);
    let raw = |i: usize| extend(s[i], bits, false) as u64;
    let (a, b) = (value(0), value(1));
    let count = s[1] as u32;
    let saturated = |x: i128| x.clamp(-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1);
    let result: i128 = match op {
        IntOp::Add => a + b,
        IntOp::Sub => a - b,
        IntOp::AddSat => saturated(a + b),
        IntOp::SubSat => saturated(a - b),
        IntOp::MulLo => a.wrapping_mul(b),
        IntOp::MulHi => a.wrapping_mul(b) >> bits,
        IntOp::MadLo => a.wrapping_mul(b).wrapping_add(value(2)),
        IntOp::MadHi => (a.wrapping_mul(b) >> bits) + value(2),
        IntOp::Mul24Lo => extend(s[0], 24, signed) * extend(s[1], 24, signed),
        IntOp::Mad24Lo => extend(s[0], 24, signed) * extend(s[1], 24, signed) + value(2),
        IntOp::Sad => (a - b).abs() + value(2),
        // The manual leaves a division by zero open; GPUs give all ones, and the dividend as the rest.
        IntOp::Div => a.checked_div(b).unwrap_or(-1),
        IntOp::Rem => a.checked_rem(b).unwrap_or(a),
        IntOp::Min => a.min(b),
        IntOp::Max => a.max(b),
        IntOp::Abs => a.abs(),
        IntOp::Neg => -a,
        IntOp::And => a & b,
        IntOp::Or => a | b,
        IntOp::Xor => a ^ b,
        IntOp::Not => !a,
        IntOp::Cnot => i128::from(raw(0) == 0),
        // Shift counts clamp at the width.
        IntOp::Shl => (if count >= bits { 0 } else { raw(0) << count }).into(),
        IntOp::Shr => a >> count.min(bits),
        IntOp::Bfe => bfe(s[0], s[1] as u32 & 0xff, s[2] as u32 & 0xff, bits, signed).into(),
        IntOp::Bfi => {
            let (pos, len) = (s[2] as u32 & 0xff, s[3] as u32 & 0xff);
            let mask = if len >= 64 { u64::MAX } else { (1 << len) - 1 };
            let mask = if pos >= bits { 0 } else { mask << pos };
            let field = if pos >= bits { 0 } else { s[0] << pos };
            ((s[1] & !mask) | (field & mask)).into()
        }
        IntOp::Brev => (s[0].reverse_bits() >> (64 - bits)).into(),
        IntOp::Popc => raw(0).count_ones().into(),
        IntOp::Clz => (raw(0).leading_zeros() - (64 - bits)).into(),
        IntOp::Bfind | IntOp::BfindShift => {
            let x = if signed && a < 0 { !a } else { a } as u64 & (u64::MAX >> (64 - bits));
            match x.checked_ilog2() {
                None => u32::MAX.into(),
                Some(top) if op == IntOp::BfindShift => (bits - 1 - top).into(),
                Some(top) => top.into(),
            }
        }
        IntOp::ShfLClamp | IntOp::ShfLWrap | IntOp::ShfRClamp | IntOp::ShfRWrap => {
            let both = (s[1] & 0xffff_ffff) << 32 | (s[0] & 0xffff_ffff);
            let wrap = matches!(op, IntOp::ShfLWrap | IntOp::ShfRWrap);
            let n = if wrap { s[2] as u32 & 31 } else { (s[2] as u32).min(32) };
            let left = matches!(op, IntOp::ShfLClamp | IntOp::ShfLWrap);
            (if left { ((u128::from(both) << n) >> 32) as u64 } else { both >> n }).into()
        }
        IntOp::Prmt => prmt(s[0] as u32, s[1] as u32, s[2] as u32, s[3] as u32).into(),
    };
    result as u64
}

fn bfe(a: u64, pos: u32, len: u32, bits: u32, signed: bool) -> u64 {
    let a = extend(a, bits, false) as u64;
    if len == 0 {
        return 0;
    }
    let msb = bits - 1;
    let sign_at = (pos + len - 1).min(msb);
    let sign = signed && (a >> sign_at) & 1 == 1;
    let mut out = 0;
    for i in 0..=msb {
        let bit = if i < len && pos + i <= msb { (a >> (pos + i)) & 1 == 1 } else { sign };
        out |= u64::from(bit) << i;
    }
    out
}

/// Byte permutation; modes: 0 plain, 1 f4e, 2 b4e, 3 rc8, 4 ecl, 5 ecr, 6 rc16.
pub(crate) fn prmt(a: u32, b: u32, c: u32, mode: u32) -> u32 {
    let bytes = (u64::from(b) << 32 | u64::from(a)).to_le_bytes();
    let k = c & 3;
    let pick = |i: u32| -> u8 {
        let control = match mode {
            0 => c >> (4 * i) & 15,
            1 => (k + i) & 7,
            2 => k.wrapping_sub(i) & 7,
            3 => k,
            4 => i.max(k),
            5 => i.min(k),
            _ => (k & 1) * 2 + (i & 1),
        };
        let byte = bytes[(control & 7) as usize];
        if control & 8 != 0 { ((byte as i8) >> 7) as u8 } else { byte }
    };
    u32::from_le_bytes([pick(0), pick(1), pick(2), pick(3)])
}

/// A function of two 64-bit rows.
type F64 = fn(&Lanes64, &Lanes64, &mut Lanes64);

fn table(s: &[[u64; 32]; 4], imm: u32, d: &mut [u64; 32]) {
    let op = TABLE[(imm & 0xff) as usize];
    let (bits, signed) = (imm >> 8 & 0xff, imm >> 16 != 0);
    for i in 0..32 {
        d[i] = scalar(op, bits, signed, [s[0][i], s[1][i], s[2][i], s[3][i]]);
    }
}

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

impl<'a> Decoder<'a> {
    pub(super) fn decode_integer(&mut self, op: &mut Opcode<'a>, operands: &[Operand<'a>]) -> Decoded<bool> {
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
        let Some(ty) = op.find(|m| int_type(m).map(|t| (t.0, t.1))) else { return Ok(false) };
        let (bits, signed) = ty;
        self.int(op, operands, bits, signed, mode)?;
        Ok(true)
    }

    fn int(&mut self, op: &mut Opcode<'a>, o: &[Operand<'a>], bits: u32, signed: bool, mode: u32) -> Decoded {
        let wide = op.take("wide");
        let (lo, hi) = (op.take("lo"), op.take("hi"));
        let sat = op.take("sat");
        let (left, right) = (op.take("l"), op.take("r"));
        let (wrap, clamp) = (op.take("wrap"), op.take("clamp"));
        let shiftamt = op.take("shiftamt");
        op.done()?;
        let need =
            |n: usize| if o.len() == n { Ok(()) } else { Err(format!("`{}` with {} operands", op.base, o.len())) };
        if wide {
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
        if matches!(op.base, "and" | "or" | "xor" | "not") && sat {
            return Err("saturation of logic".to_owned());
        }
        let (which, sources, shift_like) = match op.base {
            "add" => (if sat { IntOp::AddSat } else { IntOp::Add }, 2, false),
            "sub" => (if sat { IntOp::SubSat } else { IntOp::Sub }, 2, false),
            "mul" if lo || hi => (if hi { IntOp::MulHi } else { IntOp::MulLo }, 2, false),
            "mad" if (lo || hi) && !sat => (if hi { IntOp::MadHi } else { IntOp::MadLo }, 3, false),
            "mul24" if lo => (IntOp::Mul24Lo, 2, false),
            "mad24" if lo => (IntOp::Mad24Lo, 3, false),
            "sad" => (IntOp::Sad, 3, false),
            "div" => (IntOp::Div, 2, false),
            "rem" => (IntOp::Rem, 2, false),
            "min" => (IntOp::Min, 2, false),
            "max" => (IntOp::Max, 2, false),
            "abs" => (IntOp::Abs, 1, false),
            "neg" => (IntOp::Neg, 1, false),
            "and" => (IntOp::And, 2, false),
            "or" => (IntOp::Or, 2, false),
            "xor" => (IntOp::Xor, 2, false),
            "not" => (IntOp::Not, 1, false),
            "cnot" => (IntOp::Cnot, 1, false),
            "shl" => (IntOp::Shl, 2, true),
            "shr" => (IntOp::Shr, 2, true),
            "bfe" => (IntOp::Bfe, 3, true),
            "bfi" => (IntOp::Bfi, 4, false),
            "brev" => (IntOp::Brev, 1, false),
            "popc" => (IntOp::Popc, 1, false),
            "clz" => (IntOp::Clz, 1, false),
            "bfind" => (if shiftamt { IntOp::BfindShift } else { IntOp::Bfind }, 1, false),
            "prmt" => (IntOp::Prmt, 3, false),
            "shf" => match (left, right, wrap, clamp) {
                (true, false, true, false) => (IntOp::ShfLWrap, 3, false),
                (true, false, false, true) => (IntOp::ShfLClamp, 3, false),
                (false, true, true, false) => (IntOp::ShfRWrap, 3, false),
                (false, true, false, true) => (IntOp::ShfRClamp, 3, false),
                _ => return Err("shf of that form".to_owned()),
            },
            other => return Err(format!("`{other}` of that form")),
        };
        need(sources + 1)?;
        // Logic on predicates is written with the type .pred and handled with the moves.
        if bits == 32 && self.int32(which, signed, o)? {
            return Ok(());
        }
        let bytes = u64::from(bits / 8);
        let mut s = [Reg::None; 4];
        for (i, slot) in s.iter_mut().enumerate().take(sources) {
            // Counts and positions are 32 bits at every width.
            let count = (shift_like && i >= 1) || (which == IntOp::Bfi && i >= 2);
            *slot = self.src(&o[i + 1], if count { 4 } else { bytes })?;
        }
        if which == IntOp::Prmt {
            s[3] = Reg::B32(self.constant32(mode));
        }
        let d = self.dst(&o[0])?;
        if bits == 64
            && let (Reg::B64(d), Reg::B64(a), Reg::B64(b)) = (d, s[0], s[1])
        {
            let f: Option<F64> = match which {
                IntOp::Add => Some(binary64!(|x, y| x.wrapping_add(y))),
                IntOp::Sub => Some(binary64!(|x, y| x.wrapping_sub(y))),
                IntOp::MulLo => Some(binary64!(|x, y| x.wrapping_mul(y))),
                IntOp::And => Some(binary64!(|x, y| x & y)),
                IntOp::Or => Some(binary64!(|x, y| x | y)),
                IntOp::Xor => Some(binary64!(|x, y| x ^ y)),
                _ => None,
            };
            if let Some(f) = f {
                self.emit(Op::Binary64 { f, d, a, b }, InstructionKind::Integer);
                return Ok(());
            }
        }
        let f = match (which, bits) {
            (IntOp::Shl, 64) => widened!(|s, _imm| if s[1] as u32 >= 64 { 0 } else { s[0] << s[1] as u32 }),
            (IntOp::Shr, 64) if !signed => {
                widened!(|s, _imm| if s[1] as u32 >= 64 { 0 } else { s[0] >> s[1] as u32 })
            }
            _ => table,
        };
        let imm = which as u32 | bits << 8 | u32::from(signed) << 16;
        self.emit(Op::Wide(Box::new(Wide { f, d, s, imm })), InstructionKind::Integer);
        Ok(())
    }

    /// The 32-bit operations that have a function of their own.
    fn int32(&mut self, which: IntOp, signed: bool, o: &[Operand<'a>]) -> Decoded<bool> {
        type F2 = fn(&[u32; 32], &[u32; 32], &mut [u32; 32]);
        let f: F2 = match (which, signed) {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn run(op: IntOp, bits: u32, signed: bool, s: [u64; 4]) -> u64 {
        scalar(op, bits, signed, s) & (u64::MAX >> (64 - bits))
    }

    #[test]
    fn table_is_in_order() {
        assert!(TABLE.iter().enumerate().all(|(i, op)| *op as usize == i));
    }

    #[test]
    fn fields_shifts_and_bytes() {
        assert_eq!(run(IntOp::Bfe, 32, false, [0xabcd_1234, 8, 8, 0]), 0x12);
        assert_eq!(run(IntOp::Bfe, 32, true, [0x0000_8000, 8, 8, 0]), 0xffff_ff80);
        assert_eq!(run(IntOp::Bfe, 32, true, [0x8000_0000, 24, 16, 0]), 0xffff_ff80);
        assert_eq!(run(IntOp::Bfe, 32, true, [0xffff_ffff, 0, 0, 0]), 0);
        assert_eq!(run(IntOp::Bfi, 32, false, [0xff, 0, 8, 4]), 0xf00);
        assert_eq!(run(IntOp::Bfi, 64, false, [0xdead, 0xbeef, 32, 32]), 0xdead_0000_beef);
        assert_eq!(run(IntOp::ShfLWrap, 32, false, [0x8000_0001, 0x0000_0003, 33, 0]), 7);
        assert_eq!(run(IntOp::ShfLClamp, 32, false, [0x8000_0001, 0x0000_0003, 33, 0]), 0x8000_0001);
        assert_eq!(run(IntOp::ShfRClamp, 32, false, [0x8000_0001, 0x0000_0003, 33, 0]), 3);
        assert_eq!(run(IntOp::ShfRWrap, 32, false, [0x8000_0001, 0x0000_0003, 1, 0]), 0xc000_0000);
        assert_eq!(prmt(0x3322_1100, 0x7766_5544, 0x7531, 0), 0x7755_3311);
        assert_eq!(prmt(0x0000_0080, 0, 0x0008, 0), 0x8080_80ff);
        assert_eq!(prmt(0x3322_1100, 0x7766_5544, 1, 1), 0x4433_2211);
        assert_eq!(prmt(0x3322_1100, 0x7766_5544, 1, 2), 0x6677_0011);
        assert_eq!(prmt(0x3322_1100, 0, 2, 3), 0x2222_2222);
        assert_eq!(prmt(0x3322_1100, 0, 1, 4), 0x3322_1111);
        assert_eq!(prmt(0x3322_1100, 0, 1, 5), 0x1111_1100);
        assert_eq!(prmt(0x3322_1100, 0, 1, 6), 0x3322_3322);
        assert_eq!(run(IntOp::Shr, 32, true, [0x8000_0000, 40, 0, 0]), 0xffff_ffff);
        assert_eq!(run(IntOp::Shl, 64, false, [1, 64, 0, 0]), 0);
    }

    #[test]
    fn arithmetic_at_each_width() {
        assert_eq!(run(IntOp::MulHi, 32, false, [0xffff_ffff, 0xffff_ffff, 0, 0]), 0xffff_fffe);
        assert_eq!(run(IntOp::MulHi, 32, true, [0xffff_ffff, 0xffff_ffff, 0, 0]), 0);
        assert_eq!(run(IntOp::MulHi, 64, false, [u64::MAX, u64::MAX, 0, 0]), u64::MAX - 1);
        assert_eq!(run(IntOp::Div, 32, true, [0xffff_fff9, 2, 0, 0]), 0xffff_fffd);
        assert_eq!(run(IntOp::Rem, 32, true, [0xffff_fff9, 2, 0, 0]), 0xffff_ffff);
        assert_eq!(run(IntOp::Div, 32, true, [0x8000_0000, 0xffff_ffff, 0, 0]), 0x8000_0000);
        assert_eq!(run(IntOp::Div, 32, false, [5, 0, 0, 0]), 0xffff_ffff);
        assert_eq!(run(IntOp::AddSat, 32, true, [0x7fff_ffff, 1, 0, 0]), 0x7fff_ffff);
        assert_eq!(run(IntOp::Max, 16, true, [0xffff, 1, 0, 0]), 1);
        assert_eq!(run(IntOp::Clz, 32, false, [1, 0, 0, 0]), 31);
        assert_eq!(run(IntOp::Clz, 64, false, [0, 0, 0, 0]), 64);
        assert_eq!(run(IntOp::Brev, 32, false, [1, 0, 0, 0]), 0x8000_0000);
        assert_eq!(run(IntOp::Bfind, 32, true, [0xffff_fff0, 0, 0, 0]), 3);
        assert_eq!(run(IntOp::Bfind, 32, false, [0, 0, 0, 0]), 0xffff_ffff);
        assert_eq!(run(IntOp::Sad, 32, true, [0xffff_ffff, 2, 10, 0]), 13);
    }
}
