// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Requests from outside, what the guest does, and a simple model of both, at random.
#![forbid(unsafe_code)]

use super::bed::*;
use crate::arch::fake::machine::{Event, ExitKind, Hook, Scripted, with, write_uncached};
use crate::drivers::gic::PrivateInterrupts;
use crate::hypervisor::Hypervisor;
use crate::id::{Pintid, VcpuId, VmId};
use crate::memory::owners::Owner;
use crate::vcpu::Core;
use crate::vm::Vm;
use crate::vm::lifecycle::{Request, State};
use std::boxed::Box;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

const KICK: Pintid = Pintid::new(0);
const VM: VmId = VmId::new(0);
const INTERRUPT: Scripted = Scripted { kind: ExitKind::Interrupt, esr: 0, far: 0, ipa: 0 };
const SYSTEM_OFF: u64 = 0x8400_0008;
const SYSTEM_RESET: u64 = 0x8400_0009;

/// What happens next.
#[derive(Clone, Copy, Debug)]
enum Step {
    Client(Request),
    /// The guest turns itself off, or resets itself.
    Call(u64),
    /// The guest writes to its memory, and its timer fires.
    Work,
}

/// What may happen, and how often.
const STEPS: [(Step, u64); 9] = [
    (Step::Client(Request::Start), 8),
    (Step::Client(Request::Kill), 1),
    (Step::Client(Request::Reset), 1),
    (Step::Client(Request::Pause), 20),
    (Step::Client(Request::Resume), 24),
    (Step::Client(Request::Destroy), 1),
    (Step::Call(SYSTEM_OFF), 1),
    (Step::Call(SYSTEM_RESET), 1),
    (Step::Work, 40),
];

/// What a VM is to be like, in a few lines.
struct Model {
    state: State,
    /// Whether its guest has written to its memory since it was loaded.
    is_dirty: bool,
    /// How often it was loaded.
    loads: usize,
    steps_left: usize,
    random: u64,
    table: Table,
}

/// Which requests the model grants.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Table {
    Right,
    /// The twin's: a VM that is paused can be paused.
    PausesTwice,
}

impl Model {
    fn load(&mut self) {
        (self.state, self.is_dirty) = (State::Running, false);
        self.loads += 1;
    }

    /// Says whether a request fits, and what it brings about.
    fn request(&mut self, request: Request) -> Result<(), State> {
        // The core has resumed it before it is idle again.
        use State::{Gone, Off, Paused, Running};
        match (request, self.state) {
            (Request::Start, Off) | (Request::Reset, Running | Paused) => self.load(),
            (Request::Kill, Running | Paused) => self.state = Off,
            (Request::Pause, Running) => self.state = Paused,
            (Request::Pause, Paused) if self.table == Table::PausesTwice => {}
            (Request::Resume, Paused) => self.state = Running,
            (Request::Destroy, Off) => self.state = Gone,
            (_, state) => return Err(state),
        }
        Ok(())
    }

    fn next(&mut self) -> Step {
        // xorshift64
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let mut left = self.random % STEPS.iter().map(|(_, weight)| weight).sum::<u64>();
        let drawn = STEPS.iter().find(|(_, weight)| {
            let is_here = left < *weight;
            left = left.saturating_sub(*weight);
            is_here
        });
        drawn.unwrap().0
    }
}

/// Kicks the core: out of its guest where it is in it.
fn kick(from: State) {
    with(|core| core.pending.push_back(KICK));
    if from == State::Running {
        with(|core| core.exits.push_back(INTERRUPT));
    }
}

/// The core has nothing to do: what it has done must be what the model says. Then comes the next
/// step.
fn idle(hypervisor: &Hypervisor, model: &mut Model) {
    let state = hypervisor.vms[0].look(|vm| vm.lifecycle.state()).unwrap();
    assert_eq!(state, model.state);
    let events = with(|core| std::mem::take(&mut core.events));
    let loads = events.iter().filter(|event| **event == Event::PublishCode).count();
    assert_eq!(loads, std::mem::take(&mut model.loads), "{events:?}");
    if model.steps_left == 0 {
        return;
    }
    model.steps_left -= 1;
    let is_in_guest = state == State::Running;
    match model.next() {
        Step::Client(request) => {
            let answer = hypervisor.vms[0].look(|vm| vm.request(request)).unwrap();
            assert_eq!(answer, model.request(request), "{request:?} when {state}");
            kick(state);
        }
        Step::Call(function) if is_in_guest => {
            with(|core| core.x0 = Some(function));
            with(|core| core.exits.push_back(hvc(0)));
            match function {
                SYSTEM_OFF => model.state = State::Off,
                _ => model.load(),
            }
        }
        Step::Work if is_in_guest => {
            model.is_dirty = true;
            write_uncached(pa_range(RAM_PA, 1).start(), b"dirty");
            with(|core| core.pending.push_back(Pintid::new(27)));
            with(|core| core.exits.push_back(INTERRUPT));
        }
        // A guest that does not run does nothing.
        Step::Call(_) | Step::Work => kick(state),
    }
}

/// 10^5 steps: after each the VM is as the model says, it was loaded as often as it should be, and
/// when it is gone nothing of it is left.
#[test]
fn t91_random_requests_do_what_a_model_does() {
    let lives = take_steps(100_000, Table::Right);
    assert!(lives > 100, "{lives} lives");
}

/// The twin: a client that is granted what another was already is noticed.
#[test]
fn t91_twin_that_grants_a_pause_twice_is_noticed() {
    let outcome = catch_unwind(|| take_steps(1000, Table::PausesTwice));
    let why = outcome.unwrap_err();
    let why = why.downcast_ref::<std::string::String>().unwrap();
    assert!(why.contains("Pause when paused"), "{why}");
}

/// For who watches its core, a guest that has not left since it was begun runs, and is not stuck.
#[test]
fn guest_that_never_leaves_is_in_its_guest() {
    let plan = plan();
    let hypervisor = hypervisor(&plan);
    let private = Box::leak(Box::new(private_interrupts()));
    let since = |vm: &Vm| vm.counters[0].beat().unwrap().since();
    let seen = Rc::new(RefCell::new(None));
    let hooked = seen.clone();
    with(|core| {
        core.counter = 7;
        core.on_idle = Hook::new(move || {
            *hooked.borrow_mut() = hypervisor.vms[0].look(|vm| (vm.lifecycle.state(), since(vm)));
        });
    });
    let served = hypervisor.vms[0].look(|vm| serve_with(hypervisor, vm, private));
    assert_eq!(served, Some(Served::Unwound));
    assert_eq!(*seen.borrow(), Some((State::Running, None)));
}

/// Takes so many steps and returns how often the VM was destroyed and made again.
fn take_steps(steps: usize, table: Table) -> usize {
    let plan = plan();
    let hypervisor = hypervisor(&plan);
    let private = Box::leak(Box::new(private_interrupts()));
    let model = Rc::new(RefCell::new(Model {
        state: State::Off,
        is_dirty: false,
        loads: 0,
        steps_left: steps,
        random: 0x9e37_79b9_7f4a_7c15,
        table,
    }));
    model.borrow_mut().load();
    let hooked = model.clone();
    with(|core| core.on_idle = Hook::new(move || idle(hypervisor, &mut hooked.borrow_mut())));
    let slot = &hypervisor.vms[0];
    let memory = |owner| hypervisor.estate.acquire().owners.memory_of(owner).count();
    let mut lives = 0;
    while model.borrow().steps_left > 0 {
        let served = slot.look(|vm| serve_with(hypervisor, vm, private));
        if served == Some(Served::Gone) {
            hypervisor.destroy(VM, &mut || ());
            assert!(slot.look(|_| ()).is_none());
            assert_eq!((memory(Owner::Vm(VM)), memory(Owner::Free)), (0, 1));
            assert!(slot.take(), "the slot is free again");
            slot.fill(make_vm(0, &plan.vms[0], &hypervisor.estate));
            model.borrow_mut().state = State::Off;
            lives += 1;
        }
    }
    lives
}

#[derive(PartialEq, Eq, Debug)]
enum Served {
    Gone,
    Unwound,
}

fn serve_with(hypervisor: &'static Hypervisor, vm: &Vm, private: &mut PrivateInterrupts) -> Served {
    let mut core = Core::new(hypervisor, vm, VcpuId::new(0), private).unwrap();
    match catch_unwind(AssertUnwindSafe(|| core.serve())) {
        Ok(()) => Served::Gone,
        // The core has nothing to do any more; a test that has failed goes on failing.
        Err(end) if end.is::<&str>() => Served::Unwound,
        Err(failure) => std::panic::resume_unwind(failure),
    }
}
