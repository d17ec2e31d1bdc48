// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The power management block of the Raspberry Pi's BCM2835 and its successors, which is how a
//! machine without PSCI goes off: its watchdog resets, and the firmware, which comes up again,
//! finds the number of the boot partition that means to stay off.
//!
//! Known from Linux' `drivers/watchdog/bcm2835_wdt.c`; binding: brcm,bcm2835-pm.
#![forbid(unsafe_code)]

use crate::mmio::Registers;

const RSTC: u64 = 0x1c;
const RSTS: u64 = 0x20;
const WDOG: u64 = 0x24;
/// What every write has in its top byte.
const PASSWORD: u32 = 0x5a << 24;
/// RSTC: what a watchdog that has run down does.
const RSTC_CONFIGURATION: u32 = 3 << 4;
/// RSTC: it resets the whole chip.
const RSTC_FULL_RESET: u32 = 2 << 4;
/// RSTS: the partition, in every other bit of the low twelve; 63 is to stay off.
const RSTS_PARTITION_63: u32 = 0x555;
/// WDOG: how long until then, in ticks of 1/65536 s.
const SOON_TICKS: u32 = 10;

/// The power management block.
#[derive(Debug)]
pub struct Bcm2835Pm {
    registers: Registers,
}

impl Bcm2835Pm {
    /// Takes charge of the block.
    #[must_use]
    pub const fn new(registers: Registers) -> Self {
        Self { registers }
    }

    /// Turns the machine off, in a moment.
    pub fn power_off(&self) {
        let status = self.registers.read32(RSTS) & !(0xff << 24);
        self.registers.write32(RSTS, PASSWORD | status | RSTS_PARTITION_63);
        self.reset();
    }

    /// Starts the machine again, in a moment.
    pub fn reset(&self) {
        self.registers.write32(WDOG, PASSWORD | SOON_TICKS);
        let control = self.registers.read32(RSTC) & !(0xff << 24) & !RSTC_CONFIGURATION;
        self.registers.write32(RSTC, PASSWORD | control | RSTC_FULL_RESET);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{Address, Pa, PaRange};
    use crate::arch::fake::machine::{Event, with};
    use std::vec::Vec;

    #[test]
    fn power_off_names_the_partition_before_it_resets() {
        const BASE: u64 = 0xfe10_0000;
        let block = PaRange::new(Pa::new(BASE), 0x114).unwrap();
        with(|core| core.devices.extend([(BASE + RSTS, 0x1000), (BASE + RSTC, 0x5a00_0132)]));
        Bcm2835Pm::new(Registers::new(block)).power_off();
        let written: Vec<_> = with(|core| {
            let of = |event: &Event| match event {
                Event::DeviceWrite(at, value) => Some((at.get() - BASE, *value)),
                _ => None,
            };
            core.events.iter().filter_map(of).collect()
        });
        assert_eq!(written, [(0x20, 0x5a00_1555), (0x24, 0x5a00_000a), (0x1c, 0x5a00_0122)]);
    }
}
