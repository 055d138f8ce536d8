//! The installed files: names, pkg-config, CMake, the static library.

use super::compiler::{Language, adapter, built, has, has_compilers, model, reference, root, skip, succeed};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use tempfile::TempDir;

/// A folder that the interface was installed into.
pub fn installed() -> &'static Path {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    let install = || {
        let folder = tempfile::tempdir().unwrap();
        let libraries = built("so");
        let script = root().join("tools/install-capi.sh");
        succeed(Command::new(script).arg(libraries.parent().unwrap()).arg(folder.path()));
        folder
    };
    FOLDER.get_or_init(install).path()
}

fn pkg_config(arguments: &[&str]) -> Vec<String> {
    let mut command = Command::new("pkg-config");
    let output =
        succeed(command.env("PKG_CONFIG_PATH", installed().join("lib/pkgconfig")).args(arguments).arg("braid"));
    String::from_utf8(output.stdout).unwrap().split_whitespace().map(String::from).collect()
}

/// Runs the example that was compiled, which must draw.
fn draws(example: &Path, libraries: Option<PathBuf>) {
    let folder = tempfile::tempdir().unwrap();
    let drawn = folder.path().join("drawn.png");
    let mut command = Command::new(example);
    command.arg(model()).arg(adapter()).arg(reference()).arg(&drawn).env("BRAID_CACHE", folder.path());
    match libraries {
        Some(path) => command.env("LD_LIBRARY_PATH", path),
        None => command.env_remove("LD_LIBRARY_PATH"),
    };
    succeed(&mut command);
    assert!(drawn.is_file());
}

#[test]
fn names_of_files() {
    let version = env!("CARGO_PKG_VERSION");
    let at = |path: &str| installed().join(path);
    assert_eq!(fs::read_link(at("lib/libbraid.so")).unwrap(), Path::new("libbraid.so.0"));
    assert_eq!(fs::read_link(at("lib/libbraid.so.0")).unwrap(), Path::new(&format!("libbraid.so.{version}")));
    for path in ["include/braid.h", "lib/libbraid.a", "share/braid/cmake/braid-config.cmake"] {
        assert!(at(path).is_file(), "{path}");
    }
    if !has("readelf") {
        return skip("no readelf");
    }
    let output = succeed(Command::new("readelf").arg("-d").arg(at("lib/libbraid.so")));
    assert!(String::from_utf8_lossy(&output.stdout).contains("soname: [libbraid.so.0]"));
}

#[test]
fn by_pkg_config() {
    if !has_compilers() {
        return;
    }
    if !has("pkg-config") {
        return skip("no pkg-config");
    }
    assert_eq!(pkg_config(&["--modversion"]), [env!("CARGO_PKG_VERSION")]);
    let folder = tempfile::tempdir().unwrap();
    let source = root().join("examples/c/generate.c");
    let shared = folder.path().join("shared");
    let flags = pkg_config(&["--cflags", "--libs"]);
    succeed(Command::new("cc").arg("-o").arg(&shared).arg(&source).args(&flags));
    draws(&shared, Some(installed().join("lib")));

    // The archive in the place of -lbraid.
    let alone = folder.path().join("alone");
    let archive = installed().join("lib/libbraid.a").to_str().unwrap().to_owned();
    let flags = pkg_config(&["--static", "--cflags", "--libs"]);
    let flags = flags.into_iter().map(|flag| if flag == "-lbraid" { archive.clone() } else { flag });
    succeed(Language::C99.command().arg("-o").arg(&alone).arg(&source).args(flags));
    draws(&alone, None);
}

#[test]
fn by_cmake() {
    if !has_compilers() {
        return;
    }
    if !has("cmake") {
        return skip("no cmake");
    }
    let folder = tempfile::tempdir().unwrap();
    let source = root().join("examples/c/generate.c");
    let project = format!(
        "cmake_minimum_required(VERSION 3.12)\nproject(user C)\nfind_package(braid 0.2 REQUIRED)\n\
         foreach(kind braid braid-static)\n  add_executable(with-${{kind}} {})\n  \
         target_link_libraries(with-${{kind}} PRIVATE braid::${{kind}})\nendforeach()\n",
        source.display()
    );
    fs::write(folder.path().join("CMakeLists.txt"), project).unwrap();
    let build = folder.path().join("build");
    let prefix = format!("-DCMAKE_PREFIX_PATH={}", installed().display());
    succeed(Command::new("cmake").arg("-S").arg(folder.path()).arg("-B").arg(&build).arg(prefix));
    succeed(Command::new("cmake").arg("--build").arg(&build));
    draws(&build.join("with-braid"), None);
    draws(&build.join("with-braid-static"), None);
}
