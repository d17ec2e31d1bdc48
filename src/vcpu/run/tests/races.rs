// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What happens in the worst moment of something else: no end of a guest is lost, no deadline, no
//! crash, and nothing of one run comes into the next.
#![forbid(unsafe_code)]

use super::super::Next;
use super::bed::*;
use crate::arch::fake::machine::{Event, Hook, with};
use crate::id::{Pintid, VcpuId, VmId};
use crate::plan::{OnCrash, OnLoss};
use crate::vm::lifecycle::{Change, Entry, Request, State};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::vec;

const KICK: u32 = 0;
const GO_ON: Pintid = Pintid::new(2);
const SYSTEM_OFF: u64 = 0x8400_0008;
const SYSTEM_RESET: u64 = 0x8400_0009;
const CONTROL: u64 = 0x904_0000;
const PANIC: u64 = 0x906_0000;

/// Once the core is asleep, somebody resumes its VM.
fn resume_when_asleep(bed: &Bed) {
    let vm = bed.vm;
    let resume = move || {
        if vm.lifecycle.state() == State::Paused {
            vm.request(Request::Resume).unwrap();
            with(|core| core.pending.push_back(Pintid::new(KICK)));
        }
    };
    with(|core| core.on_idle = Hook::new(resume));
}

#[test]
fn t91_a_guests_own_end_is_not_lost_when_it_is_paused_just_then() {
    for (call, change) in [(SYSTEM_OFF, Change::Stop), (SYSTEM_RESET, Change::Start)] {
        let mut bed = Bed::new();
        bed.core.registers.x[0] = call;
        assert_eq!(bed.exit(hvc(0)), Some(Next::Change(change)));
        // The client is faster by a moment.
        bed.vm.lifecycle.request(Request::Pause).unwrap();
        resume_when_asleep(&bed);
        bed.core.leave(Next::Change(change));
        let expected = if change == Change::Stop { State::Off } else { State::Running };
        assert_eq!(bed.vm.lifecycle.state(), expected);
        with(|core| core.on_idle = Hook::default());
    }
}

#[test]
fn t91_a_panic_is_not_lost_when_the_vm_is_paused_just_then() {
    let mut plan = plan();
    plan.vms.iter_mut().for_each(|vm| vm.policies.on_crash = OnCrash::Preserve);
    let mut bed = Bed::on(hypervisor(&plan));
    bed.vm.lifecycle.request(Request::Pause).unwrap();
    resume_when_asleep(&bed);
    bed.core.registers.x[3] = 1;
    assert_eq!(bed.exit(store(PANIC, 0, 3)), None, "it is asleep for good");
    assert_eq!(bed.vm.lifecycle.state(), State::Crashed);
    assert!(bed.vm.capsule.acquire().vcpus[0].is_some());
    with(|core| core.on_idle = Hook::default());
}

/// Of a kick for a look and one for a pause, one may come: who asked for the look has it before the
/// core sleeps.
#[test]
fn t67_a_look_that_is_asked_for_just_before_a_pause_is_not_slept_over() {
    let mut bed = Bed::new();
    bed.enable(0xffff, 0);
    let vm = bed.vm;
    let vredist = vm.vgic.vredist(VcpuId::new(0)).unwrap();
    let asked = vredist.ask_for_look(&());
    assert!(!vredist.has_looked_since(asked));
    vm.lifecycle.request(Request::Pause).unwrap();
    let seen = Rc::new(Cell::new(None));
    let first = seen.clone();
    let sleep = move || {
        first.set(first.get().or(Some(vredist.has_looked_since(asked))));
    };
    with(|core| core.on_idle = Hook::new(sleep));
    // As behind the kick.
    let asleep = catch_unwind(AssertUnwindSafe(|| bed.core.stand_aside()));
    assert!(asleep.is_err(), "it is asleep for good");
    assert_eq!(seen.get(), Some(true));
    with(|core| core.on_idle = Hook::default());
}

/// A vCPU that has stopped has nothing in list registers, whatever others still send it: nobody
/// would take that out again before the next run.
#[test]
fn t91_a_vcpu_that_has_stopped_fills_no_list_register() {
    let mut bed = Bed::new();
    bed.enable(0xffff, 0);
    // An SGI to itself, which is not brought to the guest any more.
    bed.core.registers.x[1] = 5 << 24 | 1;
    bed.core.stop(Next::Out);
    bed.core.registers.x[1] = 5 << 24 | 1;
    let value = bed.core.registers.x[1];
    bed.core.send_sgi(crate::gic::SgiRegister::Sgi1, value);
    with(|core| core.pending.push_back(Pintid::new(KICK)));
    bed.core.serve_aside();
    assert_eq!(bed.state(), []);
}

/// A deadline that the guest moves to the end of time is none: EL2's timer must not fire for it
/// over and over.
#[test]
fn t109_a_watchdog_that_never_fires_arms_no_timer_for_now() {
    let mut bed = Bed::new();
    let offset_ticks = bed.vm.clock.offset_ticks();
    assert!(offset_ticks > 0);
    bed.write(CONTROL, 1);
    with(|core| core.hyp_timer = None);
    bed.write(CONTROL + 0x14, 0xffff_ffff);
    bed.write(CONTROL + 0x10, 0xffff_fff0);
    let timer = with(|core| core.hyp_timer);
    assert!(timer.is_none_or(|at| at > u64::MAX / 2), "{timer:x?}");
}

#[test]
fn t91_who_keeps_time_is_asked_when_the_vm_runs_and_what_is_due_then_stays_due() {
    let mut plan = plan();
    plan.vms.iter_mut().for_each(|vm| vm.policies.watchdog_ms = Some(200));
    let mut bed = Bed::on(hypervisor(&plan));
    let vm = bed.vm;
    let states = Rc::new(core::cell::RefCell::new(vec![]));
    let seen = states.clone();
    let look = move || {
        let last = with(|core| core.events.last().cloned());
        if last == Some(Event::Sgi(GO_ON, pcpu(0, 0))) {
            seen.borrow_mut().push(vm.lifecycle.state());
            // Somebody asks for a stop as soon as it runs.
            vm.fate.kill_at(77);
        }
    };
    bed.core.registers.x[0] = SYSTEM_RESET;
    let Some(next) = bed.exit(hvc(0)) else { panic!("no reset") };
    with(|core| core.on_sgi = Hook::new(look));
    bed.core.leave(next);
    with(|core| core.on_sgi = Hook::default());
    assert_eq!(*states.borrow(), [State::Running]);
    assert_eq!(vm.fate.deadline_ticks(), Some(77));
}

#[test]
fn t91_a_dependent_that_is_being_started_is_stopped_behind_that() {
    let mut plan = plan();
    plan.vms[1].policies.after = crate::plan::samples::list(vec![VmId::new(0)]);
    plan.vms[1].policies.on_loss = OnLoss::Stop;
    let hypervisor = hypervisor(&plan);
    let dependent = vm(hypervisor, 1);
    assert_eq!(dependent.lifecycle.state(), State::Starting);
    hypervisor.vm_is_off(vm(hypervisor, 0));
    let mut core = core(hypervisor, 1, 0);
    serve(&mut core);
    assert_eq!(dependent.lifecycle.state(), State::Off);
}

/// A core that was held for a pause counts as aside until it sees that this has ended. A crash
/// right behind that is not decided, and the VM not started anew, before it is known where it was.
#[test]
fn t91_a_crash_is_decided_when_it_is_known_where_all_were() {
    let mut plan = plan();
    plan.vms.iter_mut().for_each(|vm| vm.policies.on_crash = OnCrash::Stop);
    let mut bed = Bed::on(hypervisor(&plan));
    let lifecycle = &bed.vm.lifecycle;
    assert_eq!(lifecycle.enter(), Entry::Granted);
    lifecycle.stand_aside();
    bed.core.registers.x[3] = 1;
    assert_eq!(bed.exit(store(PANIC, 0, 3)), None, "it waits");
    assert_eq!(lifecycle.state(), State::Crashed);
    let mut capsule = bed.vm.capsule.acquire();
    capsule.vcpus[1] = capsule.vcpus[0].clone();
    drop(capsule);
    bed.core.look_after_vm();
    assert_eq!(lifecycle.state(), State::Stopping);
}

/// The core that decides what becomes of a crash may have seen another one on its way out.
#[test]
fn t91_a_core_that_finds_its_vm_crashed_asks_the_first_to_look_again() {
    let mut plan = plan();
    plan.vms.iter_mut().for_each(|vm| vm.policies.on_crash = OnCrash::Preserve);
    let mut bed = Bed::on(hypervisor(&plan));
    bed.core.registers.x[3] = 1;
    assert_eq!(bed.exit(store(PANIC, 0, 3)), None);
    clear_events();
    serve(&mut core(bed.core.hypervisor, 0, 1));
    assert!(events().contains(&Event::Sgi(Pintid::new(KICK), pcpu(0, 0))), "{:?}", events());
}
