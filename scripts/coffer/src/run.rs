// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `coffer run` and `coffer test`: builds what a manifest asks for and boots it in QEMU.
//!
//! [`prepare`] is the one place where the builder and QEMU meet; `demo`,
//! `bench` and the boot tests start here too.
#![forbid(unsafe_code)]

mod interactive;

use crate::board::{Overrides, target_directory};
use crate::build::{self, Artifacts};
use crate::command::{self, Exit};
use crate::expect::{self, Script, ScriptError, junit};
use crate::manifest::value;
use crate::message::{Report, Style};
use crate::qemu::{Clock, Entry, Gic, Machine, Semihosting};
use crate::terminal;
use cofferdam::plan::ConsoleMode;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// What failed, where starting or hearing the machine does.
pub(crate) const QEMU: &str = "qemu-system-aarch64";

/// Why nothing was booted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The manifest or what it names is refused.
    #[error("{}", .0.render(Style::Plain))]
    Refused(Report),
    /// The manifest is for a board that QEMU does not play.
    #[error("QEMU does not play {0}: its board.toml has no [qemu]; use coffer build")]
    Board(String),
    /// The expectations do not read.
    #[error("{path}: {source}")]
    Script {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: ScriptError,
    },
    /// A file or a program failed.
    #[error("{what}: {source}")]
    Io {
        /// The file or program.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// A tool that was started did not do its work; it has said why.
    #[error("{0} failed")]
    Tool(String),
}

impl Error {
    /// Makes the error of the file or program `what`.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

/// What QEMU plays, where it is not what the board's description says.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct MachineArgs {
    /// The model of the cores, as QEMU names it
    #[arg(long)]
    pub cpu: Option<String>,
    /// How many cores
    #[arg(long)]
    pub smp: Option<u32>,
    /// How much memory
    #[arg(long, value_parser = size)]
    pub memory: Option<u64>,
    /// The version of the interrupt controller
    #[arg(long, value_enum)]
    pub gic: Option<Gic>,
    /// The exception level at which the image is entered
    #[arg(long, value_enum, default_value = "el2")]
    pub entry: Entry,
    /// Makes time follow executed instructions: exactly repeatable, and slow
    #[arg(long)]
    pub icount: bool,
    /// Lets a guest end QEMU with a status of its own
    #[arg(long)]
    pub semihosting: bool,
    /// Another argument for QEMU, as it is; may be repeated
    #[arg(long = "qemu", value_name = "ARGUMENT", allow_hyphen_values = true)]
    pub extra: Vec<String>,
}

impl MachineArgs {
    /// Returns the machine that the arguments describe.
    #[must_use]
    pub fn machine(&self) -> Machine {
        Machine {
            cpu: self.cpu.clone(),
            smp: self.smp,
            memory_bytes: self.memory,
            gic: self.gic,
            entry: self.entry,
            clock: if self.icount { Clock::Instructions } else { Clock::Host },
            semihosting: if self.semihosting { Semihosting::On } else { Semihosting::Off },
            extra: self.extra.clone(),
        }
    }
}

fn limit(text: &str) -> Result<Duration, String> {
    expect::duration(text).ok_or_else(|| "write for example 90s or 5min".to_owned())
}

fn size(text: &str) -> Result<u64, String> {
    value::size(text).map_err(|wrong| wrong.why)
}

/// What is booted, and where.
#[derive(Clone, Debug, clap::Args)]
pub struct BootArgs {
    /// The manifest
    pub manifest: PathBuf,
    /// What QEMU plays.
    #[command(flatten)]
    pub machine: MachineArgs,
    /// Takes this ELF file instead of building the hypervisor
    #[arg(long, value_name = "ELF")]
    pub hypervisor: Option<PathBuf>,
}

/// Boots a manifest in QEMU with this terminal as its serial line
#[derive(Clone, Debug, clap::Args)]
pub struct RunArgs {
    /// What is booted, and where.
    #[command(flatten)]
    pub boot: BootArgs,
    /// Reads no keys, tags every line with its VM and ends when the machine goes off
    #[arg(long)]
    pub batch: bool,
    /// After how long an unattended machine counts as hung
    #[arg(long, requires = "batch", value_parser = limit, default_value = "5min")]
    pub limit: Duration,
}

/// Boots a manifest in QEMU and checks what each console says
#[derive(Clone, Debug, clap::Args)]
pub struct TestArgs {
    /// What is booted, and where.
    #[command(flatten)]
    pub boot: BootArgs,
    /// What each console has to say
    #[arg(long, value_name = "FILE")]
    pub expect: PathBuf,
    /// Writes a JUnit report
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
}

impl BootArgs {
    fn prepare(&self, console: Option<ConsoleMode>) -> Result<Prepared, Error> {
        let hypervisor = self.hypervisor.clone();
        let options = build::Options { console, hypervisor, ..build::Options::default() };
        prepare(&self.manifest, &self.machine.machine(), options)
    }
}

/// What a manifest asks for, built and ready to boot.
#[derive(Debug)]
pub struct Prepared {
    /// What was built.
    pub artifacts: Artifacts,
    /// The command that boots it.
    pub command: Command,
}

/// Builds what `manifest` asks for, planned for `machine`.
///
/// # Errors
/// Says why the manifest is refused, or what failed.
pub fn prepare(
    manifest: &Path,
    machine: &Machine,
    mut options: build::Options,
) -> Result<Prepared, Error> {
    let tree = options.overrides.tree.take();
    options.overrides = Overrides { tree, ..machine.overrides() };
    let artifacts = build::build(manifest, &options).map_err(Error::Refused)?;
    let Some(board) = &artifacts.board.qemu else {
        return Err(Error::Board(artifacts.board.name.to_string()));
    };
    let command = machine.command(board, &artifacts.image, Some(&artifacts.bundle));
    command::print_report(&artifacts.warnings);
    Ok(Prepared { artifacts, command })
}

/// Says why nothing was booted, where that is so, and how the tool ends.
#[must_use]
pub fn finish(result: Result<Exit, Error>) -> Exit {
    match result {
        Ok(exit) => exit,
        Err(Error::Refused(report)) => command::refuse(&report, false),
        Err(error) => {
            eprintln!("error: {error}");
            Exit::Failed
        }
    }
}

/// Carries out `coffer run`.
///
/// # Errors
/// Says why nothing was booted.
pub fn run(args: &RunArgs) -> Result<Exit, Error> {
    if args.batch {
        let prepared = args.boot.prepare(Some(ConsoleMode::Tagged))?;
        let script = Script { limit: args.limit, ..Script::new(expect::End::Off) };
        return expected(prepared.command, &script, None);
    }
    attend(args.boot.prepare(None)?.command)
}

/// Starts `command` with this terminal as its serial line.
pub(crate) fn attend(command: Command) -> Result<Exit, Error> {
    interactive::run(command).map_err(Error::io(QEMU))
}

/// Carries out `coffer test`.
///
/// # Errors
/// Says why nothing was booted.
pub fn test(args: &TestArgs) -> Result<Exit, Error> {
    let path = &args.expect;
    let text = std::fs::read_to_string(path).map_err(Error::io(path.display().to_string()))?;
    let script =
        Script::parse(&text).map_err(|source| Error::Script { path: path.clone(), source })?;
    let prepared = args.boot.prepare(Some(ConsoleMode::Tagged))?;
    expected(prepared.command, &script, args.junit.as_deref())
}

/// Holds `command` to `script`, shows what it says, and says what went wrong.
pub(crate) fn expected(
    command: Command,
    script: &Script,
    report: Option<&Path>,
) -> Result<Exit, Error> {
    let echo = |bytes: &[u8]| {
        // A reader that has gone away is no reason to stop the machine.
        let _ = io::stdout().write_all(&terminal::without_marks(bytes));
    };
    let outcome = expect::drive(command, script, echo).map_err(Error::io(QEMU))?;
    if let Some(path) = report {
        let text = junit::report("cofferdam", &outcome);
        std::fs::write(path, text).map_err(Error::io(path.display().to_string()))?;
    }
    let Some(report) = outcome.report() else { return Ok(Exit::Done) };
    eprintln!("\nerror: {report}");
    Ok(match outcome.problem {
        Some(expect::drive::Problem::Hung { .. }) => Exit::Timeout,
        _ => Exit::Failed,
    })
}

/// Returns where cargo puts the bare-metal program `name`.
#[must_use]
pub fn built(name: &str) -> PathBuf {
    target_directory().join("aarch64-unknown-none-softfloat/release").join(name)
}

/// Returns the folder for the files of the task `name`.
#[must_use]
pub fn work_folder(name: &str) -> PathBuf {
    target_directory().join("coffer").join(name)
}
