// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Device registers: an owned block, reached by single loads and stores.
//!
//! Every access is one instruction with an immediate form, never a pair or a write-back: under
//! another hypervisor these would have no valid syndrome.
#![cfg_attr(
    target_os = "none",
    expect(unsafe_code, reason = "device registers are reached by address")
)]

use crate::addr::{Address, Pa, PaRange};

/// A block of device registers that one driver owns.
///
/// Offsets outside the block read as 0 and swallow writes: a driver's table may be longer than the
/// block that a device tree names.
#[derive(Debug)]
pub struct Registers {
    block: PaRange,
}

impl Registers {
    /// Takes charge of a block, which EL2 has mapped as device memory.
    #[must_use]
    pub const fn new(block: PaRange) -> Self {
        Self { block }
    }
    /// Returns where the block is.
    #[must_use]
    pub const fn range(&self) -> PaRange {
        self.block
    }
    /// Reads 8 bits.
    #[must_use]
    pub fn read8(&self, offset: u64) -> u8 {
        self.at(offset, 1).map_or(0, access::read8)
    }
    /// Writes 8 bits.
    pub fn write8(&self, offset: u64, value: u8) {
        if let Some(at) = self.at(offset, 1) {
            access::write8(at, value);
        }
    }
    /// Reads 32 bits.
    #[must_use]
    #[inline]
    pub fn read32(&self, offset: u64) -> u32 {
        self.at(offset, 4).map_or(0, access::read32)
    }
    /// Writes 32 bits.
    #[inline]
    pub fn write32(&self, offset: u64, value: u32) {
        if let Some(at) = self.at(offset, 4) {
            access::write32(at, value);
        }
    }
    /// Reads 64 bits.
    #[must_use]
    pub fn read64(&self, offset: u64) -> u64 {
        self.at(offset, 8).map_or(0, access::read64)
    }
    /// Writes 64 bits.
    pub fn write64(&self, offset: u64, value: u64) {
        if let Some(at) = self.at(offset, 8) {
            access::write64(at, value);
        }
    }

    fn at(&self, offset: u64, width: u64) -> Option<Pa> {
        let inside = offset.checked_add(width)? <= self.block.size();
        if inside && offset.is_multiple_of(width) {
            self.block.start().checked_add(offset)
        } else {
            None
        }
    }
}

#[cfg(target_os = "none")]
mod access {
    use super::{Address, Pa};
    use core::arch::asm;

    macro_rules! access {
        ($($read:ident $write:ident $int:ty, $load:literal, $store:literal;)*) => {$(
            #[inline(always)]
            pub fn $read(at: Pa) -> $int {
                let value: $int;
                // SAFETY: The block's owner has had it mapped as device memory; no Rust object
                // lies there.
                unsafe {
                    asm!($load, value = out(reg) value, at = in(reg) at.get(),
                        options(nostack, preserves_flags));
                }
                value
            }

            #[inline(always)]
            pub fn $write(at: Pa, value: $int) {
                // SAFETY: As above.
                unsafe {
                    asm!($store, value = in(reg) value, at = in(reg) at.get(),
                        options(nostack, preserves_flags));
                }
            }
        )*};
    }

    access! {
        read8 write8 u8, "ldrb {value:w}, [{at}]", "strb {value:w}, [{at}]";
        read32 write32 u32, "ldr {value:w}, [{at}]", "str {value:w}, [{at}]";
        read64 write64 u64, "ldr {value}, [{at}]", "str {value}, [{at}]";
    }
}

#[cfg(not(target_os = "none"))]
use crate::arch::device as access;
