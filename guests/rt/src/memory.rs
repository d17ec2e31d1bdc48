// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The guest's memory outside of the program: filled before a reset, searched behind it.
#![expect(unsafe_code, reason = "reaches memory that is no Rust object")]

use crate::tree;
use core::arch::asm;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

unsafe extern "C" {
    static guest_head: u8;
    static __guest_end: u8;
}

/// Bytes between the words that are written: one in each cache line.
const STRIDE: usize = 64;
/// What a written word holds, with its own address mixed in.
const MARK: u64 = 0xc0ff_ee5e_c2e7_0bad;
/// What [`IMAGE_WORD`] holds in the image.
const PRISTINE: u64 = 0x1234_5678_9abc_def1;

/// A word of the image's data: its first value comes from the file.
static IMAGE_WORD: AtomicU64 = AtomicU64::new(PRISTINE);

/// Returns the addresses that the program occupies.
#[must_use]
pub fn program() -> Range<u64> {
    (&raw const guest_head).addr() as u64..(&raw const __guest_end).addr() as u64
}

fn words() -> impl Iterator<Item = u64> {
    let program = program();
    let ranges = tree::machine().memory.iter().map(|(start, size)| *start..start + size);
    ranges.flat_map(|range| range.step_by(STRIDE)).filter(move |word| !program.contains(word))
}

/// Marks all memory outside of the program, the tree included, and one word of the program.
pub fn mark_all() {
    for address in words() {
        // SAFETY: the address is in memory that the tree names and no part of the program, so no
        // Rust object is there; the tree has been read and is not needed any more.
        unsafe { asm!("str {}, [{}]", in(reg) MARK ^ address, in(reg) address, options(nostack)) };
    }
    IMAGE_WORD.store(MARK, Relaxed);
}

/// Returns the address of a word that is neither 0, as memory comes to a guest, nor its own mark
/// from before a reset, nor part of what the boot protocol hands over.
#[must_use]
pub fn find_foreign() -> Option<u64> {
    let kept = &tree::machine().kept;
    let is_kept = |word| kept.iter().any(|(start, size)| word_in(word, *start, *size));
    words().filter(|word| !is_kept(*word)).find(|address| {
        let value: u64;
        // SAFETY: as in `mark_all`, and a load changes nothing.
        unsafe {
            asm!("ldr {}, [{}]", out(reg) value, in(reg) *address, options(nostack, readonly));
        }
        value != 0 && value != MARK ^ address
    })
}

/// Returns a hash of all memory outside of the program, each byte of it.
#[must_use]
pub fn hash() -> u64 {
    let program = program();
    let ranges = tree::machine().memory.iter().map(|(start, size)| *start..start + size);
    let all = ranges.flat_map(|range| range.step_by(8)).filter(|word| !program.contains(word));
    all.fold(0, |hash: u64, address| {
        let value: u64;
        // SAFETY: as in `mark_all`, and a load changes nothing.
        unsafe {
            asm!("ldr {}, [{}]", out(reg) value, in(reg) address, options(nostack, readonly));
        }
        (hash ^ value).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(29)
    })
}

fn word_in(word: u64, start: u64, size: u64) -> bool {
    word.wrapping_sub(start) < size
}

/// Returns the address of word `n` of the few, at the end of memory, that are kept over resets.
fn kept_word(n: u64) -> u64 {
    let end = tree::machine().memory.last().map_or(0, |(start, size)| start + size);
    end - 4096 + 8 * (n % 512)
}

/// Writes a word that a reset keeps.
pub fn keep(n: u64, value: u64) {
    let address = kept_word(n);
    // SAFETY: as in `mark_all`: the last page of memory is no part of the program.
    unsafe { asm!("str {}, [{}]", in(reg) value, in(reg) address, options(nostack)) };
}

/// Reads such a word: 0 where none was written, since memory comes to a guest as zeros.
#[must_use]
pub fn kept(n: u64) -> u64 {
    let value: u64;
    // SAFETY: as in `keep`, and a load changes nothing.
    unsafe {
        asm!("ldr {}, [{}]", out(reg) value, in(reg) kept_word(n), options(nostack, readonly));
    }
    value
}

/// Returns whether the program's data are as in its file.
#[must_use]
pub fn is_image_pristine() -> bool {
    IMAGE_WORD.load(Relaxed) == PRISTINE
}
