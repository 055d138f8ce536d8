//! Huffman codes and the bits of a scan.

use super::fault::{Fault, Result};
use super::markers::Markers;
use super::tables::HuffmanCode;

/// The bits to which the buffer is filled.
const FULL: u32 = 57;

/// A code, ready to decode.
pub(super) struct Table {
    /// For each 8 bits: the length and the symbol of the code that they begin with; length 9 where it is longer.
    short: [(u8, u8); 256],
    /// The greatest code of each length, -1 for none.
    greatest: [i32; 17],
    /// The index of the first symbol of each length less its code.
    offset: [i32; 17],
    symbols: [u8; 256],
}

impl Table {
    /// Makes the table; `dc` for one whose symbols are counts of bits.
    pub(super) fn new(code: Option<&HuffmanCode>, dc: bool) -> Result<Self> {
        let code = code.ok_or_else(|| Fault::refused("a Huffman table is missing"))?;
        let bad = || Fault::refused("its Huffman tables are damaged");
        let mut table = Self { short: [(9, 0); 256], greatest: [-1; 17], offset: [0; 17], symbols: [0; 256] };
        table.symbols[..code.symbols.len()].copy_from_slice(&code.symbols);
        let (mut next, mut index) = (0i32, 0usize);
        for length in 1..=16 {
            let count = usize::from(code.counts[length - 1]);
            if count > 0 {
                table.offset[length] = index as i32 - next;
                for symbol in &code.symbols[index..index + count] {
                    if length <= 8 {
                        let first = (next as usize) << (8 - length);
                        let range = table.short.get_mut(first..first + (1 << (8 - length))).ok_or_else(bad)?;
                        range.fill((length as u8, *symbol));
                    }
                    next += 1;
                }
                index += count;
                table.greatest[length] = next - 1;
                // No code is all ones.
                if next >= 1 << length {
                    return Err(bad());
                }
            }
            next <<= 1;
        }
        if dc && code.symbols.iter().any(|&bits| bits > 15) {
            return Err(bad());
        }
        Ok(table)
    }
}

/// The bits of a scan.
pub(super) struct Bits<'m, 'a> {
    pub markers: &'m mut Markers<'a>,
    buffer: u64,
    left: u32,
    /// Set where a marker came too early; zeros follow.
    pub exhausted: bool,
}

impl<'m, 'a> Bits<'m, 'a> {
    pub(super) fn new(markers: &'m mut Markers<'a>) -> Self {
        Self { markers, buffer: 0, left: 0, exhausted: false }
    }

    /// Drops the bits before a marker.
    pub(super) fn discard(&mut self) {
        self.left = 0;
    }

    /// Fills the buffer as far as the data go; `need` bits are there then in any case.
    #[cold]
    fn fill(&mut self, need: u32) -> Result<()> {
        while self.left < FULL && self.markers.pending.is_none() {
            let mut byte = self.markers.byte()?;
            if byte == 0xff {
                while byte == 0xff {
                    byte = self.markers.byte()?;
                }
                if byte != 0 {
                    self.markers.pending = Some(byte);
                    break;
                }
                byte = 0xff;
            }
            self.buffer = self.buffer << 8 | u64::from(byte);
            self.left += 8;
        }
        if need > self.left {
            self.exhausted = true;
            self.buffer <<= FULL - self.left;
            self.left = FULL;
        }
        Ok(())
    }

    /// Takes `n` bits, at most 16.
    pub(super) fn take(&mut self, n: u32) -> Result<i32> {
        if self.left < n {
            self.fill(n)?;
        }
        self.left -= n;
        Ok((self.buffer >> self.left) as i32 & ((1 << n) - 1))
    }

    /// Takes a value of `n` bits, of which the smaller half stands for negative ones.
    pub(super) fn signed(&mut self, n: u32) -> Result<i32> {
        if n == 0 {
            return Ok(0);
        }
        let value = self.take(n)?;
        Ok(if value < 1 << (n - 1) { value - (1 << n) + 1 } else { value })
    }

    /// Takes the next bit of a coefficient that is not zero: `one` away from zero where it is set.
    pub(super) fn refine(&mut self, coefficient: &mut i16, one: i32) -> Result<()> {
        if self.take(1)? == 1 && i32::from(*coefficient) & one == 0 {
            let sign = if *coefficient >= 0 { one } else { -one };
            *coefficient = coefficient.wrapping_add(sign as i16);
        }
        Ok(())
    }

    /// Takes a symbol; 0 for bits that are no code.
    pub(super) fn symbol(&mut self, table: &Table) -> Result<u8> {
        let mut length = 1;
        if self.left < 8 {
            self.fill(0)?;
        }
        if self.left >= 8 {
            let (bits, symbol) = table.short[(self.buffer >> (self.left - 8)) as usize & 255];
            length = u32::from(bits);
            if length <= 8 {
                self.left -= length;
                return Ok(symbol);
            }
        }
        let mut code = self.take(length)?;
        while code > table.greatest[length as usize] {
            code = code << 1 | self.take(1)?;
            length += 1;
            if length > 16 {
                return Ok(0);
            }
        }
        Ok(table.symbols[(code + table.offset[length as usize]) as usize & 255])
    }
}
