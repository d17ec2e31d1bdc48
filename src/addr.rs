// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Addresses: one type for each address space, so that they cannot be mixed.
//!
//! `Gva` → stage 1 → `Ipa` → stage 2 → `Pa`; `HypVa` is an EL2 virtual address. EL2 maps itself
//! one to one, but that is the business of the machine layer alone.
#![forbid(unsafe_code)]

use core::fmt;
use serde::{Deserialize, Serialize};

/// Bytes in a page: the 4 KiB granule is the only one in use.
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;
/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;

/// What the address types share.
pub trait Address: Copy + Ord + fmt::Debug {
    /// Makes an address from its number.
    fn new(value: u64) -> Self;
    /// Returns the address as a number.
    fn get(self) -> u64;

    /// Returns the address `bytes` further on, or `None` past the top of the address space.
    fn checked_add(self, bytes: u64) -> Option<Self> {
        self.get().checked_add(bytes).map(Self::new)
    }
    /// Returns whether the address is a multiple of `align`, a power of two.
    fn is_aligned(self, align: u64) -> bool {
        self.get() & align.wrapping_sub(1) == 0
    }
    /// Rounds down to a multiple of `align`, a power of two.
    #[must_use]
    fn align_down(self, align: u64) -> Self {
        Self::new(self.get() & !align.wrapping_sub(1))
    }
    /// Rounds up to a multiple of `align`, a power of two; `None` past the top.
    fn align_up(self, align: u64) -> Option<Self> {
        let rest = align.wrapping_sub(1);
        Some(Self::new(self.get().checked_add(rest)? & !rest))
    }
    /// Returns the offset in the page.
    fn page_offset(self) -> u64 {
        self.get() & (PAGE_SIZE - 1)
    }
}

macro_rules! address {
    ($(#[$doc:meta] $name:ident)*) => {$(
        #[$doc]
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[derive(Serialize, Deserialize)]
        #[repr(transparent)]
        pub struct $name(u64);

        impl Address for $name {
            #[inline(always)]
            fn new(value: u64) -> Self {
                Self(value)
            }
            #[inline(always)]
            fn get(self) -> u64 {
                self.0
            }
        }

        impl $name {
            /// Makes an address from its number, also in constants.
            #[must_use]
            pub const fn at(value: u64) -> Self {
                Self(value)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    )*};
}

address! {
    /// A guest's virtual address: what stage 1 translates.
    Gva
    /// An intermediate physical address: what a guest takes for physical, what stage 2 translates.
    Ipa
    /// A physical address.
    Pa
    /// A virtual address at EL2.
    HypVa
}

/// A range of addresses that is not empty and does not wrap: `start..start + size`.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "(A, u64)", into = "(A, u64)")]
#[serde(bound(
    serialize = "A: Serialize + Address",
    deserialize = "A: Deserialize<'de> + Address"
))]
pub struct AddrRange<A: Address> {
    start: A,
    size: u64,
}

/// Intermediate physical addresses of one VM.
pub type IpaRange = AddrRange<Ipa>;
/// Physical addresses.
pub type PaRange = AddrRange<Pa>;

impl<A: Address> AddrRange<A> {
    /// Makes the range of `size` bytes at `start`; `None` when empty or past the top.
    ///
    /// The last byte of the address space cannot be part of a range: the end is exclusive.
    pub fn new(start: A, size: u64) -> Option<Self> {
        (size > 0 && start.checked_add(size).is_some()).then_some(Self { start, size })
    }
    /// Makes the range `start..end`.
    pub fn between(start: A, end: A) -> Option<Self> {
        Self::new(start, end.get().checked_sub(start.get())?)
    }
    /// Makes the aligned block of `bytes`, a power of two from 2 up, that holds `address`.
    ///
    /// At the top of the address space it lacks the last byte.
    pub fn block(address: A, bytes: u64) -> Self {
        let start = address.align_down(bytes);
        Self { start, size: bytes.min(u64::MAX - start.get()) }
    }
    /// Returns the first address.
    pub fn start(self) -> A {
        self.start
    }
    /// Returns the size in bytes, never 0.
    pub fn size(self) -> u64 {
        self.size
    }
    /// Returns the first address behind the range.
    pub fn end(self) -> A {
        // The constructor has checked that this does not wrap.
        A::new(self.start.get().wrapping_add(self.size))
    }
    /// Returns whether the address lies in the range.
    pub fn contains(self, address: A) -> bool {
        address.get().wrapping_sub(self.start.get()) < self.size
    }
    /// Returns whether all of `other` lies in this range.
    pub fn covers(self, other: Self) -> bool {
        self.start <= other.start && other.end() <= self.end()
    }
    /// Returns whether the ranges have an address in common.
    pub fn overlaps(self, other: Self) -> bool {
        self.start < other.end() && other.start < self.end()
    }
    /// Returns what the ranges have in common.
    pub fn intersection(self, other: Self) -> Option<Self> {
        Self::between(self.start.max(other.start), self.end().min(other.end()))
    }
    /// Returns the smallest range that covers both.
    #[must_use]
    pub fn hull(self, other: Self) -> Self {
        let start = self.start.min(other.start);
        // No end is in front of the first start.
        Self { start, size: self.end().max(other.end()).get().wrapping_sub(start.get()) }
    }
    /// Returns whether start and size are multiples of `align`, a power of two.
    pub fn is_aligned(self, align: u64) -> bool {
        self.start.is_aligned(align) && self.size & align.wrapping_sub(1) == 0
    }
    /// Returns the smallest range of whole pages that covers this one.
    pub fn page_cover(self) -> Option<Self> {
        Self::between(self.start.align_down(PAGE_SIZE), self.end().align_up(PAGE_SIZE)?)
    }
}

impl<A: Address> TryFrom<(A, u64)> for AddrRange<A> {
    type Error = &'static str;
    fn try_from((start, size): (A, u64)) -> Result<Self, Self::Error> {
        Self::new(start, size).ok_or("an address range is empty or wraps")
    }
}

impl<A: Address> From<AddrRange<A>> for (A, u64) {
    fn from(range: AddrRange<A>) -> Self {
        (range.start, range.size)
    }
}

impl<A: Address> fmt::Debug for AddrRange<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl<A: Address> fmt::Display for AddrRange<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.start.get(), self.end().get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn range_that_wraps_is_refused() {
        assert!(PaRange::new(Pa::new(u64::MAX), 1).is_none());
        assert!(PaRange::new(Pa::new(u64::MAX), 2).is_none());
        assert!(PaRange::new(Pa::new(u64::MAX - 1), 1).is_some());
        assert!(PaRange::new(Pa::new(0), 0).is_none());
    }

    #[test]
    fn neighbours_do_not_overlap() {
        let a = PaRange::new(Pa::new(0x1000), 0x1000).unwrap();
        let b = PaRange::new(Pa::new(0x2000), 0x1000).unwrap();
        assert!(!a.overlaps(b) && !b.overlaps(a));
        assert!(a.contains(Pa::new(0x1fff)) && !a.contains(Pa::new(0x2000)));
        assert_eq!(a.intersection(b), None);
    }

    #[test]
    fn block_holds_its_address() {
        let block = PaRange::block(Pa::new(0x1fff), 0x1000);
        assert_eq!(Some(block), PaRange::new(Pa::new(0x1000), 0x1000));
        let top = PaRange::block(Pa::new(u64::MAX), 0x1000);
        assert_eq!((top.start(), top.end()), (Pa::new(u64::MAX - 0xfff), Pa::new(u64::MAX)));
    }

    #[test]
    fn hull_covers_the_gap() {
        let a = PaRange::new(Pa::new(0x1000), 0x1000).unwrap();
        let b = PaRange::new(Pa::new(0x8000), 0x1000).unwrap();
        assert_eq!(Some(a.hull(b)), PaRange::new(Pa::new(0x1000), 0x8000));
        assert_eq!(a.hull(b), b.hull(a));
    }

    #[test]
    fn page_cover_rounds_outwards() {
        let r = PaRange::new(Pa::new(0x1fff), 2).unwrap();
        assert_eq!(r.page_cover(), PaRange::new(Pa::new(0x1000), 0x2000));
    }
}
