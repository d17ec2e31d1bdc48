// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A core that no VM has: it sleeps, and serves the interrupts that are the hypervisor's own.
#![forbid(unsafe_code)]

use super::{HALT, HYP_TIMER};
use crate::arch;
use crate::hypervisor::Hypervisor;

/// Serves the hypervisor's own interrupts for good.
pub fn idle(hypervisor: &Hypervisor) -> ! {
    loop {
        arch::wait_for_interrupt();
        while let Some(pintid) = arch::take_interrupt() {
            arch::deactivate(pintid);
            match pintid {
                HALT => arch::halt(),
                HYP_TIMER => hypervisor.serve_timer(),
                _ => hypervisor.serve_own(pintid),
            }
        }
    }
}
