// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The physical GICv3's redistributors (IHI 0069 H 12.10): each is its core's own.
//!
//! All interrupts are in Group 1: without EL3 the firmware leaves them in Group 0.
#![forbid(unsafe_code)]

use super::gic::{GicError, PRIORITY, await_low, gicd, poll};
use crate::id::{Mpidr, Pintid};
use crate::mmio::Registers;

mod gicr {
    pub const FRAME: u64 = 0x1_0000;
    pub const CTLR: u64 = 0x0000;
    pub const CTLR_RWP: u32 = 1 << 3;
    pub const TYPER: u64 = 0x0008;
    pub const TYPER_VLPIS: u64 = 1 << 1;
    pub const TYPER_LAST: u64 = 1 << 4;
    pub const WAKER: u64 = 0x0014;
    pub const WAKER_PROCESSOR_SLEEP: u32 = 1 << 1;
    pub const WAKER_CHILDREN_ASLEEP: u32 = 1 << 2;
}

/// One core's redistributor: two 64 KiB frames.
#[derive(Debug)]
pub struct Redistributor {
    registers: Registers,
}

impl Redistributor {
    /// Looks for the redistributor of the core `mpidr` in a region, by GICR_TYPER's affinity and
    /// not past its Last (traps T74). `stride` is 0 where the tree names none.
    #[must_use]
    pub fn find(region: &Registers, stride: u64, mpidr: Mpidr) -> Option<Self> {
        let mut offset = 0;
        while offset + 2 * gicr::FRAME <= region.range().size() {
            let typer = region.read64(offset + gicr::TYPER);
            let frames = if typer & gicr::TYPER_VLPIS != 0 { 4 } else { 2 };
            let size = if stride == 0 { frames * gicr::FRAME } else { stride };
            if typer >> 32 == u64::from(mpidr.packed()) {
                let start = crate::addr::Address::checked_add(region.range().start(), offset)?;
                let block = crate::addr::PaRange::new(start, 2 * gicr::FRAME)?;
                return Some(Self { registers: Registers::new(block) });
            }
            if typer & gicr::TYPER_LAST != 0 || size == 0 {
                return None;
            }
            offset += size;
        }
        None
    }

    /// Wakes the redistributor; SGIs and PPIs are in Group 1, disabled and inactive.
    ///
    /// # Errors
    /// It does not answer.
    pub fn wake(&mut self) -> Result<(), GicError> {
        let waker = self.registers.read32(gicr::WAKER) & !gicr::WAKER_PROCESSOR_SLEEP;
        self.registers.write32(gicr::WAKER, waker);
        poll(|| self.registers.read32(gicr::WAKER) & gicr::WAKER_CHILDREN_ASLEEP == 0)?;
        self.registers.write32(sgi_frame(gicd::ICENABLER), u32::MAX);
        self.wait()?;
        self.registers.write32(sgi_frame(gicd::ICPENDR), u32::MAX);
        self.registers.write32(sgi_frame(gicd::ICACTIVER), u32::MAX);
        self.registers.write32(sgi_frame(gicd::IGROUPR), u32::MAX);
        for intid in 0..32 {
            self.registers.write8(sgi_frame(gicd::IPRIORITYR) + intid, PRIORITY);
        }
        self.wait()
    }

    /// Enables an SGI or PPI of this core.
    pub fn enable(&mut self, intid: Pintid) {
        if intid.get() < 32 {
            self.registers.write32(sgi_frame(gicd::ISENABLER), 1 << intid.get());
        }
    }

    /// Ends whatever the PPIs of `mask` are in: not pending, not active (traps T73). One that was
    /// on its way to the CPU interface is called back by being disabled for a moment.
    pub fn quiet(&mut self, mask: u32) {
        let enabled = self.registers.read32(sgi_frame(gicd::ISENABLER)) & mask;
        self.registers.write32(sgi_frame(gicd::ICENABLER), mask);
        // Stuck or not, there is nothing better to do than to go on.
        let _ = self.wait();
        await_low(mask, || self.registers.read32(sgi_frame(gicd::ISPENDR)));
        self.registers.write32(sgi_frame(gicd::ICPENDR), mask);
        self.registers.write32(sgi_frame(gicd::ICACTIVER), mask);
        self.registers.write32(sgi_frame(gicd::ISENABLER), enabled);
    }

    /// Reads which SGIs and PPIs are enabled, pending and active.
    #[must_use]
    pub fn state(&self) -> [u32; 3] {
        [gicd::ISENABLER, gicd::ISPENDR, gicd::ISACTIVER]
            .map(|register| self.registers.read32(sgi_frame(register)))
    }

    fn wait(&self) -> Result<(), GicError> {
        poll(|| self.registers.read32(gicr::CTLR) & gicr::CTLR_RWP == 0)
    }
}

/// Returns the offset of a register of SGIs and PPIs, in the second frame at the distributor's
/// offsets.
const fn sgi_frame(offset: u64) -> u64 {
    gicr::FRAME + offset
}
