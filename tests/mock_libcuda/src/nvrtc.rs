//! NVRTC without a compiler: its results are images of the right architecture and ABI without code.
//!
//! The number behind the library's name, `libnvrtc.so.13`, is its version.

use super::driver::functions;
use super::image::ANY;
use super::settings::{file_number, log};
use std::ffi::{CStr, c_char, c_int};

/// The image of the one program that is alive.
static IMAGE: std::sync::Mutex<Vec<u8>> = std::sync::Mutex::new(Vec::new());

const INVALID_INPUT: c_int = 3;
const INVALID_OPTION: c_int = 5;

fn major() -> c_int {
    file_number(nvrtcVersion as *const _, "libnvrtc.so.").unwrap_or(12)
}

/// An ELF file with a header and the sections `.shstrtab` and `.text.any`.
fn cubin(architecture: u32, alone: bool) -> Vec<u8> {
    let names = format!("\0.shstrtab\0.text.{ANY}\0");
    let (abi, flags) = match major() {
        major if major > 12 || architecture >= 100 => (8, architecture << 8 | u32::from(alone) << 3),
        _ => (7, 0x0050_0500 | architecture | u32::from(alone) << 11),
    };
    let mut file = vec![0u8; 64];
    file[..9].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0x33, abi]);
    file[18..20].copy_from_slice(&190u16.to_le_bytes());
    file[48..52].copy_from_slice(&flags.to_le_bytes());
    let table = 64 + names.len().next_multiple_of(8);
    file[40..48].copy_from_slice(&(table as u64).to_le_bytes());
    file[60..62].copy_from_slice(&3u16.to_le_bytes());
    file[62..64].copy_from_slice(&1u16.to_le_bytes());
    file.extend_from_slice(names.as_bytes());
    file.resize(table + 3 * 64, 0);
    for (k, (name, at, bytes)) in [(0u32, 0u64, 0u64), (1, 64, names.len() as u64), (11, 64, 0)].into_iter().enumerate()
    {
        let header = table + 64 * k;
        file[header..header + 4].copy_from_slice(&name.to_le_bytes());
        file[header + 24..header + 32].copy_from_slice(&at.to_le_bytes());
        file[header + 32..header + 40].copy_from_slice(&bytes.to_le_bytes());
    }
    file
}

fn ptx(architecture: u32) -> Vec<u8> {
    let version = if major() == 13 { "9.0" } else { "8.8" };
    format!(".version {version}\n.target sm_{architecture}\n.address_size 64\n.visible .entry {ANY}()\n{{ ret; }}\n\0")
        .into_bytes()
}

functions! {
    nvrtcVersion(to_major: *mut c_int, to_minor: *mut c_int) { (*to_major, *to_minor) = (major(), 0); 0 }
    nvrtcCreateProgram(program: *mut usize, _source: *const c_char, _name: *const c_char, _count: c_int,
                       _texts: *const *const c_char, _names: *const *const c_char) { *program = 1; 0 }
    nvrtcCompileProgram(_program: usize, count: c_int, options: *const *const c_char) {
        let options = std::slice::from_raw_parts(options, count as usize);
        let options = options.iter().map(|option| CStr::from_ptr(*option).to_string_lossy().into_owned());
        let Some(target) = options.into_iter().find_map(|o| o.strip_prefix("--gpu-architecture=").map(str::to_owned)) else {
            return INVALID_OPTION;
        };
        log(&format!("compile {target} by {}", major()));
        let number = target.trim_start_matches("sm_").trim_start_matches("compute_");
        let Ok(architecture) = number.trim_end_matches('a').parse::<u32>() else { return INVALID_OPTION };
        let image = if target.starts_with("sm_") { cubin(architecture, number.ends_with('a')) } else { ptx(architecture) };
        *IMAGE.lock().unwrap() = image;
        0
    }
    nvrtcGetProgramLogSize(_program: usize, size: *mut usize) { *size = 1; 0 }
    nvrtcGetProgramLog(_program: usize, to: *mut u8) { *to = 0; 0 }
    nvrtcGetCUBINSize(_program: usize, size: *mut usize) { *size = IMAGE.lock().unwrap().len(); 0 }
    nvrtcGetCUBIN(_program: usize, to: *mut u8) {
        let image = IMAGE.lock().unwrap();
        if image.is_empty() { return INVALID_INPUT }
        to.copy_from_nonoverlapping(image.as_ptr(), image.len());
        0
    }
    nvrtcGetPTXSize(program: usize, size: *mut usize) { nvrtcGetCUBINSize(program, size) }
    nvrtcGetPTX(program: usize, to: *mut u8) { nvrtcGetCUBIN(program, to) }
    nvrtcDestroyProgram(_program: *mut usize) { 0 }
}
