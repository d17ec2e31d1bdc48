// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Data caches that never write back by themselves: who looks past them sees old memory.
#![forbid(unsafe_code)]

use core::ops::RangeInclusive;
use std::collections::BTreeMap;
use std::vec::Vec;

/// Lines of memory, what caches hold of them, and where the two differ.
///
/// A value stands for the content of one whole line.
#[derive(Debug, Default)]
pub struct CacheLedger {
    memory: BTreeMap<u64, u64>,
    cached: BTreeMap<u64, u64>,
}

impl CacheLedger {
    /// Makes a ledger of memory full of zeros, with empty caches.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
    /// Writes a line with the MMU and caches on.
    pub fn write(&mut self, line: u64, value: u64) {
        self.cached.insert(line, value);
    }
    /// Writes a line with the caches off: memory changes, a cached copy stays.
    pub fn write_uncached(&mut self, line: u64, value: u64) {
        self.memory.insert(line, value);
    }
    /// Reads a line with the caches on.
    #[must_use]
    pub fn read(&self, line: u64) -> u64 {
        self.cached.get(&line).copied().unwrap_or_else(|| self.read_uncached(line))
    }
    /// Reads a line as a guest with its MMU off does, or a device that does not snoop.
    #[must_use]
    pub fn read_uncached(&self, line: u64) -> u64 {
        self.memory.get(&line).copied().unwrap_or(0)
    }
    /// DC CVAC: memory gets what the cache holds.
    pub fn clean(&mut self, line: u64) {
        if let Some(&value) = self.cached.get(&line) {
            self.memory.insert(line, value);
        }
    }
    /// DC CIVAC: the same, and the cache forgets the line.
    pub fn clean_invalidate(&mut self, line: u64) {
        self.clean_invalidate_all(line..=line);
    }
    /// The same for all lines of a range.
    pub fn clean_invalidate_all(&mut self, lines: RangeInclusive<u64>) {
        let held: Vec<u64> = self.cached.range(lines).map(|(line, _)| *line).collect();
        for line in held {
            self.clean(line);
            self.cached.remove(&line);
        }
    }
}
