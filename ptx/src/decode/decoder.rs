//! The state of decoding a kernel: its registers and variables, the names in scope, labels and branches.

use std::collections::HashMap;

use super::opcode::Decoded;
use crate::counts::InstructionKind;
use crate::error::{Error, Result};
use crate::instruction::{Instruction, Op, Pred, Reg};
use crate::kernel::{Const64, GlobalVariable, Kernel, Param};
use crate::parse::{Function, Tree, Variable};

/// The meaning of a name.
#[derive(Clone, Copy, Debug)]
pub(super) enum Name {
    Reg(Reg),
    Pred(u32),
    /// Offset in the parameter buffer.
    Param(u64),
    /// Offset in the local memory of the thread.
    Local(u64),
    /// Offset in shared memory, or [`DYNAMIC`].
    Shared(u64),
    /// Index of a module variable.
    Global(u32),
}

/// Offset of dynamic shared memory, a placeholder until the size of the static part is known.
pub(super) const DYNAMIC: u64 = u64::MAX;

/// The names declared by a module.
pub(super) struct ModuleNames<'a> {
    pub functions: HashMap<&'a str, &'a Function<'a>>,
    variables: HashMap<&'a str, &'a Variable<'a>>,
    globals: HashMap<&'a str, u32>,
}

impl<'a> ModuleNames<'a> {
    pub fn new(tree: &'a Tree<'a>, globals: &'a [GlobalVariable]) -> Self {
        Self {
            functions: tree.functions.iter().map(|f| (f.name, f)).collect(),
            variables: tree.variables.iter().map(|v| (v.name, v)).collect(),
            globals: globals.iter().enumerate().map(|(i, g)| (g.name.as_str(), i as u32)).collect(),
        }
    }
}

/// A branch whose target is set once all labels are known.
struct Fixup {
    inst: usize,
    /// The label as each enclosing block would have it, the innermost first.
    labels: Vec<String>,
    /// Index in the table of a `brx.idx`.
    slot: usize,
}

/// A kernel being decoded.
pub(super) struct Decoder<'a> {
    pub kernel: Kernel,
    pub names: &'a ModuleNames<'a>,
    /// Names declared in the enclosing blocks of the current body, the innermost last.
    pub scopes: Vec<HashMap<&'a str, Name>>,
    /// Indices of the 32-bit constants in the pool.
    pub const32: HashMap<u32, u32>,
    /// Indices of the 64-bit constants in the pool.
    pub const64: HashMap<Const64, u32>,
    /// Offsets of the shared variables.
    shared: HashMap<&'a str, u64>,
    /// Constants relative to the start of dynamic shared memory: whether they have 64 bits, and the index.
    pub dynamic: Vec<(bool, u32)>,
    /// Instructions of the labels.
    pub labels: HashMap<String, u32>,
    /// Targets of the `.branchtargets` tables.
    pub tables: HashMap<String, Vec<&'a str>>,
    fixups: Vec<Fixup>,
    /// Numbers of the enclosing blocks, whose labels are their own, the innermost last; and of those so far.
    pub blocks: Vec<usize>,
    pub opened: usize,
    /// Number of the inlined body that labels belong to.
    pub frame: usize,
    /// Number of bodies inlined so far.
    pub frames: usize,
    /// Depth of nested calls.
    pub depth: usize,
    /// Guard of the current instruction.
    pub guard: Pred,
    /// Line of the current instruction in the PTX text.
    pub line: u32,
    /// Source location of the current instruction.
    pub loc: u32,
}

impl<'a> Decoder<'a> {
    /// Lays out the parameters of a kernel.
    pub fn new(function: &'a Function<'a>, names: &'a ModuleNames<'a>) -> Self {
        let mut kernel = Kernel {
            name: function.name.to_owned(),
            max_threads: function.max_threads,
            cluster: function.cluster,
            registers: function.registers,
            ..Kernel::default()
        };
        let mut scope = HashMap::new();
        let mut offset = 0;
        for p in &function.params {
            offset = (offset as u64).next_multiple_of(p.align.max(1)) as usize;
            kernel.params.push(Param {
                name: p.name.to_owned(),
                offset,
                size: p.bytes as usize,
                align: p.align as usize,
            });
            scope.insert(p.name, Name::Param(offset as u64));
            offset += p.bytes as usize;
        }
        kernel.param_bytes = offset;
        Self {
            kernel,
            names,
            scopes: vec![scope],
            const32: HashMap::new(),
            const64: HashMap::new(),
            shared: HashMap::new(),
            dynamic: Vec::new(),
            labels: HashMap::new(),
            tables: HashMap::new(),
            fixups: Vec::new(),
            blocks: vec![0],
            opened: 0,
            frame: 0,
            frames: 0,
            depth: 0,
            guard: Pred::TRUE,
            line: 0,
            loc: 0,
        }
    }

    /// Appends an instruction.
    pub fn emit(&mut self, op: Op, kind: InstructionKind) {
        self.kernel.code.push(Instruction { guard: self.guard, op, kind, line: self.line, loc: self.loc });
    }

    /// The index of the next instruction.
    pub fn here(&self) -> u32 {
        self.kernel.code.len() as u32
    }

    /// The key of a label of the current block.
    pub fn label(&self, name: &str) -> String {
        format!("{}/{}/{name}", self.frame, self.blocks.last().unwrap_or(&0))
    }

    /// The keys of a label that the current block or one around it has.
    pub fn labels_in_sight(&self, name: &str) -> Vec<String> {
        self.blocks.iter().rev().map(|block| format!("{}/{block}/{name}", self.frame)).collect()
    }

    /// Declares a name in the innermost scope.
    pub fn declare(&mut self, name: &'a str, meaning: Name) {
        if let Some(scope) = self.scopes.last_mut() {
            scope.insert(name, meaning);
        }
    }

    /// Allocates a register of a type.
    pub fn new_reg(&mut self, ty: &str) -> Decoded<Name> {
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

    /// Declares a register, or `count` numbered ones.
    pub fn registers(&mut self, ty: &str, name: &'a str, count: Option<u32>) -> Result<()> {
        let fail = |line, what: String| Error::new(line, what);
        let Some(count) = count else {
            let reg = self.new_reg(ty).map_err(|e| fail(self.line, e))?;
            self.declare(name, reg);
            return Ok(());
        };
        if count > 1 << 20 {
            return Err(Error::new(self.line, format!("{count} registers {name}")));
        }
        // `%r<9>` declares %r0 to %r8; `lookup` splits their names into stem and number.
        let first = self.new_reg(ty).map_err(|e| fail(self.line, e))?;
        for _ in 1..count {
            self.new_reg(ty).map_err(|e| fail(self.line, e))?;
        }
        self.declare(name, first);
        Ok(())
    }

    /// Declares a variable of a body.
    pub fn variable(&mut self, v: &Variable<'a>) -> Result<()> {
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

    /// Allocates a shared variable at its first use, and returns its offset.
    fn place_shared(&mut self, v: &Variable<'a>) -> u64 {
        if let Some(at) = self.shared.get(v.name) {
            return *at;
        }
        let at = (self.kernel.shared_bytes as u64).next_multiple_of(v.align.max(1));
        self.kernel.shared_bytes = (at + v.bytes) as usize;
        self.shared.insert(v.name, at);
        at
    }

    /// Looks up a name, the innermost declaration first.
    pub fn lookup(&mut self, name: &str) -> Option<Name> {
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
        if let Some(index) = self.names.globals.get(name) {
            return Some(Name::Global(*index));
        }
        let v = *self.names.variables.get(name)?;
        // An array without a size is the dynamic part, whose start is known in `finish`.
        Some(Name::Shared(if v.bytes == 0 { DYNAMIC } else { self.place_shared(v) }))
    }

    /// Emits a branch to a label that may follow.
    pub fn branch_to(&mut self, labels: Vec<String>) {
        self.fixups.push(Fixup { inst: self.kernel.code.len(), labels, slot: 0 });
        self.emit(Op::Branch { target: 0 }, InstructionKind::Branch);
    }

    /// Emits an indexed branch to labels of the current body that may follow.
    pub fn branch_table(&mut self, index: u32, names: &[&str]) {
        for (slot, name) in names.iter().enumerate() {
            let labels = self.labels_in_sight(name);
            self.fixups.push(Fixup { inst: self.kernel.code.len(), labels, slot });
        }
        let targets = vec![0; names.len()].into();
        self.emit(Op::BranchTable { index, targets }, InstructionKind::Branch);
    }

    /// Resolves labels and dynamic shared memory, and returns the kernel.
    pub fn finish(mut self) -> Result<Kernel> {
        for fixup in std::mem::take(&mut self.fixups) {
            let inst = &mut self.kernel.code[fixup.inst];
            let Some(&at) = fixup.labels.iter().find_map(|label| self.labels.get(label)) else {
                let name = fixup.labels.first().and_then(|label| label.split('/').next_back()).unwrap_or("");
                return Err(Error::new(inst.line, format!("label {name} is not defined")));
            };
            match &mut inst.op {
                Op::Branch { target } => *target = at,
                Op::BranchTable { targets, .. } => targets[fixup.slot] = at,
                _ => {}
            }
        }
        // Dynamic shared memory follows the static part, aligned for the widest vector access and for swizzled addresses.
        let align =
            self.names.variables.values().filter(|v| v.space == "shared").map(|v| v.align).max().unwrap_or(1).max(16);
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
