//! Zip archives for torch files.

/// A zip archive as torch writes it, but for the padding; `wide` gives it 64-bit sizes throughout.
pub fn zip(entries: &[(&str, &[u8])], wide: bool) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in entries {
        let (crc, size, at) = (crc32fast::hash(data), data.len() as u64, out.len() as u64);
        let narrow = |n: u64| if wide { u32::MAX } else { n as u32 }.to_le_bytes();
        let name_length = (name.len() as u16).to_le_bytes();
        let extra = |fields: &[u64]| -> Vec<u8> {
            if !wide {
                return Vec::new();
            }
            // Another field comes first, as torch's padding does.
            let mut extra = b"FB\x02\x00ZZ\x01\x00".to_vec();
            extra.extend((8 * fields.len() as u16).to_le_bytes());
            extra.extend(fields.iter().flat_map(|f| f.to_le_bytes()));
            extra
        };
        let local_extra = extra(&[size, size]);
        out.extend(b"PK\x03\x04\x2d\0\0\0\0\0\0\0\0\0");
        out.extend(crc.to_le_bytes());
        out.extend([narrow(size), narrow(size)].concat());
        out.extend([name_length, (local_extra.len() as u16).to_le_bytes()].concat());
        out.extend(name.as_bytes());
        out.extend(local_extra);
        out.extend(*data);
        let central_extra = extra(&[size, size, at]);
        directory.extend(b"PK\x01\x02\x2d\0\x2d\0\0\0\0\0\0\0\0\0");
        directory.extend(crc.to_le_bytes());
        directory.extend([narrow(size), narrow(size)].concat());
        directory.extend([name_length, (central_extra.len() as u16).to_le_bytes()].concat());
        directory.extend([0; 10]);
        directory.extend(narrow(at));
        directory.extend(name.as_bytes());
        directory.extend(central_extra);
    }
    let (offset, size, count) = (out.len() as u64, directory.len() as u64, entries.len() as u64);
    out.extend(directory);
    if wide {
        let record = out.len() as u64;
        out.extend(b"PK\x06\x06\x2c\0\0\0\0\0\0\0\x2d\0\x2d\0\0\0\0\0\0\0\0\0");
        out.extend([count, count, size, offset].map(u64::to_le_bytes).concat());
        out.extend(b"PK\x06\x07\0\0\0\0");
        out.extend(record.to_le_bytes());
        out.extend(b"\x01\0\0\0PK\x05\x06\0\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\0\0");
    } else {
        out.extend(b"PK\x05\x06\0\0\0\0");
        out.extend([(count as u16).to_le_bytes(), (count as u16).to_le_bytes()].concat());
        out.extend([(size as u32).to_le_bytes(), (offset as u32).to_le_bytes()].concat());
        out.extend([0, 0]);
    }
    out
}
