//! The kernel files as the build embedded them: binaries for each target, or the sources.

use flate2::read::ZlibDecoder;
use std::io::Read;

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// A kernel file.
#[derive(Debug, Clone, Copy)]
pub struct Module {
    /// The file's name without its ending, e.g. `attention`.
    pub name: &'static str,
    /// Its text, to be compiled at run time where no binary serves.
    pub source: SourceFile,
    /// The result of the build.
    pub code: Code,
}

/// The part of a kernel file that a build embeds.
#[derive(Debug, Clone, Copy)]
pub enum Code {
    /// Compiled for every target.
    Compiled(&'static [Binary]),
    /// There was no NVRTC: the source alone, to be compiled at run time with [`flags`] and [`headers`].
    Source,
}

/// A kernel file compiled for one target.
#[derive(Debug, Clone, Copy)]
pub struct Binary {
    /// `sm_80` and the like for a cubin, `compute_80` for PTX; `sm_90a` and `compute_90a` for what runs on that one alone.
    pub target: &'static str,
    packed: &'static [u8],
    /// The log of compiler and assembler: registers, shared memory, spills, warnings.
    pub log: &'static str,
}

impl Binary {
    /// The architecture of a cubin, and whether it runs on that one alone; `None` for PTX.
    fn architecture(&self) -> Option<(u32, bool)> {
        number(self.target.strip_prefix("sm_")?)
    }

    /// The same of PTX, which runs on its architecture and all later ones.
    fn virtual_architecture(&self) -> Option<(u32, bool)> {
        number(self.target.strip_prefix("compute_")?)
    }

    /// The cubin, or the PTX as a C string, its terminator included.
    ///
    /// # Errors
    /// If the embedded bytes are damaged.
    pub fn unpack(&self) -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        ZlibDecoder::new(self.packed).read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

/// An architecture's number, and whether it is for that one alone: `80`, `90a`.
fn number(text: &str) -> Option<(u32, bool)> {
    Some((text.trim_end_matches('a').parse().ok()?, text.ends_with('a')))
}

/// A kernel file as text.
#[derive(Debug, Clone, Copy)]
pub struct SourceFile {
    /// The file's name.
    pub name: &'static str,
    /// Its text.
    pub text: &'static str,
}

/// Every kernel file, in order of its name.
pub fn modules() -> &'static [Module] {
    MODULES
}

/// Name and text of every header that the kernel files include.
pub fn headers() -> &'static [(&'static str, &'static str)] {
    HEADERS
}

/// The compiler's options, besides the architecture.
pub fn flags() -> &'static [&'static str] {
    FLAGS
}

/// The version of the NVRTC that compiled the kernels; `None` where the sources are embedded.
pub fn compiler() -> Option<(i32, i32)> {
    COMPILER
}

impl Module {
    /// The binaries that a device of this compute capability may run, the best first: the cubin of its generation with the
    /// greatest minor number up to its own (`sm_90a` for 9.0 alone, which is not forward compatible; none of others for Orin's
    /// 8.7, which takes its own alone), then the PTX. None below 8.0, for a file that is for another architecture alone, or
    /// where the source is embedded.
    pub fn binaries(&self, (major, minor): (u32, u32)) -> impl Iterator<Item = &'static Binary> {
        let binaries = if let Code::Compiled(binaries) = self.code { binaries } else { &[] };
        let own = major * 10 + minor;
        let fits = |binary: &&Binary| match binary.architecture() {
            Some((number, exact)) if exact || own == 87 => number == own,
            Some((number, _)) => number / 10 == major && number <= own,
            None => false,
        };
        let cubin = binaries.iter().filter(fits).max_by_key(|binary| binary.architecture());
        cubin.into_iter().chain(self.ptx((major, minor)))
    }

    /// The PTX for a device of this compute capability, where none of the cubins is for it: of the greatest architecture up to its own,
    /// that of sm_90 having waits for the launch before.
    pub fn ptx(&self, (major, minor): (u32, u32)) -> Option<&'static Binary> {
        let binaries = if let Code::Compiled(binaries) = self.code { binaries } else { &[] };
        let own = major * 10 + minor;
        let compiles = |binary: &&Binary| match binary.virtual_architecture() {
            Some((number, exact)) => number == own || !exact && number <= own,
            None => false,
        };
        binaries.iter().filter(compiles).max_by_key(|binary| binary.virtual_architecture())
    }
}

/// Whether the build embedded binaries; says so where a test is skipped for want of them.
#[cfg(test)]
pub(crate) fn compiled() -> bool {
    if compiler().is_none() {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("a test");
        let _ = std::io::Write::write_fmt(
            &mut std::io::stderr(),
            format_args!("{name}: skipped: no NVRTC when this was built\n"),
        );
    }
    compiler().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cuda::compile::log::flaw;

    const fn binary(target: &'static str) -> Binary {
        Binary { target, packed: &[], log: "" }
    }

    static FAKE: [Binary; 8] = [
        binary("sm_80"),
        binary("sm_86"),
        binary("sm_89"),
        binary("sm_90a"),
        binary("sm_100"),
        binary("sm_120"),
        binary("compute_80"),
        binary("compute_90"),
    ];

    static FAKE_SM_90A: [Binary; 2] = [binary("sm_90a"), binary("compute_90a")];

    #[test]
    fn binary_by_generation() {
        let module = Module { name: "m", source: SourceFile { name: "m.cu", text: "" }, code: Code::Compiled(&FAKE) };
        let targets = |major, minor| module.binaries((major, minor)).map(|binary| binary.target).collect::<Vec<_>>();
        assert_eq!(targets(7, 5), [""; 0]);
        assert_eq!(targets(8, 0), ["sm_80", "compute_80"]);
        assert_eq!(targets(8, 6), ["sm_86", "compute_80"]);
        assert_eq!(targets(8, 7), ["compute_80"]);
        assert_eq!(targets(8, 9), ["sm_89", "compute_80"]);
        assert_eq!(targets(9, 0), ["sm_90a", "compute_90"]);
        assert_eq!(targets(10, 0), ["sm_100", "compute_90"]);
        assert_eq!(targets(10, 3), ["sm_100", "compute_90"]);
        assert_eq!(targets(11, 0), ["compute_90"]);
        assert_eq!(targets(12, 1), ["sm_120", "compute_90"]);
        let alone = Module { code: Code::Compiled(&FAKE_SM_90A), ..module };
        let targets = |major, minor| alone.binaries((major, minor)).map(|binary| binary.target).collect::<Vec<_>>();
        assert_eq!(targets(9, 0), ["sm_90a", "compute_90a"]);
        assert_eq!([targets(8, 9), targets(10, 0)].concat(), [""; 0]);
        let source = Module { code: Code::Source, ..module };
        assert_eq!(source.binaries((9, 0)).count(), 0);
    }

    /// No kernel spills, neither compiler nor assembler warns, and no products are serialised, on any architecture.
    #[test]
    fn logs_without_flaws() {
        if !compiled() {
            return;
        }
        for module in modules() {
            let Code::Compiled(binaries) = module.code else { continue };
            for Binary { target, log, .. } in binaries {
                assert!(!log.contains("error"), "{} {target}: {log}", module.name);
                assert_eq!(flaw(log), None, "{} {target}", module.name);
            }
        }
    }
}
