//! Arithmetic of f32 as the GPU defines it: canonical NaNs, flushing, saturation, fused operations, the exponential.

/// The bits of an f32 result: every NaN is the GPU's canonical one.
#[inline(always)]
pub(crate) fn canonical(x: f32) -> u32 {
    if x.is_nan() { 0x7fff_ffff } else { x.to_bits() }
}

/// The bits of an f64 result. An f64 NaN keeps a payload on the GPU, but it is not specified which.
#[inline(always)]
pub(crate) fn canonical64(x: f64) -> u64 {
    if x.is_nan() { 0x7fff_ffff_ffff_ffff } else { x.to_bits() }
}

/// Flushes a subnormal to a zero of its sign (`.ftz`).
#[inline(always)]
pub(crate) fn flush(bits: u32) -> u32 {
    if bits & 0x7f80_0000 == 0 { bits & 0x8000_0000 } else { bits }
}

/// Clamps to [0, 1], NaN to 0 (`.sat`).
#[inline(always)]
pub(crate) fn saturate(x: f32) -> f32 {
    if x > 0.0 { if x > 1.0 { 1.0 } else { x } } else { 0.0 }
}

/// `p + c`, rounded to odd: rounding that to a shorter format gives the same as rounding once.
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

/// The minimum: the other operand for NaN, and -0 < +0.
#[inline(always)]
pub(crate) fn fmin(a: f32, b: f32) -> f32 {
    if a.is_nan() || b < a || (a == b && b.is_sign_negative()) { b } else { a }
}

/// The maximum: the other operand for NaN, and -0 < +0.
#[inline(always)]
pub(crate) fn fmax(a: f32, b: f32) -> f32 {
    if a.is_nan() || b > a || (a == b && b.is_sign_positive()) { b } else { a }
}

/// 2^x, within one unit in the last place; `ex2.approx` allows 2. Free of branches, so that 32 lanes of it vectorise.
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
    fn fma_rounding() {
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
    fn exp2_error() {
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
