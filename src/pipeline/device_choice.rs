//! The device asked for.

use crate::error::{Error, Field, Result};
use std::fmt;
use std::str::FromStr;

/// The device asked for, as its name says: `auto`, `cpu`, `cuda` or `cuda:N`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The first GPU where it can be used, else the CPU; never an error.
    Auto,
    /// The CPU.
    #[default]
    Cpu,
    /// The GPU of that number.
    Cuda(usize),
}

impl FromStr for DeviceChoice {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => match name.strip_prefix("cuda:").and_then(|n| n.parse::<u32>().ok()) {
                Some(number) => Ok(Self::Cuda(number as usize)),
                None => {
                    let what = format!("`{name}` is not known; auto, cpu, cuda and cuda:N are");
                    Err(Error::parameter(Field::Device, what))
                }
            },
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_devices() {
        let parse = |name: &str| name.parse::<DeviceChoice>();
        for (name, choice, shown) in [
            ("auto", DeviceChoice::Auto, "auto"),
            ("cpu", DeviceChoice::Cpu, "cpu"),
            ("cuda", DeviceChoice::Cuda(0), "cuda:0"),
            ("cuda:3", DeviceChoice::Cuda(3), "cuda:3"),
        ] {
            assert_eq!((parse(name).unwrap(), choice.to_string().as_str()), (choice, shown));
        }
        for name in ["", "CUDA", "cuda:", "cuda:-1", "cuda:x", "cuda:99999999999", "gpu"] {
            assert!(parse(name).unwrap_err().to_string().starts_with("device: "), "{name}");
        }
    }
}
