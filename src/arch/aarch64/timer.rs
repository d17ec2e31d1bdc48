// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The counter, EL2's own physical timer, and the guest's timers where its time is not simply the
//! machine's (DDI 0487 D12).
#![forbid(unsafe_code)]

use super::sysreg::{cnthp_cval, set_cnthctl, set_cnthp_cval, set_cntvoff};
use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::{
    CNTFRQ_EL0, CNTHP_CTL_EL2, CNTP_CTL_EL0, CNTP_CVAL_EL0, CNTPCT_EL0, CNTV_CTL_EL0, Readable,
    Writeable,
};

/// Returns the physical counter, in ticks. Not ordered against what surrounds it.
#[inline(always)]
pub fn counter() -> u64 {
    CNTPCT_EL0.get()
}

/// Returns the physical counter, in ticks, as it is behind all that comes before (DDI 0487
/// D12.1.2).
pub fn counter_now() -> u64 {
    barrier::isb(barrier::SY);
    counter()
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

/// How a guest comes to the physical counter and its timer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PhysicalTime {
    /// It uses the machine's.
    Direct,
    /// Its accesses come to EL2.
    Trapped,
}

/// Sets how this core's guest comes to the physical counter and its timer.
pub fn set_physical_time(way: PhysicalTime) {
    // With E2H = 0: EL1PCTEN and EL1PCEN, which let EL1 and EL0 through to the counter and to the
    // timer (DDI 0487, CNTHCTL_EL2).
    const EL1PCTEN: u64 = 1 << 0;
    const EL1PCEN: u64 = 1 << 1;
    set_cnthctl(if way == PhysicalTime::Direct { EL1PCTEN | EL1PCEN } else { 0 });
}

/// What the controls of both guest timers were.
#[derive(Clone, Copy, Debug)]
pub struct HeldTimers {
    virtual_control: u64,
    physical_control: u64,
}

/// CNTV_CTL_EL0 and CNTP_CTL_EL0: ENABLE and IMASK; ISTATUS is read-only.
const CONTROL: u64 = 3;
const IMASK: u64 = 1 << 1;

/// Keeps both guest timers of this core from raising their interrupts.
pub fn hold_timers() -> HeldTimers {
    let (virtual_control, physical_control) = (CNTV_CTL_EL0.get(), CNTP_CTL_EL0.get());
    CNTV_CTL_EL0.set(virtual_control & CONTROL | IMASK);
    CNTP_CTL_EL0.set(physical_control & CONTROL | IMASK);
    barrier::isb(barrier::SY);
    HeldTimers { virtual_control, physical_control }
}

/// Takes back [`hold_timers`], now that the guest's virtual counter is the physical one less
/// `cntvoff_ticks`.
pub fn release_timers(held: HeldTimers, cntvoff_ticks: u64) {
    set_cntvoff(cntvoff_ticks);
    barrier::isb(barrier::SY);
    CNTV_CTL_EL0.set(held.virtual_control & CONTROL);
    CNTP_CTL_EL0.set(held.physical_control & CONTROL);
    barrier::isb(barrier::SY);
}

/// Returns CNTP_CTL_EL0.
pub fn physical_timer_control() -> u64 {
    CNTP_CTL_EL0.get()
}

/// Sets CNTP_CTL_EL0.
pub fn set_physical_timer_control(value: u64) {
    CNTP_CTL_EL0.set(value & CONTROL);
    barrier::isb(barrier::SY);
}

/// Sets CNTP_CVAL_EL0.
pub fn set_physical_timer_compare(at_ticks: u64) {
    CNTP_CVAL_EL0.set(at_ticks);
    barrier::isb(barrier::SY);
}
