// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What the machine does to a guest, beside one that is watched: the fault rows that no guest can
//! bring about.

use super::{Compared, End, Pair, differences, returns, seven_cores};
use crate::controlled::Controlled;
use crate::harness::{self, Result, edit_tree, prepare};
use coffer::board::Overrides;
use coffer::build::Options;
use coffer::qemu::{Clock, Machine};
use coffer::vm::client::{ClientError, Row};
use libtest_mimic::Trial;
use std::time::Duration;

pub fn trials() -> Vec<Trial> {
    vec![
        harness::test("storms::serror_from_guest", serror_from_guest),
        harness::test("storms::external_abort_on_passthrough_hole", abort_in_hole),
        harness::test("storms::pcpu_stuck_at_el2", || stuck(7)),
        harness::test("storms::pcpu_stuck_at_el2_and_no_core_is_free", || stuck(6)),
        harness::test("storms::pcpu_stuck_at_el2_for_a_while", stuck_for_a_while),
        harness::test("storms::twin_without_a_watch_nobody_notices_a_stuck_pcpu", not_watched),
        harness::test("storms::twin_a_device_that_is_there_does_not_abort", no_hole),
        harness::test("storms::twin_an_serror_that_el2_takes_is_the_end", serror_at_el2),
    ]
}

/// Boots both; of the storm's VM the second start goes wrong, which is the first that storms.
fn pair(title: &str, storm: &str, end: &str, kind: &str) -> Result<Pair> {
    let knobs = format!("fault_at_start = {kind:?}\nfault_vm = \"storm\"\nfault_after = 1");
    let manifest = Pair::manifest((storm, ""), end, &knobs);
    Pair::begin(Controlled::boot(&format!("storms-{title}"), &manifest, &seven_cores())?)
}

/// Boots both, the storm's with a clock that a device tree has at this address.
fn pair_with_clock(title: &str, at: &str) -> Result<Pair> {
    let (test, machine) = (format!("storms-{title}"), seven_cores());
    let manifest = Pair::manifest(("hole", "devices = [\"/pl031@9010000\"]"), "rounds=2", "");
    let as_it_is = prepare(&test, &manifest, &machine, Options::default())?;
    let tree = harness::folder(&test)?.join("moved.dtb");
    edit_tree(&as_it_is, &tree, |source| {
        source.replace(
            "reg = <0x00 0x9010000 0x00 0x1000>",
            &format!("reg = <0x00 {at} 0x00 0x1000>"),
        )
    })?;
    let overrides = Overrides { tree: Some(tree.clone()), ..Overrides::default() };
    let options = Options { overrides, ..Options::default() };
    let mut prepared = prepare(&test, &manifest, &machine, options)?;
    prepared.command.arg("-dtb").arg(tree);
    Pair::begin(Controlled::boot_prepared(prepared)?)
}

/// An SError that comes while a guest runs is that guest's, which panics; nobody else notices.
fn serror_from_guest() -> Result<()> {
    let mut pair = pair("serror", "serror", "rounds=1", "guest-serror")?;
    leaves_others_alone(&mut pair, "serror", 1)
}

/// The guest of a pair panics so often, and nothing else comes of it.
fn leaves_others_alone(pair: &mut Pair, name: &str, panics: u32) -> Result<()> {
    let before = pair.machine.ask("audit")?;
    pair.run(name)?;
    pair.finish()?;
    let differences = differences(&pair.quiet, &pair.stormy, Compared::ExitsAndCosts);
    if !differences.is_empty() {
        return Err(differences.join("\n"));
    }
    returns(&mut pair.machine, End::Panics(panics), Clock::Instructions)?;
    let after = pair.machine.ask("audit")?;
    if before == after { Ok(()) } else { Err(format!("audit {before:?}, then {after:?}")) }
}

/// The twin: the same SError, but EL2 takes it as its own. The neighbour does not go on.
fn serror_at_el2() -> Result<()> {
    let mut pair = pair("twin-serror", "serror", "rounds=1", "serror")?;
    pair.machine.ask("reset storm")?;
    pair.machine.hear_all(&["hypervisor fault", "halted"])?;
    match pair.machine.client.ask("list", Duration::from_secs(3)) {
        Err(ClientError::Silent(_)) => Ok(()),
        other => Err(format!("a machine that has halted says {other:?}")),
    }
}

/// A device that is in the tree and not on the machine: each access is an external abort, which the
/// guest takes itself.
fn abort_in_hole() -> Result<()> {
    leaves_others_alone(&mut pair_with_clock("hole", "0x9100000")?, "hole", 2)
}

/// The twin: where there is one the guest finds it, and none of that follows.
fn no_hole() -> Result<()> {
    let mut pair = pair_with_clock("twin-hole", "0x9010000")?;
    pair.machine.ask("reset storm")?;
    pair.machine.hear("storm| HOLE ")?;
    let said = pair.machine.said()?;
    if said.contains(" answers ") && !said.contains("crashed") { Ok(()) } else { Err(said) }
}

/// What the machine says of a VM that is lost, once.
const LOST: &str = "[vm!] storm lost: cpu 0x3, its vCPU 1, is stuck at EL2 for ";
/// How long that takes at most, in milliseconds: 200 and a period of the watch.
const LOST_MS: std::ops::RangeInclusive<u64> = 200..=301;

/// Boots both; a core of the storm's VM comes to EL2 when it storms, and stays there. None is free
/// on a machine of six.
fn stuck_pair(title: &str, kind: &str, knobs: &str, smp: u32) -> Result<Pair> {
    let knobs = format!("fault_at_start = {kind:?}\nfault_vm = \"storm\"\nfault_vcpu = 1\n{knobs}");
    let manifest = Pair::manifest(("calls", ""), "rounds=1", &knobs);
    let machine = Machine { smp: Some(smp), ..seven_cores() };
    Pair::begin(Controlled::boot(&format!("storms-{title}"), &manifest, &machine)?)
}

/// Returns how long it took until the VM was lost, as the machine says.
fn lost_after_ms(said: &str) -> Result<u64> {
    let all: Vec<&str> = said.lines().filter_map(|line| line.strip_prefix(LOST)).collect();
    let [ms] = all[..] else { return Err(format!("not lost once:\n{said}")) };
    ms.strip_suffix(" ms").and_then(|ms| ms.parse().ok()).ok_or_else(|| ms.to_owned())
}

/// A core that does not come out of EL2 takes its VM with it, and nobody else.
fn stuck(smp: u32) -> Result<()> {
    let mut pair = stuck_pair(&format!("stuck-{smp}"), "hang", "", smp)?;
    pair.run("calls")?;
    pair.machine.wait_for("storm", "lost")?;
    let exits = pair.exits("storm")?;
    pair.machine.hear(LOST)?;
    let took = lost_after_ms(&pair.machine.said()?)?;
    if !LOST_MS.contains(&took) {
        return Err(format!("it took {took} ms"));
    }
    for verb in ["start", "stop", "kill", "reset", "pause", "resume", "destroy", "create"] {
        let code = pair.machine.refused(&format!("{verb} storm"))?;
        if code != "state" {
            return Err(format!("{verb}: {code}"));
        }
    }
    let crash = pair.machine.ask("crash storm")?;
    let is_told = |row: &Row| row.get("cause") == "stuck" && row.get("vcpu") == "1";
    if !crash.first().is_some_and(is_told) {
        return Err(format!("{crash:?}"));
    }
    pair.finish()?;
    // Where no core is free the neighbour's is the one that watches.
    let compared = if smp == 7 { Compared::ExitsAndCosts } else { Compared::Costs };
    let differences = differences(&pair.quiet, &pair.stormy, compared);
    if !differences.is_empty() {
        return Err(differences.join("\n"));
    }
    // Others come and go, and nothing of the lost one moves.
    pair.machine.wait_for("watched", "off")?;
    pair.machine.ask("start watched")?;
    pair.machine.hear("watched| WATCHED")?;
    if pair.exits("storm")? != exits {
        return Err("a vCPU of the VM that is lost goes on".to_owned());
    }
    lost_after_ms(&pair.machine.said()?)?;
    pair.machine.is_in("storm", "lost")
}

/// A core that comes back lets its VM end as any that has crashed: it starts again.
fn stuck_for_a_while() -> Result<()> {
    let mut pair = stuck_pair("stall", "stall", "", 7)?;
    pair.run("calls")?;
    let said = pair.machine.wait_until_said("storm| BACK 1")?;
    lost_after_ms(&said)?;
    let crashed = "[vm!] storm crashed: its core was stuck at EL2; it starts again";
    if said.matches(crashed).count() != 1 || !said.contains("[vm] storm: cpu 0x3 is back") {
        return Err(said);
    }
    pair.finish()?;
    pair.machine.is_in("storm", "running")
}

/// The twin: where nobody watches the VM is not lost, and cannot be turned off either.
fn not_watched() -> Result<()> {
    let mut pair = stuck_pair("twin-stuck", "hang", "watch_off = true", 7)?;
    pair.run("calls")?;
    // Longer than a watch would take.
    pair.machine.ask("stop storm deadline_ms=400")?;
    pair.machine.wait_for("storm", "stopping")?;
    pair.finish()?;
    match lost_after_ms(&pair.machine.said()?) {
        Err(_) => pair.machine.is_in("storm", "stopping"),
        Ok(took) => Err(format!("lost after {took} ms")),
    }
}
