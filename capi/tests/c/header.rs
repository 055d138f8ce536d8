//! The header against the library: functions and their types, structs, constants, versions.

use super::compiler::{Language, built, has, has_compilers, root, skip, succeed};
use braid_c::callbacks::STAGES;
use braid_c::image::{BRAID_ALPHA_IGNORE, BRAID_ALPHA_ON_WHITE};
use braid_c::status::STATUSES;
use braid_c::structs::{BRAID_UNSET, LAYOUTS};
use braid_c::ticket::{BRAID_TICKET_DONE, BRAID_TICKET_RUNNING, BRAID_TICKET_WAITING};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

/// The header without its comments.
fn header() -> String {
    let text = fs::read_to_string(root().join("include/braid.h")).unwrap();
    let mut parts = text.split("/*");
    let first = parts.next().unwrap().to_owned();
    parts.fold(first, |code, part| code + part.split_once("*/").unwrap().1)
}

/// The sources of the interface, tests left out.
fn sources() -> Vec<(String, String)> {
    let files = fs::read_dir(root().join("capi/src")).unwrap().map(|entry| entry.unwrap().path());
    let read = |path: std::path::PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap().to_owned();
        (path.file_name().unwrap().to_str().unwrap().to_owned(), code)
    };
    files.filter(|path| path.is_file()).map(read).collect()
}

/// A C type without spaces that mean nothing.
fn tidy(written: &str) -> String {
    let words = written.split_whitespace().collect::<Vec<_>>().join(" ");
    words.replace(" *", "*").replace("* ", "*")
}

/// The functions that the header declares, with their types: result first.
fn declared() -> BTreeMap<String, Vec<String>> {
    let header = header();
    let declarations = header.split("BRAID_API ").skip(1).filter_map(|rest| rest.split_once(");"));
    let functions = declarations.filter(|(declaration, _)| declaration.contains("braid_"));
    functions
        .map(|(declaration, _)| {
            let (front, arguments) = declaration.split_once('(').unwrap();
            let begins = front.rfind(|c: char| !c.is_alphanumeric() && c != '_').unwrap() + 1;
            let argument = |written: &str| {
                let written = written.trim();
                let ends = written.rfind(|c: char| !c.is_alphanumeric() && c != '_').map_or(0, |at| at + 1);
                tidy(&written[..ends])
            };
            let arguments = arguments.split(',').filter(|a| a.trim() != "void").map(argument);
            (front[begins..].to_owned(), [tidy(&front[..begins])].into_iter().chain(arguments).collect())
        })
        .collect()
}

/// A type of Rust as C writes it.
fn in_c(rust: &str) -> String {
    let rust = rust.trim();
    if let Some(inner) = rust.strip_prefix("*mut ") {
        return in_c(inner) + "*";
    }
    if let Some(inner) = rust.strip_prefix("*const ") {
        let inner = in_c(inner);
        return if inner.ends_with('*') { inner + "const*" } else { format!("const {inner}*") };
    }
    match rust {
        "c_char" => "char",
        "c_void" => "void",
        "usize" => "size_t",
        "u8" => "uint8_t",
        "u64" => "uint64_t",
        "i32" => "int32_t",
        "i64" => "int64_t",
        "f32" => "float",
        "f64" => "double",
        other => other,
    }
    .to_owned()
}

/// The functions of the sources, with their types as C writes them.
fn defined() -> BTreeMap<String, Vec<String>> {
    let mut found = BTreeMap::new();
    for (_, code) in sources() {
        for rest in code.split("\n    fn braid_").skip(1).chain(code.split("\n            fn braid_").skip(1)) {
            let (name, rest) = rest.split_once('(').unwrap();
            let (arguments, rest) = rest.split_once(')').unwrap();
            let result = rest.split_once('{').unwrap().0.trim().strip_prefix("->").unwrap_or("void");
            let arguments = arguments.split(',').filter_map(|argument| argument.split_once(':'));
            let types = std::iter::once(in_c(result)).chain(arguments.map(|(_, kind)| in_c(kind)));
            found.insert(format!("braid_{name}"), types.collect());
        }
    }
    found
}

#[test]
fn compiles_alone() {
    if !has_compilers() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("alone.c");
    fs::write(&source, "#include <braid.h>\n#include <braid.h>\nint main(void) { return BRAID_OK; }\n").unwrap();
    succeed(Language::C99.command().arg("-fsyntax-only").arg(&source));
    succeed(Language::Cpp11.command().args(["-fsyntax-only", "-x", "c++"]).arg(&source));
}

#[test]
fn types_of_functions() {
    let (declared, defined) = (declared(), defined());
    assert!(declared.len() > 60, "{}", declared.len());
    for (name, types) in &declared {
        assert_eq!(Some(types), defined.get(name), "{name}: the header, and the library");
    }
    let only: Vec<_> = defined.keys().filter(|name| !declared.contains_key(*name)).collect();
    assert!(only.is_empty(), "not in the header: {only:?}");
}

/// The shared library shows what the header declares, and nothing else.
#[test]
fn exported_names() {
    if !has("nm") {
        return skip("no nm");
    }
    let output = succeed(Command::new("nm").args(["-D", "--defined-only"]).arg(built("so")));
    let listed = String::from_utf8(output.stdout).unwrap();
    let exported: BTreeSet<&str> = listed.lines().filter_map(|line| line.split_whitespace().last()).collect();
    let declared = declared();
    let declared: BTreeSet<&str> = declared.keys().map(String::as_str).collect();
    let apart: Vec<_> = exported.symmetric_difference(&declared).collect();
    assert!(apart.is_empty(), "exported or declared alone: {apart:?}");
}

/// Sizes, offsets and constants are those that a C compiler finds in the header.
#[test]
fn structs_and_constants() {
    if !has_compilers() {
        return;
    }
    let mut constants: Vec<(&str, i64)> = STATUSES.iter().map(|(name, number)| (*name, i64::from(*number))).collect();
    constants.extend(STAGES.iter().zip(0..).map(|((name, _), number)| (*name, number)));
    let others = [
        ("BRAID_ALPHA_ON_WHITE", BRAID_ALPHA_ON_WHITE),
        ("BRAID_ALPHA_IGNORE", BRAID_ALPHA_IGNORE),
        ("BRAID_TICKET_WAITING", BRAID_TICKET_WAITING),
        ("BRAID_TICKET_RUNNING", BRAID_TICKET_RUNNING),
        ("BRAID_TICKET_DONE", BRAID_TICKET_DONE),
        ("BRAID_UNSET", BRAID_UNSET as i32),
    ];
    constants.extend(others.map(|(name, number)| (name, i64::from(number))));
    let (mut lines, mut expected) = (String::new(), String::new());
    for (name, size, fields) in LAYOUTS {
        lines += &format!("    printf(\"{name} %u\\n\", (unsigned)sizeof({name}));\n");
        expected += &format!("{name} {size}\n");
        for (field, offset, size) in *fields {
            let values = format!("(unsigned)offsetof({name}, {field}), (unsigned)sizeof((({name} *)0)->{field})");
            lines += &format!("    printf(\"{name}.{field} %u %u\\n\", {values});\n");
            expected += &format!("{name}.{field} {offset} {size}\n");
        }
    }
    for (name, number) in &constants {
        lines += &format!("    printf(\"{name} %d\\n\", (int){name});\n");
        expected += &format!("{name} {number}\n");
    }
    let folder = tempfile::tempdir().unwrap();
    let (source, program) = (folder.path().join("layout.c"), folder.path().join("layout"));
    let code = format!("#include <braid.h>\n#include <stdio.h>\nint main(void) {{\n{lines}    return 0;\n}}\n");
    fs::write(&source, code).unwrap();
    succeed(Language::C99.command().arg("-o").arg(&program).arg(&source));
    let output = succeed(&mut Command::new(&program));
    let found = String::from_utf8(output.stdout).unwrap();
    assert_eq!(found.lines().count(), expected.lines().count());
    for (found, expected) in found.lines().zip(expected.lines()) {
        assert_eq!(found, expected, "the header, and the library");
    }

    // The other way round: what the header has besides.
    let header = header();
    let words: BTreeSet<&str> = header.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
    let ours = |word: &&&str| word.starts_with("BRAID_") && !word.starts_with("BRAID_VERSION");
    for word in words.iter().filter(ours).filter(|word| !["BRAID_H", "BRAID_API"].contains(word)) {
        assert!(constants.iter().any(|(name, _)| name == word), "{word} is only in the header");
    }
    let structs = header.matches("size_t struct_size;").count();
    assert_eq!(structs, LAYOUTS.len(), "structs of the header");
}

#[test]
fn versions() {
    let manifest = |path: &str| {
        let text = fs::read_to_string(root().join(path)).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("version = ")).unwrap().to_owned();
        line.trim_matches('"').to_owned()
    };
    let version = manifest("Cargo.toml");
    assert_eq!(manifest("capi/Cargo.toml"), version);
    let header = header();
    assert!(header.contains(&format!("#define BRAID_VERSION \"{version}\"")), "{version}");
    for (part, number) in ["MAJOR", "MINOR", "PATCH"].iter().zip(version.split('.')) {
        assert!(header.contains(&format!("#define BRAID_VERSION_{part} {number}\n")), "{part} {number}");
    }
    let cmake = fs::read_to_string(root().join("capi/cmake/braid-config-version.cmake")).unwrap();
    assert!(cmake.contains(&format!("set(PACKAGE_VERSION \"{version}\")")), "{cmake}");
    // SAFETY: a text that is never freed.
    let told = unsafe { std::ffi::CStr::from_ptr(braid_c::edge::braid_version()) };
    assert_eq!(told.to_str().unwrap(), version);
}

/// Every function is defined by the macro that stops panics: no other place exports any.
#[test]
fn one_edge() {
    for (file, code) in sources() {
        let expected = if file == "edge.rs" { (1, 1) } else { (0, 0) };
        let found = (code.matches("no_mangle").count(), code.matches("pub unsafe extern \"C\" fn").count());
        assert_eq!(found, expected, "{file}");
    }
}
