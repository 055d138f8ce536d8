//! The syntax tree.

/// An immediate; the floats are bits.
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
    /// `[a, {b, c}]`: an address, and coordinates.
    Coordinates(Box<Operand<'a>>, Vec<Operand<'a>>),
    /// `(a, b)` of a call.
    List(Vec<Operand<'a>>),
}

/// The declaration of a variable.
#[derive(Clone, Debug)]
pub(crate) struct Variable<'a> {
    pub space: &'a str,
    pub name: &'a str,
    /// Bytes; 0 for an array without a size.
    pub bytes: u64,
    pub align: u64,
    pub init: Option<Vec<u8>>,
}

/// Kinds of statements.
#[derive(Clone, Debug)]
pub(crate) enum StatementKind<'a> {
    Open,
    Close,
    /// `.reg .ty name<count>`; the count is `None` for a single register.
    Reg(&'a str, &'a str, Option<u32>),
    Variable(Variable<'a>),
    Label(&'a str),
    /// `.branchtargets`, named by the label before it.
    Targets(Vec<&'a str>),
    Instruction {
        guard: Option<(&'a str, bool)>,
        opcode: &'a str,
        operands: Vec<Operand<'a>>,
    },
}

/// A statement of a body, with its line and the index of its source location.
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
    /// Blocks of a cluster.
    pub cluster: Option<[u32; 3]>,
    /// Registers of a thread.
    pub registers: Option<u32>,
    pub body: Vec<Statement<'a>>,
}

/// A source location: `.loc`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Location {
    pub file: u32,
    pub line: u32,
    pub column: u32,
    /// Index of the location it was inlined at; 0: none.
    pub inlined_at: u32,
}

/// A file.
#[derive(Debug, Default)]
pub(crate) struct Tree<'a> {
    pub target: String,
    pub variables: Vec<Variable<'a>>,
    pub functions: Vec<Function<'a>>,
    pub locations: Vec<Location>,
    pub files: Vec<(u32, String)>,
}

/// Size of a type in bytes.
pub(crate) fn type_bytes(ty: &str) -> Option<u64> {
    Some(match ty {
        "b8" | "u8" | "s8" => 1,
        "b16" | "u16" | "s16" | "f16" | "bf16" => 2,
        "b32" | "u32" | "s32" | "f32" | "f16x2" | "bf16x2" => 4,
        "b64" | "u64" | "s64" | "f64" => 8,
        _ => return None,
    })
}
