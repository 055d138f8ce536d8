//! Safetensors files: B01 to B19.

use super::*;
use braid::tensor::DType;

fn two(a: (usize, usize), b: (usize, usize)) -> String {
    format!("{{{},{}}}", entry("a", "F16", "[2]", a.0, a.1), entry("b", "F16", "[2]", b.0, b.1))
}

#[test]
fn safetensors_round_trip() {
    let path = data("small.safetensors");
    let weights = open(&path, &OpenOptions::default()).unwrap();
    assert_eq!(weights.iter().map(|(n, _)| n).collect::<Vec<_>>(), ["bias", "scale", "weight"]);
    let weight = weights.get("weight").unwrap();
    assert_eq!((weight.dtype(), weight.shape()), (DType::F16, &[3, 4][..]));
    assert_eq!(weight.to_f32(), (0..12).map(|i| i as f32).collect::<Vec<_>>());
    assert_eq!(weights.get("bias").unwrap().to_f32(), [0.5, -1.0, 3.0]);
    assert_eq!((weights.get("scale").unwrap().to_f32(), weights.get("scale").unwrap().shape()), (vec![2.25], &[][..]));
    let metadata = safetensors::metadata(&MappedBytes::map(&path).unwrap(), &path).unwrap();
    assert_eq!(metadata["modelspec.architecture"], "stable-diffusion-xl-v1-base");
}

#[test]
fn b01_empty() {
    refused(NAME, b"", &["the file is empty"]);
    let storage = Arc::new(MappedBytes::owned(Vec::new()));
    assert!(safetensors::read(storage.clone(), Path::new(NAME)).unwrap_err().to_string().contains("0 bytes"));
    assert!(torch::read(storage, Path::new(NAME)).unwrap_err().to_string().contains("not a zip archive"));
}

#[test]
fn b02_seven_bytes() {
    refused(NAME, &[0; 7], &["7 bytes, fewer than the 8"]);
}

#[test]
fn b03_header_length_of_u64_max() {
    refused(NAME, &[0xff; 64], &["header length is 18446744073709551615", "100000000"]);
}

#[test]
fn b04_header_longer_than_allowed() {
    let mut bytes = 100_000_001u64.to_le_bytes().to_vec();
    bytes.extend(b"{}");
    refused(NAME, &bytes, &["header length is 100000001"]);
    bytes[..8].copy_from_slice(&100_000_000u64.to_le_bytes());
    refused(NAME, &bytes, &["truncated: 99999998 bytes are missing"]);
}

#[test]
fn b05_header_not_utf8() {
    let mut bytes = st(r#"{"abc":1}"#, 0);
    bytes[11] = 0xff;
    refused(NAME, &bytes, &["not UTF-8 at byte 11"]);
}

#[test]
fn b06_deeply_nested_json() {
    let nested = "[".repeat(1_000_000);
    refused(NAME, &st(&nested, 0), &["header is not valid"]);
    refused(NAME, &st(&format!(r#"{{"a":{nested}"#), 0), &["header is not valid", "tensor `a`"]);
    let extra = format!(r#"{{"a":{{"dtype":"F16","x":{nested}"#);
    refused(NAME, &st(&extra, 0), &["header is not valid"]);
}

#[test]
fn memory_exhausting_headers() {
    bounded(|| {
        let zeros = format!("[{}0]", "0,".repeat(5_000_000));
        refused(
            NAME,
            &st(&format!("{{{}}}", entry("a", "F16", &zeros, 0, 0)), 0),
            &["tensor `a`: a shape of more than 8 dimensions"],
        );
        let many = (0..100_000).map(|i| entry(&i.to_string(), "F16", "[0]", 0, 0)).collect::<Vec<_>>().join(",");
        assert_eq!(open_as(NAME, &st(&format!("{{{many}}}"), 0)).unwrap().len(), 100_000);
        let unknown = format!(r#"{{"a":{{"dtype":"F16","x":{zeros},"shape":[0],"data_offsets":[0,0]}}}}"#);
        assert_eq!(open_as(NAME, &st(&unknown, 0)).unwrap().len(), 1);
    });
}

#[test]
fn b07_overlapping_offsets() {
    refused(NAME, &st(&two((0, 4), (2, 6)), 6), &["tensor `b` begins at byte 2 and overlaps `a`, which ends at 4"]);
    refused(NAME, &st(&two((0, 4), (3, 7)), 7), &["begins at byte 3 and overlaps"]);
    refused(NAME, &st(&two((0, 4), (0, 4)), 4), &["overlaps"]);
}

#[test]
fn b08_hole() {
    refused(NAME, &st(&two((0, 4), (6, 10)), 10), &["a hole of 2 bytes before tensor `b` at byte 6"]);
    refused(NAME, &st(&two((1, 5), (5, 9)), 9), &["a hole of 1 bytes before tensor `a`"]);
}

#[test]
fn b09_trailing_bytes() {
    refused(NAME, &st(&two((0, 4), (4, 8)), 11), &["3 extra bytes"]);
}

#[test]
fn b10_truncated() {
    let whole = st(&two((0, 4), (4, 8)), 8);
    assert_eq!(open_as(NAME, &whole).unwrap().len(), 2);
    refused(NAME, &whole[..whole.len() - 1], &["truncated: 1 bytes are missing"]);
    refused(NAME, &whole[..whole.len() / 2], &["truncated:", &format!("found {}", whole.len() / 2)]);
    let large = st(&format!("{{{}}}", entry("a", "F32", "[1000]", 0, 4000)), 4000);
    refused(NAME, &large[..large.len() - 2000], &["truncated: 2000 bytes are missing (expected 4000, found 2000)"]);
}

#[test]
fn b11_shape_product_overflows() {
    let header = format!("{{{}}}", entry("a", "F16", "[9223372036854775808,4]", 0, 4));
    refused(NAME, &st(&header, 4), &["tensor `a`", "overflows", "9223372036854775808"]);
    let header = format!("{{{}}}", entry("a", "F16", "[1152921504606846976]", 0, 4));
    refused(NAME, &st(&header, 4), &["tensor `a`", "overflows"]);
    let header = format!("{{{}}}", entry("a", "F16", "[99999999999999999999]", 0, 4));
    refused(NAME, &st(&header, 4), &["tensor `a`"]);
    let header = format!("{{{}}}", entry("a", "F16", "[0,1099511627776,1099511627776]", 0, 0));
    refused(NAME, &st(&header, 0), &["tensor `a`"]);
    let header = format!("{{{}}}", entry("a", "F16", "[-1]", 0, 4));
    refused(NAME, &st(&header, 4), &["tensor `a`", "-1"]);
}

#[test]
fn b12_dtype_and_size_differ() {
    let header = format!("{{{}}}", entry("a", "F32", "[3]", 0, 6));
    refused(NAME, &st(&header, 6), &["tensor `a`: F32 [3] needs 12 bytes, its offsets 0..6 give 6"]);
    let header = format!("{{{}}}", entry("a", "F32", "[3]", 6, 0));
    refused(NAME, &st(&header, 6), &["tensor `a` ends at byte 0, before its begin at 6"]);
}

#[test]
fn b13_duplicate_key() {
    let header = format!("{{{},{}}}", entry("a", "F16", "[2]", 0, 4), entry("a", "F16", "[2]", 0, 4));
    refused(NAME, &st(&header, 4), &["the name `a` is there twice"]);
    refused(NAME, &st(r#"{"__metadata__":{},"__metadata__":{}}"#, 0), &["`__metadata__` is there twice"]);
    let header = r#"{"a":{"dtype":"F16","dtype":"F16","shape":[2],"data_offsets":[0,4]}}"#;
    refused(NAME, &st(header, 4), &["tensor `a`", "duplicate field `dtype`"]);
}

#[test]
fn b14_unaligned_data() {
    for pad in 0..8 {
        let header = format!("{{{}}}{}", entry("a", "F32", "[2]", 0, 8), " ".repeat(pad));
        let mut bytes = st(&header, 0);
        bytes.extend([1.5f32.to_le_bytes(), (-2.0f32).to_le_bytes()].concat());
        let weights = open_as(NAME, &bytes).unwrap();
        assert_eq!(weights.get("a").unwrap().to_f32(), [1.5, -2.0]);
        assert!(weights.not_finite().is_empty());
    }
}

#[test]
fn b15_unknown_dtype() {
    let one = |dtype, size| st(&format!("{{{}}}", entry("a", dtype, "[2]", 0, size)), size);
    refused(NAME, &one("Q7", 2), &["tensor `a`", "Q7"]);
    // Types that no model reads are no reason to refuse the rest of a file: a model that needs them says so.
    for (dtype, size) in [("I64", 16), ("U8", 2), ("BOOL", 2), ("I32", 8), ("F64", 16), ("F8_E8M0", 2)] {
        let weights = open_as(NAME, &one(dtype, size)).unwrap();
        assert!(weights.is_empty() && weights.contains("a"), "{dtype}");
        assert_eq!(weights.skipped().collect::<Vec<_>>(), [("a", dtype)]);
    }
}

/// Floats of 8 bits are widened, without loss, and times their scale; one whose scale is not understood is no value.
#[test]
fn floats_of_8_bits() {
    let mut bytes = st(&format!("{{{}}}", entry("a", "F8_E4M3", "[9]", 0, 9)), 0);
    bytes.extend([0x00, 0x01, 0x07, 0x08, 0x38, 0x39, 0x7e, 0xb8, 0x7f]);
    let values = open_as(NAME, &bytes).unwrap().get("a").unwrap().to_f32();
    let smallest = 2f32.powi(-9);
    assert_eq!(values[..8], [0.0, smallest, 7.0 * smallest, 2f32.powi(-6), 1.0, 1.125, 448.0, -1.0]);
    assert!(values[8].is_nan());
    let mut bytes = st(&format!("{{{}}}", entry("a", "F8_E5M2", "[6]", 0, 6)), 0);
    bytes.extend([0x00, 0x01, 0x3c, 0x3d, 0xbc, 0x7b]);
    let values = open_as(NAME, &bytes).unwrap().get("a").unwrap().to_f32();
    assert_eq!(values, [0.0, 2f32.powi(-16), 1.0, 1.25, -1.0, 57344.0]);

    // Two rows of 1 and 1.125.
    let scaled = |name: &str, count: usize, scale: [f32; 2], more: &str| {
        let (matrix, end) = (entry("m.weight", "F8_E4M3", "[2,2]", 0, 4), 4 + 4 * count);
        let header = format!("{{{matrix},{}{more}}}", entry(name, "F32", &format!("[{count}]"), 4, end));
        let mut bytes = st(&header, 0);
        bytes.extend([0x38, 0x39, 0x38, 0x39]);
        bytes.extend(scale[..count].iter().flat_map(|scale| scale.to_le_bytes()));
        open_as(NAME, &bytes).unwrap()
    };
    let values = |weights: &Weights| weights.get("m.weight").unwrap().to_f32();
    for name in ["m.scale_weight", "m.weight_scale"] {
        let one = scaled(name, 1, [0.5, 0.0], "");
        assert_eq!((values(&one), one.names().count()), (vec![0.5, 0.5625, 0.5, 0.5625], 1));
        assert_eq!(values(&scaled(name, 2, [0.5, 4.0], "")), [0.5, 0.5625, 4.0, 4.5]);
    }
    let other = scaled("other.weight_scale", 1, [0.5, 0.0], "");
    assert_eq!(other.skipped().collect::<Vec<_>>(), [("m.weight", "F8_E4M3")]);
}

#[test]
fn b16_not_finite_weights() {
    let header = format!(
        "{{{},{},{}}}",
        entry("a", "F16", "[2]", 0, 4),
        entry("b", "BF16", "[2]", 4, 8),
        entry("c", "F32", "[1]", 8, 12)
    );
    let mut bytes = st(&header, 0);
    bytes.extend([0x00, 0x3c, 0x00, 0x7c]); // 1, inf
    bytes.extend([0x80, 0x3f, 0x7f, 0x7f]); // 1, the largest
    bytes.extend(f32::NAN.to_le_bytes());
    assert_eq!(open_as(NAME, &bytes).unwrap().not_finite(), ["a", "c"]);
}

#[test]
fn b19_pages_and_pointers() {
    let lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 6938040682\n";
    for name in [NAME, "ip-adapter_sdxl.bin"] {
        refused(name, lfs, &["git-LFS pointer", "git lfs pull"]);
        refused(name, b"<!DOCTYPE html>\n<html><body>Log in</body></html>", &["HTML"]);
        refused(name, b"\xef\xbb\xbf\n <html lang=en>", &["HTML"]);
        refused(name, br#"{"error":"Repository not found"}"#, &["JSON"]);
    }
    refused("model.bin", b"GGUF\x03\0\0\0\0\0\0\0", &["GGUF"]);
    refused("model.bin", b"random text", &["neither a safetensors nor a torch file", "72"]);
}

/// Names of tensors are in the notes of a report; they reach a terminal escaped.
#[test]
fn names_in_a_report() {
    let report = braid::inspect::FileReport {
        path: "a\u{9b}.safetensors".into(),
        family: "a VAE".into(),
        supported: true,
        components: Vec::new(),
        notes: vec!["NaN in 1 tensor, the first is conv\u{1b}[31m.weight".into()],
        fits: vec!["SDXL\u{7}".into()],
    };
    let text = report.to_string();
    assert!(text.contains("the first is conv\\u{1b}[31m.weight"), "{text:?}");
    assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
}
