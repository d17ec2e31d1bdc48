// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Registers whose bits are in list registers too, for whoever has made sure that the models are
//! up to date: pending and active bits, and for writes also enables of interrupts and groups.
//!
//! All of them are words. Must not know how anybody is made to look. IHI 0069 H 12.8 and 12.11.
#![forbid(unsafe_code)]

use super::vredist::halves;
use super::{Effects, SpiToken, Vgic};
use crate::bits::{MmioError, Width};
use crate::spec::gic::{self, BitRegister, gicd};

/// Which of a GIC's windows an offset is in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Frame {
    /// The distributor.
    Vdist,
    /// All redistributors.
    Vredists,
}

impl Vgic {
    /// Returns a bit for each vCPU whose list registers have, or a moment ago had, what the
    /// register at `offset` shows or changes in the bits `bits`.
    pub fn holders(&self, frame: Frame, offset: u64, bits: u64) -> u64 {
        match frame {
            Frame::Vredists => self.frame(offset).map_or(0, |(own, _)| 1 << (own.id().get() & 63)),
            Frame::Vdist if offset == gicd::CTLR => self.everybody,
            Frame::Vdist => self.vdist.holders(offset, halves(bits)[0]),
        }
    }

    /// Reads a register of pending or active bits; `None` where it does not take the access. The
    /// lock is held because a bit that moves from a model to a list register is in neither for a
    /// moment.
    pub fn read_listed<E: Effects>(
        &self,
        _: &SpiToken,
        frame: Frame,
        (offset, width): (u64, Width),
        effects: &E,
    ) -> Option<u32> {
        check(offset, width).ok()?;
        Some(match frame {
            Frame::Vdist => self.vdist.read_listed(offset, effects),
            Frame::Vredists => {
                let (vredist, offset) = self.frame(offset).ok()?;
                vredist.read_listed(offset)
            }
        })
    }

    /// Writes a register that may take something out of list registers.
    ///
    /// # Errors
    /// Where the register does not take the width or alignment, or past the frames.
    pub fn write_listed<E: Effects>(
        &self,
        token: &mut SpiToken,
        frame: Frame,
        (offset, width): (u64, Width),
        value: u64,
        effects: &E,
    ) -> Result<(), MmioError> {
        check(offset, width)?;
        let [value, _] = halves(value);
        match frame {
            Frame::Vdist => self.vdist.write_listed(token, offset, value, self.net(effects)),
            Frame::Vredists => {
                let (vredist, offset) = self.frame(offset)?;
                vredist.write_listed(offset, value, effects);
            }
        }
        Ok(())
    }
}

/// Returns whether what a guest reads at `offset` of GICD, or of a redistributor's second frame,
/// is in list registers too, so that [`Vgic::read_listed`] is what reads it.
#[must_use]
#[inline(always)]
pub const fn shows_list_registers(offset: u64) -> bool {
    matches!(
        BitRegister::at(offset & (gic::GICR_SGI_BASE - 1)),
        Some(
            BitRegister::SetPending
                | BitRegister::ClearPending
                | BitRegister::SetActive
                | BitRegister::ClearActive
        )
    )
}

/// Returns whether a write at `offset` of GICD, or of a redistributor's second frame, may take
/// something out of list registers, which the guest has to be able to rely on, so that
/// [`Vgic::write_listed`] is what writes it: what [`shows_list_registers`] names, and what
/// GICD_CTLR.RWP and GICR_CTLR.RWP stand for.
#[must_use]
#[inline(always)]
pub const fn changes_list_registers(offset: u64) -> bool {
    offset == gicd::CTLR || disables_or_shows(offset)
}

/// Returns whether a write at `offset` of a redistributor's second frame is of this kind; GICR_CTLR
/// is not, which stands in the first frame where GICD has its own.
#[must_use]
#[inline(always)]
pub const fn changes_own_list_registers(offset: u64) -> bool {
    disables_or_shows(offset)
}

#[inline(always)]
const fn disables_or_shows(offset: u64) -> bool {
    let register = BitRegister::at(offset & (gic::GICR_SGI_BASE - 1));
    matches!(register, Some(BitRegister::ClearEnable)) || shows_list_registers(offset)
}

/// Returns whether such a write only adds to what list registers have, so that nobody waits for it:
/// to ISPENDR. Asked after the two above, so that no other write pays for it.
#[must_use]
pub const fn only_adds(offset: u64) -> bool {
    let register = BitRegister::at(offset & (gic::GICR_SGI_BASE - 1));
    matches!(register, Some(BitRegister::SetPending))
}

/// Checks that a register takes an access (IHI 0069 H 12.1.3).
fn check(offset: u64, width: Width) -> Result<(), MmioError> {
    if width == Width::Word && offset & 3 == 0 { Ok(()) } else { Err(MmioError::Width) }
}
