//! Weights in int8, in the panels that products take: quantized once into a file of the user's cache folder, which is mapped; or, where
//! there is none, panel by panel as they are used.
//!
//! A panel is rows of 32 words: the scales of its columns (f32); then for each tap the words with which sums begin, and the weights, four
//! input channels in a word. A file is a head of 64 bytes (mark, length of the rest and its CRC-32; numbers little-endian) and all panels
//! of a layer one after the other. Its name is a hash of the weights and of this layout, so it never has to be told that they changed.

use super::int8::{TapPanel, magnitude, quantize, scale, words};
use super::microkernel::NR;
use super::pack::{Panel, Place, spread};
use super::pool::Pool;
use crate::atomic_file::AtomicFile;
use crate::weights::{MappedBytes, Weight};
use bytemuck::{cast_slice, cast_slice_mut};
use std::collections::HashMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

const MARK: &[u8; 16] = b"braid int8 v1\n\0\0";
const HEAD: usize = 64;
/// Elements of a row that are quantized at a time: those of 32 rows stay in the first-level cache.
const CHUNK: usize = 576;
/// The widest kernel.
pub(crate) const MAX_TAPS: usize = 9;
/// Bytes that are hashed at a time.
const HASHED: usize = 1 << 20;

/// The sizes of a layer's panels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct PanelLayout {
    /// Input channels.
    pub(crate) channels: usize,
    /// Places of the kernel.
    pub(crate) taps: usize,
}

impl PanelLayout {
    /// Words of a panel.
    pub(crate) fn words(self) -> usize {
        NR * (1 + self.taps * (1 + words(self.channels)))
    }

    /// The scales of a panel's columns.
    pub(crate) fn scales(panel: &[i32]) -> &[f32; NR] {
        let (scales, _) = panel.split_at(NR);
        cast_slice::<i32, f32>(scales).first_chunk().unwrap_or(&[f32::NAN; NR])
    }

    /// A panel's part for a tap.
    pub(crate) fn tap(self, panel: &[i32], tap: usize) -> TapPanel {
        let rows = &panel[NR * (1 + tap * (1 + words(self.channels)))..];
        TapPanel { start: rows.as_ptr(), words: rows[NR..].as_ptr() }
    }

    /// The scales of panel `p`'s columns, from its weights.
    fn column_scales(self, panel: &Panel, p: usize) -> [f32; NR] {
        let mut row = [0f32; CHUNK];
        std::array::from_fn(|j| {
            let Some(at) = panel.row(p, j) else { return 0.0 };
            let magnitude = self.chunks().fold(0.0, |most, (start, len)| {
                let row = &mut row[..len * self.taps];
                panel.widen(at, start, row);
                magnitude(row, most)
            });
            scale(magnitude).0
        })
    }

    /// Starts and lengths of the runs of channels that are quantized at a time; no word lies in two of them.
    fn chunks(self) -> impl Iterator<Item = (usize, usize)> {
        let step = CHUNK / self.taps / 4 * 4;
        (0..self.channels).step_by(step).map(move |start| (start, step.min(self.channels - start)))
    }

    /// Writes panel `p` with columns of these scales.
    fn write(self, panel: &Panel, p: usize, scales: &[f32; NR], out: &mut [i32]) {
        let (head, out) = out.split_at_mut(NR);
        head.copy_from_slice(cast_slice(scales));
        let (taps, of) = (self.taps, 1 + words(self.channels));
        let (mut row, mut bytes, mut lanes) = ([0f32; CHUNK], [0u8; CHUNK], [0u32; NR * CHUNK / 4]);
        let mut sums = [[0i32; NR]; MAX_TAPS];
        for (start, len) in self.chunks() {
            let width = words(len) * taps;
            for (j, lane) in lanes.chunks_exact_mut(width).take(NR).enumerate() {
                let bytes = &mut bytes[..width * 4];
                bytes[len * taps..].fill(0);
                match panel.row(p, j).filter(|_| scales[j] != 0.0) {
                    Some(at) => {
                        let row = &mut row[..len * taps];
                        panel.widen(at, start, row);
                        quantize(row, 1.0 / scales[j], 0, &mut bytes[..len * taps]);
                    }
                    None => bytes.fill(0),
                }
                for (w, four) in bytes.chunks_exact(4 * taps).enumerate() {
                    for t in 0..taps {
                        let word: [u8; 4] = std::array::from_fn(|k| four[k * taps + t]);
                        sums[t][j] += word.iter().map(|b| i32::from(*b as i8)).sum::<i32>();
                        lane[w * taps + t] = u32::from_le_bytes(word);
                    }
                }
            }
            let place = Place { first: 1 + start / 4, count: words(len), of };
            spread(cast_slice(&lanes[..NR * width]), width, taps, place, cast_slice_mut(out));
        }
        for (t, sums) in sums[..taps].iter().enumerate() {
            out[t * of * NR..][..NR].iter_mut().zip(sums).for_each(|(o, sum)| *o = -128 * sum);
        }
    }
}

/// The weights of a layer.
pub(crate) struct Int8Panels {
    layout: PanelLayout,
    source: Source,
    /// They are what the panels were made of; held so that no other layer's can come to lie in their place in memory.
    _weights: Vec<Weight>,
}

enum Source {
    /// All panels.
    File(MappedBytes),
    /// The scales of all columns; panels are written when they are used.
    Scales(Vec<[f32; NR]>),
}

impl Int8Panels {
    pub(crate) fn layout(&self) -> PanelLayout {
        self.layout
    }

    /// Whether panels are written when they are used.
    pub(crate) fn are_written(&self) -> bool {
        matches!(self.source, Source::Scales(_))
    }

    /// Panel `p` of `panel`, whose panels these are; `buffer`, of as many words as a panel, is used where it has to be written.
    pub(crate) fn get<'a>(&'a self, panel: &Panel, p: usize, buffer: &'a mut [i32]) -> &'a [i32] {
        let len = self.layout.words();
        match &self.source {
            Source::File(bytes) => &cast_slice(&bytes.bytes()[HEAD..])[p * len..][..len],
            Source::Scales(scales) => {
                self.layout.write(panel, p, &scales[p], buffer);
                buffer
            }
        }
    }
}

/// The weights of a layer by their places in memory: address and offset, shape and strides of each part; then the way they are laid out.
type LayerKey = (Vec<(usize, usize, Vec<usize>, Vec<usize>)>, PanelLayout, bool);

/// The quantized weights of a device.
pub(crate) struct Int8Weights {
    folder: Option<PathBuf>,
    layers: Mutex<HashMap<LayerKey, Arc<Int8Panels>>>,
    /// Whether a file could not be written; no other is tried then.
    refused: AtomicBool,
}

impl Int8Weights {
    /// Those of a folder, or of none.
    pub(crate) fn at(folder: Option<PathBuf>) -> Self {
        Self { folder, layers: Mutex::default(), refused: AtomicBool::new(false) }
    }

    /// The panels of `panel`, made of `parts`: from memory, from the cache's file, or quantized on the threads of `pool`.
    pub(crate) fn panels(
        &self,
        panel: &Panel,
        parts: Vec<Weight>,
        layout: PanelLayout,
        pool: &Pool,
    ) -> Arc<Int8Panels> {
        let place = |weight: &Weight| {
            let (storage, offset) = weight.location();
            (Arc::as_ptr(storage).addr(), offset, weight.shape().to_vec(), weight.strides().to_vec())
        };
        let key = (parts.iter().map(place).collect(), layout, panel.has_halves());
        let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        let make =
            || Arc::new(Int8Panels { layout, source: self.source(panel, &parts, layout, pool), _weights: parts });
        layers.entry(key).or_insert_with(make).clone()
    }

    /// The number of layers.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.layers.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn source(&self, panel: &Panel, parts: &[Weight], layout: PanelLayout, pool: &Pool) -> Source {
        let Some(folder) = &self.folder else { return Source::Scales(scales(panel, layout, pool)) };
        let path = folder.join(format!("{:032x}", content(parts, layout, panel.has_halves(), pool)));
        let len = panel.count() * layout.words() * 4;
        if let Some(bytes) = open(&path, len) {
            return Source::File(bytes);
        }
        let scales = scales(panel, layout, pool);
        if self.refused.load(Ordering::Relaxed) {
            return Source::Scales(scales);
        }
        let written = store(&path, &written(panel, layout, &scales, pool)).map(|()| open(&path, len));
        if let Ok(Some(bytes)) = written {
            return Source::File(bytes);
        }
        let why = written.err().map_or("it does not hold what was written".into(), |error| error.to_string());
        self.refused.store(true, Ordering::Relaxed);
        tracing::warn!(file = %path.display(), %why, "quantized weights could not be stored: every step quantizes them anew");
        Source::Scales(scales)
    }
}

fn scales(panel: &Panel, layout: PanelLayout, pool: &Pool) -> Vec<[f32; NR]> {
    let mut scales = vec![[0f32; NR]; panel.count()];
    pool.for_each(&mut scales, &|p, scales| *scales = layout.column_scales(panel, p));
    scales
}

/// All panels.
fn written(panel: &Panel, layout: PanelLayout, scales: &[[f32; NR]], pool: &Pool) -> Vec<i32> {
    let mut out = vec![0i32; panel.count() * layout.words()];
    let mut panels: Vec<&mut [i32]> = out.chunks_exact_mut(layout.words()).collect();
    pool.for_each(&mut panels, &|p, out| layout.write(panel, p, &scales[p], out));
    out
}

/// A hash of the weights and of the way they are laid out.
fn content(parts: &[Weight], layout: PanelLayout, halves: bool, pool: &Pool) -> u128 {
    let mut pieces: Vec<(&[u8], u128)> =
        parts.iter().flat_map(|part| part.bytes().chunks(HASHED)).map(|bytes| (bytes, 0)).collect();
    pool.for_each(&mut pieces, &|_, (bytes, hash)| *hash = xxh3_128(bytes));
    let mut all = Xxh3::new();
    all.update(MARK);
    all.update(format!("{layout:?} {halves} {NR} {}", cfg!(target_endian = "big")).as_bytes());
    for part in parts {
        all.update(format!("{:?} {:?} {:?}", part.dtype(), part.shape(), part.strides()).as_bytes());
    }
    pieces.iter().for_each(|(_, hash)| all.update(&hash.to_le_bytes()));
    all.digest128()
}

/// The head of a file with these bytes after it.
fn head(bytes: &[u8]) -> [u8; HEAD] {
    let mut head = [0; HEAD];
    head[..16].copy_from_slice(MARK);
    head[16..24].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
    head[24..28].copy_from_slice(&crc32fast::hash(bytes).to_le_bytes());
    head
}

/// Maps a file of panels; `None` where it is not there, damaged or cut short.
fn open(path: &Path, len: usize) -> Option<MappedBytes> {
    let bytes = MappedBytes::map_cached(path).ok()?;
    let (start, rest) = bytes.bytes().split_at_checked(HEAD)?;
    if rest.len() == len && *start == head(rest) {
        return Some(bytes);
    }
    tracing::warn!(file = %path.display(), "a damaged file of the cache is made again");
    None
}

/// Writes a file of panels whole or not at all.
fn store(path: &Path, panels: &[i32]) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut file = AtomicFile::create(path)?;
    let bytes = cast_slice(panels);
    file.write_all(&head(bytes))?;
    file.write_all(bytes)?;
    // Not forced to disk: a file that a crash leaves damaged is made again.
    file.persist()
}
