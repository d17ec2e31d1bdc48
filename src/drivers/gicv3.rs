// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The physical GICv3: distributor and redistributors (IHI 0069 H chapter 12).
//!
//! All interrupts are in Group 1: without EL3 the firmware leaves them in Group 0. The distributor
//! is one for all cores and stands behind a lock; a redistributor is its core's own.
#![forbid(unsafe_code)]

use crate::arch;
use crate::bits::{Level, Trigger};
use crate::id::{Mpidr, Pintid};
use crate::mmio::Registers;
use core::fmt;

/// What can go wrong with the physical GIC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GicError {
    /// The distributor is not of architecture 3 or 4: GICD_PIDR2.ArchRev.
    Version(u32),
    /// A register write pending bit does not clear.
    Stuck,
}

impl fmt::Display for GicError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(found) => write!(f, "architecture {found}, GICv3 expected"),
            Self::Stuck => f.write_str("a write stays pending"),
        }
    }
}

mod gicd {
    pub const CTLR: u64 = 0x0000;
    pub const CTLR_ENABLE_GRP1: u32 = 1 << 1;
    pub const CTLR_ARE: u32 = 1 << 4;
    pub const CTLR_RWP: u32 = 1 << 31;
    pub const TYPER: u64 = 0x0004;
    pub const IGROUPR: u64 = 0x0080;
    pub const ISENABLER: u64 = 0x0100;
    pub const ICENABLER: u64 = 0x0180;
    pub const ISPENDR: u64 = 0x0200;
    pub const ICPENDR: u64 = 0x0280;
    pub const ICACTIVER: u64 = 0x0380;
    pub const IPRIORITYR: u64 = 0x0400;
    pub const ICFGR: u64 = 0x0c00;
    pub const IROUTER: u64 = 0x6000;
    pub const PIDR2: u64 = 0xffe8;
}

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

/// The priority of everything at EL2: in the middle, above the mask's lowest.
const PRIORITY: u8 = 0xa0;
/// How often a pending bit is read before the GIC is taken for broken.
const POLLS_MAX: u32 = 1_000_000;

/// The distributor.
#[derive(Debug)]
pub struct Distributor {
    registers: Registers,
    spi_end: u32,
}

impl Distributor {
    /// Takes charge of the distributor: every SPI disabled, inactive, in Group 1, routed nowhere
    /// in particular; affinity routing on.
    ///
    /// # Errors
    /// The block is not a GICv3 distributor, or does not answer.
    pub fn new(registers: Registers) -> Result<Self, GicError> {
        let architecture = registers.read32(gicd::PIDR2) >> 4 & 0xf;
        if !matches!(architecture, 3 | 4) {
            return Err(GicError::Version(architecture));
        }
        let lines = registers.read32(gicd::TYPER) & 0x1f;
        let gic = Self { registers, spi_end: (32 * (lines + 1)).min(1020) };
        // All groups off; affinity routing, where the firmware has it on, stays so (traps T78).
        let affinity_routing = gic.registers.read32(gicd::CTLR) & gicd::CTLR_ARE;
        gic.registers.write32(gicd::CTLR, affinity_routing);
        gic.wait()?;
        for word in 1..u64::from(gic.spi_end.div_ceil(32)) {
            gic.registers.write32(gicd::ICENABLER + 4 * word, u32::MAX);
            gic.registers.write32(gicd::ICPENDR + 4 * word, u32::MAX);
            gic.registers.write32(gicd::ICACTIVER + 4 * word, u32::MAX);
            gic.registers.write32(gicd::IGROUPR + 4 * word, u32::MAX);
        }
        for intid in 32..gic.spi_end {
            gic.registers.write8(gicd::IPRIORITYR + u64::from(intid), PRIORITY);
        }
        gic.wait()?;
        gic.registers.write32(gicd::CTLR, gicd::CTLR_ARE | gicd::CTLR_ENABLE_GRP1);
        gic.wait()?;
        Ok(gic)
    }

    /// Returns the first INTID behind the SPIs that this machine has.
    #[must_use]
    pub fn spi_end(&self) -> u32 {
        self.spi_end
    }

    /// Routes an SPI to a core and enables it.
    pub fn enable(&mut self, intid: Pintid, target: Mpidr, trigger: Trigger) {
        let Some(n) = self.spi(intid) else { return };
        let (word, shift) = (n / 16, 2 * (n % 16));
        let config = self.registers.read32(gicd::ICFGR + 4 * word) & !(2 << shift);
        let edge = if trigger == Trigger::Edge { 2 << shift } else { 0 };
        self.registers.write32(gicd::ICFGR + 4 * word, config | edge);
        self.registers.write64(gicd::IROUTER + 8 * n, target.get());
        self.registers.write32(gicd::ISENABLER + 4 * (n / 32), 1 << (n % 32));
    }

    /// Routes an SPI to a core.
    pub fn route(&mut self, intid: Pintid, target: Mpidr) {
        if let Some(n) = self.spi(intid) {
            self.registers.write64(gicd::IROUTER + 8 * n, target.get());
        }
    }

    /// Returns what the line of an SPI carries, also while it is active (IHI 0069 H 12.9.29);
    /// high for one that is triggered by edges, since those are gone once seen.
    #[must_use]
    pub fn line(&self, intid: Pintid) -> Level {
        let Some(n) = self.spi(intid) else { return Level::High };
        let config = self.registers.read32(gicd::ICFGR + 4 * (n / 16)) >> (2 * (n % 16));
        let pending = self.registers.read32(gicd::ISPENDR + 4 * (n / 32)) >> (n % 32);
        if config & 2 == 0 && pending & 1 == 0 { Level::Low } else { Level::High }
    }

    /// Disables an SPI and ends whatever it was in (traps T73).
    pub fn disable(&mut self, intid: Pintid) {
        let Some(n) = self.spi(intid) else { return };
        let (word, bit) = (4 * (n / 32), 1 << (n % 32));
        self.registers.write32(gicd::ICENABLER + word, bit);
        // Stuck or not, there is nothing better to do than to go on.
        let _ = self.wait();
        self.registers.write32(gicd::ICPENDR + word, bit);
        self.registers.write32(gicd::ICACTIVER + word, bit);
    }

    fn spi(&self, intid: Pintid) -> Option<u64> {
        (32..self.spi_end).contains(&intid.get()).then(|| intid.get().into())
    }

    fn wait(&self) -> Result<(), GicError> {
        poll(|| self.registers.read32(gicd::CTLR) & gicd::CTLR_RWP == 0)
    }
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

    /// Ends whatever the PPIs of `mask` are in: not pending, not active (traps T73).
    pub fn quiet(&mut self, mask: u32) {
        self.registers.write32(sgi_frame(gicd::ICPENDR), mask);
        self.registers.write32(sgi_frame(gicd::ICACTIVER), mask);
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

fn poll(done: impl Fn() -> bool) -> Result<(), GicError> {
    for _ in 0..POLLS_MAX {
        if done() {
            return Ok(());
        }
        arch::relax();
    }
    Err(GicError::Stuck)
}
