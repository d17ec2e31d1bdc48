// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The state of an interrupt that another vCPU has, while that one runs on and does nothing that a
//! hypervisor would see: what is read is what is, and what is written holds there (IHI 0069 4.1,
//! 12.8, 12.11; traps T70, T75, T78).

use crate::gic::{acknowledge_soon, prepare};
use crate::under_hypervisor;
use core::sync::atomic::{AtomicU64, Ordering::Acquire, Ordering::Release};
use guest_rt::cpu_interface;
use guest_rt::device::Device;
use guest_rt::gic::{self, EOI_MODE, PRIORITY, reg};
use guest_rt::irq::{self, SPURIOUS};
use guest_rt::test::{Outcome, Test};
use guest_rt::{check, check_eq, cpu, skip, tests, timer};

pub const TESTS: &[Test] = tests![
    t70_active_on_another_vcpu_is_seen: 2,
    t70_deactivated_by_another_vcpu: 2,
    t70_active_on_another_vcpu_keeps_it_back_here: 2,
    t75_pending_on_another_vcpu_is_seen_and_cleared: 2,
    t75_set_active_on_another_vcpu: 2,
    t75_two_vcpus_look_at_each_other: 2,
    t78_disabled_by_another_vcpu: 2,
    t78_group_turned_off_by_another_vcpu: 2,
];

/// The interrupts: an SGI, a PPI without a device, an SPI.
const INTIDS: [u32; 3] = [3, 20, 45];
/// A GICv2 shows each vCPU its own SGIs and PPIs alone.
fn intids() -> impl Iterator<Item = u32> {
    INTIDS.into_iter().filter(|intid| !gic::is_v2() || *intid >= 32)
}
const SPI: u32 = 45;

/// What vCPU 1 is to do, above its argument; 0 when it has done it.
static REQUEST: AtomicU64 = AtomicU64::new(0);
static ANSWER: AtomicU64 = AtomicU64::new(0);

const ACKNOWLEDGE: u64 = 1 << 32;
const END: u64 = 2 << 32;
const DEACTIVATE: u64 = 3 << 32;
const ENABLE: u64 = 4 << 32;
const IS_WAITING: u64 = 5 << 32;
const EOI_MODE_1: u64 = 6 << 32;
const QUIT: u64 = 7 << 32;

/// Serves requests with interrupts masked. Between them it touches memory alone. A test that has
/// failed asks no more.
fn serve_requests() {
    while timer::wait_for(2 * timer::PATIENCE_MS, || REQUEST.load(Acquire) != 0) {
        let request = REQUEST.load(Acquire);
        let intid = u32::try_from(request & 0xffff_ffff).unwrap_or(SPURIOUS);
        let answer = match request & !0xffff_ffff {
            ACKNOWLEDGE => irq::acknowledge(),
            END => {
                irq::end(intid);
                0
            }
            DEACTIVATE => {
                irq::deactivate(intid);
                0
            }
            ENABLE => {
                gic::set_priority(intid, PRIORITY);
                gic::enable(intid);
                0
            }
            IS_WAITING => u32::from(irq::is_waiting()),
            EOI_MODE_1 => {
                cpu_interface::set_eoi_mode(EOI_MODE);
                0
            }
            _ => return REQUEST.store(0, Release),
        };
        ANSWER.store(answer.into(), Release);
        REQUEST.store(0, Release);
    }
}

/// Lets vCPU 1 do something and returns its answer.
fn ask(request: u64) -> u64 {
    REQUEST.store(request, Release);
    let done = timer::wait_for(timer::PATIENCE_MS, || REQUEST.load(Acquire) == 0);
    if done { ANSWER.load(Acquire) } else { u64::MAX }
}

/// Skips where a vCPU does not read what is pending for another one.
fn others_are_shown() -> Outcome {
    if gic::is_v2() && !under_hypervisor() {
        skip!("QEMU's GICv2 keeps what is pending by target");
    }
    Ok(())
}

/// Starts vCPU 1 with the interrupts enabled; the SPI goes to it.
fn start() -> Outcome {
    others_are_shown()?;
    REQUEST.store(0, Release);
    check_eq!(cpu::start(1, serve_requests), Ok(()), "CPU_ON");
    for intid in intids() {
        if intid >= 32 {
            prepare(intid, PRIORITY);
            gic::route(intid, cpu::mpidr(1));
        } else {
            check_eq!(ask(ENABLE | u64::from(intid)), 0, "enabling {intid}");
        }
    }
    Ok(())
}

fn stop() -> Outcome {
    let _ = ask(QUIT);
    check!(cpu::wait_off(1), "vCPU 1 does not stop");
    Ok(())
}

/// Returns where the state of vCPU 1's interrupt is, up to the register.
fn bank(intid: u32) -> (Device, u64, u32) {
    match intid {
        0..32 => (gic::gicr(1), reg::SGI_FRAME, 1 << intid),
        _ => (gic::gicd(), u64::from(intid / 32 * 4), 1 << (intid % 32)),
    }
}
fn write(register: u64, intid: u32) {
    let (device, base, bit) = bank(intid);
    device.write32(base + register, bit);
}
fn is_set(register: u64, intid: u32) -> bool {
    let (device, base, bit) = bank(intid);
    device.read32(base + register) & bit != 0
}
/// Returns whether the interrupt is pending, and whether it is active.
fn state(intid: u32) -> (bool, bool) {
    (is_set(reg::ISPENDR, intid), is_set(reg::ISACTIVER, intid))
}
const IDLE: (bool, bool) = (false, false);
const PENDING: (bool, bool) = (true, false);
const ACTIVE: (bool, bool) = (false, true);
const BOTH: (bool, bool) = (true, true);

/// Waits until both GICs say that writes are done.
fn wait_for_writes() -> Outcome {
    check!(gic::wait_for_writes(), "GICD_CTLR.RWP stays set");
    if gic::is_v2() {
        return Ok(());
    }
    let gicr = gic::gicr(1);
    let is_done = || gicr.read32(reg::CTLR) & 1 << 3 == 0;
    check!(timer::wait_for(timer::PATIENCE_MS, is_done), "GICR_CTLR.RWP stays set");
    Ok(())
}

/// Returns whether an interrupt comes to vCPU 1.
fn comes_there() -> bool {
    timer::wait_for(timer::PATIENCE_MS, || ask(IS_WAITING) == 1)
}

/// Makes vCPU 1 acknowledge the interrupt.
fn take(intid: u32) -> Outcome {
    write(reg::ISPENDR, intid);
    check!(comes_there(), "{intid} does not come");
    check_eq!(ask(ACKNOWLEDGE), intid.into(), "INTID");
    Ok(())
}

fn t70_active_on_another_vcpu_is_seen() -> Outcome {
    start()?;
    for intid in intids() {
        for round in 0..5 {
            take(intid)?;
            check_eq!(state(intid), ACTIVE, "{intid} acknowledged, round {round}");
            write(reg::ISPENDR, intid);
            check_eq!(state(intid), BOTH, "{intid} pending again, round {round}");
            ask(END | u64::from(intid));
            check_eq!(state(intid), PENDING, "{intid} ended, round {round}");
            check_eq!(ask(ACKNOWLEDGE), intid.into(), "INTID");
            check_eq!(state(intid), ACTIVE, "{intid} the second time, round {round}");
            ask(END | u64::from(intid));
            check_eq!(state(intid), IDLE, "{intid} at the end, round {round}");
        }
    }
    stop()
}

fn t70_deactivated_by_another_vcpu() -> Outcome {
    start()?;
    cpu_interface::set_eoi_mode(EOI_MODE);
    ask(EOI_MODE_1);
    for round in 0..5 {
        for intid in intids() {
            take(intid)?;
            ask(END | u64::from(intid));
            check_eq!(state(intid), ACTIVE, "{intid} after the priority drop, round {round}");
            // ICC_DIR_EL1 reaches a vCPU's own private interrupts alone.
            if round % 2 == 0 && intid >= 32 {
                irq::deactivate(intid);
            } else {
                write(reg::ICACTIVER, intid);
            }
            check_eq!(state(intid), IDLE, "{intid} deactivated, round {round}");
            check_eq!(ask(ACKNOWLEDGE), SPURIOUS.into(), "INTID");
        }
    }
    stop()
}

fn t70_active_on_another_vcpu_keeps_it_back_here() -> Outcome {
    start()?;
    for _ in 0..5 {
        take(SPI)?;
        gic::route(SPI, cpu::mpidr(0));
        gic::set_pending(SPI);
        check_eq!(state(SPI), BOTH, "active there and pending");
        check_eq!(irq::acknowledge(), SPURIOUS, "INTID here while active there");
        ask(END | u64::from(SPI));
        check_eq!(acknowledge_soon(), SPI, "INTID here once ended there");
        check_eq!(state(SPI), ACTIVE, "active here");
        gic::route(SPI, cpu::mpidr(1));
        irq::end(SPI);
        check_eq!(state(SPI), IDLE, "at the end");
    }
    stop()
}

fn t75_pending_on_another_vcpu_is_seen_and_cleared() -> Outcome {
    start()?;
    for intid in intids() {
        for round in 0..5 {
            write(reg::ISPENDR, intid);
            check!(comes_there(), "{intid} does not come in round {round}");
            check_eq!(state(intid), PENDING, "{intid}, round {round}");
            write(reg::ICPENDR, intid);
            check_eq!(state(intid), IDLE, "{intid} cleared, round {round}");
            check_eq!(ask(IS_WAITING), 0, "ISR_EL1.I, {intid} cleared, round {round}");
            check_eq!(ask(ACKNOWLEDGE), SPURIOUS.into(), "INTID, round {round}");
        }
    }
    stop()
}

/// Active by register while it waits for vCPU 1: kept back until it is made inactive.
fn t75_set_active_on_another_vcpu() -> Outcome {
    start()?;
    for intid in intids() {
        write(reg::ISPENDR, intid);
        write(reg::ISACTIVER, intid);
        check_eq!(state(intid), BOTH, "{intid}");
        check_eq!(ask(ACKNOWLEDGE), SPURIOUS.into(), "INTID while active");
        write(reg::ICACTIVER, intid);
        check!(comes_there(), "{intid} does not come once inactive");
        check_eq!(ask(ACKNOWLEDGE), intid.into(), "INTID once inactive");
        ask(END | u64::from(intid));
        check_eq!(state(intid), IDLE, "{intid} at the end");
    }
    stop()
}

/// Both look at once, again and again: neither waits for the other for good.
fn t75_two_vcpus_look_at_each_other() -> Outcome {
    static WRONG: AtomicU64 = AtomicU64::new(0);
    static DONE: AtomicU64 = AtomicU64::new(0);
    const ROUNDS: u32 = 20;
    const SPIS: [u32; 2] = [46, 47];
    /// Where what is made pending for vCPU `index` is: an SGI, or with GICv2 an SPI.
    fn mark_of(index: usize) -> (Device, u64, u32) {
        if gic::is_v2() { bank(SPIS[index]) } else { (gic::gicr(index), reg::SGI_FRAME, 1 << 4) }
    }
    fn look(other: usize) {
        gic::enable(4);
        let (device, base, bit) = mark_of(other);
        for _ in 0..ROUNDS {
            device.write32(base + reg::ISPENDR, bit);
            // The other one masks interrupts, so that it stays.
            if device.read32(base + reg::ISPENDR) & bit == 0 {
                WRONG.fetch_add(1, Release);
            }
            let _ = gic::gicd().read32(reg::ISACTIVER + 4);
        }
        DONE.fetch_add(1, Release);
    }
    fn partner() {
        // What its start has cleared in its own redistributor is cleared by now.
        DONE.store(0, Release);
        look(0);
    }
    others_are_shown()?;
    for (index, intid) in SPIS.into_iter().enumerate() {
        prepare(intid, PRIORITY);
        gic::route(intid, cpu::mpidr(index));
    }
    WRONG.store(0, Release);
    DONE.store(u64::MAX, Release);
    check_eq!(cpu::start(1, partner), Ok(()), "CPU_ON");
    let ready = timer::wait_for(timer::PATIENCE_MS, || DONE.load(Acquire) != u64::MAX);
    check!(ready, "vCPU 1 does not start");
    look(1);
    // Each round waits for the other core: on a busy host that takes its time.
    let done = timer::wait_for(10 * timer::PATIENCE_MS, || DONE.load(Acquire) == 2);
    check!(done, "vCPU 1 does not come to an end");
    check!(cpu::wait_off(1), "vCPU 1 does not stop");
    check_eq!(WRONG.load(Acquire), 0, "reads that missed what was pending");
    let mark = if gic::is_v2() { SPIS[0] } else { 4 };
    check_eq!(acknowledge_soon(), mark, "INTID at the end");
    irq::end(mark);
    Ok(())
}

fn t78_disabled_by_another_vcpu() -> Outcome {
    start()?;
    for intid in intids() {
        for round in 0..5 {
            write(reg::ISPENDR, intid);
            check!(comes_there(), "{intid} does not come in round {round}");
            write(reg::ICENABLER, intid);
            wait_for_writes()?;
            check_eq!(ask(ACKNOWLEDGE), SPURIOUS.into(), "INTID, {intid} off, round {round}");
            check_eq!(state(intid), PENDING, "{intid} off, round {round}");
            write(reg::ISENABLER, intid);
            check!(comes_there(), "{intid} does not come once on, round {round}");
            check_eq!(ask(ACKNOWLEDGE), intid.into(), "INTID once on, round {round}");
            ask(END | u64::from(intid));
        }
    }
    stop()
}

fn t78_group_turned_off_by_another_vcpu() -> Outcome {
    start()?;
    for round in 0..5 {
        for intid in intids() {
            write(reg::ISPENDR, intid);
        }
        check!(comes_there(), "nothing comes in round {round}");
        gic::disable_groups();
        wait_for_writes()?;
        check_eq!(ask(ACKNOWLEDGE), SPURIOUS.into(), "INTID, group off, round {round}");
        gic::enable_groups();
        for _ in intids() {
            check!(comes_there(), "one does not come once the group is on, round {round}");
            let intid = ask(ACKNOWLEDGE);
            check!(intid != u64::from(SPURIOUS), "INTID once the group is on, round {round}");
            ask(END | intid);
        }
    }
    stop()
}
