// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A guest's time: the physical counter less an offset that all vCPUs of its VM share (traps T57).
//!
//! It begins at 0 with each start of the VM. Where the plan says so it stops while the VM is
//! paused: the offset grows by what has passed. Only the core of vCPU 0 begins, stops and goes on,
//! while no vCPU runs.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What [`Clock::stopped_at_ticks`] says of one that runs.
const RUNS: u64 = u64::MAX;

/// A guest's time, in ticks of the generic timer.
///
/// The state of the VM's lifecycle, which changes behind it, orders it for other cores.
#[derive(Debug)]
pub struct Clock {
    /// CNTVOFF_EL2 of all vCPUs.
    offset_ticks: AtomicU64,
    /// When it was stopped, by the physical counter.
    stopped_at_ticks: AtomicU64,
}

impl Clock {
    /// Makes the clock of a VM that has not begun.
    #[must_use]
    pub const fn new() -> Self {
        Self { offset_ticks: AtomicU64::new(0), stopped_at_ticks: AtomicU64::new(RUNS) }
    }

    /// Returns how far the physical counter is ahead of it.
    #[must_use]
    pub fn offset_ticks(&self) -> u64 {
        self.offset_ticks.load(Relaxed)
    }

    /// Returns the guest's time when the physical counter is at `counter_ticks`.
    #[must_use]
    pub fn at(&self, counter_ticks: u64) -> u64 {
        counter_ticks.min(self.stopped_at_ticks.load(Relaxed)).wrapping_sub(self.offset_ticks())
    }

    /// Lets it begin at 0.
    pub(super) fn begin(&self, counter_ticks: u64) {
        self.stopped_at_ticks.store(RUNS, Relaxed);
        self.offset_ticks.store(counter_ticks, Relaxed);
    }

    /// Stops it, unless it stands still already.
    pub(super) fn stop(&self, counter_ticks: u64) {
        if self.stopped_at_ticks.load(Relaxed) == RUNS {
            self.stopped_at_ticks.store(counter_ticks, Relaxed);
        }
    }

    /// Lets it go on from where it was stopped, if it was.
    pub(super) fn go_on(&self, counter_ticks: u64) {
        let stopped_at_ticks = self.stopped_at_ticks.swap(RUNS, Relaxed);
        if stopped_at_ticks != RUNS {
            let missed_ticks = counter_ticks.wrapping_sub(stopped_at_ticks);
            self.offset_ticks.fetch_add(missed_ticks, Relaxed);
        }
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t57_time_goes_on_where_it_was_stopped() {
        let clock = Clock::new();
        clock.begin(1000);
        assert_eq!((clock.at(1000), clock.at(1500)), (0, 500));
        clock.go_on(1600);
        assert_eq!(clock.at(1600), 600, "it was not stopped");
        clock.stop(1700);
        clock.stop(1800);
        assert_eq!((clock.at(1700), clock.at(9000)), (700, 700));
        clock.go_on(10_000);
        assert_eq!((clock.at(10_000), clock.at(10_001)), (700, 701));
        assert_eq!(clock.offset_ticks(), 9300);
        // A start of a VM that was stopped begins anew.
        clock.stop(11_000);
        clock.begin(20_000);
        assert_eq!((clock.at(20_000), clock.at(20_007)), (0, 7));
    }
}
