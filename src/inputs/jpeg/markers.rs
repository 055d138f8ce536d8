//! Markers: segments between and before the scans.

use super::fault::{Fault, Result};
use super::frame::Frame;
use super::tables::{self, HuffmanCode, ZIGZAG};

/// The bytes of the file, and the settings of the segments read so far.
pub(super) struct Markers<'a> {
    bytes: &'a [u8],
    at: usize,
    /// A marker that was read and not used yet.
    pub pending: Option<u8>,
    pub frame: Option<Frame>,
    pub segments: Segments,
    pub quantization: [Option<[u16; 64]>; 4],
    pub dc: [Option<HuffmanCode>; 4],
    pub ac: [Option<HuffmanCode>; 4],
    /// The number of units between restart markers; 0 for none.
    pub restart: usize,
    pub scans: usize,
}

/// The facts in application segments.
#[derive(Default)]
pub(super) struct Segments {
    pub exif: Vec<u8>,
    pub xmp: Vec<u8>,
    /// The first part of the colour profile, with its description; all of it in practice.
    pub profile: Vec<u8>,
    pub jfif: bool,
    /// The transform in Adobe's segment.
    pub adobe: Option<u8>,
}

/// The header of a scan.
pub(super) struct Scan {
    pub components: Vec<ScanComponent>,
    /// The first and the last coefficient.
    pub band: (usize, usize),
    /// The bits missing before and after.
    pub high: u32,
    pub low: u32,
}

/// One component of a scan: its index in the frame and its tables.
#[derive(Clone, Copy)]
pub(super) struct ScanComponent {
    pub index: usize,
    pub dc: usize,
    pub ac: usize,
}

/// The end of a run of segments.
pub(super) enum Event {
    Scan(Scan),
    End,
}

impl<'a> Markers<'a> {
    /// Starts after the file's first marker.
    pub(super) fn new(bytes: &'a [u8]) -> Result<Self> {
        if bytes.get(..2) != Some(&[0xff, 0xd8]) {
            return Err(Fault::refused("it does not begin as a JPEG file"));
        }
        let none = || [const { None }; 4];
        Ok(Self {
            bytes,
            at: 2,
            pending: None,
            frame: None,
            segments: Segments::default(),
            quantization: [None; 4],
            dc: none(),
            ac: none(),
            restart: 0,
            scans: 0,
        })
    }

    /// Takes one byte.
    pub(super) fn byte(&mut self) -> Result<u8> {
        let byte = *self.bytes.get(self.at).ok_or(Fault::CutShort)?;
        self.at += 1;
        Ok(byte)
    }

    /// Takes the data of a segment.
    fn segment(&mut self) -> Result<&'a [u8]> {
        let length = usize::from(self.byte()?) << 8 | usize::from(self.byte()?);
        let start = self.at;
        self.at = start + length.saturating_sub(2);
        self.bytes.get(start..self.at).ok_or(Fault::CutShort)
    }

    /// Skips to the next marker, which is pending then.
    pub(super) fn seek(&mut self) -> Result<u8> {
        loop {
            while self.byte()? != 0xff {}
            let mut code = 0xff;
            while code == 0xff {
                code = self.byte()?;
            }
            if code != 0 {
                self.pending = Some(code);
                return Ok(code);
            }
        }
    }

    /// Reads segments up to the data of a scan or the end of the image.
    pub(super) fn next(&mut self) -> Result<Event> {
        loop {
            let marker = match self.pending.take() {
                Some(marker) => marker,
                None => self.seek()?,
            };
            self.pending = None;
            match marker {
                0xd9 => return Ok(Event::End),
                0xda => {
                    let data = self.segment()?;
                    return self.scan(data).map(Event::Scan);
                }
                0x01 | 0xd0..=0xd7 => {}
                0xc4 => {
                    let data = self.segment()?;
                    self.huffman(data)?;
                }
                0xc0..=0xcb | 0xcd..=0xcf => self.header(marker)?,
                0xdb => {
                    let data = self.segment()?;
                    self.steps(data)?;
                }
                0xdd => match *self.segment()? {
                    [high, low] => self.restart = usize::from(high) << 8 | usize::from(low),
                    _ => return Err(Fault::refused("its restart interval has a wrong length")),
                },
                0xe0..=0xef => {
                    let data = self.segment()?;
                    if self.scans == 0 {
                        self.segments.read(marker, data);
                    }
                }
                0xcc | 0xdc | 0xfe => drop(self.segment()?),
                0xd8 => return Err(Fault::refused("a second file begins within it")),
                0xde | 0xdf => return Err(hierarchical()),
                _ => return Err(Fault::refused(format!("its data are damaged (there is no marker {marker:#04x})"))),
            }
        }
    }

    /// Sets the codes of the standard where the file has none, as frames of Motion JPEG.
    pub(super) fn add_standard_codes(&mut self) {
        for (slots, codes) in [(&mut self.dc, tables::standard_dc()), (&mut self.ac, tables::standard_ac())] {
            slots.iter_mut().zip(codes).for_each(|(slot, code)| {
                slot.get_or_insert(code);
            });
        }
    }

    fn header(&mut self, marker: u8) -> Result<()> {
        match marker {
            0xc0..=0xc2 => {}
            0xc3 | 0xcb => return Err(Fault::refused("lossless JPEG is not read; save it as usual")),
            0xc9 | 0xca | 0xcc => {
                return Err(Fault::refused("arithmetic coding is not read; save it with Huffman codes"));
            }
            _ => return Err(hierarchical()),
        }
        if self.frame.is_some() {
            return Err(Fault::refused("it has two headers"));
        }
        self.frame = Some(Frame::new(self.segment()?, marker == 0xc2)?);
        Ok(())
    }

    fn scan(&mut self, data: &[u8]) -> Result<Scan> {
        let Some(frame) = &self.frame else {
            return Err(Fault::refused("its image data come before their header"));
        };
        let bad = || Fault::refused("the header of a scan is damaged");
        let [count, parts @ ..] = data else { return Err(bad()) };
        let (components, [start, end, bits]) = parts.split_last_chunk::<3>().ok_or_else(bad)?;
        if !(1..=4).contains(count) || components.len() != 2 * usize::from(*count) {
            return Err(bad());
        }
        let mut scan = Scan {
            components: Vec::new(),
            band: (usize::from(*start), usize::from(*end)),
            high: u32::from(bits >> 4),
            low: u32::from(bits & 15),
        };
        for &[id, tables] in components.as_chunks::<2>().0 {
            // As in libjpeg: components stand in the order of the frame.
            let mut rest = frame.components.iter().enumerate().skip(scan.components.len());
            let index = rest.find(|(_, c)| c.id == id).ok_or_else(bad)?.0;
            if scan.components.iter().any(|c| c.index == index) {
                return Err(bad());
            }
            scan.components.push(ScanComponent { index, dc: usize::from(tables >> 4), ac: usize::from(tables & 15) });
        }
        let units: usize =
            scan.components.iter().map(|c| frame.components[c.index].h * frame.components[c.index].v).sum();
        if scan.components.len() > 1 && units > 10 {
            return Err(Fault::refused("a unit of its data has more than 10 blocks"));
        }
        self.scans += 1;
        Ok(scan)
    }

    fn huffman(&mut self, mut data: &[u8]) -> Result<()> {
        let bad = || Fault::refused("its Huffman tables are damaged");
        while data.len() > 16 {
            let (head, rest) = data.split_first_chunk::<17>().ok_or_else(bad)?;
            let counts: [u8; 16] = std::array::from_fn(|i| head[i + 1]);
            let total: usize = counts.iter().map(|&n| usize::from(n)).sum();
            if total > 256 || total > rest.len() {
                return Err(bad());
            }
            let tables = if head[0] & 0x10 == 0 { &mut self.dc } else { &mut self.ac };
            let slot = tables.get_mut(usize::from(head[0] & !0x10)).ok_or_else(bad)?;
            *slot = Some(HuffmanCode { counts, symbols: rest[..total].to_vec() });
            data = &rest[total..];
        }
        if data.is_empty() { Ok(()) } else { Err(bad()) }
    }

    fn steps(&mut self, mut data: &[u8]) -> Result<()> {
        let bad = || Fault::refused("its quantization tables are damaged");
        while let [head, rest @ ..] = data {
            let bytes = if head >> 4 == 0 { 1 } else { 2 };
            let slot = self.quantization.get_mut(usize::from(head & 15)).ok_or_else(bad)?;
            let values = rest.get(..64 * bytes).ok_or_else(bad)?;
            let mut table = [0; 64];
            for (value, at) in values.chunks_exact(bytes).zip(ZIGZAG) {
                table[usize::from(at)] = value.iter().fold(0, |sum, &byte| sum << 8 | u16::from(byte));
            }
            *slot = Some(table);
            data = &rest[64 * bytes..];
        }
        Ok(())
    }
}

fn hierarchical() -> Fault {
    Fault::refused("hierarchical JPEG is not read; save it as usual")
}

impl Segments {
    fn read(&mut self, marker: u8, data: &[u8]) {
        match marker {
            0xe0 if data.len() >= 14 && data.starts_with(b"JFIF\0") => self.jfif = true,
            0xe1 => {
                if let Some(exif) = data.strip_prefix(b"Exif\0\0") {
                    self.exif.extend_from_slice(exif);
                } else if let Some(xmp) = data.strip_prefix(b"http://ns.adobe.com/xap/1.0/\0") {
                    self.xmp = xmp.to_vec();
                }
            }
            0xe2 => {
                if let Some([1, _, profile @ ..]) = data.strip_prefix(b"ICC_PROFILE\0") {
                    self.profile = profile.to_vec();
                }
            }
            0xee if data.len() >= 12 && data.starts_with(b"Adobe") => self.adobe = Some(data[11]),
            _ => {}
        }
    }
}
