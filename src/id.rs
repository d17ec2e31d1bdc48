// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Identities: small numbers of different kinds that must not be mixed.
#![forbid(unsafe_code)]

use core::fmt;
use serde::{Deserialize, Serialize};

macro_rules! id {
    ($(#[$doc:meta] $name:ident($int:ty))*) => {$(
        #[$doc]
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
        #[derive(Serialize, Deserialize)]
        #[repr(transparent)]
        pub struct $name($int);

        impl $name {
            /// Makes the identity from its number.
            #[must_use]
            #[inline(always)]
            pub const fn new(value: $int) -> Self {
                Self(value)
            }
            /// Returns the number.
            #[must_use]
            #[inline(always)]
            pub const fn get(self) -> $int {
                self.0
            }
            /// Returns the number as an index.
            #[must_use]
            #[inline(always)]
            pub const fn index(self) -> usize {
                self.0 as usize
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                u64::from(self.0).fmt(f)
            }
        }
    )*};
}

id! {
    /// A VM as software knows it: its place in the plan.
    VmId(u8)
    /// The tag of a VM's TLB entries (VTTBR_EL2.VMID). Never 0: that is nobody's.
    Vmid(u16)
    /// A vCPU: its place in its VM.
    VcpuId(u8)
    /// A pCPU: its place in the host tree's /cpus.
    PcpuId(u8)
    /// An interrupt number that a guest sees.
    Vintid(u32)
    /// An interrupt number of the physical GIC.
    Pintid(u32)
}

/// A PE's affinity as MPIDR_EL1 has it: Aff3 in bits 39:32, Aff2, Aff1, Aff0 in bits 23:0.
///
/// All other bits are 0 (DDI 0487, MPIDR_EL1).
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
#[serde(try_from = "u64")]
pub struct Mpidr(u64);

impl Mpidr {
    /// The bits that hold affinity fields.
    pub const AFFINITY: u64 = 0xff_00ff_ffff;

    /// Takes the affinity fields of a value read from MPIDR_EL1.
    #[must_use]
    pub const fn from_register(value: u64) -> Self {
        Self(value & Self::AFFINITY)
    }
    /// Takes an affinity that somebody names; `None` when other bits are set.
    #[must_use]
    pub const fn from_affinity(value: u64) -> Option<Self> {
        if value & !Self::AFFINITY == 0 { Some(Self(value)) } else { None }
    }
    /// Returns the affinity fields in their places.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
    /// Returns the affinity packed into 32 bits, Aff3 on top, as GICR_TYPER has it.
    #[must_use]
    pub const fn packed(self) -> u32 {
        // Both halves fit by the mask above.
        ((self.0 >> 8) & 0xff00_0000) as u32 | (self.0 & 0xff_ffff) as u32
    }
}

impl TryFrom<u64> for Mpidr {
    type Error = &'static str;
    fn try_from(value: u64) -> Result<Self, Self::Error> {
        Self::from_affinity(value).ok_or("an affinity has other bits")
    }
}

impl fmt::Display for Mpidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t88_mpidr_with_other_bits_is_refused() {
        for bit in 0..64 {
            let value = 1u64 << bit;
            let expected = bit < 24 || (32..40).contains(&bit);
            assert_eq!(Mpidr::from_affinity(value).is_some(), expected, "bit {bit}");
        }
    }

    #[test]
    fn packed_affinity_puts_aff3_on_top() {
        assert_eq!(Mpidr::from_register(0x12_8134_5678).packed(), 0x1234_5678);
    }
}
