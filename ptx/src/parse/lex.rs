//! PTX text as tokens.

use crate::error::{Error, Result};

/// A token with its line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token<'a> {
    pub text: &'a str,
    pub line: u32,
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | b'%' | b'.')
}

/// Splits the text into tokens. A word may contain dots and `::`, so an opcode with its modifiers is one token; strings keep
/// their quotes.
pub(crate) fn tokens(text: &str) -> Result<Vec<Token<'_>>> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len() / 4);
    let (mut at, mut line) = (0, 1);
    while at < bytes.len() {
        let start = at;
        match bytes[at] {
            b'\n' => {
                line += 1;
                at += 1;
                continue;
            }
            b if b.is_ascii_whitespace() || b == 0 => {
                at += 1;
                continue;
            }
            b'/' if bytes.get(at + 1) == Some(&b'/') => {
                while at < bytes.len() && bytes[at] != b'\n' {
                    at += 1;
                }
                continue;
            }
            b'/' if bytes.get(at + 1) == Some(&b'*') => {
                let end = text[at..].find("*/").ok_or_else(|| Error::new(line, "a comment that does not end"))?;
                line += text[at..at + end].matches('\n').count() as u32;
                at += end + 2;
                continue;
            }
            b'"' => {
                let end = text[at + 1..].find('"').ok_or_else(|| Error::new(line, "a string that does not end"))?;
                at += end + 2;
            }
            b if is_word(b) => {
                while at < bytes.len() && (is_word(bytes[at]) || bytes[at..].starts_with(b"::")) {
                    at += if bytes[at] == b':' { 2 } else { 1 };
                }
            }
            b if b.is_ascii_punctuation() => at += 1,
            _ => return Err(Error::new(line, "a character that PTX does not have")),
        }
        out.push(Token { text: &text[start..at], line });
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        let text = "// c\n@!%p1 ld.global.L2::128B.v2.f32 {%f1, _}, [a+-4]; /* x\n */ $L_1: mov.b32 %r1, 0f3F800000;";
        let words: Vec<_> = tokens(text).unwrap().iter().map(|t| (t.text, t.line)).collect();
        let expected = ["@", "!", "%p1", "ld.global.L2::128B.v2.f32", "{", "%f1", ",", "_", "}", ",", "[", "a", "+"];
        assert_eq!(words[..13].iter().map(|w| w.0).collect::<Vec<_>>(), expected);
        assert_eq!(words[17], ("$L_1", 3));
        assert!(tokens("\"abc").is_err() && tokens("/* abc").is_err());
    }
}
