//! Compiles `kernels/*.cu` through NVRTC and embeds the result; without NVRTC it embeds the sources.
//!
//! NVRTC is sought in `BRAID_NVRTC` (the library or a folder), `CUDA_PATH`, `/usr/local/cuda*`, `nvrtc` in cargo's target folder,
//! and where the system looks. Nothing is downloaded, and no outcome fails the build; but with `BRAID_KERNELS_STRICT=1`, as the
//! tests build, a kernel that does not compile, a warning or a spill does. Each kernel file and target is compiled once and kept
//! in `OUT_DIR` under a hash of everything that went into it.

use libloading::Library;
use std::ffi::{CString, c_char, c_int, c_void};
use std::fmt::Write;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

/// Cubins, and PTX for what comes after them.
const TARGETS: [&str; 5] = ["sm_80", "sm_86", "sm_89", "sm_90a", "compute_80"];
const FLAGS: [&str; 3] = ["--std=c++17", "-lineinfo", "--ptxas-options=-v"];
const VARIABLES: [&str; 5] =
    ["BRAID_NVRTC", "BRAID_KERNELS_STRICT", "CARGO_TARGET_DIR", "CUDA_PATH", "LD_LIBRARY_PATH"];

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=kernels");
    VARIABLES.iter().for_each(|name| println!("cargo:rerun-if-env-changed={name}"));
    let (units, headers) = sources(&root.join("kernels"));

    let found = Nvrtc::find(&root);
    let built = found.and_then(|nvrtc| build(&nvrtc, &units, &headers, &out).inspect_err(|why| complain(why)));
    let modules = built.unwrap_or_else(|why| {
        println!("cargo:warning=the CUDA kernels are embedded as sources, to be compiled at run time: {why}");
        Modules { compiler: None, code: units.iter().map(|unit| (unit.0.clone(), None)).collect() }
    });
    let text = generate(&modules, &units, &headers);
    if let Err(error) = fs::write(out.join("kernels.rs"), text) {
        println!("cargo:warning=cannot write kernels.rs: {error}");
    }
}

/// Says what is wrong with a kernel; ends the build where the tests are built.
fn complain(what: &str) {
    if env::var_os("BRAID_KERNELS_STRICT").is_some_and(|v| v == "1") {
        println!("cargo:error={what}");
        std::process::exit(1);
    }
    println!("cargo:warning={what}");
}

/// The line of a compiler's log that tells of a warning or of registers spilt to memory.
fn flaw(log: &str) -> Option<&str> {
    let clean = "0 bytes spill stores, 0 bytes spill loads";
    let spills = |line: &str| line.contains("spill") && !line.contains(&format!(" {clean}"));
    log.lines().map(str::trim).find(|line| line.contains("warning") || spills(line))
}

/// Name and text of a file.
type File = (String, String);

/// The kernel files (name without ending) and the headers, each in order of its name.
fn sources(folder: &Path) -> (Vec<File>, Vec<File>) {
    let (mut units, mut headers) = (Vec::new(), Vec::new());
    for path in fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
        println!("cargo:rerun-if-changed={}", path.display());
        let name = |part: Option<&std::ffi::OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).unwrap_or_default();
        match path.extension().and_then(|e| e.to_str()) {
            Some("cu") => units.push((name(path.file_stem()), text)),
            Some("cuh") => headers.push((name(path.file_name()), text)),
            _ => {}
        }
    }
    units.sort();
    headers.sort();
    (units, headers)
}

struct Modules {
    compiler: Option<(i32, i32)>,
    /// Name of the kernel file and, where it was compiled, a file for each target.
    code: Vec<(String, Option<Vec<PathBuf>>)>,
}

fn build(nvrtc: &Nvrtc, units: &[File], headers: &[File], out: &Path) -> Result<Modules, String> {
    let version = nvrtc.version()?;
    let mut code = Vec::new();
    for unit in units {
        let mut files = Vec::new();
        for target in TARGETS {
            let mut hasher = DefaultHasher::new();
            (unit, headers, target, FLAGS, version).hash(&mut hasher);
            let stem = format!("{}.{target}.", unit.0);
            // Its ending is replaced, not the hash.
            let file = out.join(format!("{stem}{:016x}.unit", hasher.finish()));
            if !file.with_extension("log").exists() {
                for old in fs::read_dir(out).into_iter().flatten().flatten() {
                    if old.file_name().to_string_lossy().starts_with(&stem) {
                        let _ = fs::remove_file(old.path());
                    }
                }
                let (binary, log) = nvrtc.compile(unit, headers, target)?;
                // Line information takes most of it and shrinks to a tenth.
                let mut packed = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
                let packed = packed.write_all(&binary).and_then(|()| packed.finish());
                let write = |end: &str, bytes: &[u8]| fs::write(file.with_extension(end), bytes);
                // The log last: its presence says that the other is whole.
                let written = packed.and_then(|bytes| write("bin", &bytes)).and_then(|()| write("log", log.as_bytes()));
                written.map_err(|error| error.to_string())?;
            }
            let log = fs::read_to_string(file.with_extension("log")).unwrap_or_default();
            if let Some(line) = flaw(&log) {
                complain(&format!("kernels/{}.cu for {target}: {line}", unit.0));
            }
            files.push(file);
        }
        code.push((unit.0.clone(), Some(files)));
    }
    Ok(Modules { compiler: Some(version), code })
}

/// The Rust source that `src/device/cuda/kernels.rs` includes.
fn generate(modules: &Modules, units: &[File], headers: &[File]) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "const COMPILER: Option<(i32, i32)> = {:?};", modules.compiler);
    let _ = writeln!(text, "const FLAGS: &[&str] = &{:?};", &FLAGS[..2]);
    let _ = writeln!(text, "static HEADERS: &[(&str, &str)] = &{headers:?};");
    let _ = writeln!(text, "static MODULES: &[Module] = &[");
    for ((name, files), unit) in modules.code.iter().zip(units) {
        let _ = writeln!(text, "Module {{ name: {name:?}, code: ");
        match files {
            None => {
                let _ = write!(text, "Code::Source(Source {{ name: {:?}, text: {:?} }})", format!("{name}.cu"), unit.1);
            }
            Some(files) => {
                text.push_str("Code::Compiled(&[");
                for (target, file) in TARGETS.iter().zip(files) {
                    let (binary, log) = (file.with_extension("bin"), file.with_extension("log"));
                    let _ = write!(
                        text,
                        "Binary {{ target: {target:?}, packed: include_bytes!({binary:?}), log: include_str!({log:?}) }},"
                    );
                }
                text.push_str("])");
            }
        }
        text.push_str("},\n");
    }
    text.push_str("];\n");
    text
}

/// NVRTC, loaded.
struct Nvrtc(Library);

type Program = *mut c_void;

impl Nvrtc {
    fn find(root: &Path) -> Result<Self, String> {
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
        let ours = root.join(env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into())).join("nvrtc");
        if ours.exists() {
            println!("cargo:rerun-if-changed={}", ours.display());
            folders.push(ours);
        }
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

    fn version(&self) -> Result<(i32, i32), String> {
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

    /// The cubin or PTX of one file, and what the compiler said.
    fn compile(&self, unit: &File, headers: &[File], target: &str) -> Result<(Vec<u8>, String), String> {
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
        let options = all(std::iter::once(arch.as_str()).chain(FLAGS).collect())?;
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
                return Err(format!("{}.cu for {target}: {}", unit.0, log.replace('\n', " | ")));
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
