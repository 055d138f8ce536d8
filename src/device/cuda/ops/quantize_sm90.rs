//! Rows of values rounded to e4m3, each with a scale of its own, on sm_90a: the operands of products in FP8.

use super::kernel::{KernelFile, Pointer, Quantized, blocks, kernel, param_structs, to_i32};
use super::lowering::Lowering;
use crate::device::cuda::driver::kernel::{Kernel, Types::All};
use crate::error::Result;
use crate::graph::ImplicitGemm;

param_structs! {
    /// Parameters of `quantize_rows`.
    QuantizeParams: 32 {
        x: Pointer = 0,
        out: Pointer = 8,
        scales: Pointer = 16,
        rows: i32 = 24,
        columns: i32 = 28,
    }
}

/// Rounds rows to e4m3.
pub(crate) static QUANTIZE_ROWS: Kernel = kernel::<QuantizeParams>("quantize_sm90", "quantize_rows", All, 256, 0);

/// The kernel file.
pub(crate) static FILE: KernelFile = KernelFile { kernels: &[&QUANTIZE_ROWS], structs: STRUCTS };

/// The parameters and the grid for rows of such a type at an address.
pub(crate) fn params(x: u64, to: Quantized, [rows, columns]: [usize; 2]) -> (QuantizeParams, [u32; 3]) {
    let (out, scales) = (Pointer(to.at), Pointer(to.scales));
    let params = QuantizeParams { x: Pointer(x), out, scales, rows: to_i32(rows), columns: to_i32(columns) };
    (params, [blocks(rows, 8), 1, 1])
}

/// Whether a product's operands are rounded to e4m3: where the device does that, of layers that may be, and of sums of `k` values, the
/// channels of a tap, whose rows a tensor map takes.
pub(super) fn takes(l: &Lowering<'_>, gemm: ImplicitGemm<'_>, k: usize) -> bool {
    l.options.fp8 && !l.is_f32() && k.is_multiple_of(16) && gemm.parts.iter().all(|part| part.quantizable)
}

/// Rounds rows in scratch memory.
///
/// # Errors
/// [`crate::Error::Graph`] where the kernel does not take them.
pub(super) fn quantized(l: &mut Lowering<'_>, x: u64, [rows, columns]: [usize; 2]) -> Result<Quantized> {
    let to = Quantized { at: l.scratch(rows * columns), scales: l.scratch(rows * size_of::<f32>()) };
    let (params, grid) = params(x, to, [rows, columns]);
    l.launch(&QUANTIZE_ROWS, grid, params)?;
    Ok(to)
}
