// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What this core is, and EL2's configuration of it (DDI 0487 D24.2).
//!
//! E2H is 0 everywhere, so that one layout of CPTR, CNTHCTL and TCR serves every core.
#![expect(
    unsafe_code,
    reason = "the list of cores with errata reads no memory, but MRS is assembly"
)]

use super::sysreg::{
    read_aidr, read_currentel, read_hcr, read_midr, read_mpamidr, read_mpidr, read_pmcr,
    read_revidr, set_cntvoff, set_cptr, set_hacr, set_hafgrtr, set_hcr, set_hcrx, set_hdfgrtr,
    set_hdfgrtr2, set_hdfgwtr, set_hdfgwtr2, set_hfgitr, set_hfgitr2, set_hfgrtr, set_hfgrtr2,
    set_hfgwtr, set_hfgwtr2, set_hstr, set_mdcr, set_mpam2, set_mpamhcr, set_vbar, set_vdisr,
    set_vsesr, set_zcr_el2,
};
use super::vectors;
use crate::id::Mpidr;
use crate::spec::errata::{self, BranchHistory};
use crate::spec::vmsa::MemAttrEncoding;
use aarch64_cpu::asm::barrier;
use core::sync::atomic::{AtomicBool, Ordering};

/// CPTR_EL2 with E2H = 0.
mod cptr {
    pub const RES1: u64 = 0x32ff & !TZ & !TSM;
    pub const TZ: u64 = 1 << 8;
    pub const TSM: u64 = 1 << 12;
    pub const TTA: u64 = 1 << 20;
    pub const TAM: u64 = 1 << 30;
}

/// MDCR_EL2.
mod mdcr {
    /// EL2's own event counters count.
    pub const HPME: u64 = 1 << 7;
    /// Accesses to the debug ROM address registers.
    pub const TDRA: u64 = 1 << 11;
    /// Accesses to the statistical profiling extension.
    pub const TPMS: u64 = 1 << 14;
    /// No event counting at EL2 by the guest's counters.
    pub const HPMD: u64 = 1 << 17;
    /// Accesses to trace filter controls.
    pub const TTRF: u64 = 1 << 19;
    /// No cycle counting at EL2.
    pub const HCCD: u64 = 1 << 23;
    /// EL2's own event counters overflow at 64 bits.
    pub const HLP: u64 = 1 << 26;
}

/// HDFGRTR_EL2.
mod hdfgrtr {
    pub const PMBIDR: u64 = 1 << 63;
    pub const TRBIDR: u64 = 1 << 51;
}

/// MPAMIDR_EL1, MPAM2_EL2 and MPAMHCR_EL2 (DDI 0598).
mod mpam {
    pub const IDR_HAS_HCR: u64 = 1 << 17;
    pub const IDR_HAS_TIDR: u64 = 1 << 58;
    pub const TRAP_EL1: u64 = 1 << 48;
    pub const TRAP_EL0: u64 = 1 << 49;
    pub const TIDR: u64 = 1 << 58;
    pub const HCR_TRAP_IDR: u64 = 1 << 31;
}

/// The configuration that guests run under. What is not listed is off.
const HCR_GUEST: u64 = 1 << 0   // VM: stage 2
    | 1 << 1                    // SWIO: invalidation by set/way also cleans (traps T15)
    | 1 << 2                    // PTW: no table walks to device memory
    | 1 << 3 | 1 << 4 | 1 << 5  // FMO, IMO, AMO: physical FIQ, IRQ, SError come here
    | 1 << 16                   // TID1: REVIDR, AIDR and, for SME, SMIDR
    | 1 << 18                   // TID3: identification registers
    | 1 << 19                   // TSC: SMC (traps T93)
    | 1 << 20                   // TIDCP: the implementer's own registers
    | 1 << 21                   // TACR: ACTLR_EL1
    | 1 << 31                   // RW: EL1 is AArch64
    | 1 << 35                   // TLOR: limited ordering regions
    | 1 << 36; // TERR: RAS error records
const HCRX_TALLINT: u64 = 1 << 6;
const HCR_TID5: u64 = 1 << 58;
const HCR_APK_API: u64 = 3 << 40;
const HCR_FWB: u64 = 1 << 46;
const HCR_E2H: u64 = 1 << 34;
pub(super) const HCR_RW: u64 = 1 << 31;

/// Whether what a core's errata need is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mitigations {
    /// As the core needs it.
    On,
    /// Left out, to measure the difference.
    Off,
}

/// Why a core cannot serve.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CoreRefusal {
    /// It was entered below or above EL2.
    Level(u64),
    /// HCR_EL2.E2H cannot be cleared.
    VheOnly,
}

/// What this core can do, read from its identification registers.
#[derive(Clone, Copy, Debug)]
pub struct CoreFeatures {
    pfr0: u64,
    dfr0: u64,
    isar0: u64,
    isar1: u64,
    isar2: u64,
    mmfr1: u64,
    mmfr0: u64,
    mmfr2: u64,
}

const fn field(register: u64, shift: u32) -> u64 {
    register >> shift & 0xf
}

impl CoreFeatures {
    /// Returns what stage 2 needs to know.
    #[must_use]
    pub fn translation(self) -> crate::spec::vmsa::Features {
        crate::spec::vmsa::Features::from_id_registers(self.mmfr0, self.mmfr1, self.mmfr2)
    }
    pub(super) fn has_crc32(self) -> bool {
        field(self.isar0, 16) != 0
    }
    pub(super) fn has_pmu(self) -> bool {
        !matches!(field(self.dfr0, 8), 0 | 0xf)
    }
    fn has_sve(self) -> bool {
        field(self.pfr0, 32) != 0
    }
    fn has_pointer_authentication(self) -> bool {
        field(self.isar1, 4) | field(self.isar1, 8) | field(self.isar2, 12) != 0
    }
    pub(super) fn fp_sve_keys(self) -> u64 {
        u64::from(self.has_sve()) | u64::from(self.has_pointer_authentication()) << 1
    }
    pub(super) fn breakpoint_count(self) -> usize {
        usize::try_from(field(self.dfr0, 12) + 1).unwrap_or(0)
    }
    pub(super) fn watchpoint_count(self) -> usize {
        usize::try_from(field(self.dfr0, 20) + 1).unwrap_or(0)
    }
    /// Returns whether event counters have 64 bits (FEAT_PMUv3p5).
    pub(super) fn has_long_event_counters(self) -> bool {
        self.has_pmu() && field(self.dfr0, 8) >= 6
    }
    /// Returns how many event counters there are.
    pub(super) fn event_counter_count(self) -> u64 {
        if self.has_pmu() { read_pmcr() >> 11 & 0x1f } else { 0 }
    }
    /// Returns how many event counters the guest has: all but the two that EL2 keeps.
    pub(super) fn guest_event_counter_count(self) -> u64 {
        let all = self.event_counter_count();
        all.saturating_sub(2).max(u64::from(all > 0))
    }
}

/// Returns what this core can do.
#[must_use]
pub fn features() -> CoreFeatures {
    CoreFeatures {
        pfr0: raw_id_register(4, 0),
        dfr0: raw_id_register(5, 0),
        isar0: raw_id_register(6, 0),
        isar1: raw_id_register(6, 1),
        isar2: raw_id_register(6, 2),
        mmfr0: raw_id_register(7, 0),
        mmfr1: raw_id_register(7, 1),
        mmfr2: raw_id_register(7, 2),
    }
}

/// Returns whether this core has system registers for the GIC (ID_AA64PFR0_EL1.GIC).
pub(super) fn has_gic_registers() -> bool {
    field(raw_id_register(4, 0), 24) != 0
}

/// Returns this core's affinity.
#[must_use]
pub fn this_mpidr() -> Mpidr {
    Mpidr::from_register(read_mpidr())
}

/// Returns this core's MIDR_EL1.
#[must_use]
pub fn midr() -> u64 {
    read_midr()
}

/// Returns this core's REVIDR_EL1: which errata its revision has.
#[must_use]
pub fn revidr() -> u64 {
    read_revidr()
}

/// Returns this core's AIDR_EL1, whose meaning is the implementer's.
#[must_use]
pub fn aidr() -> u64 {
    read_aidr()
}

/// Returns the exception level that the core runs at.
#[must_use]
pub fn current_level() -> u64 {
    read_currentel() >> 2 & 3
}

/// Sets this core's vectors, so that from here on a fault at EL2 is reported.
pub fn set_vectors(mitigations: Mitigations) {
    set_vbar(vectors::table(history_loops(mitigations)));
    barrier::isb(barrier::SY);
}

/// Configures what guests of this core may do and what comes to EL2.
///
/// # Errors
/// The core cannot run as this hypervisor needs it.
pub fn set_up_core(mitigations: Mitigations) -> Result<(), CoreRefusal> {
    if current_level() != 2 {
        return Err(CoreRefusal::Level(current_level()));
    }
    set_hcr(HCR_RW);
    barrier::isb(barrier::SY);
    if read_hcr() & HCR_E2H != 0 {
        return Err(CoreRefusal::VheOnly);
    }
    if errata::repeats_tlbi(read_midr()) {
        REPEATS_TLBI.store(true, Ordering::Relaxed);
    }
    let features = features();
    set_vectors(mitigations);
    set_traps(features);
    if field(features.pfr0, 28) != 0 {
        // An SError that a guest is given says that its syndrome is the implementer's own (IDS):
        // nothing is known of it.
        set_vsesr(1 << 24);
        set_vdisr(0);
    }
    set_hstr(0);
    set_hacr(0);
    super::timer::set_physical_time(super::timer::PhysicalTime::Direct);
    set_cntvoff(0);
    super::timer::cancel_hyp_timer();
    // The firmware's: nobody would take their interrupts before a guest has the core.
    super::guest::stop_timers();
    Ok(())
}

/// Turns a guest's configuration on for this core. Before the first entry, after VTTBR_EL2.
///
/// `encoding` is what the tables were made for, which one core's features do not tell: all cores
/// share the tables.
pub(super) fn enable_stage2(encoding: MemAttrEncoding) {
    let features = features();
    let mut hcr = HCR_GUEST;
    if features.has_pointer_authentication() {
        hcr |= HCR_APK_API;
    }
    if encoding == MemAttrEncoding::Forced {
        hcr |= HCR_FWB;
    }
    if field(raw_id_register(4, 1), 8) != 0 {
        hcr |= HCR_TID5;
    }
    set_hcr(hcr);
    barrier::isb(barrier::SY);
}

/// Turns it off again: no walk of this core begins in a VM's tables any more.
pub(super) fn disable_stage2() {
    set_hcr(HCR_RW);
    barrier::isb(barrier::SY);
}

fn set_traps(features: CoreFeatures) {
    let sve = if features.has_sve() { 0 } else { cptr::TZ };
    set_cptr(cptr::RES1 | cptr::TSM | cptr::TTA | cptr::TAM & amu(features) | sve);
    barrier::isb(barrier::SY);
    if features.has_sve() {
        set_zcr_el2(0xf);
    }
    let mut mdcr = mdcr::TDRA | mdcr::TPMS | mdcr::TTRF | features.guest_event_counter_count();
    if features.has_pmu() {
        mdcr |= mdcr::HPMD | mdcr::HCCD | mdcr::HPME;
    }
    if features.has_long_event_counters() {
        mdcr |= mdcr::HLP;
    }
    set_mdcr(mdcr);
    barrier::isb(barrier::SY);
    super::pmu::set_up();
    // Every extension that HCRX_EL2 would give a guest stays off: LS64, MOPS, TCR2, SCTLR2, GCS.
    // TALLINT alone takes something away: writes of ALLINT (FEAT_NMI).
    if field(features.mmfr1, 40) != 0 {
        let has_nmi = field(raw_id_register(4, 1), 36) != 0;
        set_hcrx(if has_nmi { HCRX_TALLINT } else { 0 });
    }
    set_fine_grained_traps(features);
    set_mpam_traps(features);
}

/// 0 traps what has an "n" name (SME, GCS, POE, BRBE, all of FEAT_FGT2) and lets the rest be.
fn set_fine_grained_traps(features: CoreFeatures) {
    let version = field(features.mmfr0, 56);
    if version == 0 {
        return;
    }
    set_hfgrtr(0);
    set_hfgwtr(0);
    set_hfgitr(0);
    // No other control traps reads of PMBIDR_EL1 and TRBIDR_EL1.
    let spe = if field(features.dfr0, 32) != 0 { hdfgrtr::PMBIDR } else { 0 };
    let trbe = if field(features.dfr0, 44) != 0 { hdfgrtr::TRBIDR } else { 0 };
    set_hdfgrtr(spe | trbe);
    set_hdfgwtr(0);
    if field(features.pfr0, 44) != 0 {
        set_hafgrtr(0);
    }
    if version >= 2 {
        set_hdfgrtr2(0);
        set_hdfgwtr2(0);
        set_hfgrtr2(0);
        set_hfgwtr2(0);
        set_hfgitr2(0);
    }
}

fn set_mpam_traps(features: CoreFeatures) {
    // ID_AA64PFR1_EL1.MPAM_frac is all that says version 0.1.
    if field(features.pfr0, 40) | field(raw_id_register(4, 1), 16) == 0 {
        return;
    }
    let mpamidr = read_mpamidr();
    let tidr = if mpamidr & mpam::IDR_HAS_TIDR != 0 { mpam::TIDR } else { 0 };
    set_mpam2(mpam::TRAP_EL0 | mpam::TRAP_EL1 | tidr);
    if mpamidr & mpam::IDR_HAS_HCR != 0 {
        set_mpamhcr(mpam::HCR_TRAP_IDR);
    }
}

fn amu(features: CoreFeatures) -> u64 {
    if field(features.pfr0, 44) != 0 { u64::MAX } else { 0 }
}

/// Returns how many branches overwrite this core's branch history, 0 when it needs none.
pub(super) fn history_loops(mitigations: Mitigations) -> u64 {
    if mitigations == Mitigations::Off {
        return 0;
    }
    BranchHistory {
        midr: read_midr(),
        csv2: field(raw_id_register(4, 0), 56),
        clrbhb: field(raw_id_register(6, 2), 28),
        ecbhb: field(raw_id_register(7, 1), 60),
    }
    .loops()
}

/// Set once a core that needs it has come up; none goes away.
static REPEATS_TLBI: AtomicBool = AtomicBool::new(false);

/// Returns whether some core can leave accesses behind after a broadcast TLB invalidation unless
/// that is repeated (CVE-2025-10263, traps T08).
pub(super) fn repeats_tlbi() -> bool {
    REPEATS_TLBI.load(Ordering::Relaxed) || errata::repeats_tlbi(read_midr())
}

macro_rules! id_registers {
    ($(($crm:literal, $op2:literal) = $register:literal;)*) => {
        /// Reads an identification register of CRn 0 that EL2 needs or that `spec::idregs` lets a
        /// guest see a part of; all others count as 0.
        pub(super) fn raw_id_register(crm: u8, op2: u8) -> u64 {
            let value: u64;
            match (crm, op2) {
                // SAFETY: Identification registers have no side effects; all of this space can
                // be read, unnamed ones as 0 (DDI 0487 D24.3.1).
                $(($crm, $op2) => unsafe {
                    core::arch::asm!(concat!("mrs {}, ", $register), out(reg) value,
                        options(nomem, nostack, preserves_flags, pure));
                },)*
                _ => value = 0,
            }
            value
        }
    };
}

#[rustfmt::skip]
id_registers! {
    (1, 0) = "s3_0_c0_c1_0";
    (1, 1) = "s3_0_c0_c1_1";
    (1, 2) = "s3_0_c0_c1_2";
    (1, 3) = "s3_0_c0_c1_3";
    (1, 4) = "s3_0_c0_c1_4";
    (1, 5) = "s3_0_c0_c1_5";
    (1, 6) = "s3_0_c0_c1_6";
    (1, 7) = "s3_0_c0_c1_7";
    (2, 0) = "s3_0_c0_c2_0";
    (2, 1) = "s3_0_c0_c2_1";
    (2, 2) = "s3_0_c0_c2_2";
    (2, 3) = "s3_0_c0_c2_3";
    (2, 4) = "s3_0_c0_c2_4";
    (2, 5) = "s3_0_c0_c2_5";
    (2, 6) = "s3_0_c0_c2_6";
    (2, 7) = "s3_0_c0_c2_7";
    (3, 0) = "s3_0_c0_c3_0";
    (3, 1) = "s3_0_c0_c3_1";
    (3, 2) = "s3_0_c0_c3_2";
    (3, 3) = "s3_0_c0_c3_3";
    (3, 4) = "s3_0_c0_c3_4";
    (3, 5) = "s3_0_c0_c3_5";
    (3, 6) = "s3_0_c0_c3_6";
    (3, 7) = "s3_0_c0_c3_7";
    (4, 0) = "s3_0_c0_c4_0";
    (4, 1) = "s3_0_c0_c4_1";
    (4, 4) = "s3_0_c0_c4_4";
    (5, 0) = "s3_0_c0_c5_0";
    (6, 0) = "s3_0_c0_c6_0";
    (6, 1) = "s3_0_c0_c6_1";
    (6, 2) = "s3_0_c0_c6_2";
    (7, 0) = "s3_0_c0_c7_0";
    (7, 1) = "s3_0_c0_c7_1";
    (7, 2) = "s3_0_c0_c7_2";
}
