//! The backend for NVIDIA Triton (triton/), C over this interface, without a server: `make test-serving` has one.

use super::compiler::{Language, has, has_compilers, root, sanitizer, skip, succeed};
use super::install::installed;
use std::path::PathBuf;
use std::process::Command;

fn sources(folder: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root().join("triton").join(folder)).unwrap();
    entries.map(|entry| entry.unwrap().path()).filter(|path| path.extension().is_some_and(|e| e == "c")).collect()
}

/// Beside a server and a library that fail at each of their calls in turn: every request is answered and released once, nothing leaks.
#[test]
fn backend() {
    if !has_compilers() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let unit = folder.path().join("unit");
    let mut compiler = Language::C99.command();
    compiler.arg("-Wl,--wrap=calloc").args(sanitizer()).arg("-o").arg(&unit);
    succeed(compiler.args(sources("src")).args(sources("tests")));
    let output = succeed(&mut Command::new(&unit));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "as it should be\n");
}

/// The installed backend shows the server's functions and no others, finds libbraid beside it, and stays in memory.
#[test]
fn installed_backend() {
    if !has_compilers() {
        return;
    }
    if !has("readelf") {
        return skip("no readelf");
    }
    let folder = tempfile::tempdir().unwrap();
    succeed(Command::new(root().join("tools/install-triton.sh")).arg(installed()).arg(folder.path()));
    let read = |flags: &str| {
        let output =
            succeed(Command::new("readelf").arg("-W").arg(flags).arg(folder.path().join("libtriton_braid.so")));
        String::from_utf8(output.stdout).unwrap()
    };
    let symbols = read("--dyn-syms");
    let named = |line: &str| line.split_whitespace().last().map(str::to_owned);
    let defined = symbols.lines().filter(|line| line.contains(" DEFAULT ") && !line.contains(" UND "));
    let mut defined: Vec<String> = defined.filter_map(named).collect();
    defined.sort();
    let expected = "Finalize Initialize ModelFinalize ModelInitialize ModelInstanceExecute ModelInstanceFinalize ModelInstanceInitialize";
    let expected: Vec<String> = expected.split(' ').map(|name| format!("TRITONBACKEND_{name}")).collect();
    assert_eq!(defined, expected);
    let dynamic = read("-d");
    for part in ["[libbraid.so.0]", "[$ORIGIN]", "NODELETE"] {
        assert!(dynamic.contains(part), "{part}: {dynamic}");
    }
    assert!(folder.path().join("libbraid.so.0").is_file());
}
