// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The machine: what the live device tree says about it, as far as EL2 needs it.
//!
//! One walk over the tree collects everything; what depends on two nodes (an interrupt and its
//! controller, the console and its alias) is put together afterwards. A tree can lie, so numbers
//! are bounded and ranges are checked, but what stands at an address is not looked at here.
//! Bindings: Devicetree Specification 0.4; Linux, Documentation/devicetree/bindings.
#![forbid(unsafe_code)]

mod collect;
mod gic;
mod irq;
#[cfg(test)]
pub(crate) mod samples;
mod uart;
mod walk;

use super::{Name, Path};
use crate::addr::{Pa, PaRange};
use crate::bits::Trigger;
use crate::id::{Mpidr, Pintid};
use crate::spec::bundle::crc32c_behind;
use crate::spec::dtb::Dtb;
use alloc::vec::Vec;
use core::fmt;
use heapless::String;

/// The most banks of memory.
pub const BANKS_MAX: usize = 64;
/// The most regions that are reserved, and the most that are kept.
pub const REGIONS_MAX: usize = 128;
/// The most regions of redistributors.
pub const REDISTRIBUTORS_MAX: usize = 16;

/// What the tree says about the machine.
#[derive(Clone, PartialEq, Debug)]
pub struct Machine {
    /// The model, for messages; what is not printable is left out.
    pub model: String<63>,
    /// The PEs that can run, in the order of the tree; at least one.
    pub cpus: Vec<Cpu>,
    /// The banks of memory by rising address; at least one, no two overlap.
    pub memory: Vec<PaRange>,
    /// Memory that is spoken for: `/memreserve/` entries and children of `/reserved-memory`.
    pub reserved: Vec<Region>,
    /// Registers that no guest may have: interrupt translation and SMMUs.
    pub kept: Vec<Region>,
    /// What tells nodes from others that might stand there: one of each that is in use.
    pub fingerprints: Vec<u32>,
    /// The registers of a Raspberry Pi's power management, which are kept.
    pub power: Option<PaRange>,
    /// The interrupt controller.
    pub gic: Gic,
    /// The interrupts of the generic timer.
    pub timer: Timer,
    /// The interrupt of the performance monitors, where it is a PPI.
    pub pmu: Option<Interrupt>,
    /// The firmware's PSCI.
    pub psci: Option<Psci>,
    /// The console, where the tree names one that has a driver.
    pub uart: Option<Uart>,
    /// The UART that requests come in by, where [`Self::keep_for_control`] has set one apart.
    pub control: Option<Uart>,
    /// All other UARTs that have a driver.
    pub spare_uarts: Vec<Uart>,
    /// What the boot loader put into memory as a ramdisk.
    pub initrd: Option<PaRange>,
}

/// A PE.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cpu {
    /// Its affinity.
    pub mpidr: Mpidr,
    /// How it is started.
    pub enable: EnableMethod,
}

/// How a PE is started.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EnableMethod {
    /// PSCI CPU_ON.
    Psci,
    /// It waits until an address is written to the release address (8 bytes).
    SpinTable(Pa),
    /// The tree does not say, or says something that is not known: only the boot PE can run.
    Unknown,
}

/// Addresses with the name of the node that speaks for them.
#[derive(Clone, PartialEq, Debug)]
pub struct Region {
    /// The node, cut to fit; `memreserve` for an entry of the reservation block.
    pub name: Name,
    /// The addresses.
    pub range: PaRange,
}

/// An interrupt of the GIC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Interrupt {
    /// Its number: 16 to 31 for a PPI, 32 to 1019 for an SPI.
    pub pintid: Pintid,
    /// What makes it pending.
    pub trigger: Trigger,
}

/// The interrupt controller.
#[derive(Clone, PartialEq, Debug)]
pub enum Gic {
    /// GICv2 with virtualization.
    V2 {
        /// The distributor.
        gicd: PaRange,
        /// The CPU interface.
        gicc: PaRange,
        /// The control of the virtual interface, where the tree names it.
        gich: Option<PaRange>,
        /// The virtual CPU interface, where the tree names it.
        gicv: Option<PaRange>,
        /// The maintenance interrupt.
        maintenance: Option<Interrupt>,
    },
    /// GICv3 or later.
    V3 {
        /// The distributor.
        gicd: PaRange,
        /// The regions of redistributors; at least one.
        redistributors: Vec<PaRange>,
        /// The bytes from one redistributor to the next, where they are not as usual.
        stride_bytes: Option<u64>,
        /// The maintenance interrupt.
        maintenance: Option<Interrupt>,
    },
}

/// The interrupts of the generic timer: PPIs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timer {
    /// The secure physical timer.
    pub secure: Option<Interrupt>,
    /// The EL1 physical timer.
    pub physical: Option<Interrupt>,
    /// The virtual timer: guests cannot do without.
    pub virt: Interrupt,
    /// The EL2 physical timer.
    pub hypervisor: Option<Interrupt>,
}

/// The firmware's PSCI.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Psci {
    /// The instruction that calls it.
    pub conduit: Conduit,
    /// The version that the tree states at least.
    pub version: PsciVersion,
}

/// The instruction that calls the firmware.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Conduit {
    /// SMC.
    Smc,
    /// HVC: another hypervisor is below.
    Hvc,
}

/// The version of PSCI that the tree states at least.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum PsciVersion {
    /// 0.1: the tree chooses the function identifiers.
    V0_1 {
        /// The function identifier of CPU_ON.
        cpu_on: Option<u32>,
    },
    /// 0.2 or a later 0.x.
    V0_2,
    /// 1.0 or later.
    V1_0,
}

/// A UART that has a driver.
#[derive(Clone, PartialEq, Debug)]
pub struct Uart {
    /// Its node.
    pub path: Path,
    /// What it is.
    pub kind: UartKind,
    /// Its registers.
    pub registers: PaRange,
    /// Its interrupt, where it goes to the GIC.
    pub interrupt: Option<Interrupt>,
}

/// What a UART is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UartKind {
    /// Arm's PL011.
    Pl011,
    /// One of the 16550 family, DesignWare's and Broadcom's among them.
    Ns16550 {
        /// log2 of the bytes from one register to the next, at most 2.
        reg_shift: u8,
        /// The bytes in an access: 1, 2 or 4.
        reg_io_width_bytes: u8,
    },
}

/// Why the tree does not describe a machine that EL2 can run on: the node and what is wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MachineError<'a> {
    /// The name of the node.
    pub node: &'a str,
    /// What is wrong with it.
    pub problem: Problem<'a>,
}

/// What is wrong with a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Problem<'a> {
    /// It is not there.
    Missing,
    /// The property is missing or malformed.
    Property(&'static str),
    /// The property names an address that is not in memory space, is too small, or wraps.
    Address(&'static str),
    /// There are more than this many of its kind.
    TooMany(usize),
    /// There is another, of this name, and the two cannot both be.
    Clash(&'a str),
}

impl fmt::Display for MachineError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "device tree: {}", self.node)?;
        match self.problem {
            Problem::Missing => write!(f, " is missing"),
            Problem::Property(name) => write!(f, ": {name} is missing or malformed"),
            Problem::Address(name) => write!(f, ": {name} is no usable range of addresses"),
            Problem::TooMany(most) => write!(f, ": more than {most} of its kind"),
            Problem::Clash(other) => write!(f, " and {other} contradict each other"),
        }
    }
}

/// Who speaks for addresses of the machine that no guest may have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Holder<'a> {
    /// The interrupt controller.
    Gic,
    /// The console.
    Uart(&'a str),
    /// The UART that requests come in by.
    Control(&'a str),
    /// A reserved region of memory.
    Reserved(&'a str),
    /// A unit that only the hypervisor may program.
    Kept(&'a str),
    /// A bank of memory.
    Memory,
}

impl fmt::Display for Holder<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gic => write!(f, "the interrupt controller"),
            Self::Uart(path) => write!(f, "the console {path}"),
            Self::Control(path) => write!(f, "the control port {path}"),
            Self::Reserved(name) => write!(f, "reserved memory {name}"),
            Self::Kept(name) => write!(f, "{name} (kept by the hypervisor)"),
            Self::Memory => write!(f, "memory"),
        }
    }
}

/// Returns what tells a node from another that might stand there: the CRC32C of its path and of the
/// values of `compatible` and `reg`, which are empty where it has none.
#[must_use]
pub fn fingerprint(path: &str, compatible: &[u8], reg: &[u8]) -> u32 {
    [path.as_bytes(), compatible, reg].into_iter().fold(0, crc32c_behind)
}

impl Machine {
    /// Reads the tree.
    ///
    /// # Errors
    /// Names the node that is wrong, or that is missing: a PE, memory, a GIC, the virtual timer.
    pub fn read<'a>(tree: &Dtb<'a>) -> Result<Self, MachineError<'a>> {
        collect::collect(tree)?.finish()
    }

    /// Reads the console alone, for whoever has to say that the rest is wrong.
    #[must_use]
    pub fn console(tree: &Dtb<'_>) -> Option<Uart> {
        collect::console(tree)
    }

    /// Sets the UART of this path apart for requests: no guest can have it then. Nothing happens
    /// where there is none, which the checker will say.
    pub fn keep_for_control(&mut self, path: &str) {
        if let Some(n) = self.spare_uarts.iter().position(|uart| uart.path == path) {
            self.control = Some(self.spare_uarts.swap_remove(n));
        }
    }

    /// Returns the bytes of memory in all banks.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        // The banks do not overlap, so the sum fits.
        self.memory.iter().fold(0, |sum, bank| sum.wrapping_add(bank.size()))
    }

    /// Returns whether the machine has this PE.
    #[must_use]
    pub fn has_cpu(&self, mpidr: Mpidr) -> bool {
        self.cpus.iter().any(|cpu| cpu.mpidr == mpidr)
    }

    /// Lists all addresses that no guest may be given as a device, each with its holder.
    pub fn held(&self) -> impl Iterator<Item = (Holder<'_>, PaRange)> {
        let gic = self.gic.frames().map(|range| (Holder::Gic, range));
        let uart = self.uart.iter().map(|uart| (Holder::Uart(&uart.path), uart.registers));
        let control = self.control.iter();
        let control = control.map(|uart| (Holder::Control(&uart.path), uart.registers));
        let kept = self.kept.iter().map(|r| (Holder::Kept(&r.name), r.range));
        let reserved = self.reserved.iter().map(|r| (Holder::Reserved(&r.name), r.range));
        let memory = self.memory.iter().map(|bank| (Holder::Memory, *bank));
        gic.chain(uart).chain(control).chain(kept).chain(reserved).chain(memory)
    }
}

#[cfg(test)]
mod tests;
