// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A guest's timers on a core of the fake machine. They fire when a test says so.
#![forbid(unsafe_code)]

use super::machine::with;

/// The registers of a core's guest timers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct GuestTimers {
    /// CNTVOFF_EL2.
    pub cntvoff_ticks: u64,
    /// CNTV_CTL_EL0.
    pub virtual_control: u64,
    /// CNTP_CTL_EL0.
    pub physical_control: u64,
    /// CNTP_CVAL_EL0.
    pub physical_compare: u64,
    /// How the guest comes to the physical ones; `None` until somebody has said so.
    pub way: Option<PhysicalTime>,
}

/// How a guest comes to the physical counter and its timer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PhysicalTime {
    /// It uses the machine's.
    Direct,
    /// Its accesses come to EL2.
    Trapped,
}

/// Sets how the guest comes to the physical counter and its timer.
pub fn set_physical_time(way: PhysicalTime) {
    with(|core| core.timers.way = Some(way));
}

/// What the controls of both guest timers were.
#[derive(Clone, Copy, Debug)]
pub struct HeldTimers(u64, u64);

/// CNTV_CTL_EL0.IMASK and CNTP_CTL_EL0.IMASK.
const IMASK: u64 = 2;

/// Keeps both timers from raising their interrupts.
pub fn hold_timers() -> HeldTimers {
    with(|core| {
        let timers = &mut core.timers;
        let held = HeldTimers(timers.virtual_control, timers.physical_control);
        timers.virtual_control |= IMASK;
        timers.physical_control |= IMASK;
        held
    })
}
/// Takes that back.
pub fn release_timers(held: HeldTimers, cntvoff_ticks: u64) {
    with(|core| {
        core.timers.cntvoff_ticks = cntvoff_ticks;
        (core.timers.virtual_control, core.timers.physical_control) = (held.0, held.1);
    });
}
/// Returns CNTP_CTL_EL0: ISTATUS is set when the timer is on and the counter has come to it.
pub fn physical_timer_control() -> u64 {
    with(|core| {
        let control = core.timers.physical_control;
        let is_met = control & 1 != 0 && core.counter >= core.timers.physical_compare;
        control | u64::from(is_met) << 2
    })
}
/// Sets CNTP_CTL_EL0.
pub fn set_physical_timer_control(value: u64) {
    with(|core| core.timers.physical_control = value & 3);
}
/// Sets CNTP_CVAL_EL0.
pub fn set_physical_timer_compare(at_ticks: u64) {
    with(|core| core.timers.physical_compare = at_ticks);
}
