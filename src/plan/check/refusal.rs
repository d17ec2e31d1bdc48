// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Refusals and their words: one line each, with both claimants. Nothing of a name or a path is
//! shown before it is known to be printable.
#![forbid(unsafe_code)]

use crate::addr::{IpaRange, PaRange};
use crate::heap::NoMemory;
use crate::id::{Mpidr, Pintid, Vintid, VmId};
use crate::plan::machine::{Gic, Holder, Uart};
use crate::plan::{GicClaim, UartClaim, VmPlan, is_name};
use crate::spec::size::Size;
use core::fmt;

/// Why a plan is not for this machine.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum PlanRefusal<'a> {
    /// The name of the board is not one.
    Board,
    /// There is no VM in it.
    NoVm,
    /// The knob of this name has a value that cannot be.
    Knob(&'static str),
    /// The interrupt controller is another, or elsewhere.
    Gic {
        /// What the plan expects.
        expected: &'a GicClaim,
        /// What the tree has.
        found: &'a Gic,
    },
    /// The hypervisor has no memory to check it.
    NoMemory,
    /// The console is elsewhere.
    Uart {
        /// What the plan expects.
        expected: &'a UartClaim,
        /// What the tree has.
        found: Option<&'a Uart>,
    },
    /// The UART for requests is elsewhere, or is none that EL2 can drive.
    Control {
        /// What the plan expects.
        expected: &'a UartClaim,
        /// What the tree has.
        found: Option<&'a Uart>,
    },
    /// The UART for requests has no interrupt.
    ControlInterrupt(&'a UartClaim),
}

/// Why one VM cannot start.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct VmRefusal<'a> {
    /// The VM.
    pub id: VmId,
    /// Its name as the plan has it.
    pub name: &'a str,
    /// The first reason.
    pub why: Refusal<'a>,
}

/// What is wrong with a VM.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Refusal<'a> {
    /// Its name is not one.
    Name,
    /// An earlier VM has its name.
    NameTaken(VmId),
    /// It is to start after this VM, which does not start before it.
    After(VmId),
    /// Its watchdog is to fire at once.
    Watchdog,
    /// It has no vCPU.
    NoVcpu,
    /// The tree does not have this PE, or it is not in use.
    NoCpu(Mpidr),
    /// It names this PE twice.
    CpuTwice(Mpidr),
    /// The VM of this name has the PE.
    CpuTaken(Mpidr, &'a str),
    /// Something lies, or reaches, beyond the addresses of so many bits.
    Beyond(Part<'a>, u32),
    /// Something is not a multiple of so many bytes.
    Misaligned(Part<'a>, u64),
    /// Two things overlap in its address space.
    Overlap(Claim<'a>, Claim<'a>),
    /// Something is not in its memory, which is there.
    Outside(Part<'a>, IpaRange),
    /// The bundle has no image of this name.
    NoImage(&'a str),
    /// The image has another size in the bundle.
    ImageSize {
        /// The image.
        name: &'a str,
        /// The bytes that the plan expects.
        expected: u64,
        /// The bytes that the bundle has.
        found: u64,
    },
    /// The name of this image is not one.
    ImageName(usize),
    /// The path of this device is not one.
    DevicePath(usize),
    /// The machine's tree has no such device where the plan has one.
    NoDevice(&'a str),
    /// The registers of a device are held by the machine.
    RegistersHeld(&'a str, PaRange, Holder<'a>, PaRange),
    /// The registers of a device are those of another, of the VM of this name.
    RegistersTaken(&'a str, PaRange, &'a str, &'a str),
    /// The interrupt of a device, as the machine counts, is no SPI.
    NoSpi(&'a str, Pintid),
    /// The interrupt of a device is held by the machine.
    InterruptHeld(&'a str, Pintid, Holder<'a>),
    /// The interrupt of a device is that of another, of the VM of this name.
    InterruptTaken(&'a str, Pintid, &'a str, &'a str),
    /// Its number of an interrupt is no SPI.
    NoVirtualSpi(Vintid),
    /// It has two interrupts of this number.
    VintidTwice(Vintid),
    /// Its GIC is of another architecture than the machine's, or has more vCPUs than there can be.
    Gic,
    /// The hypervisor has no memory to check it.
    NoMemory,
    /// There is no memory for it.
    NoRoom {
        /// The bytes that it needs.
        bytes: u64,
        /// Set when there is less memory than the plan expects, which may be why.
        shortfall: Option<Shortfall>,
    },
}

/// Something in a VM's address space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part<'a> {
    /// Its memory.
    Memory,
    /// The virtual distributor.
    Vdist,
    /// The virtual redistributors.
    Vredist,
    /// The virtual ITS.
    Vits,
    /// The CPU interface of GICv2.
    VcpuInterface,
    /// The virtual PL011.
    Vuart,
    /// The small virtual devices.
    Platform,
    /// Registers of the device at this path.
    Device(&'a str),
    /// The image of this name.
    Image(&'a str),
    /// The first instruction.
    Entry,
    /// The device tree.
    Tree,
}

/// Something in a VM's address space and where it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Claim<'a> {
    /// What it is.
    pub part: Part<'a>,
    /// Where it is.
    pub range: IpaRange,
}

/// Less memory than the plan expects.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shortfall {
    /// The bytes that the plan expects.
    pub expected: u64,
    /// The bytes that the tree has.
    pub found: u64,
}

/// Checks that messages can show all names, and tell the VM from others.
pub(super) fn check_names<'a>(
    vm: &'a VmPlan,
    others: &[(VmId, &'a VmPlan)],
) -> Result<(), Refusal<'a>> {
    if !is_name(&vm.name) {
        return Err(Refusal::Name);
    }
    if let Some((id, _)) = others.iter().find(|(_, other)| other.name == vm.name) {
        return Err(Refusal::NameTaken(*id));
    }
    if let Some(index) = vm.images.iter().position(|image| !is_name(&image.name)) {
        return Err(Refusal::ImageName(index));
    }
    if let Some(index) = vm.devices.iter().position(|device| !is_path(&device.path)) {
        return Err(Refusal::DevicePath(index));
    }
    Ok(())
}

fn is_path(path: &str) -> bool {
    path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic())
}

impl fmt::Display for Shortfall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "plan expects {}, tree has {}", Size(self.expected), Size(self.found))
    }
}

impl fmt::Display for PlanRefusal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Board => write!(f, "plan names a board that is none"),
            Self::NoVm => write!(f, "plan has no VM"),
            Self::NoMemory => NoMemory.fmt(f),
            Self::Knob(name) => write!(f, "plan has a value of {name} that cannot be"),
            Self::Gic { expected, found } => {
                let (version, gicd) = match expected {
                    GicClaim::V2 { gicd } => (2u64, gicd),
                    GicClaim::V3 { gicd } => (3u64, gicd),
                };
                write!(f, "plan expects GICv{version} at {gicd}, ")?;
                let version = if matches!(found, Gic::V2 { .. }) { 2u64 } else { 3 };
                write!(f, "tree has GICv{version} at {}", found.gicd().start())
            }
            Self::Uart { expected, found } => expects(f, expected, *found, "no console"),
            Self::Control { expected, found } => {
                expects(f, expected, *found, "no such UART that is free for requests")
            }
            Self::ControlInterrupt(uart) => {
                write!(f, "plan has requests come in by {}, ", shown(uart))?;
                write!(f, "whose interrupt does not go to the GIC")
            }
        }
    }
}

fn shown(uart: &UartClaim) -> &str {
    if is_path(&uart.path) { &uart.path } else { "uart" }
}

fn expects(
    f: &mut fmt::Formatter<'_>,
    expected: &UartClaim,
    found: Option<&Uart>,
    none: &str,
) -> fmt::Result {
    write!(f, "plan expects {} at {}, tree has ", shown(expected), expected.registers)?;
    match found {
        Some(uart) => write!(f, "{} at {}", uart.path, uart.registers),
        None => f.write_str(none),
    }
}

impl fmt::Display for Part<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => write!(f, "memory"),
            Self::Vdist => write!(f, "virtual distributor"),
            Self::Vredist => write!(f, "virtual redistributors"),
            Self::Vits => write!(f, "virtual ITS"),
            Self::VcpuInterface => write!(f, "virtual CPU interface"),
            Self::Vuart => write!(f, "virtual UART"),
            Self::Platform => write!(f, "virtual platform"),
            Self::Device(path) => write!(f, "device {path}"),
            Self::Image(name) => write!(f, "image {name}"),
            Self::Entry => write!(f, "entry point"),
            Self::Tree => write!(f, "device tree"),
        }
    }
}

impl fmt::Display for Claim<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.part, self.range)
    }
}

impl fmt::Display for VmRefusal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.why {
            Refusal::Name => {
                return write!(f, "VM {}: its name is not of letters, digits, - and _", self.id);
            }
            Refusal::NoRoom { shortfall: Some(shortfall), .. } => write!(f, "{shortfall}: ")?,
            _ => {}
        }
        write!(f, "\"{}\"", self.name)?;
        self.why.fmt(f)
    }
}

/// Goes on behind the VM's name.
impl fmt::Display for Refusal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name => write!(f, " is no name"),
            Self::NoMemory => write!(f, ": {NoMemory}"),
            Self::NoRoom { shortfall: Some(_), .. } => write!(f, " does not fit"),
            Self::NoRoom { bytes, .. } => {
                write!(f, " does not fit: {} of memory are not free", Size(*bytes))
            }
            Self::NameTaken(id) => write!(f, " is already the name of VM {id}"),
            Self::After(id) => write!(f, " is to start after VM {id}, which is not before it"),
            Self::Watchdog => write!(f, " has a watchdog that fires at once"),
            Self::NoVcpu => write!(f, " has no cpu"),
            Self::NoCpu(cpu) => write!(f, " claims cpu {cpu}, which the tree does not have"),
            Self::CpuTwice(cpu) => write!(f, " claims cpu {cpu} twice"),
            Self::CpuTaken(cpu, other) => write!(f, " and \"{other}\" both claim cpu {cpu}"),
            Self::Beyond(part, bits) => write!(f, ": {part} is beyond {bits} bits of address"),
            Self::Misaligned(part, to) => write!(f, ": {part} is not aligned to {}", Size(*to)),
            Self::Overlap(a, b) => write!(f, ": {a} overlaps {b}"),
            Self::Outside(part, memory) => write!(f, ": {part} is outside its memory at {memory}"),
            Self::NoImage(name) => write!(f, " needs image {name}, which the bundle does not have"),
            Self::ImageSize { name, expected, found } => {
                write!(f, " expects image {name} of {expected} bytes, the bundle has {found}")
            }
            Self::ImageName(index) => write!(f, ": the name of image {index} is malformed"),
            Self::DevicePath(index) => write!(f, ": the path of device {index} is malformed"),
            Self::NoDevice(path) => {
                write!(
                    f,
                    ": {path} is not the device that was planned; plan with this board's tree"
                )
            }
            Self::RegistersHeld(path, range, holder, held) => {
                write!(f, ": device {path} at {range} overlaps {holder} at {held}")
            }
            Self::RegistersTaken(path, range, vm, other) => {
                write!(f, ": device {path} at {range} overlaps device {other} of \"{vm}\"")
            }
            Self::NoSpi(path, pintid) => {
                write!(f, ": interrupt {pintid} of device {path} is no SPI")
            }
            Self::InterruptHeld(path, pintid, holder) => {
                write!(f, ": interrupt {pintid} of device {path} is that of {holder}")
            }
            Self::InterruptTaken(path, pintid, vm, other) => {
                write!(f, ": interrupt {pintid} of device {path} is that of device {other} ")?;
                write!(f, "of \"{vm}\"")
            }
            Self::Gic => write!(f, " expects another GIC than the tree has, or more of its CPUs"),
            Self::NoVirtualSpi(vintid) => write!(f, ": its interrupt {vintid} is no SPI"),
            Self::VintidTwice(vintid) => write!(f, " has two interrupts of number {vintid}"),
        }
    }
}
