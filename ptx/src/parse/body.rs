//! The body of a function: declarations, labels, instructions and their operands.

use super::number::number;
use super::parser::Parser;
use super::tree::{Number, Operand, Statement, StatementKind};
use crate::error::Result;

impl<'a> Parser<'a> {
    /// Parses a body in braces.
    pub fn body(&mut self) -> Result<Vec<Statement<'a>>> {
        self.expect("{")?;
        self.loc = 0;
        let mut body = Vec::new();
        let mut depth = 0;
        loop {
            let line = self.line();
            let kind = match self.peek() {
                "{" => {
                    self.at += 1;
                    depth += 1;
                    StatementKind::Open
                }
                "}" => {
                    self.at += 1;
                    if depth == 0 {
                        return Ok(body);
                    }
                    depth -= 1;
                    StatementKind::Close
                }
                ";" => {
                    self.at += 1;
                    continue;
                }
                ".loc" | ".file" => {
                    self.debug_line()?;
                    continue;
                }
                ".pragma" => {
                    while self.next()? != ";" {}
                    continue;
                }
                ".reg" => {
                    self.registers(line, &mut body)?;
                    continue;
                }
                ".local" | ".shared" | ".param" | ".global" | ".const" => {
                    for variable in self.variables()? {
                        body.push(Statement { kind: StatementKind::Variable(variable), line, loc: self.loc });
                    }
                    self.expect(";")?;
                    continue;
                }
                ".branchtargets" => {
                    self.at += 1;
                    let mut targets = Vec::new();
                    while !self.eat(";") {
                        targets.push(self.next()?);
                        self.eat(",");
                    }
                    StatementKind::Targets(targets)
                }
                name if self.tokens.get(self.at + 1).is_some_and(|t| t.text == ":") => {
                    self.at += 2;
                    StatementKind::Label(name)
                }
                _ => self.instruction()?,
            };
            body.push(Statement { kind, line, loc: self.loc });
        }
    }

    /// Parses a `.reg` directive.
    fn registers(&mut self, line: u32, body: &mut Vec<Statement<'a>>) -> Result<()> {
        self.at += 1;
        let ty = self.next()?.trim_start_matches('.');
        loop {
            let name = self.next()?;
            let mut count = None;
            if self.eat("<") {
                count = Some(self.index()?);
                self.expect(">")?;
            }
            body.push(Statement { kind: StatementKind::Reg(ty, name, count), line, loc: self.loc });
            if !self.eat(",") {
                return self.expect(";");
            }
        }
    }

    fn instruction(&mut self) -> Result<StatementKind<'a>> {
        let mut guard = None;
        if self.eat("@") {
            let negated = self.eat("!");
            guard = Some((self.next()?, negated));
        }
        let opcode = self.next()?;
        let mut operands = Vec::new();
        if !self.eat(";") {
            operands = self.operands_until(";")?;
        }
        Ok(StatementKind::Instruction { guard, opcode, operands })
    }

    fn operands_until(&mut self, end: &str) -> Result<Vec<Operand<'a>>> {
        let mut list = vec![self.operand()?];
        while self.eat(",") {
            list.push(self.operand()?);
        }
        self.expect(end)?;
        Ok(list)
    }

    /// Parses an operand.
    fn operand(&mut self) -> Result<Operand<'a>> {
        // A limit, since text may nest deeper than the stack of a thread.
        if self.depth == 8 {
            return self.fail("operands nested too deeply");
        }
        self.depth += 1;
        let operand = self.operand_within();
        self.depth -= 1;
        operand
    }

    fn operand_within(&mut self) -> Result<Operand<'a>> {
        if self.eat("{") {
            return Ok(Operand::Vector(self.operands_until("}")?));
        }
        if self.eat("(") {
            return Ok(Operand::List(if self.eat(")") { Vec::new() } else { self.operands_until(")")? }));
        }
        if self.eat("!") {
            return Ok(Operand::Not(self.next()?));
        }
        if self.eat("[") {
            let inner = match self.operand()? {
                inner @ Operand::Address(..) => inner,
                other => Operand::Address(Box::new(other), 0),
            };
            if self.eat(",") {
                let Operand::Vector(list) = self.operand()? else { return self.fail("coordinates expected") };
                self.expect("]")?;
                return Ok(Operand::Coordinates(Box::new(inner), list));
            }
            self.expect("]")?;
            return Ok(inner);
        }
        let negative = self.eat("-");
        let word = self.next()?;
        let base = match number(word) {
            Some(Number::Int(value)) => Operand::Number(Number::Int(if negative { -value } else { value })),
            Some(value) if !negative => Operand::Number(value),
            None if !negative && (word.starts_with(['%', '_', '$']) || word.as_bytes()[0].is_ascii_alphabetic()) => {
                Operand::Name(word)
            }
            _ => {
                self.at -= 1;
                return self.fail(format!("`{word}` found, an operand expected"));
            }
        };
        if self.eat("|") {
            return Ok(Operand::Pair(Box::new(base), Box::new(self.operand()?)));
        }
        if self.eat("+") {
            let offset = self.integer()?;
            return Ok(Operand::Address(Box::new(base), offset as i64));
        }
        if self.peek() == "-" && matches!(base, Operand::Name(_)) {
            let offset = self.integer()?;
            return Ok(Operand::Address(Box::new(base), offset as i64));
        }
        Ok(base)
    }
}
