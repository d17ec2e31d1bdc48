// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A VM on the machine and among others: PEs, registers of devices, and interrupts.
#![forbid(unsafe_code)]

use super::Refusal;
use super::guest::SPIS;
use crate::addr::PaRange;
use crate::id::{Pintid, VmId};
use crate::plan::machine::{Gic, Holder, Machine};
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
        // All devices before this one: of the VMs that were accepted, and of this VM.
        let own = vm.devices.iter().take(index).map(|device| (vm, device));
        let others = others.iter().flat_map(|(_, vm)| vm.devices.iter().map(|d| (*vm, d)));
        let earlier = || others.clone().chain(own.clone());
        for (region, (registers, _)) in device.regions.iter().enumerate() {
            check_held(device, *registers, machine)?;
            let this = device.regions.iter().take(region).map(|(other, _)| (vm, device, *other));
            let regions = earlier()
                .flat_map(|(vm, other)| other.regions.iter().map(move |(r, _)| (vm, other, *r)));
            let taken = regions.chain(this).find(|(_, _, other)| other.overlaps(*registers));
            if let Some((vm, other, _)) = taken {
                return Err(Refusal::RegistersTaken(
                    &device.path,
                    *registers,
                    &vm.name,
                    &other.path,
                ));
            }
        }
        for (nth, SpiPlan { pintid, .. }) in device.interrupts.iter().enumerate() {
            check_interrupt(device, *pintid, machine)?;
            let this = device.interrupts.iter().take(nth).map(|other| (vm, device, other.pintid));
            let interrupts = earlier().flat_map(|(vm, other)| {
                other.interrupts.iter().map(move |spi| (vm, other, spi.pintid))
            });
            let taken = interrupts.chain(this).find(|(_, _, other)| other == pintid);
            if let Some((vm, other, _)) = taken {
                return Err(Refusal::InterruptTaken(&device.path, *pintid, &vm.name, &other.path));
            }
        }
    }
    Ok(())
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
    let uart = machine.uart.as_ref();
    match uart.filter(|uart| uart.interrupt.is_some_and(|own| own.pintid == pintid)) {
        Some(uart) => Err(Refusal::InterruptHeld(&device.path, pintid, Holder::Uart(&uart.path))),
        None => Ok(()),
    }
}
