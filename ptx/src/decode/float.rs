//! Floating-point arithmetic.
//!
//! f32 operations that round to nearest have functions of their own; every other type and mode goes through one function that
//! computes in f64, rounded to odd where that matters, and rounds once more to the type.

use super::decoder::Decoder;
use super::opcode::{Decoded, Opcode};
use crate::arith::{
    FloatMode, FloatOp, Format, Round, binary_function, canonical, evaluate_float, exp2, flush, fused_function,
};
use crate::counts::InstructionKind;
use crate::instruction::{Op, Reg, Wide};
use crate::lanes::{Unary32, unary32};
use crate::parse::{Operand, type_bytes};

/// The operation of an opcode, and its number of sources.
fn operation(base: &str) -> Option<(FloatOp, usize)> {
    Some(match base {
        "add" => (FloatOp::Add, 2),
        "sub" => (FloatOp::Sub, 2),
        "mul" => (FloatOp::Mul, 2),
        "fma" | "mad" => (FloatOp::Fma, 3),
        "div" => (FloatOp::Div, 2),
        "min" => (FloatOp::Min, 2),
        "max" => (FloatOp::Max, 2),
        "abs" => (FloatOp::Abs, 1),
        "neg" => (FloatOp::Neg, 1),
        "rcp" => (FloatOp::Rcp, 1),
        "sqrt" => (FloatOp::Sqrt, 1),
        "rsqrt" => (FloatOp::Rsqrt, 1),
        "ex2" => (FloatOp::Ex2, 1),
        "lg2" => (FloatOp::Lg2, 1),
        "sin" => (FloatOp::Sin, 1),
        "cos" => (FloatOp::Cos, 1),
        "tanh" => (FloatOp::Tanh, 1),
        "copysign" => (FloatOp::Copysign, 2),
        _ => return None,
    })
}

/// The format of a type, and whether a register holds two values.
fn float_type(ty: &str) -> Option<(Format, bool)> {
    Some(match ty {
        "f16" => (Format::F16, false),
        "f16x2" => (Format::F16, true),
        "bf16" => (Format::Bf16, false),
        "bf16x2" => (Format::Bf16, true),
        "f32" => (Format::F32, false),
        "f64" => (Format::F64, false),
        _ => return None,
    })
}

/// The rounding mode of a modifier of arithmetic.
pub(super) fn rounding(m: &str) -> Option<Round> {
    Some(match m {
        "rn" => Round::Nearest,
        "rz" => Round::Zero,
        "rm" => Round::Down,
        "rp" => Round::Up,
        _ => return None,
    })
}

impl<'a> Decoder<'a> {
    /// Decodes an instruction of this family; `false` if the opcode is of another.
    pub fn decode_float(&mut self, op: &mut Opcode<'a>, o: &[Operand<'a>]) -> Decoded<bool> {
        let Some((which, sources)) = operation(op.base) else { return Ok(false) };
        let Some((format, x2)) = op.find(float_type) else { return Ok(false) };
        let round = op.find(rounding);
        let approx = op.take("approx") | op.take("full");
        let mode = FloatMode {
            op: which,
            format,
            x2,
            round: round.unwrap_or(Round::Nearest),
            ftz: op.take("ftz"),
            sat: op.take("sat"),
            relu: op.take("relu"),
            nan: op.take("NaN"),
        };
        op.done()?;
        if o.len() != sources + 1 {
            return Err(format!("`{}` with {} operands", op.base, o.len()));
        }
        let plain = matches!(which, FloatOp::Add | FloatOp::Sub | FloatOp::Mul | FloatOp::Fma) && format != Format::F64;
        if mode.round != Round::Nearest && !plain {
            return Err(format!("`{}` of that type in a directed rounding", op.base));
        }
        let special = which as u8 >= FloatOp::Rcp as u8 && which != FloatOp::Copysign;
        let kind = match (special || which == FloatOp::Div, format) {
            (true, _) => InstructionKind::SpecialFunction,
            (_, Format::F32 | Format::F64) => InstructionKind::Float,
            _ => InstructionKind::Half,
        };
        if special && round.is_none() && !approx {
            return Err(format!("`{}` without .approx or a rounding", op.base));
        }
        if format == Format::F32 && mode.round == Round::Nearest && self.float32(mode, round.is_none(), o, kind)? {
            return Ok(true);
        }
        let bytes = if x2 { 4 } else { type_bytes(format_name(format)).unwrap_or(4) };
        let mut s = [Reg::None; 4];
        for (i, slot) in s.iter_mut().enumerate().take(sources) {
            *slot = self.src(&o[i + 1], bytes)?;
        }
        let d = self.dst(&o[0])?;
        self.emit(Op::Wide(Box::new(Wide { f: evaluate_float, d, s, imm: mode.pack() })), kind);
        Ok(true)
    }

    /// Decodes f32 operations that round to nearest, or are approximations where that is not demanded.
    fn float32(
        &mut self,
        mode: FloatMode,
        approximate: bool,
        o: &[Operand<'a>],
        kind: InstructionKind,
    ) -> Decoded<bool> {
        if mode.relu || mode.nan {
            return Ok(false);
        }
        if let Some(f) = binary_function(mode.op, mode.ftz, mode.sat) {
            let (d, a, b) = (self.dst32(&o[0])?, self.src32(&o[1])?, self.src32(&o[2])?);
            self.emit(Op::Binary32 { f, d, a, b }, kind);
            return Ok(true);
        }
        let f: Unary32 = match (mode.op, mode.ftz) {
            (FloatOp::Fma, _) => {
                let f = fused_function(mode.ftz, mode.sat);
                let (d, a, b, c) = (self.dst32(&o[0])?, self.src32(&o[1])?, self.src32(&o[2])?, self.src32(&o[3])?);
                self.emit(Op::Ternary32 { f, d, a, b, c }, kind);
                return Ok(true);
            }
            (FloatOp::Abs, false) => unary32!(|x| x & 0x7fff_ffff),
            (FloatOp::Neg, false) => unary32!(|x| x ^ 0x8000_0000),
            (FloatOp::Ex2, false) => unary32!(|x| canonical(exp2(f32::from_bits(x)))),
            (FloatOp::Ex2, true) => unary32!(|x| flush(canonical(exp2(f32::from_bits(flush(x)))))),
            (FloatOp::Rcp, false) => unary32!(|x| canonical(1.0 / f32::from_bits(x))),
            (FloatOp::Rcp, true) => unary32!(|x| flush(canonical(1.0 / f32::from_bits(flush(x))))),
            (FloatOp::Sqrt, false) => unary32!(|x| canonical(f32::from_bits(x).sqrt())),
            (FloatOp::Sqrt, true) => unary32!(|x| flush(canonical(f32::from_bits(flush(x)).sqrt()))),
            _ => return Ok(false),
        };
        if mode.sat {
            return Ok(false);
        }
        let (d, a) = (self.dst32(&o[0])?, self.src32(&o[1])?);
        // The errors that the manual allows.
        self.emit(
            match mode.op {
                FloatOp::Ex2 => Op::Approx32 { f, d, a, units: 2 },
                FloatOp::Rcp if approximate => Op::Approx32 { f, d, a, units: 1 },
                _ => Op::Unary32 { f, d, a },
            },
            kind,
        );
        Ok(true)
    }
}

/// The type of the registers of a format.
fn format_name(format: Format) -> &'static str {
    match format {
        // Nothing computes in types of 8 bits.
        Format::E4m3 | Format::E5m2 => "b8",
        Format::F16 => "f16",
        Format::Bf16 => "bf16",
        Format::Tf32 | Format::F32 => "f32",
        Format::F64 => "f64",
    }
}
