//! compel's syntax, as version 2.5.1 reads it.
//!
//! Everything that its grammar does not match is text: an unclosed bracket, a lone `-` in brackets. Words outside brackets may hold any
//! character. Operators without an effect on SDXL there are errors here.

use super::options::{Options, options};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;

/// Prompts that are joined along the tokens; more than one by `.and()` alone.
pub type Conjunction = Vec<CompelPrompt>;

/// A prompt of a conjunction.
#[derive(Debug, Clone, PartialEq)]
pub struct CompelPrompt {
    /// The weight in the conjunction.
    pub weight: f64,
    /// Texts with the factors by which they are added up; more than one by `.blend()` alone.
    pub blend: Vec<(f64, Vec<Fragment>)>,
}

/// A text and its weight.
#[derive(Debug, Clone, PartialEq)]
pub struct Fragment {
    /// The text.
    pub text: String,
    /// The weight.
    pub weight: f64,
}

/// A piece of the prompt.
#[derive(Debug, Clone)]
enum Node {
    Text(String),
    Weighted(f64, Vec<Node>),
}

/// A piece and the place behind it; nothing where there is none; or the refusal of an operator.
type Read<T> = Result<Option<(T, usize)>, String>;
type Found = Option<(Vec<Node>, usize)>;

/// Brackets within brackets that are read; each takes some of the stack.
const MAX_DEPTH: usize = 64;

/// The operators that join prompts.
const JOINING: [&str; 3] = [".and", ".add", ".blend"];
const SYNTAX: &str = "()\",.+-=";
const SPACES: &str = " \t\n\r\u{b}\u{c}";

/// Reads a prompt.
///
/// # Errors
/// Says which operator is not supported, or what is wrong with its arguments, and where.
pub fn compel(prompt: &str) -> Result<Conjunction, String> {
    let reader = Reader::new(prompt);
    if let Some(joined) = reader.joined()? {
        return if joined.name == ".blend" { blended(joined) } else { conjoined(joined) };
    }
    let fragments = flatten(&reader.prompt()?);
    Ok(vec![CompelPrompt { weight: 1.0, blend: vec![(1.0, fragments)] }])
}

/// A conjunction of the prompts with the weights that stand behind them.
fn conjoined(joined: Joined) -> Result<Conjunction, String> {
    let Joined { prompts, options, name, at } = joined;
    let weights = options.weights(prompts.len(), name, at)?;
    let blends = prompts.into_iter().map(|fragments| vec![(1.0, fragments)]);
    Ok(blends.zip(weights).map(|(blend, weight)| CompelPrompt { weight, blend }).collect())
}

/// One prompt that is their sum, by weights that add up to 1 unless they are to stay as they are.
fn blended(joined: Joined) -> Result<Conjunction, String> {
    let Joined { prompts, mut options, name, at } = joined;
    let normalize = !options.take_flag("no_normalize");
    let mut weights = options.weights(prompts.len(), name, at)?;
    let sum: f64 = weights.iter().sum();
    if normalize {
        weights.iter_mut().for_each(|weight| *weight /= sum);
    }
    if !weights.iter().all(|weight| weight.is_finite()) {
        return Err(format!("the weights of `.blend` at character {at} add up to {sum}"));
    }
    Ok(vec![CompelPrompt { weight: 1.0, blend: weights.into_iter().zip(prompts).collect() }])
}

/// Prompts and the operator that joins them.
struct Joined {
    prompts: Vec<Vec<Fragment>>,
    options: Options,
    name: &'static str,
    /// The operator's place in the prompt, from 1 on.
    at: usize,
}

/// The characters of a text, each with its place in the prompt.
struct Reader {
    chars: Vec<(char, usize)>,
    /// The targets read so far, by their place: the grammar asks for each several times.
    targets: RefCell<HashMap<usize, Found>>,
    depth: Cell<usize>,
}

impl Reader {
    /// Each comma gets a space behind it, as there.
    fn new(prompt: &str) -> Self {
        let mut chars: Vec<(char, usize)> = Vec::new();
        let mut after_comma = false;
        for (at, c) in prompt.chars().enumerate() {
            let spaced = after_comma && !c.is_whitespace();
            if spaced {
                chars.push((' ', at + 1));
            }
            chars.push((c, at + 1));
            after_comma = c == ',' && !spaced;
        }
        Self::of(chars)
    }

    fn of(chars: Vec<(char, usize)>) -> Self {
        Self { chars, targets: RefCell::default(), depth: Cell::new(0) }
    }

    fn get(&self, at: usize) -> Option<char> {
        self.chars.get(at).map(|(c, _)| *c)
    }

    fn is(&self, at: usize, set: &str) -> bool {
        self.get(at).is_some_and(|c| set.contains(c))
    }

    fn place(&self, at: usize) -> usize {
        self.chars.get(at).or(self.chars.last()).map_or(1, |(_, place)| *place)
    }

    fn text(&self, from: usize, to: usize) -> String {
        self.chars[from..to].iter().map(|(c, _)| *c).collect()
    }

    /// The first place from `at` on that is no space.
    fn skip(&self, at: usize) -> usize {
        (at..self.chars.len()).find(|at| !self.is(*at, SPACES)).unwrap_or(self.chars.len())
    }

    /// The place behind a literal after spaces.
    fn literal(&self, at: usize, literal: &str) -> Option<usize> {
        let at = self.skip(at);
        let same = literal.chars().enumerate().all(|(i, c)| self.get(at + i) == Some(c));
        same.then(|| at + literal.chars().count())
    }

    /// Reads the whole text as a prompt.
    fn prompt(&self) -> Result<Vec<Node>, String> {
        let mut nodes = Vec::new();
        let mut at = self.skip(0);
        while at < self.chars.len() {
            self.refuse_operators(at)?;
            let found = match self.attention(at)? {
                Some(found) => Some(found),
                None if self.is(at, "(\"") => self.target(at)?,
                None => None,
            };
            let (found, end) = found.unwrap_or_else(|| {
                let end = (at..self.chars.len()).find(|at| self.is(*at, SPACES)).unwrap_or(self.chars.len());
                (vec![Node::Text(self.text(at, end))], end)
            });
            nodes.extend(found);
            at = self.skip(end);
        }
        Ok(nodes)
    }

    /// Refuses what would have no effect: `.swap`, LoRAs, and operators on something that they do not join.
    fn refuse_operators(&self, at: usize) -> Result<(), String> {
        for name in ["useLora", "withLora"].into_iter().chain(JOINING) {
            if self.literal(at, name).and_then(|end| self.literal(end, "(")).is_none() {
                continue;
            }
            let place = self.place(self.skip(at));
            return Err(match name {
                name if JOINING.contains(&name) => format!(
                    "`{name}` at character {place} joins nothing: the whole prompt must be `(\"..\", \"..\"){name}(..)`"
                ),
                _ => format!("`{name}` at character {place} is not supported; give the file as a LoRA of the pipeline"),
            });
        }
        if let Some((_, end)) = self.target(at)?
            && let Some(end) = self.literal(end, ".swap").filter(|end| self.literal(*end, "(").is_some())
        {
            let place = self.place(end - ".swap".len());
            return Err(format!(
                "`.swap` at character {place} is not supported: compel does not swap with SDXL either"
            ));
        }
        Ok(())
    }

    /// Reads what stands in brackets or quotes: words, and commas and periods each as one.
    fn parts(&self, mut at: usize) -> Result<(Vec<Node>, usize), String> {
        let mut nodes = Vec::new();
        loop {
            self.refuse_operators(at)?;
            let found = match self.attention(at)? {
                Some(found) => Some(found),
                None => self.target(at)?,
            };
            let start = self.skip(at);
            let Some((found, end)) = found
                .or_else(|| self.is(start, ",.").then(|| (vec![Node::Text(self.text(start, start + 1))], start + 1)))
            else {
                return Ok((nodes, at));
            };
            nodes.extend(found);
            at = end;
        }
    }

    /// Reads what an operator can act on.
    fn target(&self, at: usize) -> Read<Vec<Node>> {
        let at = self.skip(at);
        if let Some(known) = self.targets.borrow().get(&at) {
            return Ok(known.clone());
        }
        if self.depth.get() == MAX_DEPTH {
            let place = self.place(at);
            return Err(format!("brackets more than {MAX_DEPTH} deep in each other at character {place}"));
        }
        self.depth.set(self.depth.get() + 1);
        let found = match self.get(at) {
            Some('"') => self.quoted(at)?,
            Some('(') => self.parenthesized(at)?,
            _ => self.word(at).map(|end| (vec![Node::Text(self.text(at, end))], end)),
        };
        self.depth.set(self.depth.get() - 1);
        self.targets.borrow_mut().insert(at, found.clone());
        Ok(found)
    }

    fn parenthesized(&self, at: usize) -> Read<Vec<Node>> {
        let Some(begin) = self.literal(at, "(") else { return Ok(None) };
        let (nodes, end) = self.parts(begin)?;
        Ok(self.literal(end, ")").map(|end| (nodes, end)))
    }

    fn quoted(&self, at: usize) -> Read<Vec<Node>> {
        let Some((inner, end)) = self.quotes(at) else { return Ok(None) };
        if inner.skip(0) == inner.chars.len() {
            return Ok(Some((vec![Node::Text(String::new())], end)));
        }
        let (nodes, last) = inner.parts(0)?;
        Ok((inner.skip(last) == inner.chars.len()).then_some((nodes, end)))
    }

    /// The text in quotes, and the place behind them.
    fn quotes(&self, at: usize) -> Option<(Self, usize)> {
        let begin = self.literal(at, "\"")?;
        let (mut at, mut escaped) = (begin, None);
        let close = loop {
            match self.get(at) {
                Some('\\') if self.get(at + 1) == Some('"') => {
                    escaped = Some(at + 1);
                    at += 2;
                }
                Some('"') => break Some(at),
                None | Some('\n' | '\r') => break escaped,
                Some(_) => at += 1,
            }
        }?;
        Some((Self::of(self.chars[begin..close].to_vec()), close + 1))
    }

    /// The place behind a word without syntax.
    fn word(&self, at: usize) -> Option<usize> {
        let begin = self.skip(at);
        let mut at = begin;
        while let Some(c) = self.get(at) {
            let plain = |at: usize| self.get(at).is_some_and(|c| !SPACES.contains(c) && !SYNTAX.contains(c));
            at += match c {
                '\\' if self.is(at + 1, SYNTAX) => 2,
                '+' | '-' if plain(at + 1) => 1,
                _ if plain(at) => 1,
                _ => break,
            };
        }
        (at > begin).then_some(at)
    }

    /// Reads a weighted piece.
    fn attention(&self, at: usize) -> Read<Vec<Node>> {
        let Some((nodes, end)) = self.target(at)? else { return Ok(None) };
        let explicit = self.literal(end, ".attend").and_then(|at| self.literal(at, "(")).and_then(|at| {
            let (weight, at) = self.weight(self.skip(at))?;
            Some((weight, self.literal(at, ")")?))
        });
        let word = !self.is(self.skip(at), "(\"");
        let implicit = || self.weight(end).filter(|_| !word || self.is(end, "+-"));
        Ok(explicit.or_else(implicit).map(|(weight, end)| (vec![Node::Weighted(weight, nodes)], end)))
    }

    /// Reads signs or a number.
    fn weight(&self, at: usize) -> Option<(f64, usize)> {
        for (sign, base) in [('+', 1.1f64), ('-', 0.9)] {
            let count = (at..).take_while(|at| self.get(*at) == Some(sign)).count();
            if count > 0 {
                return Some((base.powi(count as i32), at + count));
            }
        }
        let end = (at..).find(|at| !self.get(*at).is_some_and(|c| c.is_ascii_digit()))?;
        let fraction =
            |dot: usize| (dot + 1..).take_while(|at| self.get(*at).is_some_and(|c| c.is_ascii_digit())).count();
        let end = match self.get(end) {
            Some('.') if end > at || fraction(end) > 0 => end + 1 + fraction(end),
            _ => end,
        };
        Some((self.text(at, end).parse().ok()?, end))
    }

    /// Reads prompts in brackets with an operator behind them, which must be all.
    fn joined(&self) -> Result<Option<Joined>, String> {
        let Some(mut at) = self.literal(0, "(") else { return Ok(None) };
        let mut prompts = Vec::new();
        loop {
            let Some((nodes, end)) = self.item(at)? else { return Ok(None) };
            prompts.push(flatten(&nodes));
            match (self.literal(end, ","), self.literal(end, ")")) {
                (Some(next), _) => at = next,
                (None, Some(end)) => {
                    at = end;
                    break;
                }
                _ => return Ok(None),
            }
        }
        let behind = |name: &'static str| Some((name, self.literal(self.literal(at, name)?, "(")?));
        let Some((name, begin)) = JOINING.into_iter().find_map(behind) else { return Ok(None) };
        let place = self.place(self.skip(at));
        let rest = self.text(begin, self.chars.len());
        let (read, end) =
            options(&rest).ok_or_else(|| format!("the arguments of `{name}` at character {place} are not numbers"))?;
        if !rest[end..].trim().is_empty() {
            return Err(format!("text stands behind `{name}` at character {place}, which must end the prompt"));
        }
        Ok(Some(Joined { prompts, options: read, name, at: place }))
    }

    /// Reads one of several prompts: a word, brackets, or quotes in which words may hold any character.
    fn item(&self, at: usize) -> Read<Vec<Node>> {
        if let Some(found) = self.target(at)? {
            return Ok(Some(found));
        }
        let Some((inner, end)) = self.quotes(at) else { return Ok(None) };
        Ok(Some((inner.prompt()?, end)))
    }
}

/// The fragments of a prompt; neighbours of one weight are joined by a space.
fn flatten(nodes: &[Node]) -> Vec<Fragment> {
    fn collect(nodes: &[Node], scale: f64, fragments: &mut Vec<Fragment>) {
        for node in nodes {
            match node {
                Node::Weighted(weight, nodes) => collect(nodes, scale * weight, fragments),
                Node::Text(text) => {
                    let text = unescaped(text);
                    match fragments.last_mut().filter(|last| last.weight == scale) {
                        Some(last) => {
                            last.text.push(' ');
                            last.text.push_str(&text);
                        }
                        None => fragments.push(Fragment { text, weight: scale }),
                    }
                }
            }
        }
    }
    let mut fragments = Vec::new();
    collect(nodes, 1.0, &mut fragments);
    fragments
}

/// Brackets and quotes without the backslashes before them; other escapes stay as they are.
fn unescaped(text: &str) -> String {
    text.replace("\\(", "(").replace("\\)", ")").replace("\\\"", "\"")
}
