// SPDX-License-Identifier: Apache-2.0 OR MIT
//! How long a core at EL2 does not look for interrupts: what VMs wait for whose interrupts it
//! serves. Exits are counted where they are answered; this is about all else.
#![forbid(unsafe_code)]

use crate::arch;

/// The looks of a core for interrupts.
pub(super) struct Looks {
    last_ticks: u64,
    longest_ticks: u64,
}

impl Looks {
    /// Begins to watch.
    pub(super) fn new() -> Self {
        Self { last_ticks: arch::counter(), longest_ticks: 0 }
    }

    /// Begins to watch anew what has not been watched meanwhile.
    pub(super) fn begin(&mut self) {
        self.last_ticks = arch::counter();
    }

    /// Notes that this core looks for interrupts, and returns when.
    pub(super) fn look(&mut self) -> u64 {
        let now = arch::counter();
        self.longest_ticks = self.longest_ticks.max(now.wrapping_sub(self.last_ticks));
        self.last_ticks = now;
        now
    }

    /// Says how long this core did not look at most, and forgets it.
    #[cold]
    pub(super) fn report(&mut self, of: &str) {
        let ticks = core::mem::take(&mut self.longest_ticks);
        log::info!(target: "vm", "{of}: at most {ticks} ticks between two looks");
        self.begin();
    }
}
