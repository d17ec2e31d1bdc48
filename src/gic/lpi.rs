// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The LPIs of a VM: which are pending and for whom, and what a redistributor says about them.
//!
//! An LPI is a bit of a [`Bank`], as an SPI is, so that delivery treats both alike; what the guest
//! has written about it in its configuration table is kept there as enables and priorities, read
//! again when the guest asks for that. It is pending for one vCPU at a time. Whoever changes LPIs
//! holds the VM's [`SpiToken`]. Must not know events, devices or collections: that is `vits`.
//! IHI 0069 H 5.1 and 12.11.
#![forbid(unsafe_code)]

use super::bank::{Bank, Change, bit, bits_of};
use super::vdist::Net;
use super::vredist::Vredist;
use super::{Effects, SpiToken, Version};
use crate::addr::{Address, Ipa};
use crate::heap::{self, NoMemory};
use crate::id::VcpuId;
use crate::spec::gic::{BitRegister, gicr};
use crate::spec::its::{LPI_FIRST, lpi};
use alloc::boxed::Box;
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};

/// How many LPIs a VM with an ITS has. All of them together are no more work than one exit takes,
/// so that nothing which concerns all of them has to be done in parts.
pub(super) const LPI_COUNT: u32 = 256;
/// The words of 32 that they fill.
const WORDS: u32 = LPI_COUNT / 32;
/// The number of the first word among all INTIDs.
const WORD_FIRST: u32 = LPI_FIRST / 32;
/// Stands for no vCPU.
const NOBODY: u8 = u8::MAX;
/// Stands for no configuration table.
const NO_TABLE: u64 = u64::MAX;

/// A guest's memory, seen through its own map.
pub trait GuestTables {
    /// Copies `bytes.len()` bytes at `start`, once.
    ///
    /// # Errors
    /// Some of them are not the guest's memory; `bytes` is then undefined.
    fn read(&self, start: Ipa, bytes: &mut [u8]) -> Result<(), Unreadable>;
}

/// What a guest points at is not its memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unreadable;

/// What an LPI has beyond its bits.
#[derive(Debug)]
struct Lpi {
    /// The vCPU that it was last pending for, or [`NOBODY`].
    target: AtomicU8,
    /// The vCPU that has it in a list register, or [`NOBODY`].
    holder: AtomicU8,
}

/// The LPIs of a VM.
#[derive(Debug)]
pub(super) struct Lpis {
    banks: Box<[Bank]>,
    lpis: Box<[Lpi]>,
    /// Where the guest's configuration table is, or [`NO_TABLE`].
    table: AtomicU64,
}

impl Lpis {
    /// Makes the LPIs of a VM without an ITS: none.
    pub fn none() -> Self {
        Self { banks: Box::default(), lpis: Box::default(), table: AtomicU64::new(NO_TABLE) }
    }
    /// Makes all of them, in the state after reset.
    pub fn new() -> Result<Self, NoMemory> {
        let lpi = |_| Lpi { target: AtomicU8::new(NOBODY), holder: AtomicU8::new(NOBODY) };
        let bank = |_| Bank::new(u32::MAX, u32::MAX, Version::V3);
        Ok(Self {
            banks: heap::collect((0..WORDS).map(bank))?,
            lpis: heap::collect((0..LPI_COUNT).map(lpi))?,
            table: AtomicU64::new(NO_TABLE),
        })
    }

    /// Returns to the state after reset. All vCPUs have emptied their list registers before.
    pub fn reset(&self, _: &mut SpiToken) {
        // Targets and holders mean something for what is pending or listed only.
        self.banks.iter().for_each(Bank::reset);
        self.table.store(NO_TABLE, Relaxed);
    }

    /// Returns whether there is such an LPI.
    pub fn has(&self, intid: u32) -> bool {
        self.lpi(intid).is_some()
    }
    /// Returns the state of INTIDs 32 × `word` and the following 31.
    pub fn bank(&self, word: u32) -> Option<&Bank> {
        self.banks.get(word.checked_sub(WORD_FIRST)? as usize)
    }
    fn lpi(&self, intid: u32) -> Option<&Lpi> {
        self.lpis.get(intid.checked_sub(LPI_FIRST)? as usize)
    }
    /// Returns whether the LPI goes to `vcpu`.
    pub fn is_for(&self, intid: u32, vcpu: VcpuId) -> bool {
        self.lpi(intid).is_some_and(|lpi| lpi.target.load(Relaxed) == vcpu.get())
    }
    /// Notes that `vcpu` has the LPI in a list register.
    pub fn hold(&self, intid: u32, vcpu: VcpuId) {
        self.lpi(intid).into_iter().for_each(|lpi| lpi.holder.store(vcpu.get(), Relaxed));
    }

    /// Makes LPIs of one word pending for a vCPU; they are lost where the guest has not enabled
    /// LPIs there.
    fn raise_in<E: Effects>(&self, word: u32, bits: u32, vcpu: VcpuId, net: Net<'_, E>) {
        let is_enabled = net.vgic.vredist(vcpu).is_some_and(|vredist| vredist.lpi.is_enabled());
        let Some(bank) = self.bank(word).filter(|_| is_enabled) else { return };
        let moved = self.retarget(word, bits, vcpu);
        let Change { woken, look } = bank.latch(bits);
        self.notify(word, Change { woken, look: look | moved }, NOBODY, net);
    }
    /// Lets LPIs of one word go to `vcpu` and returns those that did not.
    fn retarget(&self, word: u32, bits: u32, vcpu: VcpuId) -> u32 {
        let mut moved = 0;
        for index in bits_of(bits) {
            let Some(lpi) = self.lpi(word << 5 | index) else { continue };
            if lpi.target.swap(vcpu.get(), Relaxed) != vcpu.get() {
                moved |= bit(index);
            }
        }
        moved
    }

    /// Makes an LPI pending for a vCPU.
    pub fn raise<E: Effects>(&self, _: &mut SpiToken, intid: u32, to: VcpuId, net: Net<'_, E>) {
        self.raise_in(intid >> 5, bit(intid), to, net);
    }
    /// Makes an LPI not pending.
    pub fn clear<E: Effects>(&self, _: &mut SpiToken, intid: u32, net: Net<'_, E>) {
        let Some(bank) = self.bank(intid >> 5) else { return };
        let change = bank.write(BitRegister::ClearPending, bit(intid));
        self.notify(intid >> 5, change, NOBODY, net);
    }
    /// Lets an LPI go to another vCPU where it is pending.
    pub fn aim<E: Effects>(&self, _: &mut SpiToken, intid: u32, to: VcpuId, net: Net<'_, E>) {
        let moved = self.retarget(intid >> 5, bit(intid), to);
        self.notify(intid >> 5, Change { woken: moved, look: moved }, NOBODY, net);
    }
    /// Lets all LPIs that are pending for `from` go to `to`.
    pub fn aim_all<E: Effects>(
        &self,
        _: &mut SpiToken,
        (from, to): (VcpuId, VcpuId),
        net: Net<'_, E>,
    ) {
        for (bank, word) in self.banks.iter().zip(WORD_FIRST..) {
            let moved = self.retarget(word, self.pending_for(bank, word, from), to);
            self.notify(word, Change { woken: moved, look: moved }, NOBODY, net);
        }
    }

    /// Notes that an LPI has left a list register of `own`, which will look for more anyway, and
    /// tells who else is next.
    pub fn unlist<E: Effects>(&self, _: &mut SpiToken, intid: u32, own: VcpuId, net: Net<'_, E>) {
        let (Some(bank), Some(lpi)) = (self.bank(intid >> 5), self.lpi(intid)) else { return };
        bank.unlist(bit(intid));
        lpi.holder.store(NOBODY, Relaxed);
        self.notify(intid >> 5, Change { woken: bit(intid), look: 0 }, own.get(), net);
    }
    /// Tells of all deliverable LPIs: after a change that concerns all of them.
    pub fn wake_all<E: Effects>(&self, net: Net<'_, E>) {
        for word in 0..WORDS {
            let change = Change { woken: u32::MAX, look: 0 };
            self.notify(WORD_FIRST | word, change, NOBODY, net);
        }
    }

    /// Tells the vCPUs concerned of a change to INTIDs 32 × `word` and the following 31.
    fn notify<E: Effects>(&self, word: u32, change: Change, own: u8, net: Net<'_, E>) {
        let Some(bank) = self.bank(word) else { return };
        let listed = bank.listed.load(Relaxed);
        let ready = bank.signal() & bank.eligible(net.vgic.vdist.ctlr());
        for index in bits_of(change.woken & ready & !listed) {
            let Some(lpi) = self.lpi(word << 5 | index) else { continue };
            let target = lpi.target.load(Relaxed);
            if let Some(vredist) = net.vgic.vredists.get(usize::from(target)) {
                vredist.lpi_words.fetch_or(bit(word), Relaxed);
                if target != own {
                    vredist.post_look(net.effects);
                }
            }
        }
        for index in bits_of((change.woken | change.look) & listed) {
            let Some(lpi) = self.lpi(word << 5 | index) else { continue };
            let holder = usize::from(lpi.holder.load(Relaxed));
            if let Some(vredist) = net.vgic.vredists.get(holder) {
                vredist.post_look(net.effects);
            }
        }
    }

    /// Reads an LPI's configuration again; it stays as it is where the table cannot be read.
    pub fn configure<T: GuestTables, E: Effects>(
        &self,
        _: &mut SpiToken,
        intid: u32,
        tables: &T,
        net: Net<'_, E>,
    ) {
        let (Some(bank), Some(at)) = (self.bank(intid >> 5), self.entry(intid)) else { return };
        let mut entry = [0];
        if tables.read(at, &mut entry).is_ok() {
            let [entry] = entry;
            let priority = u32::from_le_bytes([entry; 4]) & lpi::PRIORITIES;
            let mask = 0xff << (8 * (intid & 3));
            let changed = bank.write_priorities(intid >> 2, priority, mask);
            self.notify(intid >> 5, changed, NOBODY, net);
            let enables = if entry & 1 == 1 { bit(intid) } else { 0 };
            self.enable(intid >> 5, (bit(intid), enables), net);
        }
    }
    /// Reads the configuration of all LPIs again.
    pub fn configure_all<T: GuestTables, E: Effects>(
        &self,
        _: &mut SpiToken,
        tables: &T,
        net: Net<'_, E>,
    ) {
        for (bank, word) in self.banks.iter().zip(WORD_FIRST..) {
            let Some(at) = self.entry(word << 5) else { return };
            let mut entries = [[0; 8]; 4];
            if tables.read(at, entries.as_flattened_mut()).is_err() {
                continue;
            }
            let mut enables = 0;
            for (entries, n) in entries.into_iter().zip(0..) {
                let entries = u64::from_le_bytes(entries);
                for (half, part) in super::vredist::halves(entries).into_iter().zip(0..) {
                    let priorities = half & lpi::PRIORITIES;
                    let changed = bank.write_priorities(2 * n + part, priorities, u32::MAX);
                    self.notify(word, changed, NOBODY, net);
                }
                enables |= u32::from(gather(entries)) << (8 * n);
            }
            self.enable(word, (u32::MAX, enables), net);
        }
    }
    /// Enables, of the LPIs in `mask`, those in `enables`, and disables the others.
    fn enable<E: Effects>(&self, word: u32, (mask, enables): (u32, u32), net: Net<'_, E>) {
        let Some(bank) = self.bank(word) else { return };
        let off = bank.write(BitRegister::ClearEnable, mask & !enables);
        self.notify(word, off, NOBODY, net);
        self.notify(word, bank.write(BitRegister::SetEnable, mask & enables), NOBODY, net);
    }
    /// Returns where the configuration of an LPI is.
    fn entry(&self, intid: u32) -> Option<Ipa> {
        let table = self.table.load(Relaxed);
        let index = intid.checked_sub(LPI_FIRST)?;
        (table != NO_TABLE).then(|| Ipa::new(table).checked_add(u64::from(index)))?
    }

    /// Enables LPIs on `vredist` and takes over what the guest says of them there: the
    /// configuration, which is that of all redistributors, and, unless it says that there is none,
    /// what is pending.
    pub fn enable_on<T: GuestTables, E: Effects>(
        &self,
        token: &mut SpiToken,
        vredist: &Vredist,
        tables: &T,
        net: Net<'_, E>,
    ) {
        if !vredist.lpi.enable() {
            return;
        }
        let table = vredist.lpi.configuration().map_or(NO_TABLE, Ipa::get);
        self.table.store(table, Relaxed);
        self.configure_all(token, tables, net);
        let mut pending = [[0; 4]; WORDS as usize];
        let Some(at) = vredist.lpi.pending() else { return };
        if tables.read(at, pending.as_flattened_mut()).is_ok() {
            for (bits, word) in pending.into_iter().zip(WORD_FIRST..) {
                self.raise_in(word, u32::from_le_bytes(bits), vredist.id(), net);
            }
        }
    }
    /// Disables LPIs on `vredist`; what is pending there is lost.
    pub fn disable_on<E: Effects>(&self, _: &mut SpiToken, vredist: &Vredist, net: Net<'_, E>) {
        if !vredist.lpi.disable() {
            return;
        }
        for (bank, word) in self.banks.iter().zip(WORD_FIRST..) {
            let bits = self.pending_for(bank, word, vredist.id());
            self.notify(word, bank.write(BitRegister::ClearPending, bits), NOBODY, net);
        }
    }
    /// Returns those of a word of LPIs that may be pending for a vCPU.
    fn pending_for(&self, bank: &Bank, word: u32, vcpu: VcpuId) -> u32 {
        let pending = bits_of(bank.signal() | bank.listed.load(Relaxed));
        let ours = pending.filter(|index| self.is_for(word << 5 | index, vcpu));
        ours.fold(0, |bits, index| bits | bit(index))
    }
}

/// The registers with which a guest sets up LPIs on one vCPU.
#[derive(Debug, Default)]
pub(super) struct LpiRegisters {
    control: AtomicU32,
    /// GICR_PROPBASER.
    properties: AtomicU64,
    /// GICR_PENDBASER, PTZ included.
    pending: AtomicU64,
}

impl LpiRegisters {
    const PROPERTIES: u64 = lpi::PROPBASER_ADDRESS | lpi::PROPBASER_ID_BITS;
    const PENDING: u64 = lpi::PENDBASER_ADDRESS | lpi::PENDBASER_ZERO;
    /// What both say of how memory is reached: as EL2 does it.
    const ATTRIBUTES: u64 = lpi::INNER_WRITE_BACK | lpi::INNER_SHAREABLE;

    /// Returns to the state after reset.
    pub fn reset(&self) {
        self.control.store(0, Relaxed);
        self.properties.store(0, Relaxed);
        self.pending.store(0, Relaxed);
    }

    /// Reads GICR_CTLR of a redistributor with LPIs: what is written has its effect at once.
    pub fn control(&self) -> u32 {
        self.control.load(Relaxed) | gicr::CTLR_CES
    }
    /// Returns whether LPIs are enabled.
    pub fn is_enabled(&self) -> bool {
        self.control.load(Relaxed) & gicr::CTLR_ENABLE_LPIS != 0
    }
    /// Enables LPIs; returns whether they were not.
    fn enable(&self) -> bool {
        let old = self.control.fetch_or(gicr::CTLR_ENABLE_LPIS, Relaxed);
        old & gicr::CTLR_ENABLE_LPIS == 0
    }
    /// Disables LPIs; returns whether they were enabled.
    fn disable(&self) -> bool {
        let old = self.control.fetch_and(!gicr::CTLR_ENABLE_LPIS, Relaxed);
        old & gicr::CTLR_ENABLE_LPIS != 0
    }
    /// Returns where the configuration table is, where it has room for LPIs.
    fn configuration(&self) -> Option<Ipa> {
        let register = self.properties.load(Relaxed);
        let id_bits = (register & lpi::PROPBASER_ID_BITS) + 1;
        // What is beyond the 14 bits that GICD_TYPER has is as if it were not there.
        (id_bits >= 14).then(|| Ipa::new(register & lpi::PROPBASER_ADDRESS))
    }
    /// Returns where the bits of the LPIs are in the pending table, unless that is all zeros.
    fn pending(&self) -> Option<Ipa> {
        let register = self.pending.load(Relaxed);
        let table = Ipa::new(register & lpi::PENDBASER_ADDRESS);
        let bits = u64::from(LPI_FIRST / 8);
        (register & lpi::PENDBASER_ZERO == 0).then(|| table.checked_add(bits))?
    }

    /// Reads the register of 64 bits at `offset` in the first frame.
    pub fn read(&self, offset: u64) -> u64 {
        match offset {
            gicr::PROPBASER => self.properties.load(Relaxed),
            gicr::PENDBASER => self.pending.load(Relaxed) & !lpi::PENDBASER_ZERO,
            _ => 0,
        }
    }
    /// Writes it. Neither changes while LPIs are enabled.
    pub fn write(&self, offset: u64, value: u64) {
        let (register, fields) = match offset {
            gicr::PROPBASER => (&self.properties, Self::PROPERTIES),
            gicr::PENDBASER => (&self.pending, Self::PENDING),
            _ => return,
        };
        if !self.is_enabled() {
            register.store(value & fields | Self::ATTRIBUTES, Relaxed);
        }
    }
    /// Writes half of it.
    pub fn write_half(&self, offset: u64, value: u32) {
        let register = match offset & !7 {
            gicr::PROPBASER => &self.properties,
            gicr::PENDBASER => &self.pending,
            _ => return,
        };
        let shift = 8 * (offset & 4);
        let others = register.load(Relaxed) & !(0xffff_ffff << shift);
        self.write(offset & !7, others | u64::from(value) << shift);
    }
}

/// Moves bit 0 of each byte to the bit of the byte's number.
fn gather(bytes: u64) -> u8 {
    // Each product's partial sums are disjoint, and the byte on top collects all eight.
    let product = (bytes & lpi::ENABLES).wrapping_mul(0x0102_0408_1020_4080);
    product.to_be_bytes()[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t84_enables_are_gathered_from_the_lowest_bits() {
        for pattern in 0..=255u8 {
            let bytes = core::array::from_fn(|n| 0xa0 | 2 | pattern >> n & 1);
            assert_eq!(gather(u64::from_le_bytes(bytes)), pattern);
        }
    }

    #[test]
    fn t77_numbers_that_are_no_lpis_are_not_there() {
        let lpis = Lpis::new().unwrap();
        for intid in [0, 31, 32, 1019, 1020, 1024, 5120, 8191, 8192 + LPI_COUNT, u32::MAX] {
            assert!(!lpis.has(intid), "{intid}");
        }
        assert!(lpis.has(8192) && lpis.has(8191 + LPI_COUNT));
        assert!(!Lpis::none().has(8192));
    }
}
