// SPDX-License-Identifier: Apache-2.0 OR MIT
//! System registers that `aarch64-cpu` does not have, one accessor each.
//!
//! Names are the assembler's; where it does not know one, the encoding stands in the generic form
//! `S<op0>_<op1>_C<n>_C<m>_<op2>` (DDI 0487 D24.1).
#![expect(unsafe_code, reason = "MRS and MSR are assembly")]

macro_rules! read {
    ($($(#[$doc:meta])* $name:ident = $register:literal;)*) => {$(
        $(#[$doc])*
        #[inline(always)]
        pub(super) fn $name() -> u64 {
            let value: u64;
            // SAFETY: Reading this register has no effect on memory that Rust sees.
            unsafe {
                core::arch::asm!(concat!("mrs {}, ", $register), out(reg) value,
                    options(nostack, preserves_flags));
            }
            value
        }
    )*};
}

macro_rules! write {
    ($($(#[$doc:meta])* $name:ident = $register:literal;)*) => {$(
        $(#[$doc])*
        #[inline(always)]
        pub(super) fn $name(value: u64) {
            // SAFETY: The register changes what guests do or see, or this core's interrupts; none
            // of the callers in the machine layer lets it change EL2's own memory. No `nomem`:
            // the compiler keeps the order against memory accesses.
            unsafe {
                core::arch::asm!(concat!("msr ", $register, ", {}"), in(reg) value,
                    options(nostack, preserves_flags));
            }
        }
    )*};
}

read! {
    icc_iar1 = "icc_iar1_el1";
    icc_ctlr = "icc_ctlr_el1";
    ich_elrsr = "ich_elrsr_el2";
    contextidr = "contextidr_el1";
    read_mpidr = "mpidr_el1";
    read_midr = "midr_el1";
    read_revidr = "revidr_el1";
    read_aidr = "aidr_el1";
    read_mpamidr = "s3_0_c10_c4_4";
    read_pmcr = "pmcr_el0";
    read_pmceid0 = "pmceid0_el0";
    read_pmselr = "pmselr_el0";
    read_pmxevcntr = "pmxevcntr_el0";
    read_pmovsclr = "pmovsclr_el0";
    read_pmintenset = "pmintenset_el1";
    read_hcr = "hcr_el2";
    cnthp_cval = "cnthp_cval_el2";
    read_currentel = "currentel";
}

write! {
    set_icc_eoir1 = "icc_eoir1_el1";
    set_icc_ctlr = "icc_ctlr_el1";
    set_icc_dir = "icc_dir_el1";
    set_icc_pmr = "icc_pmr_el1";
    set_icc_bpr1 = "icc_bpr1_el1";
    set_icc_igrpen1 = "icc_igrpen1_el1";
    set_icc_ap1r0 = "icc_ap1r0_el1";
    set_icc_ap1r1 = "icc_ap1r1_el1";
    set_icc_ap1r2 = "icc_ap1r2_el1";
    set_icc_ap1r3 = "icc_ap1r3_el1";
    set_icc_sgi1r = "icc_sgi1r_el1";
    set_icc_sre_el1 = "icc_sre_el1";
    set_cnthp_cval = "cnthp_cval_el2";
    set_vpidr = "vpidr_el2";
    set_contextidr = "contextidr_el1";
    set_csselr = "csselr_el1";
    set_mdscr = "mdscr_el1";
    set_oslar = "oslar_el1";
    set_osdlr = "osdlr_el1";
    set_afsr0 = "afsr0_el1";
    set_afsr1 = "afsr1_el1";
    set_amair = "amair_el1";
    set_pmcr = "pmcr_el0";
    set_pmcntenset = "pmcntenset_el0";
    set_pmcntenclr = "pmcntenclr_el0";
    set_pmintenset = "pmintenset_el1";
    set_pmintenclr = "pmintenclr_el1";
    set_pmovsclr = "pmovsclr_el0";
    set_pmuserenr = "pmuserenr_el0";
    set_pmselr = "pmselr_el0";
    set_pmxevtyper = "pmxevtyper_el0";
    set_pmxevcntr = "pmxevcntr_el0";
    set_pmccntr = "pmccntr_el0";
    set_pmccfiltr = "pmccfiltr_el0";
    set_mdccint = "mdccint_el1";
    set_dbgclaimclr = "dbgclaimclr_el1";
    set_hcr = "hcr_el2";
    set_hcrx = "s3_4_c1_c2_2";
    set_cptr = "cptr_el2";
    set_mdcr = "mdcr_el2";
    set_hstr = "hstr_el2";
    set_hacr = "hacr_el2";
    set_zcr_el2 = "s3_4_c1_c2_0";
    set_hfgrtr = "s3_4_c1_c1_4";
    set_hfgwtr = "s3_4_c1_c1_5";
    set_hfgitr = "s3_4_c1_c1_6";
    set_hdfgrtr = "s3_4_c3_c1_4";
    set_hdfgwtr = "s3_4_c3_c1_5";
    set_hafgrtr = "s3_4_c3_c1_6";
    set_hdfgrtr2 = "s3_4_c3_c1_0";
    set_hdfgwtr2 = "s3_4_c3_c1_1";
    set_hfgrtr2 = "s3_4_c3_c1_2";
    set_hfgwtr2 = "s3_4_c3_c1_3";
    set_hfgitr2 = "s3_4_c3_c1_7";
    set_mpam2 = "s3_4_c10_c5_0";
    set_mpamhcr = "s3_4_c10_c4_0";
    set_vsesr = "s3_4_c5_c2_3";
    set_vdisr = "s3_4_c12_c1_1";
    set_cnthctl = "cnthctl_el2";
    set_cntvoff = "cntvoff_el2";
    set_vbar = "vbar_el2";
    set_dbgbvr0 = "dbgbvr0_el1";
    set_dbgbcr0 = "dbgbcr0_el1";
    set_dbgwvr0 = "dbgwvr0_el1";
    set_dbgwcr0 = "dbgwcr0_el1";
    set_dbgbvr1 = "dbgbvr1_el1";
    set_dbgbcr1 = "dbgbcr1_el1";
    set_dbgwvr1 = "dbgwvr1_el1";
    set_dbgwcr1 = "dbgwcr1_el1";
    set_dbgbvr2 = "dbgbvr2_el1";
    set_dbgbcr2 = "dbgbcr2_el1";
    set_dbgwvr2 = "dbgwvr2_el1";
    set_dbgwcr2 = "dbgwcr2_el1";
    set_dbgbvr3 = "dbgbvr3_el1";
    set_dbgbcr3 = "dbgbcr3_el1";
    set_dbgwvr3 = "dbgwvr3_el1";
    set_dbgwcr3 = "dbgwcr3_el1";
    set_dbgbvr4 = "dbgbvr4_el1";
    set_dbgbcr4 = "dbgbcr4_el1";
    set_dbgwvr4 = "dbgwvr4_el1";
    set_dbgwcr4 = "dbgwcr4_el1";
    set_dbgbvr5 = "dbgbvr5_el1";
    set_dbgbcr5 = "dbgbcr5_el1";
    set_dbgwvr5 = "dbgwvr5_el1";
    set_dbgwcr5 = "dbgwcr5_el1";
    set_dbgbvr6 = "dbgbvr6_el1";
    set_dbgbcr6 = "dbgbcr6_el1";
    set_dbgwvr6 = "dbgwvr6_el1";
    set_dbgwcr6 = "dbgwcr6_el1";
    set_dbgbvr7 = "dbgbvr7_el1";
    set_dbgbcr7 = "dbgbcr7_el1";
    set_dbgwvr7 = "dbgwvr7_el1";
    set_dbgwcr7 = "dbgwcr7_el1";
    set_dbgbvr8 = "dbgbvr8_el1";
    set_dbgbcr8 = "dbgbcr8_el1";
    set_dbgwvr8 = "dbgwvr8_el1";
    set_dbgwcr8 = "dbgwcr8_el1";
    set_dbgbvr9 = "dbgbvr9_el1";
    set_dbgbcr9 = "dbgbcr9_el1";
    set_dbgwvr9 = "dbgwvr9_el1";
    set_dbgwcr9 = "dbgwcr9_el1";
    set_dbgbvr10 = "dbgbvr10_el1";
    set_dbgbcr10 = "dbgbcr10_el1";
    set_dbgwvr10 = "dbgwvr10_el1";
    set_dbgwcr10 = "dbgwcr10_el1";
    set_dbgbvr11 = "dbgbvr11_el1";
    set_dbgbcr11 = "dbgbcr11_el1";
    set_dbgwvr11 = "dbgwvr11_el1";
    set_dbgwcr11 = "dbgwcr11_el1";
    set_dbgbvr12 = "dbgbvr12_el1";
    set_dbgbcr12 = "dbgbcr12_el1";
    set_dbgwvr12 = "dbgwvr12_el1";
    set_dbgwcr12 = "dbgwcr12_el1";
    set_dbgbvr13 = "dbgbvr13_el1";
    set_dbgbcr13 = "dbgbcr13_el1";
    set_dbgwvr13 = "dbgwvr13_el1";
    set_dbgwcr13 = "dbgwcr13_el1";
    set_dbgbvr14 = "dbgbvr14_el1";
    set_dbgbcr14 = "dbgbcr14_el1";
    set_dbgwvr14 = "dbgwvr14_el1";
    set_dbgwcr14 = "dbgwcr14_el1";
    set_dbgbvr15 = "dbgbvr15_el1";
    set_dbgbcr15 = "dbgbcr15_el1";
    set_dbgwvr15 = "dbgwvr15_el1";
    set_dbgwcr15 = "dbgwcr15_el1";
}
