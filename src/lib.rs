// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Cofferdam: a type-1 partitioning hypervisor for 64-bit Arm.
//!
//! The rooms, from the ground up (`tests/layering.rs` holds the order):
//!
//! - L0, vocabulary: [`addr`], [`bits`], [`heap`], [`id`], [`sort`], [`spec`];
//! - L1, the machine and the only `unsafe`: [`arch`], [`mmio`], [`sync`], [`drivers`];
//! - L2, models, plain state machines: [`memory`], [`gic`], [`psci`], [`smccc`], [`console`],
//!   [`devices`], [`trace`], [`plan`];
//!   [`trace`], [`plan`], [`control`];
//! - L3, composition: [`vm`], [`vcpu`], [`hypervisor`], [`boot`].
#![no_std]
#![warn(clippy::indexing_slicing)]
#![cfg_attr(test, allow(clippy::indexing_slicing))]

#[cfg(any(test, not(target_os = "none")))]
extern crate std;

extern crate alloc;

pub mod addr;
pub mod bits;
pub mod heap;
pub mod id;
pub mod sort;
pub mod spec;

pub mod arch;
pub mod drivers;
pub mod mmio;
pub mod sync;

pub mod console;
pub mod control;
pub mod devices;
pub mod gic;
pub mod memory;
pub mod plan;
pub mod psci;
pub mod smccc;
pub mod trace;

pub mod boot;
pub mod hypervisor;
pub mod vcpu;
pub mod vm;
