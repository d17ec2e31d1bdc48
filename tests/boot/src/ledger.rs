// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Interrupts by the hundred thousand, on 1 to 8 vCPUs: each that is sent is taken, once.

use crate::harness::{self, Result, Vm, hold, manifest, prepare, script};
use coffer::expect::End;
use coffer::qemu::{Gic, Machine};
use libtest_mimic::Trial;

/// How many interrupts each path of each guest delivers: altogether more than 10^5 on each path, and
/// ten times that with `--full`, both where one thread runs all cores and where each has its own.
const SOME: u32 = 15_000;
const MANY: u32 = 150_000;

/// How QEMU runs the cores.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Threads {
    /// One for all, each core in its turn.
    Single,
    /// One for each, which the host's cores share.
    Multi,
}

/// A name, the cores of each guest and the GIC: every number of vCPUs from 1 to 8. A GICv2 has no
/// more, and no LPIs.
const MACHINES: [(&str, &[&str], Gic); 6] = [
    ("one_and_seven_vcpus", &["0", "1-7"], Gic::V3),
    ("two_and_six_vcpus", &["0-1", "2-7"], Gic::V3),
    ("three_and_five_vcpus", &["0-2", "3-7"], Gic::V3),
    ("twice_four_vcpus", &["0-3", "4-7"], Gic::V3),
    ("eight_vcpus", &["0-7"], Gic::V3),
    ("three_and_five_vcpus_with_a_gicv2", &["0-2", "3-7"], Gic::V2),
];

pub fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for (name, guests, gic) in MACHINES {
        for (threads, suffix) in [(Threads::Single, ""), (Threads::Multi, "_in_threads")] {
            let run = move |count| ledger(guests, gic, threads, count);
            let some = format!("ledger::{name}{suffix}");
            trials.push(harness::test(&some, move || run(SOME)));
            let many = format!("ledger::many_on_{name}{suffix}");
            trials.push(harness::test(&many, move || run(MANY)).with_ignored_flag(true));
        }
    }
    trials
}

fn ledger(guests: &[&str], gic: Gic, threads: Threads, count: u32) -> Result<()> {
    let arguments = format!("mode=ledger count={count}");
    let vms: Vec<Vm> = ["first", "second"]
        .iter()
        .zip(guests)
        .map(|(name, cpus)| Vm::of_guest(name, cpus, "guest-suite", &arguments))
        .collect();
    let paths = if gic == Gic::V2 { 4 } else { 5 };
    let script = script(End::Off, |script| {
        for vm in &vms {
            script.expect(vm.name, &format!("^RESULT passed={paths} failed=0 skipped=0"))?;
        }
        script.never("FAIL|hypervisor fault")?;
        Ok(())
    })?;
    let machine = Machine { smp: Some(8), gic: Some(gic), ..Machine::default() };
    let test = format!("ledger-{gic:?}-{}-{threads:?}-{count}", guests.join("-"));
    let mut command = prepare(&test, &manifest(&vms, ""), &machine, Default::default())?.command;
    if threads == Threads::Single {
        command.args(["-accel", "tcg,thread=single"]);
    }
    hold(command, &script).map(drop)
}
