//! Child processes in which the driver for GPUs finds mocks in place of libcuda and cuBLASLt (tests/mock_libcuda).

#![allow(dead_code)]

use braid::device::cuda::compile::images;
use std::env;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use tempfile::TempDir;

const CHILD: &str = "MOCK_FOLDER";

/// The library.
pub fn library() -> PathBuf {
    let built = env::current_exe().unwrap().with_file_name("libmock_libcuda.so");
    assert!(built.is_file(), "{}", built.display());
    built
}

/// A folder with the library under both names.
fn libraries() -> &'static Path {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    let link = || {
        let folder = tempfile::tempdir().unwrap();
        // The same file, so that loaders give the same library for both.
        for name in ["libcuda.so.1", "libcublasLt.so"] {
            std::os::unix::fs::symlink(library(), folder.path().join(name)).unwrap();
        }
        folder
    };
    FOLDER.get_or_init(link).path()
}

/// The folder with the kernel files' PTX for a compute capability, 80 or 90; none where the kernels were not compiled.
pub fn kernels(capability: u32) -> Option<&'static Path> {
    static FOLDERS: [OnceLock<Option<TempDir>>; 2] = [OnceLock::new(), OnceLock::new()];
    let write = || {
        images::compiler()?;
        let folder = tempfile::tempdir().unwrap();
        for module in images::modules() {
            let Some(ptx) = module.ptx((capability / 10, capability % 10)) else { continue };
            let ptx = ptx.unpack().unwrap();
            let text = ptx.strip_suffix(b"\0").unwrap();
            fs::write(folder.path().join(format!("{}.ptx", module.name)), text).unwrap();
        }
        Some(folder)
    };
    FOLDERS[usize::from(capability >= 90)].get_or_init(write).as_ref().map(TempDir::path)
}

/// Runs `body` with an empty folder in a child process with the libraries and these variables. Where a test calls this several
/// times, each child is for one call.
pub fn child(variables: &[(&str, &str)], body: fn(&Path)) {
    static DONE: AtomicBool = AtomicBool::new(false);
    if let Some(folder) = env::var_os(CHILD) {
        if !DONE.swap(true, Relaxed) {
            body(Path::new(&folder));
        }
        return;
    }
    let thread = std::thread::current();
    let name = thread.name().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture", "--test-threads=1"]).env(CHILD, folder.path());
    command
        .env("LD_LIBRARY_PATH", libraries())
        .env("BRAID_CACHE", folder.path().join("cache"))
        .env_remove("BRAID_TRIALS");
    command.env("MOCK_LOG", folder.path().join("log")).env("MOCK_TIMES", "5,3,4");
    let output = command.envs(variables.iter().copied()).output().unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success() && said.contains("1 passed"), "{variables:?}: {said}");
    for line in said.lines().filter(|line| line.contains(": skipped: ")) {
        let _ = writeln!(std::io::stderr(), "{line}");
    }
}

/// The lines that the libraries have logged since the last call.
pub fn log(folder: &Path) -> Vec<String> {
    let path = folder.join("log");
    let lines = fs::read_to_string(&path).unwrap_or_default().lines().map(str::to_owned).collect();
    let _ = fs::remove_file(path);
    lines
}

/// The lines in which the libraries complain.
pub fn complaints(lines: &[String]) -> Vec<&str> {
    let complains = |line: &&String| line.starts_with("violation: ") || line.starts_with("fault: ");
    lines.iter().filter(complains).map(String::as_str).collect()
}
