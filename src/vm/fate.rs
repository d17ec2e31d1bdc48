// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What becomes of a VM: how often it has crashed, when it is started again, when it is no longer
//! asked to stop but made to.
//!
//! The core of vCPU 0 looks at this when its timer fires, or when somebody asks it to.
#![forbid(unsafe_code)]

use super::lifecycle::Request;
use crate::plan::{OnCrash, Restarts};
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering::Relaxed};

/// The longest that a restart is put off.
const BACKOFF_MAX_MS: u64 = 60_000;
/// A VM that has run for so long before it crashes has not crashed before.
const STEADY_SECONDS: u64 = 60;
/// A time that never comes.
const NEVER: u64 = u64::MAX;

/// What is done with a VM that has crashed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It starts again, in so many milliseconds.
    Restart(u64),
    /// It is turned off.
    Stop,
    /// It stays as it is.
    Preserve,
    /// The machine starts again.
    Machine,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Restart(0) => f.write_str("it starts again"),
            Self::Restart(ms) => write!(f, "it starts again in {ms} ms"),
            Self::Stop => f.write_str("it is turned off"),
            Self::Preserve => f.write_str("it stays as it is"),
            Self::Machine => f.write_str("the machine starts again"),
        }
    }
}

/// Returns what a policy says of a VM that has crashed `earlier` times in a row before.
#[must_use]
pub fn verdict(policy: OnCrash, earlier: u16) -> Verdict {
    match policy {
        OnCrash::Restart(Restarts { most: Some(most), .. }) if earlier >= most => Verdict::Stop,
        OnCrash::Restart(Restarts { backoff_ms, .. }) => {
            let doubled = u64::from(backoff_ms) << earlier.min(16);
            Verdict::Restart(doubled.min(BACKOFF_MAX_MS))
        }
        OnCrash::Stop => Verdict::Stop,
        OnCrash::Preserve => Verdict::Preserve,
        OnCrash::Machine => Verdict::Machine,
    }
}

/// What becomes of one VM. Only the core of vCPU 0 and the leader of a change write times.
#[derive(Debug)]
pub struct Fate {
    /// Crashes in a row.
    crashes: AtomicU16,
    begun_at: AtomicU64,
    /// When it is started again after a crash.
    restart_at: AtomicU64,
    /// When it is turned off though its guest has not done so.
    kill_at: AtomicU64,
    /// Whether it is to be turned off as soon as it has started.
    is_doomed: AtomicBool,
    /// Whether it is to start as soon as the VMs that it starts after have.
    is_waiting: AtomicBool,
    /// When it gets its old images back.
    trial_ends_at: AtomicU64,
    /// The updates that were not taken back.
    updates: AtomicU16,
    /// Whether an upload is to be checked for it.
    checks_upload: AtomicBool,
}

/// Which images a VM has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Images {
    /// Those that it was made with.
    First,
    /// Those of an update.
    Updated,
    /// Those of an update that is not confirmed.
    OnTrial,
}

impl Images {
    /// Returns the word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Updated => "updated",
            Self::OnTrial => "trial",
        }
    }
}

impl Fate {
    /// Makes the fate of a VM of which nothing is known.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            crashes: AtomicU16::new(0),
            begun_at: AtomicU64::new(0),
            restart_at: AtomicU64::new(NEVER),
            kill_at: AtomicU64::new(NEVER),
            is_doomed: AtomicBool::new(false),
            is_waiting: AtomicBool::new(false),
            trial_ends_at: AtomicU64::new(NEVER),
            updates: AtomicU16::new(0),
            checks_upload: AtomicBool::new(false),
        }
    }

    /// Notes that the VM begins; whatever was to become of its last run is over.
    pub fn begins(&self, now_ticks: u64) {
        self.begun_at.store(now_ticks, Relaxed);
        self.ends();
    }

    /// Notes that the run is over.
    pub fn ends(&self) {
        self.restart_at.store(NEVER, Relaxed);
        self.kill_at.store(NEVER, Relaxed);
    }

    /// Counts a crash. One after a steady run is the first again.
    pub fn count_crash(&self, now_ticks: u64, hz: u64) {
        let ran_ticks = now_ticks.wrapping_sub(self.begun_at.load(Relaxed));
        let is_steady = ran_ticks >= hz.saturating_mul(STEADY_SECONDS);
        let earlier = if is_steady { 0 } else { self.crashes.load(Relaxed) };
        self.crashes.store(earlier.saturating_add(1), Relaxed);
    }

    /// Decides what becomes of a VM that has crashed and been [counted](Self::count_crash).
    pub fn decide(&self, policy: OnCrash, now_ticks: u64, hz: u64) -> Verdict {
        let verdict = verdict(policy, self.crashes.load(Relaxed).saturating_sub(1));
        if let Verdict::Restart(ms) = verdict {
            let ticks = ms.saturating_mul(hz) / 1000;
            self.restart_at.store(now_ticks.saturating_add(ticks), Relaxed);
        }
        verdict
    }

    /// Returns how often it has crashed in a row.
    #[must_use]
    pub fn crash_count(&self) -> u16 {
        self.crashes.load(Relaxed)
    }

    /// Has the VM turned off at that time, unless it does so itself.
    pub fn kill_at(&self, ticks: u64) {
        self.kill_at.store(ticks, Relaxed);
    }

    /// Takes what is due, once.
    #[must_use]
    pub fn take_due(&self, now_ticks: u64) -> Option<Request> {
        let due = |at: &AtomicU64| {
            let is_due = at.load(Relaxed) <= now_ticks;
            if is_due {
                at.store(NEVER, Relaxed);
            }
            is_due
        };
        if due(&self.kill_at) {
            Some(Request::Kill)
        } else if due(&self.restart_at) {
            Some(Request::Reset)
        } else {
            None
        }
    }

    /// Makes what was taken due again.
    pub fn put_back(&self, request: Request) {
        let at = if request == Request::Kill { &self.kill_at } else { &self.restart_at };
        at.store(0, Relaxed);
    }

    /// Returns when something is due.
    #[must_use]
    pub fn deadline_ticks(&self) -> Option<u64> {
        let all = [&self.kill_at, &self.restart_at, &self.trial_ends_at];
        let first = all.into_iter().fold(NEVER, |first, at| first.min(at.load(Relaxed)));
        (first != NEVER).then_some(first)
    }

    /// Has a VM that is being started turned off right behind that.
    pub fn doom(&self) {
        self.is_doomed.store(true, Relaxed);
    }

    /// Returns whether it is to be turned off again, once.
    #[must_use]
    pub fn take_doom(&self) -> bool {
        self.is_doomed.swap(false, Relaxed)
    }

    /// Makes the next crash the first one.
    pub fn forget_crashes(&self) {
        self.crashes.store(0, Relaxed);
    }

    /// Has the VM start when the VMs that it starts after have.
    pub fn wait_for_others(&self) {
        self.is_waiting.store(true, Relaxed);
    }

    /// Returns whether it waits for others to start.
    #[must_use]
    pub fn waits_for_others(&self) -> bool {
        self.is_waiting.load(Relaxed)
    }

    /// Returns which images the VM has.
    #[must_use]
    pub fn images(&self) -> Images {
        match (self.updates.load(Relaxed), self.trial_ends_at.load(Relaxed)) {
            (0, _) => Images::First,
            (_, NEVER) => Images::Updated,
            _ => Images::OnTrial,
        }
    }

    /// Notes that the VM has been updated, on trial to a time or for good.
    pub fn note_update(&self, trial_ends_at_ticks: Option<u64>) {
        self.trial_ends_at.store(trial_ends_at_ticks.unwrap_or(NEVER), Relaxed);
        self.updates.store(self.updates.load(Relaxed).saturating_add(1), Relaxed);
    }

    /// Notes that it has its old images back.
    pub fn note_return(&self) {
        self.updates.store(self.updates.load(Relaxed).saturating_sub(1), Relaxed);
        self.trial_ends_at.store(NEVER, Relaxed);
    }

    /// Ends a trial; of many who do, one is told when it would have ended.
    #[must_use]
    pub fn end_trial(&self) -> Option<u64> {
        let ends_at = self.trial_ends_at.swap(NEVER, Relaxed);
        (ends_at != NEVER).then_some(ends_at)
    }

    /// Goes on with a trial that could not be ended.
    pub fn resume_trial(&self, ends_at_ticks: u64) {
        self.trial_ends_at.store(ends_at_ticks, Relaxed);
    }

    /// Has the core of vCPU 0 check what the VM is to be updated with.
    pub fn begin_check(&self) {
        self.checks_upload.store(true, Relaxed);
    }

    /// Returns whether there is something to check.
    #[must_use]
    pub fn checks_upload(&self) -> bool {
        self.checks_upload.load(Relaxed)
    }

    /// Ends the check.
    pub fn end_check(&self) {
        self.checks_upload.store(false, Relaxed);
    }

    /// Returns whether the time of a trial is up.
    #[must_use]
    pub fn trial_has_failed(&self, now_ticks: u64) -> bool {
        self.trial_ends_at.load(Relaxed) <= now_ticks
    }

    /// Ends the wait; of many who do, one is told that it did.
    #[must_use]
    pub fn end_wait(&self) -> bool {
        self.is_waiting.swap(false, Relaxed)
    }
}

impl Default for Fate {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HZ: u64 = 1000;

    fn crash(fate: &Fate, policy: OnCrash, now_ticks: u64) -> Verdict {
        fate.count_crash(now_ticks, HZ);
        fate.decide(policy, now_ticks, HZ)
    }

    #[test]
    fn each_restart_is_put_off_twice_as_long_up_to_the_limit() {
        let policy = OnCrash::Restart(Restarts { most: Some(3), backoff_ms: 100 });
        let fate = Fate::new();
        for (n, ms) in [100, 200, 400].into_iter().enumerate() {
            let now = 1000 * n as u64;
            assert_eq!(crash(&fate, policy, now), Verdict::Restart(ms));
            assert_eq!(fate.deadline_ticks(), Some(now + ms));
            assert_eq!(fate.take_due(now + ms - 1), None);
            assert_eq!(fate.take_due(now + ms), Some(Request::Reset));
            assert_eq!(fate.take_due(now + ms), None, "once");
            fate.put_back(Request::Reset);
            assert_eq!(fate.take_due(now + ms), Some(Request::Reset));
            fate.begins(now + ms);
        }
        assert_eq!(crash(&fate, policy, 4000), Verdict::Stop);
        assert_eq!(fate.deadline_ticks(), None);
    }

    #[test]
    fn a_crash_after_a_steady_minute_is_the_first_again() {
        let policy = OnCrash::Restart(Restarts { most: Some(1), backoff_ms: 0 });
        let fate = Fate::new();
        assert_eq!(crash(&fate, policy, 0), Verdict::Restart(0));
        fate.begins(10);
        assert_eq!(crash(&fate, policy, 10 + 60 * HZ), Verdict::Restart(0));
        fate.begins(70 * HZ);
        assert_eq!(crash(&fate, policy, 70 * HZ + 60 * HZ - 1), Verdict::Stop);
    }

    #[test]
    fn other_policies_and_extremes() {
        assert_eq!(verdict(OnCrash::Stop, 0), Verdict::Stop);
        assert_eq!(verdict(OnCrash::Preserve, 0), Verdict::Preserve);
        assert_eq!(verdict(OnCrash::Machine, 9), Verdict::Machine);
        let most = Restarts { most: None, backoff_ms: u32::MAX };
        assert_eq!(verdict(OnCrash::Restart(most), u16::MAX), Verdict::Restart(60_000));
        let none = Restarts { most: Some(0), backoff_ms: 0 };
        assert_eq!(verdict(OnCrash::Restart(none), 0), Verdict::Stop);
    }

    #[test]
    fn a_stop_that_is_not_obeyed_is_enforced_unless_the_run_ends_before() {
        let fate = Fate::new();
        fate.kill_at(500);
        assert_eq!((fate.deadline_ticks(), fate.take_due(499)), (Some(500), None));
        assert_eq!(fate.take_due(500), Some(Request::Kill));
        fate.kill_at(600);
        fate.ends();
        assert_eq!((fate.deadline_ticks(), fate.take_due(NEVER - 1)), (None, None));
    }
}
