// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Values on a bus: widths of accesses, and what a device model answers.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

/// How wide an access is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Width {
    /// 8 bits.
    Byte,
    /// 16 bits.
    Half,
    /// 32 bits.
    Word,
    /// 64 bits.
    Double,
}

impl Width {
    /// All widths, narrowest first.
    pub const ALL: [Self; 4] = [Self::Byte, Self::Half, Self::Word, Self::Double];

    /// Takes log2 of the size in bytes, as a syndrome's SAS field has it; only the low two bits
    /// count.
    #[must_use]
    #[inline(always)]
    pub const fn from_log2(log2: u64) -> Self {
        match log2 & 3 {
            0 => Self::Byte,
            1 => Self::Half,
            2 => Self::Word,
            _ => Self::Double,
        }
    }
    /// Returns the size in bytes.
    #[must_use]
    #[inline(always)]
    pub const fn bytes(self) -> u64 {
        1 << self as u64
    }
    /// Returns the mask of the bits that an access of this width carries.
    #[must_use]
    #[inline(always)]
    pub const fn mask(self) -> u64 {
        u64::MAX >> (64 - 8 * self.bytes())
    }
}

/// Why a guest does not go on behind an access. The caller decides what it gets instead.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MmioError {
    /// No register takes an access of this width or alignment.
    Width,
    /// There is nothing at this offset.
    Unmapped,
    /// The access is done, and was the guest's last one: it says that it has panicked.
    Panicked,
}

/// What an interrupt line carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Level {
    /// Nothing to say.
    #[default]
    Low,
    /// The device wants attention.
    High,
}

/// What makes an interrupt pending.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Trigger {
    /// A change of its line.
    Edge,
    /// The level of its line.
    Level,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_are_the_architectures() {
        let expected = [(1, 0xff), (2, 0xffff), (4, 0xffff_ffff), (8, u64::MAX)];
        for (width, (bytes, mask)) in Width::ALL.into_iter().zip(expected) {
            assert_eq!((width.bytes(), width.mask()), (bytes, mask));
            assert_eq!(Width::from_log2(bytes.trailing_zeros().into()), width);
        }
    }
}
