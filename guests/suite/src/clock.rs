// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `mode=clock`: looks all the time how late its timers are, by either counter. A VM that was paused
//! is late, unless its time stood still meanwhile (traps T57).
//!
//! For each so many rounds it prints the worst so far, of all vCPUs, in microseconds of its own:
//! `LATE virtual=N physical=N`, with `early=` timers that have fired before their time, and
//! `back=`: how often a vCPU has seen less time than another one before.

use crate::platform;
use core::sync::atomic::{AtomicU64, Ordering::AcqRel, Ordering::Acquire, Ordering::Relaxed};
use guest_rt::sysreg::{CNTFRQ_EL0, wfi};
use guest_rt::timer::{ENABLE, IMASK, Timer};
use guest_rt::{cpu, gic, irq, println, timer};

/// Rounds between two lines.
const ROUNDS: u64 = 200;
/// How long a round is, in microseconds.
const ROUND_US: u64 = 1000;

/// The longest that a timer was late, in ticks.
static LATEST: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
static EARLY: AtomicU64 = AtomicU64::new(0);
/// The latest time that anybody has seen, by either counter.
static SEEN: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
static BACK: AtomicU64 = AtomicU64::new(0);

/// Looks on all vCPUs until somebody ends it.
pub fn run() -> ! {
    gic::init();
    gic::init_cpu();
    irq::mask();
    for index in 1..cpu::count() {
        let _ = cpu::start(index, watch);
    }
    loop {
        (0..ROUNDS).for_each(|_| round());
        let us = |ticks: u64| ticks / (CNTFRQ_EL0::get() / 1_000_000);
        let [virtually, physically] = &LATEST;
        println!(
            "LATE virtual={} physical={} early={} back={}",
            us(virtually.load(Relaxed)),
            us(physically.load(Relaxed)),
            EARLY.load(Relaxed),
            BACK.load(Relaxed)
        );
    }
}

fn watch() {
    loop {
        round();
    }
}

/// Sleeps until each timer has fired once, and keeps the watchdog quiet.
fn round() {
    if let Ok(watchdog) = platform::watchdog() {
        watchdog.refresh.write32(0, 0);
    }
    for (n, timer) in Timer::ALL.into_iter().enumerate() {
        gic::enable(timer.intid());
        let deadline = now(n, timer) + timer::ticks(ROUND_US);
        timer.set_cval(deadline);
        timer.set_ctl(ENABLE);
        while !irq::is_waiting() {
            wfi();
        }
        match now(n, timer).checked_sub(deadline) {
            Some(late) => LATEST[n].fetch_max(late, Relaxed),
            None => EARLY.fetch_add(1, Relaxed),
        };
        let intid = irq::acknowledge();
        timer.set_ctl(ENABLE | IMASK);
        irq::end(intid);
    }
}

/// Returns what a counter says, which must not be less than it has said to anybody before.
fn now(n: usize, timer: Timer) -> u64 {
    let seen = SEEN[n].load(Acquire);
    let now = timer.now();
    BACK.fetch_add(u64::from(now < seen), Relaxed);
    SEEN[n].fetch_max(now, AcqRel);
    now
}
