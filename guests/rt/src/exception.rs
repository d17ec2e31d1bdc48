// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Exceptions taken to EL1 (DDI 0487 D1.3): vectors, the frame they save, and the guard with which
//! a test says that it expects one. An exception that nobody expects ends the test.
#![expect(unsafe_code, reason = "the exception vectors")]

use crate::cpu::{self, PerCpu};
use crate::{code, irq, test};
use core::arch::{asm, global_asm};
use core::fmt;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// The registers at the exception; the assembly below knows the layout.
#[repr(C)]
pub struct Frame {
    x: [u64; 31],
    elr: u64,
    spsr: u64,
    esr: u64,
    far: u64,
    sp_el0: u64,
    vector: u64,
    pad: u64,
}

const FRAME_BYTES: usize = size_of::<Frame>();
const _: () = assert!(FRAME_BYTES == 304 && FRAME_BYTES.is_multiple_of(16));

global_asm!(
    ".macro vector n",
    ".balign 128",
    "sub sp, sp, #{frame_bytes}",
    "stp x0, x1, [sp]",
    "mov x0, #\\n",
    "b exception_common",
    ".endm",
    ".section .vectors, \"ax\"",
    ".balign 2048",
    ".global exception_vectors",
    "exception_vectors:",
    ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
    "vector \\n",
    ".endr",
    ".balign 128",
    "exception_common:",
    "stp x2, x3, [sp, #16]",
    "stp x4, x5, [sp, #32]",
    "stp x6, x7, [sp, #48]",
    "stp x8, x9, [sp, #64]",
    "stp x10, x11, [sp, #80]",
    "stp x12, x13, [sp, #96]",
    "stp x14, x15, [sp, #112]",
    "stp x16, x17, [sp, #128]",
    "stp x18, x19, [sp, #144]",
    "stp x20, x21, [sp, #160]",
    "stp x22, x23, [sp, #176]",
    "stp x24, x25, [sp, #192]",
    "stp x26, x27, [sp, #208]",
    "stp x28, x29, [sp, #224]",
    "mrs x1, elr_el1",
    "stp x30, x1, [sp, #240]",
    "mrs x1, spsr_el1",
    "mrs x2, esr_el1",
    "stp x1, x2, [sp, #256]",
    "mrs x1, far_el1",
    "mrs x2, sp_el0",
    "stp x1, x2, [sp, #272]",
    "str x0, [sp, #288]",
    "mov x0, sp",
    "bl {take}",
    "cbnz x0, leave_el0",
    "ldp x1, x2, [sp, #248]",
    "msr elr_el1, x1",
    "msr spsr_el1, x2",
    "ldr x1, [sp, #280]",
    "msr sp_el0, x1",
    "ldp x2, x3, [sp, #16]",
    "ldp x4, x5, [sp, #32]",
    "ldp x6, x7, [sp, #48]",
    "ldp x8, x9, [sp, #64]",
    "ldp x10, x11, [sp, #80]",
    "ldp x12, x13, [sp, #96]",
    "ldp x14, x15, [sp, #112]",
    "ldp x16, x17, [sp, #128]",
    "ldp x18, x19, [sp, #144]",
    "ldp x20, x21, [sp, #160]",
    "ldp x22, x23, [sp, #176]",
    "ldp x24, x25, [sp, #192]",
    "ldp x26, x27, [sp, #208]",
    "ldp x28, x29, [sp, #224]",
    "ldr x30, [sp, #240]",
    "ldp x0, x1, [sp]",
    "add sp, sp, #{frame_bytes}",
    "eret",
    // Goes on behind `el0::enter`, whose frame lies under ours.
    "leave_el0:",
    "add sp, sp, #{frame_bytes}",
    "b return_from_el0",
    frame_bytes = const FRAME_BYTES,
    take = sym take,
);

/// The vector table's entries, in its order (DDI 0487 Table D1-6): kind in the low two bits.
pub mod vector {
    /// Synchronous, from EL1 on SP_EL0.
    pub const SYNC_EL1T: u64 = 0;
    /// Synchronous, from EL1 on SP_EL1.
    pub const SYNC_EL1H: u64 = 4;
    /// Synchronous, from AArch64 EL0.
    pub const SYNC_EL0: u64 = 8;
    /// The kind of a synchronous exception.
    pub const SYNC: u64 = 0;
    /// The kind of an interrupt.
    pub const IRQ: u64 = 1;
    /// The kind of an SError.
    pub const SERROR: u64 = 3;
}

/// Exception classes (DDI 0487 D24.2.40).
pub mod ec {
    /// Unknown reason: UNDEF.
    pub const UNKNOWN: u64 = 0x00;
    /// FP and SIMD disabled.
    pub const FP: u64 = 0x07;
    /// SVC from AArch64.
    pub const SVC: u64 = 0x15;
    /// MSR, MRS or system instruction.
    pub const SYSREG: u64 = 0x18;
    /// SVE disabled.
    pub const SVE: u64 = 0x19;
    /// SME disabled.
    pub const SME: u64 = 0x1d;
    /// Instruction abort from EL0.
    pub const IABT_EL0: u64 = 0x20;
    /// Instruction abort from EL1.
    pub const IABT_EL1: u64 = 0x21;
    /// PC alignment.
    pub const PC_ALIGN: u64 = 0x22;
    /// Data abort from EL0.
    pub const DABT_EL0: u64 = 0x24;
    /// Data abort from EL1.
    pub const DABT_EL1: u64 = 0x25;
    /// SError.
    pub const SERROR: u64 = 0x2f;
}

/// Fault status codes of an abort (DDI 0487 D24.2.40, ISS encoding for an exception from a Data
/// Abort).
pub mod fsc {
    /// Synchronous external abort, not on a walk.
    pub const SEA: u64 = 0x10;
    /// Alignment fault.
    pub const ALIGNMENT: u64 = 0x21;
    /// Returns whether it is an address size fault, at any level.
    #[must_use]
    pub fn is_address_size(fsc: u64) -> bool {
        fsc & !3 == 0
    }
    /// Returns whether it is a translation fault, at any level.
    #[must_use]
    pub fn is_translation(fsc: u64) -> bool {
        fsc & !3 == 4
    }
    /// Returns whether it is a synchronous external abort on a walk, at any level.
    #[must_use]
    pub fn is_sea_on_walk(fsc: u64) -> bool {
        fsc & !3 == 0x14
    }
}

/// An exception that a guard caught: the last one, and how many there were.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Exception {
    /// ESR_EL1.
    pub esr: u64,
    /// FAR_EL1.
    pub far: u64,
    /// ELR_EL1.
    pub elr: u64,
    /// SPSR_EL1.
    pub spsr: u64,
    /// The entry of the vector table, see [`vector`].
    pub vector: u64,
    /// PSTATE.DAIF in the handler, as DAIF spells it, with CurrentEL and SPSel.
    pub pstate: u64,
    /// How many exceptions the guard caught.
    pub count: u32,
}

impl Exception {
    /// Returns the exception class, see [`ec`].
    #[must_use]
    pub fn class(&self) -> u64 {
        self.esr >> 26 & 0x3f
    }
    /// Returns the fault status code of an abort, see [`fsc`].
    #[must_use]
    pub fn fault(&self) -> u64 {
        self.esr & 0x3f
    }
    /// Returns whether it is an UNDEF as the architecture reports it: class 0, IL set, ISS 0.
    #[must_use]
    pub fn is_undef(&self) -> bool {
        self.esr == 1 << 25
    }
    /// Returns whether it is a data abort for a synchronous external abort.
    #[must_use]
    pub fn is_data_sea(&self) -> bool {
        matches!(self.class(), ec::DABT_EL0 | ec::DABT_EL1) && self.fault() == fsc::SEA
    }
}

impl fmt::Display for Exception {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "vector {} esr {:#x} far {:#x} elr {:#x} spsr {:#x}",
            self.vector, self.esr, self.far, self.elr, self.spsr
        )
    }
}

/// Where a guarded vCPU goes on after an exception.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Resume {
    /// At the next instruction: for one that accesses something.
    Next = 1,
    /// At the address in the link register: for a call that cannot be fetched.
    Link = 2,
    /// At the next instruction; each exception in generated code is noted in [`code`].
    Sweep = 3,
    /// Where it was: for an SError, and for nothing else.
    Here = 4,
}

/// A vCPU's expectation of an exception.
pub(crate) struct Guard {
    mode: AtomicU32,
    count: AtomicU32,
    esr: AtomicU64,
    far: AtomicU64,
    elr: AtomicU64,
    spsr: AtomicU64,
    vector: AtomicU64,
    pstate: AtomicU64,
    el0: AtomicU32,
    el0_x: [AtomicU64; 4],
}

impl Guard {
    pub(crate) const fn new() -> Self {
        Self {
            mode: AtomicU32::new(0),
            count: AtomicU32::new(0),
            esr: AtomicU64::new(0),
            far: AtomicU64::new(0),
            elr: AtomicU64::new(0),
            spsr: AtomicU64::new(0),
            vector: AtomicU64::new(0),
            pstate: AtomicU64::new(0),
            el0: AtomicU32::new(0),
            el0_x: [const { AtomicU64::new(0) }; 4],
        }
    }

    /// Expects nothing, as at the start.
    pub(crate) fn reset(&self) {
        self.mode.store(0, Relaxed);
        self.el0.store(0, Relaxed);
    }

    /// Says that an exception from EL0 ends the stay there.
    pub(crate) fn expect_el0_exit(&self) {
        self.count.store(0, Relaxed);
        self.el0.store(1, Relaxed);
    }

    /// Returns how the stay at EL0 ended, with x0 to x3.
    pub(crate) fn el0_exit(&self) -> (Option<Exception>, [u64; 4]) {
        (self.caught(), self.el0_x.each_ref().map(|x| x.load(Relaxed)))
    }

    fn note(&self, frame: &Frame) {
        self.esr.store(frame.esr, Relaxed);
        self.far.store(frame.far, Relaxed);
        self.elr.store(frame.elr, Relaxed);
        self.spsr.store(frame.spsr, Relaxed);
        self.vector.store(frame.vector, Relaxed);
        self.pstate.store(pstate(), Relaxed);
        self.count.store(self.count.load(Relaxed).wrapping_add(1), Relaxed);
    }

    fn caught(&self) -> Option<Exception> {
        let count = self.count.load(Relaxed);
        (count > 0).then(|| Exception {
            esr: self.esr.load(Relaxed),
            far: self.far.load(Relaxed),
            elr: self.elr.load(Relaxed),
            spsr: self.spsr.load(Relaxed),
            vector: self.vector.load(Relaxed),
            pstate: self.pstate.load(Relaxed),
            count,
        })
    }
}

/// Runs `f` and returns its result with the exception that it took, if any.
///
/// Guards do not nest. Assembly in `f` must give its outputs a value before the instruction that
/// may not complete.
pub fn catch<R>(resume: Resume, f: impl FnOnce() -> R) -> (R, Option<Exception>) {
    let guard = &cpu::this().guard;
    guard.count.store(0, Relaxed);
    guard.mode.store(resume as u32, Relaxed);
    let result = f();
    guard.mode.store(0, Relaxed);
    (result, guard.caught())
}

/// Returns PSTATE.DAIF, CurrentEL and SPSel, which do not overlap.
fn pstate() -> u64 {
    let (daif, level, stack): (u64, u64, u64);
    // SAFETY: reading PSTATE has no effect on memory.
    unsafe {
        asm!(
            "mrs {}, daif", "mrs {}, currentel", "mrs {}, spsel",
            out(reg) daif, out(reg) level, out(reg) stack, options(nomem, nostack)
        );
    }
    daif | level | stack
}

/// Takes an exception; returns 1 when it ends a stay at EL0.
extern "C" fn take(frame: &mut Frame) -> u64 {
    let this = cpu::this();
    if frame.vector & 3 == vector::IRQ {
        irq::take(this);
        return 0;
    }
    if frame.vector & 3 == vector::SYNC && take_expected(this, frame) {
        return take_from_el0(this, frame);
    }
    if frame.vector & 3 == vector::SERROR && this.guard.mode.load(Relaxed) == Resume::Here as u32 {
        this.guard.note(frame);
        return 0;
    }
    test::give_up(format_args!(
        "unexpected exception: vector {} esr {:#x} far {:#x} elr {:#x} spsr {:#x}",
        frame.vector, frame.esr, frame.far, frame.elr, frame.spsr
    ))
}

fn take_expected(this: &PerCpu, frame: &mut Frame) -> bool {
    let guard = &this.guard;
    let mode = guard.mode.load(Relaxed);
    let from_el0 = frame.vector == vector::SYNC_EL0 && guard.el0.load(Relaxed) == 1;
    if mode == Resume::Sweep as u32 {
        let is_svc = frame.esr >> 26 == ec::SVC;
        if !is_svc {
            guard.note(frame);
            code::note(frame.elr, frame.esr);
            frame.elr = frame.elr.wrapping_add(4);
        }
        return true;
    }
    if from_el0 {
        guard.note(frame);
        return true;
    }
    if mode == Resume::Next as u32 {
        guard.note(frame);
        frame.elr = frame.elr.wrapping_add(4);
        return true;
    }
    if mode == Resume::Link as u32 {
        guard.note(frame);
        frame.elr = frame.x[30];
        return true;
    }
    false
}

/// Returns 1 when the exception ends a stay at EL0.
fn take_from_el0(this: &PerCpu, frame: &Frame) -> u64 {
    let guard = &this.guard;
    let stays = guard.mode.load(Relaxed) == Resume::Sweep as u32 && frame.esr >> 26 != ec::SVC;
    if frame.vector != vector::SYNC_EL0 || guard.el0.load(Relaxed) == 0 || stays {
        return 0;
    }
    for (to, from) in guard.el0_x.iter().zip(frame.x) {
        to.store(from, Relaxed);
    }
    guard.el0.store(0, Relaxed);
    1
}
