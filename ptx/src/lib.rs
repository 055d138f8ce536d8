//! An interpreter of PTX: runs the code that NVRTC emits for a CUDA kernel on any CPU, with every memory access checked.
//!
//! It is a reference for tests. The README lists the instructions and checks it covers.
//!
//! ```
//! use braid_ptx::{Launch, GlobalMemory, Module, run};
//!
//! let module = Module::parse(
//!     ".version 8.0 .target sm_80 .address_size 64
//!      .visible .entry twice(.param .u64 data) {
//!        .reg .b32 %r<3>; .reg .b64 %d<4>;
//!        ld.param.u64 %d1, [data];
//!        mov.u32 %r1, %tid.x;
//!        mul.wide.u32 %d2, %r1, 4;
//!        add.s64 %d3, %d1, %d2;
//!        ld.global.u32 %r2, [%d3];
//!        shl.b32 %r2, %r2, 1;
//!        st.global.u32 [%d3], %r2;
//!        ret;
//!      }",
//! )?;
//! let memory = GlobalMemory::new();
//! let data = memory.alloc(32 * 4);
//! memory.write(data, &[3, 0, 0, 0].repeat(32))?;
//! let counts = run(&module, "twice", &memory, &Launch::new([1, 1, 1], [32, 1, 1], &data.to_le_bytes()))?;
//! let mut out = [0; 4];
//! memory.read(data + 124, &mut out)?;
//! assert_eq!((out, counts.loads.sectors), ([6, 0, 0, 0], 4));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod arith;
mod asynchronous;
mod counts;
mod decode;
mod error;
mod exec;
mod instruction;
mod kernel;
mod lanes;
mod launch;
mod memory;
mod module;
mod operand;
mod parse;
mod run;
mod space;

pub use counts::{Banks, Counts, InstructionKind, Traffic};
pub use error::{Error, Fault, FaultKind, Hazard, MemorySpace, Result, Site, SourceLine};
pub use kernel::{Kernel, Param};
pub use launch::{Arithmetic, Launch, Schedule};
pub use memory::{GlobalMemory, Im2col, Swizzle, TENSOR_MAP_BYTES, TensorMap};
pub use module::Module;
pub use run::run;
