// SPDX-License-Identifier: Apache-2.0 OR MIT
//! System registers, each read or written with one instruction that the compiler keeps in order
//! with memory accesses. Only registers whose writing cannot pull the ground from under Rust code.
#![expect(unsafe_code, reason = "system registers are reached with inline assembly")]
#![expect(non_camel_case_types, reason = "registers keep the spelling of DDI 0487 and IHI 0069")]

use core::arch::asm;

macro_rules! readable {
    ($($name:ident)*) => {$(
        impl $name {
            /// Reads the register.
            #[inline(always)]
            #[must_use]
            pub fn get() -> u64 {
                let value;
                // SAFETY: reading a register that EL1 may read has no effect on memory.
                unsafe { asm!(concat!("mrs {}, ", stringify!($name)), out(reg) value, options(nostack)) };
                value
            }
        }
    )*};
}

macro_rules! writable {
    ($($name:ident)*) => {$(
        impl $name {
            /// Writes the register; the effect may need an `isb`.
            #[inline(always)]
            pub fn set(value: u64) {
                // SAFETY: the registers of this file do not change how Rust code runs.
                unsafe { asm!(concat!("msr ", stringify!($name), ", {}"), in(reg) value, options(nostack)) };
            }
        }
    )*};
}

macro_rules! registers {
    ($($name:ident)*) => {$(
        #[doc = concat!("`", stringify!($name), "`.")]
        pub struct $name;
    )*};
}

macro_rules! read_only {
    ($($name:ident)*) => { registers! { $($name)* } readable! { $($name)* } };
}
macro_rules! write_only {
    ($($name:ident)*) => { registers! { $($name)* } writable! { $($name)* } };
}
macro_rules! read_write {
    ($($name:ident)*) => {
        registers! { $($name)* } readable! { $($name)* } writable! { $($name)* }
    };
}

read_only! {
    MPIDR_EL1 MIDR_EL1 CURRENTEL ISR_EL1 CNTVCT_EL0 CNTPCT_EL0 CNTFRQ_EL0 CTR_EL0 DCZID_EL0
    CLIDR_EL1 CCSIDR_EL1 REVIDR_EL1 AIDR_EL1
    ID_AA64PFR0_EL1 ID_AA64PFR1_EL1 ID_AA64DFR0_EL1 ID_AA64ISAR0_EL1 ID_AA64ISAR1_EL1
    ID_AA64ISAR2_EL1 ID_AA64MMFR0_EL1 ID_AA64MMFR1_EL1 ID_AA64MMFR2_EL1
    ICC_IAR1_EL1 ICC_HPPIR1_EL1 ICC_RPR_EL1
}
write_only! { ICC_EOIR1_EL1 ICC_DIR_EL1 ICC_SGI1R_EL1 }
read_write! {
    CNTV_CTL_EL0 CNTV_CVAL_EL0 CNTV_TVAL_EL0 CNTP_CTL_EL0 CNTP_CVAL_EL0 CNTP_TVAL_EL0 CNTKCTL_EL1
    ICC_PMR_EL1 ICC_BPR1_EL1 ICC_CTLR_EL1 ICC_IGRPEN1_EL1 ICC_SRE_EL1 ICC_AP0R0_EL1 ICC_AP1R0_EL1
    CPACR_EL1 PAR_EL1 CSSELR_EL1 DAIF NZCV SPSEL TPIDR_EL0
}

/// Orders everything before with everything after for this vCPU's instruction stream.
#[inline(always)]
pub fn isb() {
    // SAFETY: a barrier has no effect but order.
    unsafe { asm!("isb", options(nostack)) };
}

/// Waits until every access before has completed.
#[inline(always)]
pub fn dsb() {
    // SAFETY: a barrier has no effect but order.
    unsafe { asm!("dsb sy", options(nostack)) };
}

/// Lets others run in a spin loop.
///
/// Not `spin_loop`, which is an `isb` on this target and keeps QEMU's other CPUs waiting.
#[inline(always)]
pub fn relax() {
    // SAFETY: a hint has no effect on memory.
    unsafe { asm!("yield", options(nostack)) };
}

/// Waits for an interrupt, masked or not.
#[inline(always)]
pub fn wfi() {
    // SAFETY: waiting has no effect on memory; what an interrupt does is its handler's business.
    unsafe { asm!("dsb sy", "wfi", options(nostack)) };
}

/// Waits for an event or an interrupt.
#[inline(always)]
pub fn wfe() {
    // SAFETY: as for `wfi`.
    unsafe { asm!("wfe", options(nostack)) };
}

/// Sends an event to all vCPUs, this one included.
#[inline(always)]
pub fn sev() {
    // SAFETY: a hint has no effect on memory.
    unsafe { asm!("dsb sy", "sev", options(nostack)) };
}

/// Cleans and invalidates the data cache by a set and a way, and drops the instruction caches and
/// the stage-1 TLB entries of all vCPUs.
pub fn maintain(set_way: u64) {
    // SAFETY: what is cleaned, or read from memory again, is what it was.
    unsafe {
        asm!(
            "dc csw, {0}", "dc cisw, {0}", "ic ialluis", "tlbi vmalle1is", "tlbi vmalle1",
            "dsb sy", "isb", in(reg) set_way, options(nostack)
        );
    }
}
