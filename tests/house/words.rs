//! Names that the code has given up for those of the field (the table in CHANGELOG.md): they do not come back.

use super::lexer::tokens;

/// Nowhere: neither in code nor in prose.
const NAMES: &[&str] = &[
    "Slab",
    "Strand",
    "Painted",
    "TakeRow",
    "Octet",
    "Sinusoid",
    "AddRows",
    "ClassToken",
    "braided_attention",
    "noise_room",
    "keep_stages",
    "program_bytes",
    "stand_in",
    "load_on",
    "PictureOutput",
    "NaiveProgram",
    "cut_at_77",
];

/// Ordinary words of English, or of Rust in small letters, so only the identifiers of the code count.
const IDENTIFIERS: &[&str] = &["Turn", "Watch", "Sampled", "Sampling", "Affine", "Picture", "handover", "Facts"];

/// Nowhere in comments; the text of flags, JSON keys and PNG files may keep them.
const COMMENTS: &[&str] =
    &["picture", "sampler", "samplers", "strand", "strands", "slab", "replay", "replayed", "replays"];

/// Old names in a file, each once a line.
pub fn old_names(path: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let words = || line.split(|c: char| !c.is_alphanumeric() && c != '_');
        for name in NAMES.iter().filter(|name| words().any(|word| word == **name)) {
            found.push(format!("{path}: line {}: {name}", i + 1));
        }
        let is_comment = line.trim_start().starts_with("//");
        for word in COMMENTS.iter().filter(|word| is_comment && words().any(|other| other == **word)) {
            found.push(format!("{path}: line {}: {word} in a comment", i + 1));
        }
    }
    if path.ends_with(".rs") {
        for token in tokens(text) {
            if let Some(name) = token.word().filter(|word| IDENTIFIERS.contains(word)) {
                found.push(format!("{path}: line {}: {name}", token.line));
            }
        }
    }
    found
}

#[test]
fn planted_old_name() {
    let text = "/// Watch the Slab.\nstruct Watch;\nstruct Slabs;";
    assert_eq!(old_names("x.rs", text), ["x.rs: line 1: Slab", "x.rs: line 2: Watch"]);
    let text = "// A replayed graph.\nlet picture = \"sampler\";";
    assert_eq!(old_names("x.rs", text), ["x.rs: line 1: replayed in a comment"]);
}
