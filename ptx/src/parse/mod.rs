//! PTX text as a syntax tree: variables, functions, statements with their operands. Here is what stands outside of functions,
//! in `body` what stands within.

mod body;

use crate::error::{Error, Result};
use crate::lex::{Token, tokens};

/// An immediate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Number {
    Int(i128),
    F32(u32),
    F64(u64),
}

/// An operand as written.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Operand<'a> {
    Name(&'a str),
    Number(Number),
    /// `!%p`.
    Not(&'a str),
    /// `a|b`.
    Pair(Box<Operand<'a>>, Box<Operand<'a>>),
    /// `{a, b}`.
    Vector(Vec<Operand<'a>>),
    /// `[a+4]`, and `a+4` without brackets.
    Address(Box<Operand<'a>>, i64),
    /// `(a, b)` of a call.
    List(Vec<Operand<'a>>),
}

/// A variable's declaration.
#[derive(Clone, Debug)]
pub(crate) struct Variable<'a> {
    pub space: &'a str,
    pub name: &'a str,
    /// Bytes; 0 for an array without a size.
    pub bytes: u64,
    pub align: u64,
    pub init: Option<Vec<u8>>,
}

#[derive(Clone, Debug)]
pub(crate) enum StatementKind<'a> {
    Open,
    Close,
    /// `.reg .ty name<count>`; a count of `None` is the bare name.
    Reg(&'a str, &'a str, Option<u32>),
    Variable(Variable<'a>),
    Label(&'a str),
    /// `.branchtargets` of the label before it.
    Targets(Vec<&'a str>),
    Instruction {
        guard: Option<(&'a str, bool)>,
        opcode: &'a str,
        operands: Vec<Operand<'a>>,
    },
}

#[derive(Clone, Debug)]
pub(crate) struct Statement<'a> {
    pub kind: StatementKind<'a>,
    pub line: u32,
    pub loc: u32,
}

/// A kernel or a function.
#[derive(Clone, Debug)]
pub(crate) struct Function<'a> {
    pub entry: bool,
    pub name: &'a str,
    pub results: Vec<Variable<'a>>,
    pub params: Vec<Variable<'a>>,
    pub max_threads: Option<[u32; 3]>,
    pub body: Vec<Statement<'a>>,
}

/// `.loc`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Location {
    pub file: u32,
    pub line: u32,
    pub column: u32,
    /// Index of the location at which it was inlined, 0: none.
    pub inlined_at: u32,
}

/// A whole file.
#[derive(Debug, Default)]
pub(crate) struct Tree<'a> {
    pub target: String,
    pub variables: Vec<Variable<'a>>,
    pub functions: Vec<Function<'a>>,
    pub locations: Vec<Location>,
    pub files: Vec<(u32, String)>,
}

/// Bytes of a type.
pub(crate) fn type_bytes(ty: &str) -> Option<u64> {
    Some(match ty {
        "b8" | "u8" | "s8" => 1,
        "b16" | "u16" | "s16" | "f16" | "bf16" => 2,
        "b32" | "u32" | "s32" | "f32" | "f16x2" | "bf16x2" => 4,
        "b64" | "u64" | "s64" | "f64" => 8,
        _ => return None,
    })
}

struct Parser<'a> {
    tokens: Vec<Token<'a>>,
    at: usize,
    tree: Tree<'a>,
    loc: u32,
    depth: u32,
}

/// Parses a file.
pub(crate) fn parse(text: &str) -> Result<Tree<'_>> {
    let mut parser = Parser { tokens: tokens(text)?, at: 0, tree: Tree::default(), loc: 0, depth: 0 };
    parser.tree.locations.push(Location::default());
    parser.file()?;
    Ok(parser.tree)
}

impl<'a> Parser<'a> {
    fn line(&self) -> u32 {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(1, |t| t.line)
    }

    fn peek(&self) -> &'a str {
        self.tokens.get(self.at).map_or("", |t| t.text)
    }

    fn fail<T>(&self, what: impl Into<String>) -> Result<T> {
        Err(Error::new(self.line(), what))
    }

    fn next(&mut self) -> Result<&'a str> {
        let Some(token) = self.tokens.get(self.at) else { return self.fail("the text ends too early") };
        self.at += 1;
        Ok(token.text)
    }

    fn eat(&mut self, text: &str) -> bool {
        let hit = self.peek() == text;
        self.at += usize::from(hit);
        hit
    }

    fn expect(&mut self, text: &str) -> Result<()> {
        if self.eat(text) {
            return Ok(());
        }
        self.fail(format!("`{}` found, `{text}` expected", self.peek()))
    }

    fn integer(&mut self) -> Result<i128> {
        let negative = self.eat("-");
        match number(self.peek()) {
            Some(Number::Int(value)) => {
                self.at += 1;
                Ok(if negative { -value } else { value })
            }
            _ => self.fail(format!("`{}` found, an integer expected", self.peek())),
        }
    }

    fn index(&mut self) -> Result<u32> {
        let value = self.integer()?;
        u32::try_from(value).or_else(|_| self.fail(format!("{value} is no 32-bit count")))
    }

    fn rest_of_line(&mut self) {
        let line = self.tokens[self.at - 1].line;
        while self.tokens.get(self.at).is_some_and(|t| t.line == line) {
            self.at += 1;
        }
    }

    fn file(&mut self) -> Result<()> {
        while self.at < self.tokens.len() {
            match self.peek() {
                ".version" | ".address_size" => {
                    self.at += 1;
                    self.rest_of_line();
                }
                ".target" => {
                    self.at += 1;
                    self.tree.target = self.next()?.to_owned();
                    self.rest_of_line();
                }
                ".file" | ".loc" => self.debug_line()?,
                ".section" => {
                    while self.next()? != "{" {}
                    while self.next()? != "}" {}
                }
                ".pragma" => while self.next()? != ";" {},
                ".visible" | ".extern" | ".weak" | ".common" => self.at += 1,
                ".entry" | ".func" => self.function()?,
                ".global" | ".const" | ".shared" => {
                    let list = self.variables()?;
                    self.tree.variables.extend(list);
                    self.expect(";")?;
                }
                other => return self.fail(format!("`{other}` found, a directive expected")),
            }
        }
        Ok(())
    }

    fn debug_line(&mut self) -> Result<()> {
        if self.eat(".file") {
            let index = self.index()?;
            let name = self.next()?.trim_matches('"').to_owned();
            self.tree.files.push((index, name));
            self.rest_of_line();
            return Ok(());
        }
        self.expect(".loc")?;
        let mut location = self.location()?;
        while self.eat(",") {
            match self.next()? {
                "function_name" => {
                    self.next()?;
                    if self.eat("+") {
                        self.next()?;
                    }
                }
                "inlined_at" => {
                    let at = self.location()?;
                    // The place may itself be inlined: the last location that names it knows.
                    let seen = self
                        .tree
                        .locations
                        .iter()
                        .rposition(|l| (l.file, l.line, l.column) == (at.file, at.line, at.column) && l.line != 0);
                    location.inlined_at = match seen {
                        Some(index) => index as u32,
                        None => self.add_location(at),
                    };
                }
                other => return self.fail(format!("`{other}` in .loc")),
            }
        }
        // Line 0 is "no line": what comes before it still tells the most.
        if location.line != 0 {
            self.loc = self.add_location(location);
        }
        Ok(())
    }

    fn location(&mut self) -> Result<Location> {
        Ok(Location { file: self.index()?, line: self.index()?, column: self.index()?, inlined_at: 0 })
    }

    fn add_location(&mut self, location: Location) -> u32 {
        if self.tree.locations.last() != Some(&location) {
            self.tree.locations.push(location);
        }
        (self.tree.locations.len() - 1) as u32
    }

    /// `.space [.align n] .type name[n] [= ...] {, name}` up to what ends it.
    fn variables(&mut self) -> Result<Vec<Variable<'a>>> {
        let space = self.next()?.trim_start_matches('.');
        let (mut align, mut vector, mut ty) = (None, 1, None);
        while self.peek().starts_with('.') {
            match self.next()? {
                ".align" => align = Some(self.index()?.max(1)),
                ".ptr" | ".global" | ".const" | ".shared" | ".local" | ".attribute" => {
                    if self.eat("(") {
                        while self.next()? != ")" {}
                    }
                }
                ".v2" => vector = 2,
                ".v4" => vector = 4,
                other => ty = Some(&other[1..]),
            }
        }
        let Some(ty) = ty else { return self.fail("a variable without a type") };
        let Some(element) = type_bytes(ty) else { return self.fail(format!("variables of type .{ty} are not known")) };
        let mut list = Vec::new();
        loop {
            let name = self.next()?;
            let mut count = u64::from(vector as u32);
            while self.eat("[") {
                let dim = if self.peek() == "]" { 0 } else { u64::from(self.index()?) };
                count = count.saturating_mul(dim);
                self.expect("]")?;
            }
            let bytes = count.saturating_mul(element);
            let mut variable = Variable {
                space,
                name,

                bytes,
                align: align.map_or(element * u64::from(vector as u32), u64::from),
                init: None,
            };
            if self.eat("=") {
                let mut init = Vec::new();
                self.initialiser(element as usize, &mut init)?;
                if variable.bytes == 0 {
                    variable.bytes = init.len() as u64;
                }
                if init.len() as u64 > variable.bytes {
                    return self.fail(format!("{name} has more initial values than elements"));
                }
                init.resize(variable.bytes as usize, 0);
                variable.init = Some(init);
            }
            list.push(variable);
            // In a parameter list the comma is the list's.
            if space == "param" || !self.eat(",") {
                return Ok(list);
            }
        }
    }

    fn initialiser(&mut self, element: usize, out: &mut Vec<u8>) -> Result<()> {
        if self.eat("{") {
            if self.depth == 8 {
                return self.fail("initial values nested too deeply");
            }
            self.depth += 1;
            loop {
                self.initialiser(element, out)?;
                if !self.eat(",") {
                    self.depth -= 1;
                    return self.expect("}");
                }
            }
        }
        let negative = self.eat("-");
        let value = match number(self.next()?) {
            Some(Number::Int(value)) => (if negative { -value } else { value }) as u64,
            Some(Number::F32(bits)) => u64::from(bits),
            Some(Number::F64(bits)) => bits,
            None => return self.fail("an initial value that is not a number"),
        };
        out.extend_from_slice(&value.to_le_bytes()[..element]);
        Ok(())
    }

    fn param_list(&mut self) -> Result<Vec<Variable<'a>>> {
        let mut list = Vec::new();
        if !self.eat("(") || self.eat(")") {
            return Ok(list);
        }
        loop {
            if !matches!(self.peek(), ".param" | ".reg") {
                return self.fail(format!("`{}` found, a parameter expected", self.peek()));
            }
            list.extend(self.variables()?);
            if !self.eat(",") {
                self.expect(")")?;
                return Ok(list);
            }
        }
    }

    fn function(&mut self) -> Result<()> {
        let entry = self.next()? == ".entry";
        let results = if entry { Vec::new() } else { self.param_list()? };
        let name = self.next()?;
        let params = self.param_list()?;
        let mut max_threads = None;
        loop {
            match self.peek() {
                ";" => {
                    self.at += 1;
                    return Ok(());
                }
                "{" => break,
                ".maxntid" | ".reqntid" | ".minnctapersm" | ".maxnreg" => {
                    let which = self.next()?;
                    let mut dims = [1; 3];
                    for dim in &mut dims {
                        *dim = self.index()?;
                        if !self.eat(",") {
                            break;
                        }
                    }
                    if which.ends_with("ntid") {
                        max_threads = Some(dims);
                    }
                }
                ".noreturn" => self.at += 1,
                ".pragma" => while self.next()? != ";" {},
                other => return self.fail(format!("`{other}` before the body of {name}")),
            }
        }
        let body = self.body()?;
        self.tree.functions.push(Function { entry, name, results, params, max_threads, body });
        Ok(())
    }
}

/// A number as PTX writes it: decimal, `0x`, `0b`, octal, `0f` and `0d` with hex digits, decimal fractions.
fn number(word: &str) -> Option<Number> {
    if !word.as_bytes().first()?.is_ascii_digit() {
        return None;
    }
    if let Some(hex) = word.strip_prefix("0f").or(word.strip_prefix("0F")).filter(|h| h.len() == 8) {
        return u32::from_str_radix(hex, 16).ok().map(Number::F32);
    }
    if let Some(hex) = word.strip_prefix("0d").or(word.strip_prefix("0D")).filter(|h| h.len() == 16) {
        return u64::from_str_radix(hex, 16).ok().map(Number::F64);
    }
    if word.contains('.') {
        return word.parse::<f64>().ok().map(|v| Number::F64(v.to_bits()));
    }
    let digits = word.trim_end_matches('U');
    let value = if let Some(hex) = digits.strip_prefix("0x").or(digits.strip_prefix("0X")) {
        u64::from_str_radix(hex, 16)
    } else if let Some(bits) = digits.strip_prefix("0b").or(digits.strip_prefix("0B")) {
        u64::from_str_radix(bits, 2)
    } else if digits.len() > 1 && digits.starts_with('0') {
        u64::from_str_radix(digits, 8)
    } else {
        digits.parse()
    };
    value.ok().map(|v| Number::Int(i128::from(v)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        assert_eq!(number("0f3F800000"), Some(Number::F32(0x3f80_0000)));
        assert_eq!(number("0d3FF0000000000000"), Some(Number::F64(1.0f64.to_bits())));
        assert_eq!(number("0xffffffffU"), Some(Number::Int(0xffff_ffff)));
        assert_eq!(number("017"), Some(Number::Int(15)));
        assert_eq!(number("0"), Some(Number::Int(0)));
        assert_eq!(number("%r1"), None);
    }

    #[test]
    fn errors_name_the_line() {
        let error = parse(".version 8.0\n.target sm_80\n.entry k() {\n mov.u32 %r1, ;\n}").unwrap_err();
        assert_eq!(error.line, 4, "{error}");
    }
}
