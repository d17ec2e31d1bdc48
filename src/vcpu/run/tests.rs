// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The run loop on the fake machine: whole routes, from an exit to the next entry.
//!
//! Syndromes and results are written as numbers, from DDI 0487 (ESR_EL2), IHI 0069 and DEN 0022.
#![forbid(unsafe_code)]

mod bed;
mod cycles;
mod exits;
mod interrupts;
mod kicks;
mod life;
mod listed;
mod platform;
mod races;
mod requests;
mod time;
mod uploads;
