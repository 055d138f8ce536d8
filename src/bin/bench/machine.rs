//! The machine of a measurement: the device, its driver, its data type.

use braid::device::cpu::Cpu;
use braid::device::cuda::CudaDevice;
use braid::error::{Error, Field, Result};
use braid::pipeline::{DeviceChoice, Quantization};
use braid::tensor::DType;
use serde::{Deserialize, Serialize};

/// The device, as a row describes it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Machine {
    /// `cpu` or `cuda:N`.
    pub device: String,
    /// The processor's or the GPU's own name.
    pub device_name: String,
    /// The GPU driver's version; `none` without a GPU, `unknown` where it cannot be read.
    pub driver: String,
    /// The data type of the computation.
    pub dtype: String,
    /// The same for the VAE.
    pub vae_dtype: String,
    /// The type to which the UNet's products are quantized, or `none`.
    pub quantize: String,
    /// Threads of the CPU.
    pub threads: usize,
    /// The instruction set that the CPU's kernels use.
    pub instructions: String,
}

impl Machine {
    /// The titles of its cells.
    pub const TITLES: [&str; 5] = ["device", "name", "driver", "dtype", "cpu"];

    /// The first cells of a row.
    pub fn cells(&self) -> Vec<String> {
        let cpu = format!("{} x{}", self.instructions, self.threads);
        let dtype =
            if self.quantize == "none" { self.dtype.clone() } else { format!("{} {}", self.dtype, self.quantize) };
        vec![self.device.clone(), self.device_name.clone(), self.driver.clone(), dtype, cpu]
    }
}

/// A device and a data type as requested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The device.
    pub device: DeviceChoice,
    /// The type; the device's own where absent.
    pub dtype: Option<DType>,
    /// The VAE's.
    pub vae_dtype: Option<DType>,
    /// The quantization of the UNet.
    pub quantize: Option<Quantization>,
    /// Threads of the CPU; all cores where absent.
    pub threads: Option<usize>,
    /// The most images that share an evaluation.
    pub max_batch: Option<usize>,
}

impl Place {
    /// The GPU, or `None` for the CPU.
    ///
    /// # Errors
    /// Those of a GPU that cannot be used.
    pub fn open(&self) -> Result<Option<CudaDevice>> {
        let (dtype, decoder) = (self.dtype.unwrap_or(DType::F16), self.vae_dtype.unwrap_or(DType::BF16));
        let open = |number| match CudaDevice::open(number, dtype, decoder) {
            Err(Error::Device { what, .. }) => Err(Error::Device { device: self.device.to_string(), what }),
            gpu => gpu,
        };
        match (self.device, self.quantize) {
            (DeviceChoice::Cuda(_), Some(Quantization::Int8)) => {
                Err(Error::parameter(Field::Quantize, "int8 is for the CPU alone; fp8 is for GPUs"))
            }
            (DeviceChoice::Cuda(number), Some(_)) => open(number)?.with_fp8().map(Some),
            (DeviceChoice::Auto, Some(Quantization::Int8)) => Ok(None),
            (DeviceChoice::Auto, Some(_)) => open(0)?.with_fp8().map(Some),
            (DeviceChoice::Cuda(number), None) => open(number).map(Some),
            (DeviceChoice::Auto, None) => Ok(open(0).ok()),
            (DeviceChoice::Cpu, Some(Quantization::Fp8)) => Err(Error::parameter(
                Field::Quantize,
                "fp8 is for GPUs of compute capability 9.0 alone; int8 is for the CPU",
            )),
            _ => Ok(None),
        }
    }

    /// The requested data type.
    pub fn asked(&self) -> String {
        self.dtype.map_or_else(|| "auto".into(), |dtype| dtype.to_string())
    }

    /// Describes it for rows; `gpu` is the result of [`Place::open`].
    pub fn machine(&self, gpu: Option<&CudaDevice>) -> Machine {
        let threads = Cpu::new(self.threads).threads();
        let instructions = Cpu::instructions().to_owned();
        let quantize = self.quantize.map_or_else(|| "none".into(), |quantize| quantize.to_string());
        let named = |dtype: Option<DType>, default: DType| dtype.unwrap_or(default).to_string();
        let on_cpu = |dtype: DType| if dtype == DType::BF16 { dtype } else { DType::F32 };
        match (gpu, self.device) {
            (Some(gpu), device) => Machine {
                device: if device == DeviceChoice::Auto { DeviceChoice::Cuda(0) } else { device }.to_string(),
                device_name: gpu.driver().properties().name.clone(),
                driver: driver(),
                dtype: named(self.dtype, DType::F16),
                vae_dtype: named(self.vae_dtype, DType::BF16),
                quantize: quantize.clone(),
                threads,
                instructions,
            },
            // A GPU that was requested and is missing.
            (None, DeviceChoice::Cuda(_)) => Machine {
                device: self.device.to_string(),
                device_name: "none".into(),
                driver: driver(),
                dtype: named(self.dtype, DType::F16),
                vae_dtype: named(self.vae_dtype, DType::BF16),
                quantize: quantize.clone(),
                threads,
                instructions,
            },
            (None, _) => Machine {
                device: "cpu".into(),
                device_name: processor(),
                driver: "none".into(),
                dtype: on_cpu(self.dtype.unwrap_or(DType::F32)).to_string(),
                vae_dtype: on_cpu(self.vae_dtype.or(self.dtype).unwrap_or(DType::F32)).to_string(),
                quantize: quantize.clone(),
                threads,
                instructions,
            },
        }
    }
}

/// The version of the kernel's NVIDIA driver.
fn driver() -> String {
    if let Ok(version) = std::fs::read_to_string("/sys/module/nvidia/version") {
        return version.trim().to_owned();
    }
    // `NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue ...`
    match std::fs::read_to_string("/proc/driver/nvidia/version") {
        Ok(text) => version(&text).unwrap_or("unknown").to_owned(),
        Err(_) if cfg!(target_os = "linux") => "none".into(),
        Err(_) => "unknown".into(),
    }
}

/// The first word that is numbers with dots between them.
fn version(text: &str) -> Option<&str> {
    text.split_whitespace().find(|word| word.contains('.') && word.bytes().all(|b| b.is_ascii_digit() || b == b'.'))
}

/// The processor's name.
fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    line.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        let text =
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build\nGCC version: 12.3.0";
        assert_eq!(version(text), Some("580.95.05"));
        assert_eq!(version("no. version"), None);
    }

    #[test]
    fn cpu_dtype() {
        let place = Place {
            device: DeviceChoice::Cpu,
            dtype: Some(DType::F16),
            vae_dtype: None,
            quantize: None,
            threads: Some(1),
            max_batch: None,
        };
        assert!(place.open().is_ok_and(|gpu| gpu.is_none()));
        let machine = place.machine(None);
        assert_eq!((machine.device.as_str(), machine.driver.as_str(), machine.dtype.as_str()), ("cpu", "none", "f32"));
        let machine = Place { dtype: Some(DType::BF16), ..place }.machine(None);
        assert_eq!((machine.dtype.as_str(), machine.vae_dtype.as_str()), ("bf16", "bf16"));
        let gone = Place { device: DeviceChoice::Cuda(7), ..place }.machine(None);
        assert_eq!((gone.device.as_str(), gone.device_name.as_str(), gone.dtype.as_str()), ("cuda:7", "none", "f16"));
    }
}
