//! The bodies of kernels and functions.
//!
//! Functions are inlined at their calls: a `.param` variable of a call is a few bytes of local memory, and the parameter
//! names of the callee stand for the variables of the caller. So the interpreter needs no call stack.

use std::collections::HashMap;

use super::decoder::{Decoder, ModuleNames, Name};
use super::opcode::{Decoded, Opcode};
use crate::counts::InstructionKind;
use crate::error::{Error, Result};
use crate::instruction::{Op, Pred};
use crate::kernel::{GlobalVariable, Kernel};
use crate::parse::{Function, Operand, Statement, StatementKind, Tree};

/// Maximum depth of nested calls.
const MAX_DEPTH: usize = 16;

/// Decodes every kernel of a module.
pub(crate) fn kernels(tree: &Tree, globals: &[GlobalVariable]) -> Result<Vec<Kernel>> {
    let names = ModuleNames::new(tree, globals);
    tree.functions.iter().filter(|f| f.entry).map(|f| kernel(f, &names)).collect()
}

fn kernel<'a>(function: &'a Function<'a>, names: &'a ModuleNames<'a>) -> Result<Kernel> {
    let mut decoder = Decoder::new(function, names);
    decoder.body(&function.body, None)?;
    decoder.emit(Op::Exit, InstructionKind::Branch);
    decoder.finish()
}

impl<'a> Decoder<'a> {
    /// Decodes the statements of a body; `end` is the label of its end if it is inlined.
    fn body(&mut self, body: &[Statement<'a>], end: Option<&str>) -> Result<()> {
        let mut last_label = String::new();
        for statement in body {
            (self.line, self.loc) = (statement.line, statement.loc);
            match &statement.kind {
                StatementKind::Open => {
                    self.scopes.push(HashMap::new());
                    self.opened += 1;
                    self.blocks.push(self.opened);
                }
                StatementKind::Close => {
                    self.scopes.pop();
                    self.blocks.pop();
                }
                StatementKind::Reg(ty, name, count) => self.registers(ty, name, *count)?,
                StatementKind::Variable(v) => self.variable(v)?,
                StatementKind::Label(name) => {
                    last_label = self.label(name);
                    self.labels.insert(last_label.clone(), self.here());
                }
                StatementKind::Targets(names) => {
                    self.tables.insert(last_label.clone(), names.clone());
                }
                StatementKind::Instruction { guard, opcode, operands } => {
                    self.guard = match guard {
                        None => Pred::TRUE,
                        Some((name, negated)) => match self.lookup(name) {
                            Some(Name::Pred(p)) => Pred::new(p, *negated),
                            _ => return Err(Error::new(self.line, format!("{name} is no predicate"))),
                        },
                    };
                    if *opcode == "call" || opcode.starts_with("call.") {
                        self.call(operands)?;
                    } else if let Err(what) = self.instruction(opcode, operands, end) {
                        let here = (self.line, self.loc, what);
                        self.kernel.unknown.get_or_insert(here);
                    }
                    self.guard = Pred::TRUE;
                }
            }
        }
        Ok(())
    }

    /// Inlines the body of a function.
    fn call(&mut self, operands: &[Operand<'a>]) -> Result<()> {
        let line = self.line;
        let fail = |what: &str| Error::new(line, what.to_owned());
        let (results, rest) = match operands {
            [Operand::List(results), rest @ ..] => (results.as_slice(), rest),
            rest => (&[][..], rest),
        };
        let (name, args) = match rest {
            [Operand::Name(name), Operand::List(args)] => (*name, args.as_slice()),
            [Operand::Name(name)] => (*name, &[][..]),
            _ => {
                return Err(fail(
                    "a call that is not `call (result), name, (arguments)`; indirect calls are not known",
                ));
            }
        };
        let Some(function) = self.names.functions.get(name).copied() else {
            let here = (self.line, self.loc, format!("call of `{name}`, which has no body here"));
            self.kernel.unknown.get_or_insert(here);
            return Ok(());
        };
        if self.depth == MAX_DEPTH {
            return Err(fail("calls nested too deeply; recursion is not known"));
        }
        if results.len() != function.results.len() || args.len() != function.params.len() {
            return Err(fail("a call with another number of arguments than the function has"));
        }
        let mut scope = HashMap::new();
        for (formal, actual) in function.results.iter().chain(&function.params).zip(results.iter().chain(args)) {
            let Operand::Name(actual) = actual else { return Err(fail("an argument that is not a variable")) };
            let Some(found) = self.lookup(actual) else { return Err(fail("an argument that is not declared")) };
            scope.insert(formal.name, found);
        }
        self.frames += 1;
        self.depth += 1;
        let guard = self.guard;
        let caller = std::mem::replace(&mut self.frame, self.frames);
        let scopes = std::mem::replace(&mut self.scopes, vec![scope]);
        let blocks = std::mem::replace(&mut self.blocks, vec![0]);
        let end = format!("{}/return", self.frame);
        if guard != Pred::TRUE {
            // Lanes for which the guard does not hold branch around the body.
            self.guard = guard.not();
            self.branch_to(vec![end.clone()]);
            self.guard = Pred::TRUE;
        }
        self.body(&function.body, Some(&end))?;
        self.labels.insert(end, self.here());
        (self.scopes, self.blocks) = (scopes, blocks);
        self.frame = caller;
        self.depth -= 1;
        Ok(())
    }

    /// Decodes one instruction by the family that has it.
    fn instruction(&mut self, opcode: &'a str, operands: &[Operand<'a>], end: Option<&str>) -> Decoded {
        let mut op = Opcode::new(opcode);
        if self.decode_control(&mut op, operands, end)? {
            return Ok(());
        }
        let families = [
            Self::decode_hopper,
            Self::decode_move,
            Self::decode_memory,
            Self::decode_warp,
            Self::decode_integer,
            Self::decode_float,
        ];
        for family in families {
            if family(self, &mut op, operands)? {
                return Ok(());
            }
        }
        Err(format!("`{opcode}`"))
    }
}
