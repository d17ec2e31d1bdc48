// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The SMC Calling Convention (DEN 0028): function identifiers and what calls return.
//!
//! It knows neither who calls nor who answers.
#![forbid(unsafe_code)]

/// A function identifier: what a caller leaves in W0 (DEN 0028 section 2.5).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(transparent)]
pub struct FunctionId(u32);

impl FunctionId {
    /// Bit 16: the caller has no live SVE state (SMCCC 1.3). It is no part of the function.
    const SVE_HINT: u32 = 1 << 16;
    /// Bit 30: arguments and results are 64 bits wide.
    const SMC64: u32 = 1 << 30;

    /// Takes the number that a document gives a function.
    #[must_use]
    pub const fn new(value: u32) -> Self {
        Self(value)
    }
    /// Takes what a caller left in X0: bits 63:32 do not count, nor does the SVE hint.
    #[must_use]
    #[inline(always)]
    pub const fn from_x0(x0: u64) -> Self {
        Self(low_word(x0) & !Self::SVE_HINT)
    }
    /// Returns the number.
    #[must_use]
    #[inline(always)]
    pub const fn get(self) -> u32 {
        self.0
    }
    /// Cuts an argument down to what the function takes: SMC32 functions see the low 32 bits alone.
    #[must_use]
    #[inline(always)]
    pub const fn narrow(self, argument: u64) -> u64 {
        if self.0 & Self::SMC64 == 0 { low_word(argument) as u64 } else { argument }
    }
}

/// Returns the low 32 bits: what a 32-bit parameter is in either convention.
#[must_use]
#[inline(always)]
pub const fn low_word(value: u64) -> u32 {
    (value & 0xffff_ffff) as u32
}

/// SMCCC_VERSION.
pub const VERSION: FunctionId = FunctionId::new(0x8000_0000);
/// SMCCC_ARCH_FEATURES.
pub const ARCH_FEATURES: FunctionId = FunctionId::new(0x8000_0001);
/// SMCCC_ARCH_WORKAROUND_1, against CVE-2017-5715.
pub const ARCH_WORKAROUND_1: FunctionId = FunctionId::new(0x8000_8000);
/// SMCCC_ARCH_WORKAROUND_2, against CVE-2018-3639.
pub const ARCH_WORKAROUND_2: FunctionId = FunctionId::new(0x8000_7fff);
/// SMCCC_ARCH_WORKAROUND_3, against CVE-2017-5715 and CVE-2022-23960.
pub const ARCH_WORKAROUND_3: FunctionId = FunctionId::new(0x8000_3fff);
/// Call UID of the vendor specific hypervisor services (DEN 0028 table 6-3).
pub const VENDOR_HYP_CALL_UID: FunctionId = FunctionId::new(0x8600_ff01);
/// Revision of the vendor specific hypervisor services.
pub const VENDOR_HYP_REVISION: FunctionId = FunctionId::new(0x8600_ff03);

/// What SMCCC_VERSION returns for version 1.1.
pub const VERSION_1_1: u64 = 0x1_0001;
/// SUCCESS: done, or there is such a function.
pub const SUCCESS: u64 = 0;
/// What ARCH_FEATURES says of a workaround that may be called and does nothing on this PE.
pub const WORKAROUND_UNAFFECTED: u64 = 1;
/// NOT_SUPPORTED, -1: there is no such function.
pub const NOT_SUPPORTED: u64 = u64::MAX;
/// NOT_REQUIRED, -2: no PE needs the workaround, and nobody may call it.
pub const NOT_REQUIRED: u64 = u64::MAX - 1;
