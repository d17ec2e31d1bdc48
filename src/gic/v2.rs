// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The distributor as a GICv2 guest sees it (IHI 0048 B 4.3): one frame, in which the registers of
//! SGIs and PPIs are banked for each vCPU.
//!
//! No Security Extensions. The state is that of the redistributors and the distributor of GICv3,
//! and most registers are theirs: [`home`] says which. What is of GICv2 alone is the targets of
//! SPIs by vCPU, and the senders of SGIs. Pending bits of SGIs are read-only but in GICD_SPENDSGIR
//! and GICD_CPENDSGIR, before which the vCPU's own core calls
//! [`Delivery::recall_sgis`](super::Delivery::recall_sgis).
#![forbid(unsafe_code)]

use super::vdist::Net;
use super::vredist::{Awake, SGIS, Vredist, halves};
use super::{Effects, SpiToken, Version, Vgic};
use crate::bits::{MmioError, Width};
use crate::id::VcpuId;
use crate::spec::gic::{self, BitRegister, gicd as v3};
use crate::spec::gicv2::{GICD_BYTES, PIDR2_GICV2, SgiTargets, SgiWrite, gicd};

/// GICD_TYPER.ITLinesNumber.
const TYPER_LINES: u64 = 0x1f;

/// What a register in the frame is to the models.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Home {
    /// The one at this offset of GICv3's distributor.
    Vdist(u64),
    /// The one at this offset in the window of all redistributors.
    Vredists(u64),
    /// GICv2's own, at this offset: see [`Vgic::read_v2`].
    Own(u64),
}

/// Finds the register at `offset` of the frame, as the vCPU `by` reads it.
///
/// # Errors
/// Where no register takes the width or alignment, or past the frame.
pub fn home(by: VcpuId, offset: u64, width: Width) -> Result<Home, MmioError> {
    check(offset, width)?;
    if is_banked(offset) {
        let frame = by.index() as u64 * gic::GICR_BYTES + gic::GICR_SGI_BASE;
        return Ok(Home::Vredists(frame + offset));
    }
    Ok(match offset {
        v3::CTLR | v3::TYPER | gicd::ITARGETSR..gicd::ITARGETSR_END | gicd::SGIR.. => {
            Home::Own(offset)
        }
        _ => Home::Vdist(offset),
    })
}

/// Finds the register at `offset` of the frame, as the vCPU `by` writes it.
///
/// # Errors
/// As for [`home`].
pub fn home_of_write(by: VcpuId, offset: u64, width: Width) -> Result<Home, MmioError> {
    Ok(match home(by, offset, width)? {
        // Its bits that can be written are those of GICv3.
        Home::Own(offset @ v3::CTLR) => Home::Vdist(offset),
        _ if pending_register(offset).is_some() => Home::Own(offset),
        home => home,
    })
}

/// Returns whether the register at `offset` is GICD_SPENDSGIR or GICD_CPENDSGIR, for which no SGI
/// may wait in a list register.
#[must_use]
pub const fn is_sgi_state(offset: u64) -> bool {
    gicd::CPENDSGIR <= offset && offset < gicd::SPENDSGIR_END
}

impl Vgic {
    /// Reads a register of GICv2's own, for the vCPU `by`.
    ///
    /// # Errors
    /// Where there is no such vCPU.
    pub fn read_v2(&self, by: VcpuId, offset: u64, width: Width) -> Result<u64, MmioError> {
        let own = self.vredist(by).ok_or(MmioError::Unmapped)?;
        let word = match offset & !3 {
            v3::CTLR => self.vdist.ctlr(),
            v3::TYPER => self.typer_v2()?,
            gicd::PIDR2 => PIDR2_GICV2,
            offset if is_sgi_state(offset) => gather(offset, |sgi| own.sources(sgi)),
            offset if offset < gicd::ITARGETSR_END => {
                gather(offset, |intid| self.targets(by, intid))
            }
            _ => 0,
        };
        Ok(u64::from(word) >> (8 * (offset & 3)) & width.mask())
    }

    /// Writes a register of GICv2's own, for the vCPU `by`.
    ///
    /// # Errors
    /// Where there is no such vCPU.
    pub fn write_v2<E: Effects>(
        &self,
        token: &mut SpiToken,
        by: VcpuId,
        (offset, width): (u64, Width),
        value: u64,
        effects: &E,
    ) -> Result<(), MmioError> {
        let own = self.vredist(by).ok_or(MmioError::Unmapped)?;
        let [word, _] = halves(value);
        if let Some(register) = pending_register(offset) {
            own.write_bits(register, word & !SGIS, effects);
            return Ok(());
        }
        match offset {
            gicd::SGIR => self.send_sgi_v2(by, word, effects),
            _ if is_sgi_state(offset) => write_sgi_state(own, (offset, width), word),
            gicd::ITARGETSR..gicd::ITARGETSR_END => {
                self.write_targets(token, (offset, width), word, self.net(effects));
            }
            _ => {}
        }
        Ok(())
    }

    fn typer_v2(&self) -> Result<u32, MmioError> {
        let [lines, _] = halves(self.vdist.read(v3::TYPER, Width::Word)? & TYPER_LINES);
        let cpus = self.everybody.count_ones().wrapping_sub(1);
        Ok(lines | cpus << gicd::TYPER_CPUS_SHIFT)
    }

    /// Returns the byte of GICD_ITARGETSR that `by` reads; those of SGIs and PPIs name the reader.
    /// With one vCPU all of them are RAZ/WI (IHI 0048 B 4.3.12).
    fn targets(&self, by: VcpuId, intid: u32) -> u8 {
        match intid {
            _ if self.everybody == 1 => 0,
            ..gic::SPI_FIRST => 1 << (by.get() & 7),
            _ => self.vdist.spi(intid).map_or(0, super::vdist::Spi::targets),
        }
    }

    fn write_targets<E: Effects>(
        &self,
        token: &mut SpiToken,
        (offset, width): (u64, Width),
        value: u32,
        net: Net<'_, E>,
    ) {
        if self.everybody == 1 {
            return;
        }
        for (intid, byte) in bytes_of(offset, width, value) {
            if intid >= gic::SPI_FIRST {
                self.vdist.route(token, intid, u64::from(byte) & self.everybody, net);
            }
        }
    }

    /// Sends the SGI that `sender` asks for with a write of `value` to GICD_SGIR (traps T76).
    fn send_sgi_v2<E: Effects>(&self, sender: VcpuId, value: u32, effects: &E) {
        let request = SgiWrite::from_register(value);
        let own = 1u64 << (sender.get() & 7);
        let targets = match request.targets {
            SgiTargets::List(list) => u64::from(list),
            SgiTargets::AllOthers => !own,
            SgiTargets::Own => own,
            SgiTargets::Reserved => 0,
        };
        for vredist in &self.vredists {
            if targets >> (vredist.id().get() & 7) & 1 == 1 {
                vredist.raise_from(request.intid, sender, effects);
            }
        }
    }

    /// Notes that a vCPU starts; with GICv3 the guest itself says when it is awake.
    pub fn note_on(&self, vcpu: VcpuId) {
        self.note(vcpu, Awake::Yes);
    }
    /// Notes that a vCPU goes off; with GICv3 the guest itself says when it sleeps.
    pub fn note_off(&self, vcpu: VcpuId) {
        self.note(vcpu, Awake::No);
    }
    fn note(&self, vcpu: VcpuId, awake: Awake) {
        if let Some(vredist) = self.vredist(vcpu)
            && self.version == Version::V2
        {
            vredist.set_awake(awake);
        }
    }

    /// Returns whether an interrupt is an SGI that has a sender.
    pub(super) fn has_sender(&self, intid: u32) -> bool {
        self.version == Version::V2 && intid < gic::PPI_FIRST
    }
}

/// Writes GICD_CPENDSGIR or GICD_SPENDSGIR: a byte of senders for each SGI.
fn write_sgi_state(own: &Vredist, (offset, width): (u64, Width), value: u32) {
    for (byte_index, senders) in bytes_of(offset, width, value) {
        let sgi = byte_index & 15;
        if offset < gicd::SPENDSGIR {
            own.remove_sources(sgi, senders);
        } else {
            own.latch_sources(sgi, senders);
        }
    }
    own.look_again();
}

/// Returns whether the register at `offset` is banked.
fn is_banked(offset: u64) -> bool {
    match BitRegister::at(offset) {
        Some(_) => offset & 0x7c == 0,
        None => {
            (v3::IPRIORITYR..v3::IPRIORITYR + 32).contains(&offset)
                || (v3::ICFGR..v3::ICFGR + 8).contains(&offset)
        }
    }
}

/// Returns which register of pending bits stands at `offset`, where it is banked.
fn pending_register(offset: u64) -> Option<BitRegister> {
    BitRegister::at(offset).filter(|register| {
        matches!(register, BitRegister::SetPending | BitRegister::ClearPending) && is_banked(offset)
    })
}

/// Puts a word of bytes together, one for each interrupt of the register at `offset`.
fn gather(offset: u64, byte: impl Fn(u32) -> u8) -> u32 {
    let [first, _] = halves(offset & !3 & 0x3ff);
    // The registers of SGIs start at 0x10 of a block of 0x10 each.
    let first = if is_sgi_state(offset) { first & 0xf } else { first };
    u32::from_le_bytes([0, 1, 2, 3].map(|n| byte(first + n)))
}

/// Walks the bytes of a write, each with its place in its register's array.
fn bytes_of(offset: u64, width: Width, value: u32) -> impl Iterator<Item = (u32, u8)> {
    let [first, _] = halves(offset & 0x3ff);
    let count = if width == Width::Byte { 1 } else { 4 };
    (first..).zip(value.to_le_bytes()).take(count)
}

/// Checks that a register at `offset` takes accesses of `width` (IHI 0048 B 4.1.4).
fn check(offset: u64, width: Width) -> Result<(), MmioError> {
    if offset >= GICD_BYTES {
        return Err(MmioError::Unmapped);
    }
    let fits = match width {
        Width::Word => offset & 3 == 0,
        Width::Byte => (v3::IPRIORITYR..v3::ICFGR).contains(&offset) || is_sgi_state(offset),
        Width::Half | Width::Double => false,
    };
    if fits { Ok(()) } else { Err(MmioError::Width) }
}
