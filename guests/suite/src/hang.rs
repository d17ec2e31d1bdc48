// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `mode=hang`: hangs with interrupts masked, and looks, once the watchdog has brought it back, how
//! long that took. `watchdog_ms=` is what the manifest's `watchdog` says.
//!
//! The first time it is the plan's watchdog, armed before the first instruction; then one that the
//! guest has turned on itself; then one beside which all other vCPUs hang as well.

use crate::platform::{self, ENABLE, WCS};
use guest_rt::sysreg::{CNTFRQ_EL0, relax};
use guest_rt::test::{Outcome, Tally};
use guest_rt::timer::Timer;
use guest_rt::{check, cpu, irq, memory, println, tree};

/// Words that are kept: how often it has hung, when that began, when it was last alive.
pub const ROUND: u64 = 0;
pub const BEGUN: u64 = 1;
pub const ALIVE: u64 = 2;
const ROUNDS: u64 = 3;

/// Looks at how the last hang has ended, and hangs again.
pub fn run() -> ! {
    let timeout_ms = tree::argument("watchdog_ms").and_then(|ms| ms.parse().ok()).unwrap_or(0);
    let timeout_ticks = ticks(timeout_ms);
    let round = memory::kept(ROUND);
    if round > 0 {
        // What the plan has armed for this run.
        let watchdog = platform::watchdog();
        let mut tally = Tally::default();
        tally.report("hang_was_noticed_in_time", was_noticed(timeout_ticks));
        if round == ROUNDS {
            tally.finish();
        }
        if let Ok(watchdog) = watchdog {
            platform::set_offset(watchdog, timeout_ticks / 2);
            memory::keep(BEGUN, Timer::Virtual.now());
            watchdog.control.write32(WCS, ENABLE);
        }
    }
    println!("HANG {round}");
    memory::keep(ROUND, round + 1);
    if round == 2 {
        for index in 1..cpu::count() {
            let _ = cpu::start(index, hang);
        }
    }
    irq::mask();
    loop {
        memory::keep(ALIVE, Timer::Virtual.now());
    }
}

/// Returns the ticks in so many milliseconds.
pub fn ticks(ms: u64) -> u64 {
    CNTFRQ_EL0::get() * ms / 1000
}

fn hang() {
    irq::mask();
    loop {
        relax();
    }
}

/// Not before its time, and no more than a tenth later.
pub fn was_noticed(timeout_ticks: u64) -> Outcome {
    let took = memory::kept(ALIVE).wrapping_sub(memory::kept(BEGUN));
    println!("it took {took} ticks of {timeout_ticks}");
    let latest = timeout_ticks + timeout_ticks / 10;
    // The guest notes the time when it looks: the last look is some instructions before the end.
    let earliest = timeout_ticks - timeout_ticks / 1000;
    check!((earliest..=latest).contains(&took), "{took} ticks, not {timeout_ticks}");
    Ok(())
}
