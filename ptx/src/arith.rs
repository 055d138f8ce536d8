//! Scalar arithmetic as the GPU defines it: rounding modes, flushing, half precision, the approximate functions.

use half::{bf16, f16};

/// Rounding modes of PTX.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Round {
    /// Nearest, ties to even (`.rn`, `.rni`).
    Nearest,
    /// Towards zero (`.rz`, `.rzi`).
    Zero,
    /// Down (`.rm`, `.rmi`).
    Down,
    /// Up (`.rp`, `.rpi`).
    Up,
    /// Nearest, ties away from zero (`.rna`).
    Away,
}

impl Round {
    /// A small number for it, and back.
    pub fn code(self) -> u32 {
        self as u32
    }

    pub fn from_code(code: u32) -> Self {
        match code {
            1 => Self::Zero,
            2 => Self::Down,
            3 => Self::Up,
            4 => Self::Away,
            _ => Self::Nearest,
        }
    }

    /// Rounds to an integral value.
    pub fn integral(self, x: f64) -> f64 {
        match self {
            Self::Nearest => x.round_ties_even(),
            Self::Zero => x.trunc(),
            Self::Down => x.floor(),
            Self::Up => x.ceil(),
            Self::Away => x.round(),
        }
    }
}

/// A binary floating-point format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    F16,
    Bf16,
    Tf32,
    F32,
    F64,
}

impl Format {
    /// Bits of the significand with the hidden one, the exponent of the least normal number, the largest finite value.
    fn shape(self) -> (i32, i32, f64) {
        match self {
            Self::F16 => (11, -14, 65504.0),
            Self::Bf16 => (8, -126, 3.389_531_389_251_535_5e38),
            Self::Tf32 => (11, -126, 3.401_162_134_214_653_5e38),
            Self::F32 => (24, -126, f64::from(f32::MAX)),
            Self::F64 => (53, -1022, f64::MAX),
        }
    }

    /// The value of the lowest bits.
    pub fn decode(self, bits: u64) -> f64 {
        match self {
            Self::F16 => f64::from(f16_to_f32(bits as u32)),
            Self::Bf16 => f64::from(f32::from_bits((bits as u32) << 16)),
            Self::Tf32 => f64::from(f32::from_bits(bits as u32 & 0xffff_e000)),
            Self::F32 => f64::from(f32::from_bits(bits as u32)),
            Self::F64 => f64::from_bits(bits),
        }
    }

    /// Rounds a value and gives its bits; NaN becomes the canonical one of the GPU.
    ///
    /// For a result that is rounded once, `x` is exact or was rounded to odd.
    pub fn encode(self, x: f64, mode: Round) -> u64 {
        if x.is_nan() {
            return match self {
                Self::F16 | Self::Bf16 => 0x7fff,
                Self::Tf32 | Self::F32 => 0x7fff_ffff,
                Self::F64 => 0x7fff_ffff_ffff_ffff,
            };
        }
        let x = self.round(x, mode);
        match self {
            Self::F16 => u64::from(f16::from_f64(x).to_bits()),
            Self::Bf16 => u64::from((x as f32).to_bits() >> 16),
            Self::Tf32 | Self::F32 => u64::from((x as f32).to_bits()),
            Self::F64 => x.to_bits(),
        }
    }

    /// Rounds a value to this format.
    pub fn round(self, x: f64, mode: Round) -> f64 {
        if self == Self::F64 || x == 0.0 || !x.is_finite() {
            return x;
        }
        let (bits, emin, max) = self.shape();
        let exponent = ((x.to_bits() >> 52) & 0x7ff) as i32 - 1023;
        let quantum = exponent.max(emin) - (bits - 1);
        let scaled = x * pow2(-quantum);
        let mode_value = mode.integral(scaled);
        // A rounding to zero keeps the sign.
        let y = (mode_value * pow2(quantum)).copysign(x);
        if y.abs() <= max {
            return y;
        }
        let to_max = match mode {
            Round::Zero => true,
            Round::Down => x > 0.0,
            Round::Up => x < 0.0,
            Round::Nearest | Round::Away => false,
        };
        (if to_max { max } else { f64::INFINITY }).copysign(x)
    }

    /// Whether the value is subnormal in this format.
    pub fn is_subnormal(self, x: f64) -> bool {
        x != 0.0 && x.abs() < pow2(self.shape().1)
    }
}

/// 2^e for -1022 <= e <= 1023.
fn pow2(e: i32) -> f64 {
    f64::from_bits(((e + 1023) as u64) << 52)
}

/// A half as f32: the exponent is shifted by a multiplication, which is right for subnormals too.
#[inline(always)]
pub(crate) fn f16_to_f32(bits: u32) -> f32 {
    let magnitude = f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits(0x7780_0000);
    // Infinity and NaN.
    let special = if bits & 0x7c00 == 0x7c00 { 0x7f80_0000 } else { 0 };
    f32::from_bits(magnitude.to_bits() | special | (bits & 0x8000) << 16)
}

/// A bfloat16 as f32.
#[inline(always)]
pub(crate) fn bf16_to_f32(bits: u32) -> f32 {
    f32::from_bits(bits << 16)
}

/// To half, nearest even, canonical NaN.
#[inline(always)]
pub(crate) fn f32_to_f16(x: f32) -> u32 {
    if x.is_nan() { 0x7fff } else { u32::from(f16::from_f32(x).to_bits()) }
}

/// To bfloat16, nearest even, canonical NaN.
#[inline(always)]
pub(crate) fn f32_to_bf16(x: f32) -> u32 {
    if x.is_nan() { 0x7fff } else { u32::from(bf16::from_f32(x).to_bits()) }
}

/// The bits of an f32 result: every NaN is the GPU's canonical one.
#[inline(always)]
pub(crate) fn canonical(x: f32) -> u32 {
    if x.is_nan() { 0x7fff_ffff } else { x.to_bits() }
}

/// The same for f64. An f64 NaN keeps its payload on the GPU; which one is not specified.
#[inline(always)]
pub(crate) fn canonical64(x: f64) -> u64 {
    if x.is_nan() { 0x7fff_ffff_ffff_ffff } else { x.to_bits() }
}

/// `.ftz`: a subnormal becomes a zero of its sign.
#[inline(always)]
pub(crate) fn flush(bits: u32) -> u32 {
    if bits & 0x7f80_0000 == 0 { bits & 0x8000_0000 } else { bits }
}

/// `.sat`: into [0, 1], NaN to 0.
#[inline(always)]
pub(crate) fn saturate(x: f32) -> f32 {
    if x > 0.0 { if x > 1.0 { 1.0 } else { x } } else { 0.0 }
}

/// `p + c`, rounded to odd: a later rounding to a shorter format gives what a single rounding would.
#[inline(always)]
pub(crate) fn add_odd(p: f64, c: f64) -> f64 {
    let s = p + c;
    let part = s - p;
    // The exact error of the sum (Knuth's two-sum).
    let error = (p - (s - part)) + (c - part);
    let bits = s.to_bits();
    // NaN compares false on both sides: an infinite or undefined sum stays.
    let inexact = (error > 0.0) | (error < 0.0);
    let adjust = inexact & (bits & 1 == 0);
    let away = (error > 0.0) == (s > 0.0);
    let step = if away { 1u64 } else { u64::MAX };
    f64::from_bits(if adjust { bits.wrapping_add(step) } else { bits })
}

/// a * b + c rounded to odd in f64, exact for f32 and halves.
#[inline(always)]
pub(crate) fn fma_odd(a: f64, b: f64, c: f64) -> f64 {
    add_odd(a * b, c)
}

/// a * b + c with one rounding.
#[inline(always)]
pub(crate) fn fma32(a: f32, b: f32, c: f32) -> f32 {
    fma_odd(f64::from(a), f64::from(b), f64::from(c)) as f32
}

/// `min`: NaN gives way to the other operand, -0 < +0.
#[inline(always)]
pub(crate) fn fmin(a: f32, b: f32) -> f32 {
    if a.is_nan() || b < a || (a == b && b.is_sign_negative()) { b } else { a }
}

/// `max`, likewise.
#[inline(always)]
pub(crate) fn fmax(a: f32, b: f32) -> f32 {
    if a.is_nan() || b > a || (a == b && b.is_sign_positive()) { b } else { a }
}

/// 2^x. The result differs from the correctly rounded one by no more than the last bit, far within the 2 ulp of
/// `ex2.approx`. Written without branches, so that a row of it is vectorised.
#[inline(always)]
pub(crate) fn exp2(x: f32) -> f32 {
    const MAGIC: f64 = 6_755_399_441_055_744.0;
    // Coefficients ln(2)^k / k!.
    const C: [f64; 10] = [
        std::f64::consts::LN_2,
        0.240_226_506_959_100_7,
        0.055_504_108_664_821_58,
        0.009_618_129_107_628_477,
        0.001_333_355_814_642_844_3,
        1.540_353_039_338_161e-4,
        1.525_273_380_405_984e-5,
        1.321_548_679_014_431e-6,
        1.017_808_600_923_97e-7,
        7.054_911_620_801_123e-9,
    ];
    let clamped = if x > 200.0 { 200.0 } else { f64::from(x) };
    let clamped = if clamped < -200.0 { -200.0 } else { clamped };
    let shifted = clamped + MAGIC;
    let whole = shifted - MAGIC;
    let f = clamped - whole;
    let mut y = C[9];
    let mut k = 9;
    while k > 0 {
        k -= 1;
        y = y * f + C[k];
    }
    y = y * f + 1.0;
    let scale = f64::from_bits((shifted.to_bits().wrapping_add(1023)) << 52);
    (y * scale) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_agree_with_the_half_crate() {
        for bits in 0..=u16::MAX {
            let (ours, theirs) = (f16_to_f32(u32::from(bits)), f16::from_bits(bits).to_f32());
            assert!(ours.to_bits() == theirs.to_bits() || (ours.is_nan() && theirs.is_nan()), "{bits:#x}");
            if !theirs.is_nan() {
                assert_eq!(Format::F16.encode(f64::from(theirs), Round::Nearest), u64::from(bits));
                let bf = bf16::from_bits(bits);
                if !bf.is_nan() {
                    assert_eq!(Format::Bf16.encode(bf.to_f64(), Round::Nearest), u64::from(bits));
                }
            }
        }
        let mut state = 1u32;
        for _ in 0..100_000 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let x = f32::from_bits(state);
            if !x.is_nan() {
                assert_eq!(Format::F16.encode(f64::from(x), Round::Nearest), u64::from(f16::from_f32(x).to_bits()));
                assert_eq!(Format::Bf16.encode(f64::from(x), Round::Nearest), u64::from(bf16::from_f32(x).to_bits()));
                assert_eq!(Format::F32.encode(f64::from(x), Round::Nearest), u64::from(x.to_bits()));
            }
        }
    }

    #[test]
    fn fma_is_rounded_once() {
        let mut state = 7u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let x = f32::from_bits(state);
            // Near exponents, so that sums cancel and tie.
            f32::from_bits((x.to_bits() & 0x81ff_ffff) | 0x3e00_0000)
        };
        for _ in 0..200_000 {
            let (a, b, c) = (next(), next(), next());
            assert_eq!(fma32(a, b, c).to_bits(), a.mul_add(b, c).to_bits(), "{a} {b} {c}");
            let tiny = c * 1e-9;
            assert_eq!(fma32(a, b, tiny).to_bits(), a.mul_add(b, tiny).to_bits(), "{a} {b} {tiny}");
        }
        assert_eq!(fma32(f32::INFINITY, 1.0, 1.0), f32::INFINITY);
        assert!(fma32(f32::INFINITY, 0.0, 1.0).is_nan());
    }

    #[test]
    fn rounding_modes() {
        let x = 1.0 + f64::from(f32::EPSILON) * 0.5;
        assert_eq!(Format::F32.round(x, Round::Nearest), 1.0);
        assert_eq!(Format::F32.round(x, Round::Up), f64::from(1.0 + f32::EPSILON));
        assert_eq!(Format::F32.round(-x, Round::Down), -f64::from(1.0 + f32::EPSILON));
        assert_eq!(Format::F32.round(x, Round::Away), f64::from(1.0 + f32::EPSILON));
        assert_eq!(Format::F16.round(70000.0, Round::Zero), 65504.0);
        assert_eq!(Format::F16.round(65520.0, Round::Nearest), f64::INFINITY);
        assert_eq!(Format::F16.round(65519.0, Round::Nearest), 65504.0);
        assert_eq!(Format::F32.encode(-1e-50, Round::Nearest), 0x8000_0000);
    }

    #[test]
    fn exp2_is_within_an_ulp() {
        for i in -15_200..13_000 {
            let x = i as f32 * 0.01 + 0.000_7;
            let exact = f64::from(x).exp2();
            let got = exp2(x);
            let ulp = f64::from(f32::from_bits(got.to_bits() + 1)) - f64::from(got);
            if got.is_finite() {
                assert!((f64::from(got) - exact).abs() <= 0.501 * ulp, "{x}: {got} {exact}");
            }
        }
        assert_eq!(exp2(3.0), 8.0);
        assert_eq!(exp2(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp2(f32::INFINITY), f32::INFINITY);
        assert!(exp2(f32::NAN).is_nan());
        assert_eq!(exp2(-149.0), f32::from_bits(1));
    }
}
