//! Cleaning of a text before it is split into words.
//!
//! The DiffSynth profile follows ftfy 6.3 (`fix_text` with its defaults) step by step, line by line, until nothing
//! changes: HTML entities (not after a `<` was seen), C1 controls as Windows-1252, Latin ligatures, full-width and
//! half-width forms, curly quotes, line breaks, terminal escapes, control characters, NFC. Not done: `fix_encoding`
//! (mojibake). `fix_surrogates` has nothing to do, as a Rust string holds no surrogates.

use std::collections::HashMap;
use std::sync::OnceLock;
use tokenizers::NormalizedString;

/// Cleans as transformers 5: NFC, each run of white space to one space, lower case character by character.
pub(super) fn diffusers(text: &str) -> String {
    spaces(&nfc(text)).chars().flat_map(char::to_lowercase).collect()
}

/// Cleans as transformers 4 with ftfy: repairs, each run of white space to one space, trimmed, lower case in context.
pub(super) fn diffsynth(text: &str) -> String {
    spaces(&fix(text)).trim_matches(' ').to_lowercase()
}

fn spaces(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut within = false;
    for c in text.chars() {
        let space = c.is_whitespace();
        if !space {
            out.push(c);
        } else if !within {
            out.push(' ');
        }
        within = space;
    }
    out
}

fn nfc(text: &str) -> String {
    if text.is_ascii() {
        return text.to_string();
    }
    let mut normalized = NormalizedString::from(text);
    normalized.nfc();
    normalized.get().to_string()
}

/// A text that is still changing after so many passes was made to be; ftfy itself would go on.
const PASSES: usize = 100;

/// Repairs as ftfy's `fix_text`: each line on its own, but a `<` ends the decoding of entities for the rest of the
/// text.
fn fix(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut entities = true;
    for line in text.split_inclusive('\n') {
        entities &= !line.contains('<');
        let mut line = line.to_string();
        for _ in 0..PASSES {
            let next = fix_once(&line, entities);
            if next == line {
                break;
            }
            line = next;
        }
        out.push_str(&line);
    }
    out
}

fn fix_once(line: &str, entities: bool) -> String {
    let decoded = if entities { unescape(line) } else { line.to_string() };
    let mut out = String::with_capacity(decoded.len());
    for c in decoded.chars() {
        character(c, &mut out);
    }
    let lines = out.replace("\r\n", "\n").replace(['\r', '\u{2028}', '\u{2029}', '\u{85}'], "\n");
    let mut plain = without_terminal_escapes(&lines);
    plain.retain(|c| {
        !matches!(c, '\0'..='\u{8}' | '\u{b}' | '\u{e}'..='\u{1f}' | '\u{7f}' | '\u{206a}'..='\u{206f}' | '\u{feff}'
            | '\u{fff9}'..='\u{fffc}')
    });
    nfc(&plain)
}

/// Applies the steps that look at one character: C1 controls, ligatures, width, quotes, in this order.
fn character(c: char, out: &mut String) {
    /// U+0080 to U+009F in Windows-1252; what it leaves unassigned stays.
    const C1: [char; 32] = [
        '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8d}', 'Ž', '\u{8f}', '\u{90}', '‘',
        '’', '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9d}', 'ž', 'Ÿ',
    ];
    let c = match c {
        '\u{80}'..='\u{9f}' => C1[c as usize - 0x80],
        _ => c,
    };
    let letters = match c {
        'Ĳ' => "IJ",
        'ĳ' => "ij",
        'ŉ' => "'n",
        'Ǳ' => "DZ",
        'ǲ' => "Dz",
        'ǳ' => "dz",
        'Ǆ' => "DŽ",
        'ǅ' => "Dž",
        'ǆ' => "dž",
        'Ǉ' => "LJ",
        'ǈ' => "Lj",
        'ǉ' => "lj",
        'Ǌ' => "NJ",
        'ǋ' => "Nj",
        'ǌ' => "nj",
        'ﬀ' => "ff",
        'ﬁ' => "fi",
        'ﬂ' => "fl",
        'ﬃ' => "ffi",
        'ﬄ' => "ffl",
        'ﬅ' => "ſt",
        'ﬆ' => "st",
        '\u{3000}' => " ",
        '\u{2bc}' | '\u{2018}'..='\u{201b}' => "'",
        '\u{201c}'..='\u{201f}' => "\"",
        '\u{ff01}'..='\u{ffef}' => {
            let mut one = NormalizedString::from(c.to_string());
            one.nfkc();
            out.push_str(one.get());
            return;
        }
        _ => {
            out.push(c);
            return;
        }
    };
    out.push_str(letters);
}

/// Drops `ESC [`, digits and semicolons, one letter.
fn without_terminal_escapes(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("\u{1b}[") {
        let after = &rest[at + 2..];
        let letter = after.find(|c: char| c != ';' && !c.is_numeric()).unwrap_or(after.len());
        if after[letter..].starts_with(|c: char| c.is_ascii_alphabetic()) {
            out.push_str(&rest[..at]);
            rest = &after[letter + 1..];
        } else {
            out.push_str(&rest[..at + 2]);
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

/// Replaces `&name;` and `&#number;` where they are one to 24 letters and digits long.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let digits = 1 + usize::from(rest[1..].starts_with('#'));
        let body = rest[digits..].bytes().take_while(u8::is_ascii_alphanumeric).take(25).count();
        let end = digits + body + 1;
        if (1..=24).contains(&body) && rest.as_bytes().get(end - 1) == Some(&b';') {
            match entity(&rest[1..end - 1]) {
                Some(value) => out.push_str(&value),
                None => out.push_str(&rest[..end]),
            }
            rest = &rest[end..];
        } else {
            out.push('&');
            rest = &rest[1..];
        }
    }
    out.push_str(rest);
    out
}

/// Decodes an entity, given without `&` and `;`; `None` where it stays as it is.
fn entity(name: &str) -> Option<String> {
    static NAMES: OnceLock<HashMap<&str, &str>> = OnceLock::new();
    let Some(number) = name.strip_prefix('#') else {
        let names = NAMES.get_or_init(|| {
            include_str!("../../../assets/clip/entities.txt").lines().filter_map(|l| l.split_once(' ')).collect()
        });
        let codes = names.get(name)?.split(' ');
        return codes.map(|c| char::from_u32(u32::from_str_radix(c, 16).ok()?)).collect();
    };
    let (digits, radix) = match number.strip_prefix(['x', 'X']) {
        Some(hex) => (hex, 16),
        None => (number, 10),
    };
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
        return None;
    }
    // Twenty-four digits do not fit; what does not is beyond Unicode anyhow.
    let code = u32::from_str_radix(digits, radix).unwrap_or(u32::MAX);
    Some(match code {
        0 => "\u{fffd}".into(),
        0x0d => "\r".into(),
        // A semicolon would stay behind, which the peer takes for a number only half decoded.
        0x3b => return None,
        // Read as Windows-1252, by the step that follows this one too.
        0x80..=0x9f => char::from_u32(code)?.to_string(),
        1..=8 | 0xb | 0xe..=0x1f | 0x7f | 0xfdd0..=0xfdef => String::new(),
        _ if code <= 0x10_ffff && code & 0xfffe == 0xfffe => String::new(),
        _ => char::from_u32(code).unwrap_or('\u{fffd}').to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ftfy_repairs() {
        for (text, expected) in [
            ("&amp;amp; &lt;b&gt; &NTILDE; &#x2019; &#59; &nosuch; &amp", "& <b> Ñ ' &#59; &nosuch; &amp"),
            ("<b> &amp;\n&amp;", "<b> &amp;\n&amp;"),
            ("a\u{1b}[31mb\u{1b}[xz\u{1b}[", "abz["),
            ("ﬂuﬃeﬆ ＬＯＵＤ　ｶﾞ", "fluffiest LOUD ガ"),
            ("\u{85}\u{93}q\u{94} e\u{301}\u{feff}", "…\"q\" é"),
        ] {
            assert_eq!(fix(text), expected, "{text:?}");
        }
    }

    #[test]
    fn lower_case_by_profile() {
        assert_eq!(diffusers(" ΟΔΟΣ\t\n İ"), " οδοσ i\u{307}");
        assert_eq!(diffsynth(" ΟΔΟΣ\t\n İ"), "οδος i\u{307}");
    }
}
