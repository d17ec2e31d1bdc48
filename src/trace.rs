// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What each vCPU's exits cost: counts, ticks at EL2 and a histogram, from the first exit on.
//!
//! One [`ExitCounters`] belongs to one core, which alone writes it, so that counting is a load, an
//! addition and a store.
#![forbid(unsafe_code)]

/// Why a vCPU left its guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub enum ExitReason {
    /// HVC or SMC.
    Call,
    /// A system register.
    SystemRegister,
    /// A device model.
    Mmio,
    /// A physical interrupt.
    Interrupt,
    /// All else: aborts, hidden instructions, SErrors.
    Fault,
}

impl ExitReason {
    /// All reasons, in the order of the counters.
    pub const ALL: [Self; 5] =
        [Self::Call, Self::SystemRegister, Self::Mmio, Self::Interrupt, Self::Fault];
    const COUNT: usize = Self::ALL.len();
}

/// The exits of one vCPU for one reason.
#[derive(Clone, Copy, Debug, Default)]
struct Exits {
    count: u64,
    ticks: u64,
}

/// The exits of one vCPU.
#[derive(Debug)]
pub struct ExitCounters {
    by_reason: [Exits; ExitReason::COUNT],
    /// How many exits took ticks with this many leading zeros.
    by_leading_zeros: [u32; 65],
}

impl Default for ExitCounters {
    fn default() -> Self {
        Self { by_reason: Default::default(), by_leading_zeros: [0; 65] }
    }
}

impl ExitCounters {
    /// Counts one exit that has kept the core at EL2 for `ticks`.
    #[inline(always)]
    pub fn count(&mut self, reason: ExitReason, ticks: u64) {
        if let Some(exits) = self.by_reason.get_mut(reason as usize) {
            exits.count = exits.count.wrapping_add(1);
            exits.ticks = exits.ticks.wrapping_add(ticks);
        }
        if let Some(bucket) = self.by_leading_zeros.get_mut(ticks.leading_zeros() as usize) {
            *bucket = bucket.wrapping_add(1);
        }
    }

    /// Returns how often the vCPU left for this reason, and the ticks that took.
    #[must_use]
    pub fn get(&self, reason: ExitReason) -> (u64, u64) {
        let exits = self.by_reason.get(reason as usize).copied().unwrap_or_default();
        (exits.count, exits.ticks)
    }

    /// Returns how many exits took from 2^n up to 2^(n+1) ticks; 0 ticks count as 1.
    #[must_use]
    pub fn histogram(&self) -> [u32; 64] {
        let [mut histogram @ .., none] = self.by_leading_zeros;
        histogram.reverse();
        let [first, ..] = &mut histogram;
        *first = first.wrapping_add(none);
        histogram
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_ticks_add_up_by_reason() {
        let mut counters = ExitCounters::default();
        counters.count(ExitReason::Call, 100);
        counters.count(ExitReason::Call, 28);
        counters.count(ExitReason::Mmio, 1);
        assert_eq!(counters.get(ExitReason::Call), (2, 128));
        assert_eq!(counters.get(ExitReason::Mmio), (1, 1));
        assert_eq!(counters.get(ExitReason::Fault), (0, 0));
    }

    #[test]
    fn histogram_buckets_are_powers_of_two() {
        let mut counters = ExitCounters::default();
        for ticks in [0, 1, 2, 3, 4, 1 << 31, u64::MAX] {
            counters.count(ExitReason::Call, ticks);
        }
        let histogram = counters.histogram();
        assert_eq!((histogram[0], histogram[1], histogram[2]), (2, 2, 1));
        assert_eq!((histogram[31], histogram[63]), (1, 1));
        assert_eq!(histogram.iter().sum::<u32>(), 7);
    }
}
