// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The rows of `crash` and `read`: where the vCPUs of a VM were when it crashed, what it has for
//! addresses and has said, and what is in the memory of one that is held.
#![forbid(unsafe_code)]

use crate::addr::{Address, Ipa, IpaRange};
use crate::arch::{self, GuestState};
use crate::control::{CrashAt, Line, ReadAt, Refusal, Row};
use crate::gic::GuestTables;
use crate::plan::{Layout, VgicFrames};
use crate::trace::{LastExit, LastExits};
use crate::vm::Vm;
use crate::vm::crash::{Capsule, Crash, Frozen};
use core::fmt::{self, Write};

/// Numbers in a row.
const NUMBERS: usize = 4;
/// Bytes of memory in a row.
const BYTES: usize = 64;
/// How many times as much is looked at for a row at once.
const PIECES: usize = 16;
/// The rows of a vCPU's registers: those of the system, then X0 to X30.
const ROWS: usize = 12;

/// A row that is looked for, past those that were passed over.
struct Wanted(usize);

impl Wanted {
    /// Returns which of the next `count` rows it is, or passes over them.
    fn among(&mut self, count: usize) -> Option<usize> {
        let row = self.0;
        self.0 = row.saturating_sub(count);
        (row < count).then_some(row)
    }
}

/// Returns where what is kept of the last crash of a VM, the one at this place, begins.
pub(super) fn first_row(vm: &Vm, place: u8) -> Option<CrashAt> {
    let capsule = vm.capsule.acquire();
    let (at_ticks, vcpus) = (capsule.crash?.at_ticks, capsule.vcpu_count());
    Some(CrashAt { place, row: 0, at_ticks, vcpus })
}

/// Writes a row about the last crash of a VM, unless that is no longer the one it was.
pub(super) fn write_row(vm: &Vm, at: CrashAt, line: &mut Line) -> Row {
    let capsule = vm.capsule.acquire();
    let kept = capsule.crash.map(|crash| (crash.at_ticks, capsule.vcpu_count()));
    if kept != Some((at.at_ticks, at.vcpus)) {
        return Row::Changed;
    }
    match write_kept(vm, &capsule, at.row, line) {
        None => Row::End,
        Some(Ok(())) => Row::Written,
        Some(Err(_)) => Row::TooLong,
    }
}

/// Writes a row of what is kept, by its number; `None` behind the last.
fn write_kept(vm: &Vm, capsule: &Capsule, row: u16, line: &mut Line) -> Option<fmt::Result> {
    let crash = capsule.crash?;
    let mut wanted = Wanted(row.into());
    if wanted.among(1).is_some() {
        return Some(write_crash(vm, crash, line));
    }
    for (vcpu, frozen) in capsule.vcpus.iter().enumerate() {
        let Some(frozen) = frozen else { continue };
        if let Some(row) = wanted.among(ROWS) {
            return Some(write_vcpu(vcpu, frozen, row, line));
        }
        let LastExits { answered, faults } = &frozen.last;
        for (what, ring) in [("exit", answered), ("fault", faults)] {
            if let Some(n) = wanted.among(ring.len()) {
                return Some(write_exit(what, vcpu, ring.get(n)?, line));
            }
        }
    }
    if let Some(written) = write_area(vm, &mut wanted, line) {
        return Some(written);
    }
    let at = wanted.0.saturating_mul(BYTES);
    let rest = capsule.tail().get(at..).filter(|rest| !rest.is_empty())?;
    let part = rest.get(..BYTES).unwrap_or(rest);
    Some(write_bytes("what=console ", at as u64, part, line))
}

/// Writes a row about where a VM has memory, models of devices and devices of the machine.
fn write_area(vm: &Vm, wanted: &mut Wanted, line: &mut Line) -> Option<fmt::Result> {
    const SMALL: [&str; 4] = ["gpio", "watchdog", "watchdog-refresh", "panic"];
    let layout = &vm.plan.layout;
    let is_v2 = matches!(layout.vgic, VgicFrames::V2 { .. });
    let mut write = |kind, name: &str, range: Option<IpaRange>| {
        let range = range?;
        wanted.among(1)?;
        let (at, bytes) = (range.start().get(), range.size());
        Some(write!(line, " what=map kind={kind} at={at:#x} size_bytes={bytes:#x} name={name}"))
    };
    let models = [
        ("gicd", layout.vdist_range()),
        (if is_v2 { "gicc" } else { "gicr" }, layout.vgic_range(vm.plan.vcpus.len())),
        ("its", layout.vits_range()),
        ("pl011", layout.vuart_range()),
    ];
    let mut written = write("ram", "ram", Some(vm.ram()));
    for (name, range) in models {
        written = written.or_else(|| write("model", name, range));
    }
    let mut small = layout.platform;
    for name in SMALL {
        let range = IpaRange::new(small, Layout::PLATFORM_STRIDE);
        written = written.or_else(|| write("model", name, range));
        small = Ipa::new(small.get().wrapping_add(Layout::PLATFORM_STRIDE));
    }
    for device in &vm.plan.devices {
        for (registers, ipa) in &device.regions {
            let range = IpaRange::new(*ipa, registers.size());
            written = written.or_else(|| write("device", &device.path, range));
        }
    }
    written
}

fn write_exit(what: &str, vcpu: usize, exit: &LastExit, line: &mut Line) -> fmt::Result {
    let LastExit { syndrome, pc, at_ticks, detail } = exit;
    write!(
        line,
        " what={what} vcpu={vcpu} at_ticks={at_ticks} syndrome={syndrome:#x} pc={pc:#x} \
         detail={detail:#x}"
    )
}

fn write_crash(vm: &Vm, crash: Crash, line: &mut Line) -> fmt::Result {
    let (ram, count) = (vm.ram(), vm.fate.crash_count());
    write!(
        line,
        " what=crash vm={} cause={} vcpu={} at_ticks={} now_ticks={} count={count} state={} \
         ram={:#x} ram_bytes={:#x}",
        vm.plan.name,
        crash.cause.name(),
        crash.vcpu,
        crash.at_ticks,
        arch::counter(),
        vm.lifecycle.state(),
        ram.start().get(),
        ram.size(),
    )
}

fn write_vcpu(vcpu: usize, frozen: &Frozen, row: usize, line: &mut Line) -> fmt::Result {
    write!(line, " what=vcpu vcpu={vcpu}")?;
    let first = row.saturating_mul(NUMBERS);
    let system = GuestState::NAMES.iter().zip(frozen.state.0).skip(first).take(NUMBERS);
    for (name, value) in system {
        write!(line, " {name}={value:#x}")?;
    }
    let behind = first.checked_sub(GuestState::NAMES.len()).unwrap_or(usize::MAX);
    for (n, value) in frozen.x.iter().enumerate().skip(behind).take(NUMBERS) {
        write!(line, " x{n}={value:#x}")?;
    }
    Ok(())
}

/// Looks whether memory of a VM may be read.
///
/// # Errors
/// The VM is not held, or that is not its memory.
pub(super) fn check(vm: &Vm, at: u64, bytes: u32) -> Result<(), Refusal> {
    let state = vm.lifecycle.state();
    if !state.is_frozen() {
        return Err(Refusal::NotHeld(state.name()));
    }
    let end = at.checked_add(bytes.into()).filter(|end| *end <= vm.ram().end().get());
    if end.is_none() || at < vm.ram().start().get() { Err(Refusal::NoMemory) } else { Ok(()) }
}

/// Writes the next row of memory and moves on; what is zero is no row. None is left at the end, or
/// when the VM is held no more.
pub(super) fn write_memory(vm: &Vm, read: &mut ReadAt, line: &mut Line) -> Row {
    let mut buffer = [0; BYTES];
    for _ in 0..PIECES {
        let size = usize::try_from(read.bytes).unwrap_or(BYTES).min(BYTES);
        let part = buffer.get_mut(..size).filter(|part| !part.is_empty());
        let Some(part) = part.filter(|_| vm.lifecycle.state().is_frozen()) else { return Row::End };
        let at = read.at;
        if vm.read(Ipa::new(at), part).is_err() {
            return Row::End;
        }
        let size = u32::try_from(size).unwrap_or(read.bytes);
        (read.at, read.bytes) = (at.saturating_add(size.into()), read.bytes.saturating_sub(size));
        if part.iter().any(|byte| *byte != 0) {
            return write_bytes("", at, part, line).into();
        }
    }
    Row::Passed
}

fn write_bytes(what: &str, at: u64, bytes: &[u8], line: &mut Line) -> fmt::Result {
    write!(line, " {what}at={at:#x} bytes=")?;
    line.write_hex(bytes)
}
