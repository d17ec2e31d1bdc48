// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A PL011 that a guest sees (DDI 0183, r1p4), over a [`Wire`] that takes and gives bytes.
//!
//! Bytes leave at once: the transmit FIFO is as full as the wire is short of room, which is how a
//! guest is held back. Without a boot loader nobody turns the UART on for a guest's early console,
//! so bytes are sent whether or not UARTCR says that it is enabled. There is no DMA, no loopback,
//! no modem and no line: CTS, DSR and DCD are always there. It does not know whose wire it is.
#![forbid(unsafe_code)]

use crate::bits::{Level, MmioError, Width};
use crate::spec::pl011::*;
use heapless::Deque;

/// Where a virtual PL011's bytes go to and come from.
pub trait Wire {
    /// Sends a byte. One that comes while there is no room is lost.
    fn send(&mut self, byte: u8);
    /// Returns how many bytes could be sent now.
    fn room(&self) -> usize;
    /// Takes the next byte of input.
    fn receive(&mut self) -> Option<Received>;
}

/// A byte of input.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Received {
    /// The byte.
    pub byte: u8,
    /// Whether bytes before it were lost because nobody took them.
    pub overrun: bool,
}

/// The registers of a virtual PL011.
#[derive(Debug)]
pub struct VirtualPl011 {
    /// Bytes received, as UARTDR shows them.
    fifo: Deque<u16, FIFO_DEPTH>,
    rsr: u16,
    ilpr: u16,
    ibrd: u16,
    fbrd: u16,
    lcr_h: u16,
    cr: u16,
    ifls: u16,
    imsc: u16,
    dmacr: u16,
    /// UARTRIS but for the receive timeout, which follows the FIFO.
    raised: u16,
    /// Whether the transmit FIFO was at or below its level when last looked at.
    transmit: Fill,
}

/// How full a FIFO is, measured by the level at which it raises its interrupt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fill {
    Low,
    High,
}

impl Default for VirtualPl011 {
    fn default() -> Self {
        Self::new()
    }
}

impl VirtualPl011 {
    /// Makes a PL011 as it is after reset. A VM that starts again gets a new one.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            fifo: Deque::new(),
            rsr: 0,
            ilpr: 0,
            ibrd: 0,
            fbrd: 0,
            lcr_h: 0,
            cr: CR_RESET,
            ifls: IFLS_RESET,
            imsc: 0,
            dmacr: 0,
            raised: 0,
            transmit: Fill::Low,
        }
    }

    /// Reads the register at `offset`. What is reserved reads as 0.
    ///
    /// # Errors
    /// Refuses 64-bit and unaligned accesses, and what lies outside the window.
    pub fn read(
        &mut self,
        offset: u64,
        width: Width,
        wire: &mut impl Wire,
    ) -> Result<u64, MmioError> {
        check(offset, width)?;
        let room = if matches!(offset, DR | FR | RIS | MIS) { self.look(wire) } else { 0 };
        let value = match offset {
            DR => self.take(wire),
            RSR_ECR => self.rsr,
            FR => self.flags(room),
            ILPR => self.ilpr,
            IBRD => self.ibrd,
            FBRD => self.fbrd,
            LCR_H => self.lcr_h,
            CR => self.cr,
            IFLS => self.ifls,
            IMSC => self.imsc,
            RIS => self.pending(),
            MIS => self.pending() & self.imsc,
            DMACR => self.dmacr,
            PERIPH_ID_0.. => identification(offset),
            _ => 0,
        };
        Ok(u64::from(value) & width.mask())
    }

    /// Writes the register at `offset`; bits that a narrow access leaves out are written as 0.
    /// What is reserved or read-only ignores it.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn write(
        &mut self,
        offset: u64,
        width: Width,
        value: u64,
        wire: &mut impl Wire,
    ) -> Result<(), MmioError> {
        check(offset, width)?;
        let [low, high, ..] = (value & width.mask()).to_le_bytes();
        let value = u16::from_le_bytes([low, high]);
        match offset {
            DR => self.send(low, wire),
            RSR_ECR => self.rsr = 0,
            ILPR => self.ilpr = value & 0xff,
            IBRD => self.ibrd = value,
            FBRD => self.fbrd = value & 0x3f,
            LCR_H => self.lcr_h = value & 0xff,
            CR => self.cr = value & CR_MASK,
            IFLS => self.ifls = value & 0x3f,
            IMSC => self.imsc = value & INT_MASK,
            ICR => self.raised &= !value,
            DMACR => self.dmacr = value & 7,
            _ => return Ok(()),
        }
        self.refresh(wire);
        Ok(())
    }

    /// Looks at the wire: takes input that the FIFO has room for, sees room for output. For when
    /// input has come or room was made while the guest did something else.
    pub fn refresh(&mut self, wire: &mut impl Wire) {
        self.look(wire);
    }

    /// Does what [`Self::refresh`] does, and returns the room for output.
    fn look(&mut self, wire: &mut impl Wire) -> usize {
        let room = wire.room();
        let transmit = self.transmit_fill(room);
        // The interrupt rises when the fill passes down through the level, not while it is low.
        if self.transmit == Fill::High && transmit == Fill::Low {
            self.raised |= INT_TX;
        }
        self.transmit = transmit;
        self.fill(wire);
        room
    }

    /// Returns what UARTINTR carries.
    #[must_use]
    pub fn interrupt_level(&self) -> Level {
        if self.pending() & self.imsc != 0 { Level::High } else { Level::Low }
    }

    fn send(&mut self, byte: u8, wire: &mut impl Wire) {
        if wire.room() == 0 {
            // Written to a full FIFO: lost.
            wire.send(byte);
            return;
        }
        wire.send(byte);
        // The byte passed through the FIFO. Where that leaves it over its level, the interrupt
        // has to wait for room.
        self.transmit = self.transmit_fill(wire.room());
        match self.transmit {
            Fill::Low => self.raised |= INT_TX,
            Fill::High => self.raised &= !INT_TX,
        }
    }

    fn take(&mut self, wire: &mut impl Wire) -> u16 {
        let data = self.fifo.pop_front().unwrap_or(0);
        self.rsr |= (data & DR_OE) >> (DR_OE.trailing_zeros() - RSR_OE.trailing_zeros());
        if self.fifo.len() < self.receive_level() {
            self.raised &= !INT_RX;
        }
        self.fill(wire);
        data
    }

    /// Moves input from the wire into the FIFO. What does not fit stays on the wire.
    fn fill(&mut self, wire: &mut impl Wire) {
        while self.cr & CR_RXE != 0 && self.fifo.len() < self.depth() {
            let Some(received) = wire.receive() else { return };
            let mut data = u16::from(received.byte);
            if received.overrun {
                data |= DR_OE;
                self.raised |= INT_OE;
            }
            // There is room: the depth is at most the FIFO's.
            let _ = self.fifo.push_back(data);
            if self.fifo.len() >= self.receive_level() {
                self.raised |= INT_RX;
            }
        }
    }

    fn flags(&self, room: usize) -> u16 {
        let receive = match self.fifo.len() {
            0 => FR_RXFE,
            len if len >= self.depth() => FR_RXFF,
            _ => 0,
        };
        let transmit = if room == 0 {
            FR_TXFF | FR_BUSY
        } else if room < self.depth() {
            FR_BUSY
        } else {
            FR_TXFE
        };
        FR_CTS | FR_DSR | FR_DCD | receive | transmit
    }

    /// Returns UARTRIS. The receive timeout is at hand as soon as anything is in the FIFO, and
    /// cannot be cleared while it is: so no driver that clears first and reads then loses it.
    fn pending(&self) -> u16 {
        if self.fifo.is_empty() { self.raised } else { self.raised | INT_RT }
    }

    fn transmit_fill(&self, room: usize) -> Fill {
        let fill = self.depth().saturating_sub(room);
        let level = if self.has_fifos() { level_bytes(self.ifls) } else { 0 };
        if fill <= level { Fill::Low } else { Fill::High }
    }

    fn receive_level(&self) -> usize {
        if self.has_fifos() { level_bytes(self.ifls >> 3) } else { 1 }
    }

    fn depth(&self) -> usize {
        if self.has_fifos() { FIFO_DEPTH } else { 1 }
    }

    fn has_fifos(&self) -> bool {
        self.lcr_h & LCR_H_FEN != 0
    }
}

fn check(offset: u64, width: Width) -> Result<(), MmioError> {
    if offset >= WINDOW_BYTES {
        Err(MmioError::Unmapped)
    } else if width == Width::Double || offset & (width.bytes() - 1) != 0 {
        Err(MmioError::Width)
    } else {
        Ok(())
    }
}

/// Returns the identification register at `offset`, which is at least [`PERIPH_ID_0`].
fn identification(offset: u64) -> u16 {
    if offset & 3 != 0 {
        return 0;
    }
    let n = usize::try_from((offset - PERIPH_ID_0) / 4).unwrap_or(usize::MAX);
    IDENTIFICATION.get(n).copied().unwrap_or(0).into()
}

#[cfg(test)]
mod tests;
