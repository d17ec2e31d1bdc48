// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Memory that is not part of a Rust object: copying, zeroing, checksums and cache maintenance.
//!
//! Ranges are what `memory` owns and EL2 has mapped one to one; whoever makes a range of guest or
//! bundle memory answers for it, so the functions that write are given ranges of [`HypMemory`].
//! Physical addresses have at most 52 bits: none wraps here.
#![expect(unsafe_code, reason = "guest and bundle memory is reached by address")]

use super::HypMemory;
use crate::addr::{Address, PaRange};
use crate::spec::bundle::crc32c_behind;
use aarch64_cpu::asm::barrier;
use core::arch::asm;

/// Cleans and invalidates the data cache to the point of coherency, so that a guest with its
/// caches off reads what was written (traps T01, T02).
pub fn clean_invalidate(range: PaRange) {
    let line = data_line_bytes();
    let mut at = range.start().align_down(line).get();
    while at < range.end().get() {
        // SAFETY: Cleaning and invalidating a line loses nothing.
        unsafe { asm!("dc civac, {}", in(reg) at, options(nostack, preserves_flags)) };
        at = at.wrapping_add(line);
    }
    barrier::dsb(barrier::SY);
}

/// Drops cache lines. Only where nothing is in them that memory does not have: what was written
/// with translation off.
pub(super) fn invalidate(range: PaRange) {
    let line = data_line_bytes();
    let mut at = range.start().align_down(line).get();
    while at < range.end().get() {
        // SAFETY: The caller has written past the caches, so memory holds all that the line does.
        unsafe { asm!("dc ivac, {}", in(reg) at, options(nostack, preserves_flags)) };
        at = at.wrapping_add(line);
    }
    barrier::dsb(barrier::SY);
}

/// Makes instructions that were written visible to all cores' fetches. Follows
/// [`clean_invalidate`] of the same memory.
pub fn publish_code() {
    // SAFETY: Invalidating instruction caches loses nothing.
    unsafe { asm!("ic ialluis", options(nostack, preserves_flags)) };
    barrier::dsb(barrier::ISH);
    barrier::isb(barrier::SY);
}

fn data_line_bytes() -> u64 {
    let ctr: u64;
    // SAFETY: CTR_EL0 can be read anywhere.
    unsafe { asm!("mrs {}, ctr_el0", out(reg) ctr, options(nomem, nostack, preserves_flags)) };
    // DminLine is log2 of the words in the smallest data cache line of all that this core sees.
    4 << (ctr >> 16 & 0xf)
}

/// Copies `from` to the start of `to`; the ranges may overlap. Copies no more than fits.
pub fn copy(to: HypMemory, from: HypMemory) {
    let bytes = to.range().size().min(from.range().size());
    let (to, from) = (to.range().start().get(), from.range().start().get());
    if to <= from || to.wrapping_sub(from) >= bytes {
        copy_up(to, from, bytes);
    } else {
        copy_down(to, from, bytes);
    }
}

/// Copies from low to high addresses, 64 bytes a turn: page-sized images make this the larger part
/// of a VM's restart, and the compiler's own routine takes three times the instructions.
fn copy_up(mut to: u64, mut from: u64, bytes: u64) {
    let blocks = bytes / 64;
    if blocks > 0 && to.is_multiple_of(8) && from.is_multiple_of(8) {
        // SAFETY: Both runs of `blocks` × 64 bytes are mapped and not part of Rust objects.
        unsafe {
            asm!(
                "2:",
                "ldp {a}, {b}, [{from}]",
                "ldp {c}, {d}, [{from}, #16]",
                "ldp {e}, {f}, [{from}, #32]",
                "ldp {g}, {h}, [{from}, #48]",
                "add {from}, {from}, #64",
                "stp {a}, {b}, [{to}]",
                "stp {c}, {d}, [{to}, #16]",
                "stp {e}, {f}, [{to}, #32]",
                "stp {g}, {h}, [{to}, #48]",
                "add {to}, {to}, #64",
                "subs {n}, {n}, #1",
                "b.ne 2b",
                from = inout(reg) from, to = inout(reg) to, n = inout(reg) blocks => _,
                a = out(reg) _, b = out(reg) _, c = out(reg) _, d = out(reg) _,
                e = out(reg) _, f = out(reg) _, g = out(reg) _, h = out(reg) _,
                options(nostack)
            );
        }
    } else {
        return copy_bytes(to, from, 0..bytes);
    }
    copy_bytes(to, from, 0..bytes % 64);
}

fn copy_down(to: u64, from: u64, bytes: u64) {
    copy_bytes(to, from, (0..bytes).rev());
}

fn copy_bytes(to: u64, from: u64, offsets: impl Iterator<Item = u64>) {
    for offset in offsets {
        let (from, to) = (from.wrapping_add(offset), to.wrapping_add(offset));
        // SAFETY: One byte that is mapped and not part of a Rust object is read.
        let byte = unsafe { (from as *const u8).read_volatile() };
        // SAFETY: One byte that is mapped and not part of a Rust object is written.
        unsafe { (to as *mut u8).write_volatile(byte) };
    }
}

/// Writes zeroes.
pub fn zero(memory: HypMemory) {
    let (mut at, end) = (memory.range().start().get(), memory.range().end().get());
    let whole = at % 16 == 0 && end % 16 == 0;
    while whole && at < end {
        // SAFETY: 16 bytes that are mapped and not part of a Rust object.
        unsafe { asm!("stp xzr, xzr, [{}]", in(reg) at, options(nostack, preserves_flags)) };
        at = at.wrapping_add(16);
    }
    while at < end {
        // SAFETY: One byte that is mapped and not part of a Rust object.
        unsafe { (at as *mut u8).write_volatile(0) };
        at = at.wrapping_add(1);
    }
}

/// Copies bytes into a Rust buffer, no more than both hold.
pub fn read_bytes(from: HypMemory, buffer: &mut [u8]) {
    for (byte, at) in buffer.iter_mut().zip(from.range().start().get()..from.range().end().get()) {
        // SAFETY: One byte that is mapped; the copy is what is looked at from here on.
        *byte = unsafe { (at as *const u8).read_volatile() };
    }
}

/// Lends memory as bytes.
pub fn with_bytes<R>(memory: HypMemory, look: impl FnOnce(&mut [u8]) -> R) -> R {
    let range = memory.range();
    let bytes = usize::try_from(range.size()).unwrap_or(0);
    // SAFETY: The memory is mapped, is EL2's alone until a VM is given it, and no Rust object lies
    // there; the loan ends with the call.
    look(unsafe { core::slice::from_raw_parts_mut(range.start().get() as *mut u8, bytes) })
}

/// Returns the CRC32C (Castagnoli) of memory behind what has the CRC32C `before`, 0 where nothing
/// is there, by the core's instruction where it has one.
pub fn crc32c(before: u32, memory: HypMemory) -> u32 {
    let (at, bytes) = (memory.range().start().get(), memory.range().size());
    if super::features().has_crc32() && at % 8 == 0 {
        crc32c_instruction(before, at, bytes)
    } else {
        crc32c_software(before, memory)
    }
}

/// Takes eight steps for a byte and no table: cores without the instruction are rare.
fn crc32c_software(before: u32, memory: HypMemory) -> u32 {
    let mut crc = before;
    let mut buffer = [0; 64];
    let (mut offset, bytes) = (0, memory.range().size());
    while let Some(part) = memory.part(offset, bytes.saturating_sub(offset).min(64)) {
        let bytes = usize::try_from(part.range().size()).unwrap_or(0);
        let Some(copy) = buffer.get_mut(..bytes) else { break };
        read_bytes(part, copy);
        crc = crc32c_behind(crc, copy);
        offset = offset.saturating_add(64);
    }
    crc
}

fn crc32c_instruction(before: u32, mut at: u64, bytes: u64) -> u32 {
    let mut crc = !before;
    let (blocks, rest) = (bytes / 32, bytes % 32);
    if blocks > 0 {
        // SAFETY: `blocks` × 32 mapped bytes are read.
        unsafe {
            asm!(
                ".arch_extension crc",
                "2:",
                "ldp {a}, {b}, [{at}]",
                "ldp {c}, {d}, [{at}, #16]",
                "crc32cx {crc:w}, {crc:w}, {a}",
                "crc32cx {crc:w}, {crc:w}, {b}",
                "crc32cx {crc:w}, {crc:w}, {c}",
                "crc32cx {crc:w}, {crc:w}, {d}",
                "add {at}, {at}, #32",
                "subs {n}, {n}, #1",
                "b.ne 2b",
                ".arch_extension nocrc",
                at = inout(reg) at, n = inout(reg) blocks => _, crc = inout(reg) crc,
                a = out(reg) _, b = out(reg) _, c = out(reg) _, d = out(reg) _,
                options(nostack, readonly)
            );
        }
    }
    for offset in 0..rest {
        // SAFETY: One byte that is mapped.
        let byte = u32::from(unsafe { (at.wrapping_add(offset) as *const u8).read_volatile() });
        // SAFETY: A computation between registers.
        unsafe {
            asm!(".arch_extension crc",
                "crc32cb {crc:w}, {crc:w}, {byte:w}",
                ".arch_extension nocrc",
                crc = inout(reg) crc, byte = in(reg) byte,
                options(nomem, nostack, preserves_flags));
        }
    }
    !crc
}
