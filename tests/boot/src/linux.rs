// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Unmodified Debian kernels.

mod devices;

use crate::harness::{self, Result, Vm, boot, hold, manifest, refused, script, text};
use coffer::board::project_root;
use coffer::build::Options;
use coffer::demo;
use coffer::expect::{End, Outcome, Script, ScriptError};
use coffer::manifest::Manifest;
use coffer::qemu::{Clock, Entry, Gic, Machine};
use cofferdam::plan::ConsoleMode;
use libtest_mimic::Trial;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

/// What a kernel prints where something is wrong: warnings and worse.
const WARNINGS: &str = "dmesg -r | grep '^<[0-4]>'; echo END OF DMESG\n";

/// A warning that a busy host brings about, on bare QEMU as well.
const OF_A_BUSY_HOST: &str = "hrtimer: interrupt took # ns";

pub fn trials() -> Vec<Trial> {
    let mut trials = devices::trials();
    trials.extend([
        harness::test("linux::two_debians_side_by_side", || two_debians("linux-demo", None)),
        harness::test("linux::two_debians_with_a_gicv2", || {
            two_debians("linux-demo-gicv2", Some(Gic::V2))
        }),
        harness::test("linux::eight_debians_on_eight_cores", || eight_debians("linux-8", None)),
        harness::test("linux::eight_debians_with_a_gicv2", || {
            eight_debians("linux-8-gicv2", Some(Gic::V2))
        }),
        harness::test("linux::a_debian_of_twenty_vcpus", twenty_vcpus),
        harness::test("linux::a_core_goes_off_and_on", core_off_and_on),
        harness::test("linux::started_by_u_boot", started_by_u_boot),
        harness::test("linux::suspends_to_ram_and_wakes", suspend_to_ram),
        harness::test("linux::one_reboots_and_the_other_does_not_notice", one_reboots),
        harness::test("linux::no_warning_of_6_1_that_bare_qemu_does_not_give", || warnings("6.1")),
        harness::test("linux::no_warning_of_6_12_that_bare_qemu_does_not_give", || {
            warnings("6.12")
        }),
    ]);
    trials
}

/// Returns where a file lies that was fetched.
pub fn cache(file: &str) -> PathBuf {
    project_root().join(".cache/guests/linux").join(file)
}

/// Gets the kernels, the ramdisk, the trees and U-Boot, once.
pub fn fetch() -> Result<()> {
    static FETCHED: OnceLock<Result<()>> = OnceLock::new();
    FETCHED.get_or_init(|| demo::fetch_guests().map_err(text)).clone()
}

/// Makes a VM with a Debian kernel.
pub fn debian(name: &'static str, version: &str, cpus: &str) -> Vm {
    Vm {
        name,
        cpus: cpus.to_owned(),
        memory: "512M",
        kernel: cache(&format!("{version}/Image")),
        ramdisk: Some(cache("initramfs.cpio.gz")),
        cmdline: format!("hostname={name}"),
    }
}

/// Types a command at the next prompt.
pub fn ask(script: &mut Script, vm: &str, command: &str) -> std::result::Result<(), ScriptError> {
    script.expect(vm, demo::PROMPT)?.send(vm, command);
    Ok(())
}

/// What the demo shows, from its own manifest.
fn two_debians(test: &str, gic: Option<Gic>) -> Result<()> {
    fetch()?;
    let path = project_root().join(demo::MANIFEST);
    let manifest = Manifest::load(&path).map_err(refused)?;
    let names: Vec<&str> = manifest.vms.iter().map(|vm| vm.name.get_ref().as_str()).collect();
    let options = Options {
        console: Some(ConsoleMode::Tagged),
        out: Some(harness::folder(test)?),
        hypervisor: Some(harness::hypervisor()?),
        ..Options::default()
    };
    let machine = Machine { gic, ..Machine::default() };
    let prepared = coffer::run::prepare(&path, &machine, options).map_err(text)?;
    let outcome = hold(prepared.command, &demo::script(&names).map_err(text)?)?;
    let mut releases = BTreeSet::new();
    for name in &names {
        let lines = outcome.lines_of(name);
        if !lines.iter().any(|line| line == "2") {
            return Err(format!("{name} does not have two cores"));
        }
        let is_release = |line: &&String| line.starts_with("6.") && line.contains("arm64");
        releases.extend(lines.iter().filter(is_release).cloned());
    }
    let versions = ["6.1.", "6.12."];
    if versions.iter().all(|version| releases.iter().any(|release| release.starts_with(version))) {
        return Ok(());
    }
    Err(format!("{versions:?} expected, {releases:?} ran"))
}

/// More cores than most hosts have: guests must not wait for one another.
fn eight_debians(test: &str, gic: Option<Gic>) -> Result<()> {
    fetch()?;
    let names = ["d0", "d1", "d2", "d3", "d4", "d5", "d6", "d7"];
    let vms: Vec<_> = (0..)
        .zip(names)
        .map(|(cpu, name)| {
            let version = if cpu % 2 == 0 { "6.1" } else { "6.12" };
            Vm { memory: "256M", ..debian(name, version, &format!("{cpu}")) }
        })
        .collect();
    let script = script(End::Off, |script| {
        for name in names {
            script.expect(name, "^READY .* 1$")?;
            ask(script, name, "poweroff -f\n")?;
        }
        script.never("(?i)kernel panic|rcu.*stall|hypervisor fault")?;
        Ok(())
    })?;
    let machine = Machine { smp: Some(8), memory_bytes: Some(4 << 30), gic, ..Machine::default() };
    boot(test, &manifest(&vms, ""), &machine, &script).map(drop)
}

/// More vCPUs than an SGI's target list has bits: those behind the first 16 are reached by the
/// range selector (traps T76).
fn twenty_vcpus() -> Result<()> {
    fetch()?;
    let script = script(End::Off, |script| {
        script.expect("a", "^READY .* 20$")?;
        ask(script, "a", "taskset 80000 sleep 1 && echo slept\n")?;
        script.expect("a", "^slept$")?;
        ask(script, "a", "dmesg | grep -c GICv3.*RSS\n")?;
        script.expect("a", "^1$")?;
        ask(script, "a", "poweroff -f\n")?;
        script.never("(?i)kernel panic|rcu.*stall|hypervisor fault")?;
        Ok(())
    })?;
    // Twenty cores that spin on two of the host's would stand in each other's way for as long as a
    // guest's patience lasts, with a hypervisor and without.
    let machine = Machine { smp: Some(20), clock: Clock::Instructions, ..Machine::default() };
    let manifest = manifest(&[debian("a", "6.12", "0-19")], "");
    boot("linux-20", &manifest, &machine, &script).map(drop)
}

fn core_off_and_on() -> Result<()> {
    fetch()?;
    let online = "/sys/devices/system/cpu/cpu1/online";
    let script = script(End::Off, |script| {
        for (state, cores) in [(0, 1), (1, 2), (0, 1), (1, 2)] {
            ask(script, "a", &format!("echo {state} >{online}; echo there are $(nproc)\n"))?;
            script.expect("a", &format!("^there are {cores}$"))?;
        }
        // The core that came back takes work, and interrupts.
        ask(script, "a", "taskset 2 sleep 1 && echo slept\n")?;
        script.expect("a", "^slept$")?;
        ask(script, "a", "poweroff -f\n")?;
        script.never("(?i)kernel panic|rcu.*stall|hypervisor fault")?;
        Ok(())
    })?;
    let manifest = manifest(&[debian("a", "6.12", "0-1")], "");
    boot("linux-hotplug", &manifest, &Machine::default(), &script).map(drop)
}

/// U-Boot takes the image and the bundle as it would take Linux and its ramdisk, and starts them by
/// `booti`.
fn started_by_u_boot() -> Result<()> {
    fetch()?;
    let suite = Vm::of_guest("suite", "2-3", "guest-suite", "only=t31,t49,t58,t74,t87");
    let script = script(End::Off, |script| {
        script.expect("suite", r"^RESULT passed=[1-9]\d* failed=0 ")?;
        ask(script, "a", "poweroff -f\n")?;
        script.never("(?i)kernel panic|hypervisor fault")?;
        Ok(())
    })?;
    let manifest = manifest(&[debian("a", "6.12", "0-1"), suite], "");
    let machine = Machine::default();
    let mut command =
        harness::prepare("linux-u-boot", &manifest, &machine, Options::default())?.command;
    command.arg("-bios").arg(cache("u-boot.bin"));
    let outcome = hold(command, &script)?;
    if outcome.text().lines().any(|line| line.starts_with("U-Boot 20")) {
        return Ok(());
    }
    Err("U-Boot has not run".to_owned())
}

/// SYSTEM_SUSPEND as Linux uses it, woken by the alarm of a clock that is the guest's own. Linux
/// refuses where the alarm comes before it is asleep, and is asked again.
fn suspend_to_ram() -> Result<()> {
    const SLEEP: &str = "until echo 0 >$alarm && echo +2 >$alarm && echo mem >/sys/power/state; \
        do :; done; echo there are $(nproc)\n";
    fetch()?;
    let script = script(End::Off, |script| {
        ask(script, "a", "alarm=/sys/class/rtc/rtc0/wakealarm; cat /sys/power/mem_sleep\n")?;
        script.expect("a", r"\[deep\]")?;
        for _ in 0..2 {
            ask(script, "a", SLEEP)?;
            script.expect("a", "^there are 2$")?;
        }
        ask(script, "a", "cat /sys/power/suspend_stats/success\n")?;
        script.expect("a", "^2$")?;
        ask(script, "a", "poweroff -f\n")?;
        script.never("(?i)kernel panic|rcu.*stall|hypervisor fault")?;
        Ok(())
    })?;
    let manifest = manifest(&[debian("a", "6.12", "0-1")], "");
    let manifest = manifest.replacen("\nmemory", "\ndevices = [\"/pl031@9010000\"]\nmemory", 1);
    boot("linux-suspend", &manifest, &Machine::default(), &script).map(drop)
}

/// One guest dirties its memory and reboots under load, three times; the other one's heart goes on.
fn one_reboots() -> Result<()> {
    fetch()?;
    let script = script(End::Off, |script| {
        for _ in 0..3 {
            script.expect("a", "^READY ")?;
            ask(
                script,
                "a",
                "dd if=/dev/urandom of=/tmp/dirt bs=1M count=100; yes >/dev/null &\n",
            )?;
            ask(script, "a", "reboot -f\n")?;
        }
        script.expect("a", "^READY ")?;
        ask(script, "a", "poweroff -f\n")?;
        ask(script, "b", "while sleep 0.2; do echo beat; done\n")?;
        script.expect("b", "^beat$")?.after("b", "a").expect("b", "^beat$")?.send("b", "\x03");
        ask(script, "b", "poweroff -f\n")?;
        script.never("(?i)kernel panic|rcu.*stall|hypervisor fault")?;
        Ok(())
    })?;
    let vms = [debian("a", "6.1", "0-1"), debian("b", "6.12", "2-3")];
    let outcome = boot("linux-reboot", &manifest(&vms, ""), &Machine::default(), &script)?;
    let boots = outcome.lines_of("b").iter().filter(|line| line.starts_with("READY ")).count();
    if boots == 1 { Ok(()) } else { Err(format!("b booted {boots} times")) }
}

/// Compares what a kernel warns of as a guest and on bare QEMU.
fn warnings(version: &str) -> Result<()> {
    fetch()?;
    let guest = debian("a", version, "0-1");
    let under = script(End::Off, asks_for_warnings)?;
    let mut bare = under.clone();
    bare.bare = Some("a".to_owned());
    let manifest = manifest(&[guest], "");
    let bare = hold(bare_command(version, &manifest)?, &bare)?;
    let test = format!("linux-warnings-{version}");
    let under = boot(&test, &manifest, &Machine::default(), &under)?;
    let known: BTreeSet<String> = warned_of(&bare).collect();
    let fresh: Vec<String> = warned_of(&under).filter(|line| !known.contains(line)).collect();
    if fresh.is_empty() { Ok(()) } else { Err(format!("only as a guest: {fresh:#?}")) }
}

fn asks_for_warnings(script: &mut Script) -> std::result::Result<(), ScriptError> {
    ask(script, "a", WARNINGS)?;
    script.expect("a", "^END OF DMESG$")?;
    ask(script, "a", "poweroff -f\n")
}

/// The same kernel on a machine of the same size without a hypervisor.
fn bare_command(version: &str, manifest: &str) -> Result<Command> {
    let machine = Machine {
        entry: Entry::El1,
        smp: Some(2),
        memory_bytes: Some(512 << 20),
        ..Machine::default()
    };
    let qemu = harness::board(manifest, &machine)?;
    let kernel = cache(&format!("{version}/Image"));
    let mut command = machine.command(&qemu, &kernel, Some(&cache("initramfs.cpio.gz")));
    command.args(["-append", "console=ttyAMA0 hostname=a"]);
    Ok(command)
}

/// Returns the warnings without their times, and without the numbers that differ between machines.
fn warned_of(outcome: &Outcome) -> impl Iterator<Item = String> {
    let text = outcome.text();
    let lines: Vec<String> = text
        .lines()
        .map(|line| line.strip_prefix("a| ").unwrap_or(line))
        .filter(|line| {
            ["<0>", "<1>", "<2>", "<3>", "<4>"].iter().any(|level| line.starts_with(level))
        })
        .map(without_numbers)
        .filter(|line| line != OF_A_BUSY_HOST)
        .collect();
    lines.into_iter()
}

fn without_numbers(line: &str) -> String {
    let message = line.split_once("] ").map_or(line, |(_, message)| message);
    let mut text = String::new();
    for character in message.chars() {
        match character {
            '0'..='9' if text.ends_with('#') => {}
            '0'..='9' => text.push('#'),
            _ => text.push(character),
        }
    }
    text
}
