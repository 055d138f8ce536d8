//! NVRTC, the compiler of CUDA's kernels as a library, loaded where it is there; for build.rs, which includes this file, and for
//! kernels that are compiled at run time. Its results are integers here: those of later versions are errors like the others.

use libloading::Library;
use std::ffi::{CString, c_char, c_int, c_void};
use std::path::PathBuf;
use std::{env, fs};

/// Name and text of a file.
pub(crate) type File = (String, String);

/// NVRTC, loaded.
pub(crate) struct Nvrtc(Library);

type Program = *mut c_void;

impl Nvrtc {
    /// The first of `BRAID_NVRTC` (the library or its folder), `CUDA_PATH`, /usr/local/cuda*, `more`, and the system's search.
    pub(crate) fn find(more: &[PathBuf]) -> Result<Self, String> {
        let names: &[&str] = if cfg!(windows) {
            &["nvrtc64_130_0.dll", "nvrtc64_120_0.dll"]
        } else {
            &["libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12"]
        };
        let mut folders: Vec<PathBuf> = ["BRAID_NVRTC", "CUDA_PATH"]
            .iter()
            .filter_map(env::var_os)
            .filter(|v| !v.is_empty())
            .map(Into::into)
            .collect();
        let toolkits = fs::read_dir("/usr/local").into_iter().flatten().flatten().map(|e| e.path());
        folders.extend(toolkits.filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("cuda"))));
        folders.extend_from_slice(more);
        let mut files: Vec<PathBuf> = folders.first().filter(|f| f.is_file()).cloned().into_iter().collect();
        for folder in folders {
            for inner in
                ["", "lib64", "lib", "bin", "nvidia/cuda_nvrtc/lib", "nvidia/cuda_nvrtc/bin", "nvidia/cu13/lib"]
            {
                files.extend(names.iter().map(|name| folder.join(inner).join(name)).filter(|file| file.is_file()));
            }
        }
        // The system's own search, LD_LIBRARY_PATH with it.
        files.extend(names.iter().map(PathBuf::from));
        // SAFETY: NVRTC's initialisers have no preconditions.
        let library = files.iter().find_map(|file| unsafe { Library::new(file) }.ok());
        library.map(Self).ok_or_else(|| "NVRTC was not found (BRAID_NVRTC can name its folder)".to_owned())
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

    /// The cubin (for `sm_80` and the like) or PTX with its terminator (for `compute_80`) of a kernel file, called by its name
    /// without the ending, and what the compiler said; where it fails, that is the error.
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
            Ok((binary?, log))
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

fn check(what: &str, code: c_int) -> Result<(), String> {
    if code == 0 { Ok(()) } else { Err(format!("{what}: NVRTC error {code}")) }
}
