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
use crate::sync::Lock;
use crate::trace::{Found, Watched};
use crate::vm::Vm;
use crate::vm::crash::{Crash, CrashCause};
use crate::vm::lifecycle::State;
use alloc::boxed::Box;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// How long a core may be at EL2 without a look for interrupts.
const PATIENCE_MS: u64 = 200;
/// How often all cores are looked at.
const PERIOD_MS: u64 = 100;

/// What the watching core knows.
#[derive(Debug)]
pub struct Watch {
    /// Which core watches.
    core: Mpidr,
    /// What it knows of each core, in the order of /cpus.
    cores: Lock<Box<[Watched]>>,
    next_ticks: AtomicU64,
}

impl Watch {
    /// Has a core watch so many.
    ///
    /// # Errors
    /// The heap has no room for it.
    pub fn new(core: Mpidr, count: usize) -> Result<Self, NoMemory> {
        let cores = heap::collect((0..count).map(|_| Watched::default()))?;
        Ok(Self { core, cores: Lock::new(cores), next_ticks: AtomicU64::new(0) })
    }
}

impl Hypervisor {
    /// Looks at all cores when it is time to, where this is the core that watches.
    #[cold]
    #[inline(never)]
    pub fn watch_cores(&self) {
        let Some(watch) = self.watch.as_ref().filter(|watch| watch.core == arch::this_mpidr())
        else {
            return;
        };
        let now = arch::counter();
        let mut next = watch.next_ticks.load(Relaxed);
        if now >= next {
            next = now.saturating_add(ticks(PERIOD_MS));
            watch.next_ticks.store(next, Relaxed);
            for (post, watched) in self.posts.iter().zip(&mut *watch.cores.acquire()) {
                let Some((vm, vcpu)) = post.serves() else { continue };
                let since = |vm: &Vm| vm.counters.get(vcpu.index())?.beat()?.since();
                let since = self.with_vm(vm, since).flatten();
                match watched.look(since, now, ticks(PATIENCE_MS)) {
                    Found::Nothing => {}
                    Found::Stuck(took) => self.lose(post.mpidr, (vm, vcpu), now, took),
                    Found::Back => self.find(post.mpidr, vm),
                }
            }
        }
        arch::arm_hyp_timer(next);
    }

    /// Gives up a VM one of whose cores has been stuck for so many ticks.
    fn lose(&self, cpu: Mpidr, (vm, vcpu): (VmId, VcpuId), now: u64, took: u64) {
        self.with_vm(vm, |vm| {
            let was = vm.lifecycle.lose();
            log::error!(
                target: "vm",
                "{} lost: cpu {cpu}, its vCPU {}, is stuck at EL2 for {} ms",
                vm.plan.name,
                vcpu.get(),
                took.saturating_mul(1000) / arch::counter_frequency_hz().max(1)
            );
            if was.is_none_or(|state| state == State::Gone) {
                return;
            }
            // The one that is stuck too: should it come back, it is to stand aside.
            vm.kick_each(vm.all_vcpus());
            // Who is stuck may hold it.
            if let Some(mut capsule) = vm.capsule.try_lock() {
                let at_ticks = now.wrapping_sub(took);
                let crash = Crash { cause: CrashCause::Stuck, vcpu, at_ticks };
                capsule.begin(crash, |tail| self.console.mux.tail(vm.id, tail));
                vm.fate.count_crash(now, arch::counter_frequency_hz());
            }
            self.vm_is_lost(vm, State::Lost);
            if vm.plan.policies.on_crash == OnCrash::Machine {
                self.end_machine(MachineEnd::Reset);
            }
        });
    }

    /// Lets a VM whose core is back end as one that has crashed.
    fn find(&self, cpu: Mpidr, vm: VmId) {
        self.with_vm(vm, |vm| {
            log::info!(target: "vm", "{}: cpu {cpu} is back", vm.plan.name);
            vm.lifecycle.find();
            // Its core of vCPU 0 decides what follows.
            vm.kick(VcpuId::new(0));
        });
    }
}

fn ticks(ms: u64) -> u64 {
    ms.saturating_mul(arch::counter_frequency_hz()) / 1000
}
