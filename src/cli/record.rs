//! The record of an image's making in its file, which lets it be made again: the command, and what it depended on.

use super::flag::MetadataExtent;
use super::options::{Invocation, Options};
use crate::pipeline::{Pipeline, WeightsHash};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use xxhash_rust::xxh3::Xxh3;

/// The record, in the PNG text `braid` beside the request's settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The arguments after `braid`; none where one was not UTF-8, and without paths.
    pub command: Option<Vec<String>>,
    /// [`NO_PATHS`] where folders were left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<String>,
    /// The line of `--batch`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch_line: Option<Map<String, Json>>,
    /// The image's number among those of its request, from 0.
    #[serde(default)]
    pub number: usize,
    /// The files that the request read besides the models.
    pub inputs: Vec<Input>,
    /// The rest, the same for all images of a command.
    #[serde(flatten)]
    pub provenance: Provenance,
}

/// The part of a record that a pipeline makes, whatever the request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// The device.
    pub device: String,
    /// The type in which noise was drawn.
    pub noise_dtype: String,
    /// For each model `fingerprint:` or `xxh3:` and the hexadecimal digits of its weights' fingerprint or hash.
    pub weights: BTreeMap<String, String>,
}

/// A file that a request read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Input {
    /// Its path as it was given, or its last name alone.
    pub path: String,
    /// XXH3's 128 bits of its bytes; none where it cannot be read again, such as a pipe.
    pub xxh3: Option<String>,
}

/// The mark of a record without paths.
pub const NO_PATHS: &str = "no-paths";

/// The word before a fingerprint, and that before a hash.
pub const FINGERPRINT: &str = "fingerprint:";
const HASH: &str = "xxh3:";

impl Provenance {
    /// The part that a pipeline makes; `hashes` reads its weights whole.
    pub fn new(pipeline: &Pipeline, hashes: bool) -> Self {
        Self {
            device: pipeline.device(),
            noise_dtype: pipeline.dtype().to_string(),
            weights: digests(pipeline, hashes).into_iter().map(|(of, digest)| (of.model, digest)).collect(),
        }
    }

    /// The models whose weights are others than those of the record, with the files that they come from now.
    pub fn other_weights(&self, pipeline: &Pipeline) -> Vec<String> {
        let hashes = self.weights.values().any(|digest| digest.starts_with(HASH));
        let now = digests(pipeline, hashes);
        let mut others: Vec<String> = now
            .iter()
            .filter(|(of, digest)| self.weights.get(&of.model) != Some(digest))
            .map(|(of, _)| format!("{} of {}", of.model, of.path.display()))
            .collect();
        let gone = self.weights.keys().filter(|model| now.iter().all(|(of, _)| of.model != **model));
        others.extend(gone.map(|model| format!("{model}, which is not loaded now")));
        others
    }
}

/// A fingerprint or a hash of each model's weights.
fn digests(pipeline: &Pipeline, hashes: bool) -> Vec<(WeightsHash, String)> {
    let (all, word) = match hashes {
        true => (pipeline.weight_hashes(), HASH),
        false => (pipeline.weight_fingerprints(), FINGERPRINT),
    };
    let digest = |of: WeightsHash| {
        let digest = format!("{word}{:032x}", of.hash);
        (of, digest)
    };
    all.into_iter().map(digest).collect()
}

impl Input {
    fn of(path: &Path, extent: MetadataExtent) -> Self {
        Self { path: extent.path(path), xxh3: hash_file(path) }
    }

    /// The reason why the file cannot take part again; none where it is the same.
    pub fn problem(&self) -> Option<String> {
        let path = Path::new(&self.path);
        let problem = match (&self.xxh3, hash_file(path)) {
            (None, _) => "was no regular file, or was gone when the image was written",
            (Some(then), Some(now)) if *then == now => return None,
            (Some(_), Some(_)) => "is another file than it was",
            (Some(_), None) if path.exists() => "cannot be read",
            (Some(_), None) => "is not there",
        };
        Some(format!("{} {problem}", self.path))
    }
}

/// A hash of a file's bytes; none where it is no regular file or cannot be read.
fn hash_file(path: &Path) -> Option<String> {
    // Before opening, because a pipe would make that wait for a writer.
    if !path.is_file() {
        return None;
    }
    let (mut file, mut hasher, mut buffer) = (File::open(path).ok()?, Xxh3::new(), vec![0u8; 1 << 16]);
    loop {
        match file.read(&mut buffer).ok()? {
            0 => return Some(format!("{:032x}", hasher.digest128())),
            read => hasher.update(&buffer[..read]),
        }
    }
}

impl Record {
    /// The record of an image of these requests: one, or all those of a grid.
    pub fn new(requests: &[Options], number: usize, provenance: &Provenance) -> Self {
        let mut files: Vec<&Path> = requests.iter().flat_map(Options::input_files).collect();
        files.sort();
        files.dedup();
        let first = requests.first().map(|options| (options.invocation.clone(), options.metadata));
        let (mut invocation, extent) = first.unwrap_or_default();
        let without = extent == MetadataExtent::NoPaths;
        if without {
            invocation = Invocation::default();
        }
        Self {
            command: invocation.command,
            metadata: without.then(|| NO_PATHS.to_owned()),
            batch_line: invocation.line,
            number,
            inputs: files.into_iter().map(|path| Input::of(path, extent)).collect(),
            provenance: provenance.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every byte of a file counts, that of a long one's end, too; what had no hash is told.
    #[test]
    fn long_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("long");
        let mut bytes = vec![7u8; 200_000];
        std::fs::write(&path, &bytes).unwrap();
        let input = Input::of(&path, MetadataExtent::Full);
        assert_eq!(input.problem(), None);
        bytes[199_999] = 8;
        std::fs::write(&path, &bytes).unwrap();
        assert!(input.problem().unwrap().ends_with("is another file than it was"));
        assert!(Input::of(dir.path(), MetadataExtent::Full).problem().unwrap().contains("was no regular file"));
    }
}
