//! Scans: the coefficients out of the bits.

use super::blocks::Blocks;
use super::fault::{Fault, Result};
use super::frame::Frame;
use super::huffman::{Bits, Table};
use super::markers::{Markers, Scan};
use super::tables::ZIGZAG;

/// The state of the decoder within a scan.
struct State<'m, 'a> {
    bits: Bits<'m, 'a>,
    kind: Kind,
    /// The codes of each component of the scan; none where the kind needs none.
    dc: Vec<Table>,
    ac: Vec<Table>,
    band: (usize, usize),
    low: u32,
    /// The last DC value of each component of the scan.
    predictions: [i32; 4],
    /// The blocks to come that have no new coefficients.
    run: u32,
    /// The units up to the next restart marker.
    to_go: usize,
    /// The number of the restart marker that comes next.
    next: u8,
    /// Whether the data of this unit are missing.
    skip: bool,
}

/// The kinds of scans.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Sequential,
    DcFirst,
    DcRefine,
    AcFirst,
    AcRefine,
}

/// Decodes one scan into the blocks.
pub(super) fn decode(markers: &mut Markers, frame: &mut Frame, blocks: &mut Blocks, scan: &Scan) -> Result<()> {
    let kind = begin(markers, frame, scan)?;
    let (mut dc, mut ac) = (Vec::new(), Vec::new());
    for c in &scan.components {
        if matches!(kind, Kind::Sequential | Kind::DcFirst) {
            dc.push(Table::new(markers.dc.get(c.dc).and_then(Option::as_ref), true)?);
        }
        if matches!(kind, Kind::Sequential | Kind::AcFirst | Kind::AcRefine) {
            ac.push(Table::new(markers.ac.get(c.ac).and_then(Option::as_ref), false)?);
        }
    }
    let restart = markers.restart;
    let bits = Bits::new(markers);
    let (band, low) = (scan.band, scan.low);
    let mut state =
        State { bits, kind, dc, ac, band, low, predictions: [0; 4], run: 0, to_go: restart, next: 0, skip: false };
    let parts: Vec<_> = scan.components.iter().map(|c| (c.index, &frame.components[c.index])).collect();
    // A scan of one component has its blocks in rows; another has units of h x v blocks of each.
    let single = parts.len() == 1;
    let (across, down) = if single { parts[0].1.blocks } else { frame.mcus };
    for y in 0..down {
        let unit_row = if single { y / parts[0].1.v } else { y };
        for x in 0..across {
            if !state.bits.exhausted {
                blocks.last_good = unit_row;
            } else if restart == 0 {
                blocks.damaged = true;
                return Ok(());
            }
            state.restart_if_due(restart)?;
            state.skip = state.bits.exhausted;
            for (i, (index, c)) in parts.iter().enumerate() {
                let (h, v) = if single { (1, 1) } else { (c.h, c.v) };
                let columns = frame.mcus.0 * c.h;
                for at in 0..h * v {
                    let block = &mut blocks.components[*index][(y * v + at / h) * columns + x * h + at % h];
                    state.block(i, block)?;
                }
            }
            blocks.damaged |= state.bits.exhausted;
        }
    }
    Ok(())
}

/// Checks the header of a scan, and notes the precision that its coefficients have after it.
fn begin(markers: &Markers, frame: &mut Frame, scan: &Scan) -> Result<Kind> {
    let (start, end) = scan.band;
    for c in &scan.components {
        let component = &mut frame.components[c.index];
        if component.steps.is_none() {
            let table = markers.quantization.get(component.quantization).copied().flatten();
            component.steps = Some(table.ok_or_else(|| Fault::refused("a quantization table is missing"))?);
        }
    }
    if !frame.progressive {
        return Ok(Kind::Sequential);
    }
    let dc = start == 0;
    let band = if dc { end == 0 } else { start <= end && end < 64 && scan.components.len() == 1 };
    if !band || scan.high != 0 && scan.low + 1 != scan.high || scan.low > 13 {
        return Err(Fault::refused("the header of a progressive scan is damaged"));
    }
    for c in &scan.components {
        let [now, before] = &mut frame.components[c.index].missing_bits;
        for k in start.min(1)..=end.max(9) {
            before[k] = if markers.scans > 1 { now[k] } else { 0 };
        }
        now[start..=end].fill(scan.low as i8);
    }
    Ok(match (dc, scan.high) {
        (true, 0) => Kind::DcFirst,
        (true, _) => Kind::DcRefine,
        (false, 0) => Kind::AcFirst,
        (false, _) => Kind::AcRefine,
    })
}

impl State<'_, '_> {
    /// Passes a restart marker where one is due.
    fn restart_if_due(&mut self, interval: usize) -> Result<()> {
        if interval == 0 {
            return Ok(());
        }
        if self.to_go == 0 {
            self.bits.discard();
            let marker = self.bits.markers.pending.map_or_else(|| self.bits.markers.seek(), Ok)?;
            if marker == 0xd0 + self.next {
                self.bits.markers.pending = None;
            } else {
                self.resynchronize(marker)?;
            }
            self.next = (self.next + 1) & 7;
            self.predictions = [0; 4];
            self.run = 0;
            self.to_go = interval;
            // A marker that stays is that of a later interval, or the end: this one has no data.
            self.bits.exhausted &= self.bits.markers.pending.is_some();
        }
        self.to_go -= 1;
        Ok(())
    }

    /// Decides about a marker that is not the one expected, as libjpeg does: one of the next two intervals stays, one of
    /// the last two is passed over, another restart marker is taken for the expected one.
    fn resynchronize(&mut self, mut marker: u8) -> Result<()> {
        loop {
            let ahead = marker.wrapping_sub(0xd0 + self.next) & 7;
            match marker {
                0xd0..=0xd7 if matches!(ahead, 1 | 2) => return Ok(()),
                0xd0..=0xd7 if !matches!(ahead, 6 | 7) => {
                    self.bits.markers.pending = None;
                    return Ok(());
                }
                0xc0..=0xcf | 0xd8.. => return Ok(()),
                _ => marker = self.bits.markers.seek()?,
            }
        }
    }

    /// Decodes one block of the scan's component `i`.
    fn block(&mut self, i: usize, block: &mut [i16; 64]) -> Result<()> {
        match self.kind {
            Kind::DcRefine => {
                block[0] |= (self.bits.take(1)? << self.low) as i16;
                Ok(())
            }
            _ if self.skip => Ok(()),
            Kind::Sequential => self.sequential(i, block),
            Kind::DcFirst => {
                block[0] = (self.dc(i)? << self.low) as i16;
                Ok(())
            }
            Kind::AcFirst => self.ac_first(block),
            Kind::AcRefine => self.ac_refine(block),
        }
    }

    /// Decodes a DC value.
    fn dc(&mut self, i: usize) -> Result<i32> {
        let bits = self.bits.symbol(&self.dc[i])?;
        let difference = self.bits.signed(u32::from(bits))?;
        self.predictions[i] = self.predictions[i].wrapping_add(difference);
        Ok(self.predictions[i])
    }

    fn sequential(&mut self, i: usize, block: &mut [i16; 64]) -> Result<()> {
        block[0] = self.dc(i)? as i16;
        let mut k = 1;
        while k < 64 {
            let symbol = self.bits.symbol(&self.ac[i])?;
            let (zeros, bits) = (usize::from(symbol >> 4), u32::from(symbol & 15));
            if bits == 0 {
                if zeros != 15 {
                    break;
                }
            } else {
                let value = self.bits.signed(bits)?;
                block[position(k + zeros)] = value as i16;
            }
            k += zeros + 1;
        }
        Ok(())
    }

    fn ac_first(&mut self, block: &mut [i16; 64]) -> Result<()> {
        if self.run > 0 {
            self.run -= 1;
            return Ok(());
        }
        let (mut k, end) = self.band;
        while k <= end {
            let symbol = self.bits.symbol(&self.ac[0])?;
            let (zeros, bits) = (usize::from(symbol >> 4), u32::from(symbol & 15));
            if bits == 0 {
                if zeros != 15 {
                    self.run = (1 << zeros) + self.bits.take(zeros as u32)? as u32 - 1;
                    break;
                }
            } else {
                let value = self.bits.signed(bits)?;
                block[position(k + zeros)] = (value << self.low) as i16;
            }
            k += zeros + 1;
        }
        Ok(())
    }

    fn ac_refine(&mut self, block: &mut [i16; 64]) -> Result<()> {
        let (mut k, end) = self.band;
        let one = 1 << self.low;
        if self.run == 0 {
            while k <= end {
                let symbol = self.bits.symbol(&self.ac[0])?;
                let (mut zeros, mut value) = (i32::from(symbol >> 4), 0);
                if symbol & 15 != 0 {
                    value = if self.bits.take(1)? == 1 { one } else { -one };
                } else if zeros != 15 {
                    self.run = (1 << zeros) + self.bits.take(zeros as u32)? as u32;
                    break;
                }
                // Passes over `zeros` coefficients that stay zero; those between them get one more bit.
                while k <= end {
                    let coefficient = &mut block[position(k)];
                    if *coefficient != 0 {
                        self.bits.refine(coefficient, one)?;
                    } else {
                        zeros -= 1;
                        if zeros < 0 {
                            break;
                        }
                    }
                    k += 1;
                }
                if value != 0 {
                    block[position(k)] = value as i16;
                }
                k += 1;
            }
        }
        if self.run > 0 {
            for k in k..=end {
                let coefficient = &mut block[position(k)];
                if *coefficient != 0 {
                    self.bits.refine(coefficient, one)?;
                }
            }
            self.run -= 1;
        }
        Ok(())
    }
}

/// The place in natural order; the last one for those that damaged data lead to.
fn position(k: usize) -> usize {
    usize::from(ZIGZAG[k.min(63)])
}
