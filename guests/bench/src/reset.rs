// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `mode=reset`: prints `BOOT`, writes to each cache line of its memory and resets, while the
//! hypervisor reports what a reset costs.
//!
//! With `until=N` it goes on while the physical count, which no reset of a guest sets back, is below
//! N, and then ends. Without, it prints `READY` and reads one byte: `r` resets, `q` ends.
#![forbid(unsafe_code)]

use guest_rt::timer::Timer;
use guest_rt::{console, memory, println, psci, tree};

/// Resets, or returns when it is time to end.
pub fn run() {
    println!("BOOT");
    let is_last = match tree::argument("until").and_then(|text| text.parse::<u64>().ok()) {
        Some(until) => Timer::Physical.now() >= until,
        None => {
            println!("READY");
            console::get() != b'r'
        }
    };
    if !is_last {
        memory::mark_all();
        println!("SYSTEM_RESET: {:?}", psci::system_reset());
    }
}
