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

use super::bank::bits_of;
use super::vredist::Vredist;
use super::{SpiToken, Vgic};
use crate::id::{Pintid, VcpuId, Vintid};
use crate::spec::gic::{Lr, ich_hcr};
use core::sync::atomic::Ordering::{Relaxed, SeqCst};

/// The most list registers that the architecture has.
const SLOTS: usize = 16;

/// The list registers of the core that runs the vCPU, as the machine layer offers them.
pub trait ListRegisters {
    /// Reads ICH_LR<`slot`>_EL2. Below the count that [`Delivery`] was told.
    fn read(&self, slot: usize) -> Lr;
    /// Writes ICH_LR<`slot`>_EL2.
    fn write(&mut self, slot: usize, lr: Lr);
    /// Reads ICH_ELRSR_EL2, after an ISB where list registers were written since the exit.
    fn empty(&self) -> u32;
    /// Reads ICH_HCR_EL2.EOIcount and sets it to 0.
    fn take_eoi_count(&mut self) -> u32;
    /// Sets the bits of ICH_HCR_EL2 that are not the machine layer's own: see
    /// [`ich_hcr`], NPIE, LRENPIE and TDIR.
    fn set_control(&mut self, bits: u32);
    /// Deactivates a physical interrupt of this core, or an SPI.
    fn deactivate(&mut self, pintid: Pintid);
}

/// What is left to do after a flush.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Flush {
    /// Nothing: the guest can be entered.
    Done,
    /// [`Delivery::reconcile`], under the VM's lock.
    Reconcile,
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
    /// The control bits as last set.
    control: u32,
    /// The list register of each SGI and PPI that is listed.
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
            control: Self::CONTROL,
            slot_of: [0; 32],
            links: [0; 32],
        }
    }

    /// Empties all list registers and deactivates the physical interrupts that they and the
    /// redistributor hold: what a vCPU's core does at the start and at the end of its VM.
    ///
    /// [`Vgic::reset`] follows when all vCPUs have done this.
    pub fn reset<L: ListRegisters>(&mut self, own: &Vredist, lrs: &mut L) {
        for slot in bits_of(self.usable) {
            let slot = slot as usize;
            let lr = if self.free >> slot & 1 == 0 { lrs.read(slot) } else { Lr::EMPTY };
            if let Some(pintid) = lr.pintid()
                && (lr.is_pending() || lr.is_active())
            {
                lrs.deactivate(pintid);
            }
            lrs.write(slot, Lr::EMPTY);
        }
        for intid in bits_of(own.bank.linked.swap(0, Relaxed)) {
            if let Some(pintid) = self.link(intid) {
                lrs.deactivate(pintid);
            }
        }
        own.bank.reset();
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
    ) {
        let intid = vintid.get() & 31;
        let eligible = own.bank.eligible(own.ctlr.load(Relaxed)) >> intid & 1 != 0;
        if !eligible || self.has_backlog || !self.place_quickly(own, intid, Some(pintid), lrs) {
            self.inject_later(own, intid, pintid);
        }
    }

    /// Leaves a linked PPI for `reconcile`, or for when it is enabled.
    #[cold]
    #[inline(never)]
    fn inject_later(&mut self, own: &Vredist, intid: u32, pintid: Pintid) {
        self.set_link(intid, pintid);
        own.bank.linked.fetch_or(1 << intid, Relaxed);
        let _ = own.bank.latch(1 << intid);
        own.look_again();
    }

    /// Delivers what has become pending. Worth calling only when `own.has_work()`.
    #[inline]
    pub fn flush<L: ListRegisters>(&mut self, own: &Vredist, lrs: &mut L) -> Flush {
        let work = own.take_work();
        let mut raised = work.raised();
        if work.is_raised_only() && !self.has_backlog {
            let ready = raised & own.bank.eligible(own.ctlr.load(Relaxed));
            for intid in bits_of(ready) {
                if self.place_quickly(own, intid, None, lrs) {
                    raised &= !(1 << intid);
                }
            }
            if raised == 0 || raised & ready == 0 && Self::park(own, raised) {
                return Flush::Done;
            }
        }
        own.bank.pending.fetch_or(raised, SeqCst);
        Flush::Reconcile
    }

    /// Keeps what is not eligible, and returns whether it still is not.
    #[cold]
    fn park(own: &Vredist, raised: u32) -> bool {
        own.bank.pending.fetch_or(raised, SeqCst);
        // Pairs with an enable on another core, which enables first and then looks at `pending`.
        raised & own.bank.eligible(own.ctlr.load(Relaxed)) == 0
    }

    /// Puts an eligible SGI or PPI into a list register where that takes no thought; returns
    /// whether it did.
    #[inline(always)]
    fn place_quickly<L: ListRegisters>(
        &mut self,
        own: &Vredist,
        intid: u32,
        link: Option<Pintid>,
        lrs: &mut L,
    ) -> bool {
        let bit = 1 << (intid & 31);
        let empty = lrs.empty();
        let slot = if own.bank.listed.load(Relaxed) & bit != 0 {
            // Its list register can be used again once the guest is done with it.
            let slot = u32::from(*self.slot_of(intid));
            if empty >> (slot & 15) & 1 == 0 {
                return false;
            }
            slot
        } else {
            let free = empty & self.free;
            if free == 0 {
                return false;
            }
            let slot = free.trailing_zeros();
            self.free &= !(free & free.wrapping_neg());
            *self.slot_of(intid) = slot.to_le_bytes()[0];
            own.bank.list(bit);
            slot
        };
        let mut lr = Lr::pending(Vintid::new(intid), own.bank.priority(intid))
            .with_group_bit(own.bank.group1() >> (intid & 31));
        if let Some(pintid) = link {
            lr = lr.with_link(pintid);
        } else if own.bank.edge() & bit == 0 {
            lr = lr.with_eoi();
        }
        lrs.write((slot & 15) as usize, lr);
        true
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
