//! The environment variables that set the mock up, read anew at each use where a test changes them.

use std::env::var;
use std::ffi::{CStr, c_int, c_void};
use std::fs::OpenOptions;
use std::io::Write;

/// The version of CUDA that the driver is for, `MOCK_DRIVER`: 13040 is 13.4.
pub fn driver_version() -> c_int {
    number("MOCK_DRIVER").unwrap_or(13040) as c_int
}

/// The compute capability, `MOCK_CAPABILITY`: 80 is 8.0.
pub fn capability() -> u32 {
    number("MOCK_CAPABILITY").unwrap_or(80) as u32
}

/// Multiprocessors, `MOCK_MULTIPROCESSORS`.
pub fn multiprocessors() -> c_int {
    number("MOCK_MULTIPROCESSORS").unwrap_or(100) as c_int
}

/// The seed by which work is done early or late, `MOCK_SEED`.
pub fn seed() -> u64 {
    number("MOCK_SEED").unwrap_or(1)
}

/// Bytes of the device's memory that the process may take, `MOCK_MEMORY`.
pub fn memory() -> u64 {
    number("MOCK_MEMORY").unwrap_or(6 << 30)
}

/// The folder with the kernel files' PTX, `MOCK_PTX`. Without it launches are checked and not run.
pub fn kernels() -> Option<String> {
    var("MOCK_PTX").ok().filter(|folder| !folder.is_empty())
}

/// Whether the device does its work, `MOCK_WORK=none` for one that is done with it at once and leaves all memory as it is.
pub fn works() -> bool {
    var("MOCK_WORK").map_or(true, |work| work != "none")
}

/// Whether functions are loaded when first launched, `MOCK_LOADING=lazy` as CUDA 12 has it, and not when looked up.
pub fn loads_lazily() -> bool {
    var("MOCK_LOADING").map_or(true, |way| way == "lazy")
}

/// The microseconds that cuBLASLt's algorithms take, `MOCK_TIMES=5,3,4`: as many as there are algorithms.
pub fn times() -> Vec<u64> {
    var("MOCK_TIMES").unwrap_or_default().split(',').filter_map(|time| time.parse().ok()).collect()
}

/// The algorithm that does not run, `MOCK_BROKEN`.
pub fn broken() -> Option<u64> {
    number("MOCK_BROKEN")
}

/// Whether cuBLASLt starts, `MOCK_CUBLASLT=broken` for one that does not.
pub fn starts() -> bool {
    var("MOCK_CUBLASLT").map_or(true, |state| state != "broken")
}

/// The number behind the name of the library that has this function: 12 of `libcublasLt.so.12`, where `libcublasLt.so.` is `stem`.
pub fn file_number(function: *const c_void, stem: &str) -> Option<c_int> {
    // SAFETY: a struct of pointers and numbers, filled by `dladdr` with strings that stay as long as the library.
    let name = unsafe {
        let mut place: libc::Dl_info = std::mem::zeroed();
        if libc::dladdr(function, &mut place) == 0 || place.dli_fname.is_null() {
            return None;
        }
        CStr::from_ptr(place.dli_fname).to_string_lossy().into_owned()
    };
    name.rsplit('/').next()?.strip_prefix(stem)?.parse().ok()
}

/// Writes a line to the file that `MOCK_LOG` names.
pub fn log(line: &str) {
    let Ok(path) = var("MOCK_LOG") else { return };
    // A test may have moved the folder away at its end.
    if let Ok(mut file) = OpenOptions::new().append(true).create(true).open(path) {
        let _ = writeln!(file, "{line}");
    }
}

fn number(name: &str) -> Option<u64> {
    var(name).ok()?.parse().ok()
}
