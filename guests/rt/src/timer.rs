// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The generic timers of EL1 (DDI 0487 D12.2), and waiting with an end.

use crate::sysreg::{
    CNTFRQ_EL0, CNTP_CTL_EL0, CNTP_CVAL_EL0, CNTP_TVAL_EL0, CNTPCT_EL0, CNTV_CTL_EL0,
    CNTV_CVAL_EL0, CNTV_TVAL_EL0, CNTVCT_EL0, isb, relax,
};
use crate::tree;

/// CTL: on.
pub const ENABLE: u64 = 1;
/// CTL: no interrupt.
pub const IMASK: u64 = 2;
/// CTL: the condition is met.
pub const ISTATUS: u64 = 4;

/// How long anything may take before it counts as lost.
pub const PATIENCE_MS: u64 = 3000;

/// Returns the virtual count, read after everything before.
#[inline(always)]
#[must_use]
pub fn now() -> u64 {
    isb();
    CNTVCT_EL0::get()
}

/// Returns the ticks in `us` microseconds.
#[must_use]
pub fn ticks(us: u64) -> u64 {
    CNTFRQ_EL0::get() * us / 1_000_000
}

/// Waits until `done`; `false` when that takes longer than `ms` milliseconds.
#[must_use]
pub fn wait_for(ms: u64, mut done: impl FnMut() -> bool) -> bool {
    let start = now();
    let limit = ticks(1000 * ms);
    while !done() {
        if now().wrapping_sub(start) > limit {
            return done();
        }
        relax();
    }
    true
}

/// Lets `us` microseconds pass.
pub fn delay(us: u64) {
    let start = now();
    while now().wrapping_sub(start) < ticks(us) {
        relax();
    }
}

/// A timer that EL1 may use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Timer {
    /// CNTV.
    Virtual,
    /// CNTP.
    Physical,
}

impl Timer {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Virtual, Self::Physical];

    /// Returns its interrupt.
    #[must_use]
    pub fn intid(self) -> u32 {
        match self {
            Self::Virtual => tree::machine().timers[2],
            Self::Physical => tree::machine().timers[1],
        }
    }
    /// Returns its count.
    #[must_use]
    pub fn now(self) -> u64 {
        isb();
        match self {
            Self::Virtual => CNTVCT_EL0::get(),
            Self::Physical => CNTPCT_EL0::get(),
        }
    }
    /// Sets its control register.
    pub fn set_ctl(self, value: u64) {
        match self {
            Self::Virtual => CNTV_CTL_EL0::set(value),
            Self::Physical => CNTP_CTL_EL0::set(value),
        }
        isb();
    }
    /// Returns its control register.
    #[must_use]
    pub fn ctl(self) -> u64 {
        isb();
        match self {
            Self::Virtual => CNTV_CTL_EL0::get(),
            Self::Physical => CNTP_CTL_EL0::get(),
        }
    }
    /// Sets the count at which it fires.
    pub fn set_cval(self, value: u64) {
        match self {
            Self::Virtual => CNTV_CVAL_EL0::set(value),
            Self::Physical => CNTP_CVAL_EL0::set(value),
        }
        isb();
    }
    /// Returns the count at which it fires.
    #[must_use]
    pub fn cval(self) -> u64 {
        match self {
            Self::Virtual => CNTV_CVAL_EL0::get(),
            Self::Physical => CNTP_CVAL_EL0::get(),
        }
    }
    /// Sets the count at which it fires by the signed distance in the low 32 bits.
    pub fn set_tval(self, value: u64) {
        match self {
            Self::Virtual => CNTV_TVAL_EL0::set(value),
            Self::Physical => CNTP_TVAL_EL0::set(value),
        }
        isb();
    }
    /// Returns the low 32 bits of the distance to the count at which it fires.
    #[must_use]
    pub fn tval(self) -> u64 {
        isb();
        match self {
            Self::Virtual => CNTV_TVAL_EL0::get(),
            Self::Physical => CNTP_TVAL_EL0::get(),
        }
    }
}

/// Switches both timers of this vCPU off.
pub fn stop_all() {
    for timer in Timer::ALL {
        timer.set_ctl(0);
    }
}
