// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The run loop: the only place that enters a guest.
#![forbid(unsafe_code)]

use super::{Core, Next};
use crate::arch::{self, Exit};
use crate::spec::esr::{Cause, RareCause, Syndrome};
use crate::spec::exception::{AbortOn, Exception};
use crate::trace::ExitReason;
use crate::vm::crash::CrashCause;

impl Core<'_> {
    /// Runs the guest until its vCPU goes off or its VM changes.
    pub(super) fn run(&mut self) -> Next {
        loop {
            self.flush();
            let exit = arch::enter(&mut self.registers);
            let left_at = arch::counter();
            let (next, reason) = match exit {
                Exit::Synchronous(syndrome) => self.answer(syndrome),
                Exit::Interrupt => (self.serve_interrupt(), ExitReason::Interrupt),
                Exit::InterruptV2 => (self.serve_any_interrupt(), ExitReason::Interrupt),
                Exit::SError => (self.pass_serror_on(), ExitReason::Fault),
            };
            self.counters.count(reason, arch::counter().wrapping_sub(left_at));
            if next != Next::Enter {
                return next;
            }
        }
    }

    /// Answers what the guest did.
    #[inline(always)]
    fn answer(&mut self, syndrome: Syndrome) -> (Next, ExitReason) {
        match syndrome.cause() {
            Cause::Hvc(immediate) => (self.call(immediate), ExitReason::Call),
            Cause::Smc(immediate) => {
                arch::skip_instruction();
                (self.call(immediate), ExitReason::Call)
            }
            Cause::DataAbort(abort) => (self.data_abort(abort), ExitReason::Mmio),
            Cause::SystemRegister(access) => {
                (self.system_register(access), ExitReason::SystemRegister)
            }
            Cause::Rare(syndrome) => (self.answer_rare(syndrome), ExitReason::Fault),
        }
    }

    /// Answers what a guest does by mistake.
    #[cold]
    #[inline(never)]
    fn answer_rare(&mut self, syndrome: Syndrome) -> Next {
        match syndrome.rare_cause() {
            RareCause::InstructionAbort(abort) => {
                let far = abort.has_address().then(arch::far);
                let on = if abort.is_stage1_walk() { AbortOn::Walk } else { AbortOn::Access };
                if arch::is_at_own_vector() {
                    // It would be taken to the same place for ever.
                    return self.crash(CrashCause::NoVector);
                }
                arch::inject(Exception::InstructionAbort { far, on });
            }
            // Not trapped here; one that comes all the same is over at once.
            RareCause::Wait => arch::skip_instruction(),
            RareCause::Undefined => return self.inject_undefined(),
        }
        Next::Enter
    }

    /// An SError while the guest ran is the guest's (traps T62).
    fn pass_serror_on(&mut self) -> Next {
        arch::inject_serror();
        Next::Enter
    }

    /// Brings deliverable interrupts to the list registers.
    #[inline(always)]
    fn flush(&mut self) {
        if self.vredist.has_work() {
            self.flush_work();
        }
    }
}

#[cfg(test)]
mod tests;
