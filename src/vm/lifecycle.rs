// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Whether a VM runs: cores enter and leave, and one of them leads a change.
//!
//! ```text
//!            begin(Start)              finish
//!   Off ───────────────────→ Starting ────────→ Running
//!    ↑                           ↑                 │
//!    │ finish          finish    │ begin(Start)    │ begin(Stop)
//!    └────────── Stopping ←──────┼─────────────────┘
//! ```
//!
//! A core may run the guest only between a successful [`Lifecycle::enter`] and
//! [`Lifecycle::leave`]. Whoever begins a change waits until all others have left: entering is
//! "count, then look", beginning is "say, then look at the count", both sequentially consistent,
//! so one of the two sees the other.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU8, AtomicU32, Ordering::SeqCst};

const RUNNING: u8 = 0;
const STARTING: u8 = 1;
const STOPPING: u8 = 2;
const OFF: u8 = 3;

/// What a core is asked to bring about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Change {
    /// Load the VM and run it: at boot, and after a reset.
    ///
    /// The values below it are left to the run loop's `Next`, which is compared with 0 at each
    /// exit.
    Start = 3,
    /// Leave it off.
    Stop,
}

/// The state that all cores of a VM share.
#[derive(Debug)]
pub struct Lifecycle {
    state: AtomicU8,
    inside: AtomicU32,
}

impl Lifecycle {
    /// Makes the lifecycle of a VM that is off.
    #[must_use]
    pub const fn new() -> Self {
        Self { state: AtomicU8::new(OFF), inside: AtomicU32::new(0) }
    }

    /// Asks to run the guest. On success the core calls [`leave`](Self::leave) when it no longer
    /// does.
    #[must_use]
    pub fn enter(&self) -> Entry {
        self.inside.fetch_add(1, SeqCst);
        if self.state.load(SeqCst) == RUNNING {
            return Entry::Granted;
        }
        self.leave();
        Entry::Refused
    }

    /// Says that this core no longer runs the guest.
    pub fn leave(&self) {
        self.inside.fetch_sub(1, SeqCst);
    }

    /// Returns whether a core that is inside must leave.
    #[must_use]
    pub fn wants_out(&self) -> bool {
        self.state.load(SeqCst) != RUNNING
    }

    /// Makes this core the leader of a change; of many at once, one wins. The leader leaves if it
    /// is inside, kicks the others, and calls [`finish`](Self::finish) once
    /// [`is_empty`](Self::is_empty).
    ///
    /// A core that acts for its guest begins before it leaves: until then no other change ends, so
    /// what was asked of one run of the VM cannot end the next one.
    #[must_use]
    pub fn begin(&self, change: Change) -> Leadership {
        let (from, to) = match change {
            Change::Start => ([OFF, RUNNING], STARTING),
            Change::Stop => ([RUNNING, RUNNING], STOPPING),
        };
        let won = from.iter().any(|&f| self.state.compare_exchange(f, to, SeqCst, SeqCst).is_ok());
        if won { Leadership::Mine } else { Leadership::Others }
    }

    /// Returns whether no core runs the guest.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.inside.load(SeqCst) == 0
    }

    /// Ends the change that this core leads.
    pub fn finish(&self, change: Change) {
        self.state.store(if change == Change::Start { RUNNING } else { OFF }, SeqCst);
    }
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self::new()
    }
}

/// The answer to [`Lifecycle::enter`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    /// The core may run the guest.
    Granted,
    /// The VM is off or changes.
    Refused,
}

/// The answer to [`Lifecycle::begin`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Leadership {
    /// This core leads.
    Mine,
    /// Another core leads a change, or the VM is not in a state for this one.
    Others,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, AtomicU64};
    use std::thread;

    #[test]
    fn of_two_leaders_one_wins() {
        let l = Lifecycle::new();
        assert_eq!(l.begin(Change::Start), Leadership::Mine);
        assert_eq!(l.begin(Change::Start), Leadership::Others);
        l.finish(Change::Start);
        assert_eq!(l.begin(Change::Stop), Leadership::Mine);
        assert_eq!(l.begin(Change::Start), Leadership::Others);
        l.finish(Change::Stop);
        assert_eq!(l.begin(Change::Stop), Leadership::Others);
    }

    /// Cores ask for resets as fast as they can; each is about the run in which it was asked for.
    #[test]
    fn t91_a_reset_is_about_the_run_that_asked() {
        const RUNS: u64 = 200;
        let l = Lifecycle::new();
        assert_eq!(l.begin(Change::Start), Leadership::Mine);
        l.finish(Change::Start);
        let run = AtomicU64::new(0);
        thread::scope(|s| {
            for _ in 0..2 {
                s.spawn(|| {
                    while run.load(SeqCst) < RUNS {
                        if l.enter() == Entry::Refused {
                            thread::yield_now();
                            continue;
                        }
                        let asked_in = run.load(SeqCst);
                        let leadership = l.begin(Change::Start);
                        l.leave();
                        if leadership == Leadership::Mine {
                            while !l.is_empty() {
                                thread::yield_now();
                            }
                            assert_eq!(run.fetch_add(1, SeqCst), asked_in);
                            l.finish(Change::Start);
                        }
                    }
                });
            }
        });
    }

    #[test]
    fn t91_no_core_is_inside_while_a_leader_changes_the_vm() {
        const ROUNDS: u64 = 100;
        let l = Lifecycle::new();
        assert_eq!(l.begin(Change::Start), Leadership::Mine);
        l.finish(Change::Start);
        let (done, changing, entered) =
            (AtomicBool::new(false), AtomicBool::new(false), AtomicU64::new(0));
        thread::scope(|s| {
            for _ in 0..3 {
                s.spawn(|| {
                    while !done.load(SeqCst) {
                        if l.enter() == Entry::Granted {
                            assert!(!changing.load(SeqCst), "inside during a change");
                            entered.fetch_add(1, SeqCst);
                            l.leave();
                        }
                    }
                });
            }
            for _ in 0..ROUNDS {
                assert_eq!(l.begin(Change::Start), Leadership::Mine);
                while !l.is_empty() {
                    thread::yield_now();
                }
                changing.store(true, SeqCst);
                thread::yield_now();
                changing.store(false, SeqCst);
                l.finish(Change::Start);
            }
            while entered.load(SeqCst) == 0 {
                thread::yield_now();
            }
            done.store(true, SeqCst);
        });
    }
}
