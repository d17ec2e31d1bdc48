// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Instructions that a test makes at run time: one page of them, called at EL1 or EL0.
#![expect(unsafe_code, reason = "runs generated instructions")]

use crate::exception::{Exception, Resume, catch};
use crate::{el0, mmu};
use core::arch::asm;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// How many instructions fit, without the one that ends them.
pub const LEN_MAX: usize = 1023;

const RET: u32 = 0xd65f_03c0;
const SVC: u32 = 0xd400_0001;
/// The window in which EL0 sees the page.
const EL0_SLOT: usize = 511;

#[repr(C, align(4096))]
struct Page([AtomicU32; 1024]);

static PAGE: Page = Page([const { AtomicU32::new(0) }; 1024]);
/// For each instruction of a sweep: 0, or one more than the class of the exception that it took.
static NOTES: [AtomicU32; 1024] = [const { AtomicU32::new(0) }; 1024];

/// Runs the instructions at EL1 with x0 and x1 given and going on behind an exception, and returns
/// x0 and x1 with the last exception.
///
/// The instructions may change x0 to x17 and must not touch memory of Rust's.
pub fn run(instructions: &[u32], x0: u64, x1: u64) -> ([u64; 2], Option<Exception>) {
    write(instructions, RET);
    catch(Resume::Next, || call(x0, x1))
}

/// Calls `target` at EL1, where nothing can be fetched, and returns the exception.
pub fn call_unfetchable(
    target: u64,
    nzcv: u64,
    prepare: &[u32],
    restore: &[u32],
) -> Option<Exception> {
    const MOV_X9_X30: u32 = 0xaa1e_03e9;
    const BLR_X0: u32 = 0xd63f_0000;
    const MOV_X30_X9: u32 = 0xaa09_03fe;
    let mut all = heapless::Vec::<u32, 16>::new();
    let parts = [MOV_X9_X30].iter().chain(prepare).chain(&[BLR_X0]).chain(restore);
    all.extend(parts.chain(&[MOV_X30_X9]).copied());
    write(&all, RET);
    catch(Resume::Link, || call(target, nzcv)).1
}

/// Returns where instruction `index` runs at EL1.
#[must_use]
pub fn address_of(index: u64) -> u64 {
    address() + 4 * index
}

/// Runs the instructions at EL0 with x0 and x1 given, until the first exception, which is an SVC
/// when they run through; returns x0 to x3.
pub fn run_at_el0(instructions: &[u32], x0: u64, x1: u64) -> (Option<Exception>, [u64; 4]) {
    write(instructions, SVC);
    el0::run(el0_address(), x0, x1)
}

/// Runs independent instructions at EL1, each of which may take an exception: see [`noted`].
pub fn sweep(instructions: &[u32], x0: u64, x1: u64) {
    write(instructions, RET);
    clear_notes();
    let (_, _) = catch(Resume::Sweep, || call(x0, x1));
}

/// Runs independent instructions at EL0, each of which may take an exception: see [`noted`].
pub fn sweep_at_el0(instructions: &[u32], x0: u64, x1: u64) {
    write(instructions, SVC);
    clear_notes();
    let (_, _) = catch(Resume::Sweep, || el0::run(el0_address(), x0, x1));
}

/// Returns the class of the exception that instruction `index` of the last sweep took.
#[must_use]
pub fn noted(index: usize) -> Option<u64> {
    u64::from(NOTES.get(index)?.load(Relaxed)).checked_sub(1)
}

pub(crate) fn note(elr: u64, esr: u64) {
    let index = usize::try_from(elr & 0xfff).unwrap_or(0) / 4;
    NOTES[index].store(u32::try_from(esr >> 26 & 0x3f).unwrap_or(0) + 1, Relaxed);
}

/// Returns where EL0 sees the page.
#[must_use]
pub fn el0_address() -> u64 {
    mmu::map(EL0_SLOT, address(), mmu::Access::CodeEl0)
}

fn address() -> u64 {
    PAGE.0.as_ptr().addr() as u64
}

fn clear_notes() {
    for note in &NOTES {
        note.store(0, Relaxed);
    }
}

/// Writes the instructions and makes them visible to fetches (DDI 0487 B2.4.4).
fn write(instructions: &[u32], end: u32) {
    assert!(instructions.len() <= LEN_MAX, "too many instructions");
    let all = instructions.iter().chain([&end]);
    for (slot, word) in PAGE.0.iter().zip(all) {
        slot.store(*word, Relaxed);
    }
    let start = address();
    for line in (start..start + 4096).step_by(64) {
        // SAFETY: cleaning a line changes no memory.
        unsafe { asm!("dc cvau, {}", in(reg) line, options(nostack)) };
    }
    // SAFETY: dropping fetched instructions makes the vCPU fetch them again, no more.
    unsafe { asm!("dsb ish", "ic ialluis", "dsb ish", "isb", options(nostack)) };
}

fn call(x0: u64, x1: u64) -> [u64; 2] {
    let (y0, y1);
    // SAFETY: the page ends with a return, and the caller's instructions keep to the registers
    // that the call standard lets them change.
    unsafe {
        asm!(
            "blr {}", in(reg) address(), inout("x0") x0 => y0, inout("x1") x1 => y1,
            clobber_abi("C"),
        );
    }
    [y0, y1]
}
