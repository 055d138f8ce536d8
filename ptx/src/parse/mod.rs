//! Parsing: from PTX text to a syntax tree.

mod body;
mod debug;
mod file;
mod lex;
mod number;
mod parser;
mod tree;
mod variables;

pub(crate) use file::parse;
pub(crate) use tree::{Function, Location, Number, Operand, Statement, StatementKind, Tree, Variable, type_bytes};
