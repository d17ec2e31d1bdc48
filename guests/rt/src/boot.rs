// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Entry: the Image header (Documentation/arch/arm64/booting.rst), the first instructions of every
//! vCPU, and the state in which it was entered, kept for the tests that judge it.
#![expect(unsafe_code, reason = "the first instructions of a guest")]

use crate::cpu::{self, CPUS_MAX, PERCPU, PerCpu, STACK_BYTES};
use crate::its::Tables;
use crate::mmu::{MAIR, NORMAL_BLOCK, ROOT, SCTLR, TCR};
use core::arch::{asm, global_asm};
use core::mem::size_of;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Bytes kept for each entry; the assembly shifts by the same amount.
const STATE_BYTES: usize = 2048;
const STATE_WORDS: usize = STATE_BYTES / 8;
const POISON: u64 = 0x5a5a_5a5a_5a5a_5a5a;

#[repr(C, align(4096))]
struct States([[AtomicU64; STATE_WORDS]; CPUS_MAX + 1]);

/// What each vCPU found at entry; the last is for [`probe_entry_address`].
// SAFETY: the section is memory like .bss, except that nothing zeroes it.
#[unsafe(link_section = ".entry_state")]
static STATES: States =
    States([const { [const { AtomicU64::new(0) }; STATE_WORDS] }; CPUS_MAX + 1]);

macro_rules! entry_registers {
    ($($name:literal)*) => {
        /// The system registers that are kept at entry, in this order.
        pub const ENTRY_REGISTERS: &[&str] = &[$($name),*];

        global_asm!(
            // Keeps the state at entry at x30, whose old value is in SP. Changes x1 to x3 and x30.
            ".macro capture",
            "stp x0, x1, [x30], #16",
            "stp x2, x3, [x30], #16",
            "stp x4, x5, [x30], #16",
            "stp x6, x7, [x30], #16",
            "stp x8, x9, [x30], #16",
            "stp x10, x11, [x30], #16",
            "stp x12, x13, [x30], #16",
            "stp x14, x15, [x30], #16",
            "stp x16, x17, [x30], #16",
            "stp x18, x19, [x30], #16",
            "stp x20, x21, [x30], #16",
            "stp x22, x23, [x30], #16",
            "stp x24, x25, [x30], #16",
            "stp x26, x27, [x30], #16",
            "stp x28, x29, [x30], #16",
            "mov x1, sp",
            "stp x1, xzr, [x30], #16",
            $(concat!("mrs x1, ", $name), "str x1, [x30], #8",)*
            "mrs x1, cpacr_el1",
            "orr x2, x1, #(3 << 20)",
            "msr cpacr_el1, x2",
            "isb",
            ".arch_extension fp",
            ".arch_extension simd",
            "stp q0, q1, [x30], #32",
            "stp q2, q3, [x30], #32",
            "stp q4, q5, [x30], #32",
            "stp q6, q7, [x30], #32",
            "stp q8, q9, [x30], #32",
            "stp q10, q11, [x30], #32",
            "stp q12, q13, [x30], #32",
            "stp q14, q15, [x30], #32",
            "stp q16, q17, [x30], #32",
            "stp q18, q19, [x30], #32",
            "stp q20, q21, [x30], #32",
            "stp q22, q23, [x30], #32",
            "stp q24, q25, [x30], #32",
            "stp q26, q27, [x30], #32",
            "stp q28, q29, [x30], #32",
            "stp q30, q31, [x30], #32",
            "mrs x2, fpcr",
            "mrs x3, fpsr",
            "stp x2, x3, [x30], #16",
            "msr cpacr_el1, x1",
            "isb",
            ".endm",
        );
    };
}

entry_registers! {
    "CurrentEL" "DAIF" "SPSel" "NZCV" "SCTLR_EL1" "TTBR0_EL1" "TTBR1_EL1" "TCR_EL1"
    "MAIR_EL1" "AMAIR_EL1" "VBAR_EL1" "CONTEXTIDR_EL1" "TPIDR_EL0" "TPIDRRO_EL0" "TPIDR_EL1"
    "PAR_EL1" "CPACR_EL1" "CNTKCTL_EL1" "CNTV_CTL_EL0" "CNTV_CVAL_EL0" "CNTP_CTL_EL0"
    "CNTP_CVAL_EL0" "MDSCR_EL1" "ELR_EL1" "SPSR_EL1" "SP_EL0" "ESR_EL1" "FAR_EL1" "AFSR0_EL1"
    "AFSR1_EL1" "CSSELR_EL1" "CNTVCT_EL0"
}

// The vector registers behind them are stored in 16-byte steps, which device memory (the type of
// everything while the MMU is off) insists on.
const _: () = assert!(ENTRY_REGISTERS.len().is_multiple_of(2));
const VECTOR_WORDS: usize = 32 * 2 + 2;
const _: () = assert!(32 + ENTRY_REGISTERS.len() + VECTOR_WORDS <= STATE_WORDS);

/// The state in which a vCPU was entered.
#[derive(Clone, Copy)]
pub struct EntryState(&'static [AtomicU64; STATE_WORDS]);

impl EntryState {
    /// Returns the state of the vCPU's latest entry.
    #[must_use]
    pub fn of(cpu: usize) -> Self {
        Self(&STATES.0[cpu.min(CPUS_MAX)])
    }
    /// Returns the state of the latest entry at [`probe_entry_address`].
    #[must_use]
    pub fn of_probe() -> Self {
        Self::of(CPUS_MAX)
    }
    /// Returns x0 to x30.
    pub fn x(self) -> impl Iterator<Item = u64> {
        self.0.iter().take(31).map(|word| word.load(Relaxed))
    }
    /// Returns the system registers with their names.
    pub fn registers(self) -> impl Iterator<Item = (&'static str, u64)> {
        let values = self.0.iter().skip(32).map(|word| word.load(Relaxed));
        ENTRY_REGISTERS.iter().copied().zip(values)
    }
    /// Returns the value of a system register of [`ENTRY_REGISTERS`].
    pub fn register(self, name: &str) -> Option<u64> {
        self.registers().find(|(n, _)| *n == name).map(|(_, value)| value)
    }
    /// Returns V0 to V31 as 64 words, then FPCR and FPSR.
    pub fn vector_words(self) -> impl Iterator<Item = u64> {
        self.0
            .iter()
            .skip(32 + ENTRY_REGISTERS.len())
            .take(VECTOR_WORDS)
            .map(|word| word.load(Relaxed))
    }
    /// Forgets the state, so that the next entry shows.
    pub fn poison(self) {
        for word in self.0 {
            word.store(POISON, Relaxed);
            // SAFETY: cleaning a line changes no memory. The entry code writes past the caches.
            unsafe { asm!("dc civac, {}", in(reg) word, options(nostack)) };
        }
        crate::sysreg::dsb();
    }
    /// Returns whether there was an entry since the state was forgotten.
    #[must_use]
    pub fn is_fresh(self) -> bool {
        // The last word that the entry code writes, FPSR, is never all of the pattern.
        self.vector_words().last() != Some(POISON)
    }
}

global_asm!(
    ".section .head, \"ax\"",
    ".global guest_head",
    "guest_head:",
    "b primary_entry",
    ".long 0",
    // text_offset, image_size, flags: little-endian, 4 KiB pages, near the start of RAM.
    ".quad 0, __guest_size, 0x2",
    ".quad 0, 0, 0",
    ".ascii \"ARM\\x64\"",
    ".long 0",

    ".text",
    "primary_entry:",
    "mov sp, x30",
    "adrp x30, {states}",
    "capture",
    // The tree may lie in a GiB that the table does not map yet.
    "lsr x1, x0, #30",
    "cmp x1, #2",
    "b.lo 1f",
    "cmp x1, #508",
    "b.hs 1f",
    "adrp x2, {root}",
    "add x2, x2, x1, lsl #3",
    "ldr x3, ={normal_block}",
    "orr x3, x3, x1, lsl #30",
    "str x3, [x2]",
    "dsb sy",
    "dc ivac, x2",
    "1:",
    "bl enable_mmu",
    "adrp x1, __bss_start",
    "adrp x2, __bss_end",
    "2: stp xzr, xzr, [x1], #16",
    "cmp x1, x2",
    "b.lo 2b",
    "mov x19, x0",
    "mov x0, xzr",
    "bl set_up_cpu",
    "mov x0, x19",
    "bl {primary}",
    "b .",

    // x0 is the vCPU's index.
    "secondary_entry:",
    "mov sp, x30",
    "adrp x30, {states}",
    "add x30, x30, x0, lsl #11",
    "capture",
    "bl enable_mmu",
    "mov x19, x0",
    "bl set_up_cpu",
    "mov x0, x19",
    "bl {secondary}",
    "b .",

    // Keeps its state and switches itself off, with HVC or SMC.
    "probe_entry_hvc:",
    "mov sp, x30",
    "adrp x30, {states} + {probe_offset}",
    "capture",
    "ldr x0, =0x84000002",
    "hvc #0",
    "b .",
    "probe_entry_smc:",
    "mov sp, x30",
    "adrp x30, {states} + {probe_offset}",
    "capture",
    "ldr x0, =0x84000002",
    "smc #0",
    "b .",

    // Returns what SYSTEM_SUSPEND answers where it is refused; else 0, once it has woken up.
    "suspend:",
    "stp x29, x30, [sp, #-112]!",
    "stp x19, x20, [sp, #16]",
    "stp x21, x22, [sp, #32]",
    "stp x23, x24, [sp, #48]",
    "stp x25, x26, [sp, #64]",
    "stp x27, x28, [sp, #80]",
    "mrs x1, tpidr_el1",
    "str x1, [sp, #96]",
    "mov x2, sp",
    "adr x1, resume_entry",
    "ldr x0, =0xc400000e",
    "hvc #0",
    "b 1f",
    "resume_entry:",
    "mov sp, x30",
    "adrp x30, {states} + {probe_offset}",
    "capture",
    "bl enable_mmu",
    "mov sp, x0",
    "mov x0, xzr",
    "1: ldr x1, [sp, #96]",
    "msr tpidr_el1, x1",
    "ldp x19, x20, [sp, #16]",
    "ldp x21, x22, [sp, #32]",
    "ldp x23, x24, [sp, #48]",
    "ldp x25, x26, [sp, #64]",
    "ldp x27, x28, [sp, #80]",
    "ldp x29, x30, [sp], #112",
    "ret",

    // Changes x1 to x3.
    "enable_mmu:",
    "adr x1, exception_vectors",
    "msr vbar_el1, x1",
    "adrp x1, {root}",
    "msr ttbr0_el1, x1",
    "ldr x1, ={mair}",
    "msr mair_el1, x1",
    "ldr x1, ={tcr}",
    "mrs x2, id_aa64mmfr0_el1",
    "and x2, x2, #0xf",
    // 52 bits need another granule or descriptor format.
    "mov x3, #5",
    "cmp x2, x3",
    "csel x2, x2, x3, lo",
    "orr x1, x1, x2, lsl #32",
    "msr tcr_el1, x1",
    "tlbi vmalle1",
    "ic iallu",
    "dsb nsh",
    "isb",
    "ldr x1, ={sctlr}",
    "msr sctlr_el1, x1",
    "isb",
    "ret",

    // x0 is the vCPU's index; changes x1 to x3.
    "set_up_cpu:",
    "adrp x1, {stacks}",
    "add x1, x1, :lo12:{stacks}",
    "add x2, x0, #1",
    "mov x3, #{stack_bytes}",
    "madd x1, x2, x3, x1",
    "mov sp, x1",
    "adrp x1, {percpu}",
    "add x1, x1, :lo12:{percpu}",
    "mov x3, #{percpu_bytes}",
    "madd x1, x0, x3, x1",
    "msr tpidr_el1, x1",
    "mov x29, xzr",
    "ret",
    ".ltorg",
    states = sym STATES,
    probe_offset = const CPUS_MAX * STATE_BYTES,
    root = sym ROOT,
    normal_block = const NORMAL_BLOCK,
    mair = const MAIR,
    tcr = const TCR,
    sctlr = const SCTLR,
    stacks = sym STACKS,
    stack_bytes = const STACK_BYTES,
    percpu = sym PERCPU,
    percpu_bytes = const size_of::<PerCpu>(),
    primary = sym cpu::primary_main,
    secondary = sym cpu::secondary_main,
);

#[repr(C, align(4096))]
struct Stacks([[AtomicU64; STACK_BYTES / 8]; CPUS_MAX]);

// SAFETY: the section is memory like .bss, except that nothing zeroes it.
#[unsafe(link_section = ".stacks")]
static STACKS: Stacks =
    Stacks([const { [const { AtomicU64::new(0) }; STACK_BYTES / 8] }; CPUS_MAX]);

/// Here, and not in .bss, so that all that is small is near (ITS tables are 64 KiB each).
// SAFETY: As above.
#[unsafe(link_section = ".tables")]
pub(crate) static TABLES: Tables = Tables::new();

unsafe extern "C" {
    fn secondary_entry();
    fn probe_entry_hvc();
    fn probe_entry_smc();
    fn suspend() -> u64;
}

/// Suspends the machine by HVC. Once it has woken up this goes on with registers as at its entry,
/// which is kept for [`EntryState::of_probe`]; interrupts have to be set up again.
///
/// # Errors
/// Gives what PSCI answered where it does not suspend.
pub fn suspend_system() -> Result<u32, crate::psci::Error> {
    // SAFETY: The routine keeps what the calling convention asks it to keep, in both ways back.
    crate::psci::result(unsafe { suspend() })
}

/// Returns where CPU_ON starts a vCPU of the runtime; its context is the vCPU's index.
#[must_use]
pub fn secondary_entry_address() -> u64 {
    (secondary_entry as *const ()).addr() as u64
}

/// Returns where CPU_ON starts a vCPU that keeps its state for [`EntryState::of_probe`] and goes
/// off again.
#[must_use]
pub fn probe_entry_address(conduit: crate::psci::Conduit) -> u64 {
    match conduit {
        crate::psci::Conduit::Hvc => (probe_entry_hvc as *const ()).addr() as u64,
        crate::psci::Conduit::Smc => (probe_entry_smc as *const ()).addr() as u64,
    }
}
