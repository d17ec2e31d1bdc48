// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Which cache lines hold a range of bytes.
//!
//! Knows arithmetic only; the instructions (DC CVAC, DC CIVAC) and their barriers are the machine
//! layer's. DDI 0487 D7.5.9 (cache maintenance), CTR_EL0.
#![forbid(unsafe_code)]

use crate::addr::Address;

/// The size of a data cache line, at least 4 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct LineSize {
    log2: u32,
}

impl LineSize {
    /// Reads CTR_EL0.DminLine: log2 of the words in the smallest data cache line of a core.
    ///
    /// A range that other cores use is walked by the smallest of all cores' lines: `min`.
    #[must_use]
    pub const fn from_ctr_el0(ctr: u64) -> Self {
        let mut log2 = 2;
        let mut left = ctr >> 16 & 0xf;
        while left > 0 {
            log2 += 1;
            left -= 1;
        }
        Self { log2 }
    }
    /// Returns the size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        1 << self.log2
    }
}

/// Returns the start of each line that holds a byte of `start .. start + size`, in order.
///
/// A range that would pass the top of the address space ends there; an empty one has no lines.
pub fn cache_lines<A: Address>(start: A, size: u64, line: LineSize) -> impl Iterator<Item = A> {
    let first = start.get() >> line.log2;
    let end = match size.checked_sub(1) {
        // Shifted down, so the line behind the last one still is a number.
        Some(rest) => (start.get().saturating_add(rest) >> line.log2) + 1,
        None => first,
    };
    (first..end).map(move |number| A::new(number << line.log2))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Pa;
    use proptest::prelude::*;
    use std::vec::Vec;

    fn lines(start: u64, size: u64, log2: u32) -> Vec<u64> {
        cache_lines(Pa::new(start), size, LineSize { log2 }).map(Pa::get).collect()
    }

    #[test]
    fn line_size_is_read_from_ctr() {
        // Cortex-A72: DminLine 4, that is 16 words.
        assert_eq!(LineSize::from_ctr_el0(0x8444_c004).bytes(), 64);
        assert_eq!(LineSize::from_ctr_el0(0).bytes(), 4);
        assert_eq!(LineSize::from_ctr_el0(0xf_0000).bytes(), 4 << 15);
        assert!(LineSize::from_ctr_el0(3 << 16) < LineSize::from_ctr_el0(4 << 16));
    }

    #[test]
    fn t03_edges() {
        assert!(lines(0x1000, 0, 6).is_empty());
        assert!(lines(u64::MAX, 0, 6).is_empty());
        assert_eq!(lines(0x103f, 1, 6), [0x1000]);
        assert_eq!(lines(0x103f, 2, 6), [0x1000, 0x1040]);
        assert_eq!(lines(0x1000, 64, 6), [0x1000], "the end is exclusive");
        assert_eq!(lines(u64::MAX, 1, 6), [u64::MAX - 63]);
        assert_eq!(lines(u64::MAX - 64, u64::MAX, 6), [u64::MAX - 127, u64::MAX - 63]);
    }

    proptest! {
        /// Each byte lies in exactly one line, each line holds a byte, none is named twice.
        #[test]
        fn t03_every_byte_is_covered_once(
            start in prop_oneof![0..0x1000u64, (u64::MAX - 0x1000)..=u64::MAX, any::<u64>()],
            size in 0..0x800u64,
            log2 in 4..12u32,
        ) {
            let lines = lines(start, size, log2);
            let length = 1u64 << log2;
            for &line in &lines {
                prop_assert_eq!(line % length, 0);
                let last = line + (length - 1);
                prop_assert!(start <= last, "a line before the range");
                prop_assert!(size > 0 && line <= start.saturating_add(size - 1), "a line behind");
            }
            for pair in lines.windows(2) {
                prop_assert_eq!(pair[1] - pair[0], length, "a gap or a line twice");
            }
            if size > 0 {
                prop_assert_eq!(lines.first(), Some(&(start - start % length)));
                let last = start.saturating_add(size - 1);
                prop_assert_eq!(lines.last(), Some(&(last - last % length)));
            } else {
                prop_assert!(lines.is_empty());
            }
        }
    }
}
