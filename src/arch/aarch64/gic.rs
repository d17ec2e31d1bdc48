// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The CPU interface of this core: physical (ICC_*) and virtual control (ICH_*) by system
//! registers, IHI 0069 H chapters 9 and 12; or a GICv2's by its driver, once boot has named one.
//!
//! Where there is a GICv2 no ICC or ICH register is touched: they may not exist. EL2 runs with
//! EOImode 1: it drops the priority at once and a guest's deactivation, through a linked list
//! register, ends the physical interrupt (traps T71); with a GICv2 EL2 does, once it sees that.
#![expect(unsafe_code, reason = "a list register is chosen by a computed branch")]

use super::sysreg::{
    icc_ctlr, icc_iar1, ich_elrsr, set_icc_ap1r0, set_icc_ap1r1, set_icc_ap1r2, set_icc_ap1r3,
    set_icc_bpr1, set_icc_ctlr, set_icc_dir, set_icc_eoir1, set_icc_igrpen1, set_icc_pmr,
    set_icc_sgi1r, set_icc_sre_el1,
};
use crate::bits::Level;
use crate::drivers::gicv2::{CpuInterfaces, Links};
use crate::gic::ListRegisters;
use crate::id::{Mpidr, Pintid};
use crate::spec::gic::Lr;
use crate::spec::gicv2::SgiWrite;
use crate::spec::smccc::low_word;
use crate::sync::Once;
use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::*;
use core::arch::asm;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// INTIDs from here on are special: 1023 says that nothing is pending (IHI 0069 2.2.1).
const INTID_SPECIAL: u32 = 1020;
/// ICH_VMCR_EL2.VEOIM: the guest's EOImode.
const VEOIM: u64 = 1 << 9;
const ICC_SRE_SRE: u64 = 1 << 0;
const ICC_CTLR_EOIMODE: u64 = 1 << 1;

/// Whether there is a GICv2: what all but the shortest paths ask first, so that a GICv3 pays for
/// one load.
static HAS_GICV2: AtomicBool = AtomicBool::new(false);
static GICV2: Once<&'static CpuInterfaces> = Once::new();

/// Names the GICv2 that all cores use from here on. Before any other core runs.
pub fn use_gicv2(interfaces: &'static CpuInterfaces) {
    GICV2.call_once(|| interfaces);
    HAS_GICV2.store(true, Relaxed);
}

/// Returns whether there is a GICv2.
pub(super) fn has_gicv2() -> bool {
    HAS_GICV2.load(Relaxed)
}

/// Returns the GICv2 where there is one.
#[inline(always)]
fn gicv2() -> Option<&'static CpuInterfaces> {
    if HAS_GICV2.load(Relaxed) { named_gicv2() } else { None }
}

#[cold]
fn named_gicv2() -> Option<&'static CpuInterfaces> {
    GICV2.get().copied()
}

/// Makes this core's CPU interface ready: system registers, every priority, priority drop apart
/// from deactivation, Group 1 on.
pub fn enable_cpu_interface() {
    if let Some(gicv2) = gicv2() {
        gicv2.enable(super::el2::this_mpidr());
        return reset_virtual_interface();
    }
    ICC_SRE_EL2.modify(ICC_SRE_EL2::SRE::SET + ICC_SRE_EL2::ENABLE::SET);
    barrier::isb(barrier::SY);
    set_icc_sre_el1(ICC_SRE_SRE);
    barrier::isb(barrier::SY);
    set_icc_pmr(0xff);
    set_icc_bpr1(0);
    set_icc_ctlr(ICC_CTLR_EOIMODE);
    forget_active_priorities();
    set_icc_igrpen1(1);
    reset_virtual_interface();
}

/// Forgets interrupts that whoever ran before has taken and not ended: their priority would hold
/// ours back. There are as many registers as ICC_CTLR_EL1.PRIbits asks for, others are UNDEF.
fn forget_active_priorities() {
    let priority_bits = (icc_ctlr() >> 8 & 7) + 1;
    set_icc_ap1r0(0);
    if priority_bits >= 6 {
        set_icc_ap1r1(0);
    }
    if priority_bits >= 7 {
        set_icc_ap1r2(0);
        set_icc_ap1r3(0);
    }
}

/// Takes the highest-priority pending interrupt of this core and lets others come while it stays
/// active; `None` when there is none.
pub fn take_interrupt() -> Option<Pintid> {
    let Some(gicv2) = gicv2() else { return take_interrupt_v3() };
    let intid = gicv2.take();
    // As below.
    barrier::dsb(barrier::SY);
    intid
}

/// Does the same where there is a GICv3.
#[inline(always)]
pub fn take_interrupt_v3() -> Option<Pintid> {
    let intid = low_word(icc_iar1());
    // What the interrupt says is to be found is looked at after it is taken, not before: the next
    // one of its kind would be merged into it (pairs with the DSB of `send_sgi`; IHI 0069 H 2.7).
    barrier::dsb(barrier::SY);
    if intid >= INTID_SPECIAL {
        return None;
    }
    set_icc_eoir1(intid.into());
    Some(Pintid::new(intid))
}

/// Ends an interrupt that no guest will end.
pub fn deactivate(intid: Pintid) {
    match gicv2() {
        Some(gicv2) => gicv2.deactivate(intid),
        None => deactivate_v3(intid),
    }
}

/// Does the same where there is a GICv3.
#[inline(always)]
pub fn deactivate_v3(intid: Pintid) {
    set_icc_dir(intid.get().into());
}

/// A core as the target of the hypervisor's SGIs: the value to write for the SGI 0, to
/// ICC_SGI1R_EL1 (IHI 0069 H 12.2.22) or to GICD_SGIR.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SgiTarget(u64);

impl SgiTarget {
    /// Set for GICD_SGIR: RES0 in ICC_SGI1R_EL1.
    const V2: u64 = 1 << 63;

    /// Makes the target of a core that has enabled its CPU interface.
    #[must_use]
    pub fn new(target: Mpidr) -> Self {
        if let Some(gicv2) = gicv2() {
            return Self(Self::V2 | u64::from(SgiWrite::to_list(0, gicv2.set_of(target))));
        }
        let affinity = target.get();
        let aff0 = affinity & 0xff;
        let value = ((affinity >> 32) & 0xff) << 48
            | ((affinity >> 16) & 0xff) << 32
            | ((affinity >> 8) & 0xff) << 16
            | (aff0 >> 4) << 44
            | 1 << (aff0 & 0xf);
        Self(value)
    }
}

/// Sends an SGI of the hypervisor.
#[inline(always)]
pub fn send_sgi(intid: Pintid, target: SgiTarget) {
    // What the target is to find was written before (pairs with its acquire after the SGI).
    barrier::dsb(barrier::ISHST);
    if target.0 & SgiTarget::V2 != 0 {
        return send_sgi_v2(intid, target);
    }
    set_icc_sgi1r(target.0 | u64::from(intid.get() & 0xf) << 24);
    barrier::isb(barrier::SY);
}

#[cold]
#[inline(never)]
fn send_sgi_v2(intid: Pintid, SgiTarget(value): SgiTarget) {
    // Nothing but the mark is in the upper half.
    if let (Some(gicv2), Ok(list)) = (gicv2(), u32::try_from(value & !SgiTarget::V2)) {
        gicv2.send_sgi(list | intid.get() & 0xf);
    }
}

/// The SGI that tells a core to halt because another one has faulted.
pub const HALT_SGI: u32 = 1;

/// Tells all other cores to halt. Before the CPU interface is on there is nobody to tell, and its
/// registers may be UNDEF.
pub(super) fn send_stop() {
    const ALL_OTHERS: u64 = 1 << 40;
    if let Some(gicv2) = gicv2() {
        barrier::dsb(barrier::ISHST);
        return gicv2.send_sgi(SgiWrite::to_all_others(HALT_SGI));
    }
    if !super::el2::has_gic_registers() || !ICC_SRE_EL2.is_set(ICC_SRE_EL2::SRE) {
        return;
    }
    barrier::dsb(barrier::ISHST);
    set_icc_sgi1r(ALL_OTHERS | u64::from(HALT_SGI) << 24);
    barrier::isb(barrier::SY);
}

/// Empties this core's virtual interface: no list register, no active priority, reset view.
pub fn reset_virtual_interface() {
    if let Some(gicv2) = gicv2() {
        return gicv2.reset_virtual();
    }
    // The guest's own too: it may have turned its system registers off, where that can be done.
    set_icc_sre_el1(ICC_SRE_SRE);
    ICH_HCR_EL2.set(0);
    for n in 0..list_register_count() {
        write_lr(n, 0);
    }
    ICH_AP0R0_EL2.set(0);
    ICH_AP1R0_EL2.set(0);
    // Bits 28:26 of ICH_VTR_EL2 are the preemption bits less one: with more than 5 there are more
    // active-priority registers, others are UNDEF (IHI 0069 H 12.4).
    let preemption_bits = (ICH_VTR_EL2.get() >> 26 & 7) + 1;
    if preemption_bits >= 6 {
        ICH_AP0R1_EL2.set(0);
        ICH_AP1R1_EL2.set(0);
    }
    if preemption_bits == 7 {
        ICH_AP0R2_EL2.set(0);
        ICH_AP0R3_EL2.set(0);
        ICH_AP1R2_EL2.set(0);
        ICH_AP1R3_EL2.set(0);
    }
    ICH_VMCR_EL2.set(0);
    ICH_HCR_EL2.write(ICH_HCR_EL2::En::SET);
    barrier::isb(barrier::SY);
}

fn list_register_count() -> usize {
    if let Some(gicv2) = gicv2() {
        return gicv2.list_register_count();
    }
    // Bits 4:0 are the number less one (traps T66).
    usize::try_from(ICH_VTR_EL2.get() & 0x1f).map_or(1, |n| n + 1).min(16)
}

/// This core's list registers.
#[derive(Debug)]
pub struct ListRegisterFile {
    count: usize,
    /// Those of a GICv2.
    links: Links,
}

impl ListRegisterFile {
    /// Takes the list registers of this core, no more than `max` of them.
    pub fn new(max: Option<u8>) -> Self {
        let count = list_register_count().min(max.map_or(16, usize::from)).max(1);
        Self { count, links: Links::default() }
    }

    /// Returns how many list registers are used.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }
}

impl ListRegisters for ListRegisterFile {
    #[inline(never)]
    fn read(&mut self, slot: usize) -> Lr {
        match gicv2() {
            Some(gicv2) => gicv2.read_lr(&mut self.links, slot),
            None => Lr::from_register(read_lr(slot)),
        }
    }
    #[inline(never)]
    fn write(&mut self, slot: usize, lr: Lr) {
        match gicv2() {
            Some(gicv2) => gicv2.write_lr(&mut self.links, slot, lr),
            None => write_lr(slot, lr.get()),
        }
    }
    #[inline(always)]
    fn empty(&self) -> u32 {
        gicv2().map_or_else(empty_lrs, CpuInterfaces::empty_lrs)
    }
    #[inline(always)]
    fn quick_write(&mut self, slot: usize, lr: Lr) {
        write_lr(slot, lr.get());
    }
    #[inline(always)]
    fn quick_empty(&self) -> u32 {
        empty_lrs()
    }
    fn take_eoi_count(&mut self) -> u32 {
        if let Some(gicv2) = gicv2() {
            return gicv2.take_eoi_count();
        }
        // With EOImode 1 an end is a priority drop; deactivations are trapped (TDIR), not counted.
        let count = ICH_HCR_EL2.read(ICH_HCR_EL2::EOIcount);
        ICH_HCR_EL2.modify(ICH_HCR_EL2::EOIcount.val(0));
        if ICH_VMCR_EL2.get() & VEOIM != 0 { 0 } else { u32::try_from(count).unwrap_or(0) }
    }
    fn set_control(&mut self, bits: u32) {
        match gicv2() {
            Some(gicv2) => gicv2.set_control(bits),
            None => ICH_HCR_EL2.set(ICH_HCR_EL2::En::SET.value | u64::from(bits)),
        }
    }
    fn groups(&self) -> u32 {
        if let Some(gicv2) = gicv2() {
            return gicv2.groups();
        }
        // VENG0 and VENG1 are the two lowest bits.
        u32::try_from(ICH_VMCR_EL2.get() & 3).unwrap_or(0)
    }
    fn deactivate(&mut self, pintid: Pintid) {
        deactivate(pintid);
    }
    fn line(&self, pintid: Pintid) -> Level {
        // ENABLE and ISTATUS without IMASK (DDI 0487, CNTV_CTL_EL0).
        let is_high = match pintid.get() {
            VIRTUAL_TIMER => CNTV_CTL_EL0.get() & 7 == 5,
            PHYSICAL_TIMER => CNTP_CTL_EL0.get() & 7 == 5,
            _ => true,
        };
        if is_high { Level::High } else { Level::Low }
    }
}

#[inline(always)]
fn empty_lrs() -> u32 {
    // What was written to list registers since the exit must count (traps T65).
    barrier::isb(barrier::SY);
    // One bit for each list register, 16 at most; the rest is RES0.
    low_word(ich_elrsr())
}

/// The timers' PPIs by the Base System Architecture (DEN 0094), which boot has confirmed.
const VIRTUAL_TIMER: u32 = 27;
const PHYSICAL_TIMER: u32 = 30;

macro_rules! list_registers {
    ($($n:literal = $name:literal = $register:ident,)*) => {
        #[inline(never)]
        fn read_lr(n: usize) -> u64 {
            match n {
                $($n => $register.get(),)*
                _ => 0,
            }
        }

        /// Writes a list register; only the low four bits of `n` count.
        #[inline(always)]
        fn write_lr(n: usize, value: u64) {
            // SAFETY: The branch goes to one of the 16 pairs below, which leave at the end. What a
            // list register holds reaches the guest, not EL2's memory.
            unsafe {
                asm!(
                    "adr {at}, 2f",
                    "add {at}, {at}, {n}, lsl #3",
                    "br {at}",
                    "2:",
                    $(concat!("msr ", $name, ", {value}"), "b 3f",)*
                    "3:",
                    at = out(reg) _,
                    n = in(reg) n & 15,
                    value = in(reg) value,
                    options(nostack, preserves_flags),
                );
            }
        }
    };
}

list_registers! {
    0 = "ich_lr0_el2" = ICH_LR0_EL2,
    1 = "ich_lr1_el2" = ICH_LR1_EL2,
    2 = "ich_lr2_el2" = ICH_LR2_EL2,
    3 = "ich_lr3_el2" = ICH_LR3_EL2,
    4 = "ich_lr4_el2" = ICH_LR4_EL2,
    5 = "ich_lr5_el2" = ICH_LR5_EL2,
    6 = "ich_lr6_el2" = ICH_LR6_EL2,
    7 = "ich_lr7_el2" = ICH_LR7_EL2,
    8 = "ich_lr8_el2" = ICH_LR8_EL2,
    9 = "ich_lr9_el2" = ICH_LR9_EL2,
    10 = "ich_lr10_el2" = ICH_LR10_EL2,
    11 = "ich_lr11_el2" = ICH_LR11_EL2,
    12 = "ich_lr12_el2" = ICH_LR12_EL2,
    13 = "ich_lr13_el2" = ICH_LR13_EL2,
    14 = "ich_lr14_el2" = ICH_LR14_EL2,
    15 = "ich_lr15_el2" = ICH_LR15_EL2,
}
