//! Compilers for C and C++, and what programs are linked and run with.

use std::env;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use tempfile::TempDir;

/// Warnings are errors in every language.
const STRICT: [&str; 4] = ["-Wall", "-Wextra", "-Werror", "-pedantic"];

/// The repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// A file that cargo built of the interface, by its ending.
pub fn built(ending: &str) -> PathBuf {
    let built = env::current_exe().unwrap().with_file_name(format!("libbraid_c.{ending}"));
    assert!(built.is_file(), "{}", built.display());
    built
}

/// Says that a test needs what is not there.
pub fn skip(why: &str) {
    let thread = std::thread::current();
    let _ = writeln!(std::io::stderr(), "{}: skipped: {why}", thread.name().unwrap_or("test"));
}

/// Whether a command is there.
pub fn has(command: &str) -> bool {
    Command::new(command).arg("--version").output().is_ok_and(|output| output.status.success())
}

/// Whether both compilers are there; says so where they are not.
pub fn has_compilers() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    let found =
        *FOUND.get_or_init(|| [Language::C99, Language::Cpp11].iter().all(|language| has(&language.compiler())));
    if !found {
        skip("no C and C++ compiler");
    }
    found
}

#[derive(Clone, Copy, PartialEq)]
pub enum Language {
    C99,
    Cpp11,
}

impl Language {
    fn compiler(self) -> String {
        let (variable, usual) = if self == Self::C99 { ("CC", "cc") } else { ("CXX", "c++") };
        env::var(variable).unwrap_or_else(|_| usual.into())
    }

    /// A call of the compiler with warnings as errors.
    pub fn command(self) -> Command {
        let mut command = Command::new(self.compiler());
        command.arg(if self == Self::C99 { "-std=c99" } else { "-std=c++11" }).args(STRICT);
        // pthread.h wants POSIX.
        command.args(["-D_POSIX_C_SOURCE=200809L", "-g", "-pthread"]).arg("-I").arg(root().join("include"));
        command
    }
}

/// Runs a command that must succeed.
pub fn succeed(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = [&output.stdout[..], &output.stderr[..]].concat();
    assert!(output.status.success(), "{command:?}: {}: {}", output.status, String::from_utf8_lossy(&said));
    output
}

/// A folder with the library under the names by which programs are linked and run.
pub fn libraries() -> &'static Path {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    let link = || {
        let folder = tempfile::tempdir().unwrap();
        for name in ["libbraid.so", "libbraid.so.0"] {
            std::os::unix::fs::symlink(built("so"), folder.path().join(name)).unwrap();
        }
        folder
    };
    FOLDER.get_or_init(link).path()
}

/// The flag of AddressSanitizer, where the compiler has it and it finds leaks here.
pub fn sanitizer() -> Option<&'static str> {
    const FLAG: &str = "-fsanitize=address";
    static FOUND: OnceLock<bool> = OnceLock::new();
    let finds_a_leak = || {
        let folder = tempfile::tempdir().unwrap();
        let (source, program) = (folder.path().join("leak.c"), folder.path().join("leak"));
        std::fs::write(&source, "#include <stdlib.h>\nint main(void) { return malloc(7) == (void *)1; }\n").unwrap();
        let compiled = Language::C99.command().args([FLAG, "-O0", "-o"]).arg(&program).arg(&source).output();
        compiled.is_ok_and(|output| output.status.success())
            && Command::new(&program).output().is_ok_and(|output| {
                !output.status.success() && String::from_utf8_lossy(&output.stderr).contains("detected memory leaks")
            })
    };
    FOUND.get_or_init(finds_a_leak).then_some(FLAG)
}

/// Compiles a program and links it with the library, with AddressSanitizer where that works.
pub fn compile(language: Language, source: &Path, program: &Path) {
    let mut command = language.command();
    command.arg("-o").arg(program).arg(source).args(sanitizer());
    command.arg("-L").arg(libraries()).arg("-lbraid");
    succeed(&mut command);
}

/// A program that finds the library, without the file caches of the user.
pub fn program(path: &Path, folder: &Path) -> Command {
    let mut command = Command::new(path);
    command.env("LD_LIBRARY_PATH", libraries()).env("BRAID_CACHE", folder.join("cache"));
    command
}

/// A small model with an adapter and an image encoder.
pub fn model() -> &'static Path {
    static MODEL: OnceLock<TempDir> = OnceLock::new();
    let make = || {
        let folder = tempfile::tempdir().unwrap();
        let recipe = root().join("tests/goldens/diffusers/euler/recipe.json");
        braid::synthetic::from_recipe(&recipe, folder.path()).unwrap();
        folder
    };
    MODEL.get_or_init(make).path()
}

/// The model's adapter.
pub fn adapter() -> PathBuf {
    model().join("ip-adapter.safetensors")
}

/// A reference image.
pub fn reference() -> PathBuf {
    root().join("tests/goldens/diffusers/pictures/landscape.png")
}
