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
    let mut machine = qemu.clone();
    for option in qemu.tree_options.split(',').filter(|option| !option.is_empty()) {
        machine.machine = with_option(&machine.machine, option);
    }
    let program = which(&qemu.program)
        .ok_or_else(|| format!("{} is not installed: run scripts/setup", qemu.program))?;
    let directory = target_directory().join("coffer/trees");
    let kept = directory.join(format!("{}.dtb", key(&machine, &program)));
    if let Ok(bytes) = read_bytes(&kept, tree::BYTES_MAX) {
        return Ok(bytes);
    }
    let failed = |error: std::io::Error| format!("{}: {error}", kept.display());
    std::fs::create_dir_all(&directory).map_err(failed)?;
    // Several runs may ask at once: each writes a file of its own and renames it.
    let fresh = directory.join(format!("{}.dtb", std::process::id()));
    // QEMU takes a comma in a file's name when it is doubled.
    let escaped = fresh.to_string_lossy().replace(',', ",,");
    machine.machine = format!("{},dumpdtb={escaped}", machine.machine);
    let result = dump(&program, &machine).and_then(|()| {
        let bytes = read_bytes(&fresh, tree::BYTES_MAX)?;
        std::fs::rename(&fresh, &kept).map_err(failed)?;
        Ok(bytes)
    });
    let _ = std::fs::remove_file(&fresh);
    result
}

/// Names the machine, and the QEMU that makes it.
fn key(machine: &Qemu, program: &Path) -> String {
    let metadata = program.metadata().ok();
    let changed = metadata.and_then(|metadata| metadata.modified().ok());
    let text = format!("{:?} {program:?} {changed:?}", machine.arguments());
    hexadecimal(&Sha256::digest(text)).chars().take(32).collect()
}

fn dump(program: &Path, machine: &Qemu) -> Result<(), String> {
    let mut command = Command::new(program);
    command.args(machine.arguments()).args(["-display", "none"]);
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
