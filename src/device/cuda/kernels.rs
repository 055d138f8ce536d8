//! The kernels that the build embedded, and the table of their entry points.
//!
//! An entry point is called `NAME_f16`, `NAME_bf16` or `NAME_f32` and takes one struct of [`super::params`] by value.

use super::params::*;
use crate::tensor::DType;
use flate2::read::ZlibDecoder;
use std::io::Read;

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// A kernel file.
#[derive(Debug, Clone, Copy)]
pub struct Module {
    /// The file's name without its ending, e.g. `attention`.
    pub name: &'static str,
    /// Its text, to be compiled at run time where no binary serves.
    pub source: Source,
    /// What the build made of it.
    pub code: Code,
}

/// What a build embeds of a kernel file.
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
    /// `sm_80` and the like for a cubin, `compute_80` for PTX.
    pub target: &'static str,
    packed: &'static [u8],
    /// What compiler and assembler said: registers, shared memory, spills, warnings.
    pub log: &'static str,
}

impl Binary {
    /// The cubin, or the PTX as a C string, its terminator included.
    ///
    /// # Errors
    /// Where what the build embedded is damaged.
    pub fn unpack(&self) -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        ZlibDecoder::new(self.packed).read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

/// A kernel file as text.
#[derive(Debug, Clone, Copy)]
pub struct Source {
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
    /// The binary that a device of this compute capability runs: the cubin of its generation with the greatest minor number up
    /// to its own, `sm_90a` for 9.0 alone (it is not forward compatible), and PTX for every other from 8.0 on. `None` below
    /// 8.0 or where the source is embedded.
    pub fn binary(&self, (major, minor): (u32, u32)) -> Option<&'static Binary> {
        let Code::Compiled(binaries) = self.code else { return None };
        let fits = |binary: &&Binary| match (binary.target.strip_prefix("sm_"), binary.target) {
            (Some(number), _) => match (number.strip_suffix('a'), number.parse::<u32>()) {
                (Some(exact), _) => exact.parse() == Ok(major * 10 + minor),
                (None, Ok(number)) => number / 10 == major && number % 10 <= minor,
                _ => false,
            },
            _ => false,
        };
        let ptx = || binaries.iter().find(|binary| binary.target == "compute_80").filter(|_| major >= 8);
        binaries.iter().filter(fits).max_by_key(|binary| binary.target).or_else(ptx)
    }
}

/// The types for which a kernel exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Types {
    /// f16 and bf16.
    Halves,
    /// f32 alone.
    F32,
    /// All three.
    All,
}

impl Types {
    /// The types one by one.
    pub fn each(self) -> &'static [DType] {
        match self {
            Self::Halves => &[DType::F16, DType::BF16],
            Self::F32 => &[DType::F32],
            Self::All => &[DType::F16, DType::BF16, DType::F32],
        }
    }
}

/// A kernel.
#[derive(Debug, Clone, Copy)]
pub struct Kernel {
    /// The file that holds it.
    pub module: &'static str,
    /// Its name without the type.
    pub name: &'static str,
    /// Its types.
    pub types: Types,
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of dynamic shared memory of a block.
    pub shared: u32,
    /// Bytes of its parameter struct.
    pub params: usize,
}

impl Kernel {
    /// The name of its entry point.
    pub fn entry(&self, dtype: DType) -> String {
        format!("{}_{dtype}", self.name)
    }
}

const fn kernel<P>(module: &'static str, name: &'static str, types: Types, threads: u32, shared: u32) -> Kernel {
    Kernel { module, name, types, threads, shared, params: size_of::<P>() }
}

/// Bytes that a block of attention takes: Q and two stages of K and V, rows of `dim` and 8 of padding.
const fn flash(queries: u32, dim: u32) -> u32 {
    (queries + 4 * 64) * (dim + 8) * 2
}

/// Bytes that a block of a product takes: four stages of `m` and `n` rows of 64 bytes.
const fn product(m: u32, n: u32) -> u32 {
    4 * (m + n) * 64
}

/// Every kernel.
pub static KERNELS: &[Kernel] = &{
    use Types::*;
    [
        kernel::<AttentionParams>("attention", "attention_64", Halves, 128, flash(128, 64)),
        kernel::<AttentionParams>("attention", "attention_80", Halves, 128, flash(128, 80)),
        kernel::<AttentionParams>("attention", "attention_112", Halves, 128, flash(64, 112)),
        kernel::<DecoupledParams>("decoupled", "decoupled_64", Halves, 128, flash(64, 64)),
        kernel::<DecoupledParams>("decoupled", "decoupled_80", Halves, 128, flash(64, 80)),
        kernel::<DecoupledParams>("decoupled", "decoupled_112", Halves, 128, flash(64, 112)),
        kernel::<GemmParams>("gemm", "gemm_128x128", Halves, 128, product(128, 128)),
        kernel::<GemmParams>("gemm", "gemm_128x64", All, 128, product(128, 64)),
        kernel::<GemmParams>("gemm", "gemm_64x64", All, 128, product(64, 64)),
        kernel::<GemmParams>("gemm", "gemm_geglu_128x128", Halves, 128, product(128, 128)),
        kernel::<GemmParams>("gemm", "gemm_geglu_64x64", Halves, 128, product(64, 64)),
        kernel::<ConvolutionParams>("convolution", "convolution_128x128", Halves, 128, product(128, 128)),
        kernel::<ConvolutionParams>("convolution", "convolution_128x64", All, 128, product(128, 64)),
        kernel::<ConvolutionParams>("convolution", "convolution_64x64", All, 128, product(64, 64)),
        kernel::<NarrowParams>("convolution_narrow", "convolution_few_in", All, 128, 0),
        kernel::<NarrowParams>("convolution_narrow", "convolution_few_out_4", All, 128, 0),
        kernel::<NarrowParams>("convolution_narrow", "convolution_few_out_8", All, 128, 0),
        kernel::<GroupNormParams>("group_norm", "group_norm_moments", All, 256, 0),
        kernel::<GroupNormParams>("group_norm", "group_norm_lines", F32, 256, 0),
        kernel::<GroupNormParams>("group_norm", "group_norm_apply", All, 256, 0),
        kernel::<LayerNormParams>("layer_norm", "layer_norm", Halves, 256, 0),
        kernel::<SoftmaxParams>("softmax_rows", "softmax_rows", All, 256, 0),
        kernel::<UnaryParams>("pointwise", "silu", Halves, 256, 0),
        kernel::<UnaryParams>("pointwise", "gelu", Halves, 256, 0),
        kernel::<UnaryParams>("pointwise", "quick_gelu", Halves, 256, 0),
        kernel::<UnaryParams>("pointwise", "scale_shift", All, 256, 0),
        kernel::<UnaryParams>("pointwise", "from_f32", All, 256, 0),
        kernel::<UnaryParams>("pointwise", "to_f32", All, 256, 0),
        kernel::<GegluParams>("pointwise", "geglu", Halves, 256, 0),
        kernel::<AddParams>("pointwise", "add", All, 256, 0),
        kernel::<ConcatParams>("pointwise", "concat", Halves, 256, 0),
        kernel::<UpsampleParams>("pointwise", "upsample", Halves, 256, 0),
        kernel::<SinusoidParams>("pointwise", "sinusoid", Halves, 256, 0),
        kernel::<EmbedParams>("pointwise", "embed", Halves, 256, 0),
        kernel::<ClassTokenParams>("pointwise", "class_token", Halves, 256, 0),
        kernel::<TakeRowParams>("pointwise", "take_row", Halves, 256, 0),
        kernel::<WeightsParams>("layout", "weights_from_f16", All, 256, 0),
        kernel::<WeightsParams>("layout", "weights_from_bf16", All, 256, 0),
        kernel::<WeightsParams>("layout", "weights_from_f32", All, 256, 0),
        kernel::<WeightsParams>("layout", "phases_from_f16", All, 256, 0),
        kernel::<WeightsParams>("layout", "phases_from_bf16", All, 256, 0),
        kernel::<WeightsParams>("layout", "phases_from_f32", All, 256, 0),
        kernel::<PatchesParams>("layout", "patches", Halves, 256, 0),
        kernel::<TransposeParams>("layout", "transpose", All, 256, 0),
        kernel::<ModelInputParams>("step", "model_input", Halves, 256, 0),
        kernel::<StepParams>("step", "guidance_moments", F32, 256, 0),
        kernel::<StepParams>("step", "step", F32, 256, 0),
        kernel::<AdvanceParams>("step", "step_advance", F32, 1, 0),
        kernel::<Rgb8Params>("step", "rgb8", F32, 256, 0),
        kernel::<FiniteParams>("step", "finite", All, 256, 0),
    ]
};

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    static FAKE: [Binary; 5] = {
        const fn binary(target: &'static str) -> Binary {
            Binary { target, packed: &[], log: "" }
        }
        [binary("sm_80"), binary("sm_86"), binary("sm_89"), binary("sm_90a"), binary("compute_80")]
    };

    fn compiled() -> bool {
        if compiler().is_none() {
            let thread = std::thread::current();
            let name = thread.name().unwrap_or("a test");
            let _ = writeln!(std::io::stderr(), "{name}: skipped: no NVRTC when this was built");
        }
        compiler().is_some()
    }

    #[test]
    fn a_device_gets_the_binary_of_its_generation() {
        let module = Module { name: "m", source: Source { name: "m.cu", text: "" }, code: Code::Compiled(&FAKE) };
        let target = |major, minor| module.binary((major, minor)).map(|binary| binary.target);
        assert_eq!(target(7, 5), None);
        assert_eq!(target(8, 0), Some("sm_80"));
        assert_eq!(target(8, 6), Some("sm_86"));
        assert_eq!(target(8, 7), Some("sm_86"));
        assert_eq!(target(8, 9), Some("sm_89"));
        assert_eq!(target(9, 0), Some("sm_90a"));
        assert_eq!(target(10, 0), Some("compute_80"));
        assert_eq!(target(12, 1), Some("compute_80"));
        let source = Module { code: Code::Source, ..module };
        assert!(source.binary((9, 0)).is_none());
    }

    /// Entry points, block sizes and parameter sizes of the table are those of the PTX, and no kernel is missing from it.
    #[test]
    fn the_table_is_what_was_compiled() {
        if !compiled() {
            return;
        }
        let mut found = 0;
        for module in modules() {
            let ptx = String::from_utf8(module.binary((10, 0)).unwrap().unpack().unwrap()).unwrap();
            let mut table: Vec<(String, &Kernel)> = KERNELS
                .iter()
                .filter(|kernel| kernel.module == module.name)
                .flat_map(|kernel| kernel.types.each().iter().map(move |&dtype| (kernel.entry(dtype), kernel)))
                .collect();
            for entry in ptx.split(".visible .entry ").skip(1) {
                let name = entry.split('(').next().unwrap().trim();
                let at = table.iter().position(|(known, _)| known == name).unwrap_or_else(|| panic!("{name}"));
                let (_, kernel) = table.swap_remove(at);
                let number = |before: &str| {
                    let digits = entry.split(before).nth(1).unwrap_or_else(|| panic!("{name}: {before}"));
                    digits.split(|c: char| !c.is_ascii_digit()).find(|d| !d.is_empty()).unwrap().parse::<u32>().unwrap()
                };
                assert_eq!(number("_param_0["), kernel.params as u32, "{name}: bytes of parameters");
                assert_eq!(number(".maxntid"), kernel.threads, "{name}: threads");
                assert!(kernel.shared <= 99 * 1024, "{name}: a block has 99 KiB on sm_86 and sm_89");
                found += 1;
            }
            assert!(table.is_empty(), "{}: not compiled: {table:?}", module.name);
        }
        assert_eq!(found, KERNELS.iter().map(|kernel| kernel.types.each().len()).sum::<usize>());
    }

    /// No kernel spills and neither compiler nor assembler warns, on any architecture.
    #[test]
    fn nothing_spills_and_nobody_warns() {
        if !compiled() {
            return;
        }
        for module in modules() {
            let Code::Compiled(binaries) = module.code else { continue };
            for Binary { target, log, .. } in binaries {
                assert!(!log.contains("warning") && !log.contains("error"), "{} {target}: {log}", module.name);
                for line in log.lines().filter(|line| line.contains("spill")) {
                    let clean = line.contains("0 bytes spill stores, 0 bytes spill loads");
                    assert!(clean, "{} {target}: {line}", module.name);
                }
            }
        }
    }
}
