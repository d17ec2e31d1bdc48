// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The checker: does the plan fit the live machine, and do no two claims clash?
//!
//! Owns the promise that a VM that passes shares no PE, no page of device registers and no
//! interrupt with another that passes, nor with the hypervisor, whatever the plan says. Memory is
//! not among it: pages get one owner each when they are placed. Decides nothing else; a plan that
//! is wrong is refused in words that name both claimants, and is not repaired.
#![forbid(unsafe_code)]

mod guest;
mod physical;
mod refusal;

pub use refusal::{Claim, Part, PlanRefusal, Refusal, Shortfall, VmRefusal};

use super::machine::{Gic, Machine};
use super::{GicClaim, Plan, Policies, VMS_MAX, VmPlan, is_name};
use crate::heap::{self, NoMemory};
use crate::id::VmId;
use alloc::vec::Vec;

/// The least width of a VMID that gives each VM its own, and leaves 0 to nobody.
const VMID_BITS_LEAST: u8 = 5;
const _: () = assert!(VMS_MAX < 1 << VMID_BITS_LEAST);

/// How far addresses reach.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// The bits in an intermediate physical address.
    pub ipa_bits: u32,
    /// The bits in a physical address.
    pub pa_bits: u32,
}

/// What the checker has found in a plan that fits the machine as a whole.
#[derive(Clone, PartialEq, Debug)]
pub struct Report<'a> {
    /// The VMs that cannot start, by rising identity, each with the first reason. The others can.
    pub refusals: Vec<VmRefusal<'a>>,
    /// Set when there is less memory than the plan expects: some VM may not fit.
    pub shortfall: Option<Shortfall>,
}

impl<'a> Report<'a> {
    /// Returns why the VM cannot start, if it cannot.
    #[must_use]
    pub fn refusal(&self, vm: VmId) -> Option<&VmRefusal<'a>> {
        self.refusals.iter().find(|refusal| refusal.id == vm)
    }

    /// Makes the refusal of a VM for which whoever places memory has found none.
    #[must_use]
    pub fn no_room(&self, id: VmId, vm: &'a VmPlan) -> VmRefusal<'a> {
        let why = Refusal::NoRoom { bytes: vm.memory.size(), shortfall: self.shortfall };
        VmRefusal { id, name: &vm.name, why }
    }
}

/// Checks a plan against the machine; `image_bytes` says how long the bundle's image of a name is.
///
/// Where two VMs claim the same, the earlier in the plan has it and the later is refused; what a
/// refused VM claims is free for others.
///
/// # Errors
/// Says why the plan as a whole is not for this machine.
pub fn check<'a>(
    plan: &'a Plan,
    machine: &'a Machine,
    limits: Limits,
    image_bytes: &dyn Fn(&str) -> Option<u64>,
) -> Result<Report<'a>, PlanRefusal<'a>> {
    check_plan(plan, machine)?;
    let (expected, found) = (plan.machine.memory_bytes, machine.memory_bytes());
    let shortfall = (found < expected).then_some(Shortfall { expected, found });
    let mut report = Report { refusals: Vec::new(), shortfall };
    let mut accepted: Vec<(VmId, &VmPlan)> = Vec::new();
    for (id, vm) in (0..).map(VmId::new).zip(&plan.vms) {
        let refusal = refusal::check_names(vm, &accepted)
            .and_then(|()| check_policies(id, &vm.policies))
            .and_then(|()| guest::check(vm, limits, image_bytes))
            .and_then(|()| physical::check(vm, &accepted, machine));
        let noted = match refusal {
            Ok(()) => heap::push(&mut accepted, (id, vm)),
            Err(why) => heap::push(&mut report.refusals, VmRefusal { id, name: &vm.name, why }),
        };
        noted.map_err(|NoMemory| PlanRefusal::NoMemory)?;
    }
    Ok(report)
}

/// Checks a VM that has passed [`check`] against another that is there, by name, PEs, registers and
/// interrupts.
///
/// # Errors
/// Says what both claim.
pub fn check_beside<'a>(
    vm: &'a VmPlan,
    other: (VmId, &'a VmPlan),
    machine: &'a Machine,
) -> Result<(), Refusal<'a>> {
    refusal::check_names(vm, &[other]).and_then(|()| physical::check(vm, &[other], machine))
}

/// Checks that a VM starts after VMs that the plan starts before it. So none starts after itself or
/// in a circle with others, and the plan's order will do.
fn check_policies<'a>(id: VmId, policies: &Policies) -> Result<(), Refusal<'a>> {
    if let Some(other) = policies.after.iter().find(|other| **other >= id) {
        return Err(Refusal::After(*other));
    }
    if policies.watchdog_ms == Some(0) {
        return Err(Refusal::Watchdog);
    }
    Ok(())
}

/// Checks what concerns all VMs.
fn check_plan<'a>(plan: &'a Plan, machine: &'a Machine) -> Result<(), PlanRefusal<'a>> {
    if !is_name(&plan.board) {
        return Err(PlanRefusal::Board);
    }
    if plan.vms.is_empty() {
        return Err(PlanRefusal::NoVm);
    }
    if plan.knobs.list_registers_max == Some(0) {
        return Err(PlanRefusal::Knob("list_registers_max"));
    }
    if plan.knobs.vmid_bits_max.is_some_and(|bits| bits < VMID_BITS_LEAST) {
        return Err(PlanRefusal::Knob("vmid_bits_max"));
    }
    let same_gic = match (&plan.machine.gic, &machine.gic) {
        (GicClaim::V2 { gicd: claimed }, Gic::V2 { gicd, .. })
        | (GicClaim::V3 { gicd: claimed }, Gic::V3 { gicd, .. }) => *claimed == gicd.start(),
        _ => false,
    };
    if !same_gic {
        return Err(PlanRefusal::Gic { expected: &plan.machine.gic, found: &machine.gic });
    }
    if let Some(expected) = &plan.machine.uart {
        let found = machine.uart.as_ref();
        if found.map(|uart| uart.registers) != Some(expected.registers) {
            return Err(PlanRefusal::Uart { expected, found });
        }
    }
    if let Some(expected) = &plan.control.uart {
        let found = machine.control.as_ref();
        if found.map(|uart| uart.registers) != Some(expected.registers) {
            return Err(PlanRefusal::Control { expected, found });
        }
        if found.is_some_and(|uart| uart.interrupt.is_none()) {
            return Err(PlanRefusal::ControlInterrupt(expected));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
