// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `coffer run` and `coffer test`: builds what a manifest asks for and boots it in QEMU.
//!
//! [`prepare`] is the one place where a machine's tree, the planner and the builder meet; `demo`,
//! `bench` and the boot tests start here too.
#![forbid(unsafe_code)]

mod interactive;

use crate::build::{self, Artifacts};
use crate::expect::{self, Script, ScriptError, junit};
use crate::message::Report;
use crate::qemu::{self, Clock, Entry, Gic, Machine, Semihosting};
use crate::terminal;
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The one board that QEMU plays for us.
const BOARD: &str = "qemu-virt";

/// What a verb that boots something ended with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It did what was asked.
    Done,
    /// It did not, and has said why.
    Failed,
    /// It had to be stopped.
    Hung,
}

/// Why nothing was booted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The manifest or what it names is refused.
    #[error("{0}")]
    Refused(Report),
    /// The manifest is for a board that QEMU does not play.
    #[error("QEMU plays {BOARD}, not {0}: use `coffer build`, or write board = \"{BOARD}\"")]
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

/// The machine that QEMU plays.
#[derive(Clone, Debug, clap::Args)]
pub struct MachineArgs {
    /// The core, as QEMU names it
    #[arg(long, default_value = "cortex-a72")]
    pub cpu: String,
    /// How many cores
    #[arg(long, default_value_t = 4)]
    pub smp: u32,
    /// How much memory
    #[arg(long, default_value = "2G")]
    pub memory: String,
    /// The version of the interrupt controller
    #[arg(long, value_enum, default_value = "3")]
    pub gic: Gic,
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
    pub extra: Vec<OsString>,
}

impl MachineArgs {
    /// Returns the machine that the arguments describe.
    #[must_use]
    pub fn machine(&self) -> Machine {
        Machine {
            cpu: self.cpu.clone(),
            smp: self.smp,
            memory: self.memory.clone(),
            gic: self.gic,
            entry: self.entry,
            clock: if self.icount { Clock::Instructions } else { Clock::Host },
            semihosting: if self.semihosting { Semihosting::On } else { Semihosting::Off },
            extra: self.extra.clone(),
        }
    }
}

/// Boots a manifest in QEMU with this terminal as its serial line
#[derive(Clone, Debug, clap::Args)]
pub struct RunArgs {
    /// The manifest
    pub manifest: PathBuf,
    /// What QEMU plays.
    #[command(flatten)]
    pub machine: MachineArgs,
    /// Reads no keys, tags every line with its VM and ends after a while whatever happens
    #[arg(long)]
    pub batch: bool,
}

/// Boots a manifest in QEMU and checks what each console says
#[derive(Clone, Debug, clap::Args)]
pub struct TestArgs {
    /// The manifest
    pub manifest: PathBuf,
    /// What QEMU plays.
    #[command(flatten)]
    pub machine: MachineArgs,
    /// What each console has to say
    #[arg(long, value_name = "FILE")]
    pub expect: PathBuf,
    /// Writes a JUnit report
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
}

/// Builds what `manifest` asks for, planned for the tree of `machine`.
///
/// # Errors
/// Says why the manifest is refused, or what failed.
pub fn prepare(
    manifest: &Path,
    machine: &Machine,
    mut options: build::Options,
) -> Result<Artifacts, Error> {
    let folder = options.out.clone();
    std::fs::create_dir_all(&folder).map_err(Error::io(folder.display().to_string()))?;
    let tree = folder.join("machine.dtb");
    qemu::dump_tree(machine, &tree).map_err(Error::io("qemu-system-aarch64"))?;
    options.tree = Some(tree);
    let artifacts = build::build(manifest, &options).map_err(Error::Refused)?;
    if artifacts.board != BOARD {
        return Err(Error::Board(artifacts.board));
    }
    Ok(artifacts)
}

/// Carries out `coffer run`.
///
/// # Errors
/// Says why nothing was booted.
pub fn run(args: &RunArgs) -> Result<Verdict, Error> {
    let machine = args.machine.machine();
    let mode = if args.batch { Mode::Tagged } else { Mode::Focus };
    let artifacts = prepare(&args.manifest, &machine, options(&args.manifest, mode))?;
    let command = machine.command(&artifacts.image, Some(&artifacts.bundle));
    if args.batch {
        let script = Script::new(expect::End::Off);
        return expected(command, &script, None);
    }
    interactive::run(command).map_err(Error::io("qemu-system-aarch64"))
}

/// Carries out `coffer test`.
///
/// # Errors
/// Says why nothing was booted.
pub fn test(args: &TestArgs) -> Result<Verdict, Error> {
    let path = &args.expect;
    let text = std::fs::read_to_string(path).map_err(Error::io(path.display().to_string()))?;
    let script =
        Script::parse(&text).map_err(|source| Error::Script { path: path.clone(), source })?;
    let machine = args.machine.machine();
    let artifacts = prepare(&args.manifest, &machine, options(&args.manifest, Mode::Tagged))?;
    let command = machine.command(&artifacts.image, Some(&artifacts.bundle));
    expected(command, &script, args.junit.as_deref())
}

/// Holds `command` to `script`, shows what it says, and says what went wrong.
pub(crate) fn expected(
    command: std::process::Command,
    script: &Script,
    report: Option<&Path>,
) -> Result<Verdict, Error> {
    let echo = |bytes: &[u8]| {
        // A reader that has gone away is no reason to stop the machine.
        let _ = io::stdout().write_all(&terminal::without_marks(bytes));
    };
    let outcome =
        expect::drive(command, script, echo).map_err(Error::io("qemu-system-aarch64"))?;
    if let Some(path) = report {
        let text = junit::report("cofferdam", &outcome);
        std::fs::write(path, text).map_err(Error::io(path.display().to_string()))?;
    }
    let Some(report) = outcome.report() else { return Ok(Verdict::Done) };
    eprintln!("\nerror: {report}");
    Ok(match outcome.problem {
        Some(expect::drive::Problem::Hung { .. }) => Verdict::Hung,
        _ => Verdict::Failed,
    })
}
