// SPDX-License-Identifier: Apache-2.0 OR MIT
//! vCPUs go on and off, VMs start, start again and end.
#![forbid(unsafe_code)]

use super::super::Next;
use super::bed::*;
use crate::addr::{Address, Ipa};
use crate::arch::fake::machine::{Event, read_uncached, with, write_uncached};
use crate::hypervisor::Hypervisor;
use crate::id::{Pintid, VcpuId};
use crate::plan::OnEnd;
use crate::psci::Start;
use crate::spec::psci::AffinityState;
use crate::vm::Vm;
use crate::vm::lifecycle::{Change, Request, State};
use std::vec::Vec;
use std::{thread, vec};

const CPU_SUSPEND: u64 = 0xc400_0001;
const CPU_OFF: u64 = 0x8400_0002;
const CPU_ON: u64 = 0xc400_0003;
const AFFINITY_INFO: u64 = 0xc400_0004;
const SYSTEM_OFF: u64 = 0x8400_0008;
const SYSTEM_RESET: u64 = 0x8400_0009;

const SUCCESS: u64 = 0;
const INVALID_PARAMETERS: u64 = (-2_i64).cast_unsigned();
const ALREADY_ON: u64 = (-4_i64).cast_unsigned();
const ON_PENDING: u64 = (-5_i64).cast_unsigned();
const INVALID_ADDRESS: u64 = (-9_i64).cast_unsigned();

const ENTRY: u64 = RAM + 0x2000;

fn happened(wanted: &[Event]) -> bool {
    let events = events();
    let mut left = events.iter();
    wanted.iter().all(|wanted| left.any(|event| event == wanted))
}

fn start(entry: u64) -> Start {
    Start { entry: Ipa::new(entry), context: 0 }
}

/// Puts a call into the script; the guest's registers are 0 but for X0, so the call has no
/// arguments. Registers are the core's, so this is for the first exit of a vCPU.
fn script(exits: &[crate::arch::fake::machine::Scripted]) {
    with(|core| core.exits.extend(exits));
}

#[test]
fn t87_cpu_on_kicks_the_right_pcpu_once() {
    let mut bed = Bed::new();
    clear_events();
    assert_eq!(bed.hvc([CPU_ON, 1, ENTRY, 77]), SUCCESS);
    assert_eq!(events(), [Event::Enter, Event::Sgi(Pintid::new(0), pcpu(0, 1))]);
    assert_eq!(bed.hvc([AFFINITY_INFO, 1, 0]), 2, "ON_PENDING");
    assert_eq!(bed.hvc([CPU_ON, 1, ENTRY, 78]), ON_PENDING);
    assert_eq!(bed.hvc([CPU_ON, 0, ENTRY, 0]), ALREADY_ON);
    assert_eq!(bed.hvc([CPU_ON, 2, ENTRY, 0]), INVALID_PARAMETERS);
    assert_eq!(bed.hvc([CPU_ON, 0x100, ENTRY, 0]), INVALID_PARAMETERS, "a pCPU's affinity");
    // The vCPU starts as the first call said (DEN 0022 section 6.4).
    let mut second = core(bed.core.hypervisor, 0, 1);
    second.registers.x = [9; 32];
    clear_events();
    serve(&mut second);
    let (state, entry) = (Vm::mpidr_of(VcpuId::new(1)), Ipa::new(ENTRY));
    let begins = [Event::ResetGuest(state), Event::StartGuest(entry)];
    assert!(happened(&begins), "{:?}", events());
    assert_eq!(elr(), ENTRY);
    let mut expected = [0; 32];
    expected[0] = 77;
    assert_eq!(second.registers.x, expected);
    assert_eq!(bed.hvc([AFFINITY_INFO, 1, 0]), 0, "ON");
    assert_eq!(bed.hvc([CPU_ON, 1, ENTRY, 0]), ALREADY_ON);
}

#[test]
fn t89_entry_must_be_the_guests_memory() {
    let mut bed = Bed::new();
    for entry in [0, VDIST, RAM - 4, RAM + RAM_BYTES, RAM + 2, u64::MAX, RAM | 1 << 56] {
        assert_eq!(bed.hvc([CPU_ON, 1, entry, 0]), INVALID_ADDRESS, "{entry:#x}");
    }
    assert_eq!(bed.hvc([CPU_ON, 1, RAM + RAM_BYTES - 4, 0]), SUCCESS);
}

#[test]
fn t90_cpu_off_leaves_and_can_be_turned_on_again() {
    let mut bed = Bed::new();
    let other = core(bed.core.hypervisor, 0, 1);
    assert_eq!(bed.hvc([CPU_ON, 1, ENTRY, 0]), SUCCESS);
    let mut other = Bed { vm: bed.vm, core: other };
    serve(&mut other.core);
    other.core.registers.x[0] = CPU_OFF;
    assert_eq!(other.exit(hvc(0)), Some(Next::Off));
    clear_events();
    other.core.stop(Next::Off);
    assert!(happened(&[Event::StopTimers]));
    assert!(happened(&[Event::ResetVirtualInterface]));
    // The next start finds nothing of this run (traps T58).
    assert!(happened(&[Event::ResetGuest(Vm::mpidr_of(VcpuId::new(1)))]));
    assert_eq!(bed.vm.psci.state(VcpuId::new(1)), Some(AffinityState::Off));
    assert_eq!(bed.hvc([CPU_ON, 1, ENTRY, 0]), SUCCESS);
}

#[test]
fn t50_suspend_waits_for_an_interrupt() {
    let mut bed = Bed::new();
    clear_events();
    with(|core| core.pending.push_back(Pintid::new(27)));
    assert_eq!(bed.hvc([CPU_SUSPEND, 0, 0, 0]), SUCCESS);
    assert!(happened(&[Event::Enter, Event::Wait]));
}

#[test]
fn t50_suspend_does_not_sleep_through_a_virtual_interrupt() {
    let mut bed = Bed::new();
    bed.enable(0xffff, 0);
    // An SGI that the guest has not taken yet, since it masks interrupts on its way to sleep. No
    // physical interrupt is pending: WFI at EL2 would not see this one.
    bed.core.registers.x[1] = 5 << 24 | 1;
    assert_eq!(bed.exit(msr([3, 0, 12, 11, 5], 1)), None);
    assert_eq!(bed.hvc([CPU_SUSPEND, 0, 0, 0]), SUCCESS);
    assert!(!happened(&[Event::Wait]), "{:?}", events());
}

#[test]
fn t87_vcpu_that_is_turned_on_while_its_vm_does_not_run_is_not_started() {
    let hypervisor = hypervisor(&plan());
    let vm = vm(hypervisor, 0);
    vm.psci.boot(VcpuId::new(1), start(ENTRY)).unwrap();
    serve(&mut core(hypervisor, 0, 1));
    assert!(!happened(&[Event::StartGuest(Ipa::new(ENTRY))]));
    // Whoever changes the VM decides about it: nobody holds on to what it was to start with.
    assert_eq!(vm.psci.state(VcpuId::new(1)), Some(AffinityState::OnPending));
    assert!(vm.lifecycle.is_empty());
}

/// The events of a start, from reading the images to the first entry.
fn loads() -> Vec<Event> {
    let page = |n| pa_range(RAM_PA + n * TREE_AT, RAM_BYTES - n * TREE_AT);
    let part = |at: u64, bytes: usize| pa_range(at, bytes as u64);
    let copy = |to, from, bytes| Event::Copy { to: part(to, bytes), from: part(from, bytes) };
    vec![
        copy(RAM_PA, 0x7000_0000, KERNEL.len()),
        copy(RAM_PA + TREE_AT, 0x7000_0010, TREE.len()),
        Event::CleanInvalidate(page(0)),
        Event::PublishCode,
        Event::StartGuest(Ipa::new(RAM)),
    ]
}

/// What of a start can be seen in the memory of a VM by a guest whose caches are off.
fn memory() -> Vec<u8> {
    read_uncached(pa_range(RAM_PA, RAM_BYTES))
}

fn expected_memory() -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(RAM_BYTES).unwrap()];
    bytes[..KERNEL.len()].copy_from_slice(&KERNEL);
    let tree = usize::try_from(TREE_AT).unwrap();
    bytes[tree..tree + TREE.len()].copy_from_slice(&TREE);
    bytes
}

/// A machine on which firmware or an earlier owner has left secrets where VM 0 goes: in memory,
/// and in a cache.
fn with_residue() -> &'static Hypervisor {
    let hypervisor = hypervisor(&plan());
    write_uncached(pa_range(RAM_PA, 1).start(), b"secret of firmware");
    write_uncached(pa_range(RAM_PA + RAM_BYTES - 8, 1).start(), b"the end!");
    crate::arch::write_bytes(map(pa_range(RAM_PA + 0x800, 16)), b"in a cache only!");
    clear_events();
    hypervisor
}

#[test]
fn t01_t02_guest_finds_its_images_and_nothing_else_with_caches_off() {
    let hypervisor = with_residue();
    serve(&mut core(hypervisor, 0, 0));
    assert_eq!(memory(), expected_memory());
    let mut wanted = vec![Event::Zero(pa_range(RAM_PA, RAM_BYTES))];
    wanted.extend(loads());
    assert!(happened(&wanted), "scrub, copy, clean, in this order: {:?}", events());
}

#[test]
fn t01_t02_twin_without_cleaning_the_guest_finds_what_was_there() {
    let hypervisor = with_residue();
    with(|core| core.loses_cleaning = true);
    serve(&mut core(hypervisor, 0, 0));
    assert_ne!(memory(), expected_memory());
    assert!(memory().starts_with(b"secret"));
}

/// What was due while a VM was lost is done when it is found.
#[test]
fn t91_what_is_due_waits_for_a_vm_that_is_lost() {
    let mut bed = Bed::new();
    let vm = bed.vm;
    vm.fate.kill_at(0);
    assert_eq!(vm.lifecycle.lose(), Some(State::Running));
    bed.core.look_after_vm();
    assert!(vm.lifecycle.is_lost());
    vm.lifecycle.find();
    assert_eq!(vm.lifecycle.state(), State::Crashed);
    bed.core.look_after_vm();
    assert_eq!(vm.lifecycle.state(), State::Stopping);
}

/// Who depends on a VM that goes off while it is itself lost in its start is turned off right
/// behind that, and one that was off stays as it is.
#[test]
fn t91_a_start_that_is_lost_and_found_is_still_doomed() {
    for (request, is_doomed) in [(Some(Request::Start), true), (None, false)] {
        let vm = vm(hypervisor(&plan()), 1);
        let _ = vm.lifecycle.take_asked();
        vm.lifecycle.finish(Change::Start);
        vm.lifecycle.request(Request::Kill).unwrap();
        let _ = vm.lifecycle.take_asked();
        vm.lifecycle.finish(Change::Stop);
        if let Some(request) = request {
            vm.lifecycle.request(request).unwrap();
        }
        assert!(vm.lifecycle.lose().is_some());
        vm.kill_now_or_then();
        assert_eq!(vm.fate.take_doom(), is_doomed);
    }
}

#[test]
fn t91_system_reset_loads_the_vm_again_and_no_other() {
    let mut bed = Bed::new();
    let other = vm(bed.core.hypervisor, 1);
    assert_eq!(other.lifecycle.take_asked(), Some(Change::Start));
    other.lifecycle.finish(Change::Start);
    // The guest has written over its images, caches off, and has interrupts and timers going.
    write_uncached(pa_range(RAM_PA, 1).start(), b"dirty");
    bed.enable(1 << 27, 0);
    assert_eq!(bed.interrupt(27), None);
    // Another vCPU is on its way.
    assert_eq!(bed.hvc([CPU_ON, 1, ENTRY, 0]), SUCCESS);
    clear_events();
    let answer = {
        bed.core.registers.x[0] = SYSTEM_RESET;
        bed.exit(hvc(0))
    };
    let Some(Next::Change(change)) = answer else { panic!("{answer:?}") };
    bed.core.leave(Next::Change(change));
    let start = bed.vm.psci.started(VcpuId::new(0)).unwrap();
    enter(bed.vm);
    bed.core.start(start);
    assert_eq!((start.entry.get(), start.context), (RAM, RAM + TREE_AT));
    assert!(happened(&loads()), "{:?}", events());
    let scrubs = events().iter().filter(|event| matches!(event, Event::Zero(_))).count();
    assert_eq!(scrubs, 0, "the guest's own memory is no secret to it");
    assert_eq!(memory()[..KERNEL.len()], KERNEL);
    // Its interrupts are as at first: none in a list register, none enabled, none pending.
    assert_eq!(bed.state(), []);
    let mut expected = [0; 32];
    expected[0] = RAM + TREE_AT;
    assert_eq!(bed.core.registers.x, expected);
    assert_eq!(bed.read(VREDIST + 0x1_0100), 0, "GICR_ISENABLER0");
    assert_eq!(bed.read(VREDIST + 0x1_0200), 0, "GICR_ISPENDR0");
    assert_eq!(bed.read(VDIST) & 3, 0, "GICD_CTLR's group enables");
    // The physical timer interrupt that was the guest's is over (traps T73).
    assert!(happened(&[Event::Deactivate(Pintid::new(27))]), "{:?}", events());
    assert_eq!(bed.hvc([AFFINITY_INFO, 1, 0]), 1, "OFF");
    assert!(!other.lifecycle.wants_out(), "the other VM runs on");
}

/// The core that loads a VM may have the UART's interrupt, which is about other guests' output.
#[test]
fn interrupt_is_served_between_the_pieces_of_a_load() {
    let mut bed = Bed::new();
    bed.core.registers.x[0] = SYSTEM_RESET;
    let answer = bed.exit(hvc(0));
    let Some(Next::Change(change)) = answer else { panic!("{answer:?}") };
    clear_events();
    with(|core| core.pending.push_back(Pintid::new(26)));
    bed.core.leave(Next::Change(change));
    let at = |event: Event| events().iter().position(|other| *other == event).unwrap();
    assert!(at(Event::Deactivate(Pintid::new(26))) < at(Event::PublishCode), "{:?}", events());
}

#[test]
fn t91_reset_waits_until_the_other_vcpu_has_left() {
    let mut bed = Bed::new();
    let vm = bed.vm;
    let hypervisor = bed.core.hypervisor;
    assert_eq!(bed.hvc([CPU_ON, 1, ENTRY, 0]), SUCCESS);
    enter(vm);
    bed.core.registers.x[0] = SYSTEM_RESET;
    let Some(Next::Change(change)) = bed.exit(hvc(0)) else { panic!("no reset") };
    clear_events();
    thread::scope(|threads| {
        threads.spawn(|| {
            // The other vCPU is in its guest until it is kicked.
            while !vm.lifecycle.wants_out() {
                thread::yield_now();
            }
            thread::sleep(std::time::Duration::from_millis(20));
            let mut other = Bed { vm, core: core(hypervisor, 0, 1) };
            assert!(vm.lifecycle.wants_out(), "nobody has waited");
            assert_eq!(other.interrupt(0), Some(Next::Out));
            other.core.leave(Next::Out);
        });
        bed.core.leave(Next::Change(change));
    });
    assert!(happened(&[Event::Sgi(Pintid::new(0), pcpu(0, 1))]));
    assert_eq!(vm.psci.state(VcpuId::new(0)), Some(AffinityState::OnPending));
    assert_eq!(vm.psci.state(VcpuId::new(1)), Some(AffinityState::Off));
    assert!(!vm.lifecycle.wants_out());
}

#[test]
fn t91_system_off_during_a_reset_does_not_end_the_next_run() {
    let mut bed = Bed::new();
    let (vm, hypervisor) = (bed.vm, bed.core.hypervisor);
    enter(vm);
    bed.core.registers.x[0] = SYSTEM_RESET;
    let Some(Next::Change(change)) = bed.exit(hvc(0)) else { panic!("no reset") };
    thread::scope(|threads| {
        threads.spawn(|| {
            let mut other = Bed { vm, core: core(hypervisor, 0, 1) };
            other.core.registers.x[0] = SYSTEM_OFF;
            let Some(next) = other.exit(hvc(0)) else { panic!("not off") };
            while !vm.lifecycle.wants_out() {
                thread::yield_now();
            }
            other.core.leave(next);
        });
        bed.core.leave(Next::Change(change));
    });
    assert!(!vm.lifecycle.wants_out(), "it runs anew");
    assert!(vm.lifecycle.state() == State::Running);
}

#[test]
fn a_vm_that_ends_does_what_its_policies_say() {
    use Change::{Start, Stop};

    let ends = |function, on_reboot, on_poweroff| {
        let mut plan = plan();
        for vm in &mut *plan.vms {
            (vm.policies.on_reboot, vm.policies.on_poweroff) = (on_reboot, on_poweroff);
        }
        let mut bed = Bed::on(hypervisor(&plan));
        bed.core.registers.x[0] = function;
        bed.exit(hvc(0))
    };
    for (policy, change) in [(OnEnd::Restart, Start), (OnEnd::Stop, Stop)] {
        for other in [OnEnd::Restart, OnEnd::Stop] {
            assert_eq!(ends(SYSTEM_RESET, policy, other), Some(Next::Change(change)));
            assert_eq!(ends(SYSTEM_OFF, other, policy), Some(Next::Change(change)));
        }
    }
    // The core halts.
    clear_events();
    assert_eq!(ends(SYSTEM_OFF, OnEnd::Restart, OnEnd::Machine), None);
    assert!(happened(&[Event::SystemOff]) && !happened(&[Event::SystemReset]));
    assert_eq!(ends(SYSTEM_RESET, OnEnd::Machine, OnEnd::Restart), None);
    assert!(happened(&[Event::SystemReset]));
}

/// Lets a VM's vCPU 0 run on this thread until it turns its VM off.
fn turn_off(hypervisor: &'static Hypervisor, vm: usize) {
    let mut core = core(hypervisor, vm, 0);
    // X0 at the entry is the tree's address, so the guest's call takes two steps: the run loop is
    // left at an empty script, and taken up again.
    serve(&mut core);
    let mut bed = Bed { vm: core.vm, core };
    bed.core.registers.x[0] = SYSTEM_OFF;
    let Some(Next::Change(change)) = bed.exit(hvc(0)) else { panic!("not off") };
    let core = &mut bed.core;
    let led = std::panic::AssertUnwindSafe(|| core.leave(Next::Change(change)));
    let _ = std::panic::catch_unwind(led);
}

#[test]
fn t91_system_off_of_the_last_vm_turns_the_machine_off() {
    let hypervisor = hypervisor(&plan());
    turn_off(hypervisor, 0);
    assert!(!happened(&[Event::SystemOff]), "the other VM runs on");
    turn_off(hypervisor, 1);
    assert!(happened(&[Event::SystemOff]));
}

#[test]
fn vm_whose_image_has_changed_does_not_start() {
    let hypervisor = hypervisor(&plan());
    crate::arch::write_bytes(map(pa_range(0x7000_0000, 1)), b"K");
    let mut core = core(hypervisor, 0, 0);
    script(&[hvc(0)]);
    serve(&mut core);
    assert!(!happened(&[Event::Enter]), "{:?}", events());
    assert!(vm(hypervisor, 0).lifecycle.wants_out());
    assert!(vm(hypervisor, 0).lifecycle.state() == State::Off);
}

/// The focus goes to a guest whose output was kept: that is sent at once, for nobody else may have
/// anything to say.
#[test]
fn t114_what_was_kept_goes_out_when_the_other_guest_goes_off() {
    let hypervisor = hypervisor(&plan());
    let console = &hypervisor.console;
    for n in [0, 1] {
        console.mux.started(vm(hypervisor, n).id);
    }
    for byte in *b"kept" {
        let _ = console.mux.push_guest(vm(hypervisor, 1).id, byte);
    }
    console.send();
    clear_events();
    hypervisor.vm_is_off(vm(hypervisor, 0));
    let sent = events().into_iter().filter_map(|event| match event {
        Event::DeviceWrite(at, byte) if at.get() == UART => u8::try_from(byte).ok(),
        _ => None,
    });
    let sent = std::string::String::from_utf8(sent.collect()).unwrap();
    assert!(sent.ends_with("kept"), "{sent:?}");
}
