//! Loads, stores, atomics.

use crate::arith::{Format, Round, add_odd, canonical, canonical64};
use crate::counts::{coalesce, conflicts};
use crate::decode::{LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW, WINDOW};
use crate::env::{Env, RawFault};
use crate::error::{FaultKind, MemorySpace};
use crate::memory::outside;
use crate::program::{Access, Address, Atom, AtomOp, Lanes64, Reg, StateSpace};
use crate::shared::AccessKind;
use crate::warp::{Warp, lanes};

/// The addresses of a request, for the counts.
struct Request {
    global: [u64; 32],
    globals: usize,
    shared: [u64; 32],
    shareds: usize,
}

impl Request {
    fn new() -> Self {
        Self { global: [0; 32], globals: 0, shared: [0; 32], shareds: 0 }
    }

    #[inline(always)]
    fn note(&mut self, space: StateSpace, address: u64) {
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

    fn count(&self, env: &mut Env, bytes: u64, store: bool) {
        let (traffic, banks) = if store {
            (&mut env.counts.stores, &mut env.counts.shared_stores)
        } else {
            (&mut env.counts.loads, &mut env.counts.shared_loads)
        };
        coalesce(traffic, &self.global[..self.globals], bytes);
        conflicts(banks, &self.shared[..self.shareds], bytes);
    }
}

/// A generic address as a space and an address in it.
#[inline(always)]
fn place(space: StateSpace, address: u64) -> (StateSpace, u64) {
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

/// Bounds of a small private range.
fn within(space: MemorySpace, address: u64, bytes: u32, len: usize) -> Result<usize, FaultKind> {
    if !address.is_multiple_of(bytes.into()) {
        return Err(FaultKind::Misaligned { space, address, align: bytes });
    }
    if address.saturating_add(u64::from(bytes)) > len as u64 {
        return Err(outside(space, address, bytes, Some(0..len as u64)));
    }
    Ok(address as usize)
}

fn le(bytes: &[u8]) -> u128 {
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
    /// The address of each lane.
    #[inline]
    pub fn addresses(&self, env: &Env, addr: Address) -> Lanes64 {
        match addr.base {
            Reg::B64(r) => self.get64(env, r).map(|a| a.wrapping_add_signed(addr.offset)),
            Reg::B16(r) | Reg::B32(r) => self.get32(env, r).map(|a| u64::from(a.wrapping_add(addr.offset as u32))),
            Reg::None => [addr.offset as u64; 32],
        }
    }

    pub fn load(&mut self, env: &mut Env, access: &Access, mask: u32) -> Result<(), RawFault> {
        let address = self.addresses(env, access.addr);
        let count = access.regs.len();
        let bytes = access.width as usize * count;
        let mut request = Request::new();
        let mut rows = [[0u64; 32]; 4];
        let bits = u32::from(access.width) * 8;
        for lane in lanes(mask) {
            let (space, at) = place(access.space, address[lane]);
            request.note(space, at);
            let value = self
                .load_lane(env, space, at, bytes, lane, access.strong)
                .map_err(|kind| self.fault(Some(lane as u32), kind))?;
            for (i, row) in rows.iter_mut().enumerate().take(count) {
                let element = (value >> (bits * i as u32)) as u64;
                row[lane] = if access.signed {
                    ((element << (64 - bits)) as i64 >> (64 - bits)) as u64
                } else {
                    element & (u64::MAX >> (64 - bits))
                };
            }
        }
        for (row, reg) in rows.iter().zip(&access.regs) {
            self.put(*reg, row, mask);
        }
        request.count(env, bytes as u64, false);
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
                let at = env.shared.check(at, bytes as u32, bytes as u32)?;
                if !strong {
                    self.record_shared(env, at, bytes, lane, AccessKind::Read)?;
                }
                env.shared.load(at, bytes).map(le)
            }
            StateSpace::Param => {
                let at = within(MemorySpace::Param, at, bytes as u32, env.params.len())?;
                Ok(le(&env.params[at..at + bytes]))
            }
            StateSpace::Local => {
                let size = env.kernel.local_bytes;
                let at = lane * size + within(MemorySpace::Local, at, bytes as u32, size)?;
                if !self.local_written[at..at + bytes].iter().all(|w| *w) {
                    let address = (at - lane * size) as u64;
                    return Err(FaultKind::Uninitialised { space: MemorySpace::Local, address, bytes: bytes as u32 });
                }
                Ok(le(&self.local[at..at + bytes]))
            }
            StateSpace::Global | StateSpace::Generic => {
                env.load_global(at, bytes, if strong { None } else { Some(self.pc) })
            }
        }
    }

    pub fn store(&mut self, env: &mut Env, access: &Access, mask: u32) -> Result<(), RawFault> {
        let address = self.addresses(env, access.addr);
        let count = access.regs.len();
        let bytes = access.width as usize * count;
        let bits = u32::from(access.width) * 8;
        let mut request = Request::new();
        let mut rows = [[0u64; 32]; 4];
        for (row, reg) in rows.iter_mut().zip(&access.regs) {
            *row = self.get(env, *reg);
        }
        for lane in lanes(mask) {
            let (space, at) = place(access.space, address[lane]);
            request.note(space, at);
            let mut value = 0u128;
            for (i, row) in rows.iter().enumerate().take(count) {
                value |= u128::from(row[lane] & (u64::MAX >> (64 - bits))) << (bits * i as u32);
            }
            self.store_lane(env, space, at, bytes, lane, value, access.strong)
                .map_err(|kind| self.fault(Some(lane as u32), kind))?;
        }
        request.count(env, bytes as u64, true);
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
                let at = env.shared.check(at, bytes as u32, bytes as u32)?;
                if !strong {
                    self.record_shared(env, at, bytes, lane, AccessKind::Write)?;
                }
                env.shared.store(at, &data[..bytes]);
                Ok(())
            }
            StateSpace::Local => {
                let size = env.kernel.local_bytes;
                let at = lane * size + within(MemorySpace::Local, at, bytes as u32, size)?;
                self.local[at..at + bytes].copy_from_slice(&data[..bytes]);
                self.local_written[at..at + bytes].fill(true);
                Ok(())
            }
            StateSpace::Param => Err(outside(MemorySpace::Param, at, bytes as u32, None)),
            StateSpace::Global | StateSpace::Generic => {
                env.store_global(at, bytes, value, if strong { None } else { Some(self.pc) })
            }
        }
    }

    /// Notes an access to shared memory in the shadow.
    #[inline]
    pub fn record_shared(
        &self,
        env: &mut Env,
        at: usize,
        bytes: usize,
        lane: usize,
        kind: AccessKind,
    ) -> Result<(), FaultKind> {
        if !env.check_races {
            return Ok(());
        }
        env.shared.record(at, bytes, &self.accessor(lane), kind).map_err(|c| {
            let other_thread = match c.lane {
                Some(lane) => format!("thread {:?}", env.thread(u32::from(c.warp) * 32 + u32::from(lane))),
                None => format!("warp {}", c.warp),
            };
            FaultKind::Race {
                hazard: c.hazard,
                space: MemorySpace::Shared,
                address: c.address,
                other: Box::new(env.site(c.pc)),
                other_thread,
            }
        })
    }

    pub fn accessor(&self, lane: usize) -> crate::shared::Accessor<'_> {
        crate::shared::Accessor {
            warp: self.id,
            lane: lane as u8,
            serial: self.serial,
            sync: self.sync,
            pc: self.pc,
            clock: &self.clock,
        }
    }

    pub fn atom(&mut self, env: &mut Env, atom: &Atom, mask: u32) -> Result<(), RawFault> {
        let address = self.addresses(env, atom.addr);
        let (b, c) = (self.get(env, atom.b), self.get(env, atom.c));
        let bytes = if atom.wide { 8 } else { 4 };
        let mut request = Request::new();
        let mut old = [0; 32];
        for lane in lanes(mask) {
            let (space, at) = place(atom.space, address[lane]);
            request.note(space, at);
            let f = |x: u64| apply(atom.op, atom.wide, x, b[lane], c[lane]);
            let value = match space {
                StateSpace::Shared => (|| {
                    let at = env.shared.check(at, bytes, bytes)?;
                    self.record_shared(env, at, bytes as usize, lane, AccessKind::Atomic)?;
                    let x = le(env.shared.load(at, bytes as usize)?) as u64;
                    env.shared.store(at, &f(x).to_le_bytes()[..bytes as usize]);
                    Ok(x)
                })(),
                StateSpace::Global | StateSpace::Generic => env.update_global(at, atom.wide, f),
                _ => Err(outside(MemorySpace::Local, at, bytes, None)),
            };
            old[lane] = value.map_err(|kind| self.fault(Some(lane as u32), kind))?;
        }
        self.put(atom.dst, &old, mask);
        request.count(env, bytes.into(), true);
        Ok(())
    }
}

/// The new value of an atomic.
fn apply(op: AtomOp, wide: bool, x: u64, b: u64, c: u64) -> u64 {
    let signed = |v: u64| if wide { v as i64 } else { i64::from(v as u32 as i32) };
    let halves = |format: Format| {
        let add = |shift: u32| {
            let sum = add_odd(format.decode(x >> shift & 0xffff), format.decode(b >> shift & 0xffff));
            format.encode(sum, Round::Nearest) << shift
        };
        add(0) | add(16)
    };
    match op {
        AtomOp::Add => x.wrapping_add(b),
        AtomOp::FAdd32 => canonical(f32::from_bits(x as u32) + f32::from_bits(b as u32)).into(),
        AtomOp::FAdd64 => canonical64(f64::from_bits(x) + f64::from_bits(b)),
        AtomOp::HAdd2 => halves(Format::F16),
        AtomOp::BAdd2 => halves(Format::Bf16),
        AtomOp::Exch => b,
        AtomOp::Cas => {
            if x == b {
                c
            } else {
                x
            }
        }
        AtomOp::Min => x.min(b),
        AtomOp::Max => x.max(b),
        AtomOp::SMin => signed(x).min(signed(b)) as u64,
        AtomOp::SMax => signed(x).max(signed(b)) as u64,
        AtomOp::And => x & b,
        AtomOp::Or => x | b,
        AtomOp::Xor => x ^ b,
        AtomOp::Inc => {
            if x >= b {
                0
            } else {
                x + 1
            }
        }
        AtomOp::Dec => {
            if x == 0 || x > b {
                b
            } else {
                x - 1
            }
        }
    }
}
