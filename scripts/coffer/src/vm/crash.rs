// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What `coffer vm crash` shows: why a VM has crashed, and where its vCPUs were (docs/control.md).
//!
//! The registers are kept until the next crash; the memory only as long as the VM is held. What
//! the machine says is checked as a guest's word would be.
#![forbid(unsafe_code)]

mod report;

use super::client::{Client, ClientError, Row};
use super::port::Port;
use super::{LineArgs, PATIENCE};
use crate::crash::backtrace::backtrace;
use crate::crash::core_file::{self, Written};
use crate::crash::names::Names;
use crate::crash::{Cached, Memory, PAGE, Page, Registers, translate};
use cofferdam::control::Request;
pub use report::{CoreReport, Place, Report, VcpuReport};
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::NamedTempFile;

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
    /// Writes the memory and the registers as a core file for gdb
    #[arg(long, value_name = "FILE")]
    core: Option<PathBuf>,
    /// The guest's ELF file, or the Image of its Linux kernel: names of functions come from there
    #[arg(long, value_name = "ELF")]
    elf: Option<PathBuf>,
    #[command(flatten)]
    pub(super) line: LineArgs,
}

impl CrashArgs {
    pub(super) fn wanted(&self) -> Wanted<'_> {
        let detail = if self.full || self.line.json { Detail::Full } else { Detail::Brief };
        Wanted { detail, core: self.core.as_deref(), elf: self.elf.as_deref() }
    }
}

/// What is wanted of a crash.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// How much is shown.
    pub detail: Detail,
    /// Where a core file is to be written.
    pub core: Option<&'a Path>,
    /// Where names come from.
    pub elf: Option<&'a Path>,
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

/// A crash, as the machine tells it.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Crash {
    cause: String,
    vcpu: u64,
    at_ticks: u64,
    now_ticks: u64,
    count: u64,
    state: String,
    ram: Range<u64>,
    /// The registers of each vCPU that was on, in the order in which they are told.
    vcpus: BTreeMap<u64, Vec<(String, u64)>>,
}

impl Crash {
    fn ask<P: Port>(client: &mut Client<P>, vm: &str) -> Result<Self, ClientError> {
        let rows = client.ask(&Request::Crash { vm }.to_string(), PATIENCE)?;
        Self::parse(&rows).map_err(ClientError::Strange)
    }

    fn parse(rows: &[Row]) -> Result<Self, String> {
        let (first, rows) = rows.split_first().ok_or("a crash without rows")?;
        if first.get("what") != "crash" {
            return Err(format!("{first:?} in place of a crash"));
        }
        let take = |key: &str| number(first.get(key));
        let (start, bytes) = (take("ram")?, take("ram_bytes")?);
        let end = start.checked_add(bytes).ok_or("memory without end")?;
        if start % PAGE_U64 != 0 || end % PAGE_U64 != 0 {
            return Err("memory that is no pages".to_owned());
        }
        let mut vcpus: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for row in rows.iter().filter(|row| row.get("what") == "vcpu") {
            let registers = vcpus.entry(number(row.get("vcpu"))?).or_default();
            for (key, value) in row.0.iter().filter(|(key, _)| key != "what" && key != "vcpu") {
                registers.push((key.clone(), number(value)?));
            }
        }
        Ok(Self {
            cause: first.get("cause").to_owned(),
            vcpu: take("vcpu")?,
            at_ticks: take("at_ticks")?,
            now_ticks: take("now_ticks")?,
            count: take("count")?,
            state: first.get("state").to_owned(),
            ram: start..end,
            vcpus,
        })
    }

    /// Returns the registers of the vCPUs, those of the one that has crashed in front.
    fn registers(&self) -> Vec<(u64, Registers)> {
        let all = self.vcpus.iter().map(|(vcpu, values)| (*vcpu, registers(values)));
        let mut all: Vec<_> = all.collect();
        all.sort_by_key(|(vcpu, _)| (*vcpu != self.vcpu, *vcpu));
        all
    }

    /// Returns whether the memory is as the crash has left it.
    fn is_kept(&self) -> bool {
        self.state == HELD
    }
}

fn number(text: &str) -> Result<u64, String> {
    let read = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    read.map_err(|_| format!("{text:?} in place of a number"))
}

fn registers(values: &[(String, u64)]) -> Registers {
    let get = |name: &str| values.iter().find(|(own, _)| own == name).map_or(0, |(_, v)| *v);
    let pstate = get("pstate");
    // M[3:0] is 5 at EL1 with SP_EL1; all else that runs here uses SP_EL0.
    let sp = if pstate & 0xf == 5 { "sp_el1" } else { "sp_el0" };
    Registers {
        x: std::array::from_fn(|n| get(&format!("x{n}"))),
        sp: get(sp),
        pc: get("pc"),
        pstate,
        sctlr: get("sctlr_el1"),
        tcr: get("tcr_el1"),
        ttbr0: get("ttbr0_el1"),
        ttbr1: get("ttbr1_el1"),
        vbar: get("vbar_el1"),
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
    let digits = row.get("bytes").as_bytes();
    let place = page.get_mut(at..at.checked_add(digits.len() / 2)?)?;
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    let digit = |digit: &u8| char::from(*digit).to_digit(16).and_then(|n| u8::try_from(n).ok());
    for (byte, pair) in place.iter_mut().zip(digits.chunks_exact(2)) {
        let [high, low] = pair else { return None };
        *byte = digit(high)? << 4 | digit(low)?;
    }
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
    let crash = Crash::ask(client, vm)?;
    let vcpus = crash.registers();
    if wanted.core.is_some() && !crash.is_kept() {
        return Err(CrashError::NotKept { vm: vm.to_owned(), state: crash.state });
    }
    let ram = crash.is_kept().then(|| crash.ram.clone());
    let mut memory = Cached::new(HeldMemory { client, vm, ram });
    let mut report = Report::new(vm, &crash, ago(&crash, hz));
    describe(&mut report, &mut memory, &crash, &vcpus, wanted)?;
    let core = wanted.core.map(|path| write_core(path, &mut memory, vm, &vcpus)).transpose()?;
    // Memory of a VM that was let go reads as zero.
    let after = Crash::ask(client, vm)?;
    if crash.is_kept() && (after.at_ticks, &after.state) != (crash.at_ticks, &crash.state) {
        return Err(CrashError::Changed(vm.to_owned()));
    }
    if let (Some((file, written)), Some(path)) = (core, wanted.core) {
        file.persist(path).map_err(|error| CrashError::of_file(path)(error.error))?;
        report.core = Some(CoreReport::new(path, written));
    }
    Ok(report)
}

/// Says where the vCPUs were, the one that has crashed in front.
fn describe(
    report: &mut Report,
    memory: &mut impl Memory,
    crash: &Crash,
    vcpus: &[(u64, Registers)],
    wanted: &Wanted<'_>,
) -> Result<(), CrashError> {
    let names = match (wanted.elf, vcpus.first()) {
        (Some(path), Some((_, registers))) => Some(read_names(path, memory, registers)?),
        _ => None,
    };
    let place = |pc: u64, lookup: u64| {
        let found = names.as_ref().and_then(|names| names.function(lookup));
        // How far PC is, which may be where the next function begins.
        let offset = |offset: u64| offset.saturating_add(pc.saturating_sub(lookup));
        let function = found.map(|(name, at)| format!("{name}+{:#x}", offset(at)));
        Place { pc, function }
    };
    for (vcpu, registers) in vcpus {
        if *vcpu == crash.vcpu {
            report.at = Some(place(registers.pc, registers.pc));
        }
        if wanted.detail == Detail::Full {
            let frames = backtrace(memory, registers).map_err(CrashError::of_memory)?;
            let frames = frames.iter().map(|frame| place(frame.pc, frame.lookup())).collect();
            report.add_vcpu(*vcpu, crash.vcpus.get(vcpu).map_or(&[], Vec::as_slice), frames);
        }
    }
    Ok(())
}

fn ago(crash: &Crash, hz: u64) -> Duration {
    let ticks = u128::from(crash.now_ticks.saturating_sub(crash.at_ticks));
    let ms = ticks * 1000 / u128::from(hz.max(1));
    Duration::from_millis(u64::try_from(ms).unwrap_or(u64::MAX))
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

/// Writes a core file under another name: one that does not become whole is none.
fn write_core(
    path: &Path,
    memory: &mut impl Memory,
    vm: &str,
    vcpus: &[(u64, Registers)],
) -> Result<(NamedTempFile, Written), CrashError> {
    let all: Vec<_> = vcpus.iter().map(|(_, registers)| *registers).collect();
    let first = all.first().ok_or_else(|| CrashError::NoVcpu(vm.to_owned()))?;
    let mappings = translate::mappings(memory, first).map_err(CrashError::of_memory)?;
    let failed = CrashError::of_file(path);
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let mut file = NamedTempFile::new_in(folder).map_err(&failed)?;
    let written = core_file::write(&mut file, memory, vm, &all, &mappings).map_err(&failed)?;
    Ok((file, written))
}

#[cfg(test)]
mod tests;
