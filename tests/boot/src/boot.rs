// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Tests that boot machines in QEMU: the release image and the release guests, on the serial line.
//!
//! Each test is a manifest, a machine and what its consoles have to say. A boot that several tests
//! look at happens once. Time limits find hangs; nothing here depends on how fast a machine is.
#![forbid(unsafe_code)]

mod bench;
mod bundles;
mod control;
mod controlled;
mod crashes;
mod cycles;
mod faults;
mod harness;
mod image;
mod ledger;
mod linux;
mod machines;
mod payloads;
mod resets;
mod stats;
mod storms;
mod stretches;
mod suite;
mod updates;

use libtest_mimic::{Arguments, Trial};
use std::process::ExitCode;

/// How many machines run at once; each has several cores of its own.
const MACHINES_MAX: usize = 2;

fn main() -> ExitCode {
    let (options, words) = split_words(std::env::args().collect());
    let mut arguments = Arguments::from_iter(options);
    arguments.test_threads = Some(arguments.test_threads.unwrap_or(MACHINES_MAX));
    let groups = [
        image::trials(),
        stats::trials(),
        suite::trials(),
        machines::trials(),
        bundles::trials(),
        faults::trials(),
        resets::trials(),
        control::trials(),
        crashes::trials(),
        cycles::trials(),
        updates::trials(),
        storms::trials(),
        stretches::trials(),
        ledger::trials(),
        linux::trials(),
        payloads::trials(),
        bench::trials(),
    ];
    let mut trials: Vec<Trial> = groups.into_iter().flatten().collect();
    trials.retain(|trial| words.is_empty() || words.iter().any(|word| trial.name().contains(word)));
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Takes the words at the end of the command line, where there are several: cargo's own harness
/// runs what contains any of them, this one takes one alone.
fn split_words(mut arguments: Vec<String>) -> (Vec<String>, Vec<String>) {
    let count = arguments.iter().skip(1).rev().take_while(|word| !word.starts_with('-')).count();
    let words = if count > 1 { arguments.split_off(arguments.len() - count) } else { Vec::new() };
    (arguments, words)
}
