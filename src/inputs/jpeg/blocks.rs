//! The coefficients of all blocks, and the samples made of them.

use super::fault::{Result, zeros};
use super::frame::Frame;
use super::idct;
use super::smoothing::Smoothing;

/// The coefficients of each component, in natural order, padded to whole interleaved units.
pub(super) struct Blocks {
    pub components: Vec<Vec<[i16; 64]>>,
    /// The last row of units that was there when the last scan was read.
    pub last_good: usize,
    pub damaged: bool,
}

/// The samples of one component.
pub(super) struct Plane {
    pub samples: Vec<u8>,
    pub stride: usize,
}

impl Plane {
    /// The row `y` up to the stride.
    pub(super) fn row(&self, y: usize) -> &[u8] {
        &self.samples[y * self.stride..][..self.stride]
    }
}

impl Blocks {
    /// Allocates zeros.
    pub(super) fn new(frame: &Frame) -> Result<Self> {
        let blocks = |c: &super::frame::Component| frame.mcus.0 * c.h * frame.mcus.1 * c.v;
        let components = frame.components.iter().map(|c| zeros(blocks(c), [0; 64])).collect::<Result<_>>()?;
        Ok(Self { components, last_good: 0, damaged: false })
    }

    /// Computes the samples. The coefficients are dropped one component after the other.
    pub(super) fn into_planes(self, frame: &Frame, scans: usize) -> Result<Vec<Plane>> {
        let smoothing = Smoothing::new(frame, self.last_good, scans);
        let mut planes = Vec::new();
        for (component, blocks) in frame.components.iter().zip(self.components) {
            let columns = frame.mcus.0 * component.h;
            let stride = component.blocks.0 * 8;
            let mut plane = Plane { samples: zeros(stride * component.blocks.1 * 8, 0)?, stride };
            // A component without a scan is gray.
            let steps = component.steps.unwrap_or([0; 64]);
            for y in 0..component.blocks.1 {
                let rows = &mut plane.samples[y * 8 * stride..][..8 * stride];
                for x in 0..component.blocks.0 {
                    let block = &blocks[y * columns + x];
                    match &smoothing {
                        None => idct::idct(block, &steps, &mut rows[8 * x..], stride),
                        Some(smoothing) => {
                            let block = smoothing.block(component, &steps, &blocks, columns, (x, y));
                            idct::idct(&block, &steps, &mut rows[8 * x..], stride);
                        }
                    }
                }
            }
            planes.push(plane);
        }
        Ok(planes)
    }
}
