// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What is around the cores of the fake machine: memory, firmware, device registers.
//!
//! Memory is sparse and a thread's own; what nobody has written reads as 0. It lies behind caches
//! that write nothing back by themselves: [`read_uncached`] is what a guest sees that starts.
#![forbid(unsafe_code)]

use super::machine::{Event, Mitigations, record, uncounted, with};
use super::memory::CacheLedger;
use crate::addr::{Address, HypVa, Pa, PaRange};
use crate::id::Mpidr;
use crate::memory::mapper::MapError;
use crate::smccc::{Firmware, Workaround, Workarounds};
use crate::spec::vmsa::{Features, HypAttributes, MemAttrEncoding};
use std::cell::RefCell;
use std::vec::Vec;

std::thread_local! {
    /// The ledger's lines are single bytes here.
    static MEMORY: RefCell<CacheLedger> = RefCell::default();
}

/// Memory that EL2 has mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HypMemory(pub(super) PaRange);

impl HypMemory {
    /// Returns where the memory is.
    #[must_use]
    pub fn range(self) -> PaRange {
        self.0
    }
    /// Returns a part of it.
    #[must_use]
    pub fn part(self, offset: u64, bytes: u64) -> Option<Self> {
        let part = PaRange::new(self.0.start().checked_add(offset)?, bytes)?;
        self.0.covers(part).then_some(Self(part))
    }
    fn addresses(self) -> core::ops::Range<u64> {
        self.0.start().get()..self.0.end().get()
    }
}

/// Why EL2 could not map something.
pub type HypMapError = MapError<HypVa>;

/// Maps memory at EL2: always possible here.
///
/// # Errors
/// None.
pub fn map_hyp(range: PaRange, _attributes: HypAttributes) -> Result<HypMemory, HypMapError> {
    Ok(HypMemory(range))
}
/// Takes a mapping away.
///
/// # Errors
/// None.
pub fn unmap_hyp(_memory: HypMemory) -> Result<(), HypMapError> {
    Ok(())
}
/// Maps constants and returns them.
///
/// # Errors
/// None.
pub fn map_constant(range: PaRange) -> Result<(HypMemory, &'static [u8]), HypMapError> {
    let memory = HypMemory(range);
    Ok((memory, uncounted(|| bytes(memory).leak())))
}
/// Turns translation on.
///
/// # Errors
/// None.
pub fn boot_map(tree: PaRange) -> Result<HypMemory, HypMapError> {
    Ok(HypMemory(tree))
}
/// Returns memory as it is before translation is on.
#[must_use]
pub fn unmapped(range: PaRange) -> HypMemory {
    HypMemory(range)
}
/// Reads the size of the device tree at `at`.
#[must_use]
pub fn tree_size(at: Pa) -> Option<usize> {
    let mut header = [0; 8];
    read_bytes(HypMemory(PaRange::new(at, 8)?), &mut header);
    let (magic, size) = header.split_first_chunk::<4>()?;
    let size = u32::from_be_bytes(*size.first_chunk()?);
    (u32::from_be_bytes(*magic) == 0xd00d_feed).then(|| usize::try_from(size).ok())?
}

fn with_memory<R>(look: impl FnOnce(&mut CacheLedger) -> R) -> R {
    uncounted(|| MEMORY.with_borrow_mut(look))
}

fn bytes(memory: HypMemory) -> Vec<u8> {
    let byte = |line: u64| line.to_le_bytes()[0];
    with_memory(|all| memory.addresses().map(|at| byte(all.read(at))).collect())
}
/// Reads memory as a guest with its MMU off does.
#[must_use]
pub fn read_uncached(range: PaRange) -> Vec<u8> {
    let byte = |line: u64| line.to_le_bytes()[0];
    with_memory(|all| HypMemory(range).addresses().map(|at| byte(all.read_uncached(at))).collect())
}
/// Writes memory as a guest with its MMU off does.
pub fn write_uncached(to: Pa, buffer: &[u8]) {
    with_memory(|all| {
        for (byte, at) in buffer.iter().zip(to.get()..) {
            all.write_uncached(at, (*byte).into());
        }
    });
}
/// Copies bytes out of memory.
pub fn read_bytes(from: HypMemory, buffer: &mut [u8]) {
    uncounted(|| {
        for (to, byte) in buffer.iter_mut().zip(bytes(from)) {
            *to = byte;
        }
    });
}
/// Copies bytes into memory.
pub fn write_bytes(to: HypMemory, buffer: &[u8]) {
    with_memory(|all| {
        for (at, byte) in to.addresses().zip(buffer) {
            all.write(at, (*byte).into());
        }
    });
}
/// Lends memory as bytes.
pub fn with_bytes<R>(memory: HypMemory, look: impl FnOnce(&mut [u8]) -> R) -> R {
    uncounted(|| {
        let mut copy = bytes(memory);
        let result = look(&mut copy);
        write_bytes(memory, &copy);
        result
    })
}
/// Copies `from` to the start of `to`.
pub fn copy(to: HypMemory, from: HypMemory) {
    record(Event::Copy { to: to.0, from: from.0 });
    uncounted(|| write_bytes(to, &bytes(from)));
}
/// Writes zeroes.
pub fn zero(memory: HypMemory) {
    record(Event::Zero(memory.0));
    with_memory(|all| memory.addresses().for_each(|at| all.write(at, 0)));
}
/// Returns the CRC32C of memory behind what has the CRC32C `before`.
#[must_use]
pub fn crc32c(before: u32, memory: HypMemory) -> u32 {
    uncounted(|| crate::spec::bundle::crc32c_behind(before, &bytes(memory)))
}
/// Cleans and invalidates caches.
pub fn clean_invalidate(range: PaRange) {
    record(Event::CleanInvalidate(range));
    if !with(|core| core.loses_cleaning) {
        let lines = range.start().get()..=range.end().get() - 1;
        with_memory(|all| all.clean_invalidate_all(lines));
    }
}
/// Makes written instructions visible.
pub fn publish_code() {
    record(Event::PublishCode);
}

/// The registers of one VM's stage 2.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stage2Registers {
    /// VTTBR_EL2.
    pub vttbr: u64,
    /// VTCR_EL2.
    pub vtcr: u64,
    /// How its tables say write-back.
    pub encoding: MemAttrEncoding,
}
/// Makes a VM's stage 2 the one of this core.
pub fn activate(stage2: Stage2Registers) {
    with(|core| core.vttbr = stage2.vttbr);
    record(Event::Activate(stage2));
}
/// Takes a VM's stage 2 from this core.
pub fn leave() {
    with(|core| core.vttbr = 0);
    record(Event::Leave);
}
/// The firmware's PSCI: there is none.
#[derive(Clone, Copy, Debug)]
pub struct HostPsci;

impl HostPsci {
    /// Starts a core: there is no other.
    ///
    /// # Errors
    /// Always.
    pub fn cpu_on(self, _target: Mpidr, _entry: u64, _context: u64) -> Result<(), u64> {
        // NOT_SUPPORTED: a core of the fake machine is a thread, which a test starts.
        Err(1)
    }
    /// Starts the machine again.
    pub fn system_reset(self) {
        record(Event::SystemReset);
    }
    /// Turns the machine off.
    pub fn system_off(self) {
        record(Event::SystemOff);
    }
    /// Says what the firmware knows of mitigations: nothing.
    #[must_use]
    pub fn workarounds(_firmware: Option<Self>) -> Workarounds {
        Workarounds {
            workaround_1: Firmware::Unsupported,
            workaround_2: Firmware::Unsupported,
            workaround_3: Firmware::Unsupported,
        }
    }
}
/// Mitigates on behalf of a guest.
pub fn mitigate(workaround: Workaround) {
    record(Event::Mitigate(workaround));
}

/// Faults on purpose: the fake machine cannot.
pub fn write_to_text() {}
/// Faults on purpose: the fake machine cannot.
pub fn execute_data() {}
/// Faults on purpose: the fake machine cannot.
pub fn take_serror() {}
/// Faults on purpose: the fake machine cannot.
pub fn overflow_stack(depth: u64) -> u64 {
    depth
}

/// What the translation registers hold.
#[derive(Clone, Copy, Debug)]
pub struct Regime;
/// Returns the translation registers.
#[must_use]
pub fn regime() -> Option<Regime> {
    Some(Regime)
}
/// What a secondary core needs.
#[derive(Debug)]
pub struct SecondaryBoot {
    /// The translation registers.
    pub regime: Regime,
    /// Its stack.
    pub stack_top: u64,
    /// Which core it is.
    pub core: u64,
}
/// Makes memory readable without caches.
#[must_use]
pub fn publish_to_uncached(_boot: &'static SecondaryBoot) -> Pa {
    Pa::new(0)
}
/// Returns where other cores start.
#[must_use]
pub fn secondary_entry() -> u64 {
    0
}
/// Lets a core out of the spin table.
pub fn release_from_spin_table(_slot: HypMemory, _context: Pa) {}

/// The image's parts.
#[derive(Clone, Copy, Debug)]
pub struct Image(PaRange);

impl Image {
    /// Returns all of the image.
    #[must_use]
    pub fn whole(self) -> PaRange {
        self.0
    }
}
/// Returns where the image lies.
#[must_use]
pub fn image() -> Image {
    Image(PaRange::block(Pa::new(0x4020_0000), 1 << 21))
}

/// What a core can do.
#[derive(Clone, Copy, Debug)]
pub struct CoreFeatures;

impl CoreFeatures {
    /// Returns what stage 2 needs to know.
    #[must_use]
    pub fn translation(self) -> Features {
        Features { pa_bits: 44, vmid_bits: 8, encoding: MemAttrEncoding::Combining }
    }
}
/// Returns what this core can do.
#[must_use]
pub fn features() -> CoreFeatures {
    CoreFeatures
}
/// Why a core cannot serve.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CoreRefusal {
    /// It was entered at another level.
    Level(u64),
    /// E2H cannot be cleared.
    VheOnly,
}
/// Configures the core.
///
/// # Errors
/// None.
pub fn set_up_core(_mitigations: Mitigations) -> Result<(), CoreRefusal> {
    Ok(())
}
/// Sets the vectors.
pub fn set_vectors(_mitigations: Mitigations) {}
/// Returns this core's affinity.
#[must_use]
pub fn this_mpidr() -> Mpidr {
    Mpidr::default()
}
/// Returns MIDR_EL1: a Cortex-A72.
#[must_use]
pub fn midr() -> u64 {
    0x410f_d083
}
/// Returns the exception level.
#[must_use]
pub fn current_level() -> u64 {
    2
}

/// Device registers: each keeps what was written to it, or what a test has put there.
pub mod device {
    use super::{Address, Event, record, with};
    use crate::addr::Pa;

    macro_rules! access {
        ($($read:ident $write:ident $int:ty;)*) => {$(
            /// Reads a register.
            #[must_use]
            pub fn $read(at: Pa) -> $int {
                let value = with(|core| core.devices.get(&at.get()).copied().unwrap_or(0));
                <$int>::try_from(value & u64::from(<$int>::MAX)).unwrap_or(0)
            }
            /// Writes a register.
            pub fn $write(at: Pa, value: $int) {
                with(|core| core.devices.insert(at.get(), value.into()));
                record(Event::DeviceWrite(at, value.into()));
            }
        )*};
    }

    access! {
        read8 write8 u8;
        read32 write32 u32;
        read64 write64 u64;
    }
}
