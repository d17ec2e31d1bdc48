// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Whether a core is at EL2, and since when: said by the core with a store, read by another that
//! watches it, which stops nobody (ADR 13).
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// How often the same beat is seen before its core counts as stuck: a watcher that was itself not
/// run, as on a host that had no time for it, comes to no conclusion from its first look.
const LOOKS_MIN: u8 = 3;
/// What a core says that any interrupt would get.
const AWAY: u64 = 0;

/// What one core says of itself.
#[derive(Debug, Default)]
pub struct Beat(AtomicU64);

impl Beat {
    /// Makes the beat of a core that is away.
    pub(super) const fn new() -> Self {
        Self(AtomicU64::new(AWAY))
    }

    /// Says that this core is at EL2, and that it has come or looked for interrupts at this tick.
    #[inline(always)]
    pub fn at_el2(&self, now_ticks: u64) {
        self.0.store(now_ticks, Relaxed);
    }

    /// Says that this core is in its guest, or sleeps: an interrupt gets it.
    #[inline(always)]
    pub fn away(&self) {
        self.0.store(AWAY, Relaxed);
    }

    /// Returns since when this core has been at EL2 without a look for interrupts, in ticks.
    #[must_use]
    pub fn since(&self) -> Option<u64> {
        Some(self.0.load(Relaxed)).filter(|since| *since != AWAY)
    }
}

/// What a watcher knows of a core.
#[derive(Clone, Copy, Debug, Default)]
pub struct Watched {
    since: Option<u64>,
    looks: u8,
    is_stuck: bool,
}

/// What a look has found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found {
    /// Nothing that is new.
    Nothing,
    /// The core is stuck, for so many ticks.
    Stuck(u64),
    /// A core that was stuck goes on.
    Back,
}

impl Watched {
    /// Looks at a core. One that has been at EL2 for this long without a look of its own, and was
    /// seen there often enough, is stuck, which is said once.
    pub fn look(&mut self, since: Option<u64>, now_ticks: u64, patience_ticks: u64) -> Found {
        if since.is_none() || since != self.since {
            let was_stuck = self.is_stuck;
            *self = Self { since, looks: 1, is_stuck: false };
            return if was_stuck { Found::Back } else { Found::Nothing };
        }
        self.looks = self.looks.saturating_add(1);
        let took = now_ticks.wrapping_sub(since.unwrap_or(now_ticks));
        if self.is_stuck || self.looks < LOOKS_MIN || took < patience_ticks {
            return Found::Nothing;
        }
        self.is_stuck = true;
        Found::Stuck(took)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: u64 = 200;

    /// Looks every 100 ticks from `first` on, and returns what was found at which tick.
    fn looks(first: u64, beat: impl Fn(u64) -> Option<u64>) -> std::vec::Vec<(u64, Found)> {
        let mut watched = Watched::default();
        let at = (0..20).map(|n| first + n * 100);
        let found = at.map(|now| (now, watched.look(beat(now), now, PATIENCE)));
        found.filter(|(_, found)| *found != Found::Nothing).collect()
    }

    #[test]
    fn a_beat_is_away_or_since_a_tick() {
        let beat = Beat::new();
        assert_eq!(beat.since(), None);
        beat.at_el2(7);
        assert_eq!(beat.since(), Some(7));
        beat.at_el2(9);
        assert_eq!(beat.since(), Some(9));
        beat.away();
        assert_eq!(beat.since(), None);
    }

    /// Whenever it begins between two looks, it is found in time, and said once.
    #[test]
    fn stuck_core_is_found_within_its_time_and_a_period() {
        for since in 1_000..1_100 {
            let found = looks(50, |now| (now >= since).then_some(since));
            let [(at, Found::Stuck(took))] = found[..] else { panic!("{found:?}") };
            assert_eq!(took, at - since);
            assert!((PATIENCE..=PATIENCE + 100).contains(&took), "{since}: {took}");
        }
    }

    #[test]
    fn core_that_looks_or_leaves_now_and_then_is_alive() {
        assert_eq!(looks(0, |_| None), []);
        // It has looked since, each time.
        assert_eq!(looks(0, |now| Some(now.saturating_sub(50) / 150 * 150 + 1)), []);
        // It was in its guest meanwhile.
        assert_eq!(looks(0, |now| (now % 300 != 0).then_some(5)), []);
    }

    #[test]
    fn stuck_core_may_come_back_and_be_stuck_again() {
        let found = looks(0, |now| match now {
            0..=500 => Some(1),
            600..=700 => None,
            _ => Some(701),
        });
        let at = found.iter().map(|(at, found)| (*at, *found == Found::Back));
        assert_eq!(at.collect::<std::vec::Vec<_>>(), [(300, false), (600, true), (1000, false)]);
    }

    /// A watcher that was not run for long has seen the beat once.
    #[test]
    fn one_late_look_says_nothing() {
        let mut watched = Watched::default();
        assert_eq!(watched.look(Some(1), 5_000, PATIENCE), Found::Nothing);
        assert_eq!(watched.look(Some(1), 5_100, PATIENCE), Found::Nothing);
        assert_eq!(watched.look(Some(5_101), 5_200, PATIENCE), Found::Nothing);
    }
}
