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
                self.branch_to(self.labels_in_sight(label));
            }
            "brx" => self.indexed_branch(op, o)?,
            "ret" | "exit" => {
                op.take("uni");
                op.done()?;
                match end {
                    Some(end) if op.base == "ret" => self.branch_to(vec![end.to_owned()]),
                    _ => self.emit(Op::Exit, InstructionKind::Branch),
                }
            }
            "trap" => self.emit(Op::Trap, InstructionKind::Other),
            "cp" if op.modifiers.contains(&"prefetch") => self.emit(Op::Nop, InstructionKind::AsyncCopy),
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
        let tables = self.labels_in_sight(table);
        let Some(names) = tables.iter().find_map(|table| self.tables.get(table)).cloned() else {
            return Err("brx.idx with a table that is declared later".to_owned());
        };
        self.branch_table(index, &names);
        Ok(())
    }
}
