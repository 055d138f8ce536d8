//! `braid doctor`.

use super::failure::Outcome;
use super::flag::{self, Group};
use super::flags::FlagNames;
use super::system::proc_bytes;
use super::terminal;
use crate::device::cpu::{Bf16Products, Cpu};
use crate::device::cuda::CudaDevice;
use crate::tensor::DType;
use std::path::PathBuf;

const FLAGS: &[Group<()>] = &[];

/// `braid help doctor`.
pub fn help() -> String {
    "\
Says what this machine has: processor, memory, devices, and what this build can use.

Usage: braid doctor
"
    .to_owned()
}

/// Runs the command.
pub fn run(mut parser: lexopt::Parser) -> Outcome {
    if !flag::parse(&mut parser, FLAGS, "doctor", &mut (), |(), value| Err(value))? {
        return terminal::print(&help());
    }
    let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let memory = |field: &str| {
        proc_bytes("/proc/meminfo", field).map_or("unknown".into(), |b| format!("{:.1} GB", b as f64 / 1e9))
    };
    let lines = [
        ("build", format!("braid {}, {} for {arch} {os}", env!("CARGO_PKG_VERSION"), profile())),
        ("processor", format!("{cores} cores in use, instructions: {}", Cpu::instructions())),
        ("bf16", bf16().to_owned()),
        ("int8", int8().to_owned()),
        ("memory", format!("{} in all, {} available", memory("MemTotal"), memory("MemAvailable"))),
        ("huge pages", huge_pages()),
        ("CUDA", format!("{}; driver library: {}", kernels(), driver())),
        ("libraries", crate::device::cuda::libraries()),
        ("devices", devices()),
    ];
    terminal::print(&lines.map(|(name, text)| format!("{name:<11} {}\n", crate::error::escape(&text))).concat())
}

/// Says whether the CPU is faster in bf16.
fn bf16() -> &'static str {
    match Cpu::bf16_products() {
        Bf16Products::Fast => {
            "products of bf16 by avx512bf16: --dtype bf16 is faster on this processor than f32, its default"
        }
        Bf16Products::Slow => {
            "products of bf16 by avx512bf16 at half of f32's rate: --dtype bf16 is no faster on this processor"
        }
        Bf16Products::Absent => "no products of bf16: --dtype bf16 is no faster on this processor",
    }
}

/// Says whether the CPU is faster in int8.
fn int8() -> &'static str {
    if Cpu::int8_products() {
        "products of int8 by avx512vnni: --quantize int8 is faster on this processor than any type, and less exact"
    } else {
        "no products of int8: --quantize int8 is slower on this processor"
    }
}

fn profile() -> &'static str {
    if cfg!(debug_assertions) { "debug" } else { "release" }
}

/// Names the compiler of this build's kernels.
fn kernels() -> String {
    match crate::device::cuda::compile::images::compiler() {
        Some((major, minor)) => format!("kernels by NVRTC {major}.{minor}"),
        None => "no kernels: there was no NVRTC when this was built".into(),
    }
}

/// Lists what `--device` may name.
fn devices() -> String {
    match CudaDevice::open(0, DType::F16, DType::BF16) {
        Ok(device) => {
            let (facts, memory) = (device.driver().properties(), device.driver().memory_info());
            let free = memory.map_or(0.0, |m| m.free as f64 / 1e9);
            let (major, minor) = facts.capability;
            let fp8 = if (major, minor) == (9, 0) { ", --quantize fp8 possible" } else { "" };
            format!("cpu; cuda:0: {}, compute capability {major}.{minor}{fp8}, {free:.1} GB free", facts.name)
        }
        Err(error) => format!("cpu; {}", error.message().describe(&FlagNames)),
    }
}

/// The setting of transparent huge pages: the word in brackets.
fn huge_pages() -> String {
    let text = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    let word = text.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map(|(word, _)| word.to_owned());
    word.map_or("no such setting".into(), |word| format!("transparent huge pages: {word}"))
}

/// Looks for the driver's library where loaders look, without loading it.
fn driver() -> String {
    let mut folders: Vec<PathBuf> =
        std::env::var_os("LD_LIBRARY_PATH").map(|p| std::env::split_paths(&p).collect()).unwrap_or_default();
    let usual = [
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib/aarch64-linux-gnu",
        "/usr/lib64",
        "/usr/lib",
        "/lib/x86_64-linux-gnu",
        "/usr/local/nvidia/lib64",
        "/usr/local/cuda/compat",
        "/usr/lib/wsl/lib",
        "/run/opengl-driver/lib",
        "C:\\Windows\\System32",
    ];
    folders.extend(usual.map(PathBuf::from));
    let names = ["libcuda.so.1", "libcuda.so", "nvcuda.dll"];
    let found = folders.iter().flat_map(|f| names.map(|n| f.join(n))).find(|p| p.is_file());
    found.map_or("libcuda not found".into(), |path| path.display().to_string())
}
