//! Rust's tokens, as far as the rules need them.

/// A token and the line on which it begins, from 1.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    pub kind: Kind,
    pub line: usize,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// A word or a number.
    Word(String),
    /// The inside of a string literal.
    Text(String),
    /// A character literal or a lifetime.
    Quote,
    Sign(char),
    /// `::`
    Path,
}

impl Token {
    pub fn is(&self, sign: char) -> bool {
        self.kind == Kind::Sign(sign)
    }

    pub fn word(&self) -> Option<&str> {
        match &self.kind {
            Kind::Word(word) => Some(word),
            _ => None,
        }
    }
}

/// All but comments and white space.
pub fn tokens(text: &str) -> Vec<Token> {
    let chars: Vec<char> = text.chars().collect();
    let (mut found, mut at, mut line) = (Vec::new(), 0, 1);
    while at < chars.len() {
        let (kind, end) = token(&chars, at);
        if let Some(kind) = kind {
            found.push(Token { kind, line });
        }
        line += chars[at..end].iter().filter(|c| **c == '\n').count();
        at = end;
    }
    found
}

fn token(chars: &[char], at: usize) -> (Option<Kind>, usize) {
    let next = |offset: usize| chars.get(at + offset).copied().unwrap_or('\0');
    let while_word = |from: usize| (from..chars.len()).find(|i| !is_word(chars[*i])).unwrap_or(chars.len());
    match chars[at] {
        c if c.is_whitespace() => (None, at + 1),
        '/' if next(1) == '/' => (None, (at..chars.len()).find(|i| chars[*i] == '\n').unwrap_or(chars.len())),
        '/' if next(1) == '*' => (None, block_comment(chars, at)),
        '"' => string(chars, at),
        '\'' if next(1) == '\\' => {
            let end = (at + 3..chars.len()).find(|i| chars[*i] == '\'').map_or(chars.len(), |i| i + 1);
            (Some(Kind::Quote), end)
        }
        '\'' if next(2) == '\'' => (Some(Kind::Quote), at + 3),
        '\'' => (Some(Kind::Quote), while_word(at + 1)),
        ':' if next(1) == ':' => (Some(Kind::Path), at + 2),
        c if is_word(c) => {
            let end = while_word(at);
            let word: String = chars[at..end].iter().collect();
            match (word.as_str(), chars.get(end)) {
                ("r" | "br" | "cr", Some('"' | '#')) if raw_begins(chars, end) => raw_string(chars, end),
                ("b" | "c", Some('"')) => string(chars, end),
                ("b", Some('\'')) => token(chars, end),
                _ => (Some(Kind::Word(word)), end),
            }
        }
        c => (Some(Kind::Sign(c)), at + 1),
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The end of a block comment; they nest.
fn block_comment(chars: &[char], at: usize) -> usize {
    let (mut depth, mut i) = (0, at);
    while i + 1 < chars.len() {
        match (chars[i], chars[i + 1]) {
            ('/', '*') => (depth, i) = (depth + 1, i + 2),
            ('*', '/') => (depth, i) = (depth - 1, i + 2),
            _ => i += 1,
        }
        if depth == 0 {
            return i;
        }
    }
    chars.len()
}

fn string(chars: &[char], at: usize) -> (Option<Kind>, usize) {
    let mut end = at + 1;
    while end < chars.len() && chars[end] != '"' {
        end += if chars[end] == '\\' { 2 } else { 1 };
    }
    let end = end.min(chars.len());
    (Some(Kind::Text(chars[at + 1..end].iter().collect())), (end + 1).min(chars.len()))
}

fn raw_begins(chars: &[char], at: usize) -> bool {
    chars[at..].iter().find(|c| **c != '#') == Some(&'"')
}

fn raw_string(chars: &[char], at: usize) -> (Option<Kind>, usize) {
    let hashes = chars[at..].iter().take_while(|c| **c == '#').count();
    let begin = at + hashes + 1;
    let closes = |i: &usize| chars[*i] == '"' && chars[*i + 1..].iter().take_while(|c| **c == '#').count() >= hashes;
    let end = (begin..chars.len()).find(closes).unwrap_or(chars.len());
    (Some(Kind::Text(chars[begin..end].iter().collect())), (end + 1 + hashes).min(chars.len()))
}

/// The index behind the bracket that closes the one at `open`.
pub fn closed(tokens: &[Token], open: usize) -> usize {
    let mut depth = 0;
    for (i, token) in tokens.iter().enumerate().skip(open) {
        match token.kind {
            Kind::Sign('{' | '(' | '[') => depth += 1,
            Kind::Sign('}' | ')' | ']') => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return i + 1;
        }
    }
    tokens.len()
}

/// Without what only tests compile: items behind `#[cfg(test)]` or `#[test]`. Also names the files of `#[cfg(test)] mod x;`.
pub fn without_tests(tokens: &[Token]) -> (Vec<Token>, Vec<String>) {
    let (mut kept, mut modules, mut at) = (Vec::new(), Vec::new(), 0);
    while at < tokens.len() {
        if !tokens[at].is('#') || !tokens.get(at + 1).is_some_and(|t| t.is('[')) {
            kept.push(tokens[at].clone());
            at += 1;
            continue;
        }
        let mut end = closed(tokens, at + 1);
        let inside: Vec<&str> = tokens[at + 2..end - 1].iter().filter_map(Token::word).collect();
        if !matches!(inside.as_slice(), ["cfg", "test"] | ["test"] | ["cfg", "all", "test", ..]) {
            kept.extend_from_slice(&tokens[at..end]);
            at = end;
            continue;
        }
        while tokens.get(end).is_some_and(|t| t.is('#')) {
            end = closed(tokens, end + 1);
        }
        let begin = end;
        while end < tokens.len() && !tokens[end].is(';') && !tokens[end].is('{') {
            end = if tokens[end].is('(') || tokens[end].is('[') { closed(tokens, end) } else { end + 1 };
        }
        let module = tokens[begin..end].iter().position(|t| t.word() == Some("mod"));
        if let (Some(i), true) = (module, tokens.get(end).is_some_and(|t| t.is(';'))) {
            modules.extend(tokens[begin + i + 1].word().map(String::from));
        }
        at = if tokens.get(end).is_some_and(|t| t.is('{')) { closed(tokens, end) } else { end + 1 };
    }
    (kept, modules)
}

#[test]
fn token_kinds() {
    let words =
        |text: &str| -> Vec<String> { tokens(text).iter().filter_map(|t| t.word().map(String::from)).collect() };
    assert_eq!(words("a /* b /* c */ d */ e // f\n g"), ["a", "e", "g"]);
    assert_eq!(words(r####"x("{ y", '{', '\'', b'{', r#"z " { "#, 'q) w"####), ["x", "w"]);
    assert_eq!(tokens("\"a\nb\"\nc")[1].line, 3);
}

#[test]
fn test_code_left_out() {
    let text = "fn a() {} #[cfg(test)] #[path = \"x\"] mod t { fn b() {} } #[cfg(test)] mod u; #[inline] fn c() {} \
                #[test] fn d() -> [u8; 2] { [0; 2] } fn e() {}";
    let (kept, modules) = without_tests(&tokens(text));
    let names: Vec<&str> = kept.windows(2).filter(|w| w[0].word() == Some("fn")).filter_map(|w| w[1].word()).collect();
    assert_eq!((names, modules), (vec!["a", "c", "e"], vec!["u".to_owned()]));
}
