// SPDX-License-Identifier: Apache-2.0 OR MIT
//! T50 and T81: the two timers of a guest, their level-sensitive interrupts, and waiting for them
//! (DDI 0487 D12.2).

use crate::insn::Encoding;
use guest_rt::exception::ec;
use guest_rt::gic;
use guest_rt::irq::{self, SPURIOUS};
use guest_rt::sysreg::{CNTFRQ_EL0, CNTKCTL_EL1, ID_AA64MMFR0_EL1, isb, sev, wfe, wfi};
use guest_rt::test::{Outcome, Test};
use guest_rt::timer::{self, ENABLE, IMASK, ISTATUS, Timer};
use guest_rt::{check, check_eq, code, cpu, tests};

pub const TESTS: &[Test] = tests![
    t50_wfi_wakes_with_interrupts_masked,
    t50_wfe_wakes_by_event,
    t50_uniform_passage_of_time,
    t81_compare_value_edges,
    t81_timer_value_is_a_signed_distance,
    t81_does_not_fire_early,
    t81_mask_and_unmask_while_pending,
    t81_reprogram_while_pending,
    t81_off_while_pending,
    t81_fires_again_until_its_condition_ends,
    t81_many_deadlines,
    t81_both_timers_at_once,
    t81_timers_of_all_vcpus: 2,
    t57_frequency_is_not_zero,
    t57_physical_time_at_el0_as_el1_allows,
    t30_time_into_the_zero_register,
];

/// Long enough for anything that must happen, in microseconds.
const SOON_US: u64 = 2_000_000;

/// Waits until an interrupt waits for this vCPU.
pub fn comes() -> bool {
    timer::wait_for(SOON_US / 1000, irq::is_waiting)
}

/// Returns whether an interrupt comes within a time in which it must not.
pub fn comes_anyway() -> bool {
    timer::delay(200);
    irq::is_waiting()
}

/// Sets a timer off: no interrupt, nothing pending.
pub fn quiet(timer: Timer) {
    timer.set_ctl(0);
    gic::clear_pending(timer.intid());
    gic::enable(timer.intid());
}

/// Takes the timer's interrupt, which has to be the only one, and leaves it masked in the timer.
pub fn take(timer: Timer) -> Outcome {
    check_eq!(irq::acknowledge(), timer.intid(), "INTID of {timer:?}");
    timer.set_ctl(ENABLE | IMASK);
    irq::end(timer.intid());
    check_eq!(irq::acknowledge(), SPURIOUS, "INTID after that of {timer:?}");
    Ok(())
}

fn t57_frequency_is_not_zero() -> Outcome {
    check!(CNTFRQ_EL0::get() >= 1_000_000, "CNTFRQ_EL0 is {}", CNTFRQ_EL0::get());
    let (before, physical) = (Timer::Virtual.now(), Timer::Physical.now());
    timer::delay(1000);
    check!(Timer::Virtual.now() - before >= timer::ticks(1000), "CNTVCT_EL0 does not run");
    check!(Timer::Physical.now() - physical >= timer::ticks(1000), "CNTPCT_EL0 does not run");
    Ok(())
}

const CNTPCT: Encoding = Encoding(3, 3, 14, 0, 1);
const CNTPCTSS: Encoding = Encoding(3, 3, 14, 0, 5);
const CNTP_TVAL: Encoding = Encoding(3, 3, 14, 2, 0);
const CNTP_CTL: Encoding = Encoding(3, 3, 14, 2, 1);
const CNTP_CVAL: Encoding = Encoding(3, 3, 14, 2, 2);

/// Returns whether there is CNTPCTSS_EL0 (FEAT_ECV).
fn has_ecv() -> bool {
    ID_AA64MMFR0_EL1::get() >> 60 != 0
}

/// CNTKCTL_EL1 says what of it EL0 may read, and goes before what a hypervisor traps.
fn t57_physical_time_at_el0_as_el1_allows() -> Outcome {
    const EL0PCTEN: u64 = 1 << 0;
    const EL0PTEN: u64 = 1 << 9;
    let timer = Timer::Physical;
    timer.set_ctl(0);
    let kept = CNTKCTL_EL1::get();
    let read = |encoding: Encoding, control: u64| {
        CNTKCTL_EL1::set(control);
        isb();
        let (exception, [x0, ..]) = code::run_at_el0(&[encoding.mrs()], 0, 0);
        CNTKCTL_EL1::set(kept);
        isb();
        (exception.map(|e| e.esr >> 26 & 0x3f), x0)
    };
    for encoding in [CNTPCT, CNTPCTSS].into_iter().take(if has_ecv() { 2 } else { 1 }) {
        let before = timer.now();
        let (class, value) = read(encoding, EL0PCTEN);
        check_eq!(class, Some(ec::SVC), "class of {encoding:?}, allowed");
        check!((before..=timer.now()).contains(&value), "{encoding:?} reads {value:#x} at EL0");
        check_eq!(read(encoding, EL0PTEN), (Some(ec::SYSREG), 0), "{encoding:?}, not allowed");
    }
    timer.set_cval(0x1234_5678_9abc);
    check_eq!(read(CNTP_CVAL, EL0PTEN), (Some(ec::SVC), 0x1234_5678_9abc), "CVAL, allowed");
    check_eq!(read(CNTP_CTL, EL0PTEN), (Some(ec::SVC), timer.ctl()), "CTL, allowed");
    for encoding in [CNTP_TVAL, CNTP_CTL, CNTP_CVAL] {
        check_eq!(read(encoding, EL0PCTEN), (Some(ec::SYSREG), 0), "{encoding:?}, not allowed");
    }
    Ok(())
}

fn t30_time_into_the_zero_register() -> Outcome {
    /// Rt of MRS and MSR.
    const XZR: u32 = 31;
    let timer = Timer::Physical;
    timer.set_ctl(0);
    for encoding in [CNTPCT, CNTP_TVAL, CNTP_CTL, CNTP_CVAL] {
        let ([x0, x1], exception) = code::run(&[encoding.mrs() | XZR], 5, 6);
        check!(exception.is_none(), "{encoding:?} into XZR: {exception:?}");
        check_eq!([x0, x1], [5, 6], "{encoding:?} into XZR");
    }
    timer.set_cval(99);
    let (_, exception) = code::run(&[CNTP_CVAL.msr_xzr()], 5, 6);
    check!(exception.is_none(), "XZR into CVAL: {exception:?}");
    check_eq!(timer.cval(), 0, "CVAL after XZR");
    let (_, exception) = code::run(&[CNTPCT.msr_xzr()], 0, 0);
    check_eq!(exception.map(|e| e.esr >> 26 & 0x3f), Some(ec::UNKNOWN), "class of a write");
    Ok(())
}

fn t50_wfi_wakes_with_interrupts_masked() -> Outcome {
    for timer in Timer::ALL {
        for round in 0..50 {
            quiet(timer);
            let deadline = timer.now() + timer::ticks(300);
            timer.set_cval(deadline);
            timer.set_ctl(ENABLE);
            // An early wake-up is allowed; sleeping on is not, and would hang here.
            while !irq::is_waiting() {
                wfi();
            }
            check!(timer.now() >= deadline, "{timer:?} fired early in round {round}");
            take(timer)?;
        }
    }
    Ok(())
}

fn t50_wfe_wakes_by_event() -> Outcome {
    for _ in 0..100 {
        sev();
        wfe();
    }
    Ok(())
}

/// Sleeping and spinning see the same time, and neither timer drifts against the count.
fn t50_uniform_passage_of_time() -> Outcome {
    let timer = Timer::Virtual;
    let start = timer.now();
    let step = timer::ticks(500);
    for n in 1..=40 {
        quiet(timer);
        timer.set_cval(start + n * step);
        timer.set_ctl(ENABLE);
        while !irq::is_waiting() {
            wfi();
        }
        check!(timer.now() >= start + n * step, "early at step {n}");
        take(timer)?;
    }
    let late = timer.now() - (start + 40 * step);
    check!(late < CNTFRQ_EL0::get(), "{late} ticks late at the end");
    Ok(())
}

fn t81_compare_value_edges() -> Outcome {
    for timer in Timer::ALL {
        let now = timer.now();
        for (cval, fires) in [
            (0, true),
            (1, true),
            (now - 1, true),
            (now, true),
            (u64::MAX, false),
            (1 << 63, false),
            (i64::MAX.unsigned_abs(), false),
            (now + (1 << 40), false),
        ] {
            quiet(timer);
            timer.set_cval(cval);
            check_eq!(timer.cval(), cval, "CVAL of {timer:?}");
            timer.set_ctl(ENABLE);
            if fires {
                check!(comes(), "{timer:?} does not fire for {cval:#x}");
                check_eq!(timer.ctl(), ENABLE | ISTATUS, "CTL of {timer:?} for {cval:#x}");
                take(timer)?;
            } else {
                check!(!comes_anyway(), "{timer:?} fires for {cval:#x}");
                check_eq!(timer.ctl(), ENABLE, "CTL of {timer:?} for {cval:#x}");
                check!(!gic::is_pending(timer.intid()), "{timer:?} is pending for {cval:#x}");
            }
        }
        quiet(timer);
    }
    Ok(())
}

fn t81_timer_value_is_a_signed_distance() -> Outcome {
    for timer in Timer::ALL {
        for tval in [0u32, 1, u32::MAX, 0x8000_0000, 0x7fff_ffff, 0x4000_0000] {
            quiet(timer);
            let before = timer.now();
            // A count below the distance takes CVAL, which is unsigned, to the far future.
            let fires =
                tval <= 1 || tval >= 0x8000_0000 && before >= 0x1_0000_0000 - u64::from(tval);
            timer.set_tval(tval.into());
            let after = timer.now();
            // CVAL is the count plus the sign-extended value, at a moment between the two.
            let distance = i64::from(tval.cast_signed()).cast_unsigned();
            let cval = timer.cval();
            let low = before.wrapping_add(distance);
            check!(
                cval.wrapping_sub(low) <= after - before,
                "CVAL of {timer:?} is {cval:#x} for TVAL {tval:#x} at {before:#x}"
            );
            let (before, read, after) = (timer.now(), timer.tval(), timer.now());
            let highest = cval.wrapping_sub(before) & 0xffff_ffff;
            check!(
                highest.wrapping_sub(read) & 0xffff_ffff <= after - before,
                "TVAL of {timer:?} reads {read:#x} for CVAL {cval:#x} at {before:#x}"
            );
            timer.set_ctl(ENABLE);
            if fires {
                check!(comes(), "{timer:?} does not fire for TVAL {tval:#x}");
                take(timer)?;
            } else {
                check!(!comes_anyway(), "{timer:?} fires for TVAL {tval:#x}");
            }
        }
        quiet(timer);
    }
    Ok(())
}

fn t81_does_not_fire_early() -> Outcome {
    for timer in Timer::ALL {
        for us in [1, 10, 100, 1000] {
            quiet(timer);
            let deadline = timer.now() + timer::ticks(us);
            timer.set_cval(deadline);
            timer.set_ctl(ENABLE);
            check!(comes(), "{timer:?} does not fire");
            check!(timer.now() >= deadline, "{timer:?} fires early, set to {us} us");
            take(timer)?;
        }
    }
    Ok(())
}

fn t81_mask_and_unmask_while_pending() -> Outcome {
    for timer in Timer::ALL {
        quiet(timer);
        timer.set_cval(0);
        timer.set_ctl(ENABLE | IMASK);
        check!(!comes_anyway(), "{timer:?} fires while masked");
        check_eq!(timer.ctl(), ENABLE | IMASK | ISTATUS, "CTL of {timer:?} while masked");
        for round in 0..20 {
            timer.set_ctl(ENABLE);
            check!(comes(), "{timer:?} does not fire once unmasked, round {round}");
            // The line is high, and the interrupt is in a list register by now.
            timer.set_ctl(ENABLE | IMASK);
            check!(!gic::is_pending(timer.intid()), "{timer:?} is pending, masked, {round}");
            check_eq!(irq::acknowledge(), SPURIOUS, "INTID of {timer:?} masked, {round}");
        }
        timer.set_ctl(ENABLE);
        check!(comes(), "{timer:?} does not fire at the end");
        take(timer)?;
        quiet(timer);
    }
    Ok(())
}

fn t81_reprogram_while_pending() -> Outcome {
    for timer in Timer::ALL {
        for round in 0..20 {
            quiet(timer);
            timer.set_cval(0);
            timer.set_ctl(ENABLE);
            check!(comes(), "{timer:?} does not fire, round {round}");
            timer.set_cval(timer.now() + timer::ticks(60_000_000));
            check!(!gic::is_pending(timer.intid()), "{timer:?} is pending, round {round}");
            check_eq!(irq::acknowledge(), SPURIOUS, "INTID of {timer:?} in an hour, {round}");
            timer.set_cval(timer.now());
            check!(comes(), "{timer:?} does not fire again, round {round}");
            take(timer)?;
        }
    }
    Ok(())
}

fn t81_off_while_pending() -> Outcome {
    for timer in Timer::ALL {
        quiet(timer);
        timer.set_cval(0);
        timer.set_ctl(ENABLE);
        check!(comes(), "{timer:?} does not fire");
        timer.set_ctl(0);
        check!(!gic::is_pending(timer.intid()), "{timer:?} is pending though off");
        check_eq!(irq::acknowledge(), SPURIOUS, "INTID of {timer:?}, off");
        timer.set_ctl(ENABLE);
        check!(comes(), "{timer:?} does not fire once on again");
        take(timer)?;
    }
    Ok(())
}

/// Level-sensitive: an end without a change of the timer brings the interrupt back at once.
fn t81_fires_again_until_its_condition_ends() -> Outcome {
    for timer in Timer::ALL {
        quiet(timer);
        timer.set_cval(0);
        timer.set_ctl(ENABLE);
        for round in 0..100 {
            check!(comes(), "{timer:?} does not fire in round {round}");
            check_eq!(irq::acknowledge(), timer.intid(), "INTID in round {round}");
            check!(gic::is_active(timer.intid()), "{timer:?} is not active");
            irq::end(timer.intid());
        }
        check!(comes(), "{timer:?} does not fire at the end");
        take(timer)?;
    }
    Ok(())
}

fn t81_many_deadlines() -> Outcome {
    for timer in Timer::ALL {
        quiet(timer);
        irq::reset();
        irq::unmask();
        for round in 1..=1000 {
            timer.set_cval(timer.now() + round % 64);
            timer.set_ctl(ENABLE);
            let came = timer::wait_for(SOON_US / 1000, || {
                irq::count(0, timer.intid()) == round_u32(round)
            });
            check!(came, "{timer:?}: {} of {round}", irq::count(0, timer.intid()));
        }
        irq::mask();
        check_eq!(irq::total(0), 1000, "interrupts of {timer:?}");
    }
    Ok(())
}

fn round_u32(round: u64) -> u32 {
    u32::try_from(round).unwrap_or(u32::MAX)
}

fn t81_both_timers_at_once() -> Outcome {
    for round in 1..=100 {
        for timer in Timer::ALL {
            gic::enable(timer.intid());
            timer.set_cval(timer.now() + timer::ticks(20));
        }
        for timer in Timer::ALL {
            timer.set_ctl(ENABLE);
        }
        irq::unmask();
        let all = || Timer::ALL.iter().all(|timer| irq::count(0, timer.intid()) == round);
        let came = timer::wait_for(SOON_US / 1000, all);
        irq::mask();
        check!(came, "round {round}: {} interrupts", irq::total(0));
    }
    check_eq!(irq::total(0), 200, "interrupts");
    Ok(())
}

fn t81_timers_of_all_vcpus() -> Outcome {
    const ROUNDS: u32 = 200;
    fn job() {
        for timer in Timer::ALL {
            gic::enable(timer.intid());
        }
        irq::unmask();
        for round in 1..=ROUNDS {
            for timer in Timer::ALL {
                timer.set_cval(timer.now() + timer::ticks(10));
                timer.set_ctl(ENABLE);
                let me = cpu::index();
                let _ = timer::wait_for(1000, || irq::count(me, timer.intid()) == round);
            }
        }
        irq::mask();
    }
    for index in 1..cpu::count() {
        check_eq!(cpu::start(index, job), Ok(()), "CPU_ON");
    }
    job();
    for index in 0..cpu::count() {
        check!(index == 0 || cpu::wait_off(index), "vCPU {index} does not stop");
        for timer in Timer::ALL {
            check_eq!(irq::count(index, timer.intid()), ROUNDS, "{timer:?} of vCPU {index}");
        }
        check_eq!(irq::total(index), 2 * ROUNDS, "interrupts of vCPU {index}");
    }
    Ok(())
}
