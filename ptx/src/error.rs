//! Errors of parsing, and faults of a running kernel.

use std::fmt;
use std::ops::Range;

/// The result of parsing.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error in PTX text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("PTX line {line}: {what}")]
pub struct Error {
    /// Line of the text, from 1.
    pub line: u32,
    /// The text found and the text expected.
    pub what: String,
}

impl Error {
    pub(crate) fn new(line: u32, what: impl Into<String>) -> Self {
        Self { line, what: what.into() }
    }
}

/// A line of a source file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceLine {
    /// The file as the compiler named it.
    pub file: String,
    /// Line, from 1.
    pub line: u32,
}

impl fmt::Display for SourceLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// The place of an instruction in the PTX text and in the CUDA source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    /// Line of the PTX text, from 1.
    pub line: u32,
    /// Text of that line.
    pub text: String,
    /// The source line and, where it was inlined, the lines it was inlined at, innermost first. Empty without `-lineinfo`.
    pub source: Vec<SourceLine>,
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, source) in self.source.iter().enumerate() {
            write!(f, "{}{source}", if i == 0 { "" } else { ", inlined at " })?;
        }
        if !self.source.is_empty() {
            write!(f, ", ")?;
        }
        write!(f, "PTX line {}: `{}`", self.line, self.text)
    }
}

/// State spaces, as faults report them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum MemorySpace {
    Global,
    Shared,
    Local,
    Param,
}

impl fmt::Display for MemorySpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Global => "global",
            Self::Shared => "shared",
            Self::Local => "local",
            Self::Param => "parameter",
        })
    }
}

/// The order of two conflicting accesses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hazard {
    /// A read after an unordered write of another thread.
    ReadAfterWrite,
    /// A write after an unordered read of another thread.
    WriteAfterRead,
    /// A write after an unordered write of another thread.
    WriteAfterWrite,
    /// A read of bytes that a pending asynchronous copy writes.
    ReadBeforeWait,
    /// A write to bytes that a pending asynchronous copy writes.
    WriteBeforeWait,
    /// An access through the asynchronous proxy (a bulk copy, `wgmma`) to what a thread wrote, without `fence.proxy.async` between.
    NoProxyFence,
}

impl fmt::Display for Hazard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ReadAfterWrite => "read after write",
            Self::WriteAfterRead => "write after read",
            Self::WriteAfterWrite => "write after write",
            Self::ReadBeforeWait => "read of an asynchronous copy that was not waited for",
            Self::WriteBeforeWait => "write over an asynchronous copy that was not waited for",
            Self::NoProxyFence => "asynchronous access to what a thread wrote, without fence.proxy.async",
        })
    }
}

/// Kinds of faults.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FaultKind {
    /// An access outside of every allocation, or across the end of one.
    #[error("{bytes} bytes at {space} address {address:#x} are out of bounds ({near})")]
    OutOfBounds {
        /// State space of the access.
        space: MemorySpace,
        /// Address of the first byte.
        address: u64,
        /// Bytes of the access.
        bytes: u32,
        /// The nearest allocation below.
        near: String,
    },
    /// An access whose address is not a multiple of its size.
    #[error("{space} address {address:#x} is not a multiple of {align}")]
    Misaligned {
        /// State space of the access.
        space: MemorySpace,
        /// Address of the first byte.
        address: u64,
        /// Required alignment in bytes.
        align: u32,
    },
    /// A read of bytes that were never written.
    #[error("{bytes} bytes read at {space} address {address:#x}, not all of them ever written")]
    Uninitialised {
        /// State space of the access.
        space: MemorySpace,
        /// Address of the first byte.
        address: u64,
        /// Bytes of the access.
        bytes: u32,
    },
    /// Two conflicting accesses without an order between them.
    #[error("race, {hazard}, at {space} address {address:#x}, with {other_thread} at {other}")]
    Race {
        /// The order of the two under this schedule.
        hazard: Hazard,
        /// State space of the access.
        space: MemorySpace,
        /// Address of the first conflicting byte.
        address: u64,
        /// The earlier access.
        other: Box<Site>,
        /// Author of the earlier access: a thread, a warp or a block.
        other_thread: String,
    },
    /// All remaining warps wait.
    #[error("deadlock: {what}")]
    Deadlock {
        /// The waiting warps and their barriers.
        what: String,
    },
    /// A part of the warp, or of the block, at an instruction that all must reach together.
    #[error("divergence: {what}")]
    Divergent {
        /// The lanes or warps and their instructions.
        what: String,
    },
    /// An instruction that the interpreter does not support.
    #[error("unknown instruction: {what}")]
    Unknown {
        /// The unsupported opcode, modifier or operand.
        what: String,
    },
    /// More warp instructions in one block than [`crate::Launch::step_limit`].
    #[error("the step limit of {limit} warp instructions in a block is reached")]
    StepLimit {
        /// The limit.
        limit: u64,
    },
    /// An access to global memory by a thread that has not waited for the launch before, in one that may begin before that has ended.
    #[error(
        "{bytes} bytes at global address {address:#x} before griddepcontrol.wait: the launch before may still be at work"
    )]
    TooEarly {
        /// Address of the first byte.
        address: u64,
        /// Bytes of the access.
        bytes: u32,
    },
    /// A block of such a launch that ends and has not waited.
    #[error("a block ends without griddepcontrol.wait: the launch behind may overtake the one before")]
    NoWait,
    /// `trap`.
    #[error("trap")]
    Trap,
    /// An mbarrier, a bulk copy, a tensor map or a `wgmma` used against its rules.
    #[error("{0}")]
    Asynchronous(String),
    /// A launch that does not fit the kernel: no such kernel, parameters of another size, too many threads.
    #[error("{0}")]
    Launch(String),
}

impl FaultKind {
    /// An out-of-bounds fault that names the allocation below the address.
    pub(crate) fn out_of_bounds(space: MemorySpace, address: u64, bytes: u32, below: Option<Range<u64>>) -> Self {
        let near = match below {
            Some(range) => {
                let past = address.wrapping_sub(range.start);
                format!("byte {past} of the allocation of {} bytes at {:#x}", range.end - range.start, range.start)
            }
            None => "no allocation at or below it".to_owned(),
        };
        Self::OutOfBounds { space, address, bytes, near }
    }
}

/// A fault of a kernel: its kind, the thread and the instruction.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", message(self))]
pub struct Fault {
    /// Name of the kernel.
    pub kernel: String,
    /// Index of the block.
    pub block: [u32; 3],
    /// Index of the thread within the block; `None` if the fault is not of one thread.
    pub thread: Option<[u32; 3]>,
    /// Index of the warp within the block.
    pub warp: u32,
    /// The instruction; `None` if the launch itself is wrong.
    pub site: Option<Box<Site>>,
    /// The kind of fault.
    pub kind: FaultKind,
}

fn message(fault: &Fault) -> String {
    let mut text = format!("kernel {}", fault.kernel);
    if let Some(site) = &fault.site {
        text += &format!(", block {:?}, ", fault.block);
        text += &match fault.thread {
            Some(thread) => format!("thread {thread:?}"),
            None => format!("warp {}", fault.warp),
        };
        text += &format!(", {site}");
    }
    format!("{text}: {}", fault.kind)
}
