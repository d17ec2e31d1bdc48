// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The state of 32 interrupts, a word for each property: what `ISENABLER<n>` and its like show.
//!
//! A pending or active bit is in one place only: here, or in the list register that `listed`
//! stands for. Words are atomics, because any core may write the registers of any redistributor.
//! Whoever makes an interrupt deliverable writes first and looks second (`pending`, then `enable`,
//! or the other way round), in one order for all cores (`SeqCst`), so that one of the two sees it.
//! Must not know whose interrupts these are. IHI 0069 H 12.8 and 12.11.
#![forbid(unsafe_code)]

use super::Version;
use crate::bits::Level;
use crate::spec::gic::{BitRegister, gicd};
use core::sync::atomic::{AtomicU32, Ordering::Relaxed, Ordering::SeqCst};

/// The bits of a priority that exist: 32 levels, what every virtual CPU interface has at least.
const PRIORITY_MASK: u32 = 0xf8f8_f8f8;

/// The state of 32 interrupts.
#[derive(Debug)]
pub struct Bank {
    /// Which of the 32 exist.
    implemented: u32,
    /// What `edge` is after reset.
    edge_at_reset: u32,
    /// What `group` is after reset.
    group_at_reset: u32,
    group: AtomicU32,
    enable: AtomicU32,
    /// Set for edge-triggered interrupts.
    edge: AtomicU32,
    /// Latched pending bits, of interrupts that are not in a list register.
    pub(super) pending: AtomicU32,
    /// The level of the input lines that EL2 drives.
    pub(super) line: AtomicU32,
    /// Active bits, of interrupts that are not in a list register.
    pub(super) active: AtomicU32,
    /// Interrupts whose physical counterpart is active and waits for the guest, but has no
    /// hardware-linked list register that would pass the guest's deactivation on.
    pub(super) linked: AtomicU32,
    /// Interrupts that are active, and whose physical counterpart goes with that: it has no
    /// hardware-linked list register either, but what is pending beside it is none of its.
    pub(super) held: AtomicU32,
    /// Interrupts that are in a list register.
    pub(super) listed: AtomicU32,
    /// Asks the holder of the list register to clear the pending bit there.
    pub(super) retract: AtomicU32,
    /// Asks the holder of the list register to clear the active bit there.
    pub(super) deactivate: AtomicU32,
    /// The pending bits of list registers when their holder last looked.
    pub(super) shown_pending: AtomicU32,
    /// The active bits of list registers when their holder last looked.
    pub(super) shown_active: AtomicU32,
    priority: [AtomicU32; 8],
}

/// Whom a register write concerns.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[must_use]
pub struct Change {
    /// Interrupts that may have become deliverable.
    pub woken: u32,
    /// Interrupts which, when in a list register, need a look by its holder.
    pub look: u32,
}

impl Bank {
    /// Makes the state after reset.
    ///
    /// A guest without a Secure state expects all interrupts in Group 1 with GICv3, where the
    /// firmware has put them, and in Group 0 with GICv2, where they are after reset.
    #[inline(never)]
    pub fn new(implemented: u32, edge_at_reset: u32, version: Version) -> Self {
        let bank = Self {
            implemented,
            edge_at_reset,
            group_at_reset: if version == Version::V3 { implemented } else { 0 },
            group: AtomicU32::new(0),
            enable: AtomicU32::new(0),
            edge: AtomicU32::new(0),
            pending: AtomicU32::new(0),
            line: AtomicU32::new(0),
            active: AtomicU32::new(0),
            linked: AtomicU32::new(0),
            held: AtomicU32::new(0),
            listed: AtomicU32::new(0),
            retract: AtomicU32::new(0),
            deactivate: AtomicU32::new(0),
            shown_pending: AtomicU32::new(0),
            shown_active: AtomicU32::new(0),
            priority: [const { AtomicU32::new(0) }; 8],
        };
        bank.reset();
        bank
    }

    /// Returns to the state after reset. The input lines belong to devices and stay.
    pub fn reset(&self) {
        self.group.store(self.group_at_reset, Relaxed);
        self.edge.store(self.edge_at_reset, Relaxed);
        let cleared = [&self.enable, &self.pending, &self.active, &self.listed];
        let links = [&self.linked, &self.held];
        let seen = [&self.retract, &self.deactivate, &self.shown_pending, &self.shown_active];
        for word in cleared.into_iter().chain(links).chain(seen).chain(&self.priority) {
            word.store(0, Relaxed);
        }
    }

    /// Returns the interrupts that are in Group 1.
    #[inline(always)]
    pub fn group1(&self) -> u32 {
        self.group.load(Relaxed)
    }
    /// Returns the edge-triggered interrupts.
    #[inline(always)]
    pub fn edge(&self) -> u32 {
        self.edge.load(Relaxed)
    }
    /// Returns the interrupts that a high line keeps pending.
    #[inline(always)]
    pub fn held_by_line(&self) -> u32 {
        self.line.load(Relaxed) & !self.edge()
    }
    /// Returns the pending interrupts, list registers left out.
    #[inline(always)]
    pub fn signal(&self) -> u32 {
        self.pending.load(SeqCst) | self.held_by_line()
    }
    /// Returns the interrupts that are delivered when pending: enabled, of a group that
    /// `ctlr` (GICD_CTLR) enables, and not active outside the list registers.
    #[inline(always)]
    pub fn eligible(&self, ctlr: u32) -> u32 {
        let group1 = self.group1();
        let all_of_group0 = 0u32.wrapping_sub(ctlr & gicd::CTLR_ENABLE_GROUP0);
        let all_of_group1 = 0u32.wrapping_sub(ctlr >> 1 & 1);
        let groups = group1 & all_of_group1 | !group1 & all_of_group0;
        self.enable.load(SeqCst) & groups & !self.active.load(Relaxed)
    }
    /// Returns the interrupts whose physical counterpart nobody would deactivate any more.
    pub fn orphans(&self) -> u32 {
        let busy = self.active.load(Relaxed) | self.listed.load(Relaxed);
        let linked = self.linked.load(Relaxed) & !self.pending.load(Relaxed);
        (linked | self.held.load(Relaxed)) & !busy
    }
    /// Returns the interrupts whose physical counterpart waits for the guest without a
    /// hardware-linked list register.
    pub fn awaited(&self) -> u32 {
        self.linked.load(Relaxed) | self.held.load(Relaxed)
    }
    /// Forgets the physical counterparts of `bits` and returns those that waited for the guest.
    pub fn take_awaited(&self, bits: u32) -> u32 {
        let linked = self.linked.fetch_and(!bits, Relaxed);
        (linked | self.held.fetch_and(!bits, Relaxed)) & bits
    }
    /// Returns the priority of interrupt `index` of the 32.
    #[inline(always)]
    pub fn priority(&self, index: u32) -> u8 {
        (self.priorities(index >> 2).load(Relaxed) >> (8 * (index & 3))).to_le_bytes()[0]
    }

    /// Reads a register.
    #[inline(always)]
    pub fn read(&self, register: BitRegister) -> u32 {
        match register {
            BitRegister::Group => self.group1(),
            BitRegister::SetEnable | BitRegister::ClearEnable => self.enable.load(Relaxed),
            BitRegister::SetPending | BitRegister::ClearPending => {
                self.signal() | self.shown_pending.load(Relaxed)
            }
            BitRegister::SetActive | BitRegister::ClearActive => {
                self.active.load(Relaxed) | self.shown_active.load(Relaxed)
            }
        }
    }

    /// Writes a register.
    #[inline(always)]
    pub fn write(&self, register: BitRegister, value: u32) -> Change {
        let bits = value & self.implemented;
        match register {
            BitRegister::Group => {
                let changed = self.group.swap(bits, SeqCst) ^ bits;
                Change { woken: changed & self.signal(), look: changed }
            }
            BitRegister::SetEnable => {
                let enabled = bits & !self.enable.fetch_or(bits, SeqCst);
                Change { woken: enabled & self.signal(), look: 0 }
            }
            BitRegister::ClearEnable => {
                Change { woken: 0, look: bits & self.enable.fetch_and(!bits, SeqCst) }
            }
            BitRegister::SetPending => {
                self.pending.fetch_or(bits, SeqCst);
                Change { woken: bits, look: 0 }
            }
            BitRegister::ClearPending => {
                self.pending.fetch_and(!bits, SeqCst);
                self.retract.fetch_or(bits, SeqCst);
                Change { woken: 0, look: bits }
            }
            BitRegister::SetActive => {
                self.active.fetch_or(bits, SeqCst);
                Change { woken: 0, look: bits }
            }
            BitRegister::ClearActive => {
                self.active.fetch_and(!bits, SeqCst);
                self.deactivate.fetch_or(bits, SeqCst);
                Change { woken: bits & self.signal(), look: bits }
            }
        }
    }

    /// Reads IPRIORITYR word `word` of the eight; only the low three bits count.
    #[inline(always)]
    pub fn read_priorities(&self, word: u32) -> u32 {
        self.priorities(word).load(Relaxed)
    }

    /// Writes the bytes of IPRIORITYR word `word` that `mask` selects; only the low three bits
    /// of `word` count.
    pub fn write_priorities(&self, word: u32, value: u32, mask: u32) -> Change {
        let shift = 4 * (word & 7);
        let mut existing = 0;
        for byte in 0..4 {
            if self.implemented >> (shift + byte) & 1 == 1 {
                existing |= 0xff << (8 * byte);
            }
        }
        let register = self.priorities(word);
        let mask = mask & existing;
        let old = register.load(Relaxed);
        let new = old & !mask | value & mask & PRIORITY_MASK;
        register.store(new, Relaxed);
        let bits = if old == new { 0 } else { 0xf << shift };
        Change { woken: bits & self.signal(), look: bits }
    }

    /// Reads ICFGR: the low 16 interrupts for half 0, the others for half 1.
    pub fn read_config(&self, half: u32) -> u32 {
        spread(self.edge() >> (16 * (half & 1)) & 0xffff)
    }

    /// Writes ICFGR. Only the upper bit of each pair exists.
    pub fn write_config(&self, half: u32, value: u32) -> Change {
        let shift = 16 * (half & 1);
        let half = (0xffff << shift) & self.implemented;
        let old = self.edge();
        let new = old & !half | gather(value) << shift & half;
        self.edge.store(new, Relaxed);
        let changed = old ^ new;
        Change { woken: changed & self.signal(), look: changed }
    }

    /// Sets the lines of `bits`. A rising edge latches where the interrupt is edge-triggered.
    pub fn set_line(&self, bits: u32, level: Level) -> Change {
        let bits = bits & self.implemented;
        match level {
            Level::High => {
                let rising = bits & !self.line.fetch_or(bits, SeqCst);
                self.pending.fetch_or(rising & self.edge(), SeqCst);
                Change { woken: rising, look: 0 }
            }
            Level::Low => {
                let falling = bits & self.line.fetch_and(!bits, SeqCst);
                Change { woken: 0, look: falling & !self.edge() }
            }
        }
    }
    /// Latches `bits`, whatever their lines and triggers.
    pub fn latch(&self, bits: u32) -> Change {
        self.write(BitRegister::SetPending, bits)
    }
    /// Takes the latched pending bits `bits` and returns those that were set.
    #[inline(always)]
    pub fn take_pending(&self, bits: u32) -> u32 {
        self.pending.fetch_and(!bits, SeqCst) & bits
    }
    /// Notes that `bits` entered list registers. Their holders alone do this.
    #[inline(always)]
    pub fn list(&self, bits: u32) {
        self.listed.store(self.listed.load(Relaxed) | bits, Relaxed);
    }
    /// Notes that `bits` left the list registers. Their holders alone do this.
    pub fn unlist(&self, bits: u32) {
        for word in [&self.listed, &self.shown_pending, &self.shown_active] {
            word.store(word.load(Relaxed) & !bits, Relaxed);
        }
    }

    #[inline(always)]
    fn priorities(&self, word: u32) -> &AtomicU32 {
        #[expect(clippy::indexing_slicing, reason = "masked to the length")]
        let register = &self.priority[word as usize & 7];
        register
    }
}

/// Moves the low 16 bits to the odd bits of a word.
fn spread(bits: u32) -> u32 {
    let x = (bits | bits << 8) & 0x00ff_00ff;
    let x = (x | x << 4) & 0x0f0f_0f0f;
    let x = (x | x << 2) & 0x3333_3333;
    ((x | x << 1) & 0x5555_5555) << 1
}

/// Moves the odd bits of a word to the low 16 bits.
fn gather(word: u32) -> u32 {
    let x = word >> 1 & 0x5555_5555;
    let x = (x | x >> 1) & 0x3333_3333;
    let x = (x | x >> 2) & 0x0f0f_0f0f;
    let x = (x | x >> 4) & 0x00ff_00ff;
    (x | x >> 8) & 0xffff
}

/// Returns the word with bit `n` set; only the low five bits of `n` count.
#[inline(always)]
pub const fn bit(n: u32) -> u32 {
    1 << (n & 31)
}

/// Returns the positions of the set bits, lowest first.
#[inline(always)]
pub fn bits_of(mut word: u32) -> impl Iterator<Item = u32> {
    core::iter::from_fn(move || {
        let bit = word.trailing_zeros();
        word &= word.wrapping_sub(1);
        (bit < 32).then_some(bit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t75_icfgr_has_two_bits_for_each_interrupt() {
        for bit in 0..16 {
            assert_eq!(spread(1 << bit), 2 << (2 * bit));
            assert_eq!(gather(2 << (2 * bit)), 1 << bit);
            assert_eq!(gather(1 << (2 * bit)), 0, "the lower bit of a pair is RES0");
        }
    }

    #[test]
    fn bits_come_lowest_first() {
        assert!(bits_of(0x8000_0005).eq([0, 2, 31]));
        assert!(bits_of(0).eq([]));
    }

    #[test]
    fn priorities_of_absent_interrupts_and_absent_bits_are_razwi() {
        let bank = Bank::new(0x0fff_ffff, 0, Version::V3);
        for word in 0..8 {
            let _ = bank.write_priorities(word, u32::MAX, u32::MAX);
        }
        assert_eq!(bank.read_priorities(6), 0xf8f8_f8f8);
        assert_eq!(bank.read_priorities(7), 0);
    }
}
