//! Device, data types and random numbers.

use crate::cli::flag::{Flag, Group};
use crate::cli::labels::text;
use crate::cli::options::Options;
use crate::error::Field;
use crate::inputs::noise::{PhiloxGrid, RngKind};
use crate::pipeline::MAX_THREADS;
use crate::tensor::DType;

/// Names of data types; `auto` is the device's own.
const DTYPES: &[(&str, Option<DType>)] =
    &[("f32", Some(DType::F32)), ("f16", Some(DType::F16)), ("bf16", Some(DType::BF16)), ("auto", None)];

/// The compatibility profile.
pub const COMPAT: Flag<Options> = Flag {
    long: "--compat",
    value: Some("PROFILE"),
    help: "diffusers or diffsynth: whose results are followed [default: diffusers]",
    fields: &[Field::Compat],
    set: |o, v| v.named().map(|value| o.pipeline.compat = value),
    json: Some(("compat", |o, _| o.pipeline.compat.name.into())),
    ..Flag::NEW
};

/// The random numbers of the noise.
pub const RNG: Flag<Options> = Flag {
    long: "--rng",
    value: Some("KIND"),
    help: "cpu or cuda: which torch generator the noise follows [default: cpu]",
    set: |o, v| {
        let kinds = [("cpu", RngKind::Cpu), ("cuda", RngKind::Cuda(PhiloxGrid::default()))];
        v.choice(&kinds).map(|value| o.request.rng = value)
    },
    json: Some(("rng", |o, _| if o.request.rng == RngKind::Cpu { "cpu" } else { "cuda" }.into())),
    ..Flag::NEW
};

/// The data type.
pub const DTYPE: Flag<Options> = Flag {
    long: "--dtype",
    value: Some("T"),
    help: "auto, f16, bf16 or f32; f32 on the CPU only, which rounds the operands of products with bf16 and nothing but \
           the noise with f16 [default: auto, f16 on CUDA, else f32]",
    fields: &[Field::DType],
    set: |o, v| v.choice(DTYPES).map(|value| o.pipeline.dtype = value),
    json: Some(("dtype", |o, _| text(o.pipeline.dtype))),
    ..Flag::NEW
};

/// The data type of the VAE.
pub const VAE_DTYPE: Flag<Options> = Flag {
    long: "--vae-dtype",
    value: Some("T"),
    help: "the same of the VAE, on CUDA f32 too: exact, slower and twice the memory [default: auto, bf16 on CUDA, that of \
           --dtype on the CPU]",
    fields: &[Field::VaeDType],
    set: |o, v| v.choice(DTYPES).map(|value| o.pipeline.vae_dtype = value),
    json: Some(("vae_dtype", |o, _| text(o.pipeline.vae_dtype))),
    parameters: Some((6, |_, g| g.upcast_vae.then(|| "VAE upcast: f32".to_owned()).into_iter().collect())),
    ..Flag::NEW
};

/// The quantization of the UNet.
pub const QUANTIZE: Flag<Options> = Flag {
    long: "--quantize",
    value: Some("T"),
    help: "int8: the UNet's products in integers, on the CPU alone; fp8: in e4m3, on GPUs of compute capability 9.0 alone; faster \
           and less exact. Weights in int8 are kept in the user's cache folder",
    fields: &[Field::Quantize],
    set: |o, v| v.named().map(|value| o.pipeline.quantize = Some(value)),
    json: Some(("quantize", |o, _| text(o.pipeline.quantize))),
    ..Flag::NEW
};

/// The device.
pub const DEVICE: Flag<Options> = Flag {
    long: "--device",
    value: Some("D"),
    help: "auto, cpu, cuda or cuda:N; auto is CUDA where it can be used, else the CPU [default: auto]",
    fields: &[Field::Device],
    set: |o, v| v.named().map(|value| o.pipeline.device = value),
    ..Flag::NEW
};

/// Whether the encoders stay on the device.
pub const ENCODERS: Flag<Options> = Flag {
    long: "--encoders",
    value: Some("WHAT"),
    help: "auto, keep or free: whether the encoders stay in the GPU's memory after use [default: auto, where they fit]",
    fields: &[Field::Encoders],
    set: |o, v| v.named().map(|value| o.pipeline.encoders = value),
    ..Flag::NEW
};

/// CPU threads.
pub const THREADS: Flag<Options> = Flag {
    long: "--threads",
    short: Some('t'),
    value: Some("N"),
    help: "CPU threads [default: all cores]",
    fields: &[Field::Threads],
    set: |o, v| v.count(1, MAX_THREADS).map(|value| o.pipeline.threads = Some(value)),
    ..Flag::NEW
};

/// The group.
pub const GROUP: Group<Options> = Group {
    title: Some("Arithmetic"),
    flags: &[COMPAT, RNG, DTYPE, VAE_DTYPE, QUANTIZE, DEVICE, ENCODERS, THREADS],
    note: None,
};
