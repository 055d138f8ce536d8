//! The rules of the house, read off its sources.
//!
//! [`EXCEPTIONS`] lists what does not satisfy them yet. It may only shrink: an exception that is no longer needed fails, too.

#![allow(clippy::unwrap_used)]

mod circles;
mod lexer;
mod rules;
mod words;
use std::path::{Path, PathBuf};

/// (rule, the beginning of a finding): what is known and waits.
const EXCEPTIONS: &[(&str, &str)] = &[];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// A text file of the repository.
pub struct File {
    /// From the root, with `/`.
    pub path: String,
    /// The contents.
    pub text: String,
}

/// Every text file below `folders`, in order, but none that is built or only data.
fn files(folders: &[&str], endings: &[&str]) -> Vec<File> {
    fn visit(at: &Path, endings: &[&str], found: &mut Vec<File>) {
        if at.is_file() {
            let ending = at.extension().and_then(|e| e.to_str()).unwrap_or_default();
            if endings.contains(&ending) {
                let path = at.strip_prefix(root()).unwrap().to_str().unwrap().replace('\\', "/");
                let text = std::fs::read_to_string(at).unwrap_or_else(|e| panic!("{path}: {e}"));
                found.push(File { path, text });
            }
            return;
        }
        let Ok(entries) = std::fs::read_dir(at) else { return };
        let mut entries: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        entries.sort();
        for entry in entries {
            let skipped = ["target", "data", "goldens", "house", ".git"];
            if !entry.is_dir() || !skipped.iter().any(|name| entry.ends_with(name)) {
                visit(&entry, endings, found);
            }
        }
    }
    let mut found = Vec::new();
    folders.iter().for_each(|folder| visit(&root().join(folder), endings, &mut found));
    assert!(!found.is_empty(), "no file in {folders:?}");
    found
}

/// Fails with every finding that no exception names, and with every exception that names none.
fn hold(rule: &str, findings: Vec<String>) {
    let exceptions: Vec<&str> = EXCEPTIONS.iter().filter(|(of, _)| *of == rule).map(|(_, begins)| *begins).collect();
    let new: Vec<_> = findings.iter().filter(|finding| !exceptions.iter().any(|e| finding.starts_with(e))).collect();
    let old: Vec<_> = exceptions.iter().filter(|e| !findings.iter().any(|finding| finding.starts_with(**e))).collect();
    assert!(new.is_empty(), "{rule}: {} findings:\n{}", new.len(), join(&new));
    assert!(old.is_empty(), "{rule}: exceptions that are no longer needed:\n{}", join(&old));
}

fn join(lines: &[impl std::fmt::Display]) -> String {
    lines.iter().map(|line| format!("  {line}\n")).collect()
}

#[test]
fn file_lengths() {
    let long = files(&["src", "ptx/src", "capi/src"], &["rs"])
        .into_iter()
        .filter(|f| f.text.lines().count() > rules::FILE_LINES);
    hold("file_lengths", long.map(|f| format!("{}: {} lines", f.path, f.text.lines().count())).collect());
}

#[test]
fn function_lengths() {
    let all = files(&["src", "ptx/src", "capi/src"], &["rs"]);
    hold("function_lengths", all.iter().flat_map(|file| rules::long_functions(&file.path, &file.text)).collect());
}

#[test]
fn import_circles() {
    let sources = files(&["src", "ptx/src", "capi/src"], &["rs"]);
    hold("import_circles", circles::circles(&sources));
}

/// The library names a request's fields; flags are the command's.
#[test]
fn no_flags_in_the_library() {
    let library = files(&["src"], &["rs"]);
    let library = library.iter().filter(|f| !f.path.starts_with("src/bin/") && !f.path.starts_with("src/cli/"));
    hold("no_flags_in_the_library", library.flat_map(|file| rules::flags(&file.path, &file.text)).collect());
}

#[test]
fn doc_comment_openings() {
    let all = files(&["src", "ptx", "capi", "tests", "benches", "examples"], &["rs"]);
    hold("doc_comment_openings", all.iter().flat_map(|file| rules::relative_docs(&file.path, &file.text)).collect());
}

#[test]
fn no_unfinished_code() {
    let all = files(&["src", "ptx", "capi", "tests", "benches", "examples"], &["rs"]);
    hold("no_unfinished_code", all.iter().flat_map(|file| rules::unfinished(&file.path, &file.text)).collect());
}

#[test]
fn old_names() {
    let code = ["src", "ptx", "capi", "include", "kernels", "tests", "benches", "examples", "triton", "build.rs"];
    let all = files(
        &[&code[..], &["docs", "tools", "README.md"]].concat(),
        &["rs", "h", "c", "cpp", "cu", "cuh", "md", "py", "sh", "toml"],
    );
    hold("old_names", all.iter().flat_map(|file| words::old_names(&file.path, &file.text)).collect());
}

/// Dependencies of the commands alone are optional for the library.
#[test]
fn cli_dependencies() {
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    hold("cli_dependencies", rules::command_only(&manifest, &["lexopt", "signal-hook", "font8x8", "plotters"]));
}

/// Every row of the catalogue of bad inputs has its test, by number, and its place in docs/reliability.md.
#[test]
fn catalogue_of_bad_inputs() {
    let tests = files(&["tests", "src"], &["rs"]);
    let document = files(&["docs/reliability.md"], &["md"]);
    hold("catalogue_of_bad_inputs", rules::catalogue('b', 1..=45, &tests, &document[0]));
}

/// Files and tests that the documentation names are there.
#[test]
fn named_tests_exist() {
    let tests = files(&["tests", "ptx/tests", "capi/tests", "src", "ptx/src", "capi/src"], &["rs", "py"]);
    let documents = files(&["docs", "README.md", "CONTRIBUTING.md", "SECURITY.md", "ptx/README.md"], &["md"]);
    hold("named_tests_exist", documents.iter().flat_map(|file| rules::named_tests(file, &tests, &root())).collect());
}
