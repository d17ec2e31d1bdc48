// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What every test here does: writes a manifest, builds it, boots it, holds it to a script.

use coffer::board::{Board, Qemu, project_root};
use coffer::build::{self, Options};
use coffer::elf::flatten::{By, flatten};
use coffer::expect::{self, Outcome, Script, ScriptError};
use coffer::manifest::Manifest;
use coffer::message::{Report, Source, Style};
use coffer::qemu::Machine;
use coffer::run::{self, Prepared};
use libtest_mimic::{Failed, Trial};
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// After how long a machine counts as hung: more than ten times what the slowest takes.
pub const LIMIT: Duration = Duration::from_secs(240);

/// Why a test failed, in a form that many tests can share.
pub type Result<T> = std::result::Result<T, String>;

/// Makes a test.
pub fn test(name: &str, run: impl FnOnce() -> Result<()> + Send + 'static) -> Trial {
    Trial::test(name, move || run().map_err(Failed::from))
}

/// Says what failed.
pub fn text(error: impl Display) -> String {
    error.to_string()
}

/// One VM of a manifest.
pub struct Vm {
    /// Its name.
    pub name: &'static str,
    /// Its cores, as in a manifest.
    pub cpus: String,
    /// Its memory, as in a manifest.
    pub memory: &'static str,
    /// Its kernel.
    pub kernel: PathBuf,
    /// Its ramdisk.
    pub ramdisk: Option<PathBuf>,
    /// Its command line.
    pub cmdline: String,
}

impl Vm {
    /// Makes a VM of one of our own guests.
    pub fn of_guest(name: &'static str, cpus: &str, guest: &str, cmdline: &str) -> Self {
        Self {
            name,
            cpus: cpus.to_owned(),
            memory: "64M",
            kernel: run::built(guest),
            ramdisk: None,
            cmdline: cmdline.to_owned(),
        }
    }
}

/// Writes the manifest of some VMs; `knobs` are lines of its table `[test]`.
pub fn manifest(vms: &[Vm], knobs: &str) -> String {
    let mut text = String::from("format = 1\nboard = \"qemu-virt\"\n");
    for vm in vms {
        let Vm { name, cpus, memory, kernel, cmdline, .. } = vm;
        text += &format!(
            "\n[vm.{name}]\ncpus = {cpus:?}\nmemory = {memory:?}\nkernel = {:?}\ncmdline = {cmdline:?}\n",
            kernel.display().to_string()
        );
        if let Some(ramdisk) = &vm.ramdisk {
            text += &format!("ramdisk = {:?}\n", ramdisk.display().to_string());
        }
    }
    text + "\n[console]\nmode = \"tagged\"\n\n[test]\n" + knobs + "\n"
}

/// Returns the folder of a test's files, and makes it.
pub fn folder(test: &str) -> Result<PathBuf> {
    let folder = run::work_folder("boot").join(test);
    std::fs::create_dir_all(&folder).map_err(text)?;
    Ok(folder)
}

/// Builds the files of `test` for `machine`.
pub fn prepare(
    test: &str,
    manifest: &str,
    machine: &Machine,
    mut options: Options,
) -> Result<Prepared> {
    build_guests()?;
    let folder = folder(test)?;
    let path = folder.join("manifest.toml");
    std::fs::write(&path, manifest).map_err(text)?;
    options.out = Some(folder);
    if options.hypervisor.is_none() {
        options.hypervisor = Some(hypervisor()?);
    }
    run::prepare(&path, machine, options).map_err(text)
}

/// Returns the command that boots what was prepared for one machine on another one.
pub fn on_other_machine(prepared: &Prepared, machine: &Machine) -> Result<Command> {
    let artifacts = &prepared.artifacts;
    let folder = artifacts.image.parent().ok_or("no folder")?;
    let manifest = std::fs::read_to_string(folder.join("manifest.toml")).map_err(text)?;
    let qemu = board(&manifest, machine)?;
    Ok(machine.command(&qemu, &artifacts.image, Some(&artifacts.bundle)))
}

/// Returns how QEMU starts the board of a manifest as `machine`.
pub fn board(manifest: &str, machine: &Machine) -> Result<Qemu> {
    let source = Source { path: "manifest.toml".into(), text: manifest.to_owned() };
    let manifest = Manifest::parse(Arc::new(source), PathBuf::new()).map_err(refused)?;
    let board = Board::load(&manifest, &machine.overrides()).map_err(refused)?;
    board.qemu.ok_or_else(|| "QEMU does not play this board".to_owned())
}

/// Returns the Image of one of our guests.
pub fn flat_guest(test: &str, guest: &str) -> Result<PathBuf> {
    build_guests()?;
    let elf = std::fs::read(run::built(guest)).map_err(text)?;
    let image = flatten(&elf, By::PhysicalAddress, 64 << 20).map_err(text)?;
    let path = folder(test)?.join("bare.img");
    std::fs::write(&path, image.bytes).map_err(text)?;
    Ok(path)
}

/// Returns the command that boots one of our guests on `machine` without a hypervisor.
pub fn bare_guest(test: &str, guest: &str, machine: &Machine) -> Result<Command> {
    let path = flat_guest(test, guest)?;
    let manifest = manifest(&[Vm::of_guest("bare", "0", guest, "")], "");
    Ok(machine.command(&board(&manifest, machine)?, &path, None))
}

/// Says why a manifest is refused.
pub fn refused(report: Report) -> String {
    report.render(Style::Plain)
}

/// Boots `command` and returns what was said, or what was missing.
pub fn hold(command: Command, script: &Script) -> Result<Outcome> {
    let mut script = script.clone();
    script.limit = LIMIT;
    let outcome = expect::drive(command, &script, |_| {}).map_err(text)?;
    match outcome.report() {
        None => Ok(outcome),
        Some(report) => Err(report),
    }
}

/// Builds and boots, and returns what was said, or what was missing.
pub fn boot(test: &str, manifest: &str, machine: &Machine, script: &Script) -> Result<Outcome> {
    hold(prepare(test, manifest, machine, Options::default())?.command, script)
}

/// Builds a script; a wrong pattern is a failed test.
pub fn script(
    end: expect::End,
    fill: impl FnOnce(&mut Script) -> std::result::Result<(), ScriptError>,
) -> Result<Script> {
    let mut script = Script::new(end);
    fill(&mut script).map_err(text)?;
    Ok(script)
}

/// Builds the hypervisor once and returns its ELF file.
pub fn hypervisor() -> Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf>> = OnceLock::new();
    BUILT.get_or_init(|| build::build_hypervisor("release").map_err(refused)).clone()
}

/// Builds our own guests once.
pub fn build_guests() -> Result<()> {
    static BUILT: OnceLock<Result<()>> = OnceLock::new();
    let build = || {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        command.args(["build", "--release", "--target", "aarch64-unknown-none-softfloat"]);
        command
            .args(["--package", "guest-suite", "--package", "guest-bench"])
            .args(["--package", "guest-spin-table"])
            .current_dir(project_root());
        successful(&mut command)
    };
    BUILT.get_or_init(build).clone()
}

/// Runs a program to its end and returns what it wrote to its standard error where it fails.
pub fn successful(command: &mut Command) -> Result<()> {
    let output = command.output().map_err(text)?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr)))
}

/// Writes the device tree of `prepared`'s board to `file`, its source text changed by `edit`.
pub fn edit_tree(
    prepared: &Prepared,
    file: &Path,
    edit: impl FnOnce(String) -> String,
) -> Result<()> {
    let (before, source) = (file.with_extension("before"), file.with_extension("dts"));
    std::fs::write(&before, &prepared.artifacts.board.tree_bytes).map_err(text)?;
    let dtc = |from: &str, to: &str, input: &Path, output: &Path| {
        let mut command = Command::new("dtc");
        command.args(["-q", "-I", from, "-O", to, "-o"]).arg(output).arg(input);
        successful(&mut command)
    };
    dtc("dtb", "dts", &before, &source)?;
    let edited = edit(std::fs::read_to_string(&source).map_err(text)?);
    std::fs::write(&source, edited).map_err(text)?;
    dtc("dts", "dtb", &source, file)
}
