//! Scalar functions spread over the lanes of a row.

/// A function of one 32-bit row.
macro_rules! unary32 {
    (|$a:ident| $e:expr) => {{
        fn f(a: &$crate::program::Lanes32, d: &mut $crate::program::Lanes32) {
            for i in 0..32 {
                let $a = a[i];
                d[i] = $e;
            }
        }
        f
    }};
}

/// A function of two 32-bit rows.
macro_rules! binary32 {
    (|$a:ident, $b:ident| $e:expr) => {{
        fn f(a: &$crate::program::Lanes32, b: &$crate::program::Lanes32, d: &mut $crate::program::Lanes32) {
            for i in 0..32 {
                let ($a, $b) = (a[i], b[i]);
                d[i] = $e;
            }
        }
        f
    }};
}

/// A function of three 32-bit rows.
macro_rules! ternary32 {
    (|$a:ident, $b:ident, $c:ident| $e:expr) => {{
        fn f(
            a: &$crate::program::Lanes32,
            b: &$crate::program::Lanes32,
            c: &$crate::program::Lanes32,
            d: &mut $crate::program::Lanes32,
        ) {
            for i in 0..32 {
                let ($a, $b, $c) = (a[i], b[i], c[i]);
                d[i] = $e;
            }
        }
        f
    }};
}

/// A function of two 64-bit rows.
macro_rules! binary64 {
    (|$a:ident, $b:ident| $e:expr) => {{
        fn f(a: &$crate::program::Lanes64, b: &$crate::program::Lanes64, d: &mut $crate::program::Lanes64) {
            for i in 0..32 {
                let ($a, $b) = (a[i], b[i]);
                d[i] = $e;
            }
        }
        f
    }};
}

/// A function of up to four rows widened to 64 bits, and of an immediate.
macro_rules! widened {
    (|$s:ident, $imm:ident| $e:expr) => {{
        fn f(s: &[$crate::program::Lanes64; 4], $imm: u32, d: &mut $crate::program::Lanes64) {
            for i in 0..32 {
                let $s = [s[0][i], s[1][i], s[2][i], s[3][i]];
                d[i] = $e;
            }
        }
        f
    }};
}

/// A comparison of two 32-bit rows.
macro_rules! cmp32 {
    (|$a:ident, $b:ident| $e:expr) => {{
        fn f(a: &$crate::program::Lanes32, b: &$crate::program::Lanes32) -> u32 {
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

/// A comparison of two 64-bit rows.
macro_rules! cmp64 {
    (|$a:ident, $b:ident| $e:expr) => {{
        fn f(a: &$crate::program::Lanes64, b: &$crate::program::Lanes64) -> u32 {
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
