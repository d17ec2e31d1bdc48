// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The encodings of GICv2 where they differ from those of GICv3 (IHI 0048 B).
//!
//! Register maps 4.1.2 (GICD), 4.1.3 (GICC), 5.3 (GICH) and 5.5 (GICV); `GICH_LR<n>` (5.3.9) to and
//! from the form of GICv3, which delivery uses; GICD_SGIR (4.3.15). No state, no policy.
#![forbid(unsafe_code)]

use super::gic::{Lr, LrState};
use crate::id::{Pintid, Vintid};

/// The CPU interfaces that a distributor can have.
pub const CPUS_MAX: usize = 8;
/// Bytes of the distributor's register frame.
pub const GICD_BYTES: u64 = 0x1000;
/// Bytes of a CPU interface, physical or virtual: two pages, the second one for DIR.
pub const GICC_BYTES: u64 = 0x2000;
/// What ICPIDR2 says for GICv2 (ArchRev = 2), with Arm's JEP106 code around it.
pub const PIDR2_GICV2: u32 = 0x2b;
/// The bits of an acknowledged value, and of GICC_DIR, that are the INTID; above are three bits
/// with the CPU interface that sent an SGI.
pub const INTID: u32 = 0x3ff;

/// Offsets and fields of the distributor that GICv3 does not have at the same place.
pub mod gicd {
    /// Where GICD_TYPER.CPUNumber starts.
    pub const TYPER_CPUS_SHIFT: u32 = 5;
    /// `GICD_ITARGETSR<n>`, a byte for each interrupt.
    pub const ITARGETSR: u64 = 0x800;
    /// The first offset behind `GICD_ITARGETSR<n>`.
    pub const ITARGETSR_END: u64 = 0xc00;
    /// GICD_SGIR.
    pub const SGIR: u64 = 0xf00;
    /// `GICD_CPENDSGIR<n>`, a byte of sources for each SGI.
    pub const CPENDSGIR: u64 = 0xf10;
    /// `GICD_SPENDSGIR<n>`, the same.
    pub const SPENDSGIR: u64 = 0xf20;
    /// The first offset behind `GICD_SPENDSGIR<n>`.
    pub const SPENDSGIR_END: u64 = 0xf30;
    /// ICPIDR2.
    pub const PIDR2: u64 = 0xfe8;
}

/// Offsets and fields of the CPU interface, physical (GICC) and virtual (GICV).
pub mod gicc {
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
    /// `GICC_APR<n>`, four of them.
    pub const APR: u64 = 0x00d0;
    /// GICC_DIR, in the second page.
    pub const DIR: u64 = 0x1000;

    /// GICC_CTLR: the group that this Security state owns. Bit 0 in all views.
    pub const CTLR_ENABLE: u32 = 1 << 0;
    /// GICC_CTLR: the bypass-disable bits, which are the firmware's.
    pub const CTLR_BYPASS: u32 = 0x1e0;
    /// GICC_CTLR: EOImodeNS in the Non-secure view, and EOImode where there are no Security
    /// Extensions.
    pub const CTLR_EOI_MODE: u32 = 1 << 9;
}

/// Offsets and fields of the virtual interface control.
pub mod gich {
    /// GICH_HCR.
    pub const HCR: u64 = 0x000;
    /// GICH_VTR.
    pub const VTR: u64 = 0x004;
    /// GICH_VMCR.
    pub const VMCR: u64 = 0x008;
    /// GICH_ELRSR0: list registers 0 to 31.
    pub const ELRSR0: u64 = 0x030;
    /// GICH_APR.
    pub const APR: u64 = 0x0f0;
    /// `GICH_LR<n>`.
    pub const LR: u64 = 0x100;

    /// GICH_HCR: the bits that it shares with ICH_HCR_EL2, EOICount left out.
    pub const HCR_CONTROL: u32 = 0xff;
    /// GICH_HCR.EOICount.
    pub const HCR_EOI_COUNT: u32 = 0x1f << 27;
    /// GICH_VTR.ListRegs: their number less one.
    pub const VTR_LIST_REGISTERS: u32 = 0x3f;
    /// GICH_VMCR.VMGrp0En and VMGrp1En.
    pub const VMCR_GROUPS: u32 = 3;
    /// GICH_VMCR.VEM: the guest's EOImode.
    pub const VMCR_EOI_MODE: u32 = 1 << 9;
}

const LR_PHYSICAL_SHIFT: u32 = 10;
const LR_SOURCE: u32 = 7 << LR_PHYSICAL_SHIFT;
const LR_EOI: u32 = 1 << 19;
const LR_PRIORITY_SHIFT: u32 = 23;
const LR_PENDING: u32 = 1 << 28;
const LR_ACTIVE: u32 = 1 << 29;
const LR_GROUP1: u32 = 1 << 30;
const LR_HW: u32 = 1 << 31;

/// Returns what `GICH_LR<n>` holds for `lr`. The upper five bits of the priority count.
#[must_use]
pub const fn gich_lr(lr: Lr) -> u32 {
    let mut value = lr.vintid().get() & INTID | (lr.priority() as u32 >> 3) << LR_PRIORITY_SHIFT;
    if lr.is_pending() {
        value |= LR_PENDING;
    }
    if lr.is_active() {
        value |= LR_ACTIVE;
    }
    if lr.is_group1() {
        value |= LR_GROUP1;
    }
    match lr.pintid() {
        Some(pintid) => value | LR_HW | (pintid.get() & INTID) << LR_PHYSICAL_SHIFT,
        None => {
            let eoi = if lr.has_eoi() { LR_EOI } else { 0 };
            value | eoi | (lr.source() as u32) << LR_PHYSICAL_SHIFT
        }
    }
}

/// Returns what `GICH_LR<n>` says when it holds `value`.
#[must_use]
pub const fn lr(value: u32) -> Lr {
    let priority = (value >> LR_PRIORITY_SHIFT & 0x1f) << 3;
    let [priority, ..] = priority.to_le_bytes();
    let state = LrState::new(value & LR_PENDING != 0, value & LR_ACTIVE != 0);
    let lr = Lr::pending(Vintid::new(value & INTID), priority)
        .with_group_bit(value >> LR_GROUP1.trailing_zeros())
        .with_state(state);
    if value & LR_HW != 0 {
        return lr.with_link(Pintid::new(value >> LR_PHYSICAL_SHIFT & INTID));
    }
    let [source, ..] = ((value & LR_SOURCE) >> LR_PHYSICAL_SHIFT).to_le_bytes();
    let lr = lr.with_source(source);
    if value & LR_EOI != 0 { lr.with_eoi() } else { lr }
}

/// A write to GICD_SGIR.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SgiWrite {
    /// Whom it is for.
    pub targets: SgiTargets,
    /// The INTID, 0 to 15.
    pub intid: u32,
}

/// Whom an SGI is for: GICD_SGIR.TargetListFilter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SgiTargets {
    /// The CPU interfaces of this set.
    List(u8),
    /// All but the sender.
    AllOthers,
    /// The sender.
    Own,
    /// The value is reserved: nobody.
    Reserved,
}

impl SgiWrite {
    /// Takes the value that is written.
    #[must_use]
    pub const fn from_register(value: u32) -> Self {
        let [_, _, list, _] = value.to_le_bytes();
        let targets = match value >> 24 & 3 {
            0 => SgiTargets::List(list),
            1 => SgiTargets::AllOthers,
            2 => SgiTargets::Own,
            _ => SgiTargets::Reserved,
        };
        Self { targets, intid: value & 0xf }
    }
    /// Returns the value to write for an SGI to the CPU interfaces of the set `list`.
    #[must_use]
    pub const fn to_list(intid: u32, list: u8) -> u32 {
        (list as u32) << 16 | intid & 0xf
    }
    /// Returns the value to write for an SGI to all but the sender.
    #[must_use]
    pub const fn to_all_others(intid: u32) -> u32 {
        1 << 24 | intid & 0xf
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn list_register_fields_stand_where_the_specification_has_them() {
        // HW, Group 1, pending, priority 0xa0 (0x14), physical 27, virtual 27.
        let linked = Lr::pending(Vintid::new(27), 0xa0).with_group_bit(1);
        assert_eq!(gich_lr(linked.with_link(Pintid::new(27))), 0xda00_6c1b);
        // Active, EOI, priority 0x08 (1), virtual 33.
        let eoi = Lr::pending(Vintid::new(33), 0x08).with_eoi().with_state(LrState::Active);
        assert_eq!(gich_lr(eoi), 0x2088_0021);
        // SGI 5 of CPU interface 6.
        assert_eq!(gich_lr(Lr::pending(Vintid::new(5), 0).with_source(6)), 0x1000_1805);
        assert_eq!(gich_lr(Lr::EMPTY), 0);
    }

    #[test]
    fn t76_sgir_has_three_filters_and_a_reserved_one() {
        let said = |value| SgiWrite::from_register(value);
        assert_eq!(said(0x00a5_000f), SgiWrite { targets: SgiTargets::List(0xa5), intid: 15 });
        assert_eq!(said(0x01ff_8003).targets, SgiTargets::AllOthers);
        assert_eq!(said(0x02ff_0003), SgiWrite { targets: SgiTargets::Own, intid: 3 });
        assert_eq!(said(0x03ff_0003).targets, SgiTargets::Reserved);
        assert_eq!(said(SgiWrite::to_list(3, 0x81)).targets, SgiTargets::List(0x81));
        assert_eq!(said(SgiWrite::to_all_others(1)).targets, SgiTargets::AllOthers);
    }

    proptest! {
        #[test]
        fn what_a_list_register_can_say_survives_the_way_there_and_back(value in any::<u32>()) {
            // Bits 22:20 are RES0, and 18:13 too where there is no link.
            let linked = value & LR_HW != 0;
            let value = value & !(7 << 20) & if linked { u32::MAX } else { !(0x3f << 13) };
            prop_assert_eq!(gich_lr(lr(value)), value);
        }
    }
}
