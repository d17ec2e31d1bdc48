// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The last exits of a vCPU by fault or abort: what a crash capsule shows.
//!
//! Other exits are not kept: remembering one takes a dozen instructions. Who reads while the vCPU
//! runs may find the oldest one half overwritten.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

/// How many exits are kept.
const KEPT: usize = 16;

/// One exit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LastExit {
    /// ESR_EL2.
    pub syndrome: u64,
    /// The instruction: ELR_EL2 at the exit.
    pub pc: u64,
    /// FAR_EL2, where the syndrome says that it holds.
    pub far: u64,
    /// The counter at the exit.
    pub at_ticks: u64,
}

/// The last exits of one vCPU. Its core alone writes.
#[derive(Debug)]
pub struct LastExits {
    count: AtomicUsize,
    kept: [[AtomicU64; 4]; KEPT],
}

impl Default for LastExits {
    fn default() -> Self {
        Self {
            count: AtomicUsize::new(0),
            kept: [const { [const { AtomicU64::new(0) }; 4] }; KEPT],
        }
    }
}

impl LastExits {
    /// Keeps an exit, in place of the oldest one. Its core alone does this.
    pub fn keep(&self, exit: LastExit) {
        let count = self.count.load(Relaxed);
        if let Some(place) = self.kept.get(count % KEPT) {
            let LastExit { syndrome, pc, far, at_ticks } = exit;
            for (word, value) in place.iter().zip([syndrome, pc, far, at_ticks]) {
                word.store(value, Relaxed);
            }
        }
        self.count.store(count.wrapping_add(1), Relaxed);
    }

    /// Returns what is kept, the oldest first.
    pub fn iter(&self) -> impl Iterator<Item = LastExit> {
        let count = self.count.load(Relaxed);
        (count.saturating_sub(KEPT)..count).filter_map(|n| {
            let [syndrome, pc, far, at_ticks] = self.kept.get(n % KEPT)?;
            let [syndrome, pc, far, at_ticks] =
                [syndrome, pc, far, at_ticks].map(|word| word.load(Relaxed));
            Some(LastExit { syndrome, pc, far, at_ticks })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn exit(n: u64) -> LastExit {
        LastExit { syndrome: n, pc: n + 100, far: n + 200, at_ticks: n + 300 }
    }

    #[test]
    fn the_last_sixteen_are_kept_in_order() {
        let last = LastExits::default();
        assert_eq!(last.iter().count(), 0);
        for n in 0..40 {
            last.keep(exit(n));
            let expected: Vec<_> = (n.saturating_sub(15)..=n).map(exit).collect();
            assert_eq!(last.iter().collect::<Vec<_>>(), expected);
        }
    }
}
