// SPDX-License-Identifier: Apache-2.0 OR MIT
//! T76: SGIs between the vCPUs of one guest, by ICC_SGI1R_EL1 (IHI 0069 12.2.20).

use crate::gicv3;
use core::sync::atomic::{AtomicBool, Ordering::Acquire, Ordering::Release};
use guest_rt::gic::{self, sgi_value};
use guest_rt::irq;
use guest_rt::sysreg::{ICC_CTLR_EL1, ICC_SGI1R_EL1, dsb, isb};
use guest_rt::test::{Outcome, Test};
use guest_rt::{check, check_eq, cpu, skip, tests, timer};

pub const TESTS: &[Test] = tests![
    t76_every_intid_to_self,
    t76_every_target_list: 2,
    t76_lists_beyond_the_vcpus: 2,
    t76_all_but_self: 2,
    t76_to_other_affinities_reaches_nobody: 2,
    t76_to_a_vcpu_that_is_off: 2,
    t76_ping_pong: 2,
    t76_disabled_on_the_target_stays_pending: 2,
];

/// Starts all others and makes this vCPU take SGIs too.
pub fn start_all() -> Outcome {
    for intid in 0..16 {
        gic::enable(intid);
    }
    for index in 1..cpu::count() {
        check!(cpu::start_server(index, cpu::serve), "vCPU {index} does not start");
    }
    irq::unmask();
    Ok(())
}

pub fn stop_all() -> Outcome {
    irq::mask();
    check!(cpu::stop_servers(), "a vCPU does not stop");
    Ok(())
}

fn send(value: u64) {
    dsb();
    ICC_SGI1R_EL1::set(value);
    isb();
}

/// The bit of a vCPU in a target list; the vCPUs of these machines differ in Aff0 alone.
fn bit(index: usize) -> u16 {
    1 << (cpu::mpidr(index) & 0xf)
}

/// Waits until each vCPU has taken `intid` as often as `wanted` says, and no more.
pub fn check_counts(intid: u32, wanted: &[u32; cpu::CPUS_MAX], what: &str) -> Outcome {
    let all = || (0..cpu::count()).all(|index| irq::count(index, intid) >= wanted[index]);
    let came = timer::wait_for(timer::PATIENCE_MS, all);
    for (index, wanted) in wanted.iter().enumerate().take(cpu::count()) {
        let count = irq::count(index, intid);
        check!(came && count == *wanted, "{what}: vCPU {index} took {count} of {wanted}");
    }
    Ok(())
}

fn t76_every_intid_to_self() -> Outcome {
    irq::unmask();
    for intid in 0..16 {
        gic::enable(intid);
        for round in 1..=100 {
            gic::send_sgi(intid, 0);
            let came = timer::wait_for(timer::PATIENCE_MS, || irq::count(0, intid) == round);
            check!(came, "SGI {intid} in round {round}: {}", irq::count(0, intid));
        }
    }
    irq::mask();
    check_eq!(irq::total(0), 1600, "SGIs");
    Ok(())
}

fn t76_every_target_list() -> Outcome {
    gicv3()?;
    start_all()?;
    let vcpus = cpu::count();
    let mut wanted = [0; cpu::CPUS_MAX];
    for intid in [0, 7, 14] {
        wanted.fill(0);
        for subset in 0u32..1 << vcpus {
            let mut list = 0;
            for (index, wanted) in wanted.iter_mut().enumerate().take(vcpus) {
                if subset >> index & 1 == 1 {
                    list |= bit(index);
                    *wanted += 1;
                }
            }
            send(sgi_value(intid, cpu::mpidr(0), list));
            check_counts(intid, &wanted, "target list")?;
        }
    }
    stop_all()
}

/// Bits of the list that belong to no vCPU: every single one, and many mixtures.
fn t76_lists_beyond_the_vcpus() -> Outcome {
    gicv3()?;
    start_all()?;
    let mut wanted = [0; cpu::CPUS_MAX];
    let mut list = 1u16;
    for n in 0..300u32 {
        list = match n {
            0..16 => 1 << n,
            16 => u16::MAX,
            _ => list.wrapping_mul(25173).wrapping_add(13849),
        };
        for (index, wanted) in wanted.iter_mut().enumerate().take(cpu::count()) {
            *wanted += u32::from(list & bit(index) != 0);
        }
        send(sgi_value(3, cpu::mpidr(0), list));
        check_counts(3, &wanted, "target list")?;
    }
    stop_all()
}

fn t76_all_but_self() -> Outcome {
    gicv3()?;
    start_all()?;
    for round in 1..=20 {
        // Interrupt_Routing_Mode; the list and the affinities do not matter.
        send(sgi_value(4, 0xff_00ff_ff00, 0xffff) | 1 << 40);
        let mut wanted = [round; cpu::CPUS_MAX];
        wanted[0] = 0;
        check_counts(4, &wanted, "all but self")?;
    }
    stop_all()
}

fn t76_to_other_affinities_reaches_nobody() -> Outcome {
    gicv3()?;
    start_all()?;
    for affinity in [0x100, 0xff00, 0x1_0000, 0xff_0000, 1 << 32, 0xff << 32] {
        send(sgi_value(5, cpu::mpidr(0) ^ affinity, u16::MAX));
    }
    // The range selector: the targets have no Aff0 above 15. RES0 where ICC_CTLR_EL1.RSS is 0.
    let ranges = if ICC_CTLR_EL1::get() >> 18 & 1 == 1 { 16 } else { 1 };
    for range in 1..ranges {
        send(sgi_value(5, cpu::mpidr(0), u16::MAX) | range << 44);
    }
    timer::delay(500);
    check_counts(5, &[0; cpu::CPUS_MAX], "other affinities")?;
    stop_all()
}

/// It must not hurt anybody, and the vCPU must start as if nothing had been.
fn t76_to_a_vcpu_that_is_off() -> Outcome {
    for intid in 0..16 {
        gic::send_sgi(intid, 1);
    }
    if !gic::is_v2() {
        send(sgi_value(0, cpu::mpidr(0), u16::MAX) | 1 << 40);
    }
    check!(cpu::run_on(1, || ()), "vCPU 1 does not start and stop");
    check_eq!(irq::total(0), 0, "interrupts of vCPU 0");
    Ok(())
}

fn t76_ping_pong() -> Outcome {
    fn answer() {
        irq::count_one();
        gic::send_sgi(2, 0);
    }
    fn partner() {
        irq::handle_with(answer);
        cpu::serve();
    }
    const ROUNDS: u32 = 2000;
    gic::enable(2);
    check!(cpu::start_server(1, partner), "vCPU 1 does not start");
    irq::unmask();
    for round in 1..=ROUNDS {
        gic::send_sgi(1, 1);
        let came = timer::wait_for(timer::PATIENCE_MS, || irq::count(0, 2) == round);
        check!(came, "no answer in round {round}");
    }
    check_eq!(irq::count(1, 1), ROUNDS, "SGIs of vCPU 1");
    stop_all()
}

/// The target has the SGI disabled while it is sent, and takes it once it enables it.
fn t76_disabled_on_the_target_stays_pending() -> Outcome {
    static READY: AtomicBool = AtomicBool::new(false);
    static SENT: AtomicBool = AtomicBool::new(false);
    static EARLY: AtomicBool = AtomicBool::new(false);
    static LATE: AtomicBool = AtomicBool::new(false);
    fn target() {
        READY.store(true, Release);
        irq::unmask();
        let _ = timer::wait_for(timer::PATIENCE_MS, || SENT.load(Acquire));
        timer::delay(100);
        EARLY.store(irq::count(1, 6) != 0, Release);
        gic::enable(6);
        LATE.store(timer::wait_for(timer::PATIENCE_MS, || irq::count(1, 6) == 1), Release);
        irq::mask();
    }
    gic::disable(6);
    if gic::is_enabled(6) {
        skip!("an SGI cannot be disabled here");
    }
    READY.store(false, Release);
    SENT.store(false, Release);
    check_eq!(cpu::start(1, target), Ok(()), "CPU_ON");
    check!(timer::wait_for(timer::PATIENCE_MS, || READY.load(Acquire)), "no start");
    gic::send_sgi(6, 1);
    SENT.store(true, Release);
    check!(cpu::wait_off(1), "vCPU 1 does not stop");
    check!(!EARLY.load(Acquire), "it came while disabled");
    check!(LATE.load(Acquire), "it did not come once enabled");
    Ok(())
}
