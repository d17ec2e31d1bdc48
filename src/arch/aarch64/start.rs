// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The first instructions of every core, until the first line of Rust.
//!
//! The boot core comes with the state of the arm64 boot protocol (Linux,
//! Documentation/arch/arm64/booting.rst): MMU off, x0 = device tree. The image relocates itself,
//! because the first vtable or slice constant already holds an absolute address. Other cores come
//! by PSCI or spin table with x0 = their [`SecondaryBoot`].
#![expect(unsafe_code, reason = "the entry of the image is assembly")]

use super::mmu::Regime;
use crate::addr::{Address, Pa, PaRange};
use core::arch::global_asm;
use core::mem::offset_of;
use core::sync::atomic::{AtomicU64, Ordering};

/// What a secondary core needs before it can read cacheable memory.
///
/// The core reads this with its MMU off: whoever fills it cleans it to the point of coherency
/// (traps T04).
#[repr(C, align(64))]
pub struct SecondaryBoot {
    /// The translation registers of EL2.
    pub regime: Regime,
    /// The first address behind its stack.
    pub stack_top: u64,
    /// What goes to TPIDR_EL2 and to its first function: which core it is.
    pub core: u64,
}

global_asm!(
    r#"
    .section .head, "ax"
    .global _start
_start:
    b       start_boot
    .long   0
    .quad   0                       // text_offset
    .quad   __image_size            // image_size, bss included
    .quad   0xa                     // little-endian, 4 KiB pages, anywhere in memory
    .quad   0
    .quad   0
    .quad   0
    .ascii  "ARM\x64"
    .long   0

start_boot:
    msr     daifset, #0xf
    msr     spsel, #1               // Exits of a guest use SP_EL2, so EL2 does too.
    mov     x20, x0
    adrp    x21, __image_start      // where we run; linked at 0, so also the displacement

    // Lines that a loader left over our bss would shadow what is written with the MMU off.
    adrp    x0, __bss_start
    add     x0, x0, :lo12:__bss_start
    adrp    x1, __image_end
    bl      invalidate_lines

    adrp    x0, __bss_start
    add     x0, x0, :lo12:__bss_start
1:  stp     xzr, xzr, [x0], #16
    cmp     x0, x1
    b.lo    1b

    // Words that hold an address, by the ELF gABI's SHT_RELR: an even entry is the address of such
    // a word; an odd one has bits 63:1 for the 63 words behind the last one that was told of.
    adrp    x2, __relr_start
    add     x2, x2, :lo12:__relr_start
    adrp    x3, __relr_end
    add     x3, x3, :lo12:__relr_end
2:  cmp     x2, x3
    b.hs    3f
    ldr     x4, [x2], #8
    tbnz    x4, #0, 4f
    add     x5, x4, x21
    ldr     x6, [x5]
    add     x6, x6, x21
    str     x6, [x5], #8
    b       2b
4:  mov     x7, x5
6:  lsr     x4, x4, #1
    cbz     x4, 8f
    tbz     x4, #0, 7f
    ldr     x6, [x7]
    add     x6, x6, x21
    str     x6, [x7]
7:  add     x7, x7, #8
    b       6b
8:  add     x5, x5, #(63 * 8)
    b       2b

3:  adrp    x0, __boot_stack_top
    add     x0, x0, :lo12:__boot_stack_top
    mov     sp, x0
    // What the relocation wrote past the caches is what the caches must show.
    mov     x0, x21
    adrp    x1, __image_end
    bl      invalidate_lines
    mov     x0, x20
    mov     x1, x21
    mov     x29, xzr
    mov     x30, xzr
    b       {boot_entry}

// Invalidates the data cache lines of x0..x1. Uses x0, x2, x3. The caches are off.
invalidate_lines:
    mrs     x2, ctr_el0
    ubfx    x2, x2, #16, #4         // DminLine: log2 of words in the smallest line
    mov     x3, #4
    lsl     x3, x3, x2
    sub     x2, x3, #1
    bic     x0, x0, x2
5:  dc      ivac, x0
    add     x0, x0, x3
    cmp     x0, x1
    b.lo    5b
    dsb     sy
    ret

    .global spin_table_start
spin_table_start:                   // A spin table hands nothing over: x0 is 0.
    adrp    x0, {SPIN_TABLE_CONTEXT}
    add     x0, x0, :lo12:{SPIN_TABLE_CONTEXT}
    ldr     x0, [x0]

    .global secondary_start
secondary_start:
    msr     daifset, #0xf
    msr     spsel, #1
    mrs     x1, currentel
    cmp     x1, #(2 << 2)
    b.ne    4b
    mov     x1, #(1 << 31)          // HCR_EL2: RW alone, so E2H = 0
    msr     hcr_el2, x1
    isb
    mrs     x1, hcr_el2
    tbnz    x1, #34, 4b             // E2H is fixed: TCR_EL2 would mean something else.
    ldp     x1, x2, [x0, #{MAIR}]
    ldp     x3, x4, [x0, #{TTBR0}]
    msr     mair_el2, x1
    msr     tcr_el2, x2
    msr     ttbr0_el2, x3
    isb
    ic      iallu
    tlbi    alle2
    dsb     nsh
    isb
    msr     sctlr_el2, x4
    isb
    ldp     x1, x2, [x0, #{STACK_TOP}]
    mov     sp, x1
    msr     tpidr_el2, x2
    mov     x0, x2
    mov     x29, xzr
    mov     x30, xzr
    b       {secondary_entry}
    "#,
    SPIN_TABLE_CONTEXT = sym SPIN_TABLE_CONTEXT,
    boot_entry = sym cofferdam_boot,
    secondary_entry = sym cofferdam_secondary,
    MAIR = const offset_of!(SecondaryBoot, regime) + offset_of!(Regime, mair),
    TTBR0 = const offset_of!(SecondaryBoot, regime) + offset_of!(Regime, ttbr0),
    STACK_TOP = const offset_of!(SecondaryBoot, stack_top),
);

/// Makes what a core reads with its MMU off readable there, and returns where it is (traps T04).
#[must_use]
pub fn publish_to_uncached(boot: &'static SecondaryBoot) -> Pa {
    let at = Pa::new(core::ptr::from_ref(boot).addr() as u64);
    if let Some(range) = PaRange::new(at, size_of::<SecondaryBoot>() as u64) {
        super::clean_invalidate(range);
    }
    at
}

unsafe extern "C" {
    /// The first line of Rust on the boot core: the tree's address. In `main.rs`.
    fn cofferdam_boot(tree: u64) -> !;
    /// The first line of Rust on every other core: [`SecondaryBoot::core`]. In `main.rs`.
    fn cofferdam_secondary(core: u64) -> !;
    static secondary_start: [u32; 0];
    static spin_table_start: [u32; 0];
}

/// Where the next core from the spin table finds its [`SecondaryBoot`].
static SPIN_TABLE_CONTEXT: AtomicU64 = AtomicU64::new(0);

/// Lets a core out of the spin table: writes its entry to the release address `slot` (Linux,
/// Documentation/arch/arm64/booting.rst).
pub fn release_from_spin_table(slot: super::HypMemory, context: Pa) {
    SPIN_TABLE_CONTEXT.store(context.get(), Ordering::Relaxed);
    let variable = Pa::new(SPIN_TABLE_CONTEXT.as_ptr().addr() as u64);
    if let Some(range) = PaRange::new(variable, 8) {
        super::clean_invalidate(range);
    }
    let entry = (&raw const spin_table_start).addr() as u64;
    // The core looks at any moment, so it must find all of the address or nothing.
    // SAFETY: Eight mapped and aligned bytes (`EnableMethod::SpinTable`) that are no Rust object.
    unsafe { (slot.range().start().get() as *mut u64).write_volatile(entry) };
    super::clean_invalidate(slot.range());
    super::send_event();
}

/// Returns the physical address at which other cores start.
#[must_use]
pub fn secondary_entry() -> u64 {
    (&raw const secondary_start).addr() as u64
}

const _: () = {
    assert!(offset_of!(Regime, tcr) == offset_of!(Regime, mair) + 8);
    assert!(offset_of!(Regime, sctlr) == offset_of!(Regime, ttbr0) + 8);
    assert!(offset_of!(SecondaryBoot, core) == offset_of!(SecondaryBoot, stack_top) + 8);
};
