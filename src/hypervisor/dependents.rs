// SPDX-License-Identifier: Apache-2.0 OR MIT
//! VMs that start after others and depend on them.
#![forbid(unsafe_code)]

use super::Hypervisor;
use crate::bits::Level;
use crate::id::VmId;
use crate::plan::OnLoss;
use crate::vcpu::FromCore;
use crate::vm::Vm;
use crate::vm::lifecycle::{Request, State};

impl Hypervisor {
    /// Has every VM start that is off, in the order that the plan says.
    pub fn start_all(&self) {
        for slot in &self.vms {
            slot.look(|vm| {
                vm.fate.wait_for_others();
                self.start_if_ready(vm);
            });
        }
    }

    /// Tells those that depend on a VM that it has begun: some start, the others have it again.
    pub(super) fn vm_is_there(&self, vm: &Vm) {
        self.each_dependent(vm.id, |dependent| {
            self.start_if_ready(dependent);
            self.tell(dependent);
        });
    }

    /// Tells those that depend on a VM that it is not there, off, crashed or lost, or has them
    /// stopped.
    pub fn vm_is_lost(&self, vm: &Vm, state: State) {
        self.each_dependent(vm.id, |dependent| match dependent.plan.policies.on_loss {
            OnLoss::Tell => self.tell(dependent),
            // It may be back soon, unless it is off or lost.
            OnLoss::Stop if matches!(state, State::Off | State::Lost) => {
                dependent.kill_now_or_then();
            }
            OnLoss::Stop | OnLoss::Ignore => {}
        });
    }

    /// Starts a VM that waits, when all that it starts after run.
    fn start_if_ready(&self, vm: &Vm) {
        if vm.fate.waits_for_others() && self.missing(vm).is_none() && vm.fate.end_wait() {
            // Somebody may have started it by hand.
            let _ = vm.request(Request::Start);
        }
    }

    /// Has a line of the VM's GPIO controller say whether one that it depends on is missing.
    fn tell(&self, vm: &Vm) {
        if vm.plan.policies.on_loss == OnLoss::Tell {
            let level = if self.missing(vm).is_some() { Level::High } else { Level::Low };
            vm.set_dependency_lost(&FromCore { vm, own: None, hypervisor: self }, level);
        }
    }

    /// Returns a VM that this one depends on and that does not run.
    fn missing(&self, vm: &Vm) -> Option<VmId> {
        let runs = |vm: &Vm| {
            matches!(vm.lifecycle.state(), State::Running | State::Paused | State::Resuming)
        };
        let is_missing = |id: &&VmId| !self.with_vm(**id, runs).unwrap_or(false);
        vm.plan.policies.after.iter().find(is_missing).copied()
    }

    fn each_dependent(&self, id: VmId, mut act: impl FnMut(&Vm)) {
        for slot in &self.vms {
            slot.look(|vm| {
                if vm.plan.policies.after.contains(&id) {
                    act(vm);
                }
            });
        }
    }
}
