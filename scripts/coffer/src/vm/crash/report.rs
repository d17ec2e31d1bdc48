// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A crash as text and as JSON.
#![forbid(unsafe_code)]

use super::{Crash, Written};
use crate::message::bytes;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
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
    /// All vCPUs that were on, where they are wanted.
    pub vcpus: Vec<VcpuReport>,
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
}

/// A core file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct CoreReport {
    /// Where it is.
    pub path: PathBuf,
    /// The memory that is in it; all else is zero.
    pub memory_bytes: u64,
    /// Whether the guest maps more than it has room for.
    pub is_cut: bool,
}

fn hex<S: serde::Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{value:#x}"))
}

fn hex_map<S: serde::Serializer>(
    values: &[(String, u64)],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let texts: BTreeMap<_, _> = values.iter().map(|(k, v)| (k, format!("{v:#x}"))).collect();
    texts.serialize(serializer)
}

impl CoreReport {
    pub(super) fn new(path: &Path, written: Written) -> Self {
        let memory_bytes = written.pages.saturating_mul(super::PAGE_U64);
        Self { path: path.to_owned(), memory_bytes, is_cut: written.is_cut }
    }
}

impl Report {
    pub(super) fn new(vm: &str, crash: &Crash, ago: Duration) -> Self {
        Self {
            vm: vm.to_owned(),
            cause: crash.cause.clone(),
            vcpu: crash.vcpu,
            ago_ms: ago.as_millis(),
            count: crash.count,
            state: crash.state.clone(),
            at: None,
            vcpus: Vec::new(),
            core: None,
            ago,
        }
    }

    pub(super) fn add_vcpu(
        &mut self,
        vcpu: u64,
        registers: &[(String, u64)],
        backtrace: Vec<Place>,
    ) {
        self.vcpus.push(VcpuReport { vcpu, registers: registers.to_vec(), backtrace });
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
            text += &format!("  at pc {}\n", place.to_text());
        }
        for vcpu in &self.vcpus {
            text += &vcpu.to_text();
        }
        if let Some(CoreReport { path, memory_bytes, is_cut }) = &self.core {
            let cut = if *is_cut { ", not all that is mapped" } else { "" };
            text += &format!("  core {}: {}{cut}\n", path.display(), bytes(*memory_bytes));
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
        text
    }
}

/// Returns the words for a cause.
fn cause(word: &str) -> &str {
    match word {
        "panicked" => "its guest has panicked",
        "watchdog" => "its watchdog has fired",
        "no-vector" => "it cannot take an exception: its vector is no memory",
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
