// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Interrupts taken by a vCPU: counted by default, or given to a test's own handler.
#![expect(unsafe_code, reason = "calls a handler that is kept as a pointer")]

use crate::cpu::{self, CPUS_MAX, PerCpu};
use crate::cpu_interface;
pub use crate::cpu_interface::{deactivate, end};
use crate::sysreg::{DAIF, ISR_EL1, dsb, isb};
use crate::timer::{ENABLE, IMASK, Timer};
use crate::{console, tree};
use core::mem::transmute;
use core::ptr::null_mut;
use core::sync::atomic::{AtomicU32, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};

/// What acknowledging returns when there is nothing to acknowledge (IHI 0069 2.2.1).
pub const SPURIOUS: u32 = 1023;
/// INTIDs from here on are special.
const SPECIAL: u32 = 1020;

/// How often each vCPU has taken each interrupt.
static COUNTS: [[AtomicU32; SPECIAL as usize]; CPUS_MAX] =
    [const { [const { AtomicU32::new(0) }; SPECIAL as usize] }; CPUS_MAX];

/// What a test runs instead of counting.
pub type Handler = fn();

/// Counts interrupts from now on, starting at none.
pub fn reset() {
    cpu::this().irq_handler.store(null_mut(), Relaxed);
    if let Some(counts) = COUNTS.get(cpu::index()) {
        for count in counts {
            count.store(0, Relaxed);
        }
    }
}

/// Gives this vCPU's interrupts to `handler`, which acknowledges them.
pub fn handle_with(handler: Handler) {
    cpu::this().irq_handler.store(handler as *mut (), Release);
}

/// Returns how often vCPU `cpu` has counted `intid`.
#[must_use]
pub fn count(cpu: usize, intid: u32) -> u32 {
    let Ok(intid) = usize::try_from(intid) else { return 0 };
    COUNTS.get(cpu).and_then(|counts| counts.get(intid)).map_or(0, |count| count.load(Acquire))
}

/// Returns how many interrupts vCPU `cpu` has counted.
#[must_use]
pub fn total(cpu: usize) -> u32 {
    COUNTS.get(cpu).map_or(0, |counts| counts.iter().map(|count| count.load(Acquire)).sum())
}

/// Lets this vCPU take interrupts.
pub fn unmask() {
    DAIF::set(DAIF::get() & !(1 << 7));
    isb();
}

/// Stops this vCPU from taking interrupts.
pub fn mask() {
    DAIF::set(DAIF::get() | 1 << 7);
    isb();
}

/// Lets this vCPU take the SError that is pending for it, if any.
pub fn take_pending_serror() {
    let masked = DAIF::get();
    DAIF::set(masked & !(1 << 8));
    isb();
    DAIF::set(masked | 1 << 8);
    isb();
}

/// Lets this vCPU take the interrupts that are pending for it.
pub fn take_pending() {
    unmask();
    mask();
}

/// Returns whether an interrupt waits for this vCPU, masked or not.
#[must_use]
pub fn is_waiting() -> bool {
    isb();
    ISR_EL1::get() & 1 << 7 != 0
}

/// Acknowledges the interrupt with the highest priority; [`SPURIOUS`] when there is none.
pub fn acknowledge() -> u32 {
    cpu_interface::acknowledge() & 0xff_ffff
}

pub(crate) fn take(this: &PerCpu) {
    let handler = this.irq_handler.load(Acquire);
    if handler.is_null() {
        count_one();
    } else {
        // SAFETY: only `handle_with` stores to the field, and it stores a `Handler`.
        let handler = unsafe { transmute::<*mut (), Handler>(handler) };
        handler();
    }
}

/// Acknowledges, quiets its source, counts and ends one interrupt.
pub fn count_one() {
    let intid = acknowledge();
    let Some(count) = usize::try_from(intid).ok().and_then(|n| COUNTS.get(cpu::index())?.get(n))
    else {
        return;
    };
    quiet(intid);
    count.store(count.load(Relaxed).wrapping_add(1), Release);
    end(intid);
    if cpu_interface::eoi_mode() != 0 {
        deactivate(intid);
    }
}

/// Takes back the cause of a level-triggered interrupt.
pub fn quiet(intid: u32) {
    let machine = tree::machine();
    for timer in Timer::ALL {
        if intid == timer.intid() {
            timer.set_ctl(ENABLE | IMASK);
        }
    }
    if intid == machine.uart_intid {
        machine.uart.write32(console::reg::IMSC, 0);
        dsb();
    }
}
