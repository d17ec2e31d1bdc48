// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The console: the PL011 that the tree names (DDI 0183). Only the boot vCPU writes in good times.

use crate::device::Device;
use crate::sysreg::relax;
use crate::tree;
use core::fmt::{self, Write};

/// Register offsets (DDI 0183 3.2).
pub mod reg {
    /// UARTDR.
    pub const DR: u64 = 0x00;
    /// UARTFR.
    pub const FR: u64 = 0x18;
    /// UARTIBRD.
    pub const IBRD: u64 = 0x24;
    /// UARTLCR_H.
    pub const LCR_H: u64 = 0x2c;
    /// UARTCR.
    pub const CR: u64 = 0x30;
    /// UARTIMSC.
    pub const IMSC: u64 = 0x38;
    /// UARTRIS.
    pub const RIS: u64 = 0x3c;
    /// UARTMIS.
    pub const MIS: u64 = 0x40;
    /// UARTICR.
    pub const ICR: u64 = 0x44;
}

/// UARTFR: receive FIFO empty.
const RXFE: u32 = 1 << 4;
/// UARTFR: transmit FIFO full.
const TXFF: u32 = 1 << 5;
/// UARTLCR_H: eight bits, FIFOs.
const LCR_H_8_FIFO: u32 = 0x70;
/// UARTCR: UART, transmitter and receiver enabled.
const CR_ON: u32 = 0x301;

struct Console;

impl Write for Console {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for byte in s.bytes() {
            if byte == b'\n' {
                put(b'\r');
            }
            put(byte);
        }
        Ok(())
    }
}

/// Returns the console's registers.
#[must_use]
pub fn device() -> Device {
    tree::machine().uart
}

/// Puts the console into its working state: no interrupts.
pub fn init() {
    let uart = device();
    uart.write32(reg::IMSC, 0);
    uart.write32(reg::ICR, 0x7ff);
    uart.write32(reg::LCR_H, LCR_H_8_FIFO);
    uart.write32(reg::CR, CR_ON);
}

/// Writes a byte.
pub fn put(byte: u8) {
    let uart = device();
    while uart.read32(reg::FR) & TXFF != 0 {
        relax();
    }
    uart.write32(reg::DR, byte.into());
}

/// Waits for a byte and returns it.
#[must_use]
pub fn get() -> u8 {
    let uart = device();
    while uart.read32(reg::FR) & RXFE != 0 {
        relax();
    }
    uart.read32(reg::DR).to_le_bytes()[0]
}

/// Prints; `print!` is the way to call it.
pub fn print(arguments: fmt::Arguments<'_>) {
    // The console itself never fails.
    let _ = Console.write_fmt(arguments);
}

/// Prints a line; `println!` is the way to call it.
pub fn print_line(arguments: fmt::Arguments<'_>) {
    let _ = Console.write_fmt(format_args!("{arguments}\n"));
}
