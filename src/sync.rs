// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Locks, and the order in which they are taken.
//!
//! A core that holds several takes them in this order, and never two of one line:
//!
//! ```text
//! VM images → watch → port for requests → upload → crash capsule → VM console port → VM devices
//!   → VM ITS → VM distributor → UART → console → estate → physical distributor → EL2's map → heap
//! ```
//!
//! The console has several, in the order of its fields; the UART is never waited for while another
//! lock is held. A [`Slot`] is looked at for as long as a vCPU is served, or before any lock is
//! taken; who empties one holds no lock and looks at none. A VM's lifecycle, PSCI and its
//! redistributors are atomics. EL2 runs with interrupts masked, so a holder is never preempted by
//! its own core. No lock lies in memory that a guest can write. The dump of a hypervisor fault
//! takes none.
#![forbid(unsafe_code)]

use crate::arch;
use core::sync::atomic::{
    AtomicBool, AtomicU32,
    Ordering::{Acquire, Relaxed, Release},
};
use spin::mutex::{SpinMutex, SpinMutexGuard, TicketMutex, TicketMutexGuard};
use spin::rwlock::RwLock;

/// Waits for a lock with `yield`: WFE would sleep through an unlock that sends no event, and
/// `core::hint::spin_loop` is an ISB on this target.
#[derive(Debug)]
pub struct Yield;

impl spin::RelaxStrategy for Yield {
    #[inline(always)]
    fn relax() {
        arch::relax();
    }
}

/// Holds a [`Lock`] until dropped.
pub type Guard<'a, T> = TicketMutexGuard<'a, T, Yield>;
/// Holds an [`OpenLock`] until dropped.
pub type OpenGuard<'a, T> = SpinMutexGuard<'a, T, Yield>;
/// A value that boot writes once.
pub type Once<T> = spin::once::Once<T, Yield>;

/// A fair lock: cores get it in the order in which they asked.
#[derive(Debug, Default)]
pub struct Lock<T>(TicketMutex<T, Yield>);

impl<T> Lock<T> {
    /// Makes a lock that nobody holds.
    pub const fn new(value: T) -> Self {
        Self(TicketMutex::new(value))
    }
    /// Waits for the lock, in the caller's own code: for the exits that guests make often.
    #[inline(always)]
    pub fn lock(&self) -> Guard<'_, T> {
        self.0.lock()
    }
    /// Waits for the lock, in one place for all callers.
    #[inline(never)]
    pub fn acquire(&self) -> Guard<'_, T> {
        self.0.lock()
    }
    /// Takes the lock unless somebody holds it.
    pub fn try_lock(&self) -> Option<Guard<'_, T>> {
        self.0.try_lock()
    }
    /// Returns what nobody can lock any more.
    pub fn into_inner(self) -> T {
        self.0.into_inner()
    }
}

/// A lock that goes to whoever asks when it is free: to a core that runs. A [`Lock`] waits for the
/// core whose turn it is, which need not run where cores share host cores (ADR 11).
///
/// Waiting is bounded all the same: who has seen others get it often enough goes first, as does
/// who asks to.
#[derive(Debug)]
pub struct OpenLock<T> {
    inner: SpinMutex<T, Yield>,
    /// How often it has been given, modulo 2^32.
    given: AtomicU32,
    /// Whether it is kept for who goes first.
    is_kept: AtomicBool,
    /// Those who go first, one after the other.
    first: Lock<()>,
}

impl<T> OpenLock<T> {
    /// How often others get it before who waits goes first.
    const OTHERS_MAX: u32 = 64;

    /// Makes a lock around a value.
    pub const fn new(value: T) -> Self {
        Self {
            inner: SpinMutex::new(value),
            given: AtomicU32::new(0),
            is_kept: AtomicBool::new(false),
            first: Lock::new(()),
        }
    }

    /// Waits for the lock.
    #[inline(always)]
    pub fn lock(&self) -> OpenGuard<'_, T> {
        self.try_lock().unwrap_or_else(|| self.wait())
    }

    /// Waits for the lock and goes before all who do not ask for that: each of those gets it once
    /// more at most.
    #[cold]
    #[inline(never)]
    pub fn lock_first(&self) -> OpenGuard<'_, T> {
        let _turn = self.first.lock();
        self.is_kept.store(true, Relaxed);
        let guard = loop {
            match self.inner.try_lock() {
                Some(guard) => break guard,
                None => arch::relax(),
            }
        };
        self.is_kept.store(false, Relaxed);
        self.count();
        guard
    }

    /// Takes the lock if it is free, and kept for nobody.
    #[inline(always)]
    pub fn try_lock(&self) -> Option<OpenGuard<'_, T>> {
        if self.is_kept.load(Relaxed) {
            return None;
        }
        let guard = self.inner.try_lock()?;
        self.count();
        Some(guard)
    }

    #[cold]
    #[inline(never)]
    fn wait(&self) -> OpenGuard<'_, T> {
        let since = self.given.load(Relaxed);
        while !self.has_waited_enough(since) {
            arch::relax();
            // Looks before it tries: who tries makes the holder wait for the cache line.
            if !self.inner.is_locked()
                && let Some(guard) = self.try_lock()
            {
                return guard;
            }
        }
        self.lock_first()
    }

    fn has_waited_enough(&self, since: u32) -> bool {
        self.given.load(Relaxed).wrapping_sub(since) > Self::OTHERS_MAX
    }

    /// Counts, by its holder, that the lock was given.
    #[inline(always)]
    fn count(&self) {
        self.given.store(self.given.load(Relaxed).wrapping_add(1), Relaxed);
    }
}

/// A place for a value that comes and goes while others look at it.
#[derive(Debug)]
pub struct Slot<T> {
    value: RwLock<Option<T>, Yield>,
    /// Whether somebody has it or is about to.
    is_taken: AtomicBool,
}

impl<T> Slot<T> {
    /// Makes an empty slot.
    #[must_use]
    pub const fn new() -> Self {
        Self { value: RwLock::new(None), is_taken: AtomicBool::new(false) }
    }
    /// Takes an empty slot for a value that is yet to be made; of many, one wins.
    #[must_use]
    pub fn take(&self) -> bool {
        !self.is_taken.swap(true, Acquire)
    }
    /// Puts a value where its maker has [taken](Self::take) the slot.
    pub fn fill(&self, value: T) {
        *self.value.write() = Some(value);
    }
    /// Looks at the value, where there is one; it stays as long as that takes.
    #[inline]
    pub fn look<R>(&self, look: impl FnOnce(&T) -> R) -> Option<R> {
        self.value.read().as_ref().map(look)
    }
    /// Looks at the value for good.
    #[cfg(test)]
    pub fn stare(&self) -> Option<&T> {
        spin::rwlock::RwLockReadGuard::leak(self.value.read()).as_ref()
    }
    /// Takes the value out once nobody looks at it any more. The slot stays taken until it is
    /// [freed](Self::free).
    pub fn remove(&self) -> Option<T> {
        self.value.write().take()
    }
    /// Lets others take the slot, which is empty.
    pub fn free(&self) {
        self.is_taken.store(false, Release);
    }
}

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holds_an_open_lock_at_a_time() {
        const ROUNDS: u64 = 5_000;
        let lock = &OpenLock::new((0u64, 0u64));
        std::thread::scope(|scope| {
            for n in 0..4 {
                scope.spawn(move || {
                    for _ in 0..ROUNDS {
                        let mut guard = if n == 0 { lock.lock_first() } else { lock.lock() };
                        guard.0 += 1;
                        std::thread::yield_now();
                        guard.1 += 1;
                        assert_eq!(guard.0, guard.1);
                    }
                });
            }
        });
        assert_eq!(*lock.lock(), (4 * ROUNDS, 4 * ROUNDS));
        assert!(!lock.is_kept.load(Relaxed));
    }

    #[test]
    fn open_lock_is_kept_for_who_goes_first() {
        let lock = OpenLock::new(());
        lock.is_kept.store(true, Relaxed);
        assert!(lock.try_lock().is_none(), "it is free");
        drop(lock.lock_first());
        assert!(lock.try_lock().is_some());
    }

    /// However the others do it, who waits sees them get the lock so often and no more.
    #[test]
    fn who_waits_for_an_open_lock_goes_first_in_the_end() {
        let lock = OpenLock::new(());
        let before = u32::MAX - 10;
        lock.given.store(before, Relaxed);
        for _ in 0..64 {
            assert!(!lock.has_waited_enough(before));
            drop(lock.lock());
        }
        assert!(!lock.has_waited_enough(before));
        drop(lock.lock_first());
        assert!(lock.has_waited_enough(before));
    }

    #[test]
    fn a_slot_is_taken_once_and_emptied_when_nobody_looks() {
        let slot = &Slot::new();
        assert_eq!(slot.look(|value: &u8| *value), None);
        assert!(slot.take() && !slot.take());
        slot.fill(7);
        let (looks, leaves) = (&AtomicBool::new(false), &AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(move || {
                slot.look(|value| {
                    looks.store(true, Release);
                    std::thread::sleep(std::time::Duration::from_millis(20));
                    assert_eq!(*value, 7);
                    leaves.store(true, Release);
                })
            });
            while !looks.load(Acquire) {
                std::thread::yield_now();
            }
            assert_eq!(slot.remove(), Some(7));
            assert!(leaves.load(Acquire), "taken from under somebody's eyes");
        });
        assert!(!slot.take(), "its tear-down goes on");
        slot.free();
        assert!(slot.take());
    }
}
