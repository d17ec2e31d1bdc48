// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Locks, and the order in which they are taken.
//!
//! A core that holds several takes them in this order, and never two of one line:
//!
//! ```text
//! VM console port → VM ITS → VM distributor → UART → console → physical distributor
//!   → EL2's map → heap
//! ```
//!
//! The console has several, in the order of its fields; the UART is never waited for while another
//! lock is held. A VM's lifecycle, PSCI and redistributors are atomics. EL2 runs with interrupts
//! masked, so a holder is never preempted by its own core. No lock lies in memory that a guest can
//! write. The dump of a hypervisor fault takes none.
#![forbid(unsafe_code)]

use crate::arch;
use spin::mutex::{TicketMutex, TicketMutexGuard};

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
}
