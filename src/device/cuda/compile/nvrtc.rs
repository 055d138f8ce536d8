//! NVRTC, the compiler of CUDA's kernels as a library, loaded where it is there; for build.rs, which includes this file, and for
//! kernels that are compiled at run time. Its results are integers here: those of later versions are errors like the others.

use super::search::Sought;
use libloading::Library;
use std::ffi::{CString, c_char, c_int, c_void};
use std::path::PathBuf;

/// Name and text of a file.
pub(crate) type File = (String, String);

/// NVRTC, loaded.
pub(crate) struct Nvrtc(Library);

type Program = *mut c_void;

impl Nvrtc {
    /// The first that loads and is of a CUDA that a driver for `driver`, a major number, takes code of; of any where that is
    /// `None`. See [`Sought::files`] for the places; `BRAID_NVRTC` is the variable.
    ///
    /// # Errors
    /// The names that were sought in vain, and those that were left out.
    pub(crate) fn find(driver: Option<i32>, more: &[PathBuf]) -> Result<Self, String> {
        let names: &[&str] = match (cfg!(windows), driver) {
            (true, Some(..=12)) => &["nvrtc64_120_0.dll"],
            (true, _) => &["nvrtc64_130_0.dll", "nvrtc64_120_0.dll"],
            (false, Some(..=12)) => &["libnvrtc.so.12", "libnvrtc.so"],
            (false, _) => &["libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12"],
        };
        let wheels = ["nvidia/cuda_nvrtc/lib", "nvidia/cuda_nvrtc/bin", "nvidia/cu13/lib", "nvidia/cu13/bin"];
        let mut left_out = String::new();
        for file in (Sought { variable: "BRAID_NVRTC", names, wheels: &wheels, more }).files() {
            // SAFETY: NVRTC's initialisers have no preconditions.
            let Ok(library) = (unsafe { Library::new(&file) }) else { continue };
            let nvrtc = Self(library);
            match (nvrtc.version(), driver) {
                (Ok((major, minor)), Some(most)) if major > most => {
                    left_out = format!(", but for {} of CUDA {major}.{minor}, too new for the driver", file.display());
                }
                (Ok(_), _) => return Ok(nvrtc),
                (Err(why), _) => left_out = format!(", but for {}: {why}", file.display()),
            }
        }
        Err(format!("NVRTC was not found{left_out} (BRAID_NVRTC can name its folder)"))
    }

    /// Major and minor number.
    pub(crate) fn version(&self) -> Result<(i32, i32), String> {
        let (mut major, mut minor) = (0, 0);
        type Version = unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int;
        // SAFETY: the function has this type in every version; both pointers are to live integers.
        check("nvrtcVersion", unsafe { self.symbol::<Version>("nvrtcVersion")?(&mut major, &mut minor) })?;
        Ok((major, minor))
    }

    /// # Safety
    /// `T` is the function's type.
    unsafe fn symbol<T: Copy>(&self, name: &str) -> Result<T, String> {
        // SAFETY: the caller's promise.
        unsafe { self.0.get::<T>(name.as_bytes()) }.map(|symbol| *symbol).map_err(|error| error.to_string())
    }

    /// The cubin (for `sm_80` and the like) or PTX with its terminator (for `compute_80` and the like, see [`portable`]) of a kernel
    /// file, called by its name without the ending, and what the compiler said; where it fails, that is the error.
    pub(crate) fn compile(
        &self,
        unit: &File,
        headers: &[File],
        target: &str,
        flags: &[&str],
    ) -> Result<(Vec<u8>, String), String> {
        type Create = unsafe extern "C" fn(
            *mut Program,
            *const c_char,
            *const c_char,
            c_int,
            *const *const c_char,
            *const *const c_char,
        ) -> c_int;
        type Compile = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int;
        type Destroy = unsafe extern "C" fn(*mut Program) -> c_int;
        let c = |text: &str| CString::new(text).map_err(|error| error.to_string());
        let all = |texts: Vec<&str>| texts.into_iter().map(c).collect::<Result<Vec<_>, _>>();
        let pointers = |texts: &[CString]| texts.iter().map(|text| text.as_ptr()).collect::<Vec<_>>();
        let (source, name) = (c(&unit.1)?, c(&format!("kernels/{}.cu", unit.0))?);
        let texts = all(headers.iter().map(|h| h.1.as_str()).collect())?;
        let names = all(headers.iter().map(|h| h.0.as_str()).collect())?;
        let arch = format!("--gpu-architecture={target}");
        let options = all(std::iter::once(arch.as_str()).chain(flags.iter().copied()).collect())?;
        let (texts, names, options) = (pointers(&texts), pointers(&names), (pointers(&options), options));

        let mut program: Program = std::ptr::null_mut();
        // SAFETY: the functions have these types in every version; all strings and arrays outlive the calls, the lengths are
        // theirs, and the program is destroyed once, after its last use.
        unsafe {
            let create = self.symbol::<Create>("nvrtcCreateProgram")?;
            let compile = self.symbol::<Compile>("nvrtcCompileProgram")?;
            let destroy = self.symbol::<Destroy>("nvrtcDestroyProgram")?;
            let count = headers.len() as c_int;
            let made = create(&mut program, source.as_ptr(), name.as_ptr(), count, texts.as_ptr(), names.as_ptr());
            check("nvrtcCreateProgram", made)?;
            let compiled = compile(program, options.0.len() as c_int, options.0.as_ptr());
            let log = self.read(program, "ProgramLog");
            let binary = self.read(program, if target.starts_with("sm_") { "CUBIN" } else { "PTX" });
            destroy(&mut program);
            let log = String::from_utf8_lossy(&log?).trim_end_matches('\0').to_owned();
            if compiled != 0 {
                return Err(format!("NVRTC error {compiled}: {log}"));
            }
            let binary = binary?;
            Ok((if target.starts_with("sm_") { binary } else { portable(&binary, target) }, log))
        }
    }

    /// Whether it compiles for `sm_80`, `compute_80` and the like; a version that does not say so is taken to.
    pub(crate) fn knows(&self, target: &str) -> bool {
        type Number = unsafe extern "C" fn(*mut c_int) -> c_int;
        let number = target.strip_prefix("sm_").or_else(|| target.strip_prefix("compute_"));
        let Some(number) = number.and_then(|n| n.trim_end_matches('a').parse::<c_int>().ok()) else { return true };
        // SAFETY: the functions have these types in every version that has them; the second writes as many integers as the first
        // one says.
        unsafe {
            let (Ok(count), Ok(list)) =
                (self.symbol::<Number>("nvrtcGetNumSupportedArchs"), self.symbol::<Number>("nvrtcGetSupportedArchs"))
            else {
                return true;
            };
            let mut most = 0;
            if count(&mut most) != 0 || most <= 0 {
                return true;
            }
            let mut known = vec![0; most as usize];
            list(known.as_mut_ptr()) != 0 || known.contains(&number)
        }
    }

    /// # Safety
    /// `program` is alive.
    unsafe fn read(&self, program: Program, what: &str) -> Result<Vec<u8>, String> {
        type Size = unsafe extern "C" fn(Program, *mut usize) -> c_int;
        type Get = unsafe extern "C" fn(Program, *mut u8) -> c_int;
        let mut size = 0;
        // SAFETY: the caller's promise; the second function writes as many bytes as the first one said.
        unsafe {
            check(what, self.symbol::<Size>(&format!("nvrtcGet{what}Size"))?(program, &mut size))?;
            let mut bytes = vec![0; size];
            check(what, self.symbol::<Get>(&format!("nvrtcGet{what}"))?(program, bytes.as_mut_ptr()))?;
            Ok(bytes)
        }
    }
}

/// PTX under an older version: the compiler writes its own, which drivers older than itself refuse, where the text needs none of
/// what is new. 7.8 is that of CUDA 11.8, which every driver takes that is new enough; sm_90a is of 8.0, CUDA 12.0. The hints about
/// which bytes of a load are used are of 8.3 and go; they change nothing.
fn portable(ptx: &[u8], target: &str) -> Vec<u8> {
    let version = if target == "compute_90a" { ".version 8.0\n" } else { ".version 7.8\n" };
    let text = String::from_utf8_lossy(ptx);
    let kept = text.split_inclusive('\n').filter(|line| !line.trim_start().starts_with(".pragma \"used_bytes_mask"));
    kept.map(|line| if line.starts_with(".version ") { version } else { line }).collect::<String>().into_bytes()
}

fn check(what: &str, code: c_int) -> Result<(), String> {
    if code == 0 { Ok(()) } else { Err(format!("{what}: NVRTC error {code}")) }
}
