// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The physical UART: a PL011 (DDI 0183) or a 16550 with its registers 4 bytes apart.
//!
//! The firmware has set the line up; only what interrupts need is touched.
#![forbid(unsafe_code)]

use crate::addr::{Address, Pa, PaRange};
use crate::console::{Sent, SerialPort, Switch};
use crate::mmio::Registers;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

/// Which UART, and how its registers lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UartKind {
    /// Arm's PL011.
    Pl011,
    /// A 16550: log2 of the distance between registers.
    Ns16550 {
        /// log2 of the distance in bytes between two registers.
        shift: u32,
    },
}

/// The physical UART.
#[derive(Debug)]
pub struct Uart {
    kind: UartKind,
    registers: Registers,
}

/// Both kinds' register of data.
const DATA: u64 = 0;

mod pl011 {
    pub const FR: u64 = 0x18;
    pub const FR_RXFE: u32 = 1 << 4;
    pub const FR_TXFF: u32 = 1 << 5;
    pub const LCR_H: u64 = 0x2c;
    pub const LCR_H_FEN: u32 = 1 << 4;
    pub const LCR_H_WLEN_8: u32 = 0b11 << 5;
    pub const CR: u64 = 0x30;
    pub const CR_UARTEN: u32 = 1 << 0;
    pub const CR_TXE: u32 = 1 << 8;
    pub const CR_RXE: u32 = 1 << 9;
    pub const IMSC: u64 = 0x38;
    pub const RX: u32 = 1 << 4;
    pub const TX: u32 = 1 << 5;
    pub const RT: u32 = 1 << 6;
}

mod ns16550 {
    pub const IER: u64 = 1;
    pub const IER_RX: u32 = 1 << 0;
    pub const IER_TX: u32 = 1 << 1;
    pub const LSR: u64 = 5;
    pub const LSR_DR: u32 = 1 << 0;
    pub const LSR_THRE: u32 = 1 << 5;

    /// Returns where a register is; the distance between two is at most 128 bytes.
    pub const fn at(register: u64, shift: u32) -> u64 {
        register << (shift & 7)
    }
}

/// Where [`RawUart::of_last_resort`] writes: the address, 0 for nowhere; bit 0 and 3:1 hold the
/// kind.
static LAST_RESORT: AtomicU64 = AtomicU64::new(0);

impl Uart {
    /// Takes charge of a UART and remembers it for the dump of a hypervisor fault.
    #[must_use]
    pub fn new(kind: UartKind, block: PaRange) -> Self {
        let code = match kind {
            UartKind::Pl011 => 0,
            UartKind::Ns16550 { shift } => 1 | u64::from(shift & 7) << 1,
        };
        LAST_RESORT.store(block.start().align_down(16).get() | code, Ordering::Relaxed);
        Self::beside(kind, block)
    }

    /// Takes charge of a UART that dumps do not go to.
    #[must_use]
    pub const fn beside(kind: UartKind, block: PaRange) -> Self {
        Self { kind, registers: Registers::new(block) }
    }

    /// Turns on a PL011 that the firmware has left off: 8 bits, FIFOs, whatever speed it has
    /// (DDI 0183 G 3.3.7, 3.3.8). One that is on stays as it is.
    pub fn turn_on(&mut self) {
        if self.kind == UartKind::Pl011 && self.registers.read32(pl011::CR) & pl011::CR_UARTEN == 0
        {
            self.registers.write32(pl011::LCR_H, pl011::LCR_H_WLEN_8 | pl011::LCR_H_FEN);
            let enables = pl011::CR_UARTEN | pl011::CR_TXE | pl011::CR_RXE;
            self.registers.write32(pl011::CR, enables);
        }
    }

    /// Lets received bytes raise the UART's interrupt.
    pub fn enable_receive_interrupt(&mut self) {
        let Interrupts { enable, receive, .. } = self.interrupts();
        self.registers.write32(enable, self.registers.read32(enable) | receive);
    }

    /// Sends a byte, waiting for room; a UART that never has any has failed.
    fn send(&mut self, byte: u8) -> fmt::Result {
        const POLLS_MAX: u32 = 1_000_000;
        for _ in 0..POLLS_MAX {
            if self.try_send(byte) == Sent::Yes {
                return Ok(());
            }
        }
        Err(fmt::Error)
    }

    fn interrupts(&self) -> Interrupts {
        match self.kind {
            UartKind::Pl011 => {
                Interrupts { enable: pl011::IMSC, receive: pl011::RX | pl011::RT, send: pl011::TX }
            }
            UartKind::Ns16550 { shift } => Interrupts {
                enable: ns16550::at(ns16550::IER, shift),
                receive: ns16550::IER_RX,
                send: ns16550::IER_TX,
            },
        }
    }

    /// Returns whether a byte can be sent, and whether one has come in.
    fn status(&self) -> (bool, bool) {
        match self.kind {
            UartKind::Pl011 => {
                let flags = self.registers.read32(pl011::FR);
                (flags & pl011::FR_TXFF == 0, flags & pl011::FR_RXFE == 0)
            }
            UartKind::Ns16550 { shift } => {
                let status = self.registers.read32(ns16550::at(ns16550::LSR, shift));
                (status & ns16550::LSR_THRE != 0, status & ns16550::LSR_DR != 0)
            }
        }
    }
}

/// Where interrupts are let through, and their bits.
struct Interrupts {
    enable: u64,
    receive: u32,
    send: u32,
}

impl SerialPort for Uart {
    fn try_send(&mut self, byte: u8) -> Sent {
        let (can_send, _) = self.status();
        if !can_send {
            return Sent::Busy;
        }
        self.registers.write32(DATA, byte.into());
        Sent::Yes
    }

    fn try_receive(&mut self) -> Option<u8> {
        let (_, has_received) = self.status();
        // A PL011 puts errors of the byte above it. One with an error still ends here: nobody could
        // tell a guest about it.
        let [byte, ..] = has_received.then(|| self.registers.read32(DATA))?.to_le_bytes();
        Some(byte)
    }

    fn set_send_interrupt(&mut self, switch: Switch) {
        let Interrupts { enable, send, .. } = self.interrupts();
        let others = self.registers.read32(enable) & !send;
        self.registers.write32(enable, others | if switch == Switch::On { send } else { 0 });
    }
}

/// Waits for each byte, for the lines of the boot. Ends lines as a terminal wants them.
impl fmt::Write for Uart {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for byte in s.bytes() {
            if byte == b'\n' {
                self.send(b'\r')?;
            }
            self.send(byte)?;
        }
        Ok(())
    }
}

/// The UART without an owner, for the dump of a hypervisor fault: polled, no lock.
#[derive(Debug)]
pub struct RawUart(Option<Uart>);

impl RawUart {
    /// Returns the UART that [`Uart::new`] saw last.
    #[must_use]
    pub fn of_last_resort() -> Self {
        let code = LAST_RESORT.load(Ordering::Relaxed);
        let kind = if code & 1 == 0 {
            UartKind::Pl011
        } else {
            UartKind::Ns16550 { shift: u32::try_from(code >> 1 & 7).unwrap_or(2) }
        };
        let block = PaRange::new(Pa::new(code & !0xf), 0x100).filter(|_| code != 0);
        Self(block.map(|block| Uart { kind, registers: Registers::new(block) }))
    }
}

impl fmt::Write for RawUart {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        self.0.as_mut().map_or(Ok(()), |uart| uart.write_str(s))
    }
}
