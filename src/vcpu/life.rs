// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A vCPU's life on its core: it is turned on, runs, is held, goes off; and the VM's, which one of
//! its cores leads.
#![forbid(unsafe_code)]

use super::interrupt::{HYP_TIMER, PHYSICAL_TIMER, VIRTUAL_TIMER};
use super::{Core, GO_ON, KICK, Next};
use crate::arch;
use crate::hypervisor::MachineEnd;
use crate::id::{Pintid, VcpuId};
use crate::psci::{Others, Start};
use crate::trace::{self, LastExits};
use crate::vm::Vm;
use crate::vm::crash::{Crash, CrashCause, Frozen};
use crate::vm::fate::Verdict;
use crate::vm::lifecycle::{Change, Entry, Leadership, State};
use crate::vm::load::Damaged;

/// How many interrupts a core serves at once between two pieces of long work.
pub(super) const ASIDE_MAX: u32 = 4;

impl Core<'_> {
    /// Serves this core's vCPU for as long as its VM exists: waits until it is turned on, runs it
    /// until it is off.
    pub fn serve(&mut self) {
        self.beat();
        arch::activate(self.vm.stage2);
        self.set_up_time();
        self.clear_interrupts();
        self.reset_guest();
        loop {
            self.look_after_vm();
            if self.vcpu.get() == 0
                && let Some(change) = self.vm.lifecycle.take_asked()
            {
                self.lead(change);
                // What came meanwhile was only taken in.
                continue;
            }
            if self.vm.lifecycle.state() == State::Gone {
                arch::leave();
                return trace::beat(self.turns).away();
            }
            let Some(start) = self.take_start() else {
                if self.vcpu.get() != 0 && self.vm.lifecycle.state().is_frozen() {
                    // Who looks after it may have seen this core inside, if only on its way out.
                    self.vm.kick(VcpuId::new(0));
                }
                self.wait();
                continue;
            };
            self.start(start);
            let next = self.run();
            self.leave(next);
        }
    }

    /// Goes outside, and carries out what the guest has asked for.
    #[inline(never)]
    pub(super) fn leave(&mut self, next: Next) {
        self.looks.begin();
        // Begun while still inside: it is then about the run of the VM that asked, never about the
        // one after somebody else's reset.
        let mut change = next.change();
        if change.is_some_and(|change| !self.begins(change)) {
            change = None;
        }
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

    /// Makes this core, which is inside, the leader of a change, unless another core leads one.
    /// What a guest does for its own end is not lost because somebody holds it just then.
    fn begins(&mut self, change: Change) -> bool {
        let lifecycle = &self.vm.lifecycle;
        loop {
            if lifecycle.begin(change) == Leadership::Mine {
                return true;
            }
            if lifecycle.has_ended() || self.stand_aside() == Next::Out {
                return false;
            }
        }
    }

    /// Sleeps until there is an interrupt: masked, they end WFI all the same.
    #[inline(never)]
    pub(super) fn sleep(&mut self) {
        self.beat();
        trace::beat(self.turns).away();
        arch::wait_for_interrupt();
        self.looks.begin();
        self.beat();
    }

    /// Says that this core looks for interrupts now.
    #[inline(never)]
    pub(super) fn beat(&mut self) {
        trace::beat(self.turns).at_el2(self.looks.look());
    }

    /// Waits for something to do: interrupts are masked, yet end WFI.
    fn wait(&mut self) {
        self.sleep();
        self.serve_aside();
        if let Some(cause) = self.due_crash() {
            // The vCPU is off: nothing of it is to be held. Others that are faster are right.
            let _ = self.freeze(cause);
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
            self.sleep();
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

    #[inline(never)]
    pub(super) fn start(&mut self, start: Start) {
        self.vm.vgic.note_on(self.vcpu);
        arch::start_guest(start.entry, self.vm.clock.offset_ticks());
        self.set_x0(start.context);
        if let Some(fault) = &self.hypervisor.fault_at_start {
            self.fault_on_purpose(fault);
        }
        // Its guest may not leave for long.
        trace::beat(self.turns).away();
    }

    /// Makes the guest's state what the next start finds: when the vCPU goes off, where nobody
    /// waits for it, and not at CPU_ON.
    fn reset_guest(&mut self) {
        self.registers.x = [0; 32];
        self.physical_compare = 0;
        self.last = LastExits::default();
        arch::reset_guest(Vm::mpidr_of(self.vcpu));
    }

    /// Takes this core's part of the VM's interrupts down, and forgets the guest's state.
    pub(super) fn stop(&mut self, next: Next) -> Others {
        self.keep_guest_counts();
        self.stop_interrupts(next);
        self.reset_guest();
        self.vm.psci.turned_off(self.vcpu)
    }

    /// Serves the small devices of the VM and looks after it, which the core of vCPU 0 does for
    /// all.
    #[cold]
    #[inline(never)]
    pub(super) fn serve_vm(&mut self) -> Next {
        self.look_after_vm();
        match self.due_crash() {
            Some(cause) => self.crash(cause),
            // A kick may have been taken meanwhile.
            None => self.after_kick(),
        }
    }

    /// Lets the small devices of a VM that runs do what is due, and returns why it cannot go on.
    fn due_crash(&self) -> Option<CrashCause> {
        if self.vcpu.get() != 0 || self.vm.lifecycle.wants_out() {
            return None;
        }
        self.vm.serve_platform(&self.effects())
    }

    /// Freezes a VM that cannot go on, its vCPU too, which was inside.
    #[cold]
    #[inline(never)]
    pub(super) fn crash(&mut self, cause: CrashCause) -> Next {
        loop {
            let leadership = self.freeze(cause);
            let next = self.stand_aside();
            // One that was paused and goes on goes to its crash.
            if leadership == Leadership::Mine || next == Next::Out {
                return next;
            }
        }
    }

    fn freeze(&self, cause: CrashCause) -> Leadership {
        let (vm, vcpu) = (self.vm, self.vcpu);
        // Under the lock, so that no other core keeps where it was before the crash begins.
        let mut capsule = vm.capsule.acquire();
        let leadership = vm.lifecycle.crash();
        if leadership == Leadership::Mine {
            let at_ticks = arch::counter();
            let console = &self.hypervisor.console.mux;
            capsule.begin(Crash { cause, vcpu, at_ticks }, |tail| console.tail(vm.id, tail));
            vm.fate.count_crash(at_ticks, arch::counter_frequency_hz());
        }
        drop(capsule);
        if leadership == Leadership::Mine {
            vm.kick_each(vm.all_vcpus() & !(1 << vcpu.get()));
        }
        leadership
    }

    /// Holds a vCPU of a VM that is frozen where it is, and tells whether it goes on.
    #[cold]
    #[inline(never)]
    pub(super) fn stand_aside(&mut self) -> Next {
        let vm = self.vm;
        self.looks.begin();
        let mut held = None;
        loop {
            let state = vm.lifecycle.state();
            if state == State::Running {
                // Nobody changes the guest's time before this core stands aside again.
                held.into_iter().for_each(|held| self.release_timers(held));
                return Next::Enter;
            }
            if !state.is_frozen() {
                return Next::Out;
            }
            if is_over(state) {
                self.keep_state();
            }
            held = held.or_else(|| Some(arch::hold_timers()));
            vm.lifecycle.stand_aside();
            // Who looks after the VM waits for the last one.
            if self.vcpu.get() != 0 {
                vm.kick(VcpuId::new(0));
            }
            self.wait_aside(state);
            vm.lifecycle.go_on();
        }
    }

    /// Waits until a VM that is frozen no longer is, or has crashed or was lost since it was in
    /// `state`.
    fn wait_aside(&mut self, state: State) {
        loop {
            self.look_after_vm();
            let now = self.vm.lifecycle.state();
            if !now.is_frozen() || is_over(now) && now != state {
                return;
            }
            // Those who run on ask what this vCPU's list registers hold, and of many kicks one
            // comes. Not where it is off: they are empty, and stay so.
            if self.vredist.has_work() {
                self.reconcile_until_done();
            }
            self.sleep();
            self.serve_aside();
        }
    }

    /// Serves interrupts while this core does not run its vCPU: a few, since some come on and on.
    #[inline(never)]
    pub(super) fn serve_aside(&mut self) {
        for _ in 0..ASIDE_MAX {
            self.beat();
            let Some(pintid) = arch::take_interrupt() else { return };
            self.serve_one_aside(pintid);
        }
    }

    fn serve_one_aside(&mut self, pintid: Pintid) {
        match pintid {
            VIRTUAL_TIMER | PHYSICAL_TIMER => {
                let turns = self.pass_private(pintid);
                self.count_apart(turns);
            }
            KICK => arch::deactivate(pintid),
            GO_ON | HYP_TIMER => {
                arch::deactivate(pintid);
                if pintid == HYP_TIMER {
                    self.hypervisor.serve_timer();
                } else {
                    self.work_on_vits();
                }
            }
            _ => {
                // What is left is never about the VM's changes.
                let (_, turns) = self.serve_rare(pintid);
                self.count_apart(turns);
            }
        }
    }

    /// Keeps where this vCPU is, for who wants to know why the VM has crashed.
    fn keep_state(&self) {
        let [x @ .., _xzr] = self.registers.x;
        let frozen = Frozen { x, state: arch::guest_state(), last: self.last.clone() };
        if let Some(kept) = self.vm.capsule.acquire().vcpus.get_mut(self.vcpu.index()) {
            *kept = Some(frozen);
        }
    }

    /// Does what is due for the whole VM; the core of vCPU 0 does that for all.
    pub(super) fn look_after_vm(&mut self) {
        let vm = self.vm;
        if self.vcpu.get() != 0 {
            return;
        }
        if vm.lifecycle.wants_out() && vm.lifecycle.all_stand_aside() {
            match vm.lifecycle.state() {
                State::Crashed => self.decide(),
                State::Paused => vm.stop_time(),
                State::Resuming => self.resume(),
                _ => {}
            }
        }
        while !vm.lifecycle.is_lost()
            && let Some(request) = vm.fate.take_due(arch::counter())
        {
            // Where it does not fit any more, nothing is to be done.
            if vm.request(request) == Err(State::Lost) {
                vm.fate.put_back(request);
            }
        }
        self.hypervisor.look_after_images(vm, &mut || self.serve_aside());
        // Nothing can be done with one that is lost.
        if let Some(deadline_ticks) = vm.fate.deadline_ticks().filter(|_| !vm.lifecycle.is_lost()) {
            arch::arm_hyp_timer(deadline_ticks);
        }
    }

    /// Lets a VM go on whose vCPUs all stand aside.
    fn resume(&mut self) {
        let vm = self.vm;
        vm.resume(&self.effects());
        if vm.lifecycle.end_pause() == Leadership::Mine {
            vm.kick_each(vm.all_vcpus() & !1);
        }
    }

    /// Does with a VM that has crashed what its policy says, once.
    fn decide(&mut self) {
        let (vm, now) = (self.vm, arch::counter());
        // One that still stands aside for a pause before it asks this core to look again.
        let inside = vm.lifecycle.inside();
        let Some(crash) = vm.capsule.acquire().take_undecided(inside) else { return };
        let policy = vm.plan.policies.on_crash;
        let verdict = vm.fate.decide(policy, now, arch::counter_frequency_hz());
        let message = format_args!("crashed: {}; {verdict}", crash.cause);
        self.hypervisor.console.mux.log_for(vm.id, now, message);
        self.hypervisor.console.send();
        self.hypervisor.vm_is_lost(vm, State::Crashed);
        match verdict {
            Verdict::Restart(_) | Verdict::Preserve => {}
            Verdict::Stop => vm.fate.kill_at(now),
            Verdict::Machine => self.hypervisor.end_machine(MachineEnd::Reset),
        }
    }

    /// Serves an interrupt while this core loads its VM, whose models are reset: the UART's is
    /// about others' output. What is for this VM waits in the models until the guest enables it.
    fn serve_others(&mut self) {
        self.serve_aside();
    }

    /// Says how long this core has not looked for interrupts, where a plan wants to know.
    #[inline(never)]
    fn report_looks(&mut self) {
        if self.hypervisor.reports_reset_cost {
            self.looks.report(&self.vm.plan.name);
        }
    }

    /// Leads the change of the VM that this core has begun.
    fn lead(&mut self, change: Change) {
        self.change(change);
        if self.vcpu.get() != 0 {
            // What this core has given up that one may have to lead anew.
            self.vm.kick(VcpuId::new(0));
        }
        self.report_looks();
    }

    fn change(&mut self, change: Change) {
        let asked_at_ticks = arch::counter();
        let vm = self.vm;
        vm.kick_each(vm.all_vcpus() & !(1 << self.vcpu.get()));
        while !vm.lifecycle.is_empty() {
            if vm.lifecycle.is_lost() {
                // One of them does not leave any more, as it seems.
                return vm.lifecycle.give_up(change);
            }
            self.serve_others();
            arch::relax();
        }
        vm.fate.ends();
        self.serve_others();
        vm.reset_models(&self.effects(), &mut || self.serve_others());
        self.serve_others();
        if change == Change::Stop {
            return self.hypervisor.vm_is_off(vm);
        }
        let started = loop {
            let started = vm.load(&mut || self.serve_others());
            if started.is_ok() || !self.hypervisor.go_back(vm) {
                break started;
            }
        };
        match started {
            Ok(cost) => {
                // Input that was served meanwhile is for nobody.
                vm.reset_serial(&self.effects());
                let _ = vm.fate.end_wait();
                vm.fate.begins(arch::counter());
                vm.begin();
                self.hypervisor.vm_has_begun(vm, cost, asked_at_ticks);
                vm.kick(VcpuId::new(0));
                if vm.fate.take_doom() {
                    // Where it has come to its end meanwhile, that is as good.
                    vm.kill_now_or_then();
                }
            }
            Err(Damaged(ipa)) => {
                let name = &vm.plan.name;
                log::error!(target: "vm", "{name} cannot start: its image at {ipa} has changed");
                self.hypervisor.vm_is_off(vm);
            }
        }
    }
}

/// Returns whether what the vCPUs are is kept, for who wants to know why.
fn is_over(state: State) -> bool {
    matches!(state, State::Crashed | State::Lost)
}
