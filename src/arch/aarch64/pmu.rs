// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The event counters that EL2 keeps for itself: what the guest of this core has executed.
//!
//! MDCR_EL2.HPMN leaves the first counters to the guest, which sees no others; HPME runs the rest,
//! whatever the guest does with its own. They count at EL1 and EL0 alone, since NSH is 0 (DDI 0487
//! D13.4 and D24.5). A counter of 32 bits interrupts when it overflows; those of FEAT_PMUv3p5 have
//! 64 and do not.
#![forbid(unsafe_code)]

use super::el2::features;
use super::sysreg::{
    read_pmceid0, read_pmintenset, read_pmovsclr, read_pmselr, read_pmxevcntr, set_pmcntenclr,
    set_pmcntenset, set_pmintenclr, set_pmintenset, set_pmovsclr, set_pmselr, set_pmxevcntr,
    set_pmxevtyper,
};
use aarch64_cpu::asm::barrier;

/// What is counted, in the order of the counters: CPU_CYCLES and INST_RETIRED.
const EVENTS: [u64; 2] = [0x11, 0x08];
/// PMCCNTR_EL0 in the registers of one bit for each counter: it is the guest's.
const CYCLE_COUNTER: u64 = 1 << 31;

/// What a guest has executed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct GuestCounts {
    /// Cycles, 0 where this core does not count them.
    pub cycles: u64,
    /// Instructions, 0 where this core does not count them.
    pub instructions: u64,
}

/// Whose overflow an interrupt of the PMU is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Overflow {
    /// EL2's alone.
    Own,
    /// The guest's, or nobody's any more.
    Guest,
}

/// Returns the guest's counters, as bits.
pub(super) fn guest_mask() -> u64 {
    CYCLE_COUNTER | ((1 << features().guest_event_counter_count()) - 1)
}

/// Returns EL2's counters with their events, as many as there are.
fn own() -> impl Iterator<Item = (u64, u64)> {
    let features = features();
    (features.guest_event_counter_count()..features.event_counter_count()).zip(EVENTS)
}

fn own_mask() -> u64 {
    own().fold(0, |mask, (counter, _)| mask | 1 << counter)
}

/// Makes EL2's counters count from 0, once MDCR_EL2 says which these are.
pub(super) fn set_up() {
    let mask = own_mask();
    if mask == 0 {
        return;
    }
    set_pmcntenclr(mask);
    set_pmintenclr(mask);
    set_pmovsclr(mask);
    let has = read_pmceid0();
    let mut counted = 0;
    for (counter, event) in own() {
        set_pmselr(counter);
        barrier::isb(barrier::SY);
        set_pmxevtyper(event);
        set_pmxevcntr(0);
        if has >> event & 1 != 0 {
            counted |= 1 << counter;
        }
    }
    if !features().has_long_event_counters() {
        set_pmintenset(counted);
    }
    set_pmcntenset(counted);
    barrier::isb(barrier::SY);
}

/// Returns what the guest has executed since the last time on this core, and starts anew.
pub fn take_guest_counts() -> GuestCounts {
    let mut counts = [0; EVENTS.len()];
    let mask = own_mask();
    if mask != 0 {
        let guests_choice = read_pmselr();
        for (count, (counter, _)) in counts.iter_mut().zip(own()) {
            set_pmselr(counter);
            barrier::isb(barrier::SY);
            *count = read_pmxevcntr();
            set_pmxevcntr(0);
        }
        let overflown = read_pmovsclr() & mask;
        set_pmovsclr(overflown);
        set_pmselr(guests_choice);
        barrier::isb(barrier::SY);
        if !features().has_long_event_counters() {
            for (count, (counter, _)) in counts.iter_mut().zip(own()) {
                *count += (overflown >> counter & 1) << 32;
            }
        }
    }
    let [cycles, instructions] = counts;
    GuestCounts { cycles, instructions }
}

/// Returns whose overflow the PMU's interrupt is about.
pub fn pmu_overflow() -> Overflow {
    let overflown = read_pmovsclr() & read_pmintenset();
    let is_own = overflown & own_mask() != 0 && overflown & guest_mask() == 0;
    if is_own { Overflow::Own } else { Overflow::Guest }
}
