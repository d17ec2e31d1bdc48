// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The virtual redistributor of one vCPU: its SGIs and PPIs, and what it is told to look at.
//!
//! Any core may touch it; only the vCPU's own core takes the work and lists interrupts. Must not
//! know SPIs or list registers. IHI 0069 H 12.10 and 12.11.
#![forbid(unsafe_code)]

use super::bank::{Bank, Change, bit};
use super::look::{Asked, Looks};
use super::lpi::LpiRegisters;
use super::{Effects, IIDR, Version};
use crate::bits::{Level, MmioError, Width};
use crate::id::{Mpidr, VcpuId, Vintid};
use crate::spec::gic::{self, BitRegister, gicd, gicr};
use crate::trace::Injections;
use core::sync::atomic::{
    AtomicU8, AtomicU32, AtomicU64, Ordering::AcqRel, Ordering::Acquire, Ordering::Relaxed,
    Ordering::SeqCst,
};

/// SGIs are edge-triggered, always.
pub(super) const SGIS: u32 = 0xffff;
const SGI_COUNT: usize = 16;
/// GICR_WAKER of a PE that sleeps, which is how it starts.
const ASLEEP: u32 = gicr::WAKER_PROCESSOR_SLEEP | gicr::WAKER_CHILDREN_ASLEEP;

/// Which redistributor of the VM it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// Another one follows it.
    Inner,
    /// The last one of the VM.
    Last,
}

/// Whether a vCPU takes interrupts that any of several may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Awake {
    /// It does.
    Yes,
    /// It does not.
    No,
}

/// The virtual redistributor of one vCPU.
#[derive(Debug)]
pub struct Vredist {
    /// Bits 15:0 are SGIs that became pending; [`Self::LOOK`] asks for everything.
    work: AtomicU64,
    /// A copy of GICD_CTLR.
    pub(super) ctlr: AtomicU32,
    /// Bit n is set where INTIDs 32n to 32n + 31 may have a deliverable SPI for this vCPU.
    pub(super) spi_words: AtomicU32,
    /// Bit n is set where LPIs 8192 + 32n to 8192 + 32n + 31 may have a deliverable one.
    pub(super) lpi_words: AtomicU32,
    pub(super) bank: Bank,
    pub(super) lpi: LpiRegisters,
    pub(super) looks: Looks,
    /// What the owner has put into list registers, but for what [`Flush::Sgi`] and
    /// [`Injected::Now`] tell of.
    ///
    /// [`Flush::Sgi`]: super::Flush::Sgi
    /// [`Injected::Now`]: super::Injected::Now
    pub injections: Injections,
    /// For each SGI the vCPUs that have sent it and whose SGI is not in a list register: GICv2
    /// tells them apart.
    sources: [AtomicU8; SGI_COUNT],
    waker: AtomicU32,
    typer: u64,
    id: VcpuId,
    affinity: Mpidr,
}

impl Vredist {
    /// The bit of the work word that asks its owner to compare models and list registers.
    const LOOK: u64 = 1 << 32;
    /// The bit that comes with it when what an owner remembers of priorities, groups and enables
    /// may be wrong: not when more has become deliverable.
    const RELEARN: u64 = 1 << 33;

    /// Makes the redistributor of a vCPU, in the state after reset.
    pub fn new(id: VcpuId, affinity: Mpidr, place: Place, version: Version) -> Self {
        let last = if place == Place::Last { gicr::TYPER_LAST } else { 0 };
        let number = u64::from(id.get()) << gicr::TYPER_NUMBER_SHIFT;
        Self {
            work: AtomicU64::new(0),
            ctlr: AtomicU32::new(0),
            spi_words: AtomicU32::new(0),
            lpi_words: AtomicU32::new(0),
            bank: Bank::new(u32::MAX, SGIS, version),
            lpi: LpiRegisters::default(),
            sources: [const { AtomicU8::new(0) }; SGI_COUNT],
            looks: Looks::default(),
            injections: Injections::default(),
            waker: AtomicU32::new(ASLEEP),
            typer: u64::from(affinity.packed()) << gicr::TYPER_AFFINITY_SHIFT | number | last,
            id,
            affinity,
        }
    }

    /// Says that there are LPIs.
    pub(super) fn add_lpis(&mut self) {
        self.typer |= gicr::TYPER_PLPIS;
    }
    /// Returns whether there are LPIs.
    pub(super) fn has_lpis(&self) -> bool {
        self.typer & gicr::TYPER_PLPIS != 0
    }

    /// Returns the vCPU that it belongs to.
    pub fn id(&self) -> VcpuId {
        self.id
    }
    /// Returns the vCPU's affinity.
    pub fn affinity(&self) -> Mpidr {
        self.affinity
    }
    /// Returns whether the guest says that the vCPU is awake (GICR_WAKER).
    pub fn is_awake(&self) -> bool {
        self.waker.load(Relaxed) & gicr::WAKER_PROCESSOR_SLEEP == 0
    }

    /// Returns whether the owner has something to flush before it enters its guest.
    #[inline(always)]
    pub fn has_work(&self) -> bool {
        self.work.load(Relaxed) != 0
    }
    /// Returns whether all the work there is are SGIs.
    #[inline(always)]
    pub(super) fn has_sgis_only(&self) -> bool {
        Work(self.work.load(Relaxed)).is_sgis_only()
    }
    /// Takes the work: its owner alone does this. Pairs with the release in `post`.
    #[inline(always)]
    pub(super) fn take_work(&self) -> Work {
        Work(self.work.swap(0, AcqRel))
    }
    /// Asks for a flush that compares models and list registers: what a maintenance interrupt
    /// means.
    pub fn look_again(&self) {
        self.work.fetch_or(Self::LOOK, AcqRel);
    }

    /// Returns whether the models may hold an interrupt that is to be delivered to the vCPU.
    pub(super) fn has_waiting(&self) -> bool {
        self.bank.signal() != 0
            || (self.spi_words.load(Relaxed) | self.lpi_words.load(Relaxed)) != 0
    }

    /// Asks the owner for a look, from another core: what its guest has done with its list
    /// registers so far, and what it has been asked before this, shows in the models once
    /// [`Self::has_looked_since`] says so. A vCPU that is off does not look, and has nothing.
    pub fn ask_for_look<E: Effects>(&self, effects: &E) -> Asked {
        let asked = self.looks.ask();
        self.post_look(effects);
        asked
    }
    /// Returns whether the owner has looked.
    pub fn has_looked_since(&self, asked: Asked) -> bool {
        self.looks.is_done_since(asked)
    }

    /// Makes the SGI `intid` pending; only the low four bits count.
    #[inline(always)]
    pub(super) fn raise<E: Effects>(&self, intid: u32, effects: &E) {
        self.post(1 << (intid & 15), effects);
    }
    /// Makes the SGI `intid` of the vCPU `sender` pending; only the low four bits of `intid`
    /// count. GICv2 alone does this.
    pub(super) fn raise_from<E: Effects>(&self, intid: u32, sender: VcpuId, effects: &E) {
        self.add_source(intid, sender.get());
        self.raise(intid, effects);
    }
    /// Notes a source of an SGI, which is or becomes pending.
    pub(super) fn add_source(&self, intid: u32, source: u8) {
        self.source_word(intid).fetch_or(1 << (source & 7), AcqRel);
    }
    /// Returns the set of vCPUs whose SGI `intid` is pending.
    pub(super) fn sources(&self, intid: u32) -> u8 {
        self.source_word(intid).load(Acquire)
    }
    /// Makes the SGIs `intid` of the vCPUs of a set pending. Its owner alone does this.
    pub(super) fn latch_sources(&self, intid: u32, set: u8) {
        if set != 0 {
            self.source_word(intid).fetch_or(set, AcqRel);
            let _ = self.bank.latch(bit(intid & 15));
        }
    }
    /// Takes back the SGIs `intid` of the vCPUs of a set. Its owner alone does this.
    pub(super) fn remove_sources(&self, intid: u32, set: u8) {
        if self.source_word(intid).fetch_and(!set, AcqRel) & !set == 0 {
            self.work.fetch_and(!u64::from(bit(intid & 15)), AcqRel);
            self.bank.take_pending(bit(intid & 15));
            if self.sources(intid) != 0 {
                // Another core has sent it again in between.
                let _ = self.bank.latch(bit(intid & 15));
            }
        }
    }
    /// Takes one source of the pending SGI `intid`, to deliver it; with others left it stays
    /// pending. Its owner alone does this.
    pub(super) fn take_source(&self, intid: u32) -> Option<u8> {
        // The pending bit first: whoever adds a source sets it after that.
        self.bank.take_pending(bit(intid & 15));
        let all = self.sources(intid);
        let first = all & all.wrapping_neg();
        if self.source_word(intid).fetch_and(!first, AcqRel) & !first != 0 {
            self.bank.pending.fetch_or(bit(intid & 15), SeqCst);
        }
        (first != 0).then(|| first.trailing_zeros().to_le_bytes()[0])
    }
    fn source_word(&self, intid: u32) -> &AtomicU8 {
        #[expect(clippy::indexing_slicing, reason = "masked to the length")]
        let word = &self.sources[intid as usize & (SGI_COUNT - 1)];
        word
    }

    /// Says whether the vCPU is on, where no GICR_WAKER does: with GICv2.
    pub(super) fn set_awake(&self, is: Awake) {
        self.waker.store(if is == Awake::Yes { 0 } else { ASLEEP }, Relaxed);
    }
    /// Tells of a new GICD_CTLR.
    pub(super) fn set_ctlr<E: Effects>(&self, ctlr: u32, effects: &E) {
        self.ctlr.store(ctlr, Relaxed);
        self.post(Self::LOOK | Self::RELEARN, effects);
    }
    /// Asks for a look, from whichever core.
    pub(super) fn post_look<E: Effects>(&self, effects: &E) {
        self.post(Self::LOOK, effects);
    }
    /// Leaves work and makes sure that the owner finds it.
    ///
    /// Work that was there already has had its kick, or its owner is in EL2 and about to look.
    #[inline(always)]
    fn post<E: Effects>(&self, work: u64, effects: &E) {
        if self.work.fetch_or(work, AcqRel) == 0 {
            effects.kick(self.id);
        }
    }

    /// Sets the level of a PPI's line that EL2 drives. SGIs have no line.
    pub fn set_level<E: Effects>(&self, vintid: Vintid, level: Level, effects: &E) {
        let intid = vintid.get();
        if !(gic::PPI_FIRST..gic::SPI_FIRST).contains(&intid) {
            return;
        }
        self.apply(self.bank.set_line(bit(intid), level), effects);
    }
    /// Clears the pending bit of an SGI or PPI, as a write to ICPENDR0 would: what is done for a
    /// linked timer whose physical line has gone low.
    pub fn retract<E: Effects>(&self, vintid: Vintid, effects: &E) {
        if vintid.get() < gic::SPI_FIRST {
            self.write_bits(BitRegister::ClearPending, bit(vintid.get()), effects);
        }
    }
    /// Clears the active bit of an SGI or PPI: what a trapped write to ICC_DIR_EL1 asks for.
    pub(super) fn deactivate<E: Effects>(&self, intid: u32, effects: &E) {
        self.write_bits(BitRegister::ClearActive, bit(intid), effects);
    }

    /// Returns to the state after reset, the copy of GICD_CTLR included.
    pub(super) fn reset(&self) {
        self.bank.reset();
        for sources in &self.sources {
            sources.store(0, Relaxed);
        }
        self.waker.store(ASLEEP, Relaxed);
        for word in [&self.ctlr, &self.spi_words, &self.lpi_words] {
            word.store(0, Relaxed);
        }
        self.lpi.reset();
        self.work.store(0, Relaxed);
    }

    /// Reads at `offset` of the 128 KiB.
    ///
    /// # Errors
    /// Where no register takes the width or alignment, or past the frames.
    #[inline]
    pub fn read(&self, offset: u64, width: Width) -> Result<u64, MmioError> {
        check(offset, width)?;
        Ok(match width {
            Width::Double => self.read_double(offset),
            Width::Byte => {
                let word = self.bank.read_priorities(priority_word(offset));
                u64::from(word >> (8 * (offset & 3)) & 0xff)
            }
            _ => u64::from(self.read_word(offset)),
        })
    }

    fn read_word(&self, offset: u64) -> u32 {
        if let Some(offset) = offset.checked_sub(gic::GICR_SGI_BASE) {
            return match (BitRegister::at(offset), offset) {
                (Some(register), _) if offset & 0x7f == 0 => self.read_bits(register),
                (_, 0x400..0x420) => self.bank.read_priorities(priority_word(offset)),
                (_, 0xc00) => self.bank.read_config(0),
                (_, 0xc04) => self.bank.read_config(1),
                _ => 0,
            };
        }
        self.read_first_frame(offset)
    }

    fn read_first_frame(&self, offset: u64) -> u32 {
        match offset {
            gicr::CTLR if self.has_lpis() => self.lpi.control(),
            gicr::IIDR => IIDR,
            gicr::WAKER => self.waker.load(Relaxed),
            gic::PIDR2 => gic::PIDR2_GICV3,
            _ => {
                let [low, high] = halves(self.read_double(offset & !7));
                if offset & 4 == 0 { low } else { high }
            }
        }
    }
    fn read_double(&self, offset: u64) -> u64 {
        if offset == gicr::TYPER { self.typer } else { self.lpi.read(offset) }
    }

    fn read_bits(&self, register: BitRegister) -> u32 {
        let raised = match register {
            BitRegister::SetPending | BitRegister::ClearPending => {
                Work(self.work.load(Relaxed)).raised()
            }
            _ => 0,
        };
        raised | self.bank.read(register)
    }
    /// Reads a register of pending or active bits, or what is reserved next to them.
    pub(super) fn read_listed(&self, offset: u64) -> u32 {
        listed_register(offset).map_or(0, |register| self.read_bits(register))
    }
    /// Writes a register of enables, pending or active bits, or what is reserved next to them.
    pub(super) fn write_listed<E: Effects>(&self, offset: u64, value: u32, effects: &E) {
        if let Some(register) = listed_register(offset) {
            self.write_bits(register, value, effects);
        }
    }

    /// Writes at `offset` of the 128 KiB.
    ///
    /// # Errors
    /// Where no register takes the width or alignment, or past the frames.
    #[inline]
    pub fn write<E: Effects>(
        &self,
        offset: u64,
        width: Width,
        value: u64,
        effects: &E,
    ) -> Result<(), MmioError> {
        check(offset, width)?;
        let whole = value;
        let [value, _] = halves(value);
        match width {
            Width::Double => self.write_double(offset, whole),
            Width::Byte => {
                let shift = 8 * (offset & 3);
                let (word, mask) = (priority_word(offset), 0xff << shift);
                self.relearn(self.bank.write_priorities(word, value << shift, mask), effects);
            }
            _ => self.write_word(offset, value, effects),
        }
        Ok(())
    }

    #[inline(always)]
    fn write_word<E: Effects>(&self, offset: u64, value: u32, effects: &E) {
        let Some(offset) = offset.checked_sub(gic::GICR_SGI_BASE) else {
            return self.write_first_frame(offset, value, effects);
        };
        match (BitRegister::at(offset), offset) {
            // What guests write most: it takes nothing out of a list register.
            (Some(register @ BitRegister::SetEnable), _) if offset & 0x7f == 0 => {
                self.apply(self.bank.write(register, value), effects);
            }
            (Some(register), _) if offset & 0x7f == 0 => self.write_bits(register, value, effects),
            (_, 0x400..0x420) => {
                let word = priority_word(offset);
                self.relearn(self.bank.write_priorities(word, value, u32::MAX), effects);
            }
            // ICFGR0 is read-only: SGIs are edge-triggered.
            (_, 0xc04) => self.relearn(self.bank.write_config(1, value), effects),
            _ => {}
        }
    }

    fn write_double(&self, offset: u64, value: u64) {
        if self.has_lpis() {
            self.lpi.write(offset, value);
        }
    }
    #[inline(always)]
    fn write_first_frame<E: Effects>(&self, offset: u64, value: u32, effects: &E) {
        match offset {
            gicr::WAKER => {
                let asleep = value & gicr::WAKER_PROCESSOR_SLEEP != 0;
                self.waker.store(if asleep { ASLEEP } else { 0 }, Relaxed);
            }
            _ if !self.has_lpis() => {}
            gicr::CTLR => effects.control_lpis(self.id, value),
            _ => self.lpi.write_half(offset, value),
        }
    }

    #[inline(never)]
    pub(super) fn write_bits<E: Effects>(&self, register: BitRegister, value: u32, effects: &E) {
        match register {
            BitRegister::SetEnable | BitRegister::SetPending | BitRegister::ClearActive => {
                self.apply(self.bank.write(register, value), effects);
            }
            BitRegister::ClearPending => {
                self.work.fetch_and(!u64::from(value), AcqRel);
                self.apply(self.bank.write(register, value), effects);
            }
            BitRegister::Group | BitRegister::ClearEnable | BitRegister::SetActive => {
                self.relearn(self.bank.write(register, value), effects);
            }
        }
    }

    #[inline(always)]
    fn apply<E: Effects>(&self, change: Change, effects: &E) {
        if change.woken | change.look != 0 {
            self.post_look(effects);
        }
    }
    fn relearn<E: Effects>(&self, change: Change, effects: &E) {
        if change.woken | change.look != 0 {
            self.post(Self::LOOK | Self::RELEARN, effects);
        }
    }
}

/// What an owner has taken.
#[derive(Clone, Copy)]
pub(super) struct Work(u64);

impl Work {
    /// Returns the SGIs that became pending.
    #[inline(always)]
    pub fn raised(self) -> u32 {
        halves(self.0)[0]
    }
    /// Returns whether that is all.
    #[inline(always)]
    pub fn is_sgis_only(self) -> bool {
        self.0 & Vredist::LOOK == 0
    }
    /// Returns whether that is all, and all of them are in `sgis`.
    #[inline(always)]
    pub fn is_within(self, sgis: u32) -> bool {
        self.0 & !u64::from(sgis) == 0
    }
    /// Returns whether what the owner remembers may be wrong.
    pub fn asks_to_relearn(self) -> bool {
        self.0 & Vredist::RELEARN != 0
    }
}

/// Returns which register of the second frame is at `offset`: there is one word of each.
fn listed_register(offset: u64) -> Option<BitRegister> {
    let offset = offset.checked_sub(gic::GICR_SGI_BASE)?;
    BitRegister::at(offset).filter(|_| offset & 0x7f == 0)
}

/// Returns the word of IPRIORITYR at `offset`, to be taken modulo 8.
#[inline(always)]
fn priority_word(offset: u64) -> u32 {
    halves(offset >> 2)[0]
}

/// Returns the two 32-bit halves, the lower one first.
#[inline(always)]
pub(super) fn halves(value: u64) -> [u32; 2] {
    #[expect(clippy::cast_possible_truncation, reason = "taken apart on purpose")]
    let halves = [value as u32, (value >> 32) as u32];
    halves
}

/// Checks that a register at `offset` takes accesses of `width` (IHI 0069 H 12.1.3).
#[inline(always)]
fn check(offset: u64, width: Width) -> Result<(), MmioError> {
    if offset >= gic::GICR_BYTES {
        return Err(MmioError::Unmapped);
    }
    let fits = match width {
        Width::Word => offset & 3 == 0,
        Width::Byte => {
            let offset = offset.wrapping_sub(gic::GICR_SGI_BASE);
            (gicd::IPRIORITYR..gicd::IPRIORITYR + 32).contains(&offset)
        }
        Width::Double => {
            let lpis = (gicr::SETLPIR..gicr::INVALLR_END).contains(&offset);
            offset & 7 == 0 && (offset == gicr::TYPER || lpis)
        }
        Width::Half => false,
    };
    if fits { Ok(()) } else { Err(MmioError::Width) }
}
