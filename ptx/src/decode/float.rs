//! Floating-point arithmetic.
//!
//! f32 in round-to-nearest has row functions of its own; every other type and mode goes through one scalar function that
//! computes in f64, rounded to odd where that matters, and rounds once more to the type.

use super::{Decoded, Decoder, Opcode};
use crate::arith::{Format, Round, add_odd, canonical, canonical64, exp2, flush, fma_odd, fma32, fmax, fmin, saturate};
use crate::counts::InstructionKind;
use crate::lanes::unary32;
use crate::parse::{Operand, type_bytes};
use crate::program::{Lanes32, Op, Reg, Wide};

/// Operations of [`scalar`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum FloatOp {
    Add,
    Sub,
    Mul,
    Fma,
    Div,
    Min,
    Max,
    Abs,
    Neg,
    Rcp,
    Sqrt,
    Rsqrt,
    Ex2,
    Lg2,
    Sin,
    Cos,
    Tanh,
    Copysign,
}

const TABLE: [FloatOp; 18] = [
    FloatOp::Add,
    FloatOp::Sub,
    FloatOp::Mul,
    FloatOp::Fma,
    FloatOp::Div,
    FloatOp::Min,
    FloatOp::Max,
    FloatOp::Abs,
    FloatOp::Neg,
    FloatOp::Rcp,
    FloatOp::Sqrt,
    FloatOp::Rsqrt,
    FloatOp::Ex2,
    FloatOp::Lg2,
    FloatOp::Sin,
    FloatOp::Cos,
    FloatOp::Tanh,
    FloatOp::Copysign,
];

/// How an operation is done: the fields of the immediate of a [`Wide`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FloatMode {
    pub op: FloatOp,
    pub format: Format,
    pub x2: bool,
    pub round: Round,
    pub ftz: bool,
    pub sat: bool,
    pub relu: bool,
    /// `.NaN` of min and max: a NaN wins.
    pub nan: bool,
}

impl FloatMode {
    fn pack(self) -> u32 {
        let flags = [self.x2, self.ftz, self.sat, self.relu, self.nan];
        let bits = flags.iter().enumerate().fold(0, |bits, (i, flag)| bits | u32::from(*flag) << i);
        bits | (self.op as u32) << 8 | self.round.code() << 16 | (self.format as u32) << 20
    }

    fn unpack(imm: u32) -> Self {
        let format = [Format::F16, Format::Bf16, Format::Tf32, Format::F32, Format::F64];
        let flag = |i: u32| imm >> i & 1 != 0;
        Self {
            op: TABLE[(imm >> 8 & 0xff) as usize],
            format: format[(imm >> 20) as usize],
            x2: flag(0),
            round: Round::from_code(imm >> 16 & 15),
            ftz: flag(1),
            sat: flag(2),
            relu: flag(3),
            nan: flag(4),
        }
    }
}

fn scalar64(mode: FloatMode, s: [u64; 3]) -> u64 {
    let [a, b, c] = s.map(f64::from_bits);
    let y = match mode.op {
        FloatOp::Add => a + b,
        FloatOp::Sub => a - b,
        FloatOp::Mul => a * b,
        FloatOp::Fma => a.mul_add(b, c),
        FloatOp::Div => a / b,
        FloatOp::Min => min(a, b, mode.nan),
        FloatOp::Max => -min(-a, -b, mode.nan),
        FloatOp::Abs => return s[0] & !(1 << 63),
        FloatOp::Neg => return s[0] ^ (1 << 63),
        FloatOp::Copysign => return (s[0] & (1 << 63)) | (s[1] & !(1 << 63)),
        _ => approximate(mode.op, a),
    };
    canonical64(y)
}

fn min(a: f64, b: f64, nan: bool) -> f64 {
    if nan && (a.is_nan() || b.is_nan()) {
        return f64::NAN;
    }
    if a.is_nan() || b < a || (a == b && b.is_sign_negative()) { b } else { a }
}

/// The functions that a GPU approximates, here computed in f64: the result is the exact one rounded, but for the rare
/// case that f64 itself is off at a tie. A kernel must not need more than the 2^-22 or so that the hardware gives.
fn approximate(op: FloatOp, a: f64) -> f64 {
    match op {
        FloatOp::Rcp => 1.0 / a,
        FloatOp::Sqrt => a.sqrt(),
        FloatOp::Rsqrt => 1.0 / a.sqrt(),
        FloatOp::Ex2 => a.exp2(),
        FloatOp::Lg2 => a.log2(),
        FloatOp::Sin => a.sin(),
        FloatOp::Cos => a.cos(),
        _ => a.tanh(),
    }
}

/// One operation on values of a format.
pub(crate) fn scalar(mode: FloatMode, s: [u64; 3]) -> u64 {
    let f = mode.format;
    if f == Format::F64 {
        return scalar64(mode, s);
    }
    let sign = if f == Format::F32 { 1 << 31 } else { 1 << 15 };
    let value = |i: usize| {
        let x = f.decode(s[i]);
        if mode.ftz && f.is_subnormal(x) { 0f64.copysign(x) } else { x }
    };
    let (a, b, c) = (value(0), value(1), value(2));
    let y = match mode.op {
        FloatOp::Add => add_odd(a, b),
        FloatOp::Sub => add_odd(a, -b),
        FloatOp::Mul => a * b,
        FloatOp::Fma => fma_odd(a, b, c),
        // f64 has more than twice the bits: rounding again to nearest is harmless.
        FloatOp::Div => a / b,
        FloatOp::Min => min(a, b, mode.nan),
        FloatOp::Max => -min(-a, -b, mode.nan),
        FloatOp::Abs if !mode.ftz => return s[0] & (sign - 1),
        FloatOp::Neg if !mode.ftz => return (s[0] & (2 * sign - 1)) ^ sign,
        FloatOp::Abs => a.abs(),
        FloatOp::Neg => -a,
        FloatOp::Copysign => return (s[0] & sign) | (s[1] & (sign - 1)),
        _ => approximate(mode.op, a),
    };
    let mut y = f.round(y, mode.round);
    if mode.ftz && f.is_subnormal(y) {
        y = 0f64.copysign(y);
    }
    if mode.sat {
        y = if y > 0.0 { y.min(1.0) } else { 0.0 };
    }
    if mode.relu && !y.is_nan() {
        y = if y > 0.0 { y } else { 0.0 };
    }
    f.encode(y, Round::Nearest)
}

fn table(s: &[[u64; 32]; 4], imm: u32, d: &mut [u64; 32]) {
    let mode = FloatMode::unpack(imm);
    for i in 0..32 {
        let s = [s[0][i], s[1][i], s[2][i]];
        d[i] = if mode.x2 {
            let low = scalar(mode, s.map(|v| v & 0xffff));
            let high = scalar(mode, s.map(|v| v >> 16 & 0xffff));
            high << 16 | low
        } else {
            scalar(mode, s)
        };
    }
}

/// f32 operations on two rows.
fn pair<const OP: u8, const FTZ: bool, const SAT: bool>(a: &Lanes32, b: &Lanes32, d: &mut Lanes32) {
    for i in 0..32 {
        let (x, y) = if FTZ { (flush(a[i]), flush(b[i])) } else { (a[i], b[i]) };
        let (x, y) = (f32::from_bits(x), f32::from_bits(y));
        let z = match OP {
            0 => x + y,
            1 => x - y,
            2 => x * y,
            3 => x / y,
            4 => fmin(x, y),
            _ => fmax(x, y),
        };
        let z = if SAT { saturate(z).to_bits() } else { canonical(z) };
        d[i] = if FTZ { flush(z) } else { z };
    }
}

fn fused<const FTZ: bool, const SAT: bool>(a: &Lanes32, b: &Lanes32, c: &Lanes32, d: &mut Lanes32) {
    for i in 0..32 {
        let s = [a[i], b[i], c[i]].map(|v| f32::from_bits(if FTZ { flush(v) } else { v }));
        let z = fma32(s[0], s[1], s[2]);
        let z = if SAT { saturate(z).to_bits() } else { canonical(z) };
        d[i] = if FTZ { flush(z) } else { z };
    }
}

type F2 = fn(&Lanes32, &Lanes32, &mut Lanes32);

fn pair_of(op: FloatOp, ftz: bool, sat: bool) -> Option<F2> {
    macro_rules! pick {
        ($op:literal) => {
            match (ftz, sat) {
                (false, false) => pair::<$op, false, false>,
                (true, false) => pair::<$op, true, false>,
                (false, true) => pair::<$op, false, true>,
                (true, true) => pair::<$op, true, true>,
            }
        };
    }
    Some(match op {
        FloatOp::Add => pick!(0),
        FloatOp::Sub => pick!(1),
        FloatOp::Mul => pick!(2),
        FloatOp::Div => pick!(3),
        FloatOp::Min => pick!(4),
        FloatOp::Max => pick!(5),
        _ => return None,
    })
}

fn float_type(ty: &str) -> Option<(Format, bool)> {
    Some(match ty {
        "f16" => (Format::F16, false),
        "f16x2" => (Format::F16, true),
        "bf16" => (Format::Bf16, false),
        "bf16x2" => (Format::Bf16, true),
        "f32" => (Format::F32, false),
        "f64" => (Format::F64, false),
        _ => return None,
    })
}

/// A rounding mode of arithmetic.
pub(crate) fn rounding(m: &str) -> Option<Round> {
    Some(match m {
        "rn" => Round::Nearest,
        "rz" => Round::Zero,
        "rm" => Round::Down,
        "rp" => Round::Up,
        _ => return None,
    })
}

impl<'a> Decoder<'a> {
    pub(super) fn decode_float(&mut self, op: &mut Opcode<'a>, o: &[Operand<'a>]) -> Decoded<bool> {
        let (which, sources) = match op.base {
            "add" => (FloatOp::Add, 2),
            "sub" => (FloatOp::Sub, 2),
            "mul" => (FloatOp::Mul, 2),
            "fma" | "mad" => (FloatOp::Fma, 3),
            "div" => (FloatOp::Div, 2),
            "min" => (FloatOp::Min, 2),
            "max" => (FloatOp::Max, 2),
            "abs" => (FloatOp::Abs, 1),
            "neg" => (FloatOp::Neg, 1),
            "rcp" => (FloatOp::Rcp, 1),
            "sqrt" => (FloatOp::Sqrt, 1),
            "rsqrt" => (FloatOp::Rsqrt, 1),
            "ex2" => (FloatOp::Ex2, 1),
            "lg2" => (FloatOp::Lg2, 1),
            "sin" => (FloatOp::Sin, 1),
            "cos" => (FloatOp::Cos, 1),
            "tanh" => (FloatOp::Tanh, 1),
            "copysign" => (FloatOp::Copysign, 2),
            _ => return Ok(false),
        };
        let Some((format, x2)) = op.find(float_type) else { return Ok(false) };
        let round = op.find(rounding);
        let approx = op.take("approx") | op.take("full");
        let mode = FloatMode {
            op: which,
            format,
            x2,
            round: round.unwrap_or(Round::Nearest),
            ftz: op.take("ftz"),
            sat: op.take("sat"),
            relu: op.take("relu"),
            nan: op.take("NaN"),
        };
        op.done()?;
        if o.len() != sources + 1 {
            return Err(format!("`{}` with {} operands", op.base, o.len()));
        }
        let plain = matches!(which, FloatOp::Add | FloatOp::Sub | FloatOp::Mul | FloatOp::Fma) && format != Format::F64;
        if mode.round != Round::Nearest && !plain {
            return Err(format!("`{}` of that type in a directed rounding", op.base));
        }
        let special = which as u8 >= FloatOp::Rcp as u8 && which != FloatOp::Copysign;
        let kind = match (special || which == FloatOp::Div, format) {
            (true, _) => InstructionKind::SpecialFunction,
            (_, Format::F32 | Format::F64) => InstructionKind::Float,
            _ => InstructionKind::Half,
        };
        if special && round.is_none() && !approx {
            return Err(format!("`{}` without .approx or a rounding", op.base));
        }
        if format == Format::F32 && mode.round == Round::Nearest && self.float32(mode, o, kind)? {
            return Ok(true);
        }
        let bytes = if x2 { 4 } else { type_bytes(format_name(format)).unwrap_or(4) };
        let mut s = [Reg::None; 4];
        for (i, slot) in s.iter_mut().enumerate().take(sources) {
            *slot = self.src(&o[i + 1], bytes)?;
        }
        let d = self.dst(&o[0])?;
        self.emit(Op::Wide(Box::new(Wide { f: table, d, s, imm: mode.pack() })), kind);
        Ok(true)
    }

    /// f32 in round-to-nearest.
    fn float32(&mut self, mode: FloatMode, o: &[Operand<'a>], kind: InstructionKind) -> Decoded<bool> {
        if mode.relu || mode.nan {
            return Ok(false);
        }
        if let Some(f) = pair_of(mode.op, mode.ftz, mode.sat) {
            let (d, a, b) = (self.dst32(&o[0])?, self.src32(&o[1])?, self.src32(&o[2])?);
            self.emit(Op::Binary32 { f, d, a, b }, kind);
            return Ok(true);
        }
        let one: fn(&Lanes32, &mut Lanes32) = match (mode.op, mode.ftz) {
            (FloatOp::Fma, _) => {
                let f: fn(&Lanes32, &Lanes32, &Lanes32, &mut Lanes32) = match (mode.ftz, mode.sat) {
                    (false, false) => fused::<false, false>,
                    (true, false) => fused::<true, false>,
                    (false, true) => fused::<false, true>,
                    (true, true) => fused::<true, true>,
                };
                let (d, a, b, c) = (self.dst32(&o[0])?, self.src32(&o[1])?, self.src32(&o[2])?, self.src32(&o[3])?);
                self.emit(Op::Ternary32 { f, d, a, b, c }, kind);
                return Ok(true);
            }
            (FloatOp::Abs, false) => unary32!(|x| x & 0x7fff_ffff),
            (FloatOp::Neg, false) => unary32!(|x| x ^ 0x8000_0000),
            (FloatOp::Ex2, false) => unary32!(|x| canonical(exp2(f32::from_bits(x)))),
            (FloatOp::Ex2, true) => unary32!(|x| flush(canonical(exp2(f32::from_bits(flush(x)))))),
            (FloatOp::Rcp, false) => unary32!(|x| canonical(1.0 / f32::from_bits(x))),
            (FloatOp::Rcp, true) => unary32!(|x| flush(canonical(1.0 / f32::from_bits(flush(x))))),
            (FloatOp::Sqrt, false) => unary32!(|x| canonical(f32::from_bits(x).sqrt())),
            (FloatOp::Sqrt, true) => unary32!(|x| flush(canonical(f32::from_bits(flush(x)).sqrt()))),
            _ => return Ok(false),
        };
        if mode.sat {
            return Ok(false);
        }
        let (d, a) = (self.dst32(&o[0])?, self.src32(&o[1])?);
        self.emit(Op::Unary32 { f: one, d, a }, kind);
        Ok(true)
    }
}

fn format_name(format: Format) -> &'static str {
    match format {
        Format::F16 => "f16",
        Format::Bf16 => "bf16",
        Format::Tf32 | Format::F32 => "f32",
        Format::F64 => "f64",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(op: FloatOp, format: Format) -> FloatMode {
        FloatMode { op, format, x2: false, round: Round::Nearest, ftz: false, sat: false, relu: false, nan: false }
    }

    #[test]
    fn packing() {
        assert!(TABLE.iter().enumerate().all(|(i, op)| *op as usize == i));
        let all = FloatMode {
            x2: true,
            ftz: true,
            sat: false,
            relu: true,
            nan: true,
            round: Round::Up,
            ..mode(FloatOp::Tanh, Format::Bf16)
        };
        assert_eq!(FloatMode::unpack(all.pack()), all);
    }

    #[test]
    fn halves_round_once() {
        let h = |x: f64| Format::F16.encode(x, Round::Nearest);
        // 1 + 2^-11 is a tie, and goes to even; a product's tiny part breaks it.
        let (one, tiny) = (h(1.0), h(2f64.powi(-11)));
        assert_eq!(scalar(mode(FloatOp::Add, Format::F16), [one, tiny, 0]), h(1.0));
        let fma = mode(FloatOp::Fma, Format::F16);
        let small = h(2f64.powi(-12));
        assert_eq!(scalar(fma, [small, small, one]), h(1.0));
        assert_eq!(scalar(fma, [h(1.0 + 2f64.powi(-10)), tiny, one]), h(1.0 + 2f64.powi(-10)));
        assert_eq!(scalar(FloatMode { relu: true, ..fma }, [one, h(-2.0), one]), 0);
        assert_eq!(scalar(FloatMode { sat: true, ..fma }, [one, h(2.0), one]), h(1.0));
        assert_eq!(scalar(mode(FloatOp::Add, Format::F16), [h(60000.0), h(60000.0), 0]), 0x7c00);
        let max = mode(FloatOp::Max, Format::F16);
        assert_eq!(scalar(max, [0x7e00, one, 0]), one);
        assert_eq!(scalar(FloatMode { nan: true, ..max }, [0x7e00, one, 0]), 0x7fff);
        assert_eq!(scalar(max, [0x8000, 0, 0]), 0);
        assert_eq!(scalar(mode(FloatOp::Min, Format::F16), [0, 0x8000, 0]), 0x8000);
    }

    #[test]
    fn directed_f32() {
        let bits = |x: f32| u64::from(x.to_bits());
        let tiny = bits(1e-30);
        for (round, expected) in [(Round::Up, 1.0 + f32::EPSILON), (Round::Down, 1.0), (Round::Zero, 1.0)] {
            let add = FloatMode { round, ..mode(FloatOp::Add, Format::F32) };
            assert_eq!(scalar(add, [bits(1.0), tiny, 0]), bits(expected), "{round:?}");
            let fma = FloatMode { round, ..mode(FloatOp::Fma, Format::F32) };
            assert_eq!(scalar(fma, [bits(1.0), tiny, bits(1.0)]), bits(expected), "{round:?}");
        }
        let ftz = FloatMode { ftz: true, ..mode(FloatOp::Mul, Format::F32) };
        assert_eq!(scalar(ftz, [bits(1e-30), bits(-1e-10), 0]), 0x8000_0000);
    }
}
