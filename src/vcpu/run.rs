// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The run loop: the only place that enters a guest.
#![forbid(unsafe_code)]

use super::{Core, Next};
use crate::addr::Address;
use crate::arch::{self, Exit};
use crate::spec::esr::{Cause, RareCause, Syndrome};
use crate::spec::exception::{AbortOn, Exception};
use crate::trace::{self, LastExit, Turns};
use crate::vm::crash::CrashCause;

impl<'a> Core<'a> {
    /// Runs the guest until its vCPU goes off or its VM changes.
    pub(super) fn run(&mut self) -> Next {
        if self.vredist.has_work() {
            self.reconcile_until_done();
        }
        loop {
            let exit = arch::enter(&mut self.registers);
            let left_at = arch::counter();
            let all = self.turns;
            trace::beat(self.turns).at_el2(left_at);
            let (next, turns) = match exit {
                Exit::Synchronous(syndrome) => self.answer(syndrome, left_at),
                Exit::Interrupt => self.serve_interrupt(left_at),
                Exit::InterruptV2 => self.serve_interrupt_v2(left_at),
                Exit::SError => (self.pass_serror_on(left_at), &all[trace::FAULT]),
            };
            let mut exits = &turns.plain;
            if next != Next::Enter {
                exits.count(arch::counter().wrapping_sub(left_at));
                return next;
            }
            if self.vredist.has_work() {
                exits = self.flush(turns, left_at);
            }
            exits.count(arch::counter().wrapping_sub(left_at));
            trace::beat(self.turns).away();
        }
    }

    /// Answers what the guest did.
    #[inline(always)]
    fn answer(&mut self, syndrome: Syndrome, left_at: u64) -> (Next, &'a Turns) {
        let turns = self.turns;
        let exit = |detail| LastExit {
            syndrome: syndrome.get(),
            pc: arch::elr(),
            at_ticks: left_at,
            detail,
        };
        match syndrome.cause() {
            Cause::Hvc(immediate) => {
                self.last.answered.keep(exit(self.x(0)));
                (self.call(immediate), &turns[trace::CALL])
            }
            Cause::Smc(immediate) => {
                self.last.answered.keep(exit(self.x(0)));
                arch::skip_instruction();
                (self.call(immediate), &turns[trace::CALL])
            }
            Cause::DataAbort(abort) => (self.data_abort(abort, exit), &turns[trace::MMIO]),
            Cause::SystemRegister(access) => {
                (self.system_register(access, left_at), &turns[trace::SYSTEM_REGISTER])
            }
            Cause::Rare(syndrome) => (self.answer_rare(syndrome, left_at), &turns[trace::FAULT]),
        }
    }

    /// Keeps a fault, for who looks into a crash. Before the answer, which moves the guest on.
    #[cold]
    #[inline(never)]
    pub(super) fn keep_fault(&mut self, left_at: u64) {
        self.last.faults.keep(LastExit {
            syndrome: arch::esr(),
            pc: arch::elr(),
            at_ticks: left_at,
            detail: arch::far().get(),
        });
    }

    /// Answers what a guest does by mistake.
    #[cold]
    #[inline(never)]
    fn answer_rare(&mut self, syndrome: Syndrome, left_at: u64) -> Next {
        self.keep_fault(left_at);
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
    pub(super) fn pass_serror_on(&mut self, left_at: u64) -> Next {
        self.keep_fault(left_at);
        arch::inject_serror();
        Next::Enter
    }
}

#[cfg(test)]
mod tests;
