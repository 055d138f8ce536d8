//! From the syntax tree to the table of instructions.
//!
//! Functions are inlined at their calls: a `.param` variable of a call is a few bytes of local memory, and the callee's
//! parameter names stand for the caller's variables. So the interpreter knows no call stack.

mod compare;
mod float;
mod integer;
mod memory;
mod moves;
mod operands;
mod warp;

use std::collections::HashMap;

use crate::counts::InstructionKind;
use crate::error::{Error, Result};
use crate::module::Global;
use crate::parse::{Function, Operand, Statement, StatementKind, Tree, Variable};
use crate::program::{Const64, Instruction, Kernel, Op, Param, Pred, Reg};

/// Where a generic address of shared memory begins. Global addresses are far above these windows.
pub(crate) const SHARED_WINDOW: u64 = 1 << 44;
/// Where a generic address of local memory begins.
pub(crate) const LOCAL_WINDOW: u64 = 2 << 44;
/// Where a generic address of a kernel parameter begins.
pub(crate) const PARAM_WINDOW: u64 = 3 << 44;
/// Bytes of each window.
pub(crate) const WINDOW: u64 = 1 << 44;

/// Calls within calls.
const MAX_DEPTH: usize = 16;

/// Decodes every kernel of a module.
pub(crate) fn kernels(tree: &Tree, globals: &[Global]) -> Result<Vec<Kernel>> {
    let functions: HashMap<&str, &Function> = tree.functions.iter().map(|f| (f.name, f)).collect();
    let variables: HashMap<&str, &Variable> = tree.variables.iter().map(|v| (v.name, v)).collect();
    let globals: HashMap<&str, u32> = globals.iter().enumerate().map(|(i, g)| (g.name.as_str(), i as u32)).collect();
    tree.functions.iter().filter(|f| f.entry).map(|f| kernel(f, &functions, &variables, &globals)).collect()
}

fn kernel(
    function: &Function,
    functions: &HashMap<&str, &Function>,
    variables: &HashMap<&str, &Variable>,
    globals: &HashMap<&str, u32>,
) -> Result<Kernel> {
    let mut kernel = Kernel { name: function.name.to_owned(), max_threads: function.max_threads, ..Kernel::default() };
    let mut scope = HashMap::new();
    let mut offset = 0;
    for p in &function.params {
        offset = (offset as u64).next_multiple_of(p.align.max(1)) as usize;
        kernel.params.push(Param { name: p.name.to_owned(), offset, size: p.bytes as usize, align: p.align as usize });
        scope.insert(p.name, Name::Param(offset as u64));
        offset += p.bytes as usize;
    }
    kernel.param_bytes = offset;
    let mut d = Decoder {
        kernel,
        functions,
        variables,
        globals,
        scopes: vec![scope],
        const32: HashMap::new(),
        const64: HashMap::new(),
        shared: HashMap::new(),
        dynamic: Vec::new(),
        labels: HashMap::new(),
        tables: HashMap::new(),
        fixups: Vec::new(),
        frame: 0,
        frames: 0,
        depth: 0,
        guard: Pred::TRUE,
        line: 0,
        loc: 0,
    };
    d.body(&function.body, None)?;
    d.emit(Op::Exit, InstructionKind::Branch);
    d.finish()
}

/// What a name stands for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Name {
    /// Up to 16 bits, 32, 64.
    Reg(Reg),
    Pred(u32),
    /// Offset in the parameter buffer.
    Param(u64),
    /// Offset in the thread's local memory.
    Local(u64),
    /// Offset in shared memory, or [`DYNAMIC`].
    Shared(u64),
    /// Index of a module variable.
    Global(u32),
}

/// An opcode split at its dots.
pub(crate) struct Opcode<'a> {
    pub base: &'a str,
    mods: Vec<&'a str>,
}

impl<'a> Opcode<'a> {
    fn new(text: &'a str) -> Self {
        let mut parts = text.split('.');
        Self { base: parts.next().unwrap_or(""), mods: parts.collect() }
    }

    /// Takes a modifier where it is there.
    pub fn take(&mut self, name: &str) -> bool {
        match self.mods.iter().position(|m| *m == name) {
            Some(i) => {
                self.mods.remove(i);
                true
            }
            None => false,
        }
    }

    /// Takes the first modifier that the function knows.
    pub fn find<T>(&mut self, f: impl Fn(&str) -> Option<T>) -> Option<T> {
        let (i, value) = self.mods.iter().enumerate().find_map(|(i, m)| f(m).map(|v| (i, v)))?;
        self.mods.remove(i);
        Some(value)
    }

    /// Takes the last modifier, which is the type.
    pub fn last(&mut self) -> Result<&'a str, String> {
        self.mods.pop().ok_or_else(|| "a type is missing".to_owned())
    }

    /// What was not taken is not known.
    pub fn done(&self) -> Result<(), String> {
        match self.mods.first() {
            Some(m) => Err(format!("`{}` with `.{m}`", self.base)),
            None => Ok(()),
        }
    }
}

struct Fixup {
    inst: usize,
    label: String,
    slot: usize,
}

/// A kernel in the making.
pub(crate) struct Decoder<'a> {
    kernel: Kernel,
    functions: &'a HashMap<&'a str, &'a Function<'a>>,
    variables: &'a HashMap<&'a str, &'a Variable<'a>>,
    globals: &'a HashMap<&'a str, u32>,
    scopes: Vec<HashMap<&'a str, Name>>,
    const32: HashMap<u32, u32>,
    const64: HashMap<Const64, u32>,
    shared: HashMap<&'a str, u64>,
    /// Constants that count from the start of dynamic shared memory: 64-bit or not, index.
    dynamic: Vec<(bool, u32)>,
    labels: HashMap<String, u32>,
    tables: HashMap<String, Vec<&'a str>>,
    fixups: Vec<Fixup>,
    /// Number of the inlined body that labels belong to.
    frame: usize,
    frames: usize,
    depth: usize,
    guard: Pred,
    line: u32,
    loc: u32,
}

/// The result of decoding one instruction: text where it is not known.
type Decoded<T = ()> = Result<T, String>;

impl<'a> Decoder<'a> {
    fn emit(&mut self, op: Op, kind: InstructionKind) {
        self.kernel.code.push(Instruction { guard: self.guard, op, kind, line: self.line, loc: self.loc });
    }

    fn here(&self) -> u32 {
        self.kernel.code.len() as u32
    }

    fn label(&self, name: &str) -> String {
        format!("{}/{name}", self.frame)
    }

    fn declare(&mut self, name: &'a str, what: Name) {
        if let Some(scope) = self.scopes.last_mut() {
            scope.insert(name, what);
        }
    }

    fn new_reg(&mut self, ty: &str) -> Decoded<Name> {
        Ok(match ty {
            "pred" => {
                self.kernel.npred += 1;
                Name::Pred(self.kernel.npred as u32 - 1)
            }
            "b8" | "u8" | "s8" | "b16" | "u16" | "s16" | "f16" | "bf16" => {
                self.kernel.n32 += 1;
                Name::Reg(Reg::B16(self.kernel.n32 as u32 - 1))
            }
            "b32" | "u32" | "s32" | "f32" | "f16x2" | "bf16x2" => {
                self.kernel.n32 += 1;
                Name::Reg(Reg::B32(self.kernel.n32 as u32 - 1))
            }
            "b64" | "u64" | "s64" | "f64" => {
                self.kernel.n64 += 1;
                Name::Reg(Reg::B64(self.kernel.n64 as u32 - 1))
            }
            _ => return Err(format!("registers of type .{ty}")),
        })
    }

    fn body(&mut self, body: &[Statement<'a>], end: Option<&str>) -> Result<()> {
        let mut last_label = String::new();
        for statement in body {
            (self.line, self.loc) = (statement.line, statement.loc);
            match &statement.kind {
                StatementKind::Open => self.scopes.push(HashMap::new()),
                StatementKind::Close => {
                    self.scopes.pop();
                }
                StatementKind::Reg(ty, name, count) => self.registers(ty, name, *count)?,
                StatementKind::Variable(v) => self.variable(v)?,
                StatementKind::Label(name) => {
                    last_label = self.label(name);
                    self.labels.insert(last_label.clone(), self.here());
                }
                StatementKind::Targets(names) => {
                    self.tables.insert(last_label.clone(), names.clone());
                }
                StatementKind::Instruction { guard, opcode, operands } => {
                    self.guard = match guard {
                        None => Pred::TRUE,
                        Some((name, negated)) => match self.lookup(name) {
                            Some(Name::Pred(p)) => Pred::new(p, *negated),
                            _ => return Err(Error::new(self.line, format!("{name} is no predicate"))),
                        },
                    };
                    if *opcode == "call" || opcode.starts_with("call.") {
                        self.call(operands)?;
                    } else if let Err(what) = self.instruction(opcode, operands, end) {
                        let here = (self.line, self.loc, what);
                        self.kernel.unknown.get_or_insert(here);
                    }
                    self.guard = Pred::TRUE;
                }
            }
        }
        Ok(())
    }

    fn registers(&mut self, ty: &str, name: &'a str, count: Option<u32>) -> Result<()> {
        let fail = |line, what: String| Error::new(line, what);
        let Some(count) = count else {
            let reg = self.new_reg(ty).map_err(|e| fail(self.line, e))?;
            self.declare(name, reg);
            return Ok(());
        };
        if count > 1 << 20 {
            return Err(Error::new(self.line, format!("{count} registers {name}")));
        }
        // `%r<9>` are %r0 to %r8; they are looked up by stem and number.
        let first = self.new_reg(ty).map_err(|e| fail(self.line, e))?;
        for _ in 1..count {
            self.new_reg(ty).map_err(|e| fail(self.line, e))?;
        }
        self.declare(name, first);
        Ok(())
    }

    fn variable(&mut self, v: &Variable<'a>) -> Result<()> {
        match v.space {
            "local" | "param" => {
                let at = (self.kernel.local_bytes as u64).next_multiple_of(v.align.max(1));
                self.kernel.local_bytes = (at + v.bytes) as usize;
                self.declare(v.name, Name::Local(at));
            }
            "shared" => {
                let at = self.place_shared(v);
                self.declare(v.name, Name::Shared(at));
            }
            _ => return Err(Error::new(self.line, format!(".{} variables within a body are not known", v.space))),
        }
        Ok(())
    }

    fn place_shared(&mut self, v: &Variable<'a>) -> u64 {
        if let Some(at) = self.shared.get(v.name) {
            return *at;
        }
        let at = (self.kernel.shared_bytes as u64).next_multiple_of(v.align.max(1));
        self.kernel.shared_bytes = (at + v.bytes) as usize;
        self.shared.insert(v.name, at);
        at
    }

    /// What a name stands for, the innermost declaration first.
    fn lookup(&mut self, name: &str) -> Option<Name> {
        for scope in self.scopes.iter().rev() {
            if let Some(found) = scope.get(name) {
                return Some(*found);
            }
        }
        // A numbered register: %r12 is the thirteenth of %r<n>.
        let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
        if stem.len() < name.len() {
            let index: u32 = name[stem.len()..].parse().ok()?;
            for scope in self.scopes.iter().rev() {
                match scope.get(stem) {
                    Some(Name::Pred(p)) => return Some(Name::Pred(p + index)),
                    Some(Name::Reg(Reg::B16(r))) => return Some(Name::Reg(Reg::B16(r + index))),
                    Some(Name::Reg(Reg::B32(r))) => return Some(Name::Reg(Reg::B32(r + index))),
                    Some(Name::Reg(Reg::B64(r))) => return Some(Name::Reg(Reg::B64(r + index))),
                    _ => {}
                }
            }
        }
        if let Some(index) = self.globals.get(name) {
            return Some(Name::Global(*index));
        }
        let v = *self.variables.get(name)?;
        // An array without a size is the dynamic part, whose start `finish` knows.
        Some(Name::Shared(if v.bytes == 0 { DYNAMIC } else { self.place_shared(v) }))
    }

    fn call(&mut self, operands: &[Operand<'a>]) -> Result<()> {
        let line = self.line;
        let fail = |what: &str| Error::new(line, what.to_owned());
        let (results, rest) = match operands {
            [Operand::List(results), rest @ ..] => (results.as_slice(), rest),
            rest => (&[][..], rest),
        };
        let (name, args) = match rest {
            [Operand::Name(name), Operand::List(args)] => (*name, args.as_slice()),
            [Operand::Name(name)] => (*name, &[][..]),
            _ => {
                return Err(fail(
                    "a call that is not `call (result), name, (arguments)`; indirect calls are not known",
                ));
            }
        };
        let Some(function) = self.functions.get(name).copied() else {
            let here = (self.line, self.loc, format!("call of `{name}`, which has no body here"));
            self.kernel.unknown.get_or_insert(here);
            return Ok(());
        };
        if self.depth == MAX_DEPTH {
            return Err(fail("calls nested too deeply; recursion is not known"));
        }
        if results.len() != function.results.len() || args.len() != function.params.len() {
            return Err(fail("a call with another number of arguments than the function has"));
        }
        let mut scope = HashMap::new();
        for (formal, actual) in function.results.iter().chain(&function.params).zip(results.iter().chain(args)) {
            let Operand::Name(actual) = actual else { return Err(fail("an argument that is not a variable")) };
            let Some(found) = self.lookup(actual) else { return Err(fail("an argument that is not declared")) };
            scope.insert(formal.name, found);
        }
        self.frames += 1;
        self.depth += 1;
        let guard = self.guard;
        let caller = std::mem::replace(&mut self.frame, self.frames);
        let scopes = std::mem::replace(&mut self.scopes, vec![scope]);
        let end = format!("{}/return", self.frame);
        if guard != Pred::TRUE {
            // A guarded call jumps over the body where the guard does not hold.
            self.guard = guard.not();
            self.branch_to(end.clone());
            self.guard = Pred::TRUE;
        }
        self.body(&function.body, Some(&end))?;
        self.labels.insert(end, self.here());
        self.scopes = scopes;
        self.frame = caller;
        self.depth -= 1;
        Ok(())
    }

    fn branch_to(&mut self, label: String) {
        self.fixups.push(Fixup { inst: self.kernel.code.len(), label, slot: 0 });
        self.emit(Op::Branch { target: 0 }, InstructionKind::Branch);
    }

    fn instruction(&mut self, opcode: &'a str, operands: &[Operand<'a>], end: Option<&str>) -> Decoded {
        let mut op = Opcode::new(opcode);
        match op.base {
            "bra" => {
                op.take("uni");
                op.done()?;
                let [Operand::Name(label)] = operands else { return Err("bra without a label".to_owned()) };
                let label = self.label(label);
                self.branch_to(label);
                Ok(())
            }
            "brx" => {
                op.take("idx");
                op.take("uni");
                op.done()?;
                let [index, Operand::Name(table)] = operands else { return Err("brx without a table".to_owned()) };
                let index = self.src32(index)?;
                let table = self.label(table);
                let Some(names) = self.tables.get(&table).cloned() else {
                    return Err("brx.idx with a table that is declared later".to_owned());
                };
                for (slot, name) in names.iter().enumerate() {
                    self.fixups.push(Fixup { inst: self.kernel.code.len(), label: self.label(name), slot });
                }
                let targets = vec![0; names.len()].into();
                self.emit(Op::BranchTable { index, targets }, InstructionKind::Branch);
                Ok(())
            }
            "ret" | "exit" => {
                op.take("uni");
                op.done()?;
                match end {
                    Some(end) if op.base == "ret" => self.branch_to(end.to_owned()),
                    _ => self.emit(Op::Exit, InstructionKind::Branch),
                }
                Ok(())
            }
            "trap" => {
                self.emit(Op::Trap, InstructionKind::Other);
                Ok(())
            }
            "brkpt" | "nanosleep" | "prefetch" | "prefetchu" | "pmevent" => {
                self.emit(Op::Nop, InstructionKind::Other);
                Ok(())
            }
            _ => {
                let families = [
                    Self::decode_move,
                    Self::decode_memory,
                    Self::decode_warp,
                    Self::decode_integer,
                    Self::decode_float,
                ];
                for family in families {
                    if family(self, &mut op, operands)? {
                        return Ok(());
                    }
                }
                Err(format!("`{opcode}`"))
            }
        }
    }

    fn finish(mut self) -> Result<Kernel> {
        for fixup in std::mem::take(&mut self.fixups) {
            let inst = &mut self.kernel.code[fixup.inst];
            let Some(&at) = self.labels.get(&fixup.label) else {
                let name = fixup.label.split('/').next_back().unwrap_or("");
                return Err(Error::new(inst.line, format!("label {name} is not defined")));
            };
            match &mut inst.op {
                Op::Branch { target } => *target = at,
                Op::BranchTable { targets, .. } => targets[fixup.slot] = at,
                _ => {}
            }
        }
        // Dynamic shared memory follows the static part, at the largest alignment a vector access needs and swizzles like.
        let align = self.variables.values().filter(|v| v.space == "shared").map(|v| v.align).max().unwrap_or(1).max(16);
        let start = (self.kernel.shared_bytes as u64).next_multiple_of(align);
        self.kernel.dynamic_offset = start as usize;
        for (wide, index) in &self.dynamic {
            if *wide {
                if let Const64::Value(v) = &mut self.kernel.const64[*index as usize] {
                    *v = v.wrapping_add(start);
                }
            } else {
                let v = &mut self.kernel.const32[*index as usize];
                *v = v.wrapping_add(start as u32);
            }
        }
        Ok(self.kernel)
    }
}

/// Stands for the start of dynamic shared memory until it is known.
const DYNAMIC: u64 = u64::MAX;
