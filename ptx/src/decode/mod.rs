//! Decoding: from the syntax tree to the table of instructions.

mod bulk;
mod compare;
mod control;
mod convert;
mod decoder;
mod float;
mod function;
mod hopper;
mod integer;
mod memory;
mod moves;
mod opcode;
mod operands;
mod warp;
mod wgmma;

pub(crate) use function::kernels;
