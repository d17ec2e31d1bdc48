// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The conformance suite: what the architecture promises to a guest, each test named after the
//! trap that it shows. Most of it holds on QEMU's bare `virt` too, which keeps the tests honest;
//! what only a hypervisor promises is skipped there.
//!
//! Arguments: `only=`, `not=` and `exit=` of the runtime; `verbose`; `hypervisor`;
//! `mode=list` prints the names, `mode=reset` see [`reset`],
//! `mode=ledger` see [`ledger`], `mode=hang` see [`hang`], `mode=off` ends by CPU_OFF alone,
//! `mode=panic` see [`crash`], `mode=secret` see [`secret`], `mode=storm` see [`storm`],
//! `mode=watched` see [`watched`], `mode=clock` see [`clock`],
//! `mode=payload` ends as the guests do that `scripts/test --payloads` runs.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

mod abort;
mod boot;
mod clock;
mod crash;
mod features;
mod forms;
mod gic;
mod gic_remote;
mod gic_state;
mod gicv2;
mod hang;
mod inject;
mod insn;
mod its;
mod ledger;
mod lines;
mod mmio;
mod platform;
mod power;
mod reset;
mod secret;
mod sgi;
mod storm;
mod suspend;
mod sweep;
mod sysreg;
mod timer;
mod timer_edges;
mod watched;

use guest_rt::sysreg::relax;
use guest_rt::test::{self, Outcome, Test};
use guest_rt::{entry, println, psci, skip, tree};
use spin::Once;

entry!(main);

const GROUPS: &[&[Test]] = &[
    boot::TESTS,
    mmio::TESTS,
    forms::TESTS,
    abort::TESTS,
    sweep::TESTS,
    inject::TESTS,
    sysreg::TESTS,
    features::TESTS,
    gic::TESTS,
    gic_state::TESTS,
    gic_remote::TESTS,
    gicv2::TESTS,
    sgi::TESTS,
    lines::TESTS,
    platform::TESTS,
    its::TESTS,
    timer::TESTS,
    timer_edges::TESTS,
    power::TESTS,
    suspend::TESTS,
];

fn main() {
    match tree::argument("mode") {
        Some("list") => test::list_all(GROUPS),
        Some("reset") => reset::run(),
        Some("cycle") => reset::cycle(),
        Some("ledger") => ledger::run(),
        Some("hang") => hang::run(),
        Some("panic") => crash::run(),
        Some("secret") => secret::run(),
        Some("clock") => clock::run(),
        Some("storm") => storm::run(),
        Some("watched") => watched::run(),
        Some("payload") => end_as_payload(),
        Some("off") => power::turn_all_off(),
        _ => test::run_all(GROUPS),
    }
}

/// Skips a test of what a GICv2 does not have.
fn gicv3() -> Outcome {
    if guest_rt::gic::is_v2() {
        skip!("needs a GICv3");
    }
    Ok(())
}

/// Skips a test of what a GICv3 does not have.
fn gicv2() -> Outcome {
    if !guest_rt::gic::is_v2() {
        skip!("needs a GICv2");
    }
    Ok(())
}

/// Ends as a guest of kvm-unit-tests does, or as `end=` says otherwise.
fn end_as_payload() {
    let end = tree::argument("end").unwrap_or("1");
    let status = end.strip_prefix("hang_after_").unwrap_or(end);
    if status.parse::<u32>().is_ok() {
        println!("EXIT: STATUS={status}");
    }
    while end.starts_with("hang") {
        relax();
    }
}

/// Returns whether a hypervisor is underneath; asks once.
fn under_hypervisor() -> bool {
    static ANSWER: Once<bool> = Once::new();
    *ANSWER.call_once(psci::under_hypervisor)
}
