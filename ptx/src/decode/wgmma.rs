//! `wgmma`.

use super::decoder::Decoder;
use super::hopper::integer;
use super::opcode::{Decoded, Opcode};
use crate::asynchronous::Wgmma;
use crate::counts::InstructionKind;
use crate::instruction::{ElementType, Op};
use crate::parse::{Number, Operand};

/// Columns, depth, element type, and whether the accumulators are halves; `None` where there is no such product.
fn shape(op: &mut Opcode) -> Option<(u16, u8, ElementType, bool)> {
    let (n, k) = op.find(|m| {
        let (n, k) = m.strip_prefix("m64n")?.split_once('k')?;
        Some((n.parse::<u16>().ok()?, k.parse::<u8>().ok()?))
    })?;
    let types = std::mem::take(&mut op.modifiers);
    let [d, a, b] = types.as_slice() else { return None };
    let elem = match *a {
        "f16" => ElementType::F16,
        "bf16" => ElementType::Bf16,
        "tf32" => ElementType::Tf32,
        "e4m3" => ElementType::E4m3,
        "e5m2" => ElementType::E5m2,
        _ => return None,
    };
    let half = *d == "f16";
    let fits = u64::from(k) * elem.bytes() == 32 && n.is_multiple_of(8) && (8..=256).contains(&n);
    (a == b && fits && (half || *d == "f32")).then_some((n, k, elem, half))
}

/// The signs of A and B and, of 16-bit types, the orders of A, unless it is in registers, and of B.
fn flags(rest: &[Operand], registers: bool, elem: ElementType) -> Option<([bool; 2], [bool; 2])> {
    let number = |r: &Operand| match r {
        Operand::Number(Number::Int(v)) => Some(*v as i64),
        _ => None,
    };
    let flags = rest.iter().map(number).collect::<Option<Vec<_>>>()?;
    let (signs, orders) = flags.split_at(flags.len().min(2));
    let transpose = match (orders, registers) {
        ([], _) => [false; 2],
        ([b], true) => [false, *b == 1],
        ([a, b], false) => [*a == 1, *b == 1],
        _ => return None,
    };
    let signed = signs.len() == 2 && signs.iter().all(|s| s.abs() == 1);
    (signed && (transpose == [false; 2] || elem.bytes() == 2)).then(|| ([signs[0] == -1, signs[1] == -1], transpose))
}

impl<'a> Decoder<'a> {
    /// Decodes a product, its fence, or the commit or wait of groups.
    pub(super) fn wgmma(&mut self, op: &mut Opcode<'a>, o: &[Operand<'a>]) -> Decoded {
        if !(op.take("sync") & op.take("aligned")) {
            return Err("wgmma without .sync.aligned".to_owned());
        }
        let plain = if op.take("fence") {
            Op::WgmmaFence
        } else if op.take("commit_group") {
            Op::WgmmaCommit
        } else if op.take("wait_group") {
            Op::WgmmaWait { left: integer(o.first().ok_or("wgmma.wait_group without a number")?)? }
        } else if op.take("mma_async") {
            return self.product(op, o);
        } else {
            return Err("wgmma of that form".to_owned());
        };
        op.done()?;
        self.emit(plain, InstructionKind::Mma);
        Ok(())
    }

    fn product(&mut self, op: &mut Opcode<'a>, o: &[Operand<'a>]) -> Decoded {
        let all = op.modifiers.join(".");
        let (n, k, elem, half) = shape(op).ok_or_else(|| format!("wgmma of .{all}"))?;
        let [d, a, b, add, rest @ ..] = o else { return Err("wgmma with too few operands".to_owned()) };
        let mut to = Vec::new();
        for element in self.elements(d).to_vec() {
            to.push(self.dst32(&element)?);
        }
        let registers = usize::from(n) / if half { 4 } else { 2 };
        if to.len() != registers {
            return Err(format!("{} accumulators where {registers} are expected", to.len()));
        }
        let a = match a {
            Operand::Vector(list) => {
                let mut regs = Vec::new();
                for element in list {
                    regs.push(self.src32(element)?);
                }
                if regs.len() != 4 {
                    return Err(format!("A in {} registers where 4 are expected", regs.len()));
                }
                Ok(regs)
            }
            descriptor => Err(self.src64(descriptor)?),
        };
        let (b, add) = (self.src64(b)?, self.pred(add)?);
        let (negate, transpose) = flags(rest, a.is_ok(), elem).ok_or("wgmma with other signs or orders")?;
        self.emit(
            Op::Wgmma(Box::new(Wgmma { n, k, elem, half, d: to, a, b, add, negate, transpose })),
            InstructionKind::Mma,
        );
        Ok(())
    }
}
