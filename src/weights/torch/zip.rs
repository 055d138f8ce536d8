//! The zip archives that torch writes: stored entries, 64-bit sizes where needed. Source: PKWARE's APPNOTE 6.3.10.

use super::super::contents::quoted;
use std::collections::BTreeMap;

const LOCAL: &[u8; 4] = b"PK\x03\x04";
const CENTRAL: &[u8; 4] = b"PK\x01\x02";
const END: &[u8; 4] = b"PK\x05\x06";
const END_64: &[u8; 4] = b"PK\x06\x06";
const LOCATOR_64: &[u8; 4] = b"PK\x06\x07";
const DAMAGED: &str = "fetch the file again";

/// The place of one entry's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    /// The offset in the file of its first byte.
    pub start: usize,
    /// The number of its bytes.
    pub size: usize,
    crc: u32,
}

/// An archive whose entries all lie inside the file, apart from each other.
#[derive(Debug)]
pub(super) struct Archive<'a> {
    bytes: &'a [u8],
    entries: BTreeMap<&'a str, Entry>,
}

/// The central directory's place and size.
struct Directory {
    offset: usize,
    size: usize,
    count: u64,
}

impl<'a> Archive<'a> {
    /// Reads the directory and compares it with the header in front of each entry.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, String> {
        let directory = directory(bytes)?;
        let end = directory.offset + directory.size;
        let mut at = directory.offset;
        let mut archive = Self { bytes, entries: BTreeMap::new() };
        let mut ranges = Vec::new();
        for i in 0..directory.count {
            let Some((central, next)) = Central::read(bytes, at, end) else {
                return Err(format!("the zip directory is damaged at entry {i} (byte {at}); {DAMAGED}"));
            };
            at = next;
            let name = std::str::from_utf8(central.name).map_err(|_| {
                format!("the zip entry {} is not named in UTF-8", quoted(&central.name.escape_ascii().to_string()))
            })?;
            let shown = quoted(name);
            if central.method != 0 || central.stored != central.size || central.flags & 1 != 0 {
                return Err(format!(
                    "the zip entry {shown} is compressed or encrypted (method {}); torch stores entries as they are: save the file again \
                     with torch.save",
                    central.method
                ));
            }
            let start = central.check_local(bytes).map_err(|e| format!("the zip entry {shown}: {e}; {DAMAGED}"))?;
            let finish = start.checked_add(central.size).filter(|&e| e <= directory.offset);
            let finish = finish.ok_or_else(|| {
                format!("the zip entry {shown} of {} bytes reaches past the archive's data; {DAMAGED}", central.size)
            })?;
            ranges.push((central.local, finish, name));
            let entry = Entry { start, size: central.size, crc: central.crc };
            if archive.entries.insert(name, entry).is_some() {
                return Err(format!("the zip entry {shown} is there twice"));
            }
        }
        if at != end {
            let count = directory.count;
            return Err(format!("the zip directory has {} bytes behind its {count} entries; {DAMAGED}", end - at));
        }
        ranges.sort_unstable();
        if let Some(pair) = ranges.windows(2).find(|p| p[1].0 < p[0].1) {
            return Err(format!("the zip entries {} and {} overlap; {DAMAGED}", quoted(pair[0].2), quoted(pair[1].2)));
        }
        Ok(archive)
    }

    /// The names of all entries.
    pub fn names(&self) -> impl Iterator<Item = &'a str> {
        self.entries.keys().copied()
    }

    /// The entry of that name.
    pub fn get(&self, name: &str) -> Option<Entry> {
        self.entries.get(name).copied()
    }

    /// The bytes of an entry.
    pub fn bytes(&self, entry: Entry) -> &'a [u8] {
        self.bytes.get(entry.start..entry.start + entry.size).unwrap_or_default()
    }

    /// Compares an entry's checksum, for which all of it is read.
    pub fn verify(&self, name: &str, entry: Entry) -> Result<(), String> {
        let found = crc32fast::hash(self.bytes(entry));
        if found == entry.crc {
            return Ok(());
        }
        let expected = entry.crc;
        Err(format!("the zip entry {} has CRC {found:08x}, expected {expected:08x}; {DAMAGED}", quoted(name)))
    }
}

/// One entry of the directory.
struct Central<'a> {
    name: &'a [u8],
    flags: u16,
    method: u16,
    crc: u32,
    stored: usize,
    size: usize,
    local: usize,
}

impl<'a> Central<'a> {
    /// The entry at `at` and the offset of the next one; `None` where it is not sound or goes past `end`.
    fn read(bytes: &'a [u8], at: usize, end: usize) -> Option<(Self, usize)> {
        let head = bytes.get(..end)?.get(at..)?;
        if !head.starts_with(CENTRAL) {
            return None;
        }
        let (names, extras, comments) = (u16_at(head, 28)?, u16_at(head, 30)?, u16_at(head, 32)?);
        let rest = head.get(46..)?;
        let name = rest.get(..names.into())?;
        let extra = rest.get(names.into()..)?.get(..extras.into())?;
        let mut size = u64::from(u32_at(head, 24)?);
        let mut stored = u64::from(u32_at(head, 20)?);
        let mut local = u64::from(u32_at(head, 42)?);
        wide(extra, &mut [&mut size, &mut stored, &mut local])?;
        let central = Self {
            name,
            flags: u16_at(head, 8)?,
            method: u16_at(head, 10)?,
            crc: u32_at(head, 16)?,
            stored: usize::try_from(stored).ok()?,
            size: usize::try_from(size).ok()?,
            local: usize::try_from(local).ok()?,
        };
        let length = 46 + usize::from(names) + usize::from(extras) + usize::from(comments);
        (length <= head.len()).then_some((central, at + length))
    }

    /// The offset of the data, once the local header says the same as the directory.
    fn check_local(&self, bytes: &[u8]) -> Result<usize, String> {
        let outside = || "its local header is not where the directory says".to_owned();
        let head = bytes.get(self.local..).filter(|h| h.starts_with(LOCAL)).ok_or_else(outside)?;
        let field = |at| u16_at(head, at).ok_or_else(outside);
        let (flags, method, names, extras) = (field(6)?, field(8)?, usize::from(field(26)?), usize::from(field(28)?));
        let name = head.get(30..30 + names).ok_or_else(outside)?;
        if name != self.name {
            return Err(format!("its local name is {}", quoted(&name.escape_ascii().to_string())));
        }
        if method != self.method {
            return Err(format!("its local method is {method}"));
        }
        let extra = head.get(30 + names..30 + names + extras).ok_or_else(outside)?;
        let word = |at| u32_at(head, at).ok_or_else(outside);
        let (crc, mut stored, mut size) = (word(14)?, u64::from(word(18)?), u64::from(word(22)?));
        wide(extra, &mut [&mut size, &mut stored]).ok_or_else(outside)?;
        // Flag 3: sizes and checksum follow the data, so the header may leave them 0; torch does so.
        let later = flags & 8 != 0 && crc == 0 && size == 0 && stored == 0;
        if !later && (size, stored) != (self.size as u64, self.stored as u64) {
            return Err(format!("its local size is {size}, the directory says {}", self.size));
        }
        if !later && crc != self.crc {
            return Err(format!("its local CRC is {crc:08x}, the directory says {:08x}", self.crc));
        }
        Ok(self.local + 30 + names + extras)
    }
}

/// Finds the directory through the record at the end of the file.
fn directory(bytes: &[u8]) -> Result<Directory, String> {
    let from = bytes.len().saturating_sub(22 + usize::from(u16::MAX));
    let ends = |at: &usize| {
        let head = &bytes[*at..];
        head.starts_with(END) && u16_at(head, 20).is_some_and(|comment| 22 + usize::from(comment) == head.len())
    };
    let Some(at) = (from..bytes.len().saturating_sub(21)).rev().find(ends) else {
        return Err(format!("truncated: no zip directory at the end of the file ({} bytes); {DAMAGED}", bytes.len()));
    };
    read_directory(bytes, at).ok_or_else(|| format!("the zip directory's place, at byte {at}, is not sound; {DAMAGED}"))
}

fn read_directory(bytes: &[u8], at: usize) -> Option<Directory> {
    let head = &bytes[at..];
    let small = [u64::from(u16_at(head, 10)?), u64::from(u32_at(head, 12)?), u64::from(u32_at(head, 16)?)];
    let locator = at.checked_sub(20).map(|at| &bytes[at..]).filter(|l| l.starts_with(LOCATOR_64));
    let (values, limit) = if let Some(locator) = locator {
        let end = usize::try_from(u64_at(locator, 8)?).ok()?;
        let record = bytes.get(end..).filter(|r| r.starts_with(END_64))?;
        (&[u64_at(record, 32)?, u64_at(record, 40)?, u64_at(record, 48)?], end)
    } else {
        (&small, at)
    };
    // The short record repeats the long one's values where they fit.
    let fits = |i: usize, full: u64| small[i] == values[i] || small[i] == full;
    if !fits(0, u16::MAX.into()) || !fits(1, u32::MAX.into()) || !fits(2, u32::MAX.into()) {
        return None;
    }
    let (size, offset) = (usize::try_from(values[1]).ok()?, usize::try_from(values[2]).ok()?);
    (offset.checked_add(size)? <= limit).then_some(Directory { offset, size, count: values[0] })
}

/// Replaces the fields that are all ones by those of the zip64 extra field, in its order; `None` where it lacks them.
fn wide(extra: &[u8], fields: &mut [&mut u64]) -> Option<()> {
    let mut missing = fields.iter_mut().filter(|f| ***f == u64::from(u32::MAX)).peekable();
    if missing.peek().is_none() {
        return Some(());
    }
    let mut rest = extra;
    loop {
        let (id, length) = (u16_at(rest, 0)?, usize::from(u16_at(rest, 2)?));
        let body = rest.get(4..4 + length)?;
        if id == 1 {
            return missing.enumerate().try_for_each(|(i, field)| {
                **field = u64_at(body, 8 * i)?;
                Some(())
            });
        }
        rest = &rest[4 + length..];
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}
