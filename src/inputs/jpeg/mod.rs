//! JPEG files, decoded to the byte as PIL does (libjpeg-turbo with its defaults).
//!
//! Baseline, extended and progressive files of 8 bits with Huffman codes. Values follow libjpeg-turbo's x86 routines:
//! the accurate integer inverse transform, triangle filters for chroma of half size, 16-bit colour tables, smoothing of
//! progressive files whose last scans are missing. Damage within the data is handled as there: zeros up to the next
//! restart marker, and no error.

mod blocks;
mod color;
mod fault;
mod frame;
mod huffman;
mod idct;
mod markers;
mod scan;
mod smoothing;
mod tables;
mod upsample;

use blocks::Blocks;
pub(super) use fault::Fault;
use fault::Result;
use frame::Frame;
use markers::{Event, Markers, Scan};

/// A file whose header has been read, up to the first scan.
pub(super) struct Decoder<'a> {
    markers: Markers<'a>,
    frame: Frame,
    scan: Scan,
}

impl<'a> Decoder<'a> {
    /// Reads the header.
    pub(super) fn new(bytes: &'a [u8]) -> Result<Self> {
        let mut markers = Markers::new(bytes)?;
        let Event::Scan(scan) = markers.next()? else {
            return Err(Fault::refused("it holds no image, only tables"));
        };
        let frame = markers.frame.clone().ok_or_else(|| Fault::refused("its image data come before their header"))?;
        Ok(Self { markers, frame, scan })
    }

    /// The width and the height in pixels.
    pub(super) fn dimensions(&self) -> (u32, u32) {
        (self.frame.width as u32, self.frame.height as u32)
    }

    /// The EXIF data, of all segments joined.
    pub(super) fn exif(&self) -> &[u8] {
        &self.markers.segments.exif
    }

    /// The XMP text, of the last segment that has one.
    pub(super) fn xmp(&self) -> &[u8] {
        &self.markers.segments.xmp
    }

    /// The beginning of the embedded colour profile; empty for none.
    pub(super) fn profile(&self) -> &[u8] {
        &self.markers.segments.profile
    }

    /// Whether the components are inks.
    pub(super) fn is_cmyk(&self) -> bool {
        self.frame.components.len() == 4
    }

    /// Decodes the pixels to RGB. Tells too whether the data were damaged.
    pub(super) fn decode(mut self) -> Result<(Vec<u8>, bool)> {
        let several = self.frame.progressive || self.scan.components.len() < self.frame.components.len();
        if !self.frame.progressive {
            self.markers.add_standard_codes();
        }
        let mut blocks = Blocks::new(&self.frame)?;
        scan::decode(&mut self.markers, &mut self.frame, &mut blocks, &self.scan)?;
        loop {
            match self.markers.next() {
                Ok(Event::End) => break,
                Ok(Event::Scan(scan)) if several => {
                    scan::decode(&mut self.markers, &mut self.frame, &mut blocks, &scan)?;
                }
                Ok(Event::Scan(_)) => return Err(Fault::refused("it has more data than its header says")),
                // All pixels are there: the end marker may miss, as for PIL.
                Err(Fault::CutShort) if !several => break,
                Err(fault) => return Err(fault),
            }
        }
        let damaged = blocks.damaged;
        let planes = blocks.into_planes(&self.frame, self.markers.scans)?;
        Ok((color::to_rgb(&self.frame, &self.markers.segments, &planes)?, damaged))
    }
}
