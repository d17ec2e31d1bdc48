// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Instructions that tests run as generated code: the address is in x0, the value in w1 or x1.

pub const LDR_W1: u32 = 0xb940_0001;
pub const LDRB_W1: u32 = 0x3940_0001;
pub const LDRSB_W1: u32 = 0x39c0_0001;
pub const LDRSB_X1: u32 = 0x3980_0001;
pub const LDRH_W1: u32 = 0x7940_0001;
pub const LDRSH_W1: u32 = 0x79c0_0001;
pub const LDRSH_X1: u32 = 0x7980_0001;
pub const LDRSW_X1: u32 = 0xb980_0001;
pub const STR_W1: u32 = 0xb900_0001;
pub const STR_WZR: u32 = 0xb900_001f;
pub const LDR_WZR: u32 = 0xb940_001f;
pub const LDAR_W1: u32 = 0x88df_fc01;
pub const STLR_W1: u32 = 0x889f_fc01;
pub const LDTR_W1: u32 = 0xb840_0801;
pub const STTR_W1: u32 = 0xb800_0801;
pub const LDUR_W1: u32 = 0xb840_0001;

/// `ldp w1, w2, [x0]`.
pub const LDP: u32 = 0x2940_0801;
/// `stp w1, w2, [x0]`.
pub const STP: u32 = 0x2900_0801;
/// `ldr w1, [x0], #4`.
pub const LDR_POST: u32 = 0xb840_4401;
/// `ldr w1, [x0, #4]!`.
pub const LDR_PRE: u32 = 0xb840_4c01;
/// `str w1, [x0], #4`.
pub const STR_POST: u32 = 0xb800_4401;
/// `str w1, [x0, #4]!`.
pub const STR_PRE: u32 = 0xb800_4c01;
/// `ldr s0, [x0]`.
pub const LDR_S0: u32 = 0xbd40_0000;
/// `ldr d0, [x0]`.
pub const LDR_D0: u32 = 0xfd40_0000;
/// `ldr q0, [x0]`.
pub const LDR_Q0: u32 = 0x3dc0_0000;
/// `str d0, [x0]`.
pub const STR_D0: u32 = 0xfd00_0000;
/// `ld1 {v0.4s}, [x0]`.
pub const LD1: u32 = 0x4c40_7800;
/// `ldxr w1, [x0]`.
pub const LDXR: u32 = 0x885f_7c01;
/// `ldaxr w1, [x0]`.
pub const LDAXR: u32 = 0x885f_fc01;
/// `ldadd w1, w2, [x0]`.
pub const LDADD: u32 = 0xb821_0002;
/// `swp w1, w2, [x0]`.
pub const SWP: u32 = 0xb821_8002;
/// `cas w1, w2, [x0]`.
pub const CAS: u32 = 0x88a1_7c02;

pub const DC_ZVA: u32 = 0xd50b_7420;
pub const DC_CIVAC: u32 = 0xd50b_7e20;
pub const DC_CVAC: u32 = 0xd50b_7a20;
pub const DC_CVAU: u32 = 0xd50b_7b20;
pub const DC_IVAC: u32 = 0xd508_7620;
pub const IC_IVAU: u32 = 0xd50b_7520;
/// `prfm pldl1keep, [x0]`.
pub const PRFM: u32 = 0xf980_0000;

pub const MOV_X9_0: u32 = 0xd280_0009;
/// `add x9, x9, #1`, then 2, then 4.
pub const ADD_X9: [u32; 3] = [0x9100_0529, 0x9100_0929, 0x9100_1129];
pub const MOV_X0_X9: u32 = 0xaa09_03e0;
pub const HVC_0: u32 = 0xd400_0002;
pub const HVC_1: u32 = 0xd400_0022;
pub const SMC_0: u32 = 0xd400_0003;
pub const SMC_1: u32 = 0xd400_0023;
pub const UDF: u32 = 0;
pub const SEVL: u32 = 0xd503_20bf;
pub const WFE: u32 = 0xd503_205f;
pub const WFI: u32 = 0xd503_207f;
pub const YIELD: u32 = 0xd503_203f;
pub const SPSEL_0: u32 = 0xd500_40bf;
pub const SPSEL_1: u32 = 0xd500_41bf;
pub const BR_X0: u32 = 0xd61f_0000;
pub const MSR_NZCV_X1: u32 = 0xd51b_4201;
pub const MRS_X0_PFR0: u32 = 0xd538_0400;
/// `msr icc_sgi1r_el1, xzr`: to nobody.
pub const MSR_SGI1R_XZR: u32 = 0xd518_cbbf;

/// A system register's encoding: op0, op1, CRn, CRm, op2 (DDI 0487 C5.1.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Encoding(pub u32, pub u32, pub u32, pub u32, pub u32);

impl Encoding {
    const fn bits(self) -> u32 {
        let Self(op0, op1, crn, crm, op2) = self;
        op0 << 19 | op1 << 16 | crn << 12 | crm << 8 | op2 << 5
    }
    /// Returns whether it lies where FEAT_IDST reports an UNDEF read as a trapped access
    /// (DDI 0487, FEAT_IDST: op0 3, op1 0, 1 or 3, CRn 0, CRm 0 to 7).
    pub const fn is_id_space(self) -> bool {
        let Self(op0, op1, crn, crm, _) = self;
        op0 == 3 && matches!(op1, 0 | 1 | 3) && crn == 0 && crm < 8
    }
    /// Returns `mrs x0, <register>`.
    pub const fn mrs(self) -> u32 {
        0xd520_0000 | self.bits()
    }
    /// Returns `msr <register>, xzr`.
    pub const fn msr_xzr(self) -> u32 {
        0xd500_001f | self.bits()
    }
    /// Returns `msr <register>, x0`.
    pub const fn msr_x0(self) -> u32 {
        0xd500_0000 | self.bits()
    }
    /// Returns `sys <operation>, x0`.
    pub const fn sys(self) -> u32 {
        0xd500_0000 | self.bits()
    }
}
