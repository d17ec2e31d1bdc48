// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The ITS and LPIs: a guest that fills its command queue, and what its vCPUs get.
#![forbid(unsafe_code)]

mod commands;
mod model;
mod registers;

use super::*;
use crate::addr::{Address, Ipa};
use crate::gic::fake::{LpiState, SPURIOUS};
use core::cell::Cell;
use std::vec;

/// The guest's memory, and the tables in it.
const RAM: u64 = 0x4000_0000;
const RAM_BYTES: u64 = 0x10_0000;
const QUEUE: u64 = RAM + 0x1_0000;
const PROPERTIES: u64 = RAM + 0x2_0000;
const PENDING: u64 = RAM + 0x3_0000;
const DEVICES: u64 = RAM + 0x8_0000;
const COLLECTIONS: u64 = RAM + 0x9_0000;

const CTLR: u64 = 0;
const CBASER: u64 = 0x80;
const CWRITER: u64 = 0x88;
const CREADR: u64 = 0x90;
const BASER: u64 = 0x100;
const VALID: u64 = 1 << 63;
/// GICR_CTLR.CES.
const CES: u64 = 2;

/// A command of the specification (IHI 0069 H 5.3).
type Raw = [u64; 4];

fn mapd(device: u64, size: u64) -> Raw {
    [device << 32 | 8, size, VALID | RAM, 0]
}
fn unmapd(device: u64) -> Raw {
    [device << 32 | 8, 0, 0, 0]
}
fn mapc(collection: u64, vcpu: u64) -> Raw {
    [9, 0, VALID | vcpu << 16 | collection, 0]
}
fn unmapc(collection: u64) -> Raw {
    [9, 0, collection, 0]
}
fn mapti((device, event): (u64, u64), lpi: u64, collection: u64) -> Raw {
    [device << 32 | 0xa, lpi << 32 | event, collection, 0]
}
fn mapi((device, event): (u64, u64), collection: u64) -> Raw {
    [device << 32 | 0xb, event, collection, 0]
}
fn movi((device, event): (u64, u64), collection: u64) -> Raw {
    [device << 32 | 1, event, collection, 0]
}
fn movall(from: u64, to: u64) -> Raw {
    [0xe, 0, from << 16, to << 16]
}
fn discard((device, event): (u64, u64)) -> Raw {
    [device << 32 | 0xf, event, 0, 0]
}
fn inv((device, event): (u64, u64)) -> Raw {
    [device << 32 | 0xc, event, 0, 0]
}
fn invall(collection: u64) -> Raw {
    [0xd, 0, collection, 0]
}
fn int((device, event): (u64, u64)) -> Raw {
    [device << 32 | 3, event, 0, 0]
}
fn clear((device, event): (u64, u64)) -> Raw {
    [device << 32 | 4, event, 0, 0]
}
fn sync(vcpu: u64) -> Raw {
    [5, 0, vcpu << 16, 0]
}

/// The guest's memory, which counts how often it is read.
struct Memory {
    bytes: Vec<u8>,
    reads: Cell<usize>,
}

impl GuestTables for Memory {
    fn read(&self, start: Ipa, bytes: &mut [u8]) -> Result<(), Unreadable> {
        let start = start.get().checked_sub(RAM).ok_or(Unreadable)?;
        let start = usize::try_from(start).map_err(|_| Unreadable)?;
        let end = start.checked_add(bytes.len()).ok_or(Unreadable)?;
        bytes.copy_from_slice(self.bytes.get(start..end).ok_or(Unreadable)?);
        self.reads.set(self.reads.get() + 1);
        Ok(())
    }
}

/// A VM with an ITS.
struct Bed {
    machine: Machine,
    vits: Vits,
    memory: Memory,
}

impl Bed {
    /// Makes one whose guest has set up nothing.
    fn bare(vcpus: usize, list_registers: usize) -> Self {
        let machine = Machine::new(vcpus, list_registers);
        let machine = Machine { vgic: machine.vgic.with_lpis().unwrap(), ..machine };
        let memory = Memory { bytes: vec![0; 0x10_0000], reads: Cell::new(0) };
        Self { machine, vits: Vits::new().unwrap(), memory }
    }
    /// Makes one whose guest has enabled ITS and LPIs, with collection n for vCPU n, and device 5
    /// with 16 events.
    fn new(vcpus: usize, list_registers: usize) -> Self {
        let mut bed = Self::bare(vcpus, list_registers);
        for vcpu in 0..vcpus {
            bed.write_private(vcpu, 0x70, PROPERTIES | 13);
            bed.write_private(vcpu, 0x78, PENDING | 1 << 62);
            bed.enable_lpis(vcpu);
        }
        bed.write(BASER, VALID | DEVICES);
        bed.write(BASER + 8, VALID | COLLECTIONS);
        bed.write(CBASER, VALID | QUEUE);
        bed.write_word(CTLR, 1);
        for n in 0..vcpus as u64 {
            bed.run([mapc(n, n)]);
        }
        bed.run([mapd(5, 3)]);
        bed
    }
    /// Makes one where also events 0 to 7 of device 5 are LPIs 8192 to 8199 of collection 0, at
    /// priority 0xa0.
    fn mapped(vcpus: usize, list_registers: usize) -> Self {
        let mut bed = Self::new(vcpus, list_registers);
        for n in 0..8 {
            bed.configure(8192 + n, 0xa1);
            bed.run([mapti((5, n), 8192 + n, 0)]);
        }
        bed
    }

    /// Writes a register of the ITS, 64 bits.
    fn write(&mut self, offset: u64, value: u64) {
        self.vits.write(offset, Width::Double, value).unwrap();
    }
    fn write_word(&mut self, offset: u64, value: u64) {
        self.vits.write(offset, Width::Word, value).unwrap();
    }
    fn read(&self, offset: u64) -> u64 {
        self.vits.read(offset, Width::Double).unwrap()
    }
    /// Writes 64 bits to the first frame of a redistributor.
    fn write_private(&self, vcpu: usize, offset: u64, value: u64) {
        let offset = vcpu as u64 * GICR_BYTES + offset;
        let Machine { vgic, effects, .. } = &self.machine;
        vgic.write_vredists((offset, Width::Double), value, effects).unwrap();
    }
    fn read_private(&self, vcpu: usize, offset: u64) -> u64 {
        let offset = vcpu as u64 * GICR_BYTES + offset;
        self.machine.vgic.read_vredists(offset, Width::Double).unwrap()
    }
    /// Sets GICR_CTLR.EnableLPIs.
    fn enable_lpis(&mut self, vcpu: usize) {
        self.write_control(vcpu, 1);
    }
    fn write_control(&mut self, vcpu: usize, value: u64) {
        let Machine { vgic, token, effects, .. } = &mut self.machine;
        let access = (vcpu as u64 * GICR_BYTES, Width::Word);
        vgic.write_vredists(access, value, effects).unwrap();
        for write in effects.lpi_controls.borrow_mut().drain(..) {
            vgic.control_lpis(token, write, (&self.memory, &*effects));
        }
    }
    fn control(&self, vcpu: usize) -> u64 {
        self.machine.vgic.read_vredists(vcpu as u64 * GICR_BYTES, Width::Word).unwrap()
    }

    /// Writes memory.
    fn fill(&mut self, at: u64, bytes: &[u8]) {
        let start = usize::try_from(at - RAM).unwrap();
        self.memory.bytes[start..start + bytes.len()].copy_from_slice(bytes);
    }
    /// Writes an entry of the configuration table.
    fn configure(&mut self, lpi: u64, entry: u8) {
        self.fill(PROPERTIES + lpi - 8192, &[entry]);
    }
    /// Puts commands into the queue, and does not tell.
    fn queue<const N: usize>(&mut self, commands: [Raw; N]) -> u64 {
        let bytes = ((self.read(CBASER) & 0xff) + 1) * 0x1000;
        let mut at = self.read(CWRITER);
        for command in commands {
            let words = command.map(u64::to_le_bytes);
            self.fill(QUEUE + at, words.as_flattened());
            at = (at + 32) % bytes;
        }
        at
    }
    /// Lets the ITS do commands, one after the other.
    fn run<const N: usize>(&mut self, commands: [Raw; N]) {
        let at = self.queue(commands);
        self.write(CWRITER, at);
        for _ in 0..N {
            assert!(self.vits.has_work());
            assert!(self.step() > 0, "a command costs something");
        }
        assert!(!self.vits.has_work());
        assert_eq!(self.read(CREADR), at);
        self.machine.settle(0);
    }
    fn step(&mut self) -> u32 {
        let Machine { vgic, token, effects, .. } = &mut self.machine;
        self.vits.step(vgic, token, &self.memory, effects)
    }

    /// Returns what a vCPU gets, one after the other, until there is nothing more.
    fn taken(&mut self, vcpu: usize) -> Vec<u32> {
        let taken = core::iter::from_fn(|| Some(self.machine.take(vcpu)));
        taken.take_while(|&intid| intid != SPURIOUS).collect()
    }
}
