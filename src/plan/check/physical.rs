// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A VM on the machine and among others: PEs, registers of devices, and interrupts.
#![forbid(unsafe_code)]

use super::Refusal;
use super::guest::SPIS;
use crate::addr::PaRange;
use crate::id::{Pintid, VmId};
use crate::plan::machine::{Gic, Holder, Machine, Uart};
use crate::plan::{DevicePlan, SpiPlan, VgicFrames, VmPlan};
use crate::spec::gicv2;

type Check<'a> = Result<(), Refusal<'a>>;

/// Checks what the VM claims of the machine against what the machine has and others claim.
pub(super) fn check<'a>(
    vm: &'a VmPlan,
    others: &[(VmId, &'a VmPlan)],
    machine: &'a Machine,
) -> Check<'a> {
    check_gic(vm, machine)?;
    check_cpus(vm, others, machine)?;
    for (index, device) in vm.devices.iter().enumerate() {
        let this = (vm, device, index);
        if !machine.fingerprints.contains(&device.fingerprint) {
            return Err(Refusal::NoDevice(&device.path));
        }
        for (nth, (registers, _)) in device.regions.iter().enumerate() {
            check_held(device, *registers, machine)?;
            let has = |device: &DevicePlan, count| {
                device.regions.iter().take(count).any(|(other, _)| other.overlaps(*registers))
            };
            if let Some((vm, other)) = taken_by(others, this, nth, &has) {
                let (path, vm, other) = (&device.path, &vm.name, &other.path);
                return Err(Refusal::RegistersTaken(path, *registers, vm, other));
            }
        }
        for (nth, SpiPlan { pintid, .. }) in device.interrupts.iter().enumerate() {
            check_interrupt(device, *pintid, machine)?;
            let has = |device: &DevicePlan, count| {
                device.interrupts.iter().take(count).any(|other| other.pintid == *pintid)
            };
            if let Some((vm, other)) = taken_by(others, this, nth, &has) {
                let (path, vm, other) = (&device.path, &vm.name, &other.path);
                return Err(Refusal::InterruptTaken(path, *pintid, vm, other));
            }
        }
    }
    Ok(())
}

/// Returns the device that has what a device, the VM's one of this index, claims as its `nth`: one
/// of a VM that was accepted, or an earlier one of its own VM, or itself. `has` looks at so many
/// claims of a device.
fn taken_by<'a>(
    others: &[(VmId, &'a VmPlan)],
    (vm, device, index): (&'a VmPlan, &'a DevicePlan, usize),
    nth: usize,
    has: &dyn Fn(&DevicePlan, usize) -> bool,
) -> Option<(&'a VmPlan, &'a DevicePlan)> {
    let earlier = others.iter().map(|(_, vm)| (*vm, usize::MAX)).chain([(vm, index)]);
    for (vm, count) in earlier {
        if let Some(other) = vm.devices.iter().take(count).find(|other| has(other, usize::MAX)) {
            return Some((vm, other));
        }
    }
    has(device, nth).then_some((vm, device))
}

/// Checks that hardware can play the virtual CPU interface: it is always the machine's own kind.
fn check_gic<'a>(vm: &VmPlan, machine: &Machine) -> Check<'a> {
    let fits = match (vm.layout.vgic, &machine.gic) {
        (VgicFrames::V2 { .. }, Gic::V2 { .. }) => vm.vcpus.len() <= gicv2::CPUS_MAX,
        (VgicFrames::V3 { .. }, Gic::V3 { .. }) => true,
        _ => false,
    };
    fits.then_some(()).ok_or(Refusal::Gic)
}

fn check_cpus<'a>(vm: &'a VmPlan, others: &[(VmId, &'a VmPlan)], machine: &Machine) -> Check<'a> {
    for (index, mpidr) in vm.vcpus.iter().enumerate() {
        if !machine.has_cpu(*mpidr) {
            return Err(Refusal::NoCpu(*mpidr));
        }
        if vm.vcpus.iter().take(index).any(|earlier| earlier == mpidr) {
            return Err(Refusal::CpuTwice(*mpidr));
        }
        if let Some((_, other)) = others.iter().find(|(_, other)| other.vcpus.contains(mpidr)) {
            return Err(Refusal::CpuTaken(*mpidr, &other.name));
        }
    }
    Ok(())
}

/// Checks registers against everything that the machine holds. What the guest gets are whole
/// pages, so a page is held when part of it is.
fn check_held<'a>(device: &'a DevicePlan, registers: PaRange, machine: &'a Machine) -> Check<'a> {
    let held = machine.held().find(|(_, held)| registers.overlaps(*held));
    match held {
        Some((holder, held)) => Err(Refusal::RegistersHeld(&device.path, registers, holder, held)),
        None => Ok(()),
    }
}

fn check_interrupt<'a>(device: &'a DevicePlan, pintid: Pintid, machine: &'a Machine) -> Check<'a> {
    if !SPIS.contains(&pintid.get()) {
        return Err(Refusal::NoSpi(&device.path, pintid));
    }
    let console = machine.uart.iter().map(|uart| (uart, Holder::Uart(&uart.path)));
    let control = machine.control.iter().map(|uart| (uart, Holder::Control(&uart.path)));
    let is_its = |uart: &Uart| uart.interrupt.is_some_and(|own| own.pintid == pintid);
    match console.chain(control).find(|(uart, _)| is_its(uart)) {
        Some((_, holder)) => Err(Refusal::InterruptHeld(&device.path, pintid, holder)),
        None => Ok(()),
    }
}
