// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Choosing what goes into list registers: the most urgent first, and who makes room for it.
//!
//! Pending interrupts make room for more urgent ones. Where all list registers are active, the
//! least urgent of those makes room: its end then shows in ICH_HCR_EL2.EOIcount, or traps.
#![forbid(unsafe_code)]

use super::reconcile::Pass;
use super::{Delivery, ListRegisters};
use crate::gic::Effects;
use crate::gic::bank::bits_of;
use crate::spec::gic::{Lr, LrState};
use core::sync::atomic::{Ordering::Relaxed, Ordering::SeqCst};

/// How many interrupts one run places; what is left comes with the maintenance interrupt.
///
/// This bounds the work on a guest that makes everything pending at once.
const PICKS: usize = 4;

/// The most urgent interrupts seen so far, the most urgent first.
#[derive(Default)]
struct Picks {
    /// Priority above INTID.
    keys: [u32; PICKS],
    count: usize,
    /// How many were offered.
    offered: usize,
}

impl Picks {
    fn offer(&mut self, priority: u8, intid: u32) {
        let key = u32::from(priority) << 16 | intid;
        self.offered += 1;
        let at = self.keys.iter().take(self.count).position(|&other| key < other);
        let at = at.unwrap_or(self.count);
        if let Some(tail) = self.keys.get_mut(at..)
            && let Some(last) = tail.last_mut()
        {
            *last = key;
            tail.rotate_right(1);
            self.count = PICKS.min(self.count + 1);
        }
    }
    fn iter(&self) -> impl Iterator<Item = u32> {
        self.keys.into_iter().take(self.count)
    }
}

impl Delivery {
    /// Puts the most urgent interrupts that wait for this vCPU into list registers.
    pub(super) fn refill<L: ListRegisters, E: Effects>(&mut self, pass: &mut Pass<'_, L, E>) {
        let bank = &pass.own.bank;
        let mut picks = Picks::default();
        let waiting = bank.signal() & bank.eligible(pass.ctlr) & !bank.listed.load(Relaxed);
        for intid in bits_of(waiting) {
            picks.offer(bank.priority(intid), intid);
        }
        let mut words = 0;
        for word in bits_of(pass.own.spi_words.swap(0, Relaxed)) {
            let Some(bank) = pass.vgic.vdist.bank(word) else { continue };
            let waiting = bank.signal() & bank.eligible(pass.ctlr) & !bank.listed.load(Relaxed);
            for bit in bits_of(waiting) {
                let intid = word << 5 | bit;
                if pass.spi(intid).is_some_and(|spi| spi.is_for(pass.own.id())) {
                    words |= 1 << word;
                    picks.offer(bank.priority(bit), intid);
                }
            }
        }
        self.has_backlog = false;
        let placed = picks.iter().take_while(|&key| self.place(pass, key)).count();
        if picks.offered > placed {
            self.has_backlog = true;
            pass.own.spi_words.fetch_or(words, Relaxed);
        }
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
        if let Some(spi) = pass.spi(on.intid) {
            // Requests to a holder of earlier times.
            on.bank.retract.fetch_and(!on.bit, Relaxed);
            on.bank.deactivate.fetch_and(!on.bit, Relaxed);
            spi.hold(pass.own.id());
        } else {
            *self.slot_of(on.intid) = slot.to_le_bytes()[0];
        }
        let latched = on.bank.take_pending(on.bit) != 0;
        if !latched && on.bank.held_by_line() & on.bit == 0 {
            // Another core has just taken it back.
            return true;
        }
        let lr = match self.take_link(pass, on) {
            Some(pintid) => on.pending().with_link(pintid),
            None => on.pending(),
        };
        self.free &= !(1 << slot);
        self.line_driven |= u32::from(!latched) << slot;
        on.bank.list(on.bit);
        on.show(lr);
        pass.write(slot, lr);
        true
    }

    /// Chooses the list register that makes room for an interrupt.
    fn victim<L, E>(&self, pass: &Pass<'_, L, E>, key: u32) -> Option<u32> {
        let used = pass.seen.iter().zip(0u32..).filter(|(_, slot)| self.usable >> slot & 1 != 0);
        let least_urgent = |state: fn(LrState) -> bool| {
            let candidates = used.clone().filter(move |(lr, _)| state(lr.state()));
            candidates.max_by_key(|(lr, _)| lr.priority())
        };
        if let Some((lr, slot)) = least_urgent(|state| state == LrState::Pending) {
            return (u32::from(lr.priority()) > key >> 16).then_some(slot);
        }
        least_urgent(|state| state != LrState::Invalid).map(|(_, slot)| slot)
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
            if self.line_driven >> slot & 1 == 0 {
                on.bank.pending.fetch_or(on.bit, SeqCst);
            }
        }
        if lr.is_active() {
            on.bank.active.fetch_or(on.bit, SeqCst);
        }
        self.owe(on, lr);
        on.bank.unlist(on.bit);
        if let Some(spi) = pass.spi(on.intid) {
            pass.own.spi_words.fetch_or(1 << (on.intid >> 5), Relaxed);
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
            *priority = lr.priority();
        }
        self.free |= 1 << slot;
        self.line_driven &= !(1 << slot);
        pass.write(slot, Lr::EMPTY);
    }
}
