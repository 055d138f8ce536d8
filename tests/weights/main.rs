//! Weight files: what torch and safetensors write, and the catalogue of damaged and hostile ones (B01 to B33).

// The helpers stand outside the test functions, where clippy's exception for tests does not reach.
#![allow(clippy::unwrap_used)]

mod folders;
mod safetensors_files;
mod torch_files;
#[path = "../common/zip.rs"]
mod zip;

use braid::weights::{FileFormat, MappedBytes, OpenOptions, Weights, open, safetensors, sniff, torch};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use zip::zip;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/weights").join(name)
}

/// Opens bytes as a file of that name, mapped and read, which must agree.
fn open_as(name: &str, bytes: &[u8]) -> Result<Weights, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    let mapped = open(&path, &OpenOptions::default()).map_err(|e| e.to_string());
    let read = open(&path, &OpenOptions { mmap: false }).map_err(|e| e.to_string());
    match (&mapped, &read) {
        (Ok(a), Ok(b)) => assert!(a.iter().map(|(n, w)| (n, w.bytes())).eq(b.iter().map(|(n, w)| (n, w.bytes())))),
        (Err(a), Err(b)) => assert_eq!(a, b),
        _ => panic!("{mapped:?} but {read:?}"),
    }
    mapped
}

/// The error of such a file, which must name the file and contain each of `parts`.
#[track_caller]
fn refused(name: &str, bytes: &[u8], parts: &[&str]) {
    let text = open_as(name, bytes).expect_err("must be refused");
    assert!(text.contains(name), "{text}");
    for part in parts {
        assert!(text.contains(part), "`{part}` not in: {text}");
    }
}

const NAME: &str = "model.safetensors";

const BIN: &str = "adapter.bin";

fn st(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend((0..data).map(|i| i as u8));
    bytes
}

fn entry(name: &str, dtype: &str, shape: &str, begin: usize, end: usize) -> String {
    format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
}

fn saved(name: &str) -> Vec<u8> {
    std::fs::read(data(name)).unwrap()
}

/// Fails if a hostile file took long or the process ever used much memory.
fn bounded(work: impl FnOnce()) {
    let start = Instant::now();
    work();
    assert!(start.elapsed() < Duration::from_secs(60), "took {:?}", start.elapsed());
    if let Ok(status) = std::fs::read_to_string("/proc/self/status") {
        let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap().trim().trim_end_matches(" kB");
        assert!(peak.parse::<u64>().unwrap() < 1 << 20, "{peak} kB");
    }
}

#[test]
fn b33_content_before_name() {
    assert_eq!(open_as(NAME, &saved(BIN)).unwrap().len(), 8);
    assert_eq!(open_as(BIN, &saved("small.safetensors")).unwrap().len(), 3);
    refused(NAME, &saved("legacy.bin"), &["before torch 1.6"]);
    let kind = |name| sniff(&MappedBytes::map(&data(name)).unwrap());
    assert_eq!((kind("small.safetensors"), kind(BIN)), (FileFormat::Safetensors, FileFormat::Torch));
    // A header whose length spells the first bytes of another kind.
    for length in [0x0280, 0x3c21, 0x0480] {
        let header = format!("{:length$}", format!("{{{}}}", entry("a", "F16", "[2]", 0, 4)));
        assert_eq!(open_as(NAME, &st(&header, 4)).unwrap().len(), 1);
    }
}

/// Whatever single byte of a sound file changes, reading it gives tensors or an error.
#[test]
fn every_byte_changed() {
    let try_both = |bytes: Vec<u8>| {
        let storage = Arc::new(MappedBytes::owned(bytes));
        let read = safetensors::read(storage.clone(), Path::new(NAME));
        // The format's own reader accepts whatever is accepted here.
        assert!(read.is_err() || ::safetensors::SafeTensors::deserialize(storage.bytes()).is_ok());
        for weights in [torch::read(storage, Path::new(BIN)), read].iter().flatten() {
            weights.iter().for_each(|(_, w)| drop(w.to_f32()));
        }
    };
    let each = |good: &[u8], with: &dyn Fn(Vec<u8>)| {
        for (at, change) in (0..good.len()).flat_map(|at| [0x01, 0x02, 0x80, 0xff].map(|change| (at, change))) {
            let mut bytes = good.to_vec();
            bytes[at] ^= change;
            with(bytes);
        }
    };
    for name in ["adapter.bin", "state_dict.bin", "small.safetensors"] {
        each(&saved(name), &try_both);
    }
    // The pickle once more, so that the checksum does not hide it.
    let whole = saved(BIN);
    let begin = whole.windows(2).position(|w| w == b"\x80\x02").unwrap();
    let end = whole.windows(4).position(|w| w == b"PK\x07\x08").unwrap();
    let storages = [("a/data/0", 24), ("a/data/1", 6), ("a/data/2", 8), ("a/data/3", 48), ("a/data/4", 4)];
    let zeros = [0; 48];
    each(&whole[begin..end], &|pickle| {
        let mut entries = vec![("a/data.pkl", &pickle[..])];
        entries.extend(storages.map(|(name, size)| (name, &zeros[..size])));
        try_both(zip(&entries, false));
    });
}
