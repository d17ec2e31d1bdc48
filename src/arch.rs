// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The machine: one interface, two implementations.
//!
//! `aarch64` is the real one. `fake` is an ordinary program's: it scripts exits and records what
//! the hypervisor does to the machine, so that all else builds and is tested on the developer's
//! computer. The machine never calls upward.

use crate::spec::esr::Syndrome;

#[cfg(target_os = "none")]
mod aarch64;
#[cfg(target_os = "none")]
pub use aarch64::*;

#[cfg(not(target_os = "none"))]
pub mod fake;
#[cfg(not(target_os = "none"))]
pub use fake::machine::*;

/// How the guest left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// By a synchronous exception.
    Synchronous(Syndrome),
    /// By a physical interrupt, on a machine with a GICv3.
    Interrupt,
    /// By an SError.
    SError,
    /// By a physical interrupt, on a machine with a GICv2.
    InterruptV2,
}

/// Where a guest is that was held, and what its system registers hold, in the order of
/// [`NAMES`](Self::NAMES).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GuestState(pub [u64; 16]);

impl GuestState {
    /// The names: where it goes on and its PSTATE, then system registers.
    pub const NAMES: [&str; 16] = [
        "pc",
        "pstate",
        "sp_el0",
        "sp_el1",
        "sctlr_el1",
        "tcr_el1",
        "ttbr0_el1",
        "ttbr1_el1",
        "mair_el1",
        "vbar_el1",
        "esr_el1",
        "far_el1",
        "elr_el1",
        "spsr_el1",
        "contextidr_el1",
        "tpidr_el1",
    ];
}
