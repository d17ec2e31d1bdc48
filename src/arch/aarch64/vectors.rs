// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Entering and leaving a guest: a function that returns (DDI 0487 D1.3, exception vectors).
//!
//! While the guest runs, SP_EL2 points at its [`GuestRegisters`], so an exit needs no scratch
//! register. ELR_EL2 and SPSR_EL2 stay in the machine: EL2 takes no exception of its own but to
//! die.
#![expect(unsafe_code, reason = "exception entry and ERET are assembly")]

use super::guest::GuestRegisters;
use crate::arch::Exit;
use crate::spec::esr::Syndrome;
use aarch64_cpu::registers::{ESR_EL2, Writeable};
use core::arch::{asm, global_asm};
use core::mem::offset_of;

/// What the vectors return instead of a syndrome: bits 63:56 of ESR_EL2 are RES0 (DDI 0487
/// D24.2.40).
pub(super) const INTERRUPT: u64 = 1 << 63;
const SERROR: u64 = 1 << 62;
pub(super) const INTERRUPT_V2: u64 = 1 << 61;

global_asm!(
    r#"
    .macro save_rest_and_return
    stp     x4, x5, [sp, #32]
    stp     x6, x7, [sp, #48]
    stp     x8, x9, [sp, #64]
    stp     x10, x11, [sp, #80]
    stp     x12, x13, [sp, #96]
    stp     x14, x15, [sp, #112]
    stp     x16, x17, [sp, #128]
    stp     x18, x19, [sp, #144]
    stp     x20, x21, [sp, #160]
    stp     x22, x23, [sp, #176]
    stp     x24, x25, [sp, #192]
    stp     x26, x27, [sp, #208]
    stp     x28, x29, [sp, #224]
    str     x30, [sp, #240]
    ldp     x30, x1, [sp, #{RETURN}]
    mov     sp, x1
    ret
    .endm

    // The vectors of a core that needs no more.
    .macro plain exit:vararg
    .balign 128
    stp     x0, x1, [sp, #0]
    stp     x2, x3, [sp, #16]
    \exit
    save_rest_and_return
    .endm

    // Clears the branch history before the first indirect branch at EL2 (CVE-2022-23960; Arm,
    // "Spectre-BHB"): by CLRBHB, a hint to cores that do not have it, and by as many taken branches
    // as the core needs, then a barrier.
    .macro history exit:vararg
    .balign 128
    stp     x0, x1, [sp, #0]
    stp     x2, x3, [sp, #16]
    \exit
    hint    #22                     // CLRBHB
    ldr     x1, [sp, #{LOOPS}]
9:  b       8f
8:  subs    x1, x1, #1
    b.ne    9b
    dsb     nsh
    isb
    b       save_rest
    .endm

    .macro fatal offset
    .balign 128
    msr     tpidr_el1, x0           // The guest's state is lost now; nothing else is free.
    mov     x0, #\offset
    b       el2_fault
    .endm

    // What a fatal vector leaves of its 128 bytes has room for a routine.
    .macro table name, entry, routine
    .balign 2048
    .global \name
\name:
    fatal   0x000
    \routine
    fatal   0x080
    fatal   0x100
    fatal   0x180
    fatal   0x200
    fatal   0x280
    fatal   0x300
    fatal   0x380
    .rept 2                         // Lower EL in AArch64, then AArch32 (EL0 applications)
    \entry  mrs x0, esr_el2
    \entry  ldr x0, [sp, #{TAKES}]   // By which GIC, so that nobody has to ask
    .balign 128
    fatal   0x500                   // FIQ: nothing is in Group 0
    \entry  mov x0, #{SERROR}
    .endr
    .org    \name + 0x800          // An error where a vector is longer than 128 bytes
    .endm

    .macro save_rest_routine
    .balign 16
save_rest:
    save_rest_and_return
    .endm

    .macro enter_guest_routine
    .balign 16
    .global enter_guest
enter_guest:
    mov     x1, sp
    stp     x30, x1, [x0, #{RETURN}]
    mov     sp, x0
    ldp     x2, x3, [sp, #16]
    ldp     x4, x5, [sp, #32]
    ldp     x6, x7, [sp, #48]
    ldp     x8, x9, [sp, #64]
    ldp     x10, x11, [sp, #80]
    ldp     x12, x13, [sp, #96]
    ldp     x14, x15, [sp, #112]
    ldp     x16, x17, [sp, #128]
    ldp     x18, x19, [sp, #144]
    ldp     x20, x21, [sp, #160]
    ldp     x22, x23, [sp, #176]
    ldp     x24, x25, [sp, #192]
    ldp     x26, x27, [sp, #208]
    ldp     x28, x29, [sp, #224]
    ldr     x30, [sp, #240]
    ldp     x0, x1, [sp, #0]
    eret
    dsb     nsh                     // No straight-line speculation past ERET (traps T60)
    isb
    .endm

    .section .text.vectors, "ax"
    .global serror_instead
serror_instead:
    mov     x1, sp
    stp     x30, x1, [x0, #{RETURN}]
    mov     sp, x0
    mrs     x1, vbar_el2
    add     x1, x1, #0x580          // SError, lower EL in AArch64
    br      x1

    table   vectors_plain, plain, enter_guest_routine
    table   vectors_history, history, save_rest_routine
    "#,
    RETURN = const offset_of!(GuestRegisters, host_return),
    LOOPS = const offset_of!(GuestRegisters, history_loops),
    TAKES = const offset_of!(GuestRegisters, interrupt),
    SERROR = const SERROR,
);

const _: () = {
    assert!(offset_of!(GuestRegisters, x) == 0);
    assert!(offset_of!(GuestRegisters, host_sp) == offset_of!(GuestRegisters, host_return) + 8);
};

unsafe extern "C" {
    static vectors_plain: [u8; 2048];
    static vectors_history: [u8; 2048];
    fn enter_guest();
    fn serror_instead();
}

/// Returns the address of the vector table, with the branch-history loop or without.
pub(super) fn table(history_loops: u64) -> u64 {
    let table =
        if history_loops == 0 { &raw const vectors_plain } else { &raw const vectors_history };
    table.addr() as u64
}

/// Calls a routine that comes back through a vector, with its result.
macro_rules! call {
    ($routine:ident, $registers:expr => $exit:ident) => {
        asm!(
            "stp x19, x29, [sp, #-16]!",
            "bl {routine}",
            "ldp x19, x29, [sp], #16",
            routine = sym $routine,
            inout("x0") $registers => $exit,
            out("x1") _, out("x2") _, out("x3") _, out("x4") _, out("x5") _, out("x6") _,
            out("x7") _, out("x8") _, out("x9") _, out("x10") _, out("x11") _, out("x12") _,
            out("x13") _, out("x14") _, out("x15") _, out("x16") _, out("x17") _, out("x18") _,
            out("x20") _, out("x21") _, out("x22") _, out("x23") _, out("x24") _, out("x25") _,
            out("x26") _, out("x27") _, out("x28") _, out("x30") _,
        )
    };
}

/// Runs the guest whose state is in this core's registers until it leaves.
#[inline(always)]
pub fn enter(registers: &mut GuestRegisters) -> Exit {
    let exit: u64;
    // SAFETY: The assembly keeps SP, saves the two registers that Rust reserves (x19, x29) and
    // declares the rest lost. The guest reaches only its own memory (stage 2), which is never
    // part of a Rust object. `registers` is this core's own and outlives the call.
    unsafe { call!(enter_guest, &raw mut *registers => exit) };
    decode(exit)
}

/// Leaves the guest, which is about to begin, by an SError that QEMU has none of (DDI 0487 D1.3):
/// takes the vector as the machine would, had it come before the guest's first instruction.
#[inline(never)]
pub fn serror_instead_of_entry(registers: &mut GuestRegisters) -> Exit {
    /// SError, a 32-bit instruction, asynchronous (DDI 0487 D24.2.40).
    const ESR: u64 = 0x2f << 26 | 1 << 25 | 0x11;
    let guests = registers.x;
    ESR_EL2.set(ESR);
    let exit: u64;
    // SAFETY: As in `enter`, but that no guest runs: the vector finds SP_EL2 as it is behind an
    // exit, and saves EL2's own registers as the guest's, which get their values back below.
    unsafe { call!(serror_instead, &raw mut *registers => exit) };
    registers.x = guests;
    decode(exit)
}

#[inline(always)]
fn decode(exit: u64) -> Exit {
    if exit & INTERRUPT != 0 {
        Exit::Interrupt
    } else if exit & (SERROR | INTERRUPT_V2) == 0 {
        Exit::Synchronous(Syndrome::new(exit))
    } else if exit & SERROR != 0 {
        Exit::SError
    } else {
        Exit::InterruptV2
    }
}
