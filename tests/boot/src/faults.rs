// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A fault of the hypervisor itself: it is dumped, once, though the core that faults holds the
//! UART's lock; and the dump leads to the source.

use crate::controlled::{BOTH_PORTS, Controlled};
use crate::harness::{self, Result, Vm, hold, manifest, prepare, script};
use coffer::expect::End;
use coffer::qemu::Machine;
use coffer::symbolize;
use libtest_mimic::Trial;

/// How a dump begins.
const FAULT: &str = "hypervisor fault";
/// Each kind, and what the dump says of it.
const KINDS: [(&str, &str); 5] = [
    ("panic", "the plan asks for a panic"),
    ("write-to-text", "data abort at EL2"),
    ("execute-data", "instruction abort at EL2"),
    ("stack-overflow", "data abort at EL2"),
    ("serror", "SError"),
];

pub fn trials() -> Vec<Trial> {
    let trial = |(kind, what): (&'static str, &'static str)| {
        harness::test(&format!("faults::{}", kind.replace('-', "_")), move || fault(kind, what))
    };
    let mut trials: Vec<Trial> = KINDS.into_iter().map(trial).collect();
    trials.push(harness::test("faults::twin_that_asks_for_the_lock_says_nothing", says_nothing));
    trials
}

/// Lets the hypervisor fault on a core that has siblings with guests.
fn fault(kind: &str, what: &str) -> Result<()> {
    let vms = [
        Vm::of_guest("a", "0-1", "guest-suite", "only=t31"),
        Vm::of_guest("b", "2-3", "guest-suite", "only=t31"),
    ];
    let knobs = format!("fault_at_start = \"{kind}\"");
    let test = format!("faults-{kind}");
    let prepared =
        prepare(&test, &manifest(&vms, &knobs), &Machine::default(), Default::default())?;
    let script = script(End::Done, |script| {
        script.expect_hypervisor(&format!("{FAULT} on 0x[0-9a-f]+: {what}"))?;
        script.expect_hypervisor("base 0x[0-9a-f]+")?;
        script.expect_hypervisor("pc 0x[0-9a-f]+")?;
        script.expect_hypervisor("#1 0x[0-9a-f]+")?;
        script.expect_hypervisor("halted")?;
        Ok(())
    })?;
    let elf = prepared.artifacts.elf.clone();
    let log = hold(prepared.command, &script)?.text();
    if log.matches(FAULT).count() != 1 {
        return Err(format!("there is not one dump:\n{log}"));
    }
    let resolved = symbolize::resolve(&elf, &log).map_err(harness::text)?;
    let names_source =
        resolved.text.lines().any(|line| line.contains("cofferdam::") && line.contains(".rs:"));
    if resolved.resolved_count >= 2 && names_source {
        return Ok(());
    }
    Err(format!("the dump does not lead to the source:\n{}", resolved.text))
}

/// The twin: a fault that is said by the log, which takes the lock. The machine goes on, but nobody
/// is told, and the core is gone.
fn says_nothing() -> Result<()> {
    let vms = [
        Vm::of_guest("a", "0-1", "guest-suite", "only=t31"),
        Vm::of_guest("b", "2-3", "guest-suite", "only=t31"),
    ];
    let manifest = manifest(&vms, "fault_at_start = \"logged\"\nfault_vm = \"a\"") + BOTH_PORTS;
    let five = Machine { smp: Some(5), ..Machine::default() };
    let mut machine = Controlled::boot("faults-logged", &manifest, &five)?;
    machine.wait_for("b", "off")?;
    let said = machine.said()?;
    if said.contains(FAULT) { Err(said) } else { Ok(()) }
}
