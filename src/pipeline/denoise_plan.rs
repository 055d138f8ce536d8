//! The shape of a denoiser and its conditioner.

use crate::device::LoopSpec;
use crate::models::unet::{BranchShape, DenoiserInterface, UnetConfig, UnetShape};

/// The side that makes the steps of a scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Placement {
    /// By the device's own denoise loop.
    Device,
    /// By the host's, over the device's executables: where the device has no memory for the fresh noise of all steps.
    Host,
}

/// The plan by which conditioner and denoise loop are compiled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DenoisePlan {
    pub(super) shape: UnetShape,
    /// The most steps.
    pub(super) max_steps: usize,
    /// The adapters in use.
    pub(super) adapters: Vec<usize>,
    /// Hidden states of an image, where an adapter in use takes them; else 0.
    pub(super) positions: usize,
}

impl DenoisePlan {
    /// Whether executables compiled for this plan can run another one.
    pub(super) fn covers(&self, other: &Self) -> bool {
        let (a, b) = (&self.shape, &other.shape);
        let branches = |(a, b): (&BranchShape, &BranchShape)| {
            (a.adapter, a.masked) == (b.adapter, b.masked) && a.tokens >= b.tokens
        };
        let same = (a.batch, a.height, a.width, &self.adapters, self.positions)
            == (b.batch, b.height, b.width, &other.adapters, other.positions);
        same && a.tokens >= b.tokens
            && a.branches.len() == b.branches.len()
            && a.branches.iter().zip(&b.branches).all(branches)
            && self.max_steps >= other.max_steps
    }

    /// The denoise loop; fresh noise of all steps may take `max_noise_bytes`.
    pub(super) fn loop_spec(&self, config: &UnetConfig, max_noise_bytes: u64) -> LoopSpec {
        let bytes = self.max_steps * self.shape.height * self.shape.width * config.out_channels * 4;
        let varying = DenoiserInterface::new(config, &self.shape).varying();
        LoopSpec { max_steps: self.max_steps, varying, noise: bytes as u64 <= max_noise_bytes }
    }
}
