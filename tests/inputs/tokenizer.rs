//! The tokenizer against transformers 5 (as diffusers uses it) and transformers 4 with ftfy (as DiffSynth does).

use braid::Error;
use braid::inputs::tokenizer::{Tokenizer, TokenizerProfile};
use serde_json::{Value, json};
use std::path::Path;

/// Cases made by tools/goldens/make_tokens.py.
fn goldens(name: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/tokenizer").join(name);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

fn both() -> [(&'static str, Tokenizer); 2] {
    [("l", Tokenizer::clip().unwrap()), ("g", Tokenizer::clip_g().unwrap())]
}

/// Compares every case and reports all that differ.
fn compare(
    file: &str,
    tokenizers: &[(&str, Tokenizer)],
    profile: TokenizerProfile,
    full: impl Fn(&Tokenizer, &str, &Value),
) {
    let cases = goldens(file);
    assert!(cases.len() >= 260, "{}", cases.len());
    let mut wrong = Vec::new();
    for case in &cases {
        let times = case["times"].as_u64().unwrap_or(1) as usize;
        let text = case["text"].as_str().unwrap().repeat(times);
        for (key, tokenizer) in tokenizers {
            let (found, expected) = (tokenizer.encode(&text, profile), ids(&case[key]).repeat(times));
            if found != expected {
                let cut = |v: &[u32]| format!("{:?}", &v[..v.len().min(40)]);
                let text: String = text.chars().take(60).collect();
                wrong.push(format!("{key} {text:?}\n  found    {}\n  expected {}", cut(&found), cut(&expected)));
            }
            if let Some(expected) = case.get("full") {
                full(tokenizer, &text, &expected[key]);
            }
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong[..wrong.len().min(20)].join("\n"));
}

fn fixed(tokenizer: &Tokenizer, text: &str, expected: &Value) {
    let fixed = tokenizer.encode_padded(text);
    assert_eq!(fixed.ids, ids(expected), "{text:?}");
    assert_eq!(fixed.truncated, tokenizer.encode(text, TokenizerProfile::Diffusers).len().saturating_sub(75));
}

#[test]
fn diffusers_ids() {
    compare("diffusers.json", &both(), TokenizerProfile::Diffusers, fixed);
}

#[test]
fn diffsynth_ids() {
    compare("diffsynth.json", &both(), TokenizerProfile::DiffSynth, |tokenizer, text, expected| {
        let expected: Vec<Vec<u32>> = serde_json::from_value(expected.clone()).unwrap();
        assert_eq!(tokenizer.encode_rows(text), expected, "{text:?}");
    });
}

/// Words of textual inversions: within other words, in other cases, with several vectors, and words that are none.
#[test]
fn words_of_vectors() {
    let words = [
        ("mat-style", 3),
        ("MyStyle", 1),
        ("<s0>", 2),
        ("two words", 1),
        ("é-x", 1),
        ("a.b", 2),
        ("!!bad", 2),
        ("bad-hand-5", 2),
        ("雪景", 2),
    ];
    let mut tokenizers = both();
    for (_, tokenizer) in &mut tokenizers {
        let mut next = 49_408;
        for (word, count) in words {
            assert_eq!(tokenizer.add_word(word, count), Ok(next));
            next += count as u32;
        }
        assert_eq!((tokenizer.vocab_size(), tokenizer.word_len(49_408), tokenizer.word_len(49_409)), (49_424, 3, 1));
        // The vocabulary's, the folder's, those that are there already, by the spelling that is sought.
        for word in ["cat", "cat</w>", "<|endoftext|>", "mat-style", "MAT-STYLE", "mat-style_1", "mystyle", "", " "] {
            assert!(tokenizer.add_word(word, 1).is_err(), "{word}");
        }
    }
    for case in goldens("words.json") {
        let text = case["text"].as_str().unwrap();
        for (key, tokenizer) in &tokenizers {
            assert_eq!(tokenizer.encode(text, TokenizerProfile::Diffusers), ids(&case[key]), "{key}: {text:?}");
        }
    }
    // Where diffusers finds but the first vector, as of a word in other case, here is the whole.
    let (_, l) = &tokenizers[0];
    assert_eq!(l.encode("Mat-Style", TokenizerProfile::Diffusers), [49_408, 49_409, 49_410]);
}

#[test]
fn published_sample() {
    let [(_, l), (_, g)] = both();
    let mut expected = vec![49406, 320, 1994, 786, 49407];
    expected.resize(77, 49407);
    assert_eq!(l.encode_padded("A super man").ids, expected);
    expected[5..].fill(0);
    assert_eq!(g.encode_padded("A super man").ids, expected);
    assert_eq!((l.bos_token_id(), l.eos_token_id(), l.pad_token_id(), l.unk_token_id()), (49406, 49407, 49407, 49407));
    assert_eq!((g.pad_token_id(), g.max_length(), g.vocab_size()), (0, 77, 49408));
}

#[test]
fn shared_between_threads() {
    fn shared<T: Send + Sync>(_: &T) {}
    let t = Tokenizer::clip().unwrap();
    shared(&t);
    let expected = t.encode("a cat in the hat", TokenizerProfile::Diffusers);
    std::thread::scope(|s| {
        for _ in 0..4 {
            s.spawn(|| assert_eq!(t.encode("a cat in the hat", TokenizerProfile::Diffusers), expected));
        }
    });
}

#[test]
fn equal_row_counts() {
    let [(_, l), (_, g)] = both();
    let text = "w!!! ".repeat(30);
    assert_eq!((l.encode_rows(&text).len(), g.encode_rows(&text).len()), (1, 2));
    let (a, b) = Tokenizer::encode_rows_of_both(&l, &g, &text);
    assert_eq!((a.len(), b.len()), (1, 1));
}

/// Writes the files of a golden case, or of a made-up one, into a folder.
fn write(folder: &Path, files: &Value) {
    for (name, content) in files.as_object().unwrap() {
        let text = content.as_str().map_or_else(|| content.to_string(), str::to_string);
        std::fs::write(folder.join(name), text).unwrap();
    }
}

#[test]
fn folder_ids() {
    for case in goldens("folders.json") {
        let (folder, name) = (tempfile::tempdir().unwrap(), &case["name"]);
        write(folder.path(), &case["files"]);
        let t = Tokenizer::from_folder(folder.path()).unwrap();
        for (key, found) in
            [("bos", t.bos_token_id()), ("eos", t.eos_token_id()), ("pad", t.pad_token_id()), ("unk", t.unk_token_id())]
        {
            assert_eq!(case[key], found, "{name} {key}");
        }
        assert_eq!(case["max_length"], t.max_length(), "{name}");
        assert_eq!(case["size"], t.vocab_size(), "{name}");
        for (text, expected) in case["ids"].as_object().unwrap() {
            assert_eq!(t.encode(text, TokenizerProfile::Diffusers), ids(expected), "{name}: {text}");
        }
    }
}

/// A small sound tokenizer.json with some of it replaced.
fn whole(change: impl FnOnce(&mut Value)) -> Value {
    let vocab = json!({"a": 0, "b": 1, "a</w>": 2, "b</w>": 3, "ab</w>": 4, "<|startoftext|>": 5, "<|endoftext|>": 6});
    let mut value = json!({"model": {"type": "BPE", "vocab": vocab, "merges": ["a b</w>"]}, "added_tokens": []});
    change(&mut value);
    json!({ "tokenizer.json": value })
}

#[test]
fn bad_folders() {
    let nested = "[".repeat(100_000);
    let text = |s: &str| Value::from(s);
    let sound = whole(|_| ()).as_object().unwrap()["tokenizer.json"]["model"]["vocab"].clone();
    let configured = |config: Value| {
        let mut files = whole(|_| ());
        files["tokenizer_config.json"] = config;
        files
    };
    let cases: Vec<(Value, &str, &str)> = vec![
        (json!({}), "", "vocab.json with merges.txt"),
        (json!({ "vocab.json": sound }), "merges.txt", "cannot open"),
        (json!({ "tokenizer.json": text("<html>") }), "tokenizer.json", "not JSON"),
        (json!({ "tokenizer.json": text("") }), "tokenizer.json", "not JSON"),
        (json!({ "tokenizer.json": text("[]") }), "tokenizer.json", "with an object"),
        (json!({ "tokenizer.json": text(&nested) }), "tokenizer.json", "not JSON"),
        (json!({ "vocab.json": text("version https://git-lfs") }), "vocab.json", "not JSON"),
        (json!({ "vocab.json": {} , "merges.txt": ""}), "vocab.json", "empty"),
        (json!({ "vocab.json": {"a": -1}, "merges.txt": "" }), "vocab.json", "`a` is not a token id"),
        (json!({ "vocab.json": {"a": 0, "b": 2}, "merges.txt": "" }), "vocab.json", "without holes"),
        (json!({ "vocab.json": {"a": 0, "b": 0}, "merges.txt": "" }), "vocab.json", "taken twice"),
        (
            json!({ "vocab.json": {"a": 0, "b": 1, "c": 1, "d": 1, "e": 0}, "merges.txt": "" }),
            "vocab.json",
            "id 0 (`e`)",
        ),
        (
            json!({ "vocab.json": {"e": "0", "d": -1, "c": "", "b": [], "a": 0}, "merges.txt": "" }),
            "vocab.json",
            "`b` is not",
        ),
        (json!({ "vocab.json": {"a": 0, "b": 4294967295u32}, "merges.txt": "" }), "vocab.json", "without holes"),
        (json!({ "vocab.json": sound, "merges.txt": "#version: 0.2\na b</w>\nab" }), "merges.txt", "line 3"),
        (json!({ "vocab.json": sound, "merges.txt": "a  b\n" }), "merges.txt", "line 1"),
        (json!({ "vocab.json": sound, "merges.txt": "a b</w>\nb a</w>" }), "merges.txt", "`ba</w>`"),
        (json!({ "vocab.json": sound, "merges.txt": "a zzzzzz\u{1b}[31m" }), "merges.txt", "\\u{1b}"),
        (whole(|v| v["model"]["type"] = "Unigram".into()), "tokenizer.json", "BPE"),
        (whole(|v| v["model"]["vocab"] = json!([["a", 0.0]])), "tokenizer.json", "model.vocab"),
        (whole(|v| v["model"]["merges"] = json!([["a"]])), "tokenizer.json", "model.merges[0]"),
        (whole(|v| v["added_tokens"] = json!([{"id": 9, "content": "x"}])), "tokenizer.json", "its place is 7"),
        (whole(|v| v["added_tokens"] = json!([{"id": 7, "content": ""}])), "tokenizer.json", "empty"),
        (whole(|v| v["added_tokens"] = json!([{"content": "x"}])), "tokenizer.json", "token id"),
        (configured(json!({"model_max_length": 0})), "tokenizer_config.json", "model_max_length"),
        (configured(json!({"model_max_length": 1e30})), "tokenizer_config.json", "65536"),
        (configured(json!({"padding_side": "left"})), "tokenizer_config.json", "padding_side"),
        (configured(json!({"pad_token": 3})), "tokenizer_config.json", "pad_token"),
        (configured(json!({"bos_token": {"content": "x", "lstrip": true}})), "tokenizer_config.json", "lstrip"),
    ];
    for (files, file, what) in cases {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &files);
        let error = Tokenizer::from_folder(folder.path()).unwrap_err();
        assert!(matches!(
            error,
            Error::Malformed { .. } | Error::Mismatch { .. } | Error::Config { .. } | Error::Io { .. }
        ));
        let message = error.to_string();
        let path = folder.path().join(file);
        assert!(message.starts_with(path.to_str().unwrap().trim_end_matches('/')), "{message}");
        assert!(message.contains(what), "{message}, expected {what}");
        assert!(!message.contains(['\u{1b}', '\n']), "{message:?}");
    }
}

/// Sections that make other readers of tokenizer.json panic have no effect here: the ids are those without the change.
fn without_effect(change: impl FnOnce(&mut Value)) {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &whole(change));
    let t = Tokenizer::from_folder(folder.path()).unwrap();
    assert_eq!(t.encode("AB a b", TokenizerProfile::Diffusers), [4, 2, 3]);
    // `z` is not in the vocabulary: the unknown token.
    assert_eq!(t.encode("az", TokenizerProfile::DiffSynth), [0, 6]);
    assert_eq!(t.encode_padded("ab").ids[..4], [5, 4, 6, 6]);
}

/// A merge whose tokens are none of the vocabulary's is an error that names it; a prefix longer than every token is not looked at.
#[test]
fn b34_merge_longer_than_any_key() {
    without_effect(|_| ());
    without_effect(|v| v["model"]["continuing_subword_prefix"] = "longer than any key".into());
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &whole(|v| v["model"]["merges"] = json!(["abbbbbbbbbbbbbbbbb b"])));
    let text = Tokenizer::from_folder(folder.path()).unwrap_err().to_string();
    assert!(text.contains("tokenizer.json: ") && text.contains("`abbbbbbbbbbbbbbbbb`"), "{text}");
}

#[test]
fn b35_fixed_length_of_zero() {
    without_effect(|v| v["padding"] = json!({"strategy": {"Fixed": 0}, "pad_to_multiple_of": 0}));
}

#[test]
fn b36_bad_charsmap() {
    without_effect(|v| v["normalizer"] = json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"}));
}

#[test]
fn b37_stride_beyond_the_length() {
    without_effect(|v| v["truncation"] = json!({"max_length": 1, "stride": 5, "strategy": "LongestFirst"}));
}

#[test]
fn long_and_hostile_texts() {
    let texts =
        ["a".repeat(1 << 18), "!".repeat(1 << 18), "&amp;".repeat(1 << 14), format!("&{}", "amp;".repeat(1 << 14))];
    for (_, t) in both() {
        for text in &texts {
            for profile in [TokenizerProfile::Diffusers, TokenizerProfile::DiffSynth] {
                let start = std::time::Instant::now();
                assert!(!t.encode(text, profile).is_empty());
                assert!(start.elapsed().as_secs() < 5, "{} {:?} {:?}", &text[..9], profile, start.elapsed());
            }
        }
    }
}
