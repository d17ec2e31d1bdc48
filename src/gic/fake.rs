// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A virtual CPU interface without hardware, for tests that play the guest.
//!
//! It behaves as IHI 0069 H 5.2 and 12.4 say of `ICH_LR<n>_EL2` and the ICV registers, and panics
//! where they call something UNPREDICTABLE.
#![forbid(unsafe_code)]

use super::{Effects, ListRegisters};
use crate::bits::Level;
use crate::id::{Pintid, VcpuId};
use crate::spec::gic::{Lr, LrState, ich_hcr};
use core::cell::RefCell;
use std::vec::Vec;

/// What ICC_IAR reads when there is nothing to acknowledge.
pub const SPURIOUS: u32 = 1023;

/// ICC_CTLR_EL1.EOImode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EoiMode {
    /// The end of an interrupt deactivates it.
    DropAndDeactivate,
    /// The end of an interrupt drops the priority only.
    DropOnly,
}

/// What the list register of an LPI becomes when the LPI is acknowledged: it has no active state
/// (IHI 0069 H 4.1.2), but some implementations keep it active until its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LpiState {
    /// Empty.
    Gone,
    /// Active, until its end in either EOImode.
    ActiveToTheEnd,
}

/// What became of a write to ICC_DIR_EL1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dir {
    /// The CPU interface has done it.
    Done,
    /// It traps to EL2.
    Trapped,
}

/// A core's virtual CPU interface with its list registers.
#[derive(Debug)]
pub struct FakeCpu {
    lrs: Vec<Lr>,
    control: u32,
    eoi_count: u32,
    /// Whether list registers keep LPIs active until their end.
    pub lpis: LpiState,
    running: Vec<u8>,
    /// ICC_PMR_EL1.
    pub priority_mask: u8,
    /// ICC_IGRPEN0_EL1 in bit 0, ICC_IGRPEN1_EL1 in bit 1.
    pub groups: u32,
    /// ICC_CTLR_EL1.EOImode.
    pub eoi_mode: EoiMode,
    /// The physical interrupts that were deactivated here, by EL2 or by a hardware link.
    pub deactivated: Vec<Pintid>,
    /// The PPIs whose lines are low; all others are high.
    pub low_lines: Vec<Pintid>,
    /// How many interrupts of each kind became pending in a list register: SGIs, PPIs, SPIs, LPIs.
    pub filled: [u64; 4],
}

impl FakeCpu {
    /// Makes a CPU interface with `count` list registers, unmasked, with both groups on.
    pub fn new(count: usize) -> Self {
        Self {
            lrs: std::vec![Lr::EMPTY; count],
            control: 0,
            eoi_count: 0,
            lpis: LpiState::Gone,
            running: Vec::new(),
            priority_mask: 0xff,
            groups: 3,
            eoi_mode: EoiMode::DropAndDeactivate,
            deactivated: Vec::new(),
            low_lines: Vec::new(),
            filled: [0; 4],
        }
    }

    /// Returns the list registers.
    pub fn lrs(&self) -> &[Lr] {
        &self.lrs
    }
    /// Returns the list register with this interrupt, unless it is empty.
    pub fn find(&self, intid: u32) -> Option<Lr> {
        let mut valid = self.lrs.iter().filter(|lr| lr.state() != LrState::Invalid);
        valid.find(|lr| lr.vintid().get() == intid).copied()
    }
    /// Returns the control bits as last set.
    pub fn control(&self) -> u32 {
        self.control
    }
    /// Returns the running priority.
    pub fn running_priority(&self) -> u8 {
        self.running.last().copied().unwrap_or(0xff)
    }

    /// Reads `ICC_IAR<group>_EL1`, of whichever group is signalled.
    pub fn acknowledge(&mut self) -> u32 {
        let groups = self.groups;
        let pending = self.lrs.iter_mut().filter(|lr| {
            lr.state() == LrState::Pending && groups >> u32::from(lr.is_group1()) & 1 != 0
        });
        let limit = self.priority_mask.min(self.running.last().copied().unwrap_or(0xff));
        match pending.min_by_key(|lr| lr.priority()) {
            Some(lr) if lr.priority() < limit => {
                let is_gone = is_lpi(lr.vintid().get()) && self.lpis == LpiState::Gone;
                *lr = lr.with_state(if is_gone { LrState::Invalid } else { LrState::Active });
                self.running.push(lr.priority());
                lr.vintid().get()
            }
            _ => SPURIOUS,
        }
    }
    /// Writes `ICC_EOIR<group>_EL1`.
    pub fn end(&mut self, intid: u32) {
        let dropped = self.running.pop().is_some();
        if dropped && (self.eoi_mode == EoiMode::DropAndDeactivate || is_lpi(intid)) {
            self.deactivate_listed(intid);
        }
    }
    /// Writes ICC_DIR_EL1.
    pub fn dir(&mut self, intid: u32) -> Dir {
        if self.control & ich_hcr::TDIR != 0 {
            return Dir::Trapped;
        }
        if self.eoi_mode == EoiMode::DropOnly {
            self.deactivate_listed(intid);
        }
        Dir::Done
    }
    fn deactivate_listed(&mut self, intid: u32) {
        let found = self.lrs.iter_mut().find(|lr| lr.is_active() && lr.vintid().get() == intid);
        let Some(lr) = found else {
            if !is_lpi(intid) {
                self.eoi_count = (self.eoi_count + 1) & 0x1f;
            }
            return;
        };
        let pending = lr.is_pending();
        *lr = lr.with_state(if pending { LrState::Pending } else { LrState::Invalid });
        self.deactivated.extend(lr.pintid());
    }

    /// Returns whether the maintenance interrupt is asserted.
    pub fn wants_maintenance(&self) -> bool {
        let none_pending = self.lrs.iter().all(|lr| lr.state() != LrState::Pending);
        let ended = self.lrs.iter().any(|lr| lr.state() == LrState::Invalid && lr.has_eoi());
        let in_use = self.lrs.iter().filter(|lr| lr.state() != LrState::Invalid).count();
        ended
            || none_pending && self.control & ich_hcr::NPIE != 0
            || self.eoi_count != 0 && self.control & ich_hcr::LRENPIE != 0
            || self.groups & 1 != 0 && self.control & ich_hcr::VGRP0EIE != 0
            || self.groups & 1 == 0 && self.control & ich_hcr::VGRP0DIE != 0
            || self.groups & 2 != 0 && self.control & ich_hcr::VGRP1EIE != 0
            || self.groups & 2 == 0 && self.control & ich_hcr::VGRP1DIE != 0
            || in_use < 2 && self.control & ich_hcr::UIE != 0
    }
}

fn is_lpi(intid: u32) -> bool {
    (8192..1 << 16).contains(&intid)
}

impl ListRegisters for FakeCpu {
    fn read(&mut self, slot: usize) -> Lr {
        self.lrs[slot]
    }
    fn write(&mut self, slot: usize, lr: Lr) {
        if lr.state() != LrState::Invalid {
            let twin = self.lrs.iter().enumerate().find(|(other, twin)| {
                *other != slot && twin.state() != LrState::Invalid && twin.vintid() == lr.vintid()
            });
            assert_eq!(twin, None, "{lr:?} twice");
            assert!(!(lr.is_linked() && lr.state() == LrState::PendingActive), "{lr:?}");
            let is_lpi = is_lpi(lr.vintid().get());
            assert!(lr.vintid().get() < 1020 || is_lpi && !lr.has_eoi(), "{lr:?}");
            assert!(lr.pintid().is_none_or(|pintid| (16..1020).contains(&pintid.get())), "{lr:?}");
        }
        let was = core::mem::replace(&mut self.lrs[slot], lr);
        let intid = lr.vintid().get();
        if lr.is_pending() && !(was.is_pending() && was.vintid().get() == intid) {
            let kind = [16, 32, 8192].into_iter().filter(|&first| intid >= first).count();
            self.filled[kind] += 1;
        }
    }
    fn empty(&self) -> u32 {
        let is_empty = |lr: &Lr| lr.state() == LrState::Invalid && !lr.has_eoi();
        self.lrs.iter().rev().fold(0, |word, lr| word << 1 | u32::from(is_empty(lr)))
    }
    fn take_eoi_count(&mut self) -> u32 {
        core::mem::take(&mut self.eoi_count)
    }
    fn groups(&self) -> u32 {
        self.groups
    }
    fn set_control(&mut self, bits: u32) {
        self.control = bits;
    }
    fn deactivate(&mut self, pintid: Pintid) {
        self.deactivated.push(pintid);
    }
    fn line(&self, pintid: Pintid) -> Level {
        if self.low_lines.contains(&pintid) { Level::Low } else { Level::High }
    }
}

/// Keeps what the models cause outside themselves.
#[derive(Debug, Default)]
pub struct Recorder {
    /// The vCPUs that were kicked.
    pub kicks: RefCell<Vec<VcpuId>>,
    /// The SPIs that were deactivated.
    pub deactivated: RefCell<Vec<Pintid>>,
    /// The SPIs whose line is low.
    pub low_lines: RefCell<Vec<Pintid>>,
    /// The SPIs that are pending while they are active.
    pub pending: RefCell<Vec<Pintid>>,
    /// The SPIs that were asked about that.
    pub asked: RefCell<Vec<Pintid>>,
    /// The SPIs that were routed.
    pub routes: RefCell<Vec<(Pintid, VcpuId)>>,
    /// What was written to GICR_CTLR of whom.
    pub lpi_controls: RefCell<Vec<(VcpuId, u32)>>,
}

impl Effects for Recorder {
    fn kick(&self, vcpu: VcpuId) {
        self.kicks.borrow_mut().push(vcpu);
    }
    fn deactivate(&self, pintid: Pintid) {
        self.deactivated.borrow_mut().push(pintid);
    }
    fn line(&self, pintid: Pintid) -> Level {
        if self.low_lines.borrow().contains(&pintid) { Level::Low } else { Level::High }
    }
    fn is_pending(&self, pintid: Pintid) -> bool {
        self.asked.borrow_mut().push(pintid);
        self.pending.borrow().contains(&pintid)
    }
    fn clear_pending(&self, pintid: Pintid) {
        self.pending.borrow_mut().retain(|other| *other != pintid);
    }
    fn route(&self, pintid: Pintid, vcpu: VcpuId) {
        self.routes.borrow_mut().push((pintid, vcpu));
    }
    fn control_lpis(&self, vcpu: VcpuId, value: u32) {
        self.lpi_controls.borrow_mut().push((vcpu, value));
    }
}
