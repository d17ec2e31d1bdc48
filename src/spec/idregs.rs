// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a guest sees of the identification registers: an allow-list per field.
//!
//! A field that is not listed reads as 0, "not implemented", and what it stands for is trapped
//! (`arch/aarch64/el2.rs`); a field that is listed reads as the core has it, up to the largest
//! value whose meaning is known here. So a core that is newer than this file looks like one that
//! this file knows (DDI 0487 D24.2, registers ID_AA64*).
#![forbid(unsafe_code)]

/// One field: its lowest bit and the largest value that is passed on.
type Field = (u32, u64);

/// What stands in a field that cannot say "not implemented" with 0.
const NOT_IMPLEMENTED: u64 = 0xf;

/// A register: CRm, Op2, the fields that are passed on, the fields in which 0xf says "not
/// implemented" and 0 that the base is there; these are passed on as they are.
struct Row {
    crm: u8,
    op2: u8,
    fields: &'static [Field],
    signed: &'static [u32],
}

const fn row(crm: u8, op2: u8, fields: &'static [Field], signed: &'static [u32]) -> Row {
    Row { crm, op2, fields, signed }
}

#[rustfmt::skip]
const ROWS: &[Row] = &[
    // ID_AA64PFR0_EL1: EL0 (with AArch32), EL1 (AArch64 alone), GIC system registers, SVE, DIT,
    // CSV2 (without SCXTNUM), CSV3; FP and AdvSIMD. Not: EL2, EL3, RAS, MPAM, AMU, RME.
    row(4, 0, &[(0, 2), (4, 1), (24, 1), (32, 1), (48, 1), (56, 1), (60, 1)], &[16, 20]),
    // ID_AA64PFR1_EL1: BT, SSBS. Not: MTE, SME, NMI, GCS, RNDR trap.
    row(4, 1, &[(0, 1), (4, 2)], &[]),
    // ID_AA64ZFR0_EL1: SVEver, AES, BitPerm, BF16, B16B16, SHA3, SM4, I8MM, F32MM, F64MM.
    row(4, 4, &[(0, 2), (4, 2), (16, 1), (20, 2), (24, 1), (32, 1), (40, 1), (44, 1), (52, 1),
                (56, 1)], &[]),
    // ID_AA64DFR0_EL1: debug version, PMU version, breakpoints, watchpoints, context-aware ones;
    // DoubleLock. Not: trace, SPE, TRBE, BRBE, multithreaded PMU.
    row(5, 0, &[(0, 9), (8, 8), (12, 15), (20, 15), (28, 15)], &[36]),
    // ID_AA64ISAR0_EL1: AES, SHA1, SHA2, CRC32, Atomic, RDM, SHA3, SM3, SM4, DP, FHM, TS, TLB,
    // RNDR.
    row(6, 0, &[(4, 2), (8, 1), (12, 2), (16, 1), (20, 3), (28, 1), (32, 1), (36, 1), (40, 1),
                (44, 1), (48, 1), (52, 2), (56, 2), (60, 1)], &[]),
    // ID_AA64ISAR1_EL1: DPB, APA, API, JSCVT, FCMA, LRCPC, GPA, GPI, FRINTTS, SB, SPECRES, BF16,
    // DGH, I8MM, XS. Not: LS64.
    row(6, 1, &[(0, 2), (4, 5), (8, 5), (12, 1), (16, 1), (20, 3), (24, 1), (28, 1), (32, 1),
                (36, 1), (40, 2), (44, 2), (48, 1), (52, 1), (56, 1)], &[]),
    // ID_AA64ISAR2_EL1: WFxT, RPRES, GPA3, APA3, BC, PAC_frac, CLRBHB, PRFMSLC, RPRFM, CSSC, LUT,
    // ATS1A. Not: MOPS.
    row(6, 2, &[(0, 2), (4, 1), (8, 1), (12, 5), (20, 1), (24, 1), (28, 1), (40, 1), (48, 1),
                (52, 1), (56, 1), (60, 1)], &[]),
    // ID_AA64MMFR0_EL1: PARange (cut further by the VM's own), ASIDBits, BigEnd, SNSMem, BigEndEL0,
    // TGran16, ECV (without CNTPOFF); TGran64, TGran4.
    row(7, 0, &[(0, 6), (4, 2), (8, 1), (12, 1), (16, 1), (20, 2), (60, 1)], &[24, 28]),
    // ID_AA64MMFR1_EL1: HAFDBS, HPDS, PAN, ETS, AFP, nTLBPA, ECBHB. Not: VH, LOR, HCX, TIDCP1,
    // CMOW.
    row(7, 1, &[(0, 2), (12, 2), (20, 3), (36, 2), (44, 1), (48, 1), (60, 1)], &[]),
    // ID_AA64MMFR2_EL1: CnP, UAO, LSM, VARange, CCIDX, ST, AT, IDS, TTL, BBM, E0PD. Not: IESB, NV,
    // FWB, EVT.
    row(7, 2, &[(0, 1), (4, 1), (8, 1), (16, 1), (20, 1), (28, 1), (32, 1), (36, 1), (48, 1),
                (52, 2), (60, 1)], &[]),
];

/// The identification registers of AArch32 that EL0 applications' kernels read: CRm 1 and 2, and
/// 3 for MVFR0 to 2, ID_PFR2, ID_DFR1 and ID_MMFR5.
const AARCH32_ROWS: core::ops::RangeInclusive<u8> = 1..=3;

/// ID_DFR0_EL1 and its fields for trace, in AArch32.
const ID_DFR0: (u8, u8) = (1, 2);
const ID_DFR0_DEBUG_AND_PMU: u64 = 0x0f00_0fff;
/// ID_PFR0_EL1 without RAS and AMU.
const ID_PFR0: (u8, u8) = (1, 0);
const ID_PFR0_PLAIN: u64 = 0x0f0f_ffff;
/// ID_PFR1_EL1 without the virtualization extensions and EL3.
const ID_PFR1: (u8, u8) = (1, 1);
const ID_PFR1_PLAIN: u64 = 0xf00f_0f0f;

/// Returns what a guest reads where the core has `value` in the register of CRm and Op2.
///
/// `pa_range` is the largest ID_AA64MMFR0_EL1.PARange that the VM's stage 2 can hold.
#[must_use]
pub fn guest_view(crm: u8, op2: u8, value: u64, pa_range: u64) -> u64 {
    if AARCH32_ROWS.contains(&crm) {
        return match (crm, op2) {
            ID_DFR0 => value & ID_DFR0_DEBUG_AND_PMU,
            ID_PFR0 => value & ID_PFR0_PLAIN,
            ID_PFR1 => value & ID_PFR1_PLAIN,
            _ => value,
        };
    }
    let Some(row) = ROWS.iter().find(|r| (r.crm, r.op2) == (crm, op2)) else {
        return 0;
    };
    let mut view = 0;
    let field = |shift: u32| value.wrapping_shr(shift) & 0xf;
    for &(shift, known) in row.fields {
        view |= field(shift).min(known).wrapping_shl(shift);
    }
    for &shift in row.signed {
        view |= field(shift).wrapping_shl(shift);
    }
    match (crm, op2) {
        (7, 0) => view & !0xf | (view & 0xf).min(pa_range),
        // A PMU of the implementer's own is no PMU that a guest could use safely.
        (5, 0) if value >> 8 & 0xf == NOT_IMPLEMENTED => view & !0xf00,
        _ => view,
    }
}

/// Takes the system registers of the GIC out of a view: what a guest with a GICv2 sees.
#[must_use]
pub const fn without_gic(crm: u8, op2: u8, view: u64) -> u64 {
    match (crm, op2) {
        // ID_AA64PFR0_EL1.GIC.
        (4, 0) => view & !(0xf << 24),
        // ID_PFR1_EL1.GIC.
        (1, 1) => view & !(0xf << 28),
        _ => view,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(value: u64, shift: u32) -> u64 {
        value >> shift & 0xf
    }

    #[test]
    fn t47_a_core_with_everything_shows_no_hidden_feature() {
        let pfr0 = guest_view(4, 0, u64::MAX, 6);
        for hidden in [8, 12, 28, 36, 40, 44, 52] {
            assert_eq!(field(pfr0, hidden), 0, "ID_AA64PFR0 bit {hidden}");
        }
        let pfr1 = guest_view(4, 1, u64::MAX, 6);
        for hidden in [8, 12, 16, 24, 28, 32, 36, 40, 44] {
            assert_eq!(field(pfr1, hidden), 0, "ID_AA64PFR1 bit {hidden}");
        }
        assert_eq!(guest_view(4, 5, u64::MAX, 6), 0, "SME");
        assert_eq!(field(guest_view(6, 1, u64::MAX, 6), 60), 0, "LS64");
        assert_eq!(field(guest_view(6, 2, u64::MAX, 6), 16), 0, "MOPS");
        assert_eq!(field(guest_view(7, 1, u64::MAX, 6), 8), 0, "VHE");
        assert_eq!(guest_view(7, 3, u64::MAX, 6), 0, "ID_AA64MMFR3");
        assert_eq!(guest_view(7, 7, u64::MAX, 6), 0, "unknown register");
    }

    #[test]
    fn newer_value_is_cut_to_the_newest_known() {
        assert_eq!(field(guest_view(6, 0, 0xf << 4, 6), 4), 2);
        assert_eq!(field(guest_view(6, 0, 1 << 4, 6), 4), 1);
    }

    #[test]
    fn absent_floating_point_stays_absent() {
        assert_eq!(field(guest_view(4, 0, 0xf << 16, 6), 16), 0xf);
        assert_eq!(field(guest_view(4, 0, 0, 6), 16), 0);
    }

    #[test]
    fn t40_physical_range_is_no_larger_than_stage_2() {
        assert_eq!(field(guest_view(7, 0, 5, 2), 0), 2);
        assert_eq!(field(guest_view(7, 0, 1, 2), 0), 1);
    }

    #[test]
    fn pmu_of_the_implementers_own_is_hidden() {
        assert_eq!(field(guest_view(5, 0, 0xf << 8, 6), 8), 0);
        assert_eq!(field(guest_view(5, 0, 4 << 8, 6), 8), 4);
    }
}
