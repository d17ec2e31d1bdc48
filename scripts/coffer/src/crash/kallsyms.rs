// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The names of a Linux kernel's functions, out of the kernel itself: its `kallsyms`.
//!
//! A stock kernel comes without symbols, but carries compressed names for its own messages. Finds
//! them in an Image or in the memory of a running kernel by the one part that has a known form, the
//! table of tokens with its index, and what surrounds it (`scripts/kallsyms.c` of Linux):
//!
//! - as in 6.1: offsets, base, count, names, markers, tokens, index;
//! - as in 6.12: count, names, markers, tokens, index, offsets, base.
//!
//! Offsets are relative to the start of the kernel, so where it runs is another question.
#![forbid(unsafe_code)]

use super::{Memory, Registers, read_virtual};
use regex::bytes::Regex;
use std::io;

const TOKENS: usize = 256;
/// A marker for each so many names.
const GROUP: usize = 256;
/// The most names, many times what kernels have.
const NAMES_MAX: usize = 1 << 21;
/// The longest name that Linux allows, with its kind.
const NAME_MAX: usize = 512;
/// What the names of a group take at most.
const GROUP_BYTES_MAX: usize = GROUP * (NAME_MAX + 2);

/// A function or a variable.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Symbol {
    /// Bytes from the start of the kernel.
    pub offset: u64,
    /// As `nm` has it: `T` or `t` is code.
    pub kind: u8,
    /// Its name.
    pub name: String,
}

/// All symbols of a kernel, by offset.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Kallsyms {
    symbols: Vec<Symbol>,
}

impl Kallsyms {
    /// Finds the symbols in an Image, or in what a running kernel has made of it.
    #[must_use]
    pub fn find(image: &[u8]) -> Option<Self> {
        let tables = TokenTables::find(image)?;
        let names = Names::before(image, tables.start)?;
        let offsets = names.offsets(image, &tables)?;
        let mut symbols = Vec::with_capacity(offsets.len());
        let mut at = names.start;
        for offset in offsets {
            let (text, next) = tables.expand(image, at)?;
            let (kind, name) = text.split_first()?;
            let name = String::from_utf8_lossy(name).into_owned();
            symbols.push(Symbol { offset: u64::from(offset), kind: *kind, name });
            at = next;
        }
        let start = symbols.iter().find(|symbol| symbol.name == "_text")?.offset;
        for symbol in &mut symbols {
            symbol.offset = symbol.offset.saturating_sub(start);
        }
        Some(Self { symbols })
    }

    /// Takes symbols that are in order.
    #[cfg(test)]
    pub(super) fn of(symbols: Vec<Symbol>) -> Self {
        Self { symbols }
    }

    /// Returns the functions, by offset, without the marks of code and data that an assembler makes.
    pub fn functions(&self) -> impl Iterator<Item = &Symbol> {
        let is_code = |symbol: &&Symbol| matches!(symbol.kind | 0x20, b't' | b'w');
        self.symbols.iter().filter(is_code).filter(|symbol| !symbol.name.starts_with('$'))
    }

    /// Returns the symbols, by offset.
    #[must_use]
    pub fn symbols(&self) -> &[Symbol] {
        &self.symbols
    }

    /// Returns where a symbol is.
    #[must_use]
    pub fn offset(&self, name: &str) -> Option<u64> {
        self.symbols.iter().find(|symbol| symbol.name == name).map(|symbol| symbol.offset)
    }

    /// Returns the function that an offset is in, and how far.
    #[must_use]
    pub fn function(&self, offset: u64) -> Option<(&str, u64)> {
        let end = self.symbols.partition_point(|symbol| symbol.offset <= offset);
        let before = self.symbols.get(..end)?;
        let is_code = |symbol: &&Symbol| matches!(symbol.kind | 0x20, b't' | b'w');
        let is_named = |symbol: &&Symbol| !symbol.name.starts_with('$');
        let found = before.iter().rev().filter(is_code).find(is_named)?;
        // Behind the last function is no function.
        let last = self.offset("_etext").unwrap_or(u64::MAX);
        let first = before
            .iter()
            .find(|symbol| symbol.offset == found.offset && is_code(symbol) && is_named(symbol));
        (offset < last).then(|| (first.map_or("", |s| s.name.as_str()), offset - found.offset))
    }
}

/// Finds where a kernel runs: the header of its Image is in memory, at or below its vectors.
///
/// # Errors
/// The memory cannot be read.
pub fn find_base(
    memory: &mut impl Memory,
    registers: &Registers,
    kallsyms: &Kallsyms,
) -> io::Result<Option<u64>> {
    // VBAR_EL1 of a kernel that has unmapped itself from its processes is elsewhere while these
    // run; its own code is found by PC, or by what X30 returns to.
    let vectors = kallsyms.offset("vectors").map(|offset| registers.vbar.wrapping_sub(offset));
    if let Some(base) = vectors.filter(|base| base % 0x1000 == 0)
        && is_header(memory, registers, base)?
    {
        return Ok(Some(base));
    }
    let size = kallsyms.offset("_end").unwrap_or(64 << 20);
    for near in [registers.pc, registers.without_tag(registers.x[30])] {
        let mut base = near & !0xffff;
        while near.wrapping_sub(base) <= size {
            if is_header(memory, registers, base)? {
                return Ok(Some(base));
            }
            base = base.wrapping_sub(0x1_0000);
        }
    }
    Ok(None)
}

/// Returns whether the header of an arm64 Image is here ("ARM\x64" at 56).
fn is_header(memory: &mut impl Memory, registers: &Registers, va: u64) -> io::Result<bool> {
    let mut magic = [0; 4];
    let is_there = read_virtual(memory, registers, va.wrapping_add(56), &mut magic)?;
    Ok(is_there && magic == *b"ARM\x64")
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn usize_at(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u32_at(bytes, at)?).ok()
}

/// The table of tokens, and its index: where each token starts in it.
struct TokenTables {
    start: usize,
    index: usize,
    tokens: Vec<Vec<u8>>,
}

impl TokenTables {
    /// Finds the tables by the tokens of the ten digits, each of which stands for itself: the index
    /// that says the same decides.
    fn find(image: &[u8]) -> Option<Self> {
        let digits = Regex::new(r"(?-u)0\x001\x002\x003\x004\x005\x006\x007\x008\x009\x00").ok()?;
        digits.find_iter(image).find_map(|found| Self::at(image, found.start()))
    }

    fn at(image: &[u8], digits: usize) -> Option<Self> {
        // Both start on a multiple of 8. In the index the digits have steps of 2, wherever the
        // table starts, and say where that is.
        let nearby = digits.next_multiple_of(8)..digits.saturating_add(0x3000);
        nearby.step_by(8).find_map(|at| {
            let entry = |n: usize| {
                let entry = image.get(at + 2 * n..at + 2 * n + 2)?;
                Some(usize::from(u16::from_le_bytes(entry.try_into().ok()?)))
            };
            let before = entry(0)?;
            if !(1..10).all(|n| entry(n) == Some(before + 2 * n)) {
                return None;
            }
            let (start, index) = (digits.checked_sub(before)?, at.checked_sub(2 * 48)?);
            let tokens = Self::tokens(image, start, index)?;
            Some(Self { start, index, tokens })
        })
    }

    /// Reads the tokens as the index tells, if it is one: each starts where the last has ended.
    fn tokens(image: &[u8], start: usize, index: usize) -> Option<Vec<Vec<u8>>> {
        let mut at = 0;
        let mut tokens = Vec::with_capacity(TOKENS);
        for n in 0..TOKENS {
            let entry = image.get(index + 2 * n..index + 2 * n + 2)?;
            if usize::from(u16::from_le_bytes(entry.try_into().ok()?)) != at {
                return None;
            }
            let rest = image.get(start + at..(start + at + NAME_MAX).min(image.len()))?;
            let token = rest.get(..rest.iter().position(|byte| *byte == 0)?)?;
            at += token.len() + 1;
            tokens.push(token.to_vec());
        }
        Some(tokens)
    }

    /// Returns how many tokens a name has and where these begin: up to 127 in one byte, in two
    /// bytes else.
    fn length(image: &[u8], at: usize) -> Option<(usize, usize)> {
        let first = usize::from(*image.get(at)?);
        if first & 0x80 == 0 {
            return Some((first, at + 1));
        }
        Some((first & 0x7f | usize::from(*image.get(at + 1)?) << 7, at + 2))
    }

    /// Returns a name with its kind in front, and where the next one starts.
    fn expand(&self, image: &[u8], at: usize) -> Option<(Vec<u8>, usize)> {
        let (length, start) = Self::length(image, at)?;
        let codes = image.get(start..start.checked_add(length)?)?;
        let tokens = codes.iter().filter_map(|code| self.tokens.get(usize::from(*code)));
        let text: Vec<u8> = tokens.flatten().copied().collect();
        (text.len() <= 2 * NAME_MAX).then_some((text, start + length))
    }
}

/// The compressed names.
struct Names {
    count: usize,
    /// Where the number of names is.
    count_at: usize,
    start: usize,
}

impl Names {
    /// Finds the names of the markers that end at `end`, or 4 bytes before: they grow, from 0 on.
    fn before(image: &[u8], end: usize) -> Option<Self> {
        let mut at = end.checked_sub(4)?;
        if u32_at(image, at)? == 0 {
            at = at.checked_sub(4)?;
        }
        let last = usize_at(image, at)?;
        let mut markers = 1;
        let mut marker = last;
        while marker != 0 {
            at = at.checked_sub(4)?;
            let before = usize_at(image, at)?;
            if before >= marker || marker - before > GROUP_BYTES_MAX || markers > NAMES_MAX / GROUP
            {
                return None;
            }
            (marker, markers) = (before, markers + 1);
        }
        (markers > 1).then(|| Self::in_front(image, at, markers, last)).flatten()
    }

    /// Finds the number of names and the names in front of `markers_at`.
    fn in_front(image: &[u8], markers_at: usize, markers: usize, last: usize) -> Option<Self> {
        let counts = (markers - 1) * GROUP + 1..=markers * GROUP;
        let highest = markers_at.checked_sub(last)?;
        let lowest = highest.saturating_sub(GROUP_BYTES_MAX);
        (lowest..=highest).rev().filter(|start| start % 8 == 0).find_map(|start| {
            let count_at = start.checked_sub(8)?;
            let count = usize_at(image, count_at)?;
            let is_one = counts.contains(&count) && u32_at(image, count_at + 4)? == 0;
            let names = Self { count, count_at, start };
            (is_one && names.agree(image, markers_at)?).then_some(names)
        })
    }

    /// Returns whether the names are where the markers say, and end where those start.
    fn agree(&self, image: &[u8], markers_at: usize) -> Option<bool> {
        let mut at = self.start;
        for n in 0..self.count {
            if n % GROUP == 0 && usize_at(image, markers_at + n / GROUP * 4)? != at - self.start {
                return Some(false);
            }
            let (length, start) = TokenTables::length(image, at)?;
            at = start + length;
        }
        Some(at.next_multiple_of(8) == markers_at)
    }

    /// Finds the offsets, before the number of names or behind the index: they grow.
    fn offsets(&self, image: &[u8], tables: &TokenTables) -> Option<Vec<u32>> {
        let bytes = (4 * self.count).next_multiple_of(8);
        let before = self.count_at.checked_sub(8 + bytes);
        let behind = (tables.index + 2 * TOKENS).next_multiple_of(8);
        [before, Some(behind)].into_iter().flatten().find_map(|at| {
            let offsets: Option<Vec<u32>> =
                (0..self.count).map(|n| u32_at(image, at + 4 * n)).collect();
            offsets.filter(|all| all.is_sorted() && all.first() != all.last())
        })
    }
}

#[cfg(test)]
mod tests;
