//! Conversions: `cvt`.

use super::decoder::Decoder;
use super::float::rounding;
use super::opcode::{Decoded, Opcode};
use crate::arith::{
    Conversion, Format, Round, ScalarType, bf16_to_f32, canonical, convert, convert_pair, f16_to_f32, f32_to_bf16,
    f32_to_f16, narrow_halves, narrow_pair, widen_pair,
};
use crate::counts::InstructionKind;
use crate::instruction::{Op, Reg, Wide};
use crate::lanes::{Unary32, binary32, unary32, widened};
use crate::parse::Operand;

/// Takes the types and modifiers of a `cvt`; also whether it packs two results into one register.
fn conversion(op: &mut Opcode) -> Decoded<(Conversion, bool)> {
    let from = op.last()?;
    let to = op.last()?;
    let (packed, to) = match to {
        "f16x2" => (true, "f16"),
        "bf16x2" => (true, "bf16"),
        other => (false, other),
    };
    let Some(from) = ScalarType::parse(from) else { return Err(format!("cvt from .{from}")) };
    let Some(to) = ScalarType::parse(to) else { return Err(format!("cvt to .{to}")) };
    let integral = op.find(|m| match m {
        "rni" => Some(Round::Nearest),
        "rzi" => Some(Round::Zero),
        "rmi" => Some(Round::Down),
        "rpi" => Some(Round::Up),
        _ => None,
    });
    let round = op.find(rounding).or_else(|| op.take("rna").then_some(Round::Away));
    let conversion = Conversion {
        to,
        from,
        round: integral.or(round).unwrap_or(Round::Nearest),
        integral: integral.is_some(),
        ftz: op.take("ftz"),
        sat: op.take("sat"),
        relu: op.take("relu"),
    };
    op.done()?;
    Ok((conversion, packed))
}

/// The function of a common conversion without modifiers between types of up to 32 bits.
fn common(cvt: Conversion) -> Option<Unary32> {
    use ScalarType::{Float, Int};
    let near = cvt.round == Round::Nearest;
    Some(match (cvt.from, cvt.to) {
        (Float(Format::F16), Float(Format::F32)) => unary32!(|x| canonical(f16_to_f32(x))),
        (Float(Format::Bf16), Float(Format::F32)) => unary32!(|x| canonical(bf16_to_f32(x))),
        (Float(Format::F32), Float(Format::F16)) if near => unary32!(|x| f32_to_f16(f32::from_bits(x))),
        (Float(Format::F32), Float(Format::Bf16)) if near => unary32!(|x| f32_to_bf16(f32::from_bits(x))),
        (Int(32, true), Float(Format::F32)) if near => unary32!(|x| (x as i32 as f32).to_bits()),
        (Int(32, false), Float(Format::F32)) if near => unary32!(|x| (x as f32).to_bits()),
        (Int(8, false), Int(..)) => unary32!(|x| x & 0xff),
        (Int(16, false), Int(32, _)) => unary32!(|x| x & 0xffff),
        (Int(16 | 32, _), Int(16, _)) => unary32!(|x| x & 0xffff),
        (Int(32, _), Int(32, _)) => unary32!(|x| x),
        _ => return None,
    })
}

impl<'a> Decoder<'a> {
    /// Decodes `cvt`.
    pub fn cvt(&mut self, op: &mut Opcode<'a>, o: &[Operand<'a>]) -> Decoded {
        if op.modifiers.iter().any(|m| matches!(*m, "e4m3x2" | "e5m2x2")) {
            return self.cvt_bytes(op, o);
        }
        let (cvt, packed) = conversion(op)?;
        if packed {
            return self.cvt_pair(cvt, o);
        }
        let [d, a] = o else { return Err("cvt without two operands".to_owned()) };
        // A source register may be wider than its type, as in cvt.u16.u8 %rs, %r.
        let a = match a {
            Operand::Number(_) => self.src(a, cvt.from.bytes())?,
            _ => self.source(a)?,
        };
        let d = self.dst(d)?;
        let plain = !cvt.sat && !cvt.ftz && !cvt.relu && !cvt.integral;
        if plain
            && let (Reg::B32(d) | Reg::B16(d), Reg::B32(a) | Reg::B16(a)) = (d, a)
            && let Some(f) = common(cvt)
        {
            self.emit(Op::Unary32 { f, d, a }, InstructionKind::Convert);
            return Ok(());
        }
        let f = match (cvt.from, cvt.to) {
            (ScalarType::Int(32, false), ScalarType::Int(64, _)) if plain => widened!(|s, _imm| s[0] & 0xffff_ffff),
            (ScalarType::Int(32, true), ScalarType::Int(64, _)) if plain => {
                widened!(|s, _imm| i64::from(s[0] as i32) as u64)
            }
            (ScalarType::Int(64, _), ScalarType::Int(32 | 64, _)) if plain => widened!(|s, _imm| s[0]),
            _ => convert,
        };
        let s = [a, Reg::None, Reg::None, Reg::None];
        self.emit(Op::Wide(Box::new(Wide { f, d, s, imm: cvt.pack() })), InstructionKind::Convert);
        Ok(())
    }

    /// Decodes a conversion of pairs to or from 8-bit floats.
    fn cvt_bytes(&mut self, op: &mut Opcode<'a>, o: &[Operand<'a>]) -> Decoded {
        let (from, to) = (op.last()?, op.last()?);
        let known = op.take("rn") & (op.take("satfinite") || to == "f16x2");
        let imm = u32::from(from == "e5m2x2" || to == "e5m2x2") | u32::from(op.take("relu")) << 1;
        op.done()?;
        let none = Reg::None;
        let wide = match (to, from, o) {
            ("f16x2", "e4m3x2" | "e5m2x2", [d, a]) => {
                Wide { f: widen_pair, d: self.dst(d)?, s: [self.src(a, 2)?, none, none, none], imm }
            }
            ("e4m3x2" | "e5m2x2", "f16x2", [d, a]) => {
                Wide { f: narrow_halves, d: self.dst(d)?, s: [self.src(a, 4)?, none, none, none], imm }
            }
            ("e4m3x2" | "e5m2x2", "f32", [d, a, b]) => {
                Wide { f: narrow_pair, d: self.dst(d)?, s: [self.src(a, 4)?, self.src(b, 4)?, none, none], imm }
            }
            _ => return Err(format!("cvt from .{from} to .{to}")),
        };
        if !known {
            return Err(format!("cvt from .{from} to .{to} of that form"));
        }
        self.emit(Op::Wide(Box::new(wide)), InstructionKind::Convert);
        Ok(())
    }

    /// Decodes a conversion of two values to the halves of one register.
    fn cvt_pair(&mut self, cvt: Conversion, o: &[Operand<'a>]) -> Decoded {
        let [d, high, low] = o else { return Err("cvt to a pair without two sources".to_owned()) };
        let (d, a, b) = (self.dst32(d)?, self.src32(high)?, self.src32(low)?);
        if cvt.round == Round::Nearest && !cvt.relu && !cvt.sat && cvt.from == ScalarType::Float(Format::F32) {
            let f = match cvt.to {
                ScalarType::Float(Format::F16) => {
                    binary32!(|x, y| f32_to_f16(f32::from_bits(x)) << 16 | f32_to_f16(f32::from_bits(y)))
                }
                _ => binary32!(|x, y| f32_to_bf16(f32::from_bits(x)) << 16 | f32_to_bf16(f32::from_bits(y))),
            };
            self.emit(Op::Binary32 { f, d, a, b }, InstructionKind::Convert);
            return Ok(());
        }
        let s = [Reg::B32(a), Reg::B32(b), Reg::None, Reg::None];
        let wide = Wide { f: convert_pair, d: Reg::B32(d), s, imm: cvt.pack() };
        self.emit(Op::Wide(Box::new(wide)), InstructionKind::Convert);
        Ok(())
    }
}
