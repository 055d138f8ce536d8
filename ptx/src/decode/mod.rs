//! Decoding: from the syntax tree to the table of instructions.

mod compare;
mod control;
mod convert;
mod decoder;
mod float;
mod function;
mod integer;
mod memory;
mod moves;
mod opcode;
mod operands;
mod warp;

pub(crate) use function::kernels;
