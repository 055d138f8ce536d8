//! Loads and stores.

use super::env::{Env, RawFault};
use super::warp::Warp;
use crate::counts::{coalesce, conflicts};
use crate::error::{FaultKind, Hazard, MemorySpace};
use crate::instruction::{Access, Address, Reg};
use crate::lanes::{Lanes64, lanes};
use crate::memory::{AccessKind, Accessor, SharedPlace};
use crate::space::{StateSpace, resolve};

/// The addresses of a warp-wide request, for the counts.
pub(super) struct Request {
    global: [u64; 32],
    globals: usize,
    shared: [u64; 32],
    shareds: usize,
}

impl Request {
    pub fn new() -> Self {
        Self { global: [0; 32], globals: 0, shared: [0; 32], shareds: 0 }
    }

    /// Adds the address of a lane.
    #[inline(always)]
    pub fn add(&mut self, space: StateSpace, address: u64) {
        match space {
            StateSpace::Global => {
                self.global[self.globals] = address;
                self.globals += 1;
            }
            StateSpace::Shared => {
                self.shared[self.shareds] = address;
                self.shareds += 1;
            }
            _ => {}
        }
    }

    /// Counts the request: `bytes` bytes per lane.
    pub fn count(&self, env: &mut Env, bytes: u64, store: bool) {
        let (traffic, banks) = if store {
            (&mut env.counts.stores, &mut env.counts.shared_stores)
        } else {
            (&mut env.counts.loads, &mut env.counts.shared_loads)
        };
        coalesce(traffic, &self.global[..self.globals], bytes);
        conflicts(banks, &self.shared[..self.shareds], bytes);
    }
}

/// Counts a request of the lanes of `mask`.
fn count_request(env: &mut Env, space: StateSpace, address: &Lanes64, mask: u32, bytes: u64, store: bool) {
    let (traffic, banks) = if store {
        (&mut env.counts.stores, &mut env.counts.shared_stores)
    } else {
        (&mut env.counts.loads, &mut env.counts.shared_loads)
    };
    match space {
        StateSpace::Global if mask == u32::MAX => coalesce(traffic, address, bytes),
        StateSpace::Shared if mask == u32::MAX => conflicts(banks, address, bytes),
        StateSpace::Local | StateSpace::Param => {}
        _ => {
            let mut request = Request::new();
            for lane in lanes(mask) {
                let (space, at) = resolve(space, address[lane]);
                request.add(space, at);
            }
            request.count(env, bytes, store);
        }
    }
}

/// Checks alignment and bounds in parameters or local memory, and returns the address as an index.
fn within(space: MemorySpace, address: u64, bytes: u32, len: usize) -> Result<usize, FaultKind> {
    if !address.is_multiple_of(bytes.into()) {
        return Err(FaultKind::Misaligned { space, address, align: bytes });
    }
    if address.saturating_add(u64::from(bytes)) > len as u64 {
        return Err(FaultKind::out_of_bounds(space, address, bytes, Some(0..len as u64)));
    }
    Ok(address as usize)
}

/// Combines up to 16 bytes, zero-extended.
pub(super) fn little_endian(bytes: &[u8]) -> u128 {
    match bytes.len() {
        4 => u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]).into(),
        _ => {
            let mut all = [0; 16];
            all[..bytes.len()].copy_from_slice(bytes);
            u128::from_le_bytes(all)
        }
    }
}

impl Warp {
    /// Computes the address of each lane.
    #[inline]
    pub fn addresses(&self, env: &Env, addr: Address) -> Lanes64 {
        match addr.base {
            Reg::B64(r) => self.get64(env, r).map(|a| a.wrapping_add_signed(addr.offset)),
            Reg::B16(r) | Reg::B32(r) => self.get32(env, r).map(|a| u64::from(a.wrapping_add(addr.offset as u32))),
            Reg::None => [addr.offset as u64; 32],
        }
    }

    /// Loads the elements of each lane.
    pub fn load(&mut self, env: &mut Env, access: &Access, mask: u32) -> Result<(), RawFault> {
        match access.regs.len() {
            1 => self.load_elements::<1>(env, access, mask),
            2 => self.load_elements::<2>(env, access, mask),
            _ => self.load_elements::<4>(env, access, mask),
        }
    }

    fn load_elements<const N: usize>(&mut self, env: &mut Env, access: &Access, mask: u32) -> Result<(), RawFault> {
        let address = self.addresses(env, access.addr);
        let bytes = access.width as usize * N;
        let mut elements = [[0u64; 32]; N];
        let bits = u32::from(access.width) * 8;
        for lane in lanes(mask) {
            let (space, at) = resolve(access.space, address[lane]);
            let value = self
                .load_lane(env, space, at, bytes, lane, access.strong)
                .map_err(|kind| self.fault(Some(lane as u32), kind))?;
            for (i, values) in elements.iter_mut().enumerate() {
                if (access.width, access.signed) == (4, false) {
                    // The usual case, with shifts that the compiler knows.
                    values[lane] = u64::from((value >> (32 * i)) as u32);
                    continue;
                }
                let element = (value >> (bits * i as u32)) as u64;
                values[lane] = if access.signed {
                    ((element << (64 - bits)) as i64 >> (64 - bits)) as u64
                } else {
                    element & (u64::MAX >> (64 - bits))
                };
            }
        }
        for (values, reg) in elements.iter().zip(&access.regs) {
            self.put(*reg, values, mask);
        }
        count_request(env, access.space, &address, mask, bytes as u64, false);
        Ok(())
    }

    #[inline]
    fn load_lane(
        &mut self,
        env: &mut Env,
        space: StateSpace,
        at: u64,
        bytes: usize,
        lane: usize,
        strong: bool,
    ) -> Result<u128, FaultKind> {
        match space {
            StateSpace::Shared => {
                let at = env.check_shared(at, bytes as u32, bytes as u32)?;
                if !strong {
                    self.record_shared(env, at, bytes, lane, AccessKind::Read)?;
                }
                env.load_shared(at, bytes).map(little_endian)
            }
            StateSpace::Param => {
                let at = within(MemorySpace::Param, at, bytes as u32, env.params.len())?;
                Ok(little_endian(&env.params[at..at + bytes]))
            }
            StateSpace::Local => {
                let size = env.kernel.local_bytes;
                let at = lane * size + within(MemorySpace::Local, at, bytes as u32, size)?;
                if !self.local_written[at..at + bytes].iter().all(|w| *w) {
                    let address = (at - lane * size) as u64;
                    return Err(FaultKind::Uninitialised { space: MemorySpace::Local, address, bytes: bytes as u32 });
                }
                Ok(little_endian(&self.local[at..at + bytes]))
            }
            StateSpace::Global | StateSpace::Generic => {
                env.load_global(at, bytes, if strong { None } else { Some(self.pc) })
            }
        }
    }

    /// Stores the elements of each lane.
    pub fn store(&mut self, env: &mut Env, access: &Access, mask: u32) -> Result<(), RawFault> {
        match access.regs.len() {
            1 => self.store_elements::<1>(env, access, mask),
            2 => self.store_elements::<2>(env, access, mask),
            _ => self.store_elements::<4>(env, access, mask),
        }
    }

    fn store_elements<const N: usize>(&mut self, env: &mut Env, access: &Access, mask: u32) -> Result<(), RawFault> {
        let address = self.addresses(env, access.addr);
        let bytes = access.width as usize * N;
        let bits = u32::from(access.width) * 8;
        let elements: [Lanes64; N] = std::array::from_fn(|i| self.get(env, access.regs[i]));
        for lane in lanes(mask) {
            let (space, at) = resolve(access.space, address[lane]);
            let mut value = 0u128;
            for (i, values) in elements.iter().enumerate() {
                value |= match access.width {
                    4 => u128::from(values[lane] as u32) << (32 * i),
                    _ => u128::from(values[lane] & (u64::MAX >> (64 - bits))) << (bits * i as u32),
                };
            }
            self.store_lane(env, space, at, bytes, lane, value, access.strong)
                .map_err(|kind| self.fault(Some(lane as u32), kind))?;
        }
        count_request(env, access.space, &address, mask, bytes as u64, true);
        Ok(())
    }

    #[inline]
    #[allow(clippy::too_many_arguments)]
    fn store_lane(
        &mut self,
        env: &mut Env,
        space: StateSpace,
        at: u64,
        bytes: usize,
        lane: usize,
        value: u128,
        strong: bool,
    ) -> Result<(), FaultKind> {
        let data = value.to_le_bytes();
        match space {
            StateSpace::Shared => {
                let at = env.check_shared(at, bytes as u32, bytes as u32)?;
                if !strong {
                    self.record_store(env, at, &data[..bytes], lane)?;
                }
                env.store_shared(at, &data[..bytes]);
                Ok(())
            }
            StateSpace::Local => {
                let size = env.kernel.local_bytes;
                let at = lane * size + within(MemorySpace::Local, at, bytes as u32, size)?;
                self.local[at..at + bytes].copy_from_slice(&data[..bytes]);
                self.local_written[at..at + bytes].fill(true);
                Ok(())
            }
            StateSpace::Param => Err(FaultKind::out_of_bounds(MemorySpace::Param, at, bytes as u32, None)),
            StateSpace::Global | StateSpace::Generic => {
                env.store_global(at, bytes, value, if strong { None } else { Some(self.pc) })
            }
        }
    }

    /// Records an access to shared memory in the shadow.
    #[inline]
    pub fn record_shared(
        &self,
        env: &mut Env,
        place: SharedPlace,
        bytes: usize,
        lane: usize,
        kind: AccessKind,
    ) -> Result<(), FaultKind> {
        self.record_by(env, place, bytes, &self.accessor(lane), kind)
    }

    /// Records a store to shared memory. An instruction may write the same from several threads: Triton's warps all write which role
    /// each has, and what a layout holds twice.
    pub fn record_store(&self, env: &mut Env, place: SharedPlace, data: &[u8], lane: usize) -> Result<(), FaultKind> {
        match self.record_shared(env, place, data.len(), lane, AccessKind::Write) {
            Err(FaultKind::Race { hazard: Hazard::WriteAfterWrite, other, .. })
                if env.is_at(&other, self.pc) && env.load_shared(place, data.len()).is_ok_and(|old| old == data) =>
            {
                Ok(())
            }
            recorded => recorded,
        }
    }

    /// Records an access of a given author.
    pub fn record_by(
        &self,
        env: &mut Env,
        place: SharedPlace,
        bytes: usize,
        by: &Accessor,
        kind: AccessKind,
    ) -> Result<(), FaultKind> {
        if !env.check_races {
            return Ok(());
        }
        env.blocks[place.rank].shared.record(place.at, bytes, by, kind).map_err(|c| FaultKind::Race {
            hazard: c.hazard,
            space: MemorySpace::Shared,
            address: c.address,
            other: Box::new(env.site(c.pc)),
            other_thread: env.author(c.warp, c.lane),
        })
    }

    /// A lane as the author of an access at the current instruction.
    pub fn accessor(&self, lane: usize) -> Accessor<'_> {
        Accessor {
            warp: self.number,
            lane: lane as u8,
            serial: self.serial,
            sync: self.sync,
            pc: self.pc,
            clock: &self.clock,
            proxy: None,
        }
    }
}
