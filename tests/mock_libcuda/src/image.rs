//! Images of kernels, judged as the driver judges them.

use super::settings::{capability, driver_version, kernels};
use super::status::*;
use braid_ptx::Module;
use std::collections::{BTreeMap, HashMap};
use std::ffi::c_int;
use std::sync::{Arc, LazyLock, Mutex, OnceLock};

/// Machine of an ELF file for CUDA.
const EM_CUDA: u16 = 190;
/// The flag of code for one architecture alone, `sm_90a`.
const ACCELERATED: u32 = 0x800;
/// The same flag in the ABI of CUDA 13.
const ACCELERATED_8: u32 = 0x8;

/// The one kernel of an image that stands for all of its file's: what the mock's NVRTC makes.
pub const ANY: &str = "any";

/// A module that the driver has taken.
pub struct Loaded {
    /// The names of its kernels.
    pub entries: Vec<String>,
    /// Registers of a thread, of those kernels of which the image says so.
    pub registers: BTreeMap<String, u32>,
    /// The text of an image of PTX.
    text: Option<String>,
    parsed: OnceLock<Option<Arc<Module>>>,
}

impl Loaded {
    /// The kernels to be run: those of the image's own PTX, or those of the same names among the kernel files' PTX; `None` where
    /// launches are not run.
    pub fn module(&self) -> Option<Arc<Module>> {
        let parse = || {
            let folder = kernels()?;
            match &self.text {
                Some(text) => Some(Arc::new(Module::parse(text).expect("PTX that was judged"))),
                None => Some(kernel_file(&folder, self.entries.first().filter(|entry| *entry != ANY)?)),
            }
        };
        self.parsed.get_or_init(parse).clone()
    }
}

/// The kernel file with this kernel.
fn kernel_file(folder: &str, entry: &str) -> Arc<Module> {
    static PARSED: LazyLock<Mutex<HashMap<String, Arc<Module>>>> = LazyLock::new(Mutex::default);
    let mut parsed = PARSED.lock().expect("no panic while it is held");
    if let Some(module) = parsed.values().find(|module| module.kernel(entry).is_some()) {
        return module.clone();
    }
    let files = std::fs::read_dir(folder).expect("the folder that MOCK_PTX names").flatten();
    let text = files.map(|file| std::fs::read_to_string(file.path()).expect("PTX"));
    let text = text.into_iter().find(|text| text.contains(&format!(".entry {entry}("))).expect("the kernel's PTX");
    let module = Arc::new(Module::parse(&text).expect("PTX"));
    parsed.insert(entry.to_owned(), module.clone());
    module
}

/// Judges an image.
///
/// # Safety
/// `image` points to a whole ELF file or to text with a terminator.
pub unsafe fn load(image: *const u8) -> Result<Loaded, c_int> {
    // SAFETY: the caller's promise; both are longer than four bytes.
    let magic = unsafe { std::slice::from_raw_parts(image, 4) };
    if magic == b"\x7fELF" {
        // SAFETY: the caller's promise.
        return unsafe { cubin(image) };
    }
    // SAFETY: the caller's promise.
    let text = unsafe { std::ffi::CStr::from_ptr(image.cast()) }.to_str().map_err(|_| INVALID_IMAGE)?;
    ptx(text)
}

/// The kind of an image: `cubin of ABI 7`, `PTX`.
///
/// # Safety
/// As [`load`].
pub unsafe fn describe(image: *const u8) -> String {
    // SAFETY: the caller's promise.
    let head = unsafe { std::slice::from_raw_parts(image, 4) };
    if head != b"\x7fELF" {
        return "PTX".into();
    }
    // SAFETY: the caller's promise: a header has 64 bytes.
    let head = Elf(unsafe { std::slice::from_raw_parts(image, 64) });
    let flags = head.number(48, 4).unwrap_or(0) as u32;
    format!("sm_{}", if head.0[8] == 8 { flags >> 8 & 0xff } else { flags & 0xff })
}

fn ptx(text: &str) -> Result<Loaded, c_int> {
    let word = |directive: &str| {
        let (_, rest) = text.split_once(directive)?;
        rest.split([' ', ',', '\t', '\n']).find(|word| !word.is_empty())
    };
    let (Some(version), Some(target)) = (word(".version"), word(".target")) else { return Err(INVALID_IMAGE) };
    let version: Vec<u32> = version.split('.').filter_map(|part| part.parse().ok()).collect();
    let [major, minor] = version[..] else { return Err(INVALID_IMAGE) };
    if (major, minor) > newest_ptx() {
        return Err(UNSUPPORTED_PTX_VERSION);
    }
    let number = target.trim_start_matches("sm_").trim_end_matches('a').parse::<u32>().map_err(|_| INVALID_IMAGE)?;
    let fits = if target.ends_with('a') { number == capability() } else { number <= capability() };
    if !fits {
        return Err(NO_BINARY_FOR_GPU);
    }
    let entries = text.split(".entry").skip(1).filter_map(|rest| rest.split('(').next());
    let entries = entries.map(|name| name.trim().to_owned()).collect();
    Ok(Loaded { entries, registers: BTreeMap::new(), text: Some(text.to_owned()), parsed: OnceLock::new() })
}

/// The newest version of PTX that the driver compiles: CUDA 12.0 has 8.0, 12.9 has 8.8, 13.0 has 9.0.
fn newest_ptx() -> (u32, u32) {
    let version = driver_version() as u32;
    match (version / 1000, version % 1000 / 10) {
        (12, minor @ 0..=5) => (8, minor),
        (12, 6) => (8, 5),
        (12, 7) => (8, 6),
        (12, 8) => (8, 7),
        (12, _) => (8, 8),
        (major, minor) => (major - 4, minor),
    }
}

/// Numbers of an ELF file.
struct Elf<'a>(&'a [u8]);

impl Elf<'_> {
    fn number(&self, at: usize, bytes: usize) -> Option<u64> {
        let mut value = [0; 8];
        value[..bytes].copy_from_slice(self.0.get(at..at + bytes)?);
        Some(u64::from_le_bytes(value))
    }

    fn usize(&self, at: usize, bytes: usize) -> Option<usize> {
        self.number(at, bytes).map(|value| value as usize)
    }

    fn string(&self, at: usize) -> Option<String> {
        let rest = self.0.get(at..)?;
        let end = rest.iter().position(|byte| *byte == 0)?;
        Some(String::from_utf8_lossy(&rest[..end]).into_owned())
    }

    /// Name, place and bytes of each section.
    fn sections(&self) -> Option<Vec<(String, usize, usize)>> {
        let (table, count, names) = (self.usize(40, 8)?, self.usize(60, 2)?, self.usize(62, 2)?);
        let header = |k: usize| table + 64 * k;
        let strings = self.usize(header(names) + 24, 8)?;
        let section = |k| {
            let at = header(k);
            Some((self.string(strings + self.usize(at, 4)?)?, self.usize(at + 24, 8)?, self.usize(at + 32, 8)?))
        };
        (0..count).map(section).collect()
    }
}

/// # Safety
/// `image` points to a whole ELF file.
unsafe fn cubin(image: *const u8) -> Result<Loaded, c_int> {
    // SAFETY: the caller's promise: the header, and then as far as the table of sections goes, which is last but for that of
    // segments.
    let head = unsafe { std::slice::from_raw_parts(image, 64) };
    let head = Elf(head);
    let sections = head.usize(40, 8).unwrap_or(0) + 64 * head.usize(60, 2).unwrap_or(0);
    let segments = head.usize(32, 8).unwrap_or(0) + 56 * head.usize(56, 2).unwrap_or(0);
    // SAFETY: as above.
    let elf = Elf(unsafe { std::slice::from_raw_parts(image, sections.max(segments).max(64)) });
    let (class, abi) = (elf.0[4], elf.0[8]);
    if class != 2 || elf.number(18, 2) != Some(u64::from(EM_CUDA)) {
        return Err(INVALID_IMAGE);
    }
    let flags = elf.number(48, 4).unwrap_or(0) as u32;
    let (architecture, accelerated) = if abi == 8 {
        (flags >> 8 & 0xff, flags & ACCELERATED_8 != 0)
    } else {
        (flags & 0xff, flags & ACCELERATED != 0)
    };
    // The ABI 8 came with Blackwell, in CUDA 12.8; CUDA 13 has it for every architecture, and drivers of 12 do not take those.
    let since = if architecture >= 100 { 12_080 } else { 13_000 };
    if !matches!(abi, 7 | 8) || (abi == 8 && driver_version() < since) {
        return Err(INVALID_IMAGE);
    }
    if !runs(architecture, accelerated, capability()) {
        return Err(NO_BINARY_FOR_GPU);
    }
    let sections = elf.sections().ok_or(INVALID_IMAGE)?;
    let entries = sections.iter().filter_map(|(name, ..)| name.strip_prefix(".text.").map(str::to_owned)).collect();
    let registers = registers(&elf, &sections).unwrap_or_default();
    Ok(Loaded { entries, registers, text: None, parsed: OnceLock::new() })
}

/// Whether code of an architecture runs on a device: within a generation upwards, but neither to nor from Orin's 8.7, and code for
/// one architecture alone (`sm_90a`) on that one.
fn runs(architecture: u32, alone: bool, device: u32) -> bool {
    let family = architecture / 10 == device / 10 && architecture <= device;
    let orin = (architecture == 87) != (device == 87);
    if alone { architecture == device } else { family && !orin }
}

/// Registers by kernel, of the section `.nv.info`: records of a format, an attribute, a length; the attribute 0x2f is a symbol's
/// number and its registers.
fn registers(elf: &Elf, sections: &[(String, usize, usize)]) -> Option<BTreeMap<String, u32>> {
    let section = |name: &str| sections.iter().find(|(other, ..)| other == name);
    let ((_, info, bytes), (_, symbols, _), (_, strings, _)) =
        (section(".nv.info")?, section(".symtab")?, section(".strtab")?);
    let mut registers = BTreeMap::new();
    let mut at = *info;
    while at + 4 <= info + bytes {
        let (format, attribute, length) = (elf.0[at], elf.0[at + 1], elf.usize(at + 2, 2)?);
        if (format, attribute, length) == (4, 0x2f, 8) {
            let symbol = symbols + 24 * elf.usize(at + 4, 4)?;
            let name = elf.string(strings + elf.usize(symbol, 4)?)?;
            registers.insert(name, elf.number(at + 8, 4)? as u32);
        }
        at += 4 + if format == 4 { length } else { 0 };
    }
    Some(registers)
}
