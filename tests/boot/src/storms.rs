// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A guest that does its worst on all its cores at once, beside one that is watched: the fault rows
//! that a guest can bring about (docs/faults.md).
//!
//! The neighbour runs the same script beside a quiet guest and beside the storm, in one boot. In
//! both it leaves for EL2 for the same reasons and equally often, which is compared exactly, for
//! each of its vCPUs. On QEMU's clock of instructions so is what each operation costs: the least of
//! a hundred, which most of them cost; the others are those in which QEMU's one thread gave the
//! other cores their turn.

mod machine;

use crate::controlled::{BOTH_PORTS, Controlled};
use crate::harness::{self, Result, Vm, manifest, text};
use coffer::qemu::{Clock, Gic, Machine};
use coffer::vm;
use coffer::vm::stats::Numbers;
use libtest_mimic::Trial;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How often the script does each operation, and how many of these have to cost the same.
const ROUNDS: u64 = 100;
const SAME_MIN: u64 = 90;
/// The operations of the script.
const OPERATIONS: usize = 7;
/// The scripts: the first is not compared, since the hypervisor learns from it.
const QUIET: &str = "1";
const STORMY: &str = "2";

/// The bytes of a request and the pieces of its reply: no more interrupts on who serves the UARTs.
const INTERRUPTS_OF_A_REQUEST: u64 = 40;

/// What has a hang end.
const WATCHDOG: &str = "watchdog = \"100ms\"";

/// How a storm ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// The guest says so itself, so often.
    Panics(u32),
    /// Its watchdog fires, so often, and the guest measures when.
    Hangs(u32),
    /// Never: it is turned off and on.
    GoesOn,
}

/// A row, the guest's storm and its end.
const STORMS: [(&str, &str, End); 9] = [
    ("guest_kernel_panic", "panic", End::Panics(8)),
    ("guest_hang_irqs_masked", "hang", End::Hangs(3)),
    ("guest_hang_with_interrupts_flowing", "hang_in_interrupts", End::Hangs(2)),
    ("clock_weirdness", "clocks", End::Hangs(2)),
    ("irq_storm_of_sgis", "sgis", End::GoesOn),
    ("irq_storm_of_levels", "levels", End::GoesOn),
    ("console_flood", "console", End::GoesOn),
    ("hypercall_and_mmio_flood", "calls", End::GoesOn),
    ("cache_and_tlb_flood", "caches", End::GoesOn),
];

pub fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for (row, name, end) in STORMS {
        let trial = |title: String, long, clock, gic| {
            let test = format!("storms::{title}");
            let run = move || beside(&title, (name, end), clock, gic);
            harness::test(&test, run).with_ignored_flag(long)
        };
        trials.push(trial(row.to_owned(), false, Clock::Instructions, Gic::V3));
        if !matches!(end, End::Hangs(_)) {
            trials.push(trial(format!("{row}_in_threads"), true, Clock::Host, Gic::V3));
        }
        let title = format!("{row}_with_a_gicv2");
        trials.push(trial(title, false, Clock::Instructions, Gic::V2));
    }
    let twin = "storms::twin_without_a_restart_a_panic_is_the_end";
    trials.push(harness::test(twin, does_not_restart));
    trials.push(harness::test("storms::twin_without_a_watchdog_a_hang_stays", hang_stays));
    let beside = "storms::console_flood_where_every_core_has_a_vm";
    trials.push(harness::test(beside, every_core_has_a_vm));
    trials.push(harness::test("storms::twin_one_exit_or_tick_more_is_noticed", one_more));
    trials.extend(machine::trials());
    trials
}

/// What of the scripts is compared. On the host's clock no cost is exact, and with a GICv2 those of
/// interrupts differ from one to the next beside a quiet guest too.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Compared {
    Exits,
    Costs,
    ExitsAndCosts,
}

/// What the neighbour did in one script.
#[derive(Clone, PartialEq, Debug, Default)]
struct Script {
    /// Of each vCPU, why it left for EL2 and how often.
    exits: Vec<Numbers>,
    /// What each operation cost, and how many of them cost the same.
    costs: BTreeMap<String, (u64, u64)>,
}

/// Returns what differs between two scripts.
fn differences(quiet: &Script, stormy: &Script, compared: Compared) -> Vec<String> {
    let mut all = Vec::new();
    if compared != Compared::Costs && quiet.exits != stormy.exits {
        all.push(format!("exits {:?}, in the storm {:?}", quiet.exits, stormy.exits));
    }
    if quiet.costs.len() != OPERATIONS || stormy.costs.len() != OPERATIONS {
        all.push(format!("{:?} and {:?} were measured", quiet.costs, stormy.costs));
    }
    if compared == Compared::Exits {
        return all;
    }
    for (operation, (cost, same)) in &quiet.costs {
        let found = stormy.costs.get(operation).copied().unwrap_or_default();
        if found.0 != *cost || *same < SAME_MIN || found.1 < SAME_MIN {
            all.push(format!("{operation}: {same} cost {cost}, in the storm {found:?}"));
        }
    }
    all
}

/// Two VMs, one of which is to storm.
struct Pair {
    machine: Controlled,
    quiet: Script,
    stormy: Script,
    /// How long to wait before it is asked how far the script is, and how often it was asked.
    pause: Duration,
    asked: u64,
}

impl Pair {
    /// Boots both, the storm's with a line of the manifest and these arguments.
    fn boot(title: &str, storm: (&str, &str), end: &str, machine: &Machine) -> Result<Self> {
        let manifest = Self::manifest(storm, end, "");
        Self::begin(Controlled::boot(&format!("storms-{title}"), &manifest, machine)?)
    }

    /// Writes the manifest of both, with lines of its table `[test]`.
    fn manifest((name, line): (&str, &str), end: &str, knobs: &str) -> String {
        let storm = format!("mode=storm storm={name} {end}");
        let watched = format!("mode=watched count={ROUNDS}");
        let vms = [("watched", "0-1", &watched), ("storm", "2-5", &storm)].map(
            |(name, cpus, cmdline)| Vm {
                memory: "8M",
                ..Vm::of_guest(name, cpus, "guest-suite", cmdline)
            },
        );
        let table = format!("[vm.storm]\n{line}\n");
        manifest(&vms, knobs).replacen("[vm.storm]\n", &table, 1) + BOTH_PORTS
    }

    /// Waits until both are ready.
    fn begin(mut machine: Controlled) -> Result<Self> {
        machine.hear_all(&["watched| WATCHED", "storm| READY"])?;
        let [quiet, stormy] = [Script::default(), Script::default()];
        Ok(Self { machine, quiet, stormy, pause: Duration::ZERO, asked: 0 })
    }

    /// Returns why each vCPU of a VM has left for EL2, and how often.
    fn exits(&mut self, vm: &str) -> Result<Vec<Numbers>> {
        let mut stats = vm::stats(&mut self.machine.client, Some(vm)).map_err(text)?;
        let vm = stats.vms.pop().ok_or("no VM")?;
        Ok(vm.vcpus.into_iter().map(|vcpu| vcpu.exits).collect())
    }

    /// Has the neighbour carry out its script and returns its exits.
    fn script(&mut self) -> Result<Vec<Numbers>> {
        let before = self.exits("watched")?;
        self.machine.type_in("g")?;
        self.asked = 0;
        loop {
            let asks_at = Instant::now() + self.pause;
            while Instant::now() < asks_at {
                self.machine.goes_on()?;
            }
            self.asked += 1;
            let exits = since(&before, self.exits("watched")?);
            // The last exit of a script is its last call.
            if exits.first().and_then(|vcpu| vcpu.get("call")) == Some(&ROUNDS) {
                return Ok(exits);
            }
            self.machine.goes_on()?;
        }
    }

    /// Runs the script beside the quiet guest and beside the storm, and returns how often the
    /// storm left for EL2 meanwhile.
    fn run(&mut self, name: &str) -> Result<u64> {
        self.script()?;
        self.quiet.exits = self.script()?;
        self.machine.ask("reset storm")?;
        self.machine.hear(&format!("storm| STORM {name}"))?;
        let before = self.exits("storm")?;
        self.stormy.exits = self.script()?;
        let exits = since(&before, self.exits("storm")?);
        Ok(exits.iter().flat_map(Numbers::values).sum())
    }

    /// Has the neighbour say how it went.
    fn finish(&mut self) -> Result<()> {
        self.machine.type_in("q")?;
        self.machine.hear("watched| RESULT")?;
        let said = self.machine.said()?;
        if !said.contains("watched| RESULT passed=3 failed=0 ") {
            return Err(said);
        }
        for line in said.lines().filter_map(|line| line.strip_prefix("watched| COST ")) {
            let words: Vec<_> = line.split(' ').collect();
            let [script, operation, cost, same] = words[..] else { return Err(line.to_owned()) };
            let costs = (cost.parse().map_err(text)?, same.parse().map_err(text)?);
            match script {
                QUIET => self.quiet.costs.insert(operation.to_owned(), costs),
                STORMY => self.stormy.costs.insert(operation.to_owned(), costs),
                _ => None,
            };
        }
        Ok(())
    }
}

fn since(before: &[Numbers], mut now: Vec<Numbers>) -> Vec<Numbers> {
    for (now, before) in now.iter_mut().zip(before) {
        now.iter_mut().for_each(|(reason, count)| *count -= before.get(reason).unwrap_or(&0));
    }
    now
}

/// A storm leaves the neighbour alone, and the VM returns by its policy.
fn beside(title: &str, storm: (&str, End), clock: Clock, gic: Gic) -> Result<()> {
    let (name, end) = storm;
    let (line, arguments) = match end {
        End::Panics(rounds) => ("", format!("rounds={rounds}")),
        End::Hangs(rounds) => (WATCHDOG, format!("rounds={rounds} watchdog_ms=100")),
        End::GoesOn => ("", String::new()),
    };
    let machine = Machine { gic: Some(gic), clock, ..seven_cores() };
    let mut pair = Pair::boot(title, (name, line), &arguments, &machine)?;
    let exits = pair.run(name)?;
    // What masks interrupts or maintains caches leaves for nothing.
    let leaves = !matches!(name, "hang" | "panic" | "caches");
    if leaves && exits < 10 * ROUNDS {
        return Err(format!("{exits} exits are no storm"));
    }
    pair.finish()?;
    let is_exact = clock == Clock::Instructions && gic == Gic::V3;
    let compared = if is_exact { Compared::ExitsAndCosts } else { Compared::Exits };
    let differences = differences(&pair.quiet, &pair.stormy, compared);
    if !differences.is_empty() {
        return Err(differences.join("\n"));
    }
    returns(&mut pair.machine, end, clock)
}

fn returns(machine: &mut Controlled, end: End, clock: Clock) -> Result<()> {
    let (cause, rounds) = match end {
        End::Panics(rounds) => ("its guest has panicked", rounds),
        End::Hangs(rounds) => ("its watchdog has fired", rounds),
        End::GoesOn => {
            machine.ask("kill storm")?;
            machine.wait_for("storm", "off")?;
            machine.ask("start storm")?;
            // Its memory is as it was, so it knows what it was about.
            machine.hear("storm| STORM ")?;
            return machine.is_in("storm", "running");
        }
    };
    let said = machine.wait_until_said(&format!("storm| BACK {rounds}"))?;
    let count = |what: &str| said.matches(what).count();
    let crashes = count(&format!("[vm!] storm crashed: {cause}; it starts again"));
    let in_time = count("storm| TEST the_watchdog_fired_in_time: ok");
    let rounds = usize::try_from(rounds).map_err(text)?;
    // Only the clock of instructions says what is in time.
    let is_measured = matches!(end, End::Hangs(_)) && clock == Clock::Instructions;
    if crashes != rounds || is_measured && in_time != rounds {
        return Err(format!("{crashes} crashes of {rounds}, {in_time} in time\n{said}"));
    }
    machine.is_in("storm", "running")
}

/// One core is nobody's: it serves the UARTs.
fn seven_cores() -> Machine {
    Machine { smp: Some(7), clock: Clock::Instructions, ..Machine::default() }
}

/// The twin of a storm that a policy ends: with another one the guest does not come back.
fn does_not_restart() -> Result<()> {
    let line = "on_crash = \"stop\"";
    let mut pair = Pair::boot("twin-panic", ("panic", line), "rounds=1", &seven_cores())?;
    pair.run("panic")?;
    pair.machine.wait_for("storm", "off")?;
    starts_once(&mut pair.machine)
}

/// The twin of a storm that the watchdog ends: without it the guest is as it was until somebody
/// turns it off, here after more than twice the time.
fn hang_stays() -> Result<()> {
    let mut pair = Pair::boot("twin-hang", ("hang", ""), "rounds=1", &seven_cores())?;
    pair.run("hang")?;
    pair.machine.ask("stop storm deadline_ms=250")?;
    pair.machine.wait_for("storm", "off")?;
    starts_once(&mut pair.machine)
}

fn starts_once(machine: &mut Controlled) -> Result<()> {
    let said = machine.said()?;
    let is_so = !said.contains("storm| BACK") && said.matches("storm| STORM").count() == 1;
    if is_so { Ok(()) } else { Err(said) }
}

/// Where no core is free, the boot core takes the UARTs' interrupts. Its guest leaves for EL2 for
/// what is asked and typed, and not for what another one's flood of the console makes.
fn every_core_has_a_vm() -> Result<()> {
    let machine = Machine { smp: Some(6), ..seven_cores() };
    let mut pair = Pair::boot("every-core", ("console", ""), "", &machine)?;
    pair.pause = Duration::from_secs(2);
    let exits = pair.run("console")?;
    let asked = pair.asked;
    pair.finish()?;
    if exits < 10 * ROUNDS {
        return Err(format!("{exits} exits are no storm"));
    }
    let mut irqs = [0; 2];
    for (script, irqs) in [&mut pair.quiet, &mut pair.stormy].into_iter().zip(&mut irqs) {
        *irqs = script.exits.first_mut().and_then(|vcpu| vcpu.remove("irq")).ok_or("no irq")?;
    }
    let [quiet, stormy] = irqs;
    if stormy > quiet + asked * INTERRUPTS_OF_A_REQUEST {
        return Err(format!("{stormy} interrupts, {quiet} beside a quiet guest; {asked} requests"));
    }
    match differences(&pair.quiet, &pair.stormy, Compared::Exits) {
        all if all.is_empty() => returns(&mut pair.machine, End::GoesOn, Clock::Instructions),
        all => Err(all.join("\n")),
    }
}

/// The comparison itself.
fn one_more() -> Result<()> {
    let exits = vec![Numbers::from([("call".to_owned(), 100)]); 2];
    let costs = (0..OPERATIONS).map(|n| (n.to_string(), (178, 100))).collect();
    let script = Script { exits, costs };
    let mut leaves = script.clone();
    leaves.exits[1].insert("irq".to_owned(), 1);
    let mut costs = script.clone();
    costs.costs.insert("3".to_owned(), (179, 100));
    let mut rarely = script.clone();
    rarely.costs.insert("3".to_owned(), (178, SAME_MIN - 1));
    let count = |other| differences(&script, other, Compared::ExitsAndCosts).len();
    match [&script, &leaves, &costs, &rarely].map(count) {
        [0, 1, 1, 1] => Ok(()),
        found => Err(format!("{found:?}")),
    }
}
