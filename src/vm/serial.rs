// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A VM's console port: its PL011 between the guest and the one physical UART.
#![forbid(unsafe_code)]

use super::Vm;
use crate::bits::{Level, MmioError, Width};
use crate::console::GuestWire;
use crate::console::pl011::VirtualPl011;
use crate::sync::Guard;
use crate::vcpu::FromCore;

/// The PL011 and what its interrupt line was last seen to carry.
#[derive(Debug, Default)]
pub struct Serial {
    model: VirtualPl011,
    line: Level,
}

impl Vm {
    /// Reads a register of the PL011.
    ///
    /// # Errors
    /// The model does not answer such an access.
    pub fn read_serial(
        &self,
        by: &FromCore<'_>,
        offset: u64,
        width: Width,
    ) -> Result<u64, MmioError> {
        self.with_serial(by, |model, wire| model.read(offset, width, wire))
    }

    /// Writes a register of the PL011.
    ///
    /// # Errors
    /// The model does not answer such an access.
    pub fn write_serial(
        &self,
        by: &FromCore<'_>,
        offset: u64,
        width: Width,
        value: u64,
    ) -> Result<(), MmioError> {
        self.with_serial(by, |model, wire| model.write(offset, width, value, wire))
    }

    /// Lets the PL011 see that input has come or that there is room for output.
    pub fn refresh_serial(&self, by: &FromCore<'_>) {
        self.with_serial(by, |model, wire| model.refresh(wire));
    }

    /// Makes the PL011 as it is after reset, its line low: the GIC's models keep what lines carry.
    pub fn reset_serial(&self, by: &FromCore<'_>) {
        let mut serial = self.serial.acquire();
        *serial = Serial::default();
        let line = serial.line;
        self.set_serial_line(*by, serial, line);
    }

    /// Lets the distributor see the line as it is now, and gives the lock back.
    #[cold]
    #[inline(never)]
    fn set_serial_line(&self, by: FromCore<'_>, mut serial: Guard<'_, Serial>, line: Level) {
        serial.line = line;
        let vintid = self.plan.layout.vuart_interrupt;
        let ((), kicks) = self.change_spis_before_kicks(by, |token, effects| {
            self.vgic.set_level(token, vintid, line, effects);
        });
        drop(serial);
        self.send_kicks(kicks);
    }

    fn with_serial<R>(
        &self,
        by: &FromCore<'_>,
        access: impl FnOnce(&mut VirtualPl011, &mut GuestWire<'_>) -> R,
    ) -> R {
        let mut serial = self.serial.acquire();
        let mut wire = by.hypervisor.console.mux.wire(self.id);
        let result = access(&mut serial.model, &mut wire);
        self.follow(by, serial, &wire);
        result
    }

    /// Carries on what an access has changed: the line, and what is on the wire.
    #[inline(never)]
    fn follow(&self, by: &FromCore<'_>, serial: Guard<'_, Serial>, wire: &GuestWire<'_>) {
        let line = serial.model.interrupt_level();
        if line != serial.line {
            self.set_serial_line(*by, serial, line);
        } else {
            drop(serial);
        }
        if wire.wants_drain() {
            by.hypervisor.console.send();
        }
    }
}
