// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The generic watchdog (Arm Base System Architecture, DEN 0094, "Generic Watchdog"; revision 1,
//! whose offset has 48 bits).
//!
//! It compares the system counter with a value that each refresh puts one offset ahead. When the
//! counter has passed it for the first time, WS0 rises, an interrupt, and the value moves one
//! offset ahead once more; the second time WS1 rises, which is for whoever runs the guest.
//!
//! A frame of a page each is for control and for the refresh, so that an agent may have the
//! refresh alone.
#![forbid(unsafe_code)]

use super::check;
use crate::bits::{Level, MmioError, Width};

/// WRR in the refresh frame: any write refreshes.
const WRR: u64 = 0x000;
/// WCS in the control frame: control and status.
const WCS: u64 = 0x000;
/// WOR, low half: the ticks of an offset.
const WOR_LOW: u64 = 0x008;
/// WOR, bits 47:32.
const WOR_HIGH: u64 = 0x00c;
/// WCV, low half: what the counter is compared with.
const WCV_LOW: u64 = 0x010;
/// WCV, high half.
const WCV_HIGH: u64 = 0x014;
/// W_IIDR in both frames: who made it.
const W_IIDR: u64 = 0xfcc;

/// WCS.EN: it runs.
const WCS_EN: u32 = 1 << 0;
/// WCS.WS0: the counter has passed the value once.
const WCS_WS0: u32 = 1 << 1;
/// WCS.WS1: and once more.
const WCS_WS1: u32 = 1 << 2;

/// Arm's JEP106 code, architecture revision 1, and a product of our own, as the virtual GIC has it.
const IIDR: u32 = 0x43b | 1 << 16 | 0x43 << 24;
/// The bits of WOR.
const OFFSET_MASK: u64 = (1 << 48) - 1;

/// A generic watchdog. As after reset it is off.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Watchdog {
    /// WCS: what runs and what has risen.
    state: u32,
    offset_ticks: u64,
    compare: u64,
}

/// The two frames of registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Frame {
    /// Control, status, offset and compare value.
    Control,
    /// The refresh alone.
    Refresh,
}

impl Watchdog {
    /// Makes one that runs from tick `now` on and raises WS1 when it has not been refreshed for
    /// `timeout_ticks`, WS0 half way.
    #[must_use]
    pub fn armed(timeout_ticks: u64, now: u64) -> Self {
        let offset_ticks = (timeout_ticks / 2).min(OFFSET_MASK);
        let mut watchdog = Self { state: WCS_EN, offset_ticks, compare: 0 };
        watchdog.refresh(now);
        watchdog
    }

    /// Reads the register at `offset` of a frame. What is reserved reads as 0.
    ///
    /// # Errors
    /// Refuses all but aligned words in the frame.
    pub fn read(
        &mut self,
        frame: Frame,
        offset: u64,
        width: Width,
        now: u64,
    ) -> Result<u64, MmioError> {
        check_word(offset, width)?;
        self.look(now);
        Ok(match (frame, offset) {
            (_, W_IIDR) => IIDR.into(),
            (Frame::Control, WCS) => self.state.into(),
            (Frame::Control, WOR_LOW) => low(self.offset_ticks),
            (Frame::Control, WOR_HIGH) => self.offset_ticks >> 32,
            (Frame::Control, WCV_LOW) => low(self.compare),
            (Frame::Control, WCV_HIGH) => self.compare >> 32,
            _ => 0,
        })
    }

    /// Writes the register at `offset` of a frame. What is reserved or read-only ignores it.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn write(
        &mut self,
        frame: Frame,
        offset: u64,
        width: Width,
        value: u64,
        now: u64,
    ) -> Result<(), MmioError> {
        check_word(offset, width)?;
        self.look(now);
        let value = low(value);
        match (frame, offset) {
            (Frame::Control, WCS) => self.state = if value & 1 == 0 { 0 } else { WCS_EN },
            (Frame::Control, WOR_LOW) => {
                self.offset_ticks = self.offset_ticks & !u64::from(u32::MAX) | value;
            }
            (Frame::Control, WOR_HIGH) => {
                self.offset_ticks = (value << 32 & OFFSET_MASK) | low(self.offset_ticks);
            }
            // These alone are no refresh.
            (Frame::Control, WCV_LOW) => {
                self.set_compare(self.compare & !u64::from(u32::MAX) | value, now);
                return Ok(());
            }
            (Frame::Control, WCV_HIGH) => {
                self.set_compare(value << 32 | low(self.compare), now);
                return Ok(());
            }
            (Frame::Refresh, WRR) => {}
            _ => return Ok(()),
        }
        self.refresh(now);
        Ok(())
    }

    /// Does what a guest does that refreshes it: for when time has passed that was not the guest's.
    pub fn refresh(&mut self, now: u64) {
        self.state &= WCS_EN;
        self.compare = now.wrapping_add(self.offset_ticks);
    }

    /// Lets it see that it is tick `now`.
    pub fn look(&mut self, now: u64) {
        // At most twice: for each of the two signals. However late it is looked at, the second
        // follows the first by an offset.
        while let Some(deadline) = self.deadline().filter(|deadline| *deadline <= now) {
            self.expire(deadline);
        }
    }

    fn set_compare(&mut self, compare: u64, now: u64) {
        self.compare = compare;
        if self.deadline().is_some_and(|deadline| deadline <= now) {
            self.expire(now);
        }
    }

    /// Does what happens when the counter passes the value.
    fn expire(&mut self, at: u64) {
        if self.state & WCS_WS0 == 0 {
            self.state |= WCS_WS0;
            self.compare = at.wrapping_add(self.offset_ticks);
        } else {
            self.state |= WCS_WS1;
        }
    }

    /// Returns the first tick at which [`Self::look`] has something to do: `None` if never.
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        let waits = self.state & (WCS_EN | WCS_WS1) == WCS_EN;
        // "Greater than" the value it must be: nothing is greater than the last.
        if waits { self.compare.checked_add(1) } else { None }
    }

    /// Returns what WS0 carries, the interrupt.
    #[must_use]
    pub fn interrupt_level(&self) -> Level {
        if self.state & WCS_WS0 == 0 { Level::Low } else { Level::High }
    }

    /// Returns what WS1 carries: high when the guest has not answered WS0 either.
    #[must_use]
    pub fn fired(&self) -> Level {
        if self.state & WCS_WS1 == 0 { Level::Low } else { Level::High }
    }
}

/// Refuses all but words: narrower and wider accesses are not among what the specification has.
fn check_word(offset: u64, width: Width) -> Result<(), MmioError> {
    check(offset, width, Width::Word)?;
    if width == Width::Word { Ok(()) } else { Err(MmioError::Width) }
}

const fn low(value: u64) -> u64 {
    value & u32::MAX as u64
}

#[cfg(test)]
mod tests;
