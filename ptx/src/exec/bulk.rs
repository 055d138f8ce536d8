//! Bulk copies: `cp.async.bulk`, of tensors and of plain bytes.
//!
//! Bounds, alignment, initialisation and races are checked at issue. A copy to shared memory lands at issue, at random, or not before
//! everything waits, by the schedule, and then counts its bytes at its mbarrier. A copy from shared memory reads it and writes global
//! memory at issue, or each as late as the waits allow.

use super::env::{CopyTiming, Env, RawFault};
use super::warp::{Warp, learn};
use crate::asynchronous::BulkOp;
use crate::error::FaultKind;
use crate::lanes::{Lanes64, lanes};
use crate::memory::{AccessKind, Accessor, BulkCopy, CHUNK, Chunk, Proxy, SharedPlace, TensorMap, element_bytes};
use crate::operand::Reg;
use crate::space::{StateSpace, resolve};

/// The places of a copy.
struct Layout {
    chunks: Vec<Chunk>,
    bytes: u64,
    nan: bool,
    element_type: u8,
    element_bytes: u8,
}

/// The chunks of a copy with a tensor map; shared memory from `shared` on.
fn tensor_layout(map: &TensorMap, start: &[i64], offsets: &[i64], shared: usize) -> Layout {
    let unit = i64::from(map.element_bytes);
    let mut chunks = Vec::new();
    let rows = map.rows(start, offsets);
    let (row_bytes, pitch) = (map.row_bytes(), map.pitch());
    for (r, row) in rows.iter().enumerate() {
        for x in (0..row_bytes).step_by(CHUNK) {
            let at = map.swizzle.apply(shared as u64 + r as u64 * pitch + x) as usize;
            let mut chunk = Chunk { at, other: 0, from: 0, to: 0 };
            if let Some(position) = row {
                let mut first = position.clone();
                first[0] += x as i64 / unit;
                chunk.other = map.element(&first);
                let here = |x: i64| (x.clamp(0, CHUNK as i64 / unit) * unit) as u8;
                (chunk.from, chunk.to) = (here(-first[0]), here(map.dims[0] as i64 - first[0]));
                chunk.from = chunk.from.min(chunk.to);
            }
            chunks.push(chunk);
        }
    }
    let bytes = row_bytes * rows.len() as u64;
    Layout { chunks, bytes, nan: map.nan, element_type: map.element_type, element_bytes: map.element_bytes }
}

/// The chunks of a copy of plain bytes.
fn plain_layout(shared: usize, other: u64, bytes: u64) -> Layout {
    let chunk = |x: u64| Chunk { at: shared + x as usize, other: other + x, from: 0, to: 16 };
    Layout {
        chunks: (0..bytes).step_by(CHUNK).map(chunk).collect(),
        bytes,
        nan: false,
        element_type: 0,
        element_bytes: 1,
    }
}

impl Warp {
    /// Issues a copy of each lane.
    pub fn bulk_copy(&mut self, env: &mut Env, op: &BulkOp, mask: u32) -> Result<(), RawFault> {
        let other = self.addresses(env, op.other);
        let shared = self.addresses(env, op.shared);
        let size = self.get(env, op.size);
        let list = |warp: &Self, regs: &[Reg]| -> Vec<Lanes64> { regs.iter().map(|r| warp.get(env, *r)).collect() };
        let (coordinates, offsets) = (list(self, &op.coordinates), list(self, &op.offsets));
        let multicast = self.get(env, op.multicast);
        let mbarrier = op.mbarrier.map(|addr| self.addresses(env, addr));
        for lane in lanes(mask) {
            let fail = |kind| self.fault(Some(lane as u32), kind);
            let (_, at) = resolve(StateSpace::Generic, shared[lane]);
            let align = if op.tensor { 128 } else { 16 };
            let place = env.check_shared(at, 16, align).map_err(fail)?;
            let layout = if op.tensor {
                let map = env.tensor_map(other[lane]).map_err(fail)?;
                let signed = |v: &[Lanes64]| v.iter().map(|c| i64::from(c[lane] as u32 as i32)).collect::<Vec<_>>();
                let offsets: Vec<i64> = offsets.iter().map(|c| i64::from(c[lane] as u16)).collect();
                let start = signed(&coordinates);
                let fits = match map.im2col {
                    Some(_) => op.im2col && (op.mbarrier.is_none() || offsets.len() + 2 == map.dims.len()),
                    None => !op.im2col,
                };
                if start.len() != map.dims.len() || !fits {
                    let what = format!(
                        "{} coordinates and {} offsets, im2col {}, with a tensor map of rank {}, im2col {}",
                        start.len(),
                        offsets.len(),
                        op.im2col,
                        map.dims.len(),
                        map.im2col.is_some()
                    );
                    return Err(fail(FaultKind::Asynchronous(what)));
                }
                tensor_layout(&map, &start, &offsets, place.at)
            } else {
                let bytes = size[lane] & 0xffff_ffff;
                if !bytes.is_multiple_of(16) || !other[lane].is_multiple_of(16) {
                    let what = format!("a bulk copy of {bytes} bytes at {:#x}; both go in 16 bytes", other[lane]);
                    return Err(fail(FaultKind::Asynchronous(what)));
                }
                plain_layout(place.at, resolve(StateSpace::Generic, other[lane]).1, bytes)
            };
            match &mbarrier {
                Some(address) => {
                    let place_of = self.mbarrier_place(env, StateSpace::Shared, address[lane], lane)?;
                    let ranks: Vec<usize> = match op.multicast {
                        Reg::None => vec![place.rank],
                        _ => (0..env.blocks.len()).filter(|r| multicast[lane] >> r & 1 != 0).collect(),
                    };
                    for rank in ranks {
                        // A multicast signals the mbarrier at the same place of each block.
                        let signal =
                            if op.multicast == Reg::None { place_of } else { SharedPlace { rank, ..place_of } };
                        self.issue_to_shared(env, op, &layout, rank, signal, lane).map_err(fail)?;
                    }
                }
                None => self.issue_from_shared(env, op, layout, place.rank, lane).map_err(fail)?,
            }
        }
        Ok(())
    }

    /// The author of what a copy reads or writes in shared memory.
    fn bulk_author(&self, lane: usize, author: u16, until: u32) -> Accessor<'_> {
        Accessor { proxy: Some(Proxy { author, until, fenced: &self.fenced }), ..self.accessor(lane) }
    }

    /// The author of the warp's copies from shared memory.
    fn bulk_writer(&self, env: &Env) -> u16 {
        2 * env.cluster_warps() as u16 + self.number
    }

    fn issue_to_shared(
        &self,
        env: &mut Env,
        op: &BulkOp,
        layout: &Layout,
        rank: usize,
        signal: SharedPlace,
        lane: usize,
    ) -> Result<(), FaultKind> {
        env.check_running(rank)?;
        let mbarrier = env.mbarrier(signal)?;
        let (author, phase) = (mbarrier.author, mbarrier.phase);
        for chunk in &layout.chunks {
            env.blocks[rank].shared.check(chunk.at as u64, CHUNK as u32, 16)?;
            if op.from_shared {
                let place = env.check_shared(chunk.other, 16, 16)?;
                let by = self.bulk_author(lane, author, phase);
                self.record_by(env, place, 16, &by, AccessKind::Read)?;
            } else {
                env.read_chunk(chunk, &mut [0; CHUNK], layout.element_bytes, Some(self.pc))?;
            }
            let by = self.bulk_author(lane, author, phase);
            self.record_by(env, SharedPlace { rank, at: chunk.at }, CHUNK, &by, AccessKind::Write)?;
        }
        count(&mut env.counts.loads, &layout.chunks);
        env.bulk.push(BulkCopy {
            chunks: layout.chunks.clone(),
            rank,
            source_rank: op.from_shared.then_some(env.rank),
            mbarrier: Some((signal, phase)),
            bytes: layout.bytes,
            pc: self.pc,
            nan: layout.nan,
            owner: (self.number, lane),
            element_type: layout.element_type,
            element_bytes: layout.element_bytes,
            ..BulkCopy::default()
        });
        if env.copy_timing() == CopyTiming::AtIssue {
            env.land(env.bulk.len() - 1)?;
        }
        Ok(())
    }

    fn issue_from_shared(
        &self,
        env: &mut Env,
        op: &BulkOp,
        layout: Layout,
        rank: usize,
        lane: usize,
    ) -> Result<(), FaultKind> {
        let (author, group) = (self.bulk_writer(env), self.bulk_committed[lane]);
        let unit = usize::from(layout.element_bytes);
        for c in &layout.chunks {
            let (from, to) = (usize::from(c.from), usize::from(c.to));
            if from == to {
                continue;
            }
            let place = SharedPlace { rank, at: c.at + from };
            env.load_shared(place, to - from)?;
            let by = self.bulk_author(lane, author, group);
            self.record_by(env, place, to - from, &by, AccessKind::Read)?;
            if (from, to) == (0, CHUNK) && c.other.is_multiple_of(16) {
                env.touch_global(c.other, CHUNK, op.reduce.is_none().then_some(self.pc))?;
            } else {
                for at in (from..to).step_by(unit) {
                    env.touch_global(c.other + at as u64, unit, op.reduce.is_none().then_some(self.pc))?;
                }
            }
        }
        count(&mut env.counts.stores, &layout.chunks);
        env.bulk.push(BulkCopy {
            chunks: layout.chunks,
            rank,
            bytes: layout.bytes,
            pc: self.pc,
            owner: (self.number, lane),
            group,
            reduce: op.reduce,
            element_type: op.element_type.unwrap_or(layout.element_type),
            element_bytes: op.element_type.map_or(layout.element_bytes, element_bytes),
            ..BulkCopy::default()
        });
        let last = env.bulk.len() - 1;
        match env.copy_timing() {
            CopyTiming::AtIssue => env.write_out(last),
            CopyTiming::Between => env.read_source(last),
            CopyTiming::AtWait => Ok(()),
        }
    }

    /// Closes the current group of each lane's copies from shared memory.
    pub fn bulk_commit(&mut self, mask: u32) {
        for lane in lanes(mask) {
            self.bulk_committed[lane] += 1;
        }
    }

    /// Waits until at most `left` groups of each lane are pending, or, if `read`, have yet to be read.
    pub fn bulk_wait(&mut self, env: &mut Env, left: u32, read: bool, mask: u32) -> Result<(), RawFault> {
        for lane in lanes(mask) {
            let over = self.bulk_committed[lane].saturating_sub(left);
            for i in 0..env.bulk.len() {
                let copy = &env.bulk[i];
                if copy.mbarrier.is_none() && copy.owner == (self.number, lane) && copy.group < over {
                    let done = if read { env.read_source(i) } else { env.write_out(i) };
                    done.map_err(|kind| self.fault(Some(lane as u32), kind))?;
                    env.bulk[i].waited = true;
                }
            }
            let author = self.bulk_writer(env);
            learn(&mut self.clock, author, over);
        }
        env.bulk.retain(|c| c.mbarrier.is_some() || !(c.landed && c.waited));
        Ok(())
    }
}

/// Counts the sectors of a copy.
fn count(traffic: &mut crate::counts::Traffic, chunks: &[Chunk]) {
    let here = || chunks.iter().filter(|c| c.from < c.to);
    let mut sectors: Vec<u64> = here().map(|c| c.other / 32).collect();
    sectors.sort_unstable();
    sectors.dedup();
    traffic.requests += 1;
    traffic.sectors += sectors.len() as u64;
    traffic.ideal += here().map(|c| u64::from(c.to - c.from)).sum::<u64>().div_ceil(32);
}
