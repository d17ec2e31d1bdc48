// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The measured instructions. Each routine reads CNTVCT_EL0 around its operation and adds as little
//! of its own as it can: two to four instructions of a loop. An SGI is sent as a kernel sends it,
//! its value built from the target's affinity between two barriers, and a vector makes room and
//! saves a pair of registers before it reads the count.
#![expect(unsafe_code, reason = "measured instructions and their vectors")]

use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, Ordering::Acquire, Ordering::Release};
use guest_rt::gic::{self, sgi_value};
use guest_rt::psci::Conduit;
use guest_rt::{cpu, println, psci, timer};

global_asm!(
    // --- Vectors. The measured code leaves x14 to x17 to them.
    ".macro bench_vectors name, handler",
    ".balign 2048",
    "\\name:",
    ".rept 5",
    "b .",
    ".balign 128",
    ".endr",
    "b \\handler",
    ".balign 128",
    ".rept 10",
    "b .",
    ".balign 128",
    ".endr",
    ".endm",
    ".text",
    "bench_vectors bench_vectors_time, bench_time",
    "bench_vectors bench_vectors_reply, bench_reply",
    // x17: the count at the vector. The timer is quieted in any case.
    "bench_time:",
    "stp x15, x16, [sp, #-16]!",
    "mrs x17, cntvct_el0",
    "msr cntv_ctl_el0, xzr",
    "isb",
    "mrs x16, icc_iar1_el1",
    "msr icc_eoir1_el1, x16",
    "isb",
    "ldp x15, x16, [sp], #16",
    "eret",
    // Sends the SGI of base \\base (INTID and Aff3 in place) to the vCPU of affinity \\affinity.
    ".macro bench_send affinity, base",
    "ubfx x10, \\affinity, #8, #8",
    "ubfx x11, \\affinity, #16, #8",
    "orr x10, \\base, x10, lsl #16",
    "orr x10, x10, x11, lsl #32",
    "and x11, \\affinity, #0xf",
    "mov x12, #1",
    "lsl x12, x12, x11",
    "orr x10, x10, x12",
    "dsb ishst",
    "msr icc_sgi1r_el1, x10",
    ".endm",
    // The count at the vector goes to [x15]; an SGI goes back to the affinity in x14, base in x8.
    "bench_reply:",
    "stp x15, x16, [sp, #-16]!",
    "mrs x17, cntvct_el0",
    "stp x10, x11, [sp, #-16]!",
    "str x12, [sp, #-16]!",
    "mrs x16, icc_iar1_el1",
    "msr icc_eoir1_el1, x16",
    "str x17, [x15]",
    "bench_send x14, x8",
    "isb",
    "ldr x12, [sp], #16",
    "ldp x10, x11, [sp], #16",
    "ldp x15, x16, [sp], #16",
    "eret",
    // --- Loops: x0 and x1 are operands, x2 counts down, the result is in x0.
    ".macro bench_loop name, op:vararg",
    "\\name:",
    "mov x10, x0",
    "isb",
    "mrs x9, cntvct_el0",
    "1: \\op",
    "subs x2, x2, #1",
    "b.ne 1b",
    "isb",
    "mrs x0, cntvct_el0",
    "sub x0, x0, x9",
    "ret",
    ".endm",
    "bench_loop bench_reads, ldr w11, [x10]",
    "bench_loop bench_writes, str w1, [x10]",
    "bench_loop bench_id_registers, mrs x11, id_aa64pfr0_el1",
    ".macro bench_call_loop name, op:vararg",
    "\\name:",
    "str x30, [sp, #-16]!",
    "mov x10, x0",
    "mov x12, x2",
    "isb",
    "mrs x9, cntvct_el0",
    "1: mov x0, x10",
    "\\op",
    "subs x12, x12, #1",
    "b.ne 1b",
    "isb",
    "mrs x0, cntvct_el0",
    "sub x0, x0, x9",
    "ldr x30, [sp], #16",
    "ret",
    ".endm",
    "bench_call_loop bench_hvcs, hvc #0",
    "bench_call_loop bench_smcs, smc #0",
    // --- Interrupts: x0 is the target's affinity, x1 the base of the SGI.
    "bench_sgi_write:",
    "isb",
    "mrs x9, cntvct_el0",
    "bench_send x0, x1",
    "isb",
    "mrs x0, cntvct_el0",
    "sub x0, x0, x9",
    "ret",
    ".macro bench_enter vectors",
    "mrs x13, vbar_el1",
    "adrp x12, \\vectors",
    "add x12, x12, :lo12:\\vectors",
    "msr vbar_el1, x12",
    "mov x17, #0",
    "isb",
    ".endm",
    "bench_sgi_to_vector:",
    "bench_enter bench_vectors_time",
    "msr daifclr, #2",
    "isb",
    "mrs x9, cntvct_el0",
    "bench_send x0, x1",
    "1: cbz x17, 1b",
    "msr daifset, #2",
    "msr vbar_el1, x13",
    "isb",
    "sub x0, x17, x9",
    "ret",
    // Masked until WFI is over, so that a slow machine cannot miss the deadline before it.
    "bench_timer_to_vector:",
    "bench_enter bench_vectors_time",
    "mrs x9, cntvct_el0",
    "mov x10, #20000",
    "add x9, x9, x10",
    "msr cntv_cval_el0, x9",
    "mov x10, #1",
    "msr cntv_ctl_el0, x10",
    "isb",
    "1: wfi",
    "msr daifclr, #2",
    "isb",
    "msr daifset, #2",
    "cbz x17, 1b",
    "msr vbar_el1, x13",
    "isb",
    "sub x0, x17, x9",
    "ret",
    // As above; x2: where the count behind the answer goes. Returns the count before the SGI.
    // Masked while it decides to wait, so that the answer cannot slip in before the WFI.
    "bench_ping:",
    "bench_enter bench_vectors_time",
    "mrs x9, cntvct_el0",
    "bench_send x0, x1",
    "1: wfi",
    "msr daifclr, #2",
    "isb",
    "msr daifset, #2",
    "cbz x17, 1b",
    "msr vbar_el1, x13",
    "isb",
    "str x17, [x2]",
    "mov x0, x9",
    "ret",
    // Answers each SGI with one of its own and its time in [x2], until [x3] is not 0.
    "bench_respond:",
    "bench_enter bench_vectors_reply",
    "mov x14, x0",
    "mov x8, x1",
    "mov x15, x2",
    "1: msr daifset, #2",
    "wfi",
    "msr daifclr, #2",
    "isb",
    "ldr x9, [x3]",
    "cbz x9, 1b",
    "msr daifset, #2",
    "msr vbar_el1, x13",
    "isb",
    "ret",
    // --- CPU_ON: x0 is the affinity, x1 the entry, x2 the context; the count before in x0.
    ".macro bench_cpu_on name, entry, op:vararg",
    "\\name:",
    "mov x3, x2",
    "mov x2, x1",
    "mov x1, x0",
    "ldr x0, =0xc4000003",
    "isb",
    "mrs x9, cntvct_el0",
    "\\op",
    "mov x0, x9",
    "ret",
    "\\entry:",
    "mrs x1, cntvct_el0",
    "str x1, [x0]",
    "dsb sy",
    "ldr x0, =0x84000002",
    "\\op",
    "b .",
    ".endm",
    "bench_cpu_on bench_cpu_on_hvc, bench_entry_hvc, hvc #0",
    "bench_cpu_on bench_cpu_on_smc, bench_entry_smc, smc #0",
    // --- A computation: a generator of pseudo-random numbers, a table, branches that depend on
    // both. x0: a table of 8 KiB; the result is the count.
    "bench_compute:",
    "isb",
    "mrs x9, cntvct_el0",
    "ldr x1, =0x9e3779b97f4a7c15",
    "mov x2, #0",
    "ldr x3, =300000",
    "1: eor x1, x1, x1, lsl #13",
    "eor x1, x1, x1, lsr #7",
    "eor x1, x1, x1, lsl #17",
    "and x4, x1, #1023",
    "ldr x5, [x0, x4, lsl #3]",
    "add x5, x5, x1",
    "str x5, [x0, x4, lsl #3]",
    "tbz x5, #3, 2f",
    "mul x2, x2, x5",
    "add x2, x2, #1",
    "2: subs x3, x3, #1",
    "b.ne 1b",
    "mrs x10, cntvct_el0",
    "sub x0, x10, x9",
    "ret",
    ".ltorg",
);

unsafe extern "C" {
    fn bench_reads(address: u64, unused: u64, count: u64) -> u64;
    fn bench_writes(address: u64, value: u64, count: u64) -> u64;
    fn bench_id_registers(unused: u64, unused_too: u64, count: u64) -> u64;
    fn bench_hvcs(function: u64, unused: u64, count: u64) -> u64;
    fn bench_smcs(function: u64, unused: u64, count: u64) -> u64;
    fn bench_sgi_write(affinity: u64, base: u64) -> u64;
    fn bench_sgi_to_vector(affinity: u64, base: u64) -> u64;
    fn bench_timer_to_vector() -> u64;
    fn bench_ping(affinity: u64, base: u64, back: *const AtomicU64) -> u64;
    fn bench_respond(affinity: u64, base: u64, time: *const AtomicU64, stop: *const AtomicU64);
    fn bench_cpu_on_hvc(target: u64, entry: u64, context: u64) -> u64;
    fn bench_cpu_on_smc(target: u64, entry: u64, context: u64) -> u64;
    fn bench_entry_hvc();
    fn bench_entry_smc();
    fn bench_compute(table: *const AtomicU64) -> u64;
}

/// Returns the cost of `count` word reads.
pub fn reads(address: u64, count: u64) -> u64 {
    // SAFETY: the address is a device's register, which is read alone.
    unsafe { bench_reads(address, 0, count) }
}

/// Returns the cost of `count` word writes.
pub fn writes(address: u64, value: u64, count: u64) -> u64 {
    // SAFETY: the address is a device's register.
    unsafe { bench_writes(address, value, count) }
}

/// Returns the cost of `count` reads of ID_AA64PFR0_EL1.
pub fn id_register_reads(count: u64) -> u64 {
    // SAFETY: reading an ID register has no effect.
    unsafe { bench_id_registers(0, 0, count) }
}

/// Returns the cost of `count` calls without arguments.
pub fn calls(conduit: Conduit, function: u64, count: u64) -> u64 {
    match conduit {
        // SAFETY: the functions measured change nothing; x4 to x17 are scratch here or, as SMCCC
        // 1.1 promises, preserved.
        Conduit::Hvc => unsafe { bench_hvcs(function, 0, count) },
        // SAFETY: as above.
        Conduit::Smc => unsafe { bench_smcs(function, 0, count) },
    }
}

/// The SGI of all measurements.
pub const SGI: u32 = 1;

/// What of ICC_SGI1R_EL1 does not depend on the lower three affinity fields: INTID and Aff3.
fn sgi_base(affinity: u64) -> u64 {
    sgi_value(SGI, affinity & 0xff << 32, 0)
}

/// Returns the cost of sending an SGI to this vCPU, interrupts masked.
pub fn sgi_write(affinity: u64) -> u64 {
    // SAFETY: the interrupt stays pending until the caller takes it.
    unsafe { bench_sgi_write(affinity, sgi_base(affinity)) }
}

/// Returns the ticks from the sending of an SGI to this vCPU to the vector.
pub fn sgi_to_vector(affinity: u64) -> u64 {
    // SAFETY: the routine's vectors take the interrupt and touch scratch registers only.
    unsafe { bench_sgi_to_vector(affinity, sgi_base(affinity)) }
}

/// Returns the ticks from a deadline of the virtual timer to the vector.
pub fn timer_to_vector() -> u64 {
    // SAFETY: as for `sgi_to_vector`.
    unsafe { bench_timer_to_vector() }
}

/// When the responder took the last SGI.
static THERE: AtomicU64 = AtomicU64::new(0);
/// When the answer came.
static BACK: AtomicU64 = AtomicU64::new(0);
static STOP: AtomicU64 = AtomicU64::new(0);
static IS_READY: AtomicU64 = AtomicU64::new(0);

/// Starts vCPU 1, which answers SGIs with an SGI to vCPU 0.
pub fn start_responder() {
    fn respond() {
        gic::enable(SGI);
        let back = cpu::mpidr(0);
        IS_READY.store(1, Release);
        // SAFETY: the routine writes the word that it is given, which is an atomic, and its
        // vectors touch scratch registers only.
        unsafe { bench_respond(back, sgi_base(back), &raw const THERE, &raw const STOP) };
    }
    STOP.store(0, Release);
    IS_READY.store(0, Release);
    if let Err(error) = cpu::start(1, respond) {
        println!("# CPU_ON: {error:?}");
    }
    let _ = timer::wait_for(timer::PATIENCE_MS, || IS_READY.load(Acquire) == 1);
    // Until it waits.
    timer::delay(100);
}

/// Ends the responder; `false` when it does not go off.
pub fn stop_responder(affinity: u64) -> bool {
    STOP.store(1, Release);
    let _ = ping(affinity);
    cpu::wait_off(1)
}

/// Returns the ticks from an SGI to the vector of the other vCPU, and to the vector of its answer.
pub fn ping(affinity: u64) -> (u64, u64) {
    // SAFETY: the routine writes the word that it is given, which is an atomic, and its vectors
    // touch scratch registers only.
    let start = unsafe { bench_ping(affinity, sgi_base(affinity), &raw const BACK) };
    (THERE.load(Acquire) - start, BACK.load(Acquire) - start)
}

/// Returns the ticks from CPU_ON to the first instruction of the vCPU, which then goes off.
pub fn cpu_on(conduit: Conduit, target: u64) -> u64 {
    THERE.store(0, Release);
    let context = (&raw const THERE).addr() as u64;
    let entry = match conduit {
        Conduit::Hvc => (bench_entry_hvc as *const ()).addr() as u64,
        Conduit::Smc => (bench_entry_smc as *const ()).addr() as u64,
    };
    let start = match conduit {
        // SAFETY: the vCPU writes the word that its context names, an atomic, and goes off.
        Conduit::Hvc => unsafe { bench_cpu_on_hvc(target, entry, context) },
        // SAFETY: as above.
        Conduit::Smc => unsafe { bench_cpu_on_smc(target, entry, context) },
    };
    let _ = timer::wait_for(timer::PATIENCE_MS, || THERE.load(Acquire) != 0);
    let _ = timer::wait_for(timer::PATIENCE_MS, || psci::affinity_info(target, 0) == Ok(1));
    THERE.load(Acquire).wrapping_sub(start)
}

/// Returns the cost of the computation.
pub fn compute() -> u64 {
    static TABLE: [AtomicU64; 1024] = [const { AtomicU64::new(0) }; 1024];
    for word in &TABLE {
        word.store(0, Release);
    }
    // SAFETY: the routine reads and writes the table, whose words are atomics.
    unsafe { bench_compute(TABLE.as_ptr()) }
}
