//! torch's file format since 1.6: an uncompressed zip archive with a pickle of the structure and a record of bytes for
//! each storage.
//!
//! Source: torch's `torch/serialization.py` and `caffe2/serialize/inline_container.cc`; PKWARE's APPNOTE for the zip.

use super::{Stored, TensorSpec, file};
use crate::atomic_file::AtomicFile;
use crate::error::{Error, Result};
use crate::tensor::DType;
use std::collections::BTreeMap;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

/// Writes synthetic tensors as `torch.save` writes a dictionary of tensors. A name with a dot is nested at the first
/// one: `image_proj.norm.weight` is `norm.weight` in the dictionary `image_proj`. The file appears when it is complete.
///
/// # Errors
/// [`Error::Io`] where the file cannot be written; [`Error::Malformed`] where a size overflows.
pub fn write_torch(path: &Path, tensors: &[TensorSpec]) -> Result<()> {
    write_with(path, tensors, u32::MAX.into())
}

/// Writes the file; `limit` is the size or offset from which the 64-bit fields are used.
fn write_with(path: &Path, tensors: &[TensorSpec], limit: u64) -> Result<()> {
    for tensor in tensors {
        tensor.checked_len(path)?;
    }
    let pickle = pickle(tensors);
    file::write(path, |out| {
        let mut zip = Zip { out, path, entries: Vec::new(), at: 0, limit };
        let bytes = |data: &'static [u8]| move |out: &mut CrcWriter<'_>| out.write_all(data);
        zip.entry("archive/data.pkl", pickle.len() as u64, |out| out.write_all(&pickle))?;
        zip.entry("archive/byteorder", 6, bytes(b"little"))?;
        let mut buffer = Vec::new();
        for (i, tensor) in tensors.iter().enumerate() {
            let size = tensor.bytes().unwrap_or_default() as u64;
            zip.entry(&format!("archive/data/{i}"), size, |out| {
                tensor.write(out, path, &mut buffer).map_err(std::io::Error::other)
            })?;
        }
        zip.entry("archive/version", 2, bytes(b"3\n"))?;
        zip.finish().map_err(Error::io("write", path))
    })
}

/// Writes the opcodes of pickle protocol 2, with what recurs in the memo as Python's own pickler has it.
#[derive(Default)]
struct Pickle {
    out: Vec<u8>,
    memo: BTreeMap<String, u32>,
}

impl Pickle {
    /// A value that is written in full once and fetched from the memo later.
    fn shared(&mut self, key: String, body: impl FnOnce(&mut Vec<u8>)) {
        if let Some(&i) = self.memo.get(&key) {
            self.memo_op(i, b'h', b'j');
            return;
        }
        body(&mut self.out);
        let i = self.memo.len() as u32;
        self.memo_op(i, b'q', b'r');
        self.memo.insert(key, i);
    }

    fn memo_op(&mut self, i: u32, short: u8, long: u8) {
        match u8::try_from(i) {
            Ok(i) => self.out.extend([short, i]),
            Err(_) => {
                self.out.push(long);
                self.out.extend(i.to_le_bytes());
            }
        }
    }

    fn global(&mut self, module: &str, name: &str) {
        let text = format!("c{module}\n{name}\n");
        self.shared(text.clone(), |out| out.extend(text.bytes()));
    }

    fn text(&mut self, text: &str) {
        self.shared(format!("text {text}"), |out| {
            out.push(b'X');
            out.extend((text.len() as u32).to_le_bytes());
            out.extend(text.bytes());
        });
    }

    fn int(&mut self, n: usize) {
        if let Ok(n) = u8::try_from(n) {
            self.out.extend([b'K', n]);
        } else if let Ok(n) = i32::try_from(n) {
            self.out.push(b'J');
            self.out.extend(n.to_le_bytes());
        } else {
            // LONG1: nine bytes hold any usize with its sign.
            self.out.extend([0x8a, 9]);
            self.out.extend((n as u64).to_le_bytes());
            self.out.push(0);
        }
    }

    /// A tuple of numbers.
    fn sizes(&mut self, sizes: &[usize]) {
        self.out.push(b'(');
        sizes.iter().for_each(|&n| self.int(n));
        self.out.push(b't');
    }

    /// `torch._utils._rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict())`.
    fn tensor(&mut self, index: usize, tensor: &TensorSpec) {
        let storage = match tensor.dtype {
            Stored::Float(DType::F32) => "FloatStorage",
            Stored::Float(DType::F16) => "HalfStorage",
            Stored::Float(DType::BF16) => "BFloat16Storage",
            Stored::Positions => "LongStorage",
        };
        self.global("torch._utils", "_rebuild_tensor_v2");
        self.out.extend(b"((");
        self.text("storage");
        self.global("torch", storage);
        self.text(&index.to_string());
        self.text("cpu");
        self.int(tensor.len().unwrap_or_default());
        self.out.extend(b"tQ");
        self.int(0);
        self.sizes(&tensor.shape);
        let mut strides = vec![1usize; tensor.shape.len()];
        for i in (1..strides.len()).rev() {
            strides[i - 1] = strides[i].saturating_mul(tensor.shape[i].max(1));
        }
        self.sizes(&strides);
        self.out.push(0x89);
        self.global("collections", "OrderedDict");
        self.out.extend(b")RtR");
    }
}

/// Tensors of one dictionary: their number and their name there.
type Leaves<'a> = Vec<(usize, &'a str)>;

fn pickle(tensors: &[TensorSpec]) -> Vec<u8> {
    let mut groups: Vec<(Option<&str>, Leaves<'_>)> = Vec::new();
    for (i, tensor) in tensors.iter().enumerate() {
        let (group, leaf) = match tensor.name.split_once('.') {
            Some((group, leaf)) => (Some(group), leaf),
            None => (None, tensor.name.as_str()),
        };
        match groups.iter_mut().find(|(g, _)| *g == group) {
            Some((_, leaves)) => leaves.push((i, leaf)),
            None => groups.push((group, vec![(i, leaf)])),
        }
    }
    let mut p = Pickle::default();
    p.out.extend([0x80, 2, b'}', b'(']);
    for (group, leaves) in groups {
        if let Some(group) = group {
            p.text(group);
            p.out.extend(b"}(");
        }
        for (i, leaf) in leaves {
            p.text(leaf);
            p.tensor(i, &tensors[i]);
        }
        if group.is_some() {
            p.out.push(b'u');
        }
    }
    p.out.extend(b"u.");
    p.out
}

/// Counts the bytes that pass through and computes their CRC.
struct CrcWriter<'a> {
    out: &'a mut BufWriter<AtomicFile>,
    crc: crc32fast::Hasher,
    len: u64,
}

impl Write for CrcWriter<'_> {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        let n = self.out.write(data)?;
        self.crc.update(&data[..n]);
        self.len += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}

struct Entry {
    name: String,
    crc: u32,
    size: u64,
    at: u64,
}

struct Zip<'a> {
    out: &'a mut BufWriter<AtomicFile>,
    path: &'a Path,
    entries: Vec<Entry>,
    at: u64,
    limit: u64,
}

impl Zip<'_> {
    /// A stored entry whose data begin at a multiple of 64 bytes, by an extra field `FB` of padding as torch writes it.
    fn entry(
        &mut self,
        name: &str,
        size: u64,
        body: impl FnOnce(&mut CrcWriter<'_>) -> std::io::Result<()>,
    ) -> Result<()> {
        let io = || Error::io("write", self.path);
        let long = size >= self.limit;
        let mut extra = Vec::new();
        if long {
            extra.extend([1, 0, 16, 0]);
            extra.extend([size.to_le_bytes(), size.to_le_bytes()].concat());
        }
        let end = self.at + 30 + (name.len() + extra.len()) as u64 + 4;
        let padding = (end.next_multiple_of(64) - end) as u16;
        extra.extend(b"FB");
        extra.extend(padding.to_le_bytes());
        extra.resize(extra.len() + usize::from(padding), b'Z');
        let mut header = b"PK\x03\x04".to_vec();
        header.extend(fields(long, 0, if long { u32::MAX } else { size as u32 }));
        header.extend((name.len() as u16).to_le_bytes());
        header.extend((extra.len() as u16).to_le_bytes());
        header.extend(name.bytes());
        header.extend(&extra);
        self.out.write_all(&header).map_err(io())?;
        let mut counted = CrcWriter { out: self.out, crc: crc32fast::Hasher::new(), len: 0 };
        body(&mut counted).map_err(io())?;
        let (crc, len) = (counted.crc.finalize(), counted.len);
        if len != size {
            return Err(Error::malformed(self.path, format!("entry {name} has {len} bytes instead of {size}")));
        }
        // The CRC is known only now: it goes back into the header.
        self.out.seek(SeekFrom::Start(self.at + 14)).map_err(io())?;
        self.out.write_all(&crc.to_le_bytes()).map_err(io())?;
        self.entries.push(Entry { name: name.into(), crc, size, at: self.at });
        self.at += header.len() as u64 + size;
        self.out.seek(SeekFrom::Start(self.at)).map_err(io())?;
        Ok(())
    }

    /// The central directory and its end.
    fn finish(self) -> std::io::Result<()> {
        let mut out = Vec::new();
        for entry in &self.entries {
            let (long, far) = (entry.size >= self.limit, entry.at >= self.limit);
            let mut extra = Vec::new();
            if long {
                extra.extend([entry.size.to_le_bytes(), entry.size.to_le_bytes()].concat());
            }
            if far {
                extra.extend(entry.at.to_le_bytes());
            }
            out.extend(b"PK\x01\x02");
            out.extend(version(long || far));
            out.extend(fields(long || far, entry.crc, if long { u32::MAX } else { entry.size as u32 }));
            out.extend((entry.name.len() as u16).to_le_bytes());
            out.extend((if extra.is_empty() { 0 } else { extra.len() as u16 + 4 }).to_le_bytes());
            // Comment, disk, attributes.
            out.extend([0; 10]);
            out.extend((if far { u32::MAX } else { entry.at as u32 }).to_le_bytes());
            out.extend(entry.name.bytes());
            if !extra.is_empty() {
                out.extend(1u16.to_le_bytes());
                out.extend((extra.len() as u16).to_le_bytes());
                out.extend(&extra);
            }
        }
        let (count, size) = (self.entries.len() as u64, out.len() as u64);
        let long = self.at >= self.limit || count >= 0xffff;
        if long {
            let end = self.at + size;
            out.extend(b"PK\x06\x06");
            out.extend(44u64.to_le_bytes());
            out.extend([version(true), version(true)].concat());
            out.extend([0; 8]);
            [count, count, size, self.at].iter().for_each(|n| out.extend(n.to_le_bytes()));
            out.extend(b"PK\x06\x07\0\0\0\0");
            out.extend(end.to_le_bytes());
            out.extend(1u32.to_le_bytes());
        }
        let short = |n: u64, most: u64| if long { most } else { n };
        out.extend(b"PK\x05\x06\0\0\0\0");
        out.extend([(short(count, 0xffff) as u16).to_le_bytes(), (short(count, 0xffff) as u16).to_le_bytes()].concat());
        out.extend((size as u32).to_le_bytes());
        out.extend((short(self.at, u32::MAX.into()) as u32).to_le_bytes());
        out.extend([0; 2]);
        self.out.write_all(&out)
    }
}

/// The zip version that a reader must know.
fn version(long: bool) -> [u8; 2] {
    [if long { 45 } else { 20 }, 0]
}

/// The fields that local and central headers share: version, flags, method (stored), time (1980), sum, sizes.
fn fields(long: bool, crc: u32, size: u32) -> Vec<u8> {
    let mut out = version(long).to_vec();
    out.extend([0, 0, 0, 0, 0, 0, 0x21, 0]);
    out.extend(crc.to_le_bytes());
    out.extend([size.to_le_bytes(), size.to_le_bytes()].concat());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, shape: &[usize], dtype: DType) -> TensorSpec {
        TensorSpec {
            name: name.into(),
            shape: shape.to_vec(),
            dtype: Stored::Float(dtype),
            scale: 1.0,
            offset: 0.0,
            seed: 3,
        }
    }

    fn tensors() -> Vec<TensorSpec> {
        vec![
            spec("image_proj.proj.weight", &[300, 20], DType::F16),
            spec("image_proj.norm.bias", &[7], DType::F32),
            spec("ip_adapter.1.to_k_ip.weight", &[2, 3], DType::BF16),
            spec("scalar", &[], DType::F32),
        ]
    }

    #[test]
    fn archive() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.bin");
        write_torch(&path, &tensors()).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        // End of the central directory: 7 entries, the directory ends where it begins.
        let end = &bytes[bytes.len() - 22..];
        assert_eq!(&end[..4], b"PK\x05\x06");
        assert_eq!(u16::from_le_bytes([end[8], end[9]]), 7);
        let size = u32::from_le_bytes(end[12..16].try_into().unwrap()) as usize;
        let at = u32::from_le_bytes(end[16..20].try_into().unwrap()) as usize;
        assert_eq!(at + size + 22, bytes.len());
        // The first tensor's record: named, aligned, with its sum.
        let name = b"archive/data/0";
        let local = bytes.windows(14).position(|w| w == name).unwrap() - 30;
        let extra = u16::from_le_bytes([bytes[local + 28], bytes[local + 29]]) as usize;
        let data = local + 30 + name.len() + extra;
        assert_eq!(data % 64, 0);
        let mut expected = vec![0; 12_000];
        tensors()[0].fill(0, &mut expected);
        assert_eq!(bytes[data..data + 12_000], expected);
        assert_eq!(bytes[local + 14..local + 18], crc32fast::hash(&expected).to_le_bytes());
    }

    /// The whole is pinned by its sum: torch 2.11's `torch.load(weights_only=True)` read exactly these bytes, and gave
    /// the values of the recipe, also with the 64-bit fields.
    #[test]
    fn torch_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        write_torch(&path.join("a.bin"), &tensors()).unwrap();
        write_with(&path.join("b.bin"), &tensors(), 1000).unwrap();
        let sum = |name: &str| crc32fast::hash(&std::fs::read(path.join(name)).unwrap());
        assert_eq!((sum("a.bin"), sum("b.bin")), (3_323_549_419, 554_462_594));
    }
}
