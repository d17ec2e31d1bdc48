// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A runtime for bare-metal test guests: a program on it runs unchanged on QEMU's `virt` and under
//! the hypervisor, at EL1, entered like a Linux kernel (Documentation/arch/arm64/booting.rst).
//!
//! - [`boot`] enters, [`cpu`] knows the vCPUs and starts them, [`mmu`] maps memory one to one;
//! - [`exception`] takes exceptions and lets a test expect one, [`el0`] runs code at EL0,
//!   [`code`] runs generated instructions;
//! - [`memory`] fills and searches the memory that the program does not use itself;
//! - [`tree`] reads the device tree, [`device`] reaches registers with single instructions,
//!   [`console`], [`gic`], [`cpu_interface`], [`its`], [`irq`], [`timer`] and [`psci`] drive what
//!   every guest has;
//! - [`mod@test`] runs tests and prints one line for each.
//!
//! All of it is for tests: a guest that goes wrong says so and ends.
#![no_std]

pub mod boot;
pub mod code;
pub mod console;
pub mod cpu;
pub mod cpu_interface;
pub mod device;
pub mod el0;
pub mod exception;
pub mod gic;
pub mod irq;
pub mod its;
pub mod memory;
pub mod mmu;
pub mod power;
pub mod psci;
pub mod sysreg;
pub mod test;
pub mod timer;
pub mod tree;

/// Prints to the console.
#[macro_export]
macro_rules! print {
    ($($arg:tt)*) => { $crate::console::print(format_args!($($arg)*)) };
}

/// Prints a line to the console.
#[macro_export]
macro_rules! println {
    ($($arg:tt)*) => { $crate::console::print_line(format_args!($($arg)*)) };
}

/// Names the function that the runtime calls on the boot vCPU once everything is set up.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        #[unsafe(no_mangle)]
        extern "Rust" fn guest_main() {
            $main()
        }
    };
}
