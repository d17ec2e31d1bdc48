// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The run loop: the only place that enters a guest.
#![forbid(unsafe_code)]

use super::{Core, Next};
use crate::addr::Address;
use crate::arch::{self, Exit};
use crate::id::VcpuId;
use crate::plan::FaultKind;
use crate::psci::{Others, Start};
use crate::spec::esr::{Cause, RareCause, Syndrome};
use crate::spec::exception::{AbortOn, Exception};
use crate::trace::{self, LastExit, Turns};
use crate::vm::Vm;
use crate::vm::lifecycle::{Change, Entry, Leadership, State};
use crate::vm::load::Damaged;
use core::sync::atomic::Ordering;

impl<'a> Core<'a> {
    /// Serves this core's vCPU for as long as its VM exists: waits until it is turned on, runs it
    /// until it is off.
    pub fn serve(&mut self) {
        arch::activate(self.vm.stage2);
        self.clear_interrupts();
        self.reset_guest();
        loop {
            if self.vcpu.get() == 0
                && let Some(change) = self.vm.lifecycle.take_asked()
            {
                self.lead(change);
            }
            if self.vm.lifecycle.state() == State::Gone {
                return arch::leave();
            }
            let Some(start) = self.take_start() else {
                self.wait();
                continue;
            };
            self.start(start);
            let next = self.run();
            self.leave(next);
        }
    }

    /// Goes outside, and carries out what the guest has asked for.
    fn leave(&mut self, next: Next) {
        // Begun while still inside: it is then about the run of the VM that asked, never about the
        // one after somebody else's reset.
        let mut change = next.change().filter(|change| self.begins(*change));
        if self.stop(next) == Others::None && self.begins(Change::Stop) {
            // Nobody is left who could turn a vCPU on.
            log::info!(target: "vm", "{}: all CPUs are off", self.vm.plan.name);
            change = Some(Change::Stop);
        }
        self.vm.lifecycle.leave();
        if let Some(change) = change {
            self.lead(change);
        }
    }

    /// Takes what this vCPU is to start with and goes inside, if it has been turned on.
    ///
    /// Inside first: while this core is there nobody resets PSCI, so a start that it takes is of
    /// this run of the VM.
    fn take_start(&self) -> Option<Start> {
        if self.vm.lifecycle.enter() == Entry::Refused {
            return None;
        }
        let start = self.vm.psci.started(self.vcpu);
        if start.is_none() {
            self.vm.lifecycle.leave();
        }
        start
    }

    /// Makes this core the leader of a change, unless another core leads one.
    fn begins(&self, change: Change) -> bool {
        self.vm.lifecycle.begin(change) == Leadership::Mine
    }

    /// Runs the guest until its vCPU goes off or its VM changes.
    fn run(&mut self) -> Next {
        if self.vredist.has_work() {
            self.reconcile_until_done();
        }
        loop {
            let exit = arch::enter(&mut self.registers);
            let left_at = arch::counter();
            let all = self.turns;
            let (next, turns) = match exit {
                Exit::Synchronous(syndrome) => self.answer(syndrome),
                Exit::Interrupt => self.serve_interrupt(),
                Exit::InterruptV2 => self.serve_any_interrupt(),
                Exit::SError => (self.pass_serror_on(), &all[trace::FAULT]),
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
        }
    }

    /// Answers what the guest did.
    #[inline(always)]
    fn answer(&mut self, syndrome: Syndrome) -> (Next, &'a Turns) {
        let turns = self.turns;
        match syndrome.cause() {
            Cause::Hvc(immediate) => (self.call(immediate), &turns[trace::CALL]),
            Cause::Smc(immediate) => {
                arch::skip_instruction();
                (self.call(immediate), &turns[trace::CALL])
            }
            Cause::DataAbort(abort) => (self.data_abort(abort), &turns[trace::MMIO]),
            Cause::SystemRegister(access) => {
                (self.system_register(access), &turns[trace::SYSTEM_REGISTER])
            }
            Cause::Rare(syndrome) => (self.answer_rare(syndrome), &turns[trace::FAULT]),
        }
    }

    /// Keeps what has made the guest leave, for who looks into a crash. Before the answer, which
    /// moves the guest on.
    #[cold]
    #[inline(never)]
    pub(super) fn keep_exit(&self) {
        self.counters.last.keep(LastExit {
            syndrome: arch::esr(),
            pc: arch::elr(),
            far: arch::far().get(),
            at_ticks: arch::counter(),
        });
    }

    /// Answers what a guest does by mistake.
    #[cold]
    #[inline(never)]
    fn answer_rare(&mut self, syndrome: Syndrome) -> Next {
        self.keep_exit();
        match syndrome.rare_cause() {
            RareCause::InstructionAbort(abort) => {
                let far = abort.has_address().then(arch::far);
                let on = if abort.is_stage1_walk() { AbortOn::Walk } else { AbortOn::Access };
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
        self.keep_exit();
        arch::inject_serror();
        Next::Enter
    }

    /// Waits for something to do: interrupts are masked, yet end WFI.
    fn wait(&mut self) {
        arch::wait_for_interrupt();
        // The vCPU is off, so the VM's changes are not its business, unless it brings them about:
        // the watchdog of all vCPUs is served by the core of one.
        let change = self.serve_apart().change();
        if let Some(change) = change.filter(|change| self.begins(*change)) {
            self.lead(change);
        }
    }

    /// Sleeps as a machine that is suspended, until the guest has an interrupt to take, whatever
    /// its CPU interface masks; then starts anew, with interrupts as after CPU_OFF and CPU_ON.
    pub(super) fn suspend_system(&mut self, start: Start) -> Next {
        loop {
            self.reconcile_until_done();
            if self.delivery.has_pending(&mut self.list_registers) {
                break;
            }
            arch::wait_for_interrupt();
            let next = self.serve_apart();
            if next != Next::Enter {
                return next;
            }
        }
        self.stop_interrupts(Next::Off);
        self.reset_guest();
        self.start(start);
        Next::Enter
    }

    fn start(&mut self, start: Start) {
        if let Some(kind) = self.hypervisor.fault_at_start {
            fault_on_purpose(kind);
        }
        self.vm.vgic.note_on(self.vcpu);
        arch::start_guest(start.entry, self.vm.counter_offset_ticks.load(Ordering::Relaxed));
        self.set_x0(start.context);
    }

    /// Makes the guest's state what the next start finds: when the vCPU goes off, where nobody
    /// waits for it, and not at CPU_ON.
    fn reset_guest(&mut self) {
        self.registers.x = [0; 32];
        arch::reset_guest(Vm::mpidr_of(self.vcpu));
    }

    /// Takes this core's part of the VM's interrupts down, and forgets the guest's state.
    fn stop(&mut self, next: Next) -> Others {
        self.keep_guest_counts();
        self.stop_interrupts(next);
        self.reset_guest();
        self.vm.psci.turned_off(self.vcpu)
    }

    /// Holds a vCPU of a VM that is frozen where it is, and tells whether it goes on.
    #[cold]
    #[inline(never)]
    pub(super) fn stand_aside(&mut self) -> Next {
        let lifecycle = &self.vm.lifecycle;
        lifecycle.stand_aside();
        while lifecycle.state().is_frozen() {
            arch::wait_for_interrupt();
            self.serve_aside();
        }
        lifecycle.go_on();
        if self.vcpu.get() == 0 {
            self.vm.resume_platform(&self.effects());
        }
        if lifecycle.wants_out() { Next::Out } else { Next::Enter }
    }

    /// Serves an interrupt while this core loads its VM, whose models are reset: the UART's is
    /// about others' output. What is for this VM waits in the models until the guest enables it.
    fn serve_others(&mut self) {
        // The VM is about to change already.
        let _ = self.serve_apart();
    }

    /// Leads the change of the VM that this core has begun.
    fn lead(&mut self, change: Change) {
        let asked_at_ticks = arch::counter();
        let vm = self.vm;
        vm.kick_each(vm.all_vcpus() & !(1 << self.vcpu.get()));
        while !vm.lifecycle.is_empty() {
            arch::relax();
        }
        vm.reset_models(&self.effects());
        let started = match change {
            Change::Start => vm.load(&mut || self.serve_others()),
            Change::Stop => return self.hypervisor.vm_is_off(vm),
        };
        match started {
            Ok(cost) => {
                // Input that was served meanwhile is for nobody.
                vm.reset_serial(&self.effects());
                vm.begin();
                self.hypervisor.vm_has_begun(vm, cost, asked_at_ticks);
                vm.kick(VcpuId::new(0));
            }
            Err(Damaged(ipa)) => {
                let name = &vm.plan.name;
                log::error!(target: "vm", "{name} cannot start: its image at {ipa} has changed");
                self.hypervisor.vm_is_off(vm);
            }
        }
    }
}

/// Shows what a fault of the hypervisor looks like.
#[expect(clippy::panic, reason = "a plan has asked for it, to test the dump")]
fn fault_on_purpose(kind: FaultKind) {
    match kind {
        FaultKind::Panic => panic!("the plan asks for a panic"),
        FaultKind::WriteToText => arch::write_to_text(),
        FaultKind::ExecuteData => arch::execute_data(),
        FaultKind::StackOverflow => {
            arch::overflow_stack(0);
        }
    }
}

#[cfg(test)]
mod tests;
