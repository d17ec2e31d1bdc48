// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What the hypervisor counts, read by its port for requests while guests run.

use crate::harness::{self, LIMIT, Result, Vm, manifest, prepare, text};
use coffer::qemu::{Heard, Machine, Running};
use coffer::vm::client::Client;
use coffer::vm::port::SystemPort;
use coffer::vm::stats::{Buckets, VcpuStats};
use coffer::vm::{self, export};
use libtest_mimic::Trial;
use std::io::Write;
use std::time::{Duration, Instant};

/// How many calls the guest makes for each byte.
const CALLS: u64 = 10_000;

pub fn trials() -> Vec<Trial> {
    vec![harness::test("stats::counts_are_what_a_guest_does", counts)]
}

/// A machine that runs, and what it has said since somebody last waited for something.
struct Bed {
    running: Running,
    said: String,
}

impl Bed {
    fn wait_for(&mut self, wanted: &str) -> Result<()> {
        let begun = Instant::now();
        while begun.elapsed() < LIMIT {
            match self.running.hear(Duration::from_secs(1)).map_err(text)? {
                Heard::Output(bytes) => self.said += &String::from_utf8_lossy(&bytes),
                Heard::Silence => {}
                Heard::Ended(status, errors) => {
                    return Err(format!("{status}: {}{errors}", self.said));
                }
            }
            if let Some(at) = self.said.find(wanted) {
                self.said.drain(..at + wanted.len());
                return Ok(());
            }
        }
        Err(format!("no {wanted:?}: {}", self.said))
    }
}

fn read(client: &mut Client<SystemPort>, vm: &str) -> Result<VcpuStats> {
    let mut stats = vm::stats(client, Some(vm)).map_err(text)?;
    let vm = stats.vms.pop().ok_or("no VM")?;
    vm.vcpus.into_iter().next().ok_or("no vCPU".to_owned())
}

fn all(buckets: &Buckets) -> u64 {
    buckets.values().sum()
}

/// A guest makes 10,000 calls at a time beside one that measures its exits; both are read
/// meanwhile. What is counted is exact, never goes back, and agrees with itself: rows are read in
/// the order exits, then buckets.
fn counts() -> Result<()> {
    let vms = [
        Vm::of_guest("calls", "0", "guest-bench", "mode=calls"),
        Vm::of_guest("busy", "1", "guest-bench", ""),
    ];
    let manifest = manifest(&vms, "") + "\n[control]\nport = \"serial1\"\n";
    let machine = Machine { smp: Some(3), ..Machine::default() };
    let prepared = prepare("stats", &manifest, &machine, Default::default())?;
    let image = prepared.artifacts.image.clone();
    let mut bed =
        Bed { running: Running::start(prepared.command).map_err(text)?, said: String::new() };
    let mut input = bed.running.take_input().ok_or("no input")?;
    bed.wait_for("calls| READY")?;
    let mut client = vm::connect(&image).map_err(text)?;
    let mut before = read(&mut client, "calls")?;
    for _ in 0..3 {
        input.write_all(b"g").and_then(|()| input.flush()).map_err(text)?;
        let during = read(&mut client, "calls")?;
        if during.exits["call"] < before.exits["call"] || all(&during.at_el2) < all(&before.at_el2)
        {
            return Err(format!("{before:?}, then {during:?}"));
        }
        bed.wait_for("calls| CALLED 10000")?;
        let after = read(&mut client, "calls")?;
        let exits = |stats: &VcpuStats| stats.exits.values().sum::<u64>();
        let rose = after.exits["call"] - before.exits["call"];
        let agree = exits(&before) <= all(&before.at_el2) && all(&before.at_el2) <= exits(&after);
        if rose != CALLS || !agree {
            return Err(format!("{rose} calls: {before:?}, then {after:?}"));
        }
        before = after;
    }
    let stats = vm::stats(&mut client, None).map_err(text)?;
    let text_of_all = export::to_open_metrics(&stats).map_err(text)?;
    for vm in ["calls", "busy"] {
        let wanted = format!("cofferdam_exits_total{{vm=\"{vm}\",vcpu=\"0\",reason=\"call\"}} ");
        if !text_of_all.contains(&wanted) {
            return Err(format!("no {wanted}: {text_of_all}"));
        }
    }
    // It measures at its own pace; its timers and SGIs come last.
    let begun = Instant::now();
    loop {
        let busy = read(&mut client, "busy")?;
        let injected = |kind| busy.injected[kind] > 0;
        if injected("sgi") && injected("ppi") && all(&busy.to_entry) > 0 {
            break;
        }
        if begun.elapsed() > LIMIT {
            return Err(format!("{busy:?}"));
        }
        // Its output goes through this one's hands.
        let _ = bed.running.hear(Duration::from_millis(20)).map_err(text)?;
    }
    bed.running.kill();
    Ok(())
}
