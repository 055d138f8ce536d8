//! The targets: every reader of files and texts that strangers write.

mod images;
mod requests;
mod settings;
mod weights;

use crate::driver::{Answer, Target, fuzz};
use crate::repair;
use braid::cli::failure::Failure;
use braid::cli::flags::FlagNames;
use braid::error::Error;
use std::path::{Path, PathBuf};

/// The name of an input in errors.
const FILE: &str = "mutated.file";

fn data(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)
}

/// The files of a folder, in the order of their names, but large ones.
fn seeds(folder: &str) -> Vec<Vec<u8>> {
    let entries = std::fs::read_dir(data(folder)).unwrap_or_else(|e| panic!("{folder}: {e}"));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_file()).collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).unwrap()).filter(|bytes| bytes.len() <= 20 << 10).collect()
}

/// The lines of a file.
fn lines(file: &str) -> Vec<Vec<u8>> {
    std::fs::read_to_string(data(file)).unwrap().lines().map(|line| line.as_bytes().to_vec()).collect()
}

/// A size as a letter, so that another order of magnitude is another kind of answer.
fn size(n: usize) -> char {
    (b'a' + n.checked_ilog2().map_or(0, |bits| bits as u8 / 2 + 1)) as char
}

/// The text of an error, which names the file.
fn named<T>(result: braid::Result<T>, file: &str) -> Result<T, String> {
    result.map_err(|error| {
        let text = error.to_string();
        assert!(text.contains(file) || matches!(error, Error::Parameter { .. }), "no `{file}` in: {text}");
        text
    })
}

/// The same of a command's failure.
fn told(failure: &Failure, file: &str) -> String {
    let text = failure.text(&FlagNames).unwrap();
    assert!(text.contains(file), "no `{file}` in: {text}");
    text
}
