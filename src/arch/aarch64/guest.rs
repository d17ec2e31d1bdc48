// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The guest's own state: general registers, what an exit says, EL1 at the start of a vCPU.
//!
//! A core belongs to one vCPU, so EL1's registers are never switched; they are defined afresh
//! whenever a vCPU starts (traps T58).
#![expect(unsafe_code, reason = "FP, SVE and pointer-authentication state is zeroed in assembly")]

use super::el2::features;
use super::gic::has_gicv2;
use super::pmu::guest_mask;
use super::sysreg::{
    contextidr, set_afsr0, set_afsr1, set_amair, set_contextidr, set_csselr, set_dbgclaimclr,
    set_mdccint, set_mdscr, set_osdlr, set_oslar, set_pmccfiltr, set_pmccntr, set_pmcntenclr,
    set_pmcr, set_pmintenclr, set_pmovsclr, set_pmselr, set_pmuserenr, set_pmxevcntr,
    set_pmxevtyper, set_vpidr,
};
use super::vectors::{INTERRUPT, INTERRUPT_V2};
use crate::addr::{Address, Gva, Ipa};
use crate::arch::GuestState;
use crate::id::Mpidr;
use crate::spec::esr::Syndrome;
use crate::spec::exception::{self, Exception, Origin};
use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::*;
use core::arch::{asm, global_asm};

/// The general registers of a guest that is not running, and where its core returns to.
#[derive(Debug, Default)]
#[repr(C, align(16))]
pub struct GuestRegisters {
    /// X0 to X30, and XZR, which stays 0.
    pub x: [u64; 32],
    pub(super) host_return: u64,
    pub(super) host_sp: u64,
    pub(super) history_loops: u64,
    /// What the vector of interrupts returns.
    pub(super) interrupt: u64,
}

impl GuestRegisters {
    /// Makes the registers of a vCPU that runs on this core, all zero.
    #[must_use]
    pub fn new(mitigations: super::Mitigations) -> Self {
        Self {
            history_loops: super::el2::history_loops(mitigations),
            interrupt: if has_gicv2() { INTERRUPT_V2 } else { INTERRUPT },
            ..Self::default()
        }
    }
}

/// Returns the virtual address of the last abort.
#[inline(always)]
pub fn far() -> Gva {
    Gva::new(FAR_EL2.get())
}

/// Returns the page of the last stage-2 abort; valid for translation faults and stage-1 walks
/// (traps T25).
#[inline(always)]
pub fn hpfar() -> Ipa {
    // FIPA is bits 47:4 and holds IPA bits 55:12 (DDI 0487, HPFAR_EL2).
    Ipa::new((HPFAR_EL2.get() & 0xffff_ffff_fff0) << 8)
}

/// Returns the syndrome of the last synchronous exit or SError.
#[inline(always)]
pub fn esr() -> u64 {
    ESR_EL2.get()
}

/// Returns where the guest goes on.
#[inline(always)]
pub fn elr() -> u64 {
    ELR_EL2.get()
}

/// Moves the guest past the instruction that was emulated for it (traps T31).
#[inline(always)]
pub fn skip_instruction() {
    let pstate = SPSR_EL2.get();
    if exception::changes_behind(pstate) {
        return skip_and_change(pstate);
    }
    ELR_EL2.set(ELR_EL2.get().wrapping_add(4));
}

#[cold]
#[inline(never)]
fn skip_and_change(pstate: u64) {
    if !exception::is_aarch32(pstate) {
        ELR_EL2.set(ELR_EL2.get().wrapping_add(4));
        SPSR_EL2.set(exception::behind(pstate));
        return;
    }
    ELR_EL2.set(ELR_EL2.get().wrapping_add(Syndrome::new(ESR_EL2.get()).instruction_bytes()));
    SPSR_EL2.set(exception::behind_aarch32(pstate));
}

/// Takes an exception to EL1 in the guest's name (traps T33, T34).
pub fn inject(exception: Exception) {
    let origin = Origin { pstate: SPSR_EL2.get(), sctlr: SCTLR_EL1.get() };
    let entry = exception.enter(origin);
    if let Some(far) = exception.far() {
        FAR_EL1.set(far.get());
    }
    ESR_EL1.set(entry.esr);
    SPSR_EL1.set(origin.pstate);
    ELR_EL1.set(ELR_EL2.get());
    ELR_EL2.set(VBAR_EL1.get().wrapping_add(entry.vector));
    SPSR_EL2.set(entry.pstate);
}

/// Returns whether the guest is at the first instruction of the vector that a synchronous exception
/// would take it to from there: EL1h's own (DDI 0487 D1.3.1).
pub fn is_at_own_vector() -> bool {
    const MODE: u64 = 0x1f;
    const EL1H: u64 = 5;
    const CURRENT_SPX: u64 = 0x200;
    SPSR_EL2.get() & MODE == EL1H && ELR_EL2.get() == VBAR_EL1.get().wrapping_add(CURRENT_SPX)
}

/// Makes an SError pending for the guest, which takes it once it unmasks it.
pub fn inject_serror() {
    HCR_EL2.modify(HCR_EL2::VSE::SET);
    barrier::isb(barrier::SY);
}

/// Defines all EL1 and EL0 state of this core for the next start of its vCPU, but for what
/// [`start_guest`] sets.
pub fn reset_guest(mpidr: Mpidr) {
    const MPIDR_RES1: u64 = 1 << 31;
    // RES1 of SCTLR_EL1 with everything that software turns on turned off.
    const SCTLR_RESET: u64 = 0x30d0_0980;
    HCR_EL2.modify(HCR_EL2::VSE::CLEAR);
    set_vpidr(MIDR_EL1.get());
    VMPIDR_EL2.set(MPIDR_RES1 | mpidr.get());
    CNTV_CTL_EL0.set(0);
    CNTP_CTL_EL0.set(0);
    CNTV_CVAL_EL0.set(0);
    CNTP_CVAL_EL0.set(0);
    CNTKCTL_EL1.set(0);
    SCTLR_EL1.set(SCTLR_RESET);
    TTBR0_EL1.set(0);
    TTBR1_EL1.set(0);
    TCR_EL1.set(0);
    MAIR_EL1.set(0);
    set_amair(0);
    VBAR_EL1.set(0);
    CPACR_EL1.set(0);
    ESR_EL1.set(0);
    FAR_EL1.set(0);
    set_afsr0(0);
    set_afsr1(0);
    PAR_EL1.set(0);
    set_contextidr(0);
    set_csselr(0);
    TPIDR_EL0.set(0);
    TPIDR_EL1.set(0);
    TPIDRRO_EL0.set(0);
    SP_EL0.set(0);
    SP_EL1.set(0);
    ELR_EL1.set(0);
    SPSR_EL1.set(0);
    reset_debug();
    reset_pmu();
    // SAFETY: The routine writes FP, SVE and key registers only, which EL2 never uses.
    unsafe { zero_fp_sve_keys(features().fp_sve_keys()) };
    barrier::isb(barrier::SY);
}

/// Drops what this core has cached, speculatively too, of the translations that EL1's registers
/// described until now (traps T09).
fn forget_stage1() {
    // SAFETY: Forgetting translations and instructions changes none.
    unsafe {
        asm!("tlbi vmalle1", "ic iallu", "dsb nsh", "isb", options(nostack, preserves_flags));
    }
}

/// Returns where the guest of this core is that has just left, and what its registers hold.
pub fn guest_state() -> GuestState {
    GuestState([
        ELR_EL2.get(),
        SPSR_EL2.get(),
        SP_EL0.get(),
        SP_EL1.get(),
        SCTLR_EL1.get(),
        TCR_EL1.get(),
        TTBR0_EL1.get(),
        TTBR1_EL1.get(),
        MAIR_EL1.get(),
        VBAR_EL1.get(),
        ESR_EL1.get(),
        FAR_EL1.get(),
        ELR_EL1.get(),
        SPSR_EL1.get(),
        contextidr(),
        TPIDR_EL1.get(),
    ])
}

/// Silences both guest timers of this core, and its PMU.
pub fn stop_timers() {
    CNTV_CTL_EL0.set(0);
    CNTP_CTL_EL0.set(0);
    if features().has_pmu() {
        set_pmintenclr(guest_mask());
        set_pmovsclr(guest_mask());
    }
    barrier::isb(barrier::SY);
}

/// Sets when and where the vCPU starts: EL1h, all exceptions masked (traps T89).
pub fn start_guest(entry: Ipa, cntvoff_ticks: u64) {
    const EL1H_MASKED: u64 = 0x3c5;
    CNTVOFF_EL2.set(cntvoff_ticks);
    forget_stage1();
    ELR_EL2.set(entry.get());
    SPSR_EL2.set(EL1H_MASKED);
}

/// Reads an identification register of Op0 3, Op1 0, CRn 0.
pub fn id_register(crm: u8, op2: u8) -> u64 {
    super::el2::raw_id_register(crm, op2)
}

fn reset_debug() {
    set_mdscr(0);
    set_mdccint(0);
    // Locked, as a warm reset leaves it (DDI 0487, OSLAR_EL1).
    set_oslar(1);
    set_osdlr(0);
    set_dbgclaimclr(0xff);
    super::debug::reset(features().breakpoint_count(), features().watchpoint_count());
}

fn reset_pmu() {
    if !features().has_pmu() {
        return;
    }
    set_pmcntenclr(guest_mask());
    set_pmintenclr(guest_mask());
    set_pmovsclr(guest_mask());
    set_pmuserenr(0);
    for counter in 0..features().guest_event_counter_count() {
        set_pmselr(counter);
        barrier::isb(barrier::SY);
        set_pmxevtyper(0);
        set_pmxevcntr(0);
    }
    set_pmselr(0);
    set_pmccntr(0);
    set_pmccfiltr(0);
    set_pmcr(0);
}

// The one place at EL2 that names FP, SVE and pointer-authentication registers. x0: bit 0 = SVE,
// bit 1 = pointer authentication.
global_asm!(
    r#"
    .section .text.zero_fp_sve_keys, "ax"
    .arch_extension fp
    .arch_extension simd
    .arch_extension sve
    .global zero_fp_sve_keys
zero_fp_sve_keys:
    tbz     x0, #0, 1f
    msr     s3_0_c1_c2_0, xzr       // ZCR_EL1
    isb
    .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    dup     z\n\().d, #0
    .endr
    .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
    pfalse  p\n\().b
    .endr
    wrffr   p0.b
    b       2f
1:
    .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    movi    v\n\().2d, #0
    .endr
2:
    msr     fpcr, xzr
    msr     fpsr, xzr
    tbz     x0, #1, 3f
    msr     s3_0_c2_c1_0, xzr       // APIAKeyLo, Hi
    msr     s3_0_c2_c1_1, xzr
    msr     s3_0_c2_c1_2, xzr       // APIBKeyLo, Hi
    msr     s3_0_c2_c1_3, xzr
    msr     s3_0_c2_c2_0, xzr       // APDAKeyLo, Hi
    msr     s3_0_c2_c2_1, xzr
    msr     s3_0_c2_c2_2, xzr       // APDBKeyLo, Hi
    msr     s3_0_c2_c2_3, xzr
    msr     s3_0_c2_c3_0, xzr       // APGAKeyLo, Hi
    msr     s3_0_c2_c3_1, xzr
3:  ret
    .arch_extension nosve
    .arch_extension nosimd
    .arch_extension nofp
    "#
);

unsafe extern "C" {
    fn zero_fp_sve_keys(which: u64);
}
