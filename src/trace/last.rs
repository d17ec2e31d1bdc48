// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The last exits of a vCPU: what a crash capsule shows of how it came to where it is.
//!
//! Its core alone has them, and copies them when the vCPU is held: so keeping one is two loads and
//! a few stores. Faults have a ring of their own, since a guest that panics says a lot about it.
#![forbid(unsafe_code)]

/// How many exits a ring keeps.
const KEPT: usize = 8;
/// What stands in place of a syndrome for a physical interrupt, with its number in the low bits:
/// bits 63:56 of ESR_EL2 are RES0 (DDI 0487 D24.2.40).
const INTERRUPT: u64 = 1 << 63;

/// One exit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LastExit {
    /// ESR_EL2, or what [`Self::interrupt`] makes.
    pub syndrome: u64,
    /// ELR_EL2 at the exit: the instruction, or behind it for HVC and interrupts.
    pub pc: u64,
    /// The counter at the exit.
    pub at_ticks: u64,
    /// What the syndrome does not say: of a call X0, of an access to a device its address as the
    /// guest's physical one, of a fault FAR_EL2.
    pub detail: u64,
}

impl LastExit {
    /// Makes the exit by a physical interrupt.
    #[must_use]
    #[inline(always)]
    pub const fn interrupt(intid: u32, pc: u64, at_ticks: u64) -> Self {
        Self { syndrome: INTERRUPT | intid as u64, pc, at_ticks, detail: 0 }
    }
}

/// The last exits of one kind.
#[derive(Clone, Debug, Default)]
pub struct Ring {
    count: usize,
    kept: [LastExit; KEPT],
}

impl Ring {
    /// Keeps an exit, in place of the oldest one.
    #[inline(always)]
    pub fn keep(&mut self, exit: LastExit) {
        if let Some(place) = self.kept.get_mut(self.count % KEPT) {
            *place = exit;
        }
        self.count = self.count.wrapping_add(1);
    }

    /// Returns how many are kept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count.min(KEPT)
    }
    /// Returns whether there was none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }
    /// Returns one of those that are kept; 0 is the oldest.
    #[must_use]
    pub fn get(&self, n: usize) -> Option<&LastExit> {
        let at = self.count.wrapping_sub(self.len()).wrapping_add(n);
        (n < self.len()).then(|| self.kept.get(at % KEPT))?
    }
}

/// The last exits of one vCPU.
#[derive(Clone, Debug, Default)]
pub struct LastExits {
    /// Those that were answered, but for SGIs by system registers, which are too quick for that.
    pub answered: Ring,
    /// Faults, aborts, hidden instructions, SErrors.
    pub faults: Ring,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn exit(n: u64) -> LastExit {
        LastExit { syndrome: n, pc: n + 100, detail: n + 200, at_ticks: n + 300 }
    }

    /// Says whether a ring shows the last eight, in order, however many `keep` gives it.
    fn shows_the_last_eight(keep: impl Fn(&mut Ring, LastExit)) -> bool {
        let mut last = Ring::default();
        let is_empty = last.is_empty() && last.get(0).is_none();
        is_empty
            && (0..40).all(|n| {
                keep(&mut last, exit(n));
                let expected: Vec<_> = (n.saturating_sub(7)..=n).map(exit).collect();
                let kept: Vec<_> = (0..=last.len()).filter_map(|n| last.get(n).copied()).collect();
                kept == expected
            })
    }

    #[test]
    fn the_last_eight_are_kept_in_order() {
        assert!(shows_the_last_eight(Ring::keep));
    }

    /// Keeps what there is a place for, and counts on.
    #[test]
    fn twin_that_does_not_wrap_is_noticed() {
        assert!(!shows_the_last_eight(|ring, exit| {
            if let Some(place) = ring.kept.get_mut(ring.count) {
                *place = exit;
            }
            ring.count += 1;
        }));
    }

    #[test]
    fn an_interrupt_is_no_syndrome() {
        let exit = LastExit::interrupt(27, 0x40, 7);
        assert_eq!((exit.syndrome >> 56, exit.syndrome & 0xff_ffff), (0x80, 27));
    }
}
