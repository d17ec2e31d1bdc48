// SPDX-License-Identifier: Apache-2.0 OR MIT
//! HVC and SMC: the router's answer, carried out.
#![forbid(unsafe_code)]

use super::{Core, Next};
use crate::arch;
use crate::hypervisor::MachineEnd;
use crate::plan::OnEnd;
use crate::psci::{Action, Reset};
use crate::smccc::{self, Call, Workaround};
use crate::spec::smccc::{FunctionId, SUCCESS};
use crate::vm::lifecycle::Change;

impl Core<'_> {
    /// Answers a call; the guest goes on behind the instruction.
    #[inline(always)]
    pub(super) fn call(&mut self, immediate: u16) -> Next {
        match smccc::psci_function(self.x(0), immediate) {
            Some(function) => self.psci_call(function),
            None => self.other_call(immediate),
        }
    }

    #[inline(never)]
    fn other_call(&mut self, immediate: u16) -> Next {
        match smccc::route(self.x(0), self.x(1), immediate, &self.hypervisor.workarounds) {
            Call::Return(value) => self.return_to_guest(value),
            Call::ReturnWords(words) => {
                for (n, word) in (0..).zip(words) {
                    self.set_x(n, word.into());
                }
                Next::Enter
            }
            Call::Mitigate(workaround) => self.mitigate(workaround),
        }
    }

    fn return_to_guest(&mut self, value: u64) -> Next {
        self.set_x0(value);
        Next::Enter
    }

    #[inline(always)]
    fn psci_call(&mut self, function: FunctionId) -> Next {
        let x = &self.registers.x;
        let arguments = || [x[1], x[2], x[3]];
        match self.vm.psci.call(function, arguments, |entry| self.vm.is_entry(entry)) {
            Action::Return(value) => self.return_to_guest(value),
            Action::TurnOn(vcpu) => {
                self.vm.kick(vcpu);
                self.return_to_guest(SUCCESS)
            }
            Action::TurnOff => Next::Off,
            Action::Suspend => {
                // Standby: an interrupt of this core ends it, or one that waits for the guest,
                // which would not end WFI at EL2.
                let has_work = self.vredist.has_work();
                if !has_work && arch::list_registers_are_empty(&self.list_registers) {
                    self.sleep();
                }
                self.return_to_guest(SUCCESS)
            }
            Action::SystemSuspend(start) => self.suspend_system(start),
            Action::SystemOff => self.end(self.vm.plan.policies.on_poweroff, MachineEnd::Off),
            Action::SystemReset(Reset::Cold | Reset::Warm) => {
                self.end(self.vm.plan.policies.on_reboot, MachineEnd::Reset)
            }
        }
    }

    /// Does what a policy says with a VM that has come to its end.
    #[cold]
    fn end(&self, policy: OnEnd, of_machine: MachineEnd) -> Next {
        match policy {
            OnEnd::Restart => Next::Change(Change::Start),
            OnEnd::Stop => Next::Change(Change::Stop),
            OnEnd::Machine => self.hypervisor.end_machine(of_machine),
        }
    }

    /// Does on this core what the guest's kernel asks its firmware for: the registers of the guest
    /// stay here, the call is EL2's own.
    fn mitigate(&mut self, workaround: Workaround) -> Next {
        arch::mitigate(workaround);
        self.return_to_guest(SUCCESS)
    }
}
