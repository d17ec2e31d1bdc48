// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A guest's timers are held with it. Where its time stops meanwhile its physical counter and timer
//! are trapped (CNTHCTL_EL2) and answered here (DDI 0487 D12).
//!
//! That physical timer stays the machine's own, which fires at what the guest has asked for later
//! by the offset of its time; so its interrupt needs nothing else. What EL0 may reach the machine
//! knows: CNTKCTL_EL1 goes before EL2's traps.
#![forbid(unsafe_code)]

use super::Core;
use crate::arch::{self, HeldTimers, PhysicalTime};
use crate::spec::esr::SystemRegister;

const CNTPCT_EL0: SystemRegister = SystemRegister::new(3, 3, 14, 0, 1);
const CNTPCTSS_EL0: SystemRegister = SystemRegister::new(3, 3, 14, 0, 5);
const CNTP_TVAL_EL0: SystemRegister = SystemRegister::new(3, 3, 14, 2, 0);
const CNTP_CTL_EL0: SystemRegister = SystemRegister::new(3, 3, 14, 2, 1);
const CNTP_CVAL_EL0: SystemRegister = SystemRegister::new(3, 3, 14, 2, 2);

impl Core<'_> {
    /// Says how this core's guest comes to the physical counter and its timer.
    pub(super) fn set_up_time(&self) {
        let way = if self.vm.stops_time() { PhysicalTime::Trapped } else { PhysicalTime::Direct };
        arch::set_physical_time(way);
    }

    /// Lets the guest's timers, which were held, go on at its time as it is now.
    pub(super) fn release_timers(&self, held: HeldTimers) {
        if self.vm.stops_time() {
            self.arm_physical_timer();
        }
        arch::release_timers(held, self.vm.clock.offset_ticks());
    }

    /// Reads a register of physical time; `None` where `id` is another one.
    pub(super) fn read_time(&self, id: SystemRegister) -> Option<u64> {
        Some(match id {
            CNTPCT_EL0 | CNTPCTSS_EL0 => self.now_ticks(),
            CNTP_TVAL_EL0 => {
                self.physical_compare.wrapping_sub(self.now_ticks()) & u64::from(u32::MAX)
            }
            CNTP_CTL_EL0 => arch::physical_timer_control(),
            CNTP_CVAL_EL0 => self.physical_compare,
            _ => return None,
        })
    }

    /// Writes a register of the physical timer; `None` where `id` is another one.
    pub(super) fn write_time(&mut self, id: SystemRegister, value: u64) -> Option<()> {
        match id {
            CNTP_TVAL_EL0 => {
                // Signed, 32 bits.
                let [b0, b1, b2, b3, ..] = value.to_le_bytes();
                let ticks = i64::from(i32::from_le_bytes([b0, b1, b2, b3]));
                self.set_physical_compare(self.now_ticks().wrapping_add_signed(ticks));
            }
            CNTP_CVAL_EL0 => self.set_physical_compare(value),
            CNTP_CTL_EL0 => arch::set_physical_timer_control(value),
            _ => return None,
        }
        Some(())
    }

    fn set_physical_compare(&mut self, compare: u64) {
        self.physical_compare = compare;
        self.arm_physical_timer();
    }

    fn arm_physical_timer(&self) {
        // What never comes must not come at once.
        let at = self.physical_compare.saturating_add(self.vm.clock.offset_ticks());
        arch::set_physical_timer_compare(at);
    }

    fn now_ticks(&self) -> u64 {
        self.vm.clock.at(arch::counter())
    }
}
