//! Residency of the encoders after use, and the memory of a device that a request takes.

use crate::error::{Error, Field, Result};
use std::str::FromStr;

/// Residency of the encoders' executables once they have done a request's work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EncoderResidency {
    /// Kept where everything fits the device's memory together, else freed.
    #[default]
    Auto,
    /// Kept for the next request.
    Keep,
    /// Freed at once; the next request uploads their weights again.
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

/// Bytes of the device's memory that the executables of a request take, weights included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct MemoryEstimate {
    /// The text encoders.
    pub text: u64,
    /// The image encoder.
    pub image: u64,
    /// The VAE's encoder.
    pub encode: u64,
    /// The step-invariant conditioning.
    pub condition: u64,
    /// The UNet.
    pub denoise: u64,
    /// The VAE's decoder.
    pub decode: u64,
    /// The most that compiling any of them takes for a moment.
    pub staging: u64,
}

impl MemoryEstimate {
    /// Peak usage with all of them there at once.
    pub fn peak_resident(&self) -> u64 {
        self.text + self.image + self.encode + self.condition + self.denoise + self.decode + self.staging
    }

    /// Peak usage when the encoders are freed after use.
    pub fn peak_offloaded(&self) -> u64 {
        let encoders = self.text.max(self.image).max(self.encode);
        self.decode + encoders.max(self.condition + self.denoise) + self.staging
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_and_names() {
        let estimate =
            MemoryEstimate { text: 10, image: 30, encode: 8, condition: 5, denoise: 20, decode: 7, staging: 4 };
        assert_eq!((estimate.peak_resident(), estimate.peak_offloaded()), (84, 41));
        assert_eq!(MemoryEstimate { image: 1, ..estimate }.peak_offloaded(), 36);
        assert_eq!(MemoryEstimate { encode: 50, ..estimate }.peak_offloaded(), 61);
        assert_eq!("free".parse::<EncoderResidency>().unwrap(), EncoderResidency::Free);
        let text = "drop".parse::<EncoderResidency>().unwrap_err().to_string();
        assert_eq!(text, "encoders: `drop` is not known; one of auto, keep, free is");
    }
}
