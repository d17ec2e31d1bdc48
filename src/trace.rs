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

/// The exits of one vCPU.
#[derive(Debug, Default)]
pub struct ExitCounters {
    counts: [u64; ExitReason::COUNT],
    ticks: [u64; ExitReason::COUNT],
    /// How many exits took from 2^n up to 2^(n+1) ticks.
    histogram: [u32; 32],
}

impl ExitCounters {
    /// Counts one exit that has kept the core at EL2 for `ticks`.
    #[inline(always)]
    pub fn count(&mut self, reason: ExitReason, ticks: u64) {
        let n = reason as usize;
        if let (Some(count), Some(sum)) = (self.counts.get_mut(n), self.ticks.get_mut(n)) {
            *count = count.wrapping_add(1);
            *sum = sum.wrapping_add(ticks);
        }
        // 0 and 1 tick share the first bucket.
        let bucket = (63 - (ticks | 1).leading_zeros()).min(31) as usize;
        if let Some(bucket) = self.histogram.get_mut(bucket) {
            *bucket = bucket.wrapping_add(1);
        }
    }

    /// Returns how often the vCPU left for this reason, and the ticks that took.
    #[must_use]
    pub fn get(&self, reason: ExitReason) -> (u64, u64) {
        let n = reason as usize;
        (self.counts.get(n).copied().unwrap_or(0), self.ticks.get(n).copied().unwrap_or(0))
    }

    /// Returns how many exits took from 2^n up to 2^(n+1) ticks.
    #[must_use]
    pub fn histogram(&self) -> &[u32; 32] {
        &self.histogram
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
        assert_eq!((histogram[0], histogram[1], histogram[2], histogram[31]), (2, 2, 1, 2));
    }
}
