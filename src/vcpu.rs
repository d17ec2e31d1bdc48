// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A vCPU on its core: enter the guest, find out why it left, answer, enter again.
//!
//! The whole exit route starts in [`run`]: follow one arm of its `match`.
#![forbid(unsafe_code)]

mod call;
mod fault;
mod interrupt;
mod its;
mod life;
mod looks;
mod mmio;
mod post;
pub mod run;
mod settle;
mod sysreg;
mod time;

use crate::arch::{self, GuestRegisters, ListRegisterFile};
use crate::bits::Level;
use crate::drivers::gic::PrivateInterrupts;
use crate::gic::{Delivery, Effects, Vredist};
use crate::hypervisor::Hypervisor;
use crate::id::{Pintid, VcpuId};
use crate::spec::exception::Exception;
use crate::trace::{AllTurns, ExitCounters, LastExits};
use crate::vm::Vm;

pub use fault::FaultAtStart;
use interrupt::OWN_PPIS;
pub use interrupt::{HYP_TIMER, MAINTENANCE, PHYSICAL_TIMER, PMU, VIRTUAL_TIMER};
use looks::Looks;
pub use post::{Post, work};

/// The SGIs and PPIs that every core enables.
pub const ENABLED_PRIVATE: [Pintid; 8] =
    [KICK, HALT, GO_ON, MAINTENANCE, HYP_TIMER, VIRTUAL_TIMER, PHYSICAL_TIMER, PMU];

/// The hypervisor's own SGI: look at your work.
pub const KICK: Pintid = Pintid::new(0);
/// The hypervisor's own SGI: a core has faulted, halt.
pub const HALT: Pintid = Pintid::new(arch::HALT_SGI);

/// The hypervisor's own SGI: go on with work that was too much for one exit, or look at the small
/// devices of the VM.
pub const GO_ON: Pintid = Pintid::new(2);

/// What one core owns, and which vCPU it serves.
pub struct Core<'a> {
    registers: GuestRegisters,
    /// Counts this vCPU's exits; the VM owns it.
    turns: &'a AllTurns,
    counters: &'a ExitCounters,
    /// What it has left its guest for, for who looks into a crash.
    last: LastExits,
    hypervisor: &'a Hypervisor,
    vm: &'a Vm,
    vcpu: VcpuId,
    /// The vCPU's redistributor, which every exit asks for work.
    vredist: &'a Vredist,
    delivery: Delivery,
    list_registers: ListRegisterFile,
    private_interrupts: &'a mut PrivateInterrupts,

    /// CNTP_CVAL_EL0 as a guest sees it whose physical timer is trapped.
    physical_compare: u64,
    looks: Looks,
}

/// What the run loop does after an exit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Next {
    /// Enter the guest again.
    Enter,
    /// This vCPU goes off.
    Off,
    /// The VM changes and another core leads: leave.
    Out,
    /// The VM is to change: leave, and lead the change where nobody does.
    Change(crate::vm::lifecycle::Change),
}

impl Next {
    /// Returns what the VM is to change to, where it is.
    const fn change(self) -> Option<crate::vm::lifecycle::Change> {
        match self {
            Self::Change(change) => Some(change),
            Self::Enter | Self::Off | Self::Out => None,
        }
    }
}

/// A core's effect on the vCPUs of a VM: it kicks them, but never itself, for it looks at its own
/// work before it enters.
#[derive(Clone, Copy)]
pub struct FromCore<'a> {
    /// The VM whose vCPUs are meant.
    pub vm: &'a Vm,
    /// The vCPU of this core, where it is one of that VM.
    pub own: Option<VcpuId>,
    /// Where physical SPIs are routed.
    pub hypervisor: &'a Hypervisor,
}

impl Effects for FromCore<'_> {
    #[inline(always)]
    fn kick(&self, vcpu: VcpuId) {
        if Some(vcpu) != self.own {
            self.vm.kick(vcpu);
        }
    }
    fn deactivate(&self, pintid: Pintid) {
        arch::deactivate(pintid);
    }
    fn line(&self, pintid: Pintid) -> Level {
        self.hypervisor.distributor.lock().line(pintid)
    }
    fn is_pending(&self, pintid: Pintid) -> bool {
        self.hypervisor.distributor.lock().is_pending(pintid)
    }
    fn clear_pending(&self, pintid: Pintid) {
        self.hypervisor.distributor.lock().clear_pending(pintid);
    }
    fn route(&self, pintid: Pintid, vcpu: VcpuId) {
        if let Some(mpidr) = self.vm.pcpus.get(vcpu.index()) {
            self.hypervisor.distributor.lock().route(pintid, *mpidr);
        }
    }
    #[inline(always)]
    fn control_lpis(&self, vcpu: VcpuId, value: u32) {
        // Taken apart: lent, it would be put into memory at every write of a register.
        control_lpis(self.vm, self.own, self.hypervisor, (vcpu, value));
    }
}

#[cold]
#[inline(never)]
fn control_lpis(vm: &Vm, own: Option<VcpuId>, hypervisor: &Hypervisor, write: (VcpuId, u32)) {
    let by = FromCore { vm, own, hypervisor };
    vm.change_spis(by, |token, effects| vm.vgic.control_lpis(token, write, (vm, effects)));
}

impl<'a> Core<'a> {
    /// Makes the core of a vCPU that is off, on the pCPU that will serve it; `None` where the VM
    /// has no such vCPU.
    #[must_use]
    pub fn new(
        hypervisor: &'a Hypervisor,
        vm: &'a Vm,
        vcpu: VcpuId,
        private_interrupts: &'a mut PrivateInterrupts,
    ) -> Option<Self> {
        let list_registers = ListRegisterFile::new(hypervisor.list_registers_max);
        let counters = vm.counters.get(vcpu.index())?;
        Some(Self {
            registers: GuestRegisters::new(hypervisor.mitigations),
            turns: counters.turns()?,
            counters,
            last: LastExits::default(),
            hypervisor,
            vm,
            vcpu,
            vredist: vm.vgic.vredist(vcpu)?,
            delivery: Delivery::new(vcpu, list_registers.count()),
            list_registers,
            private_interrupts,
            looks: Looks::new(),
            physical_compare: 0,
        })
    }

    #[inline(always)]
    fn effects(&self) -> FromCore<'a> {
        FromCore { vm: self.vm, own: Some(self.vcpu), hypervisor: self.hypervisor }
    }

    /// Returns X`n`, below 32; 31 is XZR (traps T30).
    #[inline(always)]
    fn x(&self, n: u8) -> u64 {
        #[expect(clippy::indexing_slicing, reason = "masked to the length")]
        let x = self.registers.x[usize::from(n & 31)];
        x
    }

    /// Sets X`n`, below 32; 31 is XZR.
    #[inline(always)]
    fn set_x(&mut self, n: u8, value: u64) {
        #[expect(clippy::indexing_slicing, reason = "masked to the length")]
        let x = &mut self.registers.x[usize::from(n & 31)];
        *x = value;
        let [.., xzr] = &mut self.registers.x;
        *xzr = 0;
    }

    /// Sets X0.
    #[inline(always)]
    fn set_x0(&mut self, value: u64) {
        let [x0, ..] = &mut self.registers.x;
        *x0 = value;
    }

    fn inject_undefined(&self) -> Next {
        arch::inject(Exception::Undefined);
        Next::Enter
    }
}
