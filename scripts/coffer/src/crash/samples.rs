// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A guest's memory for tests, and tables in it.
#![forbid(unsafe_code)]

use super::{Memory, PAGE, Page, Registers};
use std::collections::BTreeSet;
use std::io;
use std::ops::Range;

/// Memory in one piece. Keeps which pages were asked for.
#[derive(Debug)]
pub struct Ram {
    pub start: u64,
    pub bytes: Vec<u8>,
    pub asked: BTreeSet<u64>,
}

impl Ram {
    pub fn new(start: u64, pages: usize) -> Self {
        Self { start, bytes: vec![0; pages * PAGE], asked: BTreeSet::new() }
    }
    pub fn write(&mut self, ipa: u64, words: &[u64]) {
        let at = usize::try_from(ipa - self.start).unwrap();
        for (n, word) in words.iter().enumerate() {
            self.bytes[at + 8 * n..at + 8 * n + 8].copy_from_slice(&word.to_le_bytes());
        }
    }
    pub fn word(&self, ipa: u64) -> u64 {
        let at = usize::try_from(ipa - self.start).unwrap();
        u64::from_le_bytes(self.bytes[at..at + 8].try_into().unwrap())
    }
}

impl Memory for Ram {
    fn ranges(&self) -> Vec<Range<u64>> {
        let end = self.start + self.bytes.len() as u64;
        std::iter::once(self.start..end).collect()
    }
    fn page(&mut self, ipa: u64) -> io::Result<Page> {
        assert_eq!(ipa % PAGE as u64, 0);
        assert!(self.ranges()[0].contains(&ipa), "{ipa:#x} is no memory");
        self.asked.insert(ipa);
        let at = usize::try_from(ipa - self.start).unwrap();
        let bytes = &self.bytes[at..at + PAGE];
        let is_zero = bytes.iter().all(|byte| *byte == 0);
        Ok(if is_zero { Page::Zero } else { Page::Bytes(bytes.into()) })
    }
}

/// Registers of a vCPU with its MMU off.
pub fn flat() -> Registers {
    Registers { pstate: 0x3c5, ..Registers::default() }
}

/// A granule and a size of addresses, as TCR_EL1 has them for both halves.
#[derive(Clone, Copy, Debug)]
pub struct Regime {
    pub granule: u32,
    pub va_bits: u32,
    pub has_lpa2: bool,
}

pub const REGIMES: [Regime; 9] = [
    Regime { granule: 12, va_bits: 39, has_lpa2: false },
    Regime { granule: 12, va_bits: 48, has_lpa2: false },
    Regime { granule: 12, va_bits: 48, has_lpa2: true },
    Regime { granule: 12, va_bits: 52, has_lpa2: true },
    Regime { granule: 14, va_bits: 47, has_lpa2: false },
    Regime { granule: 14, va_bits: 48, has_lpa2: false },
    Regime { granule: 14, va_bits: 52, has_lpa2: true },
    Regime { granule: 16, va_bits: 42, has_lpa2: false },
    Regime { granule: 16, va_bits: 52, has_lpa2: false },
];

impl Regime {
    /// Returns the registers of a vCPU whose tables for the upper half start at `root`; the lower
    /// half is off.
    pub fn registers(self, root: u64) -> Registers {
        // TG1: 16 KiB is 1, 4 KiB is 2, 64 KiB is 3 (DDI 0487 D24.2, TCR_EL1).
        let granule = match self.granule {
            14 => 1,
            12 => 2,
            _ => 3,
        };
        let size = u64::from(64 - self.va_bits);
        let tcr = granule << 30 | size << 16 | size | 1 << 7 | u64::from(self.has_lpa2) << 59;
        Registers { sctlr: 1, tcr, ttbr1: root, ..flat() }
    }
    pub fn base(self) -> u64 {
        u64::MAX << self.va_bits
    }
    /// The lowest bits of the address that each level translates, the first level first.
    fn shifts(self) -> Vec<u32> {
        let all = (0..).map(|n| self.granule + n * (self.granule - 3));
        let mut shifts: Vec<_> = all.take_while(|shift| *shift < self.va_bits).collect();
        shifts.reverse();
        shifts
    }
    /// Puts an address into a descriptor (DDI 0487 D8.3.1): bits 51:48 elsewhere with 52 bits.
    fn address(self, ipa: u64) -> u64 {
        let low = ipa & ((1 << 48) - 1);
        match (self.granule, self.has_lpa2) {
            (16, _) => low | (ipa >> 48) << 12,
            (_, true) => low | (ipa >> 48 & 3) << 48 | (ipa >> 50) << 8,
            _ => low,
        }
    }
}

/// Tables under construction: takes their memory from the end of RAM down.
pub struct Tables {
    pub regime: Regime,
    pub root: u64,
    next: u64,
}

impl Tables {
    pub fn new(regime: Regime, ram: &Ram) -> Self {
        let end = ram.ranges()[0].end;
        let mut tables = Self { regime, root: 0, next: end };
        tables.root = tables.table();
        tables
    }
    fn table(&mut self) -> u64 {
        self.next -= 1 << self.regime.granule;
        self.next
    }
    pub fn registers(&self) -> Registers {
        self.regime.registers(self.root)
    }
    /// Maps what `levels_up` levels above pages cover: a page for 0, a block else.
    pub fn map(&mut self, ram: &mut Ram, va: u64, ipa: u64, levels_up: usize) {
        let shifts = self.regime.shifts();
        let last = shifts.len() - 1 - levels_up;
        let mut table = self.root;
        for (depth, shift) in shifts.iter().enumerate().take(last + 1) {
            let bits = if depth == 0 { self.regime.va_bits } else { shifts[depth - 1] } - shift;
            let entry = table + 8 * (va >> shift & ((1 << bits) - 1));
            if depth == last {
                let kind = if levels_up == 0 { 3 } else { 1 };
                // AF, and permissions that do not matter here.
                ram.write(entry, &[self.regime.address(ipa) | 1 << 10 | 1 << 54 | kind]);
            } else if ram.word(entry) == 0 {
                let next = self.table();
                ram.write(entry, &[self.regime.address(next) | 3]);
                table = next;
            } else {
                table = ram.word(entry) & ((1 << 48) - 1) & (u64::MAX << self.regime.granule);
            }
        }
    }
}
