//! A decoded kernel: its instructions, constants, parameters and memory needs.

use crate::instruction::Instruction;

/// A `.global` or `.const` variable of a module.
#[derive(Debug)]
pub(crate) struct GlobalVariable {
    pub name: String,
    pub bytes: u64,
    pub init: Option<Vec<u8>>,
}

/// A 64-bit constant: a value, or an address relative to a module variable, known once the module is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Const64 {
    Value(u64),
    Variable { index: u32, offset: i64 },
}

/// A parameter of a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param {
    /// Name in the PTX.
    pub name: String,
    /// Byte offset in the parameter buffer.
    pub offset: usize,
    /// Size in bytes.
    pub size: usize,
    /// Alignment in bytes.
    pub align: usize,
}

/// A decoded kernel.
#[derive(Debug, Default)]
pub struct Kernel {
    pub(crate) name: String,
    pub(crate) params: Vec<Param>,
    pub(crate) param_bytes: usize,
    pub(crate) shared_bytes: usize,
    pub(crate) dynamic_offset: usize,
    pub(crate) local_bytes: usize,
    pub(crate) max_threads: Option<[u32; 3]>,
    pub(crate) cluster: Option<[u32; 3]>,
    /// Registers of a thread at the entry by `.maxnreg`.
    pub(crate) registers: Option<u32>,
    pub(crate) code: Vec<Instruction>,
    pub(crate) n32: usize,
    pub(crate) n64: usize,
    pub(crate) npred: usize,
    pub(crate) const32: Vec<u32>,
    pub(crate) const64: Vec<Const64>,
    /// The first unsupported instruction: PTX line, location, reason.
    pub(crate) unknown: Option<(u32, u32, String)>,
}

impl Kernel {
    /// The name of the kernel.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The parameters, in order.
    pub fn params(&self) -> &[Param] {
        &self.params
    }

    /// Size of the parameter buffer in bytes.
    pub fn param_bytes(&self) -> usize {
        self.param_bytes
    }

    /// Size of the static shared memory in bytes.
    pub fn shared_bytes(&self) -> usize {
        self.shared_bytes
    }

    /// The block dimensions of `.maxntid`, if given.
    pub fn max_threads(&self) -> Option<[u32; 3]> {
        self.max_threads
    }

    /// The blocks of a cluster by `.reqnctapercluster`, if given.
    pub fn cluster(&self) -> Option<[u32; 3]> {
        self.cluster
    }

    /// PTX line and reason of the first unsupported instruction. A kernel with one does not run.
    pub fn unknown(&self) -> Option<(u32, &str)> {
        self.unknown.as_ref().map(|(line, _, what)| (*line, what.as_str()))
    }

    /// The number of decoded instructions.
    pub fn instructions(&self) -> usize {
        self.code.len()
    }
}
