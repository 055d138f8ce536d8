//! Whether a request's programs fit the device's memory, known before any of them is loaded.

use super::build::{self, Plan};
use super::programs::Programs;
use super::{Pipeline, prepare::Shape};
use crate::error::{Error, Result};
use std::str::FromStr;

/// What becomes of the encoders' programs once they have done a request's work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Encoders {
    /// Kept where everything fits the device's memory together, else given back.
    #[default]
    Auto,
    /// Kept for the next request.
    Keep,
    /// Given back at once; the next request takes their weights up again.
    Free,
}

impl FromStr for Encoders {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "auto" => Ok(Self::Auto),
            "keep" => Ok(Self::Keep),
            "free" => Ok(Self::Free),
            _ => Err(Error::parameter("--encoders", format!("`{name}` is not known; one of auto, keep, free is"))),
        }
    }
}

/// Bytes of the device's memory that the programs of a request take, weights included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Estimate {
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

impl Estimate {
    /// With all of them there at once.
    pub fn kept(&self) -> u64 {
        self.text + self.image + self.condition + self.denoise + self.decode + self.staging
    }

    /// The most at any time where encoders go after use.
    pub fn freed(&self) -> u64 {
        self.decode + self.text.max(self.image).max(self.condition + self.denoise) + self.staging
    }
}

/// Decides about the encoders, and refuses what does not fit before anything is loaded.
pub(super) fn demand(p: &Pipeline, programs: &mut Programs, plan: &Plan, shape: &Shape) -> Result<()> {
    if programs.has(p, plan) {
        return Ok(());
    }
    let (Some(estimate), Some(free)) = (build::estimate(p, plan, shape.clip_skip, shape.pictures)?, p.device.room()?)
    else {
        programs.free_encoders = p.encoders == Encoders::Free;
        return Ok(());
    };
    // Programs of other shapes make room.
    let have = free.saturating_add(programs.bytes() as u64);
    programs.free_encoders = match p.encoders {
        Encoders::Keep => false,
        Encoders::Free => true,
        Encoders::Auto => estimate.kept() > have,
    };
    let need = if programs.free_encoders { estimate.freed() } else { estimate.kept() };
    if need <= have {
        return Ok(());
    }
    let hint = if estimate.freed() <= have {
        format!("--encoders free would fit, it takes {}", estimate.freed())
    } else {
        smaller(p, plan, shape, have)?
    };
    Err(Error::Memory { stage: "loading", need, have, hint })
}

/// The size that would fit.
fn smaller(p: &Pipeline, plan: &Plan, shape: &Shape, have: u64) -> Result<String> {
    let factor = p.models.vae.config.factor();
    for quarters in [3, 2, 1] {
        // Whole multiples of 64 pixels where there are any.
        let unit = if plan.shape.height.min(plan.shape.width) * factor >= 256 { 64 / factor.clamp(1, 64) } else { 1 };
        let part = |side: usize| (side * quarters / 4 / unit * unit).max(1);
        let mut less = plan.clone();
        (less.shape.height, less.shape.width) = (part(plan.shape.height), part(plan.shape.width));
        let Some(estimate) = build::estimate(p, &less, shape.clip_skip, shape.pictures)? else { break };
        if estimate.freed() <= have {
            let (h, w) = (less.shape.height * factor, less.shape.width * factor);
            let flag = if p.encoders == Encoders::Keep { " with --encoders free" } else { "" };
            return Ok(format!("{w}x{h} (width x height) would fit{flag}"));
        }
    }
    Ok("no smaller picture would fit: free memory of the device, or use --device cpu".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_and_names() {
        let estimate = Estimate { text: 10, image: 30, condition: 5, denoise: 20, decode: 7, staging: 4 };
        assert_eq!((estimate.kept(), estimate.freed()), (76, 41));
        assert_eq!(Estimate { image: 1, ..estimate }.freed(), 36);
        assert_eq!("free".parse::<Encoders>().unwrap(), Encoders::Free);
        let text = "drop".parse::<Encoders>().unwrap_err().to_string();
        assert_eq!(text, "--encoders: `drop` is not known; one of auto, keep, free is");
    }
}
