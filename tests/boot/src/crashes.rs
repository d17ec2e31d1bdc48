// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Guests that cannot go on: each comes back as its policy says.

mod linux;

use crate::controlled::{BOTH_PORTS, Controlled};
use crate::harness::{self, Result, Vm, boot, folder, manifest, script, text};
use coffer::expect::End;
use coffer::qemu::{Clock, Gic, Machine};
use coffer::run;
use coffer::vm::crash::{Detail, Extent, Wanted, WantedCore, look};
use libtest_mimic::Trial;
use object::read::elf::{ElfFile64, FileHeader as _};
use object::{LittleEndian, Object as _, ObjectSegment as _};
use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;

/// The function of the guest that reports a panic, and who calls it.
const FUNCTION: &str = "guest_suite::crash::report";
const CALLER: &str = "guest_suite::crash::run";

pub fn trials() -> Vec<Trial> {
    vec![
        harness::test("crashes::a_hang_is_ended_in_time", || hang("crashes-hang", Gic::V3)),
        harness::test("crashes::a_hang_is_ended_in_time_with_a_gicv2", || {
            hang("crashes-hang-gicv2", Gic::V2)
        }),
        harness::test("crashes::a_panic_is_shown_with_names", panic_is_shown),
        harness::test("crashes::a_restart_leaves_registers_alone", restart_leaves_registers),
        harness::test("crashes::a_panic_is_nothing_to_the_neighbour", neighbour_goes_on),
        harness::test("crashes::a_debian_that_panics_is_shown_with_names", || {
            linux::panic_is_named("crashes-linux", "cortex-a72")
        }),
        // Its return addresses are signed.
        harness::test("crashes::a_debian_with_pauth_that_panics_is_shown_with_names", || {
            linux::panic_is_named("crashes-linux-pauth", "max")
        }),
    ]
}

/// A guest that hangs with interrupts masked is back within a tenth of its watchdog's time; the
/// guest measures that itself, in ticks of a counter that instructions move on.
fn hang(test: &str, gic: Gic) -> Result<()> {
    let guest = Vm::of_guest("a", "0-1", "guest-suite", "mode=hang watchdog_ms=200");
    let manifest = manifest(&[guest], "").replacen("\nmemory", "\nwatchdog = \"200ms\"\nmemory", 1);
    let script = script(End::Off, |script| {
        for round in 0..3 {
            script.expect("a", &format!("^HANG {round}$"))?;
            script.expect_hypervisor(
                r"^\[vm!\] a crashed: its watchdog has fired; it starts again$",
            )?;
            script.expect("a", "^TEST hang_was_noticed_in_time: ok$")?;
        }
        script.expect("a", "^RESULT passed=1 failed=0 ")?;
        script.never("TEST .*: FAIL|hypervisor fault")?;
        Ok(())
    })?;
    let machine = Machine { gic: Some(gic), clock: Clock::Instructions, ..Machine::default() };
    boot(test, &manifest, &machine, &script).map(drop)
}

/// A guest with these lines in its manifest that reports a panic.
fn panicking(lines: &str) -> String {
    let guest = Vm::of_guest("a", "0-1", "guest-suite", "mode=panic");
    manifest(&[guest], "").replacen("\nmemory", &format!("\n{lines}\nmemory"), 1) + BOTH_PORTS
}

/// What is held is shown: the function by its name, who has called it, and a core file that has
/// the guest's memory.
fn panic_is_shown() -> Result<()> {
    let test = "crashes-panic";
    let manifest = panicking("on_crash = \"preserve\"");
    let mut machine = Controlled::boot(test, &manifest, &Machine::default())?;
    machine.wait_for("a", "crashed")?;
    let elf = run::built("guest-suite");
    let core = folder(test)?.join("a.core");
    let brief = Wanted { detail: Detail::Brief, core: None, elf: Some(&elf) };
    let said = look(&mut machine.client, "a", &brief).map_err(text)?.to_text();
    let lines: Vec<_> = said.lines().collect();
    let is_brief = matches!(lines[..], [what, place]
        if what.starts_with("a crashed: its guest has panicked (vcpu 0, ")
            && what.ends_with(" ago, 1 in a row)")
            && place.starts_with("  at pc 0x")
            && place.contains(&format!(" {FUNCTION}+0x")));
    if !is_brief {
        return Err(said);
    }
    let full = Wanted {
        detail: Detail::Full,
        core: Some(WantedCore { path: &core, extent: Extent::Brief }),
        elf: Some(&elf),
    };
    let report = look(&mut machine.client, "a", &full).map_err(text)?;
    let vcpu = report.vcpus.first().ok_or("no vCPU")?;
    let names: Vec<_> =
        vcpu.backtrace.iter().map(|place| place.function.as_deref().unwrap_or_default()).collect();
    let at = |name: &str| names.iter().position(|own| own.starts_with(&format!("{name}+")));
    if at(FUNCTION) != Some(0) || at(CALLER) != Some(1) {
        return Err(report.to_text());
    }
    // The port's write is the last that it did, behind the line that says so.
    let last = vcpu.exits.last().ok_or("no exits")?;
    let function = last.place.function.as_deref().unwrap_or_default();
    if last.why != "data abort, write of 1 bytes of 0x9060000 (panic+0x0)"
        || !function.starts_with(FUNCTION)
        || report.console.last().is_none_or(|line| line != "PANIC 0")
        || !report.map.iter().any(|area| area.kind == "ram" && area.bytes == 64 << 20)
    {
        return Err(report.to_text());
    }
    let pc = report.at.as_ref().ok_or("it is nowhere")?.pc;
    check_core(&core, &elf, pc)?;
    open_with_gdb(&core, &elf)
}

/// The core file has the code of the ELF file around PC.
fn check_core(core: &Path, elf: &Path, pc: u64) -> Result<()> {
    let [core, elf] = [core, elf].map(|path| std::fs::read(path).map_err(text));
    let (core, elf) = (core?, elf?);
    let core = ElfFile64::<LittleEndian>::parse(&*core).map_err(text)?;
    let elf = ElfFile64::<LittleEndian>::parse(&*elf).map_err(text)?;
    if core.elf_header().e_type(LittleEndian) != object::elf::ET_CORE {
        return Err("it is no core file".to_owned());
    }
    let code = |file: &ElfFile64<'_, LittleEndian>| {
        let mut found = file.segments().filter_map(|part| part.data_range(pc - 4, 8).ok()?);
        found.next().map(<[u8]>::to_vec)
    };
    match (code(&core), code(&elf)) {
        (Some(core), Some(elf)) if core == elf => Ok(()),
        other => Err(format!("the code at {pc:#x}: {other:x?}")),
    }
}

/// Where `gdb-multiarch` is installed, it finds the same function in the core file.
fn open_with_gdb(core: &Path, elf: &Path) -> Result<()> {
    let Some(said) = gdb(elf, core)? else { return Ok(()) };
    match said.lines().find(|line| line.starts_with("#0")) {
        Some(frame) if frame.contains("report") => Ok(()),
        _ => Err(said),
    }
}

/// Returns what `gdb-multiarch` says of where a core file is, where it is installed.
fn gdb(elf: &Path, core: &Path) -> Result<Option<String>> {
    let mut gdb = Command::new("gdb-multiarch");
    gdb.args(["-nx", "-batch", "-ex", "backtrace"]).args([elf, core]);
    let output = match gdb.output() {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        output => output.map_err(text)?,
    };
    let [said, errors] = [&output.stdout, &output.stderr].map(|own| String::from_utf8_lossy(own));
    Ok(Some(format!("{said}{errors}")))
}

/// A guest that reports a panic starts again by its policy, and its neighbour, which counts its own
/// interrupts meanwhile, misses none.
fn neighbour_goes_on() -> Result<()> {
    let vms = [
        Vm::of_guest("b", "2-3", "guest-suite", "mode=ledger count=15000"),
        Vm::of_guest("a", "0-1", "guest-suite", "mode=panic"),
    ];
    let manifest = manifest(&vms, "").replacen(
        "[vm.a]\n",
        "[vm.a]\nafter = [\"b\"]\non_crash = { restart = 3, backoff = \"100ms\" }\n",
        1,
    );
    let script = script(End::Done, |script| {
        script.expect("a", "^PANIC 0$")?;
        script.expect_hypervisor(
            r"^\[vm!\] a crashed: its guest has panicked; it starts again in 100 ms$",
        )?;
        script.expect("a", "^BACK 1$")?;
        script.after("b", "a").expect("b", "^RESULT passed=5 failed=0 skipped=0")?;
        script.never("FAIL|b crashed|WENT ON|hypervisor fault")?;
        Ok(())
    })?;
    boot("crashes-neighbour", &manifest, &Machine::default(), &script).map(drop)
}

/// A VM that has started again still has the registers of its crash, and not its memory.
fn restart_leaves_registers() -> Result<()> {
    let test = "crashes-restart";
    let manifest = panicking("on_crash = \"restart\"");
    let mut machine = Controlled::boot(test, &manifest, &Machine::default())?;
    machine.hear("a| BACK 1")?;
    let elf = run::built("guest-suite");
    let wanted = Wanted { detail: Detail::Full, core: None, elf: Some(&elf) };
    let report = look(&mut machine.client, "a", &wanted).map_err(text)?;
    let names: Vec<_> = report.vcpus.iter().flat_map(|vcpu| &vcpu.backtrace).collect();
    let is_named = matches!(names[..], [place]
        if place.function.as_deref().is_some_and(|name| name.starts_with(FUNCTION)));
    // What it says later does not stand in place of what it has said.
    let said_last = report.console.last().is_some_and(|line| line == "PANIC 0");
    if !is_named || !said_last || !report.to_text().contains("1 in a row, now running)") {
        return Err(report.to_text());
    }
    let core = folder(test)?.join("a.core");
    let wanted = Wanted { core: Some(WantedCore { path: &core, extent: Extent::Brief }), ..wanted };
    match look(&mut machine.client, "a", &wanted) {
        Err(error) if error.code() == "not-kept" && !core.exists() => Ok(()),
        Err(error) => Err(error.to_string()),
        Ok(report) => Err(report.to_text()),
    }
}
