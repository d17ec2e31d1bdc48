// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Comparing the list registers in use with the models, one after the other.
//!
//! | list register | model | outcome |
//! |---|---|---|
//! | empty | pending again | pending again, in place |
//! | empty | – | retired |
//! | pending | disabled, line low, taken back, routed elsewhere | withdrawn |
//! | pending | priority, group or trigger changed | rewritten |
//! | active | pending again | pending and active; a hardware link is cut, EL2 deactivates |
//! | active | ICACTIVER | retired; EL2 deactivates what was linked |
//!
//! Must not choose what comes next: that is `refill`. IHI 0069 H 5.2 to 5.4.
#![forbid(unsafe_code)]

use super::{Delivery, ListRegisters, NO_SLOT, SLOTS, SpiToken, Vgic};
use crate::bits::Level;
use crate::gic::bank::{Bank, bit, bits_of};
use crate::gic::vdist::{Net, Spi};
use crate::gic::vredist::Vredist;
use crate::gic::{Effects, Version};
use crate::id::{Pintid, Vintid};
use crate::spec::gic::{Lr, LrState, PPI_FIRST, SPI_FIRST, ich_hcr};
use crate::spec::its::LPI_FIRST;
use crate::trace::InterruptKind;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed, Ordering::SeqCst};

/// One run of `reconcile`: what it looks at, and what it has seen.
pub(super) struct Pass<'a, L, E> {
    pub vgic: &'a Vgic,
    pub own: &'a Vredist,
    pub token: &'a mut SpiToken,
    pub lrs: &'a mut L,
    pub net: Net<'a, E>,
    pub ctlr: u32,
    /// The groups that the guest has enabled in its CPU interface.
    pub groups: u32,
    /// Pending bits of SGIs and PPIs to be taken back.
    retract: u32,
    /// Active bits of SGIs and PPIs to be taken back.
    deactivate: u32,
    /// The list registers in use, as they are now.
    pub seen: [Lr; SLOTS],
}

/// An interrupt, and the list register it is in or goes to.
#[derive(Clone, Copy)]
pub(super) struct Listing<'a> {
    pub slot: u32,
    pub intid: u32,
    pub bank: &'a Bank,
    pub bit: u32,
}

impl Listing<'_> {
    /// Returns whether the interrupt is in the word.
    fn is_in(self, word: &AtomicU32) -> bool {
        word.load(Relaxed) & self.bit != 0
    }
    /// Takes the interrupt from the word and returns whether it was there.
    fn take(self, word: &AtomicU32) -> bool {
        self.is_in(word) && word.fetch_and(!self.bit, SeqCst) & self.bit != 0
    }
    /// Returns whether the interrupt has no memory of its own but follows its line.
    pub fn is_level(self) -> bool {
        self.bank.edge() & self.bit == 0
    }
    /// Returns what kind of interrupt it is.
    pub fn kind(self) -> InterruptKind {
        match self.intid {
            ..PPI_FIRST => InterruptKind::Sgi,
            PPI_FIRST..SPI_FIRST => InterruptKind::Ppi,
            SPI_FIRST..LPI_FIRST => InterruptKind::Spi,
            _ => InterruptKind::Lpi,
        }
    }
    /// Makes the value of a list register with the interrupt pending, without link.
    pub fn pending(self) -> Lr {
        let priority = self.bank.priority(self.intid & 31);
        let lr = Lr::pending(Vintid::new(self.intid), priority)
            .with_group_bit(self.bank.group1() >> (self.intid & 31));
        if self.is_level() { lr.with_eoi() } else { lr }
    }
    /// Publishes the state in the list register.
    pub fn show(self, lr: Lr) {
        let words = [
            (&self.bank.shown_pending, lr.is_pending()),
            (&self.bank.shown_active, lr.is_active()),
        ];
        for (word, is_set) in words {
            let others = word.load(Relaxed) & !self.bit;
            word.store(others | if is_set { self.bit } else { 0 }, Relaxed);
        }
    }
}

impl Vredist {
    /// Makes the value of a list register with a pending SGI of `sender`; where others have sent
    /// it too its end is reported, so that the next one follows.
    pub(super) fn sgi_of(&self, on: Listing<'_>, sender: u8) -> Lr {
        let lr = on.pending().with_source(sender);
        if self.sources(on.intid) == 0 { lr } else { lr.with_eoi() }
    }
}

impl<'a, L: ListRegisters, E: Effects> Pass<'a, L, E> {
    /// Finds the state of an interrupt.
    pub fn listing(&self, slot: u32, intid: u32) -> Option<Listing<'a>> {
        let bank = match intid {
            ..SPI_FIRST => &self.own.bank,
            SPI_FIRST..LPI_FIRST => self.vgic.vdist.bank(intid >> 5)?,
            _ => self.vgic.lpis.bank(intid >> 5)?,
        };
        Some(Listing { slot, intid, bank, bit: bit(intid) })
    }
    /// Finds an SPI.
    pub fn spi(&self, intid: u32) -> Option<&'a Spi> {
        self.vgic.vdist.spi(intid)
    }
    /// Returns whether the interrupt goes to this vCPU.
    fn is_mine(&self, intid: u32) -> bool {
        match intid {
            ..LPI_FIRST => self.spi(intid).is_none_or(|spi| spi.is_for(self.own.id())),
            _ => self.vgic.lpis.is_for(intid, self.own.id()),
        }
    }
    /// Notes that this vCPU holds an SPI or LPI.
    pub fn hold(&self, intid: u32) {
        match self.spi(intid) {
            Some(spi) => spi.hold(self.own.id()),
            None => self.vgic.lpis.hold(intid, self.own.id()),
        }
    }
    /// Notes that an interrupt has left its list register.
    pub fn unlist(&mut self, on: Listing<'_>) {
        let own = self.own.id();
        match on.intid {
            ..SPI_FIRST => on.bank.unlist(on.bit),
            SPI_FIRST..LPI_FIRST => self.vgic.vdist.unlist(self.token, on.intid, own, self.net),
            _ => self.vgic.lpis.unlist(self.token, on.intid, own, self.net),
        }
    }
    /// Returns what is left in a list register when what the guest took back is gone.
    fn left_of(&self, on: Listing<'_>, was: Lr) -> Lr {
        let (retract, deactivate) = if on.intid < SPI_FIRST {
            (self.retract & on.bit != 0, self.deactivate & on.bit != 0)
        } else {
            (on.take(&on.bank.retract), on.take(&on.bank.deactivate))
        };
        // A guest that quiets its device does so without an exit, so its line is looked at here.
        let line = |pintid| match on.intid {
            ..SPI_FIRST => self.lrs.line(pintid),
            _ => self.net.effects.line(pintid),
        };
        let is_low =
            was.is_pending() && was.pintid().is_some_and(|pintid| line(pintid) == Level::Low);
        let pending = was.is_pending() && !retract && !is_low;
        // An LPI has no active state (IHI 0069 H 4.1.2). Some CPU interfaces have its list register
        // active all the same; its end is then one of no list register, which is not counted.
        let active = was.is_active() && !deactivate && on.intid < LPI_FIRST;
        was.with_state(LrState::new(pending, active))
    }
    /// Shows a linked PPI that is active as pending too where its line is high and the trigger a
    /// level: the list register must not say so, but the guest has not seen the last of it.
    fn show_line(&self, on: Listing<'_>, lr: Lr) {
        if on.is_level() && lr.pintid().is_some_and(|pintid| self.lrs.line(pintid) == Level::High) {
            on.show(lr.with_state(LrState::PendingActive));
        }
    }
    /// Deactivates the physical interrupt behind an interrupt.
    fn deactivate(&mut self, on: Listing<'_>, pintid: Pintid) {
        match on.intid {
            ..SPI_FIRST => self.lrs.deactivate(pintid),
            _ => self.net.effects.deactivate(pintid),
        }
    }
    /// Writes what a list register holds of its interrupt where that has changed.
    fn rewrite(&mut self, on: Listing<'_>, was: Lr, now: Lr) {
        if now.is_pending() && !was.is_pending() {
            self.own.injections.count(on.kind(), 1);
        }
        if now != was {
            self.write(on.slot, now);
        }
        self.note(on.slot, now);
    }
    /// Writes a list register.
    #[inline(never)]
    pub fn write(&mut self, slot: u32, lr: Lr) {
        self.lrs.write(slot as usize, lr);
        self.note(slot, lr);
    }
    fn note(&mut self, slot: u32, lr: Lr) {
        if let Some(seen) = self.seen.get_mut(slot as usize) {
            *seen = lr;
        }
    }
}

impl Delivery {
    /// Brings models and list registers into line: takes in what the guest has done, withdraws
    /// what is not to be delivered any more, and fills free list registers with what is most
    /// urgent. Also what a guest's read of pending or active bits needs before it.
    pub fn reconcile<L: ListRegisters, E: Effects>(
        &mut self,
        vgic: &Vgic,
        token: &mut SpiToken,
        lrs: &mut L,
        effects: &E,
    ) {
        let Some(mut pass) = self.look(vgic, token, lrs, effects) else { return };
        self.refill(&mut pass);
        // An SGI of GICv2 has a sender, of which the quick route knows nothing.
        let has_quick_route = vgic.version() == Version::V3 && !self.has_backlog;
        self.quick = if has_quick_route { self.learned } else { 0 };
        self.set_control(&mut pass);
        pass.own.looks.end();
    }

    /// Moves everything from list registers into the models: what a core does whose vCPU is
    /// switched off. After it is switched on again, a flush brings back what waits.
    pub fn vacate<L: ListRegisters, E: Effects>(
        &mut self,
        vgic: &Vgic,
        token: &mut SpiToken,
        lrs: &mut L,
        effects: &E,
    ) {
        let Some(mut pass) = self.look(vgic, token, lrs, effects) else { return };
        for slot in bits_of(self.usable & !self.free) {
            self.evict(&mut pass, slot);
        }
        self.has_backlog = false;
        self.quick = 0;
        self.set_control(&mut pass);
        pass.own.looks.end();
        if pass.own.has_waiting() {
            pass.own.look_again();
        }
    }

    /// Moves the SGIs that wait in list registers back into the redistributor, which then shows
    /// all of their senders. A flush brings them back.
    pub fn recall_sgis<L: ListRegisters, E: Effects>(
        &mut self,
        vgic: &Vgic,
        token: &mut SpiToken,
        lrs: &mut L,
        effects: &E,
    ) {
        let Some(mut pass) = self.look(vgic, token, lrs, effects) else { return };
        for slot in bits_of(self.usable & !self.free) {
            let is_waiting =
                |lr: &&Lr| lr.state() == LrState::Pending && vgic.has_sender(lr.vintid().get());
            if pass.seen.get(slot as usize).filter(is_waiting).is_some() {
                self.evict(&mut pass, slot);
            }
        }
        pass.own.looks.end();
        pass.own.look_again();
    }

    fn look<'a, L: ListRegisters, E: Effects>(
        &mut self,
        vgic: &'a Vgic,
        token: &'a mut SpiToken,
        lrs: &'a mut L,
        effects: &'a E,
    ) -> Option<Pass<'a, L, E>> {
        let own = vgic.vredist(self.vcpu)?;
        let work = own.take_work();
        own.looks.begin();
        self.forget_if_asked(work);
        // Requests before latches: what was made pending after a request stays pending.
        let retract = own.bank.retract.swap(0, SeqCst);
        let deactivate = own.bank.deactivate.swap(0, SeqCst);
        own.bank.pending.fetch_or(work.raised(), SeqCst);
        for intid in bits_of(own.bank.linked.load(Relaxed) & own.bank.pending.load(Relaxed)) {
            if self.link(intid).is_some_and(|pintid| lrs.line(pintid) == Level::Low) {
                own.bank.pending.fetch_and(!bit(intid), SeqCst);
            }
        }
        let net = vgic.net(effects);
        vgic.vdist.drop_low(token, net);
        let ctlr = own.ctlr.load(Relaxed);
        let seen = [Lr::EMPTY; SLOTS];
        let groups = lrs.groups();
        let mut pass = Pass { vgic, own, token, lrs, net, ctlr, groups, retract, deactivate, seen };
        self.take_ends(&mut pass);
        for slot in bits_of(self.usable & !self.free) {
            self.review(&mut pass, slot);
        }
        self.show_evicted(&pass);
        self.deactivate_orphans(&mut pass);
        Some(pass)
    }

    /// Compares one list register with the model.
    fn review<L: ListRegisters, E: Effects>(&mut self, pass: &mut Pass<'_, L, E>, slot: u32) {
        let was = pass.lrs.read(slot as usize);
        let Some(on) = pass.listing(slot, was.vintid().get()) else { return };
        let left = pass.left_of(on, was);
        if left.is_active() {
            // ISACTIVER while it was active already.
            on.take(&on.bank.active);
        }
        let eligible = on.bank.eligible(pass.ctlr) & on.bit != 0;
        if pass.vgic.has_sender(on.intid) {
            return self.review_sgi_of_sender(pass, on, (left, was), eligible);
        }
        let deliverable = eligible && pass.is_mine(on.intid);
        let mut latched = left.is_pending() && self.line_driven & bit(slot) == 0;
        if deliverable {
            latched |= on.bank.take_pending(on.bit) != 0;
        } else if latched {
            on.bank.pending.fetch_or(on.bit, SeqCst);
            latched = false;
        }
        let by_line = deliverable && on.bank.held_by_line() & on.bit != 0;
        let now = if left.is_active() {
            let state = LrState::new(latched, true);
            self.still_active(on, was.with_state(state), pass.ctlr)
        } else if latched || by_line {
            self.pending_again(pass, on, was)
        } else {
            return self.retire(pass, on, was);
        };
        self.line_driven &= !bit(slot);
        if !left.is_active() && !latched {
            self.line_driven |= bit(slot);
        }
        on.show(now);
        if now.is_active() && on.intid < SPI_FIRST {
            pass.show_line(on, now);
        }
        pass.rewrite(on, was, now);
    }

    /// Compares one list register that holds an SGI of GICv2 with the model. There it is of one
    /// sender, so it is never pending and active; others wait for its end.
    fn review_sgi_of_sender<L: ListRegisters, E: Effects>(
        &mut self,
        pass: &mut Pass<'_, L, E>,
        on: Listing<'_>,
        (left, was): (Lr, Lr),
        deliverable: bool,
    ) {
        if left.is_pending() && !deliverable {
            pass.own.latch_sources(on.intid, 1 << left.source());
        }
        let now = if left.is_active() {
            self.still_active(on, was.with_state(LrState::Active), pass.ctlr)
        } else if left.is_pending() && deliverable {
            // Sent again by the same sender, it is pending as it was.
            pass.own.remove_sources(on.intid, 1 << left.source());
            pass.own.sgi_of(on, left.source())
        } else if let Some(source) = deliverable.then(|| pass.own.take_source(on.intid)).flatten() {
            pass.own.sgi_of(on, source)
        } else {
            return self.retire(pass, on, was);
        };
        on.show(now);
        pass.rewrite(on, was, now);
    }

    /// Returns what a list register holds that is active: without link where that cannot be, and
    /// reported at its end where somebody waits for that.
    fn still_active(&mut self, on: Listing<'_>, lr: Lr, ctlr: u32) -> Lr {
        // On another vCPU, else it would have become pending here.
        let awaited = on.is_in(&on.bank.pending) && on.bank.eligible(ctlr) & on.bit != 0;
        let mut lr = lr;
        if lr.is_linked() && (lr.is_pending() || awaited) {
            self.owe(on, lr);
            lr = lr.without_link();
        }
        if !lr.is_linked() && (on.is_level() || awaited || on.bank.awaited() & on.bit != 0) {
            lr = lr.with_eoi();
        }
        lr
    }

    /// Returns what a list register holds whose interrupt is pending, still or again.
    fn pending_again<L: ListRegisters, E: Effects>(
        &mut self,
        pass: &mut Pass<'_, L, E>,
        on: Listing<'_>,
        was: Lr,
    ) -> Lr {
        let kept = if was.state() == LrState::Pending { was.pintid() } else { None };
        if was.is_active() {
            self.owe(on, was);
        }
        if on.take(&on.bank.held)
            && let Some(pintid) = self.physical(pass, on)
        {
            pass.deactivate(on, pintid);
        }
        match kept.or_else(|| self.take_link(pass, on)) {
            Some(pintid) => on.pending().with_link(pintid),
            None => on.pending(),
        }
    }

    /// Gives a list register back.
    fn retire<L: ListRegisters, E: Effects>(
        &mut self,
        pass: &mut Pass<'_, L, E>,
        on: Listing<'_>,
        was: Lr,
    ) {
        if was.state() != LrState::Invalid {
            self.owe(on, was);
        }
        if was.state() != LrState::Invalid || was.has_eoi() {
            pass.write(on.slot, Lr::EMPTY);
        }
        self.free |= bit(on.slot);
        self.line_driven &= !bit(on.slot);
        if on.intid < SPI_FIRST {
            *self.slot_of(on.intid) = NO_SLOT;
        }
        pass.unlist(on);
    }

    /// Notes that EL2 must deactivate the physical interrupt linked to a list register itself, or
    /// link it again.
    pub(super) fn owe(&mut self, on: Listing<'_>, lr: Lr) {
        if let Some(pintid) = lr.pintid() {
            let word = if lr.is_active() { &on.bank.held } else { &on.bank.linked };
            word.fetch_or(on.bit, Relaxed);
            if on.intid < SPI_FIRST {
                self.set_link(on.intid, pintid);
            }
        }
    }
    /// Takes the physical interrupt that waits for the guest, to link it.
    pub(super) fn take_link<L: ListRegisters, E: Effects>(
        &self,
        pass: &Pass<'_, L, E>,
        on: Listing<'_>,
    ) -> Option<Pintid> {
        if !on.take(&on.bank.linked) {
            return None;
        }
        self.physical(pass, on)
    }
    fn physical<L: ListRegisters, E: Effects>(
        &self,
        pass: &Pass<'_, L, E>,
        on: Listing<'_>,
    ) -> Option<Pintid> {
        pass.spi(on.intid).map_or_else(|| self.link(on.intid), Spi::link)
    }

    /// Takes in the ends of interrupts that are active but in no list register: the guest ends
    /// them most urgent first, since that is the order of its priority drops.
    fn take_ends<L: ListRegisters, E: Effects>(&mut self, pass: &mut Pass<'_, L, E>) {
        self.evicted &= pass.own.bank.active.load(Relaxed);
        if self.evicted == 0 && !self.has_evicted_spis {
            return;
        }
        for _ in 0..pass.lrs.take_eoi_count() {
            let Some(intid) = self.most_urgent_evicted(pass) else { break };
            if intid < SPI_FIRST {
                self.evicted &= !bit(intid);
                pass.own.bank.active.fetch_and(!bit(intid), SeqCst);
            } else {
                pass.vgic.vdist.deactivate(pass.token, Vintid::new(intid), pass.net);
            }
        }
        self.has_evicted_spis = self.has_evicted_spis && Self::evicted_spis(pass).next().is_some();
    }

    fn most_urgent_evicted<L: ListRegisters, E: Effects>(
        &self,
        pass: &Pass<'_, L, E>,
    ) -> Option<u32> {
        bits_of(self.evicted).chain(Self::evicted_spis(pass)).min_by_key(|&intid| {
            let private = self.running_priority.get(intid as usize).copied();
            private.or_else(|| pass.spi(intid).map(Spi::running_priority))
        })
    }

    fn evicted_spis<L, E>(pass: &Pass<'_, L, E>) -> impl Iterator<Item = u32> {
        let (vdist, vcpu) = (&pass.vgic.vdist, pass.own.id());
        let banks = (1..=vdist.bank_count()).filter_map(|word| Some((word, vdist.bank(word)?)));
        banks
            .flat_map(|(word, bank)| {
                let evicted = bank.active.load(Relaxed) & !bank.listed.load(Relaxed);
                bits_of(evicted).map(move |index| word << 5 | index)
            })
            .filter(move |&intid| vdist.spi(intid).is_some_and(|spi| spi.is_held_by(vcpu)))
    }

    /// Shows linked PPIs that are active in no list register as `show_line` does those in one.
    fn show_evicted<L: ListRegisters, E: Effects>(&self, pass: &Pass<'_, L, E>) {
        let bank = &pass.own.bank;
        let mut shown = bank.shown_pending.load(Relaxed) & bank.listed.load(Relaxed);
        for intid in bits_of(self.evicted & bank.awaited() & !bank.edge()) {
            if self.link(intid).is_some_and(|pintid| pass.lrs.line(pintid) == Level::High) {
                shown |= bit(intid);
            }
        }
        bank.shown_pending.store(shown, Relaxed);
    }

    /// Deactivates the physical interrupts behind PPIs that nobody holds any more.
    fn deactivate_orphans<L: ListRegisters, E: Effects>(&mut self, pass: &mut Pass<'_, L, E>) {
        let orphans = pass.own.bank.orphans();
        for intid in bits_of(orphans) {
            if let Some(pintid) = self.link(intid) {
                pass.lrs.deactivate(pintid);
            }
        }
        if orphans != 0 {
            pass.own.bank.take_awaited(orphans);
        }
    }

    fn set_control<L: ListRegisters, E: Effects>(&mut self, pass: &mut Pass<'_, L, E>) {
        let mut control = Self::CONTROL;
        if self.has_backlog {
            control |= ich_hcr::NPIE;
            // Who comes first changes with the groups that the guest enables. A group that goes
            // off matters only to the other one.
            control |= match pass.groups & 3 {
                0 => ich_hcr::VGRP0EIE | ich_hcr::VGRP1EIE,
                1 => ich_hcr::VGRP1EIE,
                2 => ich_hcr::VGRP0EIE,
                _ => ich_hcr::VGRP0DIE | ich_hcr::VGRP1DIE,
            };
        }
        if self.evicted != 0 || self.has_evicted_spis {
            control |= ich_hcr::LRENPIE;
        }
        if control & !self.control & ich_hcr::LRENPIE != 0 {
            // What the guest ended up to now was nothing that it had begun.
            pass.lrs.take_eoi_count();
        }
        if control != self.control {
            self.control = control;
            pass.lrs.set_control(control);
        }
    }
}
