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
