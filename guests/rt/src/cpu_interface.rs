// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The CPU interface of this vCPU: system registers with a GICv3 (IHI 0069 12.2), GICC with a
//! GICv2 (IHI 0048 B 4.4). Values are in the form of GICv3's Group 1 registers.

use crate::cpu::{self, CPUS_MAX};
use crate::device::Device;
use crate::sysreg::{
    ICC_AP0R0_EL1, ICC_AP1R0_EL1, ICC_BPR1_EL1, ICC_CTLR_EL1, ICC_DIR_EL1, ICC_EOIR1_EL1,
    ICC_HPPIR1_EL1, ICC_IAR1_EL1, ICC_IGRPEN1_EL1, ICC_PMR_EL1, ICC_RPR_EL1, ICC_SRE_EL1, dsb, isb,
};
use crate::tree;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Register offsets of GICC (IHI 0048 B 4.1.3).
pub mod reg {
    /// GICC_CTLR.
    pub const CTLR: u64 = 0x0000;
    /// GICC_PMR.
    pub const PMR: u64 = 0x0004;
    /// GICC_BPR.
    pub const BPR: u64 = 0x0008;
    /// GICC_IAR.
    pub const IAR: u64 = 0x000c;
    /// GICC_EOIR.
    pub const EOIR: u64 = 0x0010;
    /// GICC_RPR.
    pub const RPR: u64 = 0x0014;
    /// GICC_HPPIR.
    pub const HPPIR: u64 = 0x0018;
    /// GICC_APR0.
    pub const APR: u64 = 0x00d0;
    /// GICC_DIR.
    pub const DIR: u64 = 0x1000;
}

/// ICC_CTLR_EL1: EOIR drops the priority only.
pub const EOI_MODE: u64 = 1 << 1;
/// GICC_CTLR: the same, and where the two stand apart.
const GICC_EOI_MODE: u32 = 1 << 9;
/// GICC_CTLR: Group 0, the one that is used.
const GICC_ENABLE: u32 = 1;
/// The bits of an acknowledged value that are the INTID; above stands who has sent an SGI.
const INTID: u32 = 0x3ff;

/// What each vCPU has acknowledged last for each SGI: its end has to name the sender.
static SENT: [[AtomicU32; 16]; CPUS_MAX] = [const { [const { AtomicU32::new(0) }; 16] }; CPUS_MAX];

/// Returns GICC; there is none with a GICv3.
#[must_use]
pub fn gicc() -> Option<Device> {
    tree::machine().gicc
}

/// Brings the interface into its working state: EOImode 0, every priority, the group on.
pub fn init() {
    if let Some(gicc) = gicc() {
        gicc.write32(reg::CTLR, 0);
        gicc.write32(reg::APR, 0);
        gicc.write32(reg::PMR, 0xff);
        gicc.write32(reg::BPR, 0);
        gicc.write32(reg::CTLR, GICC_ENABLE);
        return dsb();
    }
    ICC_SRE_EL1::set(ICC_SRE_EL1::get() | 1);
    isb();
    ICC_CTLR_EL1::set(0);
    ICC_PMR_EL1::set(0xff);
    ICC_BPR1_EL1::set(0);
    ICC_AP0R0_EL1::set(0);
    ICC_AP1R0_EL1::set(0);
    ICC_IGRPEN1_EL1::set(1);
    isb();
}

/// Sets whether the group is on.
pub fn set_group(is_on: u32) {
    match gicc() {
        Some(gicc) => {
            gicc.write32(reg::CTLR, gicc.read32(reg::CTLR) & !GICC_ENABLE | is_on);
            dsb();
        }
        None => {
            ICC_IGRPEN1_EL1::set(is_on.into());
            isb();
        }
    }
}

/// Returns whether the group is on.
#[must_use]
pub fn group() -> u64 {
    gicc().map_or_else(ICC_IGRPEN1_EL1::get, |gicc| (gicc.read32(reg::CTLR) & 3).into())
}

/// Sets the EOImode: 0, or [`EOI_MODE`].
pub fn set_eoi_mode(mode: u64) {
    match gicc() {
        Some(gicc) => {
            let mode = if mode == 0 { 0 } else { GICC_EOI_MODE };
            gicc.write32(reg::CTLR, GICC_ENABLE | mode);
            dsb();
        }
        None => {
            ICC_CTLR_EL1::set(mode);
            isb();
        }
    }
}

/// Returns the EOImode: 0, or [`EOI_MODE`].
#[must_use]
pub fn eoi_mode() -> u64 {
    match gicc() {
        Some(gicc) if gicc.read32(reg::CTLR) & GICC_EOI_MODE == 0 => 0,
        Some(_) => EOI_MODE,
        None => ICC_CTLR_EL1::get() & EOI_MODE,
    }
}

/// Sets the priority below which interrupts are kept back.
pub fn set_priority_mask(mask: u8) {
    match gicc() {
        Some(gicc) => {
            gicc.write32(reg::PMR, mask.into());
            dsb();
        }
        None => {
            ICC_PMR_EL1::set(mask.into());
            isb();
        }
    }
}

/// Returns the priority below which interrupts are kept back.
#[must_use]
pub fn priority_mask() -> u64 {
    gicc().map_or_else(ICC_PMR_EL1::get, |gicc| gicc.read32(reg::PMR).into())
}

/// Returns how many bits a priority has.
#[must_use]
pub fn priority_bits() -> u32 {
    if gicc().is_some() {
        // Nothing says so but the bits that stay.
        let mask = priority_mask();
        set_priority_mask(0xff);
        let bits = priority_mask().count_ones();
        set_priority_mask(mask.to_le_bytes()[0]);
        return bits;
    }
    // ICC_CTLR_EL1.PRIbits is one less.
    u32::try_from(ICC_CTLR_EL1::get() >> 8 & 7).unwrap_or(0) + 1
}

/// Returns the priority of what runs; 0xff when nothing does.
#[must_use]
pub fn running_priority() -> u64 {
    gicc().map_or_else(ICC_RPR_EL1::get, |gicc| gicc.read32(reg::RPR).into()) & 0xff
}

/// Returns which priorities are active.
#[must_use]
pub fn active_priorities() -> u64 {
    gicc().map_or_else(ICC_AP1R0_EL1::get, |gicc| gicc.read32(reg::APR).into())
}

/// Returns the INTID of what has the highest priority of all that is pending.
#[must_use]
pub fn highest_pending() -> u32 {
    match gicc() {
        Some(gicc) => gicc.read32(reg::HPPIR) & INTID,
        None => u32::try_from(ICC_HPPIR1_EL1::get() & 0xff_ffff).unwrap_or(u32::MAX),
    }
}

/// Acknowledges; returns the whole of what the register says.
pub fn acknowledge() -> u32 {
    let value = match gicc() {
        Some(gicc) => gicc.read32(reg::IAR),
        None => u32::try_from(ICC_IAR1_EL1::get()).unwrap_or(u32::MAX),
    };
    dsb();
    if let Some(sent) = gicc().and_then(|_| sent(value & INTID)) {
        sent.store(value, Relaxed);
        return value & INTID;
    }
    value
}

/// Returns the number of the CPU interface that has sent the SGI `intid`, acknowledged last.
#[must_use]
pub fn sender(intid: u32) -> u32 {
    sent(intid).map_or(0, |sent| sent.load(Relaxed) >> 10 & 7)
}

/// Writes to EOIR.
pub fn end(intid: u32) {
    match gicc() {
        Some(gicc) => {
            gicc.write32(reg::EOIR, with_sender(intid));
            dsb();
        }
        None => {
            ICC_EOIR1_EL1::set(intid.into());
            isb();
        }
    }
}

/// Writes to DIR.
pub fn deactivate(intid: u32) {
    match gicc() {
        Some(gicc) => {
            gicc.write32(reg::DIR, with_sender(intid));
            dsb();
        }
        None => {
            ICC_DIR_EL1::set(intid.into());
            isb();
        }
    }
}

fn sent(intid: u32) -> Option<&'static AtomicU32> {
    SENT.get(cpu::index())?.get(usize::try_from(intid).ok()?)
}

/// Returns what ends `intid`: for an SGI of a GICv2 all of what was acknowledged.
fn with_sender(intid: u32) -> u32 {
    sent(intid).map(|sent| sent.load(Relaxed)).filter(|sent| sent & INTID == intid).unwrap_or(intid)
}
