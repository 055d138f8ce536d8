//! Torch files: B21 to B32.

use super::*;
use braid::tensor::DType;

fn archive(pickle: &[u8]) -> Vec<u8> {
    zip(&[("a/data.pkl", pickle), ("a/data/0", &[0; 24])], false)
}

fn text(s: &str) -> Vec<u8> {
    [b"X", &(s.len() as u32).to_le_bytes()[..], s.as_bytes()].concat()
}

/// `{'w': _rebuild_tensor_v2(storage of `count` f32, offset, shape, strides, False, OrderedDict())}`
fn tensor(count: u8, offset: u8, shape: &[u8], strides: &[u8]) -> Vec<u8> {
    let tuple = |items: &[u8]| [b"(".to_vec(), items.iter().flat_map(|&n| [b'K', n]).collect(), b"t".to_vec()].concat();
    [
        b"\x80\x02}".to_vec(),
        text("w"),
        b"ctorch._utils\n_rebuild_tensor_v2\n((".to_vec(),
        text("storage"),
        b"ctorch\nFloatStorage\n".to_vec(),
        text("0"),
        text("cpu"),
        vec![b'K', count, b't', b'Q', b'K', offset],
        tuple(shape),
        tuple(strides),
        b"\x89ccollections\nOrderedDict\n)RtRs.".to_vec(),
    ]
    .concat()
}

#[test]
fn torch_round_trip() {
    let weights = open(&data(BIN), &OpenOptions::default()).unwrap();
    let get = |name: &str| {
        let weight = weights.get(name).unwrap_or_else(|| panic!("{name} is missing"));
        (weight.dtype(), weight.shape().to_vec(), weight.strides().to_vec(), weight.to_f32())
    };
    let base: Vec<f32> = (0..12).map(|i| i as f32).collect();
    assert_eq!(get("image_proj.proj.weight"), (DType::F16, vec![3, 4], vec![4, 1], base.clone()));
    assert_eq!(get("image_proj.proj.bias"), (DType::BF16, vec![3], vec![1], vec![0.5, -1.0, 3.0]));
    assert_eq!(get("image_proj.norm.weight"), (DType::F32, vec![2], vec![1], vec![1.5, 2.5]));
    assert_eq!(get("ip_adapter.1.to_k_ip.weight"), (DType::F32, vec![3, 4], vec![4, 1], base));
    let transposed = vec![0., 4., 8., 1., 5., 9., 2., 6., 10., 3., 7., 11.];
    assert_eq!(get("ip_adapter.1.to_v_ip.weight"), (DType::F32, vec![4, 3], vec![1, 4], transposed));
    assert_eq!(get("ip_adapter.3.to_k_ip.weight"), (DType::F32, vec![2, 2], vec![4, 2], vec![5., 7., 9., 11.]));
    assert_eq!(get("scalar"), (DType::F32, vec![], vec![], vec![2.25]));
    assert!(weights.get("empty").unwrap().to_f32().is_empty());
    assert_eq!(weights.len(), 8, "{:?}", weights.iter().map(|(n, _)| n).collect::<Vec<_>>());

    let weights = open(&data("state_dict.bin"), &OpenOptions::default()).unwrap();
    assert_eq!(weights.get("weight").unwrap().to_f32(), [0., 1., 2., 3., 4., 5.]);
    assert_eq!(weights.get("bias").unwrap().to_f32(), [7., 8., 9.]);
    let weights = open(&data("many.bin"), &OpenOptions::default()).unwrap();
    assert_eq!((weights.len(), weights.get("block.59.weight").unwrap().to_f32()), (60, vec![59.0; 2]));
}

#[test]
fn unsupported_torch_files() {
    refused("legacy.bin", &saved("legacy.bin"), &["before torch 1.6", "torch.save"]);
    // Types that no model reads are no reason to refuse the rest of a file: a model that needs them says so.
    for (name, dtype) in [("float8.bin", "float8_e4m3fn"), ("float64.bin", "float64")] {
        let weights = open_as(name, &saved(name)).unwrap();
        assert_eq!(weights.skipped().collect::<Vec<_>>(), [("a", dtype)]);
        assert!(weights.is_empty() && weights.contains("a"));
    }
    refused("bare.bin", &saved("bare.bin"), &["holds a tensor, expected a dict"]);
    refused(BIN, &zip(&[("word/document.xml", b"<w/>")], false), &["without `data.pkl`"]);
    let big = zip(&[("a/data.pkl", &tensor(6, 0, &[6], &[1])), ("a/byteorder", b"big"), ("a/data/0", &[0; 24])], false);
    refused(BIN, &big, &["little-endian"]);
}

#[test]
fn zip64() {
    let pickle = tensor(6, 1, &[2, 2], &[2, 1]);
    let storage: Vec<u8> = (0..6).flat_map(|i| (i as f32).to_le_bytes()).collect();
    for wide in [false, true] {
        let bytes = zip(&[("a/data.pkl", &pickle), ("a/data/0", &storage)], wide);
        assert_eq!(open_as(BIN, &bytes).unwrap().get("w").unwrap().to_f32(), [1., 2., 3., 4.], "{wide}");
    }
}

#[test]
fn b21_os_system() {
    let dir = tempfile::tempdir().unwrap();
    let touched = dir.path().join("touched");
    let command = format!("touch {}", touched.display());
    let pickle = [b"\x80\x02cos\nsystem\n".to_vec(), text(&command), b"\x85R.".to_vec()].concat();
    refused(BIN, &archive(&pickle), &["asks for `os.system`", "nothing was executed"]);
    assert!(!touched.exists());
    for (module, name) in
        [("builtins", "eval"), ("torch", "load"), ("torch", "UntypedStorage"), ("argparse", "Namespace")]
    {
        refused(BIN, &archive(format!("\u{2}c{module}\n{name}\n.").replacen('\u{2}', "", 1).as_bytes()), &[name]);
    }
    refused(BIN, &archive(b"\x80\x02cos\x1b[31m\nx\n."), &["os\\u{1b}[31m.x"]);
    refused(BIN, &archive(b"\x80\x02ctorch\nFloatStorage\n)R."), &["a call of torch.float32"]);
    refused(BIN, &archive(b"\x80\x02ios\nsystem\n."), &["instruction 0x69"]);
    refused(BIN, &archive(b"\x80\x04}."), &["pickle protocol 4"]);
}

/// Values beside the tensors that torch itself loads with `weights_only=True`, and tensors under `state_dict`.
#[test]
fn harmless_values_and_nested_tensors() {
    let storage: Vec<u8> = (0..6).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let inner = tensor(6, 0, &[6], &[1]);
    // The dictionary of `tensor`, without protocol and stop, as a value of another one.
    let inner = &inner[2..inner.len() - 1];
    let size: &[u8] = b"ctorch\nSize\nK\x01K\x02\x86\x85R";
    let counter: &[u8] = b"ccollections\nCounter\n}\x85R";
    let device: &[u8] = b"ctorch\ndevice\nX\x03\0\0\0cpu\x85R";
    let dtype: &[u8] = b"ctorch\nfloat16\n";
    let set: &[u8] = b"c__builtin__\nset\n](K\x01K\x02e\x85R";
    let complex: &[u8] = b"c__builtin__\ncomplex\nK\x01K\x02\x86R";
    let bytes: &[u8] = b"c_codecs\nencode\nX\x01\0\0\0aX\x06\0\0\0latin1\x86R";
    for value in [size, counter, device, dtype, set, complex, bytes] {
        let pickle = [
            b"\x80\x02}".to_vec(),
            text("other"),
            value.to_vec(),
            b"s".to_vec(),
            text("state_dict"),
            inner.to_vec(),
            b"s.".to_vec(),
        ]
        .concat();
        let bytes = zip(&[("a/data.pkl", &pickle), ("a/data/0", &storage)], false);
        let weights = open_as(BIN, &bytes).unwrap();
        assert_eq!(weights.names().collect::<Vec<_>>(), ["w"]);
    }
}

#[test]
fn b22_broken_tail() {
    let whole = saved(BIN);
    for cut in 1..whole.len() {
        let bytes = &whole[..cut];
        // Few of them as files: one that was just written is mapped a tick of the clock later.
        let opened = if cut < 16 || cut % 256 == 0 {
            open_as(BIN, bytes)
        } else {
            torch::read(Arc::new(MappedBytes::owned(bytes.to_vec())), Path::new(BIN)).map_err(|e| e.to_string())
        };
        let text = opened.unwrap_err();
        assert!(cut < 9 || text.contains("truncated") || text.contains("directory"), "{cut}: {text}");
    }
    let pickle = tensor(6, 0, &[6], &[1]);
    for cut in 0..pickle.len() {
        refused(BIN, &archive(&pickle[..cut]), &["data.pkl: ", "the pickle is damaged"]);
    }
}

#[test]
fn b23_setitem_on_a_list() {
    refused(BIN, &archive(b"\x80\x02]K\x01K\x02s."), &["SETITEM on a list, expected a dict"]);
    refused(BIN, &archive(b"\x80\x02](K\x01K\x02u."), &["SETITEM on a list"]);
    refused(BIN, &archive(b"\x80\x02}K\x01a."), &["append to a dict"]);
    refused(BIN, &archive(b"\x80\x02}(K\x01u."), &["a key without a value"]);
    refused(BIN, &archive(b"\x80\x02K\x01}b."), &["a state of a dict for an int"]);
    refused(BIN, &archive(b"\x80\x02})}s."), &["a dict's key is a tuple, expected a string"]);
}

#[test]
fn b24_storage_size() {
    let parts = ["tensor `w`", "storage `0`", "7 elements of float32", "the archive has 24 bytes"];
    refused(BIN, &archive(&tensor(7, 0, &[6], &[1])), &parts);
    refused(BIN, &archive(&tensor(5, 0, &[5], &[1])), &["5 elements of float32"]);
    refused(BIN, &zip(&[("a/data.pkl", &tensor(6, 0, &[6], &[1]))], false), &["storage `0` is not in the archive"]);
}

#[test]
fn b25_short_arguments() {
    refused(
        BIN,
        &archive(b"\x80\x02}ctorch._utils\n_rebuild_tensor_v2\n)R."),
        &["_rebuild_tensor_v2 with 0 arguments"],
    );
    refused(BIN, &archive(b"\x80\x02}ctorch._utils\n_rebuild_tensor_v2\nK\x01K\x01K\x01\x87R."), &["with 3 arguments"]);
    refused(
        BIN,
        &archive(b"\x80\x02}ctorch._utils\n_rebuild_parameter\nK\x01\x85R."),
        &["_rebuild_parameter with 1 arguments"],
    );
    refused(BIN, &archive(b"\x80\x02}K\x01K\x01K\x01\x87Q."), &["a storage of 3 fields, expected 5"]);
    refused(BIN, &archive(b"\x80\x02}(NNNNNtQ."), &["a storage's fields"]);
}

#[test]
fn b26_a_million_nested_tuples() {
    bounded(|| {
        let tuples = [b"\x80\x02)".to_vec(), vec![0x85; 1_000_000]].concat();
        refused(BIN, &archive(&[&tuples[..], b"."].concat()), &["holds a tuple, expected a dict"]);
        // As a value of a dict it is as harmless as any value that is no tensor.
        let inside = [b"\x80\x02}K\x01".to_vec(), tuples[2..].to_vec(), b"s.".to_vec()].concat();
        assert!(open_as(BIN, &archive(&inside)).unwrap().is_empty());
        let more = [b"\x80\x02)".to_vec(), vec![0x85; 3_000_000], b".".to_vec()].concat();
        refused(BIN, &archive(&more), &["more than 2000000 values"]);
        let deep =
            [b"\x80\x02".to_vec(), b"}K\x01".repeat(100_000), b"}".to_vec(), b"s".repeat(100_000), b".".to_vec()]
                .concat();
        refused(BIN, &archive(&deep), &["dicts more than 32 deep"]);
        refused(BIN, &archive(&[b'('; 3_000_000]), &["more than 2000000 marks"]);
        refused(BIN, &archive(&vec![b')'; 17 << 20]), &["17825792 bytes, more than the 16777216 allowed"]);
    });
}

#[test]
fn b27_memo_doubling() {
    bounded(|| {
        // Each tuple holds the last one twice: 2^60 leaves.
        let doubling: Vec<u8> = (0..60).flat_map(|i| [b'q', i, b'h', i, 0x86]).collect();
        let bytes = [b"\x80\x02)".to_vec(), doubling, b".".to_vec()].concat();
        refused(BIN, &archive(&bytes), &["holds a tuple"]);
        // The same with dicts, in which tensors are sought.
        let mut bytes = b"\x80\x02}".to_vec();
        for i in 0..30 {
            bytes.extend([b'q', i, b'}', b'(', b'K', 0, b'h', i, b'K', 1, b'h', i, b'u']);
        }
        bytes.push(b'.');
        refused(BIN, &archive(&bytes), &["too many entries"]);
        // A dict within itself.
        refused(BIN, &archive(b"\x80\x02}q\x00K\x01h\x00s."), &["deep in each other"]);
        // One long shape for many tensors.
        let mut bytes = b"\x80\x02(".to_vec();
        bytes.extend(b"K\x01".repeat(1000));
        bytes.extend(b"tq\x00");
        let one = [
            &b"ctorch._utils\n_rebuild_tensor_v2\n(("[..],
            &text("storage"),
            b"ctorch\nFloatStorage\n",
            &text("0"),
            b"NK\x06tQK\0h\0h\0\x89NtR.",
        ];
        bytes.extend(one.concat());
        refused(BIN, &archive(&bytes), &["1000 dimensions"]);
    });
}

#[test]
fn b28_string_of_4_gib() {
    bounded(|| refused(BIN, &archive(b"\x80\x02X\xff\xff\xff\xff."), &["4294967295 bytes expected, 1 are left"]));
    refused(BIN, &archive(b"\x80\x02\x8a\xff."), &["255 bytes expected"]);
}

#[test]
fn b29_view_past_its_storage() {
    let past = &["tensor `w`", "reaches past its storage of 6 elements"];
    refused(BIN, &archive(&tensor(6, 1, &[6], &[1])), past);
    refused(BIN, &archive(&tensor(6, 0, &[2, 3], &[4, 1])), past);
    refused(BIN, &archive(&tensor(6, 6, &[], &[])), past);
    refused(BIN, &archive(&tensor(6, 0, &[2, 3], &[1])), &["2 dimensions with 1 strides"]);
    let repeated = archive(&tensor(6, 0, &[200, 200, 200, 200], &[0, 0, 0, 0]));
    refused(BIN, &repeated, &["more elements than its storage, 6", "contiguous()"]);
    refused(BIN, &archive(&tensor(6, 0, &[3, 3], &[1, 1])), &["more elements than its storage, 6"]);
    assert_eq!(open_as(BIN, &archive(&tensor(6, 5, &[1], &[200]))).unwrap().len(), 1);
    assert_eq!(open_as(BIN, &archive(&tensor(6, 200, &[0, 3], &[3, 1]))).unwrap().get("w").unwrap().len(), 0);
    // Numbers near the largest must not overflow, and negative ones are refused.
    let mut bytes = tensor(6, 0, &[1], &[1]);
    let at = bytes.windows(4).position(|w| w == b"QK\0(").unwrap() + 1;
    bytes.splice(at..at + 2, *b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f");
    refused(BIN, &archive(&bytes), past);
    bytes[at + 9] = 0xff;
    refused(BIN, &archive(&bytes), &["an offset of -1"]);
}

#[test]
fn b30_deflated_entry() {
    let mut bytes = archive(&tensor(6, 0, &[6], &[1]));
    let central = bytes.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
    bytes[central + 10] = 8;
    refused(BIN, &bytes, &["`a/data.pkl` is compressed or encrypted (method 8)", "torch.save"]);
    bytes[central + 10] = 0;
    bytes[8] = 8;
    refused(BIN, &bytes, &["`a/data.pkl`: its local method is 8"]);
}

#[test]
fn b31_checksum_and_local_header() {
    let good = archive(&tensor(6, 0, &[6], &[1]));
    let change = |find: &[u8], skip: usize, parts: &[&str]| {
        let mut bytes = good.clone();
        let at = bytes.windows(find.len()).position(|w| w == find).unwrap() + skip;
        bytes[at] ^= 1;
        refused(BIN, &bytes, parts);
    };
    change(b"storage", 0, &["`a/data.pkl` has CRC", "expected"]);
    change(b"a/data/0", 7, &["`a/data/0`: its local name is `a/data/1`"]);
    change(b"PK\x03\x04", 14, &["local CRC"]);
    change(b"PK\x03\x04", 22, &["local size"]);
    change(b"PK\x01\x02", 42, &["local header is not where the directory says"]);
    change(b"PK\x01\x02", 0, &["zip directory is damaged at entry 0"]);
    change(b"PK\x05\x06", 10, &["directory is damaged at entry 2"]);
    let mut bytes = good.clone();
    let end = bytes.len() - 22;
    bytes[end + 10] = 1;
    refused(BIN, &bytes, &["54 bytes behind its 1 entries"]);
    change(b"PK\x05\x06", 18, &["directory"]);
}

#[test]
fn b32_two_pickles() {
    let pickle = tensor(6, 0, &[6], &[1]);
    let same = zip(&[("a/data.pkl", &pickle), ("a/data.pkl", &pickle), ("a/data/0", &[0; 24])], false);
    refused(BIN, &same, &["`a/data.pkl` is there twice"]);
    let other = zip(&[("a/data.pkl", &pickle), ("b/data.pkl", &pickle), ("a/data/0", &[0; 24])], false);
    refused(BIN, &other, &["two data.pkl"]);
    let storages = zip(&[("a/data.pkl", &pickle), ("a/data/0", &[0; 24]), ("a/data/0", &[0; 24])], false);
    refused(BIN, &storages, &["`a/data/0` is there twice"]);
}
