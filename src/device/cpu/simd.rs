//! The instruction sets of the processor, a macro that compiles one source for each, and functions that vectorise.

use std::sync::OnceLock;

/// Instruction sets for which code is generated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Isa {
    /// The instructions that the target always has.
    Portable,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ and VL.
    Avx512,
    /// The same with AVX-512 BF16.
    Avx512Bf16,
}

/// The rate of products of bf16 on a processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bf16Products {
    /// There is no instruction for them.
    Absent,
    /// There is one, at half of f32's rate.
    Slow,
    /// There is one, at twice f32's rate.
    Fast,
}

/// The set that is used: the best that this processor has, `avx512bf16` where its products are fast. `BRAID_ISA` (`portable`,
/// `avx2`, `avx512`, `avx512vnni`, `avx512bf16`) lowers it, for tests and comparisons; the last takes slow products of bf16, too.
pub(crate) fn isa() -> Isa {
    static ISA: OnceLock<Isa> = OnceLock::new();
    *ISA.get_or_init(|| {
        let limit = match std::env::var("BRAID_ISA").as_deref() {
            Ok("portable") => Isa::Portable,
            Ok("avx2") => Isa::Avx2,
            Ok("avx512bf16") => Isa::Avx512Bf16,
            Ok("avx512" | "avx512vnni") => Isa::Avx512,
            _ if bf16_products() == Bf16Products::Fast => Isa::Avx512Bf16,
            _ => Isa::Avx512,
        };
        detected().min(limit)
    })
}

/// The rate of this processor's products of bf16. `vdpbf16ps` does twice the work of an f32 instruction; AMD's cores since Zen 4
/// start as many of them in a cycle, Intel's a quarter (docs/performance.md).
pub(crate) fn bf16_products() -> Bf16Products {
    if detected() < Isa::Avx512Bf16 {
        return Bf16Products::Absent;
    }
    if is_intel() { Bf16Products::Slow } else { Bf16Products::Fast }
}

#[cfg(target_arch = "x86_64")]
fn is_intel() -> bool {
    #[allow(unused_unsafe)] // Rust 1.89 has it as unsafe.
    // SAFETY: every x86-64 has the instruction.
    let vendor = unsafe { std::arch::x86_64::__cpuid(0) };
    [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).as_flattened() == b"GenuineIntel"
}

#[cfg(not(target_arch = "x86_64"))]
fn is_intel() -> bool {
    false
}

/// Whether there is an instruction for products of int8, `vpdpbusd`, and `BRAID_ISA` does not lower the set below `avx512vnni`.
pub(crate) fn int8_products() -> bool {
    static VNNI: OnceLock<bool> = OnceLock::new();
    *VNNI.get_or_init(|| {
        let lowered = matches!(std::env::var("BRAID_ISA").as_deref(), Ok("portable" | "avx2" | "avx512"));
        #[cfg(target_arch = "x86_64")]
        return !lowered && isa() >= Isa::Avx512 && is_x86_feature_detected!("avx512vnni");
        #[cfg(not(target_arch = "x86_64"))]
        return !lowered && false;
    })
}

fn detected() -> Isa {
    #[cfg(target_arch = "x86_64")]
    {
        let avx2 =
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        let avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        if avx2 && avx512 {
            return if is_x86_feature_detected!("avx512bf16") { Isa::Avx512Bf16 } else { Isa::Avx512 };
        }
        if avx2 {
            return Isa::Avx2;
        }
    }
    Isa::Portable
}

/// Compiles one function body for every [`Isa`] and picks at run time. In the body `FMA` says whether the processor fuses a product
/// and a sum, for [`mul_add`] and the functions built on it.
macro_rules! for_every_isa {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments)]
            fn body<const FMA: bool>($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
                #[allow(clippy::too_many_arguments)]
                fn avx512($($arg: $ty),*) $(-> $ret)? { body::<true>($($arg),*) }
                #[target_feature(enable = "avx2,fma,f16c")]
                #[allow(clippy::too_many_arguments)]
                fn avx2($($arg: $ty),*) $(-> $ret)? { body::<true>($($arg),*) }
                match $crate::device::cpu::simd::isa() {
                    $crate::device::cpu::simd::Isa::Avx512 | $crate::device::cpu::simd::Isa::Avx512Bf16 => {
                        // SAFETY: `isa` has found these features on this processor.
                        return unsafe { avx512($($arg),*) };
                    }
                    // SAFETY: as above.
                    $crate::device::cpu::simd::Isa::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::device::cpu::simd::Isa::Portable => {}
                }
            }
            body::<{ cfg!(target_arch = "aarch64") }>($($arg),*)
        }
    };
}
pub(crate) use for_every_isa;

/// `a * b + c`, rounded once where `FMA`: that must be so only in code for processors that have the instruction, as others call a
/// function for it.
#[inline(always)]
pub(crate) fn mul_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// e^x within 2 units in the last place; 0 below -87.3 (no subnormal results), finite above 88.3. Branch-free, so that loops over it
/// vectorise. Cody-Waite reduction and a polynomial of degree 6.
#[inline(always)]
pub(crate) fn exp<const FMA: bool>(x: f32) -> f32 {
    // 1.5 * 2^23 rounds what it is added to to an integer, and 127 more leave a scale's exponent in the lowest bits.
    const ROUND: f32 = 12_582_912.0 + 127.0;
    let clamped = x.clamp(-87.3, 88.3);
    let rounded = mul_add::<FMA>(clamped, std::f32::consts::LOG2_E, ROUND);
    let n = rounded - ROUND;
    let r = mul_add::<FMA>(n, -0.693_359_4, clamped);
    let r = mul_add::<FMA>(n, 2.121_944_4e-4, r);
    let p = 1.381_454e-3_f32;
    let p = mul_add::<FMA>(p, r, 8.368_745e-3);
    let p = mul_add::<FMA>(p, r, 4.166_839e-2);
    let p = mul_add::<FMA>(p, r, 0.166_665_2);
    let p = mul_add::<FMA>(p, r, 0.499_999_93);
    let p = mul_add::<FMA>(p, r, 1.0);
    let p = mul_add::<FMA>(p, r, 1.0);
    let scale = f32::from_bits(rounded.to_bits() << 23);
    if x < -87.3 { 0.0 } else { p * scale }
}

/// The error function within 4e-7; a rational approximation on [-4, 4].
#[inline(always)]
pub(crate) fn erf<const FMA: bool>(x: f32) -> f32 {
    let x = x.clamp(-4.0, 4.0);
    let s = x * x;
    let p = -2.726_142_3e-10_f32;
    let p = mul_add::<FMA>(p, s, 2.770_681_4e-8);
    let p = mul_add::<FMA>(p, s, -2.101_024e-6);
    let p = mul_add::<FMA>(p, s, -5.692_506_4e-5);
    let p = mul_add::<FMA>(p, s, -7.349_906_3e-4);
    let p = mul_add::<FMA>(p, s, -2.954_6e-3);
    let p = mul_add::<FMA>(p, s, -1.609_603_3e-2);
    let q = -1.456_607_2e-5_f32;
    let q = mul_add::<FMA>(q, s, -2.133_740_6e-4);
    let q = mul_add::<FMA>(q, s, -1.682_827e-3);
    let q = mul_add::<FMA>(q, s, -7.373_329e-3);
    let q = mul_add::<FMA>(q, s, -1.426_473_9e-2);
    x * p / q
}

/// x * sigmoid(k x).
#[inline(always)]
pub(crate) fn swish<const FMA: bool>(x: f32, k: f32) -> f32 {
    x / (1.0 + exp::<FMA>(-k * x))
}

/// The exact GELU.
#[inline(always)]
pub(crate) fn gelu<const FMA: bool>(x: f32) -> f32 {
    0.5 * x * (1.0 + erf::<FMA>(x * std::f32::consts::FRAC_1_SQRT_2))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// erf by its Maclaurin series, in f64.
    fn erf64(x: f64) -> f64 {
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= -x * x / n as f64;
            sum += term / (2 * n + 1) as f64;
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    }

    #[test]
    fn exp_accuracy() {
        for exp in [exp::<false>, exp::<true>] {
            for i in -8700..8800 {
                let x = i as f32 * 0.01;
                let (got, want) = (f64::from(exp(x)), f64::from(x).exp());
                assert!((got / want - 1.0).abs() < 2.4e-7, "{x}: {got} {want}");
            }
            assert_eq!(exp(f32::NEG_INFINITY), 0.0);
            assert!(exp(1e9).is_finite() && exp(0.0) == 1.0);
            assert!(exp(f32::NAN).is_nan() && exp(f32::from_bits(0x7f80_0001)).is_nan());
        }
    }

    #[test]
    fn erf_accuracy() {
        for erf in [erf::<false>, erf::<true>] {
            for i in -500..=500 {
                let x = i as f32 * 0.01;
                assert!((f64::from(erf(x)) - erf64(f64::from(x))).abs() < 4e-7, "{x}");
            }
        }
    }
}
