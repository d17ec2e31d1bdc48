// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Requests to a machine that runs: what they tell, what they do, and what noise on the line does
//! not do.

use crate::controlled::{BOTH_PORTS, Controlled};
use crate::harness::{self, Result, Vm, manifest, text};
use coffer::expect::End;
use coffer::qemu::{Clock, Gic, Machine};
use coffer::vm::client::{Client, ClientError};
use coffer::vm::port::{Port, SystemPort};
use libtest_mimic::Trial;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

/// The tests of the suite that run while somebody else makes noise.
const SOME: &str = "only=t31,t67,t70,t76,t82,t88";
/// A guest that says so when it has started, and then runs until somebody ends it.
const RUNS_ON: &str = "mode=payload end=hang_after_5";
const STARTED: &str = "EXIT: STATUS=5";

pub fn trials() -> Vec<Trial> {
    vec![
        harness::test("control::tells_who_is_there", || tells_who_is_there("tagged")),
        harness::test("control::tells_who_is_there_in_focus_mode", || tells_who_is_there("focus")),
        harness::test("control::has_vms_changed", || has_vms_changed("", &Machine::default())),
        harness::test("control::has_vms_changed_with_a_gicv2", || {
            let machine = Machine { gic: Some(Gic::V2), ..Machine::default() };
            has_vms_changed("-gicv2", &machine)
        }),
        harness::test("control::typed_by_a_script", typed_by_a_script),
        harness::test("control::noise_reaches_no_guest", noise_reaches_no_guest),
        harness::test("control::two_clients_race", two_clients_race),
        harness::test("control::a_pause_is_not_seen_where_time_stops", pause_is_not_seen),
    ]
}

fn two_vms(cmdline: &str) -> String {
    let vms = [("a", "0-1"), ("b", "2")]
        .map(|(name, cpus)| Vm::of_guest(name, cpus, "guest-suite", cmdline));
    manifest(&vms, "") + BOTH_PORTS
}

fn equal<T: PartialEq + std::fmt::Debug>(what: &str, found: T, expected: T) -> Result<()> {
    if found == expected { Ok(()) } else { Err(format!("{what}: {found:?}, not {expected:?}")) }
}

/// Both ports tell the same, of a machine that runs, and say what is wrong with what they are asked.
fn tells_who_is_there(mode: &str) -> Result<()> {
    let manifest = two_vms(RUNS_ON).replace("\"tagged\"", &format!("{mode:?}"));
    let test = format!("control-tells-{mode}");
    let mut machine = Controlled::boot(&test, &manifest, &Machine::default())?;
    machine.wait_for("a", "running")?;
    machine.wait_for("b", "running")?;
    let rows = machine.ask("list")?;
    let told: Vec<_> = rows
        .iter()
        .map(|row| ["name", "state", "vcpus", "memory_bytes"].map(|key| row.get(key).to_owned()))
        .collect();
    let row = |row: [&str; 4]| row.map(str::to_owned);
    let bytes = (64 << 20).to_string();
    let expected = [row(["a", "running", "2", &bytes]), row(["b", "running", "1", &bytes])];
    equal("list", told, expected.to_vec())?;
    equal("list in band", machine.ask_in_band("list")?, rows)?;
    let hello = machine.ask("hello")?;
    equal("hello in band", machine.ask_in_band("hello")?, hello.clone())?;
    let told = ["protocol", "board", "vms"].map(|key| hello.first().map_or("", |row| row.get(key)));
    equal("hello", told, ["1", "qemu-virt", "2"])?;
    for (request, code) in [
        ("start c", "no-vm"),
        ("start", "arguments"),
        ("restart a", "verb"),
        ("start a", "state"),
        ("resume a", "state"),
        ("destroy a", "state"),
    ] {
        equal(request, machine.refused(request)?.as_str(), code)?;
    }
    Ok(())
}

/// Every request does what it says, on one VM, and the other notices nothing.
fn has_vms_changed(title: &str, machine: &Machine) -> Result<()> {
    let test = format!("control-changes{title}");
    let mut machine = Controlled::boot(&test, &two_vms(RUNS_ON), machine)?;
    // Nothing says which of the two is there first.
    machine.wait_for("b", "running")?;
    machine.hear(&format!("a| {STARTED}"))?;
    machine.ask("pause a")?;
    machine.wait_for("a", "paused")?;
    equal("pause", machine.refused("pause a")?.as_str(), "state")?;
    machine.ask("resume a")?;
    machine.wait_for("a", "running")?;
    machine.ask("reset a")?;
    machine.hear(&format!("a| {STARTED}"))?;
    machine.ask("kill a")?;
    machine.hear("[vm] a off")?;
    machine.wait_for("a", "off")?;
    machine.ask("start a")?;
    machine.hear(&format!("a| {STARTED}"))?;
    machine.ask("kill a")?;
    machine.wait_for("a", "off")?;
    machine.ask("destroy a")?;
    machine.hear("[vm] a gone")?;
    equal("a", machine.state("a")?, None)?;
    equal("kill", machine.refused("kill a")?.as_str(), "no-vm")?;
    machine.is_in("b", "running")?;
    // The last one goes off, and the machine stays.
    machine.ask("kill b")?;
    machine.hear("all off; the machine stays on for requests")?;
    machine.ask("start b")?;
    machine.hear(&format!("b| {STARTED}"))?;
    let starts = machine.said()?.matches(&format!("b| {STARTED}")).count();
    equal("starts of b", starts, 2)
}

/// Of two guests that are paused for as long, the one whose time stops is late for nothing, and the
/// other one is late by all of it. A third one keeps the time meanwhile. All of it in ticks of a
/// counter that instructions move on.
fn pause_is_not_seen() -> Result<()> {
    const LINES: u64 = 3;
    /// What a guest prints each of its lines behind, at least (`guests/suite/src/clock.rs`).
    const LINE_US: u64 = 2 * 200 * 1000;
    /// A timer's route through the hypervisor and the others' turns on the one thread.
    const LATE_US: u64 = 20_000;
    let vms = [("stops", "0-1"), ("runs", "2"), ("clock", "3")]
        .map(|(name, cpus)| Vm::of_guest(name, cpus, "guest-suite", "mode=clock"));
    // A watchdog that a pause would set off, of the first alone.
    let stops = "\npause_time = true\nwatchdog = \"200ms\"\nmemory";
    let manifest = manifest(&vms, "").replacen("\nmemory", stops, 1) + BOTH_PORTS;
    let machine = Machine { clock: Clock::Instructions, ..Machine::default() };
    let mut machine = Controlled::boot("control-pause-time", &manifest, &machine)?;
    for vm in ["stops", "runs", "clock"] {
        machine.hear(&format!("{vm}| LATE"))?;
    }
    for vm in ["stops", "runs"] {
        machine.ask(&format!("pause {vm}"))?;
        machine.wait_for(vm, "paused")?;
    }
    machine.pass_over()?;
    for _ in 0..=LINES {
        machine.hear("clock| LATE")?;
    }
    machine.pass_over()?;
    for vm in ["runs", "stops"] {
        machine.ask(&format!("resume {vm}"))?;
        machine.hear(&format!("{vm}| LATE"))?;
        machine.hear(&format!("{vm}| LATE"))?;
    }
    machine.is_in("stops", "running")?;
    let said = machine.said()?;
    let last = |vm: &str| said.lines().rfind(|line| line.starts_with(&format!("{vm}| LATE ")));
    let late = |vm: &str, key: &str| -> Result<u64> {
        let line = last(vm).ok_or(said.as_str())?;
        let word = line.split(' ').find_map(|word| word.strip_prefix(key)).ok_or(line)?;
        word.parse().map_err(|error| format!("{line}: {error}"))
    };
    // Whichever of its timers was armed when it was paused.
    let latest = |vm: &str| Ok::<_, String>(late(vm, "virtual=")?.max(late(vm, "physical=")?));
    let (stops, runs) = (latest("stops")?, latest("runs")?);
    if stops > LATE_US || runs < LINES * LINE_US {
        return Err(format!("{stops} us late where time stops, {runs} where not\n{said}"));
    }
    for key in ["early=", "back="] {
        equal(key, [late("stops", key)?, late("runs", key)?], [0, 0])?;
    }
    Ok(())
}

/// A script types a request on the console, and the replies are lines of the hypervisor to it.
fn typed_by_a_script() -> Result<()> {
    let script = harness::script(End::Done, |script| {
        script.expect("a", STARTED)?.send("a", "\u{1e}C1 1 list*4891464e\n");
        script.expect_hypervisor("^R1 1 row 0 name=a state=running ")?;
        script.expect_hypervisor("^R1 1 row 1 name=b state=")?;
        script.expect_hypervisor(r"^R1 1 ok rows=2\*[0-9a-f]{8}$")?;
        Ok(())
    })?;
    let machine = Machine::default();
    harness::boot("control-script", &two_vms(RUNS_ON), &machine, &script).map(drop)
}

/// Pseudo-random numbers (xorshift64), so that noise can be made again.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }

    fn byte(&mut self) -> u8 {
        u8::try_from(self.below(256)).unwrap_or(0)
    }

    /// Makes what a broken or hostile client could send: noise, pieces of lines, lines too long.
    fn noise(&mut self) -> Vec<u8> {
        let mut piece = match self.below(6) {
            0 => b"\x1eC1 7 kill a*00000000\n".to_vec(),
            1 => b"\x1eC1 7 list".to_vec(),
            2 => [&[0x1e][..], &vec![b'x'; 4000], b"\n"].concat(),
            3 => b"\x1eC2 7 list*00000000\n\x1e\n\x1e\x1e\x00\xff\x1b[2J".to_vec(),
            _ => (0..self.below(300)).map(|_| self.byte()).collect(),
        };
        if !piece.is_empty() && self.below(2) == 0 {
            let at = usize::try_from(self.below(piece.len() as u64)).unwrap_or(0);
            piece[at] = self.byte();
        }
        piece
    }
}

/// A guest does under noise on the port what it does without.
fn noise_reaches_no_guest() -> Result<()> {
    let vm = Vm::of_guest("suite", "0-3", "guest-suite", SOME);
    let manifest = manifest(&[vm], "") + "\n[control]\nport = \"serial1\"\n";
    let mut machine = Controlled::boot("control-noise", &manifest, &Machine::default())?;
    let done = "[vm] suite off";
    machine.hear(done)?;
    machine.wait_for("suite", "off")?;
    machine.ask("start suite")?;
    let sent = make_noise(&mut machine, done)?;
    if sent < 10_000 {
        return Err(format!("{sent} bytes are little noise"));
    }
    let said = machine.said()?;
    let runs: Vec<Vec<&str>> = said
        .split(done)
        .take(2)
        .map(|run| run.lines().filter(|line| line.starts_with("suite| ")).collect())
        .collect();
    let [quiet, noisy] = &runs[..] else { return Err(said) };
    if !quiet
        .iter()
        .any(|line| line.starts_with("suite| RESULT passed=") && line.contains(" failed=0 "))
    {
        return Err(said);
    }
    equal("the run under noise", noisy, quiet)?;
    // And the port is as good as before.
    equal("state", machine.state("suite")?.as_deref(), Some("off"))
}

/// Sends noise until the machine has said this twice, and returns how many bytes that were.
fn make_noise(machine: &mut Controlled, until: &str) -> Result<usize> {
    let SystemPort::Socket(socket) = machine.client.port() else { return Err("no socket".into()) };
    let mut answers = SystemPort::Socket(socket.try_clone().map_err(text)?);
    let (mut random, mut sent) = (Random(0x9e37_79b9_7f4a_7c15), 0);
    let is_over = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        // QEMU, unlike a UART, waits for who does not read.
        scope.spawn(move || {
            while answers.receive().is_ok_and(|bytes| !bytes.is_empty() || !is_over.load(Relaxed)) {
            }
        });
        let sent = (|| {
            while machine.said()?.matches(until).count() < 2 {
                let noise = random.noise();
                sent += noise.len();
                machine.client.port().send(&noise).map_err(text)?;
            }
            Ok(sent)
        })();
        is_over.store(true, Relaxed);
        sent
    })
}

/// Two clients ask for whatever comes to their minds, at once, on both ports. Each request is
/// granted or refused, both see the same in the end, and the VMs do as they are told.
fn two_clients_race() -> Result<()> {
    const REQUESTS: usize = 150;
    let mut machine = Controlled::boot("control-race", &two_vms(RUNS_ON), &Machine::default())?;
    machine.hear("a| EXIT")?;
    let Controlled { client, console } = &mut machine;
    let (one, other) = std::thread::scope(|scope| {
        let one = scope.spawn(|| ask_at_random(client, 1, REQUESTS));
        let other = ask_at_random(console, 2, REQUESTS);
        (one.join().unwrap_or_else(|_| Err("it panicked".into())), other)
    });
    let (one, other) = (one?, other?);
    for granted in [one, other] {
        if granted == 0 || granted == REQUESTS {
            return Err(format!("{granted} of {REQUESTS} requests granted: this was no race"));
        }
    }
    for vm in ["a", "b"] {
        // Whatever was begun ends.
        while matches!(machine.state(vm)?.as_deref(), Some("starting" | "stopping" | "resuming")) {
            machine.said()?;
        }
        let (rows, in_band) = (machine.ask("list")?, machine.ask_in_band("list")?);
        equal("list", in_band, rows)?;
        if machine.state(vm)?.as_deref() != Some("off") {
            machine.ask(&format!("kill {vm}"))?;
        }
        machine.wait_for(vm, "off")?;
    }
    for vm in ["a", "b"] {
        machine.pass_over()?;
        machine.ask(&format!("start {vm}"))?;
        machine.wait_for(vm, "running")?;
        machine.hear(&format!("{vm}| {STARTED}"))?;
    }
    Ok(())
}

/// Asks for changes of both VMs and returns how many were granted.
fn ask_at_random(client: &mut Client<impl Port>, seed: u64, count: usize) -> Result<usize> {
    const VERBS: [&str; 5] = ["start", "kill", "reset", "pause", "resume"];
    let mut random = Random(seed);
    let mut granted = 0;
    for _ in 0..count {
        let verb = usize::try_from(random.below(5)).ok().and_then(|n| VERBS.get(n));
        let vm = if random.below(2) == 0 { "a" } else { "b" };
        let request = format!("{} {vm}", verb.ok_or("no verb")?);
        match client.ask(&request, Duration::from_secs(60)) {
            Ok(rows) => {
                equal(&request, rows.len(), 0)?;
                granted += 1;
            }
            Err(ClientError::Refused { code, .. }) if code == "state" => {}
            Err(error) => return Err(format!("{request}: {error}")),
        }
    }
    Ok(granted)
}
