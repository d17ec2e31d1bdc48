// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Running code at EL0, until its first exception.
#![expect(unsafe_code, reason = "leaves for EL0 and comes back")]

use crate::cpu;
use crate::exception::Exception;
use core::arch::global_asm;

global_asm!(
    ".text",
    // el0_enter(entry, x0, x1, spsr)
    "el0_enter:",
    "stp x29, x30, [sp, #-96]!",
    "stp x19, x20, [sp, #16]",
    "stp x21, x22, [sp, #32]",
    "stp x23, x24, [sp, #48]",
    "stp x25, x26, [sp, #64]",
    "stp x27, x28, [sp, #80]",
    "msr elr_el1, x0",
    "msr spsr_el1, x3",
    "mov x0, x1",
    "mov x1, x2",
    "eret",
    "return_from_el0:",
    "ldp x19, x20, [sp, #16]",
    "ldp x21, x22, [sp, #32]",
    "ldp x23, x24, [sp, #48]",
    "ldp x25, x26, [sp, #64]",
    "ldp x27, x28, [sp, #80]",
    "ldp x29, x30, [sp], #96",
    "ret",
);

unsafe extern "C" {
    fn el0_enter(entry: u64, x0: u64, x1: u64, spsr: u64);
}

/// PSTATE for EL0 with everything masked and N and C set, so that a test sees flags kept.
pub const SPSR: u64 = 0xa000_03c0;

/// Runs the code at `entry` at EL0 with two arguments until it takes an exception, which is
/// returned with x0 to x3.
///
/// The code at `entry` must be mapped for EL0 (see [`crate::code::el0_address`]) and has no stack.
pub fn run(entry: u64, x0: u64, x1: u64) -> (Option<Exception>, [u64; 4]) {
    let guard = &cpu::this().guard;
    guard.expect_el0_exit();
    // SAFETY: code at EL0 reaches only what is mapped for EL0, none of which Rust code owns; the
    // assembly keeps the registers that the call standard asks for.
    unsafe { el0_enter(entry, x0, x1, SPSR) };
    guard.el0_exit()
}
