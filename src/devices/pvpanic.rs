// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The port through which a guest says that it has panicked (QEMU, docs/specs/pvpanic): one byte,
//! whose set bits a read shows and a write reports. It has no state.
#![forbid(unsafe_code)]

use super::check;
use crate::bits::{MmioError, Width};

/// The guest has panicked, and nobody in it does anything about it.
const PANICKED: u64 = 1 << 0;
/// The guest has panicked, and its own crash kernel goes on.
const CRASH_LOADED: u64 = 1 << 1;

/// What a guest reports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// It has panicked and cannot go on.
    Panicked,
    /// It has panicked, and goes on by itself.
    CrashLoaded,
}

/// Reads the register at `offset`: what can be reported. What is reserved reads as 0.
///
/// # Errors
/// Refuses unaligned accesses and what lies outside the registers.
pub fn read(offset: u64, width: Width) -> Result<u64, MmioError> {
    check(offset, width, Width::Double)?;
    Ok(if offset == 0 { PANICKED | CRASH_LOADED } else { 0 })
}

/// Writes the register at `offset`, and returns what that reports: the worse of two.
///
/// # Errors
/// As [`read`].
pub fn write(offset: u64, width: Width, value: u64) -> Result<Option<Event>, MmioError> {
    check(offset, width, Width::Double)?;
    Ok(match offset {
        0 if value & PANICKED != 0 => Some(Event::Panicked),
        0 if value & CRASH_LOADED != 0 => Some(Event::CrashLoaded),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t37_every_offset_and_width_has_a_defined_answer() {
        for offset in 0..0x2000 {
            for width in Width::ALL {
                let expected = if offset >= 0x1000 {
                    Err(MmioError::Unmapped)
                } else if offset % width.bytes() != 0 {
                    Err(MmioError::Width)
                } else {
                    Ok(if offset == 0 { 3 } else { 0 })
                };
                assert_eq!(read(offset, width), expected, "{offset:#x} {width:?}");
                let written = write(offset, width, 1);
                let reported = (offset == 0).then_some(Event::Panicked);
                assert_eq!(written, expected.map(|_| reported), "{offset:#x} {width:?}");
            }
        }
    }

    #[test]
    fn bits_that_nobody_knows_report_nothing() {
        for value in 0..=0xff {
            let expected = match value & 3 {
                1 | 3 => Some(Event::Panicked),
                2 => Some(Event::CrashLoaded),
                _ => None,
            };
            assert_eq!(write(0, Width::Byte, value), Ok(expected), "{value:#x}");
        }
    }
}
