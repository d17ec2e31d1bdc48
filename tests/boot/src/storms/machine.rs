// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What the machine does to a guest, beside one that is watched: the fault rows that no guest can
//! bring about.

use super::{Compared, End, Pair, differences, returns, seven_cores};
use crate::controlled::Controlled;
use crate::harness::{self, Result, edit_tree, prepare};
use coffer::board::Overrides;
use coffer::build::Options;
use coffer::qemu::Clock;
use coffer::vm::client::ClientError;
use libtest_mimic::Trial;
use std::time::Duration;

pub fn trials() -> Vec<Trial> {
    vec![
        harness::test("storms::serror_from_guest", serror_from_guest),
        harness::test("storms::external_abort_on_passthrough_hole", abort_in_hole),
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
