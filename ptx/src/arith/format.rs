//! Rounding modes and binary floating-point formats.

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
    /// The mode as a small number.
    pub fn code(self) -> u32 {
        self as u32
    }

    /// The mode of a number that [`Round::code`] gave.
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
    /// 4 bits of exponent and 3 of fraction; no infinities.
    E4m3,
    /// 5 bits of exponent and 2 of fraction.
    E5m2,
}

impl Format {
    /// Bits of the significand with the hidden one, exponent of the smallest normal number, largest finite value.
    fn shape(self) -> (i32, i32, f64) {
        match self {
            Self::E4m3 => (4, -6, 448.0),
            Self::E5m2 => (3, -14, 57344.0),
            Self::F16 => (11, -14, 65504.0),
            Self::Bf16 => (8, -126, 3.389_531_389_251_535_5e38),
            Self::Tf32 => (11, -126, 3.401_162_134_214_653_5e38),
            Self::F32 => (24, -126, f64::from(f32::MAX)),
            Self::F64 => (53, -1022, f64::MAX),
        }
    }

    /// The largest finite value.
    pub fn largest(self) -> f64 {
        self.shape().2
    }

    /// The value of the low bits.
    pub fn decode(self, bits: u64) -> f64 {
        match self {
            // Both are the upper byte of a half, with another bias for e4m3.
            Self::E4m3 if bits & 0x7f == 0x7f => f64::NAN,
            Self::E4m3 => f64::from(f16_to_f32(((bits & 0x80) << 8 | (bits & 0x7f) << 7) as u32)) * 256.0,
            Self::E5m2 => f64::from(f16_to_f32((bits as u32 & 0xff) << 8)),
            Self::F16 => f64::from(f16_to_f32(bits as u32)),
            Self::Bf16 => f64::from(f32::from_bits((bits as u32) << 16)),
            Self::Tf32 => f64::from(f32::from_bits(bits as u32 & 0xffff_e000)),
            Self::F32 => f64::from(f32::from_bits(bits as u32)),
            Self::F64 => f64::from_bits(bits),
        }
    }

    /// Rounds a value and returns its bits; NaN becomes the canonical one of the GPU.
    ///
    /// The result is rounded once if `x` is exact or was rounded to odd.
    pub fn encode(self, x: f64, mode: Round) -> u64 {
        if x.is_nan() {
            return match self {
                Self::E4m3 | Self::E5m2 => 0x7f,
                Self::F16 | Self::Bf16 => 0x7fff,
                Self::Tf32 | Self::F32 => 0x7fff_ffff,
                Self::F64 => 0x7fff_ffff_ffff_ffff,
            };
        }
        let x = self.round(x, mode);
        match self {
            Self::E4m3 => {
                let half = u64::from(f16::from_f64(x / 256.0).to_bits());
                half >> 8 & 0x80 | half >> 7 & 0x7f
            }
            Self::E5m2 => u64::from(f16::from_f64(x).to_bits()) >> 8,
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

/// Converts half to f32. A multiplication shifts the exponent, which is right for subnormals too.
#[inline(always)]
pub(crate) fn f16_to_f32(bits: u32) -> f32 {
    let magnitude = f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits(0x7780_0000);
    // Infinity and NaN.
    let special = if bits & 0x7c00 == 0x7c00 { 0x7f80_0000 } else { 0 };
    f32::from_bits(magnitude.to_bits() | special | (bits & 0x8000) << 16)
}

/// Converts bfloat16 to f32.
#[inline(always)]
pub(crate) fn bf16_to_f32(bits: u32) -> f32 {
    f32::from_bits(bits << 16)
}

/// Converts to half: nearest even, canonical NaN. Free of branches, so that 32 lanes of it vectorise.
#[inline(always)]
pub(crate) fn f32_to_f16(x: f32) -> u32 {
    let (sign, magnitude) = (x.to_bits() >> 16 & 0x8000, x.to_bits() & 0x7fff_ffff);
    // Beside 0.5 an f32's last place is that of a subnormal half.
    let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0x3f00_0000);
    let tie = magnitude >> 13 & 1;
    let normal = magnitude.wrapping_add(0x0fff + tie).wrapping_sub(0x3800_0000) >> 13;
    let finite = if magnitude < 0x3880_0000 { subnormal } else { normal };
    let finite = if magnitude < 0x4780_0000 { finite } else { 0x7c00 };
    if magnitude > 0x7f80_0000 { 0x7fff } else { sign | finite }
}

/// Converts to bfloat16: nearest even, canonical NaN.
#[inline(always)]
pub(crate) fn f32_to_bf16(x: f32) -> u32 {
    if x.is_nan() { 0x7fff } else { u32::from(bf16::from_f32(x).to_bits()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_crate_parity() {
        for bits in 0..=u16::MAX {
            let (ours, theirs) = (f16_to_f32(u32::from(bits)), f16::from_bits(bits).to_f32());
            assert!(ours.to_bits() == theirs.to_bits() || (ours.is_nan() && theirs.is_nan()), "{bits:#x}");
            if !theirs.is_nan() {
                assert_eq!(Format::F16.encode(f64::from(theirs), Round::Nearest), u64::from(bits));
                // The value, those beside the middle between it and the next, and the middle.
                for more in [0, 1, 0x0fff, 0x1000, 0x1001, 0x1fff] {
                    let x = f32::from_bits(theirs.to_bits() + more);
                    assert!(x.is_nan() || f32_to_f16(x) == u32::from(f16::from_f32(x).to_bits()), "{x:e}");
                }
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
            assert!(!x.is_nan() || f32_to_f16(x) == 0x7fff);
            if !x.is_nan() {
                assert_eq!(f32_to_f16(x), u32::from(f16::from_f32(x).to_bits()), "{x:e}");
                assert_eq!(Format::F16.encode(f64::from(x), Round::Nearest), u64::from(f16::from_f32(x).to_bits()));
                assert_eq!(Format::Bf16.encode(f64::from(x), Round::Nearest), u64::from(bf16::from_f32(x).to_bits()));
                assert_eq!(Format::F32.encode(f64::from(x), Round::Nearest), u64::from(x.to_bits()));
            }
        }
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
}
