// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What goes wrong on purpose when a vCPU starts, where the plan asks for it: tests show with it
//! what becomes of that, and of everybody else.
#![forbid(unsafe_code)]

use super::Core;
use crate::arch::{self, Exit};
use crate::id::VcpuId;
use crate::plan::{FaultKind, FaultPlan};
use crate::vm::Vm;
use core::sync::atomic::{AtomicU8, Ordering};

/// What goes wrong on purpose, once.
#[derive(Debug)]
pub struct FaultAtStart {
    plan: FaultPlan,
    /// How many starts have gone well.
    starts: AtomicU8,
}

impl FaultAtStart {
    /// Has something go wrong as planned.
    #[must_use]
    pub const fn new(plan: FaultPlan) -> Self {
        Self { plan, starts: AtomicU8::new(0) }
    }

    /// Counts a start of a vCPU, and returns what goes wrong with this one.
    fn at_start(&self, vm: &Vm, vcpu: VcpuId) -> Option<FaultKind> {
        let plan = &self.plan;
        let is_it = plan.vm.is_empty() || plan.vm == vm.plan.name;
        if !is_it || plan.vcpu != vcpu.get() {
            return None;
        }
        let next = |starts: u8| starts.checked_add(1);
        let starts = self.starts.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        (starts == Ok(plan.after)).then_some(plan.kind)
    }
}

impl Core<'_> {
    /// Does what the plan asks for at the start of this vCPU, whose guest is about to begin.
    #[cold]
    #[inline(never)]
    #[expect(clippy::panic, reason = "a plan has asked for it, to test the dump")]
    pub(super) fn fault_on_purpose(&mut self, fault: &FaultAtStart) {
        let Some(kind) = fault.at_start(self.vm, self.vcpu) else { return };
        let console = &self.hypervisor.console;
        match kind {
            FaultKind::GuestSError => {
                if arch::serror_instead_of_entry(&mut self.registers) == Exit::SError {
                    let _ = self.pass_serror_on(arch::counter());
                }
                return;
            }
            FaultKind::Hang => arch::halt(),
            FaultKind::Stall => return stall(),
            _ => {}
        }
        // The dump needs none of the locks that a core may hold which faults.
        console.keep_port();
        match kind {
            FaultKind::Panic => panic!("the plan asks for a panic"),
            FaultKind::WriteToText => arch::write_to_text(),
            FaultKind::ExecuteData => arch::execute_data(),
            FaultKind::StackOverflow => {
                arch::overflow_stack(0);
            }
            FaultKind::SError => arch::take_serror(),
            FaultKind::Logged => {
                log::error!(target: "vm", "hypervisor fault");
                console.send_all();
            }
            FaultKind::GuestSError | FaultKind::Hang | FaultKind::Stall => {}
        }
    }
}

/// Takes half a second, and looks for nothing.
fn stall() {
    let ticks = arch::counter_frequency_hz() / 2;
    let begun = arch::counter();
    while arch::counter().wrapping_sub(begun) < ticks {
        arch::relax();
    }
}
