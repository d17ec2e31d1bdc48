// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What exits cost: the gates, and that the same run costs the same.

use crate::harness::{self, Result, Vm};
use coffer::bench::{self, Baseline, BenchArgs, Costs, LIMITS, OPERATIONS};
use coffer::expect::{End, Outcome};
use coffer::qemu::{Clock, Entry, Machine};
use libtest_mimic::Trial;
use std::sync::{Arc, OnceLock};

/// One bench for all gates: it runs when the first one asks for it.
type Run = Arc<OnceLock<Result<Costs>>>;

pub fn trials() -> Vec<Trial> {
    let run = Run::default();
    let first = Arc::clone(&run);
    let mut trials = vec![
        harness::test("bench::runs", move || first.get_or_init(measure).clone().map(drop)),
        harness::test("bench::a_guest_computes_as_fast_as_on_bare_qemu", computes),
        harness::test("bench::exits_cost_the_same_beside_1_3_and_7_guests", neighbours),
    ];
    trials.extend(["cortex-a72", "cortex-a76", "max"].map(|cpu| {
        harness::test(&format!("bench::{cpu}::is_as_in_the_baseline"), move || baseline(cpu))
    }));
    trials.extend(OPERATIONS.iter().map(|&operation| {
        let run = Arc::clone(&run);
        harness::test(&format!("bench::{operation}"), move || match run.get_or_init(measure) {
            Ok(costs) => gate(costs, operation),
            Err(_) => Err("not measured: see bench::runs".to_owned()),
        })
    }));
    trials
}

/// Where nothing leaves the guest, the hypervisor costs no instruction.
fn computes() -> Result<()> {
    let machine = Machine {
        cpu: Some("cortex-a72".into()),
        smp: Some(1),
        clock: Clock::Instructions,
        ..Machine::default()
    };
    let vm = || Vm::of_guest("bench", "0", "guest-bench", "mode=compute");
    let manifest = harness::manifest(&[vm()], "");
    let mut script =
        harness::script(End::Off, |script| script.expect("bench", "^RESULT benched=2").map(drop))?;
    let guest = harness::boot("bench-compute", &manifest, &machine, &script)?;
    script.bare = Some("bench".into());
    let bare = Machine { entry: Entry::El1, ..machine };
    let mut command = harness::bare_guest("bench-compute", "guest-bench", &bare)?;
    command.args(["-append", "mode=compute"]);
    let costs = |outcome: &Outcome| -> Vec<String> {
        let text = outcome.text();
        let lines = text.lines().map(|line| line.trim_start_matches("bench| ").to_owned());
        lines.filter(|line| line.starts_with("BENCH compute")).collect()
    };
    let (guest, bare) = (costs(&guest), costs(&harness::hold(command, &script)?));
    if guest == bare && guest.len() == 2 {
        return Ok(());
    }
    Err(format!("as a guest {guest:?}, on bare QEMU {bare:?}"))
}

/// What a guest's exits cost depends on no other guest. The others sleep: under icount time is the
/// sum over all cores, so what they did would be counted too.
fn neighbours() -> Result<()> {
    let alone = beside(0)?;
    if alone.len() < 10 {
        return Err(format!("only {alone:?} was measured"));
    }
    for count in [1, 3, 7] {
        let costs = beside(count)?;
        // One thread runs all cores: what a free one does for the console, or to watch the others,
        // while an operation is under way is counted with it: no more than one in fifty.
        let is_same = |(alone, beside): (&String, &String)| {
            let cost = |line: &str| line.rsplit_once(' ')?.1.parse::<u64>().ok();
            let (alone, beside) = (cost(alone), cost(beside));
            alone.zip(beside).is_some_and(|(alone, beside)| alone.abs_diff(beside) * 50 <= alone)
        };
        if costs.len() != alone.len() || !alone.iter().zip(&costs).all(is_same) {
            return Err(format!("alone {alone:?}, beside {count} guests {costs:?}"));
        }
    }
    Ok(())
}

/// Returns what exits cost beside so many guests that sleep.
fn beside(count: usize) -> Result<Vec<String>> {
    const NAMES: [&str; 7] = ["n1", "n2", "n3", "n4", "n5", "n6", "n7"];
    let mut vms = vec![Vm::of_guest("bench", "0-1", "guest-bench", "mode=paused")];
    let names = &NAMES[..count];
    vms.extend(names.iter().zip(2..).map(|(name, cpu): (_, u32)| {
        Vm::of_guest(name, &cpu.to_string(), "guest-bench", "mode=sleep")
    }));
    let machine = Machine {
        cpu: Some("cortex-a72".into()),
        smp: Some(9),
        memory_bytes: Some(2 << 30),
        clock: Clock::Instructions,
        ..Machine::default()
    };
    let manifest = harness::manifest(&vms, "mitigations_off = true");
    let script = harness::script(End::Done, |script| {
        for name in names {
            script.expect(name, "^ASLEEP")?;
        }
        script.expect("bench", "^READY")?.send("bench", "g");
        script.expect("bench", "^RESULT benched=").map(drop)
    })?;
    let outcome = harness::boot(&format!("bench-beside-{count}"), &manifest, &machine, &script)?;
    Ok(outcome.lines_of("bench").into_iter().filter(|line| line.starts_with("BENCH")).collect())
}

fn measure() -> Result<Costs> {
    harness::build_guests()?;
    bench::costs(&bench_args("cortex-a72")).map_err(harness::text).map(|(off, _)| off)
}

fn bench_args(cpu: &str) -> BenchArgs {
    BenchArgs { cpu: cpu.into(), json: false, check: false, renew: false, guest: None }
}

/// Nothing costs much more than the committed baseline says.
fn baseline(cpu: &str) -> Result<()> {
    harness::build_guests()?;
    let (off, on) = bench::costs(&bench_args(cpu)).map_err(harness::text)?;
    let complaints = Baseline::load().map_err(harness::text)?.complaints(cpu, [&off, &on]);
    if complaints.is_empty() { Ok(()) } else { Err(complaints.join("\n")) }
}

fn gate(costs: &Costs, operation: &str) -> Result<()> {
    let Some(cost) = costs.get(operation) else {
        return Err("not measured".to_owned());
    };
    match LIMITS.iter().find(|limit| limit.operation == operation) {
        Some(limit) if *cost > limit.max => Err(format!("{cost}, {} allowed", limit.max)),
        _ => Ok(()),
    }
}
