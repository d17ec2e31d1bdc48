// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The Power State Coordination Interface (DEN 0022, PSCI 1.1): functions, states, results.
//!
//! It holds no state: who is on is the business of [`crate::psci`], and of the firmware for pCPUs.
#![forbid(unsafe_code)]

use crate::spec::smccc::FunctionId;

/// PSCI_VERSION.
pub const PSCI_VERSION: FunctionId = FunctionId::new(0x8400_0000);
/// What PSCI_VERSION returns for version 1.1.
pub const VERSION_1_1: u64 = 0x1_0001;
/// What MIGRATE_INFO_TYPE returns where no Trusted OS needs to be moved.
pub const MIGRATION_NOT_REQUIRED: u64 = 2;
/// The reset type SYSTEM_WARM_RESET of SYSTEM_RESET2. Types with bit 31 set are the vendor's.
pub const SYSTEM_WARM_RESET: u32 = 0;
/// The function identifiers that belong to PSCI, SMC32 and SMC64, all but their low 5 bits.
const RANGE: u32 = 0x8400_0000;
/// The bits that [`RANGE`] fixes: bit 30 tells SMC64 from SMC32.
const RANGE_MASK: u32 = 0xbfff_ffe0;

/// Returns whether a function is PSCI's.
#[must_use]
#[inline(always)]
pub const fn owns(function: FunctionId) -> bool {
    function.get() & RANGE_MASK == RANGE
}

/// A function of PSCI 1.1 that a guest may use (DEN 0022 section 5). SMC32 and SMC64 variants are
/// one function here: see [`FunctionId::narrow`] for the difference.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Function {
    /// PSCI_VERSION.
    Version,
    /// CPU_SUSPEND.
    CpuSuspend,
    /// CPU_OFF.
    CpuOff,
    /// CPU_ON.
    CpuOn,
    /// AFFINITY_INFO.
    AffinityInfo,
    /// MIGRATE_INFO_TYPE.
    MigrateInfoType,
    /// SYSTEM_OFF.
    SystemOff,
    /// SYSTEM_RESET.
    SystemReset,
    /// PSCI_FEATURES.
    Features,
    /// SYSTEM_SUSPEND.
    SystemSuspend,
    /// SYSTEM_RESET2.
    SystemReset2,
}

impl Function {
    /// Decodes a function identifier; `None` for what is optional and left out, and for what is
    /// not PSCI's.
    #[must_use]
    #[inline(always)]
    pub const fn decode(function: FunctionId) -> Option<Self> {
        Some(match function.get() {
            0x8400_0000 => Self::Version,
            0x8400_0001 | 0xc400_0001 => Self::CpuSuspend,
            0x8400_0002 => Self::CpuOff,
            0x8400_0003 | 0xc400_0003 => Self::CpuOn,
            0x8400_0004 | 0xc400_0004 => Self::AffinityInfo,
            0x8400_0006 => Self::MigrateInfoType,
            0x8400_0008 => Self::SystemOff,
            0x8400_0009 => Self::SystemReset,
            0x8400_000a => Self::Features,
            0x8400_000e | 0xc400_000e => Self::SystemSuspend,
            0x8400_0012 | 0xc400_0012 => Self::SystemReset2,
            _ => return None,
        })
    }
}

/// How a call failed, or not (DEN 0022 section 5.2.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(i64)]
pub enum Status {
    /// SUCCESS.
    Success = 0,
    /// NOT_SUPPORTED.
    NotSupported = -1,
    /// INVALID_PARAMETERS.
    InvalidParameters = -2,
    /// DENIED.
    Denied = -3,
    /// ALREADY_ON.
    AlreadyOn = -4,
    /// ON_PENDING.
    OnPending = -5,
    /// INVALID_ADDRESS.
    InvalidAddress = -9,
}

impl Status {
    /// Returns what goes into X0: the number with its sign extended.
    #[must_use]
    #[inline(always)]
    pub const fn x0(self) -> u64 {
        (self as i64).cast_unsigned()
    }
}

/// What AFFINITY_INFO returns (DEN 0022 section 5.7).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AffinityState {
    /// ON.
    On = 0,
    /// OFF.
    Off = 1,
    /// ON_PENDING.
    OnPending = 2,
}

/// Returns whether CPU_SUSPEND takes a power state, in the original format (DEN 0022 section
/// 5.4.2): StateID in bits 15:0, StateType in bit 16, PowerLevel in bits 25:24, all else 0.
///
/// The only power level is the core's, 0; every StateID at that level is good.
#[must_use]
pub const fn is_core_power_state(power_state: u32) -> bool {
    power_state >> 17 == 0
}

/// Returns whether a power state asks for power down, which returns through an entry point.
#[must_use]
pub const fn is_power_down(power_state: u32) -> bool {
    power_state & 1 << 16 != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t92_range_is_32_identifiers_of_either_width() {
        let mine = |id| owns(FunctionId::new(id));
        for n in 0..0x20 {
            assert!(mine(0x8400_0000 + n) && mine(0xc400_0000 + n), "{n:#x}");
        }
        for id in [0x8400_0020, 0xc400_0020, 0x0400_0000, 0x83ff_ffff, 0x8500_0000, 0x8401_0000] {
            assert!(!mine(id), "{id:#x}");
        }
    }

    #[test]
    fn t92_errors_fill_all_of_x0() {
        assert_eq!(Status::NotSupported.x0(), 0xffff_ffff_ffff_ffff);
        assert_eq!(Status::InvalidAddress.x0(), 0xffff_ffff_ffff_fff7);
        assert_eq!(Status::Success.x0(), 0);
    }
}
