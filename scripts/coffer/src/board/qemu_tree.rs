// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The device tree of a QEMU machine, asked from QEMU itself and kept under target/.
#![forbid(unsafe_code)]

use super::{Qemu, hexadecimal, target_directory, with_option};
use crate::manifest::read_bytes;
use crate::tree;
use sha2::{Digest, Sha256};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// QEMU answers in a fraction of a second; this is a hang.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Returns the flattened tree of the machine.
///
/// # Errors
/// Says why QEMU does not give it.
pub fn obtain(qemu: &Qemu) -> Result<Vec<u8>, String> {
    if let Some(tree) = qemu.tree.as_ref().filter(|tree| !tree.exists()) {
        return Err(format!("{} is missing: run guests/linux/fetch", tree.display()));
    }
    let mut machine = qemu.clone();
    for option in qemu.tree_options.split(',').filter(|option| !option.is_empty()) {
        machine.machine = with_option(&machine.machine, option);
    }
    let program = which(&qemu.program)
        .ok_or_else(|| format!("{} is not installed: run scripts/setup", qemu.program))?;
    kept_tree(&machine, &program, &target_directory().join("coffer/trees"))
}

/// Returns the tree that lies in `directory`, after asking QEMU for it where it does not.
fn kept_tree(machine: &Qemu, program: &Path, directory: &Path) -> Result<Vec<u8>, String> {
    let kept = directory.join(format!("{}.dtb", key(machine, program)));
    if let Ok(bytes) = read_bytes(&kept, tree::BYTES_MAX) {
        return Ok(bytes);
    }
    let failed = |error: std::io::Error| format!("{}: {error}", kept.display());
    std::fs::create_dir_all(directory).map_err(failed)?;
    // Several may ask at once, threads of one process among them: each has a file of its own, that
    // goes to its place when it is whole.
    let fresh = tempfile::Builder::new().suffix(".dtb").tempfile_in(directory).map_err(failed)?;
    dump(program, &asking(machine, fresh.path()))?;
    let bytes = read_bytes(fresh.path(), tree::BYTES_MAX)?;
    fresh.persist(&kept).map_err(|error| failed(error.error))?;
    Ok(bytes)
}

/// Returns the machine that writes its tree to a file instead of starting.
fn asking(machine: &Qemu, file: &Path) -> Qemu {
    // QEMU takes a comma in a file's name when it is doubled.
    let escaped = file.to_string_lossy().replace(',', ",,");
    Qemu { machine: format!("{},dumpdtb={escaped}", machine.machine), ..machine.clone() }
}

/// Names the machine, and the QEMU that makes it.
fn key(machine: &Qemu, program: &Path) -> String {
    let changed = |file: &Path| file.metadata().and_then(|metadata| metadata.modified()).ok();
    let changed = (changed(program), machine.tree.as_deref().map(changed));
    let arguments = (machine.arguments(), serial_lines(machine));
    let text = format!("{arguments:?} {program:?} {changed:?}");
    hexadecimal(&Sha256::digest(text)).chars().take(32).collect()
}

/// Returns what gives the machine a second serial line; QEMU describes no more than it has.
fn serial_lines(machine: &Qemu) -> &'static [&'static str] {
    if machine.has_control_line { &["-serial", "null", "-serial", "null"] } else { &[] }
}

fn dump(program: &Path, machine: &Qemu) -> Result<(), String> {
    let mut command = Command::new(program);
    command.args(machine.arguments()).args(["-display", "none"]).args(serial_lines(machine));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| format!("{}: {error}", program.display()))?;
    let ended = wait(&mut child).map_err(|error| error.to_string())?;
    let mut said = String::new();
    if let Some(stderr) = child.stderr.take() {
        let _ = stderr.take(4096).read_to_string(&mut said);
    }
    match ended {
        Some(true) => Ok(()),
        Some(false) => Err(format!("QEMU refuses: {}", said.trim())),
        None => Err("QEMU did not write the tree in time".into()),
    }
}

/// Waits for the end and returns whether it was a good one; `None` when it took too long.
fn wait(child: &mut Child) -> std::io::Result<Option<bool>> {
    let start = Instant::now();
    while start.elapsed() < TIMEOUT {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status.success()));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill()?;
    child.wait()?;
    Ok(None)
}

/// Finds a program as the shell would.
fn which(program: &str) -> Option<PathBuf> {
    if program.contains('/') {
        return Some(program.into());
    }
    let paths = std::env::var_os("PATH")?;
    std::env::split_paths(&paths).map(|path| path.join(program)).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays QEMU: writes its number of cores to the file that it is asked for, in its own time.
    const SLOW_QEMU: &str = r#"#!/bin/sh
while [ $# -gt 0 ]; do
    case $1 in
    -machine) file=${2#*dumpdtb=} ;;
    -smp) cores=$2 ;;
    esac
    shift
done
printf 'cores ' >"$file"
sleep 0.05
printf '%s' "$cores" >>"$file"
"#;

    fn machine_of(cpus: u32) -> Qemu {
        Qemu {
            program: String::new(),
            machine: "virt".into(),
            cpu: "max".into(),
            cpus,
            memory_bytes: 1 << 30,
            arguments: Vec::new(),
            has_control_line: false,
            tree: None,
            tree_options: String::new(),
        }
    }

    #[test]
    fn tree_that_is_missing_is_to_be_fetched() {
        let said = obtain(&Qemu { tree: Some("no/such.dtb".into()), ..machine_of(1) }).unwrap_err();
        assert_eq!(said, "no/such.dtb is missing: run guests/linux/fetch");
    }

    #[test]
    fn machines_asked_at_once_get_their_own_trees() {
        let bed = tempfile::tempdir().unwrap();
        let program = bed.path().join("qemu");
        // Written by another process: a program that some process has open is busy, and another
        // test of this process may fork at any time.
        let written = Command::new("sh")
            .args(["-c", r#"printf %s "$1" >"$2" && chmod +x "$2""#, "sh", SLOW_QEMU])
            .arg(&program)
            .status();
        assert!(written.unwrap().success());
        let trees = bed.path().join("trees");
        let ask = |cpus| kept_tree(&machine_of(cpus), &program, &trees);
        std::thread::scope(|scope| {
            let asked: Vec<_> =
                (1..=8).map(|cpus| (cpus, scope.spawn(move || ask(cpus)))).collect();
            for (cpus, thread) in asked {
                let tree = String::from_utf8(thread.join().unwrap().unwrap()).unwrap();
                assert_eq!(tree, format!("cores {cpus}"));
            }
        });
        let kept = std::fs::read_dir(&trees).unwrap().count();
        assert_eq!(kept, 8, "only trees are left");
    }
}
