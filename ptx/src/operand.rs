//! Operands: registers, constants, predicates, addresses, element types.

/// Bit that marks an operand in the pool of constants.
pub(crate) const CONST: u32 = 1 << 31;
/// No register: the `_` of PTX, or an absent operand.
pub(crate) const NONE: u32 = u32::MAX;

/// A predicate as a guard or an operand, negated or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pred(u32);

impl Pred {
    /// The predicate that always holds.
    pub const TRUE: Self = Self(NONE);
    const NOT: u32 = 1 << 30;

    pub fn new(index: u32, negated: bool) -> Self {
        Self(index | if negated { Self::NOT } else { 0 })
    }

    /// The negated predicate.
    pub fn not(self) -> Self {
        Self(self.0 ^ Self::NOT)
    }

    /// The lanes for which it holds, one bit per lane.
    #[inline(always)]
    pub fn lanes(self, file: &[u32]) -> u32 {
        if self.0 | Self::NOT == NONE {
            return if self == Self::TRUE { u32::MAX } else { 0 };
        }
        let bits = file[(self.0 & !Self::NOT) as usize];
        if self.0 & Self::NOT != 0 { !bits } else { bits }
    }
}

/// A register or constant with its width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reg {
    None,
    /// Up to 16 bits, in a 32-bit register; a result is truncated to 16 bits.
    B16(u32),
    /// 32 bits.
    B32(u32),
    /// 64 bits.
    B64(u32),
}

impl Reg {
    /// Width in bits.
    pub fn bits(self) -> u32 {
        match self {
            Self::None => 0,
            Self::B16(_) => 16,
            Self::B32(_) => 32,
            Self::B64(_) => 64,
        }
    }
}

/// An address operand: `[base + offset]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Address {
    pub base: Reg,
    pub offset: i64,
}

/// Element types of a matrix product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ElementType {
    F16,
    Bf16,
    Tf32,
    E4m3,
    E5m2,
}

impl ElementType {
    /// Bytes of an element.
    pub fn bytes(self) -> u64 {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::Tf32 => 4,
            Self::E4m3 | Self::E5m2 => 1,
        }
    }
}
