// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The bare-metal image: what only a final program can have, the allocator and the panic handler.
//! The entry symbol is in `arch/aarch64/start.rs`; the boot is in `boot.rs`.
#![cfg_attr(target_os = "none", no_std)]
#![cfg_attr(target_os = "none", no_main)]

#[cfg(target_os = "none")]
mod image {
    #![expect(unsafe_code, reason = "the entry code in the machine layer calls these by name")]
    use cofferdam::addr::{Address, Pa};
    use cofferdam::{arch, boot};
    use core::panic::PanicInfo;

    // SAFETY: The names are the image's own; nothing else is linked that could use them.
    #[unsafe(no_mangle)]
    extern "C" fn cofferdam_boot(tree: u64) -> ! {
        boot::start(Pa::new(tree))
    }

    // SAFETY: As above.
    #[unsafe(no_mangle)]
    extern "C" fn cofferdam_secondary(core: u64) -> ! {
        boot::start_secondary(core)
    }

    #[global_allocator]
    static HEAP: arch::Heap = arch::Heap;

    #[panic_handler]
    fn panic(info: &PanicInfo<'_>) -> ! {
        arch::panic(info)
    }
}

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("cofferdam is an image for aarch64-unknown-none-softfloat; see cargo coffer build");
}
