//! Helpers shared by the tests.
#![allow(dead_code, clippy::unwrap_used)]

use braid_ptx::{GlobalMemory, Module};

/// A module from `tests/data`.
pub fn module(name: &str) -> Module {
    let path = format!("{}/tests/data/{name}.ptx", env!("CARGO_MANIFEST_DIR"));
    Module::parse(&std::fs::read_to_string(&path).unwrap()).unwrap()
}

/// The line of a source in `tests/data` that holds this text.
pub fn line_of(file: &str, text: &str) -> u32 {
    let path = format!("{}/tests/data/{file}", env!("CARGO_MANIFEST_DIR"));
    let source = std::fs::read_to_string(&path).unwrap();
    // The mark ends its line, so that one name may begin another.
    source.lines().position(|l| l.ends_with(text)).unwrap_or_else(|| panic!("no `{text}` in {file}")) as u32 + 1
}

/// Reproducible random numbers in [-1, 1).
pub fn noise(seed: u32) -> impl FnMut() -> f32 {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    }
}

pub fn upload<const N: usize>(memory: &GlobalMemory, values: impl Iterator<Item = [u8; N]>) -> u64 {
    let bytes: Vec<u8> = values.flatten().collect();
    let at = memory.alloc(bytes.len() as u64);
    memory.write(at, &bytes).unwrap();
    at
}

pub fn download(memory: &GlobalMemory, at: u64, count: usize) -> Vec<f32> {
    let mut bytes = vec![0; 4 * count];
    memory.read(at, &mut bytes).unwrap();
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}
