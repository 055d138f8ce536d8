//! Everything outside of functions: directives, variables, and the heads of functions.

use super::lex::tokens;
use super::parser::Parser;
use super::tree::{Function, Location, Tree, Variable};
use crate::error::Result;

/// Parses a file.
pub(crate) fn parse(text: &str) -> Result<Tree<'_>> {
    let mut parser = Parser { tokens: tokens(text)?, at: 0, tree: Tree::default(), loc: 0, depth: 0 };
    parser.tree.locations.push(Location::default());
    parser.file()?;
    Ok(parser.tree)
}

impl<'a> Parser<'a> {
    /// Parses all directives.
    fn file(&mut self) -> Result<()> {
        while self.at < self.tokens.len() {
            match self.peek() {
                ".version" | ".address_size" => {
                    self.at += 1;
                    self.rest_of_line();
                }
                ".target" => {
                    self.at += 1;
                    self.tree.target = self.next()?.to_owned();
                    self.rest_of_line();
                }
                ".file" | ".loc" => self.debug_line()?,
                ".section" => {
                    while self.next()? != "{" {}
                    while self.next()? != "}" {}
                }
                ".pragma" => while self.next()? != ";" {},
                ".visible" | ".extern" | ".weak" | ".common" => self.at += 1,
                ".entry" | ".func" => self.function()?,
                ".global" | ".const" | ".shared" => {
                    let list = self.variables()?;
                    self.tree.variables.extend(list);
                    self.expect(";")?;
                }
                other => return self.fail(format!("`{other}` found, a directive expected")),
            }
        }
        Ok(())
    }

    /// Parses the parameters or results of a function.
    fn param_list(&mut self) -> Result<Vec<Variable<'a>>> {
        let mut list = Vec::new();
        if !self.eat("(") || self.eat(")") {
            return Ok(list);
        }
        loop {
            if !matches!(self.peek(), ".param" | ".reg") {
                return self.fail(format!("`{}` found, a parameter expected", self.peek()));
            }
            list.extend(self.variables()?);
            if !self.eat(",") {
                self.expect(")")?;
                return Ok(list);
            }
        }
    }

    /// Parses a kernel or function; a declaration without a body is skipped.
    fn function(&mut self) -> Result<()> {
        let entry = self.next()? == ".entry";
        let results = if entry { Vec::new() } else { self.param_list()? };
        let name = self.next()?;
        let params = self.param_list()?;
        let (mut max_threads, mut cluster, mut registers) = (None, None, None);
        loop {
            match self.peek() {
                ";" => {
                    self.at += 1;
                    return Ok(());
                }
                "{" => break,
                ".maxntid" | ".reqntid" | ".minnctapersm" | ".maxnreg" => {
                    let which = self.next()?;
                    let mut dims = [1; 3];
                    for dim in &mut dims {
                        *dim = self.index()?;
                        if !self.eat(",") {
                            break;
                        }
                    }
                    match which {
                        ".maxntid" | ".reqntid" => max_threads = Some(dims),
                        ".maxnreg" => registers = Some(dims[0]),
                        _ => {}
                    }
                }
                ".reqnctapercluster" | ".maxclusterrank" => {
                    let which = self.next()?;
                    let mut dims = [1; 3];
                    for dim in &mut dims {
                        *dim = self.index()?;
                        if !self.eat(",") {
                            break;
                        }
                    }
                    if which == ".reqnctapercluster" {
                        cluster = Some(dims);
                    }
                }
                ".noreturn" | ".explicitcluster" => self.at += 1,
                ".pragma" => while self.next()? != ";" {},
                other => return self.fail(format!("`{other}` before the body of {name}")),
            }
        }
        let body = self.body()?;
        self.tree.functions.push(Function { entry, name, results, params, max_threads, cluster, registers, body });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_line() {
        let error = parse(".version 8.0\n.target sm_80\n.entry k() {\n mov.u32 %r1, ;\n}").unwrap_err();
        assert_eq!(error.line, 4, "{error}");
    }
}
