// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A stock Debian kernel that panics: its watchdog notices, and its own Image names the function.

use super::gdb;
use crate::controlled::{BOTH_PORTS, Controlled};
use crate::harness::{Result, folder, manifest, text};
use crate::linux::{cache, debian, fetch};
use coffer::qemu::Machine;
use coffer::vm::crash::{Detail, Extent, Report, Wanted, WantedCore, look};
use std::time::{Duration, Instant};

/// Who panics where `c` is written to `/proc/sysrq-trigger`.
const FUNCTION: &str = "sysrq_handle_crash";
/// Takes the watchdog in the guest's hands, and panics on the second CPU.
const PANIC: &str = "insmod /lib/modules/$(uname -r)/sbsa_gwdt.ko; \
    watchdog -T 2 -t 1 /dev/watchdog; taskset 2 sh -c 'echo c >/proc/sysrq-trigger'\n";
/// Far longer than the few hundred KiB take that a backtrace needs, far shorter than all memory.
const SECONDS: u64 = 120;

/// The function is in the report and, where `gdb-multiarch` is installed, in its backtrace.
pub fn panic_is_named(test: &str, cpu: &str) -> Result<()> {
    fetch()?;
    let manifest = manifest(&[debian("a", "6.12", "0-1")], "");
    let manifest = manifest.replacen("\nmemory", "\non_crash = \"preserve\"\nmemory", 1);
    let machine = Machine { cpu: Some(cpu.to_owned()), ..Machine::default() };
    let mut machine = Controlled::boot(test, &(manifest + BOTH_PORTS), &machine)?;
    machine.hear("READY a")?;
    machine.type_in(PANIC)?;
    machine.wait_for("a", "crashed")?;
    let elf = cache("6.12/Image");
    let path = folder(test)?.join("a.core");
    let core = Some(WantedCore { path: &path, extent: Extent::Brief });
    let wanted = Wanted { detail: Detail::Full, core, elf: Some(&elf) };
    let begun = Instant::now();
    let report = look(&mut machine.client, "a", &wanted).map_err(text)?;
    let took = begun.elapsed();
    check(&report).map_err(|why| format!("{why}\n{}", report.to_text()))?;
    if took > Duration::from_secs(SECONDS) {
        return Err(format!("a core file took {} s", took.as_secs()));
    }
    let symbols = report.core.and_then(|core| core.symbols).ok_or("no names for gdb")?;
    let Some(said) = gdb(&symbols, &path)? else { return Ok(()) };
    let frame = |name: &str| {
        said.lines().find(|line| line.starts_with('#') && line.contains(&format!(" {name} ()")))
    };
    match (frame("panic"), frame(FUNCTION)) {
        (Some(_), Some(_)) => Ok(()),
        _ => Err(said),
    }
}

fn check(report: &Report) -> Result<()> {
    let panic = report.panic.as_ref().ok_or("it is not seen to have panicked")?;
    let is_there = |name: Option<&String>| name.is_some_and(|name| name.starts_with(FUNCTION));
    if panic.vcpu != 1 || !is_there(panic.by.function.as_ref()) {
        return Err("it is another who has panicked".to_owned());
    }
    let said = |words: &str| report.console.iter().any(|line| line.contains(words));
    if !said("Kernel panic - not syncing: sysrq triggered crash") {
        return Err("its last words are not there".to_owned());
    }
    let vcpu = report.vcpus.first().ok_or("no vCPU")?;
    if vcpu.exits.is_empty() || report.vcpus.len() != 2 {
        return Err("there are no exits, or a vCPU is missing".to_owned());
    }
    Ok(())
}
