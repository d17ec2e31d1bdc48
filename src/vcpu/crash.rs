// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A VM that cannot go on: its watchdog, and what becomes of it.
#![forbid(unsafe_code)]

use super::{Core, Next};
use crate::plan::OnCrash;
use crate::vm::crash::CrashCause;
use crate::vm::lifecycle::Change;

impl Core<'_> {
    /// Serves the small devices of the VM, which the core of vCPU 0 does for all.
    #[inline(never)]
    pub(super) fn serve_platform(&mut self) -> Next {
        // While the VM is frozen nothing is held against it.
        if self.vcpu.get() != 0 || self.vm.lifecycle.state().is_frozen() {
            return Next::Enter;
        }
        let crash = self.vm.serve_platform(&self.effects());
        crash.map_or(Next::Enter, |cause| self.report_crash(cause))
    }

    /// Does with a VM that cannot go on what its policy says.
    #[cold]
    #[inline(never)]
    pub(super) fn report_crash(&mut self, cause: CrashCause) -> Next {
        let (name, policies) = (&self.vm.plan.name, &self.vm.plan.policies);
        log::error!(target: "vm", "{name} crashed: {cause}");
        Next::Change(match policies.on_crash {
            OnCrash::Restart(_) => Change::Start,
            OnCrash::Stop | OnCrash::Preserve | OnCrash::Machine => Change::Stop,
        })
    }
}
