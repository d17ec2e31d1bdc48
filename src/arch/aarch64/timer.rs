// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The counter, and EL2's own physical timer (DDI 0487 D12).
#![forbid(unsafe_code)]

use super::sysreg::{cnthp_cval, set_cnthp_cval};
use aarch64_cpu::registers::{CNTFRQ_EL0, CNTHP_CTL_EL2, CNTPCT_EL0, Readable, Writeable};

/// Returns the physical counter, in ticks. Not ordered against what surrounds it.
#[inline(always)]
pub fn counter() -> u64 {
    CNTPCT_EL0.get()
}

/// Returns the counter's frequency in ticks per second.
pub fn counter_frequency_hz() -> u64 {
    CNTFRQ_EL0.get()
}

/// Raises EL2's physical timer interrupt on this core once the counter reaches `deadline_ticks`,
/// unless it does so before.
///
/// So everybody who waits for something on this core, the console and a VM's devices, has its
/// deadline kept, and the register is the one place that knows the earliest. Who serves the
/// interrupt cancels it and asks all of them again.
pub fn arm_hyp_timer(deadline_ticks: u64) {
    let is_armed = CNTHP_CTL_EL2.is_set(CNTHP_CTL_EL2::ENABLE);
    if is_armed && cnthp_cval() <= deadline_ticks {
        return;
    }
    set_cnthp_cval(deadline_ticks);
    CNTHP_CTL_EL2.write(CNTHP_CTL_EL2::ENABLE::SET);
}

/// Takes back [`arm_hyp_timer`].
pub fn cancel_hyp_timer() {
    CNTHP_CTL_EL2.set(0);
}
