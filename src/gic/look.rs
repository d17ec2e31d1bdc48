// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Whether the owner of list registers has looked at them since somebody asked.
//!
//! The guest changes the state in list registers without an exit, so whoever wants to know what an
//! interrupt on another vCPU is doing asks that vCPU's core for a look, and waits for its end. Must
//! not know what is looked at, nor how a core is reached.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU32, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};
use core::sync::atomic::{Ordering::SeqCst, fence};

/// Counts the beginnings and the ends of one owner's looks: odd while one goes on.
#[derive(Debug, Default)]
pub struct Looks(AtomicU32);

/// When somebody asked for a look.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Asked(u32);

impl Looks {
    /// Notes that a look begins: its owner has taken the requests, and reads nothing before this.
    pub fn begin(&self) {
        // Pairs with the fence in `ask`: who asks too late for this look to see what it has
        // written sees that it had begun.
        self.0.store(self.0.load(Relaxed).wrapping_add(1), Relaxed);
        fence(SeqCst);
    }
    /// Notes that what was seen is published.
    pub fn end(&self) {
        self.0.store(self.0.load(Relaxed).wrapping_add(1), Release);
    }
    /// Notes the time, before the request that its owner takes is left.
    pub fn ask(&self) -> Asked {
        fence(SeqCst);
        Asked(self.0.load(Acquire))
    }
    /// Returns whether a look goes on.
    #[cfg(test)]
    pub fn is_going_on(&self) -> bool {
        self.0.load(Relaxed) % 2 == 1
    }
    /// Returns whether a whole look has begun and ended since: the one that went on then, if any,
    /// does not count.
    pub fn is_done_since(&self, asked: Asked) -> bool {
        let Asked(then) = asked;
        self.0.load(Acquire).wrapping_sub(then) >= 2 + (then & 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t70_a_look_that_had_begun_does_not_count() {
        for start in [0, 2, u32::MAX - 1] {
            let looks = Looks(AtomicU32::new(start));
            let idle = looks.ask();
            looks.begin();
            let busy = looks.ask();
            assert!(!looks.is_done_since(idle));
            looks.end();
            assert!(looks.is_done_since(idle) && !looks.is_done_since(busy));
            looks.begin();
            assert!(!looks.is_done_since(busy));
            looks.end();
            assert!(looks.is_done_since(busy));
        }
    }
}
