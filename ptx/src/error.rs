//! What can go wrong: text that cannot be parsed, and faults of a running kernel.

use std::fmt;

/// The result of parsing.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// PTX text that is not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("PTX line {line}: {what}")]
pub struct Error {
    /// Line of the text, from 1.
    pub line: u32,
    /// What was found and what was expected.
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

/// An instruction, as a person finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    /// Line of the PTX text, from 1.
    pub line: u32,
    /// That line.
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

/// Where an address points.
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
    /// A read of what another thread wrote, with nothing that orders the two.
    ReadAfterWrite,
    /// A write over what another thread read.
    WriteAfterRead,
    /// A write over what another thread wrote.
    WriteAfterWrite,
    /// A read of bytes that a `cp.async` not yet waited for is writing.
    ReadBeforeWait,
    /// A write over bytes that a `cp.async` not yet waited for is writing.
    WriteBeforeWait,
}

impl fmt::Display for Hazard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ReadAfterWrite => "read after write",
            Self::WriteAfterRead => "write after read",
            Self::WriteAfterWrite => "write after write",
            Self::ReadBeforeWait => "read of a cp.async that was not waited for",
            Self::WriteBeforeWait => "write over a cp.async that was not waited for",
        })
    }
}

/// What a kernel did wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FaultKind {
    /// An access that lies in no allocation, or crosses the end of one.
    #[error("{bytes} bytes at {space} address {address:#x} are out of bounds ({near})")]
    OutOfBounds {
        /// The space.
        space: MemorySpace,
        /// First byte.
        address: u64,
        /// Bytes of the access.
        bytes: u32,
        /// What lies there.
        near: String,
    },
    /// An access whose address is not a multiple of its size.
    #[error("{space} address {address:#x} is not a multiple of {align}")]
    Misaligned {
        /// The space.
        space: MemorySpace,
        /// First byte.
        address: u64,
        /// The alignment needed.
        align: u32,
    },
    /// A read of bytes that nobody wrote.
    #[error("{bytes} bytes read at {space} address {address:#x}, not all of them ever written")]
    Uninitialised {
        /// The space.
        space: MemorySpace,
        /// First byte.
        address: u64,
        /// Bytes of the access.
        bytes: u32,
    },
    /// Two accesses that nothing orders.
    #[error("race, {hazard}, at {space} address {address:#x}, with {other_thread} at {other}")]
    Race {
        /// Which came first in this schedule.
        hazard: Hazard,
        /// The space.
        space: MemorySpace,
        /// The byte.
        address: u64,
        /// The earlier access.
        other: Box<Site>,
        /// Who made it.
        other_thread: String,
    },
    /// All that is left waits.
    #[error("deadlock: {what}")]
    Deadlock {
        /// Who waits where.
        what: String,
    },
    /// An instruction that all lanes of a warp, or all warps of a block, must reach together.
    #[error("divergence: {what}")]
    Divergent {
        /// Who is where.
        what: String,
    },
    /// An instruction that the interpreter does not have.
    #[error("unknown instruction: {what}")]
    Unknown {
        /// What is not known about it.
        what: String,
    },
    /// More instructions than [`crate::Launch::step_limit`] in one block.
    #[error("the step limit of {limit} warp instructions in a block is reached")]
    StepLimit {
        /// The limit.
        limit: u64,
    },
    /// `trap`.
    #[error("trap")]
    Trap,
    /// A launch that the kernel does not fit: no such kernel, parameters of another size, too many threads.
    #[error("{0}")]
    Launch(String),
}

/// A kernel's fault: what, who, where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", shown(self))]
pub struct Fault {
    /// The kernel.
    pub kernel: String,
    /// The block.
    pub block: [u32; 3],
    /// The thread within the block, where one thread is to blame.
    pub thread: Option<[u32; 3]>,
    /// The warp within the block.
    pub warp: u32,
    /// The instruction; none where the launch itself is wrong.
    pub site: Option<Box<Site>>,
    /// What happened.
    pub kind: FaultKind,
}

fn shown(fault: &Fault) -> String {
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
