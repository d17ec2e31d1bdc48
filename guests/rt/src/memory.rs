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
/// A page of the program's memory.
static PAGE: [AtomicU64; 512] = [const { AtomicU64::new(0) }; 512];

/// Returns the addresses that the program occupies.
#[must_use]
pub fn program() -> Range<u64> {
    (&raw const guest_head).addr() as u64..(&raw const __guest_end).addr() as u64
}

fn words(stride: usize) -> impl Iterator<Item = u64> {
    let program = program();
    let ranges = tree::machine().memory.iter().map(|(start, size)| *start..start + size);
    ranges.flat_map(move |range| range.step_by(stride)).filter(move |word| !program.contains(word))
}

/// The words of which memory outside of the program is neither the tree nor the ramdisk.
fn foreign_words(stride: usize) -> impl Iterator<Item = u64> {
    let kept = &tree::machine().kept;
    let is_kept = |word| kept.iter().any(|(start, size)| word_in(word, *start, *size));
    words(stride).filter(move |word| !is_kept(*word))
}

/// Reads a word of memory that no Rust object is in.
fn read(address: u64) -> u64 {
    let value: u64;
    // SAFETY: the callers' addresses are in memory that the tree names, and a load changes nothing.
    unsafe {
        asm!("ldr {}, [{}]", out(reg) value, in(reg) address, options(nostack, readonly));
    }
    value
}

/// Writes a word of memory that no Rust object is in.
fn write(address: u64, value: u64) {
    // SAFETY: the callers' addresses are in memory that the tree names and no part of the program,
    // so no Rust object is there; the tree has been read and is not needed any more.
    unsafe { asm!("str {}, [{}]", in(reg) value, in(reg) address, options(nostack)) };
}

/// Marks all memory outside of the program, the tree included, and one word of the program.
pub fn mark_all() {
    words(STRIDE).for_each(|address| write(address, MARK ^ address));
    IMAGE_WORD.store(MARK, Relaxed);
}

/// Returns the address of a word that is neither 0, as memory comes to a guest, nor its own mark
/// from before a reset, nor part of what the boot protocol hands over.
#[must_use]
pub fn find_foreign() -> Option<u64> {
    foreign_words(STRIDE).find(|address| {
        let value = read(*address);
        value != 0 && value != MARK ^ address
    })
}

/// Fills all memory outside of the program, the tree included, and a page of the program.
pub fn fill(value: u64) {
    words(8).for_each(|address| write(address, value));
    PAGE.iter().for_each(|word| word.store(value, Relaxed));
}

/// Returns the address of a word that is not 0, other than what the boot protocol hands over.
#[must_use]
pub fn find_nonzero() -> Option<u64> {
    foreign_words(8).find(|address| read(*address) != 0)
}

/// Returns where in the program's memory the complement of `value` is, without ever holding that.
#[must_use]
pub fn find_complement_in_program(value: u64) -> Option<u64> {
    program().step_by(8).find(|address| {
        let complement: u64;
        // SAFETY: the program's memory is there, and a load changes nothing; what else writes to
        // it is atomic or of this vCPU.
        unsafe {
            asm!(
                "ldr {0}, [{1}]", "mvn {0}, {0}",
                out(reg) complement, in(reg) *address, options(nostack, readonly),
            );
        }
        complement == value
    })
}

/// Returns a hash of all memory outside of the program, each byte of it.
#[must_use]
pub fn hash() -> u64 {
    words(8).fold(0, |hash: u64, address| {
        (hash ^ read(address)).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(29)
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
    // The last page of memory is no part of the program.
    write(kept_word(n), value);
}

/// Reads such a word: 0 where none was written, since memory comes to a guest as zeros.
#[must_use]
pub fn kept(n: u64) -> u64 {
    read(kept_word(n))
}

/// Returns whether the program's data are as in its file.
#[must_use]
pub fn is_image_pristine() -> bool {
    IMAGE_WORD.load(Relaxed) == PRISTINE
}
