// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The small devices of a VM: watchdog, GPIO lines, panic port, and the timer behind them.
#![forbid(unsafe_code)]

use super::super::Next;
use super::bed::*;
use crate::arch::fake::machine::{Event, with};
use crate::bits::Level;
use crate::control::{Executor, Line, Refusal, Request, Row};
use crate::id::Pintid;
use crate::plan::{OnCrash, Plan};
use crate::trace::LastExit;
use crate::vcpu::FromCore;
use crate::vm::crash::{Capsule, Crash, CrashCause};
use crate::vm::lifecycle::Change::{Start, Stop};
use crate::vm::lifecycle::State;
use std::string::{String, ToString};
use std::vec;
use std::vec::Vec;

const GPIO: u64 = 0x903_0000;
const CONTROL: u64 = 0x904_0000;
const REFRESH: u64 = 0x905_0000;
const PANIC: u64 = 0x906_0000;
const GPIO_SPI: u64 = 39;
const WATCHDOG_SPI: u64 = 40;
/// EL2's timer.
const TIMER: u32 = 26;
/// The SGI that makes a core look at the devices.
const GO_ON: u32 = 2;
const MS: u64 = 1_000_000;

/// Makes a plan whose VMs have watchdogs that are armed.
fn watched(timeout_ms: u32) -> Plan {
    let mut plan = plan();
    plan.vms.iter_mut().for_each(|vm| vm.policies.watchdog_ms = Some(timeout_ms));
    plan
}

fn timer() -> Option<u64> {
    with(|core| core.hyp_timer)
}

fn set_counter(ticks: u64) {
    with(|core| core.counter = ticks);
}

/// Lets EL2's timer fire when it is due.
fn fire(bed: &mut Bed) -> Option<Next> {
    let due = timer().expect("nothing is armed");
    set_counter(due);
    bed.interrupt(TIMER)
}

fn by(bed: &Bed) -> FromCore<'static> {
    bed.core.effects()
}

/// Makes a core of VM 1 act on VM 0.
fn from_outside(bed: &Bed) -> FromCore<'static> {
    FromCore { own: None, ..bed.core.effects() }
}

/// What asks the core of vCPU 0 of VM 0 to look.
fn asking() -> Event {
    Event::Sgi(Pintid::new(GO_ON), pcpu(0, 0))
}

fn pending(bed: &Bed) -> Vec<u64> {
    bed.state().into_iter().map(|lr| lr & 0xffff).collect()
}

#[test]
fn a_watchdog_that_nobody_refreshes_ends_the_run() {
    let mut bed = Bed::on(hypervisor(&watched(200)));
    // The leader of the start asks the core of vCPU 0 to arm its timer.
    let begun = bed.vm.clock.offset_ticks();
    assert_eq!(bed.interrupt(GO_ON), None);
    assert_eq!(timer(), Some(begun + 100 * MS + 1));
    bed.enable(0, 1 << (WATCHDOG_SPI - 32));
    assert_eq!(fire(&mut bed), None);
    assert_eq!(pending(&bed), [WATCHDOG_SPI], "the warning");
    assert_eq!(timer(), Some(begun + 200 * MS + 2));
    assert_eq!(fire(&mut bed), Some(Next::Out));
    let crash = bed.vm.capsule.acquire().crash.unwrap();
    assert_eq!(crash.cause, CrashCause::Watchdog);
    // Its policy is to restart it at once.
    assert_eq!(bed.vm.lifecycle.take_asked(), Some(Start));
}

#[test]
fn a_refresh_moves_the_end_away() {
    let mut bed = Bed::on(hypervisor(&watched(200)));
    assert_eq!(bed.interrupt(GO_ON), None);
    for _ in 0..50 {
        let armed = timer().unwrap();
        set_counter(armed - 10 * MS);
        bed.write(REFRESH, 0);
        // The timer is left alone, fires too early and is armed again.
        assert_eq!(timer(), Some(armed));
        assert_eq!(fire(&mut bed), None);
        assert!(timer().unwrap() > armed + 80 * MS);
    }
    assert_eq!(bed.read(CONTROL), 1);
}

#[test]
fn a_watchdog_is_off_until_the_guest_turns_it_on() {
    let mut bed = Bed::new();
    assert_eq!((bed.read(CONTROL), timer()), (0, None));
    bed.write(CONTROL + 8, 1000);
    assert_eq!(timer(), None);
    bed.write(CONTROL, 1);
    assert!(timer().is_some());
    assert_eq!(fire(&mut bed), None);
    assert_eq!(bed.read(CONTROL), 0b11);
    // Off again: what is armed still fires, and does nothing.
    bed.write(CONTROL, 0);
    assert_eq!(fire(&mut bed), None);
    assert_eq!((bed.read(CONTROL), timer()), (0, None));
}

#[test]
fn another_vcpu_asks_the_first_ones_core_to_keep_time() {
    let bed = Bed::new();
    let mut other = Bed { vm: bed.vm, core: core(bed.core.hypervisor, 0, 1) };
    with(|core| core.hyp_timer = None);
    other.write(CONTROL + 8, 1000);
    clear_events();
    other.write(CONTROL, 1);
    let asked = || {
        let is_ask = |event: &&Event| **event == asking();
        with(|core| core.events.iter().filter(is_ask).count())
    };
    assert_eq!((timer(), asked()), (None, 1));
    // What comes later needs no asking; what comes earlier does.
    other.write(REFRESH, 0);
    assert_eq!(asked(), 1);
    other.write(CONTROL + 8, 10);
    assert_eq!(asked(), 2);
    // Its own timer says nothing to it.
    assert_eq!(other.interrupt(TIMER), None);
    assert_eq!(timer(), None);
    let mut bed = bed;
    assert_eq!(bed.interrupt(GO_ON), None);
    assert!(timer().is_some());
}

#[test]
fn the_console_does_not_put_the_watchdog_off() {
    let mut bed = Bed::on(hypervisor(&watched(200)));
    assert_eq!(bed.interrupt(GO_ON), None);
    let armed = timer();
    // Output whose line is not complete waits for a time.
    bed.write(0x900_0000, u64::from(b'x'));
    bed.core.hypervisor.console.send();
    assert!(timer() <= armed);
    bed.core.hypervisor.serve_timer();
    assert_eq!(bed.interrupt(TIMER), None);
    assert!(timer().is_some() && timer() <= armed);
    set_counter(armed.unwrap());
    assert_eq!(bed.interrupt(TIMER), None);
    assert_eq!(bed.read(CONTROL), 0b11);
}

#[test]
fn the_power_button_is_pressed_and_let_go() {
    let mut bed = Bed::new();
    bed.enable(0, 1 << (GPIO_SPI - 32));
    // Both edges of line 3.
    bed.write(GPIO + 0x408, 8);
    bed.write(GPIO + 0x410, 8);
    bed.vm.press_power(&by(&bed));
    assert_eq!(bed.interrupt(0), None);
    assert_eq!((pending(&bed), bed.read(GPIO + 0x3fc)), (vec![GPIO_SPI], 8));
    bed.write(GPIO + 0x41c, 8);
    assert_eq!(bed.read(GPIO + 0x414), 0);
    let pressed = timer().unwrap();
    assert_eq!(fire(&mut bed), None);
    assert_eq!((bed.read(GPIO + 0x3fc), bed.read(GPIO + 0x414)), (0, 8));
    assert_eq!(timer(), None);
    // Pressed again, from elsewhere: the core of vCPU 0 is asked.
    clear_events();
    bed.vm.press_power(&from_outside(&bed));
    assert_eq!((timer(), bed.read(GPIO + 0x3fc)), (None, 8));
    assert!(events().contains(&asking()));
    assert_eq!(bed.interrupt(GO_ON), None);
    assert!(timer().unwrap() >= pressed + 100 * MS);
}

#[test]
fn a_lost_dependency_is_told_again_after_a_reset() {
    let mut bed = Bed::new();
    bed.vm.set_dependency_lost(&from_outside(&bed), Level::High);
    assert_eq!(bed.read(GPIO + 0x3fc), 16);
    bed.write(GPIO + 0x400, 0xff);
    bed.vm.press_power(&by(&bed));
    bed.vm.reset_models(&by(&bed), &mut || {});
    assert_eq!((bed.read(GPIO + 0x400), bed.read(GPIO + 0x3fc)), (0, 16));
    bed.vm.set_dependency_lost(&from_outside(&bed), Level::Low);
    assert_eq!(bed.read(GPIO + 0x3fc), 0);
}

#[test]
fn t91_a_reset_takes_watchdog_and_lines_down() {
    let mut bed = Bed::on(hypervisor(&watched(200)));
    assert_eq!(bed.interrupt(GO_ON), None);
    bed.enable(0, 1 << (WATCHDOG_SPI - 32));
    assert_eq!(fire(&mut bed), None);
    assert_eq!(bed.read(CONTROL), 0b11);
    bed.vm.reset_models(&by(&bed), &mut || {});
    assert_eq!(bed.read(CONTROL), 0, "not before its time begins");
    // What is armed still is of the run before, and ends nothing.
    assert_eq!(fire(&mut bed), None);
    bed.enable(0, 1 << (WATCHDOG_SPI - 32));
    assert_eq!(bed.interrupt(0), None);
    assert_eq!(pending(&bed), [0; 0]);
}

#[test]
fn time_in_which_the_guest_was_held_does_not_count() {
    let mut bed = Bed::on(hypervisor(&watched(200)));
    assert_eq!(bed.interrupt(GO_ON), None);
    let armed = timer().unwrap();
    with(|core| core.hyp_timer = None);
    set_counter(armed + 1000 * MS);
    bed.vm.resume(&by(&bed));
    assert_eq!(bed.read(CONTROL), 1);
    assert!(timer().unwrap() > armed + 1099 * MS);
}

#[test]
fn a_panic_is_the_end_behind_the_write() {
    let crash = |on_crash| {
        let mut plan = plan();
        plan.vms.iter_mut().for_each(|vm| vm.policies.on_crash = on_crash);
        let mut bed = Bed::on(hypervisor(&plan));
        assert_eq!(bed.read(PANIC), 3);
        bed.write(PANIC, 2);
        bed.core.registers.x[3] = 1;
        let before = elr();
        let next = bed.exit(store(PANIC, 0, 3));
        assert_eq!(elr(), before + 4);
        let capsule = bed.vm.capsule.acquire();
        assert_eq!(capsule.crash.unwrap().cause, CrashCause::Panicked);
        let frozen = capsule.vcpus[0].as_ref().unwrap();
        assert_eq!((frozen.x[3], frozen.state.0[0]), (1, before + 4));
        assert!(capsule.vcpus[1].is_none(), "it was off");
        (next, bed.vm.lifecycle.take_asked(), bed.vm.lifecycle.state())
    };
    let restarted = (Some(Next::Out), Some(Start), State::Starting);
    assert_eq!(crash(OnCrash::default()), restarted);
    assert_eq!(crash(OnCrash::Stop), (Some(Next::Out), Some(Stop), State::Stopping));
    // The core sleeps.
    assert_eq!(crash(OnCrash::Preserve), (None, None, State::Crashed));
}

/// Asks for something and returns the rows, without the space in front.
fn ask(bed: &Bed, request: &str) -> Result<Vec<String>, Refusal> {
    let hypervisor = bed.core.hypervisor;
    let mut rows = hypervisor.carry_out(Request::parse(request).unwrap())?;
    let mut lines = vec![];
    loop {
        let mut line = Line::default();
        match hypervisor.next_row(&mut rows, &mut line) {
            Row::Written => lines.push(line.as_str().trim_start().to_string()),
            Row::Passed => {}
            Row::End => return Ok(lines),
            Row::TooLong | Row::Changed => panic!("{request}: a row is too long, or another's"),
        }
    }
}

#[test]
fn what_is_kept_of_a_crash_is_told_and_so_is_memory() {
    let mut plan = plan();
    plan.vms.iter_mut().for_each(|vm| vm.policies.on_crash = OnCrash::Preserve);
    let mut bed = Bed::on(hypervisor(&plan));
    assert_eq!(ask(&bed, "crash a"), Err(Refusal::NoCrash));
    assert_eq!(ask(&bed, "crash c"), Err(Refusal::NoVm));
    assert_eq!(ask(&bed, "read a 0x40000000 4"), Err(Refusal::NotHeld("running")));
    bed.core.registers.x = core::array::from_fn(|n| u64::MAX - n as u64);
    bed.core.registers.x[3] = 1;
    let mux = &bed.core.hypervisor.console.mux;
    for byte in [b'a'; 69].into_iter().chain([b'b']) {
        mux.push_guest(bed.vm.id, byte);
    }
    assert_eq!(bed.exit(store(PANIC, 0, 3)), None);
    mux.push_guest(bed.vm.id, b'c');
    let rows = ask(&bed, "crash a").unwrap();
    assert!(rows[0].starts_with("what=crash vm=a cause=panicked vcpu=0 at_ticks="), "{rows:?}");
    assert!(rows[0].ends_with(" count=1 state=crashed ram=0x40000000 ram_bytes=0x4000"));
    let of = |what: &str| {
        rows.iter().filter(|row| row.starts_with(&std::format!("what={what} "))).count()
    };
    assert_eq!(["crash", "vcpu", "exit", "fault"].map(of), [1, 12, 1, 0], "one vCPU was on");
    assert_eq!(["map", "console"].map(of), [9, 2]);
    assert_eq!(rows.len(), 1 + 12 + 1 + 9 + 2);
    assert!(rows[13].starts_with("what=exit vcpu=0 at_ticks="), "{rows:?}");
    assert!(rows[13].ends_with(&std::format!(" detail={PANIC:#x}")), "{rows:?}");
    assert_eq!(rows[14], "what=map kind=ram at=0x40000000 size_bytes=0x4000 name=ram");
    assert_eq!(rows[15], "what=map kind=model at=0x8000000 size_bytes=0x10000 name=gicd");
    assert_eq!(rows[22], "what=map kind=model at=0x9060000 size_bytes=0x10000 name=panic");
    // What it has said: 70 bytes, of which those that are behind the crash are none.
    assert_eq!(rows[23], std::format!("what=console at=0x0 bytes={}", "61".repeat(64)));
    assert_eq!(rows[24], "what=console at=0x40 bytes=616161616162");
    bed.vm.capsule.acquire().vcpus[0].as_mut().unwrap().last.faults.keep(LastExit {
        syndrome: u64::MAX,
        pc: u64::MAX,
        at_ticks: u64::MAX,
        detail: u64::MAX,
    });
    assert!(ask(&bed, "crash a").unwrap()[14].starts_with("what=fault vcpu=0 at_ticks=184"));
    assert!(rows[1].starts_with("what=vcpu vcpu=0 pc=0x4000"), "{rows:?}");
    let all = rows.join(" ");
    for (n, x) in [(0, u64::MAX), (3, 1), (30, u64::MAX - 30)] {
        assert!(all.contains(&std::format!(" x{n}={x:#x}")), "x{n}: {rows:?}");
    }
    // The kernel is at the start; what is zero is left out.
    let memory = ask(&bed, "read a 0x40000000 4096").unwrap();
    assert_eq!(memory.len(), 1);
    assert!(memory[0].starts_with("at=0x40000000 bytes=6b726e0000"), "{memory:?}");
    assert_eq!(ask(&bed, "read a 0x40003fff 1"), Ok(vec![]));
    for (at, bytes) in [("0x40003fff", 2), ("0x3fffffff", 1), ("0xffffffffffffffff", 4096)] {
        let request = std::format!("read a {at} {bytes}");
        assert_eq!(ask(&bed, &request), Err(Refusal::NoMemory), "{request}");
    }
}

/// A slow line is no way to rows of two crashes, nor of one of which more comes to be known.
#[test]
fn a_listing_of_one_crash_does_not_go_on_with_another() {
    let mut plan = plan();
    plan.vms.iter_mut().for_each(|vm| vm.policies.on_crash = OnCrash::Preserve);
    let mut bed = Bed::on(hypervisor(&plan));
    bed.core.registers.x[3] = 1;
    assert_eq!(bed.exit(store(PANIC, 0, 3)), None);
    let hypervisor = bed.core.hypervisor;
    let goes_on = |between: &dyn Fn(&mut Capsule)| {
        let mut rows = hypervisor.carry_out(Request::parse("crash a").unwrap()).unwrap();
        assert_eq!(hypervisor.next_row(&mut rows, &mut Line::default()), Row::Written);
        between(&mut bed.vm.capsule.acquire());
        hypervisor.next_row(&mut rows, &mut Line::default())
    };
    assert_eq!(goes_on(&|_| ()), Row::Written);
    assert_eq!(goes_on(&|capsule| capsule.vcpus[1] = capsule.vcpus[0].clone()), Row::Changed);
    let again = |capsule: &mut Capsule| {
        let crash = capsule.crash.unwrap();
        capsule.begin(Crash { at_ticks: crash.at_ticks + 1, ..crash }, |_| 0);
        capsule.vcpus[0] = None;
    };
    assert_eq!(goes_on(&again), Row::Changed);
    assert_eq!(goes_on(&|capsule| capsule.crash = None), Row::Changed);
}

#[test]
fn t36_what_no_device_takes_is_an_external_abort() {
    let mut bed = Bed::new();
    for (ipa, size) in [(GPIO, 3), (GPIO + 1, 1), (CONTROL, 1), (REFRESH, 3), (GPIO + 0x1000, 2)] {
        for access in [store(ipa, size, 3), load(ipa, Load { size, ..WORD })] {
            with(|core| core.esr_el1 = 0);
            assert_eq!(bed.exit(access), None);
            // A synchronous external abort (DDI 0487, ESR_EL1.ISS.DFSC).
            assert_eq!(with(|core| core.esr_el1) & 0x3f, 0b01_0000, "{ipa:#x} {size}");
        }
    }
}
