// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The encodings of GICv3 that a guest or a list register sees (IHI 0069 H).
//!
//! Register maps 12.8 (GICD) and 12.10 (GICR), as they are with one Security state and affinity
//! routing; `ICH_LR<n>_EL2` and ICH_HCR_EL2 (12.4); ICC_SGI1R_EL1 (12.2). No state, no policy.
#![forbid(unsafe_code)]

use crate::id::{Mpidr, Pintid, Vintid};

/// The first PPI; below are the SGIs.
pub const PPI_FIRST: u32 = 16;
/// The first SPI; below are the interrupts that each PE has for itself.
pub const SPI_FIRST: u32 = 32;
/// The first INTID behind the SPIs: 1020 to 1023 are special (IHI 0069 H 2.2.1).
pub const SPI_END: u32 = 1020;

/// Bytes of the distributor's register frame.
pub const GICD_BYTES: u64 = 0x1_0000;
/// Bytes of one redistributor's two frames, which is also the distance to the next one.
pub const GICR_BYTES: u64 = 0x2_0000;
/// Where the second frame of a redistributor starts: the one with the SGIs and PPIs.
pub const GICR_SGI_BASE: u64 = 0x1_0000;

/// What PIDR2 says for GICv3 (ArchRev = 3), with Arm's JEP106 code around it.
pub const PIDR2_GICV3: u32 = 0x3b;
/// Where PIDR2 stands in each frame of 64 KiB.
pub const PIDR2: u64 = 0xffe8;

/// Offsets and fields of the distributor.
pub mod gicd {
    /// GICD_CTLR.
    pub const CTLR: u64 = 0x0000;
    /// GICD_TYPER.
    pub const TYPER: u64 = 0x0004;
    /// GICD_IIDR.
    pub const IIDR: u64 = 0x0008;
    /// GICD_SETSPI_NSR, the first of the message-based registers, which take 16 bits too.
    pub const SETSPI_NSR: u64 = 0x0040;
    /// The first offset behind GICD_CLRSPI_SR.
    pub const CLRSPI_END: u64 = 0x0060;
    /// `GICD_IPRIORITYR<n>`.
    pub const IPRIORITYR: u64 = 0x0400;
    /// `GICD_ITARGETSR<n>`: RAZ/WI under affinity routing.
    pub const ITARGETSR: u64 = 0x0800;
    /// `GICD_ICFGR<n>`.
    pub const ICFGR: u64 = 0x0c00;
    /// `GICD_IGRPMODR<n>`: RAZ/WI with one Security state.
    pub const IGRPMODR: u64 = 0x0d00;
    /// `GICD_CPENDSGIR<n>`, and `GICD_SPENDSGIR<n>` behind it: RAZ/WI under affinity routing.
    pub const CPENDSGIR: u64 = 0x0f10;
    /// The first offset behind `GICD_SPENDSGIR<n>`.
    pub const SPENDSGIR_END: u64 = 0x0f30;
    /// `GICD_IROUTER<n>`, by INTID: those of the SGIs and PPIs are reserved.
    pub const IROUTER: u64 = 0x6000;
    /// The first offset behind `GICD_IROUTER<1023>`.
    pub const IROUTER_END: u64 = 0x8000;

    /// GICD_CTLR.EnableGrp0.
    pub const CTLR_ENABLE_GROUP0: u32 = 1 << 0;
    /// GICD_CTLR.EnableGrp1.
    pub const CTLR_ENABLE_GROUP1: u32 = 1 << 1;
    /// GICD_CTLR.ARE: affinity routing.
    pub const CTLR_ARE: u32 = 1 << 4;
    /// GICD_CTLR.DS: one Security state.
    pub const CTLR_DS: u32 = 1 << 6;

    /// Where GICD_TYPER.num_LPIs starts: there are two to the power of it plus one.
    pub const TYPER_NUM_LPIS_SHIFT: u32 = 11;
    /// GICD_TYPER.LPIS: there are LPIs.
    pub const TYPER_LPIS: u32 = 1 << 17;
    /// GICD_TYPER.IDbits for 10 bits of INTID.
    pub const TYPER_IDBITS_10: u32 = 9 << 19;
    /// GICD_TYPER.IDbits for 14 bits of INTID, those that differ from 10 bits.
    pub const TYPER_IDBITS_14_NOT_10: u32 = (13 ^ 9) << 19;
    /// GICD_TYPER.A3V: Aff3 need not be 0.
    pub const TYPER_A3V: u32 = 1 << 24;
    /// GICD_TYPER.RSS: SGIs reach an Aff0 above 15.
    pub const TYPER_RSS: u32 = 1 << 26;

    /// `GICD_IROUTER<n>`.Interrupt_Routing_Mode: to any one PE.
    pub const IROUTER_ANY: u64 = 1 << 31;
}

/// Offsets and fields of a redistributor's first frame.
pub mod gicr {
    /// GICR_CTLR.
    pub const CTLR: u64 = 0x0000;
    /// GICR_IIDR.
    pub const IIDR: u64 = 0x0004;
    /// GICR_TYPER, 64 bits.
    pub const TYPER: u64 = 0x0008;
    /// The upper half of GICR_TYPER.
    pub const TYPER_HIGH: u64 = 0x000c;
    /// GICR_WAKER.
    pub const WAKER: u64 = 0x0014;
    /// GICR_SETLPIR, the first of the 64-bit registers for LPIs.
    pub const SETLPIR: u64 = 0x0040;
    /// GICR_PROPBASER, 64 bits.
    pub const PROPBASER: u64 = 0x0070;
    /// GICR_PENDBASER, 64 bits.
    pub const PENDBASER: u64 = 0x0078;
    /// The first offset behind GICR_PENDBASER.
    pub const PENDBASER_END: u64 = 0x0080;
    /// The first offset behind GICR_INVALLR.
    pub const INVALLR_END: u64 = 0x00b8;

    /// GICR_CTLR.EnableLPIs.
    pub const CTLR_ENABLE_LPIS: u32 = 1 << 0;
    /// GICR_CTLR.CES: EnableLPIs can be cleared.
    pub const CTLR_CES: u32 = 1 << 1;

    /// GICR_TYPER.PLPIS: there are physical LPIs.
    pub const TYPER_PLPIS: u64 = 1 << 0;
    /// GICR_TYPER.Last.
    pub const TYPER_LAST: u64 = 1 << 4;
    /// Where GICR_TYPER.Processor_Number starts.
    pub const TYPER_NUMBER_SHIFT: u32 = 8;
    /// Where GICR_TYPER.Affinity_Value starts.
    pub const TYPER_AFFINITY_SHIFT: u32 = 32;

    /// GICR_WAKER.ProcessorSleep.
    pub const WAKER_PROCESSOR_SLEEP: u32 = 1 << 1;
    /// GICR_WAKER.ChildrenAsleep.
    pub const WAKER_CHILDREN_ASLEEP: u32 = 1 << 2;
}

/// The registers with one bit for each of 32 interrupts. They stand at the same offsets in GICD
/// and in the second frame of a redistributor, 0x80 bytes apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BitRegister {
    /// `IGROUPR<n>`.
    Group,
    /// `ISENABLER<n>`.
    SetEnable,
    /// `ICENABLER<n>`.
    ClearEnable,
    /// `ISPENDR<n>`.
    SetPending,
    /// `ICPENDR<n>`.
    ClearPending,
    /// `ISACTIVER<n>`.
    SetActive,
    /// `ICACTIVER<n>`.
    ClearActive,
}

impl BitRegister {
    /// Returns which of the registers stands at `offset`.
    #[must_use]
    #[inline(always)]
    pub const fn at(offset: u64) -> Option<Self> {
        Some(match offset >> 7 {
            1 => Self::Group,
            2 => Self::SetEnable,
            3 => Self::ClearEnable,
            4 => Self::SetPending,
            5 => Self::ClearPending,
            6 => Self::SetActive,
            7 => Self::ClearActive,
            _ => return None,
        })
    }
    /// Returns the offset of the register for INTIDs 0 to 31.
    #[must_use]
    pub const fn offset(self) -> u64 {
        (self as u64 + 1) << 7
    }
}

/// The state of a list register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LrState {
    /// Empty.
    Invalid,
    /// Pending.
    Pending,
    /// Active.
    Active,
    /// Pending and active; not allowed with a hardware link.
    PendingActive,
}

impl LrState {
    /// Puts the state together.
    #[must_use]
    #[inline(always)]
    pub const fn new(pending: bool, active: bool) -> Self {
        match (pending, active) {
            (false, false) => Self::Invalid,
            (true, false) => Self::Pending,
            (false, true) => Self::Active,
            (true, true) => Self::PendingActive,
        }
    }
}

/// The value of an `ICH_LR<n>_EL2`.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct Lr(u64);

impl Lr {
    /// The value of an empty list register.
    pub const EMPTY: Self = Self(0);

    const EOI: u64 = 1 << 41;
    /// Where the source of an SGI stands: RES0 in GICv3 where there is no link, and 0 there.
    const SOURCE_SHIFT: u32 = 32;
    const PINTID_SHIFT: u32 = 32;
    const PINTID: u64 = 0x1fff << Self::PINTID_SHIFT;
    const PRIORITY_SHIFT: u32 = 48;
    const GROUP1: u64 = 1 << 60;
    const HW: u64 = 1 << 61;
    const PENDING: u64 = 1 << 62;
    const ACTIVE: u64 = 1 << 63;

    /// Takes the value that the register holds.
    #[must_use]
    #[inline(always)]
    pub const fn from_register(value: u64) -> Self {
        Self(value)
    }
    /// Returns the value for the register.
    #[must_use]
    #[inline(always)]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Makes a pending interrupt: Group 0, no link, no maintenance interrupt.
    #[must_use]
    #[inline(always)]
    pub const fn pending(vintid: Vintid, priority: u8) -> Self {
        Self(vintid.get() as u64 | (priority as u64) << Self::PRIORITY_SHIFT | Self::PENDING)
    }
    /// Sets the group from bit 0 of `group`, as a word of IGROUPR has it.
    #[must_use]
    #[inline(always)]
    pub const fn with_group_bit(self, group: u32) -> Self {
        Self(self.0 & !Self::GROUP1 | ((group & 1) as u64) << Self::GROUP1.trailing_zeros())
    }
    /// Links to a physical interrupt, which the guest's deactivation then deactivates.
    #[must_use]
    #[inline(always)]
    pub const fn with_link(self, pintid: Pintid) -> Self {
        let pintid = (pintid.get() as u64) << Self::PINTID_SHIFT & Self::PINTID;
        Self(self.0 & !Self::PINTID | pintid | Self::HW)
    }
    /// Cuts the link to a physical interrupt.
    #[must_use]
    #[inline(always)]
    pub const fn without_link(self) -> Self {
        if self.is_linked() { Self(self.0 & !(Self::PINTID | Self::HW)) } else { self }
    }
    /// Asks for a maintenance interrupt when the guest has deactivated it. Not for linked ones,
    /// where the bit belongs to the physical INTID.
    #[must_use]
    #[inline(always)]
    pub const fn with_eoi(self) -> Self {
        Self(self.0 | Self::EOI)
    }
    /// Sets which CPU interface sent an SGI, 0 to 7: GICv2 alone says so. Not for linked ones.
    #[must_use]
    pub const fn with_source(self, source: u8) -> Self {
        Self(self.0 & !(7 << Self::SOURCE_SHIFT) | (source as u64 & 7) << Self::SOURCE_SHIFT)
    }
    /// Returns which CPU interface sent an SGI.
    #[must_use]
    pub const fn source(self) -> u8 {
        (self.0 >> Self::SOURCE_SHIFT).to_le_bytes()[0] & 7
    }
    /// Changes the state.
    #[must_use]
    #[inline(always)]
    pub const fn with_state(self, state: LrState) -> Self {
        let state = match state {
            LrState::Invalid => 0,
            LrState::Pending => Self::PENDING,
            LrState::Active => Self::ACTIVE,
            LrState::PendingActive => Self::PENDING | Self::ACTIVE,
        };
        Self(self.0 & !(Self::PENDING | Self::ACTIVE) | state)
    }
    /// Returns the state.
    #[must_use]
    #[inline(always)]
    pub const fn state(self) -> LrState {
        match self.0 >> 62 {
            0 => LrState::Invalid,
            1 => LrState::Pending,
            2 => LrState::Active,
            _ => LrState::PendingActive,
        }
    }
    /// Returns whether the interrupt is pending, also when it is active as well.
    #[must_use]
    #[inline(always)]
    pub const fn is_pending(self) -> bool {
        self.0 & Self::PENDING != 0
    }
    /// Returns whether the interrupt is active, also when it is pending as well.
    #[must_use]
    #[inline(always)]
    pub const fn is_active(self) -> bool {
        self.0 & Self::ACTIVE != 0
    }
    /// Returns whether a physical interrupt is linked.
    #[must_use]
    #[inline(always)]
    pub const fn is_linked(self) -> bool {
        self.0 & Self::HW != 0
    }
    /// Returns whether the end of the interrupt makes a maintenance interrupt.
    #[must_use]
    #[inline(always)]
    pub const fn has_eoi(self) -> bool {
        !self.is_linked() && self.0 & Self::EOI != 0
    }
    /// Returns the INTID that the guest sees.
    #[must_use]
    #[inline(always)]
    pub const fn vintid(self) -> Vintid {
        Vintid::new(low_word(self.0))
    }
    /// Returns the physical INTID where there is a link.
    #[must_use]
    #[inline(always)]
    pub const fn pintid(self) -> Option<Pintid> {
        let pintid = low_word((self.0 & Self::PINTID) >> Self::PINTID_SHIFT);
        if self.is_linked() { Some(Pintid::new(pintid)) } else { None }
    }
    /// Returns the priority: smaller is more urgent.
    #[must_use]
    #[inline(always)]
    pub const fn priority(self) -> u8 {
        (self.0 >> Self::PRIORITY_SHIFT).to_le_bytes()[0]
    }
    /// Returns whether the group is Group 1.
    #[must_use]
    #[inline(always)]
    pub const fn is_group1(self) -> bool {
        self.0 & Self::GROUP1 != 0
    }
}

impl core::fmt::Debug for Lr {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Lr({:?} {}", self.state(), self.vintid())?;
        if let Some(pintid) = self.pintid() {
            write!(f, " hw {pintid}")?;
        }
        if self.has_eoi() {
            f.write_str(" eoi")?;
        }
        write!(f, " priority {:#x} group {})", self.priority(), u8::from(self.is_group1()))
    }
}

/// Returns bits 31:0.
#[inline(always)]
const fn low_word(value: u64) -> u32 {
    (value & 0xffff_ffff) as u32
}

/// Bits of ICH_HCR_EL2.
pub mod ich_hcr {
    /// The virtual CPU interface is on.
    pub const EN: u32 = 1 << 0;
    /// A maintenance interrupt while none or one of the list registers is in use.
    pub const UIE: u32 = 1 << 1;
    /// A maintenance interrupt while EOIcount is not 0.
    pub const LRENPIE: u32 = 1 << 2;
    /// A maintenance interrupt while no list register is pending.
    pub const NPIE: u32 = 1 << 3;
    /// A maintenance interrupt while the guest has Group 0 enabled.
    pub const VGRP0EIE: u32 = 1 << 4;
    /// A maintenance interrupt while the guest has Group 0 disabled.
    pub const VGRP0DIE: u32 = 1 << 5;
    /// A maintenance interrupt while the guest has Group 1 enabled.
    pub const VGRP1EIE: u32 = 1 << 6;
    /// A maintenance interrupt while the guest has Group 1 disabled.
    pub const VGRP1DIE: u32 = 1 << 7;
    /// A trap of the guest's writes to ICC_DIR_EL1, where ICH_VTR_EL2.TDS is set.
    pub const TDIR: u32 = 1 << 14;
    /// Where EOIcount starts, 5 bits.
    pub const EOI_COUNT_SHIFT: u32 = 27;
}

/// A write to ICC_SGI1R_EL1, ICC_SGI0R_EL1 or ICC_ASGI1R_EL1.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SgiRequest(u64);

impl SgiRequest {
    const ALL_OTHERS: u64 = 1 << 40;
    /// The bits that are 0 where all targets have Aff3 = Aff2 = 0, Aff1 < 4 and Aff0 < 16.
    pub const NOT_PLAIN: u64 = 0xff << 48 | 0xf << 44 | Self::ALL_OTHERS | 0xff << 32 | 0xfc << 16;

    /// Takes the value that the guest writes.
    #[must_use]
    #[inline(always)]
    pub const fn from_register(value: u64) -> Self {
        Self(value)
    }
    /// Returns the INTID, 0 to 15.
    #[must_use]
    #[inline(always)]
    pub const fn intid(self) -> u32 {
        low_word(self.0) >> 24 & 0xf
    }
    /// Returns whether the request is for all PEs but the sender (IRM).
    #[must_use]
    #[inline(always)]
    pub const fn is_for_all_others(self) -> bool {
        self.0 & Self::ALL_OTHERS != 0
    }
    /// Returns the targets as bits `16 × Aff1 + Aff0` where the bits of `not_plain` are all 0:
    /// [`Self::NOT_PLAIN`], or all bits.
    #[must_use]
    #[inline(always)]
    pub const fn plain_targets(self, not_plain: u64) -> Option<u64> {
        if self.0 & not_plain != 0 {
            return None;
        }
        // Aff1 × 16: at most 48.
        Some((self.0 & 0xffff) << (self.0 >> 12 & 0x30))
    }
    /// Returns whether the target list names the PE with this affinity.
    #[must_use]
    pub const fn names(self, affinity: Mpidr) -> bool {
        let pe = affinity.get();
        let aff3_aff2 = (self.0 >> 48 & 0xff) << 32 | (self.0 >> 32 & 0xff) << 16;
        let cluster = aff3_aff2 | (self.0 >> 16 & 0xff) << 8;
        let aff0_low = pe & 0xf;
        cluster == pe & !0xff && self.0 >> 44 & 0xf == pe >> 4 & 0xf && self.0 >> aff0_low & 1 == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_register_fields_stand_where_the_specification_has_them() {
        let lr = Lr::pending(Vintid::new(27), 0xa0).with_group_bit(1).with_link(Pintid::new(27));
        assert_eq!(lr.get(), 0x70a0_001b_0000_001b);
        assert_eq!(lr.with_state(LrState::Active).get(), 0xb0a0_001b_0000_001b);
        let eoi = Lr::pending(Vintid::new(33), 0x08).with_eoi();
        assert_eq!(eoi.get(), 0x4008_0200_0000_0021);
        assert!(eoi.has_eoi() && !eoi.is_group1() && eoi.pintid().is_none());
        assert_eq!(eoi.with_state(LrState::PendingActive).get() >> 62, 3);
    }

    #[test]
    fn physical_intid_with_the_eoi_bit_is_a_link_not_a_request() {
        let lr = Lr::pending(Vintid::new(40), 0).with_link(Pintid::new(0x200 | 33));
        assert!(!lr.has_eoi());
        assert_eq!(lr.pintid(), Some(Pintid::new(0x221)));
        assert!(!lr.without_link().has_eoi());
    }

    #[test]
    fn bit_registers_are_0x80_apart() {
        let all = [
            (0x80, BitRegister::Group),
            (0x100, BitRegister::SetEnable),
            (0x180, BitRegister::ClearEnable),
            (0x200, BitRegister::SetPending),
            (0x280, BitRegister::ClearPending),
            (0x300, BitRegister::SetActive),
            (0x380, BitRegister::ClearActive),
        ];
        for (offset, register) in all {
            assert_eq!(BitRegister::at(offset), Some(register));
            assert_eq!(BitRegister::at(offset + 0x7c), Some(register));
            assert_eq!(register.offset(), offset);
        }
        assert_eq!(BitRegister::at(0x7c), None);
        assert_eq!(BitRegister::at(0x400), None);
    }

    #[test]
    fn t76_sgi_request_names_by_all_affinity_fields() {
        // Aff3 0x12, RS 3, Aff2 0x34, INTID 9, Aff1 0x56, list bit 5: Aff0 = 3 × 16 + 5.
        let request = SgiRequest::from_register(0x0012_3034_0956_0020);
        assert_eq!(request.intid(), 9);
        assert!(!request.is_for_all_others());
        assert_eq!(request.plain_targets(SgiRequest::NOT_PLAIN), None);
        let named = 0x12_0034_5635;
        assert!(request.names(Mpidr::from_register(named)));
        for bit in (0..24).chain(32..40) {
            let other = Mpidr::from_register(named ^ 1 << bit);
            assert!(!request.names(other), "{other}");
        }
    }

    #[test]
    fn t76_plain_targets_agree_with_names() {
        for aff1 in 0..5u64 {
            for list in [0u64, 1, 0x8001, 0xffff] {
                let request = SgiRequest::from_register(aff1 << 16 | list | 0xf << 24);
                let Some(targets) = request.plain_targets(SgiRequest::NOT_PLAIN) else {
                    assert_eq!(aff1, 4);
                    continue;
                };
                for index in 0..64u64 {
                    let pe = Mpidr::from_register((index >> 4) << 8 | index & 15);
                    assert_eq!(
                        request.names(pe),
                        index >> 4 == aff1 && list >> (index & 15) & 1 == 1
                    );
                    assert_eq!(request.names(pe), targets >> index & 1 == 1);
                }
            }
        }
        assert_eq!(
            SgiRequest::from_register(1 << 40 | 1).plain_targets(SgiRequest::NOT_PLAIN),
            None
        );
    }
}
