// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The small devices: a PL061 (DDI 0190), which QEMU's virt has too, the generic watchdog
//! (DEN 0094) and the panic port.

use crate::gic::acknowledge_soon;
use crate::timer::comes_anyway;
use guest_rt::device::{Device, Width};
use guest_rt::gic;
use guest_rt::irq::{self, SPURIOUS};
use guest_rt::sysreg::CNTFRQ_EL0;
use guest_rt::test::{Outcome, Test, Verdict};
use guest_rt::timer::{self, Timer};
use guest_rt::tree::{self, Watchdog};
use guest_rt::{check, check_eq, cpu, skip, tests};

pub const TESTS: &[Test] = tests![
    t37_gpio_lines_are_named_by_the_address,
    t72_gpio_level_is_withdrawn_when_masked,
    t57_watchdog_counts_the_guests_time,
    t72_watchdog_warns_and_a_refresh_withdraws_it,
    t72_watchdog_that_is_turned_off_is_silent,
    t72_watchdog_warns_whoever_has_set_it: 2,
    t37_panic_port_ignores_what_it_does_not_know,
];

/// GPIO registers.
const DATA: u64 = 0x3fc;
const DIR: u64 = 0x400;
const IS: u64 = 0x404;
const IBE: u64 = 0x408;
const IEV: u64 = 0x40c;
const IE: u64 = 0x410;
const RIS: u64 = 0x414;
const MIS: u64 = 0x418;
const IC: u64 = 0x41c;

/// Registers of the watchdog's control frame.
pub const WCS: u64 = 0;
const WOR: u64 = 8;
const WCV: u64 = 0x10;
/// WCS.EN and WCS.WS0.
pub const ENABLE: u32 = 1;
const WARNS: u32 = 2;
/// So long that nothing can be so late.
const LONG_SECONDS: u64 = 60;

/// Puts the devices back into their reset state.
pub fn quiet() {
    if let Some((gpio, _)) = tree::machine().gpio {
        for register in [IE, DIR, IS, IBE, IEV] {
            gpio.write32(register, 0);
        }
        gpio.write32(IC, 0xff);
    }
    if let Some(watchdog) = tree::machine().watchdog {
        watchdog.control.write32(WCS, 0);
        set_offset(watchdog, 0);
    }
}

/// Returns whether the devices are in their reset state.
pub fn are_fresh() -> Outcome {
    if let Some((gpio, _)) = tree::machine().gpio {
        for register in [DATA, DIR, IS, IBE, IEV, IE, RIS] {
            check_eq!(gpio.read32(register), 0, "GPIO at {register:#x}");
        }
    }
    let Some(Watchdog { control, .. }) = tree::machine().watchdog else { return Ok(()) };
    for register in [WCS, WOR, WOR + 4, WCV, WCV + 4] {
        check_eq!(control.read32(register), 0, "watchdog at {register:#x}");
    }
    Ok(())
}

/// Leaves the devices with interrupts that are pending.
pub fn tangle() {
    if let Some((gpio, intid)) = tree::machine().gpio {
        gpio.write32(DIR, 0xe0);
        gpio.write32(DATA, 0xff);
        for register in [IEV, IBE] {
            gpio.write32(register, 0x55);
        }
        gpio.write32(IS, 0xff);
        gpio.write32(IE, 0xff);
        gic::enable(intid);
    }
    if let Some(watchdog) = tree::machine().watchdog {
        warn_in(watchdog, 0);
        gic::enable(watchdog.intid);
    }
}

fn gpio() -> Result<(Device, u32), Verdict> {
    let Some(gpio) = tree::machine().gpio else { skip!("there is no PL061") };
    quiet();
    Ok(gpio)
}

pub fn watchdog() -> Result<Watchdog, Verdict> {
    let Some(watchdog) = tree::machine().watchdog else { skip!("there is no watchdog") };
    quiet();
    Ok(watchdog)
}

/// Writes both halves of a register of 64 bits.
fn write_halves(device: Device, offset: u64, value: u64) {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    device.write32(offset, u32::from_le_bytes([a, b, c, d]));
    device.write32(offset + 4, u32::from_le_bytes([e, f, g, h]));
}

/// Sets the ticks that a refresh gives.
pub fn set_offset(watchdog: Watchdog, ticks: u64) {
    write_halves(watchdog.control, WOR, ticks);
}

/// Turns the watchdog on so that it warns in `us` microseconds; its end is far away.
fn warn_in(watchdog: Watchdog, us: u64) {
    set_offset(watchdog, LONG_SECONDS * CNTFRQ_EL0::get());
    watchdog.control.write32(WCS, ENABLE);
    write_halves(watchdog.control, WCV, Timer::Virtual.now() + timer::ticks(us));
}

fn t37_gpio_lines_are_named_by_the_address() -> Outcome {
    let (gpio, _) = gpio()?;
    // The others are inputs; what drives them is not known here.
    gpio.write32(DIR, 0xf0);
    for mask in 0..=0xff_u64 {
        gpio.write32(DATA, 0);
        gpio.write32(mask << 2, 0xff);
        check_eq!(u64::from(gpio.read32(0xf0 << 2)), mask & 0xf0, "outputs behind {mask:#x}");
    }
    gpio.write32(DATA, 0xff);
    let inputs = u64::from(gpio.read32(0x0f << 2));
    for mask in 0..=0xff_u64 {
        check_eq!(u64::from(gpio.read32(mask << 2)), mask & (0xf0 | inputs), "mask {mask:#x}");
    }
    quiet();
    let ids = [0xfe0, 0xfe4, 0xfe8, 0xff0, 0xff4, 0xff8, 0xffc].map(|id| gpio.read32(id));
    check_eq!(ids, [0x61, 0x10, 4, 0xd, 0xf0, 5, 0xb1], "the identification");
    Ok(())
}

fn t72_gpio_level_is_withdrawn_when_masked() -> Outcome {
    let (gpio, intid) = gpio()?;
    gic::enable(intid);
    // What line 7 carries is its level from here on.
    gpio.write32(IEV, gpio.read32(DATA) & 0x80);
    gpio.write32(IS, 0x80);
    check_eq!(gpio.read32(RIS) & 0x80, 0x80, "GPIORIS");
    check!(!irq::is_waiting(), "an interrupt that is masked came");
    gpio.write32(IE, 0x80);
    check_eq!(gpio.read32(MIS), 0x80, "GPIOMIS");
    check_eq!(acknowledge_soon(), intid, "INTID");
    gpio.write32(IE, 0);
    irq::end(intid);
    check_eq!(irq::acknowledge(), SPURIOUS, "INTID behind the mask");
    quiet();
    Ok(())
}

fn t57_watchdog_counts_the_guests_time() -> Outcome {
    let watchdog = watchdog()?;
    let (control, offset) = (watchdog.control, LONG_SECONDS * CNTFRQ_EL0::get());
    set_offset(watchdog, offset);
    for _ in 0..100 {
        let before = Timer::Virtual.now();
        control.write32(WCS, ENABLE);
        let after = Timer::Virtual.now();
        let compare = u64::from(control.read32(WCV)) | u64::from(control.read32(WCV + 4)) << 32;
        let now = compare.wrapping_sub(offset);
        check!((before..=after).contains(&now), "{now:#x} is not in {before:#x}..={after:#x}");
    }
    quiet();
    Ok(())
}

fn t72_watchdog_warns_and_a_refresh_withdraws_it() -> Outcome {
    let watchdog = watchdog()?;
    let Watchdog { control, refresh, intid } = watchdog;
    gic::enable(intid);
    for round in 0..20 {
        warn_in(watchdog, 500);
        let set = Timer::Virtual.now();
        check!(timer::wait_for(timer::PATIENCE_MS, irq::is_waiting), "no warning in round {round}");
        check!(Timer::Virtual.now() >= set, "time runs backwards");
        check_eq!(control.read32(WCS), ENABLE | WARNS, "WCS in round {round}");
        check_eq!(acknowledge_soon(), intid, "INTID in round {round}");
        if round % 2 == 0 {
            refresh.write32(0, 0);
        } else {
            control.write32(WCS, ENABLE);
        }
        irq::end(intid);
        check_eq!(control.read32(WCS), ENABLE, "WCS after the refresh");
        check_eq!(irq::acknowledge(), SPURIOUS, "INTID after the refresh");
    }
    // A warning that nobody answers is pending again as often as it is taken.
    warn_in(watchdog, 0);
    for _ in 0..10 {
        check_eq!(acknowledge_soon(), intid, "INTID of a line that is high");
        irq::end(intid);
    }
    quiet();
    Ok(())
}

fn t72_watchdog_that_is_turned_off_is_silent() -> Outcome {
    let watchdog = watchdog()?;
    gic::enable(watchdog.intid);
    for _ in 0..20 {
        warn_in(watchdog, 50);
        watchdog.control.write32(WCS, 0);
    }
    irq::quiet(watchdog.intid);
    check!(!comes_anyway(), "it warns though it is off");
    check_eq!(watchdog.control.read32(WCS), 0, "WCS");
    quiet();
    Ok(())
}

/// vCPU 1 sets it, so that vCPU 0's core, which keeps the time, has to be told.
fn t72_watchdog_warns_whoever_has_set_it() -> Outcome {
    let Watchdog { control, intid, .. } = watchdog()?;
    gic::enable(intid);
    for round in 0..20 {
        let sets = || tree::machine().watchdog.into_iter().for_each(|own| warn_in(own, 200));
        check!(cpu::run_on(1, sets), "vCPU 1 does not come back");
        check!(timer::wait_for(timer::PATIENCE_MS, irq::is_waiting), "no warning in round {round}");
        check_eq!(acknowledge_soon(), intid, "INTID in round {round}");
        control.write32(WCS, 0);
        irq::end(intid);
    }
    quiet();
    Ok(())
}

fn t37_panic_port_ignores_what_it_does_not_know() -> Outcome {
    let Some(port) = tree::machine().panic_port else { skip!("there is no panic port") };
    check_eq!(port.read8(0), 3, "what can be reported");
    // That its own crash kernel goes on is no end of the guest.
    for value in [0, 0x80, 0xfc, 2] {
        port.write8(0, value);
    }
    check!(port.try_read(1, Width::Byte) == Ok(0), "the byte behind it");
    Ok(())
}
