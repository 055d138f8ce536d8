//! Declarations of variables, with their initial values.

use super::number::number;
use super::parser::Parser;
use super::tree::{Number, Variable, type_bytes};
use crate::error::Result;

impl<'a> Parser<'a> {
    /// Parses `.space [.align n] .type name[n] [= ...] {, name}`.
    pub fn variables(&mut self) -> Result<Vec<Variable<'a>>> {
        let space = self.next()?.trim_start_matches('.');
        let (mut align, mut vector, mut ty, mut pointer) = (None, 1, None, false);
        while self.peek().starts_with('.') {
            match self.next()? {
                ".align" => {
                    let value = self.index()?.max(1);
                    // After .ptr it is that of what the pointer points at.
                    if !pointer {
                        align = Some(value);
                    }
                }
                ".ptr" => pointer = true,
                ".global" | ".const" | ".shared" | ".local" | ".attribute" => {
                    if self.eat("(") {
                        while self.next()? != ")" {}
                    }
                }
                ".v2" => vector = 2,
                ".v4" => vector = 4,
                other => ty = Some(&other[1..]),
            }
        }
        let Some(ty) = ty else { return self.fail("a variable without a type") };
        let Some(element) = type_bytes(ty) else { return self.fail(format!("variables of type .{ty} are not known")) };
        let mut list = Vec::new();
        loop {
            let name = self.next()?;
            let mut count = u64::from(vector as u32);
            while self.eat("[") {
                let dim = if self.peek() == "]" { 0 } else { u64::from(self.index()?) };
                count = count.saturating_mul(dim);
                self.expect("]")?;
            }
            let bytes = count.saturating_mul(element);
            let mut variable = Variable {
                space,
                name,
                bytes,
                align: align.map_or(element * u64::from(vector as u32), u64::from),
                init: None,
            };
            if self.eat("=") {
                let mut init = Vec::new();
                self.initialiser(element as usize, &mut init)?;
                if variable.bytes == 0 {
                    variable.bytes = init.len() as u64;
                }
                if init.len() as u64 > variable.bytes {
                    return self.fail(format!("{name} has more initial values than elements"));
                }
                init.resize(variable.bytes as usize, 0);
                variable.init = Some(init);
            }
            list.push(variable);
            // In a parameter list the comma is the list's.
            if space == "param" || !self.eat(",") {
                return Ok(list);
            }
        }
    }

    /// Parses an initial value, nested braces included, into bytes.
    fn initialiser(&mut self, element: usize, out: &mut Vec<u8>) -> Result<()> {
        if self.eat("{") {
            if self.depth == 8 {
                return self.fail("initial values nested too deeply");
            }
            self.depth += 1;
            loop {
                self.initialiser(element, out)?;
                if !self.eat(",") {
                    self.depth -= 1;
                    return self.expect("}");
                }
            }
        }
        let negative = self.eat("-");
        let value = match number(self.next()?) {
            Some(Number::Int(value)) => (if negative { -value } else { value }) as u64,
            Some(Number::F32(bits)) => u64::from(bits),
            Some(Number::F64(bits)) => bits,
            None => return self.fail("an initial value that is not a number"),
        };
        out.extend_from_slice(&value.to_le_bytes()[..element]);
        Ok(())
    }
}
