// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The registers behind delivery: active state, routing, configuration, and INTIDs that are none
//! (traps T75, T77), and what a CPU interface keeps over CPU_OFF: nothing (T80).

use crate::gic::{acknowledge_soon, prepare};
use crate::{gicv3, under_hypervisor};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use guest_rt::cpu_interface::{self, EOI_MODE, active_priorities, running_priority};
use guest_rt::gic::{self, PRIORITY, reg};
use guest_rt::irq::{self, SPURIOUS};
use guest_rt::test::{Outcome, Test};
use guest_rt::{check, check_eq, cpu, skip, tests, timer};

pub const TESTS: &[Test] = tests![
    t75_set_and_clear_registers_only_act_on_ones,
    t75_active_by_register_keeps_back,
    t75_configuration_is_kept,
    t75_every_spi_reaches_the_vcpu_it_is_routed_to: 2,
    t75_route_to_nobody_keeps_pending,
    t75_route_to_any_is_taken_once: 2,
    t77_nothing_pending_reads_1023,
    t77_end_of_what_is_no_interrupt,
    t77_private_words_of_gicd_are_zero,
    t80_cpu_off_ends_nested_priorities: 2,
];

const SPI: u32 = 40;

fn t75_set_and_clear_registers_only_act_on_ones() -> Outcome {
    let gicd = gic::gicd();
    let word = u64::from(SPI / 32 * 4);
    for (set, clear) in [
        (reg::ISENABLER, reg::ICENABLER),
        (reg::ISACTIVER, reg::ICACTIVER),
        (reg::ISPENDR, reg::ICPENDR),
    ] {
        gicd.write32(set + word, 0x0010_0101);
        gicd.write32(set + word, 0);
        check_eq!(gicd.read32(set + word), 0x0010_0101, "register {set:#x}");
        check_eq!(gicd.read32(clear + word), 0x0010_0101, "register {clear:#x}");
        gicd.write32(clear + word, 0x0000_0001);
        check_eq!(gicd.read32(set + word), 0x0010_0100, "register {set:#x} after a clear");
        gicd.write32(clear + word, u32::MAX);
        check_eq!(gicd.read32(set + word), 0, "register {set:#x} after all cleared");
    }
    Ok(())
}

fn t75_active_by_register_keeps_back() -> Outcome {
    prepare(SPI, PRIORITY);
    gic::set_active(SPI);
    check!(gic::is_active(SPI), "it is not active");
    gic::set_pending(SPI);
    check_eq!(irq::acknowledge(), SPURIOUS, "INTID while active");
    gic::clear_active(SPI);
    check!(!gic::is_active(SPI), "it is still active");
    check_eq!(acknowledge_soon(), SPI, "INTID once inactive");
    // Deactivated by register in place of an end: the end then only drops the priority.
    gic::clear_active(SPI);
    check!(!gic::is_active(SPI), "it is still active after it was acknowledged");
    irq::end(SPI);
    check_eq!(irq::acknowledge(), SPURIOUS, "INTID at the end");
    Ok(())
}

fn t75_configuration_is_kept() -> Outcome {
    let gicd = gic::gicd();
    let offset = reg::ICFGR + u64::from(SPI / 16 * 4);
    gicd.write32(offset, 0xaaaa_aaaa);
    check_eq!(gicd.read32(offset), 0xaaaa_aaaa, "GICD_ICFGR, all edges");
    gicd.write32(offset, 0);
    check_eq!(gicd.read32(offset), 0, "GICD_ICFGR, all levels");
    let (own, frame) = gic::private();
    let sgis = frame + reg::ICFGR;
    own.write32(sgis, 0);
    check_eq!(own.read32(sgis), 0xaaaa_aaaa, "ICFGR0: SGIs are edges");
    for priority in [0, 0x20, 0xa0, 0xe0] {
        gic::set_priority(SPI, priority);
        let offset = reg::IPRIORITYR + u64::from(SPI);
        check_eq!(gicd.read8(offset), priority, "GICD_IPRIORITYR");
        own.write8(frame + reg::IPRIORITYR + 5, priority);
        check_eq!(own.read8(frame + reg::IPRIORITYR + 5), priority, "IPRIORITYR of an SGI");
    }
    Ok(())
}

fn start_servers() -> Outcome {
    for index in 1..cpu::count() {
        check!(cpu::start_server(index, cpu::serve), "vCPU {index} does not start");
    }
    Ok(())
}

fn stop_servers() -> Outcome {
    check!(cpu::stop_servers(), "a vCPU does not stop");
    Ok(())
}

fn t75_every_spi_reaches_the_vcpu_it_is_routed_to() -> Outcome {
    start_servers()?;
    let count = u32::try_from(cpu::count()).unwrap_or(1);
    for intid in (32..gic::intids()).step_by(5) {
        let target = usize::try_from(intid % count).unwrap_or(0);
        prepare(intid, PRIORITY);
        gic::route(intid, cpu::mpidr(target));
        gic::set_pending(intid);
        irq::unmask();
        let came = timer::wait_for(timer::PATIENCE_MS, || irq::count(target, intid) != 0);
        irq::mask();
        check!(came, "{intid} does not come to vCPU {target}");
    }
    for intid in (32..gic::intids()).step_by(5) {
        for index in 0..cpu::count() {
            let wanted = u32::from(usize::try_from(intid % count) == Ok(index));
            check_eq!(irq::count(index, intid), wanted, "{intid} on vCPU {index}");
        }
    }
    stop_servers()
}

/// Returns whether pending bits are kept for each CPU interface that an SPI is for, as QEMU has it
/// in its GICv2.
fn pends_by_target() -> bool {
    gic::is_v2() && !under_hypervisor()
}

fn t75_route_to_nobody_keeps_pending() -> Outcome {
    if pends_by_target() {
        skip!("QEMU's GICv2 keeps nothing for nobody");
    }
    for nobody in [0xfe, 0xff00, 0x00ff_0000, 0xff_0000_0000] {
        prepare(SPI, PRIORITY);
        gic::route(SPI, nobody);
        gic::set_pending(SPI);
        check_eq!(irq::acknowledge(), SPURIOUS, "INTID routed to {nobody:#x}");
        check!(gic::is_pending(SPI), "it is not pending");
        gic::route(SPI, cpu::mpidr(0));
        check_eq!(acknowledge_soon(), SPI, "INTID routed here");
        irq::end(SPI);
    }
    Ok(())
}

fn t75_route_to_any_is_taken_once() -> Outcome {
    if pends_by_target() {
        skip!("QEMU's GICv2 gives it to all");
    }
    start_servers()?;
    for round in 1..=20 {
        prepare(SPI, PRIORITY);
        gic::route(SPI, gic::ROUTE_TO_ANY);
        gic::set_pending(SPI);
        irq::unmask();
        let total = || (0..cpu::count()).map(|index| irq::count(index, SPI)).sum::<u32>();
        let came = timer::wait_for(timer::PATIENCE_MS, || total() >= round);
        timer::delay(50);
        irq::mask();
        check!(came, "it does not come");
        check_eq!(total(), round, "how often it came");
    }
    stop_servers()
}

fn t77_nothing_pending_reads_1023() -> Outcome {
    for _ in 0..10 {
        check_eq!(cpu_interface::acknowledge(), SPURIOUS, "IAR");
    }
    Ok(())
}

/// INTIDs that are special, beyond the distributor, beyond 16 bits, or just below LPIs.
const NO_INTIDS: [u32; 9] = [1020, 1021, 1022, 1023, 1024, 1120, 5120, 8191, 0xff_ffff];

fn t77_end_of_what_is_no_interrupt() -> Outcome {
    gic::enable(2);
    for mode in [0, EOI_MODE] {
        cpu_interface::set_eoi_mode(mode);
        for intid in NO_INTIDS {
            irq::end(intid);
            irq::deactivate(intid);
        }
        // Everything still works.
        gic::send_sgi(2, 0);
        check_eq!(acknowledge_soon(), 2, "INTID in mode {mode}");
        for intid in NO_INTIDS.into_iter().take(4) {
            irq::end(intid);
        }
        let (own, frame) = gic::private();
        let active = own.read32(frame + reg::ISACTIVER);
        check_eq!(active, 4, "ISACTIVER0 after the end of special INTIDs");
        irq::end(2);
        if mode == EOI_MODE {
            irq::deactivate(2);
        }
        check_eq!(own.read32(frame + reg::ISACTIVER), 0, "ISACTIVER0");
    }
    Ok(())
}

/// An SGI or PPI is in the redistributor; the distributor's words for it are RAZ/WI.
fn t77_private_words_of_gicd_are_zero() -> Outcome {
    gicv3()?;
    let gicd = gic::gicd();
    for register in [reg::ISENABLER, reg::ISPENDR, reg::ISACTIVER, reg::IGROUPR] {
        gicd.write32(register, u32::MAX);
        check_eq!(gicd.read32(register), 0, "GICD at {register:#x}");
    }
    for n in 0..8 {
        gicd.write32(reg::IPRIORITYR + 4 * n, u32::MAX);
        check_eq!(gicd.read32(reg::IPRIORITYR + 4 * n), 0, "GICD_IPRIORITYR{n}");
    }
    check_eq!(irq::acknowledge(), SPURIOUS, "INTID");
    Ok(())
}

/// What vCPU 1 has found in its CPU interface: priorities deep in handlers, then at its next start.
static DEEP: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
static ANEW: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];

/// Goes off in the middle of nested handlers, with a priority mask, and comes back.
fn t80_cpu_off_ends_nested_priorities() -> Outcome {
    const NESTED: [(u32, u8); 2] = [(1, 0x80), (2, 0x40)];
    const LOW: u32 = 3;
    fn go_off_within() {
        for (intid, priority) in NESTED {
            gic::set_priority(intid, priority);
            gic::enable(intid);
            gic::send_sgi(intid, 1);
            let _ = acknowledge_soon();
        }
        cpu_interface::set_priority_mask(0x30);
        DEEP[0].store(running_priority(), Relaxed);
        DEEP[1].store(active_priorities(), Relaxed);
    }
    fn come_back() {
        ANEW[0].store(running_priority(), Relaxed);
        ANEW[1].store(active_priorities(), Relaxed);
        // One that any of the nested priorities would keep back.
        gic::set_priority(LOW, 0xa0);
        gic::enable(LOW);
        gic::send_sgi(LOW, 1);
        let intid = acknowledge_soon();
        ANEW[2].store(intid.into(), Relaxed);
        irq::end(intid);
    }
    if gic::is_v2() && !under_hypervisor() {
        skip!("QEMU's CPU_OFF leaves a GICv2's CPU interface as it is");
    }
    for round in 0..20 {
        check!(cpu::run_on(1, go_off_within), "vCPU 1 does not go off in round {round}");
        check_eq!(DEEP[0].load(Relaxed), 0x40, "running priority in round {round}");
        check!(DEEP[1].load(Relaxed) != 0, "no active priority in round {round}");
        check!(cpu::run_on(1, come_back), "vCPU 1 does not go off again in round {round}");
        let found = ANEW.each_ref().map(|word| word.load(Relaxed));
        check_eq!(found, [0xff, 0, LOW.into()], "running, active, INTID in round {round}");
        // The redistributor is nobody's CPU interface: there they are active still.
        check!(cpu::run_on(1, || NESTED.iter().for_each(|(n, _)| gic::clear_active(*n))), "off");
    }
    Ok(())
}
