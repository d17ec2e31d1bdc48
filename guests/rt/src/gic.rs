// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The GIC: distributor, what is of each vCPU, SGIs.
//!
//! With a GICv3 (IHI 0069) everything is in Group 1; QEMU without EL3 leaves it in Group 0
//! otherwise. With a GICv2 (IHI 0048 B) everything stays in Group 0, and what a redistributor has is
//! banked in the distributor.

use crate::cpu::{self, CPUS_MAX};
pub use crate::cpu_interface::EOI_MODE;
use crate::device::Device;
use crate::sysreg::{ICC_SGI1R_EL1, dsb, isb};
use crate::{cpu_interface, timer, tree};
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

/// Register offsets (IHI 0069 12.8, 12.10, 12.11); the banked ones are the same in the SGI frame.
pub mod reg {
    /// GICD_CTLR, GICR_CTLR.
    pub const CTLR: u64 = 0x0000;
    /// GICD_TYPER.
    pub const TYPER: u64 = 0x0004;
    /// GICD_IIDR.
    pub const IIDR: u64 = 0x0008;
    /// GICR_TYPER.
    pub const GICR_TYPER: u64 = 0x0008;
    /// GICR_WAKER.
    pub const WAKER: u64 = 0x0014;
    /// GICD_IGROUPR.
    pub const IGROUPR: u64 = 0x0080;
    /// GICD_ISENABLER.
    pub const ISENABLER: u64 = 0x0100;
    /// GICD_ICENABLER.
    pub const ICENABLER: u64 = 0x0180;
    /// GICD_ISPENDR.
    pub const ISPENDR: u64 = 0x0200;
    /// GICD_ICPENDR.
    pub const ICPENDR: u64 = 0x0280;
    /// GICD_ISACTIVER.
    pub const ISACTIVER: u64 = 0x0300;
    /// GICD_ICACTIVER.
    pub const ICACTIVER: u64 = 0x0380;
    /// GICD_IPRIORITYR.
    pub const IPRIORITYR: u64 = 0x0400;
    /// GICD_ICFGR.
    pub const ICFGR: u64 = 0x0c00;
    /// GICD_ITARGETSR, of GICv2.
    pub const ITARGETSR: u64 = 0x0800;
    /// GICD_SGIR, of GICv2.
    pub const SGIR: u64 = 0x0f00;
    /// GICD_CPENDSGIR, of GICv2.
    pub const CPENDSGIR: u64 = 0x0f10;
    /// GICD_SPENDSGIR, of GICv2.
    pub const SPENDSGIR: u64 = 0x0f20;
    /// GICD_INMIR.
    pub const INMIR: u64 = 0x0f80;
    /// GICD_IROUTER.
    pub const IROUTER: u64 = 0x6000;
    /// The SGI frame of a redistributor.
    pub const SGI_FRAME: u64 = 0x1_0000;
    /// The size of a redistributor without virtual LPIs.
    pub const GICR_STRIDE: u64 = 0x2_0000;
}

/// GICD_CTLR: affinity routing, one security state's view or the Non-secure one.
const CTLR_ARE: u32 = 1 << 4;
/// GICD_CTLR: Group 1 enabled.
const CTLR_GROUP1: u32 = 1 << 1;
/// GICD_CTLR of GICv2: Group 0 enabled.
const CTLR_GROUP0: u32 = 1 << 0;
/// GICD_CTLR: a write is on its way.
const GICD_RWP: u32 = 1 << 31;
/// GICR_CTLR: a write is on its way.
const GICR_RWP: u32 = 1 << 3;
/// The priority that everything has unless a test sets another.
pub const PRIORITY: u8 = 0xa0;

/// GICD_IROUTER: Interrupt_Routing_Mode.
pub const ROUTE_TO_ANY: u64 = 1 << 31;

/// The redistributor of each vCPU, by index.
static GICR: [AtomicU64; CPUS_MAX] = [const { AtomicU64::new(0) }; CPUS_MAX];

/// The CPU interface of each vCPU, by index: its bit in the target registers of a GICv2.
static TARGETS: [AtomicU8; CPUS_MAX] = [const { AtomicU8::new(0) }; CPUS_MAX];

/// Returns whether there is a GICv2.
#[must_use]
pub fn is_v2() -> bool {
    cpu_interface::gicc().is_some()
}

/// Returns the distributor.
#[must_use]
pub fn gicd() -> Device {
    tree::machine().gicd
}

/// Returns the redistributor of vCPU `index`: the RD frame, then the SGI frame.
#[must_use]
pub fn gicr(index: usize) -> Device {
    Device::new(GICR.get(index).map_or(0, |base| base.load(Relaxed)), reg::GICR_STRIDE)
}

/// Returns the registers of this vCPU's SGIs and PPIs, and where they start.
#[must_use]
pub fn private() -> (Device, u64) {
    if is_v2() { (gicd(), 0) } else { (gicr(cpu::index()), reg::SGI_FRAME) }
}

/// Returns the bit of vCPU `index` in target registers; 0 before it has run.
#[must_use]
pub fn target(index: usize) -> u8 {
    TARGETS.get(index).map_or(0, |target| target.load(Relaxed))
}

/// Returns how many INTIDs the distributor has, without the special ones.
#[must_use]
pub fn intids() -> u32 {
    (32 * ((gicd().read32(reg::TYPER) & 0x1f) + 1)).min(1020)
}

/// Finds the redistributor of each vCPU; changes nothing, so that a test can look at it first.
pub(crate) fn find_redistributors() {
    for (index, base) in GICR.iter().enumerate().take(cpu::count()) {
        base.store(find_redistributor(cpu::mpidr(index)), Relaxed);
    }
}

/// Brings the distributor into its working state: Group 1 on, nothing enabled, pending or active.
pub fn init() {
    let gicd = gicd();
    disable_groups();
    for intid in (32..intids()).step_by(32) {
        let word = u64::from(intid) / 8;
        gicd.write32(reg::ICENABLER + word, u32::MAX);
        gicd.write32(reg::ICPENDR + word, u32::MAX);
        gicd.write32(reg::ICACTIVER + word, u32::MAX);
        gicd.write32(reg::IGROUPR + word, if is_v2() { 0 } else { u32::MAX });
        gicd.write32(reg::ICFGR + 2 * word, 0);
        gicd.write32(reg::ICFGR + 2 * word + 4, 0);
        for n in 0..8 {
            gicd.write32(reg::IPRIORITYR + 8 * word + 4 * n, u32::from_ne_bytes([PRIORITY; 4]));
        }
        if is_v2() {
            for n in 0..8 {
                let here = u32::from_ne_bytes([own_target(); 4]);
                gicd.write32(reg::ITARGETSR + 8 * word + 4 * n, here);
            }
            continue;
        }
        gicd.write32(reg::INMIR + word, 0);
        for n in 0..32 {
            gicd.write64(reg::IROUTER + 64 * word + 8 * n, cpu::mpidr(0));
        }
    }
    let _ = wait_for_writes();
    enable_groups();
}

/// Lets the distributor pass on what is pending.
pub fn enable_groups() {
    gicd().write32(reg::CTLR, if is_v2() { CTLR_GROUP0 } else { CTLR_ARE | CTLR_GROUP1 });
    let _ = wait_for_writes();
}

/// Keeps the distributor from passing anything on.
pub fn disable_groups() {
    gicd().write32(reg::CTLR, if is_v2() { 0 } else { CTLR_ARE });
    let _ = wait_for_writes();
}

/// Reads this vCPU's bit in the target registers of a GICv2: the byte of an SGI says so, unless
/// there is one vCPU alone.
fn own_target() -> u8 {
    gicd().read8(reg::ITARGETSR).max(1)
}

/// Brings what this vCPU has for itself, and its CPU interface, into their working state.
pub fn init_cpu() {
    if is_v2() {
        if let Some(target) = TARGETS.get(cpu::index()) {
            target.store(own_target(), Relaxed);
        }
        for n in 0..4 {
            gicd().write32(reg::CPENDSGIR + 4 * n, u32::MAX);
        }
    } else {
        let gicr = gicr(cpu::index());
        gicr.write32(reg::WAKER, 0);
        // ChildrenAsleep.
        let _ = timer::wait_for(timer::PATIENCE_MS, || gicr.read32(reg::WAKER) & 4 == 0);
        gicr.write32(reg::SGI_FRAME + reg::INMIR, 0);
    }
    let (private, frame) = private();
    for (offset, value) in [
        (reg::ICENABLER, u32::MAX),
        (reg::ICPENDR, u32::MAX),
        (reg::ICACTIVER, u32::MAX),
        (reg::IGROUPR, if is_v2() { 0 } else { u32::MAX }),
    ] {
        private.write32(frame + offset, value);
    }
    for n in 0..8 {
        let offset = frame + reg::IPRIORITYR + 4 * n;
        private.write32(offset, u32::from_ne_bytes([PRIORITY; 4]));
    }
    if !is_v2() {
        let _ = timer::wait_for(timer::PATIENCE_MS, || private.read32(reg::CTLR) & GICR_RWP == 0);
    }
    cpu_interface::init();
}

/// Waits until the distributor has taken in what was written; `false` when it does not.
pub fn wait_for_writes() -> bool {
    timer::wait_for(timer::PATIENCE_MS, || gicd().read32(reg::CTLR) & GICD_RWP == 0)
}

fn find_redistributor(affinity: u64) -> u64 {
    // GICR_TYPER has Aff3 next to Aff2.
    let wanted = affinity >> 8 & 0xff00_0000 | affinity & 0xff_ffff;
    for region in &tree::machine().gicr {
        let mut offset = 0;
        while offset < region.size() {
            let typer = region.read64(offset + reg::GICR_TYPER);
            if typer >> 32 == wanted {
                return region.at(offset);
            }
            if typer & 1 << 4 != 0 {
                break;
            }
            // Two more frames where there are virtual LPIs.
            offset += if typer & 2 == 0 { reg::GICR_STRIDE } else { 2 * reg::GICR_STRIDE };
        }
    }
    0
}

/// Returns the registers that hold an INTID: the distributor, or this vCPU's SGI frame.
fn bank(intid: u32) -> (Device, u64) {
    if intid < 32 { private() } else { (gicd(), 0) }
}

fn write_bit(register: u64, intid: u32) {
    let (device, frame) = bank(intid);
    device.write32(frame + register + u64::from(intid / 32 * 4), 1 << (intid % 32));
}

fn read_bit(register: u64, intid: u32) -> bool {
    let (device, frame) = bank(intid);
    device.read32(frame + register + u64::from(intid / 32 * 4)) >> (intid % 32) & 1 == 1
}

/// Enables an interrupt; an SGI or PPI on this vCPU.
pub fn enable(intid: u32) {
    write_bit(reg::ISENABLER, intid);
}
/// Disables an interrupt, and waits until that holds.
pub fn disable(intid: u32) {
    write_bit(reg::ICENABLER, intid);
    let _ = wait_for_writes();
}
/// Makes an interrupt pending.
pub fn set_pending(intid: u32) {
    write_bit(reg::ISPENDR, intid);
}
/// Makes an interrupt not pending, unless its line is high.
pub fn clear_pending(intid: u32) {
    write_bit(reg::ICPENDR, intid);
}
/// Returns whether an interrupt is pending.
#[must_use]
pub fn is_pending(intid: u32) -> bool {
    read_bit(reg::ISPENDR, intid)
}
/// Makes an interrupt active.
pub fn set_active(intid: u32) {
    write_bit(reg::ISACTIVER, intid);
}
/// Makes an interrupt inactive.
pub fn clear_active(intid: u32) {
    write_bit(reg::ICACTIVER, intid);
}
/// Returns whether an interrupt is active.
#[must_use]
pub fn is_active(intid: u32) -> bool {
    read_bit(reg::ISACTIVER, intid)
}
/// Returns whether an interrupt is enabled.
#[must_use]
pub fn is_enabled(intid: u32) -> bool {
    read_bit(reg::ISENABLER, intid)
}
/// Sets an interrupt's priority.
pub fn set_priority(intid: u32, priority: u8) {
    let (device, frame) = bank(intid);
    device.write8(frame + reg::IPRIORITYR + u64::from(intid), priority);
}
/// Makes an SPI edge-triggered.
pub fn set_edge(intid: u32) {
    let offset = reg::ICFGR + u64::from(intid / 16 * 4);
    let (device, frame) = bank(intid);
    let value = device.read32(frame + offset);
    device.write32(frame + offset, value | 2 << (intid % 16 * 2));
}
/// Sends an SPI to the vCPU with an affinity, or to any with [`ROUTE_TO_ANY`].
pub fn route(intid: u32, affinity: u64) {
    if is_v2() {
        let named = |index: &usize| affinity == ROUTE_TO_ANY || cpu::mpidr(*index) == affinity;
        let all = (0..cpu::count()).filter(named).fold(0, |set, index| set | target(index));
        return gicd().write8(reg::ITARGETSR + u64::from(intid), all);
    }
    gicd().write64(reg::IROUTER + 8 * u64::from(intid), affinity);
}

/// Returns the value of ICC_SGI1R_EL1 (IHI 0069 12.2.20) for an SGI to the vCPUs of `list` among
/// the 16 with the higher affinity fields of `affinity`.
#[must_use]
pub fn sgi_value(intid: u32, affinity: u64, list: u16) -> u64 {
    let aff = |n: u64| affinity >> n & 0xff;
    u64::from(list) | aff(8) << 16 | u64::from(intid) << 24 | aff(16) << 32 | aff(32) << 48
}

/// Sends an SGI to vCPU `index`.
pub fn send_sgi(intid: u32, index: usize) {
    dsb();
    if is_v2() {
        return gicd().write32(reg::SGIR, u32::from(target(index)) << 16 | intid);
    }
    let affinity = cpu::mpidr(index);
    // Aff0 is below 16 on the machines of these tests; the range selector takes care of the rest.
    let value = sgi_value(intid, affinity, 1 << (affinity & 0xf)) | (affinity >> 4 & 0xf) << 44;
    ICC_SGI1R_EL1::set(value);
    isb();
}
