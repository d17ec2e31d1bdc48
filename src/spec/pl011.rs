// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The PrimeCell UART PL011 (DDI 0183, r1p4): registers and their bits.
//!
//! Shared by the driver of a physical PL011 and by the virtual one.
#![forbid(unsafe_code)]

/// Bytes in the register window.
pub const WINDOW_BYTES: u64 = 0x1000;
/// Bytes in the transmit FIFO and in the receive FIFO (32 from r1p5 on).
pub const FIFO_DEPTH: usize = 16;

/// UARTDR: data, and errors of the byte read in bits 11:8.
pub const DR: u64 = 0x000;
/// UARTRSR to read, UARTECR to write: errors of the byte last read.
pub const RSR_ECR: u64 = 0x004;
/// UARTFR: flags.
pub const FR: u64 = 0x018;
/// UARTILPR: IrDA low-power counter.
pub const ILPR: u64 = 0x020;
/// UARTIBRD: integer baud rate divisor.
pub const IBRD: u64 = 0x024;
/// UARTFBRD: fractional baud rate divisor.
pub const FBRD: u64 = 0x028;
/// UARTLCR_H: line control.
pub const LCR_H: u64 = 0x02c;
/// UARTCR: control.
pub const CR: u64 = 0x030;
/// UARTIFLS: FIFO levels at which interrupts rise.
pub const IFLS: u64 = 0x034;
/// UARTIMSC: interrupts that are let through.
pub const IMSC: u64 = 0x038;
/// UARTRIS: interrupts before the mask.
pub const RIS: u64 = 0x03c;
/// UARTMIS: interrupts behind the mask.
pub const MIS: u64 = 0x040;
/// UARTICR: clears interrupts.
pub const ICR: u64 = 0x044;
/// UARTDMACR: DMA control.
pub const DMACR: u64 = 0x048;
/// UARTPeriphID0; seven more identification registers follow, a byte in each word.
pub const PERIPH_ID_0: u64 = 0xfe0;

/// UARTPeriphID0-3 and UARTPCellID0-3 of r1p4: part 0x011, designer 0x41, revision 1.
pub const IDENTIFICATION: [u8; 8] = [0x11, 0x10, 0x14, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

/// UARTDR.OE: a byte was lost because the receive FIFO was full.
pub const DR_OE: u16 = 1 << 11;
/// UARTRSR.OE: as in UARTDR, until UARTECR is written.
pub const RSR_OE: u16 = 1 << 3;

/// UARTFR.CTS: the other side is ready.
pub const FR_CTS: u16 = 1 << 0;
/// UARTFR.DSR.
pub const FR_DSR: u16 = 1 << 1;
/// UARTFR.DCD.
pub const FR_DCD: u16 = 1 << 2;
/// UARTFR.BUSY: the transmitter has something to send.
pub const FR_BUSY: u16 = 1 << 3;
/// UARTFR.RXFE: the receive FIFO is empty.
pub const FR_RXFE: u16 = 1 << 4;
/// UARTFR.TXFF: the transmit FIFO is full.
pub const FR_TXFF: u16 = 1 << 5;
/// UARTFR.RXFF: the receive FIFO is full.
pub const FR_RXFF: u16 = 1 << 6;
/// UARTFR.TXFE: the transmit FIFO is empty.
pub const FR_TXFE: u16 = 1 << 7;

/// UARTLCR_H.FEN: the FIFOs are on; off, each is one byte deep.
pub const LCR_H_FEN: u16 = 1 << 4;
/// UARTLCR_H.WLEN: eight bits in a word.
pub const LCR_H_WLEN_8: u16 = 3 << 5;

/// UARTCR.UARTEN.
pub const CR_UARTEN: u16 = 1 << 0;
/// UARTCR.TXE: transmit enable.
pub const CR_TXE: u16 = 1 << 8;
/// UARTCR.RXE: receive enable.
pub const CR_RXE: u16 = 1 << 9;
/// UARTCR at reset.
pub const CR_RESET: u16 = CR_TXE | CR_RXE;
/// The bits of UARTCR that are not reserved.
pub const CR_MASK: u16 = 0xff87;
/// UARTIFLS at reset: both FIFOs half full.
pub const IFLS_RESET: u16 = 0x12;

/// Receive interrupt, in UARTIMSC, UARTRIS, UARTMIS and UARTICR, as those below.
pub const INT_RX: u16 = 1 << 4;
/// Transmit interrupt.
pub const INT_TX: u16 = 1 << 5;
/// Receive timeout interrupt.
pub const INT_RT: u16 = 1 << 6;
/// Overrun interrupt.
pub const INT_OE: u16 = 1 << 10;
/// All interrupts.
pub const INT_MASK: u16 = 0x7ff;

/// Returns the bytes in a FIFO at the level that a 3-bit field of UARTIFLS selects; reserved
/// values select one half.
#[must_use]
pub const fn level_bytes(select: u16) -> usize {
    match select & 7 {
        0 => FIFO_DEPTH / 8,
        1 => FIFO_DEPTH / 4,
        3 => FIFO_DEPTH * 3 / 4,
        4 => FIFO_DEPTH * 7 / 8,
        _ => FIFO_DEPTH / 2,
    }
}
