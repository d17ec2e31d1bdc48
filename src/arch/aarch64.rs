// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The real machine: 64-bit Arm at EL2 without VHE (DDI 0487).
//!
//! Each file owns one block of the architecture. What is public here is what the fake machine
//! offers too.

mod cache;
mod debug;
mod el2;
mod fault;
mod gic;
mod guest;
mod heap;
mod layout;
mod mmu;
mod pmu;
mod smc;
mod stage2;
mod start;
mod sysreg;
mod timer;
mod vectors;

pub use cache::{clean_invalidate, copy, crc32c, publish_code, read_bytes, with_bytes, zero};
pub use el2::{
    CoreFeatures, CoreRefusal, Mitigations, aidr, current_level, features, midr, revidr,
    set_up_core, set_vectors, this_mpidr,
};
pub use fault::{execute_data, overflow_stack, panic, take_serror, write_to_text};
pub use gic::{
    HALT_SGI, ListRegisterFile, SgiTarget, deactivate, deactivate_v3, enable_cpu_interface,
    reset_virtual_interface, send_sgi, take_interrupt, take_interrupt_v3, use_gicv2,
};
pub use guest::{
    GuestRegisters, elr, esr, far, guest_state, hpfar, id_register, inject, inject_serror,
    is_at_own_vector, reset_guest, skip_instruction, start_guest, stop_timers,
};
pub use heap::{Heap, heap_bytes};
pub use layout::{Image, image};
pub use mmu::{
    HypMapError, HypMemory, boot_map, map_constant, map_hyp, map_memory, regime, tree_size,
    unmap_hyp, unmap_memory, unmapped,
};
pub use pmu::{GuestCounts, Overflow, pmu_overflow, take_guest_counts};
pub use smc::{HostPsci, mitigate};
pub use stage2::{HeapTables, Stage2Registers, Tlb, activate, forget_all_vmids, leave};
pub use start::{SecondaryBoot, publish_to_uncached, release_from_spin_table, secondary_entry};
pub use timer::{
    HeldTimers, PhysicalTime, arm_hyp_timer, cancel_hyp_timer, counter, counter_frequency_hz,
    counter_now, hold_timers, physical_timer_control, release_timers, set_physical_time,
    set_physical_timer_compare, set_physical_timer_control,
};
pub use vectors::{enter, serror_instead_of_entry};

use aarch64_cpu::asm::{self, barrier};

/// Waits a moment in a spin loop.
#[inline(always)]
#[expect(unsafe_code, reason = "an instruction without effect on memory")]
pub fn relax() {
    // SAFETY: YIELD is a hint. `core::hint::spin_loop` is an ISB on this target.
    unsafe { core::arch::asm!("yield", options(nomem, nostack, preserves_flags)) };
}

/// Waits until an interrupt is pending; also one that is masked ends the wait.
pub fn wait_for_interrupt() {
    barrier::dsb(barrier::SY);
    asm::wfi();
}

/// Returns whether no list register holds an interrupt.
#[must_use]
pub fn list_registers_are_empty(used: &ListRegisterFile) -> bool {
    let all = u32::MAX >> (32 - used.count().clamp(1, 16));
    crate::gic::ListRegisters::empty(used) & all == all
}

/// Returns what this core still has of a guest, a bit each: from bit 0 on a virtual timer, a
/// physical one, stage 2, list registers.
#[must_use]
pub fn residue() -> u32 {
    use aarch64_cpu::registers::{CNTP_CTL_EL0, CNTV_CTL_EL0, Readable, VTTBR_EL2};
    let is_listed = !list_registers_are_empty(&ListRegisterFile::new(None));
    let timers = CNTV_CTL_EL0.get() & 1 | (CNTP_CTL_EL0.get() & 1) << 1;
    let rest = u32::from(VTTBR_EL2.get() != 0) << 2 | u32::from(is_listed) << 3;
    u32::try_from(timers).unwrap_or(0) | rest
}

/// Waits until another core calls [`send_event`], or for no reason.
pub fn wait_for_event() {
    asm::wfe();
}

/// Wakes all cores that wait for an event; what was written before is seen by then.
pub fn send_event() {
    barrier::dsb(barrier::ISHST);
    asm::sev();
}

/// Stops this core for good.
pub fn halt() -> ! {
    loop {
        asm::wfe();
    }
}
