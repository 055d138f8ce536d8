//! Opens the device that a pipeline computes on.

use super::device_choice::DeviceChoice;
use super::options::PipelineOptions;
use super::quantization::Quantization;
use crate::device::Device;
use crate::device::cpu::{Bf16Products, Cpu, FpMath};
use crate::device::cuda::CudaDevice;
use crate::error::{Error, Field, Message, Result};
use crate::tensor::DType;

/// An opened device and the choices that led to it.
pub(super) struct OpenedDevice {
    pub(super) device: Box<dyn Device>,
    /// The type that the peers would compute in, and draw their noise in.
    pub(super) dtype: DType,
    /// The decision of [`DeviceChoice::Auto`], and its reason.
    pub(super) note: Option<Message>,
}

pub(super) fn open(options: &PipelineOptions, cpu: &Cpu) -> Result<OpenedDevice> {
    let on_cpu = |note: Option<Message>| {
        let dtype = options.dtype.unwrap_or(DType::F32);
        let vae = options.vae_dtype.unwrap_or(dtype);
        let cpu = cpu.clone().with_fp_math(fp_math(dtype)).with_vae_fp_math(fp_math(vae));
        let cpu = if options.quantize == Some(Quantization::Int8) { cpu.with_int8(Cpu::int8_folder()) } else { cpu };
        OpenedDevice { device: Box::new(cpu), dtype, note }
    };
    let fp8 = options.quantize == Some(Quantization::Fp8);
    match options.device {
        DeviceChoice::Cpu if fp8 => Err(fp8_on_cpu(Message::default())),
        DeviceChoice::Cpu => Ok(on_cpu(None)),
        DeviceChoice::Cuda(number) => {
            let (device, dtype) = cuda(options, number)?;
            Ok(OpenedDevice { device: Box::new(device), dtype, note: None })
        }
        DeviceChoice::Auto => match cuda(options, 0) {
            Ok((device, dtype)) => {
                let note = format!("using CUDA, {}, in {dtype}", device.driver().properties().name);
                Ok(OpenedDevice { device: Box::new(device), dtype, note: Some(note.into()) })
            }
            Err(error @ Error::Parameter { field: Field::Quantize, .. }) if fp8 => Err(error),
            Err(error) => {
                let why = match error {
                    Error::Device { what, .. } => what,
                    error => error.message(),
                };
                match fp8 {
                    true => Err(fp8_on_cpu(Message::from(", and CUDA cannot be used: ").then(&why))),
                    false => Ok(on_cpu(Some(Message::from("using the CPU, not CUDA: ").then(&why)))),
                }
            }
        },
    }
}

/// The error for fp8 where the CPU would compute, and why it would.
fn fp8_on_cpu(why: Message) -> Error {
    let what = Message::from("fp8 is for GPUs of compute capability 9.0 (H100, H200) alone").then(&why);
    Error::parameter(Field::Quantize, what.text("; leave it out, or set ").setting(Field::Quantize, "int8"))
}

/// The CPU's arithmetic for a data type.
fn fp_math(dtype: DType) -> FpMath {
    if dtype == DType::BF16 { FpMath::Bf16 } else { FpMath::F32 }
}

/// Parameters of a UNet from which on it matters that another type is faster.
const LARGE: u64 = 500_000_000;

/// The words about a type of the VAE that no CPU computes in.
pub(super) fn unused_vae_dtype(dtype: Option<DType>) -> Option<Message> {
    let message = || Message::default().setting(Field::VaeDType, "f16");
    let unused = dtype == Some(DType::F16);
    unused.then(|| message().text(": has no effect on the CPU, which computes in f32 or bf16"))
}

/// The words about a type that would be faster on a CPU with these products, for a UNet of that many parameters.
pub(super) fn faster_dtype(dtype: Option<DType>, products: Bf16Products, parameters: u64) -> Option<Message> {
    match (dtype, products) {
        (None, Bf16Products::Fast) if parameters >= LARGE => {
            let message = Message::default().setting(Field::DType, "bf16");
            Some(message.text(" would be faster on this processor; its products are rounded, and its noise is another"))
        }
        (Some(DType::BF16), Bf16Products::Slow | Bf16Products::Absent) => {
            let message = Message::default().setting(Field::DType, "bf16");
            let message = message.text(" is no faster on this processor, which has no fast products of bf16: ");
            Some(message.setting(Field::DType, "f32").text(" is as fast and more precise"))
        }
        (Some(DType::F16), _) => {
            let message = Message::default().setting(Field::DType, "f16");
            Some(message.text(": on the CPU the noise is drawn in f16, all arithmetic stays f32"))
        }
        _ => None,
    }
}

/// The words about int8 on a processor without an instruction for it.
pub(super) fn slow_int8(has_products: bool) -> Option<Message> {
    let message = || Message::default().setting(Field::Quantize, "int8");
    (!has_products).then(|| message().text(" is slower than f32 on this processor, which has no products of int8"))
}

fn cuda(options: &PipelineOptions, number: usize) -> Result<(CudaDevice, DType)> {
    if options.quantize == Some(Quantization::Int8) {
        let what = Message::from("int8 is computed on the CPU alone; leave it out, or set ");
        return Err(Error::parameter(Field::Quantize, what.setting(Field::Device, "cpu")));
    }
    let dtype = options.dtype.unwrap_or(DType::F16);
    let decoder = options.vae_dtype.unwrap_or(DType::BF16);
    let device = CudaDevice::open(number, dtype, decoder);
    let named = |error| match error {
        Error::Device { what, .. } => Error::Device { device: DeviceChoice::Cuda(number).to_string(), what },
        error => error,
    };
    let device = device.map_err(named)?;
    let fp8 = options.quantize == Some(Quantization::Fp8);
    Ok((if fp8 { device.with_fp8()? } else { device }, dtype))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// f32 is refused before a GPU is looked for, and `auto` has the CPU for it; but not for the VAE.
    #[test]
    fn unsupported_gpu_types() {
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
        let mut options = PipelineOptions::new("m").with_quantize(Quantization::Int8);
        options.device = DeviceChoice::Cuda(0);
        let text = refused(&options);
        assert!(
            text.starts_with("quantize: int8 is computed on the CPU alone") && text.contains("device: cpu"),
            "{text}"
        );
        options.device = DeviceChoice::Auto;
        assert_eq!(open(&options, &Cpu::new(Some(1))).unwrap().device.name(), "cpu");
        // fp8 never becomes another type without a word.
        let mut options = PipelineOptions::new("m").with_quantize(Quantization::Fp8);
        options.device = DeviceChoice::Cpu;
        let alone = "quantize: fp8 is for GPUs of compute capability 9.0 (H100, H200) alone";
        assert_eq!(refused(&options), format!("{alone}; leave it out, or set `quantize: int8`"));
        (options.device, options.dtype) = (DeviceChoice::Auto, Some(DType::F32));
        let text = refused(&options);
        assert!(text.starts_with(alone) && text.contains("and CUDA cannot be used: dtype: f32 is for"), "{text}");
        let mut options = PipelineOptions::new("m");
        (options.dtype, options.vae_dtype, options.device) = (None, Some(DType::F32), DeviceChoice::Cuda(99));
        assert!(refused(&options).starts_with("device cuda:99: "));
    }

    #[test]
    fn words_about_faster_types() {
        assert!(slow_int8(true).is_none());
        assert!(slow_int8(false).is_some_and(|m| m.to_string().starts_with("`quantize: int8` is slower")));
        let said = |dtype, products, parameters| {
            faster_dtype(dtype, products, parameters).map_or(String::new(), |message| message.to_string())
        };
        let (bf16, small, large) = (Some(DType::BF16), 4_000_000, 2_567_463_684);
        assert!(said(None, Bf16Products::Fast, large).starts_with("`dtype: bf16` would be faster"));
        assert_eq!(said(None, Bf16Products::Fast, small), "");
        assert_eq!(said(None, Bf16Products::Slow, large), "");
        assert_eq!(said(Some(DType::F32), Bf16Products::Fast, large), "");
        assert_eq!(said(bf16, Bf16Products::Fast, large), "");
        assert!(said(Some(DType::F16), Bf16Products::Fast, small).contains("all arithmetic stays f32"));
        let unused = |dtype| unused_vae_dtype(Some(dtype)).map(|message| message.to_string());
        assert!(unused(DType::F16).is_some_and(|text| text.starts_with("`vae_dtype: f16`: has no effect")));
        assert_eq!(unused(DType::BF16), None);
        for products in [Bf16Products::Slow, Bf16Products::Absent] {
            let text = said(bf16, products, small);
            assert!(text.contains("no faster") && text.contains("`dtype: f32`"), "{text}");
        }
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
