//! The table of the kernels' entry points.

use super::compile::images;
use super::driver::{Kernel, Types};
use super::params::*;

pub use images::{Binary, Code, Module, Source, compiler, flags, headers, modules};

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

/// The kernel of that name.
pub(crate) fn named(name: &str) -> Option<&'static Kernel> {
    KERNELS.iter().find(|kernel| kernel.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Entry points, block sizes and parameter sizes of the table are those of the PTX, and no kernel is missing from it.
    #[test]
    fn the_table_is_what_was_compiled() {
        if !images::compiled() {
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
}
