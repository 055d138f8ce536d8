//! Control flow: branches, returns, traps, and instructions without an effect here.

use super::decoder::Decoder;
use super::opcode::{Decoded, Opcode};
use crate::counts::InstructionKind;
use crate::instruction::Op;
use crate::parse::Operand;

impl<'a> Decoder<'a> {
    /// Decodes control flow; `end` is the label that a `ret` of an inlined body branches to.
    pub fn decode_control(&mut self, op: &mut Opcode<'a>, o: &[Operand<'a>], end: Option<&str>) -> Decoded<bool> {
        match op.base {
            "bra" => {
                op.take("uni");
                op.done()?;
                let [Operand::Name(label)] = o else { return Err("bra without a label".to_owned()) };
                let label = self.label(label);
                self.branch_to(label);
            }
            "brx" => self.indexed_branch(op, o)?,
            "ret" | "exit" => {
                op.take("uni");
                op.done()?;
                match end {
                    Some(end) if op.base == "ret" => self.branch_to(end.to_owned()),
                    _ => self.emit(Op::Exit, InstructionKind::Branch),
                }
            }
            "trap" => self.emit(Op::Trap, InstructionKind::Other),
            "brkpt" | "nanosleep" | "prefetch" | "prefetchu" | "pmevent" => self.emit(Op::Nop, InstructionKind::Other),
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn indexed_branch(&mut self, op: &mut Opcode<'a>, o: &[Operand<'a>]) -> Decoded {
        op.take("idx");
        op.take("uni");
        op.done()?;
        let [index, Operand::Name(table)] = o else { return Err("brx without a table".to_owned()) };
        let index = self.src32(index)?;
        let Some(names) = self.tables.get(&self.label(table)).cloned() else {
            return Err("brx.idx with a table that is declared later".to_owned());
        };
        self.branch_table(index, &names);
        Ok(())
    }
}
