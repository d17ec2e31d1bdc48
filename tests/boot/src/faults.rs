// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A fault of the hypervisor itself: it is dumped, and the dump leads to the source.

use crate::harness::{self, Result, Vm, hold, manifest, prepare, script};
use coffer::expect::End;
use coffer::qemu::Machine;
use coffer::symbolize;
use libtest_mimic::Trial;

pub fn trials() -> Vec<Trial> {
    let kinds = ["panic", "write-to-text", "execute-data", "stack-overflow"];
    let trial = |kind: &'static str| {
        harness::test(&format!("faults::{}", kind.replace('-', "_")), move || fault(kind))
    };
    kinds.into_iter().map(trial).collect()
}

/// Lets the hypervisor fault on a core that has siblings with guests.
fn fault(kind: &str) -> Result<()> {
    let vms = [
        Vm::of_guest("a", "0-1", "guest-suite", "only=t31"),
        Vm::of_guest("b", "2-3", "guest-suite", "only=t31"),
    ];
    let knobs = format!("fault_at_start = \"{kind}\"");
    let test = format!("faults-{kind}");
    let prepared =
        prepare(&test, &manifest(&vms, &knobs), &Machine::default(), Default::default())?;
    let script = script(End::Done, |script| {
        script.expect_hypervisor("hypervisor fault")?;
        script.expect_hypervisor("base 0x[0-9a-f]+")?;
        script.expect_hypervisor("pc 0x[0-9a-f]+")?;
        script.expect_hypervisor("#1 0x[0-9a-f]+")?;
        Ok(())
    })?;
    let elf = prepared.artifacts.elf.clone();
    let log = hold(prepared.command, &script)?.text();
    let resolved = symbolize::resolve(&elf, &log).map_err(harness::text)?;
    let names_source =
        resolved.text.lines().any(|line| line.contains("cofferdam::") && line.contains(".rs:"));
    if resolved.resolved_count >= 2 && names_source {
        return Ok(());
    }
    Err(format!("the dump does not lead to the source:\n{}", resolved.text))
}
