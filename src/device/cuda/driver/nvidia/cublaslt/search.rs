//! The cuBLASLt that is used, of those that are installed.

use super::super::context::Context;
use super::super::ffi::{self, CublasLt, Missing};
use super::handle::CublasLtHandle;
use crate::device::cuda::compile::nvrtc::Nvrtc;
use crate::device::cuda::compile::search::{Sought, named_in_vain};

/// Names the library's file or folder; `none` does without it.
const VARIABLE: &str = "BRAID_CUBLASLT";

/// Folders in Python's packages.
const WHEELS: [&str; 5] =
    ["nvidia/cublas/lib", "nvidia/cublas/bin", "nvidia/cu13/lib", "nvidia/cu13/bin", "nvidia/cu13/bin/x86_64"];

/// The names, that of the driver's own CUDA first.
fn names(driver: i32) -> &'static [&'static str] {
    match (cfg!(windows), driver) {
        (true, ..=12) => &["cublasLt64_12.dll", "cublasLt64_13.dll"],
        (true, _) => &["cublasLt64_13.dll", "cublasLt64_12.dll"],
        (false, ..=12) => &["libcublasLt.so.12", "libcublasLt.so", "libcublasLt.so.13"],
        (false, _) => &["libcublasLt.so.13", "libcublasLt.so", "libcublasLt.so.12"],
    }
}

/// The cuBLASLt and the NVRTC that are found first, with their versions; which of several cuBLASLt is used, the driver decides.
pub fn libraries() -> String {
    let version = ffi::cuda().ok().and_then(|cuda| {
        let mut version = 0;
        // SAFETY: writes one integer.
        unsafe { cuda.cuDriverGetVersion(&mut version) }.ok().map(|()| version)
    });
    let driver = version.map(|version| version / 1000);
    let found = sought(driver.unwrap_or(13)).files().into_iter().find_map(|file| {
        let [major, minor, patch] = CublasLtHandle::version_of(CublasLt::open(&file).ok()?);
        Some(format!("cuBLASLt {major}.{minor}.{patch} ({})", file.display()))
    });
    let nvrtc = Nvrtc::find(driver, &[]).and_then(|nvrtc| nvrtc.version());
    let nvrtc = nvrtc.map_or_else(|_| "no NVRTC".into(), |(major, minor)| format!("NVRTC {major}.{minor}"));
    format!("{}; {nvrtc}", found.unwrap_or_else(|| "no cuBLASLt (BRAID_CUBLASLT names its folder)".into()))
}

fn sought(driver: i32) -> Sought<'static> {
    Sought { variable: VARIABLE, names: names(driver), wheels: &WHEELS, more: &[] }
}

/// Opens the first that loads, is not for a newer CUDA than the driver, and starts. A context must be current.
///
/// # Errors
/// Why there is none, in a few words.
pub(crate) fn open(gpu: &Context) -> Result<CublasLtHandle, String> {
    let driver = gpu.driver_version / 1000;
    if std::env::var_os(VARIABLE).is_some_and(|value| value == "none") {
        return Err(format!("{VARIABLE}=none"));
    }
    if let Some(why) = named_in_vain(VARIABLE) {
        tracing::warn!("{why}");
    }
    let mut refused: Vec<String> = Vec::new();
    for file in sought(driver).files() {
        let why = match CublasLt::open(&file) {
            Err(Missing::Library) => continue,
            Err(Missing::Function(name)) => format!("lacks {name}"),
            Ok(library) => match CublasLtHandle::version_of(library)[0] {
                major if major > driver => format!("is for CUDA {major}, the driver for CUDA {driver}"),
                _ => match CublasLtHandle::create(library) {
                    Ok(handle) => return Ok(handle),
                    Err(error) => format!("does not start: {error}"),
                },
            },
        };
        tracing::debug!(file = %file.display(), why, "a cuBLASLt is not used");
        refused.push(format!("{} {why}", file.display()));
    }
    if !refused.is_empty() {
        return Err(refused.join("; "));
    }
    let names = names(driver).join(" or ");
    Err(format!(
        "{names} was not found: not by {VARIABLE}, CUDA_PATH or CUDA_HOME, nor in /usr/local/cuda*, Python's packages or the system's \
         library folders"
    ))
}
