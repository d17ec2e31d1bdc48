// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `mode=panic`: reports a panic by the panic port, once for each run, from a function that a
//! backtrace can name; what has restarted says so and waits.

use guest_rt::sysreg::relax;
use guest_rt::{memory, println, tree};

/// The word that is kept: how often it has panicked.
const ROUND: u64 = 0;
/// The guest has panicked, and nobody in it does anything about it.
const PANICKED: u8 = 1;

/// Panics, unless it has been here before.
#[inline(never)]
pub fn run() {
    let round = memory::kept(ROUND);
    if round == 0 {
        memory::keep(ROUND, 1);
        report(round);
    }
    println!("BACK {round}");
    loop {
        relax();
    }
}

/// Reports a panic.
#[inline(never)]
fn report(round: u64) {
    let Some(port) = tree::machine().panic_port else { return println!("there is no port") };
    println!("PANIC {round}");
    port.write8(0, PANICKED);
    // Nobody comes here.
    println!("WENT ON {round}");
}
