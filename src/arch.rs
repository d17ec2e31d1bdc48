// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The machine: one interface, two implementations.
//!
//! `aarch64` is the real one. `fake` is an ordinary program's: it scripts exits and records what
//! the hypervisor does to the machine, so that all else builds and is tested on the developer's
//! computer. The machine never calls upward.

#[cfg(target_os = "none")]
mod aarch64;
#[cfg(target_os = "none")]
pub use aarch64::*;

#[cfg(not(target_os = "none"))]
pub mod fake;
#[cfg(not(target_os = "none"))]
pub use fake::machine::*;
