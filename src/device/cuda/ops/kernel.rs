//! Common parts of the files of operations: rows of the kernel table, parameter structs, grids.

use crate::device::cuda::driver::kernel::{Kernel, Types};
use bytemuck::{Pod, Zeroable};

/// An address on the device; 0 is null.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Pod, Zeroable)]
#[repr(transparent)]
pub struct Pointer(pub u64);

/// A matrix of e4m3 by rows without gaps, of which each has a factor.
#[derive(Debug, Clone, Copy)]
pub struct Quantized {
    /// Its address, a multiple of 16.
    pub at: u64,
    /// The address of the factors.
    pub scales: u64,
}

/// A kernel file: its entry points, and the structs that they take.
#[derive(Debug)]
pub struct KernelFile {
    /// Its kernels.
    pub kernels: &'static [&'static Kernel],
    /// Its parameter structs and those that they hold.
    pub structs: &'static [ParamStruct],
}

/// A struct of the kernels, for comparison with its declaration there.
#[derive(Debug)]
pub struct ParamStruct {
    /// Its name.
    pub name: &'static str,
    /// Its bytes.
    pub size: usize,
    /// Name, type and offset of each field.
    pub fields: &'static [(&'static str, &'static str, usize)],
}

/// Defines the mirrors of a kernel file's structs, and `STRUCTS`, their list.
///
/// No struct has padding (its `Pod` proves it), every offset is asserted at compile time against the number written with the
/// field, and a test reads the declarations in `kernels/` and compares names, order, types and offsets.
macro_rules! param_structs {
    ($($(#[doc = $doc:literal])* $name:ident: $size:literal { $($(#[doc = $about:literal])* $field:ident: $type:ty = $offset:literal,)* })*) => {
        $(
            $(#[doc = $doc])*
            #[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
            #[repr(C)]
            #[allow(missing_docs)] // The kernel's file explains them, once.
            pub struct $name {
                $($(#[doc = $about])* pub $field: $type,)*
            }

            const _: () = {
                assert!(size_of::<$name>() == $size);
                $(assert!(std::mem::offset_of!($name, $field) == $offset);)*
            };

            impl Default for $name {
                /// All zero: null pointers, nothing to do.
                fn default() -> Self {
                    bytemuck::Zeroable::zeroed()
                }
            }
        )*

        /// The structs of this file.
        pub(crate) const STRUCTS: &[$crate::device::cuda::ops::kernel::ParamStruct] = &[
            $($crate::device::cuda::ops::kernel::ParamStruct {
                name: stringify!($name),
                size: $size,
                fields: &[$((stringify!($field), stringify!($type), $offset),)*],
            },)*
        ];
    };
}
pub(crate) use param_structs;

/// A row of the kernel table. `P` is its parameter struct, `shared` bytes of dynamic shared memory of a block.
pub(crate) const fn kernel<P>(
    module: &'static str,
    name: &'static str,
    types: Types,
    threads: u32,
    shared: u32,
) -> Kernel {
    Kernel { module, name, types, threads, shared, params: size_of::<P>() }
}

/// The number of blocks of `size` that cover `count`.
pub fn blocks(count: usize, size: usize) -> u32 {
    u32::try_from(count.div_ceil(size)).unwrap_or(u32::MAX)
}

/// A count as a kernel takes it; the lowering has checked that it fits.
pub(crate) fn to_i32(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

/// A count or stride of 64 bits.
pub(crate) fn to_i64(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
