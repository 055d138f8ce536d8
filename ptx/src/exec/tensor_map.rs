//! Tensor maps: where a copy finds them, and how a kernel makes them.

use super::env::{Env, RawFault};
use super::warp::Warp;
use crate::asynchronous::{MapAction, MapOp};
use crate::error::{FaultKind, MemorySpace};
use crate::lanes::lanes;
use crate::memory::{
    AccessKind, Accessor, CHUNK, MapField, SharedPlace, TENSOR_MAP_ALIGN, TENSOR_MAP_BYTES, TensorMap,
};
use crate::space::{StateSpace, resolve};

impl Env<'_> {
    /// The bytes of a tensor map.
    pub(super) fn tensor_map(&mut self, address: u64) -> Result<TensorMap, FaultKind> {
        let (space, at) = resolve(StateSpace::Generic, address);
        if !at.is_multiple_of(TENSOR_MAP_ALIGN.into()) && space != StateSpace::Param {
            let space = MemorySpace::Global;
            return Err(FaultKind::Misaligned { space, address: at, align: TENSOR_MAP_ALIGN });
        }
        let mut bytes = [0; TENSOR_MAP_BYTES];
        match space {
            StateSpace::Param => {
                let Some(param) = self.params.get(at as usize..at as usize + TENSOR_MAP_BYTES) else {
                    return Err(FaultKind::out_of_bounds(MemorySpace::Param, at, TENSOR_MAP_BYTES as u32, None));
                };
                bytes.copy_from_slice(param);
            }
            StateSpace::Global => {
                if self.memory.made_map(at) == Some(self.launch) && !self.own().acquired_maps.contains(&at) {
                    let what = format!(
                        "the tensor map at {at:#x} was made in this launch and not fenced by fence.proxy.tensormap"
                    );
                    return Err(FaultKind::Asynchronous(what));
                }
                for (i, part) in bytes.as_chunks_mut::<CHUNK>().0.iter_mut().enumerate() {
                    *part = self.load_global(at + (i * CHUNK) as u64, CHUNK, None)?.to_le_bytes();
                }
            }
            _ => {
                return Err(FaultKind::Asynchronous(format!(
                    "a tensor map at {address:#x}, in shared or local memory"
                )));
            }
        }
        TensorMap::from_bytes(&bytes).map_err(FaultKind::Asynchronous)
    }
}

impl Warp {
    /// Sets a field of a tensor map, copies one with a fence, or acquires one.
    pub fn tensor_map_op(&mut self, env: &mut Env, op: &MapOp, mask: u32) -> Result<(), RawFault> {
        let (to, from) = (self.addresses(env, op.addr), self.addresses(env, op.from));
        let value = self.get(env, op.value);
        for lane in lanes(mask) {
            let fail = |kind| self.fault(Some(lane as u32), kind);
            match op.action {
                MapAction::Replace(field) => {
                    self.replace_field(env, to[lane], field, value[lane], lane).map_err(fail)?
                }
                MapAction::CopyFence => {
                    // All lanes hold the same addresses, and the warp copies once.
                    if lane == mask.trailing_zeros() as usize {
                        self.copy_map(env, to[lane], from[lane], lane).map_err(fail)?;
                    }
                }
                MapAction::Acquire => {
                    let (_, at) = resolve(StateSpace::Generic, to[lane]);
                    env.own().acquired_maps.insert(at);
                }
            }
        }
        Ok(())
    }

    fn replace_field(
        &self,
        env: &mut Env,
        address: u64,
        field: MapField,
        value: u64,
        lane: usize,
    ) -> Result<(), FaultKind> {
        let (at, bytes) = field.bytes(value);
        match resolve(StateSpace::Generic, address) {
            (StateSpace::Global, base) if base >= 1 << 40 => {
                env.memory.make_map(base, env.launch);
                env.own().acquired_maps.remove(&base);
                for (i, b) in bytes.iter().enumerate() {
                    env.store_global(base + (at + i) as u64, 1, u128::from(*b), Some(self.pc))?;
                }
                Ok(())
            }
            (_, base) => {
                let place = env.check_shared(base, TENSOR_MAP_BYTES as u32, TENSOR_MAP_ALIGN)?;
                let place = SharedPlace { at: place.at + at, ..place };
                self.record_shared(env, place, bytes.len(), lane, AccessKind::Write)?;
                env.store_shared(place, &bytes);
                Ok(())
            }
        }
    }

    fn copy_map(&self, env: &mut Env, to: u64, from: u64, lane: usize) -> Result<(), FaultKind> {
        let (_, from) = resolve(StateSpace::Generic, from);
        let (_, to) = resolve(StateSpace::Generic, to);
        let place = env.check_shared(from, TENSOR_MAP_BYTES as u32, TENSOR_MAP_ALIGN)?;
        // The whole warp copies, so that what any of its lanes wrote before is ordered.
        let by = Accessor { sync: self.serial, ..self.accessor(lane) };
        self.record_by(env, place, TENSOR_MAP_BYTES, &by, AccessKind::WarpRead)?;
        let bytes = env.load_shared(place, TENSOR_MAP_BYTES)?.to_vec();
        for (i, part) in bytes.as_chunks::<CHUNK>().0.iter().enumerate() {
            env.store_global(to + (i * CHUNK) as u64, CHUNK, u128::from_le_bytes(*part), None)?;
        }
        env.memory.make_map(to, env.launch);
        env.own().acquired_maps.remove(&to);
        Ok(())
    }
}
