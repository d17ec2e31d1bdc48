// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Access to device registers: each is one load or store without write-back, so that a hypervisor
//! finds a valid syndrome (DDI 0487 D24.2.40, ISV). Also guarded accesses at any address.
#![expect(unsafe_code, reason = "device registers are reached with inline assembly")]

use crate::exception::{Exception, Resume, catch};
use core::arch::asm;

/// The width of an access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Width {
    /// One byte.
    Byte = 1,
    /// Two bytes.
    Half = 2,
    /// Four bytes.
    Word = 4,
    /// Eight bytes.
    Double = 8,
}

impl Width {
    /// All widths.
    pub const ALL: [Self; 4] = [Self::Byte, Self::Half, Self::Word, Self::Double];
    /// Returns the width in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self as u64
    }
    /// Cuts a value to the width.
    #[must_use]
    pub const fn cut(self, value: u64) -> u64 {
        value & (u64::MAX >> (64 - 8 * self.bytes()))
    }
}

/// A block of device registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Device {
    base: u64,
    size: u64,
}

macro_rules! accessors {
    ($($read:ident $write:ident $ty:ty, $load:literal, $store:literal;)*) => {$(
        /// Reads the register at `offset`.
        #[inline(always)]
        #[must_use]
        pub fn $read(self, offset: u64) -> $ty {
            let value;
            // SAFETY: the registers are no memory of Rust's, which `new` was promised.
            unsafe { asm!($load, in(reg) self.at(offset), out(reg) value, options(nostack)) };
            value
        }
        /// Writes the register at `offset`.
        #[inline(always)]
        pub fn $write(self, offset: u64, value: $ty) {
            // SAFETY: as for reading.
            unsafe { asm!($store, in(reg) self.at(offset), in(reg) value, options(nostack)) };
        }
    )*};
}

impl Device {
    /// Makes the block of `size` bytes at `base`, an address that the tree gives to a device.
    pub(crate) const fn new(base: u64, size: u64) -> Self {
        Self { base, size }
    }
    /// Returns the address of the first register.
    #[must_use]
    pub const fn base(self) -> u64 {
        self.base
    }
    /// Returns the size in bytes.
    #[must_use]
    pub const fn size(self) -> u64 {
        self.size
    }
    /// Returns the address of the register at `offset`, which must lie in the block.
    #[must_use]
    pub fn at(self, offset: u64) -> u64 {
        assert!(offset < self.size, "offset {offset:#x} is outside of the device");
        self.base + offset
    }

    accessors! {
        read8 write8 u8, "ldrb {1:w}, [{0}]", "strb {1:w}, [{0}]";
        read16 write16 u16, "ldrh {1:w}, [{0}]", "strh {1:w}, [{0}]";
        read32 write32 u32, "ldr {1:w}, [{0}]", "str {1:w}, [{0}]";
        read64 write64 u64, "ldr {1}, [{0}]", "str {1}, [{0}]";
    }

    /// Reads `width` at `offset`, or gives the exception that the read took.
    ///
    /// # Errors
    /// Gives the exception.
    pub fn try_read(self, offset: u64, width: Width) -> Result<u64, Exception> {
        try_read(self.at(offset), width)
    }

    /// Writes the low `width` of `value` at `offset`, or gives the exception that the write took.
    ///
    /// # Errors
    /// Gives the exception.
    pub fn try_write(self, offset: u64, width: Width, value: u64) -> Result<(), Exception> {
        let address = self.at(offset);
        let ((), exception) = catch(Resume::Next, || {
            let store = match width {
                Width::Byte => store_byte,
                Width::Half => store_half,
                Width::Word => store_word,
                Width::Double => store_double,
            };
            // SAFETY: as for the accessors above; `catch` takes what the access does instead.
            unsafe { store(address, value) };
        });
        exception.map_or(Ok(()), Err)
    }
}

macro_rules! stores {
    ($($name:ident $instruction:literal;)*) => {$(
        /// # Safety
        /// The address is a device's, or the access is expected to fault.
        unsafe fn $name(address: u64, value: u64) {
            // SAFETY: promised by the caller.
            unsafe { asm!($instruction, in(reg) address, in(reg) value, options(nostack)) };
        }
    )*};
}
stores! {
    store_byte "strb {1:w}, [{0}]";
    store_half "strh {1:w}, [{0}]";
    store_word "str {1:w}, [{0}]";
    store_double "str {1}, [{0}]";
}

macro_rules! loads {
    ($($name:ident $instruction:literal;)*) => {$(
        fn $name(address: u64) -> u64 {
            // The load may not complete.
            let mut value = 0;
            // SAFETY: a load changes no memory; what it faults on is taken by a guard.
            unsafe {
                asm!($instruction, in(reg) address, inout(reg) value, options(nostack));
            }
            value
        }
    )*};
}
loads! {
    load_byte "ldrb {1:w}, [{0}]";
    load_half "ldrh {1:w}, [{0}]";
    load_word "ldr {1:w}, [{0}]";
    load_double "ldr {1}, [{0}]";
}

/// Reads `width` at a virtual address, or gives the exception that the read took.
///
/// # Errors
/// Gives the exception.
pub fn try_read(address: u64, width: Width) -> Result<u64, Exception> {
    let load = match width {
        Width::Byte => load_byte,
        Width::Half => load_half,
        Width::Word => load_word,
        Width::Double => load_double,
    };
    let (value, exception) = catch(Resume::Next, || load(address));
    exception.map_or(Ok(value), Err)
}
