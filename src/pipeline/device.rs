//! Which device a pipeline computes on.

use super::PipelineOptions;
use crate::device::cuda::CudaDevice;
use crate::device::{Device, cpu::Cpu};
use crate::error::{Error, Field, Message, Result};
use crate::tensor::DType;
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

/// A device with what was decided on the way to it.
pub(super) struct OpenedDevice {
    pub(super) device: Box<dyn Device>,
    /// The type that the peers would compute in, and draw their noise in.
    pub(super) dtype: DType,
    /// What [`DeviceChoice::Auto`] decided, and why.
    pub(super) note: Option<Message>,
}

pub(super) fn open(options: &PipelineOptions, cpu: &Cpu) -> Result<OpenedDevice> {
    let on_cpu = |note: Option<Message>| {
        let dtype = options.dtype.unwrap_or(DType::F32);
        OpenedDevice { device: Box::new(cpu.clone()), dtype, note }
    };
    match options.device {
        DeviceChoice::Cpu => Ok(on_cpu(None)),
        DeviceChoice::Cuda(number) => {
            let (device, dtype) = cuda(options, number)?;
            Ok(OpenedDevice { device: Box::new(device), dtype, note: None })
        }
        DeviceChoice::Auto => Ok(match cuda(options, 0) {
            Ok((device, dtype)) => {
                let note = format!("using CUDA, {}, in {dtype}", device.driver().properties().name);
                OpenedDevice { device: Box::new(device), dtype, note: Some(note.into()) }
            }
            Err(error) => {
                let why = match error {
                    Error::Device { what, .. } => what,
                    error => error.message(),
                };
                on_cpu(Some(Message::from("using the CPU, not CUDA: ").then(&why)))
            }
        }),
    }
}

fn cuda(options: &PipelineOptions, number: usize) -> Result<(CudaDevice, DType)> {
    let dtype = options.dtype.unwrap_or(DType::F16);
    let decoder = options.vae_dtype.unwrap_or(DType::BF16);
    let device = CudaDevice::open(number, dtype, decoder);
    let named = |error| match error {
        Error::Device { what, .. } => Error::Device { device: DeviceChoice::Cuda(number).to_string(), what },
        error => error,
    };
    Ok((device.map_err(named)?, dtype))
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

    /// f32 is refused before a GPU is looked for, and `auto` has the CPU for it; but not for the VAE.
    #[test]
    fn types_that_a_gpu_does_not_store() {
        let mut options = PipelineOptions::new("m");
        options.dtype = Some(DType::F32);
        options.device = DeviceChoice::Cuda(0);
        let refused =
            |options: &PipelineOptions| open(options, &Cpu::new(Some(1))).map(|_| ()).unwrap_err().to_string();
        let text = refused(&options);
        assert!(
            text.starts_with("dtype: ") && text.contains("vae_dtype: f32") && text.contains("device: cpu"),
            "{text}"
        );
        options.device = DeviceChoice::Auto;
        let opened = open(&options, &Cpu::new(Some(1))).unwrap();
        assert_eq!((opened.device.name().as_str(), opened.dtype), ("cpu", DType::F32));
        assert!(opened.note.is_some_and(|note| note.to_string().contains("dtype")));
        (options.dtype, options.vae_dtype, options.device) = (None, Some(DType::F32), DeviceChoice::Cuda(99));
        assert!(refused(&options).starts_with("device cuda:99: "));
    }

    /// Here or there: a GPU that cannot be used is an error that says why, and never one with `auto`.
    #[test]
    fn auto_never_fails() {
        let mut options = PipelineOptions::new("m");
        options.device = DeviceChoice::Auto;
        let opened = open(&options, &Cpu::new(Some(1))).unwrap();
        let note = opened.note.unwrap().to_string();
        options.device = DeviceChoice::Cuda(0);
        match open(&options, &Cpu::new(Some(1))) {
            Ok(opened) => assert_eq!((opened.device.name().as_str(), opened.dtype), ("cuda", DType::F16)),
            Err(error) => {
                let text = error.to_string();
                assert!(text.starts_with("device cuda:0: ") && text.contains("device: cpu"), "{text}");
                assert!(note.starts_with("using the CPU, not CUDA: "), "{note}");
                assert_eq!((opened.device.name().as_str(), opened.dtype), ("cpu", DType::F32));
            }
        }
        options.device = DeviceChoice::Cuda(99);
        let text = open(&options, &Cpu::new(Some(1))).map(|_| ()).unwrap_err().to_string();
        assert!(text.starts_with("device cuda:99: "), "{text}");
    }
}
