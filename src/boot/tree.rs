// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The host's device tree: found, checked, read, and the first line on the wire.
#![forbid(unsafe_code)]

use super::{Stage, Stop, fail};
use crate::addr::{Pa, PaRange};
use crate::arch::{self, Mitigations};
use crate::drivers::uart::{Uart, UartKind};
use crate::hypervisor;
use crate::plan::machine::{self, Machine};
use crate::spec::dtb::{self, Dtb};
use crate::spec::vmsa::HypAttributes;

/// Turns EL2's translation on, reads the machine from the tree and says hello. The tree is then
/// done with, and its memory as free as any other.
#[inline(never)]
pub fn read(at: Pa) -> Result<Machine, Stop> {
    // Without a tree no UART is known, so there is nobody to tell.
    let size = arch::tree_size(at).filter(|&size| size <= dtb::SIZE_MAX).ok_or(Stop)?;
    let range = PaRange::new(at, size as u64).ok_or(Stop)?;
    if arch::current_level() != 2 {
        return Err(entered_elsewhere(range));
    }
    arch::set_vectors(Mitigations::Off);
    let memory = arch::boot_map(range).map_err(|_| Stop)?;
    // Not earlier: a logger is put in its place, and speaks, by atomics.
    hypervisor::install_logger();
    let machine = arch::with_bytes(memory, read_machine)?;
    arch::unmap_hyp(memory).map_err(|_| Stop)?;
    Ok(machine)
}

fn read_machine(tree: &mut [u8]) -> Result<Machine, Stop> {
    let tree = Dtb::squeeze(tree).map_err(|_| Stop)?;
    if let Some(uart) = Machine::console(&tree)
        && let Ok(memory) = arch::map_hyp(uart.registers, HypAttributes::Device)
    {
        hypervisor::set_early_port(Uart::new(kind(uart.kind), memory.range()));
    }
    let machine = Machine::read(&tree).map_err(|e| fail(Stage::TREE, &e))?;
    hello(&machine);
    Ok(machine)
}

/// Returns the driver's word for a kind of UART.
pub fn kind(kind: machine::UartKind) -> UartKind {
    match kind {
        machine::UartKind::Pl011 => UartKind::Pl011,
        machine::UartKind::Ns16550 { reg_shift, .. } => {
            UartKind::Ns16550 { shift: reg_shift.into() }
        }
    }
}

fn hello(machine: &Machine) {
    let midr = arch::midr();
    Stage::ENTRY.say(format_args!(
        "cofferdam {} g{} at EL2, {} r{}p{}, {}",
        env!("CARGO_PKG_VERSION"),
        env!("COFFERDAM_REVISION"),
        core_name(midr),
        midr >> 20 & 0xf,
        midr & 0xf,
        machine.model,
    ));
}

/// Returns the name of a core by MIDR_EL1's implementer and part number.
fn core_name(midr: u64) -> &'static str {
    match (midr >> 24 & 0xff, midr >> 4 & 0xfff) {
        (0x41, 0xd03) => "Cortex-A53",
        (0x41, 0xd05) => "Cortex-A55",
        (0x41, 0xd08) => "Cortex-A72",
        (0x41, 0xd0b) => "Cortex-A76",
        (0x41, 0xd0c) => "Neoverse-N1",
        (0x41, 0xd40) => "Neoverse-V1",
        (0x41, 0xd49) => "Neoverse-N2",
        (0x41, 0xd4d) => "Cortex-A715",
        _ => "a core",
    }
}

/// Says that the core was not entered at EL2. The MMU is off, so exclusives may fail for ever: the
/// tree is read where it is, and the line goes out without the log and its lock.
fn entered_elsewhere(range: PaRange) -> Stop {
    let level = arch::current_level();
    arch::with_bytes(arch::unmapped(range), |tree| {
        if let Ok(tree) = Dtb::squeeze(tree)
            && let Some(uart) = Machine::console(&tree)
        {
            hypervisor::write_line(
                &mut Uart::new(kind(uart.kind), uart.registers),
                format_args!(
                    "[{}!] entered at EL{level}, EL2 is needed: on QEMU write -M \
                     virt,virtualization=on; on a Raspberry Pi remove armstub=; see E-BOOT-1",
                    Stage::ENTRY.0
                ),
            );
        }
    });
    Stop
}
