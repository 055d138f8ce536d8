//! Whether a request's programs fit the device's memory, known before any of them is loaded.

use super::compile::{self, RequestPlan};
use super::executable_cache::ExecutableCache;
use super::{Pipeline, prepare::WorkloadShape};
use crate::error::{Error, Field, Message, Result};
use std::str::FromStr;

/// What becomes of the encoders' programs once they have done a request's work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EncoderResidency {
    /// Kept where everything fits the device's memory together, else given back.
    #[default]
    Auto,
    /// Kept for the next request.
    Keep,
    /// Given back at once; the next request takes their weights up again.
    Free,
}

impl FromStr for EncoderResidency {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "auto" => Ok(Self::Auto),
            "keep" => Ok(Self::Keep),
            "free" => Ok(Self::Free),
            _ => Err(Error::parameter(Field::Encoders, format!("`{name}` is not known; one of auto, keep, free is"))),
        }
    }
}

/// Bytes of the device's memory that the programs of a request take, weights included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct MemoryEstimate {
    /// The text encoders.
    pub text: u64,
    /// The image encoder.
    pub image: u64,
    /// What does not depend on the latents.
    pub condition: u64,
    /// The UNet.
    pub denoise: u64,
    /// The VAE's decoder.
    pub decode: u64,
    /// What loading any of them takes for a moment.
    pub staging: u64,
}

impl MemoryEstimate {
    /// With all of them there at once.
    pub fn peak_resident(&self) -> u64 {
        self.text + self.image + self.condition + self.denoise + self.decode + self.staging
    }

    /// The most at any time where encoders go after use.
    pub fn peak_offloaded(&self) -> u64 {
        self.decode + self.text.max(self.image).max(self.condition + self.denoise) + self.staging
    }
}

/// Decides about the encoders, and refuses what does not fit before anything is loaded.
pub(super) fn require(
    p: &Pipeline,
    programs: &mut ExecutableCache,
    plan: &RequestPlan,
    shape: &WorkloadShape,
) -> Result<()> {
    if programs.has(p, plan) {
        return Ok(());
    }
    let (Some(estimate), Some(free)) =
        (compile::estimate(p, plan, shape.clip_skip, shape.encodes_images)?, p.device.free_memory()?)
    else {
        programs.free_encoders = p.encoders == EncoderResidency::Free;
        return Ok(());
    };
    // Programs of other shapes make room.
    let have = free.saturating_add(programs.bytes() as u64);
    programs.free_encoders = match p.encoders {
        EncoderResidency::Keep => false,
        EncoderResidency::Free => true,
        EncoderResidency::Auto => estimate.peak_resident() > have,
    };
    let need = if programs.free_encoders { estimate.peak_offloaded() } else { estimate.peak_resident() };
    if need <= have {
        return Ok(());
    }
    let hint = if estimate.peak_offloaded() <= have {
        let would = format!(" would fit, it takes {}", estimate.peak_offloaded());
        Message::default().setting(Field::Encoders, "free").text(would)
    } else {
        smaller(p, plan, shape, have)?
    };
    Err(Error::Memory { stage: "loading", need, have, hint })
}

/// The size that would fit.
fn smaller(p: &Pipeline, plan: &RequestPlan, shape: &WorkloadShape, have: u64) -> Result<Message> {
    let factor = p.models.vae.config.scale_factor();
    for quarters in [3, 2, 1] {
        // Whole multiples of 64 pixels where there are any.
        let unit = if plan.shape.height.min(plan.shape.width) * factor >= 256 { 64 / factor.clamp(1, 64) } else { 1 };
        let part = |side: usize| (side * quarters / 4 / unit * unit).max(1);
        let mut less = plan.clone();
        (less.shape.height, less.shape.width) = (part(plan.shape.height), part(plan.shape.width));
        let Some(estimate) = compile::estimate(p, &less, shape.clip_skip, shape.encodes_images)? else { break };
        if estimate.peak_offloaded() <= have {
            let (h, w) = (less.shape.height * factor, less.shape.width * factor);
            let hint = Message::from(format!("{w}x{h} (width x height) would fit"));
            return Ok(match p.encoders {
                EncoderResidency::Keep => hint.text(" with ").setting(Field::Encoders, "free"),
                _ => hint,
            });
        }
    }
    let hint = Message::from("no smaller image would fit: free memory of the device, or use ");
    Ok(hint.setting(Field::Device, "cpu"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_and_names() {
        let estimate = MemoryEstimate { text: 10, image: 30, condition: 5, denoise: 20, decode: 7, staging: 4 };
        assert_eq!((estimate.peak_resident(), estimate.peak_offloaded()), (76, 41));
        assert_eq!(MemoryEstimate { image: 1, ..estimate }.peak_offloaded(), 36);
        assert_eq!("free".parse::<EncoderResidency>().unwrap(), EncoderResidency::Free);
        let text = "drop".parse::<EncoderResidency>().unwrap_err().to_string();
        assert_eq!(text, "encoders: `drop` is not known; one of auto, keep, free is");
    }
}
