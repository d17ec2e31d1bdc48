// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What `coffer vm crash` shows: why a VM has crashed, and where its vCPUs were (docs/control.md).
//!
//! The registers are kept until the next crash; the memory only as long as the VM is held. What
//! the machine says is checked as a guest's word would be.
#![forbid(unsafe_code)]

mod cores;
mod report;
mod rows;

use super::client::{Client, ClientError, Row};
use super::port::Port;
use super::{LineArgs, PATIENCE};
use crate::crash::backtrace::{Frame, backtrace};
use crate::crash::names::Names;
use crate::crash::{Cached, Memory, PAGE, Page, Registers};
use cofferdam::control::Request;
use cores::Core;
pub use report::{CoreReport, ExitReport, PanicReport, Place, Report, VcpuReport};
use rows::{Crash, number};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

const PAGE_U64: u64 = PAGE as u64;
/// The same, as a request has it.
const READ_BYTES: u32 = 4096;
const _: () = assert!(READ_BYTES as u64 == PAGE_U64);
/// The state in which the memory is as the crash has left it. A VM that is paused has gone on.
const HELD: &str = "crashed";

#[derive(Clone, Debug, clap::Args)]
pub(super) struct CrashArgs {
    /// The VM
    pub(super) name: String,
    /// Shows all registers and the calls of each vCPU
    #[arg(long)]
    full: bool,
    /// Writes a core file for gdb: the registers, and what of the memory a backtrace needs
    #[arg(long, value_name = "FILE")]
    core: Option<PathBuf>,
    /// The same with all memory, which takes its time
    #[arg(long, value_name = "FILE", conflicts_with = "core")]
    core_all: Option<PathBuf>,
    /// The guest's ELF file, or the Image of its Linux kernel: names of functions come from there
    #[arg(long, value_name = "ELF")]
    elf: Option<PathBuf>,
    #[command(flatten)]
    pub(super) line: LineArgs,
}

impl CrashArgs {
    pub(super) fn wanted(&self) -> Wanted<'_> {
        let detail = if self.full || self.line.json { Detail::Full } else { Detail::Brief };
        let brief = self.core.as_deref().map(|path| WantedCore { path, extent: Extent::Brief });
        let all = self.core_all.as_deref().map(|path| WantedCore { path, extent: Extent::All });
        Wanted { detail, core: brief.or(all), elf: self.elf.as_deref() }
    }
}

/// What is wanted of a crash.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// How much is shown.
    pub detail: Detail,
    /// Where a core file is to be written.
    pub core: Option<WantedCore<'a>>,
    /// Where names come from.
    pub elf: Option<&'a Path>,
}

/// What core file is wanted.
#[derive(Clone, Copy, Debug)]
pub struct WantedCore<'a> {
    /// Where.
    pub path: &'a Path,
    /// How much of the memory is in it.
    pub extent: Extent,
}

/// How much of the memory is in a core file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Extent {
    /// What a backtrace needs.
    Brief,
    /// All of it.
    All,
}

/// How much is shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Detail {
    /// What has happened, and where.
    Brief,
    /// All registers and the calls too.
    Full,
}

/// Why a crash cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum CrashError {
    /// The machine did not answer.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The memory is not what it was.
    #[error(
        "{vm} is {state}, so its memory is not that of the crash: write on_crash = \"preserve\" \
         in its manifest"
    )]
    NotKept {
        /// The VM.
        vm: String,
        /// What it does now.
        state: String,
    },
    /// It was let go meanwhile.
    #[error("{0} did not stay as it was while its memory was read")]
    Changed(String),
    /// There is nothing to write to a core file.
    #[error("no vCPU of {0} was on")]
    NoVcpu(String),
    /// A file has no names.
    #[error("{}: {why}", path.display())]
    Names {
        /// Which.
        path: PathBuf,
        /// Why.
        why: &'static str,
    },
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl CrashError {
    /// Returns the code in JSON.
    #[must_use]
    pub fn code(&self) -> &str {
        match self {
            Self::Client(error) => error.code(),
            Self::NotKept { .. } => "not-kept",
            Self::Changed(_) => "changed",
            Self::NoVcpu(_) => "no-vcpu",
            Self::Names { .. } => "names",
            Self::File { .. } => "file",
        }
    }

    /// Tells errors of the line, which come through the memory, from those of a file.
    fn of_file(path: &Path) -> impl Fn(io::Error) -> Self + '_ {
        |error| match error.downcast::<ClientError>() {
            Ok(error) => Self::Client(error),
            Err(source) => Self::File { path: path.to_owned(), source },
        }
    }

    fn of_memory(error: io::Error) -> Self {
        let client = error.downcast::<ClientError>();
        Self::Client(client.unwrap_or_else(ClientError::Line))
    }
}

/// The memory of a VM that is held, by the port for requests.
struct HeldMemory<'a, P> {
    client: &'a mut Client<P>,
    vm: &'a str,
    ram: Option<Range<u64>>,
}

impl<P: Port> Memory for HeldMemory<'_, P> {
    fn ranges(&self) -> Vec<Range<u64>> {
        self.ram.iter().cloned().collect()
    }

    fn page(&mut self, ipa: u64) -> io::Result<Page> {
        let request = Request::Read { vm: self.vm, at: ipa, bytes: READ_BYTES };
        let rows = self.client.ask(&request.to_string(), PATIENCE).map_err(io::Error::other)?;
        if rows.is_empty() {
            return Ok(Page::Zero);
        }
        let mut page = vec![0; PAGE];
        for row in rows {
            let strange = || io::Error::other(ClientError::Strange(format!("{row:?} of memory")));
            put(&mut page, ipa, &row).ok_or_else(strange)?;
        }
        Ok(Page::Bytes(page.into()))
    }
}

/// Puts the bytes of a row into the page at `ipa`.
fn put(page: &mut [u8], ipa: u64, row: &Row) -> Option<()> {
    let at = usize::try_from(number(row.get("at")).ok()?.checked_sub(ipa)?).ok()?;
    let bytes = rows::bytes(row)?;
    page.get_mut(at..at.checked_add(bytes.len())?)?.copy_from_slice(&bytes);
    Some(())
}

/// Looks at the last crash of a VM.
///
/// # Errors
/// Says what is not there or does not read.
pub fn look<P: Port>(
    client: &mut Client<P>,
    vm: &str,
    wanted: &Wanted<'_>,
) -> Result<Report, CrashError> {
    let hello = client.ask(&Request::Hello.to_string(), PATIENCE)?;
    let hz = number(hello.first().map_or("", |row| row.get("counter_hz")));
    let hz = hz.map_err(ClientError::Strange)?;
    let crash = Crash { hz, ..Crash::ask(client, vm)? };
    if wanted.core.is_some() && !crash.is_kept() {
        return Err(CrashError::NotKept { vm: vm.to_owned(), state: crash.state });
    }
    let ram = crash.is_kept().then(|| crash.ram.clone());
    let mut memory = Cached::new(HeldMemory { client, vm, ram });
    let all = crash.registers();
    let names = match (wanted.elf, all.first()) {
        (Some(path), Some((_, registers))) => Some(read_names(path, &mut memory, registers)?),
        _ => None,
    };
    let wants_calls = names.is_some() || wanted.core.is_some() || wanted.detail == Detail::Full;
    let mut vcpus = Vec::new();
    for (vcpu, registers) in all {
        let frames = if wants_calls { backtrace(&mut memory, &registers) } else { Ok(Vec::new()) };
        let frames = frames.map_err(CrashError::of_memory)?;
        let panic = names.as_ref().and_then(|names| panic_in(&frames, names));
        vcpus.push(Held { vcpu, registers, frames, panic });
    }
    // A watchdog is served by one vCPU for all: the one that has panicked is what matters.
    vcpus.sort_by_key(|own| own.panic.is_none());
    let mut report = Report::new(vm, &crash);
    describe(&mut report, &crash, &vcpus, names.as_ref(), wanted.detail);
    let core =
        wanted.core.map(|core| Core::write(core, &mut memory, &crash, &vcpus, names.as_ref()));
    let core = core.transpose()?;
    // Memory of a VM that was let go reads as zero.
    let after = Crash::ask(client, vm)?;
    let is_other = after.at_ticks != crash.at_ticks;
    if is_other || crash.is_kept() && after.state != crash.state {
        return Err(CrashError::Changed(vm.to_owned()));
    }
    report.core = core.map(Core::keep).transpose()?;
    Ok(report)
}

/// A vCPU where it was held.
struct Held {
    vcpu: u64,
    registers: Registers,
    frames: Vec<Frame>,
    /// The call that has made the guest's kernel panic.
    panic: Option<Frame>,
}

/// Finds the call of the function by which kernels panic, below which all is about telling it.
fn panic_in(frames: &[Frame], names: &Names) -> Option<Frame> {
    const PANIC: [&str; 3] = ["panic", "vpanic", "nmi_panic"];
    let is_panic = |frame: &Frame| {
        names.function(frame.lookup()).is_some_and(|(name, _)| PANIC.contains(&name))
    };
    let last = frames.iter().rposition(is_panic)?;
    frames.get(last + 1).copied()
}

/// Says where the vCPUs were.
fn describe(
    report: &mut Report,
    crash: &Crash,
    vcpus: &[Held],
    names: Option<&Names>,
    detail: Detail,
) {
    let place = |pc: u64, lookup: u64| {
        let found = names.and_then(|names| names.function(lookup));
        // How far PC is, which may be where the next function begins.
        let offset = |offset: u64| offset.saturating_add(pc.saturating_sub(lookup));
        let function = found.map(|(name, at)| format!("{name}+{:#x}", offset(at)));
        Place { pc, function }
    };
    if let Some(Held { vcpu, registers, panic, .. }) = vcpus.first() {
        let is_it = panic.is_some() || *vcpu == crash.vcpu;
        report.at = is_it.then(|| place(registers.pc, registers.pc));
        let by = panic.map(|frame| place(frame.pc, frame.lookup()));
        report.panic = by.map(|by| PanicReport { vcpu: *vcpu, by });
    }
    if detail == Detail::Full {
        report.add_surroundings(crash);
        for Held { vcpu, frames, .. } in vcpus {
            let frames = frames.iter().map(|frame| place(frame.pc, frame.lookup())).collect();
            report.add_vcpu(*vcpu, crash, frames, place);
        }
    }
}

fn read_names(
    path: &Path,
    memory: &mut impl Memory,
    registers: &Registers,
) -> Result<Names, CrashError> {
    let file = std::fs::read(path).map_err(CrashError::of_file(path))?;
    let names = Names::read(&file, memory, registers).map_err(CrashError::of_memory)?;
    names.map_err(|why| CrashError::Names { path: path.to_owned(), why })
}

#[cfg(test)]
mod tests;
