// SPDX-License-Identifier: Apache-2.0 OR MIT
//! LPIs that a guest makes with the commands of its ITS (IHI 0069 5, traps T42, T77, T84, T85).

use crate::gic::{acknowledge_soon, prepare};
use crate::under_hypervisor;
use core::sync::atomic::{AtomicU32, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};
use guest_rt::cpu_interface::{self, EOI_MODE};
use guest_rt::device::Device;
use guest_rt::gic;
use guest_rt::irq::{self, SPURIOUS};
use guest_rt::its::{
    self, Command, ENABLED, Enable, LPI_COUNT, LPI_FIRST, QUEUE_PLACES, QUIESCENT, STALLED, clear,
    discard, int, inv, invall, mapc, mapd, mapi, mapti, movall, movi, reg, sync, unmapc, unmapd,
};
use guest_rt::test::{Outcome, Test};
use guest_rt::{check, check_eq, cpu, skip, tests, timer, tree};

pub const TESTS: &[Test] = tests![
    t84_registers_say_what_there_is,
    t84_int_delivers_once,
    t84_int_in_both_eoi_modes,
    t84_lpis_come_in_order_of_priority,
    t84_more_pending_than_list_registers,
    t84_configuration_counts_from_inv,
    t84_clear_discard_and_unmap,
    t84_every_vcpu_gets_its_own: 2,
    t84_movi_while_pending: 2,
    t84_movall_while_pending: 2,
    t84_moved_on_and_on_none_is_lost: 2,
    t84_queue_wraps,
    t84_full_queue_is_done,
    t84_malformed_commands_do_no_harm,
    t42_queue_outside_of_memory,
    t77_numbers_that_are_no_lpi,
    t85_devices_are_apart,
];

/// The device that most tests have.
const DEVICE: u32 = 5;
const PRIORITY: u8 = 0xa0;

/// Sets the ITS up, with [`DEVICE`] and its `count` events as the first LPIs of vCPU 0.
fn set_up(count: u32) -> Result<Device, guest_rt::test::Verdict> {
    let Some(its) = its::device() else { skip!("there is no ITS") };
    check!(its::init(its), "the ITS does not start");
    run(its, &[mapd(DEVICE, its::EVENT_BITS)])?;
    for n in 0..count {
        its::configure(LPI_FIRST + n, PRIORITY, Enable::On);
        run(its, &[mapti((DEVICE, n), LPI_FIRST + n, 0)])?;
    }
    run(its, &[sync(0)])?;
    Ok(its)
}

fn run(its: Device, commands: &[Command]) -> Outcome {
    check!(its::run(its, commands), "stopped at {:#x}", its.read64(reg::CREADR));
    Ok(())
}

/// Ends what is pending, which must be these in any order.
fn check_taken(wanted: &[u32], what: &str) -> Outcome {
    let mut seen = 0u64;
    for _ in wanted {
        let intid = acknowledge_soon();
        irq::end(intid);
        let Some(place) = wanted.iter().position(|&wanted| wanted == intid) else {
            check!(false, "{what}: {intid} and not one of {wanted:?}");
            continue;
        };
        check!(seen >> place & 1 == 0, "{what}: {intid} came twice");
        seen |= 1 << place;
    }
    check_eq!(irq::acknowledge(), SPURIOUS, "what comes behind: {what}");
    Ok(())
}

fn t84_registers_say_what_there_is() -> Outcome {
    let its = set_up(0)?;
    check_eq!(its.read32(reg::PIDR2) >> 4 & 0xf, 3, "GITS_PIDR2.ArchRev");
    let typer = its.read64(reg::TYPER);
    check_eq!(typer & 3, 1, "GITS_TYPER.Physical, not Virtual");
    check!(typer >> 8 & 0x1f >= 7 && typer >> 13 & 0x1f >= 7, "few events: {typer:#x}");
    check_eq!(its.read32(reg::CTLR) & ENABLED, ENABLED, "GITS_CTLR");
    its.write32(reg::CTLR, 0);
    check_eq!(its.read32(reg::CTLR) & (ENABLED | QUIESCENT), QUIESCENT, "GITS_CTLR");
    let types = (0..8).map(|n| its.read64(reg::BASER + 8 * n) >> 56 & 7);
    check_eq!(types.clone().filter(|kind| *kind == 1).count(), 1, "tables of devices");
    check_eq!(types.filter(|kind| *kind == 4).count(), 1, "tables of collections");
    let distributor = gic::gicd().read32(gic::reg::TYPER);
    check_eq!(distributor >> 17 & 1, 1, "GICD_TYPER.LPIS");
    check!(distributor >> 19 & 0x1f >= 13, "GICD_TYPER.IDbits: {distributor:#x}");
    for vcpu in 0..cpu::count() {
        check_eq!(gic::gicr(vcpu).read64(gic::reg::GICR_TYPER) & 1, 1, "GICR_TYPER.PLPIS");
    }
    Ok(())
}

fn t84_int_delivers_once() -> Outcome {
    let its = set_up(4)?;
    for n in 0..4 {
        run(its, &[int((DEVICE, n)), sync(0)])?;
        check!(irq::is_waiting(), "LPI {n} does not show in ISR_EL1");
        check_taken(&[LPI_FIRST + n], "one INT")?;
        run(its, &[int((DEVICE, n)), int((DEVICE, n)), sync(0)])?;
        check_taken(&[LPI_FIRST + n], "two INTs are one interrupt")?;
    }
    // Again while it is handled.
    run(its, &[int((DEVICE, 0))])?;
    check_eq!(acknowledge_soon(), LPI_FIRST, "INTID");
    run(its, &[int((DEVICE, 0))])?;
    check_eq!(irq::acknowledge(), SPURIOUS, "INTID at the same priority");
    irq::end(LPI_FIRST);
    check_taken(&[LPI_FIRST], "INT while it was handled")
}

/// An LPI has no active state, so nobody writes ICC_DIR_EL1 for it.
fn t84_int_in_both_eoi_modes() -> Outcome {
    let its = set_up(8)?;
    for mode in [EOI_MODE, 0] {
        cpu_interface::set_eoi_mode(mode);
        for round in 0..20 {
            let n = round % 8;
            run(its, &[int((DEVICE, n)), int((DEVICE, n ^ 1)), sync(0)])?;
            check_taken(&[LPI_FIRST + n, LPI_FIRST + (n ^ 1)], "EOImode")?;
        }
    }
    Ok(())
}

fn spread(n: u32) -> u8 {
    u8::try_from(n * 7 % 15 * 16).unwrap_or(PRIORITY)
}

/// Acknowledges `count` interrupts, which must come most urgent first.
fn check_order(count: u32, priority: impl Fn(u32) -> Option<u8>) -> Outcome {
    let mut last = 0;
    for n in 0..count {
        let intid = acknowledge_soon();
        check!(intid != SPURIOUS, "only {n} of {count} came");
        let Some(priority) = priority(intid) else {
            check!(false, "{intid} came from nowhere");
            continue;
        };
        check!(priority >= last, "{intid} of priority {priority:#x} came behind {last:#x}");
        last = priority;
        irq::end(intid);
    }
    check_eq!(irq::acknowledge(), SPURIOUS, "INTID at the end");
    Ok(())
}

/// LPIs, SPIs and SGIs, made pending while the distributor forwards nothing.
fn t84_lpis_come_in_order_of_priority() -> Outcome {
    const SPI: u32 = 32;
    let its = set_up(32)?;
    gic::disable_groups();
    for n in 0..32 {
        its::configure(LPI_FIRST + n, spread(n), Enable::On);
        run(its, &[inv((DEVICE, n)), int((DEVICE, n))])?;
        prepare(SPI + n, spread(n + 3));
        gic::set_pending(SPI + n);
    }
    for sgi in 0..8 {
        gic::set_priority(sgi, spread(sgi + 5));
        gic::enable(sgi);
        gic::send_sgi(sgi, 0);
    }
    gic::enable_groups();
    check_order(32 + 32 + 8, |intid| match intid {
        0..8 => Some(spread(intid + 5)),
        SPI..64 => Some(spread(intid - SPI + 3)),
        LPI_FIRST.. if intid < LPI_FIRST + 32 => Some(spread(intid - LPI_FIRST)),
        _ => None,
    })
}

fn t84_more_pending_than_list_registers() -> Outcome {
    let its = set_up(0)?;
    for n in 0..LPI_COUNT {
        its::configure(LPI_FIRST + n, spread(n), Enable::On);
        run(its, &[mapti((DEVICE, n), LPI_FIRST + n, 0)])?;
    }
    for round in 0..3 {
        for n in 0..LPI_COUNT {
            its::post(its, [int((DEVICE, (n + 100 * round) % LPI_COUNT))]);
        }
        run(its, &[sync(0)])?;
        check_order(LPI_COUNT, |intid| {
            (LPI_FIRST..LPI_FIRST + LPI_COUNT).contains(&intid).then(|| spread(intid - LPI_FIRST))
        })?;
    }
    Ok(())
}

fn t84_configuration_counts_from_inv() -> Outcome {
    let its = set_up(3)?;
    its::configure(LPI_FIRST, PRIORITY, Enable::Off);
    run(its, &[inv((DEVICE, 0)), int((DEVICE, 0)), sync(0)])?;
    check_taken(&[], "disabled by INV")?;
    its::configure(LPI_FIRST, PRIORITY, Enable::On);
    run(its, &[inv((DEVICE, 0)), sync(0)])?;
    check_taken(&[LPI_FIRST], "pending all the time, enabled by INV")?;
    run(its, &[int((DEVICE, 0)), int((DEVICE, 1)), sync(0)])?;
    check!(irq::is_waiting(), "nothing shows in ISR_EL1");
    its::configure(LPI_FIRST, PRIORITY, Enable::Off);
    its::configure(LPI_FIRST + 1, PRIORITY, Enable::Off);
    run(its, &[invall(0), sync(0)])?;
    check_taken(&[], "disabled by INVALL while it was about to come")?;
    for n in 0..3 {
        its::configure(LPI_FIRST + n, PRIORITY, Enable::On);
    }
    run(its, &[invall(0), int((DEVICE, 2)), sync(0)])?;
    check_taken(&[LPI_FIRST, LPI_FIRST + 1, LPI_FIRST + 2], "enabled by INVALL")?;
    // The second becomes the more urgent one.
    run(its, &[int((DEVICE, 0)), int((DEVICE, 1)), sync(0)])?;
    its::configure(LPI_FIRST + 1, 0x20, Enable::On);
    run(its, &[inv((DEVICE, 1)), sync(0)])?;
    check_order(2, |intid| Some(if intid == LPI_FIRST { PRIORITY } else { 0x20 }))
}

fn t84_clear_discard_and_unmap() -> Outcome {
    let its = set_up(4)?;
    run(its, &[int((DEVICE, 0)), int((DEVICE, 1)), int((DEVICE, 2)), sync(0)])?;
    run(its, &[clear((DEVICE, 0)), discard((DEVICE, 1)), sync(0)])?;
    check_taken(&[LPI_FIRST + 2], "CLEAR and DISCARD")?;
    run(its, &[int((DEVICE, 0)), int((DEVICE, 1)), sync(0)])?;
    check_taken(&[LPI_FIRST], "a discarded event is no interrupt")?;
    run(its, &[mapti((DEVICE, 1), LPI_FIRST + 1, 0), int((DEVICE, 1)), sync(0)])?;
    check_taken(&[LPI_FIRST + 1], "it is mapped again")?;
    run(its, &[unmapd(DEVICE), int((DEVICE, 2)), sync(0)])?;
    check_taken(&[], "the device is not mapped")?;
    run(its, &[mapd(DEVICE, 4), mapti((DEVICE, 3), LPI_FIRST + 3, 0), unmapc(0)])?;
    run(its, &[int((DEVICE, 3)), mapc(0, 0), sync(0)])?;
    check_taken(&[], "the collection is not mapped")?;
    run(its, &[int((DEVICE, 3)), sync(0)])?;
    check_taken(&[LPI_FIRST + 3], "everything is mapped again")
}

/// How often each vCPU has taken one of the first eight LPIs.
static TAKEN: [[AtomicU32; 8]; cpu::CPUS_MAX] =
    [const { [const { AtomicU32::new(0) }; 8] }; cpu::CPUS_MAX];

fn count_lpi() {
    let intid = irq::acknowledge();
    let taken = TAKEN.get(cpu::index()).zip(intid.checked_sub(LPI_FIRST));
    if let Some(count) = taken.and_then(|(counts, n)| counts.get(n as usize)) {
        count.store(count.load(Relaxed) + 1, Release);
    }
    if !(1020..LPI_FIRST).contains(&intid) {
        irq::end(intid);
    }
}

fn taken(vcpu: usize, n: usize) -> u32 {
    TAKEN[vcpu][n].load(Acquire)
}
/// How often the LPI has come, to whichever vCPU.
fn taken_by_all(n: usize) -> u32 {
    (0..cpu::count()).map(|vcpu| taken(vcpu, n)).sum()
}

fn serve() {
    irq::handle_with(count_lpi);
    cpu::serve();
}

/// Starts all others, which count LPIs.
fn start_all() -> Outcome {
    TAKEN.iter().flatten().for_each(|count| count.store(0, Relaxed));
    for index in 1..cpu::count() {
        check!(cpu::start_server(index, serve), "vCPU {index} does not start");
    }
    irq::handle_with(count_lpi);
    Ok(())
}

fn stop_all() -> Outcome {
    irq::mask();
    check!(cpu::stop_servers(), "a vCPU does not stop");
    check_eq!(irq::acknowledge(), SPURIOUS, "INTID at the end");
    Ok(())
}

fn check_comes(vcpu: usize, n: usize, count: u32, what: &str) -> Outcome {
    let came = timer::wait_for(timer::PATIENCE_MS, || taken(vcpu, n) >= count);
    check!(came && taken(vcpu, n) == count, "{what}: {} of {count} to {vcpu}", taken(vcpu, n));
    Ok(())
}

fn t84_every_vcpu_gets_its_own() -> Outcome {
    let its = set_up(0)?;
    start_all()?;
    irq::unmask();
    let vcpus = cpu::count();
    for (vcpu, event) in (0..vcpus).zip(0..) {
        its::configure(LPI_FIRST + event, PRIORITY, Enable::On);
        run(its, &[mapti((DEVICE, event), LPI_FIRST + event, vcpu)])?;
    }
    for round in 1..=100 {
        for (vcpu, event) in (0..vcpus).zip(0..) {
            run(its, &[int((DEVICE, event)), sync(vcpu)])?;
            check_comes(vcpu, vcpu, round, "INT")?;
        }
    }
    for vcpu in 0..vcpus {
        check_eq!(taken_by_all(vcpu), 100, "how often LPI {vcpu} came to anybody");
    }
    stop_all()
}

fn t84_movi_while_pending() -> Outcome {
    let its = set_up(1)?;
    start_all()?;
    let mut home = 0;
    for round in 1..=50 {
        // Pending here, where interrupts are masked, as long as it is not moved.
        if home != 0 {
            run(its, &[movi((DEVICE, 0), 0), sync(0)])?;
        }
        run(its, &[int((DEVICE, 0)), sync(0)])?;
        // The last one may have to leave another vCPU first.
        let shows = timer::wait_for(timer::PATIENCE_MS, irq::is_waiting);
        check!(shows, "nothing shows in ISR_EL1 in round {round}");
        home = 1 + round as usize % (cpu::count() - 1);
        run(its, &[movi((DEVICE, 0), home), sync(home)])?;
        check!(!irq::is_waiting(), "it still shows in ISR_EL1");
        let came = timer::wait_for(timer::PATIENCE_MS, || taken_by_all(0) == round);
        check!(came, "{} of {round} came", taken_by_all(0));
    }
    check_eq!(taken(0, 0), 0, "how often it came to where it was moved from");
    stop_all()
}

fn t84_movall_while_pending() -> Outcome {
    let its = set_up(8)?;
    start_all()?;
    for round in 1..=50 {
        for n in 0..8 {
            its::post(its, [int((DEVICE, n))]);
        }
        let home = 1 + round as usize % (cpu::count() - 1);
        run(its, &[sync(0), movall(0, home), sync(home)])?;
        check!(!irq::is_waiting(), "something still shows in ISR_EL1");
        for n in 0..8 {
            let came = timer::wait_for(timer::PATIENCE_MS, || taken_by_all(n) == round);
            check!(came, "LPI {n}: {} of {round} came", taken_by_all(n));
        }
    }
    for n in 0..8 {
        check_eq!(taken(0, n), 0, "how often {n} came to where it was moved from");
    }
    stop_all()
}

/// Every INT is one interrupt, to whomever it is moved at which time.
fn t84_moved_on_and_on_none_is_lost() -> Outcome {
    let its = set_up(4)?;
    start_all()?;
    irq::unmask();
    let vcpus = cpu::count();
    let mut random = 1u32;
    for round in 1..=1000 {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let pick = |shift: u32| (random >> shift) as usize % vcpus;
        let event = (DEVICE, random >> 28 & 3);
        let (there, back) = (pick(8), pick(16));
        its::post(its, [int(event), movi(event, there)]);
        run(its, &[movall(there, back), movi(event, back), sync(back)])?;
        let came = || (0..4).map(taken_by_all).sum::<u32>() >= round;
        check!(timer::wait_for(timer::PATIENCE_MS, came), "round {round}: one was lost");
    }
    timer::delay(2000);
    check_eq!((0..4).map(taken_by_all).sum::<u32>(), 1000, "interrupts of 1000 INTs");
    stop_all()
}

fn t84_queue_wraps() -> Outcome {
    let its = set_up(3)?;
    // Four commands each, three times around.
    for n in (0..3).cycle().take(3 * QUEUE_PLACES / 4) {
        let event = (DEVICE, n);
        run(its, &[int(event), clear(event), int(event), sync(0)])?;
        check_taken(&[LPI_FIRST + n], "around the queue")?;
    }
    Ok(())
}

/// The dearest commands, each as often as it fits.
fn t84_full_queue_is_done() -> Outcome {
    let its = set_up(1)?;
    for command in [invall(0), movall(0, 0), mapd(DEVICE + 1, 8), int((DEVICE, 0))] {
        its::post(its, core::iter::repeat_n(command, QUEUE_PLACES - 1));
        let done = timer::wait_for(timer::PATIENCE_MS, || its::is_done(its));
        check!(done, "stopped at {:#x}", its.read64(reg::CREADR));
    }
    check_taken(&[LPI_FIRST], "at the end")
}

fn t84_malformed_commands_do_no_harm() -> Outcome {
    if !under_hypervisor() {
        skip!("QEMU's ITS writes where a command says");
    }
    let its = set_up(1)?;
    let mut random = 1u64;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    for opcode in 0..256 {
        for _ in 0..8 {
            let first = next() << 8 | opcode;
            // MAPD and MAPTI of devices and events that there may be, and that there cannot be.
            let first = if next() & 1 == 0 { first & 0xf_0000_00ff } else { first };
            its::post(its, [[first, next(), next(), next()]]);
        }
        let done = timer::wait_for(timer::PATIENCE_MS, || its::is_done(its));
        check!(done, "stopped at opcode {opcode:#x}: {:#x}", its.read64(reg::CREADR));
    }
    while irq::acknowledge() != SPURIOUS {}
    // All of it works again.
    gic::init_cpu();
    t84_int_delivers_once()
}

fn t42_queue_outside_of_memory() -> Outcome {
    if !under_hypervisor() {
        skip!("QEMU's ITS reads what it wants");
    }
    let its = set_up(1)?;
    let hole = tree::machine().hole().next_multiple_of(0x1_0000);
    for queue in [hole, 0, gic::gicd().base(), 0xf_ffff_ffff_0000] {
        its::use_queue(its, queue);
        its.write64(reg::CWRITER, 64);
        check_eq!(its.read64(reg::CREADR), STALLED, "GITS_CREADR with a queue at {queue:#x}");
    }
    let its = set_up(1)?;
    run(its, &[int((DEVICE, 0)), sync(0)])?;
    check_taken(&[LPI_FIRST], "with a queue in memory again")
}

fn t77_numbers_that_are_no_lpi() -> Outcome {
    let its = set_up(1)?;
    for number in [0, 1, 15, 16, 31, 32, 1019, 1020, 1023, 1024, 5120, 8191, 1 << 24, u32::MAX] {
        let event = (DEVICE, 100);
        run(its, &[mapti(event, number, 0), int(event), clear(event), int(event), inv(event)])?;
        run(its, &[mapi((DEVICE, number & 0xff), 0), int((DEVICE, number & 0xff)), sync(0)])?;
        // Event 0 is an LPI.
        let wanted: &[u32] = if number & 0xff == 0 { &[LPI_FIRST] } else { &[] };
        check_taken(wanted, "no LPI")?;
        run(its, &[discard(event)])?;
    }
    Ok(())
}

fn t85_devices_are_apart() -> Outcome {
    let its = set_up(2)?;
    its::configure(LPI_FIRST + 9, PRIORITY, Enable::On);
    run(its, &[mapd(6, 2), mapti((6, 1), LPI_FIRST + 9, 0)])?;
    run(its, &[int((6, 0)), int((7, 0)), int((7, 1)), sync(0)])?;
    check_taken(&[], "events that are not mapped")?;
    run(its, &[unmapd(DEVICE), int((DEVICE, 1)), int((6, 1)), sync(0)])?;
    check_taken(&[LPI_FIRST + 9], "the other device's event")
}
