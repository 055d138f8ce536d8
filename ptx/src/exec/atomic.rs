//! Atomics: `atom` and `red`.

use super::access::{Request, little_endian};
use super::env::{Env, RawFault};
use super::warp::Warp;
use crate::arith::{Format, Round, add_odd, canonical, canonical64};
use crate::error::{FaultKind, MemorySpace};
use crate::instruction::{Atom, AtomOp};
use crate::lanes::lanes;
use crate::memory::AccessKind;
use crate::space::{StateSpace, resolve};

impl Warp {
    /// Updates the word of each lane, in order of the lanes, and writes the old values.
    pub fn atom(&mut self, env: &mut Env, atom: &Atom, mask: u32) -> Result<(), RawFault> {
        let address = self.addresses(env, atom.addr);
        let (b, c) = (self.get(env, atom.b), self.get(env, atom.c));
        let bytes = if atom.wide { 8 } else { 4 };
        let mut request = Request::new();
        let mut old = [0; 32];
        for lane in lanes(mask) {
            let (space, at) = resolve(atom.space, address[lane]);
            request.add(space, at);
            let f = |x: u64| apply(atom.op, atom.wide, x, b[lane], c[lane]);
            let value = match space {
                StateSpace::Shared => (|| {
                    let at = env.check_shared(at, bytes, bytes)?;
                    self.record_shared(env, at, bytes as usize, lane, AccessKind::Atomic)?;
                    let x = little_endian(env.load_shared(at, bytes as usize)?) as u64;
                    env.store_shared(at, &f(x).to_le_bytes()[..bytes as usize]);
                    Ok(x)
                })(),
                StateSpace::Global | StateSpace::Generic => env.update_global(at, atom.wide, f),
                _ => Err(FaultKind::out_of_bounds(MemorySpace::Local, at, bytes, None)),
            };
            old[lane] = value.map_err(|kind| self.fault(Some(lane as u32), kind))?;
        }
        self.put(atom.dst, &old, mask);
        request.count(env, bytes.into(), true);
        Ok(())
    }
}

/// Computes the new value of an atomic.
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
