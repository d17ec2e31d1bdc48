// SPDX-License-Identifier: Apache-2.0 OR MIT
//! One core watches all that serve a vCPU: which of them is at EL2 and does not come out. Its VM
//! is lost then; all others go on (ADR 13).
//!
//! What cores say of themselves is in [`trace`](crate::trace).
#![forbid(unsafe_code)]

use super::{Hypervisor, MachineEnd};
use crate::arch;
use crate::heap::{self, NoMemory};
use crate::id::{Mpidr, VcpuId, VmId};
use crate::plan::OnCrash;
use crate::sync::{Guard, Lock};
use crate::trace::{Found, Watched};
use crate::vm::Vm;
use crate::vm::crash::{Capsule, Crash, CrashCause};
use crate::vm::lifecycle::State;
use alloc::boxed::Box;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// How long a core may be at EL2 without a look for interrupts.
const PATIENCE_MS: u64 = 200;
/// How often all cores are looked at.
const PERIOD_MS: u64 = 100;

/// What the watching core knows.
#[derive(Debug)]
pub struct Watch {
    /// Which core watches.
    core: Mpidr,
    /// What it knows of each core, in the order of /cpus, and whether the crash has still to begin
    /// of the VM that it was stuck with.
    cores: Lock<Box<[(Watched, bool)]>>,
    next_ticks: AtomicU64,
    /// Whether the machine ends: who sees to that may take long.
    is_over: AtomicBool,
}

impl Watch {
    /// Has a core watch so many.
    ///
    /// # Errors
    /// The heap has no room for it.
    pub fn new(core: Mpidr, count: usize) -> Result<Self, NoMemory> {
        let cores = heap::collect((0..count).map(|_| Default::default()))?;
        let (next_ticks, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
        Ok(Self { core, cores: Lock::new(cores), next_ticks, is_over })
    }

    /// Says that the machine ends.
    pub(super) fn end(&self) {
        self.is_over.store(true, Relaxed);
    }
}

impl Hypervisor {
    /// Looks at all cores when it is time to, where this is the core that watches.
    #[cold]
    #[inline(never)]
    pub fn watch_cores(&self) {
        let is_here =
            |watch: &&Watch| watch.core == arch::this_mpidr() && !watch.is_over.load(Relaxed);
        let Some(watch) = self.watch.as_ref().filter(is_here) else { return };
        let now = arch::counter();
        let mut next = watch.next_ticks.load(Relaxed);
        if now >= next {
            next = now.saturating_add(ticks(PERIOD_MS));
            watch.next_ticks.store(next, Relaxed);
            let mut cores = watch.cores.acquire();
            for (post, (watched, owes_crash)) in self.posts.iter().zip(&mut *cores) {
                let Some((vm, vcpu)) = post.serves() else {
                    (*watched, *owes_crash) = Default::default();
                    continue;
                };
                let since = |vm: &Vm| vm.counters.get(vcpu.index())?.beat()?.since();
                let since = self.with_vm(vm, since).flatten();
                match watched.look(since, now, ticks(PATIENCE_MS)) {
                    Found::Nothing => {}
                    Found::Stuck(took) => {
                        *owes_crash = self.lose(post.mpidr, (vm, vcpu), now, took);
                    }
                    Found::Back => {
                        let owes_crash = core::mem::take(owes_crash);
                        self.find(post.mpidr, (vm, vcpu), owes_crash);
                    }
                }
            }
        }
        arch::arm_hyp_timer(next);
    }

    /// Gives up a VM one of whose cores has been stuck for so many ticks, and returns whether its
    /// crash could not begin.
    fn lose(&self, cpu: Mpidr, (vm, vcpu): (VmId, VcpuId), now: u64, took: u64) -> bool {
        let lost = self.with_vm(vm, |vm| {
            // First, so that no core keeps where it was before there is a crash to keep it for. Who
            // is stuck may hold it: then the crash begins when that core is back.
            let capsule = try_for_a_while(&vm.capsule);
            let was = vm.lifecycle.lose();
            let ran = matches!(was, Some(State::Running | State::Paused | State::Resuming));
            let owes_crash = ran && capsule.is_none();
            if let Some(mut capsule) = capsule.filter(|_| ran) {
                self.begin_crash(vm, &mut capsule, (vcpu, now.wrapping_sub(took)));
            }
            log::error!(
                target: "vm",
                "{} lost: cpu {cpu}, its vCPU {}, is stuck at EL2 for {} ms",
                vm.plan.name,
                vcpu.get(),
                took.saturating_mul(1000) / arch::counter_frequency_hz().max(1)
            );
            if was.is_none_or(|state| state == State::Gone) {
                return false;
            }
            // The one that is stuck too: should it come back, it is to stand aside.
            vm.kick_each(vm.all_vcpus());
            self.vm_is_lost(vm, State::Lost);
            if vm.plan.policies.on_crash == OnCrash::Machine {
                self.end_machine(MachineEnd::Reset);
            }
            owes_crash
        });
        lost.unwrap_or(false)
    }

    fn begin_crash(&self, vm: &Vm, capsule: &mut Capsule, (vcpu, at_ticks): (VcpuId, u64)) {
        let crash = Crash { cause: CrashCause::Stuck, vcpu, at_ticks };
        capsule.begin(crash, |tail| self.console.mux.tail(vm.id, tail));
        vm.fate.count_crash(arch::counter(), arch::counter_frequency_hz());
    }

    /// Lets a VM whose core is back end as one that has crashed.
    fn find(&self, cpu: Mpidr, (vm, vcpu): (VmId, VcpuId), owes_crash: bool) {
        self.with_vm(vm, |vm| {
            log::info!(target: "vm", "{}: cpu {cpu} is back", vm.plan.name);
            let mut capsule = try_for_a_while(&vm.capsule);
            if let Some(capsule) = capsule.as_mut().filter(|_| owes_crash) {
                self.begin_crash(vm, capsule, (vcpu, arch::counter()));
            }
            vm.lifecycle.find();
            drop(capsule);
            // Each keeps where it was, and its core of vCPU 0 decides what follows.
            vm.kick_each(vm.all_vcpus());
        });
    }
}

/// Takes a lock that somebody may hold for good.
fn try_for_a_while<T>(lock: &Lock<T>) -> Option<Guard<'_, T>> {
    const TRIES_MAX: u32 = 1000;
    (0..TRIES_MAX).find_map(|_| {
        arch::relax();
        lock.try_lock()
    })
}

fn ticks(ms: u64) -> u64 {
    ms.saturating_mul(arch::counter_frequency_hz()) / 1000
}
