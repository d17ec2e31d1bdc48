// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A PL061 (DDI 0190, r1p0): eight lines of general-purpose input and output.
//!
//! Nothing hangs on outputs; inputs are driven by the caller. Each line raises the interrupt on an
//! edge, which is kept until the guest clears it, or for as long as it has a level. Lines that are
//! outputs raise none. What the alternate functions would be there is nothing for.
#![forbid(unsafe_code)]

use super::check;
use crate::bits::{Level, MmioError, Width};

/// GPIODATA: the word's address says which lines it shows and changes, in bits 9:2.
const DATA_LAST: u64 = 0x3fc;
/// GPIODIR: lines that are outputs.
const DIR: u64 = 0x400;
/// GPIOIS: lines whose level counts, not their edges.
const IS: u64 = 0x404;
/// GPIOIBE: lines of which both edges count.
const IBE: u64 = 0x408;
/// GPIOIEV: lines whose rising edge or high level counts.
const IEV: u64 = 0x40c;
/// GPIOIE: lines that may raise the interrupt.
const IE: u64 = 0x410;
/// GPIORIS: lines that want to.
const RIS: u64 = 0x414;
/// GPIOMIS: lines that do.
const MIS: u64 = 0x418;
/// GPIOIC: clears edges.
const IC: u64 = 0x41c;
/// GPIOAFSEL: lines with an alternate function.
const AFSEL: u64 = 0x420;
/// GPIOPeriphID0; seven more identification registers follow, a byte in each word.
const PERIPH_ID_0: u64 = 0xfe0;

/// GPIOPeriphID0-3 and GPIOPCellID0-3: part 0x061, designer 0x41.
const IDENTIFICATION: [u8; 8] = [0x61, 0x10, 0x04, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

/// One of the eight lines.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Line(u8);

impl Line {
    /// Names line `n`, 0 to 7: what is above counts on from 0.
    #[must_use]
    pub const fn new(n: u8) -> Self {
        Self(1 << (n & 7))
    }
}

/// A PL061. As after reset all lines are inputs, and low.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Pl061 {
    /// What is driven from outside.
    inputs: u8,
    /// What the guest drives, bits of outputs alone.
    outputs: u8,
    direction: u8,
    sense: u8,
    both_edges: u8,
    event: u8,
    enable: u8,
    /// Edges that have been seen.
    edges: u8,
    alternate: u8,
}

impl Pl061 {
    /// Drives a line from outside.
    pub fn drive(&mut self, Line(line): Line, level: Level) {
        let was = self.inputs;
        match level {
            Level::Low => self.inputs &= !line,
            Level::High => self.inputs |= line,
        }
        let changed = (was ^ self.inputs) & !self.direction & !self.sense;
        // Those that have changed to where the event is, and those of which both edges count.
        self.edges |= changed & (!(self.inputs ^ self.event) | self.both_edges);
    }

    /// Reads the register at `offset`. What is reserved reads as 0.
    ///
    /// # Errors
    /// Refuses 64-bit and unaligned accesses, and what lies outside the registers.
    pub fn read(&self, offset: u64, width: Width) -> Result<u64, MmioError> {
        check(offset, width, Width::Word)?;
        let value = match offset {
            ..=DATA_LAST => lines(offset) & self.data(),
            DIR => self.direction,
            IS => self.sense,
            IBE => self.both_edges,
            IEV => self.event,
            IE => self.enable,
            RIS => self.raw(),
            MIS => self.raw() & self.enable,
            AFSEL => self.alternate,
            PERIPH_ID_0.. => identification(offset),
            _ => 0,
        };
        // The upper bytes of a word have nothing.
        Ok(if offset & 3 == 0 { value.into() } else { 0 })
    }

    /// Writes the register at `offset`. What is reserved or read-only ignores it.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn write(&mut self, offset: u64, width: Width, value: u64) -> Result<(), MmioError> {
        check(offset, width, Width::Word)?;
        if offset & 3 != 0 {
            return Ok(());
        }
        let [value, ..] = value.to_le_bytes();
        match offset {
            ..=DATA_LAST => {
                let lines = lines(offset) & self.direction;
                self.outputs = self.outputs & !lines | value & lines;
            }
            DIR => {
                self.direction = value;
                self.outputs &= value;
            }
            IS => self.sense = value,
            IBE => self.both_edges = value,
            IEV => self.event = value,
            IE => self.enable = value,
            IC => self.edges &= !value,
            AFSEL => self.alternate = value,
            _ => {}
        }
        Ok(())
    }

    /// Returns what GPIOINTR carries.
    #[must_use]
    pub fn interrupt_level(&self) -> Level {
        if self.raw() & self.enable == 0 { Level::Low } else { Level::High }
    }

    fn data(&self) -> u8 {
        self.inputs & !self.direction | self.outputs
    }

    fn raw(&self) -> u8 {
        let levels = !(self.inputs ^ self.event) & !self.direction;
        self.edges & !self.sense | levels & self.sense
    }
}

/// Returns the lines that an address of GPIODATA names.
fn lines(offset: u64) -> u8 {
    let [lines, ..] = (offset >> 2).to_le_bytes();
    lines
}

/// Returns a byte of the identification; `offset` is at or above [`PERIPH_ID_0`].
fn identification(offset: u64) -> u8 {
    let index = usize::try_from((offset - PERIPH_ID_0) >> 2).unwrap_or(usize::MAX);
    IDENTIFICATION.get(index).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests;
