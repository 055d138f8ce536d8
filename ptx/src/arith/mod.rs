//! Scalar arithmetic as the GPU defines it.

mod convert;
mod float;
mod format;
mod hardware;
mod integer;
mod single;

pub(crate) use convert::{Conversion, ScalarType, convert, convert_pair, narrow_halves, narrow_pair, widen_pair};
pub(crate) use float::{FloatMode, FloatOp, binary_function, evaluate as evaluate_float, fused_function};
pub(crate) use format::{Format, Round, bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};
pub(crate) use hardware::{multiply, off_by};
pub(crate) use integer::{IntOp, evaluate as evaluate_integer, extend, immediate};
pub(crate) use single::{add_odd, canonical, canonical64, exp2, flush};
