// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A boot loader that leaves all cores but the first in a spin table, as the Raspberry Pi's does
//! (Linux, Documentation/arch/arm64/booting.rst), and then starts what lies at `NEXT`.
//!
//! It runs from QEMU `virt`, entered at EL2 without caches: PSCI gives it the cores. Its page must
//! be reserved in the tree, which names the release addresses, 8 bytes for each core, from 0x100 on
//! behind its start.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "it is written in assembly")]

use core::arch::global_asm;
use core::panic::PanicInfo;

/// How many cores there are.
const CORES: u64 = 4;
/// Where the hypervisor's image lies, in units of 64 KiB.
const NEXT_HIGH: u64 = 0x6000;

global_asm!(
    r#"
    .section .head, "ax"
    .global guest_head
guest_head:                         // The header of an arm64 Image.
    b       1f
    .word   0
    .quad   0                       // text_offset
    .quad   __guest_size
    .quad   0xa                     // 4 KiB pages, anywhere in memory
    .quad   0, 0, 0
    .ascii  "ARM\x64"
    .word   0

1:  mov     x20, x0                 // The tree.
    mov     x19, #1
2:  movz    x0, #0x0003             // CPU_ON (DEN 0022, 5.6)
    movk    x0, #0xc400, lsl #16
    mov     x1, x19
    adr     x2, parked
    mov     x3, x19
    smc     #0
    add     x19, x19, #1
    cmp     x19, #{CORES}
    b.lo    2b
    mov     x0, x20
    mov     x1, xzr
    mov     x2, xzr
    mov     x3, xzr
    movz    x4, #{NEXT_HIGH}, lsl #16
    br      x4

parked:
    adr     x1, release
    add     x1, x1, x0, lsl #3
3:  wfe
    ldr     x2, [x1]
    cbz     x2, 3b
    mov     x0, xzr
    mov     x1, xzr
    br      x2

    .org    guest_head + 0x100
release:
    .fill   {CORES}, 8, 0
    .previous
    "#,
    CORES = const CORES,
    NEXT_HIGH = const NEXT_HIGH,
);

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    loop {}
}
