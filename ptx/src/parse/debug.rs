//! Debug directives: `.file` and `.loc`.

use super::parser::Parser;
use super::tree::Location;
use crate::error::Result;

impl<'a> Parser<'a> {
    /// Parses `.file` or `.loc`.
    pub fn debug_line(&mut self) -> Result<()> {
        if self.eat(".file") {
            let index = self.index()?;
            let name = self.next()?.trim_matches('"').to_owned();
            self.tree.files.push((index, name));
            self.rest_of_line();
            return Ok(());
        }
        self.expect(".loc")?;
        let mut location = self.location()?;
        while self.eat(",") {
            match self.next()? {
                "function_name" => {
                    self.next()?;
                    if self.eat("+") {
                        self.next()?;
                    }
                }
                "inlined_at" => {
                    let at = self.location()?;
                    // That place may itself be inlined; the last location equal to it says where.
                    let seen = self
                        .tree
                        .locations
                        .iter()
                        .rposition(|l| (l.file, l.line, l.column) == (at.file, at.line, at.column) && l.line != 0);
                    location.inlined_at = match seen {
                        Some(index) => index as u32,
                        None => self.add_location(at),
                    };
                }
                other => return self.fail(format!("`{other}` in .loc")),
            }
        }
        // Line 0 means no line; the previous location still tells the most.
        if location.line != 0 {
            self.loc = self.add_location(location);
        }
        Ok(())
    }

    fn location(&mut self) -> Result<Location> {
        Ok(Location { file: self.index()?, line: self.index()?, column: self.index()?, inlined_at: 0 })
    }

    fn add_location(&mut self, location: Location) -> u32 {
        if self.tree.locations.last() != Some(&location) {
            self.tree.locations.push(location);
        }
        (self.tree.locations.len() - 1) as u32
    }
}
