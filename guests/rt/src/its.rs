// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The ITS and LPIs (IHI 0069 5): their tables in the guest's memory, and commands.
//!
//! Collection `n` is vCPU `n`. LPIs are acknowledged and ended like other interrupts.

use crate::boot::TABLES;
use crate::cpu::{self, CPUS_MAX};
use crate::device::Device;
use crate::gic::{self, reg as gic_reg};
use crate::sysreg::dsb;
use crate::{timer, tree};
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

/// Register offsets (IHI 0069 12.11 and 12.19).
pub mod reg {
    /// GITS_CTLR.
    pub const CTLR: u64 = 0x0000;
    /// GITS_TYPER.
    pub const TYPER: u64 = 0x0008;
    /// GITS_CBASER.
    pub const CBASER: u64 = 0x0080;
    /// GITS_CWRITER.
    pub const CWRITER: u64 = 0x0088;
    /// GITS_CREADR.
    pub const CREADR: u64 = 0x0090;
    /// `GITS_BASER<n>`.
    pub const BASER: u64 = 0x0100;
    /// GITS_PIDR2.
    pub const PIDR2: u64 = 0xffe8;
    /// GICR_PROPBASER.
    pub const PROPBASER: u64 = 0x0070;
    /// GICR_PENDBASER.
    pub const PENDBASER: u64 = 0x0078;
}

/// The first LPI.
pub const LPI_FIRST: u32 = 8192;
/// How many LPIs any machine has.
pub const LPI_COUNT: u32 = 256;
/// How many commands fit into the queue, one place of which stays free.
pub const QUEUE_PLACES: usize = 2048;
/// How many devices have a table of events.
pub const DEVICES: u32 = 16;
/// log2 of how many events the table of a device has room for.
pub const EVENT_BITS: u32 = 8;

/// GITS_CTLR: enabled.
pub const ENABLED: u32 = 1 << 0;
/// GITS_CTLR: at rest.
pub const QUIESCENT: u32 = 1 << 31;
/// GITS_CBASER, `GITS_BASER<n>`: there is memory.
pub const VALID: u64 = 1 << 63;
/// GITS_CREADR: the queue has stalled.
pub const STALLED: u64 = 1 << 0;
/// Both: Normal, inner write-back, inner shareable.
const REACHED: u64 = 7 << 59 | 1 << 10;
/// GICR_PROPBASER, GICR_PENDBASER: the same.
const LPI_REACHED: u64 = 7 << 7 | 1 << 10;
/// GICR_PENDBASER: the table is zero.
const PENDING_ZERO: u64 = 1 << 62;
/// GICR_CTLR.EnableLPIs.
const ENABLE_LPIS: u32 = 1;
/// GICR_CTLR.RWP.
const GICR_RWP: u32 = 1 << 3;

/// 64 KiB, the alignment that the strictest table asks for.
#[repr(C, align(0x1_0000))]
struct Page([AtomicU64; 0x2000]);

impl Page {
    const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; 0x2000])
    }
    fn address(&self) -> u64 {
        self.0.as_ptr().addr() as u64
    }
    fn clear(&self) {
        self.0.iter().for_each(|word| word.store(0, Relaxed));
    }
}

/// What the ITS and the redistributors keep in memory; [`init`] zeroes it.
#[repr(C)]
pub(crate) struct Tables {
    queue: Page,
    devices: Page,
    collections: Page,
    /// 4 KiB for each device.
    events: Page,
    pending: [Page; CPUS_MAX],
}

impl Tables {
    pub(crate) const fn new() -> Self {
        let [queue, devices, collections, events] = [const { Page::new() }; 4];
        Self { queue, devices, collections, events, pending: [const { Page::new() }; CPUS_MAX] }
    }
}

#[repr(C, align(0x1_0000))]
struct Properties([AtomicU8; 8192]);

static PROPERTIES: Properties = Properties([const { AtomicU8::new(0) }; 8192]);

/// Returns the tables; they reach too far for an address within them to be one instruction.
fn tables() -> &'static Tables {
    core::hint::black_box(&TABLES)
}

/// A command (IHI 0069 5.3): four double words.
pub type Command = [u64; 4];

/// A device and one of its events.
pub type Event = (u32, u32);

fn about((device, event): Event, opcode: u64, lpi: u32, collection: usize) -> Command {
    let second = u64::from(lpi) << 32 | u64::from(event);
    [u64::from(device) << 32 | opcode, second, collection as u64, 0]
}

/// MAPD of a device below [`DEVICES`] with two to the power of `bits` events.
#[must_use]
pub fn mapd(device: u32, bits: u32) -> Command {
    let table = tables().events.address() + 0x1000 * u64::from(device % DEVICES);
    [u64::from(device) << 32 | 0x08, u64::from(bits) - 1, VALID | table, 0]
}
/// MAPD that takes a device away.
#[must_use]
pub fn unmapd(device: u32) -> Command {
    [u64::from(device) << 32 | 0x08, 0, 0, 0]
}
/// MAPC of a collection to a vCPU.
#[must_use]
pub fn mapc(collection: usize, vcpu: usize) -> Command {
    [0x09, 0, VALID | target(vcpu) | collection as u64, 0]
}
/// MAPC that takes a collection away.
#[must_use]
pub fn unmapc(collection: usize) -> Command {
    [0x09, 0, collection as u64, 0]
}
/// MAPTI.
#[must_use]
pub fn mapti(event: Event, lpi: u32, collection: usize) -> Command {
    about(event, 0x0a, lpi, collection)
}
/// MAPI.
#[must_use]
pub fn mapi(event: Event, collection: usize) -> Command {
    about(event, 0x0b, 0, collection)
}
/// MOVI.
#[must_use]
pub fn movi(event: Event, collection: usize) -> Command {
    about(event, 0x01, 0, collection)
}
/// MOVALL.
#[must_use]
pub fn movall(from: usize, to: usize) -> Command {
    [0x0e, 0, target(from), target(to)]
}
/// DISCARD.
#[must_use]
pub fn discard(event: Event) -> Command {
    about(event, 0x0f, 0, 0)
}
/// INT.
#[must_use]
pub fn int(event: Event) -> Command {
    about(event, 0x03, 0, 0)
}
/// CLEAR.
#[must_use]
pub fn clear(event: Event) -> Command {
    about(event, 0x04, 0, 0)
}
/// INV.
#[must_use]
pub fn inv(event: Event) -> Command {
    about(event, 0x0c, 0, 0)
}
/// INVALL.
#[must_use]
pub fn invall(collection: usize) -> Command {
    [0x0d, 0, collection as u64, 0]
}
/// SYNC.
#[must_use]
pub fn sync(vcpu: usize) -> Command {
    [0x05, 0, target(vcpu), 0]
}

/// Returns the RDbase of a vCPU in place: its address, or its number.
fn target(vcpu: usize) -> u64 {
    let gicr = gic::gicr(vcpu);
    let takes_address = device().is_some_and(|its| its.read64(reg::TYPER) >> 19 & 1 == 1);
    let number = || gicr.read64(gic_reg::GICR_TYPER) >> 8 & 0xffff;
    if takes_address { gicr.base() } else { number() << 16 }
}

/// Returns the ITS that the tree names.
#[must_use]
pub fn device() -> Option<Device> {
    tree::machine().its
}

/// Brings the ITS and the LPIs of all vCPUs into their working state: collections mapped, no
/// device, no LPI pending, all disabled at priority 0. `false` when something does not come.
#[must_use]
pub fn init(its: Device) -> bool {
    its.write32(reg::CTLR, 0);
    let quiescent = || its.read32(reg::CTLR) & QUIESCENT != 0;
    let mut came = timer::wait_for(timer::PATIENCE_MS, quiescent);
    PROPERTIES.0.iter().for_each(|entry| entry.store(0, Relaxed));
    for (vcpu, pending) in tables().pending.iter().enumerate().take(cpu::count()) {
        let gicr = gic::gicr(vcpu);
        gicr.write32(gic_reg::CTLR, 0);
        let is_off = || gicr.read32(gic_reg::CTLR) & (ENABLE_LPIS | GICR_RWP) == 0;
        came &= timer::wait_for(timer::PATIENCE_MS, is_off);
        pending.clear();
        dsb();
        // 14 bits of INTID.
        gicr.write64(reg::PROPBASER, PROPERTIES.0.as_ptr().addr() as u64 | LPI_REACHED | 13);
        gicr.write64(reg::PENDBASER, pending.address() | LPI_REACHED | PENDING_ZERO);
        gicr.write32(gic_reg::CTLR, ENABLE_LPIS);
    }
    for table in [&tables().devices, &tables().collections, &tables().events] {
        table.clear();
    }
    for offset in (reg::BASER..reg::BASER + 64).step_by(8) {
        its.write64(offset, 0);
        let table = match its.read64(offset) >> 56 & 7 {
            1 => &tables().devices,
            4 => &tables().collections,
            _ => continue,
        };
        // One page of 64 KiB.
        its.write64(offset, VALID | table.address() | REACHED | 2 << 8);
    }
    use_queue(its, tables().queue.address());
    came && (0..cpu::count()).all(|vcpu| run(its, &[mapc(vcpu, vcpu), invall(vcpu)]))
}

/// Starts anew with the queue of 64 KiB at `address`, which is not checked.
pub fn use_queue(its: Device, address: u64) {
    its.write32(reg::CTLR, 0);
    its.write64(reg::CBASER, VALID | address | REACHED | 15);
    its.write64(reg::CWRITER, 0);
    its.write32(reg::CTLR, ENABLED);
}

/// Puts commands, fewer than [`QUEUE_PLACES`], into the queue and tells the ITS.
pub fn post(its: Device, commands: impl IntoIterator<Item = Command>) {
    let mut place = usize::try_from(its.read64(reg::CWRITER) / 32).unwrap_or(0);
    for command in commands {
        for (n, word) in command.iter().enumerate() {
            if let Some(at) = tables().queue.0.get(4 * place + n) {
                at.store(*word, Relaxed);
            }
        }
        place = (place + 1) % QUEUE_PLACES;
    }
    dsb();
    its.write64(reg::CWRITER, 32 * place as u64);
}

/// Returns whether the ITS has done all commands.
#[must_use]
pub fn is_done(its: Device) -> bool {
    its.read64(reg::CREADR) == its.read64(reg::CWRITER)
}

/// Posts commands and waits until they are done; `false` when that takes too long.
#[must_use]
pub fn run(its: Device, commands: &[Command]) -> bool {
    post(its, commands.iter().copied());
    timer::wait_for(timer::PATIENCE_MS, || is_done(its))
}

/// Writes an LPI's entry in the configuration table; INV makes it known.
pub fn configure(lpi: u32, priority: u8, enable: Enable) {
    let index = usize::try_from(lpi.wrapping_sub(LPI_FIRST)).unwrap_or(usize::MAX);
    if let Some(entry) = PROPERTIES.0.get(index) {
        // Bit 1 is RES1.
        entry.store(priority & 0xfc | 2 | enable as u8, Relaxed);
    }
    dsb();
}

/// Whether an LPI is delivered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Enable {
    /// It is not.
    Off = 0,
    /// It is.
    On = 1,
}
