// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Guest time: of a VM whose time stops while it is paused, and of one whose time runs on.
#![forbid(unsafe_code)]

use super::super::Next;
use super::bed::*;
use crate::arch::fake::machine::{Event, Hook, PhysicalTime, with};
use crate::id::Pintid;
use crate::plan::{PauseTime, Plan};
use crate::vm::lifecycle::{Request, State};
use std::cell::Cell;
use std::rc::Rc;

const CNTPCT: Encoding = [3, 3, 14, 0, 1];
const CNTPCTSS: Encoding = [3, 3, 14, 0, 5];
const CNTP_TVAL: Encoding = [3, 3, 14, 2, 0];
const CNTP_CTL: Encoding = [3, 3, 14, 2, 1];
const CNTP_CVAL: Encoding = [3, 3, 14, 2, 2];

const KICK: Pintid = Pintid::new(0);
const WATCHDOG: u64 = 0x904_0000;
/// How long a pause takes, in ticks.
const PAUSE: u64 = 1_000_000_000;
/// More than the counter moves by while this machine does something: a tick for each look at it.
const MOMENT: u64 = 200;
const CPU_ON: u64 = 0xc400_0003;

fn with_time(pause_time: PauseTime) -> Plan {
    let mut plan = plan();
    plan.vms.iter_mut().for_each(|vm| vm.policies.pause_time = pause_time);
    plan
}

fn bed(pause_time: PauseTime) -> Bed {
    let hypervisor = hypervisor(&with_time(pause_time));
    // The machine has been on for a while.
    with(|core| core.counter = 5_000_000);
    let bed = Bed::on(hypervisor);
    clear_events();
    bed
}

impl Bed {
    fn mrs(&mut self, register: Encoding) -> u64 {
        assert_eq!(self.exit(mrs(register, 7)), None);
        self.core.registers.x[7]
    }
    fn msr(&mut self, register: Encoding, value: u64) {
        self.core.registers.x[7] = value;
        assert_eq!(self.exit(msr(register, 7)), None);
    }
}

/// What the guest sees of virtual time (CNTVCT_EL0) on this core.
fn virtual_count() -> u64 {
    with(|core| core.counter - core.timers.cntvoff_ticks)
}

fn wake() {
    with(|core| core.pending.push_back(KICK));
}

/// Pauses the VM, lets `PAUSE` ticks pass while its core sleeps, looks, and resumes it.
fn pause(bed: &mut Bed, look: impl Fn() + 'static) {
    let vm = bed.vm;
    vm.request(Request::Pause).unwrap();
    let sleep = move || {
        if vm.lifecycle.state() == State::Paused {
            look();
            with(|core| core.counter += PAUSE);
            vm.request(Request::Resume).unwrap();
            wake();
        }
    };
    with(|core| core.on_idle = Hook::new(sleep));
    assert_eq!(bed.interrupt(0), None);
    with(|core| core.on_idle = Hook::default());
    assert_eq!(vm.lifecycle.state(), State::Running);
}

#[test]
fn t57_a_guest_that_is_paused_sees_no_time_pass() {
    let mut bed = bed(PauseTime::Stops);
    assert_eq!(with(|core| core.timers.way), Some(PhysicalTime::Trapped));
    bed.msr(CNTP_CVAL, 500_000);
    bed.msr(CNTP_CTL, 1);
    with(|core| core.timers.virtual_control = 1);
    let (physical, virtually) = (bed.mrs(CNTPCT), virtual_count());
    let (offset, compare) = with(|core| (core.timers.cntvoff_ticks, core.timers.physical_compare));
    assert_eq!(compare, 500_000 + offset);
    pause(&mut bed, || {
        // Neither timer can fire meanwhile.
        let timers = with(|core| core.timers);
        assert_eq!((timers.virtual_control & 3, timers.physical_control & 3), (3, 3));
    });
    assert!(bed.mrs(CNTPCT) - physical < MOMENT);
    assert!(virtual_count() - virtually < MOMENT);
    let timers = with(|core| core.timers);
    assert_eq!(timers.cntvoff_ticks, bed.vm.clock.offset_ticks());
    assert_eq!((timers.virtual_control, timers.physical_control), (1, 1));
    // What the guest has asked for is as far away as before.
    assert_eq!(bed.mrs(CNTP_CVAL), 500_000);
    assert_eq!(timers.physical_compare - compare, timers.cntvoff_ticks - offset);
    assert!(timers.cntvoff_ticks - offset >= PAUSE);
}

#[test]
fn t57_twin_whose_time_runs_on_sees_all_of_it() {
    let mut bed = bed(PauseTime::Runs);
    assert_eq!(with(|core| core.timers.way), Some(PhysicalTime::Direct));
    with(|core| core.timers.virtual_control = 1);
    let (virtually, offset) = (virtual_count(), bed.vm.clock.offset_ticks());
    pause(&mut bed, || assert_eq!(with(|core| core.timers.virtual_control), 3));
    assert_eq!(with(|core| core.timers.virtual_control), 1, "it fires now, if it is late");
    assert!(virtual_count() - virtually >= PAUSE);
    assert_eq!(bed.vm.clock.offset_ticks(), offset);
}

#[test]
fn t57_a_vcpu_that_was_off_has_the_same_time() {
    let mut bed = bed(PauseTime::Stops);
    pause(&mut bed, || ());
    assert_eq!(bed.hvc([CPU_ON, 1, RAM, 0]), 0);
    let offset = bed.vm.clock.offset_ticks();
    with(|core| core.timers = Default::default());
    serve(&mut core(bed.core.hypervisor, 0, 1));
    let timers = with(|core| core.timers);
    assert_eq!((timers.cntvoff_ticks, timers.way), (offset, Some(PhysicalTime::Trapped)));
}

/// Time stops when the last vCPU stands aside, not before: it would see it run backwards. And none
/// goes on before the last one has stopped: it would see another time than that one.
#[test]
fn t57_no_vcpu_goes_on_before_all_stand_aside() {
    let mut bed = bed(PauseTime::Stops);
    let vm = bed.vm;
    // vCPU 1 runs.
    enter(vm);
    let offset = vm.clock.offset_ticks();
    vm.request(Request::Pause).unwrap();
    let step = Rc::new(Cell::new(0));
    let steps = step.clone();
    let sleep = move || {
        step.set(step.get() + 1);
        match step.get() {
            1 => {
                let before = vm.clock.at(with(|core| core.counter));
                with(|core| core.counter += PAUSE);
                assert_eq!(vm.clock.at(with(|core| core.counter)), before + PAUSE, "runs on");
                vm.request(Request::Resume).unwrap();
            }
            2 => {
                assert_eq!(vm.lifecycle.state(), State::Resuming);
                // vCPU 1 has seen the pause at last.
                vm.lifecycle.stand_aside();
            }
            // The script has ended: the guest runs.
            _ => return,
        }
        wake();
    };
    with(|core| core.on_idle = Hook::new(sleep));
    assert_eq!(bed.interrupt(0), None);
    with(|core| core.on_idle = Hook::default());
    assert_eq!((steps.get(), vm.lifecycle.state()), (3, State::Running));
    assert_eq!(vm.clock.offset_ticks(), offset, "it never stood still");
}

/// A vCPU that is held goes on however often its VM is paused again in between, and all the pauses
/// count.
#[test]
fn t91_a_pause_behind_a_resume_ends_no_vcpu() {
    let mut bed = bed(PauseTime::Stops);
    let vm = bed.vm;
    let virtually = virtual_count();
    let left = Rc::new(Cell::new(5));
    let again = move || {
        let told = with(|core| core.events.last().cloned());
        let is_resumed = told == Some(Event::Sgi(KICK, pcpu(0, 1)));
        if is_resumed && vm.lifecycle.state() == State::Running && left.get() > 0 {
            left.set(left.get() - 1);
            vm.request(Request::Pause).unwrap();
            wake();
        }
    };
    with(|core| core.on_sgi = Hook::new(again));
    let offset = vm.clock.offset_ticks();
    pause(&mut bed, || ());
    with(|core| core.on_sgi = Hook::default());
    assert!(vm.clock.offset_ticks() - offset >= 6 * PAUSE);
    assert!(virtual_count() - virtually < 10 * MOMENT);
}

#[test]
fn a_watchdog_waits_as_the_guest_does() {
    let mut bed = bed(PauseTime::Stops);
    // The same in ticks of the guest: 1000 ahead.
    bed.write(WATCHDOG + 8, 100_000);
    bed.write(WATCHDOG, 1);
    let deadline = |bed: &mut Bed| bed.read(WATCHDOG + 0x10);
    let before = deadline(&mut bed);
    let armed = with(|core| core.hyp_timer).unwrap();
    with(|core| core.hyp_timer = None);
    let offset = bed.vm.clock.offset_ticks();
    pause(&mut bed, || ());
    assert_eq!((bed.read(WATCHDOG), deadline(&mut bed)), (1, before), "nobody has refreshed it");
    let passed = bed.vm.clock.offset_ticks() - offset;
    assert_eq!(with(|core| core.hyp_timer), Some(armed + passed));
}

#[test]
fn t57_a_reset_of_a_vm_that_is_paused_begins_its_time_anew() {
    let mut bed = bed(PauseTime::Stops);
    bed.msr(CNTP_CVAL, 77);
    let vm = bed.vm;
    vm.request(Request::Pause).unwrap();
    let sleep = move || {
        if vm.lifecycle.state() == State::Paused {
            with(|core| core.counter += PAUSE);
            vm.request(Request::Reset).unwrap();
            wake();
        }
    };
    with(|core| core.on_idle = Hook::new(sleep));
    let next = bed.interrupt(0).unwrap();
    assert_eq!(next, Next::Out);
    bed.core.leave(next);
    with(|core| core.on_idle = Hook::default());
    serve(&mut bed.core);
    assert_eq!(vm.lifecycle.state(), State::Running);
    assert!(bed.mrs(CNTPCT) < MOMENT);
    assert_eq!(bed.mrs(CNTP_CVAL), 0);
    assert_eq!(with(|core| core.timers.virtual_control | core.timers.physical_control), 0);
}

/// CNTP_TVAL_EL0 is a signed distance of 32 bits, CNTP_CVAL_EL0 what the guest has written, and the
/// machine's timer fires an offset later (DDI 0487 D12.2).
#[test]
fn t81_the_physical_timer_is_the_guests_own() {
    let mut bed = bed(PauseTime::Stops);
    let offset = bed.vm.clock.offset_ticks();
    assert!(offset >= 5_000_000);
    let compare = || with(|core| core.timers.physical_compare);
    let near = |value: u64, at: u64| assert!(value.wrapping_sub(at) < MOMENT, "{value:#x} {at:#x}");
    for (tval, distance) in [(1000, 1000), (0xffff_ffff, u64::MAX), (0x8000_0000, !0x7fff_ffff)] {
        let now = bed.mrs(CNTPCTSS);
        bed.msr(CNTP_TVAL, 0xffff_ffff_0000_0000 | tval);
        let cval = bed.mrs(CNTP_CVAL);
        near(cval, now.wrapping_add(distance));
        assert_eq!(compare(), cval.saturating_add(offset));
        let left = cval.wrapping_sub(bed.mrs(CNTPCT));
        near(left & 0xffff_ffff, bed.mrs(CNTP_TVAL));
    }
    // What never comes does not come.
    for cval in [u64::MAX, u64::MAX - 1, u64::MAX - offset + 1] {
        bed.msr(CNTP_CVAL, cval);
        bed.msr(CNTP_CTL, 1);
        assert_eq!((bed.mrs(CNTP_CVAL), bed.mrs(CNTP_CTL), compare()), (cval, 1, u64::MAX));
    }
    bed.msr(CNTP_CVAL, 0);
    assert_eq!((bed.mrs(CNTP_CTL), compare()), (5, offset));
    // Reserved bits, and ISTATUS, are not written.
    bed.msr(CNTP_CTL, u64::MAX);
    assert_eq!(bed.mrs(CNTP_CTL), 7);
    bed.msr(CNTP_CTL, 4);
    assert_eq!(bed.mrs(CNTP_CTL), 0);
}

#[test]
fn t30_t31_time_and_the_zero_register() {
    let mut bed = bed(PauseTime::Stops);
    for register in [CNTPCT, CNTPCTSS, CNTP_TVAL, CNTP_CTL, CNTP_CVAL] {
        let before = elr();
        assert_eq!(bed.exit(mrs(register, 31)), None);
        assert_eq!((bed.core.registers.x[31], elr()), (0, before + 4), "{register:?}");
    }
    bed.msr(CNTP_CVAL, 99);
    let before = elr();
    assert_eq!(bed.exit(msr(CNTP_CVAL, 31)), None);
    assert_eq!((bed.mrs(CNTP_CVAL), elr()), (0, before + 8));
    // The counters cannot be written.
    for register in [CNTPCT, CNTPCTSS] {
        clear_events();
        assert_eq!(bed.exit(msr(register, 0)), None);
        let undefined = Event::Inject(crate::spec::exception::Exception::Undefined);
        assert!(events().contains(&undefined), "{register:?}");
    }
}
