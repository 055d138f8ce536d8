//! The decoded form of a kernel: a flat table of instructions over numbered registers.
//!
//! A register holds the values of 32 lanes. Registers of up to 32 bits are in one file, 64-bit ones in a second, predicates in
//! a third with one bit per lane. Constants are spread over 32 lanes too, in a pool shared by the blocks of a launch, so that
//! an operand is always an index: [`CONST`] marks the pool.

use crate::asynchronous::{BulkOp, MapOp, MbarrierOp, Wgmma};
use crate::counts::InstructionKind;
use crate::lanes::{Binary32, Binary64, Cmp32, Cmp64, CmpPair, Ternary32, Unary32, Widened};
pub(crate) use crate::operand::{Address, CONST, ElementType, NONE, Pred, Reg};
use crate::space::StateSpace;

/// A load or a store.
#[derive(Debug)]
pub(crate) struct Access {
    pub space: StateSpace,
    pub addr: Address,
    /// Bytes of one element.
    pub width: u8,
    /// Whether a loaded element is sign-extended.
    pub signed: bool,
    /// volatile, relaxed, acquire, release: not checked for races.
    pub strong: bool,
    /// One register per element.
    pub regs: Vec<Reg>,
}

/// Operations of `atom` and `red`.
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
    /// Bytes to read from the source, the rest is zero; [`Reg::None`]: all.
    pub src_size: Reg,
    /// Lanes that write zeros instead of reading the source.
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

/// `mma.sync.aligned.m16n8kK`.
#[derive(Debug)]
pub(crate) struct Mma {
    pub k: u8,
    pub elem: ElementType,
    /// Accumulators in f16, two per register, instead of f32.
    pub half: bool,
    pub d: Vec<u32>,
    pub a: Vec<u32>,
    pub b: Vec<u32>,
    pub c: Vec<u32>,
}

/// Modes of `shfl.sync`.
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
    Elect,
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
    /// The number of threads, or [`NONE`].
    pub count: u32,
    /// Arrive without waiting (`bar.arrive`).
    pub arrive: bool,
    /// All lanes run it together; `bar` is always aligned.
    pub aligned: bool,
    pub reduce: Option<(BarReduce, Pred)>,
    pub dst: u32,
}

/// Boolean operation between the comparison of `setp` and its third operand.
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
    ClusterCtaId(u8),
    ClusterNctaId(u8),
    ClusterId(u8),
    NClusterId(u8),
    ClusterCtaRank,
    ClusterNctaRank,
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

/// An operation on up to four operands of any width, zero-extended to 64 bits.
#[derive(Debug)]
pub(crate) struct Wide {
    pub f: Widened,
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

/// The operation of an instruction.
#[derive(Debug)]
pub(crate) enum Op {
    Unary32 {
        f: Unary32,
        d: u32,
        a: u32,
    },
    /// An approximation, within so many units in the last place.
    Approx32 {
        f: Unary32,
        d: u32,
        a: u32,
        units: u32,
    },
    Binary32 {
        f: Binary32,
        d: u32,
        a: u32,
        b: u32,
    },
    Ternary32 {
        f: Ternary32,
        d: u32,
        a: u32,
        b: u32,
        c: u32,
    },
    Binary64 {
        f: Binary64,
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
    /// Comparison of packed halves, with a predicate for each half.
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
    /// Boolean operation on predicates; [`BoolOp::None`] copies `a`.
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
    /// Pack elements, lowest first, into one register.
    Pack {
        d: Reg,
        parts: Box<[Reg]>,
    },
    /// Unpack a register into elements, lowest first.
    Unpack {
        parts: Box<[Reg]>,
        a: Reg,
    },
    Load(Box<Access>),
    Store(Box<Access>),
    Atom(Box<Atom>),
    CopyAsync(Box<CopyAsync>),
    Commit,
    /// Wait until at most `left` groups are pending; `u32::MAX`: for all copies, committed or not.
    Wait {
        left: u32,
    },
    Matrix(Box<MatrixAccess>),
    Mma(Box<Mma>),
    Mbarrier(Box<MbarrierOp>),
    /// `cp.async.mbarrier.arrive`.
    ArriveAfterCopies(Box<MbarrierOp>),
    Bulk(Box<BulkOp>),
    BulkCommit,
    BulkWait {
        left: u32,
        read: bool,
    },
    TensorMap(Box<MapOp>),
    FenceProxy,
    /// `griddepcontrol.wait`.
    GridWait,
    Wgmma(Box<Wgmma>),
    WgmmaFence,
    WgmmaCommit,
    WgmmaWait {
        left: u32,
    },
    MapAddress {
        d: Reg,
        a: Reg,
        rank: u32,
        generic: bool,
    },
    RankOfAddress {
        d: Reg,
        a: Reg,
    },
    ClusterArrive,
    ClusterWait,
    SetRegisters {
        count: u32,
        increase: bool,
    },
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
    /// Index into the source locations of the module; 0: none.
    pub loc: u32,
}
