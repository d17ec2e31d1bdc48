// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Encodings of the specifications, without state: what the words on the wire mean.
#![forbid(unsafe_code)]

pub mod bundle;
pub mod dtb;
pub mod errata;
pub mod esr;
pub mod exception;
pub mod gic;
pub mod gicv2;
pub mod idregs;
pub mod its;
pub mod pl011;
pub mod psci;
pub mod size;
pub mod smccc;
pub mod vmsa;
