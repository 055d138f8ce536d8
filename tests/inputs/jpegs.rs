//! JPEG files against PIL (tools/goldens/make_jpegs.py), to the byte.

use crate::images::{data, fnv, lines, pair, refused};
use braid::Error;
use braid::inputs::image::{AlphaMode, Image};

fn file(name: &str) -> Vec<u8> {
    std::fs::read(data(&format!("jpeg/{name}.jpg"))).unwrap()
}

fn decode(bytes: &[u8]) -> Result<Image, Error> {
    Image::decode(bytes, "bad.file", AlphaMode::Ignore)
}

/// Every sampling, order of scans, colour space and size: PIL's bytes.
#[test]
fn jpegs_as_pil() {
    let cases = lines("jpeg/cases.json");
    assert_eq!(cases.len(), 101);
    let mut failed = Vec::new();
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let image = decode(&file(name)).unwrap();
        assert_eq!([image.width(), image.height()], pair(&case["size"]), "{name}");
        let head = serde_json::to_value(&image.rgb()[..image.rgb().len().min(12)]).unwrap();
        if fnv(image.rgb().iter().copied()) != case["fnv"].as_str().unwrap() {
            failed.push(format!("{name}: begins {head}, PIL's {}", case["head"]));
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

/// A folder that `make_jpegs.py DIR COUNT SEED` has made, where BRAID_JPEGS names one: thousands of random files.
#[test]
fn jpegs_of_a_larger_corpus() {
    let Ok(folder) = std::env::var("BRAID_JPEGS") else { return };
    let (mut same, mut neither) = (0, 0);
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "jpg") {
            continue;
        }
        match (Image::open(&path, AlphaMode::Ignore), std::fs::read(path.with_extension("rgb"))) {
            (Ok(image), Ok(rgb)) => {
                let size = [image.width(), image.height()].map(|n| n as u32).map(u32::to_le_bytes).concat();
                assert!(rgb[..8] == size && image.rgb() == &rgb[8..], "{path:?}");
                same += 1;
            }
            (Err(_), Err(_)) => neither += 1,
            (ours, _) => panic!("{path:?}: {ours:?}, unlike PIL"),
        }
    }
    println!("{same} the same, {neither} refused by both");
}

/// Each kind that is not read, by its name.
#[test]
fn jpegs_of_other_kinds() {
    let good = file("extended");
    let frame = good.windows(2).position(|w| w == [0xff, 0xc1]).unwrap();
    let patched = |at: usize, values: &[u8]| {
        let mut bytes = good.clone();
        bytes[frame + at..][..values.len()].copy_from_slice(values);
        bytes
    };
    for (at, values, says) in [
        (1, &[0xc3][..], "lossless JPEG"),
        (1, &[0xcb], "lossless JPEG"),
        (1, &[0xc9], "arithmetic coding"),
        (1, &[0xca], "arithmetic coding"),
        (1, &[0xc5], "hierarchical JPEG"),
        (1, &[0xde], "hierarchical JPEG"),
        (4, &[12], "samples of 12 bits"),
        (5, &[0, 0], "its height is told after the data (DNL)"),
        (7, &[0, 0], "its size is 0x29"),
        (9, &[2], "it has 2 components"),
        (9, &[4], "wrong length"),
        (11, &[0x51], "sampling factors are not from 1 to 4"),
        (11, &[0x33, 0, 2, 0x21], "a fraction of the pixels"),
        (12, &[3], "a quantization table is missing"),
    ] {
        refused(&patched(at, values), says);
    }
    let tables = [&good[..frame], &[0xff, 0xd9]].concat();
    refused(&tables, "it holds no image, only tables");
    let scan = good.windows(2).position(|w| w == [0xff, 0xda]).unwrap();
    refused(&[&good[..frame], &good[scan..]].concat(), "its image data come before their header");
    refused(&[&good[..scan], &good[frame..]].concat(), "it has two headers");
    refused(&[&good[..2], &good[..]].concat(), "a second file begins within it");
    let end = good.len() - 2;
    refused(&[&good[..end], &good[scan..]].concat(), "it has more data than its header says");
}

/// A file without an end marker is cut short, as for PIL; an end marker within the data leaves gray, without an error. At three quarters
/// of the progressive file the end lies within a table, which PIL refuses, too.
#[test]
fn jpegs_that_end_early() {
    for name in ["q90_420", "progressive_420", "apart", "restart"] {
        let good = file(name);
        refused(&good[..good.len() - 2], "the JPEG file is cut short");
        let half = [&good[..good.len() * 3 / 4], &[0xff, 0xd9]].concat();
        if name == "progressive_420" {
            refused(&half, "the JPEG file is cut short");
            continue;
        }
        let image = decode(&half).unwrap();
        assert_eq!(image.rgb().len(), decode(&good).unwrap().rgb().len());
        assert_ne!(image, decode(&good).unwrap(), "{name}");
    }
}
