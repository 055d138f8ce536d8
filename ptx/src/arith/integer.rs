//! Integer operations at any width, on single values.

use crate::lanes::Lanes64;

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

/// The operations in order of their codes.
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

/// The value of the low bits, sign-extended if `signed`.
pub(crate) fn extend(value: u64, bits: u32, signed: bool) -> i128 {
    let up = 64 - bits;
    if signed { i128::from(((value << up) as i64) >> up) } else { i128::from((value << up) >> up) }
}

/// Computes one operation at a width of 16, 32 or 64 bits; the bits of the result above the width are undefined.
fn scalar(op: IntOp, bits: u32, signed: bool, s: [u64; 4]) -> u64 {
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
        // The manual leaves division by zero undefined; GPUs give all ones, and the dividend as the remainder.
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

/// Extracts a bit field.
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

/// Permutes bytes; modes: 0 default, 1 f4e, 2 b4e, 3 rc8, 4 ecl, 5 ecr, 6 rc16.
fn prmt(a: u32, b: u32, c: u32, mode: u32) -> u32 {
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

/// The immediate with which [`evaluate`] runs an operation.
pub(crate) fn immediate(op: IntOp, bits: u32, signed: bool) -> u32 {
    op as u32 | bits << 8 | u32::from(signed) << 16
}

/// Runs the operation of an [`immediate`] on 32 lanes.
pub(crate) fn evaluate(s: &[Lanes64; 4], imm: u32, d: &mut Lanes64) {
    let op = TABLE[(imm & 0xff) as usize];
    let (bits, signed) = (imm >> 8 & 0xff, imm >> 16 != 0);
    for i in 0..32 {
        d[i] = scalar(op, bits, signed, [s[0][i], s[1][i], s[2][i], s[3][i]]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(op: IntOp, bits: u32, signed: bool, s: [u64; 4]) -> u64 {
        scalar(op, bits, signed, s) & (u64::MAX >> (64 - bits))
    }

    #[test]
    fn table_order() {
        assert!(TABLE.iter().enumerate().all(|(i, op)| *op as usize == i));
    }

    #[test]
    fn bit_operations() {
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
    fn arithmetic_widths() {
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
