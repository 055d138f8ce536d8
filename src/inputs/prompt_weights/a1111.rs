//! AUTOMATIC1111's syntax.

/// A piece of a prompt.
#[derive(Debug, Clone, PartialEq)]
pub enum PromptPiece {
    /// Text and its weight.
    Text(String, f32),
    /// The word `BREAK`: what follows begins a new row of tokens.
    Break,
}

/// Reads AUTOMATIC1111's syntax: `(text)` weighs 1.1 times as much, `[text]` 1 / 1.1 times, `(text:1.3)` 1.3 times; brackets
/// nest, unclosed ones reach to the end, and a backslash takes a bracket's meaning away. Neighbours of one weight are joined.
///
/// # Errors
/// The weight that is no number.
pub fn a1111(prompt: &str) -> Result<Vec<PromptPiece>, String> {
    const ROUND: f32 = 1.1;
    let mut pieces = Vec::new();
    // For each open bracket the first piece within it.
    let (mut round, mut square) = (Vec::new(), Vec::new());
    let mut rest = prompt;
    while let Some(c) = rest.chars().next() {
        let mut len = c.len_utf8();
        match c {
            '(' => round.push(pieces.len()),
            '[' => square.push(pieces.len()),
            ':' => {
                let weight = bracket_weight(&rest[1..]);
                match (weight, round.is_empty()) {
                    (Some((text, end)), false) => {
                        let weight = text.parse().map_err(|_| format!("`{text}` is not a number"))?;
                        weigh(&mut pieces, round.pop(), weight);
                        len = 1 + end;
                    }
                    (Some((_, end)), true) => {
                        len = 1 + end;
                        push(&mut pieces, &rest[..len]);
                    }
                    (None, _) => push(&mut pieces, ":"),
                }
            }
            ')' if !round.is_empty() => weigh(&mut pieces, round.pop(), ROUND),
            ']' if !square.is_empty() => weigh(&mut pieces, square.pop(), 1.0 / ROUND),
            '\\' => {
                let escaped = rest[1..].chars().next().filter(|c| "()[]\\".contains(*c));
                len += escaped.map_or(0, char::len_utf8);
                // A backslash alone goes, too.
                push(&mut pieces, &rest[1..len]);
            }
            _ => {
                let special = |c: char| "\\()[]:".contains(c);
                len = rest[len..].find(special).map_or(rest.len(), |at| len + at);
                let mut parts = break_words(&rest[..len]).into_iter();
                push(&mut pieces, parts.next().unwrap_or_default());
                for part in parts {
                    pieces.push(PromptPiece::Break);
                    push(&mut pieces, part);
                }
            }
        }
        rest = &rest[len..];
    }
    for from in round {
        weigh(&mut pieces, Some(from), ROUND);
    }
    for from in square {
        weigh(&mut pieces, Some(from), 1.0 / ROUND);
    }
    Ok(joined(pieces))
}

/// The number in `1.3)`, and the length up to and with the bracket.
fn bracket_weight(text: &str) -> Option<(&str, usize)> {
    let number = text.trim_start();
    let begin = text.len() - number.len();
    let digits = number.strip_prefix(['+', '-']).unwrap_or(number);
    let len = digits.find(|c: char| c != '.' && !c.is_ascii_digit())?;
    if len == 0 {
        return None;
    }
    let end = number.len() - digits.len() + len;
    let after = number[end..].trim_start();
    let close = text.len() - after.len();
    after.starts_with(')').then_some((&text[begin..begin + end], close + 1))
}

/// Splits at the word `BREAK`, which takes the white space around it.
fn break_words(text: &str) -> Vec<&str> {
    const WORD: &str = "BREAK";
    let is_word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    let (mut parts, mut begin, mut from) = (Vec::new(), 0, 0);
    while let Some(at) = text[from..].find(WORD).map(|at| from + at) {
        let end = at + WORD.len();
        if !is_word(text[..at].chars().next_back()) && !is_word(text[end..].chars().next()) {
            parts.push(text[begin..at].trim_end());
            begin = end + text[end..].len() - text[end..].trim_start().len();
        }
        from = end.max(begin);
    }
    parts.push(&text[begin..]);
    parts
}

fn push(pieces: &mut Vec<PromptPiece>, text: &str) {
    pieces.push(PromptPiece::Text(text.to_owned(), 1.0));
}

/// Multiplies the weights of the pieces from `from` on.
fn weigh(pieces: &mut [PromptPiece], from: Option<usize>, by: f32) {
    for piece in pieces.iter_mut().skip(from.unwrap_or(usize::MAX)) {
        if let PromptPiece::Text(_, weight) = piece {
            *weight *= by;
        }
    }
}

fn joined(pieces: Vec<PromptPiece>) -> Vec<PromptPiece> {
    let mut all: Vec<PromptPiece> = Vec::new();
    for piece in pieces {
        match (all.last_mut(), piece) {
            (Some(PromptPiece::Text(before, weight)), PromptPiece::Text(text, own)) if *weight == own => {
                before.push_str(&text);
            }
            (_, piece) => all.push(piece),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(prompt: &str) -> Vec<(String, f32)> {
        let piece = |piece| match piece {
            PromptPiece::Text(text, weight) => (text, (weight * 1e4).round() / 1e4),
            PromptPiece::Break => ("BREAK".into(), -1.0),
        };
        a1111(prompt).unwrap().into_iter().map(piece).collect()
    }

    fn check(prompt: &str, wanted: &[(&str, f32)]) {
        let wanted: Vec<_> = wanted.iter().map(|(text, weight)| ((*text).to_owned(), *weight)).collect();
        assert_eq!(pieces(prompt), wanted, "{prompt}");
    }

    /// The examples in the comment on AUTOMATIC1111's `parse_prompt_attention`, and what its expressions imply.
    #[test]
    fn a1111_syntax() {
        check("normal text", &[("normal text", 1.0)]);
        check("an (important) word", &[("an ", 1.0), ("important", 1.1), (" word", 1.0)]);
        check("(unbalanced", &[("unbalanced", 1.1)]);
        check(r"\(literal\]", &[("(literal]", 1.0)]);
        check("(unnecessary)(parens)", &[("unnecessaryparens", 1.1)]);
        check(
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            &[
                ("a ", 1.0),
                ("house", 1.573),
                (" ", 1.1),
                ("on", 1.0),
                (" a ", 1.1),
                ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.4641),
                (".", 1.1),
            ],
        );
        check("(a: +.5 )[b]", &[("a", 0.5), ("b", 0.9091)]);
        check("12:30) ratio 3:4", &[("12:30) ratio 3:4", 1.0)]);
        check(r"back\slash \\ end\", &[(r"backslash \ end", 1.0)]);
        check("a BREAK b, BREAKING", &[("a", 1.0), ("BREAK", -1.0), ("b, BREAKING", 1.0)]);
        check("", &[]);
        check("雪 (狐:1.2)", &[("雪 ", 1.0), ("狐", 1.2)]);
        assert!(a1111("(a:1.2.3)").unwrap_err().contains("1.2.3"));
    }
}
