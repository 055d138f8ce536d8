//! Conversions between scalar types.

use super::format::{Format, Round};
use crate::lanes::Lanes64;

/// A conversion between two types with its modifiers, packed into the immediate of [`convert`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Conversion {
    pub to: ScalarType,
    pub from: ScalarType,
    pub round: Round,
    /// Round to an integral value: `.rni`, `.rzi`, `.rmi`, `.rpi`.
    pub integral: bool,
    pub ftz: bool,
    pub sat: bool,
    pub relu: bool,
}

/// A scalar type of `cvt`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ScalarType {
    /// Bits, and whether it is signed.
    Int(u32, bool),
    Float(Format),
}

/// The types by name, in order of their codes.
const TYPES: [(&str, ScalarType); 14] = [
    ("u8", ScalarType::Int(8, false)),
    ("u16", ScalarType::Int(16, false)),
    ("u32", ScalarType::Int(32, false)),
    ("u64", ScalarType::Int(64, false)),
    ("s8", ScalarType::Int(8, true)),
    ("s16", ScalarType::Int(16, true)),
    ("s32", ScalarType::Int(32, true)),
    ("s64", ScalarType::Int(64, true)),
    ("f16", ScalarType::Float(Format::F16)),
    ("bf16", ScalarType::Float(Format::Bf16)),
    ("tf32", ScalarType::Float(Format::Tf32)),
    ("f32", ScalarType::Float(Format::F32)),
    ("f64", ScalarType::Float(Format::F64)),
    ("b8", ScalarType::Int(8, false)),
];

impl ScalarType {
    /// The type of this name.
    pub fn parse(name: &str) -> Option<Self> {
        TYPES.iter().find(|t| t.0 == name).map(|t| t.1)
    }

    /// Size of a register of this type in bytes.
    pub fn bytes(self) -> u64 {
        match self {
            Self::Int(bits, _) => u64::from(bits / 8),
            Self::Float(Format::F16 | Format::Bf16) => 2,
            Self::Float(Format::F64) => 8,
            Self::Float(_) => 4,
        }
    }
}

impl Conversion {
    /// Packs the conversion into an immediate.
    pub fn pack(self) -> u32 {
        let index = |t: ScalarType| TYPES.iter().position(|x| x.1 == t).unwrap_or(0) as u32;
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

    /// Converts one value. A narrow signed result is sign-extended to 64 bits, as a wider destination requires.
    fn apply(self, bits: u64) -> u64 {
        match (self.from, self.to) {
            (ScalarType::Int(from, signed), ScalarType::Int(to, to_signed)) => {
                let up = 64 - from;
                let value = if signed { i128::from((bits << up) as i64 >> up) } else { i128::from(bits << up >> up) };
                clamp_int(value, to, to_signed, self.sat)
            }
            (ScalarType::Int(from, signed), ScalarType::Float(f)) => {
                let up = 64 - from;
                let value = if signed { (bits << up) as i64 >> up } else { (bits << up >> up) as i64 };
                let odd =
                    if signed { int_to_odd(value < 0, value.unsigned_abs()) } else { int_to_odd(false, value as u64) };
                let exact_to_f64 =
                    if f == Format::F64 { if signed { value as f64 } else { value as u64 as f64 } } else { odd };
                f.encode(exact_to_f64, self.round)
            }
            (ScalarType::Float(f), ScalarType::Int(to, signed)) => {
                let mut x = f.decode(bits);
                if self.ftz && f.is_subnormal(x) {
                    x = 0.0;
                }
                // Values out of range saturate even without .sat; NaN is zero, or the sign bit alone for 64-bit targets.
                if x.is_nan() {
                    return if to == 64 { 1 << 63 } else { 0 };
                }
                let x = self.round.integral(x);
                let value = if x.abs() >= 2f64.powi(65) { (x.signum() as i128) << 65 } else { x as i128 };
                clamp_int(value, to, signed, true)
            }
            (ScalarType::Float(from), ScalarType::Float(to)) => {
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

/// Converts an integer to f64, rounded to odd.
fn int_to_odd(negative: bool, magnitude: u64) -> f64 {
    let lost = 11u32.saturating_sub(magnitude.leading_zeros());
    let kept = magnitude >> lost;
    let sticky = u64::from(kept << lost != magnitude);
    let x = (kept | sticky) as f64 * 2f64.powi(lost as i32);
    if negative { -x } else { x }
}

/// Clamps or truncates an integer to a type and sign-extends it.
fn clamp_int(value: i128, bits: u32, signed: bool, saturate: bool) -> u64 {
    let (low, high) =
        if signed { (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1) } else { (0, (1i128 << bits) - 1) };
    let value = if saturate { value.clamp(low, high) } else { value };
    let up = 64 - bits;
    let cut = (value as u64) << up;
    if signed { (cut as i64 >> up) as u64 } else { cut >> up }
}

/// Runs a [`Conversion`] on 32 lanes.
pub(crate) fn convert(s: &[Lanes64; 4], imm: u32, d: &mut Lanes64) {
    let cvt = Conversion::unpack(imm);
    for i in 0..32 {
        d[i] = cvt.apply(s[0][i]);
    }
}

/// Converts two f32 to the halves of one register on 32 lanes; the first operand is the upper half.
pub(crate) fn convert_pair(s: &[Lanes64; 4], imm: u32, d: &mut Lanes64) {
    let cvt = Conversion::unpack(imm);
    for i in 0..32 {
        d[i] = cvt.apply(s[0][i]) << 16 | cvt.apply(s[1][i]);
    }
}

/// The 8-bit format of an immediate of the functions below, and whether negative values become 0.
fn narrow(imm: u32) -> (Format, bool) {
    (if imm & 1 != 0 { Format::E5m2 } else { Format::E4m3 }, imm & 2 != 0)
}

/// Rounds to an 8-bit format; what lies beyond becomes the largest finite value.
fn narrow_one(x: f64, imm: u32) -> u64 {
    let (format, relu) = narrow(imm);
    let x = if relu && x < 0.0 { 0.0 } else { x };
    let most = format.largest();
    format.encode(if x.abs() > most { most.copysign(x) } else { x }, Round::Nearest)
}

/// Two f32 to the bytes of one register; the first operand is the upper one.
pub(crate) fn narrow_pair(s: &[Lanes64; 4], imm: u32, d: &mut Lanes64) {
    let single = |v: u64| f64::from(f32::from_bits(v as u32));
    for i in 0..32 {
        d[i] = narrow_one(single(s[0][i]), imm) << 8 | narrow_one(single(s[1][i]), imm);
    }
}

/// Two halves of a register to the bytes of another.
pub(crate) fn narrow_halves(s: &[Lanes64; 4], imm: u32, d: &mut Lanes64) {
    for i in 0..32 {
        let half = |shift: u32| narrow_one(Format::F16.decode(s[0][i] >> shift & 0xffff), imm);
        d[i] = half(16) << 8 | half(0);
    }
}

/// Two bytes of a register to the halves of another; exact.
pub(crate) fn widen_pair(s: &[Lanes64; 4], imm: u32, d: &mut Lanes64) {
    let (format, relu) = narrow(imm);
    for i in 0..32 {
        let half = |shift: u32| {
            let x = format.decode(s[0][i] >> shift & 0xff);
            Format::F16.encode(if relu && x < 0.0 { 0.0 } else { x }, Round::Nearest)
        };
        d[i] = half(8) << 16 | half(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cvt(to: &str, from: &str, round: Round, integral: bool, bits: u64) -> u64 {
        let find = |m: &str| TYPES.iter().find(|t| t.0 == m).unwrap().1;
        let cvt = Conversion { to: find(to), from: find(from), round, integral, ftz: false, sat: false, relu: false };
        assert_eq!(Conversion::unpack(cvt.pack()), cvt);
        cvt.apply(bits)
    }

    /// Every byte survives the way to a half and back; values in between and beyond go where the format says.
    #[test]
    fn eight_bits() {
        for imm in [0, 1] {
            for byte in 0..=255u64 {
                let nan = if imm == 0 { byte & 0x7f == 0x7f } else { byte & 0x7f > 0x7c };
                // e5m2 has infinities, which the conversion back makes finite.
                if nan || imm == 1 && byte & 0x7f == 0x7c {
                    continue;
                }
                let (mut wide, mut back) = ([0; 32], [0; 32]);
                widen_pair(&[[byte << 8 | byte; 32], [0; 32], [0; 32], [0; 32]], imm, &mut wide);
                narrow_halves(&[wide, [0; 32], [0; 32], [0; 32]], imm, &mut back);
                assert_eq!(back[0], byte << 8 | byte, "{imm} {byte:#x}");
            }
        }
        let of = |x: f32, imm| {
            let mut d = [0; 32];
            narrow_pair(&[[0; 32], [x.to_bits().into(); 32], [0; 32], [0; 32]], imm, &mut d);
            d[0]
        };
        assert_eq!((of(1.0, 0), of(-2.0, 0), of(448.0, 0), of(1e9, 0), of(-464.0, 0)), (0x38, 0xc0, 0x7e, 0x7e, 0xfe));
        assert_eq!((of(1.0625, 0), of(1.1875, 0), of(2f32.powi(-9), 0), of(2f32.powi(-10), 0)), (0x38, 0x3a, 1, 0));
        assert_eq!((of(1.0, 1), of(57344.0, 1), of(1e9, 1), of(f32::NAN, 0), of(-1.0, 2)), (0x3c, 0x7b, 0x7b, 0x7f, 0));
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
