// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Who owns what before any VM does.
#![forbid(unsafe_code)]

use super::{Stage, Stop, fail};
use crate::arch;
use crate::id::VmId;
use crate::memory::owners::{Owner, Owners};
use crate::plan::Plan;
use crate::plan::machine::{EnableMethod, Holder, Machine};

/// Lists the machine's memory with what is spoken for: the firmware's, the image, the bundle.
#[inline(never)]
pub fn owners(machine: &Machine) -> Result<Owners, Stop> {
    let refuse = |e| fail(Stage::MEMORY, &e);
    let mut owners = Owners::default();
    for bank in &machine.memory {
        owners.add_bank(*bank).map_err(refuse)?;
    }
    owners.claim(arch::image().whole(), Owner::Hypervisor).map_err(refuse)?;
    for region in &machine.reserved {
        owners.reserve(region.range, Owner::Firmware).map_err(refuse)?;
    }
    for (holder, registers) in machine.held() {
        if matches!(holder, Holder::Gic | Holder::Uart(_) | Holder::Kept(_)) {
            owners.claim_device(registers, Owner::Hypervisor).map_err(refuse)?;
        }
    }
    for cpu in &machine.cpus {
        // A core in a spin table runs code of the firmware near its release address.
        if let EnableMethod::SpinTable(at) = cpu.enable
            && let Some(page) = crate::addr::PaRange::new(at, 8).and_then(|r| r.page_cover())
        {
            owners.reserve(page, Owner::Firmware).map_err(refuse)?;
        }
    }
    Ok(owners)
}

/// Gives VMs the memory that they must have where it is, but for what of it is somebody's: such a
/// VM is refused when it is made.
pub fn set_apart(plan: &Plan, owners: &mut Owners) -> Result<(), Stop> {
    for (id, vm) in (0..).map(VmId::new).zip(&plan.vms) {
        if let Some(range) = vm.identity() {
            owners.reserve(range, Owner::Vm(id)).map_err(|e| fail(Stage::MEMORY, &e))?;
        }
    }
    Ok(())
}

/// Sets the UART apart that requests come in by, so that it is nobody's device.
pub fn keep_for_control(
    plan: &Plan,
    machine: &mut Machine,
    owners: &mut Owners,
) -> Result<(), Stop> {
    if let Some(claim) = &plan.control.uart {
        machine.keep_for_control(&claim.path);
    }
    let Some(uart) = &machine.control else { return Ok(()) };
    owners.claim_device(uart.registers, Owner::Hypervisor).map_err(|e| fail(Stage::MEMORY, &e))
}
