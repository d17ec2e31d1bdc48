// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A guest's own translation: from its virtual addresses to its memory, by its tables.
//!
//! Reads TTBR0_EL1 and TTBR1_EL1 as TCR_EL1 says: granules of 4, 16 and 64 KiB, 25 to 52 bits
//! (DDI 0487 D8.2 and D8.3). Tables are the guest's and may hold anything: what they say is bounded
//! here, and permissions do not matter. Must not know where memory comes from.
#![forbid(unsafe_code)]

use super::{Memory, PAGE_U64, Registers};
use std::io;
use std::ops::Range;

/// The most tables that are read to list a guest's mappings, for each page of its memory: a table
/// that is found in many places counts each time.
const TABLES_PER_PAGE: u64 = 2;
/// The same, for a guest with little memory.
const TABLES_MIN: u64 = 256;
/// The most runs that are listed; an ELF file has room for so many segments.
pub const RUNS_MAX: usize = 60_000;

/// Addresses that are mapped to memory of the same order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// The first virtual address.
    pub va: u64,
    /// Where it leads.
    pub ipa: u64,
    /// How many bytes.
    pub bytes: u64,
}

/// What a guest maps.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Mappings {
    /// By virtual address.
    pub runs: Vec<Run>,
    /// Whether there is more, which no sane guest has.
    pub is_cut: bool,
}

impl Mappings {
    /// Adds a run behind all others.
    pub(super) fn add(&mut self, run: Run) {
        let is_full = self.runs.len() >= RUNS_MAX;
        match self.runs.last_mut() {
            Some(last)
                if last.va.wrapping_add(last.bytes) == run.va
                    && last.ipa.wrapping_add(last.bytes) == run.ipa =>
            {
                last.bytes += run.bytes;
            }
            _ if is_full => self.is_cut = true,
            _ => self.runs.push(run),
        }
    }
}

/// One half of the address space.
#[derive(Clone, Copy, Debug)]
struct Half {
    /// The bits above those that are translated: all 0 or all 1.
    prefix: u64,
    va_bits: u32,
    /// log2 of the granule.
    granule: u32,
    /// TCR_EL1.DS: descriptors of LPA2.
    has_lpa2: bool,
    root: u64,
}

/// What a descriptor says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Entry {
    Invalid,
    Table(u64),
    Leaf(u64),
}

impl Half {
    /// Returns the halves that are translated: none while the MMU is off.
    fn all(registers: &Registers) -> Vec<Self> {
        let Registers { tcr, ttbr0, ttbr1, .. } = *registers;
        if !registers.has_mmu_on() {
            return Vec::new();
        }
        // TG0 and TG1 have encodings of their own.
        let granules = [[Some(12), Some(16), Some(14), None], [None, Some(14), Some(12), Some(16)]];
        let has_lpa2 = tcr >> 59 & 1 != 0;
        let half =
            |ttbr: u64, size: u32, disabled: u32, granule: u32, granules: [Option<u32>; 4]| {
                let granule = *granules.get(usize::try_from(tcr >> granule & 3).ok()?)?;
                let (granule, va_bits) = (granule?, 64 - u32::try_from(tcr >> size & 0x3f).ok()?);
                let is_on = tcr >> disabled & 1 == 0 && (16..=52).contains(&va_bits);
                if !is_on {
                    return None;
                }
                let prefix = if size == 0 { 0 } else { u64::MAX << va_bits };
                let root = root(ttbr, granule, has_lpa2);
                Some(Self { prefix, va_bits, granule, has_lpa2, root })
            };
        let [low, high] = granules;
        [half(ttbr0, 0, 7, 14, low), half(ttbr1, 16, 23, 30, high)].into_iter().flatten().collect()
    }

    /// Returns the bits that each level but the first translates.
    fn stride(&self) -> u32 {
        self.granule - 3
    }
    /// Returns how many levels there are.
    fn levels(&self) -> u32 {
        (self.va_bits - self.granule).div_ceil(self.stride()).max(1)
    }
    /// Returns log2 of what an entry covers, `depth` tables below the root.
    fn shift(&self, depth: u32) -> u32 {
        self.granule + (self.levels() - 1 - depth) * self.stride()
    }
    /// Returns how many entries a table has there.
    fn entries(&self, depth: u32) -> u64 {
        let above = if depth == 0 { self.va_bits } else { self.shift(depth - 1) };
        1 << (above - self.shift(depth))
    }
    fn contains(&self, va: u64) -> bool {
        va & (u64::MAX << self.va_bits) == self.prefix
    }

    fn entry(&self, descriptor: u64, depth: u32) -> Entry {
        let is_last = depth + 1 == self.levels();
        match descriptor & 3 {
            3 if is_last => Entry::Leaf(self.output(descriptor, self.granule)),
            3 => Entry::Table(self.output(descriptor, self.granule)),
            1 if !is_last && self.may_be_block(depth) => {
                Entry::Leaf(self.output(descriptor, self.shift(depth)))
            }
            _ => Entry::Invalid,
        }
    }
    /// Returns whether the level has blocks (DDI 0487 D8.3.1): of 4 KiB levels 1 and 2, with LPA2
    /// level 0 too; else level 2, with 52-bit addresses level 1 too.
    fn may_be_block(&self, depth: u32) -> bool {
        let level = i64::from(depth) + 4 - i64::from(self.levels());
        match self.granule {
            12 => level >= if self.has_lpa2 { 0 } else { 1 },
            14 => level >= if self.has_lpa2 { 1 } else { 2 },
            _ => level >= 1,
        }
    }
    /// Returns the output address of a descriptor, aligned to `shift` bits.
    fn output(&self, descriptor: u64, shift: u32) -> u64 {
        let upper = match (self.granule, self.has_lpa2) {
            (16, _) => (descriptor >> 12 & 0xf) << 48,
            (_, true) => (descriptor >> 48 & 3) << 48 | (descriptor >> 8 & 3) << 50,
            (_, false) => 0,
        };
        upper | descriptor & ((1 << 48) - 1) & (u64::MAX << shift)
    }
}

/// Returns where the first table is.
fn root(ttbr: u64, granule: u32, has_lpa2: bool) -> u64 {
    // With 52-bit addresses bits 5:2 are 51:48; without them they are 0 as every table's are.
    let upper = if granule == 16 || has_lpa2 { (ttbr >> 2 & 0xf) << 48 } else { 0 };
    let low = if upper != 0 { 0x3f } else { 1 };
    upper | ttbr & ((1 << 48) - 1) & !low
}

fn descriptor(memory: &mut impl Memory, table: u64, index: u64) -> io::Result<u64> {
    let at = table.wrapping_add(8 * index);
    let mut bytes = [0; 8];
    // What is not memory reads as no mapping, as a walk there would end with a fault.
    if super::read(memory, at, &mut bytes)? { Ok(u64::from_le_bytes(bytes)) } else { Ok(0) }
}

/// Returns where a virtual address leads; `None` where it leads nowhere.
///
/// # Errors
/// The memory cannot be read.
pub fn translate(
    memory: &mut impl Memory,
    registers: &Registers,
    va: u64,
) -> io::Result<Option<u64>> {
    if !registers.has_mmu_on() {
        return Ok(Some(va));
    }
    let va = registers.without_tag(va);
    let Some(half) = Half::all(registers).into_iter().find(|half| half.contains(va)) else {
        return Ok(None);
    };
    let mut table = half.root;
    for depth in 0..half.levels() {
        let index = va >> half.shift(depth) & (half.entries(depth) - 1);
        let offset = va & ((1 << half.shift(depth)) - 1);
        match half.entry(descriptor(memory, table, index)?, depth) {
            Entry::Invalid => return Ok(None),
            Entry::Leaf(ipa) => return Ok(Some(ipa + offset)),
            Entry::Table(next) => table = next,
        }
    }
    Ok(None)
}

/// Lists what a guest maps to its memory, by virtual address; of a guest whose MMU is off, that
/// memory as it is.
///
/// # Errors
/// The memory cannot be read.
pub fn mappings(memory: &mut impl Memory, registers: &Registers) -> io::Result<Mappings> {
    let ranges = memory.ranges();
    let pages: u64 = ranges.iter().map(|range| (range.end - range.start) / PAGE_U64).sum();
    let tables_left = TABLES_MIN.max(TABLES_PER_PAGE * pages);
    let mut list = Lister { mappings: Mappings::default(), tables_left, ranges };
    if !registers.has_mmu_on() {
        for range in list.ranges.clone() {
            let Range { start, end } = range;
            list.mappings.add(Run { va: start, ipa: start, bytes: end - start });
        }
        return Ok(list.mappings);
    }
    for half in Half::all(registers) {
        list.walk(memory, &half, half.root, (0, half.prefix))?;
    }
    Ok(list.mappings)
}

struct Lister {
    mappings: Mappings,
    tables_left: u64,
    ranges: Vec<Range<u64>>,
}

impl Lister {
    fn walk(
        &mut self,
        memory: &mut impl Memory,
        half: &Half,
        table: u64,
        (depth, va): (u32, u64),
    ) -> io::Result<()> {
        let Some(left) = self.tables_left.checked_sub(1) else {
            self.mappings.is_cut = true;
            return Ok(());
        };
        self.tables_left = left;
        let mut bytes = vec![0; usize::try_from(8 * half.entries(depth)).unwrap_or(0)];
        if !super::read(memory, table, &mut bytes)? {
            return Ok(());
        }
        let size = 1 << half.shift(depth);
        for (entry, n) in bytes.chunks_exact(8).zip(0..) {
            let descriptor = u64::from_le_bytes(entry.try_into().unwrap_or_default());
            let va = va | n << half.shift(depth);
            match half.entry(descriptor, depth) {
                Entry::Invalid => {}
                Entry::Leaf(ipa) => self.add_memory(va, ipa, size),
                Entry::Table(next) => self.walk(memory, half, next, (depth + 1, va))?,
            }
        }
        Ok(())
    }

    /// Adds what of a mapping is memory.
    fn add_memory(&mut self, va: u64, ipa: u64, bytes: u64) {
        let Some(end) = ipa.checked_add(bytes) else { return };
        for range in self.ranges.clone() {
            let (start, end) = (range.start.max(ipa), range.end.min(end));
            if start < end {
                let (va, bytes) = (va + (start - ipa), end - start);
                self.mappings.add(Run { va, ipa: start, bytes });
            }
        }
    }
}

#[cfg(test)]
mod tests;
