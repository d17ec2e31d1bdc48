// SPDX-License-Identifier: Apache-2.0 OR MIT
//! T81: the edges of a timer: what its value register shows far away from the deadline, and what
//! happens when timer or GIC are changed while its interrupt is active (DDI 0487 D12.2.4, IHI 0069
//! 4.1). T82: a vCPU that has nothing else wakes by it, and in time.

use crate::timer::{comes, comes_anyway, quiet, take};
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};
use guest_rt::cpu::{self, CPUS_MAX};
use guest_rt::gic;
use guest_rt::irq::{self, SPURIOUS};
use guest_rt::psci::{self, id};
use guest_rt::sysreg::wfi;
use guest_rt::test::{Outcome, Test};
use guest_rt::timer::{self, ENABLE, IMASK, ISTATUS, Timer};
use guest_rt::{check, check_eq, skip, tests};

pub const TESTS: &[Test] = tests![
    t81_timer_value_wraps,
    t81_condition_shows_while_masked_and_in_time,
    t81_mask_while_active,
    t81_reprogram_while_active,
    t81_disabled_in_the_gic_while_it_fires,
    t81_active_by_register_keeps_it_back,
    t81_line_that_is_high_makes_an_active_one_pending,
    t82_idle_vcpu_wakes_by_its_own_timer: 2,
    t82_parked_vcpu_wakes_by_its_own_timer: 2,
];

/// An hour, which no test lasts.
fn later(timer: Timer) -> u64 {
    timer.now() + timer::ticks(3_600_000_000)
}

/// Lets the timer fire and acknowledges it.
fn fire(timer: Timer) -> Outcome {
    quiet(timer);
    timer.set_cval(0);
    timer.set_ctl(ENABLE);
    check!(comes(), "{timer:?} does not fire");
    check_eq!(irq::acknowledge(), timer.intid(), "INTID of {timer:?}");
    Ok(())
}

/// TVAL is the low half of CVAL less the count, on or off, before the deadline and behind it.
fn t81_timer_value_wraps() -> Outcome {
    for timer in Timer::ALL {
        for ctl in [0, IMASK, ENABLE | IMASK] {
            timer.set_ctl(ctl);
            let now = timer.now();
            let past = now.wrapping_sub(1 << 33);
            for cval in [0, 1, now, past, now + (1 << 31), now + (1 << 32), u64::MAX] {
                timer.set_cval(cval);
                let before = timer.now();
                let tval = timer.tval();
                let behind = timer.now();
                check_eq!(tval >> 32, 0, "upper half of TVAL of {timer:?}");
                let passed = cval.wrapping_sub(before).wrapping_sub(tval) & 0xffff_ffff;
                check!(passed <= behind - before, "TVAL {tval:#x} of {timer:?}, CVAL {cval:#x}");
                check_eq!(timer.cval(), cval, "CVAL of {timer:?}");
            }
            for tval in [0u32, 1, 0x7fff_ffff, 0x8000_0000, u32::MAX] {
                let distance = i64::from(tval.cast_signed()).cast_unsigned();
                let before = timer.now();
                // The upper half of what is written does not count.
                timer.set_tval(0xdead_beef << 32 | u64::from(tval));
                let behind = timer.now();
                let start = timer.cval().wrapping_sub(distance);
                check!((before..=behind).contains(&start), "CVAL of {timer:?}, TVAL {tval:#x}");
            }
        }
    }
    Ok(())
}

/// ISTATUS needs ENABLE and the count, and IMASK does not hide it.
fn t81_condition_shows_while_masked_and_in_time() -> Outcome {
    for timer in Timer::ALL {
        quiet(timer);
        for mask in [0, IMASK] {
            timer.set_cval(later(timer));
            timer.set_ctl(ENABLE | mask);
            check_eq!(timer.ctl(), ENABLE | mask, "CTL of {timer:?} before its time");
            timer.set_cval(0);
            check_eq!(timer.ctl(), ENABLE | mask | ISTATUS, "CTL of {timer:?} behind its time");
            timer.set_cval(u64::MAX);
            check_eq!(timer.ctl(), ENABLE | mask, "CTL of {timer:?} at the end of time");
            let deadline = timer.now() + timer::ticks(100);
            timer.set_cval(deadline);
            let met = timer::wait_for(1000, || timer.ctl() & ISTATUS != 0);
            check!(met && timer.now() >= deadline, "CTL of {timer:?} in time");
        }
        // It fired before it was masked, and nobody has taken it.
        check!(!gic::is_pending(timer.intid()), "{timer:?} is pending while masked");
        check!(!comes_anyway(), "{timer:?} fires while masked");
        timer.set_ctl(0);
        check_eq!(irq::acknowledge(), SPURIOUS, "INTID of {timer:?}, off");
    }
    Ok(())
}

fn t81_mask_while_active() -> Outcome {
    for timer in Timer::ALL {
        for round in 0..20 {
            fire(timer)?;
            timer.set_ctl(ENABLE | IMASK);
            irq::end(timer.intid());
            check!(!irq::is_waiting(), "{timer:?} comes again, masked, round {round}");
            // Masked and unmasked while active: the line is high at the end.
            fire(timer)?;
            timer.set_ctl(ENABLE | IMASK);
            check!(gic::is_active(timer.intid()), "{timer:?} is not active, round {round}");
            timer.set_ctl(ENABLE);
            irq::end(timer.intid());
            check!(comes(), "{timer:?} does not come again, round {round}");
            take(timer)?;
        }
        quiet(timer);
    }
    Ok(())
}

fn t81_reprogram_while_active() -> Outcome {
    for timer in Timer::ALL {
        for round in 0..20 {
            fire(timer)?;
            timer.set_cval(later(timer));
            irq::end(timer.intid());
            check!(!comes_anyway(), "{timer:?} comes an hour early, round {round}");
            fire(timer)?;
            let deadline = timer.now() + timer::ticks(200);
            timer.set_cval(deadline);
            irq::end(timer.intid());
            check!(comes(), "{timer:?} does not come in time, round {round}");
            check!(timer.now() >= deadline, "{timer:?} comes early, round {round}");
            take(timer)?;
            // The next deadline passes while the first interrupt is active.
            fire(timer)?;
            timer.set_cval(timer.now() + timer::ticks(20));
            timer::delay(100);
            check_eq!(irq::acknowledge(), SPURIOUS, "INTID while {timer:?} is active");
            irq::end(timer.intid());
            check!(comes(), "{timer:?} does not come after the end, round {round}");
            take(timer)?;
        }
        quiet(timer);
    }
    Ok(())
}

fn t81_disabled_in_the_gic_while_it_fires() -> Outcome {
    for timer in Timer::ALL {
        for round in 0..20 {
            quiet(timer);
            gic::disable(timer.intid());
            timer.set_cval(0);
            timer.set_ctl(ENABLE);
            check!(!comes_anyway(), "{timer:?} comes while disabled, round {round}");
            check!(gic::is_pending(timer.intid()), "{timer:?} is not pending, round {round}");
            timer.set_cval(later(timer));
            check!(!gic::is_pending(timer.intid()), "{timer:?} is pending, round {round}");
            gic::enable(timer.intid());
            check!(!comes_anyway(), "{timer:?} comes an hour early, round {round}");
            gic::disable(timer.intid());
            timer.set_cval(0);
            gic::enable(timer.intid());
            check!(comes(), "{timer:?} does not come once enabled, round {round}");
            take(timer)?;
        }
    }
    Ok(())
}

fn t81_active_by_register_keeps_it_back() -> Outcome {
    for timer in Timer::ALL {
        quiet(timer);
        gic::set_active(timer.intid());
        timer.set_cval(0);
        timer.set_ctl(ENABLE);
        check!(!comes_anyway(), "{timer:?} comes while active");
        gic::clear_active(timer.intid());
        check!(comes(), "{timer:?} does not come once inactive");
        take(timer)?;
    }
    Ok(())
}

/// A level-sensitive interrupt is pending while its line is high, also when it is active.
fn t81_line_that_is_high_makes_an_active_one_pending() -> Outcome {
    for timer in Timer::ALL {
        fire(timer)?;
        check!(gic::is_active(timer.intid()), "{timer:?} is not active");
        check!(gic::is_pending(timer.intid()), "{timer:?} is not pending, though its line is high");
        timer.set_ctl(ENABLE | IMASK);
        check!(gic::is_active(timer.intid()), "{timer:?} is not active, masked");
        check!(!gic::is_pending(timer.intid()), "{timer:?} is pending, though its line is low");
        irq::end(timer.intid());
        check!(!gic::is_active(timer.intid()), "{timer:?} is active at the end");
        quiet(timer);
    }
    Ok(())
}

/// How often each vCPU sleeps.
const NAPS: u32 = 100;
/// How often a vCPU has woken by its timer, how often before its deadline, and how often it could
/// not go to sleep.
static WOKEN: [AtomicU32; CPUS_MAX] = [const { AtomicU32::new(0) }; CPUS_MAX];
static EARLY: AtomicU32 = AtomicU32::new(0);
static REFUSED: AtomicU32 = AtomicU32::new(0);

/// Sleeps from one deadline to the next; each follows from the one before, so none may be lost.
fn sleep_through(sleep: impl Fn()) {
    let timer = Timer::Virtual;
    quiet(timer);
    let mut deadline = timer.now();
    for _ in 0..NAPS {
        deadline += timer::ticks(300);
        timer.set_cval(deadline);
        timer.set_ctl(ENABLE);
        while !irq::is_waiting() {
            sleep();
        }
        if timer.now() < deadline {
            EARLY.fetch_add(1, Relaxed);
        }
        if take(timer).is_ok()
            && let Some(woken) = WOKEN.get(cpu::index())
        {
            woken.fetch_add(1, Relaxed);
        }
    }
    quiet(timer);
}

/// Lets all vCPUs sleep at once, with nothing to wake them but their timers.
fn all_sleep(job: cpu::Job) -> Outcome {
    EARLY.store(0, Relaxed);
    REFUSED.store(0, Relaxed);
    WOKEN.iter().for_each(|woken| woken.store(0, Relaxed));
    for index in 1..cpu::count() {
        check_eq!(cpu::start(index, job), Ok(()), "CPU_ON");
    }
    job();
    for (index, woken) in WOKEN.iter().enumerate().take(cpu::count()) {
        check!(index == 0 || cpu::wait_off(index), "vCPU {index} does not wake");
        check_eq!(woken.load(Relaxed), NAPS, "naps of vCPU {index}");
    }
    check_eq!(EARLY.load(Relaxed), 0, "wake-ups before the deadline");
    check_eq!(REFUSED.load(Relaxed), 0, "refusals to sleep");
    Ok(())
}

fn t82_idle_vcpu_wakes_by_its_own_timer() -> Outcome {
    all_sleep(|| sleep_through(wfi))
}

fn t82_parked_vcpu_wakes_by_its_own_timer() -> Outcome {
    if psci::result(psci::call(id::FEATURES, id::CPU_SUSPEND.into(), 0, 0)).is_err() {
        skip!("PSCI_FEATURES has no CPU_SUSPEND");
    }
    // Power state 0 is standby (DEN 0022, 5.4).
    all_sleep(|| {
        sleep_through(|| {
            if psci::result(psci::call(id::CPU_SUSPEND, 0, 0, 0)) != Ok(0) {
                REFUSED.fetch_add(1, Relaxed);
            }
        });
    })
}
