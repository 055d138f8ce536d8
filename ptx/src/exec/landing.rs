//! The bytes of bulk copies on their way: what lands in shared memory, what is read from it and written out.

use super::env::Env;
use crate::arith::{Format, Round, add_odd, canonical};
use crate::asynchronous::BulkReduce;
use crate::error::FaultKind;
use crate::memory::{CHUNK, Chunk, SharedPlace};

impl Env<'_> {
    /// Lands a copy to shared memory that everything waits for; `false` if there is none.
    pub fn land_one(&mut self) -> Result<bool, FaultKind> {
        let waiting = (0..self.bulk.len()).rev().find(|i| !self.bulk[*i].landed && self.bulk[*i].mbarrier.is_some());
        let Some(i) = waiting else { return Ok(false) };
        self.land(i).map(|()| true)
    }

    /// Lands some copies at random.
    pub fn land_some(&mut self) -> Result<(), FaultKind> {
        let mut i = 0;
        while i < self.bulk.len() {
            let copy = &self.bulk[i];
            if !copy.landed && copy.mbarrier.is_some() && self.random(4) == 0 {
                let before = self.bulk.len();
                self.land(i)?;
                if self.bulk.len() < before {
                    i = 0;
                    continue;
                }
            }
            i += 1;
        }
        Ok(())
    }

    /// Moves the bytes of copy `i` to shared memory and counts them.
    pub(super) fn land(&mut self, i: usize) -> Result<(), FaultKind> {
        let copy = &mut self.bulk[i];
        copy.landed = true;
        let (rank, nan, source, bytes) = (copy.rank, copy.nan, copy.source_rank, copy.element_bytes);
        let (mbarrier, total) = (copy.mbarrier, copy.bytes);
        for chunk in copy.chunks.clone() {
            let mut data = if nan { [0xff; CHUNK] } else { [0; CHUNK] };
            let range = usize::from(chunk.from)..usize::from(chunk.to);
            match source {
                Some(source) if !range.is_empty() => {
                    let place = SharedPlace { rank: source, at: chunk.other as usize };
                    data.copy_from_slice(self.load_shared(place, CHUNK)?);
                }
                _ => self.read_chunk(&chunk, &mut data, bytes, None)?,
            }
            self.store_shared(SharedPlace { rank, at: chunk.at }, &data);
        }
        match mbarrier {
            Some((place, _)) => self.complete_bytes(place, total as i64),
            None => Ok(()),
        }
    }

    /// Reads the part of a chunk that exists in global memory.
    pub(super) fn read_chunk(
        &mut self,
        chunk: &Chunk,
        data: &mut [u8; CHUNK],
        unit: u8,
        pc: Option<u32>,
    ) -> Result<(), FaultKind> {
        let (from, to) = (usize::from(chunk.from), usize::from(chunk.to));
        if (from, to) == (0, CHUNK) && chunk.other.is_multiple_of(16) {
            *data = self.load_global(chunk.other, CHUNK, pc)?.to_le_bytes();
            return Ok(());
        }
        let unit = usize::from(unit).max(1);
        for at in (from..to).step_by(unit) {
            let value = self.load_global(chunk.other + at as u64, unit, pc)?.to_le_bytes();
            data[at..at + unit].copy_from_slice(&value[..unit]);
        }
        Ok(())
    }

    /// Reads the source of a copy from shared memory, if it was not yet.
    pub(super) fn read_source(&mut self, i: usize) -> Result<(), FaultKind> {
        if self.bulk[i].data.is_some() {
            return Ok(());
        }
        let (rank, chunks) = (self.bulk[i].rank, self.bulk[i].chunks.clone());
        let mut data = Vec::with_capacity(chunks.len() * CHUNK);
        for c in &chunks {
            let mut bytes = [0; CHUNK];
            let (from, to) = (usize::from(c.from), usize::from(c.to));
            bytes[from..to].copy_from_slice(self.load_shared(SharedPlace { rank, at: c.at + from }, to - from)?);
            data.extend(bytes);
        }
        self.bulk[i].data = Some(data);
        Ok(())
    }

    /// Writes a copy from shared memory to global memory, if it was not yet.
    pub(super) fn write_out(&mut self, i: usize) -> Result<(), FaultKind> {
        self.read_source(i)?;
        let copy = &mut self.bulk[i];
        if std::mem::replace(&mut copy.landed, true) {
            return Ok(());
        }
        let (unit, reduce, kind) = (usize::from(copy.element_bytes).max(1), copy.reduce, copy.element_type);
        let (chunks, data) = (copy.chunks.clone(), copy.data.take().unwrap_or_default());
        for (c, data) in chunks.iter().zip(data.as_chunks::<CHUNK>().0) {
            let (from, to) = (usize::from(c.from), usize::from(c.to));
            if (from, to) == (0, CHUNK) && reduce.is_none() && c.other.is_multiple_of(16) {
                self.store_global(c.other, CHUNK, u128::from_le_bytes(*data), None)?;
                continue;
            }
            for at in (from..to).step_by(unit) {
                let mut value = [0; 16];
                value[..unit].copy_from_slice(&data[at..at + unit]);
                let mut value = u128::from_le_bytes(value);
                if let Some(op) = reduce {
                    let old = self.load_global(c.other + at as u64, unit, None)?;
                    value = reduced(op, kind, unit, old as u64, value as u64).into();
                }
                self.store_global(c.other + at as u64, unit, value, None)?;
            }
        }
        Ok(())
    }

    /// Ends all copies at the end of the blocks; one that is still under way is a fault.
    pub fn finish_copies(&mut self) -> Result<(), (u32, FaultKind)> {
        for i in 0..self.bulk.len() {
            let pc = self.bulk[i].pc;
            if self.bulk[i].mbarrier.is_some() && !self.bulk[i].chunks.is_empty() {
                let what = "the block ends while this copy to shared memory was not waited for".to_owned();
                return Err((pc, FaultKind::Asynchronous(what)));
            }
            if self.bulk[i].mbarrier.is_none() {
                if !self.bulk[i].waited {
                    let what =
                        "the block ends while this copy reads its shared memory: cp.async.bulk.wait_group is missing";
                    return Err((pc, FaultKind::Asynchronous(what.to_owned())));
                }
                self.write_out(i).map_err(|kind| (pc, kind))?;
            }
        }
        self.bulk.clear();
        Ok(())
    }
}

/// The new value of an element in global memory.
fn reduced(op: BulkReduce, kind: u8, bytes: usize, old: u64, new: u64) -> u64 {
    let half = |format: Format| {
        let (a, b) = (format.decode(old), format.decode(new));
        let value = match op {
            BulkReduce::Min => a.min(b),
            BulkReduce::Max => a.max(b),
            _ => add_odd(a, b),
        };
        format.encode(value, Round::Nearest)
    };
    let single = || {
        let (a, b) = (f32::from_bits(old as u32), f32::from_bits(new as u32));
        match op {
            BulkReduce::Min => canonical(a.min(b)),
            BulkReduce::Max => canonical(a.max(b)),
            _ => canonical(a + b),
        }
    };
    let signed = matches!(kind, 3 | 5);
    let shift = 64 - 8 * bytes as u32;
    let wide = |v: u64| (v << shift) as i64 >> shift;
    match (op, kind) {
        (BulkReduce::Add | BulkReduce::Min | BulkReduce::Max, 6) => half(Format::F16),
        (BulkReduce::Add | BulkReduce::Min | BulkReduce::Max, 10) => half(Format::Bf16),
        (BulkReduce::Add | BulkReduce::Min | BulkReduce::Max, 7 | 8) => single().into(),
        (BulkReduce::Add, _) => old.wrapping_add(new),
        (BulkReduce::Min, _) if signed => wide(old).min(wide(new)) as u64,
        (BulkReduce::Max, _) if signed => wide(old).max(wide(new)) as u64,
        (BulkReduce::Min, _) => old.min(new),
        (BulkReduce::Max, _) => old.max(new),
        (BulkReduce::And, _) => old & new,
        (BulkReduce::Or, _) => old | new,
        (BulkReduce::Xor, _) => old ^ new,
    }
}
