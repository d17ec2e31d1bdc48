// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A VM that is turned off in its worst moment and started again, over and over: it finds nothing
//! of its last life, and the hypervisor is afterwards as it was after the first.

use crate::controlled::{BOTH_PORTS, Controlled};
use crate::harness::{self, Result, Vm, manifest};
use crate::linux;
use coffer::qemu::Machine;
use coffer::vm::client::Row;
use libtest_mimic::Trial;

/// How often the tables are compared: after so many cycles.
const AUDIT_EVERY: usize = 25;

pub fn trials() -> Vec<Trial> {
    vec![
        harness::test("cycles::of_a_small_guest", || small("cycles", 500)),
        harness::test("cycles::many_of_a_small_guest", || small("cycles-many", 10_000))
            .with_ignored_flag(true),
        harness::test("cycles::of_a_debian", || debian("cycles-debian", 30)),
        harness::test("cycles::many_of_a_debian", || debian("cycles-debian-many", 200))
            .with_ignored_flag(true),
    ]
}

/// Its vCPUs are on, off and suspended, its memory is marked, its timers are armed, its interrupts
/// pending and active when it is turned off.
fn small(test: &str, count: usize) -> Result<()> {
    let phoenix =
        Vm { memory: "8M", ..Vm::of_guest("phoenix", "0-3", "guest-suite", "mode=cycle") };
    let said = cycle(test, phoenix, &["DIRTY"], count)?;
    let starts = said.matches("phoenix| BOOT").count();
    if starts < count || said.contains(": FAIL") {
        return Err(format!("{starts} starts; the log:\n{said}"));
    }
    Ok(())
}

/// It is turned off early, with its cores coming up, and when its shell is there, in turn.
fn debian(test: &str, count: usize) -> Result<()> {
    linux::fetch()?;
    let moments = ["Linux version", "smp: Bringing up secondary CPUs", "Run /init"];
    let said = cycle(test, linux::debian("phoenix", "6.1", "0-3"), &moments, count)?;
    let starts = said.matches("phoenix| [    0.000000] Linux version").count();
    if starts < count || said.contains("Kernel panic") {
        return Err(format!("{starts} starts; the log:\n{said}"));
    }
    Ok(())
}

/// Starts `phoenix` so often, turns it off when it has said one of `moments`, in turn, and returns
/// what all have said.
fn cycle(test: &str, phoenix: Vm, moments: &[&str], count: usize) -> Result<String> {
    let other = Vm::of_guest("other", "4-5", "guest-suite", "mode=payload end=hang_after_5");
    let manifest = manifest(&[phoenix, other], "") + BOTH_PORTS;
    let machine = Machine { smp: Some(6), ..Machine::default() };
    let mut machine = Controlled::boot(test, &manifest, &machine)?;
    let mut before: Option<Vec<Row>> = None;
    for (cycle, moment) in (1..=count).zip(moments.iter().cycle()) {
        machine.hear(moment)?;
        machine.ask("kill phoenix")?;
        machine.wait_for("phoenix", "off")?;
        if cycle == 1 || cycle == count || cycle % AUDIT_EVERY == 0 {
            let rows = machine.ask("audit")?;
            let before = before.get_or_insert_with(|| rows.clone());
            if *before != rows {
                return Err(format!("after cycle 1: {before:?}\nafter cycle {cycle}: {rows:?}"));
            }
        }
        machine.ask("start phoenix")?;
    }
    machine.wait_for("other", "running")?;
    machine.said()
}
