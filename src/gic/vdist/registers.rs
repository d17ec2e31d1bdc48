// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The registers of the virtual distributor (IHI 0069 H 12.8).
//!
//! One Security state, affinity routing always on, no message-based SPIs. What is
//! reserved, and what belongs to SGIs and PPIs, is RAZ/WI; only a wrong width is an error.
#![forbid(unsafe_code)]

use super::{Net, SpiToken, Vdist};
use crate::bits::{MmioError, Width};
use crate::gic::vredist::halves;
use crate::gic::{Effects, IIDR};
use crate::id::Pintid;
use crate::spec::gic::{self, BitRegister, gicd};
use core::sync::atomic::Ordering::Relaxed;

/// The bits of GICD_CTLR that can be written.
const CTLR_WRITABLE: u32 = gicd::CTLR_ENABLE_GROUP0 | gicd::CTLR_ENABLE_GROUP1;
/// The bits of `GICD_IROUTER<n>` that exist.
const ROUTER: u64 = crate::id::Mpidr::AFFINITY | gicd::IROUTER_ANY;

impl Vdist {
    /// Reads at `offset` of the 64 KiB.
    ///
    /// # Errors
    /// Where no register takes the width or alignment, or past the frame.
    #[inline]
    pub fn read(&self, offset: u64, width: Width) -> Result<u64, MmioError> {
        match (width, offset) {
            (Width::Word, gicd::IIDR) => return Ok(u64::from(IIDR)),
            (Width::Word, gicd::TYPER) => return Ok(u64::from(self.typer)),
            (Width::Word, gicd::CTLR) => {
                return Ok(u64::from(self.ctlr() | gicd::CTLR_ARE | gicd::CTLR_DS));
            }
            _ => check(offset, width)?,
        }
        Ok(match width {
            Width::Double => self.read_router(offset),
            Width::Byte => u64::from(self.read_word(offset & !3) >> (8 * (offset & 3)) & 0xff),
            Width::Half => 0,
            Width::Word => u64::from(self.read_word(offset)),
        })
    }

    fn read_word(&self, offset: u64) -> u32 {
        if let Some(register) = BitRegister::at(offset) {
            return self.bank(bit_word(offset)).map_or(0, |bank| bank.read(register));
        }
        match offset {
            gicd::IPRIORITYR..gicd::ITARGETSR => {
                let (word, part) = priority_word(offset);
                self.bank(word).map_or(0, |bank| bank.read_priorities(part))
            }
            gicd::ICFGR..gicd::IGRPMODR => {
                let (word, half) = config_word(offset);
                self.bank(word).map_or(0, |bank| bank.read_config(half))
            }
            gicd::IROUTER..gicd::IROUTER_END => {
                let [low, high] = halves(self.read_router(offset & !7));
                if offset & 4 == 0 { low } else { high }
            }
            gic::PIDR2 => gic::PIDR2_GICV3,
            _ => 0,
        }
    }

    fn read_router(&self, offset: u64) -> u64 {
        self.spi(router_intid(offset)).map_or(0, |spi| spi.router.load(Relaxed))
    }

    /// Writes at `offset` of the 64 KiB.
    ///
    /// # Errors
    /// Where no register takes the width or alignment, or past the frame.
    #[inline]
    pub(in crate::gic) fn write<E: Effects>(
        &self,
        token: &mut SpiToken,
        (offset, width): (u64, Width),
        value: u64,
        net: Net<'_, E>,
    ) -> Result<(), MmioError> {
        check(offset, width)?;
        let [word, _] = halves(value);
        match width {
            Width::Double => self.write_router(token, offset, value, net),
            Width::Byte => {
                let shift = 8 * (offset & 3);
                self.write_priorities(offset, (word & 0xff) << shift, 0xff << shift, net);
            }
            Width::Half => {}
            Width::Word => self.write_word(token, offset, word, net),
        }
        Ok(())
    }

    fn write_word<E: Effects>(
        &self,
        token: &mut SpiToken,
        offset: u64,
        value: u32,
        net: Net<'_, E>,
    ) {
        match (BitRegister::at(offset), offset) {
            // What guests write most: it takes nothing out of a list register.
            (Some(register @ BitRegister::SetEnable), _) => {
                let word = bit_word(offset);
                if let Some(bank) = self.bank(word) {
                    self.notify(word, bank.write(register, value), net);
                }
            }
            (Some(register), _) => {
                self.write_bits(token, bit_word(offset), register, value, net);
            }
            (_, gicd::CTLR) => self.write_ctlr(value, net),
            (_, gicd::IPRIORITYR..gicd::ITARGETSR) => {
                self.write_priorities(offset, value, u32::MAX, net);
            }
            (_, gicd::ICFGR..gicd::IGRPMODR) => {
                let (word, half) = config_word(offset);
                if let Some(bank) = self.bank(word) {
                    self.notify(word, bank.write_config(half, value), net);
                }
            }
            (_, gicd::IROUTER..gicd::IROUTER_END) => {
                let old = self.read_router(offset & !7);
                let shift = 8 * (offset & 4);
                let router = old & !(0xffff_ffff << shift) | u64::from(value) << shift;
                self.write_router(token, offset & !7, router, net);
            }
            _ => {}
        }
    }

    /// Reads a register with a bit for each of 32 INTIDs.
    pub(in crate::gic) fn read_listed<E: Effects>(&self, offset: u64, effects: &E) -> u32 {
        let word = bit_word(offset);
        let (Some(register), Some(bank)) = (BitRegister::at(offset), self.bank(word)) else {
            return 0;
        };
        let bits = bank.read(register);
        if !matches!(register, BitRegister::SetPending | BitRegister::ClearPending) {
            return bits;
        }
        // What is active is so behind it too, where it may be pending again: a list register must
        // not say so of what is linked.
        let active = bank.read(BitRegister::SetActive) & !bits;
        let again =
            self.linked_among(word, active).filter(|(_, pintid)| effects.is_pending(*pintid));
        again.fold(bits, |bits, (bit, _)| bits | bit)
    }

    /// Returns those of INTIDs 32 × `word` and the following 31 that are among `bits` and have a
    /// physical interrupt behind them: each one's bit, and that interrupt.
    fn linked_among(&self, word: u32, bits: u32) -> impl Iterator<Item = (u32, Pintid)> {
        let spi = move |index| self.spi(word << 5 | index)?.link();
        super::bits_of(bits).filter_map(move |index| Some((super::bit(index), spi(index)?)))
    }

    /// Writes GICD_CTLR, or a register with a bit for each of 32 INTIDs.
    pub(in crate::gic) fn write_listed<E: Effects>(
        &self,
        token: &mut SpiToken,
        offset: u64,
        value: u32,
        net: Net<'_, E>,
    ) {
        match BitRegister::at(offset) {
            Some(register) => self.write_bits(token, bit_word(offset), register, value, net),
            None => self.write_ctlr(value, net),
        }
    }

    /// Writes a register with a bit for each of INTIDs 32 × `word` and the following 31.
    #[inline(never)]
    pub(super) fn write_bits<E: Effects>(
        &self,
        _: &mut SpiToken,
        word: u32,
        register: BitRegister,
        value: u32,
        net: Net<'_, E>,
    ) {
        let Some(bank) = self.bank(word) else { return };
        let change = bank.write(register, value);
        match register {
            BitRegister::ClearPending => {
                for (_, pintid) in self.linked_among(word, value) {
                    net.effects.clear_pending(pintid);
                }
                self.deactivate_orphans(word, bank, net);
            }
            BitRegister::ClearActive => {
                for bit in super::bits_of(change.look & !bank.listed.load(Relaxed)) {
                    self.spi(word << 5 | bit).into_iter().for_each(super::Spi::let_go);
                }
                self.deactivate_orphans(word, bank, net);
            }
            _ => {}
        }
        self.notify(word, change, net);
    }

    fn write_priorities<E: Effects>(&self, offset: u64, value: u32, mask: u32, net: Net<'_, E>) {
        if !(gicd::IPRIORITYR..gicd::ITARGETSR).contains(&offset) {
            return;
        }
        let (word, part) = priority_word(offset);
        if let Some(bank) = self.bank(word) {
            self.notify(word, bank.write_priorities(part, value, mask), net);
        }
    }

    fn write_router<E: Effects>(
        &self,
        token: &mut SpiToken,
        offset: u64,
        value: u64,
        net: Net<'_, E>,
    ) {
        self.route(token, router_intid(offset), value & ROUTER, net);
    }

    /// Routes an SPI as a value of GICD_IROUTER, or a byte of GICD_ITARGETSR, says.
    pub(in crate::gic) fn route<E: Effects>(
        &self,
        _: &mut SpiToken,
        intid: u32,
        router: u64,
        net: Net<'_, E>,
    ) {
        let Some(spi) = self.spi(intid) else { return };
        spi.router.store(router, Relaxed);
        let target = net.target(router);
        let moved = spi.target.swap(target, Relaxed) != target;
        if let (Some(pintid), Some(vredist)) =
            (spi.link(), net.vgic.vredists.get(usize::from(target)))
            && moved
        {
            net.effects.route(pintid, vredist.id());
        }
        if moved {
            let bit = super::bit(intid);
            self.notify(intid >> 5, super::Change { woken: bit, look: bit }, net);
        }
    }

    fn write_ctlr<E: Effects>(&self, value: u32, net: Net<'_, E>) {
        let value = value & CTLR_WRITABLE;
        if self.ctlr.swap(value, Relaxed) == value {
            return;
        }
        for vredist in &net.vgic.vredists {
            vredist.set_ctlr(value, net.effects);
        }
        self.wake_all(net);
        net.vgic.lpis.wake_all(net);
    }

    /// Tells of all deliverable SPIs: after a change that concerns all of them.
    pub(in crate::gic) fn wake_all<E: Effects>(&self, net: Net<'_, E>) {
        for word in 1..=self.bank_count() {
            self.notify(word, super::Change { woken: u32::MAX, look: 0 }, net);
        }
    }
}

/// Returns which word of INTIDs a [`BitRegister`] at `offset` is for.
#[inline(always)]
pub(super) fn bit_word(offset: u64) -> u32 {
    halves(offset >> 2)[0] & 31
}

/// Returns which word of INTIDs, and which eighth of it, IPRIORITYR at `offset` is for.
#[inline(always)]
fn priority_word(offset: u64) -> (u32, u32) {
    let register = halves(offset >> 2)[0] & 0xff;
    (register >> 3, register & 7)
}

/// Returns which word of INTIDs, and which half of it, ICFGR at `offset` is for.
#[inline(always)]
fn config_word(offset: u64) -> (u32, u32) {
    let register = halves(offset >> 2)[0] & 0x3f;
    (register >> 1, register & 1)
}

/// Returns the INTID that IROUTER at `offset` is for.
#[inline(always)]
fn router_intid(offset: u64) -> u32 {
    halves(offset >> 3)[0] & 0x3ff
}

/// Checks that a register at `offset` takes accesses of `width` (IHI 0069 H 12.1.3).
#[inline(always)]
fn check(offset: u64, width: Width) -> Result<(), MmioError> {
    if offset >= gic::GICD_BYTES {
        return Err(MmioError::Unmapped);
    }
    let fits = match width {
        Width::Word => offset & 3 == 0,
        Width::Byte => {
            let sgis = (gicd::CPENDSGIR..gicd::SPENDSGIR_END).contains(&offset);
            (gicd::IPRIORITYR..gicd::ICFGR).contains(&offset) || sgis
        }
        Width::Half => offset & 1 == 0 && (gicd::SETSPI_NSR..gicd::CLRSPI_END).contains(&offset),
        Width::Double => offset & 7 == 0 && (gicd::IROUTER..gicd::IROUTER_END).contains(&offset),
    };
    if fits { Ok(()) } else { Err(MmioError::Width) }
}
