// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The virtual distributor of a VM: its SPIs, their routes, and who hears of them.
//!
//! Anybody may read; whoever changes SPIs holds the VM's [`SpiToken`], which L3 keeps inside its
//! lock. Must not know list registers: it only notes whose they are in. IHI 0069 H 12.8.
#![forbid(unsafe_code)]

mod registers;

use super::bank::{Bank, Change, bit, bits_of};
use super::{ConfigError, Effects, Version, Vgic, lpi};
use crate::bits::Level;
use crate::heap;
use crate::id::{Mpidr, Pintid, VcpuId, Vintid};
use crate::spec::gic::{self, gicd};
use alloc::boxed::Box;
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};

/// The right to change SPIs. There is one for each VM; L3 keeps it inside the VM's lock.
#[derive(Debug)]
pub struct SpiToken(());

/// Stands for no vCPU.
const NOBODY: u8 = u8::MAX;

/// What an SPI has beyond its bits.
#[derive(Debug)]
pub(super) struct Spi {
    /// GICD_IROUTER as written, or with GICv2 the byte of GICD_ITARGETSR.
    router: AtomicU64,
    /// The vCPU that it goes to, or [`NOBODY`].
    target: AtomicU8,
    /// The vCPU that has it in a list register, or has it active after it was taken from one.
    holder: AtomicU8,
    /// Its priority when it was taken from a list register while active.
    running_priority: AtomicU8,
    /// The physical interrupt behind it; 0 is none, since that is an SGI.
    link: u16,
}

impl Spi {
    /// Returns whether the SPI goes to `vcpu`.
    #[inline(always)]
    pub fn is_for(&self, vcpu: VcpuId) -> bool {
        self.target.load(Relaxed) == vcpu.get()
    }
    /// Returns the byte of GICD_ITARGETSR.
    pub fn targets(&self) -> u8 {
        self.router.load(Relaxed).to_le_bytes()[0]
    }
    /// Returns whether `vcpu` holds the SPI.
    pub fn is_held_by(&self, vcpu: VcpuId) -> bool {
        self.holder.load(Relaxed) == vcpu.get()
    }
    /// Notes that `vcpu` holds the SPI from now on.
    pub fn hold(&self, vcpu: VcpuId) {
        self.holder.store(vcpu.get(), Relaxed);
    }
    /// Notes that nobody holds the SPI.
    pub fn let_go(&self) {
        self.holder.store(NOBODY, Relaxed);
    }
    /// Returns its priority when it was taken from a list register while active.
    pub fn running_priority(&self) -> u8 {
        self.running_priority.load(Relaxed)
    }
    /// Notes the priority of an active SPI that is taken from a list register.
    pub fn run_on(&self, priority: u8) {
        self.running_priority.store(priority, Relaxed);
    }
    /// Returns the physical interrupt behind it.
    pub fn link(&self) -> Option<Pintid> {
        (self.link != 0).then_some(Pintid::new(u32::from(self.link)))
    }
}

/// The VM's vCPUs and the way to reach them.
#[derive(Debug)]
pub(super) struct Net<'a, E> {
    pub vgic: &'a Vgic,
    pub effects: &'a E,
}

/// The virtual distributor of a VM.
#[derive(Debug)]
pub struct Vdist {
    ctlr: AtomicU32,
    typer: u32,
    /// The SPIs, 32 in each.
    banks: Box<[Bank]>,
    spis: Box<[Spi]>,
    /// The SPIs with a physical interrupt behind them.
    linked: Box<[u32]>,
}

impl Vdist {
    /// Makes a distributor for `spi_count` SPIs, rounded up to a multiple of 32, of which `links`
    /// names those with a physical interrupt behind them.
    ///
    /// # Errors
    /// When there are no such SPIs, or a link is not from SPI to SPI, or there is no memory.
    pub fn new(
        spi_count: u32,
        links: &[(Vintid, Pintid)],
        version: Version,
    ) -> Result<(Self, SpiToken), ConfigError> {
        if spi_count > gic::SPI_END - gic::SPI_FIRST {
            return Err(ConfigError::Spis);
        }
        let words = spi_count.div_ceil(32);
        // INTIDs 1020 to 1023 are not interrupts.
        let implemented = |word| if word == 31 { u32::MAX >> 4 } else { u32::MAX };
        let banks = (1..=words).map(|word| Bank::new(implemented(word), 0, version));
        let banks = heap::collect(banks)?;
        let spis_in = |word| implemented(word).count_ones();
        let mut spis = heap::collect((0..(1..=words).map(spis_in).sum()).map(|_| Spi::new()))?;
        let spi = |intid: u32| usize::try_from(intid.checked_sub(gic::SPI_FIRST)?).ok();
        for &(vintid, pintid) in links {
            let slot = spi(vintid.get()).and_then(|index| spis.get_mut(index));
            let slot = slot.ok_or(ConfigError::Link(vintid))?;
            let physical = (gic::SPI_FIRST..gic::SPI_END).contains(&pintid.get());
            if !physical || slot.link != 0 {
                return Err(ConfigError::Link(vintid));
            }
            slot.link = u16::try_from(pintid.get()).map_err(|_| ConfigError::Link(vintid))?;
        }
        let fixed = gicd::TYPER_IDBITS_10 | gicd::TYPER_A3V | gicd::TYPER_RSS;
        let vdist = Self {
            ctlr: AtomicU32::new(0),
            typer: fixed | words,
            banks,
            spis,
            linked: heap::collect(links.iter().map(|(vintid, _)| vintid.get()))?,
        };
        Ok((vdist, SpiToken(())))
    }

    /// Says that there are LPIs.
    pub(super) fn add_lpis(&mut self) {
        let number = (lpi::LPI_COUNT.ilog2() - 1) << gicd::TYPER_NUM_LPIS_SHIFT;
        self.typer |= gicd::TYPER_LPIS | gicd::TYPER_IDBITS_14_NOT_10 | number;
    }

    /// Returns to the state after reset and deactivates what is active for no list register.
    ///
    /// All vCPUs have emptied their list registers before.
    pub(super) fn reset<E: Effects>(&self, _: &mut SpiToken, net: Net<'_, E>) {
        self.ctlr.store(0, Relaxed);
        for (index, bank) in self.banks.iter().enumerate() {
            for bit in bits_of(bank.awaited()) {
                let link = self.spis.get(index * 32 + bit as usize).and_then(Spi::link);
                link.into_iter().for_each(|pintid| net.effects.deactivate(pintid));
            }
            bank.reset();
        }
        self.spis.iter().for_each(Spi::let_go);
        self.forget_routes(net);
    }
    /// Makes all SPIs go where they go after reset.
    pub(super) fn forget_routes<E: Effects>(&self, net: Net<'_, E>) {
        let target = net.target(0);
        for spi in &self.spis {
            spi.router.store(0, Relaxed);
            spi.target.store(target, Relaxed);
        }
    }

    /// Returns GICD_CTLR's group enables.
    #[inline(always)]
    pub(super) fn ctlr(&self) -> u32 {
        self.ctlr.load(Relaxed)
    }
    /// Returns the state of INTIDs 32 × `word` and the following 31.
    #[inline(always)]
    pub(super) fn bank(&self, word: u32) -> Option<&Bank> {
        self.banks.get((word as usize).wrapping_sub(1))
    }
    /// Returns an SPI.
    #[inline(always)]
    pub(super) fn spi(&self, intid: u32) -> Option<&Spi> {
        self.spis.get((intid as usize).wrapping_sub(gic::SPI_FIRST as usize))
    }
    /// Returns a bit for each vCPU that has one of the SPIs `bits`, of the word that `offset` is
    /// for, in a list register.
    pub(super) fn holders(&self, offset: u64, bits: u32) -> u64 {
        let word = registers::bit_word(offset);
        let listed = self.bank(word).map_or(0, |bank| bank.listed.load(Relaxed));
        let holders = bits_of(listed & bits).filter_map(|index| self.spi(word << 5 | index));
        holders.fold(0, |set, spi| match spi.holder.load(Relaxed) {
            NOBODY => set,
            holder => set | 1 << (holder & 63),
        })
    }
    /// Returns the number of words of SPIs.
    pub(super) fn bank_count(&self) -> u32 {
        self.typer & 0x1f
    }

    /// Sets the level of the line of an SPI that EL2 drives. Numbers without an SPI are ignored.
    pub(super) fn set_level<E: Effects>(
        &self,
        _: &mut SpiToken,
        vintid: Vintid,
        level: Level,
        net: Net<'_, E>,
    ) {
        let Some(bank) = self.bank(vintid.get() >> 5) else { return };
        self.notify(vintid.get() >> 5, bank.set_line(bit(vintid.get()), level), net);
    }

    /// Latches an SPI: an edge, or for `Cause::Linked` that its physical interrupt was
    /// acknowledged and waits for the guest. Numbers without an SPI are ignored.
    pub(super) fn raise<E: Effects>(
        &self,
        _: &mut SpiToken,
        vintid: Vintid,
        cause: Cause,
        net: Net<'_, E>,
    ) {
        let (word, bit) = (vintid.get() >> 5, bit(vintid.get()));
        let (Some(bank), Some(_)) = (self.bank(word), self.spi(vintid.get())) else { return };
        if cause == Cause::Linked {
            bank.linked.fetch_or(bit, Relaxed);
        }
        self.notify(word, bank.latch(bit), net);
    }

    /// Takes back the linked SPIs that wait in the models and whose line has dropped.
    pub(super) fn drop_low<E: Effects>(&self, _: &mut SpiToken, net: Net<'_, E>) {
        for &intid in &self.linked {
            let (Some(bank), Some(spi)) = (self.bank(intid >> 5), self.spi(intid)) else {
                continue;
            };
            let waits = bank.linked.load(Relaxed) & bank.pending.load(Relaxed) & bit(intid) != 0;
            if waits && spi.link().is_some_and(|pintid| net.effects.line(pintid) == Level::Low) {
                bank.pending.fetch_and(!bit(intid), SeqCst);
                self.deactivate_orphans(intid >> 5, bank, net);
            }
        }
    }

    /// Clears the active bit of an SPI: what a trapped write to ICC_DIR_EL1 asks for, on
    /// whichever vCPU. Numbers without an SPI are ignored.
    pub(super) fn deactivate<E: Effects>(
        &self,
        token: &mut SpiToken,
        vintid: Vintid,
        net: Net<'_, E>,
    ) {
        let word = vintid.get() >> 5;
        let bit = bit(vintid.get());
        self.write_bits(token, word, gic::BitRegister::ClearActive, bit, net);
    }

    /// Notes that an SPI has left a list register of `own`, which will look for more anyway, and
    /// tells who else is next.
    pub(super) fn unlist<E: Effects>(
        &self,
        _: &mut SpiToken,
        intid: u32,
        own: VcpuId,
        net: Net<'_, E>,
    ) {
        let (Some(bank), Some(spi)) = (self.bank(intid >> 5), self.spi(intid)) else { return };
        let bit = bit(intid);
        bank.unlist(bit);
        spi.let_go();
        self.deactivate_orphans(intid >> 5, bank, net);
        self.notify_each(intid >> 5, Change { woken: bit, look: 0 }, own.get(), net);
    }

    /// Tells the vCPUs concerned of a change to INTIDs 32 × `word` and the following 31.
    #[inline(always)]
    pub(super) fn notify<E: Effects>(&self, word: u32, change: Change, net: Net<'_, E>) {
        if change.woken | change.look != 0 {
            self.notify_each(word, change, NOBODY, net);
        }
    }

    #[inline(never)]
    fn notify_each<E: Effects>(&self, word: u32, change: Change, own: u8, net: Net<'_, E>) {
        let Some(bank) = self.bank(word) else { return };
        let listed = bank.listed.load(Relaxed);
        let deliverable = change.woken & bank.signal() & bank.eligible(self.ctlr()) & !listed;
        for index in bits_of(deliverable) {
            let Some(spi) = self.spi(word << 5 | index) else { continue };
            let router = spi.router.load(Relaxed);
            if net.vgic.version == Version::V2 || router & gicd::IROUTER_ANY != 0 {
                // One of N: whoever is awake now.
                spi.target.store(net.target(router), Relaxed);
            }
            let target = spi.target.load(Relaxed);
            if let Some(vredist) = net.vgic.vredists.get(usize::from(target)) {
                vredist.spi_words.fetch_or(bit(word), Relaxed);
                if target != own {
                    vredist.post_look(net.effects);
                }
            }
        }
        for bit in bits_of((change.woken | change.look) & listed) {
            let Some(spi) = self.spi(word << 5 | bit) else { continue };
            let holder = spi.holder.load(Relaxed);
            if let Some(vredist) = net.vgic.vredists.get(usize::from(holder)) {
                vredist.post_look(net.effects);
            }
        }
    }

    /// Deactivates the physical interrupts that no vCPU will deactivate any more.
    pub(super) fn deactivate_orphans<E: Effects>(&self, word: u32, bank: &Bank, net: Net<'_, E>) {
        let orphans = bank.orphans();
        if orphans == 0 {
            return;
        }
        for bit in bits_of(bank.take_awaited(orphans)) {
            let link = self.spi(word << 5 | bit).and_then(Spi::link);
            link.into_iter().for_each(|pintid| net.effects.deactivate(pintid));
        }
    }
}

impl<E> Clone for Net<'_, E> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<E> Copy for Net<'_, E> {}

/// Why an SPI becomes pending.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Cause {
    /// An edge of a line that EL2 drives.
    Edge,
    /// The physical interrupt behind it.
    Linked,
}

impl Spi {
    fn new() -> Self {
        Self {
            router: AtomicU64::new(0),
            target: AtomicU8::new(NOBODY),
            holder: AtomicU8::new(NOBODY),
            running_priority: AtomicU8::new(0),
            link: 0,
        }
    }
}

impl<E: Effects> Net<'_, E> {
    /// Returns the vCPU that GICD_IROUTER, or a byte of GICD_ITARGETSR, names; [`NOBODY`] where
    /// there is no such vCPU.
    ///
    /// One of N is the first vCPU that is awake, or the first of all where none is.
    fn target(&self, router: u64) -> u8 {
        let mut all = self.vgic.vredists.iter();
        let found = if self.vgic.version == Version::V2 {
            // A single vCPU has no GICD_ITARGETSR and takes everything.
            let set = if all.len() == 1 { 1 } else { router };
            let mut named = all.filter(|vredist| set >> (vredist.id().get() & 7) & 1 == 1);
            named.clone().find(|vredist| vredist.is_awake()).or(named.next())
        } else if router & gicd::IROUTER_ANY != 0 {
            all.clone().find(|vredist| vredist.is_awake()).or(all.next())
        } else {
            let named = Mpidr::from_register(router);
            all.find(|vredist| vredist.affinity() == named)
        };
        found.map_or(NOBODY, |vredist| vredist.id().get())
    }
}
