// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The linker's symbols: where the parts of the image lie.
#![expect(unsafe_code, reason = "symbols of the linker script are extern statics")]

use crate::addr::{Address, Pa, PaRange};

unsafe extern "C" {
    static __image_start: [u8; 0];
    static __text_end: [u8; 0];
    static __rodata_end: [u8; 0];
    static __boot_stack_guard: [u8; 0];
    static __boot_stack_bottom: [u8; 0];
    static __image_end: [u8; 0];
}

/// The image's parts, in order, each of whole pages.
#[derive(Clone, Copy, Debug)]
pub struct Image {
    /// Instructions.
    pub text: PaRange,
    /// Constants and what relocation wrote.
    pub rodata: PaRange,
    /// Data and bss up to the guard page of the boot core's stack.
    pub data: PaRange,
    /// The boot core's stack.
    pub boot_stack: PaRange,
}

impl Image {
    /// Returns all of the image, guard page included.
    #[must_use]
    pub fn whole(self) -> PaRange {
        span(self.text.start(), self.boot_stack.end())
    }
}

/// Returns where the image lies. EL2 maps itself one to one, so these are addresses of both kinds.
#[must_use]
pub fn image() -> Image {
    // SAFETY of all: only the address of each symbol is taken.
    let at = |symbol: *const [u8; 0]| Pa::new(symbol.addr() as u64);
    let (start, text_end) = (at(&raw const __image_start), at(&raw const __text_end));
    let (rodata_end, guard) = (at(&raw const __rodata_end), at(&raw const __boot_stack_guard));
    let (stack, end) = (at(&raw const __boot_stack_bottom), at(&raw const __image_end));
    Image {
        text: span(start, text_end),
        rodata: span(text_end, rodata_end),
        data: span(rodata_end, guard),
        boot_stack: span(stack, end),
    }
}

fn span(start: Pa, end: Pa) -> PaRange {
    // The linker script keeps the order, and no part is empty; a wrong script fails the first boot.
    PaRange::between(start, end).unwrap_or_else(|| super::halt())
}
