// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Delivery to one vCPU: the one place that touches list registers.
//!
//! Two routes lead there. The quick one, for SGIs and PPIs that have just become pending and for
//! linked timers, writes a free list register and looks at nothing else. Everything else goes
//! through `reconcile`, which compares all list registers in use with the models. Both keep these
//! rules: an interrupt is in one list register or none; a linked one is never pending and active;
//! when more wait than fit, those in list registers are the most urgent, one of them is pending,
//! and a maintenance interrupt comes when none is pending any more.
//!
//! Must not know how list registers are reached. IHI 0069 H 5.2 to 5.4 and 12.4.
#![forbid(unsafe_code)]

mod reconcile;
mod refill;

use super::bank::{bit, bits_of};
use super::vredist::{Vredist, Work};
use super::{SpiToken, Vgic};
use crate::bits::Level;
use crate::id::{Pintid, VcpuId, Vintid};
use crate::spec::gic::{Lr, ich_hcr};
use crate::trace::InterruptKind;
use core::sync::atomic::Ordering::{Relaxed, SeqCst};

/// The most list registers that the architecture has.
const SLOTS: usize = 16;
/// Stands for no list register; those that there are have lower numbers.
const NO_SLOT: u8 = 31;

/// The list registers of the core that runs the vCPU, as the machine layer offers them.
pub trait ListRegisters {
    /// Reads ICH_LR<`slot`>_EL2. Below the count that [`Delivery`] was told.
    fn read(&mut self, slot: usize) -> Lr;
    /// Writes ICH_LR<`slot`>_EL2.
    fn write(&mut self, slot: usize, lr: Lr);
    /// Reads ICH_ELRSR_EL2, after an ISB where list registers were written since the exit.
    fn empty(&self) -> u32;
    /// Does what [`Self::empty`] does for the quick route, which a GICv2 does not have.
    #[inline(always)]
    fn quick_empty(&self) -> u32 {
        self.empty()
    }
    /// Does what [`Self::write`] does for the quick route, which a GICv2 does not have.
    #[inline(always)]
    fn quick_write(&mut self, slot: usize, lr: Lr) {
        self.write(slot, lr);
    }
    /// Reads ICH_HCR_EL2.EOIcount and sets it to 0; 0 where the guest's EOImode is 1.
    fn take_eoi_count(&mut self) -> u32;
    /// Reads VENG0 and VENG1 of ICH_VMCR_EL2 into bits 0 and 1: the groups that the guest has
    /// enabled in its CPU interface.
    fn groups(&self) -> u32;
    /// Sets the bits of ICH_HCR_EL2 that are not the machine layer's own, as [`ich_hcr`] has
    /// them: NPIE, LRENPIE, `VGRP<n>`EIE, `VGRP<n>`DIE and TDIR.
    fn set_control(&mut self, bits: u32);
    /// Deactivates a physical interrupt of this core, or an SPI.
    fn deactivate(&mut self, pintid: Pintid);
    /// Returns what the line of a PPI of this core carries now; high where that is not known.
    fn line(&self, pintid: Pintid) -> Level;
}

/// What is left to do after a flush.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Flush {
    /// Nothing: the guest can be entered.
    Done,
    /// Nothing either, and the first SGI that went into a list register is not counted in
    /// [`Vredist::injections`].
    Sgi,
    /// [`Delivery::reconcile`], under the VM's lock.
    Reconcile,
}

/// What has become of a PPI.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Injected {
    /// It is in a list register, and not counted in [`Vredist::injections`].
    Now,
    /// The next [`Delivery::flush`] is about it.
    Later,
}

/// Delivery to one vCPU. Its core owns it.
#[derive(Debug)]
pub struct Delivery {
    vcpu: VcpuId,
    /// The list registers in use by nobody, as far as we have looked.
    free: u32,
    /// The list registers that there are.
    usable: u32,
    /// The list registers whose interrupt is pending only because its line is high.
    line_driven: u32,
    /// SGIs and PPIs that were taken from a list register while active.
    evicted: u32,
    /// The priorities that those had.
    running_priority: [u8; 32],
    /// Whether there may be such SPIs.
    has_evicted_spis: bool,
    /// Whether more interrupts wait than fit.
    has_backlog: bool,
    /// The SGIs and PPIs for which `lr_of` holds, and which are deliverable, unless work says
    /// otherwise.
    learned: u32,
    /// Those that may go into a list register without a look at what else there is: `learned`,
    /// or none where there is a backlog.
    quick: u32,
    /// The list register's value for each of them when pending: of an SGI without link, of a PPI
    /// with it.
    lr_of: [Lr; 32],
    /// The control bits as last set.
    control: u32,
    /// The list register of each SGI and PPI, or [`NO_SLOT`].
    slot_of: [u8; 32],
    /// The physical interrupt behind each PPI that has one, once it was withdrawn from a list
    /// register or did not get one at once; 0 is none.
    links: [u16; 32],
}

impl Delivery {
    /// The control bits that stay set: a guest that deactivates by ICC_DIR_EL1 may do so on
    /// another vCPU, and what is in no list register.
    const CONTROL: u32 = ich_hcr::TDIR;

    /// Makes the delivery of a vCPU over `count` list registers, 1 to 16; the rest is not used.
    pub fn new(vcpu: VcpuId, count: usize) -> Self {
        let usable = u32::MAX >> (32 - count.clamp(1, SLOTS));
        Self {
            vcpu,
            free: usable,
            usable,
            line_driven: 0,
            evicted: 0,
            running_priority: [0; 32],
            has_evicted_spis: false,
            has_backlog: false,
            learned: 0,
            quick: 0,
            lr_of: [Lr::EMPTY; 32],
            control: Self::CONTROL,
            slot_of: [NO_SLOT; 32],
            links: [0; 32],
        }
    }

    /// Empties all list registers and deactivates the physical interrupts that they and the
    /// redistributor hold: what a vCPU's core does at the start and at the end of its VM.
    ///
    /// [`Vgic::reset`] follows when all vCPUs have done this, and resets the models.
    pub fn reset<L: ListRegisters>(&mut self, own: &Vredist, lrs: &mut L) {
        for slot in bits_of(self.usable) {
            let index = slot as usize;
            let lr = if self.free & bit(slot) == 0 { lrs.read(index) } else { Lr::EMPTY };
            if let Some(pintid) = lr.pintid()
                && (lr.is_pending() || lr.is_active())
            {
                lrs.deactivate(pintid);
            }
            lrs.write(index, Lr::EMPTY);
        }
        let linked = own.bank.linked.load(Relaxed);
        let awaited = own.bank.take_awaited(u32::MAX);
        for pintid in bits_of(awaited).filter_map(|intid| self.link(intid)) {
            lrs.deactivate(pintid);
        }
        // The devices of this core are silent by now; what is pending because of a line is not.
        own.bank.pending.fetch_and(!linked | own.bank.edge(), SeqCst);
        *self = Self::new(self.vcpu, self.usable.count_ones() as usize);
        lrs.set_control(Self::CONTROL);
    }

    /// Delivers a PPI whose physical interrupt `pintid` has been acknowledged and had its
    /// priority dropped on this core; it stays active until the guest deactivates the PPI.
    #[inline(always)]
    pub fn inject_private<L: ListRegisters>(
        &mut self,
        own: &Vredist,
        vintid: Vintid,
        pintid: Pintid,
        lrs: &mut L,
    ) -> Injected {
        let intid = vintid.get() & 31;
        let is_quick = self.quick & bit(intid) != 0 && own.has_sgis_only();
        if is_quick && self.place_quickly(own, intid, lrs) {
            return Injected::Now;
        }
        self.inject_later(own, intid, pintid);
        Injected::Later
    }

    /// Leaves a linked PPI for `reconcile`, or for when it is enabled.
    #[cold]
    #[inline(never)]
    fn inject_later(&mut self, own: &Vredist, intid: u32, pintid: Pintid) {
        self.set_link(intid, pintid);
        own.bank.linked.fetch_or(bit(intid), Relaxed);
        let _ = own.bank.latch(bit(intid));
        own.look_again();
    }

    /// Delivers what has become pending. The last thing before the guest is entered, with
    /// `reconcile` where it says so, and then again while `own.has_work()`: who leaves work where
    /// there is none kicks, but not for this very core.
    #[inline(always)]
    pub fn flush<L: ListRegisters>(&mut self, own: &Vredist, lrs: &mut L) -> Flush {
        let work = own.take_work();
        let raised = work.raised();
        if work.is_within(self.quick) {
            if raised == 0 {
                return Flush::Done;
            }
            if self.place_quickly(own, raised.trailing_zeros(), lrs) {
                let left = raised & raised.wrapping_sub(1);
                return if left == 0 { Flush::Sgi } else { self.place_more(own, work, left, lrs) };
            }
        }
        self.keep(own, work, raised)
    }

    /// Delivers SGIs that have become pending at once with one that is in a list register now.
    #[cold]
    #[inline(never)]
    fn place_more<L: ListRegisters>(
        &mut self,
        own: &Vredist,
        work: Work,
        mut raised: u32,
        lrs: &mut L,
    ) -> Flush {
        while self.place_quickly(own, raised.trailing_zeros(), lrs) {
            own.injections.count(InterruptKind::Sgi, 1);
            raised &= raised.wrapping_sub(1);
            if raised == 0 {
                return Flush::Sgi;
            }
        }
        // The first one too, since the answer does not tell of it.
        own.injections.count(InterruptKind::Sgi, 1);
        self.keep(own, work, raised)
    }

    /// Returns whether an interrupt in a list register is pending.
    pub fn has_pending<L: ListRegisters>(&self, lrs: &mut L) -> bool {
        bits_of(self.usable & !self.free).any(|slot| lrs.read(slot as usize).is_pending())
    }

    /// Keeps what cannot be delivered quickly.
    #[cold]
    #[inline(never)]
    fn keep(&mut self, own: &Vredist, work: Work, raised: u32) -> Flush {
        self.forget_if_asked(work);
        own.bank.pending.fetch_or(raised, SeqCst);
        // Pairs with an enable on another core, which enables first and then looks at `pending`.
        let eligible = own.bank.eligible(own.ctlr.load(Relaxed));
        if work.is_sgis_only() && raised & eligible == 0 { Flush::Done } else { Flush::Reconcile }
    }

    /// Forgets what it has learned where that may be wrong.
    fn forget_if_asked(&mut self, work: Work) {
        if work.asks_to_relearn() {
            (self.learned, self.quick) = (0, 0);
        }
    }

    /// Puts a learned SGI or PPI into a list register where that takes no thought; returns
    /// whether it did.
    #[inline(always)]
    fn place_quickly<L: ListRegisters>(&mut self, own: &Vredist, intid: u32, lrs: &mut L) -> bool {
        let empty = lrs.quick_empty();
        let mut slot = u32::from(*self.slot_of(intid));
        // Its list register can be used again once the guest is done with it.
        if empty & bit(slot) == 0 {
            match self.take_slot(own, intid, empty) {
                Some(free) => slot = free,
                None => return false,
            }
        }
        let lr = *self.lr_of(intid);
        lrs.quick_write((slot & 15) as usize, lr);
        true
    }

    /// Takes a free list register for an SGI or PPI that is in none.
    #[inline(never)]
    fn take_slot(&mut self, own: &Vredist, intid: u32, empty: u32) -> Option<u32> {
        let free = empty & self.free;
        if free == 0 || *self.slot_of(intid) != NO_SLOT {
            return None;
        }
        let slot = free.trailing_zeros();
        self.free &= !bit(slot);
        *self.slot_of(intid) = slot.to_le_bytes()[0];
        own.bank.list(bit(intid));
        Some(slot)
    }

    #[inline(always)]
    fn lr_of(&mut self, intid: u32) -> &mut Lr {
        #[expect(clippy::indexing_slicing, reason = "masked to the length")]
        let lr = &mut self.lr_of[intid as usize & 31];
        lr
    }
    #[inline(always)]
    fn slot_of(&mut self, intid: u32) -> &mut u8 {
        #[expect(clippy::indexing_slicing, reason = "masked to the length")]
        let slot = &mut self.slot_of[intid as usize & 31];
        slot
    }
    fn set_link(&mut self, intid: u32, pintid: Pintid) {
        if let (Some(link), Ok(pintid)) =
            (self.links.get_mut(intid as usize), u16::try_from(pintid.get()))
        {
            *link = pintid;
        }
    }
    fn link(&self, intid: u32) -> Option<Pintid> {
        let link = *self.links.get(intid as usize)?;
        (link != 0).then_some(Pintid::new(u32::from(link)))
    }
}
