// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The virtual ITS of a VM: its registers, its command queue, and what each command does.
//!
//! A command is read once from the guest's memory, and everything in it may be wrong: an error
//! changes nothing and the next command follows (IHI 0069 H 5.3.1 lets an ITS ignore it). A queue
//! that is not the guest's memory stalls. One [`step`](Vits::step) is one command; its caller
//! decides how many there are in a row. Translations are kept in [`tables`], so the
//! memory of `GITS_BASER<n>` says how many devices and collections there may be and is not touched.
//! Must not know cores or locks. IHI 0069 H 5.2, 5.3, 12.18 and 12.19.
#![forbid(unsafe_code)]

mod tables;

use super::lpi::{GuestTables, LPI_COUNT, Lpis};
use super::vdist::Net;
use super::{Effects, IIDR, SpiToken, Vgic};
use crate::addr::{Address, Ipa};
use crate::bits::{MmioError, Width};
use crate::heap::NoMemory;
use crate::id::VcpuId;
use crate::spec::gic::{PIDR2, PIDR2_GICV3};
use crate::spec::its::{COMMAND_BYTES, Command, Event, GITS_BYTES, LPI_FIRST, Mapping, gits};
use tables::{COLLECTION_BITS, CommandError, DEVICE_BITS, EVENT_BITS, Tables};

/// GITS_TYPER: collections go to a Processor_Number, an entry of a table of events is one byte.
const TYPER: u64 = gits::TYPER_PHYSICAL
    | (EVENT_BITS as u64 - 1) << gits::TYPER_ID_BITS_SHIFT
    | (DEVICE_BITS as u64 - 1) << gits::TYPER_DEVBITS_SHIFT
    | gits::TYPER_CIL
    | (COLLECTION_BITS as u64 - 1) << gits::TYPER_CIDBITS_SHIFT;
/// What GITS_CBASER and `GITS_BASER<n>` say of how memory is reached: as EL2 does it.
const ATTRIBUTES: u64 = gits::INNER_WRITE_BACK | gits::INNER_SHAREABLE;

/// What a command costs that concerns all LPIs, in what one costs that concerns one.
const ALL_LPIS: u32 = 8;
/// What a command costs at most that moves what lies behind in a table.
const A_TABLE: u32 = 2;

/// The virtual ITS of a VM.
#[derive(Debug)]
pub struct Vits {
    is_enabled: bool,
    is_stalled: bool,
    cbaser: u64,
    /// The offset in GITS_CWRITER.
    write: u64,
    /// The offset in GITS_CREADR.
    read: u64,
    /// GITS_BASER0 and GITS_BASER1.
    basers: [u64; 2],
    tables: Tables,
}

/// The registers of 64 bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Register {
    Typer,
    Cbaser,
    Cwriter,
    Creadr,
    Baser(usize),
}

impl Register {
    /// Returns which one holds the offset.
    fn at(offset: u64) -> Option<Self> {
        match offset & !7 {
            gits::TYPER => Some(Self::Typer),
            gits::CBASER => Some(Self::Cbaser),
            gits::CWRITER => Some(Self::Cwriter),
            gits::CREADR => Some(Self::Creadr),
            aligned @ gits::BASER..gits::BASER_END => {
                usize::try_from((aligned - gits::BASER) / 8).ok().map(Self::Baser)
            }
            _ => None,
        }
    }
}

impl Vits {
    /// Makes an ITS in the state after reset.
    ///
    /// # Errors
    /// There is no memory for it.
    pub fn new() -> Result<Self, NoMemory> {
        Ok(Self {
            is_enabled: false,
            is_stalled: false,
            cbaser: 0,
            write: 0,
            read: 0,
            basers: [0; 2],
            tables: Tables::new()?,
        })
    }

    /// Returns to the state after reset.
    pub fn reset(&mut self) {
        (self.is_enabled, self.is_stalled) = (false, false);
        (self.cbaser, self.write, self.read, self.basers) = (0, 0, 0, [0; 2]);
        self.tables.forget_devices();
        self.tables.forget_collections();
    }

    /// Reads at `offset` of the 128 KiB.
    ///
    /// # Errors
    /// Where no register takes the width or alignment, or past the frames.
    pub fn read(&self, offset: u64, width: Width) -> Result<u64, MmioError> {
        check(offset, width)?;
        if let Some(register) = Register::at(offset) {
            let value = self.read_register(register);
            return Ok(value >> (8 * (offset & 4)) & width.mask());
        }
        let quiet = if self.is_enabled { gits::CTLR_ENABLED } else { gits::CTLR_QUIESCENT };
        Ok(match offset {
            gits::CTLR => quiet.into(),
            gits::IIDR => IIDR.into(),
            PIDR2 => PIDR2_GICV3.into(),
            _ => 0,
        })
    }

    fn read_register(&self, register: Register) -> u64 {
        match register {
            Register::Typer => TYPER,
            Register::Cbaser => self.cbaser,
            Register::Cwriter => self.write,
            Register::Creadr if self.is_stalled => self.read | gits::CREADR_STALLED,
            Register::Creadr => self.read,
            Register::Baser(0) => self.basers[0] | gits::BASER_DEVICES | gits::BASER_PAGES_OF_64K,
            Register::Baser(1) => {
                self.basers[1] | gits::BASER_COLLECTIONS | gits::BASER_PAGES_OF_64K
            }
            Register::Baser(_) => 0,
        }
    }

    /// Writes at `offset` of the 128 KiB. GITS_TRANSLATER takes nothing: that no device writes it
    /// has no meaning (IHI 0069 H 12.19.11).
    ///
    /// # Errors
    /// Where no register takes the width or alignment, or past the frames.
    pub fn write(&mut self, offset: u64, width: Width, value: u64) -> Result<(), MmioError> {
        check(offset, width)?;
        if offset == gits::CTLR {
            self.is_enabled = value & u64::from(gits::CTLR_ENABLED) != 0;
        }
        let Some(register) = Register::at(offset) else { return Ok(()) };
        let shift = 8 * (offset & 4);
        let others = self.read_register(register) & !(width.mask() << shift);
        let value = others | (value & width.mask()) << shift;
        match register {
            // What the queue and the tables are does not change under way (12.19.2, 12.19.1).
            Register::Cbaser if !self.is_enabled => self.write_cbaser(value),
            Register::Cwriter if offset & 4 == 0 => self.write_cwriter(value),
            Register::Baser(n) if !self.is_enabled => self.write_baser(n, value),
            _ => {}
        }
        Ok(())
    }

    fn write_cbaser(&mut self, value: u64) {
        let fields = gits::VALID | gits::CBASER_ADDRESS | gits::SIZE;
        self.cbaser = value & fields | ATTRIBUTES;
        (self.read, self.write) = (0, 0);
        self.is_stalled = false;
    }

    fn write_cwriter(&mut self, value: u64) {
        let offset = value & gits::OFFSET;
        // Beyond the queue is UNPREDICTABLE: the ITS does not go there.
        if offset < self.queue_bytes() {
            self.write = offset;
        }
        if value & gits::CWRITER_RETRY != 0 {
            self.is_stalled = false;
        }
    }

    fn write_baser(&mut self, n: usize, value: u64) {
        let Some(baser) = self.basers.get_mut(n) else { return };
        let fields = gits::VALID | gits::BASER_ADDRESS | gits::SIZE;
        let new = value & fields | ATTRIBUTES;
        let changed = (*baser ^ new) & (gits::VALID | gits::BASER_ADDRESS) != 0;
        *baser = new;
        // Another table is an empty one: the guest has zeroed it (12.19.1).
        match n {
            0 if changed => self.tables.forget_devices(),
            1 if changed => self.tables.forget_collections(),
            _ => {}
        }
    }

    fn queue_bytes(&self) -> u64 {
        ((self.cbaser & gits::SIZE) + 1) * gits::CBASER_PAGE
    }
    /// Returns how many entries of one byte a table has room for.
    fn entries(&self, n: usize) -> u64 {
        let baser = self.basers.get(n).copied().unwrap_or(0);
        let pages = if baser & gits::VALID == 0 { 0 } else { (baser & gits::SIZE) + 1 };
        pages * gits::BASER_PAGE
    }

    /// Returns whether there are commands to be done.
    #[must_use]
    pub fn has_work(&self) -> bool {
        let is_running = self.is_enabled && !self.is_stalled && self.cbaser & gits::VALID != 0;
        is_running && self.read != self.write
    }

    /// Does the next command, and returns what that has cost in some hundred instructions each.
    pub fn step<T: GuestTables, E: Effects>(
        &mut self,
        vgic: &Vgic,
        token: &mut SpiToken,
        tables: &T,
        effects: &E,
    ) -> u32 {
        if !self.has_work() {
            return 0;
        }
        let Some(command) = self.fetch(tables) else {
            self.is_stalled = true;
            return 1;
        };
        self.read = (self.read + COMMAND_BYTES) % self.queue_bytes();
        // An error changes nothing, and nobody is told: GITS_TYPER.SEIS is 0.
        let _ = self.execute(command, token, tables, vgic.net(effects));
        match command {
            Command::Invall(_) | Command::Movall(..) => ALL_LPIS,
            // These move what lies behind in a table.
            Command::Mapd(..) | Command::Mapti(..) | Command::Discard(_) => A_TABLE,
            _ => 1,
        }
    }

    /// Reads the next command; `None` where the queue is not the guest's memory.
    fn fetch<T: GuestTables>(&self, tables: &T) -> Option<Command> {
        let queue = Ipa::new(self.cbaser & gits::CBASER_ADDRESS);
        let mut words = [[0; 8]; 4];
        tables.read(queue.checked_add(self.read)?, words.as_flattened_mut()).ok()?;
        Some(Command::decode(words.map(u64::from_le_bytes)))
    }

    fn execute<T: GuestTables, E: Effects>(
        &mut self,
        command: Command,
        token: &mut SpiToken,
        tables: &T,
        net: Net<'_, E>,
    ) -> Result<(), CommandError> {
        let lpis = &net.vgic.lpis;
        match command {
            Command::Mapd(device, bits, mapping) => self.mapd(device, bits, mapping)?,
            Command::Mapc(collection, rdbase, mapping) => {
                self.mapc(collection, rdbase, mapping, net)?
            }
            Command::Mapti(event, lpi, collection) => {
                self.mapti(event, lpi, collection, lpis)?;
                lpis.configure(token, lpi, tables, net);
            }
            Command::Movi(event, collection) => {
                let (lpi, to) = self.tables.move_event(event, self.collection(collection)?)?;
                lpis.aim(token, lpi, to, net);
            }
            Command::Discard(event) => lpis.clear(token, self.tables.unmap_event(event)?, net),
            Command::Int(event) => {
                let (lpi, to) = self.tables.translate(event)?;
                lpis.raise(token, lpi, to, net);
            }
            Command::Clear(event) => lpis.clear(token, self.tables.translate(event)?.0, net),
            Command::Inv(event) => {
                lpis.configure(token, self.tables.translate(event)?.0, tables, net);
            }
            Command::Invall(collection) => {
                self.tables.target(self.collection(collection)?)?;
                lpis.configure_all(token, tables, net);
            }
            Command::Movall(from, to) => {
                lpis.aim_all(token, (vcpu(net, from)?, vcpu(net, to)?), net);
            }
            Command::Sync(rdbase) => {
                vcpu(net, rdbase)?;
            }
            Command::Unknown(_) => return Err(CommandError::Unknown),
        }
        Ok(())
    }

    fn mapd(&mut self, device: u32, bits: u32, mapping: Mapping) -> Result<(), CommandError> {
        let id = u16::try_from(device).ok().filter(|&id| u64::from(id) < self.entries(0));
        let id = id.ok_or(CommandError::DeviceOutOfRange)?;
        match mapping {
            Mapping::Make => self.tables.map_device(id, bits),
            Mapping::Unmake => {
                self.tables.unmap_device(id);
                Ok(())
            }
        }
    }

    fn mapc<E>(
        &mut self,
        collection: u16,
        rdbase: u64,
        mapping: Mapping,
        net: Net<'_, E>,
    ) -> Result<(), CommandError> {
        let to = match mapping {
            Mapping::Make => Some(vcpu(net, rdbase)?),
            Mapping::Unmake => None,
        };
        self.tables.map_collection(self.collection(collection)?, to);
        Ok(())
    }

    fn mapti(
        &mut self,
        event: Event,
        lpi: u32,
        collection: u16,
        lpis: &Lpis,
    ) -> Result<(), CommandError> {
        let collection = self.collection(collection)?;
        let lpi = u16::try_from(lpi).ok().filter(|&lpi| lpis.has(lpi.into()));
        self.tables.map_event(event, lpi.ok_or(CommandError::LpiOutOfRange)?, collection)
    }

    fn collection(&self, collection: u16) -> Result<u8, CommandError> {
        let is_within = u64::from(collection) < self.entries(1);
        let found = u8::try_from(collection).ok().filter(|_| is_within);
        found.ok_or(CommandError::CollectionOutOfRange)
    }
}

/// Finds the vCPU that an RDbase names.
fn vcpu<E>(net: Net<'_, E>, rdbase: u64) -> Result<VcpuId, CommandError> {
    let number = usize::try_from(rdbase).ok();
    let vredist = number.and_then(|number| net.vgic.vredists.get(number));
    vredist.map(super::Vredist::id).ok_or(CommandError::NoRedistributor)
}

/// Checks that a register at `offset` takes accesses of `width` (IHI 0069 H 12.1.3).
fn check(offset: u64, width: Width) -> Result<(), MmioError> {
    if offset >= GITS_BYTES {
        return Err(MmioError::Unmapped);
    }
    let fits = match width {
        Width::Word => offset & 3 == 0,
        Width::Half => offset == gits::TRANSLATER,
        Width::Double => offset & 7 == 0 && Register::at(offset).is_some(),
        Width::Byte => false,
    };
    if fits { Ok(()) } else { Err(MmioError::Width) }
}

// INTIDs are kept in 16 bits, and a table of LPIs in whole words.
const _: () = assert!(LPI_FIRST + LPI_COUNT <= 1 << 16 && LPI_COUNT.is_multiple_of(32));
