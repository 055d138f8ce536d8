//! The tokenizer against transformers 5 (as diffusers uses it) and transformers 4 with ftfy (as DiffSynth does).

use braid::inputs::tokenizer::{Profile, Tokenizer};
use braid::{Error, Result};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Cases made by tests/golden/make_tokens.py.
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
fn compare(file: &str, tokenizers: &[(&str, Tokenizer)], profile: Profile, full: impl Fn(&Tokenizer, &str, &Value)) {
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
    let fixed = tokenizer.ids_77(text);
    assert_eq!(fixed.ids, ids(expected), "{text:?}");
    assert_eq!(fixed.cut, tokenizer.encode(text, Profile::Diffusers).len().saturating_sub(75));
}

#[test]
fn diffusers_ids_are_the_peers() {
    compare("diffusers.json", &both(), Profile::Diffusers, fixed);
}

#[test]
fn diffsynth_ids_are_the_peers() {
    compare("diffsynth.json", &both(), Profile::DiffSynth, |tokenizer, text, expected| {
        let expected: Vec<Vec<u32>> = serde_json::from_value(expected.clone()).unwrap();
        assert_eq!(tokenizer.rows_of_77(text), expected, "{text:?}");
    });
}

#[test]
fn the_published_sample() {
    let [(_, l), (_, g)] = both();
    let mut expected = vec![49406, 320, 1994, 786, 49407];
    expected.resize(77, 49407);
    assert_eq!(l.ids_77("A super man").ids, expected);
    expected[5..].fill(0);
    assert_eq!(g.ids_77("A super man").ids, expected);
    assert_eq!((l.bos(), l.eos(), l.pad(), l.unk()), (49406, 49407, 49407, 49407));
    assert_eq!((g.pad(), g.max_length(), g.vocab_size()), (0, 77, 49408));
}

#[test]
fn row_counts_of_the_two_are_made_equal() {
    let [(_, l), (_, g)] = both();
    let text = "w!!! ".repeat(30);
    assert_eq!((l.rows_of_77(&text).len(), g.rows_of_77(&text).len()), (1, 2));
    let (a, b) = Tokenizer::rows_of_both(&l, &g, &text);
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
fn folders_give_the_peers_ids() {
    for case in goldens("folders.json") {
        let (folder, name) = (tempfile::tempdir().unwrap(), &case["name"]);
        write(folder.path(), &case["files"]);
        let t = Tokenizer::from_folder(folder.path()).unwrap();
        for (key, found) in [("bos", t.bos()), ("eos", t.eos()), ("pad", t.pad()), ("unk", t.unk())] {
            assert_eq!(case[key], found, "{name} {key}");
        }
        assert_eq!(case["max_length"], t.max_length(), "{name}");
        assert_eq!(case["size"], t.vocab_size(), "{name}");
        for (text, expected) in case["ids"].as_object().unwrap() {
            assert_eq!(t.encode(text, Profile::Diffusers), ids(expected), "{name}: {text}");
        }
    }
}
