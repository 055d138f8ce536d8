//! A tokenizer from the files of a folder, checked before the model sees them.

use super::clean;
use super::clip_tokenizer::{AddedToken, Tokenizer};
use super::vocab::{self, BOS, BpeModel, EOS, pair};
use crate::error::{Error, Result};
use crate::presence::is_there;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokenizers::models::bpe::{Merges, Vocab};

/// The greatest size of a tokenizer file in bytes; CLIP's largest has 3.6 MB.
const MAX_BYTES: u64 = 64 << 20;
/// The greatest `model_max_length`; greater ones are transformers' way to say "none", and a text encoder needs one.
const MAX_LENGTH: u64 = 65_536;

type Object = Map<String, Value>;

impl Tokenizer {
    /// Loads the tokenizer of a folder (`tokenizer/` or `tokenizer_2/` of a diffusers folder).
    ///
    /// Reads `tokenizer.json` or else `vocab.json` with `merges.txt`, for the vocabulary; `tokenizer_config.json`,
    /// `special_tokens_map.json` and `added_tokens.json`, where present, for the special tokens and the length (77
    /// otherwise). Like transformers' `CLIPTokenizer` it takes only vocabulary, merges and added tokens from
    /// `tokenizer.json`: cleaning and splitting are always CLIP's.
    ///
    /// # Errors
    /// A missing or unreadable file; a file that is not JSON or not of the expected form; a vocabulary with holes; a
    /// merge of tokens that are not in the vocabulary; a length below 3 or above 65,536; padding or truncation on the
    /// left.
    pub fn from_folder(folder: &Path) -> Result<Self> {
        load(folder)
    }
}

fn load(folder: &Path) -> Result<Tokenizer> {
    let config_path = folder.join("tokenizer_config.json");
    let config = optional_object(&config_path)?.unwrap_or_default();
    check_right_side(&config_path, &config)?;
    let max_length = max_length(&config_path, &config)?;

    let whole_path = folder.join("tokenizer.json");
    let whole = optional_object(&whole_path)?;
    let (vocab_path, merges_path) = match &whole {
        Some(_) => (whole_path.clone(), whole_path.clone()),
        None => (folder.join("vocab.json"), folder.join("merges.txt")),
    };
    let (vocab, merges) = match &whole {
        Some(whole) => from_tokenizer_json(&whole_path, whole)?,
        None => match optional(&vocab_path)? {
            // A plain map: keeping 49,408 tokens sorted, as an `Object` does, would take longer than all the rest.
            Some(bytes) => {
                (vocab_of(&vocab_path, json::<HashMap<_, _>>(&vocab_path, &bytes)?)?, merges_txt(&merges_path)?)
            }
            None => {
                let what =
                    "neither tokenizer.json nor vocab.json with merges.txt is here; a tokenizer folder is needed";
                return Err(Error::mismatch(folder, what));
            }
        },
    };
    vocab::check_ids(&vocab).map_err(|what| Error::malformed(&vocab_path, what))?;

    let named = SpecialTokens::read(folder, &config)?;
    let base = vocab.len();
    let model = vocab::build(vocab, merges, &named.unk.content).map_err(|what| Error::malformed(&merges_path, what))?;
    let model = Arc::new(model);

    let mut added = added_tokens(folder, &config_path, &config, whole.as_ref().map(|w| (whole_path.as_path(), w)))?;
    named.append_to(&mut added);
    let (tokens, vocab_size) = assign_ids(&model, base, added)?;
    let id = |entry: &TokenEntry| tokens.iter().find(|t| t.content == entry.content).map_or(0, |t| t.id);
    Ok(Tokenizer {
        bos: id(&named.bos),
        eos: id(&named.eos),
        pad: id(&named.pad),
        unk: id(&named.unk),
        added: tokens
            .into_iter()
            .map(|t| if t.normalized { AddedToken { content: clean::diffusers(&t.content), ..t } } else { t })
            .collect(),
        model,
        max_length,
        vocab_size,
    })
}

/// Gives each added token its id in the vocabulary of `base` tokens or the next one behind it; returns them
/// with their content as written, and the number of all tokens.
fn assign_ids(model: &BpeModel, base: usize, added: Vec<TokenEntry>) -> Result<(Vec<AddedToken>, usize)> {
    let mut next = base;
    let mut tokens = Vec::with_capacity(added.len());
    for entry in added {
        let id = match model.id(&entry.content) {
            Some(id) => id,
            None => {
                next += 1;
                next as u32 - 1
            }
        };
        if let Some((expected, path)) = entry.expected.filter(|e| e.0 != u64::from(id)) {
            let what = format!("added token `{}` has id {expected}, but its place is {id}", entry.content);
            return Err(Error::malformed(path, what));
        }
        tokens.push(AddedToken { content: entry.content, id, count: 1, normalized: entry.normalized });
    }
    Ok((tokens, next))
}

/// The four special tokens that a CLIP tokenizer names.
struct SpecialTokens {
    bos: TokenEntry,
    eos: TokenEntry,
    unk: TokenEntry,
    pad: TokenEntry,
}

/// A token as a file describes it.
#[derive(Clone)]
struct TokenEntry {
    content: String,
    normalized: bool,
    /// The id that the file gives it, and the file.
    expected: Option<(u64, PathBuf)>,
}

impl SpecialTokens {
    fn read(folder: &Path, config: &Object) -> Result<Self> {
        let config_path = folder.join("tokenizer_config.json");
        let map_path = folder.join("special_tokens_map.json");
        // transformers ignores the map where the configuration lists its added tokens.
        let map = match config.contains_key("added_tokens_decoder") {
            true => Object::new(),
            false => optional_object(&map_path)?.unwrap_or_default(),
        };
        let token = |key: &str, default: &str| {
            let found = |o: &Object| o.get(key).filter(|v| !v.is_null()).cloned();
            let (path, value, special) = match found(&map) {
                Some(value) => (&map_path, value, true),
                None => (&config_path, found(config).unwrap_or_else(|| default.into()), false),
            };
            entry(path, key, &value, special)
        };
        Ok(Self {
            bos: token("bos_token", BOS)?,
            eos: token("eos_token", EOS)?,
            unk: token("unk_token", EOS)?,
            pad: token("pad_token", EOS)?,
        })
    }

    /// Appends the tokens to the listed ones. As in transformers, the list's entry wins over a name; of two names for one
    /// token the later wins.
    fn append_to(&self, added: &mut Vec<TokenEntry>) {
        let listed: Vec<String> = added.iter().map(|a| a.content.clone()).collect();
        for token in [&self.bos, &self.eos, &self.unk, &self.pad] {
            if !listed.contains(&token.content) {
                added.retain(|a| a.content != token.content);
                added.push(TokenEntry { expected: None, ..token.clone() });
            }
        }
    }
}

/// A token written as a string or as an object; `special` is what transformers assumes where the object says nothing.
fn entry(path: &Path, what: &str, value: &Value, special: bool) -> Result<TokenEntry> {
    let bad = |why: &str| Error::malformed(path, format!("`{what}` {why}"));
    let (content, normalized) = match value {
        // A bare string becomes a special token, which is sought in the text as written.
        Value::String(content) => (content.as_str(), false),
        Value::Object(o) => {
            let flag = |key: &str| o.get(key).and_then(Value::as_bool);
            for key in ["lstrip", "rstrip", "single_word"] {
                if flag(key) == Some(true) {
                    return Err(Error::Config {
                        path: path.into(),
                        field: format!("{what}.{key}"),
                        value: "true".into(),
                        expected: "CLIP's tokenizers have false here".into(),
                    });
                }
            }
            let content = o.get("content").and_then(Value::as_str).ok_or_else(|| bad("has no text `content`"))?;
            let special = flag("special").unwrap_or(special);
            (content, flag("normalized").unwrap_or(!special))
        }
        _ => return Err(bad("is neither a text nor an object")),
    };
    if content.is_empty() {
        return Err(bad("is an empty token"));
    }
    Ok(TokenEntry { content: content.to_string(), normalized, expected: None })
}

/// Reads the tokens listed by the configuration, or else by `added_tokens.json` and `tokenizer.json`, by ascending id.
fn added_tokens(
    folder: &Path,
    config_path: &Path,
    config: &Object,
    whole: Option<(&Path, &Object)>,
) -> Result<Vec<TokenEntry>> {
    let mut found = BTreeMap::new();
    let mut insert = |path: &Path, what: &str, id: Option<u64>, value: &Value| {
        let id = id.ok_or_else(|| expected(path, what, "with a token id"))?;
        found.insert(id, TokenEntry { expected: Some((id, path.into())), ..entry(path, what, value, false)? });
        Ok::<_, Error>(())
    };
    let key = "added_tokens_decoder";
    if let Some(list) = config.get(key) {
        for (id, value) in list.as_object().ok_or_else(|| expected(config_path, key, "an object"))? {
            insert(config_path, key, id.parse().ok(), value)?;
        }
    } else {
        let path = folder.join("added_tokens.json");
        for (content, id) in optional_object(&path)?.unwrap_or_default() {
            // Tokens that no name marks as special are sought in the cleaned text.
            let value = serde_json::json!({ "content": content, "normalized": true });
            insert(&path, &content, id.as_u64(), &value)?;
        }
        if let Some((path, list)) = whole.and_then(|(p, w)| Some((p, w.get("added_tokens")?))) {
            for value in list.as_array().ok_or_else(|| expected(path, "added_tokens", "a list"))? {
                insert(path, "added_tokens", value.get("id").and_then(Value::as_u64), value)?;
            }
        }
    }
    Ok(found.into_values().collect())
}

fn max_length(path: &Path, config: &Object) -> Result<usize> {
    match config.get("model_max_length") {
        None | Some(Value::Null) => Ok(77),
        Some(value) => match value.as_u64() {
            Some(n @ 3..=MAX_LENGTH) => Ok(n as usize),
            _ => Err(Error::Config {
                path: path.into(),
                field: "model_max_length".into(),
                value: crate::error::escape(&value.to_string()),
                expected: format!("a whole number from 3 to {MAX_LENGTH} is needed (77 for CLIP)").into(),
            }),
        },
    }
}

fn check_right_side(path: &Path, config: &Object) -> Result<()> {
    for field in ["padding_side", "truncation_side"] {
        if let Some(value) = config.get(field).filter(|v| *v != "right" && !v.is_null()) {
            return Err(Error::Config {
                path: path.into(),
                field: field.into(),
                value: crate::error::escape(&value.to_string()),
                expected: "only \"right\" is supported".into(),
            });
        }
    }
    Ok(())
}

/// Reads vocabulary and merges only: CLIP's cleaning and splitting are fixed, and `padding`, `truncation`, `normalizer`
/// and the rest are never looked at, so nothing in them can do harm.
fn from_tokenizer_json(path: &Path, whole: &Object) -> Result<(Vocab, Merges)> {
    let model = whole.get("model").and_then(Value::as_object).ok_or_else(|| expected(path, "model", "an object"))?;
    if let Some(kind) = model.get("type").filter(|t| *t != "BPE") {
        let what = format!("holds a tokenizer of type {kind}; a CLIP tokenizer has the type \"BPE\"");
        return Err(Error::mismatch(path, what));
    }
    let vocab = model.get("vocab").and_then(Value::as_object);
    let vocab = vocab.ok_or_else(|| expected(path, "model.vocab", "an object of ids"))?;
    let vocab = vocab_of(path, vocab.iter().map(|(token, id)| (token.clone(), id.clone())))?;
    let merges = model.get("merges").and_then(Value::as_array);
    let merges = merges.ok_or_else(|| expected(path, "model.merges", "a list"))?.iter().enumerate().map(|(i, m)| {
        let parts = match m {
            Value::String(line) => pair(line),
            Value::Array(parts) => match parts.as_slice() {
                [Value::String(a), Value::String(b)] => Some((a.as_str(), b.as_str())),
                _ => None,
            },
            _ => None,
        };
        let (a, b) = parts.ok_or_else(|| expected(path, &format!("model.merges[{i}]"), "two tokens"))?;
        Ok((a.to_string(), b.to_string()))
    });
    Ok((vocab, merges.collect::<Result<_>>()?))
}

fn vocab_of(path: &Path, entries: impl IntoIterator<Item = (String, Value)>) -> Result<Vocab> {
    let (mut vocab, mut wrong) = (Vocab::default(), None::<String>);
    for (token, id) in entries {
        match id.as_u64().map(u32::try_from) {
            Some(Ok(id)) => {
                vocab.insert(token, id);
            }
            // The first in order is named, so that a file's error is always the same.
            _ => wrong = wrong.into_iter().chain([token]).min(),
        }
    }
    if let Some(token) = wrong {
        return Err(expected(path, &token, "a token id"));
    }
    if vocab.is_empty() {
        return Err(Error::malformed(path, "the vocabulary is empty"));
    }
    Ok(vocab)
}

fn merges_txt(path: &Path) -> Result<Merges> {
    let bytes = read(path)?;
    let text = std::str::from_utf8(&bytes).map_err(|e| Error::malformed(path, format!("not UTF-8: {e}")))?;
    let lines = text.trim_end().split('\n').map(|l| l.trim_end_matches('\r')).enumerate();
    let lines = lines.filter(|(_, line)| !line.starts_with("#version") && !line.is_empty());
    let merges = lines.map(|(i, line)| match pair(line) {
        Some((a, b)) => Ok((a.to_string(), b.to_string())),
        None => {
            Err(Error::malformed(path, format!("line {} (`{line}`) is not two tokens with a space between", i + 1)))
        }
    });
    merges.collect()
}

fn expected(path: &Path, field: &str, what: &str) -> Error {
    Error::malformed(path, format!("`{field}` is not {what}"))
}

fn optional_object(path: &Path) -> Result<Option<Object>> {
    optional(path)?.map(|bytes| json(path, &bytes)).transpose()
}

fn optional(path: &Path) -> Result<Option<Vec<u8>>> {
    if is_there(path)? { read(path).map(Some) } else { Ok(None) }
}

/// A file that holds a JSON object.
fn json<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes)
        .map_err(|e| Error::malformed(path, format!("not JSON with an object: {e}; download the file again")))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    // Before opening, because a pipe would make that wait for a writer.
    if !std::fs::metadata(path).map_err(Error::io("open", path))?.is_file() {
        return Err(Error::malformed(path, "not a regular file; a tokenizer's file is expected"));
    }
    let file = std::fs::File::open(path).map_err(Error::io("open", path))?;
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(Error::malformed(path, format!("larger than {MAX_BYTES} bytes; this is no tokenizer file")));
    }
    Ok(bytes)
}
