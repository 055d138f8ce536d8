//! Formats of weight files, told by their first bytes.

use super::mmap::MappedBytes;

/// The greatest length of a safetensors header; the format's own limit.
pub const MAX_HEADER: usize = 100_000_000;

/// The format of a file by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileFormat {
    /// A safetensors file.
    Safetensors,
    /// A zip archive, as `torch.save` writes since torch 1.6.
    Torch,
    /// A known format that is not usable; the text names it and the remedy.
    Foreign(&'static str),
    /// An unknown format.
    Unknown,
}

/// Detects the format by the first bytes.
pub fn sniff(storage: &MappedBytes) -> FileFormat {
    let bytes = storage.bytes();
    // First, because a header length may spell the first bytes of another kind; a text never gives one so small.
    if plausible_header(bytes) && bytes.get(8) == Some(&b'{') {
        return FileFormat::Safetensors;
    }
    if bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(b"PK\x05\x06") {
        return FileFormat::Torch;
    }
    foreign(bytes).map_or(FileFormat::Unknown, FileFormat::Foreign)
}

/// Whether the file begins with a header length that safetensors allows.
fn plausible_header(bytes: &[u8]) -> bool {
    bytes.first_chunk::<8>().is_some_and(|n| u64::from_le_bytes(*n) <= MAX_HEADER as u64)
}

/// Recognizes the other kinds of file that carry a weight file's name in practice.
pub(super) fn foreign(bytes: &[u8]) -> Option<&'static str> {
    if plausible_header(bytes) {
        return None;
    }
    let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes).trim_ascii_start();
    if bytes.starts_with(b"version https://git-lfs.github.com/spec/") {
        return Some("a git-LFS pointer, not the file itself; run `git lfs pull` or fetch the file again");
    }
    if text.first() == Some(&b'<') && text.get(1).is_some_and(|&c| c == b'!' || c == b'?' || c.is_ascii_alphabetic()) {
        return Some(
            "an HTML or XML page, not weights: the download gave an error or a login page; fetch the file again",
        );
    }
    if text.starts_with(b"{\"") {
        return Some("a JSON text, not weights; fetch the file again");
    }
    if bytes.starts_with(b"GGUF") {
        return Some("a GGUF file, which is not supported; use the safetensors version of this model");
    }
    if bytes.starts_with(b"\x80\x02") || bytes.starts_with(b"\x80\x04") || bytes.starts_with(b"\x80\x05") {
        return Some(
            "a torch file of the layout before torch 1.6 (a bare pickle), which is not supported; save it again with torch 1.6 \
             or newer: torch.save(torch.load(OLD, weights_only=True), NEW), or as safetensors",
        );
    }
    None
}
