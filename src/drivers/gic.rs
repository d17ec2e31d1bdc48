// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The physical GIC as the rest of the hypervisor sees it, of either architecture: the distributor,
//! which is one for all cores and stands behind a lock, and what each core has of its own.
//!
//! The two architectures' distributors differ in how SPIs are routed, how groups are used and how a
//! write is waited for; all else is the same. With GICv3 all interrupts are in Group 1: without EL3
//! the firmware leaves them in Group 0. With GICv2 they are in the one group that this Security
//! state has (IHI 0048 B 4.3.4): Group 0 where there is one state; where there are two, the bits
//! are RAZ/WI. IHI 0069 H 12.8, IHI 0048 B 4.3.
#![forbid(unsafe_code)]

use super::gicv2::{BankedInterrupts, CpuInterfaces};
use super::gicv3::Redistributor;
use crate::arch;
use crate::bits::{Level, Trigger};
use crate::id::{Mpidr, Pintid};
use crate::mmio::Registers;
use crate::spec::gic::PIDR2;
use crate::spec::gicv2;
use core::fmt;

/// What can go wrong with the physical GIC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GicError {
    /// The distributor is of another architecture: PIDR2.ArchRev.
    Version {
        /// What it says.
        found: u32,
        /// What the tree says.
        expected: u32,
    },
    /// A register write pending bit does not clear.
    Stuck,
}

impl fmt::Display for GicError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version { found, expected } => {
                write!(f, "architecture {found}, GICv{expected} expected")
            }
            Self::Stuck => f.write_str("a write stays pending"),
        }
    }
}

pub(super) mod gicd {
    pub const CTLR: u64 = 0x0000;
    pub const CTLR_ENABLE_GRP1: u32 = 1 << 1;
    pub const CTLR_ARE: u32 = 1 << 4;
    pub const CTLR_RWP: u32 = 1 << 31;
    /// The one group of GICv2 that this Security state has.
    pub const CTLR_ENABLE_V2: u32 = 1 << 0;
    pub const TYPER: u64 = 0x0004;
    pub const IGROUPR: u64 = 0x0080;
    pub const ISENABLER: u64 = 0x0100;
    pub const ICENABLER: u64 = 0x0180;
    pub const ISPENDR: u64 = 0x0200;
    pub const ICPENDR: u64 = 0x0280;
    pub const ISACTIVER: u64 = 0x0300;
    pub const ICACTIVER: u64 = 0x0380;
    pub const IPRIORITYR: u64 = 0x0400;
    pub const ICFGR: u64 = 0x0c00;
    pub const IROUTER: u64 = 0x6000;
}

/// The priority of everything at EL2: in the middle, above the mask's lowest.
pub(super) const PRIORITY: u8 = 0xa0;
/// How often a pending bit is read before the GIC is taken for broken.
const POLLS_MAX: u32 = 1_000_000;

/// How SPIs find their core.
#[derive(Clone, Copy, Debug)]
enum Routing {
    /// GICv2: by the number of the CPU interface.
    Targets(&'static CpuInterfaces),
    /// GICv3: by affinity.
    Affinity,
}

/// What an SPI is in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SpiState {
    /// Enabled, pending and active, from bit 0 on.
    pub bits: u32,
    /// Its priority.
    pub priority: u8,
    /// Where it goes: GICD_IROUTER, or with GICv2 the set of CPU interfaces.
    pub route: u64,
}

/// The distributor.
#[derive(Debug)]
pub struct Distributor {
    registers: Registers,
    spi_end: u32,
    routing: Routing,
}

impl Distributor {
    /// Takes charge of a GICv3's distributor: every SPI disabled, inactive, in Group 1, routed
    /// nowhere in particular; affinity routing on.
    ///
    /// # Errors
    /// The block is not a GICv3 distributor, or does not answer.
    pub fn v3(registers: Registers) -> Result<Self, GicError> {
        let found = registers.read32(PIDR2) >> 4 & 0xf;
        if !matches!(found, 3 | 4) {
            return Err(GicError::Version { found, expected: 3 });
        }
        // All groups off; affinity routing, where the firmware has it on, stays so (traps T78).
        let affinity_routing = registers.read32(gicd::CTLR) & gicd::CTLR_ARE;
        let gic = Self::quiet(registers, Routing::Affinity, affinity_routing)?;
        gic.registers.write32(gicd::CTLR, gicd::CTLR_ARE | gicd::CTLR_ENABLE_GRP1);
        gic.wait()?;
        Ok(gic)
    }

    /// Takes charge of a GICv2's distributor: every SPI disabled, inactive, in this Security
    /// state's group, routed nowhere in particular.
    ///
    /// # Errors
    /// The block is not a GICv2 distributor.
    pub fn v2(registers: Registers, interfaces: &'static CpuInterfaces) -> Result<Self, GicError> {
        let found = registers.read32(gicv2::gicd::PIDR2) >> 4 & 0xf;
        if found != 2 {
            return Err(GicError::Version { found, expected: 2 });
        }
        let gic = Self::quiet(registers, Routing::Targets(interfaces), 0)?;
        gic.registers.write32(gicd::CTLR, gicd::CTLR_ENABLE_V2);
        Ok(gic)
    }

    /// Turns everything off, GICD_CTLR but for `kept`.
    fn quiet(registers: Registers, routing: Routing, kept: u32) -> Result<Self, GicError> {
        let lines = registers.read32(gicd::TYPER) & 0x1f;
        let gic = Self { registers, spi_end: (32 * (lines + 1)).min(1020), routing };
        gic.registers.write32(gicd::CTLR, kept);
        gic.wait()?;
        for word in 1..u64::from(gic.spi_end.div_ceil(32)) {
            gic.registers.write32(gicd::ICENABLER + 4 * word, u32::MAX);
            gic.registers.write32(gicd::ICPENDR + 4 * word, u32::MAX);
            gic.registers.write32(gicd::ICACTIVER + 4 * word, u32::MAX);
            gic.registers.write32(gicd::IGROUPR + 4 * word, gic.group());
        }
        for intid in 32..gic.spi_end {
            gic.registers.write8(gicd::IPRIORITYR + u64::from(intid), PRIORITY);
        }
        gic.wait()?;
        Ok(gic)
    }

    /// Returns what puts 32 interrupts into the group that is used.
    const fn group(&self) -> u32 {
        match self.routing {
            Routing::Targets(_) => 0,
            Routing::Affinity => u32::MAX,
        }
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
        self.route(intid, target);
        self.registers.write32(gicd::ISENABLER + 4 * (n / 32), 1 << (n % 32));
    }

    /// Routes an SPI to a core.
    pub fn route(&mut self, intid: Pintid, target: Mpidr) {
        let Some(n) = self.spi(intid) else { return };
        match self.routing {
            Routing::Targets(interfaces) => {
                self.registers.write8(gicv2::gicd::ITARGETSR + n, interfaces.set_of(target));
            }
            Routing::Affinity => self.registers.write64(gicd::IROUTER + 8 * n, target.get()),
        }
    }

    /// Returns what the line of an SPI carries, also while it is active (IHI 0069 H 12.9.29,
    /// IHI 0048 B 4.3.7); high for one that is triggered by edges, since those are gone once seen.
    #[must_use]
    pub fn line(&self, intid: Pintid) -> Level {
        let Some(n) = self.spi(intid) else { return Level::High };
        let config = self.registers.read32(gicd::ICFGR + 4 * (n / 16)) >> (2 * (n % 16));
        if config & 2 == 0 && !self.is_pending(intid) { Level::Low } else { Level::High }
    }

    /// Returns whether an SPI is pending, also while it is active.
    #[must_use]
    pub fn is_pending(&self, intid: Pintid) -> bool {
        let Some(n) = self.spi(intid) else { return false };
        self.registers.read32(gicd::ISPENDR + 4 * (n / 32)) >> (n % 32) & 1 == 1
    }

    /// Makes an SPI pending, once, whatever its line carries.
    pub fn set_pending(&mut self, intid: Pintid) {
        if let Some(n) = self.spi(intid) {
            self.registers.write32(gicd::ISPENDR + 4 * (n / 32), 1 << (n % 32));
        }
    }

    /// Clears the pending bit of an SPI; a line that is high keeps it pending.
    pub fn clear_pending(&mut self, intid: Pintid) {
        if let Some(n) = self.spi(intid) {
            self.registers.write32(gicd::ICPENDR + 4 * (n / 32), 1 << (n % 32));
        }
    }

    /// Takes an SPI from who had it: disabled, whatever it was in ended, going nowhere (traps T73).
    pub fn release(&mut self, intid: Pintid) {
        let Some(n) = self.spi(intid) else { return };
        let (word, bit) = (4 * (n / 32), 1 << (n % 32));
        self.registers.write32(gicd::ICENABLER + word, bit);
        // Stuck or not, there is nothing better to do than to go on.
        let _ = self.wait();
        self.registers.write32(gicd::ICPENDR + word, bit);
        self.registers.write32(gicd::ICACTIVER + word, bit);
        match self.routing {
            Routing::Targets(_) => self.registers.write8(gicv2::gicd::ITARGETSR + n, 0),
            // There is always a core that it names; disabled it goes to none.
            Routing::Affinity => self.registers.write64(gicd::IROUTER + 8 * n, 0),
        }
    }

    /// Reads what an SPI is in; `None` where there is no such SPI.
    #[must_use]
    pub fn state(&self, intid: Pintid) -> Option<SpiState> {
        let n = self.spi(intid)?;
        let bit = |register| self.registers.read32(register + 4 * (n / 32)) >> (n % 32) & 1;
        let bits = bit(gicd::ISENABLER) | bit(gicd::ISPENDR) << 1 | bit(gicd::ISACTIVER) << 2;
        let route = match self.routing {
            Routing::Targets(_) => self.registers.read8(gicv2::gicd::ITARGETSR + n).into(),
            Routing::Affinity => self.registers.read64(gicd::IROUTER + 8 * n),
        };
        let priority = self.registers.read8(gicd::IPRIORITYR + n);
        Some(SpiState { bits, priority, route })
    }

    fn spi(&self, intid: Pintid) -> Option<u64> {
        (32..self.spi_end).contains(&intid.get()).then(|| intid.get().into())
    }

    /// Waits until the distributor has taken in what was written; GICv2 needs no waiting.
    fn wait(&self) -> Result<(), GicError> {
        match self.routing {
            Routing::Targets(_) => Ok(()),
            Routing::Affinity => poll(|| self.registers.read32(gicd::CTLR) & gicd::CTLR_RWP == 0),
        }
    }
}

/// What a core has of the GIC for itself: its SGIs and PPIs.
#[derive(Debug)]
pub enum PrivateInterrupts {
    /// GICv2: banked registers of the distributor.
    V2(BankedInterrupts),
    /// GICv3: a redistributor.
    V3(Redistributor),
}

impl PrivateInterrupts {
    /// Makes them ready: SGIs and PPIs disabled and inactive.
    ///
    /// # Errors
    /// They do not answer.
    pub fn wake(&mut self) -> Result<(), GicError> {
        match self {
            Self::V2(banked) => {
                banked.wake();
                Ok(())
            }
            Self::V3(redistributor) => redistributor.wake(),
        }
    }

    /// Enables an SGI or PPI of this core.
    pub fn enable(&mut self, intid: Pintid) {
        match self {
            Self::V2(banked) => banked.enable(intid),
            Self::V3(redistributor) => redistributor.enable(intid),
        }
    }

    /// Ends whatever the PPIs of `mask` are in: not pending, not active (traps T73). Their devices
    /// are silent already; when this returns, none is still on its way to the core.
    pub fn quiet(&mut self, mask: u32) {
        match self {
            Self::V2(banked) => banked.quiet(mask),
            Self::V3(redistributor) => redistributor.quiet(mask),
        }
    }

    /// Reads which SGIs and PPIs are enabled, pending and active.
    #[must_use]
    pub fn state(&self) -> [u32; 3] {
        match self {
            Self::V2(banked) => banked.state(),
            Self::V3(redistributor) => redistributor.state(),
        }
    }
}

/// Reads, a few times at most, until none of `mask` is pending: a line that has just fallen is seen
/// a moment later.
pub(super) fn await_low(mask: u32, pending: impl Fn() -> u32) {
    const LOOKS_MAX: u32 = 32;
    for _ in 0..LOOKS_MAX {
        if pending() & mask == 0 {
            return;
        }
    }
}

pub(super) fn poll(done: impl Fn() -> bool) -> Result<(), GicError> {
    for _ in 0..POLLS_MAX {
        if done() {
            return Ok(());
        }
        arch::relax();
    }
    Err(GicError::Stuck)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{Address, Pa, PaRange};
    use crate::arch::fake::machine::{Event, with};
    use std::boxed::Box;
    use std::vec::Vec;

    const GICD: u64 = 0x800_0000;
    const GICR: u64 = 0x80a_0000;
    const SPI: Pintid = Pintid::new(70);
    /// SPI 70 in a register of 32 bits each.
    const WORD: u64 = 4 * (70 / 32);
    const BIT: u64 = 1 << (70 % 32);

    fn block(at: u64) -> Registers {
        Registers::new(PaRange::new(Pa::new(at), 0x1_0000).unwrap())
    }
    fn set(at: u64, value: u64) {
        with(|core| core.devices.insert(at, value));
    }
    /// What is written to the GIC.
    fn writes(work: impl FnOnce()) -> Vec<(u64, u64)> {
        with(|core| core.events.clear());
        work();
        let write = |event: &Event| match event {
            Event::DeviceWrite(at, value) => Some((at.get(), *value)),
            _ => None,
        };
        with(|core| core.events.iter().filter_map(write).collect())
    }
    fn v3() -> Distributor {
        set(GICD + PIDR2, 0x3b);
        set(GICD + gicd::TYPER, 3);
        Distributor::v3(block(GICD)).unwrap()
    }
    fn v2() -> Distributor {
        set(GICD + gicv2::gicd::PIDR2, 0x2b);
        set(GICD + gicd::TYPER, 3);
        let interfaces = CpuInterfaces::new(block(GICD), block(GICD), block(GICD));
        Distributor::v2(block(GICD), Box::leak(Box::new(interfaces))).unwrap()
    }

    /// Disabled first, so that what is ended does not come back, and routed nowhere last.
    #[test]
    fn t73_an_spi_that_is_given_up_is_in_no_state_and_goes_nowhere() {
        let ended = [gicd::ICENABLER, gicd::ICPENDR, gicd::ICACTIVER];
        let ended = ended.map(|register| (GICD + register + WORD, BIT));
        let mut gic = v3();
        let seen = writes(|| gic.release(SPI));
        assert_eq!(seen[..3], ended);
        assert_eq!(seen[3..], [(GICD + gicd::IROUTER + 8 * 70, 0)]);
        let mut gic = v2();
        let seen = writes(|| gic.release(SPI));
        assert_eq!(seen[..3], ended);
        assert_eq!(seen[3..], [(GICD + gicv2::gicd::ITARGETSR + 70, 0)]);
        for none in [0, 31, 128, 1019, 1023, u32::MAX] {
            assert_eq!(writes(|| gic.release(Pintid::new(none))), []);
            assert_eq!(gic.state(Pintid::new(none)), None);
        }
    }

    #[test]
    fn state_of_an_spi_is_what_its_registers_say() {
        let gic = v3();
        set(GICD + gicd::ISENABLER + WORD, BIT);
        set(GICD + gicd::ISACTIVER + WORD, BIT);
        set(GICD + gicd::IPRIORITYR + 70, 0xa0);
        set(GICD + gicd::IROUTER + 8 * 70, 0x1_0000_0003);
        let expected = SpiState { bits: 0b101, priority: 0xa0, route: 0x1_0000_0003 };
        assert_eq!(gic.state(SPI), Some(expected));
        set(GICD + gicd::ISPENDR + WORD, BIT);
        assert_eq!(gic.state(SPI).map(|state| state.bits), Some(0b111));
    }

    /// A timer's PPI that is still on its way would be taken after it was ended, and stay active.
    #[test]
    fn t73_a_ppi_is_ended_when_it_cannot_come_any_more() {
        const TIMERS: u32 = 1 << 27 | 1 << 30;
        set(GICR + 8, 1 << 4);
        let redistributor = Redistributor::find(&block_of_core(), 0, Mpidr::default()).unwrap();
        let banked = BankedInterrupts::new(block(GICD));
        for (at, mut private) in [
            (GICR + 0x1_0000, PrivateInterrupts::V3(redistributor)),
            (GICD, PrivateInterrupts::V2(banked)),
        ] {
            set(at + gicd::ISENABLER, 0x4800_00ff);
            let seen = writes(|| private.quiet(TIMERS));
            let all = u64::from(TIMERS);
            let ended = [gicd::ICENABLER, gicd::ICPENDR, gicd::ICACTIVER, gicd::ISENABLER];
            assert_eq!(seen, ended.map(|register| (at + register, all)));
            // What was not enabled is not afterwards; the others are not touched.
            set(at + gicd::ISENABLER, 1 << 30 | 3);
            let seen = writes(|| private.quiet(TIMERS));
            assert_eq!(seen.last(), Some(&(at + gicd::ISENABLER, 1 << 30)));
            set(at + gicd::ISACTIVER, 1 << 27);
            assert_eq!(private.state(), [1 << 30, 0, 1 << 27]);
        }
    }

    fn block_of_core() -> Registers {
        Registers::new(PaRange::new(Pa::new(GICR), 0x2_0000).unwrap())
    }
}
