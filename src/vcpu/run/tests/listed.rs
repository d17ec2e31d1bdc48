// SPDX-License-Identifier: Apache-2.0 OR MIT
//! State in the list registers of another vCPU, whose guest runs on: a thread is its core.
#![forbid(unsafe_code)]

use super::super::Next;
use super::bed::*;
use crate::arch::fake::machine::{Event, with};
use crate::id::{Pintid, VcpuId};
use crate::spec::gic::Lr;
use crate::vm::lifecycle::Change;
use std::boxed::Box;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

const CPU_ON: u64 = 0xc400_0003;
/// An SPI without a device, its bit, and the registers that have it.
const INTID: u64 = 45;
const BIT: u64 = 1 << (INTID - 32);
const ISENABLER: u64 = VDIST + 0x104;
const ICENABLER: u64 = VDIST + 0x184;
const ISPENDR: u64 = VDIST + 0x204;
const ICPENDR: u64 = VDIST + 0x284;
const ISACTIVER: u64 = VDIST + 0x304;
const ICACTIVER: u64 = VDIST + 0x384;
const IROUTER: u64 = VDIST + 0x6000 + 8 * INTID;
/// The SGIs and PPIs of vCPU 0 and of vCPU 1.
const PRIVATE: [u64; 2] = [VREDIST + 0x1_0000, VREDIST + 0x3_0000];

/// ICH_LR<n>_EL2 with the SPI at priority 0.
const IN_LIST_REGISTER: u64 = 1 << 60 | 1 << 41 | INTID;
const PENDING: u64 = 1 << 62;
const ACTIVE: u64 = 2 << 62;

type Job = Box<dyn FnOnce(&mut Bed) + Send>;

/// vCPU 1 on a core of its own. Its guest does nothing that would make it leave.
struct Other {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Other {
    /// Turns vCPU 1 on.
    fn start(bed: &mut Bed) -> Self {
        assert_eq!(bed.hvc([CPU_ON, 1, RAM, 0]), 0);
        let hypervisor = bed.core.hypervisor;
        let (jobs, inbox) = channel();
        let (ready, is_ready) = channel();
        let thread = thread::spawn(move || {
            let mut core = core(hypervisor, 0, 1);
            serve(&mut core);
            ready.send(()).unwrap();
            Self::live(Bed { vm: core.vm, core }, &inbox);
        });
        is_ready.recv().unwrap();
        Self { jobs: Some(jobs), thread: Some(thread) }
    }

    /// Leaves the guest when there is work, as a kick makes it, and does what the test asks for.
    fn live(mut bed: Bed, inbox: &Receiver<Job>) {
        use std::sync::mpsc::TryRecvError;
        loop {
            let has_work = bed.vm.vgic.vredist(VcpuId::new(1)).unwrap().has_work();
            if has_work && bed.interrupt(0) == Some(Next::Out) {
                return;
            }
            match inbox.try_recv() {
                Ok(job) => job(&mut bed),
                Err(TryRecvError::Empty) => thread::yield_now(),
                Err(TryRecvError::Disconnected) => return,
            }
        }
    }

    /// Starts something on that core.
    fn begin<R: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Bed) -> R + Send + 'static,
    ) -> Receiver<R> {
        let (done, result) = channel();
        let job: Job = Box::new(move |bed| done.send(job(bed)).unwrap());
        self.jobs.as_ref().unwrap().send(job).unwrap();
        result
    }
    /// Does something on that core.
    fn run<R: Send + 'static>(&self, job: impl FnOnce(&mut Bed) -> R + Send + 'static) -> R {
        self.begin(job).recv().unwrap()
    }
    /// Returns its list register 0 once that has something.
    fn delivered(&self) -> u64 {
        loop {
            let lr = self.run(|_| with(|core| core.list_registers[0].get()));
            if lr != 0 {
                return lr;
            }
        }
    }
    /// The guest there, or its hardware, changes list register 0.
    fn set(&self, value: u64) {
        self.run(move |_| with(|core| core.list_registers[0] = Lr::from_register(value)));
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        drop(self.jobs.take());
        let outcome = self.thread.take().unwrap().join();
        assert!(outcome.is_ok() || thread::panicking());
    }
}

/// Two vCPUs on, and the SPI is pending in a list register of the other one.
fn two() -> (Bed, Other) {
    let mut bed = Bed::new();
    bed.enable(0xffff, BIT);
    let other = Other::start(&mut bed);
    bed.write(IROUTER, 1);
    bed.write(ISPENDR, BIT);
    // It is level-triggered, so that its end is reported.
    assert_eq!(other.delivered(), PENDING | IN_LIST_REGISTER);
    (bed, other)
}

#[test]
fn t70_state_in_another_running_vcpus_list_register_is_read() {
    let (mut bed, other) = two();
    let mut state = || [bed.read(ISPENDR), bed.read(ICPENDR), bed.read(ISACTIVER)].map(|w| w & BIT);
    for _ in 0..10 {
        assert_eq!(state(), [BIT, BIT, 0]);
        other.set(ACTIVE | IN_LIST_REGISTER);
        assert_eq!(state(), [0, 0, BIT]);
        other.set(PENDING | IN_LIST_REGISTER);
    }
    other.set(IN_LIST_REGISTER);
    assert_eq!(state(), [0; 3]);
}

#[test]
fn t75_state_of_another_running_vcpus_sgis_is_read() {
    let mut bed = Bed::new();
    bed.enable(0xffff, 0);
    let other = Other::start(&mut bed);
    let [enable, pending, active] = [0x100, 0x200, 0x300].map(|offset| PRIVATE[1] + offset);
    bed.write(enable, 0xffff);
    let sgi = 1 << 60 | 5;
    for _ in 0..10 {
        bed.write(pending, 1 << 5);
        assert_eq!([bed.read(pending), bed.read(active)], [1 << 5, 0]);
        assert_eq!(other.delivered(), PENDING | sgi);
        other.set(ACTIVE | sgi);
        assert_eq!([bed.read(pending), bed.read(active)], [0, 1 << 5]);
        other.set(sgi);
        assert_eq!([bed.read(pending), bed.read(active)], [0, 0]);
    }
}

#[test]
fn t75_what_is_cleared_on_another_running_vcpu_is_gone_when_the_write_is_over() {
    for (state, register) in [(PENDING, ICPENDR), (ACTIVE, ICACTIVER), (PENDING, ICENABLER)] {
        let (mut bed, other) = two();
        other.set(state | IN_LIST_REGISTER);
        bed.write(register, BIT);
        assert_eq!(other.run(|bed| bed.state()), [], "{register:#x}");
    }
}

#[test]
fn t78_group_that_is_turned_off_is_off_on_all_vcpus_when_the_write_is_over() {
    let (mut bed, other) = two();
    bed.write(VDIST, 0);
    assert_eq!(other.run(|bed| bed.state()), []);
    assert_eq!(bed.read(ISPENDR) & BIT, BIT);
}

/// Each core serves the other while it waits for it.
#[test]
fn t75_two_cores_that_look_at_each_other_go_on() {
    const ROUNDS: u64 = 300;
    let mut bed = Bed::new();
    bed.enable(0, 0);
    let other = Other::start(&mut bed);
    let there = other.begin(|bed| (0..ROUNDS).map(|_| bed.read(PRIVATE[0] + 0x200)).sum::<u64>());
    let here = (0..ROUNDS).map(|_| bed.read(PRIVATE[1] + 0x200)).sum::<u64>();
    // This core's guest runs on, until the other one has read all.
    let there = loop {
        if bed.vm.vgic.vredist(VcpuId::new(0)).unwrap().has_work() {
            assert_eq!(bed.interrupt(0), None);
        }
        if let Ok(sum) = there.try_recv() {
            break sum;
        }
        thread::yield_now();
    };
    assert_eq!([here, there], [0, 0]);
}

fn kicks() -> usize {
    let is_kick = |event: &Event| matches!(event, Event::Sgi(Pintid { .. }, _));
    events().into_iter().filter(is_kick).count()
}

#[test]
fn t75_nobody_is_asked_who_has_nothing() {
    let mut bed = Bed::new();
    bed.enable(0xffff, BIT);
    // vCPU 1 is off.
    assert_eq!(bed.read(PRIVATE[1] + 0x200), 0);
    bed.write(PRIVATE[1] + 0x380, u64::MAX >> 32);
    clear_events();
    assert_eq!(bed.read(PRIVATE[1] + 0x300), 0);
    assert_eq!(kicks(), 0);
    // It is on, but this SPI is in no list register of it.
    let other = Other::start(&mut bed);
    other.run(|_| ());
    clear_events();
    assert_eq!([bed.read(ISPENDR), bed.read(ISACTIVER)], [0, 0]);
    bed.write(ICENABLER, BIT);
    assert_eq!(kicks(), 0);
}

#[test]
fn t75_who_adds_waits_for_nobody() {
    let (mut bed, other) = two();
    let (go_on, wait) = channel::<()>();
    let (begun, is_busy) = channel();
    let busy = other.begin(move |_| begun.send(()).is_ok() && wait.recv().is_ok());
    is_busy.recv().unwrap();
    clear_events();
    let looks_at_counter = |bed: &mut Bed, register| {
        let start = with(|core| core.counter);
        bed.write(register, BIT);
        with(|core| core.counter) - start
    };
    let plain = looks_at_counter(&mut bed, ISENABLER);
    assert_eq!(looks_at_counter(&mut bed, ISPENDR), plain);
    assert_eq!(kicks(), 1, "it is told all the same");
    go_on.send(()).unwrap();
    assert!(busy.recv().unwrap());
    assert_eq!(bed.read(ISPENDR) & BIT, BIT);
}

/// A core that does not come, which is a bug, or leaves because the VM ends, holds nobody up.
#[test]
fn t75_a_core_that_does_not_look_is_not_waited_for_for_good() {
    for is_ending in [false, true] {
        let (mut bed, other) = two();
        assert_eq!(bed.read(ISPENDR) & BIT, BIT);
        other.set(ACTIVE | IN_LIST_REGISTER);
        let (go_on, wait) = channel::<()>();
        let (begun, is_busy) = channel();
        let busy = other.begin(move |_| begun.send(()).is_ok() && wait.recv().is_ok());
        is_busy.recv().unwrap();
        if is_ending {
            let _ = bed.vm.lifecycle.begin(Change::Stop);
        } else {
            with(|core| core.counter_step = 1_000_000);
        }
        assert_eq!(bed.read(ISPENDR) & BIT, BIT, "as of when it was seen last");
        go_on.send(()).unwrap();
        assert!(busy.recv().unwrap());
        if is_ending {
            return;
        }
        with(|core| core.counter_step = 1);
        assert_eq!(bed.read(ISPENDR) & BIT, 0);
    }
}

/// Others ask again and again while a core looks; who asked last has an answer too.
#[test]
fn t67_work_that_comes_while_a_core_looks_is_done() {
    let mut bed = Bed::new();
    bed.enable(0xffff, BIT);
    let vredist = bed.vm.vgic.vredist(VcpuId::new(0)).unwrap();
    for _ in 0..300 {
        let asking = thread::spawn(|| (0..200).map(|_| vredist.ask_for_look(&())).last().unwrap());
        let mut go_on = || {
            while vredist.has_work() {
                assert_eq!(bed.interrupt(0), None);
            }
        };
        while !asking.is_finished() {
            go_on();
        }
        let asked = asking.join().unwrap();
        go_on();
        assert!(vredist.has_looked_since(asked));
    }
}
