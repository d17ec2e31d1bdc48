// SPDX-License-Identifier: Apache-2.0 OR MIT
//! PSCI (DEN 0022) and SMCCC (DEN 0028) calls by the conduit that the tree names.
#![expect(unsafe_code, reason = "HVC and SMC")]

use crate::exception::{Exception, Resume, catch};
use crate::tree;
use core::arch::asm;

/// Function identifiers (DEN 0022 5.1, DEN 0028 7).
pub mod id {
    /// PSCI_VERSION.
    pub const VERSION: u32 = 0x8400_0000;
    /// CPU_SUSPEND, SMC64.
    pub const CPU_SUSPEND: u32 = 0xc400_0001;
    /// CPU_OFF.
    pub const CPU_OFF: u32 = 0x8400_0002;
    /// CPU_ON, SMC64.
    pub const CPU_ON: u32 = 0xc400_0003;
    /// CPU_ON, SMC32.
    pub const CPU_ON_32: u32 = 0x8400_0003;
    /// AFFINITY_INFO, SMC64.
    pub const AFFINITY_INFO: u32 = 0xc400_0004;
    /// MIGRATE_INFO_TYPE.
    pub const MIGRATE_INFO_TYPE: u32 = 0x8400_0006;
    /// SYSTEM_OFF.
    pub const SYSTEM_OFF: u32 = 0x8400_0008;
    /// SYSTEM_RESET.
    pub const SYSTEM_RESET: u32 = 0x8400_0009;
    /// PSCI_FEATURES.
    pub const FEATURES: u32 = 0x8400_000a;
    /// SYSTEM_SUSPEND, SMC64.
    pub const SYSTEM_SUSPEND: u32 = 0xc400_000e;
    /// SYSTEM_RESET2, SMC64.
    pub const SYSTEM_RESET2: u32 = 0xc400_0012;
    /// SMCCC_VERSION.
    pub const SMCCC_VERSION: u32 = 0x8000_0000;
    /// SMCCC_ARCH_FEATURES.
    pub const ARCH_FEATURES: u32 = 0x8000_0001;
    /// The UID of the vendor-specific hypervisor service.
    pub const VENDOR_HYP_UID: u32 = 0x8600_ff01;
}

/// How a call leaves the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Conduit {
    /// HVC.
    Hvc,
    /// SMC.
    Smc,
}

/// What PSCI answers when it does not do what it was asked (DEN 0022 5.2.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Error {
    /// -1.
    NotSupported,
    /// -2.
    InvalidParameters,
    /// -3.
    Denied,
    /// -4.
    AlreadyOn,
    /// -5.
    OnPending,
    /// -6.
    InternalFailure,
    /// -9.
    InvalidAddress,
    /// Any other negative value.
    Other(i32),
}

/// Reads the low 32 bits of x0 as PSCI and SMCCC return them.
///
/// # Errors
/// Gives what a negative value stands for.
pub fn result(x0: u64) -> Result<u32, Error> {
    let [a, b, c, d, ..] = x0.to_le_bytes();
    let value = i32::from_le_bytes([a, b, c, d]);
    u32::try_from(value).map_err(|_| match value {
        -1 => Error::NotSupported,
        -2 => Error::InvalidParameters,
        -3 => Error::Denied,
        -4 => Error::AlreadyOn,
        -5 => Error::OnPending,
        -6 => Error::InternalFailure,
        -9 => Error::InvalidAddress,
        other => Error::Other(other),
    })
}

macro_rules! conduit {
    ($name:ident $instruction:literal) => {
        fn $name(arguments: [u64; 4]) -> [u64; 4] {
            let [mut x0, mut x1, mut x2, mut x3] = arguments;
            // SAFETY: no service writes a guest's memory behind its back; what SMCCC 1.0 lets a
            // call change (x4 to x17) is given up.
            unsafe {
                asm!(
                    $instruction, inout("x0") x0, inout("x1") x1, inout("x2") x2, inout("x3") x3,
                    clobber_abi("C"),
                );
            }
            [x0, x1, x2, x3]
        }
    };
}
conduit! { hvc "hvc #0" }
conduit! { smc "smc #0" }

/// Calls with four arguments and returns x0 to x3.
#[must_use]
pub fn call_by(conduit: Conduit, arguments: [u64; 4]) -> [u64; 4] {
    match conduit {
        Conduit::Hvc => hvc(arguments),
        Conduit::Smc => smc(arguments),
    }
}

/// Calls by the tree's conduit and returns x0.
pub fn call(function: u32, x1: u64, x2: u64, x3: u64) -> u64 {
    let [x0, ..] = call_by(tree::machine().conduit, [function.into(), x1, x2, x3]);
    x0
}

/// Calls by the tree's conduit; the call may be UNDEF.
///
/// # Errors
/// Gives the exception.
pub fn try_call(function: u32, x1: u64, x2: u64, x3: u64) -> Result<u64, Exception> {
    let (x0, exception) = catch(Resume::Next, || call(function, x1, x2, x3));
    exception.map_or(Ok(x0), Err)
}

/// Starts the vCPU with affinity `target` at `entry` with `context` in x0.
///
/// # Errors
/// Gives what PSCI answered.
pub fn cpu_on(target: u64, entry: u64, context: u64) -> Result<(), Error> {
    result(call(id::CPU_ON, target, entry, context)).map(|_| ())
}

/// Switches the vCPU that calls off; returns only when that is refused.
pub fn cpu_off() -> Result<u32, Error> {
    result(call(id::CPU_OFF, 0, 0, 0))
}

/// Returns 0 for on, 1 for off, 2 for on its way.
///
/// # Errors
/// Gives what PSCI answered.
pub fn affinity_info(target: u64, level: u64) -> Result<u32, Error> {
    result(call(id::AFFINITY_INFO, target, level, 0))
}

/// Restarts the machine; returns only when that is refused.
pub fn system_reset() -> Result<u32, Error> {
    result(call(id::SYSTEM_RESET, 0, 0, 0))
}

/// Returns whether a hypervisor is underneath: the argument `hypervisor` says so, or one answers
/// the call for the UID of its services (DEN 0028 6.2).
#[must_use]
pub fn under_hypervisor() -> bool {
    tree::has_argument("hypervisor")
        || try_call(id::VENDOR_HYP_UID, 0, 0, 0).is_ok_and(|x0| x0 & 0xffff_ffff != 0xffff_ffff)
}
