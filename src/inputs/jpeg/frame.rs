//! The frame: sizes, components, sampling factors.

use super::fault::{Fault, Result};

/// The greatest side that libjpeg takes.
const MAX_SIDE: usize = 65_500;

/// The header of the image.
#[derive(Clone)]
pub(super) struct Frame {
    pub width: usize,
    pub height: usize,
    pub progressive: bool,
    pub components: Vec<Component>,
    /// The greatest sampling factors.
    pub max: (usize, usize),
    /// The number of interleaved units in a row and in a column.
    pub mcus: (usize, usize),
}

/// One component: luma, a colour difference, an ink.
#[derive(Clone)]
pub(super) struct Component {
    pub id: u8,
    pub h: usize,
    pub v: usize,
    pub quantization: usize,
    /// The table, from the first scan that has the component on.
    pub steps: Option<[u16; 64]>,
    /// The blocks with pixels of the image, across and down.
    pub blocks: (usize, usize),
    /// The samples with pixels of the image, across and down.
    pub samples: (usize, usize),
    /// The precision of each coefficient, in zigzag order: -1 not seen, else the bits that are missing; now, and before
    /// the last scan.
    pub missing_bits: [[i8; 64]; 2],
}

impl Frame {
    /// Reads the data of a frame header.
    pub(super) fn new(data: &[u8], progressive: bool) -> Result<Self> {
        let [bits, h1, h0, w1, w0, count, parts @ ..] = data else {
            return Err(Fault::refused("its header is too short"));
        };
        let (width, height) = (usize::from(*w1) << 8 | usize::from(*w0), usize::from(*h1) << 8 | usize::from(*h0));
        if *bits != 8 {
            return Err(Fault::refused(format!("samples of {bits} bits are not read; save it with 8 bits")));
        }
        if height == 0 {
            return Err(Fault::refused("its height is told after the data (DNL), which is not read; save it again"));
        }
        if width == 0 || width > MAX_SIDE || height > MAX_SIDE {
            return Err(Fault::refused(format!("its size is {width}x{height}; sides of 1 to {MAX_SIDE} are read")));
        }
        if !matches!(count, 1 | 3 | 4) {
            return Err(Fault::refused(format!("it has {count} components; 1, 3 and 4 are read")));
        }
        if parts.len() != 3 * usize::from(*count) {
            return Err(Fault::refused("its header has a wrong length"));
        }
        let mut components: Vec<_> = parts.as_chunks::<3>().0.iter().map(Component::new).collect();
        if components.iter().any(|c| !(1..=4).contains(&c.h) || !(1..=4).contains(&c.v)) {
            return Err(Fault::refused("its sampling factors are not from 1 to 4"));
        }
        let max = components.iter().fold((1, 1), |(h, v), c| (h.max(c.h), v.max(c.v)));
        if components.iter().any(|c| max.0 % c.h != 0 || max.1 % c.v != 0) {
            return Err(Fault::refused("its chroma has a fraction of the pixels that is not read; save it again"));
        }
        for c in &mut components {
            c.samples = ((width * c.h).div_ceil(max.0), (height * c.v).div_ceil(max.1));
            c.blocks = (c.samples.0.div_ceil(8), c.samples.1.div_ceil(8));
        }
        let mcus = (width.div_ceil(8 * max.0), height.div_ceil(8 * max.1));
        Ok(Self { width, height, progressive, components, max, mcus })
    }
}

impl Component {
    fn new(&[id, factors, quantization]: &[u8; 3]) -> Self {
        Self {
            id,
            h: usize::from(factors >> 4),
            v: usize::from(factors & 15),
            quantization: usize::from(quantization),
            steps: None,
            blocks: (0, 0),
            samples: (0, 0),
            missing_bits: [[-1; 64]; 2],
        }
    }
}
