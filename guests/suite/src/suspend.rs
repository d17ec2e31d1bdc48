// SPDX-License-Identifier: Apache-2.0 OR MIT
//! T90: SYSTEM_SUSPEND (DEN 0022 section 5.20), refused, and woken by each kind of interrupt.

use crate::{boot, under_hypervisor};
use core::sync::atomic::{AtomicBool, Ordering::Acquire, Ordering::Release};
use guest_rt::boot::{EntryState, suspend_system};
use guest_rt::cpu_interface;
use guest_rt::psci::{self, Error, id};
use guest_rt::sysreg::relax;
use guest_rt::test::{Outcome, Test};
use guest_rt::timer::{self, ENABLE, Timer};
use guest_rt::{boot::secondary_entry_address, check, check_eq, cpu, gic, irq, skip, tests, tree};

pub const TESTS: &[Test] = tests![
    t90_system_suspend_is_for_the_last_vcpu: 2,
    t90_system_suspend_refuses_bad_entries,
    t90_system_suspend_enters_as_cpu_on_does,
    t90_system_suspend_wakes_by_a_timer,
    t90_system_suspend_wakes_by_what_waits,
    t90_system_suspend_wakes_although_masked,
];

fn t90_system_suspend_is_for_the_last_vcpu() -> Outcome {
    static HOLD: AtomicBool = AtomicBool::new(false);
    fn held() {
        while HOLD.load(Acquire) {
            relax();
        }
    }
    if !under_hypervisor() {
        skip!("QEMU has no SYSTEM_SUSPEND");
    }
    let features = psci::call(id::FEATURES, id::SYSTEM_SUSPEND.into(), 0, 0);
    check_eq!(psci::result(features), Ok(0), "PSCI_FEATURES of SYSTEM_SUSPEND");
    HOLD.store(true, Release);
    check_eq!(cpu::start(1, held), Ok(()), "CPU_ON");
    // Pending or on, the other one is not off.
    let answers = [(); 3].map(|()| suspend_system());
    HOLD.store(false, Release);
    check_eq!(answers, [Err(Error::Denied); 3], "SYSTEM_SUSPEND beside vCPU 1");
    check!(cpu::wait_off(1), "vCPU 1 does not go off");
    wake_at_once();
    check_eq!(suspend_system(), Ok(0), "SYSTEM_SUSPEND alone");
    Ok(())
}

fn t90_system_suspend_refuses_bad_entries() -> Outcome {
    if !under_hypervisor() {
        skip!("QEMU has no SYSTEM_SUSPEND");
    }
    let machine = tree::machine();
    let good = secondary_entry_address();
    for entry in [0, good + 1, good + 2, machine.hole(), machine.gicd.base(), u64::MAX] {
        let x0 = psci::call(id::SYSTEM_SUSPEND, entry, 0, 0);
        check_eq!(psci::result(x0), Err(Error::InvalidAddress), "SYSTEM_SUSPEND to {entry:#x}");
    }
    Ok(())
}

/// Makes an SGI pending, so that the machine does not sleep for long.
fn wake_at_once() {
    gic::enable(1);
    gic::send_sgi(1, cpu::index());
}

fn t90_system_suspend_enters_as_cpu_on_does() -> Outcome {
    if !under_hypervisor() {
        skip!("QEMU has no SYSTEM_SUSPEND");
    }
    for timer in Timer::ALL {
        timer.set_cval(u64::MAX);
        timer.set_ctl(ENABLE);
    }
    wake_at_once();
    let state = EntryState::of_probe();
    state.poison();
    check_eq!(suspend_system(), Ok(0), "SYSTEM_SUSPEND");
    check!(state.is_fresh(), "it goes on where it was");
    boot::check_general_registers(state)?;
    boot::check_system_registers(state)
}

fn t90_system_suspend_wakes_by_a_timer() -> Outcome {
    if !under_hypervisor() {
        skip!("QEMU has no SYSTEM_SUSPEND");
    }
    for timer in Timer::ALL {
        gic::enable(timer.intid());
        let deadline = timer.now() + timer::ticks(300);
        timer.set_cval(deadline);
        timer.set_ctl(ENABLE);
        check_eq!(suspend_system(), Ok(0), "SYSTEM_SUSPEND with {timer:?}");
        check!(timer.now() >= deadline, "{timer:?} has not fired yet");
        // The timer has lost its state like the rest of the PE, and its line is low.
        gic::init_cpu();
        gic::enable(timer.intid());
        check!(!irq::is_waiting(), "an interrupt of {timer:?}, which is off");
    }
    Ok(())
}

/// What waits for the guest when it suspends wakes it, and waits on.
fn t90_system_suspend_wakes_by_what_waits() -> Outcome {
    if !under_hypervisor() {
        skip!("QEMU has no SYSTEM_SUSPEND");
    }
    let spi = gic::intids() - 1;
    gic::enable(spi);
    gic::route(spi, cpu::mpidr(0));
    gic::set_pending(spi);
    check_eq!(suspend_system(), Ok(0), "SYSTEM_SUSPEND");
    check!(gic::is_pending(spi), "SPI {spi} is gone");
    // The distributor has kept what it was told; the CPU interface starts anew.
    check_eq!(cpu_interface::group(), 0, "the interface's group");
    check_eq!(cpu_interface::priority_mask(), 0, "the priority mask");
    gic::init_cpu();
    check!(timer::wait_for(timer::PATIENCE_MS, irq::is_waiting), "SPI {spi} does not come");
    check_eq!(irq::acknowledge(), spi, "INTID");
    irq::end(spi);
    Ok(())
}

/// Linux turns its CPU interface off before it suspends; priorities do not count either.
fn t90_system_suspend_wakes_although_masked() -> Outcome {
    if !under_hypervisor() {
        skip!("QEMU has no SYSTEM_SUSPEND");
    }
    let timer = Timer::Virtual;
    for mask in [|| cpu_interface::set_group(0), || cpu_interface::set_priority_mask(0)] {
        gic::init_cpu();
        gic::enable(timer.intid());
        timer.set_cval(timer.now() + timer::ticks(300));
        timer.set_ctl(ENABLE);
        mask();
        check_eq!(suspend_system(), Ok(0), "SYSTEM_SUSPEND");
    }
    Ok(())
}
