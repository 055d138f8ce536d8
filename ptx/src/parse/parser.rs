//! The position in the tokens, and what reads them one by one.

use super::lex::Token;
use super::number::number;
use super::tree::{Number, Tree};
use crate::error::{Error, Result};

/// Tokens being parsed into a tree.
pub(super) struct Parser<'a> {
    pub tokens: Vec<Token<'a>>,
    pub at: usize,
    pub tree: Tree<'a>,
    /// Index of the current source location.
    pub loc: u32,
    /// Depth of nested operands or initial values.
    pub depth: u32,
}

impl<'a> Parser<'a> {
    /// The line of the next token.
    pub fn line(&self) -> u32 {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(1, |t| t.line)
    }

    /// The next token; empty at the end.
    pub fn peek(&self) -> &'a str {
        self.tokens.get(self.at).map_or("", |t| t.text)
    }

    /// An error at the next token.
    pub fn fail<T>(&self, what: impl Into<String>) -> Result<T> {
        Err(Error::new(self.line(), what))
    }

    /// Takes the next token.
    pub fn next(&mut self) -> Result<&'a str> {
        let Some(token) = self.tokens.get(self.at) else { return self.fail("the text ends too early") };
        self.at += 1;
        Ok(token.text)
    }

    /// Takes the next token if it is `text`.
    pub fn eat(&mut self, text: &str) -> bool {
        let hit = self.peek() == text;
        self.at += usize::from(hit);
        hit
    }

    /// Takes the next token, which has to be `text`.
    pub fn expect(&mut self, text: &str) -> Result<()> {
        if self.eat(text) {
            return Ok(());
        }
        self.fail(format!("`{}` found, `{text}` expected", self.peek()))
    }

    /// Takes an integer with its sign.
    pub fn integer(&mut self) -> Result<i128> {
        let negative = self.eat("-");
        match number(self.peek()) {
            Some(Number::Int(value)) => {
                self.at += 1;
                Ok(if negative { -value } else { value })
            }
            _ => self.fail(format!("`{}` found, an integer expected", self.peek())),
        }
    }

    /// Takes an integer of 32 bits without sign.
    pub fn index(&mut self) -> Result<u32> {
        let value = self.integer()?;
        u32::try_from(value).or_else(|_| self.fail(format!("{value} is no 32-bit count")))
    }

    /// Skips the tokens up to the end of the line.
    pub fn rest_of_line(&mut self) {
        let line = self.tokens[self.at - 1].line;
        while self.tokens.get(self.at).is_some_and(|t| t.line == line) {
            self.at += 1;
        }
    }
}
