// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What `coffer plan --explain NODE` says of a node: all that is known of it, and from where.
#![forbid(unsafe_code)]

use super::{Closure, Line, Reference};
use crate::board::Hints;
use crate::tree::NodeId;
use std::fmt::Write;

/// The most users that are listed.
const USERS_MAX: usize = 16;

impl Closure<'_> {
    /// Describes a node for people.
    #[must_use]
    pub fn describe(&self, id: NodeId, hints: &Hints) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = self.write(id, hints, &mut text);
        text
    }

    fn write(&self, id: NodeId, hints: &Hints, text: &mut String) -> std::fmt::Result {
        let (tree, facts) = (self.tree, self.facts(id));
        writeln!(text, "node   {}", tree.path(id).escape_debug())?;
        let state = if facts.is_enabled { "switched on" } else { "switched off (status)" };
        writeln!(text, "state  {state}")?;
        match facts.unit {
            Some(unit) if unit == id => writeln!(text, "given  as a whole, with what is below it")?,
            Some(unit) => writeln!(text, "given  with {}", tree.path(unit).escape_debug())?,
            None => writeln!(text, "given  not at all: no registers that a core can reach")?,
        }
        if let Some(unit) = facts.unit {
            let dma = self.dma(unit, &hints.no_dma, &hints.bus_masters);
            writeln!(text, "dma    {}", dma.words())?;
        }
        for range in &facts.registers {
            writeln!(text, "reg    {range}")?;
            for other in self.on_pages(range.page_cover().unwrap_or(*range)) {
                if other != id {
                    writeln!(
                        text,
                        "         page shared with {}",
                        tree.path(other).escape_debug()
                    )?;
                }
            }
        }
        for line in facts.lines.iter().chain(&facts.mapped_lines) {
            self.write_line(id, line, text)?;
        }
        for Reference { property, provider, specifier, .. } in &facts.references {
            let (property, path) = (property.escape_debug(), tree.path(*provider));
            writeln!(text, "needs  {}{} by {property}", path.escape_debug(), cells(specifier))?;
        }
        for (user, used) in self.users(id).take(USERS_MAX) {
            let (path, property) = (tree.path(user), used.property.escape_debug());
            writeln!(
                text,
                "user   {}{} by {property}",
                path.escape_debug(),
                cells(&used.specifier)
            )?;
        }
        let more = self.users(id).count().saturating_sub(USERS_MAX);
        if more > 0 {
            writeln!(text, "user   {more} more")?;
        }
        facts.faults.iter().try_for_each(|fault| {
            writeln!(text, "wrong  {}: {}", fault.property.escape_debug(), fault.problem)
        })
    }

    fn write_line(&self, id: NodeId, line: &Line, text: &mut String) -> std::fmt::Result {
        let path = self.tree.path(line.end);
        writeln!(text, "irq    {} of {}", cells(&line.cells).trim(), path.escape_debug())?;
        for other in self.on_interrupt(line.end, &line.cells).filter(|other| *other != id) {
            let path = self.tree.path(other);
            writeln!(text, "         shared with {}", path.escape_debug())?;
        }
        Ok(())
    }
}

fn cells(cells: &[u32]) -> String {
    cells.iter().map(|cell| format!(" {cell}")).collect()
}
