//! Compiles `kernels/*.cu` through NVRTC and embeds the result; without NVRTC it embeds the sources.
//!
//! NVRTC is sought in `BRAID_NVRTC` (the library or a folder), `CUDA_PATH`, `/usr/local/cuda*`, `nvrtc` in cargo's target folder,
//! Python's packages and where the system looks. Nothing is downloaded, and no outcome fails the build; but with `BRAID_KERNELS_STRICT=1`, as the
//! tests build, a kernel that does not compile or whose log has a flaw does. Each kernel file and target is compiled once and kept
//! in `OUT_DIR` under a hash of everything that went into it.
//!
//! It also tells the sources which commit they are, as `BRAID_COMMIT`.

#[path = "src/device/cuda/compile/log.rs"]
mod log;
#[path = "src/device/cuda/compile/nvrtc.rs"]
mod nvrtc;
#[path = "src/device/cuda/compile/search.rs"]
mod search;
#[path = "src/device/cuda/compile/targets.rs"]
mod targets;

use log::flaw;
use nvrtc::{File, Nvrtc};
use std::collections::HashMap;
use std::fmt::Write;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::{env, fs};
use targets::is_sm_90a_alone;

/// Cubins, of those that the compiler knows, and PTX for every other device: for those from 9.0 on with waits for the launch before.
const TARGETS: [&str; 8] = ["sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120", "compute_80", "compute_90"];
/// Those of a file for sm_90a alone: the PTX is for drivers that refuse the cubin, and for the tests.
const TARGETS_SM_90A: [&str; 2] = ["sm_90a", "compute_90a"];
const FLAGS: [&str; 3] = ["--std=c++17", "-lineinfo", "--ptxas-options=-v"];
const VARIABLES: [&str; 6] =
    ["BRAID_COMMIT", "BRAID_NVRTC", "BRAID_KERNELS_STRICT", "CARGO_TARGET_DIR", "CUDA_PATH", "LD_LIBRARY_PATH"];

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    println!("cargo:rerun-if-changed=build.rs");
    let shared = ["log", "nvrtc", "search", "targets"];
    shared.iter().for_each(|name| println!("cargo:rerun-if-changed=src/device/cuda/compile/{name}.rs"));
    println!("cargo:rerun-if-changed=kernels");
    VARIABLES.iter().for_each(|name| println!("cargo:rerun-if-env-changed={name}"));
    let given = env::var("BRAID_COMMIT").ok().filter(|text| !text.trim().is_empty());
    let commit = given.or_else(|| commit(&root)).unwrap_or_else(|| "unknown".into());
    println!("cargo:rustc-env=BRAID_COMMIT={}", commit.trim());
    let (units, headers) = sources(&root.join("kernels"));

    let ours = root.join(env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into())).join("nvrtc");
    if ours.exists() {
        println!("cargo:rerun-if-changed={}", ours.display());
    }
    if let Some(why) = search::named_in_vain("BRAID_NVRTC") {
        println!("cargo:warning={why}");
    }
    let found = Nvrtc::find(None, &[ours]);
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

/// The commit that a checkout is at, from git's own files; none outside a checkout. A new commit or another branch runs this
/// again, nothing else does.
fn commit(root: &Path) -> Option<String> {
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).ok()?;
        println!("cargo:rerun-if-changed={}", path.display());
        Some(text)
    };
    let mut folder = root.join(".git");
    // A worktree has a file that names its folder, which names the one that it shares with the others.
    if let Ok(text) = fs::read_to_string(&folder) {
        folder = root.join(text.trim().strip_prefix("gitdir: ")?);
    }
    let common = fs::read_to_string(folder.join("commondir")).map_or(folder.clone(), |text| folder.join(text.trim()));
    let head = read(folder.join("HEAD"))?;
    // Git adds a line at every commit, also where the branch has no file of its own yet.
    let log = folder.join("logs").join("HEAD");
    if log.exists() {
        println!("cargo:rerun-if-changed={}", log.display());
    }
    let hash = match head.trim().strip_prefix("ref: ") {
        None => head.trim().to_owned(),
        Some(branch) => match read(common.join(branch)) {
            Some(hash) => hash.trim().to_owned(),
            None => {
                let packed = read(common.join("packed-refs"))?;
                packed.lines().find_map(|line| line.strip_suffix(branch)?.strip_suffix(' ').map(str::to_owned))?
            }
        },
    };
    let whole = hash.len() >= 40 && hash.bytes().all(|b| b.is_ascii_hexdigit());
    whole.then(|| hash[..12].to_owned())
}

/// Says what is wrong with a kernel; ends the build where the tests are built.
fn complain(what: &str) {
    if env::var_os("BRAID_KERNELS_STRICT").is_some_and(|v| v == "1") {
        println!("cargo:error={what}");
        std::process::exit(1);
    }
    println!("cargo:warning={what}");
}

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

/// A kernel file's targets, and a file for each.
type Compiled = Vec<(&'static str, PathBuf)>;

struct Modules {
    compiler: Option<(i32, i32)>,
    /// Name of the kernel file and, where it was compiled, the results.
    code: Vec<(String, Option<Compiled>)>,
}

fn build(nvrtc: &Nvrtc, units: &[File], headers: &[File], out: &Path) -> Result<Modules, String> {
    let version = nvrtc.version()?;
    let context = Build { nvrtc, headers, out, version };
    let of = |unit| context.targets(unit).into_iter().map(move |target| (unit, target));
    let all: Vec<(&File, &'static str)> = units.iter().flat_map(of).collect();
    // Each thread takes the next that is left: the longest take ten times as long as most.
    let next = AtomicUsize::new(0);
    let work = || {
        let mine = std::iter::from_fn(|| all.get(next.fetch_add(1, Relaxed)));
        mine.map(|&(unit, target)| ((unit, target), context.one(unit, target))).collect::<Vec<_>>()
    };
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get()).min(4);
    let mut compiled: HashMap<_, _> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap_or_default()).collect()
    });
    let mut code = Vec::new();
    for unit in units {
        let lost = || Err("a thread that compiles kernels ended early".to_owned());
        let mut files = Vec::new();
        for target in context.targets(unit) {
            files.push((target, compiled.remove(&(unit, target)).unwrap_or_else(lost)?));
        }
        code.push((unit.0.clone(), Some(files)));
    }
    Ok(Modules { compiler: Some(version), code })
}

/// The inputs that the compilations of all kernel files share.
struct Build<'a> {
    nvrtc: &'a Nvrtc,
    headers: &'a [File],
    out: &'a Path,
    version: (i32, i32),
}

impl Build<'_> {
    /// The targets of a kernel file.
    fn targets(&self, unit: &File) -> Vec<&'static str> {
        let targets: &[&'static str] = if is_sm_90a_alone(&unit.0) { &TARGETS_SM_90A } else { &TARGETS };
        targets.iter().copied().filter(|target| self.nvrtc.knows(target)).collect()
    }

    /// Compiles a kernel file for a target.
    fn one(&self, unit: &File, target: &'static str) -> Result<PathBuf, String> {
        let Self { nvrtc, headers, out, version } = *self;
        let mut hasher = DefaultHasher::new();
        (unit, headers, target, FLAGS, version, include_str!("src/device/cuda/compile/nvrtc.rs")).hash(&mut hasher);
        let stem = format!("{}.{target}.", unit.0);
        // Its ending is replaced, not the hash.
        let file = out.join(format!("{stem}{:016x}.unit", hasher.finish()));
        if !file.with_extension("log").exists() && !found_elsewhere(&file, out) {
            for old in fs::read_dir(out).into_iter().flatten().flatten() {
                if old.file_name().to_string_lossy().starts_with(&stem) {
                    let _ = fs::remove_file(old.path());
                }
            }
            let (binary, log) = nvrtc
                .compile(unit, headers, target, &FLAGS)
                .map_err(|why| format!("kernels/{}.cu for {target}: {}", unit.0, why.replace('\n', " | ")))?;
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
        Ok(file)
    }
}

/// Takes a compiled kernel file from another build of this package: cargo has a folder for each way to build, and `cargo doc`'s is
/// not that of `cargo test`. The name holds a hash of everything that went into it.
fn found_elsewhere(file: &Path, out: &Path) -> bool {
    let Some(builds) = out.parent().and_then(Path::parent) else { return false };
    let name = |end: &str| file.with_extension(end).file_name().map(PathBuf::from).unwrap_or_default();
    let (log, bin) = (name("log"), name("bin"));
    let folders = fs::read_dir(builds).into_iter().flatten().flatten().map(|entry| entry.path().join("out"));
    let found = folders.filter(|folder| folder != out).find(|folder| folder.join(&log).exists());
    // The log last, as where it is compiled.
    found.is_some_and(|folder| [bin, log].iter().all(|name| fs::copy(folder.join(name), out.join(name)).is_ok()))
}

/// The Rust source that `src/device/cuda/compile/images.rs` includes.
fn generate(modules: &Modules, units: &[File], headers: &[File]) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "const COMPILER: Option<(i32, i32)> = {:?};", modules.compiler);
    let _ = writeln!(text, "const FLAGS: &[&str] = &{:?};", &FLAGS[..2]);
    let _ = writeln!(text, "static HEADERS: &[(&str, &str)] = &{headers:?};");
    let _ = writeln!(text, "static MODULES: &[Module] = &[");
    for ((name, files), unit) in modules.code.iter().zip(units) {
        let source = format!("SourceFile {{ name: {:?}, text: {:?} }}", format!("{name}.cu"), unit.1);
        let _ = writeln!(text, "Module {{ name: {name:?}, source: {source}, code: ");
        match files {
            None => text.push_str("Code::Source"),
            Some(files) => {
                text.push_str("Code::Compiled(&[");
                for (target, file) in files {
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
