// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Choosing what goes into list registers: the most urgent first, and who makes room for it.
//!
//! Interrupts of a group that the guest has not enabled in its CPU interface come last, so that
//! they keep nobody out. Pending interrupts make room for more urgent ones. Where all list
//! registers are active, the least urgent of those makes room: its end then shows in
//! ICH_HCR_EL2.EOIcount, or traps.
#![forbid(unsafe_code)]

use super::reconcile::Pass;
use super::{Delivery, ListRegisters, NO_SLOT};
use crate::gic::Effects;
use crate::gic::bank::{bit, bits_of};
use crate::spec::gic::{Lr, LrState, PPI_FIRST, SPI_FIRST};
use crate::spec::its::LPI_FIRST;
use core::sync::atomic::{Ordering::Relaxed, Ordering::SeqCst};

/// How many interrupts one run places; what is left comes with the maintenance interrupt.
///
/// This bounds the work on a guest that makes everything pending at once.
const PICKS: usize = 4;

/// The most urgent interrupts seen so far, the most urgent first.
struct Picks {
    /// Rank above INTID, or [`Self::NONE`].
    keys: [u32; PICKS],
    /// How many were offered.
    offered: usize,
}

impl Picks {
    const NONE: u32 = u32::MAX;

    fn new() -> Self {
        Self { keys: [Self::NONE; PICKS], offered: 0 }
    }
    fn offer(&mut self, rank: u32, intid: u32) {
        self.offered = self.offered.wrapping_add(1);
        let mut key = rank << 16 | intid;
        for other in &mut self.keys {
            if key < *other {
                core::mem::swap(other, &mut key);
            }
        }
    }
    fn iter(&self) -> impl Iterator<Item = u32> {
        self.keys.into_iter().take_while(|&key| key != Self::NONE)
    }
}

impl<L, E> Pass<'_, L, E> {
    /// Returns how urgent an interrupt is, smaller for more urgent; its group is Group 1 where
    /// `group1` is not 0.
    fn rank(&self, priority: u8, group1: u32) -> u32 {
        let group = if group1 == 0 { 1 } else { 2 };
        u32::from(priority) | if self.groups & group == 0 { 1 << 8 } else { 0 }
    }
}

impl Delivery {
    /// Puts the most urgent interrupts that wait for this vCPU into list registers.
    pub(super) fn refill<L: ListRegisters, E: Effects>(&mut self, pass: &mut Pass<'_, L, E>) {
        let bank = &pass.own.bank;
        let mut picks = Picks::new();
        let waiting = bank.signal() & bank.eligible(pass.ctlr) & !bank.listed.load(Relaxed);
        for intid in bits_of(waiting) {
            picks.offer(pass.rank(bank.priority(intid), bank.group1() & bit(intid)), intid);
        }
        let mut words = 0;
        for word in bits_of(pass.own.spi_words.swap(0, Relaxed)) {
            let Some(bank) = pass.vgic.vdist.bank(word) else { continue };
            let waiting = bank.signal() & bank.eligible(pass.ctlr) & !bank.listed.load(Relaxed);
            for index in bits_of(waiting) {
                let intid = word << 5 | index;
                if pass.spi(intid).is_some_and(|spi| spi.is_for(pass.own.id())) {
                    words |= bit(word);
                    let rank = pass.rank(bank.priority(index), bank.group1() & bit(index));
                    picks.offer(rank, intid);
                }
            }
        }
        let lpi_words = Self::offer_lpis(pass, &mut picks);
        self.has_backlog = false;
        let mut left = picks.offered;
        for key in picks.iter() {
            if !self.place(pass, key) {
                break;
            }
            left = left.wrapping_sub(1);
        }
        if left != 0 {
            self.has_backlog = true;
            pass.own.spi_words.fetch_or(words, Relaxed);
            pass.own.lpi_words.fetch_or(lpi_words, Relaxed);
        }
    }

    /// Offers the LPIs that wait for this vCPU and returns where they are.
    fn offer_lpis<L, E>(pass: &Pass<'_, L, E>, picks: &mut Picks) -> u32 {
        let mut words = 0;
        for word in bits_of(pass.own.lpi_words.swap(0, Relaxed)) {
            let word = LPI_FIRST >> 5 | word;
            let Some(bank) = pass.vgic.lpis.bank(word) else { continue };
            let waiting = bank.signal() & bank.eligible(pass.ctlr) & !bank.listed.load(Relaxed);
            for index in bits_of(waiting) {
                let intid = word << 5 | index;
                if pass.vgic.lpis.is_for(intid, pass.own.id()) {
                    words |= bit(word);
                    picks.offer(pass.rank(bank.priority(index), bit(index)), intid);
                }
            }
        }
        words
    }

    /// Puts an interrupt into a list register; returns whether there is room for it.
    fn place<L: ListRegisters, E: Effects>(&mut self, pass: &mut Pass<'_, L, E>, key: u32) -> bool {
        if self.free == 0 {
            match self.victim(pass, key) {
                Some(slot) => self.evict(pass, slot),
                None => return false,
            }
        }
        let slot = self.free.trailing_zeros();
        let Some(on) = pass.listing(slot, key & 0xffff) else { return true };
        if on.intid >= SPI_FIRST {
            // Requests to a holder of earlier times.
            on.bank.retract.fetch_and(!on.bit, Relaxed);
            on.bank.deactivate.fetch_and(!on.bit, Relaxed);
            pass.hold(on.intid);
        }
        let (latched, pending) = if pass.vgic.has_sender(on.intid) {
            let Some(sender) = pass.own.take_source(on.intid) else { return true };
            (true, pass.own.sgi_of(on, sender))
        } else {
            let latched = on.bank.take_pending(on.bit) != 0;
            if !latched && on.bank.held_by_line() & on.bit == 0 {
                // Another core has just taken it back.
                return true;
            }
            (latched, on.pending())
        };
        if on.intid < SPI_FIRST {
            *self.slot_of(on.intid) = slot.to_le_bytes()[0];
        }
        let link = self.take_link(pass, on);
        let lr = link.map_or(pending, |pintid| pending.with_link(pintid));
        if on.intid < SPI_FIRST && link.is_some() == (on.intid >= PPI_FIRST) {
            *self.lr_of(on.intid) = lr;
            self.learned |= on.bit;
        }
        self.free &= !bit(slot);
        if !latched {
            self.line_driven |= bit(slot);
        }
        on.bank.list(on.bit);
        on.show(lr);
        pass.own.injections.count(on.kind(), 1);
        pass.write(slot, lr);
        true
    }

    /// Chooses the list register that makes room for an interrupt.
    fn victim<L, E>(&self, pass: &Pass<'_, L, E>, key: u32) -> Option<u32> {
        let (mut pending, mut active) = (None, None);
        for slot in bits_of(self.usable) {
            let lr = pass.seen.get(slot as usize)?;
            let rank = pass.rank(lr.priority(), u32::from(lr.is_group1()));
            match lr.state() {
                LrState::Invalid => {}
                LrState::Pending => pending = pending.max(Some((rank, slot))),
                LrState::Active | LrState::PendingActive => active = active.max(Some((rank, slot))),
            }
        }
        match pending {
            Some((rank, slot)) => (rank > key >> 16).then_some(slot),
            None => active.map(|(_, slot)| slot),
        }
    }

    /// Moves an interrupt from its list register back into the model.
    pub(super) fn evict<L: ListRegisters, E: Effects>(
        &mut self,
        pass: &mut Pass<'_, L, E>,
        slot: u32,
    ) {
        let Some(&lr) = pass.seen.get(slot as usize) else { return };
        let Some(on) = pass.listing(slot, lr.vintid().get()) else { return };
        if lr.is_pending() {
            self.has_backlog = true;
            if pass.vgic.has_sender(on.intid) {
                pass.own.add_source(on.intid, lr.source());
            }
            if self.line_driven & bit(slot) == 0 {
                on.bank.pending.fetch_or(on.bit, SeqCst);
            }
        }
        if on.intid >= LPI_FIRST {
            // Not active: `left_of` has seen to that.
            pass.unlist(on);
            return self.empty(pass, slot);
        }
        if lr.is_active() {
            on.bank.active.fetch_or(on.bit, SeqCst);
        }
        self.owe(on, lr);
        on.bank.unlist(on.bit);
        if on.intid < SPI_FIRST {
            *self.slot_of(on.intid) = NO_SLOT;
        }
        if let Some(spi) = pass.spi(on.intid) {
            pass.own.spi_words.fetch_or(bit(on.intid >> 5), Relaxed);
            if lr.is_active() {
                self.has_evicted_spis = true;
                spi.run_on(lr.priority());
            } else {
                spi.let_go();
            }
        } else if let Some(priority) = self.running_priority.get_mut(on.intid as usize)
            && lr.is_active()
        {
            self.evicted |= on.bit;
            self.learned &= !on.bit;
            *priority = lr.priority();
        }
        self.empty(pass, slot);
    }

    fn empty<L: ListRegisters, E: Effects>(&mut self, pass: &mut Pass<'_, L, E>, slot: u32) {
        self.free |= bit(slot);
        self.line_driven &= !bit(slot);
        pass.write(slot, Lr::EMPTY);
    }
}
