//! The values of a register in the 32 lanes of a warp, and macros that apply a scalar expression to every lane.

/// A 32-bit register of a warp, one value per lane. Narrower values are zero-extended.
pub(crate) type Lanes32 = [u32; 32];
/// A 64-bit register of a warp, one value per lane.
pub(crate) type Lanes64 = [u64; 32];

/// An operation on the lanes of one 32-bit register.
pub(crate) type Unary32 = fn(&Lanes32, &mut Lanes32);
/// An operation on the lanes of two 32-bit registers.
pub(crate) type Binary32 = fn(&Lanes32, &Lanes32, &mut Lanes32);
/// An operation on the lanes of three 32-bit registers.
pub(crate) type Ternary32 = fn(&Lanes32, &Lanes32, &Lanes32, &mut Lanes32);
/// An operation on the lanes of two 64-bit registers.
pub(crate) type Binary64 = fn(&Lanes64, &Lanes64, &mut Lanes64);
/// An operation on the lanes of up to four registers zero-extended to 64 bits, with an immediate.
pub(crate) type Widened = fn(&[Lanes64; 4], u32, &mut Lanes64);
/// A comparison of the lanes of two 32-bit registers; one bit per lane.
pub(crate) type Cmp32 = fn(&Lanes32, &Lanes32) -> u32;
/// A comparison of the lower halves and of the upper halves of two registers; one bit per lane each.
pub(crate) type CmpPair = fn(&Lanes32, &Lanes32) -> (u32, u32);
/// A comparison of the lanes of two 64-bit registers; one bit per lane.
pub(crate) type Cmp64 = fn(&Lanes64, &Lanes64) -> u32;

/// Iterates over the lanes of a mask, lowest first.
#[inline]
pub(crate) fn lanes(mut mask: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        if mask == 0 {
            return None;
        }
        let lane = mask.trailing_zeros() as usize;
        mask &= mask - 1;
        Some(lane)
    })
}

/// Applies an expression to the lanes of one 32-bit register.
macro_rules! unary32 {
    (|$a:ident| $e:expr) => {{
        fn f(a: &$crate::lanes::Lanes32, d: &mut $crate::lanes::Lanes32) {
            for i in 0..32 {
                let $a = a[i];
                d[i] = $e;
            }
        }
        f
    }};
}

/// Applies an expression to the lanes of two 32-bit registers.
macro_rules! binary32 {
    (|$a:ident, $b:ident| $e:expr) => {{
        fn f(a: &$crate::lanes::Lanes32, b: &$crate::lanes::Lanes32, d: &mut $crate::lanes::Lanes32) {
            for i in 0..32 {
                let ($a, $b) = (a[i], b[i]);
                d[i] = $e;
            }
        }
        f
    }};
}

/// Applies an expression to the lanes of three 32-bit registers.
macro_rules! ternary32 {
    (|$a:ident, $b:ident, $c:ident| $e:expr) => {{
        fn f(
            a: &$crate::lanes::Lanes32,
            b: &$crate::lanes::Lanes32,
            c: &$crate::lanes::Lanes32,
            d: &mut $crate::lanes::Lanes32,
        ) {
            for i in 0..32 {
                let ($a, $b, $c) = (a[i], b[i], c[i]);
                d[i] = $e;
            }
        }
        f
    }};
}

/// Applies an expression to the lanes of two 64-bit registers.
macro_rules! binary64 {
    (|$a:ident, $b:ident| $e:expr) => {{
        fn f(a: &$crate::lanes::Lanes64, b: &$crate::lanes::Lanes64, d: &mut $crate::lanes::Lanes64) {
            for i in 0..32 {
                let ($a, $b) = (a[i], b[i]);
                d[i] = $e;
            }
        }
        f
    }};
}

/// Applies an expression to the lanes of up to four registers zero-extended to 64 bits, with an immediate.
macro_rules! widened {
    (|$s:ident, $imm:ident| $e:expr) => {{
        fn f(s: &[$crate::lanes::Lanes64; 4], $imm: u32, d: &mut $crate::lanes::Lanes64) {
            for i in 0..32 {
                let $s = [s[0][i], s[1][i], s[2][i], s[3][i]];
                d[i] = $e;
            }
        }
        f
    }};
}

/// Applies a condition to the lanes of two 32-bit registers.
macro_rules! cmp32 {
    (|$a:ident, $b:ident| $e:expr) => {{
        fn f(a: &$crate::lanes::Lanes32, b: &$crate::lanes::Lanes32) -> u32 {
            let mut bits = 0;
            for i in 0..32 {
                let ($a, $b) = (a[i], b[i]);
                bits |= u32::from($e) << i;
            }
            bits
        }
        f
    }};
}

/// Applies a condition to the lanes of two 64-bit registers.
macro_rules! cmp64 {
    (|$a:ident, $b:ident| $e:expr) => {{
        fn f(a: &$crate::lanes::Lanes64, b: &$crate::lanes::Lanes64) -> u32 {
            let mut bits = 0;
            for i in 0..32 {
                let ($a, $b) = (a[i], b[i]);
                bits |= u32::from($e) << i;
            }
            bits
        }
        f
    }};
}

pub(crate) use {binary32, binary64, cmp32, cmp64, ternary32, unary32, widened};
