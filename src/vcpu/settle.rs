// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Accesses to pending, active and enable bits of interrupts that are in list registers: on this
//! core, or on one whose guest runs on meanwhile (IHI 0069 H 4.1, 12.8 and 12.11).
//!
//! A core that wants to know asks the others for a look and waits for it. It serves such requests
//! itself meanwhile, so two that ask each other do not wait for good.
#![forbid(unsafe_code)]

use super::Core;
use crate::arch;
use crate::bits::{MmioError, Width};
use crate::gic::{self, Frame};
use crate::id::VcpuId;
use crate::spec::psci::AffinityState;

/// How long another core may take. In EL2 none stays that long, unless it is a virtual one whose
/// host has no time for it; what is known by then is what counts.
const PATIENCE_SECONDS: u64 = 10;

impl Core<'_> {
    /// Reads bits that are in list registers too; `None` where the register does not take the
    /// access. An answer that fits registers keeps the way of all other reads short.
    #[cold]
    #[inline(never)]
    pub(super) fn read_listed(
        &mut self,
        frame: Frame,
        (offset, width): (u64, Width),
    ) -> Option<u32> {
        let vm = self.vm;
        self.reconcile();
        self.settle(vm.vgic.holders(frame, offset, u64::MAX));
        vm.change_spis(self.effects(), |token, effects| {
            vm.vgic.read_listed(token, frame, (offset, width), effects)
        })
    }

    /// Writes bits that change what is in list registers: when it returns, they are changed.
    #[cold]
    #[inline(never)]
    pub(super) fn write_listed(
        &mut self,
        frame: Frame,
        (offset, width): (u64, Width),
        value: u64,
    ) -> Result<(), MmioError> {
        let vm = self.vm;
        let access = (offset, width);
        let only_adds = gic::only_adds(offset);
        vm.change_spis(self.effects(), |token, effects| {
            if !only_adds {
                self.delivery.reconcile(&vm.vgic, token, &mut self.list_registers, effects);
            }
            vm.vgic.write_listed(token, frame, access, value, effects)
        })?;
        if only_adds {
            return Ok(());
        }
        self.settle(vm.vgic.holders(frame, offset, value));
        Ok(())
    }

    /// Waits until each of `vcpus` (bit n = vCPU n) that is on has looked at its list registers.
    fn settle(&mut self, vcpus: u64) {
        let mut left = vcpus & !(1 << (self.vcpu.get() & 63));
        while left != 0 {
            let n = left.trailing_zeros();
            left &= left.wrapping_sub(1);
            self.await_look(VcpuId::new(n.to_le_bytes()[0]));
        }
    }

    fn await_look(&mut self, vcpu: VcpuId) {
        let vm = self.vm;
        // A vCPU that goes off has moved what it had into the models before it says so.
        let is_on = || vm.psci.state(vcpu) == Some(AffinityState::On);
        let Some(other) = vm.vgic.vredist(vcpu).filter(|_| is_on()) else { return };
        let asked = other.ask_for_look(&self.effects());
        self.looks.begin();
        let start = arch::counter();
        let patience_ticks = arch::counter_frequency_hz() * PATIENCE_SECONDS;
        while !other.has_looked_since(asked) && is_on() && !vm.lifecycle.has_ended() {
            if arch::counter().wrapping_sub(start) > patience_ticks {
                return;
            }
            if self.vredist.has_work() {
                self.reconcile();
            }
            // Nobody else looks after the one that is waited for, where this core does.
            self.hypervisor.watch_cores();
            self.beat();
            arch::relax();
        }
    }
}
