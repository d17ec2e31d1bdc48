// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The end: a fault of the hypervisor itself. Dumps without a lock, stops the siblings, halts.
//!
//! `coffer symbolize` reads the dump: `base`, `pc` and the `#n` lines are its format.
#![expect(unsafe_code, reason = "the dump walks the stack and is entered from assembly")]

use super::layout::image;
use crate::drivers::uart::RawUart;
use crate::spec::esr::Syndrome;
use core::arch::{asm, global_asm};
use core::fmt::Write;
use core::mem::offset_of;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};

/// Registers at the fault.
#[derive(Debug)]
#[repr(C, align(16))]
struct Frame {
    x: [u64; 31],
    sp: u64,
    elr: u64,
    spsr: u64,
    esr: u64,
    far: u64,
    vector: u64,
}

/// Set by the first core that faults; the others only halt.
static FAULTED: AtomicBool = AtomicBool::new(false);

global_asm!(
    r#"
    .section .text.fault, "ax"
    // From a vector: x0 = its offset, TPIDR_EL1 = the x0 of the fault. One frame, one stack: only
    // the first core that faults gets them, and it does not come back.
    .global el2_fault
el2_fault:
    msr     tpidr_el0, x1
    adrp    x1, {FRAME_TAKEN}
    add     x1, x1, :lo12:{FRAME_TAKEN}
    msr     tpidrro_el0, x2
    msr     sp_el0, x3
1:  ldaxr   w2, [x1]
    cbnz    w2, 2f
    mov     w2, #1
    stlxr   w3, w2, [x1]
    cbnz    w3, 1b
    adrp    x1, fault_frame
    add     x1, x1, :lo12:fault_frame
    str     x0, [x1, #{VECTOR}]
    mrs     x2, tpidrro_el0
    mrs     x3, sp_el0
    stp     x2, x3, [x1, #16]
    stp     x4, x5, [x1, #32]
    stp     x6, x7, [x1, #48]
    stp     x8, x9, [x1, #64]
    stp     x10, x11, [x1, #80]
    stp     x12, x13, [x1, #96]
    stp     x14, x15, [x1, #112]
    stp     x16, x17, [x1, #128]
    stp     x18, x19, [x1, #144]
    stp     x20, x21, [x1, #160]
    stp     x22, x23, [x1, #176]
    stp     x24, x25, [x1, #192]
    stp     x26, x27, [x1, #208]
    stp     x28, x29, [x1, #224]
    mov     x2, sp
    stp     x30, x2, [x1, #240]
    mrs     x2, tpidr_el1
    mrs     x3, tpidr_el0
    stp     x2, x3, [x1]
    mrs     x2, elr_el2
    mrs     x3, spsr_el2
    stp     x2, x3, [x1, #{ELR}]
    mrs     x2, esr_el2
    mrs     x3, far_el2
    stp     x2, x3, [x1, #{ESR}]
    adrp    x2, fault_stack_top
    add     x2, x2, :lo12:fault_stack_top
    mov     sp, x2
    mov     x0, x1
    b       {dump_fault}
2:  wfe
    b       2b

    .section .bss.fault, "aw", @nobits
    .balign 16
fault_frame:
    .skip   {FRAME_BYTES}
    .balign 16
    .skip   8192
fault_stack_top:
    "#,
    FRAME_TAKEN = sym FRAME_TAKEN,
    dump_fault = sym dump_fault,
    VECTOR = const offset_of!(Frame, vector),
    ELR = const offset_of!(Frame, elr),
    ESR = const offset_of!(Frame, esr),
    FRAME_BYTES = const size_of::<Frame>(),
);

static FRAME_TAKEN: core::sync::atomic::AtomicU32 = core::sync::atomic::AtomicU32::new(0);

/// Ends the hypervisor after a fault of its own that came through a vector.
extern "C" fn dump_fault(frame: &Frame) -> ! {
    begin();
    let mut out = RawUart::of_last_resort();
    let what = describe(frame);
    let _ = writeln!(out, "\x1e[!!] hypervisor fault on {}: {what}", super::this_mpidr());
    let _ = write!(
        out,
        "\x1e[!!] vector {:#x} {:?} far {:#x} spsr {:#x} sp {:#x}",
        frame.vector,
        Syndrome::new(frame.esr),
        frame.far,
        frame.spsr,
        frame.sp
    );
    for (n, value) in frame.x.iter().enumerate() {
        let start = if n % 4 == 0 { "\n\x1e[!!]" } else { "" };
        let _ = write!(out, "{start} x{n:<2} {value:016x}");
    }
    let _ = writeln!(out);
    let fp = frame.x.get(29).copied().unwrap_or(0);
    backtrace(&mut out, frame.elr, fp);
    end(&mut out)
}

/// Ends the hypervisor after a Rust panic.
pub fn panic(info: &PanicInfo<'_>) -> ! {
    if FAULTED.load(Ordering::Relaxed) {
        super::halt();
    }
    begin();
    let mut out = RawUart::of_last_resort();
    let _ = write!(out, "\x1e[!!] hypervisor fault on {}: {}", super::this_mpidr(), info.message());
    match info.location() {
        Some(l) => writeln!(out, " at {}:{}", l.file(), l.line()),
        None => writeln!(out),
    }
    .unwrap_or(());
    let (pc, fp): (u64, u64);
    // SAFETY: The program counter and the frame pointer are read.
    unsafe { asm!("adr {}, .", "mov {}, x29", out(reg) pc, out(reg) fp, options(nomem, nostack)) };
    backtrace(&mut out, pc, fp);
    end(&mut out)
}

fn begin() {
    FAULTED.store(true, Ordering::Relaxed);
    super::gic::send_stop();
}

fn end(out: &mut RawUart) -> ! {
    let _ = writeln!(out, "\x1e[!!] halted");
    super::halt()
}

fn describe(frame: &Frame) -> &'static str {
    match (frame.vector & 0x780, Syndrome::new(frame.esr).class()) {
        (0x180 | 0x380, _) => "SError",
        (0x080 | 0x280 | 0x100 | 0x300, _) => "interrupt that was masked",
        (0x500, _) => "FIQ",
        (_, 0x25) => "data abort at EL2",
        (_, 0x21) => "instruction abort at EL2",
        (_, 0x26) => "stack alignment",
        (_, 0x00) => "undefined instruction at EL2",
        _ => "synchronous exception at EL2",
    }
}

/// Prints where the calls came from, as offsets from the image's base. Reads nothing outside the
/// 16 KiB above the first frame.
fn backtrace(out: &mut RawUart, pc: u64, fp: u64) {
    const FRAMES_MAX: usize = 24;
    use crate::addr::Address;
    let base = image().text.start().get();
    let _ = writeln!(out, "\x1e[!!] base {base:#x} pc {pc:#x}");
    let _ = writeln!(out, "\x1e[!!] #0 {:#x}", pc.wrapping_sub(base));
    let (mut fp, limit) = (fp, fp.saturating_add(16 << 10));
    for n in 1..FRAMES_MAX {
        if fp == 0 || fp % 16 != 0 || fp >= limit - 16 || !super::mmu::is_mapped(fp) {
            return;
        }
        // SAFETY: The frame record is aligned, mapped, and inside this core's stack.
        let [next, lr] = unsafe { (fp as *const [u64; 2]).read_volatile() };
        if lr == 0 {
            // The first frame of a core: its entry has cleared X29 and X30.
            return;
        }
        let _ = writeln!(out, "\x1e[!!] #{n} {:#x}", lr.wrapping_sub(base));
        if next <= fp {
            return;
        }
        fp = next;
    }
}

/// Writes to the image's text, which is not writable.
pub fn write_to_text() {
    let text = image().text.start();
    // SAFETY: Nothing is written: the MMU refuses, and that ends the hypervisor.
    unsafe { (crate::addr::Address::get(text) as *mut u32).write_volatile(0) };
}

/// Branches to data, which is not executable.
pub fn execute_data() {
    static NOT_CODE: AtomicBool = AtomicBool::new(false);
    // SAFETY: Nothing runs there: the MMU refuses, and that ends the hypervisor.
    unsafe { asm!("blr {}", in(reg) NOT_CODE.as_ptr(), clobber_abi("C")) };
}

/// Takes an SError, as the machine would at EL2 (DDI 0487 D1.3): QEMU has none to send.
#[inline(never)]
pub fn take_serror() {
    /// SError, a 32-bit instruction, asynchronous (DDI 0487 D24.2.40).
    const ESR: u64 = 0x2f << 26 | 1 << 25 | 0x11;
    /// EL2h, all exceptions masked.
    const PSTATE: u64 = 0x3c9;
    /// SError, from the current level on its own stack pointer.
    const VECTOR: u64 = 0x380;
    // SAFETY: That ends the hypervisor: the vector saves all registers and does not return, so it
    // does not matter that those of the guest's exception are gone.
    unsafe {
        asm!(
            "msr esr_el2, {esr}",
            "adr {scratch}, .",
            "msr elr_el2, {scratch}",
            "msr spsr_el2, {pstate}",
            "mrs {scratch}, vbar_el2",
            "add {scratch}, {scratch}, #{VECTOR}",
            "isb",
            "br {scratch}",
            esr = in(reg) ESR,
            pstate = in(reg) PSTATE,
            scratch = out(reg) _,
            VECTOR = const VECTOR,
        );
    }
}

/// Calls itself until the stack meets its guard page.
#[inline(never)]
#[expect(unconditional_recursion, reason = "the stack has an end, and that is the point")]
pub fn overflow_stack(depth: u64) -> u64 {
    let frame = core::hint::black_box([depth; 32]);
    let below = overflow_stack(depth.wrapping_add(1));
    core::hint::black_box(&frame);
    below
}
