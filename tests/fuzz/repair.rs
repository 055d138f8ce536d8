//! Lengths and checksums made right again after a mutation.

use braid::weights::{MappedBytes, safetensors};
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;
use xxhash_rust::xxh3::Xxh3;

/// The most bytes of tensors that are made up for a header.
const DATA: usize = 1 << 16;

pub fn nothing(_: &[u8]) -> Option<Vec<u8>> {
    None
}

/// A PNG with every chunk's checksum right.
pub fn png(bytes: &[u8]) -> Option<Vec<u8>> {
    const SIGNATURE: usize = 8;
    if !bytes.starts_with(b"\x89PNG") {
        return None;
    }
    let (mut out, mut at) = (bytes.to_vec(), SIGNATURE);
    while let Some(length) = bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_be_bytes) {
        let end = at + 8 + length as usize;
        let Some(body) = bytes.get(at + 4..end).filter(|_| bytes.len() >= end + 4) else { break };
        out[end..end + 4].copy_from_slice(&crc32fast::hash(body).to_be_bytes());
        at = end + 4;
    }
    Some(out)
}

/// A PNG of one gray pixel with these chunks before the data.
pub fn png_with(chunks: &[([u8; 4], Vec<u8>)]) -> Vec<u8> {
    let mut out = b"\x89PNG\r\n\x1a\n".to_vec();
    let header = [0, 0, 0, 1, 0, 0, 0, 1, 8, 0, 0, 0, 0];
    let row = [0x78, 0x01, 0x63, 0x60, 0, 0, 0, 2, 0, 1];
    let ends = [(*b"IDAT", row.to_vec()), (*b"IEND", Vec::new())];
    for (kind, data) in [(*b"IHDR", header.to_vec())].iter().chain(chunks).chain(&ends) {
        out.extend((data.len() as u32).to_be_bytes());
        let body = [&kind[..], data].concat();
        out.extend(&body);
        out.extend(crc32fast::hash(&body).to_be_bytes());
    }
    out
}

/// A safetensors file whose length is that of its header, and whose tensors have as many bytes as the header says.
pub fn header(bytes: &[u8]) -> Option<Vec<u8>> {
    let text = bytes.get(8..)?;
    let end = object_end(text)?;
    let header = serde_json::from_slice::<Value>(&text[..end]).ok()?;
    let ends = header.as_object()?.values().filter_map(|tensor| tensor["data_offsets"][1].as_u64());
    let length = usize::try_from(ends.max().unwrap_or(0)).ok().filter(|length| *length <= DATA)?;
    let mut data = text[end..].to_vec();
    data.resize(length, 0x3c);
    Some(file(&text[..end], &data))
}

fn file(header: &[u8], data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header, data].concat()
}

/// The end of the JSON object that begins a text.
fn object_end(text: &[u8]) -> Option<usize> {
    let (mut depth, mut quoted, mut escaped) = (0usize, false, false);
    for (i, byte) in text.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'{' if !quoted => depth += 1,
            b'}' if !quoted => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return Some(i + 1);
                }
            }
            _ => {}
        }
    }
    None
}

/// An image-prompt file whose checksum is right, too.
pub fn image_prompt(bytes: &[u8]) -> Option<Vec<u8>> {
    let bytes = header(bytes)?;
    let end = 8 + object_end(&bytes[8..])?;
    let tensors = safetensors::read(Arc::new(MappedBytes::owned(bytes.clone())), Path::new("w")).ok()?;
    let mut hasher = Xxh3::new();
    for text in tensors.metadata().iter().filter(|(key, _)| *key != "checksum").flat_map(|(key, value)| [key, value]) {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    }
    hasher.update(&tensors.hash().to_le_bytes());
    let mut header: Value = serde_json::from_slice(&bytes[8..end]).ok()?;
    header
        .get_mut("__metadata__")?
        .as_object_mut()?
        .insert("checksum".into(), format!("{:032x}", hasher.digest128()).into());
    Some(file(header.to_string().as_bytes(), &bytes[end..]))
}
