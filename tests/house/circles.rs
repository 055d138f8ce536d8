//! Circles of files: files that import each other, directly or through others.
//!
//! An import is a path in code (`use a::b`, `a::b::c()`) that leads to another file. A name that a `mod.rs` only hands on leads to
//! that `mod.rs` and to the file that defines it. `mod x;` and `pub use x::Y` alone are no imports.

use super::File;
use super::lexer::{Kind, Token, closed, tokens, without_tests};
use std::collections::{BTreeMap, BTreeSet};

/// A module: its file, what it declares, and the paths in it.
#[derive(Default, Debug)]
struct Module {
    file: String,
    /// Names that lead elsewhere: an import or a re-export, with the path as written.
    names: BTreeMap<String, Vec<String>>,
    globs: Vec<Vec<String>>,
    /// Paths that count as imports.
    paths: Vec<Vec<String>>,
}

/// Modules by their path from the crate, whose first part is the crate's root file.
type Modules = BTreeMap<Vec<String>, Module>;

/// Every circle, as its files in order.
pub fn circles(sources: &[File]) -> Vec<String> {
    let edges = imports(sources);
    let reach: BTreeMap<&String, BTreeSet<&String>> = edges.keys().map(|file| (file, reached(&edges, file))).collect();
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for (file, reached) in &reach {
        let circle: Vec<&String> =
            reached.iter().filter(|other| reach.get(**other).is_some_and(|r| r.contains(*file))).copied().collect();
        if reached.contains(*file) && seen.insert(circle.clone()) {
            let ties = circle
                .iter()
                .flat_map(|a| edges[*a].iter().filter(|b| circle.contains(b)).map(move |b| format!("{a} -> {b}")));
            let names: Vec<&str> = circle.iter().map(|name| name.as_str()).collect();
            found.push(format!("{}\n      {}", names.join(", "), ties.collect::<Vec<_>>().join("\n      ")));
        }
    }
    found
}

fn reached<'a>(edges: &'a BTreeMap<String, BTreeSet<String>>, from: &'a String) -> BTreeSet<&'a String> {
    let (mut found, mut next) = (BTreeSet::new(), vec![from]);
    while let Some(file) = next.pop() {
        next.extend(edges.get(file).into_iter().flatten().filter(|other| found.insert(*other)));
    }
    found
}

/// Each file with those that it imports.
fn imports(sources: &[File]) -> BTreeMap<String, BTreeSet<String>> {
    let texts: BTreeMap<&str, &str> = sources.iter().map(|file| (file.path.as_str(), file.text.as_str())).collect();
    let mut modules = Modules::new();
    let is_root = |path: &str| path.ends_with("/lib.rs") || path.ends_with("main.rs");
    for root in texts.keys().filter(|path| is_root(path)) {
        add_file(&texts, root, vec![(*root).to_owned()], &mut modules);
    }
    let mut edges: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (path, module) in &modules {
        let found = edges.entry(module.file.clone()).or_default();
        for written in &module.paths {
            found.extend(leads_to(&modules, path, written, 0).into_iter().filter(|file| *file != module.file));
        }
    }
    edges
}

fn add_file(texts: &BTreeMap<&str, &str>, file: &str, path: Vec<String>, modules: &mut Modules) {
    let Some(text) = texts.get(file) else { return };
    let (tokens, _) = without_tests(&tokens(text));
    let stem = file.strip_suffix(".rs").unwrap_or(file);
    let is_parent = ["/mod", "/lib", "/main"].iter().any(|name| stem.ends_with(name));
    let folder = if is_parent { stem.rsplit_once('/').map_or("", |(folder, _)| folder) } else { stem }.to_owned();
    add_module(texts, &tokens, &Place { file, folder }, path, modules);
}

struct Place<'a> {
    file: &'a str,
    /// The folder of the module's children.
    folder: String,
}

fn add_module(
    texts: &BTreeMap<&str, &str>,
    tokens: &[Token],
    place: &Place<'_>,
    path: Vec<String>,
    modules: &mut Modules,
) {
    let mut module = Module { file: place.file.to_owned(), ..Module::default() };
    let mut handed_on = Vec::new();
    let mut used = BTreeSet::new();
    let mut at = 0;
    while at < tokens.len() {
        match tokens[at].word() {
            Some("mod") if tokens.get(at + 2).is_some_and(|t| t.is(';') || t.is('{')) => {
                let name = tokens[at + 1].word().unwrap_or_default();
                let child: Vec<String> = path.iter().cloned().chain([name.to_owned()]).collect();
                let folder = format!("{}/{name}", place.folder);
                if tokens[at + 2].is(';') {
                    for file in [format!("{folder}.rs"), format!("{folder}/mod.rs")] {
                        add_file(texts, &file, child.clone(), modules);
                    }
                    at += 3;
                } else {
                    let end = closed(tokens, at + 2);
                    let inner = Place { file: place.file, folder };
                    add_module(texts, &tokens[at + 3..end - 1], &inner, child, modules);
                    at = end;
                }
            }
            Some("use") => {
                let end = (at..tokens.len()).find(|i| tokens[*i].is(';')).unwrap_or(tokens.len());
                let public = at > 0 && (tokens[at - 1].word() == Some("pub") || is_scoped_pub(tokens, at));
                for (written, name) in tree(&tokens[at + 1..end]) {
                    match name.as_deref() {
                        Some("*") => module.globs.push(written.clone()),
                        Some(name) => _ = module.names.insert(name.to_owned(), written.clone()),
                        None => {}
                    }
                    if public { handed_on.push((name, written)) } else { module.paths.push(written) }
                }
                at = end + 1;
            }
            // The path of a visibility, `pub(in a::b)`, is no import.
            Some("in") if at > 1 && tokens[at - 1].is('(') && tokens[at - 2].word() == Some("pub") => {
                at = (at..tokens.len()).find(|i| tokens[*i].is(')')).unwrap_or(tokens.len());
            }
            Some(word) if tokens.get(at.wrapping_sub(1)).is_none_or(|t| t.kind != Kind::Path && !t.is('.')) => {
                let mut written = vec![word.to_owned()];
                used.insert(word.to_owned());
                at += 1;
                while let (Some(Kind::Path), Some(next)) =
                    (tokens.get(at).map(|t| &t.kind), tokens.get(at + 1).and_then(Token::word))
                {
                    written.push(next.to_owned());
                    at += 2;
                }
                if written.len() > 1 {
                    module.paths.push(written);
                }
            }
            _ => at += 1,
        }
    }
    // What a module hands on and uses itself, it imports.
    module.paths.extend(
        handed_on
            .into_iter()
            .filter(|(name, _)| name.as_ref().is_some_and(|n| used.contains(n)))
            .map(|(_, written)| written),
    );
    modules.insert(path, module);
}

/// `pub(crate)` before `use`.
fn is_scoped_pub(tokens: &[Token], at: usize) -> bool {
    at > 3 && tokens[at - 1].is(')') && tokens[at - 3].is('(') && tokens[at - 4].word() == Some("pub")
        || at > 4 && tokens[at - 1].is(')') && tokens[..at].iter().rev().take(8).any(|t| t.word() == Some("pub"))
}

/// The paths of a `use` with the name that each binds.
fn tree(tokens: &[Token]) -> Vec<(Vec<String>, Option<String>)> {
    let mut path: Vec<String> = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        match &tokens[at].kind {
            Kind::Word(word) if word == "as" => {
                let name = tokens.get(at + 1).and_then(Token::word).map(String::from);
                return vec![(path, name)];
            }
            Kind::Word(word) => path.push(word.clone()),
            Kind::Sign('*') => return vec![(path, Some("*".to_owned()))],
            Kind::Sign('{') => {
                let inside = &tokens[at + 1..closed(tokens, at) - 1];
                return branches(inside)
                    .into_iter()
                    .flat_map(|branch| {
                        tree(branch)
                            .into_iter()
                            .map(|(rest, name)| (path.iter().cloned().chain(rest).collect(), name))
                            .collect::<Vec<_>>()
                    })
                    .collect();
            }
            _ => {}
        }
        at += 1;
    }
    if path.last().is_some_and(|last| last == "self") && path.len() > 1 {
        path.pop();
    }
    let name = path.last().cloned();
    vec![(path, name)]
}

/// Splits at the commas outside braces.
fn branches(tokens: &[Token]) -> Vec<&[Token]> {
    let (mut found, mut begin, mut at) = (Vec::new(), 0, 0);
    while at < tokens.len() {
        if tokens[at].is('{') {
            at = closed(tokens, at);
        } else if tokens[at].is(',') {
            found.push(&tokens[begin..at]);
            at += 1;
            begin = at;
        } else {
            at += 1;
        }
    }
    found.push(&tokens[begin..]);
    found.into_iter().filter(|branch| !branch.is_empty()).collect()
}

/// The files to which a path leads, seen from a module: where it ends, and where a name in it is handed on.
fn leads_to(modules: &Modules, from: &[String], written: &[String], depth: usize) -> Vec<String> {
    let Some(first) = written.first().filter(|_| depth < 12) else { return Vec::new() };
    let (mut at, mut rest) = match first.as_str() {
        "crate" => (from[..1].to_vec(), &written[1..]),
        "braid" => (vec!["src/lib.rs".to_owned()], &written[1..]),
        "self" => (from.to_vec(), &written[1..]),
        "super" => (from[..from.len() - 1].to_vec(), &written[1..]),
        name => {
            let child: Vec<String> = from.iter().cloned().chain([name.to_owned()]).collect();
            if modules.contains_key(&child) {
                (child, &written[1..])
            } else if let Some(target) = modules.get(from).and_then(|m| m.names.get(name)) {
                if target.first() == Some(first) && target.len() == 1 {
                    return Vec::new();
                }
                let longer: Vec<String> = target.iter().chain(&written[1..]).cloned().collect();
                return leads_to(modules, from, &longer, depth + 1);
            } else {
                return Vec::new();
            }
        }
    };
    while rest.first().is_some_and(|name| name == "super") && !at.is_empty() {
        at.pop();
        rest = &rest[1..];
    }
    while let Some(name) = rest.first() {
        let child: Vec<String> = at.iter().cloned().chain([name.clone()]).collect();
        if !modules.contains_key(&child) {
            break;
        }
        (at, rest) = (child, &rest[1..]);
    }
    let Some(module) = modules.get(&at) else { return Vec::new() };
    let mut found = Vec::new();
    if let Some(name) = rest.first() {
        // The name is the module's own, or one that it hands on.
        let named = module.names.get(name).map(|target| target.iter().chain(&rest[1..]).cloned().collect::<Vec<_>>());
        if let Some(target) = named.filter(|_| at != from) {
            found.extend(leads_to(modules, &at, &target, depth + 1));
            return found;
        }
    }
    found.push(module.file.clone());
    found
}

#[cfg(test)]
fn planted(files: &[(&str, &str)]) -> Vec<String> {
    let files: Vec<File> =
        files.iter().map(|(path, text)| File { path: (*path).into(), text: (*text).into() }).collect();
    circles(&files).iter().map(|circle| circle.lines().next().unwrap_or_default().to_owned()).collect()
}

#[test]
fn planted_circles() {
    let lib = ("src/lib.rs", "mod a; mod b;");
    let none = Vec::<String>::new();
    assert_eq!(
        planted(&[lib, ("src/a.rs", "use crate::b::B;"), ("src/b.rs", "fn f() { crate::a::g() }")]),
        ["src/a.rs, src/b.rs"]
    );
    assert_eq!(
        planted(&[
            lib,
            ("src/a.rs", "use crate::b::{self, B};"),
            ("src/b.rs", "#[cfg(test)] mod t { use crate::a::A; }")
        ]),
        none
    );
    // A parent may declare and hand on; where it uses what its child uses it for, that is a circle.
    let parent = |text| ("src/lib.rs", text);
    let child = ("src/a.rs", "use super::P; struct A;");
    assert_eq!(planted(&[parent("mod a; pub use a::A; struct P;"), child]), none);
    assert_eq!(planted(&[parent("mod a; use a::A; struct P(A);"), child]), ["src/a.rs, src/lib.rs"]);
    assert_eq!(planted(&[parent("mod a; pub use a::A; struct P(A);"), child]), ["src/a.rs, src/lib.rs"]);
    assert_eq!(planted(&[parent("mod a; struct P; fn f() { a::g() }"), child]), ["src/a.rs, src/lib.rs"]);
    // A visibility names a module without importing it.
    let seen = ("src/a.rs", "pub(in crate::b) struct A; mod c;");
    let user = ("src/b.rs", "use crate::a::A;");
    assert_eq!(planted(&[lib, seen, user]), none);
    let caller = ("src/a.rs", "pub(in crate::b) fn a() { crate::b::f() }");
    assert_eq!(planted(&[lib, caller, user]), ["src/a.rs, src/b.rs"]);
}
