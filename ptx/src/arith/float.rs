//! Floating-point operations in any format.

use super::format::{Format, Round};
use super::single::{add_odd, canonical, canonical64, flush, fma_odd, fma32, fmax, fmin, saturate};
use crate::lanes::{Binary32, Lanes32, Lanes64, Ternary32};

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

/// The operations in order of their codes.
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

/// An operation with its format and modifiers, packed into the immediate of [`evaluate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FloatMode {
    pub op: FloatOp,
    pub format: Format,
    /// Two halves per register.
    pub x2: bool,
    pub round: Round,
    pub ftz: bool,
    pub sat: bool,
    pub relu: bool,
    /// `.NaN` of min and max: NaN if an operand is NaN.
    pub nan: bool,
}

impl FloatMode {
    /// Packs the mode into an immediate.
    pub fn pack(self) -> u32 {
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

/// Computes one operation in f64.
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

/// The minimum: the other operand for NaN unless `nan`, and -0 < +0.
fn min(a: f64, b: f64, nan: bool) -> f64 {
    if nan && (a.is_nan() || b.is_nan()) {
        return f64::NAN;
    }
    if a.is_nan() || b < a || (a == b && b.is_sign_negative()) { b } else { a }
}

/// Computes in f64 the functions that a GPU approximates. Once rounded, the result is the correctly rounded one but for
/// rare ties. A kernel must not rely on more than the 2^-22 or so of the hardware.
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

/// Computes one operation on values of a format.
fn scalar(mode: FloatMode, s: [u64; 3]) -> u64 {
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
        // f64 has more than twice the bits, so that rounding twice to nearest is harmless.
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

/// Runs the operation of a [`FloatMode`] on 32 lanes.
pub(crate) fn evaluate(s: &[Lanes64; 4], imm: u32, d: &mut Lanes64) {
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

/// Runs a binary f32 operation on 32 lanes.
fn binary<const OP: u8, const FTZ: bool, const SAT: bool>(a: &Lanes32, b: &Lanes32, d: &mut Lanes32) {
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

/// Runs a fused multiply-add in f32 on 32 lanes.
fn fused<const FTZ: bool, const SAT: bool>(a: &Lanes32, b: &Lanes32, c: &Lanes32, d: &mut Lanes32) {
    for i in 0..32 {
        let s = [a[i], b[i], c[i]].map(|v| f32::from_bits(if FTZ { flush(v) } else { v }));
        let z = fma32(s[0], s[1], s[2]);
        let z = if SAT { saturate(z).to_bits() } else { canonical(z) };
        d[i] = if FTZ { flush(z) } else { z };
    }
}

/// The function of a binary f32 operation, rounded to nearest.
pub(crate) fn binary_function(op: FloatOp, ftz: bool, sat: bool) -> Option<Binary32> {
    macro_rules! pick {
        ($op:literal) => {
            match (ftz, sat) {
                (false, false) => binary::<$op, false, false>,
                (true, false) => binary::<$op, true, false>,
                (false, true) => binary::<$op, false, true>,
                (true, true) => binary::<$op, true, true>,
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

/// The function of a fused multiply-add in f32, rounded to nearest.
pub(crate) fn fused_function(ftz: bool, sat: bool) -> Ternary32 {
    match (ftz, sat) {
        (false, false) => fused::<false, false>,
        (true, false) => fused::<true, false>,
        (false, true) => fused::<false, true>,
        (true, true) => fused::<true, true>,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(op: FloatOp, format: Format) -> FloatMode {
        FloatMode { op, format, x2: false, round: Round::Nearest, ftz: false, sat: false, relu: false, nan: false }
    }

    #[test]
    fn mode_packing() {
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
    fn half_rounding() {
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
    fn directed_rounding() {
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
