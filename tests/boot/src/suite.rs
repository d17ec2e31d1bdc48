// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The guest suite on each core that matters: every test of the guest is a test here.

use crate::harness::{self, Result, Vm, script};
use coffer::board::project_root;
use coffer::build::{Options, build_hypervisor};
use coffer::expect::{End, Outcome, Script, drive};
use coffer::qemu::{Entry, Gic, Machine};
use libtest_mimic::{Completion, Trial};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, OnceLock};

/// A core without VHE, one with it, one with everything that QEMU has, and the other GIC.
const MACHINES: [(&str, &str, Option<Gic>); 4] = [
    ("cortex-a72", "cortex-a72", None),
    ("cortex-a76", "cortex-a76", None),
    ("max", "max", None),
    ("gicv2", "cortex-a72", Some(Gic::V2)),
];
const VM: &str = "suite";

/// The suite on one core: it boots when the first test asks for it.
type Boot = Arc<OnceLock<Result<Outcome>>>;

pub fn trials() -> Vec<Trial> {
    let names = names();
    let others = [
        harness::test("suite::on_bare_qemu", || on_bare_qemu(Gic::V3)),
        harness::test("suite::on_bare_gicv2", || on_bare_qemu(Gic::V2)),
        harness::test("suite::with_debug_assertions", with_debug_assertions),
        harness::test("suite::one_list_register", || with_list_registers(1)),
        harness::test("suite::two_list_registers", || with_list_registers(2)),
        harness::test("suite::with_pause_time", || with_pause_time("max", None, "")),
        harness::test("suite::with_pause_time_and_a_gicv2", || {
            with_pause_time("cortex-a72", Some(Gic::V2), "only=t30,t50,t57,t8")
        }),
    ];
    let ours = MACHINES.iter().flat_map(|&(title, cpu, gic)| {
        let machine = Machine { cpu: Some(cpu.to_owned()), gic, ..Machine::default() };
        on_machine(title, machine, &names)
    });
    ours.chain(others).collect()
}

/// Runs the suite on a hypervisor that checks itself.
fn with_debug_assertions() -> Result<()> {
    let elf = build_hypervisor("checked").map_err(harness::refused)?;
    let vm = Vm::of_guest(VM, "0-3", "guest-suite", "");
    let options = Options { hypervisor: Some(elf), ..Options::default() };
    let manifest = harness::manifest(&[vm], "");
    let machine = Machine::default();
    let prepared = harness::prepare("suite-checked", &manifest, &machine, options)?;
    harness::hold(prepared.command, &script(End::Off, passes)?).map(drop)
}

/// Runs what concerns interrupts and power with fewer list registers than the machine has: more
/// wait than fit nearly always, and active interrupts leave their list registers.
fn with_list_registers(count: u8) -> Result<()> {
    let vm = Vm::of_guest(VM, "0-3", "guest-suite", "only=t31,t5,t6,t7,t8,t9");
    let manifest = harness::manifest(&[vm], &format!("list_registers_max = {count}"));
    let script = script(End::Off, passes)?;
    harness::boot(&format!("suite-lr{count}"), &manifest, &Machine::default(), &script).map(drop)
}

/// Runs it where the physical counter and timer are trapped: nothing is different but the cost.
fn with_pause_time(cpu: &str, gic: Option<Gic>, cmdline: &str) -> Result<()> {
    let vm = Vm::of_guest(VM, "0-3", "guest-suite", cmdline);
    let manifest =
        harness::manifest(&[vm], "").replacen("\nmemory", "\npause_time = true\nmemory", 1);
    let machine = Machine { cpu: Some(cpu.to_owned()), gic, ..Machine::default() };
    let test = format!("suite-pause-time-{cpu}");
    harness::boot(&test, &manifest, &machine, &script(End::Off, passes)?).map(drop)
}

/// Runs the suite at EL1 without a hypervisor: what it asks of ours, the architecture has to give.
fn on_bare_qemu(gic: Gic) -> Result<()> {
    let machine = Machine {
        cpu: Some("max".into()),
        gic: Some(gic),
        entry: Entry::El1,
        ..Machine::default()
    };
    let mut script = script(End::Off, passes)?;
    script.bare = Some(VM.to_owned());
    let test = if gic == Gic::V2 { "suite-bare-gicv2" } else { "suite-bare" };
    harness::hold(harness::bare_guest(test, "guest-suite", &machine)?, &script).map(drop)
}

fn on_machine(title: &'static str, machine: Machine, names: &BTreeSet<String>) -> Vec<Trial> {
    let boot = Boot::default();
    let each = |name: &String| {
        let (boot, machine, name) = (Arc::clone(&boot), machine.clone(), name.clone());
        let test = format!("suite::{title}::{name}");
        let run = move || Ok(verdict(booted(&boot, title, &machine)?, &name)?);
        Trial::ignorable_test(test, run)
    };
    let mut trials: Vec<_> = names.iter().map(each).collect();
    let names = names.clone();
    trials.push(harness::test(&format!("suite::{title}"), move || {
        let outcome = booted(&boot, title, &machine)?;
        if let Some(report) = outcome.report() {
            return Err(report);
        }
        let ran: BTreeSet<String> = outcome.lines_of(VM).iter().filter_map(|l| ran(l)).collect();
        let differ: Vec<_> = names.symmetric_difference(&ran).collect();
        if differ.is_empty() { Ok(()) } else { Err(format!("did not run as listed: {differ:?}")) }
    }));
    trials
}

/// Returns what the suite said on `machine`. What went wrong with the boot as a whole is left to the
/// test of that name: the others can have passed before.
fn booted<'b>(boot: &'b Boot, title: &str, machine: &Machine) -> Result<&'b Outcome> {
    boot.get_or_init(|| run(title, machine)).as_ref().map_err(Clone::clone)
}

fn run(title: &str, machine: &Machine) -> Result<Outcome> {
    let manifest = harness::manifest(&[Vm::of_guest(VM, "0-3", "guest-suite", "")], "");
    let test = format!("suite-{title}");
    let prepared = harness::prepare(&test, &manifest, machine, Default::default())?;
    let script = Script { limit: harness::LIMIT, ..script(End::Off, passes)? };
    drive(prepared.command, &script, |_| {}).map_err(harness::text)
}

/// Expects the suite's last line.
fn passes(script: &mut Script) -> std::result::Result<(), coffer::expect::ScriptError> {
    script.expect(VM, r"^RESULT passed=\d+ failed=0 skipped=\d+")?;
    script.never("hypervisor fault")?;
    Ok(())
}

/// Finds the line of the test `name` and says how it went.
fn verdict(outcome: &Outcome, name: &str) -> Result<Completion> {
    let start = format!("TEST {name}: ");
    let lines = outcome.lines_of(VM);
    match lines.iter().find_map(|line| line.strip_prefix(&start)) {
        Some("ok") => Ok(Completion::Completed),
        Some(line) if line.starts_with("skip") => Ok(Completion::ignored_with(line)),
        Some(line) => Err(line.to_owned()),
        None => Err("it did not run: see the test of the whole suite".to_owned()),
    }
}

fn ran(line: &str) -> Option<String> {
    Some(line.strip_prefix("TEST ")?.split_once(": ")?.0.to_owned())
}

/// Reads the names of the guest's tests in its source, where `tests![…]` lists them: a list must not
/// need a boot.
fn names() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    collect_names(&project_root().join("guests/suite/src"), &mut names);
    names
}

fn collect_names(folder: &Path, names: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect_names(&path, names);
            continue;
        }
        let source = std::fs::read_to_string(&path).unwrap_or_default();
        let lists = source.split("tests![").skip(1).filter_map(|rest| rest.split_once(']'));
        for (list, _) in lists {
            let code: String = list.lines().filter_map(|line| line.split("//").next()).collect();
            let tests = code.split(',').filter_map(|entry| entry.split(':').next());
            names.extend(tests.map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()));
        }
    }
}
