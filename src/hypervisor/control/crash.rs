// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The rows of `crash` and `read`: where the vCPUs of a VM were when it crashed, and what is in the
//! memory of one that is held.
#![forbid(unsafe_code)]

use crate::addr::{Address, Ipa};
use crate::arch::{self, GuestState};
use crate::control::{Line, ReadAt, Refusal};
use crate::gic::GuestTables;
use crate::vm::Vm;
use crate::vm::crash::{Capsule, Crash, Frozen};
use core::fmt::{self, Write};

/// Numbers in a row.
const NUMBERS: usize = 4;
/// Bytes of memory in a row.
const BYTES: usize = 64;
/// The rows of a vCPU: its system registers, then X0 to X30.
const ROWS: u16 = 12;

/// Writes a row about the last crash of a VM, by its number; `None` behind the last.
pub(super) fn write_row(vm: &Vm, row: u16, line: &mut Line) -> Option<fmt::Result> {
    let capsule = vm.capsule.acquire();
    let crash = capsule.crash?;
    let Some(behind) = row.checked_sub(1) else { return Some(write_crash(vm, crash, line)) };
    let (vcpu, frozen) = held(&capsule).nth(usize::from(behind / ROWS))?;
    Some(write_vcpu(vcpu, frozen, behind % ROWS, line))
}

fn held(capsule: &Capsule) -> impl Iterator<Item = (usize, &Frozen)> {
    capsule.vcpus.iter().enumerate().filter_map(|(n, frozen)| Some((n, frozen.as_ref()?)))
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

fn write_vcpu(vcpu: usize, frozen: &Frozen, row: u16, line: &mut Line) -> fmt::Result {
    write!(line, " what=vcpu vcpu={vcpu}")?;
    let first = usize::from(row).saturating_mul(NUMBERS);
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

/// Writes the next row of memory and moves on; what is zero is no row. `None` at the end, or when
/// the VM is held no more.
pub(super) fn write_memory(vm: &Vm, read: &mut ReadAt, line: &mut Line) -> Option<fmt::Result> {
    let mut buffer = [0; BYTES];
    while read.bytes > 0 && vm.lifecycle.state().is_frozen() {
        let size = usize::try_from(read.bytes).unwrap_or(BYTES).min(BYTES);
        let part = buffer.get_mut(..size)?;
        let at = read.at;
        vm.read(Ipa::new(at), part).ok()?;
        let size = u32::try_from(size).unwrap_or(read.bytes);
        (read.at, read.bytes) = (at.saturating_add(size.into()), read.bytes.saturating_sub(size));
        if part.iter().any(|byte| *byte != 0) {
            return Some(write_bytes(at, part, line));
        }
    }
    None
}

fn write_bytes(at: u64, bytes: &[u8], line: &mut Line) -> fmt::Result {
    write!(line, " at={at:#x} bytes=")?;
    bytes.iter().try_for_each(|byte| write!(line, "{byte:02x}"))
}
