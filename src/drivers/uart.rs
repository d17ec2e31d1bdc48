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

mod pl011 {
    pub const DR: u64 = 0x00;
    pub const FR: u64 = 0x18;
    pub const FR_RXFE: u32 = 1 << 4;
    pub const FR_TXFF: u32 = 1 << 5;
    pub const IMSC: u64 = 0x38;
    pub const RX: u32 = 1 << 4;
    pub const TX: u32 = 1 << 5;
    pub const RT: u32 = 1 << 6;
    /// Break, parity, framing and overrun errors arrive in the upper bits of DR.
    pub const DR_ERRORS: u32 = 0xf00;
}

mod ns16550 {
    pub const DATA: u64 = 0;
    pub const IER: u64 = 1;
    pub const IER_RX: u32 = 1 << 0;
    pub const IER_TX: u32 = 1 << 1;
    pub const LSR: u64 = 5;
    pub const LSR_DR: u32 = 1 << 0;
    pub const LSR_THRE: u32 = 1 << 5;
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
        Self { kind, registers: Registers::new(block) }
    }

    /// Lets received bytes raise the UART's interrupt.
    pub fn enable_receive_interrupt(&mut self) {
        match self.kind {
            UartKind::Pl011 => {
                let mask = self.registers.read32(pl011::IMSC);
                self.registers.write32(pl011::IMSC, mask | pl011::RX | pl011::RT);
            }
            UartKind::Ns16550 { shift } => {
                let enabled = self.registers.read32(ns16550::IER << shift);
                self.registers.write32(ns16550::IER << shift, enabled | ns16550::IER_RX);
            }
        }
    }
}

impl SerialPort for Uart {
    fn try_send(&mut self, byte: u8) -> Sent {
        let (ready, data) = match self.kind {
            UartKind::Pl011 => (self.registers.read32(pl011::FR) & pl011::FR_TXFF == 0, pl011::DR),
            UartKind::Ns16550 { shift } => {
                let status = self.registers.read32(ns16550::LSR << shift);
                (status & ns16550::LSR_THRE != 0, ns16550::DATA)
            }
        };
        if !ready {
            return Sent::Busy;
        }
        self.registers.write32(data, byte.into());
        Sent::Yes
    }

    fn try_receive(&mut self) -> Option<u8> {
        match self.kind {
            UartKind::Pl011 => {
                if self.registers.read32(pl011::FR) & pl011::FR_RXFE != 0 {
                    return None;
                }
                let data = self.registers.read32(pl011::DR);
                // A byte with an error still ends here: nobody could tell a guest about it.
                let _ = data & pl011::DR_ERRORS;
                u8::try_from(data & 0xff).ok()
            }
            UartKind::Ns16550 { shift } => {
                if self.registers.read32(ns16550::LSR << shift) & ns16550::LSR_DR == 0 {
                    return None;
                }
                u8::try_from(self.registers.read32(ns16550::DATA) & 0xff).ok()
            }
        }
    }

    fn set_send_interrupt(&mut self, switch: Switch) {
        match self.kind {
            UartKind::Pl011 => {
                let mask = self.registers.read32(pl011::IMSC) & !pl011::TX;
                let tx = if switch == Switch::On { pl011::TX } else { 0 };
                self.registers.write32(pl011::IMSC, mask | tx);
            }
            UartKind::Ns16550 { shift } => {
                let enabled = self.registers.read32(ns16550::IER << shift) & !ns16550::IER_TX;
                let tx = if switch == Switch::On { ns16550::IER_TX } else { 0 };
                self.registers.write32(ns16550::IER << shift, enabled | tx);
            }
        }
    }
}

/// Waits for each byte, for the lines of the boot. Ends lines as a terminal wants them.
impl fmt::Write for Uart {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        const POLLS_MAX: u32 = 1_000_000;
        let with_return = |byte| (byte == b'\n').then_some(b'\r').into_iter().chain([byte]);
        for byte in s.bytes().flat_map(with_return) {
            let sent = (0..POLLS_MAX).any(|_| self.try_send(byte) == Sent::Yes);
            if !sent {
                return Err(fmt::Error);
            }
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
