// SPDX-License-Identifier: Apache-2.0 OR MIT
//! T71 and T72: interrupt lines of devices. The console's follows its registers as a level; a PL031
//! clock, where the tree has one, is a device whose physical interrupt reaches the guest.

use crate::gic::acknowledge_soon;
use core::sync::atomic::{AtomicU32, Ordering::Acquire, Ordering::Release};
use guest_rt::console::{self, reg};
use guest_rt::cpu_interface::{self, EOI_MODE};
use guest_rt::device::Device;
use guest_rt::gic;
use guest_rt::irq::{self, SPURIOUS};
use guest_rt::test::{Outcome, Test, Verdict};
use guest_rt::{check, check_eq, cpu, skip, tests, timer, tree};

pub const TESTS: &[Test] = tests![
    t72_uart_line_is_sampled_again_after_the_end,
    t72_uart_line_that_drops_is_withdrawn,
    t72_software_pending_of_a_level_is_taken_once,
    t71_clock_alarm_comes_every_time,
    t71_clock_line_is_sampled_again_after_the_end,
    t71_clock_line_that_drops_is_withdrawn,
    t71_clock_line_that_is_high_makes_an_active_one_pending: 2,
];

/// UARTIMSC: transmit.
const TXIM: u32 = 1 << 5;

/// Raises the console's line: the transmit interrupt is raised by a byte that goes out.
fn raise_uart() -> Outcome {
    let uart = console::device();
    gic::enable(tree::machine().uart_intid);
    uart.write32(reg::IMSC, TXIM);
    // A carriage return changes nothing in a log.
    console::put(b'\r');
    check!(
        timer::wait_for(timer::PATIENCE_MS, || uart.read32(reg::RIS) & TXIM != 0),
        "UARTRIS does not show the transmit interrupt"
    );
    Ok(())
}

fn lower_uart() {
    let uart = console::device();
    uart.write32(reg::IMSC, 0);
    uart.write32(reg::ICR, 0x7ff);
}

fn uart_intid() -> u32 {
    tree::machine().uart_intid
}

fn t72_uart_line_is_sampled_again_after_the_end() -> Outcome {
    raise_uart()?;
    for round in 0..100 {
        check_eq!(acknowledge_soon(), uart_intid(), "INTID in round {round}");
        check!(gic::is_active(uart_intid()), "it is not active");
        irq::end(uart_intid());
    }
    check_eq!(acknowledge_soon(), uart_intid(), "INTID at the end");
    lower_uart();
    irq::end(uart_intid());
    check_eq!(irq::acknowledge(), SPURIOUS, "INTID with the line low");
    check!(!gic::is_pending(uart_intid()), "it is pending with the line low");
    Ok(())
}

fn t72_uart_line_that_drops_is_withdrawn() -> Outcome {
    for round in 0..20 {
        raise_uart()?;
        check!(gic::is_pending(uart_intid()), "it is not pending in round {round}");
        check!(irq::is_waiting(), "ISR_EL1.I is clear in round {round}");
        lower_uart();
        check!(!gic::is_pending(uart_intid()), "it is still pending in round {round}");
        check_eq!(irq::acknowledge(), SPURIOUS, "INTID in round {round}");
    }
    Ok(())
}

/// A level-triggered interrupt made pending by register comes once, and goes with ICPENDR.
fn t72_software_pending_of_a_level_is_taken_once() -> Outcome {
    let intid = uart_intid();
    gic::enable(intid);
    gic::set_pending(intid);
    check!(gic::is_pending(intid), "it is not pending");
    check_eq!(acknowledge_soon(), intid, "INTID");
    irq::end(intid);
    check_eq!(irq::acknowledge(), SPURIOUS, "INTID after the end");
    gic::set_pending(intid);
    gic::clear_pending(intid);
    check!(!gic::is_pending(intid), "ICPENDR leaves it pending");
    check_eq!(irq::acknowledge(), SPURIOUS, "INTID after ICPENDR");
    Ok(())
}

/// Registers of the PL031 (DDI 0224 3.2).
mod rtc {
    pub const DR: u64 = 0x00;
    pub const MR: u64 = 0x04;
    pub const IMSC: u64 = 0x10;
    pub const ICR: u64 = 0x1c;
}

/// Returns the clock and its interrupt.
pub fn clock() -> Result<(Device, u32), Verdict> {
    match tree::machine().rtc {
        Some(clock) => Ok(clock),
        None => skip!("the tree has no PL031"),
    }
}

/// Raises the clock's line: an alarm for the second that it is.
pub fn raise_clock(clock: Device, intid: u32) -> Outcome {
    gic::enable(intid);
    clock.write32(rtc::IMSC, 1);
    for _ in 0..3 {
        clock.write32(rtc::MR, clock.read32(rtc::DR));
        if timer::wait_for(10, irq::is_waiting) {
            return Ok(());
        }
    }
    // The second was over each time, or the alarm needs the next one.
    clock.write32(rtc::MR, clock.read32(rtc::DR) + 1);
    check!(timer::wait_for(timer::PATIENCE_MS, irq::is_waiting), "the alarm does not come");
    Ok(())
}

fn lower_clock(clock: Device) {
    clock.write32(rtc::ICR, 1);
}

fn t71_clock_alarm_comes_every_time() -> Outcome {
    let (clock, intid) = clock()?;
    for round in 0..1000 {
        raise_clock(clock, intid)?;
        check_eq!(acknowledge_soon(), intid, "INTID in round {round}");
        check!(gic::is_active(intid), "it is not active in round {round}");
        lower_clock(clock);
        irq::end(intid);
        check_eq!(irq::acknowledge(), SPURIOUS, "INTID behind round {round}");
    }
    clock.write32(rtc::IMSC, 0);
    Ok(())
}

/// Level-sensitive, in both EOImodes: nothing else need happen for the next one to come.
fn t71_clock_line_is_sampled_again_after_the_end() -> Outcome {
    let (clock, intid) = clock()?;
    for mode in [0, EOI_MODE] {
        cpu_interface::set_eoi_mode(mode);
        let end = || {
            irq::end(intid);
            if mode == EOI_MODE {
                irq::deactivate(intid);
            }
        };
        raise_clock(clock, intid)?;
        for round in 0..100 {
            check_eq!(acknowledge_soon(), intid, "INTID in round {round}, EOImode {mode}");
            end();
        }
        check_eq!(acknowledge_soon(), intid, "INTID at the end");
        lower_clock(clock);
        end();
        check_eq!(irq::acknowledge(), SPURIOUS, "INTID with the line low");
    }
    clock.write32(rtc::IMSC, 0);
    Ok(())
}

/// A hardware-linked interrupt that waits in a list register is withdrawn at the next exit.
fn t71_clock_line_that_drops_is_withdrawn() -> Outcome {
    let (clock, intid) = clock()?;
    raise_clock(clock, intid)?;
    lower_clock(clock);
    check!(!gic::is_pending(intid), "it is still pending");
    check_eq!(irq::acknowledge(), SPURIOUS, "INTID with the line low");
    raise_clock(clock, intid)?;
    check_eq!(acknowledge_soon(), intid, "INTID of the next alarm");
    lower_clock(clock);
    irq::end(intid);
    clock.write32(rtc::IMSC, 0);
    Ok(())
}

/// A level-sensitive interrupt is pending while its line is high, also when it is active and
/// whatever ICPENDR says; another vCPU reads the same.
fn t71_clock_line_that_is_high_makes_an_active_one_pending() -> Outcome {
    static SEEN: AtomicU32 = AtomicU32::new(0);
    fn look_from_there() {
        let (_, intid) = tree::machine().rtc.unwrap_or_default();
        let seen = u32::from(gic::is_pending(intid)) | u32::from(gic::is_active(intid)) << 1;
        SEEN.store(seen, Release);
    }
    let (clock, intid) = clock()?;
    for round in 0..3 {
        raise_clock(clock, intid)?;
        check_eq!(acknowledge_soon(), intid, "INTID in round {round}");
        check!(gic::is_active(intid), "it is not active in round {round}");
        check!(gic::is_pending(intid), "it is not pending in round {round}");
        gic::clear_pending(intid);
        check!(gic::is_pending(intid), "ICPENDR ends what the line says in round {round}");
        check!(cpu::run_on(1, look_from_there), "vCPU 1 does not start and stop");
        check_eq!(SEEN.load(Acquire), 3, "what vCPU 1 sees in round {round}");
        lower_clock(clock);
        check!(gic::is_active(intid), "it is not active with the line low in round {round}");
        check!(!gic::is_pending(intid), "it is pending with the line low in round {round}");
        check!(cpu::run_on(1, look_from_there), "vCPU 1 does not start and stop");
        check_eq!(SEEN.load(Acquire), 2, "what vCPU 1 sees with the line low in round {round}");
        irq::end(intid);
        check!(!gic::is_active(intid), "it is active at the end of round {round}");
    }
    clock.write32(rtc::IMSC, 0);
    Ok(())
}
