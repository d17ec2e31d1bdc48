// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The small devices that every VM has: watchdog, power button, panic port.
//!
//! Plain state machines. They know no clock: whoever uses them says what time it is, in ticks of
//! the counter that the guest sees, and asks when they want to be looked at again.
#![forbid(unsafe_code)]

pub mod pl061;
pub mod pvpanic;
pub mod watchdog;

use crate::bits::{MmioError, Width};

/// The bytes of each device's registers.
pub const WINDOW_BYTES: u64 = 0x1000;

/// Refuses what lies outside of a device's registers, and accesses that are not aligned or wider
/// than `widest`.
fn check(offset: u64, width: Width, widest: Width) -> Result<(), MmioError> {
    if offset >= WINDOW_BYTES {
        return Err(MmioError::Unmapped);
    }
    if width > widest || offset & (width.bytes() - 1) != 0 {
        return Err(MmioError::Width);
    }
    Ok(())
}
