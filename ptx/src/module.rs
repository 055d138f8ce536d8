//! A parsed module: kernels, variables, and what maps an instruction back to its source.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::decode;
use crate::error::{Result, Site, SourceLine};
use crate::parse::{self, Location};
use crate::program::Kernel;

/// A `.global` or `.const` variable.
#[derive(Debug)]
pub(crate) struct Global {
    pub name: String,
    pub bytes: u64,
    pub init: Option<Vec<u8>>,
}

/// A module of PTX, decoded.
#[derive(Debug)]
pub struct Module {
    pub(crate) id: u64,
    target: String,
    pub(crate) variables: Vec<Global>,
    kernels: BTreeMap<String, Kernel>,
    locations: Vec<Location>,
    files: Vec<(u32, String)>,
    lines: Vec<String>,
}

impl Module {
    /// Parses and decodes PTX.
    ///
    /// A kernel with an instruction that is not known is kept; running it is a fault that names the instruction.
    ///
    /// # Errors
    /// Text that is not PTX, names that are not declared, recursive or indirect calls.
    pub fn parse(ptx: &str) -> Result<Self> {
        static IDS: AtomicU64 = AtomicU64::new(0);
        let tree = parse::parse(ptx)?;
        let mut variables = Vec::new();
        for v in tree.variables.iter().filter(|v| v.space != "shared") {
            variables.push(Global { name: v.name.to_owned(), bytes: v.bytes, init: v.init.clone() });
        }
        let kernels = decode::kernels(&tree, &variables)?;
        let lines = ptx.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        Ok(Self {
            id: IDS.fetch_add(1, Relaxed),
            target: tree.target,
            variables,
            kernels: kernels.into_iter().map(|k| (k.name.clone(), k)).collect(),
            locations: tree.locations,
            files: tree.files,
            lines,
        })
    }

    /// The architecture it was compiled for, e.g. `sm_80`.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// A kernel.
    pub fn kernel(&self, name: &str) -> Option<&Kernel> {
        self.kernels.get(name)
    }

    /// All kernels, by name.
    pub fn kernels(&self) -> impl Iterator<Item = &Kernel> {
        self.kernels.values()
    }

    /// The place of an instruction.
    pub(crate) fn site(&self, line: u32, loc: u32) -> Site {
        let mut source = Vec::new();
        let mut at = loc as usize;
        // Each location names an earlier one, so this ends; the bound guards against text that says otherwise.
        while at != 0 && source.len() < 32 {
            let Some(location) = self.locations.get(at) else { break };
            let file = self.files.iter().find(|f| f.0 == location.file).map_or("?", |f| &f.1);
            source.push(SourceLine { file: file.to_owned(), line: location.line });
            at = location.inlined_at as usize;
        }
        let text = self.lines.get((line as usize).wrapping_sub(1)).cloned().unwrap_or_default();
        Site { line, text, source }
    }
}
