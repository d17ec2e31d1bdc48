// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Tables that belong to no map: reserved before a change, or detached by it.
//!
//! They are linked through their first entries. A link is the address of a page, whose low bits the
//! MMU takes for an invalid descriptor: a walker that still is in a detached table finds nothing.
#![forbid(unsafe_code)]

use super::Tables;
use crate::addr::{Address, Pa};

/// A list of tables, all zeros but for the link.
#[derive(Default)]
pub(super) struct Chain {
    first: Pa,
    count: u64,
}

impl Chain {
    /// Allocates `count` tables, or none when there are not so many.
    pub fn reserve(tables: &mut impl Tables, count: u64) -> Option<Self> {
        let mut chain = Self::default();
        for _ in 0..count {
            let Some(table) = tables.allocate() else {
                chain.free(tables);
                return None;
            };
            chain.push(tables, table);
        }
        Some(chain)
    }

    /// Adds a table full of zeros.
    pub fn push(&mut self, tables: &mut impl Tables, table: Pa) {
        tables.write(table, self.first.get());
        self.first = table;
        self.count = self.count.saturating_add(1);
    }

    /// Takes a table full of zeros.
    pub fn pop(&mut self, tables: &mut impl Tables) -> Option<Pa> {
        self.count = self.count.checked_sub(1)?;
        let table = self.first;
        self.first = Pa::new(tables.read(table));
        tables.write(table, 0);
        Some(table)
    }

    /// Gives all tables back.
    pub fn free(mut self, tables: &mut impl Tables) {
        while let Some(table) = self.pop(tables) {
            tables.free(table);
        }
    }
}
