// SPDX-License-Identifier: Apache-2.0 OR MIT
//! T81: the edges of a timer: what its value register shows far away from the deadline, and what
//! happens when timer or GIC are changed while its interrupt is active (DDI 0487 D12.2.4, IHI 0069
//! 4.1).

use crate::timer::{comes, comes_anyway, quiet, take};
use guest_rt::gic;
use guest_rt::irq::{self, SPURIOUS};
use guest_rt::test::{Outcome, Test};
use guest_rt::timer::{self, ENABLE, IMASK, ISTATUS, Timer};
use guest_rt::{check, check_eq, tests};

pub const TESTS: &[Test] = tests![
    t81_timer_value_wraps,
    t81_condition_shows_while_masked_and_in_time,
    t81_mask_while_active,
    t81_reprogram_while_active,
    t81_disabled_in_the_gic_while_it_fires,
    t81_active_by_register_keeps_it_back,
    t81_line_that_is_high_makes_an_active_one_pending,
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
