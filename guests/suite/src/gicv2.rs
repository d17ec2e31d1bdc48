// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a GICv2 has of its own: targets by the number of a CPU interface, SGIs that have a sender,
//! GICC with a page for DIR alone, and no system registers (IHI 0048 B 4.3, 4.4; traps T75, T76,
//! T79).

use crate::gic::{acknowledge_soon, prepare};
use crate::insn::Encoding;
use crate::sgi::{check_counts, start_all, stop_all};
use crate::{gicv2, sysreg, under_hypervisor};
use guest_rt::cpu_interface::{self, EOI_MODE};
use guest_rt::gic::{self, PRIORITY, reg};
use guest_rt::irq::{self, SPURIOUS};
use guest_rt::sysreg::ID_AA64PFR0_EL1;
use guest_rt::test::{Outcome, Test};
use guest_rt::{check, check_eq, cpu, tests};

pub const TESTS: &[Test] = tests![
    t75_targets_of_spis_are_the_cpus_that_there_are: 2,
    t75_targets_of_private_interrupts_are_the_reader: 2,
    t76_every_filter_of_sgir: 2,
    t76_sgi_of_each_sender_comes_once: 2,
    t76_pending_sgis_are_set_and_cleared_by_sender: 2,
    t79_dir_stands_in_the_second_page,
    t79_dir_of_an_sgi_names_its_sender,
    t79_there_are_no_system_registers,
];

const SPI: u32 = 40;
/// GICD_SGIR.TargetListFilter: the list, all but the sender, the sender, reserved: QEMU takes the
/// last one for everybody.
const FILTERS: [u32; 4] = [0, 1 << 24, 2 << 24, 3 << 24];

/// The bits of all vCPUs.
fn everybody() -> u8 {
    (0..cpu::count()).fold(0, |set, index| set | gic::target(index))
}

/// The number of the CPU interface of vCPU `index`.
fn number(index: usize) -> u32 {
    gic::target(index).trailing_zeros()
}

fn t75_targets_of_spis_are_the_cpus_that_there_are() -> Outcome {
    gicv2()?;
    // Each vCPU learns its number when it starts.
    start_all()?;
    let gicd = gic::gicd();
    check_eq!(everybody().count_ones() as usize, cpu::count(), "numbers of CPU interfaces");
    let cpus = gicd.read32(reg::TYPER) >> 5 & 7;
    check_eq!(cpus as usize + 1, cpu::count(), "GICD_TYPER.CPUNumber");
    let offset = reg::ITARGETSR + u64::from(SPI);
    gicd.write32(offset, 0);
    for set in 0..=u8::MAX {
        if set & !everybody() != 0 && !under_hypervisor() {
            // QEMU keeps bits of CPU interfaces that it does not have.
            continue;
        }
        gicd.write8(offset + 1, set);
        check_eq!(gicd.read8(offset + 1), set & everybody(), "the byte of {set:#x}");
        let word = u32::from(set & everybody()) << 8;
        check_eq!(gicd.read32(offset), word, "the word around {set:#x}");
    }
    stop_all()
}

fn t75_targets_of_private_interrupts_are_the_reader() -> Outcome {
    fn look() {
        let gicd = gic::gicd();
        let own = gicd.read8(reg::ITARGETSR);
        gicd.write32(reg::ITARGETSR, 0);
        // All but INTIDs 19 to 24, which QEMU does not have.
        let same = (0..16).chain(25..32).all(|intid| gicd.read8(reg::ITARGETSR + intid) == own);
        assert!(same && own.count_ones() == 1, "targets of private interrupts");
    }
    gicv2()?;
    look();
    for index in 1..cpu::count() {
        check!(cpu::run_on(index, look), "vCPU {index} does not start and stop");
        check!(gic::target(index) & gic::target(0) == 0, "two are {:#x}", gic::target(index));
    }
    Ok(())
}

fn t76_every_filter_of_sgir() -> Outcome {
    gicv2()?;
    start_all()?;
    let mut wanted = [0; cpu::CPUS_MAX];
    for list in 0..=u8::MAX {
        for filter in FILTERS.into_iter().take(if under_hypervisor() { 4 } else { 3 }) {
            for (index, wanted) in wanted.iter_mut().enumerate().take(cpu::count()) {
                let is_meant = match filter {
                    0 => list & gic::target(index) != 0,
                    0x100_0000 => index != 0,
                    0x200_0000 => index == 0,
                    _ => false,
                };
                *wanted += u32::from(is_meant);
            }
            gic::gicd().write32(reg::SGIR, filter | u32::from(list) << 16 | 3);
            check_counts(3, &wanted, "target list")?;
        }
    }
    stop_all()
}

/// Takes SGI 5, as often as it is pending, and returns the set of its senders.
fn take_all_senders() -> Result<u32, guest_rt::test::Verdict> {
    let mut senders = 0;
    for _ in 0..cpu::count() {
        if acknowledge_soon() != 5 {
            break;
        }
        let sender = 1 << cpu_interface::sender(5);
        check!(senders & sender == 0, "it came twice from {:#x}", sender);
        senders |= sender;
        irq::end(5);
    }
    check_eq!(irq::acknowledge(), SPURIOUS, "INTID behind the last sender");
    Ok(senders)
}

fn t76_sgi_of_each_sender_comes_once() -> Outcome {
    fn send() {
        gic::send_sgi(5, 0);
        gic::send_sgi(5, 0);
    }
    gicv2()?;
    gic::enable(5);
    for round in 0..20 {
        for index in 1..cpu::count() {
            check!(cpu::run_on(index, send), "vCPU {index} does not start and stop");
        }
        check!(gic::is_pending(5), "it is not pending in round {round}");
        let others = u32::from(everybody() & !gic::target(0));
        check_eq!(take_all_senders()?, others, "senders in round {round}");
        check!(!gic::is_pending(5) && !gic::is_active(5), "it is not over in round {round}");
    }
    Ok(())
}

fn t76_pending_sgis_are_set_and_cleared_by_sender() -> Outcome {
    gicv2()?;
    let gicd = gic::gicd();
    gic::enable(5);
    gic::set_pending(5);
    check!(!gic::is_pending(5), "GICD_ISPENDR0 makes an SGI pending");
    let (set, clear) = (reg::SPENDSGIR + 5, reg::CPENDSGIR + 5);
    let [me, other] = [0, 1].map(gic::target);
    gicd.write8(set, me | other);
    check!(gic::is_pending(5), "it is not pending");
    check_eq!(gicd.read8(set), me | other, "GICD_SPENDSGIR");
    check_eq!(gicd.read8(clear), me | other, "GICD_CPENDSGIR");
    gic::clear_pending(5);
    check!(gic::is_pending(5), "GICD_ICPENDR0 ends an SGI");
    gicd.write8(clear, me);
    check_eq!(gicd.read8(set), other, "GICD_SPENDSGIR with one sender cleared");
    check_eq!(acknowledge_soon(), 5, "INTID");
    check_eq!(cpu_interface::sender(5), number(1), "sender");
    check_eq!(gicd.read8(set), 0, "GICD_SPENDSGIR while active");
    irq::end(5);
    gicd.write32(set & !3, u32::from(me) << 8);
    gicd.write32(clear & !3, u32::MAX);
    check!(!gic::is_pending(5), "it is still pending");
    check_eq!(irq::acknowledge(), SPURIOUS, "INTID with all senders cleared");
    Ok(())
}

fn t79_dir_stands_in_the_second_page() -> Outcome {
    gicv2()?;
    let gicc = cpu_interface::gicc().unwrap_or_default();
    check!(gicc.size() >= 0x2000, "GICC has only {:#x} bytes", gicc.size());
    cpu_interface::set_eoi_mode(EOI_MODE);
    for round in 0..20 {
        prepare(SPI, PRIORITY);
        gic::set_pending(SPI);
        check_eq!(acknowledge_soon(), SPI, "INTID in round {round}");
        gicc.write32(cpu_interface::reg::EOIR, SPI);
        check_eq!(cpu_interface::running_priority(), 0xff, "the running priority");
        check!(gic::is_active(SPI), "EOIR has deactivated in round {round}");
        gicc.write32(cpu_interface::reg::DIR, SPI);
        check!(!gic::is_active(SPI), "DIR has not deactivated in round {round}");
    }
    Ok(())
}

fn t79_dir_of_an_sgi_names_its_sender() -> Outcome {
    gicv2()?;
    cpu_interface::set_eoi_mode(EOI_MODE);
    gic::enable(5);
    for round in 0..20 {
        gic::send_sgi(5, 0);
        check_eq!(acknowledge_soon(), 5, "INTID in round {round}");
        check_eq!(cpu_interface::sender(5), number(0), "sender in round {round}");
        irq::end(5);
        check!(gic::is_active(5), "EOIR has deactivated in round {round}");
        irq::deactivate(5);
        check!(!gic::is_active(5), "DIR has not deactivated in round {round}");
    }
    Ok(())
}

/// ICC_PMR_EL1, ICC_IAR1_EL1, ICC_SGI1R_EL1, ICC_CTLR_EL1, ICC_SRE_EL1 and ICC_IGRPEN1_EL1.
const GIC_REGISTERS: [Encoding; 6] = [
    Encoding(3, 0, 4, 6, 0),
    Encoding(3, 0, 12, 12, 0),
    Encoding(3, 0, 12, 11, 5),
    Encoding(3, 0, 12, 12, 4),
    Encoding(3, 0, 12, 12, 5),
    Encoding(3, 0, 12, 12, 7),
];

fn t79_there_are_no_system_registers() -> Outcome {
    gicv2()?;
    check_eq!(ID_AA64PFR0_EL1::get() >> 24 & 0xf, 0, "ID_AA64PFR0_EL1.GIC");
    sysreg::check_undef(&GIC_REGISTERS)
}
