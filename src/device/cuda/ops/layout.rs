//! Changes of layout: uploaded weights, patches of images, transposition.

use super::kernel::{KernelFile, Pointer, blocks, kernel, param_structs, to_i32, to_i64};
use super::lowering::Lowering;
use crate::device::cuda::driver::kernel::{
    Kernel,
    Types::{All, Halves},
};
use crate::error::Result;
use crate::tensor::DType;

param_structs! {
    /// Parameters of `weights` and `phases`.
    WeightsParams: 40 {
        x: Pointer = 0,
        out: Pointer = 8,
        pitch: i64 = 16,
        n: i32 = 24,
        inputs: i32 = 28,
        taps: i32 = 32,
        reserved: i32 = 36,
    }

    /// Parameters of `patches`.
    PatchesParams: 48 {
        x: Pointer = 0,
        out: Pointer = 8,
        pitch: i64 = 16,
        images: i32 = 24,
        height: i32 = 28,
        width: i32 = 32,
        channels: i32 = 36,
        side: i32 = 40,
        reserved: i32 = 44,
    }

    /// Parameters of `transpose`.
    TransposeParams: 56 {
        x: Pointer = 0,
        out: Pointer = 8,
        x_stride: i64 = 16,
        x_image: i64 = 24,
        pitch: i64 = 32,
        out_image: i64 = 40,
        rows: i32 = 48,
        columns: i32 = 52,
    }
}

static WEIGHTS_FROM_F16: Kernel = kernel::<WeightsParams>("layout", "weights_from_f16", All, 256, 0);
static WEIGHTS_FROM_BF16: Kernel = kernel::<WeightsParams>("layout", "weights_from_bf16", All, 256, 0);
static WEIGHTS_FROM_F32: Kernel = kernel::<WeightsParams>("layout", "weights_from_f32", All, 256, 0);
static PHASES_FROM_F16: Kernel = kernel::<WeightsParams>("layout", "phases_from_f16", All, 256, 0);
static PHASES_FROM_BF16: Kernel = kernel::<WeightsParams>("layout", "phases_from_bf16", All, 256, 0);
static PHASES_FROM_F32: Kernel = kernel::<WeightsParams>("layout", "phases_from_f32", All, 256, 0);
static PATCHES: Kernel = kernel::<PatchesParams>("layout", "patches", Halves, 256, 0);
static TRANSPOSE: Kernel = kernel::<TransposeParams>("layout", "transpose", All, 256, 0);

/// The kernel file.
pub(crate) static FILE: KernelFile = KernelFile {
    kernels: &[
        &WEIGHTS_FROM_F16,
        &WEIGHTS_FROM_BF16,
        &WEIGHTS_FROM_F32,
        &PHASES_FROM_F16,
        &PHASES_FROM_BF16,
        &PHASES_FROM_F32,
        &PATCHES,
        &TRANSPOSE,
    ],
    structs: STRUCTS,
};

/// The kernel that lays out a matrix of that type.
pub(crate) fn weights_from(dtype: DType) -> &'static Kernel {
    match dtype {
        DType::F16 => &WEIGHTS_FROM_F16,
        DType::BF16 => &WEIGHTS_FROM_BF16,
        DType::F32 => &WEIGHTS_FROM_F32,
    }
}

/// The kernel that makes the four phase kernels of a convolution's kernel of that type.
pub(crate) fn phases_from(dtype: DType) -> &'static Kernel {
    match dtype {
        DType::F16 => &PHASES_FROM_F16,
        DType::BF16 => &PHASES_FROM_BF16,
        DType::F32 => &PHASES_FROM_F32,
    }
}

/// Cuts f32 images `[images, height, width, channels]` into patches of that side, a row of `pitch` elements each.
pub(super) fn patches(
    l: &mut Lowering<'_>,
    x: u64,
    [images, height, width, channels]: [usize; 4],
    side: usize,
    (to, pitch): (u64, usize),
) -> Result<()> {
    let params = PatchesParams {
        x: Pointer(x),
        out: Pointer(to),
        pitch: to_i64(pitch),
        images: to_i32(images),
        height: to_i32(height),
        width: to_i32(width),
        channels: to_i32(channels),
        side: to_i32(side),
        reserved: 0,
    };
    let count = images * (height / side) * (width / side) * pitch;
    l.launch(&PATCHES, [blocks(count, 256), 1, 1], params)
}

/// Transposes a matrix `[rows, columns]` of that stride to `[columns, pitch]`.
pub(super) fn transpose(
    l: &mut Lowering<'_>,
    (x, x_stride): (u64, usize),
    rows: usize,
    columns: usize,
    (to, pitch): (u64, usize),
) -> Result<()> {
    let params = TransposeParams {
        x: Pointer(x),
        out: Pointer(to),
        x_stride: to_i64(x_stride),
        x_image: 0,
        pitch: to_i64(pitch),
        out_image: 0,
        rows: to_i32(rows),
        columns: to_i32(columns),
    };
    l.launch(&TRANSPOSE, [blocks(pitch, 32), blocks(columns, 32), 1], params)
}
