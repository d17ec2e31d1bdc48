// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A crash as text and as JSON.
#![forbid(unsafe_code)]

use super::rows::Crash;
use crate::crash::core_file::Written;
use crate::crash::hex;
use crate::crash::map::Area;
use crate::message::bytes;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// Registers in a line.
const COLUMNS: usize = 3;

/// What is told of a crash. In JSON, registers and addresses are text in hexadecimal.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Report {
    /// The VM.
    pub vm: String,
    /// Why it has crashed: the word of the protocol.
    pub cause: String,
    /// On which vCPU.
    pub vcpu: u64,
    /// How long ago.
    pub ago_ms: u128,
    /// How many crashes in a row this was.
    pub count: u64,
    /// What the VM does now.
    pub state: String,
    /// Where the vCPU was.
    pub at: Option<Place>,
    /// Who has made the guest's kernel panic, where that is seen.
    pub panic: Option<PanicReport>,
    /// All vCPUs that were on, where they are wanted.
    pub vcpus: Vec<VcpuReport>,
    /// Where the guest has memory and devices, where that is wanted.
    pub map: Vec<Area>,
    /// The last that the guest has said, likewise; what is no text is escaped.
    pub console: Vec<String>,
    /// What was written.
    pub core: Option<CoreReport>,
    #[serde(skip)]
    ago: Duration,
}

/// An instruction.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Place {
    /// Its address.
    #[serde(serialize_with = "hex")]
    pub pc: u64,
    /// The function that it is in, and how far: `name+0x…`.
    pub function: Option<String>,
}

/// A kernel that has panicked.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct PanicReport {
    /// The vCPU on which it did.
    pub vcpu: u64,
    /// The call.
    pub by: Place,
}

/// Where a vCPU was.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct VcpuReport {
    /// Its number.
    pub vcpu: u64,
    /// Its registers by name.
    #[serde(serialize_with = "hex_map")]
    pub registers: Vec<(String, u64)>,
    /// The calls that it is in, the innermost first.
    pub backtrace: Vec<Place>,
    /// What it has left its guest for, the last one behind.
    pub exits: Vec<ExitReport>,
}

/// An exit.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct ExitReport {
    /// How long before the crash.
    pub before_us: u128,
    /// Where the guest was.
    #[serde(flatten)]
    pub place: Place,
    /// ESR_EL2; for an interrupt 2^63 and its number.
    #[serde(serialize_with = "hex")]
    pub syndrome: u64,
    /// Why, in words.
    pub why: String,
}

/// A core file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct CoreReport {
    /// Where it is.
    pub path: PathBuf,
    /// The memory that is in it; all else is zero.
    pub memory_bytes: u64,
    /// The names of the kernel's functions, for a debugger.
    pub symbols: Option<PathBuf>,
    /// Whether the guest maps more than it has room for.
    pub is_cut: bool,
}

fn hex_map<S: serde::Serializer>(
    values: &[(String, u64)],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let texts: BTreeMap<_, _> = values.iter().map(|(k, v)| (k, format!("{v:#x}"))).collect();
    texts.serialize(serializer)
}

impl CoreReport {
    pub(super) fn new(path: PathBuf, symbols: Option<PathBuf>, written: Written) -> Self {
        let memory_bytes = written.pages.saturating_mul(super::PAGE_U64);
        Self { path, memory_bytes, symbols, is_cut: written.is_cut }
    }
}

impl Report {
    pub(super) fn new(vm: &str, crash: &Crash) -> Self {
        let ago = crash.time(crash.now_ticks.saturating_sub(crash.at_ticks));
        Self {
            vm: vm.to_owned(),
            cause: crash.cause.clone(),
            vcpu: crash.vcpu,
            ago_ms: ago.as_millis(),
            count: crash.count,
            state: crash.state.clone(),
            at: None,
            panic: None,
            vcpus: Vec::new(),
            map: Vec::new(),
            console: Vec::new(),
            core: None,
            ago,
        }
    }

    /// Tells what is around the vCPUs.
    pub(super) fn add_surroundings(&mut self, crash: &Crash) {
        self.map.clone_from(&crash.map.0);
        self.console = lines(&crash.said);
    }

    pub(super) fn add_vcpu(
        &mut self,
        vcpu: u64,
        crash: &Crash,
        backtrace: Vec<Place>,
        place: impl Fn(u64, u64) -> Place,
    ) {
        let Some(own) = crash.vcpus.get(&vcpu) else { return };
        let exits = own.exits.iter().map(|exit| ExitReport {
            before_us: crash.time(crash.at_ticks.saturating_sub(exit.at_ticks)).as_micros(),
            place: place(exit.pc, exit.lookup()),
            syndrome: exit.syndrome,
            why: exit.to_text(&crash.map),
        });
        let (registers, exits) = (own.registers.clone(), exits.collect());
        self.vcpus.push(VcpuReport { vcpu, registers, backtrace, exits });
    }

    /// Writes it for a person.
    #[must_use]
    pub fn to_text(&self) -> String {
        let Self { vm, vcpu, count, state, .. } = self;
        let now = if state == super::HELD { String::new() } else { format!(", now {state}") };
        let (cause, ago) = (cause(&self.cause), age(self.ago));
        let mut text =
            format!("{vm} crashed: {cause} (vcpu {vcpu}, {ago} ago, {count} in a row{now})\n");
        if let Some(place) = &self.at {
            let by = |panic: &PanicReport| {
                let PanicReport { vcpu, by: Place { pc, function } } = panic;
                let by = function.clone().unwrap_or_else(|| format!("{pc:#018x}"));
                format!(", panic by {by} on vcpu {vcpu}")
            };
            let by = self.panic.as_ref().map(by).unwrap_or_default();
            text += &format!("  at pc {}{by}\n", place.to_text());
        }
        for vcpu in &self.vcpus {
            text += &vcpu.to_text();
        }
        if !self.map.is_empty() {
            text += "  addresses\n";
        }
        for Area { kind, at, bytes: size, name } in &self.map {
            text += &format!("    {at:#014x} {:>6} {kind:6} {name}\n", bytes(*size));
        }
        if !self.console.is_empty() {
            text += "  the last that it has said\n";
        }
        for line in &self.console {
            text += &format!("    | {line}\n");
        }
        if let Some(CoreReport { path, memory_bytes, symbols, is_cut }) = &self.core {
            let cut = if *is_cut { ", not all that is mapped" } else { "" };
            text += &format!("  core {}: {}{cut}\n", path.display(), bytes(*memory_bytes));
            if let Some(symbols) = symbols {
                text += &format!("  gdb {} {}\n", symbols.display(), path.display());
            }
        }
        text
    }
}

impl Place {
    fn to_text(&self) -> String {
        let function = self.function.as_ref().map(|name| format!(" {name}"));
        format!("{:#018x}{}", self.pc, function.unwrap_or_default())
    }
}

impl VcpuReport {
    fn to_text(&self) -> String {
        let mut text = format!("  vcpu {}\n", self.vcpu);
        for row in self.registers.chunks(COLUMNS) {
            let row: Vec<_> = row.iter().map(|(k, v)| format!("{k:>14} {v:#018x}")).collect();
            text += &format!("  {}\n", row.join(" "));
        }
        for (n, place) in self.backtrace.iter().enumerate() {
            text += &format!("    #{n:<2} {}\n", place.to_text());
        }
        for ExitReport { before_us, place, why, .. } in &self.exits {
            text += &format!("    {before_us:>9} us before, {}: {why}\n", place.to_text());
        }
        text
    }
}

/// Makes lines of what a guest has said: what would change a terminal is escaped, and so is what
/// is no text.
fn lines(said: &[u8]) -> Vec<String> {
    let lines = said.split(|byte| *byte == b'\n');
    let mut lines: Vec<String> = lines
        .map(|line| {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let text = line.utf8_chunks().map(|chunk| {
                let valid = chunk.valid().chars().map(|c| match c {
                    '\t' => c.to_string(),
                    c if c.is_control() => c.escape_default().to_string(),
                    c => c.to_string(),
                });
                let invalid = chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}"));
                valid.chain(invalid).collect::<String>()
            });
            text.collect()
        })
        .collect();
    // What is behind the last line feed is nothing, or a line that is not whole.
    if lines.last().is_some_and(String::is_empty) {
        lines.pop();
    }
    lines
}

/// Returns the words for a cause.
fn cause(word: &str) -> &str {
    match word {
        "panicked" => "its guest has panicked",
        "watchdog" => "its watchdog has fired",
        "no-vector" => "it cannot take an exception: its vector is no memory",
        "stuck" => "its core was stuck at EL2",
        // What a later hypervisor says.
        other => other,
    }
}

fn age(ago: Duration) -> String {
    match ago.as_secs() {
        0 => format!("{} ms", ago.as_millis()),
        s @ 1..120 => format!("{s} s"),
        s @ 120..7200 => format!("{} min", s / 60),
        s => format!("{} h", s / 3600),
    }
}
