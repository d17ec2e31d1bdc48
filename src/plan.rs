// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The plan: what the host tool has worked out and EL2 checks and carries out.
//!
//! The same types serve both sides; on the wire they are postcard behind a version number. A plan
//! is an *allegation* until [`check`] has compared it with the live machine: everything in it may
//! be wrong or hostile, so the types here have bounded sizes and no pointer of any kind.
#![forbid(unsafe_code)]

pub mod check;
mod list;
pub mod machine;
mod policies;
#[cfg(test)]
pub(crate) mod samples;
mod wire;

pub use list::List;
pub use policies::{OnCrash, OnEnd, OnLoss, PauseTime, Policies, Restarts};

use crate::addr::{Address, Ipa, IpaRange, Pa, PaRange};
use crate::bits::Trigger;
use crate::heap::NoMemory;
use crate::id::{Mpidr, Pintid, Vintid};
use crate::spec::{gic, gicv2, its};
use core::fmt;
use heapless::String;
use serde::{Deserialize, Serialize};

/// The version of this schema; a plan of another version is refused.
pub const FORMAT: u16 = 7;
/// The most VMs in a plan.
pub const VMS_MAX: usize = 16;
/// The most vCPUs in a VM, and pCPUs in a machine.
pub const CPUS_MAX: usize = 64;
/// The most bytes in a name.
pub const NAME_MAX: usize = 31;
/// The most devices in a VM.
pub const DEVICES_MAX: usize = 64;
/// The most regions, and the most interrupts, of one device.
pub const REGIONS_MAX: usize = 8;
/// The most images in a VM.
pub const IMAGES_MAX: usize = 8;
/// The most bytes in an encoded plan; a longer one is refused before it is read.
pub const PLAN_BYTES_MAX: usize = 32 << 10;

/// A short name: ASCII letters, digits, `-` and `_`, as the host tool checks and EL2 checks again.
pub type Name = String<NAME_MAX>;
/// The path of a node in the host tree.
pub type Path = String<127>;

/// Returns whether a text is a [`Name`]: not empty, not too long, and of the right characters.
#[must_use]
pub fn is_name(text: &str) -> bool {
    let is_name_byte = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    (1..=NAME_MAX).contains(&text.len()) && text.bytes().all(is_name_byte)
}

/// Everything that EL2 needs to know beyond the live tree.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// The board that the plan was made for, for messages only.
    pub board: Name,
    /// What the planner assumed about the machine.
    pub machine: MachineClaim,
    /// How the physical UART is shared.
    pub console: ConsolePlan,
    /// Where requests come in.
    pub control: ControlPlan,
    /// The VMs, in the order in which they start.
    pub vms: List<VmPlan, VMS_MAX>,
    /// Knobs for tests, which the shipped image honours.
    pub knobs: Knobs,
}

/// What the planner read in the board's tree and the live tree must confirm.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct MachineClaim {
    /// The bytes of memory in all banks.
    pub memory_bytes: u64,
    /// The interrupt controller.
    pub gic: GicClaim,
    /// The physical UART, where the plan needs one.
    pub uart: Option<UartClaim>,
}

/// Which interrupt controller, and where.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum GicClaim {
    /// GICv2: distributor and CPU interface.
    V2 {
        /// GICD.
        gicd: Pa,
    },
    /// GICv3 or later.
    V3 {
        /// GICD.
        gicd: Pa,
    },
}

/// Where the physical UART is.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct UartClaim {
    /// Its node in the host tree.
    pub path: Path,
    /// Its registers.
    pub registers: PaRange,
}

/// How the guests' consoles share the physical UART.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ConsolePlan {
    /// What goes out.
    pub mode: ConsoleMode,
    /// The byte that moves the focus to the next VM, 0x1d (Ctrl-]) unless told otherwise.
    pub escape: u8,
}

/// Where requests come in, and replies go out.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct ControlPlan {
    /// Whether on the console's UART, between what is typed and said there.
    pub on_console: bool,
    /// A UART for this alone.
    pub uart: Option<UartClaim>,
}

impl ControlPlan {
    /// Returns whether there is any way in.
    #[must_use]
    pub const fn is_there(&self) -> bool {
        self.on_console || self.uart.is_some()
    }
}

/// What goes out on the physical UART.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ConsoleMode {
    /// Every VM's lines, each behind the VM's name.
    Tagged,
    /// The bytes of the VM that has the focus.
    Focus,
}

/// One VM.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct VmPlan {
    /// Its name.
    pub name: Name,
    /// The pCPU of each vCPU; no other VM may name it.
    pub vcpus: List<Mpidr, CPUS_MAX>,
    /// Its memory as the guest sees it.
    pub memory: IpaRange,
    /// Where that is in the machine.
    pub placement: Placement,
    /// What is copied into its memory at every start.
    pub images: List<ImagePlan, IMAGES_MAX>,
    /// Where vCPU 0 starts, with the address of the device tree in x0.
    pub entry: Ipa,
    /// Where the guest's device tree is: x0 at entry.
    pub tree: Ipa,
    /// The virtual devices and where they stand.
    pub layout: Layout,
    /// Physical devices that the guest drives itself.
    pub devices: List<DevicePlan, DEVICES_MAX>,
    /// What is done when it ends, hangs, pauses or loses another.
    pub policies: Policies,
}

/// Where the memory of a VM is, with one owner for each page.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Placement {
    /// Where EL2 places it.
    Anywhere,
    /// At physical addresses that are those which the guest sees: devices that it drives reach
    /// memory with no IOMMU in front of them.
    Identity,
}

impl VmPlan {
    /// Returns where its memory has to be, where that is not for EL2 to say.
    #[must_use]
    pub fn identity(&self) -> Option<PaRange> {
        let memory = PaRange::new(Pa::new(self.memory.start().get()), self.memory.size());
        memory.filter(|_| self.placement == Placement::Identity)
    }
}

/// One image of the bundle and where it goes.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ImagePlan {
    /// The name of the image's node in the bundle, under `/images`.
    pub name: Name,
    /// Where its first byte goes.
    pub ipa: Ipa,
    /// Its size in bytes, which the bundle must confirm.
    pub size_bytes: u64,
}

/// Where a VM's virtual devices stand.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Layout {
    /// The virtual distributor.
    pub vdist: Ipa,
    /// What else the virtual GIC has, by its architecture: that of the machine's.
    pub vgic: VgicFrames,
    /// The virtual PL011, 4 KiB.
    pub vuart: Ipa,
    /// The virtual PL011's interrupt, an SPI.
    pub vuart_interrupt: Vintid,
    /// The small devices, one every 64 KiB: GPIO controller, watchdog's control, watchdog's
    /// refresh, panic port. A page of 64 KiB then maps one of them.
    pub platform: Ipa,
    /// The GPIO controller's interrupt, an SPI.
    pub gpio_interrupt: Vintid,
    /// The watchdog's interrupt, an SPI.
    pub watchdog_interrupt: Vintid,
}

/// What a virtual GIC has beside its distributor.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum VgicFrames {
    /// GICv2: the CPU interface, 8 KiB, behind which the machine has GICV.
    V2 {
        /// GICC.
        gicc: Ipa,
    },
    /// GICv3: the redistributors, 128 KiB for each vCPU, one behind the other, and the ITS.
    V3 {
        /// GICR.
        vredist: Ipa,
        /// GITS.
        vits: Ipa,
    },
}

/// A physical device that a guest drives itself: registers mapped, interrupts hardware-linked.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct DevicePlan {
    /// Its node in the host tree.
    pub path: Path,
    /// What tells that node from another that might stand there: [`machine::fingerprint`].
    pub fingerprint: u32,
    /// Its registers: where they are and where the guest sees them. Whole pages.
    pub regions: List<(PaRange, Ipa), REGIONS_MAX>,
    /// Its interrupts.
    pub interrupts: List<SpiPlan, REGIONS_MAX>,
}

/// A physical SPI that a guest handles.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SpiPlan {
    /// Its number.
    pub pintid: Pintid,
    /// Its number in the guest.
    pub vintid: Vintid,
    /// What makes it pending.
    pub trigger: Trigger,
}

impl Layout {
    /// The bytes of the virtual PL011.
    pub const VUART_BYTES: u64 = 0x1000;
    /// The bytes from one of the small devices to the next.
    pub const PLATFORM_STRIDE: u64 = 0x1_0000;
    /// The bytes of all the small devices.
    pub const PLATFORM_BYTES: u64 = 4 * Self::PLATFORM_STRIDE;

    /// Returns where the virtual distributor stands; `None` when that wraps.
    #[must_use]
    pub fn vdist_range(&self) -> Option<IpaRange> {
        let bytes = match self.vgic {
            VgicFrames::V2 { .. } => gicv2::GICD_BYTES,
            VgicFrames::V3 { .. } => gic::GICD_BYTES,
        };
        IpaRange::new(self.vdist, bytes)
    }
    /// Returns where the CPU interface stands, or the redistributors of so many vCPUs; `None`
    /// without a vCPU, or when that wraps.
    #[must_use]
    pub fn vgic_range(&self, vcpu_count: usize) -> Option<IpaRange> {
        let count = u64::try_from(vcpu_count).ok()?;
        match self.vgic {
            VgicFrames::V2 { gicc } => IpaRange::new(gicc, gicv2::GICC_BYTES),
            VgicFrames::V3 { vredist, .. } => {
                IpaRange::new(vredist, count.checked_mul(gic::GICR_BYTES)?)
            }
        }
    }
    /// Returns where the ITS stands; `None` with GICv2, or when that wraps.
    #[must_use]
    pub fn vits_range(&self) -> Option<IpaRange> {
        match self.vgic {
            VgicFrames::V2 { .. } => None,
            VgicFrames::V3 { vits, .. } => IpaRange::new(vits, its::GITS_BYTES),
        }
    }
    /// Returns where the virtual PL011 stands; `None` when that wraps.
    #[must_use]
    pub fn vuart_range(&self) -> Option<IpaRange> {
        IpaRange::new(self.vuart, Self::VUART_BYTES)
    }
    /// Returns where the small devices stand; `None` when that wraps.
    #[must_use]
    pub fn platform_range(&self) -> Option<IpaRange> {
        IpaRange::new(self.platform, Self::PLATFORM_BYTES)
    }
}

/// What tests turn; the defaults are what ships.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Knobs {
    /// Use no more than this many list registers.
    pub list_registers_max: Option<u8>,
    /// Use no more than this many bits of VMID.
    pub vmid_bits_max: Option<u8>,
    /// Leave out the mitigations that a core needs, for the first column of the bench.
    pub mitigations_off: bool,
    /// Reports the cost of each VM reset on the log.
    pub report_reset_cost: bool,
    /// Lets no core watch the others.
    pub watch_off: bool,
    /// Has something go wrong when a vCPU starts, once.
    pub fault_at_start: Option<FaultPlan>,
}

/// What goes wrong on purpose, and when.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FaultPlan {
    /// What goes wrong.
    pub kind: FaultKind,
    /// Of which VM; of any where the name is empty.
    pub vm: Name,
    /// On the core of which of its vCPUs.
    pub vcpu: u8,
    /// After how many starts of that vCPU that go well.
    pub after: u8,
}

/// What goes wrong on purpose. EL2 holds the UART's lock when it faults itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum FaultKind {
    /// A Rust panic.
    Panic,
    /// A write to read-only memory.
    WriteToText,
    /// A call to memory that is not executable.
    ExecuteData,
    /// A stack that runs into its guard page.
    StackOverflow,
    /// An SError that EL2 takes.
    SError,
    /// A fault that is said by the log and not dumped.
    Logged,
    /// An SError at the guest's first instruction.
    GuestSError,
    /// A core that never comes out of EL2.
    Hang,
    /// A core that comes out after half a second.
    Stall,
}

/// Why bytes are not a plan.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DecodeError {
    /// The plan is of another version of the schema: its number.
    Format(u16),
    /// The bytes do not decode, or something follows them.
    Malformed,
    /// The hypervisor has no memory for the plan.
    NoMemory,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Format(found) => {
                let [found, expected] = [*found, FORMAT].map(u64::from);
                write!(f, "plan format {found}, {expected} expected: build it again")
            }
            Self::Malformed => f.write_str("the plan does not decode"),
            Self::NoMemory => NoMemory.fmt(f),
        }
    }
}

impl Plan {
    /// Reads a plan: two bytes of version, little-endian, then postcard, then nothing.
    ///
    /// # Errors
    /// Says what is wrong; what `bytes` can make this allocate is bounded by
    /// the maxima of this module.
    #[inline(never)]
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        if bytes.len() > PLAN_BYTES_MAX {
            return Err(DecodeError::Malformed);
        }
        let (format, rest) = bytes.split_first_chunk().ok_or(DecodeError::Malformed)?;
        let format = u16::from_le_bytes(*format);
        if format != FORMAT {
            return Err(DecodeError::Format(format));
        }
        wire::read(rest)
    }

    /// Writes the plan into `buffer` and returns the bytes used; `None` when it does not fit.
    pub fn encode<'a>(&self, buffer: &'a mut [u8]) -> Option<&'a [u8]> {
        let (format, rest) = buffer.split_first_chunk_mut()?;
        *format = FORMAT.to_le_bytes();
        let used = postcard::to_slice(self, rest).ok()?.len() + 2;
        buffer.get(..used)
    }
}

#[cfg(test)]
mod tests;
