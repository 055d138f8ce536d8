//! Foreign text made safe to print.

/// Replaces control characters by their escapes and cuts the text at 300 characters, so that foreign text is safe to
/// print on one line.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for (i, c) in text.chars().enumerate() {
        if i == 300 {
            out.push_str("...");
            break;
        }
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
        assert_eq!(escape(&"x".repeat(400)).len(), 303);
    }
}
