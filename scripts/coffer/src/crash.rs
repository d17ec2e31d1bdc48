// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What is made of a VM that has crashed: a core file for a debugger, and a backtrace with names.
//!
//! Takes the registers of the frozen vCPUs and a [`Memory`] that reads the guest's by its own
//! addresses, so it does not matter how both come here. A guest may have left anything in either:
//! all work is bounded.
#![forbid(unsafe_code)]

pub mod backtrace;
pub mod core_file;
pub mod exits;
pub mod kallsyms;
pub mod map;
pub mod names;
pub mod selection;
pub mod symbol_file;
pub mod translate;
pub mod unsigned;

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::rc::Rc;

/// Bytes of the pages that are read.
pub const PAGE: usize = 4096;
const PAGE_U64: u64 = PAGE as u64;

/// What is in a page.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Page {
    /// Nothing but zeroes.
    Zero,
    /// These [`PAGE`] bytes.
    Bytes(Rc<[u8]>),
}

/// The memory of a frozen guest, by its own physical addresses.
pub trait Memory {
    /// Returns where there is memory: whole pages, in order.
    fn ranges(&self) -> Vec<Range<u64>>;
    /// Reads the page at `ipa`, which is aligned and in one of the ranges.
    ///
    /// # Errors
    /// It cannot be read.
    fn page(&mut self, ipa: u64) -> io::Result<Page>;
}

/// Keeps pages that were read, since every translation looks at the same tables.
#[derive(Debug)]
pub struct Cached<M> {
    memory: M,
    pages: BTreeMap<u64, Page>,
}

/// How many pages are kept.
const KEPT_MAX: usize = 4096;

impl<M: Memory> Cached<M> {
    /// Reads `memory`.
    pub fn new(memory: M) -> Self {
        Self { memory, pages: BTreeMap::new() }
    }
}

impl<M: Memory> Memory for Cached<M> {
    fn ranges(&self) -> Vec<Range<u64>> {
        self.memory.ranges()
    }
    fn page(&mut self, ipa: u64) -> io::Result<Page> {
        if let Some(page) = self.pages.get(&ipa) {
            return Ok(page.clone());
        }
        let page = self.memory.page(ipa)?;
        if self.pages.len() >= KEPT_MAX {
            self.pages.clear();
        }
        self.pages.insert(ipa, page.clone());
        Ok(page)
    }
}

/// Writes an address into JSON: as text in hexadecimal.
pub(crate) fn hex<S: serde::Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{value:#x}"))
}

/// Reads bytes of a guest's memory; returns whether all of them are memory.
fn read(memory: &mut impl Memory, ipa: u64, bytes: &mut [u8]) -> io::Result<bool> {
    let Some(end) = ipa.checked_add(bytes.len() as u64) else { return Ok(false) };
    if !memory.ranges().iter().any(|range| range.start <= ipa && end <= range.end) {
        return Ok(false);
    }
    let mut at = ipa;
    let mut left = bytes;
    while !left.is_empty() {
        let offset = usize::try_from(at % PAGE_U64).unwrap_or(0);
        let (part, rest) = left.split_at_mut(left.len().min(PAGE - offset));
        match memory.page(at - at % PAGE_U64)? {
            Page::Zero => part.fill(0),
            Page::Bytes(page) => {
                let from = page.get(offset..offset + part.len());
                part.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
            }
        }
        at += part.len() as u64;
        left = rest;
    }
    Ok(true)
}

/// The registers of a frozen vCPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Registers {
    /// X0 to X30.
    pub x: [u64; 31],
    /// The stack pointer of the level it was at.
    pub sp: u64,
    /// The next instruction.
    pub pc: u64,
    /// PSTATE as SPSR_EL2 has it.
    pub pstate: u64,
    /// SCTLR_EL1.
    pub sctlr: u64,
    /// TCR_EL1.
    pub tcr: u64,
    /// TTBR0_EL1.
    pub ttbr0: u64,
    /// TTBR1_EL1.
    pub ttbr1: u64,
    /// VBAR_EL1.
    pub vbar: u64,
}

impl Registers {
    /// Returns whether addresses are translated (SCTLR_EL1.M).
    #[must_use]
    pub fn has_mmu_on(&self) -> bool {
        self.sctlr & 1 != 0
    }

    /// Returns an address without its tag or pointer-authentication code: bit 55 chooses the half
    /// (DDI 0487 D8.9.1), and all above what that half translates repeats it.
    #[must_use]
    pub fn without_tag(&self, va: u64) -> u64 {
        let is_high = va >> 55 & 1 != 0;
        let size = self.tcr >> if is_high { 16 } else { 0 } & 0x3f;
        let mask = u64::MAX << (64 - size.max(12)).min(55);
        if is_high { va | mask } else { va & !mask }
    }
}

/// Reads bytes at a guest's virtual address; returns whether all of them are there.
///
/// # Errors
/// The memory cannot be read.
pub fn read_virtual(
    memory: &mut impl Memory,
    registers: &Registers,
    va: u64,
    bytes: &mut [u8],
) -> io::Result<bool> {
    let mut at = va;
    let mut left = bytes;
    while !left.is_empty() {
        let room = PAGE - usize::try_from(at % PAGE_U64).unwrap_or(0);
        let (part, rest) = left.split_at_mut(left.len().min(room));
        match translate::translate(memory, registers, at)? {
            Some(ipa) if read(memory, ipa, part)? => {}
            _ => return Ok(false),
        }
        let Some(next) = at.checked_add(part.len() as u64) else { return Ok(rest.is_empty()) };
        (at, left) = (next, rest);
    }
    Ok(true)
}

#[cfg(test)]
pub(crate) mod samples;
