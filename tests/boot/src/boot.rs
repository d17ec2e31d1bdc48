// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Tests that boot machines in QEMU: the release image and the release guests, on the serial line.
//!
//! Each test is a manifest, a machine and what its consoles have to say. A boot that several tests
//! look at happens once. Time limits find hangs; nothing here depends on how fast a machine is.
#![forbid(unsafe_code)]

mod bench;
mod bundles;
mod faults;
mod harness;
mod linux;
mod machines;
mod resets;
mod suite;

use libtest_mimic::Arguments;
use std::process::ExitCode;

/// How many machines run at once; each has several cores of its own.
const MACHINES_MAX: usize = 2;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(arguments.test_threads.unwrap_or(MACHINES_MAX));
    let groups = [
        suite::trials(),
        machines::trials(),
        bundles::trials(),
        faults::trials(),
        resets::trials(),
        linux::trials(),
        bench::trials(),
    ];
    libtest_mimic::run(&arguments, groups.into_iter().flatten().collect()).exit_code()
}
