//! Tensor maps by the driver.

use super::context::Context;
use crate::device::cuda::driver::tensor_map::{Swizzle, TensorMap, TensorMapDesc, TensorMapMode};
use crate::error::Result;
use crate::tensor::DType;
use ::cudarc::driver::sys;
use sys::{CUtensorMapDataType as Kind, CUtensorMapSwizzle as Pattern};

/// The last version whose driver sets a bit too many in the maps of small tensors: CUDA 13.1.
const LAST_WITH_BIT: i32 = 13_010;
/// Bytes of a tensor from which on it does not.
const SMALL: u64 = 128 << 10;
/// The bit, in the map's second word. NVIDIA's CUTLASS takes it out likewise.
const BIT: u64 = 1 << 21;

/// Encodes a map.
///
/// # Errors
/// Those of [`TensorMapDesc::check`] and of the driver.
pub(crate) fn encode(gpu: &Context, map: &TensorMapDesc) -> Result<TensorMap> {
    map.check()?;
    let kind = match map.dtype {
        DType::F32 => Kind::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
        DType::F16 => Kind::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        DType::BF16 => Kind::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
    };
    let swizzle = match map.swizzle {
        Swizzle::None => Pattern::CU_TENSOR_MAP_SWIZZLE_NONE,
        Swizzle::Bytes32 => Pattern::CU_TENSOR_MAP_SWIZZLE_32B,
        Swizzle::Bytes64 => Pattern::CU_TENSOR_MAP_SWIZZLE_64B,
        Swizzle::Bytes128 => Pattern::CU_TENSOR_MAP_SWIZZLE_128B,
    };
    let interleave = sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE;
    let promotion = sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_128B;
    let fill = sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE;
    let (rank, address) = (map.dims.len() as u32, map.address as *mut std::ffi::c_void);
    let (dims, strides, steps) = (map.dims.as_ptr(), map.strides.as_ptr(), map.element_strides.as_ptr());
    let mut made = sys::CUtensorMap { opaque: [0; 16] };
    match &map.mode {
        TensorMapMode::Tiled(tile) => {
            // SAFETY: the arrays have as many elements as the rank says, of strides one less, which was checked above; the address
            // is not accessed. Writes one map.
            let encoded = unsafe {
                let tile = tile.as_ptr();
                gpu.cuda.cuTensorMapEncodeTiled(
                    &mut made, kind, rank, address, dims, strides, tile, steps, interleave, swizzle, promotion, fill,
                )
            };
            gpu.check("cuTensorMapEncodeTiled", encoded)?;
        }
        TensorMapMode::Im2col { lower, upper, channels, pixels } => {
            let (lower, upper) = (lower.as_ptr(), upper.as_ptr());
            // SAFETY: as above; the corners have an element for each dimension between the first and the last one.
            let encoded = unsafe {
                gpu.cuda.cuTensorMapEncodeIm2col(
                    &mut made, kind, rank, address, dims, strides, lower, upper, *channels, *pixels, steps, interleave,
                    swizzle, promotion, fill,
                )
            };
            gpu.check("cuTensorMapEncodeIm2col", encoded)?;
        }
    }
    if gpu.driver_version <= LAST_WITH_BIT && map.span() < SMALL {
        made.opaque[1] &= !BIT;
    }
    Ok(TensorMap(made.opaque))
}
