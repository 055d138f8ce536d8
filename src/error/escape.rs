//! Foreign text made safe to print.

/// The most characters of a foreign text.
const LONGEST: usize = 300;

/// Replaces control characters by their escapes and cuts the text at 300 characters, so that foreign text is safe to
/// print on one line.
pub fn escape(text: &str) -> String {
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => one_line(&text[..end]) + "...",
        None => one_line(text),
    }
}

/// Replaces control characters by their escapes. What is escaped already stays as it is.
pub(crate) fn one_line(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_control_characters() {
        assert_eq!(escape("a\x1b[31m\0b"), "a\\u{1b}[31m\\u{0}b");
        assert_eq!(escape(&escape("a\x1b\nb")), escape("a\x1b\nb"));
        assert_eq!(escape(&"x".repeat(400)).len(), 303);
        assert_eq!(
            (escape(&"\n".repeat(400)), escape(&"x".repeat(300))),
            ("\\u{a}".repeat(300) + "...", "x".repeat(300))
        );
    }
}
