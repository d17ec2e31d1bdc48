// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Drivers of the devices that the hypervisor itself uses.

pub mod bcm2835_pm;
pub mod gic;
pub mod gicv2;
pub mod gicv3;
pub mod uart;
