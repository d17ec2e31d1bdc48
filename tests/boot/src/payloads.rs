// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Flat-binary guests of others, in the format of kvm-unit-tests: a folder of `NAME.flat`, each with
//! its arguments in `NAME.args` (a run for each line; none: one run without) and, where it has one,
//! its ramdisk in `NAME.initrd`. A guest says `EXIT: STATUS=n`, n being twice its exit code and one,
//! and turns itself off; exit code 0 is a pass, 77 a skip.

use crate::harness::{self, LIMIT, Result, Vm, prepare, script, text};
use coffer::expect::{End, Outcome, Script, drive};
use coffer::qemu::Machine;
use libtest_mimic::{Completion, Trial};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Names the folder.
const FOLDER: &str = "COFFERDAM_PAYLOADS";
const VM: &str = "payload";
/// The exit code that says "skipped".
const SKIPPED: u32 = 77;

/// One run of a guest.
struct Payload {
    name: String,
    kernel: PathBuf,
    ramdisk: Option<PathBuf>,
    arguments: String,
}

/// The runner's own tests, and a trial for each payload; says plainly where there is none.
pub fn trials() -> Vec<Trial> {
    let mut trials = vec![
        harness::test("payloads::results_are_told_apart", results),
        harness::test("payloads::folder_is_read", folder),
    ];
    let Some(folder) = std::env::var_os(FOLDER) else {
        eprintln!("no payloads: scripts/test --payloads DIR runs flat guests of others");
        return trials;
    };
    match payloads(Path::new(&folder)) {
        Ok(found) => {
            if found.is_empty() {
                eprintln!("no payload: there is no NAME.flat in {}", folder.display());
            }
            trials.extend(found.into_iter().map(|payload| {
                Trial::ignorable_test(format!("payloads::{}", payload.name), move || {
                    run(&payload, LIMIT).map_err(Into::into)
                })
            }));
        }
        Err(error) => trials.push(harness::test("payloads::folder", || Err(error))),
    }
    trials
}

/// Finds the payloads in a folder, in the order of their names.
fn payloads(folder: &Path) -> Result<Vec<Payload>> {
    let entries = std::fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let mut kernels: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    kernels.retain(|path| path.extension().is_some_and(|extension| extension == "flat"));
    kernels.sort();
    let mut found = Vec::new();
    for kernel in kernels {
        let stem = kernel.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let ramdisk = Some(kernel.with_extension("initrd")).filter(|path| path.exists());
        let arguments = match std::fs::read_to_string(kernel.with_extension("args")) {
            Ok(arguments) => arguments,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(format!("the arguments of {stem}: {error}")),
        };
        let mut lines: Vec<&str> =
            arguments.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        if lines.is_empty() {
            lines.push("");
        }
        found.extend(lines.into_iter().map(|arguments| Payload {
            name: format!("{stem} {arguments}").trim_end().replace(' ', "_"),
            kernel: kernel.clone(),
            ramdisk: ramdisk.clone(),
            arguments: arguments.to_owned(),
        }));
    }
    Ok(found)
}

/// Boots a payload as the only guest, on all four cores.
fn run(payload: &Payload, limit: Duration) -> Result<Completion> {
    let vm = Vm {
        name: VM,
        cpus: "0-3".to_owned(),
        memory: "256M",
        kernel: payload.kernel.clone(),
        ramdisk: payload.ramdisk.clone(),
        cmdline: payload.arguments.clone(),
    };
    let manifest = harness::manifest(&[vm], "");
    let manifest = manifest.replacen("\nmemory", "\nkernel_format = \"flat\"\nmemory", 1);
    let test = format!("payload-{}", payload.name.replace('/', "_"));
    let prepared = prepare(&test, &manifest, &Machine::default(), Default::default())?;
    let says_status = script(End::Off, |script| {
        script.never("hypervisor fault")?;
        script.expect(VM, r"^EXIT: STATUS=\d+$").map(drop)
    })?;
    let script = Script { limit, ..says_status };
    let outcome = drive(prepared.command, &script, |_| {}).map_err(text)?;
    result(&outcome)
}

/// Says how a payload went.
fn result(outcome: &Outcome) -> Result<Completion> {
    let report = || outcome.report().unwrap_or_else(|| outcome.text());
    let lines = outcome.lines_of(VM);
    let status = lines.iter().rev().find_map(|line| line.strip_prefix("EXIT: STATUS="));
    let status: u32 = status.and_then(|status| status.parse().ok()).ok_or_else(report)?;
    if outcome.problem.is_some() {
        return Err(report());
    }
    match status {
        1 => Ok(Completion::Completed),
        status if status == SKIPPED << 1 | 1 => Ok(Completion::ignored_with("it skips itself")),
        status => Err(format!("exit code {} (STATUS={status})\n{}", status >> 1, outcome.text())),
    }
}

/// Guests of ours, made flat, that pass, skip, fail, say nothing, and hang.
fn results() -> Result<()> {
    let flat = harness::flat_guest("payloads", "guest-suite")?;
    let run = |end: &str, limit| {
        let payload = Payload {
            name: format!("self-{end}"),
            kernel: flat.clone(),
            ramdisk: None,
            arguments: format!("mode=payload end={end}"),
        };
        run(&payload, limit)
    };
    if !matches!(run("1", LIMIT), Ok(Completion::Completed)) {
        return Err("a pass is not seen".to_owned());
    }
    if !matches!(run("155", LIMIT), Ok(Completion::Ignored { .. })) {
        return Err("a skip is not seen".to_owned());
    }
    let hang = Duration::from_secs(10);
    for (end, limit, expected) in [
        ("3", LIMIT, "exit code 1 (STATUS=3)"),
        ("255", LIMIT, "exit code 127 (STATUS=255)"),
        ("silence", LIMIT, "ended early"),
        ("hang", hang, "hung"),
        ("hang_after_1", hang, "hung"),
    ] {
        match run(end, limit) {
            Err(report) if report.starts_with(expected) => {}
            Err(report) => return Err(format!("{end} is reported as {report}")),
            Ok(_) => return Err(format!("{end} is taken for a pass or a skip")),
        }
    }
    Ok(())
}

fn folder() -> Result<()> {
    let folder = harness::folder("payloads-folder")?;
    for (file, contents) in
        [("b.flat", "code"), ("b.args", "ipi\n\n  active  1\n"), ("a.flat", ""), ("a.elf", "")]
    {
        std::fs::write(folder.join(file), contents).map_err(text)?;
    }
    std::fs::write(folder.join("a.initrd"), "ERRATA=y").map_err(text)?;
    let found = payloads(&folder)?;
    let seen: Vec<_> = found
        .iter()
        .map(|p| (p.name.as_str(), p.arguments.as_str(), p.ramdisk.is_some()))
        .collect();
    let expected = [("a", "", true), ("b_ipi", "ipi", false), ("b_active__1", "active  1", false)];
    if seen != expected {
        return Err(format!("{seen:?} are found"));
    }
    match payloads(&folder.join("missing")) {
        Err(error) if error.contains("missing") => Ok(()),
        _ => Err("a folder that is not there is no error".to_owned()),
    }
}
