//! Rules that look at one file at a time.

use super::File;
use super::lexer::{Kind, Token, closed, tokens, without_tests};
use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::path::Path;

pub const FILE_LINES: usize = 500;
const FUNCTION_LINES: usize = 80;

/// Functions from `fn` to their last brace.
pub fn long_functions(path: &str, text: &str) -> Vec<String> {
    let tokens = tokens(text);
    let mut found = Vec::new();
    for (i, pair) in tokens.windows(2).enumerate() {
        let (Some("fn"), Some(name)) = (pair[0].word(), pair[1].word()) else { continue };
        let mut at = i + 2;
        while at < tokens.len() && !tokens[at].is('{') && !tokens[at].is(';') {
            at = if tokens[at].is('(') || tokens[at].is('[') { closed(&tokens, at) } else { at + 1 };
        }
        if tokens.get(at).is_some_and(|t| t.is('{')) {
            let lines = tokens[closed(&tokens, at) - 1].line - pair[0].line + 1;
            if lines > FUNCTION_LINES {
                found.push(format!("{path}: {name}: {lines} lines"));
            }
        }
    }
    found
}

/// String literals, outside tests, that name a flag. NVRTC's own are none of the command's.
pub fn flags(path: &str, text: &str) -> Vec<String> {
    let flag = |text: &str| {
        text.match_indices("--").any(|(i, _)| {
            let before = text[..i].chars().next_back();
            before.is_none_or(|c| !c.is_alphanumeric() && c != '-')
                && text[i + 2..].starts_with(|c: char| c.is_ascii_lowercase())
        })
    };
    let texts = |t: &Token| match &t.kind {
        Kind::Text(inside) if flag(inside) && !inside.starts_with("--gpu-architecture=") => {
            Some(format!("{path}: line {}: {inside}", t.line))
        }
        _ => None,
    };
    if path.ends_with("tests.rs") {
        Vec::new()
    } else {
        without_tests(&tokens(text)).0.iter().filter_map(texts).collect()
    }
}

/// Doc comments that open with a relative clause in place of a verb or a noun.
pub fn relative_docs(path: &str, text: &str) -> Vec<String> {
    const OPENINGS: [&str; 10] =
        ["What ", "Whose ", "Who ", "How ", "Where ", "Lets ", "That ", "So many ", "Which ", "As many "];
    let (mut found, mut inside) = (Vec::new(), false);
    for (i, line) in text.lines().enumerate() {
        let line = line.trim_start();
        let doc = line.strip_prefix("///").or_else(|| line.strip_prefix("//!"));
        if let (Some(doc), false) = (doc, inside)
            && OPENINGS.iter().any(|opening| doc.trim_start().starts_with(opening))
        {
            found.push(format!("{path}: line {}: {}", i + 1, doc.trim()));
        }
        inside = doc.is_some();
    }
    found
}

pub fn unfinished(path: &str, text: &str) -> Vec<String> {
    let all = tokens(text);
    let at = |i: usize| all.get(i);
    let mut found = Vec::new();
    for (i, token) in all.iter().enumerate() {
        let sign = |offset: usize, sign: char| at(i + offset).is_some_and(|t| t.is(sign));
        let bad = match token.word() {
            Some("todo" | "unimplemented") => sign(1, '!'),
            Some("ignore") => i > 1 && all[i - 1].is('[') && all[i - 2].is('#') && sign(1, ']'),
            _ => false,
        };
        if bad {
            found.push(format!("{path}: line {}: {}", token.line, token.word().unwrap_or_default()));
        }
    }
    found
}

/// Those of `names` that a user of the library cannot leave out: not optional, or not brought by the feature `cli`.
pub fn command_only(manifest: &str, names: &[&str]) -> Vec<String> {
    let line =
        |start: &str| manifest.lines().find(|line| line.split(['=', ' ']).next() == Some(start)).unwrap_or_default();
    let cli: String = {
        let from = manifest.lines().skip_while(|line| line.split(['=', ' ']).next() != Some("cli"));
        let mut list: Vec<&str> = Vec::new();
        for line in from {
            list.push(line);
            if line.contains(']') {
                break;
            }
        }
        list.concat()
    };
    let needed = |name: &&&str| !line(name).contains("optional = true") || !cli.contains(&format!("\"dep:{name}\""));
    names.iter().filter(needed).map(|name| format!("{name}: not an optional dependency of the feature `cli`")).collect()
}

/// Names of tests in a document, `tests/x.rs` and `tests/x.rs, `name``, that are not there. The listing of a trial names files
/// that are gone.
pub fn named_tests(document: &File, tests: &[File], root: &Path) -> Vec<String> {
    let mut missing = Vec::new();
    let mut say = |what: &str| missing.push(format!("{}: {what}", document.path));
    let base = if document.path.starts_with("ptx/") { root.join("ptx") } else { root.to_owned() };
    let listing = |line: &&str| line.starts_with("    ") && line.contains(" | ");
    let text = document.text.lines().filter(|line| !listing(line)).collect::<Vec<_>>().join("\n");
    for (at, _) in text.match_indices("tests/") {
        let begins = text[..at].rfind(|c: char| !c.is_alphanumeric() && !"_/.-".contains(c)).map_or(0, |i| i + 1);
        let path: String = text[begins..].chars().take_while(|c| c.is_alphanumeric() || "_/.-".contains(*c)).collect();
        let path = path.trim_start_matches("../").trim_end_matches(['.', '/', '-']);
        let found = base.join(path).exists() || root.join(path).exists() || path.contains("HEAD");
        if !found && !text[begins..].starts_with(&format!("{path}/*")) && !text[begins..].contains(&format!("{path}*"))
        {
            say(path);
        }
        // `tests/x.rs, `name`` and `tests/x.rs: `name`` name a test or a module of tests.
        let rest = text[begins + text[begins..].find(path).unwrap_or(0) + path.len()..].to_owned();
        let rest = rest.strip_prefix(", `").or_else(|| rest.strip_prefix(": `")).map(String::from);
        if let (Some(rest), true) = (rest, path.ends_with(".rs")) {
            let name = rest.split('`').next().unwrap_or_default().rsplit("::").next().unwrap_or_default();
            let defined = |file: &&File| file.path.ends_with(path) && defines(&file.text, name);
            if tests.iter().find(defined).is_none() {
                say(&format!("{path}: no `{name}`"));
            }
        }
    }
    missing
}

/// Rows of a catalogue, a letter and two digits, without a test function whose name begins so or without one's name in the document;
/// and such names in the document that are no test's.
pub fn catalogue(letter: char, rows: RangeInclusive<usize>, tests: &[File], document: &File) -> Vec<String> {
    let mut functions = BTreeSet::new();
    for file in tests {
        let all = tokens(&file.text);
        let names = all.windows(2).filter(|pair| pair[0].word() == Some("fn")).filter_map(|pair| pair[1].word());
        functions.extend(names.map(str::to_owned));
    }
    let prefixes: Vec<String> = rows.map(|row| format!("{letter}{row:02}_")).collect();
    let words = || document.text.split(|c: char| !c.is_alphanumeric() && c != '_');
    let mut missing = Vec::new();
    for prefix in &prefixes {
        if !functions.iter().any(|name| name.starts_with(prefix)) {
            missing.push(format!("no test `{prefix}*`"));
        }
        if !words().any(|word| word.starts_with(prefix)) {
            missing.push(format!("{}: nothing about `{prefix}*`", document.path));
        }
    }
    let named = words().filter(|word| prefixes.iter().any(|prefix| word.starts_with(prefix)));
    let gone = named.filter(|name| !functions.contains(*name));
    missing.extend(gone.map(|name| format!("{}: no test `{name}`", document.path)));
    missing
}

fn defines(text: &str, name: &str) -> bool {
    tokens(text).windows(2).any(|w| matches!(w[0].word(), Some("fn" | "mod")) && w[1].word() == Some(name))
}

#[test]
fn planted_long_function() {
    let body = "    let brace = '{'; // }\n    let text = \"}\"; /* } */\n";
    let text = |pairs: usize| {
        format!("fn short() {{}}\nfn planted<const N: usize>(a: [u8; 2]) -> u8 {{\n{}}}\n", body.repeat(pairs))
    };
    assert_eq!(long_functions("x", &text(39)), Vec::<String>::new());
    assert_eq!(long_functions("x", &text(40)), ["x: planted: 82 lines"]);
}

#[test]
fn planted_flag() {
    let text = "// --comment\nfn a() { say(\"set --steps\"); say(\"a--b ---\"); }\n#[cfg(test)] mod t { const A: &str = \"--test\"; }";
    assert_eq!(flags("x", text), ["x: line 2: set --steps"]);
}

#[test]
fn planted_doc_comment() {
    let text = "/// Uploads.\n/// What is uploaded.\nfn a() {}\n/// Whose turn.\nfn b() {}\n//! Whatever.";
    assert_eq!(relative_docs("x", text), ["x: line 4: Whose turn."]);
}

#[test]
fn planted_unfinished_code() {
    let text = "#[ignore]\nfn a() { todo!() }\n#[ignore = \"slow\"]\nfn todo() {}";
    assert_eq!(unfinished("x", text), ["x: line 1: ignore", "x: line 2: todo"]);
}

#[test]
fn planted_dependency() {
    let manifest =
        "[features]\ncli = [\n \"dep:a\",\n]\n[dependencies]\na = { version = \"1\", optional = true }\nb = \"1\"\n";
    assert_eq!(command_only(manifest, &["a"]), Vec::<String>::new());
    assert_eq!(command_only(manifest, &["b"]).len(), 1);
}

#[test]
fn planted_missing_test() {
    let file = |path: &str, text: &str| File { path: path.into(), text: text.into() };
    let document = file("docs/a.md", "tests/house/main.rs, `there`; tests/house/main.rs, `gone`; (tests/none.rs).");
    let tests = [file("tests/house/main.rs", "fn there() {}")];
    let missing = named_tests(&document, &tests, &super::root());
    assert_eq!(missing, ["docs/a.md: tests/house/main.rs: no `gone`", "docs/a.md: tests/none.rs"]);
}

#[test]
fn planted_catalogue() {
    let file = |path: &str, text: &str| File { path: path.into(), text: text.into() };
    let tests = [file("a.rs", "// fn b03_comment()\nfn b01_there() {}\nfn b02_there() {}\nfn b01_too() {}")];
    let document = file("d.md", "| B01, B02 | `b01_there`, `b01_too` | `b02_gone` | b2_ |");
    let missing = catalogue('b', 1..=3, &tests, &document);
    assert_eq!(missing, ["no test `b03_*`", "d.md: nothing about `b03_*`", "d.md: no test `b02_gone`"]);
}
