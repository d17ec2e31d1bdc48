// SPDX-License-Identifier: Apache-2.0 OR MIT
//! T47: a feature that the ID registers do not show must not be there: one instruction of each is
//! UNDEF. Where they do show it, the instruction is at least not UNDEF; it may still be trapped by
//! a control of EL1, which reports another class.

use crate::insn::Encoding;
use guest_rt::exception::ec;
use guest_rt::sysreg::{CPACR_EL1, isb};
use guest_rt::test::{Outcome, Test};
use guest_rt::{check, code, println, tests, tree};

pub const TESTS: &[Test] = tests![
    t47_hidden_features_are_undef_at_el1,
    t47_hidden_features_are_undef_at_el0,
    t47_aarch32_is_absent_or_usable,
];

const PFR0: Encoding = Encoding(3, 0, 0, 4, 0);
const PFR1: Encoding = Encoding(3, 0, 0, 4, 1);
const PFR2: Encoding = Encoding(3, 0, 0, 4, 2);
const DFR0: Encoding = Encoding(3, 0, 0, 5, 0);
const DFR1: Encoding = Encoding(3, 0, 0, 5, 1);
const ISAR0: Encoding = Encoding(3, 0, 0, 6, 0);
const ISAR1: Encoding = Encoding(3, 0, 0, 6, 1);
const ISAR2: Encoding = Encoding(3, 0, 0, 6, 2);
const MMFR1: Encoding = Encoding(3, 0, 0, 7, 1);
const MMFR3: Encoding = Encoding(3, 0, 0, 7, 3);

/// What an ID register says: the field at the given bit is at least the given value.
struct Shown(Encoding, u32, u64);

/// A feature: any of the fields shows it; its instructions, and whether EL0 may use them.
struct Feature {
    name: &'static str,
    shown: &'static [Shown],
    instructions: &'static [u32],
    at_el0: bool,
    may_be_undef: bool,
}

const fn may_be_undef(
    name: &'static str,
    shown: &'static [Shown],
    instructions: &'static [u32],
) -> Feature {
    Feature { name, shown, instructions, at_el0: false, may_be_undef: true }
}

const fn el1(name: &'static str, shown: &'static [Shown], instructions: &'static [u32]) -> Feature {
    Feature { name, shown, instructions, at_el0: false, may_be_undef: false }
}

const fn el0(name: &'static str, shown: &'static [Shown], instructions: &'static [u32]) -> Feature {
    Feature { name, shown, instructions, at_el0: true, may_be_undef: false }
}

const fn mrs(op0: u32, op1: u32, crn: u32, crm: u32, op2: u32) -> u32 {
    Encoding(op0, op1, crn, crm, op2).mrs()
}

const GMID: u32 = mrs(3, 1, 0, 0, 4);
const SMIDR: u32 = mrs(3, 1, 0, 0, 6);
const TPIDR2: u32 = mrs(3, 3, 13, 0, 5);

/// The features that a hypervisor can take away together with their instructions. Encodings as
/// DDI 0487 C5 spells the registers named behind them.
const FEATURES: &[Feature] = &[
    // `rdvl x0, #1`.
    el0("SVE", &[Shown(PFR0, 32, 1)], &[0x04bf_5020]),
    el1("SVE (ZCR_EL1)", &[Shown(PFR0, 32, 1)], &[mrs(3, 0, 1, 2, 0)]),
    // `rdsvl x0, #1`, SVCR, TPIDR2_EL0.
    el0("SME", &[Shown(PFR1, 24, 1)], &[0x04bf_5820, mrs(3, 3, 4, 2, 2), TPIDR2]),
    // SMPRI_EL1, SMCR_EL1, SMIDR_EL1.
    el1("SME (EL1)", &[Shown(PFR1, 24, 1)], &[mrs(3, 0, 1, 2, 4), mrs(3, 0, 1, 2, 6)]),
    // SMIDR_EL1, in the ID space.
    el1("SME (SMIDR_EL1)", &[Shown(PFR1, 24, 1)], &[SMIDR]),
    // GCR_EL1, RGSR_EL1, TFSR_EL1, TFSRE0_EL1.
    el1(
        "MTE2",
        &[Shown(PFR1, 8, 2)],
        &[mrs(3, 0, 1, 0, 6), mrs(3, 0, 1, 0, 5), mrs(3, 0, 5, 6, 0), mrs(3, 0, 5, 6, 1)],
    ),
    // GMID_EL1, in the ID space.
    el1("MTE2 (GMID_EL1)", &[Shown(PFR1, 8, 2)], &[GMID]),
    // AMCR_EL0, AMCFGR_EL0, AMEVCNTR00_EL0.
    el0(
        "AMU",
        &[Shown(PFR0, 44, 1)],
        &[mrs(3, 3, 13, 2, 0), mrs(3, 3, 13, 2, 1), mrs(3, 3, 13, 4, 0)],
    ),
    // PMSCR_EL1, PMSIDR_EL1, PMBLIMITR_EL1, PMBIDR_EL1.
    el1(
        "SPE",
        &[Shown(DFR0, 32, 1)],
        &[mrs(3, 0, 9, 9, 0), mrs(3, 0, 9, 9, 7), mrs(3, 0, 9, 10, 0), mrs(3, 0, 9, 10, 7)],
    ),
    // TRBLIMITR_EL1, TRBIDR_EL1.
    el1("TRBE", &[Shown(DFR0, 44, 1)], &[mrs(3, 0, 9, 11, 0), mrs(3, 0, 9, 11, 7)]),
    // BRBCR_EL1, BRBIDR0_EL1.
    el1("BRBE", &[Shown(DFR0, 52, 1)], &[mrs(2, 1, 9, 0, 0), mrs(2, 1, 9, 2, 0)]),
    // TRFCR_EL1.
    el1("TRF", &[Shown(DFR0, 40, 1)], &[mrs(3, 0, 1, 2, 1)]),
    // TRCIDR0, TRCPRGCTLR.
    el1("trace registers", &[Shown(DFR0, 4, 1)], &[mrs(2, 1, 0, 8, 7), mrs(2, 1, 0, 1, 0)]),
    // MPAM1_EL1, MPAM0_EL1, MPAMIDR_EL1.
    el1(
        "MPAM",
        &[Shown(PFR0, 40, 1), Shown(PFR1, 16, 1)],
        &[mrs(3, 0, 10, 5, 0), mrs(3, 0, 10, 5, 1), mrs(3, 0, 10, 4, 4)],
    ),
    // LORC_EL1, LORSA_EL1, LORID_EL1.
    el1(
        "LOR",
        &[Shown(MMFR1, 16, 1)],
        &[mrs(3, 0, 10, 4, 3), mrs(3, 0, 10, 4, 0), mrs(3, 0, 10, 4, 7)],
    ),
    // ERRIDR_EL1.
    el1("RAS", &[Shown(PFR0, 28, 1)], &[mrs(3, 0, 5, 3, 0)]),
    // ERRSELR_EL1, ERXSTATUS_EL1; without error records they may be UNDEF in spite of RAS.
    may_be_undef("RAS records", &[Shown(PFR0, 28, 1)], &[mrs(3, 0, 5, 3, 1), mrs(3, 0, 5, 4, 2)]),
    // GCSCR_EL1, GCSPR_EL1.
    el1("GCS", &[Shown(PFR1, 44, 1)], &[mrs(3, 0, 2, 5, 0), mrs(3, 0, 2, 5, 1)]),
    // GCSPR_EL0.
    el0("GCS (EL0)", &[Shown(PFR1, 44, 1)], &[mrs(3, 3, 2, 5, 1)]),
    // `ld64b x0, [x8]`: x8 is 0, but what is hidden does not get so far.
    el0("LS64", &[Shown(ISAR1, 60, 1)], &[0xf83f_d100]),
    // ACCDATA_EL1.
    el1("LS64_ACCDATA", &[Shown(ISAR1, 60, 3)], &[mrs(3, 0, 13, 0, 5)]),
    // `setp [x0]!, x1!, x2` with x1 = 0.
    el0("MOPS", &[Shown(ISAR2, 16, 1)], &[0x19c2_0420]),
    // POR_EL1.
    el1("S1POE", &[Shown(MMFR3, 16, 1)], &[mrs(3, 0, 10, 2, 4)]),
    // POR_EL0.
    el0("S1POE (EL0)", &[Shown(MMFR3, 16, 1)], &[mrs(3, 3, 10, 2, 4)]),
    // PIR_EL1, PIRE0_EL1.
    el1("S1PIE", &[Shown(MMFR3, 8, 1)], &[mrs(3, 0, 10, 2, 3), mrs(3, 0, 10, 2, 2)]),
    // MAIR2_EL1, AMAIR2_EL1.
    el1("AIE", &[Shown(MMFR3, 24, 1)], &[mrs(3, 0, 10, 2, 1), mrs(3, 0, 10, 3, 1)]),
    // TCR2_EL1.
    el1("TCR2", &[Shown(MMFR3, 0, 1)], &[mrs(3, 0, 2, 0, 3)]),
    // SCTLR2_EL1.
    el1("SCTLR2", &[Shown(MMFR3, 4, 1)], &[mrs(3, 0, 1, 0, 3)]),
    // RNDR.
    el0("RNG", &[Shown(ISAR0, 60, 1)], &[mrs(3, 3, 2, 4, 0)]),
    // SCXTNUM_EL1; CSV2_frac 2 is CSV2_1p2.
    el1("CSV2_2", &[Shown(PFR0, 56, 2), Shown(PFR1, 32, 2)], &[mrs(3, 0, 13, 0, 7)]),
    // APIAKeyLo_EL1, with either algorithm.
    el1(
        "PAuth address keys",
        &[Shown(ISAR1, 4, 1), Shown(ISAR1, 8, 1), Shown(ISAR2, 12, 1)],
        &[mrs(3, 0, 2, 1, 0)],
    ),
    // APGAKeyLo_EL1.
    el1(
        "PAuth generic key",
        &[Shown(ISAR1, 24, 1), Shown(ISAR1, 28, 1), Shown(ISAR2, 8, 1)],
        &[mrs(3, 0, 2, 3, 0)],
    ),
    // RCWMASK_EL1.
    el1("THE", &[Shown(PFR1, 48, 1)], &[mrs(3, 0, 13, 0, 6)]),
    // `msr allint, xzr`: no control of EL2 traps reads.
    el1("NMI", &[Shown(PFR1, 36, 1)], &[0xd518_431f]),
    // MDSELR_EL1.
    el1("Debugv8p9", &[Shown(DFR0, 0, 0xb)], &[mrs(2, 0, 0, 4, 2)]),
    // PMUACR_EL1.
    el1("PMUv3p9", &[Shown(DFR0, 8, 9)], &[mrs(3, 0, 9, 14, 4)]),
    // PMMIR_EL1.
    el1("PMUv3p4", &[Shown(DFR0, 8, 5)], &[mrs(3, 0, 9, 14, 6)]),
    // SPMSELR_EL0.
    el1("SPMU", &[Shown(DFR1, 32, 1)], &[mrs(2, 3, 9, 12, 5)]),
    // FPMR.
    el0("FPMR", &[Shown(PFR2, 32, 1)], &[mrs(3, 3, 4, 4, 2)]),
    // PMCR_EL0.
    el0("PMU", &[Shown(DFR0, 8, 1)], &[mrs(3, 3, 9, 12, 0)]),
];

impl Shown {
    fn holds(&self) -> bool {
        let Self(register, bit, least) = self;
        let field = code::run(&[register.mrs()], 0, 0).0[0] >> bit & 0xf;
        // An IMPLEMENTATION DEFINED PMU (0xf) is not PMUv3.
        let is_other_pmu = *register == DFR0 && *bit == 8 && field == 0xf;
        field >= *least && !is_other_pmu
    }
}

fn check_features(is_el0: bool) -> Outcome {
    // Vector units on, as far as they exist: a hidden one must be UNDEF, not just disabled.
    CPACR_EL1::set(3 << 24 | 3 << 20 | 3 << 16);
    isb();
    let (mut shown_count, mut hidden_count) = (0u32, 0u32);
    for feature in FEATURES.iter().filter(|feature| !is_el0 || feature.at_el0) {
        let is_shown = feature.shown.iter().any(Shown::holds);
        for instruction in feature.instructions {
            if is_el0 {
                code::sweep_at_el0(&[*instruction], 0, 0);
            } else {
                code::sweep(&[*instruction], 0, 0);
            }
            let class = code::noted(0);
            // The ID space has a class of its own (FEAT_IDST). At EL0 the guest's own
            // SCTLR_EL1.EnTP2 = 0 goes before every control of EL2 and traps TPIDR2_EL0 to EL1.
            let has_own_class =
                matches!(*instruction, GMID | SMIDR) || is_el0 && *instruction == TPIDR2;
            let is_undef = class == Some(ec::UNKNOWN) || has_own_class && class == Some(ec::SYSREG);
            if is_shown {
                shown_count += 1;
                // EL0 may still be kept from it by EL1.
                let is_there = is_el0 || feature.may_be_undef || !is_undef;
                check!(is_there, "{} is shown, but {instruction:#x} is UNDEF", feature.name);
            } else {
                hidden_count += 1;
                check!(
                    is_undef,
                    "{} is hidden, but {instruction:#x} is not UNDEF: class {:x?}",
                    feature.name,
                    class
                );
            }
        }
    }
    if tree::has_argument("verbose") {
        println!("# {shown_count} instructions of shown features, {hidden_count} of hidden ones");
    }
    check!(hidden_count > 0, "no feature is hidden");
    Ok(())
}

fn t47_hidden_features_are_undef_at_el1() -> Outcome {
    check_features(false)
}

fn t47_hidden_features_are_undef_at_el0() -> Outcome {
    check_features(true)
}

/// ID_AA64PFR0_EL1.EL0 says whether AArch32 exists at EL0; at EL1 it never helps a 64-bit guest.
fn t47_aarch32_is_absent_or_usable() -> Outcome {
    let pfr0 = code::run(&[PFR0.mrs()], 0, 0).0[0];
    check!(matches!(pfr0 & 0xf, 1 | 2), "ID_AA64PFR0_EL1.EL0 is {:#x}", pfr0 & 0xf);
    check!(matches!(pfr0 >> 4 & 0xf, 1 | 2), "ID_AA64PFR0_EL1.EL1 is {:#x}", pfr0 >> 4 & 0xf);
    if pfr0 & 0xf == 1 {
        // Without AArch32 its ID registers are UNKNOWN, but they exist: ID_PFR0_EL1.
        let (_, exception) = code::run(&[mrs(3, 0, 0, 1, 0)], 0, 0);
        check!(exception.is_none(), "ID_PFR0_EL1: {:?}", exception);
    }
    Ok(())
}
