//! The type to which a UNet's products are quantized.

use crate::error::{Error, Field, Result};
use std::fmt;
use std::str::FromStr;

/// The type to which the operands of the UNet's products are quantized while it runs: weights with a scale for each output channel,
/// activations with one for each token or pixel, found anew at every step. Sums and everything else keep their type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Quantization {
    /// Integers of 8 bits; on the CPU alone.
    Int8,
    /// Floats of 8 bits, e4m3; on GPUs of compute capability 9.0 alone, the H100 and the H200.
    Fp8,
}

impl FromStr for Quantization {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "int8" => Ok(Self::Int8),
            "fp8" => Ok(Self::Fp8),
            _ => Err(Error::parameter(Field::Quantize, format!("`{name}` is not known; int8 and fp8 are"))),
        }
    }
}

impl fmt::Display for Quantization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Int8 => "int8",
            Self::Fp8 => "fp8",
        })
    }
}
