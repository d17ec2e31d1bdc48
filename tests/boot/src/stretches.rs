// SPDX-License-Identifier: Apache-2.0 OR MIT
//! How long a core stays at EL2 without a look for interrupts: while it answers requests, and while
//! VMs come, change and go. The counter moves on with each instruction, and the one core does all
//! there is to do, so that ticks are its instructions.

use crate::controlled::{BOTH_PORTS, Controlled};
use crate::harness::{self, Result, Vm, manifest, text};
use crate::updates::Live;
use coffer::qemu::{Clock, Gic, Machine};
use coffer::vm;
use coffer::vm::upload::{put, upload};
use libtest_mimic::Trial;

/// The most instructions.
const MOST: u64 = 20_000;
/// What a core says that has led a change, or taken a VM apart or made one.
const REPORT: &str = " ticks between two looks";

pub fn trials() -> Vec<Trial> {
    [("gicv3", Gic::V3), ("gicv2", Gic::V2)]
        .into_iter()
        .flat_map(|(title, gic)| {
            let test = |what: &str, run: fn(Gic) -> Result<()>| {
                harness::test(&format!("stretches::{what}::{title}"), move || run(gic))
            };
            [
                test("of_a_core_that_answers_requests", of_requests),
                test("of_a_vm_that_changes_goes_and_comes", of_changes),
            ]
        })
        .collect()
}

/// One core, which often has nothing to do but to wait for a request.
fn machine(gic: Gic) -> Machine {
    Machine {
        gic: Some(gic),
        smp: Some(1),
        clock: Clock::InstructionsAndSleep,
        ..Machine::default()
    }
}

fn vm() -> Vm {
    Vm { memory: "16M", ..Vm::of_guest("n", "0", "guest-suite", "mode=clock") }
}

/// The guest goes on between the visits to the port, each of which is an exit.
fn of_requests(gic: Gic) -> Result<()> {
    let manifest = manifest(&[vm()], "report_reset_cost = true") + BOTH_PORTS;
    let test = format!("stretches-requests-{gic:?}");
    let mut machine = Controlled::boot(&test, &manifest, &machine(gic))?;
    machine.hear("n| LATE")?;
    for request in ["hello", "list", "stats", "stats n", "audit", "uploaded"] {
        machine.ask(request)?;
        machine.ask_in_band(request)?;
    }
    for request in ["crash n", "create m", "confirm n", "resume n", "read n 0 1", "nonsense"] {
        machine.refused(request)?;
    }
    // As large as can be, then one whose pieces fill their lines.
    machine.ask("upload 41943040 00000000")?;
    upload(&mut machine.client, &[0xa5; 5000], &mut |_| {}).map_err(text)?;
    put(&mut machine.client, &[0x5a; 5000], &mut |_| {}).map_err(text)?;
    machine.ask("upload 0 00000000")?;
    machine.hear("n| LATE")?;
    let stats = vm::stats(&mut machine.client, Some("n")).map_err(text)?;
    let vcpu = stats.vms.first().and_then(|vm| vm.vcpus.first()).ok_or("it has no vCPU")?;
    // Bucket n has what is from 2^n on.
    let longest = vcpu.at_el2.keys().last().ok_or("it has never left")?;
    if 1 << longest > MOST {
        return Err(format!("an exit of {} or more: {vcpu:?}", 1 << longest));
    }
    // Who leads a change says how long it was at most until then.
    machine.ask("reset n")?;
    machine.pass_over()?;
    machine.hear(REPORT)?;
    check(&machine.said()?, 2)
}

/// Looks at all that a core has said about itself, at least so often.
fn check(said: &str, times: usize) -> Result<()> {
    let of = |line: &str| line.split_once("at most ")?.1.strip_suffix(REPORT)?.parse::<u64>().ok();
    let all: Vec<u64> = said.lines().filter_map(of).collect();
    if all.len() < times || all.iter().any(|ticks| *ticks > MOST) {
        return Err(format!("{all:?}\n{said}"));
    }
    Ok(())
}

fn of_changes(gic: Gic) -> Result<()> {
    let test = match gic {
        Gic::V2 => "stretches-changes-v2",
        Gic::V3 => "stretches-changes-v3",
    };
    let machine = machine(gic);
    let mut live = Live::boot_on(test, &[vm()], "report_reset_cost = true", &machine)?;
    live.machine.hear("n| LATE")?;
    let bytes = live.plan(&[vm()], "n", &machine)?.write().map_err(text)?;
    for (request, state) in [
        ("pause n", "paused"),
        ("resume n", "running"),
        ("reset n", "running"),
        ("kill n", "off"),
        ("start n", "running"),
    ] {
        live.machine.ask(request)?;
        live.machine.wait_for("n", state)?;
        if state == "running" {
            live.machine.pass_over()?;
            live.machine.hear("n| LATE")?;
        }
    }
    live.update(&bytes, "n", None)?;
    live.machine.hear("n updated")?;
    live.machine.hear("n| LATE")?;
    live.machine.ask("kill n")?;
    live.machine.wait_for("n", "off")?;
    live.machine.ask("destroy n")?;
    live.machine.hear("core: at most")?;
    live.create(&bytes, "n")?;
    live.machine.hear("n| LATE")?;
    // At boot, reset, kill, start, update, kill, destroy, create, its start.
    check(&live.machine.said()?, 9)
}
