//! State spaces, and their windows in the generic address space.

/// State spaces of the instructions that access memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StateSpace {
    Global,
    Shared,
    Local,
    Param,
    Generic,
}

/// First generic address of shared memory. Global addresses lie far above these windows.
pub(crate) const SHARED_WINDOW: u64 = 1 << 44;
/// First generic address of local memory.
pub(crate) const LOCAL_WINDOW: u64 = 2 << 44;
/// First generic address of kernel parameters.
pub(crate) const PARAM_WINDOW: u64 = 3 << 44;
/// Bytes of each window.
const WINDOW: u64 = 1 << 44;

/// Resolves a generic address to a state space and an address in it; other addresses stay as they are.
#[inline(always)]
pub(crate) fn resolve(space: StateSpace, address: u64) -> (StateSpace, u64) {
    if space != StateSpace::Generic {
        return (space, address);
    }
    match address / WINDOW * WINDOW {
        SHARED_WINDOW => (StateSpace::Shared, address - SHARED_WINDOW),
        LOCAL_WINDOW => (StateSpace::Local, address - LOCAL_WINDOW),
        PARAM_WINDOW => (StateSpace::Param, address - PARAM_WINDOW),
        _ => (StateSpace::Global, address),
    }
}

/// The bit of an address of shared memory at which the rank of a block stands, plus one; 0 is the own block.
pub(crate) const SHARED_RANK_SHIFT: u32 = 24;
