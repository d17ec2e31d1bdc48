// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What the machine does to a guest, beside one that is watched: the fault rows that no guest can
//! bring about.

use super::{Compared, End, Pair, differences, returns, seven_cores};
use crate::harness::{self, Result};
use coffer::qemu::Clock;
use coffer::vm::client::ClientError;
use libtest_mimic::Trial;
use std::time::Duration;

pub fn trials() -> Vec<Trial> {
    vec![
        harness::test("storms::serror_from_guest", serror_from_guest),
        harness::test("storms::twin_an_serror_that_el2_takes_is_the_end", serror_at_el2),
    ]
}

/// Boots both; of the storm's VM the second start goes wrong, which is the first that storms.
fn pair(title: &str, storm: &str, end: &str, kind: &str) -> Result<Pair> {
    let knobs = format!("fault_at_start = {kind:?}\nfault_vm = \"storm\"\nfault_after = 1");
    Pair::boot_with(title, (storm, ""), end, &seven_cores(), &knobs)
}

/// An SError that comes while a guest runs is that guest's, which panics; nobody else notices.
fn serror_from_guest() -> Result<()> {
    let mut pair = pair("serror", "serror", "rounds=1", "guest-serror")?;
    let before = pair.machine.ask("audit")?;
    pair.run("serror")?;
    pair.finish()?;
    let differences = differences(&pair.quiet, &pair.stormy, Compared::ExitsAndCosts);
    if !differences.is_empty() {
        return Err(differences.join("\n"));
    }
    returns(&mut pair.machine, End::Panics(1), Clock::Instructions)?;
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
