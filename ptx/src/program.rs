//! The decoded form of a kernel: a flat table of instructions over numbered registers.
//!
//! A register is a row of 32 lanes. Registers of up to 32 bits live in one file, 64-bit ones in a second, predicates in a
//! third as one bit a lane. Immediates are rows too, in a pool that the blocks of a launch share, so that an operand is
//! always an index: [`CONST`] marks the pool.

use crate::counts::InstructionKind;

/// A 32-bit register of a warp: one value a lane. Narrower values are zero-extended.
pub(crate) type Lanes32 = [u32; 32];
/// A 64-bit register of a warp.
pub(crate) type Lanes64 = [u64; 32];

/// Marks an operand that lies in the pool of immediates.
pub(crate) const CONST: u32 = 1 << 31;
/// No register: the `_` of PTX, or an absent operand.
pub(crate) const NONE: u32 = u32::MAX;

/// A predicate, perhaps negated, as a guard or an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pred(u32);

impl Pred {
    /// Always true.
    pub const TRUE: Self = Self(NONE);
    const NOT: u32 = 1 << 30;

    pub fn new(index: u32, negated: bool) -> Self {
        Self(index | if negated { Self::NOT } else { 0 })
    }

    /// The opposite.
    pub fn not(self) -> Self {
        Self(self.0 ^ Self::NOT)
    }

    /// The lanes for which it holds.
    #[inline(always)]
    pub fn lanes(self, file: &[u32]) -> u32 {
        if self.0 | Self::NOT == NONE {
            return if self == Self::TRUE { u32::MAX } else { 0 };
        }
        let bits = file[(self.0 & !Self::NOT) as usize];
        if self.0 & Self::NOT != 0 { !bits } else { bits }
    }
}

/// An operand of either width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reg {
    None,
    /// Up to 16 bits: a result is truncated to them.
    B16(u32),
    /// 32 bits.
    B32(u32),
    /// 64 bits.
    B64(u32),
}

/// State spaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StateSpace {
    Global,
    Shared,
    Local,
    Param,
    Generic,
}

/// An address operand: `[base + offset]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Address {
    pub base: Reg,
    pub offset: i64,
}

/// A load or a store.
#[derive(Debug)]
pub(crate) struct Access {
    pub space: StateSpace,
    pub addr: Address,
    /// Bytes of one element.
    pub width: u8,
    /// Whether a narrow element is sign-extended when loaded.
    pub signed: bool,
    /// volatile, relaxed, acquire, release: not subject to race checks.
    pub strong: bool,
    /// One register an element.
    pub regs: Vec<Reg>,
}

/// What an atomic does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AtomOp {
    Add,
    FAdd32,
    FAdd64,
    HAdd2,
    BAdd2,
    Exch,
    Cas,
    Min,
    Max,
    SMin,
    SMax,
    And,
    Or,
    Xor,
    Inc,
    Dec,
}

/// `atom` and `red`.
#[derive(Debug)]
pub(crate) struct Atom {
    pub op: AtomOp,
    pub space: StateSpace,
    pub addr: Address,
    pub wide: bool,
    pub dst: Reg,
    pub b: Reg,
    pub c: Reg,
}

/// `cp.async`.
#[derive(Debug)]
pub(crate) struct CopyAsync {
    pub dst: Address,
    pub src: Address,
    pub size: u8,
    /// Bytes read from the source, the rest is zero; `None`: all.
    pub src_size: Reg,
    /// Where it holds, the source is not read and zeros are written.
    pub ignore: Option<Pred>,
}

/// `ldmatrix` and `stmatrix`.
#[derive(Debug)]
pub(crate) struct MatrixAccess {
    pub addr: Address,
    pub trans: bool,
    pub store: bool,
    pub regs: Vec<u32>,
}

/// Element types of a matrix product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ElementType {
    F16,
    Bf16,
    Tf32,
}

/// `mma.sync.aligned.m16n8kK`.
#[derive(Debug)]
pub(crate) struct Mma {
    pub k: u8,
    pub elem: ElementType,
    /// Accumulators in f16 (two a register) instead of f32.
    pub half: bool,
    pub d: Vec<u32>,
    pub a: Vec<u32>,
    pub b: Vec<u32>,
    pub c: Vec<u32>,
}

/// `shfl.sync` modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ShflMode {
    Up,
    Down,
    Bfly,
    Idx,
}

/// Warp-wide operations with a member mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CollectiveOp {
    Shfl(ShflMode),
    VoteAll,
    VoteAny,
    VoteUni,
    Ballot,
    MatchAny,
    MatchAll,
    ReduxAdd,
    ReduxMin,
    ReduxMax,
    ReduxSMin,
    ReduxSMax,
    ReduxAnd,
    ReduxOr,
    ReduxXor,
    Barrier,
}

/// An operation over the lanes of a member mask.
#[derive(Debug)]
pub(crate) struct Collective {
    pub op: CollectiveOp,
    pub dst: Reg,
    /// A predicate result, or [`NONE`].
    pub pred: u32,
    pub a: Reg,
    pub b: Reg,
    pub c: Reg,
    pub vote: Pred,
    pub members: u32,
}

/// Reductions that a barrier can carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BarReduce {
    Popc,
    And,
    Or,
}

/// `bar` and `barrier`.
#[derive(Debug)]
pub(crate) struct Barrier {
    pub id: u32,
    /// Operand with the count of threads, or [`NONE`].
    pub count: u32,
    /// `bar.arrive`: does not wait.
    pub arrive: bool,
    /// `.aligned`, as `bar` always is.
    pub aligned: bool,
    pub reduce: Option<(BarReduce, Pred)>,
    pub dst: u32,
}

/// How `setp` joins its comparison with a third operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BoolOp {
    None,
    And,
    Or,
    Xor,
}

/// Special registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SpecialRegister {
    Tid(u8),
    Ntid(u8),
    Ctaid(u8),
    Nctaid(u8),
    LaneId,
    WarpId,
    NWarpId,
    LaneMaskEq,
    LaneMaskLt,
    LaneMaskLe,
    LaneMaskGt,
    LaneMaskGe,
    SmId,
    NSmId,
    GridId,
    Clock,
    DynamicShared,
    TotalShared,
}

/// An operation on up to four operands of any width, widened to 64 bits.
#[derive(Debug)]
pub(crate) struct Wide {
    pub f: fn(&[Lanes64; 4], u32, &mut Lanes64),
    pub d: Reg,
    pub s: [Reg; 4],
    pub imm: u32,
}

/// A comparison.
#[derive(Debug)]
pub(crate) struct SetP<F> {
    pub f: F,
    pub p: u32,
    pub q: u32,
    pub a: u32,
    pub b: u32,
    pub join: BoolOp,
    pub c: Pred,
}

pub(crate) type Cmp32 = fn(&Lanes32, &Lanes32) -> u32;
/// The lower halves and the upper ones.
pub(crate) type CmpPair = fn(&Lanes32, &Lanes32) -> (u32, u32);
pub(crate) type Cmp64 = fn(&Lanes64, &Lanes64) -> u32;

/// What an instruction does.
#[derive(Debug)]
pub(crate) enum Op {
    Unary32 {
        f: fn(&Lanes32, &mut Lanes32),
        d: u32,
        a: u32,
    },
    Binary32 {
        f: fn(&Lanes32, &Lanes32, &mut Lanes32),
        d: u32,
        a: u32,
        b: u32,
    },
    Ternary32 {
        f: fn(&Lanes32, &Lanes32, &Lanes32, &mut Lanes32),
        d: u32,
        a: u32,
        b: u32,
        c: u32,
    },
    Binary64 {
        f: fn(&Lanes64, &Lanes64, &mut Lanes64),
        d: u32,
        a: u32,
        b: u32,
    },
    Wide(Box<Wide>),
    Lop3 {
        d: u32,
        a: u32,
        b: u32,
        c: u32,
        lut: u8,
    },
    SetP32(Box<SetP<Cmp32>>),
    SetP64(Box<SetP<Cmp64>>),
    /// Comparison of packed halves: two predicates.
    SetPacked(Box<SetP<CmpPair>>),
    Sel32 {
        d: u32,
        a: u32,
        b: u32,
        p: Pred,
    },
    Sel64 {
        d: u32,
        a: u32,
        b: u32,
        p: Pred,
    },
    /// Logic on predicates; `join` `None` copies `a`.
    Logic {
        d: u32,
        a: Pred,
        b: Pred,
        join: BoolOp,
    },
    Special {
        d: Reg,
        which: SpecialRegister,
    },
    Mov32 {
        d: u32,
        a: u32,
    },
    Mov64 {
        d: u32,
        a: u32,
    },
    /// Elements, lowest first, into one register.
    Pack {
        d: Reg,
        parts: Box<[Reg]>,
    },
    /// One register into elements, lowest first.
    Unpack {
        parts: Box<[Reg]>,
        a: Reg,
    },
    Load(Box<Access>),
    Store(Box<Access>),
    Atom(Box<Atom>),
    CopyAsync(Box<CopyAsync>),
    Commit,
    /// `u32::MAX`: all, the uncommitted too.
    Wait {
        left: u32,
    },
    Matrix(Box<MatrixAccess>),
    Mma(Box<Mma>),
    Collective(Box<Collective>),
    ActiveMask {
        d: u32,
    },
    Barrier(Box<Barrier>),
    Branch {
        target: u32,
    },
    BranchTable {
        index: u32,
        targets: Box<[u32]>,
    },
    Exit,
    Trap,
    Nop,
}

/// One decoded instruction.
#[derive(Debug)]
pub(crate) struct Instruction {
    pub guard: Pred,
    pub op: Op,
    pub kind: InstructionKind,
    /// Line of the PTX text, from 1.
    pub line: u32,
    /// Index into the module's source locations; 0: unknown.
    pub loc: u32,
}

/// A 64-bit immediate: a value, or the address of a module variable once it is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Const64 {
    Value(u64),
    Variable { index: u32, offset: i64 },
}

/// A kernel's parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param {
    /// Its name in the PTX.
    pub name: String,
    /// Byte offset in the parameter buffer.
    pub offset: usize,
    /// Bytes.
    pub size: usize,
    /// Alignment in bytes.
    pub align: usize,
}

/// A kernel, decoded.
#[derive(Debug, Default)]
pub struct Kernel {
    pub(crate) name: String,
    pub(crate) params: Vec<Param>,
    pub(crate) param_bytes: usize,
    pub(crate) shared_bytes: usize,
    pub(crate) dynamic_offset: usize,
    pub(crate) local_bytes: usize,
    pub(crate) max_threads: Option<[u32; 3]>,
    pub(crate) code: Vec<Instruction>,
    pub(crate) n32: usize,
    pub(crate) n64: usize,
    pub(crate) npred: usize,
    pub(crate) const32: Vec<u32>,
    pub(crate) const64: Vec<Const64>,
    /// The first instruction that is not known: (PTX line, location, text).
    pub(crate) unknown: Option<(u32, u32, String)>,
}

impl Kernel {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its parameters, in order.
    pub fn params(&self) -> &[Param] {
        &self.params
    }

    /// Bytes of the parameter buffer.
    pub fn param_bytes(&self) -> usize {
        self.param_bytes
    }

    /// Bytes of static shared memory, without the dynamic part.
    pub fn shared_bytes(&self) -> usize {
        self.shared_bytes
    }

    /// `.maxntid`, where the kernel has it.
    pub fn max_threads(&self) -> Option<[u32; 3]> {
        self.max_threads
    }

    /// What is not known about the first instruction that is not known, with its line of the PTX. Such a kernel does not run.
    pub fn unknown(&self) -> Option<(u32, &str)> {
        self.unknown.as_ref().map(|(line, _, what)| (*line, what.as_str()))
    }

    /// Decoded instructions.
    pub fn instructions(&self) -> usize {
        self.code.len()
    }
}
