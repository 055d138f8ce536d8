//! The decoded form of the asynchronous instructions of sm_90: mbarriers, bulk copies, tensor maps, `wgmma`.

use crate::memory::MapField;
use crate::operand::{Address, ElementType, Pred, Reg};
use crate::space::StateSpace;

/// Operations on an mbarrier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MbarrierAction {
    Init,
    Inval,
    ExpectBytes,
    CompleteBytes,
    Arrive,
    ArriveExpectBytes,
    ArriveNoComplete,
    ArriveDrop,
    /// By the parity of a phase, or by a state.
    TestWait {
        parity: bool,
    },
    PendingCount,
}

/// `mbarrier`, and `cp.async.mbarrier.arrive`.
#[derive(Debug)]
pub(crate) struct MbarrierOp {
    pub action: MbarrierAction,
    pub space: StateSpace,
    pub addr: Address,
    /// The state before, or [`Reg::None`].
    pub dst: Reg,
    /// The predicate of a test, or [`NONE`].
    pub pred: u32,
    /// Arrivals, bytes, parity or state.
    pub a: Reg,
}

/// Operations of bulk copies that combine with what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BulkReduce {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
}

/// `cp.async.bulk`: to shared memory where it has an mbarrier, else from it.
#[derive(Debug)]
pub(crate) struct BulkOp {
    pub shared: Address,
    /// The tensor map, or the global address, or the shared one where `from_shared`.
    pub other: Address,
    pub tensor: bool,
    pub im2col: bool,
    pub from_shared: bool,
    /// Bytes; of plain ones.
    pub size: Reg,
    pub coordinates: Vec<Reg>,
    pub offsets: Vec<Reg>,
    pub mbarrier: Option<Address>,
    /// The blocks that get it, or [`Reg::None`].
    pub multicast: Reg,
    pub reduce: Option<BulkReduce>,
    /// The type of a reduction of plain bytes.
    pub element_type: Option<u8>,
}

/// Operations on a tensor map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MapAction {
    Replace(MapField),
    CopyFence,
    Acquire,
}

/// `tensormap` and `fence.proxy.tensormap`.
#[derive(Debug)]
pub(crate) struct MapOp {
    pub action: MapAction,
    pub addr: Address,
    pub from: Address,
    pub value: Reg,
}

/// `wgmma.mma_async`.
#[derive(Debug)]
pub(crate) struct Wgmma {
    pub n: u16,
    pub k: u8,
    pub elem: ElementType,
    /// Accumulators in f16, two per register.
    pub half: bool,
    pub d: Vec<u32>,
    /// The registers of A, or its descriptor.
    pub a: Result<Vec<u32>, u32>,
    pub b: u32,
    /// Whether the accumulators count.
    pub add: Pred,
    pub negate: [bool; 2],
    pub transpose: [bool; 2],
}
