//! A parsed module: its kernels and variables, and the lines an instruction comes from.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::decode;
use crate::error::{Result, Site, SourceLine};
use crate::kernel::{GlobalVariable, Kernel};
use crate::parse::{self, Location};

/// A module of PTX, decoded.
#[derive(Debug)]
pub struct Module {
    pub(crate) id: u64,
    target: String,
    pub(crate) variables: Vec<GlobalVariable>,
    kernels: BTreeMap<String, Kernel>,
    locations: Vec<Location>,
    files: Vec<(u32, String)>,
    lines: Vec<String>,
}

impl Module {
    /// Parses and decodes PTX.
    ///
    /// A kernel with an unsupported instruction is kept; running it is a fault that names the instruction.
    ///
    /// # Errors
    /// Text that is not PTX, undeclared names, recursive or indirect calls.
    pub fn parse(ptx: &str) -> Result<Self> {
        static IDS: AtomicU64 = AtomicU64::new(0);
        let tree = parse::parse(ptx)?;
        let mut variables = Vec::new();
        for v in tree.variables.iter().filter(|v| v.space != "shared") {
            variables.push(GlobalVariable { name: v.name.to_owned(), bytes: v.bytes, init: v.init.clone() });
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

    /// The architecture of the `.target` directive, e.g. `sm_80`.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// The kernel of this name.
    pub fn kernel(&self, name: &str) -> Option<&Kernel> {
        self.kernels.get(name)
    }

    /// All kernels, in order of their names.
    pub fn kernels(&self) -> impl Iterator<Item = &Kernel> {
        self.kernels.values()
    }

    /// The place of an instruction in the text and the source.
    pub(crate) fn site(&self, line: u32, loc: u32) -> Site {
        let mut source = Vec::new();
        let mut at = loc as usize;
        // Each location refers to an earlier one, so this ends; the bound is for text where it does not.
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
